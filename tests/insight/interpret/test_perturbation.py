import copy

import pytest
import torch
from captum.attr import FeatureAblation, Lime, ShapleyValues
from captum.attr._core.lime import get_exp_kernel_similarity_function
from sklearn.linear_model import Ridge

from insight.errors import InputError
from insight.interpret.coalitions import random_masks
from insight.interpret.explain import explain
from insight.interpret.families import Lacks, Target
from insight.stages import Call

KERNEL_SHAP, SAMPLING, LIME, RISE, OCCLUSION = METHODS = [
    f"insight.interpret.perturbation.{name}" for name in ("kernel_shap", "shapley_sampling", "lime", "rise", "occlusion")
]
ZERO = "insight.interpret.masks.pixels_zero"
SEGMENT = torch.tensor([0, 0, 1, 0, 0, 1, 2, 2, 3])  # of 3 x 3 patches cut into 4
ENOUGH = {KERNEL_SHAP: {"budget": 96}, SAMPLING: {"permutations": 4}, LIME: {"masks": 64}, RISE: {"masks": 64}, OCCLUSION: {}}


def segments_of(image_gg):
    return torch.stack([image_gg.flatten()[one == SEGMENT].sum() for one in range(4)]).double()


@pytest.mark.parametrize("kind", ["dual_encoder", "cross_attention"])
def test_kernel_shap_with_budget_for_all_masks_is_the_shapley_value_of_the_model(
    kind, batch, request, scores_of_all_masks, shapley_by_definition
):
    family, row, words = request.getfixturevalue(kind), 1, 3
    table = scores_of_all_masks(family, batch, row, words, SEGMENT)

    joint = explain(family, batch, None, Call(KERNEL_SHAP, {"segments": 4, "words": True, "budget": 1024}))
    expected = shapley_by_definition(table, 4 + words)
    torch.testing.assert_close(segments_of(joint.image[row]), expected[:4], atol=2e-5, rtol=0)
    torch.testing.assert_close(joint.text[row, :words].double(), expected[4:], atol=2e-5, rtol=0)
    assert joint.diagnostics["players"].tolist() == [10, 7, 6, 10]
    assert joint.diagnostics["standard_error"][:3].abs().max() == 0

    image = explain(family, batch, None, Call(KERNEL_SHAP, {"segments": 4}))
    torch.testing.assert_close(segments_of(image.image[row]), shapley_by_definition(table[-16:], 4), atol=2e-5, rtol=0)
    assert image.text is None

    text = explain(family, batch, None, Call(KERNEL_SHAP, {"segments": 0, "words": True}))
    torch.testing.assert_close(text.text[row, :words].double(), shapley_by_definition(table[15::16], words), atol=2e-5, rtol=0)
    assert text.image is None and not text.text[row, words:].any()


@pytest.mark.parametrize("method", [KERNEL_SHAP, SAMPLING])
def test_shapley_values_add_up_to_what_the_whole_is_worth_above_nothing(method, family, batch):
    found = explain(family, batch, None, Call(method, {"segments": 9, **ENOUGH[method]}))
    rows, _ = family.rows(batch, found.target)
    inputs = family.embed(rows)
    nothing = family.score(inputs._replace(image_RND=inputs.image_RND[:, :1])).detach()  # the class token alone
    torch.testing.assert_close(found.image.sum(dim=(1, 2)), found.score - nothing, atol=1e-4, rtol=1e-4)


def test_exact_values_are_captums(classifier, batch):
    found = explain(classifier, batch, None, Call(KERNEL_SHAP, {"segments": 4, "removal": ZERO}))
    mask = SEGMENT.view(3, 3).repeat_interleave(8, 0).repeat_interleave(8, 1).repeat(1, 3, 1, 1)

    def forward(pixels):
        return classifier.head(classifier.vision(pixels).pooled)

    with torch.no_grad():
        theirs = ShapleyValues(forward).attribute(batch.image, target=found.target.index, feature_mask=mask, perturbations_per_eval=8)
        ablated = FeatureAblation(forward).attribute(batch.image, target=found.target.index, feature_mask=mask)
    corner = [(0, 0), (0, 2), (2, 0), (2, 2)]  # one patch of each segment; captum repeats the segment's value over its pixels
    for row in range(2):
        expected = torch.stack([theirs[row, 0, 8 * y, 8 * x] for y, x in corner])
        torch.testing.assert_close(segments_of(found.image[row]).float(), expected, atol=2e-5, rtol=0)
    occluded = explain(classifier, batch, found.target, Call(OCCLUSION, {"segments": 4, "removal": ZERO}))
    for row in range(2):
        expected = torch.stack([ablated[row, 0, 8 * y, 8 * x] for y, x in corner])
        torch.testing.assert_close(segments_of(occluded.image[row]).float(), expected, atol=2e-5, rtol=0)


class RidgeOfLime:
    """Captum's way to a linear model, with scikit-learn's ridge in it."""

    def fit(self, loader):
        features, values, weights = (torch.cat([batch[part].double() for batch in loader]) for part in range(3))
        self.model = Ridge(alpha=1.0).fit(features.numpy(), values.flatten().numpy(), sample_weight=weights.flatten().numpy())

    def representation(self):
        return torch.as_tensor(self.model.coef_)[None]


