import random

import numpy as np
import pytest
import torch
from torch import nn

from insight.errors import InputError
from insight.interpret.explain import Subject, Values, explain
from insight.interpret.families import DualEncoder, Lacks, Target, family_of
from insight.interpret.record import attention_layers
from insight.models.text_transformer import TextTransformer
from insight.stages import Call


# --- methods that one can work out by hand ---
def patch_brightness(subject: Subject, offset: float = 0.0, scale: float = 1.0) -> Values:
    pixels = subject.rows.pixels_R3HW
    image_RP = pixels.unflatten(3, (3, 8)).unflatten(2, (3, 8)).mean(dim=(1, 3, 5)).flatten(1) * scale + offset
    text_RT = None if subject.rows.tokens_RT is None else subject.rows.tokens_RT + 1.0
    return Values(subject.score(subject.inputs), image_RP, text_RT)


def gradient_of_patches(subject: Subject) -> Values:
    with torch.enable_grad():
        image_RND = subject.inputs.image_RND.detach().requires_grad_()
        score_R = subject.score(subject.inputs._replace(image_RND=image_RND))
        (gradient_RND,) = torch.autograd.grad(score_R.sum(), image_RND)
    return Values(score_R, gradient_RND.norm(dim=-1)[:, 1:], diagnostics={"score_again": score_R})


def needy(subject: Subject, amount: float) -> Values:
    return Values(subject.score(subject.inputs) * amount)


def endless(subject: Subject) -> Values:
    return Values(subject.score(subject.inputs) / 0)


def broken(subject: Subject) -> Values:
    assert not subject.family.model.training
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    raise KeyError("in the middle")


def reads_text(subject: Subject) -> Values:
    return Values(subject.score(subject.inputs), text_RT=subject.family.embed_text(torch.zeros(1, 1, dtype=torch.int64)))


def method(name, **arguments):
    return Call(f"{__name__}.{name}", arguments)


BRIGHTNESS, GRADIENT = method("patch_brightness"), method("gradient_of_patches")


def state_of(model):
    """Everything that an explanation could have changed."""
    modules = [(type(one), one.training) for one in model.modules()]
    hooks = [[len(value) for key, value in vars(one).items() if key.endswith("hooks")] for one in model.modules()]
    taps = [len(layer.tap.listeners) for layer in attention_layers(model).values()]
    weights = [(one.requires_grad, one.sum().item(), None if one.grad is None else one.grad.sum().item()) for one in model.parameters()]
    randomness = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return hooks, modules, taps, weights, randomness, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


# --- what comes out ---
def test_an_explanation_says_what_was_explained_how_and_at_what_cost(family, batch):
    explanation = explain(family, batch, None, method("patch_brightness", scale=2.0))
    rows = 2 if family.name == "classifier" else 4
    assert explanation.image.shape == (rows, 3, 3) and explanation.score.shape == (rows,)
    assert explanation.method.arguments == {"offset": 0.0, "scale": 2.0}
    assert (explanation.cost.forwards, explanation.cost.backwards) == (1, 0) and explanation.cost.seconds > 0
    picture = explanation.target.picture[-1]
    assert float(explanation.image[-1, 1, 2]) == pytest.approx(2 * float(batch.image[picture, :, 8:16, 16:24].mean()), abs=1e-6)
    if family.name != "classifier":
        assert explanation.target.picture.tolist() == [0, 0, 1, 1] and explanation.target.index.tolist() == [0, 1, 2, 3]
        assert torch.equal(explanation.text, (batch.tokens + 1.0) * batch.token_mask)  # padding has no value


def test_the_score_is_the_models_own_answer(dual_encoder, cross_attention, classifier, batch):
    for family in (dual_encoder, cross_attention):
        model = family.model
        with torch.no_grad():
            output = model(batch.image, batch.tokens, batch.token_mask)
            if family is dual_encoder:
                table = output.scale * output.image.embedding @ output.text.embedding.T
                expected = table[batch.caption_row, torch.arange(4)]
            else:
                logits = model.match(output.text.tokens, batch.token_mask, output.image.tokens[batch.caption_row])
                expected = logits[:, 1] - logits[:, 0]
        torch.testing.assert_close(explain(model, batch, None, BRIGHTNESS).score, expected)
    logits = classifier.head(classifier.vision(batch.image).pooled).detach()
    torch.testing.assert_close(explain(classifier, batch, None, BRIGHTNESS).score, logits.amax(dim=1))
    explanation = explain(classifier, batch, Target([1, 1, 0], [0, 2, 1]), BRIGHTNESS)
    torch.testing.assert_close(explanation.score, logits[[1, 1, 0], [0, 2, 1]])


def test_rows_are_independent_of_each_other(family, batch):
    last = 2 if family.name == "classifier" else 3
    target = Target([1, 0, 1], [last, 0, 1])
    together = explain(family, batch, target, GRADIENT)
    for row in range(3):
        alone = explain(family, batch, Target(target.picture[row : row + 1], target.index[row : row + 1]), GRADIENT)
        torch.testing.assert_close(alone.image[0], together.image[row], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone.score[0], together.score[row], atol=1e-6, rtol=1e-5)


def test_passes_are_counted_per_row(family, batch):
    explanation = explain(family, batch, Target([0], [0]), GRADIENT)
    assert (explanation.cost.forwards, explanation.cost.backwards) == (1, 1)
    assert torch.equal(explanation.diagnostics["score_again"], explanation.score)


