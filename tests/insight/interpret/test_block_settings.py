"""Models whose blocks are made otherwise are explained as truly as plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from insight.interpret.attention_gradients import attention_gradients
from insight.interpret.explain import looking_at
from insight.interpret.families import DualEncoder
from insight.interpret.family import Lacks
from insight.interpret.heads import decompose
from insight.interpret.masks import MaskedRows
from insight.interpret.token_gradients import grad_eclip
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import BlockSettings

MODERN = BlockSettings(kv_heads=1, rms_norm=True, gated=True, activation="silu", bias=False, position="rotary")
TOWER = {"dim": 16, "depth": 2, "heads": 2}


def family_of(settings=MODERN, image=None, text=None):
    torch.manual_seed(0)
    model = MultiModalTransformer(20, 24, 8, 6, 16, 2, 2, 2, 12, 0.0, settings)
    model.image = VisionTransformer(24, 8, **TOWER, block=settings, **(image or {}))
    model.text = TextTransformer(20, 6, **TOWER, block=settings, **(text or {}))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return DualEncoder(model.eval())


KINDS = {
    "modern": {},
    "means": {"image": {"pool": "mean"}},
    "causal, read at its end": {"text": {"causal": True, "pool": "last"}},
    "CLIP": {"settings": BlockSettings(activation="quick_gelu"), "image": {"input_norm": True}, "text": {"causal": True, "pool": "last"}},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_either_tower_sum_to_its_embedding(kind, batch):
    family = family_of(**KINDS[kind])
    with looking_at(family, batch, None) as subject:
        inputs, model = subject.inputs, family.model
        expected = {
            "image": model.image_projection(model.image.read(inputs.image_RND).pooled),
            "text": model.text_projection(model.text.read(inputs.text_RTD, inputs.text_mask_RT).pooled),
        }
        for side, embedding_RE in expected.items():
            torch.testing.assert_close(decompose(subject, side).embedding_RE, embedding_RE, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_the_weights_are_those_of_attention_written_out(kind, batch, monkeypatch):
    family, seen = family_of(**KINDS[kind]), []
    with looking_at(family, batch, None) as subject:
        score, layers = attention_gradients(subject, [*family.flow.image, *family.flow.text])

        def attend(query, key, value, mask, only_causal=False):
            scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            seen.append(scores.softmax(dim=-1))
            return seen[-1] @ value

        monkeypatch.setattr("insight.nn.attention.attend", attend)
        with torch.enable_grad():
            again = subject.score(subject.inputs)
            gradients = torch.autograd.grad(again.sum(), seen)
    torch.testing.assert_close(score, again.detach(), atol=1e-5, rtol=1e-5)
    for (name, layer), weights, gradient in zip(layers.items(), seen, gradients, strict=True):
        torch.testing.assert_close(layer.weights_RHTS, weights.detach(), atol=1e-6, rtol=1e-4)
        allowed = torch.ones_like(gradient, dtype=torch.bool).tril() if "causal" in KINDS[kind].get("text", {}) and "text" in name else None
        expected = gradient if allowed is None else gradient.masked_fill(~allowed, 0.0)
        torch.testing.assert_close(layer.gradient_RHTS, expected, atol=1e-5, rtol=1e-3)


def test_what_a_causal_text_cannot_read_is_worth_nothing_to_its_first_words(batch):
    family = family_of(text={"causal": True, "pool": "last"})
    with looking_at(family, batch, None) as subject:
        values = grad_eclip(subject)
    assert values.text_RT is not None and torch.isfinite(values.text_RT).all()
    assert not values.text_RT[~batch.token_mask].any()


@torch.no_grad()
def test_patches_of_a_rotary_picture_are_left_out_with_their_places(batch):
    family = family_of()
    with looking_at(family, batch, None) as subject:
        masked = MaskedRows(subject.family, subject.rows, torch.arange(9))
        kept = torch.tensor([[True, False] * 4 + [True], [False] * 4 + [True] * 5])
        scores_RK = masked.scores(image_kept=kept)
        for column, one in enumerate(kept):
            mask = F.pad(one, (1, 0), value=True).expand(len(subject.inputs.image_RND), -1)
            expected = family.score(subject.inputs._replace(image_mask_RN=mask))
            torch.testing.assert_close(scores_RK[:, column].float(), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_explained_says_so(batch):
    with pytest.raises(ValueError, match="without class token"):
        family_of(image={"class_token": False, "pool": "mean"})
    family = family_of(image={"pool": "attention"})
    with looking_at(family, batch, None) as subject, pytest.raises(Lacks, match="by what they hold"):
        decompose(subject, "image")
