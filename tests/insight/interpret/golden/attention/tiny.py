"""Tiny models whose weights follow from their names, so that they are the same on every machine and with every torch."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from insight.data.batch import ImageTextBatch
from insight.interpret.families import Classifier, CrossAttention, DualEncoder
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionTransformer

IMAGE_SIZE, PATCH_SIZE, GRID, DIM, DEPTH, EMBED, VOCABULARY, LENGTH = 24, 8, 3, 16, 3, 12, 20, 6
TOWER = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "dim": DIM}
BOTH = {"vocab_size": VOCABULARY, "context_length": LENGTH, "embed_dim": EMBED, "image_depth": DEPTH, **TOWER}


def numbers(name: str, *shape: int) -> Tensor:
    """Standard normal, float32, from NumPy's frozen generator."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32))


@torch.no_grad()
def seeded(model: nn.Module) -> nn.Module:
    """Matrices of deviation .3, vectors of .1, LayerNorm weights around 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            continue  # the scale
        drawn = numbers(name, *parameter.shape)
        parameter.copy_(drawn * 0.3 if parameter.ndim > 1 else drawn * 0.1 + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def dual_encoder(heads: int = 2) -> DualEncoder:
    return DualEncoder(seeded(MultiModalTransformer(text_depth=DEPTH, heads=heads, **BOTH)))


def cross_attention() -> CrossAttention:
    """Without text blocks: the words go straight into the fusion, as the queries of DETR do."""
    return CrossAttention(seeded(CrossAttentionMultiModalTransformer(text_depth=0, heads=2, fusion_depth=2, **BOTH)))


def classifier() -> Classifier:
    return Classifier(seeded(VisionTransformer(depth=DEPTH, heads=2, **TOWER)), seeded(nn.Linear(DIM, 3)))


def batch() -> ImageTextBatch:
    """Two pictures and three captions of full length, with no token twice the caption's highest."""
    tokens = torch.tensor([[3, 9, 4, 12, 5, 7], [11, 3, 8, 6, 19, 10], [4, 4, 15, 13, 9, 5]])
    mask, row = torch.ones(3, LENGTH, dtype=torch.bool), torch.tensor([0, 0, 1])
    image = numbers("image", 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    return ImageTextBatch(image, None, tokens, mask, row, torch.arange(2), torch.arange(3), ("",) * 3, ("a.jpg", "b.jpg"), ())
