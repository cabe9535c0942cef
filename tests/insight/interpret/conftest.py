"""Tiny models of every family, with weights large enough that attention is not even and scores are not flat."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import factorial

import pytest
import torch
from torch import Tensor, nn

from insight.data.batch import ImageTextBatch
from insight.interpret.families import Classifier, CrossAttention, DualEncoder, Family
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionTransformer

TOWER = {"image_size": 24, "patch_size": 8, "dim": 16, "heads": 2}
SHAPE = {"vocab_size": 20, "context_length": 6, "image_depth": 2, "text_depth": 2, "embed_dim": 12, **TOWER}
FAMILIES = ("dual encoder", "cross-attention", "classifier")


def build(name: str, dropout: float = 0.1) -> Family:
    torch.manual_seed(0)
    if name == "classifier":
        family: Family = Classifier(VisionTransformer(depth=2, dropout=dropout, **TOWER), nn.Linear(16, 3))
    elif name == "cross-attention":
        family = CrossAttention(CrossAttentionMultiModalTransformer(**SHAPE, fusion_depth=2, dropout=dropout))
    else:
        family = DualEncoder(MultiModalTransformer(**SHAPE, dropout=dropout))
    with torch.no_grad():
        for parameter in family.model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    family.model.eval()
    return family


def make_batch() -> ImageTextBatch:
    """Two pictures with two captions each, of 6, 3, 2 and 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    image, tokens = torch.randn(2, 3, 24, 24, generator=generator), torch.randint(4, 20, (4, 6), generator=generator)
    mask, rows = torch.arange(6) < torch.tensor([6, 3, 2, 6])[:, None], torch.arange(4)
    return ImageTextBatch(image, None, tokens * mask, mask, rows // 2, torch.arange(2), rows, ("caption",) * 4, ("a.jpg", "b.jpg"), ())


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param)


@pytest.fixture
def batch() -> ImageTextBatch:
    return make_batch()


@pytest.fixture
def dual_encoder() -> Family:
    return build("dual encoder")


@pytest.fixture
def cross_attention() -> Family:
    return build("cross-attention")


@pytest.fixture
def classifier() -> Family:
    return build("classifier")


@pytest.fixture
def shapley_by_definition() -> Callable[[Tensor, int], Tensor]:
    """Equation 1 of https://arxiv.org/abs/1705.07874, one set at a time: (2 ** M,) values in the order of ``all_masks`` -> (M,) float64."""

    def values(table: Tensor, players: int) -> Tensor:
        found = torch.zeros(players, dtype=torch.float64)
        for player in range(players):
            others = [one for one in range(players) if one != player]
            for size in range(players):
                weight = factorial(size) * factorial(players - size - 1) / factorial(players)
                for chosen in itertools.combinations(others, size):
                    index = sum(2**one for one in chosen)
                    found[player] += weight * (table[index + 2**player] - table[index]).double()
        return found

    return values


@pytest.fixture
def scores_of_all_masks() -> Callable[[Family, ImageTextBatch, int, int, Tensor], Tensor]:
    """One caption's score for every joint mask of segments and words, patches and tokens hidden by masks: (2 ** players,) float64."""

    def scores(family: Family, batch: ImageTextBatch, row: int, words: int, segment_P: Tensor) -> Tensor:
        rows, _ = family.rows(batch, None)
        whole, segments = family.embed(rows), int(segment_P.max()) + 1
        kept = (torch.arange(2 ** (segments + words))[:, None] >> torch.arange(segments + words)) & 1 > 0
        image_mask = nn.functional.pad(kept[:, segment_P], (1, 0), value=True)
        text_mask = nn.functional.pad(kept[:, segments:], (0, rows.tokens_RT.shape[1] - words))
        image, text = (one[row].expand(len(kept), -1, -1) for one in (whole.image_RND, whole.text_RTD))
        with torch.no_grad():
            return family.score(whole._replace(image_RND=image, text_RTD=text, image_mask_RN=image_mask, text_mask_RT=text_mask)).double()

    return scores


@pytest.fixture
def explicit_attention(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """From here on attention is softmax(q k^T) v step by step; the list gets each call's softmax, (B, H, T, S), for autograd to see."""
    weights: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        weights.append((scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1))
        return weights[-1] @ value

    monkeypatch.setattr("insight.nn.attention.attend", attend)
    return weights
