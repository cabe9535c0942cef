"""Ours against numbers that the original implementations gave; see golden/perturbation/README.md."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from insight.interpret.explain import explain
from insight.interpret.localisation import phrase_scores
from insight.stages import Call

FOLDER = Path(__file__).parent / "golden" / "perturbation"


@pytest.fixture(scope="module")
def numbers():
    return json.loads((FOLDER / "numbers.json").read_text())


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("golden_perturbation_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(found, expected, tolerance):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.as_tensor(expected).double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "method",
    [
        Call("insight.interpret.cross_modal.exact_joint_shapley", {"segments": 9}),
        Call("insight.interpret.perturbation.kernel_shap", {"segments": 9, "words": True, "budget": 2**12}),
    ],
)
def test_joint_shapley_values_are_shaps(method, make, numbers):
    found = explain(*make.pair(), None, method)
    close(torch.cat([found.image.flatten(), found.text[0, 1:4]]), numbers["shap"]["exact_joint"], 1e-5)


def test_values_of_segments_are_shaps_kernel_explainers(make, numbers):
    found = explain(*make.pair(), None, Call("insight.interpret.perturbation.kernel_shap", {"segments": 9, "budget": 2**9}))
    close(found.image.flatten(), numbers["shap"]["kernel_image"], 1e-5)


def test_the_share_of_the_text_is_that_of_mm_shap(make, numbers):
    found = explain(*make.pair(), None, Call("insight.interpret.cross_modal.exact_joint_shapley", {"segments": 9}))
    close(found.diagnostics["text_share"], [numbers["mm_shap_text_share"]], 1e-4)


@pytest.mark.parametrize("keep", [0.5, 0.7])
def test_pairs_are_those_of_fixlips_regression(keep, make, numbers):
    call = Call("insight.interpret.cross_modal.banzhaf_interactions", {"segments": 9, "keep": keep, "masks": 2**9})
    found = explain(*make.pair(), None, call)
    close(found.pairs[0, 1:4].flatten(1).T, numbers["fixlip_pairs"][str(keep)], 1e-6)


def test_pointing_and_energy_are_those_of_quantus(make, numbers):
    maps, boxes = make.maps_and_boxes()
    found = phrase_scores(maps, boxes, [[]] * len(maps))
    assert 0 < found.pointing.sum() < len(maps)
    assert found.pointing.tolist() == numbers["quantus"]["pointing_game"]
    np.testing.assert_allclose(found.energy, numbers["quantus"]["attribution_localisation"], atol=1e-12)
