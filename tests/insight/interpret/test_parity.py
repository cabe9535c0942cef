"""Our methods beside the originals' own numbers. How those were made, and the tolerances: golden/attention/README.md."""

import json
from pathlib import Path

import pytest
import torch

from insight.interpret.explain import explain
from insight.interpret.family import Target
from insight.stages import Call
from tests.insight.interpret.golden.attention import tiny

GOLDEN = Path(__file__).parent / "golden" / "attention"
NUMBERS = json.loads((GOLDEN / "numbers.json").read_text())


def tolerances():
    """Case -> largest difference allowed, from the README's table."""
    rows = [line.strip("|").split("|") for line in (GOLDEN / "README.md").read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): float(row[-1]) for row in rows}


def method(path, **arguments):
    return Call(f"insight.interpret.{path}", arguments)


FIRST_PICTURE = Target([0, 0, 0], [0, 1, 2])  # against every caption
TWO_OUTPUTS = Target([0, 1], [0, 2])


def stretched(image):
    """The last step of LeGrad's authors: each map from 0 to 1."""
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    return (image - low) / (high - low)


def ours(case):
    batch, dual = tiny.batch(), tiny.dual_encoder()
    chefer, legrad = "relevance.chefer_relevance", "token_gradients.legrad"
    answers = {
        "chefer_image_all": lambda: explain(dual, batch, FIRST_PICTURE, method(chefer)).image.flatten(1),
        "chefer_text_all": lambda: explain(dual, batch, FIRST_PICTURE, method(chefer)).text,
        "chefer_image_last": lambda: explain(dual, batch, FIRST_PICTURE, method(chefer, start_layer=-1)).image.flatten(1),
        "chefer_text_last": lambda: explain(dual, batch, FIRST_PICTURE, method(chefer, start_layer=-1)).text,
        "chefer_encoder_decoder_pairs": lambda: explain(tiny.cross_attention(), batch, None, method(chefer)).pairs.flatten(2),
        "legrad_all_min_max": lambda: stretched(explain(dual, batch, FIRST_PICTURE, method(legrad)).image),
        "legrad_last_two_min_max": lambda: stretched(explain(dual, batch, FIRST_PICTURE, method(legrad, start_layer=-2)).image),
        "grad_eclip_image": lambda: explain(tiny.dual_encoder(heads=1), batch, FIRST_PICTURE, method("token_gradients.grad_eclip")).image,
        "rollout_image": lambda: explain(tiny.classifier(), batch, TWO_OUTPUTS, method("attention_maps.rollout_map")).image.flatten(1),
        "integrated_gradients_image": lambda: (
            explain(tiny.classifier(), batch, TWO_OUTPUTS, method("attribution.integrated_gradients", steps=32)).image
        ),
        "grad_cam_image": lambda: explain(tiny.classifier(), batch, TWO_OUTPUTS, method("token_gradients.grad_cam")).image,
    }
    return answers[case]()


def test_every_case_has_a_published_tolerance():
    assert set(NUMBERS) == set(tolerances())


@pytest.mark.parametrize("case", NUMBERS)
def test_the_originals_numbers_come_out_of_our_methods(case):
    expected, found = torch.tensor(NUMBERS[case]), ours(case)
    assert expected.std() > 0.03 * expected.abs().mean()  # a map that says something
    assert float((found - expected).abs().max()) <= tolerances()[case]


def test_tiny_weights_are_the_same_everywhere():
    assert tiny.numbers("x", 2).tolist() == pytest.approx([-2.313544, 0.795485], abs=1e-6)
    weight = tiny.dual_encoder().model.image.blocks[1].attention.query.weight
    assert torch.equal(weight, tiny.numbers("image.blocks.1.attention.query.weight", 16, 16) * 0.3)
