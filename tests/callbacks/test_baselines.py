"""The callback logs what insight.baselines finds, under the metric names that the project knows."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.baselines import Baselines
from insight.baselines import BlindPrior, ColourHistogram, Negative, evaluate_baseline
from insight.metric_names import check_metric_name


class Data:
    """Eight one-coloured pictures in each split."""

    colours = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]] * 2, dtype=torch.uint8)
    names = [f"{row}.jpg" for row in range(8)]

    def pairs(self, split):
        words = ["red", "green", "blue", "yellow"] * 2
        return self.colours[:, :, None, None].expand(8, 3, 4, 4), [[f"a {word} square", f"{word}"] for word in words]

    def splits(self):
        return {"train": self.names, "test": self.names}

    def hard_negatives(self, split):
        return [{"filename": "0.jpg", "caption": "a red square", "negative": "a square red", "kind": "objects", "seen": True}]


class Module:
    def __init__(self):
        self.logged = {}

    def log_dict(self, figures, rank_zero_only=False):
        assert rank_zero_only
        self.logged |= figures


def run(**state) -> dict[str, float]:
    module = Module()
    trainer = SimpleNamespace(datamodule=Data(), sanity_checking=False, is_global_zero=True)
    trainer.__dict__.update(state)
    Baselines().on_test_epoch_end(trainer, module)
    return module.logged


@pytest.mark.parametrize(("name", "kind"), [("colour_histogram", ColourHistogram), ("blind_prior", BlindPrior)])
def test_the_figures_are_those_of_the_core(name, kind):
    images, captions = Data().pairs("test")
    negatives = [Negative(0, "a red square", "a square red", True)]
    expected = evaluate_baseline(kind.fit(images, captions), images, captions, negatives)
    logged = run()
    assert {key.split("/")[-1]: value for key, value in logged.items() if f"/{name}/" in key} == expected
    assert f"test/baseline/{name}/hard_negative_accuracy_seen" in logged
    assert f"test/baseline/{name}/hard_negative_accuracy_unseen" not in logged


def test_every_name_is_on_the_list_of_metrics():
    for key in run():
        check_metric_name(key)


def test_other_ranks_and_the_sanity_check_log_nothing():
    assert run(is_global_zero=False) == {}
    assert run(sanity_checking=True) == {}
