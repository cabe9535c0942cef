"""Pictures and captions say the same, and every dimension says something of its own: losses without negatives.

B pictures, C captions, E width of the embedding, P width of the projection, N rows. Embeddings have length 1, so that their dimensions
have a variance near 1/E; where a loss wants variance 1 they are taken times sqrt(E).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from insight.errors import InputError
from insight.losses.logits import full_precision
from insight.nn.linear import linear

VARIANCE_EPSILON = 1e-4  # VICReg's
BATCH_NORM_EPSILON = 1e-5  # of the batch normalisation in Barlow Twins


def decorrelation(image_embedding: Tensor, text_embedding: Tensor) -> Tensor:
    """Dimensions of an embedding should say different things: the covariance term of https://arxiv.org/abs/2105.04906, summed over both.

    ``c(Z) = 1/E * sum over i != j of Cov(Z)_ij ** 2`` (equations 3-4). The paper's dimensions have variance 1; those of a vector of
    length 1 have about 1/E, so Z is the embedding times sqrt(E). A batch of one has covariance 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
    """
    return _covariance(_widened(image_embedding)) + _covariance(_widened(text_embedding))


def vicreg(
    image_embedding: Tensor,
    text_embedding: Tensor,
    positives: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """Variance, invariance, covariance: equation 6 of https://arxiv.org/abs/2105.04906, on the embeddings times sqrt(E).

    The invariance is the mean square over captions and dimensions of a caption minus its picture, and the variance term the mean of both
    modalities, as in the authors' code, for which their weights are meant. Variance and covariance are over all pictures, and over all
    captions. A batch of one row has variance 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        invariance: Weight; lambda of the paper.
        variance: Weight; mu.
        covariance: Weight; nu.
    """
    return _vicreg(_widened(image_embedding), _widened(text_embedding), positives, invariance, variance, covariance)


def barlow_twins(image_embedding: Tensor, text_embedding: Tensor, positives: Tensor, redundancy: float = 5e-3) -> Tensor:
    """The cross-correlation of captions and their pictures should be the identity: equation 1 of https://arxiv.org/abs/2103.03230.

    Each dimension is normalised over the captions, and over the captions' pictures. A batch of one caption has correlation 0.

    Args:
        image_embedding: (B, E)
        text_embedding: (C, E)
        positives: (B, C) bool, True = the caption is one of the picture's.
        redundancy: Weight of what is off the diagonal; lambda of the paper.
    """
    return _barlow_twins(_widened(image_embedding), _widened(text_embedding), positives, redundancy)


class Projector(nn.Module):
    """What VICReg calls an expander, with LayerNorm for its BatchNorm, so that a projection does not depend on the batch."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(linear(in_features, width), nn.LayerNorm(width), nn.ReLU()),
            *(linear(width, width), nn.LayerNorm(width), nn.ReLU()),
            linear(width, width, bias=False),
        )

    def forward(self, embedding_NE: Tensor) -> Tensor:
        """(N, E) -> (N, P) float32, also under autocast."""
        with full_precision(embedding_NE):
            return self.layers(_widened(embedding_NE))


class ProjectedVICReg(nn.Module):
    """``vicreg`` on projections of the embeddings, one projector for each modality: the form of the paper, section 4.2. They are trained.

    Args:
        model: Has ``embed_dim``.
        width: Of the projections.
        invariance: Weight; lambda of the paper.
        variance: Weight; mu.
        covariance: Weight; nu.
    """

    def __init__(
        self, model: nn.Module, width: int = 512, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
    ) -> None:
        super().__init__()
        self.image_projector, self.text_projector = _projectors(model, width)
        self.weights = (invariance, variance, covariance)

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, positives: Tensor) -> Tensor:
        """(B, E), (C, E), (B, C) bool -> ()."""
        return _vicreg(self.image_projector(image_embedding), self.text_projector(text_embedding), positives, *self.weights)


class ProjectedBarlowTwins(nn.Module):
    """``barlow_twins`` on projections of the embeddings, one projector for each modality: the form of the paper, section 2.2. They are
    trained.

    Args:
        model: Has ``embed_dim``.
        width: Of the projections.
        redundancy: Weight of what is off the diagonal; lambda of the paper.
    """

    def __init__(self, model: nn.Module, width: int = 512, redundancy: float = 5e-3) -> None:
        super().__init__()
        self.image_projector, self.text_projector = _projectors(model, width)
        self.redundancy = redundancy

    def forward(self, image_embedding: Tensor, text_embedding: Tensor, positives: Tensor) -> Tensor:
        """(B, E), (C, E), (B, C) bool -> ()."""
        return _barlow_twins(self.image_projector(image_embedding), self.text_projector(text_embedding), positives, self.redundancy)


def _projectors(model: nn.Module, width: int) -> tuple[Projector, Projector]:
    if width < 1:
        raise InputError(f"width={width}: must be at least 1, e.g. 512")
    in_features: int = model.embed_dim  # type: ignore[assignment]
    return Projector(in_features, width), Projector(in_features, width)


def _widened(embedding_NE: Tensor) -> Tensor:
    return embedding_NE.float() * math.sqrt(embedding_NE.shape[1])


def _of_captions(image_BP: Tensor, positives_BC: Tensor) -> Tensor:
    """The picture of each caption, (C, P)."""
    return image_BP[positives_BC.to(torch.uint8).argmax(dim=0)]


def _vicreg(image_BP: Tensor, text_CP: Tensor, positives_BC: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    apart = F.mse_loss(_of_captions(image_BP, positives_BC), text_CP)
    narrow = (_narrowness(image_BP) + _narrowness(text_CP)) / 2
    return invariance * apart + variance * narrow + covariance * (_covariance(image_BP) + _covariance(text_CP))


def _narrowness(z_NP: Tensor) -> Tensor:
    """Mean over dimensions of how far the standard deviation is below 1: equation 1 of VICReg."""
    variance_P = (z_NP - z_NP.mean(dim=0)).square().sum(dim=0) / max(1, len(z_NP) - 1)
    return F.relu(1 - (variance_P + VARIANCE_EPSILON).sqrt()).mean()


def _covariance(z_NP: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, divided by the number of dimensions: equations 3 and 4 of VICReg."""
    rows, width = z_NP.shape
    centred_NP = z_NP - z_NP.mean(dim=0)
    with full_precision(centred_NP):
        covariance_PP = centred_NP.T @ centred_NP / max(1, rows - 1)
    return (covariance_PP.square().sum() - covariance_PP.diagonal().square().sum()) / width


def _barlow_twins(image_BP: Tensor, text_CP: Tensor, positives_BC: Tensor, redundancy: float) -> Tensor:
    image_CP, text_CP = (
        (z_CP - z_CP.mean(dim=0)) / (z_CP.var(dim=0, correction=0) + BATCH_NORM_EPSILON).sqrt()
        for z_CP in (_of_captions(image_BP, positives_BC), text_CP)
    )
    with full_precision(text_CP):
        correlation_PP = image_CP.T @ text_CP / len(text_CP)
    diagonal_P = correlation_PP.diagonal()
    off_diagonal = correlation_PP.square().sum() - diagonal_P.square().sum()
    return (1 - diagonal_P).square().sum() + redundancy * off_diagonal