def test_lime_is_captums_with_the_same_masks_kernel_and_ridge(classifier, batch):
    target = Target([0], [2])
    found = explain(classifier, batch, target, Call(LIME, {"segments": 4, "removal": ZERO, "masks": 40, "seed": 5}))
    kept = random_masks(4, 40, 0.5, seed=5)
    kept[0] = True
    mask = SEGMENT.view(3, 3).repeat_interleave(8, 0).repeat_interleave(8, 1).repeat(1, 3, 1, 1)
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)

    def in_turn(*unused, **also_unused):
        yield from kept[:, None]

    def similar(original, perturbed, chosen, **unused):  # between masks; captum's own compares pixels
        return kernel(torch.ones_like(chosen).double(), None if perturbed is None else chosen.double(), None)

    method = Lime(
        lambda pixels: classifier.head(classifier.vision(pixels).pooled),
        interpretable_model=RidgeOfLime(),
        similarity_func=similar,
        perturb_func=in_turn,
    )
    with torch.no_grad():
        theirs = method.attribute(batch.image[:1], target=2, feature_mask=mask, n_samples=40, return_input_shape=False)
    torch.testing.assert_close(segments_of(found.image[0]), theirs[0].double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_rows_explained_together_are_rows_explained_alone(method, cross_attention, batch):
    settings = {"segments": 9, "words": True, **ENOUGH[method]}
    together = explain(cross_attention, batch, None, Call(method, settings))
    for row in range(4):
        alone = explain(cross_attention, batch, Target([row // 2], [row]), Call(method, settings))
        torch.testing.assert_close(together.image[row], alone.image[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.text[row], alone.text[0], atol=1e-4, rtol=1e-4)
        assert together.diagnostics["standard_error"][row] == pytest.approx(float(alone.diagnostics["standard_error"][0]), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_and_the_caller_are_left_as_they_were(method, mode, family, batch):
    model = family.model.train(mode == "train")
    modes, state, before = [one.training for one in model.modules()], torch.get_rng_state(), copy.deepcopy(model.state_dict())
    explain(family, batch, None, Call(method, {"segments": 9, **ENOUGH[method]}))
    with pytest.raises(InputError, match="no function or class 'nothing'"):
        explain(family, batch, None, Call(method, {"segments": 9, "removal": "insight.interpret.masks.nothing"}))
    assert [one.training for one in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cost_is_what_went_through_the_model(classifier, dual_encoder, batch):
    found = explain(classifier, batch, None, Call(OCCLUSION, {"segments": 9}))
    assert found.cost.forwards == 1 + 10  # the score, the whole and nine masks without one segment
    assert found.method.arguments["removal"] == "insight.interpret.masks.token_drop"
    shared = explain(dual_encoder, batch, None, Call(OCCLUSION, {"segments": 9}))
    assert shared.cost.forwards == 1 + 10 / 2  # two captions of each picture share its masks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_gives_nearly_the_same(dtype, dual_encoder, batch):
    reference = explain(dual_encoder, batch, None, Call(KERNEL_SHAP, {"segments": 9}))
    named = explain(dual_encoder, batch, None, Call(KERNEL_SHAP, {"segments": 9, "bfloat16": True}))
    dual_encoder.model.to(dtype)
    found = explain(dual_encoder, batch, None, Call(KERNEL_SHAP, {"segments": 9}))
    for one in (found, named):
        assert one.image.dtype == torch.float32
        assert (one.image - reference.image).norm() < 0.15 * reference.image.norm()


def test_the_seed_decides_the_lots(dual_encoder, batch):
    first, again, other = (explain(dual_encoder, batch, None, Call(RISE, {"segments": 9, "masks": 64, "seed": seed})) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segments": 0}, "segments=0, words=False: nobody plays"),
        ({"segments": 5}, "segments=5: a grid of 3 x 3 patches"),
        ({"segments": 9, "budget": 30}, "budget=30: KernelSHAP over 9 players needs at least 56 masks"),
        ({"segments": 9, "removal": "insight.interpret.masks.token_dorp"}, "did you mean 'token_drop'"),
    ],
)
def test_settings_that_make_no_sense_are_an_error_that_says_why(settings, message, dual_encoder, batch):
    with pytest.raises(InputError, match=f"(?i){message}"):
        explain(dual_encoder, batch, None, Call(KERNEL_SHAP, settings))


def test_players_that_a_family_lacks_are_an_error_of_their_own(classifier, batch):
    with pytest.raises(Lacks, match="a classifier reads no text"):
        explain(classifier, batch, None, Call(KERNEL_SHAP, {"segments": 9, "words": True}))


def test_a_caption_without_a_word_has_nothing_to_leave_out_unless_the_picture_plays_too(dual_encoder, batch):
    tokens = batch.tokens.clone()
    tokens[2, :2] = torch.tensor([1, 2])  # [START], [END]
    empty = batch._replace(tokens=tokens)
    with pytest.raises(InputError, match="row 2: the text has no word that could be left out"):
        explain(dual_encoder, empty, None, Call(OCCLUSION, {"segments": 0, "words": True}))
    found = explain(dual_encoder, empty, None, Call(OCCLUSION, {"segments": 9, "words": True}))
    assert not found.text[2].any() and found.image[2].any()


def test_one_segment_gets_all_of_it(dual_encoder, batch):
    found = explain(dual_encoder, batch, None, Call(KERNEL_SHAP, {"segments": 1}))
    occluded = explain(dual_encoder, batch, None, Call(OCCLUSION, {"segments": 1}))
    torch.testing.assert_close(found.image, occluded.image)
    assert (found.image == found.image[:, :1, :1]).all() and found.image.any()
