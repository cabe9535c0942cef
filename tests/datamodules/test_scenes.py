"""The data module of the generated set: rendered on first use, read by Flickr30k's reader, named as generated."""

import pytest
import torch

from callbacks.baselines import Baselines
from datamodules.scenes import ScenesDataModule
from insight.errors import InputError
from insight.metric_names import check_metric_name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cache, sizes = str(tmp_path_factory.mktemp("cache")), {"num_train": 12, "num_val": 4, "num_test": 10}
    module = ScenesDataModule(cache_dir=cache, **sizes, image_size=32, batch_size=4, eval_batch_size=5)
    module.prepare_data()
    module.setup()
    return module


def test_it_says_that_it_is_generated(data):
    assert data.generated
    assert data.describe().startswith("generated data (scenes v1, seed 0): 12 training, 4 validation and 10 test pictures")


def test_it_says_how_many_pictures_are_used_before_any_is_rendered(tmp_path):
    few = ScenesDataModule(cache_dir=str(tmp_path), train_images=100, eval_images=700, seed=3)
    assert few.describe().startswith("generated data (scenes v1, seed 3): 100 training, 600 validation and 700 test pictures")
    assert list(tmp_path.iterdir()) == []


def test_a_training_batch_has_pictures_captions_and_phrases_with_boxes(data):
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (4, 3, 32, 32)
    assert len(batch.texts) == 4
    assert any(phrase.boxes for phrase in batch.phrases)
    for phrase in batch.phrases:
        assert batch.texts[phrase.caption][phrase.start : phrase.end] == phrase.text
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in phrase.boxes)


def test_evaluation_serves_all_five_captions_of_every_test_picture(data):
    batches = list(data.test_dataloader())
    assert sum(len(batch.filenames) for batch in batches) == 10
    assert sum(len(batch.texts) for batch in batches) == 50
    assert torch.cat([batch.caption_id for batch in batches]).unique().numel() == 50


def test_no_caption_is_cut_by_the_text_tower(data):
    for batch in data.test_dataloader():
        words = [data.tokenizer.decode(row.tolist()) for row in batch.tokens]
        assert [word.replace(" ", "") for word in words] == [text.lower().replace(" ", "") for text in batch.texts]


def test_hard_negatives_are_those_of_the_test_split_only(data):
    negatives = data.hard_negatives("test")
    assert {one["filename"] for one in negatives} <= set(data.splits()["test"])
    assert {one["seen"] for one in negatives} == {True, False}
    assert data.hard_negatives("val") == []


def test_the_baselines_callback_reads_this_data_module(data):
    logged = {}

    class Trainer:
        datamodule, sanity_checking, is_global_zero = data, False, True

    class Module:
        def log_dict(self, figures, rank_zero_only):
            logged.update(figures)

    Baselines().on_test_epoch_end(Trainer(), Module())
    for name in logged:
        check_metric_name(name)
    assert "test/baseline/colour_histogram/hard_negative_accuracy_unseen" in logged
    assert "test/baseline/blind_prior/image_to_text_recall_at_1" in logged


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_val": 0}, "num_val=0"), ({"num_train": -3}, "num_train=-3"), ({"flip": True}, "flip=true.*left and right")],
)
def test_a_wrong_setting_is_named(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        ScenesDataModule(cache_dir=str(tmp_path), **wrong)


def test_a_stage_may_not_mirror_the_pictures(data):
    with pytest.raises(InputError, match="left and right"):
        data.configure_stage(0, flip=True)
