"""Losses of the menu beside open_clip, pytorch-metric-learning and lightly, and beside loops written from their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from insight import losses
from insight.errors import InputError

ROWS, WIDTH = 6, 8
SCALE = torch.tensor(7.0)
OWN = torch.eye(ROWS, dtype=torch.bool)
CAPTION_IMAGE_ID = torch.tensor([4, 4, 9, 2, 2, 2])
IMAGE_ID = torch.tensor([4, 9, 2])
POSITIVES = IMAGE_ID[:, None] == CAPTION_IMAGE_ID[None, :]


def unit(rows, seed, width=WIDTH):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


IMAGE, TEXT = unit(ROWS, 1), unit(ROWS, 2)  # a caption each
FEW = unit(3, 3)  # pictures of CAPTION_IMAGE_ID


# --- beside other libraries ---
def test_contrastive_is_open_clips_loss():
    from open_clip import ClipLoss

    torch.testing.assert_close(losses.contrastive(IMAGE, TEXT, OWN, SCALE), ClipLoss()(IMAGE, TEXT, SCALE))


def test_sigmoid_pairwise_is_open_clips_loss():
    from open_clip.loss import SigLipLoss

    bias = torch.tensor(-3.0)
    torch.testing.assert_close(losses.sigmoid_pairwise(IMAGE, TEXT, OWN, SCALE, bias), SigLipLoss()(IMAGE, TEXT, SCALE, bias))


def test_supervised_contrastive_is_that_of_pytorch_metric_learning_over_pictures_and_captions():
    from pytorch_metric_learning.losses import SupConLoss

    expected = SupConLoss(temperature=1 / 7)(torch.cat([FEW, TEXT]), torch.cat([IMAGE_ID, CAPTION_IMAGE_ID]))
    torch.testing.assert_close(losses.supervised_contrastive(FEW, TEXT, IMAGE_ID, CAPTION_IMAGE_ID, SCALE), expected)


def test_supervised_contrastive_with_a_caption_each_is_nt_xent_across_the_modalities():
    from pytorch_metric_learning.losses import NTXentLoss

    ids = torch.arange(ROWS)
    expected = NTXentLoss(temperature=1 / 7)(torch.cat([IMAGE, TEXT]), torch.cat([ids, ids]))
    torch.testing.assert_close(losses.supervised_contrastive(IMAGE, TEXT, ids, ids, SCALE), expected)


def test_image_views_is_lightlys_nt_xent():
    from lightly.loss import NTXentLoss

    expected = NTXentLoss(temperature=0.2)(IMAGE, TEXT)
    torch.testing.assert_close(losses.image_views(IMAGE, TEXT, torch.arange(ROWS), temperature=0.2), expected)


def test_vicreg_is_lightlys_on_embeddings_of_variance_one():
    from lightly.loss import VICRegLoss

    expected = VICRegLoss(lambda_param=20.0, mu_param=15.0, nu_param=2.0)(math.sqrt(WIDTH) * IMAGE, math.sqrt(WIDTH) * TEXT)
    torch.testing.assert_close(losses.vicreg(IMAGE, TEXT, OWN, invariance=20.0, variance=15.0, covariance=2.0), expected)


def test_barlow_twins_is_lightlys_on_embeddings_of_variance_one():
    from lightly.loss import BarlowTwinsLoss

    expected = BarlowTwinsLoss(lambda_param=0.02)(math.sqrt(WIDTH) * IMAGE, math.sqrt(WIDTH) * TEXT)
    torch.testing.assert_close(losses.barlow_twins(IMAGE, TEXT, OWN, redundancy=0.02), expected)


# --- beside loops ---
def directions(image, text, positives):
    return (image, text, positives), (text, image, positives.T)


def test_decoupled_contrastive_equals_a_loop_whose_denominator_holds_negatives_alone():
    means = []
    for queries, keys, right in directions(FEW, TEXT, POSITIVES):
        rows = []
        for i, query in enumerate(queries):
            logit = [7.0 * float(query @ key) for key in keys]
            negatives = math.log(sum(math.exp(value) for j, value in enumerate(logit) if not right[i, j]))
            mine = [negatives - value for j, value in enumerate(logit) if right[i, j]]
            rows.append(sum(mine) / len(mine))
        means.append(sum(rows) / len(rows))
    assert losses.decoupled_contrastive(FEW, TEXT, POSITIVES, SCALE).item() == pytest.approx(sum(means) / 2, rel=1e-5)


def test_a_decoupled_row_without_a_negative_is_left_out():
    every = torch.ones(1, 3, dtype=torch.bool)
    image = unit(1, 4).requires_grad_()
    value = losses.decoupled_contrastive(image, TEXT[:3], every, SCALE)
    value.backward()
    assert value.item() == 0 and not image.grad.any()


def test_label_smoothing_is_torchs_with_a_caption_each_and_mixes_with_the_mean_elsewhere():
    logits, own = SCALE * IMAGE @ TEXT.T, torch.arange(ROWS)
    expected = sum(F.cross_entropy(one, own, label_smoothing=0.2) for one in (logits, logits.T)) / 2
    torch.testing.assert_close(losses.contrastive(IMAGE, TEXT, OWN, SCALE, label_smoothing=0.2), expected)
    rows = []
    for queries, keys, right in directions(FEW, TEXT, POSITIVES):
        log_softmax = F.log_softmax(SCALE * queries @ keys.T, dim=1)
        target = 0.8 * right / right.sum(dim=1, keepdim=True) + 0.2 / len(keys)
        rows.append(-(target * log_softmax).sum(dim=1).mean())
    torch.testing.assert_close(losses.contrastive(FEW, TEXT, POSITIVES, SCALE, label_smoothing=0.2), sum(rows) / 2)
    with pytest.raises(InputError, match="label_smoothing=1"):
        losses.contrastive(FEW, TEXT, POSITIVES, SCALE, label_smoothing=1.0)


def test_a_dynamic_temperature_is_lowest_for_unrelated_pairs_and_equals_a_loop():
    def temperature(cosine):
        return 0.1 + 0.5 * (0.3 - 0.1) * (1 + math.cos(math.pi * (1 + cosine)))

    assert temperature(0.0) == pytest.approx(0.1) and temperature(1.0) == temperature(-1.0) == pytest.approx(0.3)
    means = []
    for queries, keys, right in directions(FEW, TEXT, POSITIVES):
        rows = []
        for i, query in enumerate(queries):
            logit = [float(query @ key) / temperature(float(query @ key)) for key in keys]
            total = math.log(sum(math.exp(value) for value in logit))
            mine = [total - value for j, value in enumerate(logit) if right[i, j]]
            rows.append(sum(mine) / len(mine))
        means.append(sum(rows) / len(rows))
    ours = losses.dynamic_temperature_contrastive(FEW, TEXT, POSITIVES, temperature_min=0.1, temperature_max=0.3)
    assert ours.item() == pytest.approx(sum(means) / 2, rel=1e-5)
    with pytest.raises(InputError, match=r"temperature_max=0\.01: must be at least"):
        losses.dynamic_temperature_contrastive(FEW, TEXT, POSITIVES, temperature_max=0.01)


def test_a_constant_dynamic_temperature_is_contrastive():
    plain = losses.contrastive(FEW, TEXT, POSITIVES, torch.tensor(5.0))
    torch.testing.assert_close(losses.dynamic_temperature_contrastive(FEW, TEXT, POSITIVES, 0.2, 0.2), plain)


def test_vicreg_compares_each_caption_with_its_picture_and_takes_variances_over_each_modality():
    root = math.sqrt(WIDTH)
    pictures = FEW[[0, 0, 1, 2, 2, 2]]
    apart = ((root * pictures - root * TEXT) ** 2).mean()
    narrow = sum(F.relu(1 - ((root * z).var(dim=0) + 1e-4).sqrt()).mean() for z in (FEW, TEXT)) / 2
    expected = 25 * apart + 25 * narrow + losses.decorrelation(FEW, TEXT)
    torch.testing.assert_close(losses.vicreg(FEW, TEXT, POSITIVES), expected)


def test_similarity_distillation_is_the_divergence_from_the_teachers_order():
    teacher_image, teacher_text, soft = unit(3, 5, width=4), unit(ROWS, 6, width=4), torch.tensor(3.0)
    expected = 0.0
    for ours, theirs in (
        (7.0 * FEW @ TEXT.T, 3.0 * teacher_image @ teacher_text.T),
        (7.0 * TEXT @ FEW.T, 3.0 * teacher_text @ teacher_image.T),
    ):
        p, q = torch.softmax(theirs, dim=1), torch.softmax(ours, dim=1)
        expected += sum(
            float(a) * math.log(float(a) / float(b)) for row in zip(p, q, strict=True) for a, b in zip(*row, strict=True)
        ) / len(p)
    ours = losses.similarity_distillation(FEW, TEXT, SCALE, teacher_image, teacher_text, soft)
    assert ours.item() == pytest.approx(expected / 2, rel=1e-4)
    assert losses.similarity_distillation(FEW, TEXT, SCALE, FEW, TEXT, SCALE).item() == pytest.approx(0, abs=1e-6)


# --- curriculum ---
def test_the_two_fades_cross_between_start_and_end():
    for percent in range(101):
        progress = percent / 100
        into = losses.fade_in(progress, 0.25, 0.75)
        assert into == pytest.approx(min(1.0, max(0.0, 2 * progress - 0.5)))
        assert into + losses.fade_out(progress, 0.25, 0.75) == pytest.approx(1)
    assert [losses.fade_in(progress, 0.5, 0.5) for progress in (0.49, 0.5)] == [0, 1]
    with pytest.raises(InputError, match=r"start=0\.7, end=0\.3"):
        losses.fade_in(0.1, 0.7, 0.3)


# --- balance ---
def test_uncertainty_weighting_is_the_equation_and_learns_one_over_twice_the_value():
    weighting = losses.UncertaintyWeighting(["a", "b"])
    values = {"a": torch.tensor(2.0), "b": torch.tensor(0.1)}
    assert weighting(values).item() == pytest.approx(2.1)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weighting(values).backward()
        optimizer.step()
    s = weighting.log_variance.detach()
    expected = sum(math.exp(-s[i]) * value + float(s[i]) / 2 for i, value in enumerate((2.0, 0.1)))
    assert weighting(values).item() == pytest.approx(expected, rel=1e-5)
    found = {name: float(value) for name, value in weighting.weights().items()}
    assert found == {"a": pytest.approx(1 / 4, rel=1e-3), "b": pytest.approx(5, rel=1e-3)}  # where the derivative is 0: exp(-s) = 1 / (2 L)
    assert weighting({"b": values["b"]}).item() == pytest.approx(math.exp(-s[1]) * 0.1 + float(s[1]) / 2, rel=1e-5)


def test_loss_scale_weighting_divides_by_running_means_and_stands_still_in_evaluation():
    weighting, mean = losses.LossScaleWeighting(["a", "b"], decay=0.5), [0.0, 0.0]
    for step, pair in enumerate([(4.0, 1.0), (2.0, 3.0), (2.0, 3.0)]):
        mean = [one if step == 0 else (old + one) / 2 for old, one in zip(mean, pair, strict=True)]
        inverse = [1 / one for one in mean]
        expected = sum(2 * one / sum(inverse) * value for one, value in zip(inverse, pair, strict=True))
        assert weighting(dict(zip("ab", map(torch.tensor, pair), strict=True))).item() == pytest.approx(expected, rel=1e-5)
    weighting.eval()
    before = weighting.mean.clone()
    weighting({"a": torch.tensor(9.0), "b": torch.tensor(9.0)})
    assert torch.equal(weighting.mean, before) and before.tolist() == pytest.approx(mean)
    with pytest.raises(InputError, match="decay=1"):
        losses.LossScaleWeighting(["a"], decay=1.0)
