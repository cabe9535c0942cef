import pytest
import torch

from insight.data.mixing import Mixing
from insight.errors import InputError


def batch():
    lot = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 8, 8, generator=lot), torch.tensor([0, 1, 2, 1])


def lots(seed):
    return torch.Generator().manual_seed(seed)


def test_mixup_adds_two_pictures_and_their_classes_in_the_same_share():
    image, label = batch()
    mixed, target = Mixing(3, mixup=1.0).mix(image, label, lots(1))
    other, other_label = image.roll(1, 0), label.roll(1, 0)
    share = float(target[0, 0])  # of the first picture, whose neighbour is of class 1
    assert 0.01 < share < 0.99 and (label[0], other_label[0]) == (0, 1)
    torch.testing.assert_close(mixed, share * image + (1 - share) * other)
    for row in range(4):
        expected = torch.zeros(3)
        expected[label[row]] += share
        expected[other_label[row]] += 1 - share
        torch.testing.assert_close(target[row], expected)


def test_cutmix_shares_the_class_by_the_area_that_each_picture_keeps():
    image, label = batch()
    mixed, target = Mixing(3, cutmix=1.0).mix(image, label, lots(3))
    own, neighbour = (mixed == image).all(dim=1), (mixed == image.roll(1, 0)).all(dim=1)
    assert (own | neighbour).all() and 0 < int(neighbour[0].sum()) < 64
    assert float(target[0, 0]) == pytest.approx(float(own[0].float().mean()), abs=1e-6)


def test_what_is_drawn_depends_on_the_generator_alone_and_leaves_the_global_one():
    image, label = batch()
    mixing = Mixing(3, mixup=0.4, cutmix=0.4)
    before = torch.get_rng_state()
    first = [mixing.mix(image, label, lots(seed)) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    for seed, (mixed, target) in enumerate(first):
        again = mixing.mix(image, label, lots(seed))
        assert torch.equal(again[0], mixed) and torch.equal(again[1], target)
    whole = [bool((mixed == image).any(dim=1).any()) for mixed, _ in first]
    assert 0 < sum(whole) < 12  # both ways come up


def test_without_a_way_to_mix_nothing_changes():
    image, label = batch()
    mixed, target = Mixing(3).mix(image, label, lots(0))
    assert mixed is image and torch.equal(target, torch.eye(3)[label])


def test_a_negative_alpha_is_an_error_that_names_the_key():
    with pytest.raises(InputError, match=r"model\.init_args\.cutmix=-1"):
        Mixing(3, cutmix=-1)
