"""A language model explained: by hand, by finite differences, by brute force; nothing that comes later counts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from insight.data.language import TextBatch
from insight.errors import InputError
from insight.interpret.attention_gradients import attention_gradients
from insight.interpret.explain import explain, looking_at
from insight.interpret.family import Lacks, Target
from insight.interpret.language import Language, beginnings
from insight.interpret.methods import METHODS
from insight.models.language_model import LanguageModel
from insight.nn.settings import BlockSettings
from insight.stages import Call

KINDS = {"learned": BlockSettings(), "rotary": BlockSettings(position="rotary", rms_norm=True), "alibi": BlockSettings(position="alibi")}
LENGTHS = (6, 4, 3)
# Grad-CAM weighs all tokens by one mean gradient, LIME fits, RISE gives levels: what has no effect is not zero; the others need a picture
NOT_ZERO = ("grad_cam", "lime", "rise", "joint_shapley", "banzhaf_interactions")


def build(settings=KINDS["learned"]):
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=20, context_length=6, dim=16, depth=2, heads=2, dropout=0.1, block=settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model.eval()


def texts():
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(4, 20, (3, 6), generator=torch.Generator().manual_seed(1))
    return TextBatch(tokens * mask, mask, torch.arange(3), ("",) * 3, ("a", "b", "c"), int(mask[:, 1:].sum()))


def score_of(model, ids, token):
    """By the whole model, one text at a time, without masks."""
    return model(torch.tensor([ids])).logits[0, -1, token]


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_the_score_is_the_logit_of_the_token_after_the_text(settings):
    model, batch = build(settings), texts()
    target = Target([0, 1, 2, 1], [3, 7, 11, 8])
    found = explain(model, batch, target, METHODS["rollout"]).score
    ids = [row[mask].tolist() for row, mask in zip(batch.tokens, batch.token_mask, strict=True)]
    with torch.no_grad():
        expected = torch.stack([score_of(model, ids[text], token) for text, token in zip(target.picture, target.index, strict=True)])
    torch.testing.assert_close(found, expected)


def test_without_a_target_it_is_the_most_probable_next_token():
    model, batch = build(), texts()
    found = explain(model, batch, None, METHODS["rollout"])
    with torch.no_grad():
        logits = model(batch.tokens).logits
    last = [logits[row, length - 1] for row, length in enumerate(LENGTHS)]
    assert found.target.index.tolist() == [int(row.argmax()) for row in last]
    torch.testing.assert_close(found.score, torch.stack([row.max() for row in last]))


def test_relevance_is_the_papers_rule_read_out_at_the_last_token():
    model, batch, target = build(), texts(), Target([0, 1, 2], [3, 7, 11])
    found = explain(model, batch, target, METHODS["chefer"])
    with looking_at(model, batch, target) as subject:
        _, layers = attention_gradients(subject, [f"blocks.{index}.attention" for index in range(2)])
    for row, length in enumerate(LENGTHS):
        relevance = torch.eye(6)
        for layer in layers.values():
            bar = sum((layer.weights_RHTS[row, head] * layer.gradient_RHTS[row, head]).clamp(min=0) for head in range(2)) / 2
            relevance = relevance + bar @ relevance
        torch.testing.assert_close(found.text[row], relevance[length - 1] * batch.token_mask[row])


def test_gradients_are_those_of_finite_differences():
    model, batch, target = build().double(), texts(), Target([0], [3])
    found = explain(model, batch, target, METHODS["input_x_gradient"]).text[0]
    x_TD = model.embed(batch.tokens[:1]).detach()[0]
    step = 1e-5
    by_hand = torch.zeros(6)
    with torch.no_grad():
        for place, channel in itertools.product(range(6), range(16)):
            scores = []
            for sign in (1, -1):
                moved = x_TD.clone()
                moved[place, channel] += sign * step
                scores.append(model.name(model.read(moved[None]))[0, -1, 3])
            by_hand[place] += (x_TD[place, channel] * (scores[0] - scores[1]) / (2 * step)).float()
    torch.testing.assert_close(found, by_hand, atol=1e-3, rtol=1e-3)


def test_integrated_gradients_sum_to_what_the_text_adds_to_padding():
    model, batch = build(), texts()
    found = explain(model, batch, Target([0, 1], [3, 7]), METHODS["integrated_gradients"])
    assert found.diagnostics["completeness_error"].abs().max() < 0.05
    expected = found.score - found.diagnostics["baseline_score"] + found.diagnostics["completeness_error"]
    torch.testing.assert_close(found.text[0].sum(), expected[0], atol=1e-3, rtol=1e-3)  # its text has no padding


def test_direct_effects_and_what_comes_from_elsewhere_sum_to_the_score():
    found = explain(build(), texts(), Target([0, 1, 2], [3, 7, 11]), METHODS["direct_effect"])
    torch.testing.assert_close(found.text.sum(dim=1) + found.diagnostics["text_elsewhere"], found.score, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOT_ZERO])
def test_no_token_after_the_place_that_is_read_out_is_relevant(name, settings):
    """The whole text is handed in, unmasked; it is read out at place 2."""
    model, batch = build(settings), texts()
    method = METHODS[name]
    if method.function.split(".")[-2] == "perturbation":
        method = Call(method.function, {"segments": 0, "words": True})

    class Early(Language):
        def _last(self, x_RTD, mask_RT):
            return x_RTD[:, 2]

        def _weights(self, mask_RT):
            return torch.nn.functional.one_hot(torch.full((len(mask_RT),), 2), mask_RT.shape[1]).float()

    found = explain(Early(model), batch, Target([0], [3]), method)
    assert found.text[0, :3].any()
    torch.testing.assert_close(found.text[0, 3:], torch.zeros(3), atol=2e-5, rtol=0)


def test_shapley_values_of_words_are_those_of_all_orders():
    model, batch = build(), texts()
    method = Call("insight.interpret.perturbation.kernel_shap", {"segments": 0, "words": True, "budget": 64})
    batch.tokens[1, 0] = 1  # the start stays
    found = explain(model, batch, Target([1], [7]), method).text[0]

    def worth(kept):
        mask = torch.tensor([[True, *(word in kept for word in (1, 2, 3)), False, False]])
        with torch.no_grad():
            return float(model.name(model.read(model.embed(batch.tokens[1:2]), mask))[0, max(kept, default=0), 7])

    by_hand = torch.zeros(6)
    for order in itertools.permutations((1, 2, 3)):
        for place, word in enumerate(order):
            by_hand[word] += (worth({*order[:place], word}) - worth(set(order[:place]))) / math.factorial(3)
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-3)


def test_beginnings_explain_the_token_that_stands_next():
    model, batch = build(), texts()
    short = beginnings(batch, 4)
    found = explain(model, short, Target([0], [int(batch.tokens[0, 4])]), METHODS["chefer"])
    with torch.no_grad():
        expected = model(batch.tokens[:1]).logits[0, 3, batch.tokens[0, 4]]
    torch.testing.assert_close(found.score[0], expected)
    assert found.text.shape == (1, 4)
    with pytest.raises(InputError, match="length=0: a text begins with at least 1 token"):
        beginnings(batch, 0)


@pytest.mark.parametrize(
    ("batch", "target", "error", "message"),
    [
        (texts(), Target([3], [0]), InputError, "text 3 in row 0 is out of range"),
        (texts(), Target([0], [20]), InputError, "token 20 in row 0 is out of range"),
        (texts()._replace(token_mask=torch.zeros(3, 6, dtype=torch.bool)), Target([1], [0]), InputError, "text 1 has no token to read"),
    ],
)
def test_what_cannot_be_explained_is_named(batch, target, error, message):
    with pytest.raises(error, match=message):
        explain(build(), batch, target, METHODS["chefer"])


@pytest.mark.parametrize("name", ["kernel_shap", "joint_shapley", "banzhaf_interactions"])
def test_what_needs_a_picture_says_so(name):
    with pytest.raises(Lacks, match=r"language model (reads no picture|is no product of a picture's and a text's embedding)"):
        explain(build(), texts(), Target([0], [3]), METHODS[name])
