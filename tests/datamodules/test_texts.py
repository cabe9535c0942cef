"""Texts of captions and of folders: nothing lost, nothing twice, the same for every number of processes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from datamodules.caption_texts import CaptionTextDataModule, SceneTextDataModule
from datamodules.scenes import ScenesDataModule
from datamodules.text_folder import TextFolderDataModule
from insight.errors import InputError

WORDS = ("ape", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
PARAGRAPHS = [f"paragraph {number} speaks of {word}" for number, word in enumerate(WORDS)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "one.txt").write_text("\n\n".join(PARAGRAPHS[:6]), encoding="utf-8")
    (folder / "more" / "two.txt").write_text("\n \n\n".join([*PARAGRAPHS[6:], PARAGRAPHS[0]]) + "\n\n", encoding="utf-8")
    (folder / "notes.md").write_text("not read")
    return folder


def scenes(cache, **changes):
    return SceneTextDataModule(cache_dir=str(cache), num_train=12, num_val=4, num_test=4, vocab_size=300, **changes)


def test_every_paragraph_is_in_one_split_and_equal_ones_stay_together(folder):
    data = TextFolderDataModule(str(folder), val_size=2, test_size=0.2)
    found = {split: [document.text for document in data.documents(split)] for split in ("train", "val", "test")}
    assert Counter(itertools.chain(*found.values())) == Counter([*PARAGRAPHS, PARAGRAPHS[0]])
    assert [len(set(texts)) for texts in found.values()] == [6, 2, 2]
    assert not set(found["train"]) & set(found["val"]) and not set(found["train"]) & set(found["test"])
    assert "more/two.txt#0" in {name for names in data.splits().values() for name in names}
    again = TextFolderDataModule(str(folder), val_size=2, test_size=0.2)
    assert again.splits() == data.splits() and again.fingerprint() == data.fingerprint()
    assert TextFolderDataModule(str(folder), val_size=2, test_size=0.2, seed=1).splits() != data.splits()


def test_folders_named_as_splits_are_the_splits(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(f"text of {split}", encoding="utf-8")
    data = TextFolderDataModule(str(tmp_path))
    assert {split: data.documents(split)[0].text for split in ("train", "val", "test")} == {
        "train": "text of train",
        "val": "text of val",
        "test": "text of test",
    }


def test_the_captions_are_those_of_the_pictures_in_the_same_split(scenes_cache):
    pictures = ScenesDataModule(cache_dir=str(scenes_cache), num_train=12, num_val=4, num_test=4)
    texts = scenes(scenes_cache)
    texts.prepare_data()
    for split in ("train", "val", "test"):
        expected = [caption for one in pictures.pairs(split)[1] for caption in one]
        assert [document.text for document in texts.documents(split)] == expected
    flickr = CaptionTextDataModule(str(texts.locate()), vocab_size=300)
    assert flickr.documents("val") == texts.documents("val")
    limited = CaptionTextDataModule(str(texts.locate()), vocab_size=300, train_images=3, eval_images=1)
    assert [len(limited.documents(split)) for split in ("train", "val")] == [15, 5]


def test_batches_hold_whole_windows_padded_behind(scenes_cache):
    data = scenes(scenes_cache, context_length=8, eval_batch_size=7)
    data.prepare_data()
    seen = {}
    for batch in data.val_dataloader():
        assert torch.equal(batch.tokens == data.codec.pad, ~batch.token_mask)
        assert batch.num_named == int(batch.token_mask[:, 1:].sum())
        for row, index in enumerate(batch.text_id.tolist()):
            seen[index] = batch.tokens[row][batch.token_mask[row]].tolist()
    assert seen == {window.row: window.ids for window in data.windows("val")}
    assert len(seen) > len(data.documents("val"))  # long captions became several windows


def test_an_epoch_serves_every_window_once_in_an_order_of_its_own(scenes_cache):
    data = scenes(scenes_cache, batch_size=10)
    data.prepare_data()
    data.configure_stage(5)
    orders = []
    for epoch in (0, 1, 0):
        data._position = lambda epoch=epoch: (epoch, 0)
        orders.append([index for batch in data.train_dataloader() for index in batch.text_id.tolist()])
    assert orders[0] == orders[2] != orders[1]
    dropped = len(data.windows("train")) % 10  # the last incomplete batch
    assert len(orders[0]) == len(set(orders[0])) == len(data.windows("train")) - dropped


def test_the_probe_is_the_same_few_texts_and_a_checkpoints_tokenizer_is_used(scenes_cache):
    data, other = scenes(scenes_cache), scenes(scenes_cache, context_length=48)
    data.prepare_data(), data.setup()
    assert data.probe("val", 3).texts == other.probe("val", 3).texts and len(data.probe("val", 3).texts) == 3
    state = data.state_dict()
    fresh = SceneTextDataModule(cache_dir=str(scenes_cache), num_train=12, num_val=4, num_test=4, vocab_size=290)
    fresh.prepare_data(), fresh.setup()
    assert fresh.codec.to_json() != state["tokenizer"]
    fresh.load_state_dict(state)
    assert fresh.codec.to_json() == state["tokenizer"] and fresh.windows("val") == data.windows("val")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: TextFolderDataModule(), r"no folder is given: data.init_args.root=PATH"),
        (lambda folder: TextFolderDataModule(str(folder / "nowhere")), "nowhere: no such folder"),
        (lambda folder: TextFolderDataModule(str(folder), val_size=9, test_size=2), "leave nothing of the 10 different paragraphs"),
        (lambda folder: TextFolderDataModule(str(folder), val_size=-1), "val_size=-1: must be above 0"),
        (lambda folder: TextFolderDataModule(str(folder.parent / "empty")), r"no text in any \*.txt"),
        (lambda folder: TextFolderDataModule(str(folder.parent / "latin")), "old.txt: not UTF-8"),
        (lambda folder: CaptionTextDataModule(str(folder), train_images=0), "train_images=0"),
        (lambda folder: SceneTextDataModule(num_val=0), "num_val=0: each split needs at least one picture"),
        (lambda folder: TextFolderDataModule(str(folder), batch_size=0), "batch_size=0"),
        (lambda folder: TextFolderDataModule(str(folder), num_workers=-1), "num_workers=-1"),
    ],
)
def test_what_cannot_be_read_is_named(folder, make, message):
    (folder.parent / "empty").mkdir()
    (folder.parent / "latin").mkdir()
    (folder.parent / "latin" / "old.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(InputError, match=message):
        make(folder).documents("train")
