import pytest
import torch
from captum.attr import GradientShap, LayerIntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from insight.errors import InputError
from insight.interpret.attribution import by_patch
from insight.interpret.explain import explain
from insight.interpret.families import Classifier
from insight.interpret.family import Target
from insight.models.vision_transformer import VisionOutput
from insight.nn.embed import patchify
from insight.stages import Call


def method(name, **arguments):
    return Call(f"insight.interpret.attribution.{name}", arguments)


def gentle(family):
    """Smaller weights, so that a path is smooth enough for a few steps."""
    with torch.no_grad():
        for parameter in family.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)
    return family


class LinearVision(nn.Module):
    """A vision tower whose pooled output is a linear map of the pixels, so that every attribution has a closed form."""

    grid_size, num_prefix, dim = 3, 1, 4

    def __init__(self):
        super().__init__()
        self.embedding = nn.Flatten(1)
        self.blocks = nn.ModuleList()
        self.weight = nn.Parameter(torch.randn(3 * 24 * 24, 4))

    def forward(self, image):
        return self.read(self.embedding(image))

    def read(self, x, mask=None, place=None):
        return VisionOutput(x, x @ self.weight)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return Classifier(LinearVision(), nn.Identity())


def weight_of(linear, output):
    return linear.vision.weight[:, output].detach().reshape(3, 24, 24)


def over_patches(values):
    return by_patch(values[None], 3).sum(dim=(1, 3, 5))[0]


# --- integrated gradients ---
def test_all_values_sum_to_the_score_minus_the_baselines(family, batch):
    explanation = explain(gentle(family), batch, None, method("integrated_gradients", steps=64))
    total = explanation.image.sum(dim=(1, 2)) + (0 if explanation.text is None else explanation.text.sum(dim=1))
    torch.testing.assert_close(total, explanation.score - explanation.diagnostics["baseline_score"], atol=2e-3, rtol=0)
    assert explanation.diagnostics["completeness_error"].abs().max() < 2e-3
    assert explanation.cost.backwards == 64


def test_integrated_gradients_are_the_mean_gradient_along_the_way_times_the_way(cross_attention, batch):
    explanation = explain(gentle(cross_attention), batch, None, method("integrated_gradients", steps=24, image_baseline=0.5))
    rows, _ = cross_attention.rows(batch, None)
    inputs = cross_attention.embed(rows)
    base_text = cross_attention.model.text.embed(torch.zeros_like(rows.tokens_RT))
    image, text = torch.zeros_like(rows.pixels_R3HW), torch.zeros_like(inputs.text_RTD)
    for step in range(80):  # midpoint rule, not Gauss-Legendre
        share = (step + 0.5) / 80
        pixels = (0.5 + share * (rows.pixels_R3HW - 0.5)).requires_grad_()
        words = (base_text + share * (inputs.text_RTD - base_text)).detach().requires_grad_()
        score = cross_attention.score(inputs._replace(image_RND=cross_attention.embed_image(pixels), text_RTD=words))
        gradients = torch.autograd.grad(score.sum(), (pixels, words))
        image, text = image + gradients[0] / 80, text + gradients[1] / 80
    by_hand = by_patch((rows.pixels_R3HW - 0.5) * image, 3).sum(dim=(1, 3, 5))
    torch.testing.assert_close(explanation.image, by_hand, atol=2e-4, rtol=1e-2)
    by_hand = ((inputs.text_RTD - base_text) * text).sum(dim=-1) * rows.text_mask_RT
    torch.testing.assert_close(explanation.text, by_hand.detach(), atol=2e-4, rtol=1e-2)


def test_words_alone_get_what_captums_layer_variant_gives_them(dual_encoder, batch):
    model = gentle(dual_encoder).model
    grey = torch.zeros_like(batch.image)  # the picture is its own baseline: all of the way is the words'
    image = model.encode_image(grey).embedding[batch.caption_row].detach()

    def score(tokens, mask, image):
        return model.scale * (model.encode_text(tokens, mask).embedding * image).sum(dim=-1)

    layer = LayerIntegratedGradients(score, model.text.embedding)
    arguments = {"baselines": torch.zeros_like(batch.tokens), "additional_forward_args": (batch.token_mask, image), "n_steps": 32}
    expected = layer.attribute(batch.tokens, **arguments).sum(dim=-1) * batch.token_mask
    explanation = explain(dual_encoder, batch._replace(image=grey), None, method("integrated_gradients", steps=32))
    torch.testing.assert_close(explanation.text, expected.detach(), atol=1e-5, rtol=1e-4)
    assert not explanation.image.any()


def test_fewer_rows_at_once_change_nothing(family, batch):
    whole = explain(family, batch, None, method("integrated_gradients", steps=5))
    pieces = explain(family, batch, None, method("integrated_gradients", steps=5, rows_at_once=1))
    torch.testing.assert_close(pieces.image, whole.image, atol=1e-5, rtol=1e-4)


