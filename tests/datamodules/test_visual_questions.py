from __future__ import annotations

import json

import pytest
import torch

from datamodules.scenes import ScenesDataModule
from datamodules.scenes_questions import make_questions
from datamodules.scenes_world import sample_scene
from datamodules.visual_questions import FILE, VisualQuestionsDataModule
from insight.data.batch import first_captions
from insight.errors import InputError

SIZES = {"num_train": 12, "num_val": 4, "num_test": 6, "image_size": 32, "batch_size": 4, "eval_batch_size": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(cache):
    module = VisualQuestionsDataModule(cache, **SIZES)
    module.prepare_data()
    module.setup()
    return module


def test_every_batch_holds_the_answers_of_its_own_questions(data):
    train = next(iter(data.train_dataloader()))
    assert len(train.texts) == 12 and train.answer.shape == train.kind.shape == (12,)  # three of each of four pictures
    seen = 0
    for batch in [train, *data.test_dataloader()]:
        split = "train" if batch is train else "test"
        for row, text in enumerate(batch.texts):
            name = batch.filenames[int(batch.caption_row[row])]
            index = int(name[-9:-4])
            (question,) = {one for one in make_questions(0, split, index, sample_scene(0, split, index)) if one.text == text}
            assert data.answers[int(batch.answer[row])] == question.answer and data.kinds[int(batch.kind[row])] == question.kind
            seen += 1
    assert seen == 12 + len(data.questions("test"))


def test_the_pictures_are_those_of_the_captions_and_the_data_are_told_apart(data, cache):
    scenes = ScenesDataModule(cache, **SIZES)
    scenes.setup()
    assert torch.equal(scenes.pairs("test")[0], data.pairs("test")[0]) and scenes.splits() == data.splits()
    assert scenes.fingerprint() != data.fingerprint()
    assert data.describe().startswith("generated data (scenes v1, seed 0): 12 training, 4 validation and 6 test pictures")
    assert data.describe().endswith("questions v1 about them, 29 answers")


def test_questions_are_written_once_and_a_broken_file_is_named(data, cache):
    path = data.locate() / FILE
    kept = path.read_text()
    again = VisualQuestionsDataModule(cache, **SIZES)
    again.setup()
    assert again.questions("val") == data.questions("val") and path.read_text() == kept
    assert len(json.loads(kept)) == 22
    try:
        path.write_text("[1, 2]")
        with pytest.raises(InputError, match=f"{FILE}: not the questions of a set of scenes .*remove the file"):
            VisualQuestionsDataModule(cache, **SIZES).prepare_data()
    finally:
        path.write_text(kept)


def test_fewer_questions_of_a_picture_keep_their_answers(data):
    batch = next(iter(data.test_dataloader()))
    first = first_captions(batch, 1)
    rows = [batch.caption_row.tolist().index(picture) for picture in range(len(batch.filenames))]
    assert torch.equal(first.answer, batch.answer[rows]) and torch.equal(first.kind, batch.kind[rows])