# --- what it leaves behind ---
@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference_mode"])
def test_the_model_and_the_caller_are_left_as_they_were(family, batch, mode):
    family.model.train()
    next(family.model.children()).eval()  # as a frozen part
    first, second = list(family.model.parameters())[:2]
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    contexts = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with contexts[mode]():
        inside = batch._replace(image=batch.image + 0, tokens=batch.tokens + 0)
        before = state_of(family.model)
        explanation = explain(family, inside, None, GRADIENT)
        with pytest.raises(KeyError, match="in the middle"):
            explain(family, inside, None, method("broken"))
        assert state_of(family.model) == before
    assert not explanation.image.requires_grad and not explanation.score.requires_grad and not explanation.image.is_inference()
    family.model.eval()
    assert torch.equal(explain(family, batch, None, GRADIENT).image, explanation.image)  # no dropout in a model that trains


def test_weights_made_in_inference_mode_are_refused(batch):
    with torch.inference_mode():
        made = TextTransformer(20, 6, 16, 1, 2)
    family = DualEncoder.__new__(DualEncoder)
    family.model = made
    with pytest.raises(InputError, match=r"'embedding.position' was made inside torch.inference_mode\(\)"):
        explain(family, batch, None, BRIGHTNESS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_explained_in_it_and_the_answer_is_near(family, batch, dtype):
    exact = explain(family, batch, None, GRADIENT)
    family.model.to(dtype)
    half = explain(family, batch, exact.target, GRADIENT)
    assert half.image.dtype == half.score.dtype == torch.float32
    together = torch.stack([half.image.flatten(), exact.image.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.99


# --- what it refuses ---
def test_a_mistake_in_the_method_is_an_error_that_names_the_nearest(family, batch):
    for wrong, message in [
        (Call(f"{__name__}.patch_brightnes"), "did you mean 'patch_brightness'"),
        (Call("insight.nowhere.method"), r"method.function: cannot import 'insight.nowhere.method'"),
        (Call("torch.optim.AdamW"), "'torch.optim.AdamW' is no explanation method"),
        (method("patch_brightness", ofset=1.0), "method.arguments.ofset: patch_brightness takes no such argument; did you mean 'offset'"),
        (method("patch_brightness", subject=1.0), "method.arguments.subject: patch_brightness takes no such argument"),
        (method("needy"), "needs amount"),
        (method("needy", amount="1"), "method.arguments.amount='1': must be float, not str"),
    ]:
        with pytest.raises(InputError, match=message):
            explain(family, batch, None, wrong)


def test_a_whole_number_will_do_for_a_float(family, batch):
    twice = explain(family, batch, None, method("needy", amount=2)).score
    torch.testing.assert_close(twice, 2 * explain(family, batch, None, method("needy", amount=1.0)).score)


def test_a_target_out_of_range_is_an_error_that_names_row_and_range(family, batch):
    kind, count = ("output", 3) if family.name == "classifier" else ("caption", 4)
    for target, message in [
        (Target([0, 2], [0, 0]), "picture 2 in row 1 is out of range: there are 2, 0 to 1"),
        (Target([0, 1], [0, count]), f"{kind} {count} in row 1 is out of range: there are {count}, 0 to {count - 1}"),
        (Target([-1], [0]), "picture -1 in row 0"),
        (Target([0, 1], [0]), f"2 rows of picture but 1 of {kind}"),
        (Target([], []), "one or more whole numbers"),
        (Target(torch.zeros(1), [0]), "one or more whole numbers"),
        (Target(torch.zeros(1, 1, dtype=torch.int64), [0]), "one or more whole numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            explain(family, batch, target, BRIGHTNESS)


@pytest.mark.parametrize("kind", ["dual_encoder", "cross_attention"])
def test_captions_without_a_token_or_beyond_the_context_are_errors(kind, batch, request):
    family = request.getfixturevalue(kind)
    mask = batch.token_mask.clone()
    mask[2] = False
    with pytest.raises(InputError, match="caption 2 has no token to read"):
        explain(family, batch._replace(token_mask=mask), None, BRIGHTNESS)
    explain(family, batch._replace(token_mask=mask), Target([0], [1]), BRIGHTNESS)  # nobody asked for caption 2
    longer = batch._replace(tokens=torch.zeros(4, 7, dtype=torch.int64), token_mask=torch.ones(4, 7, dtype=torch.bool))
    with pytest.raises(InputError, match="7 tokens are longer than the model's context_length=6"):
        explain(family, longer, None, BRIGHTNESS)


def test_a_model_of_no_family_is_an_error_that_says_what_to_give(classifier, batch):
    with pytest.raises(InputError, match=r"give Classifier\(model, head\)"):
        explain(classifier.vision, batch, None, BRIGHTNESS)
    with pytest.raises(InputError, match=r"cannot explain a Linear: .*CrossAttentionMultiModalTransformer"):
        explain(nn.Linear(2, 2), batch, None, BRIGHTNESS)


def test_what_a_family_lacks_is_an_error_of_its_own(classifier, batch):
    with pytest.raises(Lacks, match="a classifier reads no text"):
        explain(classifier, batch, None, method("reads_text"))


def test_values_that_are_not_finite_are_an_error(family, batch):
    with pytest.raises(InputError, match="row 0: score_R has values that are not finite; the model's weights or the batch"):
        explain(family, batch, None, method("endless"))
    family.model.bfloat16()
    with pytest.raises(InputError, match=r"try model.float\(\), it is torch.bfloat16"):
        explain(family, batch, None, method("endless"))


def test_the_family_of_a_model_is_that_of_its_own_class_before_its_bases(cross_attention, dual_encoder):
    assert family_of(cross_attention.model).name == "cross-attention"
    assert family_of(dual_encoder.model).name == "dual encoder"
    chosen = DualEncoder(cross_attention.model)  # the towers of a cross-attention model, as retrieval uses them
    assert family_of(chosen) is chosen
