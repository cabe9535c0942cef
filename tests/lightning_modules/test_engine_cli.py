"""One truth behind both doors: a typo never trains, a saved config builds the same run."""

from __future__ import annotations

import copy

import pytest

from insight.errors import InputError
from lightning_modules.engine_cli import build
from lightning_modules.front import run_composed


def test_a_frozen_config_builds_the_same_plan_and_the_same_frozen_config(tiny_config):
    first = build(tiny_config)
    again = build({**first.frozen, "run_dir": None})
    assert again.plan == first.plan and again.frozen == first.frozen
    assert first.frozen["run_dir"] is None  # a replay is a run of its own


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trianer", {}, "did you mean 'trainer'"),
        ("stages.end_to_end.epocs", 3, "epocs"),
        ("stages.end_to_end.epochs", "abc", "epochs.*abc"),
        ("stages.end_to_end.monitor", "val/mean_recal", "did you mean 'val/mean_recall'"),
        ("stages.end_to_end.losses.x", {"function": "insight.losses.contrast"}, "did you mean 'contrastive'"),
        ("stages.cross_modal.trainer.acumulate_grad_batches", 2, "did you mean 'accumulate_grad_batches'"),
        ("stages.single_modality.data.batchsize", 2, "batchsize"),
        ("model.init_args.dmi", 16, "dmi"),
        ("model.init_args.heads", 3, "dim=16 is not a multiple of heads=3"),
        ("model.init_args.patch_size", 5, "patch_size"),
        ("model.init_args.image_size", 32, "data.init_args.image_size=16"),
        ("model.init_args.dim", "wide", "wide"),
        ("model.class_path", "lightning_modules.multimodal.MultiModule", "MultiModule"),
        ("data.init_args.num_trian", 3, "num_trian"),
        ("trainer.max_epoch", 3, "max_epoch"),
        ("seed_everything", True, "seed_everything"),
        ("callbacks.maps", {"class_path": "callbacks.attention_maps.AttentionMap"}, "AttentionMap"),
    ],
)
def test_a_mistake_names_its_key(tiny_config, key, value, message):
    place = tiny_config
    *parents, leaf = key.split(".")
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    with pytest.raises(InputError, match=message):
        build(tiny_config)


def test_building_leaves_the_mapping_as_it_was(tiny_config):
    before = copy.deepcopy(tiny_config)
    build(tiny_config)
    assert tiny_config == before


def test_resume_takes_no_other_key(tmp_path):
    with pytest.raises(InputError, match=r"leave out model=multimodal"):
        run_composed({"resume": str(tmp_path)}, ["resume=x", "model=multimodal"], full_error=True)


def test_resume_of_a_folder_without_a_run_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml does not exist"):
        run_composed({"resume": str(tmp_path)}, ["resume=x"], full_error=True)
