"""Losses. The names of the parameters without a default are the quantities that a loss asks for; the others are its settings.

Every loss computes in float32, also under autocast, and is finite on any batch, however short, unless its docstring says that it raises.
Those with parameters or state are classes: ``forward`` asks for quantities, the constructor has the settings. README.md is their table.
"""

from insight.losses.balance import LossScaleWeighting, UncertaintyWeighting
from insight.losses.distillation import TeacherDistillation, feature_consistency, similarity_distillation
from insight.losses.matching import NO_NEGATIVE, hard_negatives, image_text_matching
from insight.losses.momentum import MomentumContrast
from insight.losses.pairs import (
    contrastive,
    decoupled_contrastive,
    dynamic_temperature_contrastive,
    hard_negative_contrastive,
    sigmoid_pairwise,
    supervised_contrastive,
)
from insight.losses.redundancy import ProjectedBarlowTwins, ProjectedVICReg, barlow_twins, decorrelation, vicreg
from insight.losses.regions import fused_phrase_regions, phrase_regions
from insight.losses.schedules import fade_in, fade_out
from insight.losses.views import caption_pairs, image_views
from insight.losses.words import (
    IGNORED,
    answer_classification,
    captioning,
    causal_language_modelling,
    masked_language_modelling,
    text_masked_language_modelling,
    word_classification,
)

__all__ = [
    "IGNORED",
    "NO_NEGATIVE",
    "LossScaleWeighting",
    "MomentumContrast",
    "ProjectedBarlowTwins",
    "ProjectedVICReg",
    "TeacherDistillation",
    "UncertaintyWeighting",
    "answer_classification",
    "barlow_twins",
    "caption_pairs",
    "captioning",
    "causal_language_modelling",
    "contrastive",
    "decorrelation",
    "decoupled_contrastive",
    "dynamic_temperature_contrastive",
    "fade_in",
    "fade_out",
    "feature_consistency",
    "fused_phrase_regions",
    "hard_negative_contrastive",
    "hard_negatives",
    "image_text_matching",
    "image_views",
    "masked_language_modelling",
    "phrase_regions",
    "sigmoid_pairwise",
    "similarity_distillation",
    "supervised_contrastive",
    "text_masked_language_modelling",
    "vicreg",
    "word_classification",
]