# --- saliency, input x gradient ---
def test_saliency_and_input_x_gradient_are_the_gradient_seen_two_ways(family, batch):
    rows, target = family.rows(batch, None)
    pixels = rows.pixels_R3HW.clone().requires_grad_()
    inputs = family.embed(rows)
    words = None if inputs.text_RTD is None else inputs.text_RTD.detach().requires_grad_()
    score = family.score(inputs._replace(image_RND=family.embed_image(pixels), text_RTD=words))
    gradient, *of_words = torch.autograd.grad(score.sum(), [pixels] if words is None else [pixels, words])
    size, product = (explain(family, batch, target, method(name)) for name in ("saliency", "input_x_gradient"))
    assert torch.equal(size.score, score.detach()) and torch.equal(product.score, score.detach())
    for row, g, h in ((0, 0, 0), (len(score) - 1, 1, 2)):
        patch = (row, slice(None), slice(8 * g, 8 * g + 8), slice(8 * h, 8 * h + 8))
        assert float(size.image[row, g, h]) == pytest.approx(float(gradient[patch].abs().amax(dim=0).mean()), rel=1e-4)
        assert float(product.image[row, g, h]) == pytest.approx(
            float((gradient[patch] * rows.pixels_R3HW[patch]).sum()), rel=1e-3, abs=1e-6
        )
    if words is not None:
        torch.testing.assert_close(size.text, of_words[0].norm(dim=-1) * rows.text_mask_RT)
        torch.testing.assert_close(product.text, (of_words[0] * words).sum(dim=-1).detach() * rows.text_mask_RT)


# --- methods with noise ---
def test_smooth_grad_of_a_linear_score_is_its_saliency(linear, batch):
    arguments = {"samples": 3, "noise": 0.5}
    smooth = explain(linear, batch, Target([0, 1], [2, 1]), method("smooth_grad", **arguments))
    plain = explain(linear, batch, Target([0, 1], [2, 1]), method("saliency"))
    torch.testing.assert_close(smooth.image, plain.image)
    torch.testing.assert_close(plain.image[0], by_patch(weight_of(linear, 2).abs()[None], 3).amax(dim=1).mean(dim=(2, 4))[0])


def test_smooth_grad_nears_captums_noise_tunnel(classifier, batch):
    image, index = batch.image[:1], 1
    ours = explain(classifier, batch, Target([0], [index]), method("smooth_grad", samples=120, noise=0.1)).image[0]
    torch.manual_seed(0)
    tunnel = NoiseTunnel(Saliency(lambda pixels: classifier.head(classifier.vision(pixels).pooled)))
    spread = 0.1 * float(image.max() - image.min())
    theirs = tunnel.attribute(image, nt_samples=120, stdevs=spread, target=index, abs=False)
    theirs = by_patch(theirs.abs(), 3).amax(dim=1).mean(dim=(2, 4))[0].detach()
    far = explain(classifier, batch, Target([0], [index]), method("saliency")).image[0]
    assert (ours - theirs).norm() < 0.25 * (far - theirs).norm()  # two samples of 120 against none


def test_gradient_shap_of_a_linear_score_is_the_weight_times_the_way_from_the_mean_baseline(linear, batch):
    explanation = explain(linear, batch, Target([0, 1], [2, 1]), method("gradient_shap", samples=40, seed=3))
    generator, greys = torch.Generator().manual_seed(3), []
    for _ in range(40):
        greys.append((-2.0, -1.0, 0.0, 1.0, 2.0)[int(torch.randint(5, (), generator=generator))])
        torch.rand((), generator=generator)
        torch.randn((1, 3, 24, 24), generator=generator)
    for row, output in ((0, 2), (1, 1)):
        expected = over_patches(weight_of(linear, output) * (batch.image[row] - sum(greys) / 40))
        torch.testing.assert_close(explanation.image[row], expected, atol=1e-3, rtol=1e-4)


def test_gradient_shap_nears_captums(classifier, batch):
    gentle(classifier)
    ours = explain(classifier, batch, Target([0], [1]), method("gradient_shap", samples=150)).image[0]
    torch.manual_seed(0)
    greys = torch.arange(-2.0, 3.0)[:, None, None, None].expand(-1, 3, 24, 24)
    shap = GradientShap(lambda pixels: classifier.head(classifier.vision(pixels).pooled))
    theirs = over_patches(shap.attribute(batch.image[:1], baselines=greys, n_samples=150, target=1)[0].detach())
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.97


@pytest.mark.parametrize("name", ["smooth_grad", "gradient_shap"])
def test_noise_follows_the_seed_and_not_the_rows_beside_nor_the_global_generator(family, batch, name):
    call = method(name, samples=2, noise=0.2)
    together = explain(family, batch, None, call)
    torch.manual_seed(99)
    alone = explain(family, batch, Target(together.target.picture[-1:], together.target.index[-1:]), call)
    torch.testing.assert_close(alone.image[0], together.image[-1], atol=1e-5, rtol=1e-4)
    other = explain(family, batch, None, method(name, samples=2, noise=0.2, seed=1))
    assert not torch.allclose(other.image, together.image, rtol=1e-2)


@pytest.mark.parametrize(("name", "setting"), [("integrated_gradients", "steps"), ("smooth_grad", "samples"), ("gradient_shap", "samples")])
def test_no_steps_are_an_error(classifier, batch, name, setting):
    with pytest.raises(InputError, match=f"method.arguments.{setting}=0: must be at least 1"):
        explain(classifier, batch, None, method(name, **{setting: 0}))


def test_patches_are_cut_as_the_model_cuts_them():
    pixels = torch.arange(3 * 24 * 24.0).reshape(1, 3, 24, 24)
    expected = patchify(pixels, 8).sum(dim=-1).reshape(3, 3)
    torch.testing.assert_close(by_patch(pixels, 3).sum(dim=(1, 3, 5))[0], expected)
