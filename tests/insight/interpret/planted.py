"""Methods of explanation whose answer is known beforehand, to be named by import path."""

from __future__ import annotations

import torch
from torch import nn

from insight.interpret.explain import Subject, Values


def first_patch(subject: Subject) -> Values:
    """The first patch and the second token, whatever the model."""
    score_R = subject.score(subject.inputs)
    image_RP = torch.zeros(len(score_R), subject.family.grid**2)
    image_RP[:, 0] = 3
    text_RT = torch.zeros_like(subject.rows.text_mask_RT, dtype=torch.float32)
    text_RT[:, 1] = 1
    return Values(score_R, image_RP=image_RP, text_RT=text_RT)


def corner_of_each_word(subject: Subject) -> Values:
    """Tokens 1 and 2 read the first patch, token 3 the last."""
    score_R = subject.score(subject.inputs)
    pairs_RTP = torch.zeros(len(score_R), subject.rows.text_mask_RT.shape[1], subject.family.grid**2)
    pairs_RTP[:, 1:3, 0] = 1
    pairs_RTP[:, 3, -1] = 2
    return Values(score_R, image_RP=pairs_RTP.sum(dim=1), pairs_RTP=pairs_RTP)


def pixels_and_weights(subject: Subject) -> Values:
    """What the first layer makes of each patch."""
    score_R = subject.score(subject.inputs)
    return Values(score_R, image_RP=nn.functional.normalize(subject.inputs.image_RND[:, 1:], dim=-1)[..., 0])


def words_alone(subject: Subject) -> Values:
    score_R = subject.score(subject.inputs)
    return Values(score_R, text_RT=torch.ones_like(subject.rows.text_mask_RT, dtype=torch.float32))


def by_lot(subject: Subject, seed: int = 0) -> Values:
    """Another map for another seed."""
    score_R = subject.score(subject.inputs)
    return Values(score_R, image_RP=torch.rand(len(score_R), subject.family.grid**2, generator=torch.Generator().manual_seed(seed)))
