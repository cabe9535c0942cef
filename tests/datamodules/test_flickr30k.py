"""Batches are what the contract says, the same for any number of workers and after any resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from datamodules.flickr30k import Flickr30kDataModule
from insight.data.augmentation import ImageAugmentation, TextAugmentation
from insight.data.batch import ImageTextBatch
from insight.data.images import ImageTransform, denormalise
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.stages import Call

Make = Callable[..., Flickr30kDataModule]


@pytest.fixture
def make(write_flickr: Callable[..., Path], tmp_path: Path) -> Make:
    root = write_flickr("karpathy", entities=True, raw=lambda text: text.replace(" ,", ",").replace(" .", "."))

    def build(**arguments: object) -> Flickr30kDataModule:
        given = {
            "root": str(root),
            "cache_dir": str(tmp_path / "cache"),
            "image_size": 16,
            "vocab_size": 300,
            "batch_size": 4,
            "eval_batch_size": 2,
        }
        return Flickr30kDataModule(**{**given, **arguments})  # type: ignore[arg-type]

    return build


def assert_same(one: ImageTextBatch, other: ImageTextBatch) -> None:
    for name, left, right in zip(ImageTextBatch._fields, one, other, strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, name


def check(batch: ImageTextBatch) -> None:
    """What holds in every batch."""
    rows = batch.caption_row.tolist()
    assert rows == sorted(rows) and set(rows) == set(range(len(batch.image)))
    assert len(batch.texts) == len(batch.tokens) == len(rows) == len(batch.caption_id) and len(batch.filenames) == len(batch.image_id)
    assert batch.image.dtype == torch.float32 and batch.tokens.dtype == batch.caption_row.dtype == batch.image_id.dtype == torch.int64
    assert len(set(batch.caption_id.tolist())) == len(rows)
    for phrase in batch.phrases:
        assert batch.texts[phrase.caption][phrase.start : phrase.end] == phrase.text
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in phrase.boxes)


def test_evaluation_serves_every_picture_once_with_all_captions_and_numbers_them_through(make: Make) -> None:
    data = make()
    batches = list(data.val_dataloader())
    for batch in batches:
        check(batch)
    assert [name for batch in batches for name in batch.filenames] == ["1010.jpg", "1011.jpg", "1012.jpg"]
    assert torch.cat([batch.image_id for batch in batches]).tolist() == [0, 1, 2]
    assert torch.cat([batch.caption_id for batch in batches]).tolist() == list(range(15))
    assert batches[0].view is None and batches[0].texts[5] == "A grey dog, number 11, runs on grass."
    tokens, mask = data.tokenizer.encode(batches[0].texts, 32)
    longest = int(mask.sum(dim=1).max())
    assert longest < 32 and torch.equal(tokens[:, :longest], batches[0].tokens) and torch.equal(mask[:, :longest], batches[0].token_mask)


def test_evaluation_by_way_of_the_cache_equals_serving_a_file(make: Make) -> None:
    data = make()
    transform = ImageTransform(16)
    for batch in data.test_dataloader():
        for image, name in zip(batch.image, batch.filenames, strict=True):
            assert torch.equal(image, transform.open(Path(str(data.root)) / "images" / name))


def test_phrase_boxes_reach_the_batch_on_the_right_words(make: Make) -> None:
    batch = next(iter(make().val_dataloader()))
    first = {phrase.text: phrase for phrase in batch.phrases if phrase.caption == 0}
    assert first["A blue dog"].boxes == ((0.0, 0.0, 0.5, 1.0),) and first["A blue dog"].entity == "7"
    assert first["grass"].boxes == ()
    left = denormalise(batch.image[0])[:, :, :7]
    assert left[0].min() > 0.8 and left[1:].max() < 0.2  # where the box is, the picture is red


def test_phrases_know_the_tokens_of_their_words(make: Make) -> None:
    data = make()
    batch = next(iter(data.val_dataloader()))
    assert batch.phrases and data.num_boxed_phrases() == 64
    for phrase in batch.phrases:
        tokens = batch.tokens[phrase.caption, list(phrase.positions)].tolist()
        assert data.tokenizer.decode(tokens) == phrase.text.lower()


def test_without_entities_there_are_no_phrases(make: Make) -> None:
    assert next(iter(make(entities=False).val_dataloader())).phrases == ()


@pytest.mark.parametrize(("asked", "served"), [(1, 1), (2, 2), (7, 7), ("all", 5)])
def test_training_serves_the_asked_number_of_captions(make: Make, asked: int | str, served: int) -> None:
    data = make(captions_per_image=asked)
    seen = set()
    for batch in data.train_dataloader():
        if served < 6:
            check(batch)
        assert torch.bincount(batch.caption_row).tolist() == [served] * 4
        owner = torch.tensor([int(text) // 5 for text in batch.caption_id])
        assert torch.equal(owner, batch.image_id[batch.caption_row])
        seen.update(batch.caption_id.tolist())
    assert len(seen) == 8 * min(served, 5) and data.num_train_batches == 2


def test_every_caption_comes_up_in_time(make: Make) -> None:
    data = make(batch_size=10)
    seen = set()
    for seed in range(60):
        data.configure_stage(seed)
        seen.update(next(iter(data.train_dataloader())).caption_id.tolist())
    assert seen == set(range(50))


def test_training_crops_carry_their_boxes_along(make: Make) -> None:
    data = make(crop_scale_min=0.3, flip=True, batch_size=10, captions_per_image="all", image_size=32)
    widths = set()
    for seed in range(4):
        data.configure_stage(seed)
        batch = next(iter(data.train_dataloader()))
        check(batch)
        shown = denormalise(batch.image)
        for phrase in batch.phrases:
            for x1, _, x2, _ in phrase.boxes:
                if phrase.entity == "7":  # the red half
                    red = shown[
                        int(batch.caption_row[phrase.caption]), :, 16, round(x1 * 32) + 1 : max(round(x2 * 32) - 1, round(x1 * 32) + 2)
                    ]
                    assert red[0].min() > 0.5 and red[1:].max() < 0.5
                    widths.add(x2 - x1)
    assert len(widths) > 5


@pytest.mark.parametrize("settings", [{}, {"views": 2, "captions_per_image": 2, "color_jitter": 0.5, "flip": True}])
def test_workers_change_no_bit(make: Make, settings: dict[str, object]) -> None:
    alone, helped = (list(make(num_workers=num, **settings).train_dataloader()) for num in (0, 2))
    assert len(alone) == 2
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)
        if settings:
            assert one.view is not None and one.view.shape == one.image.shape and not torch.equal(one.view, one.image)
    for one, other in zip(make().val_dataloader(), make(num_workers=1).val_dataloader(), strict=True):
        assert_same(one, other)


def test_a_stage_changes_how_batches_are_made_and_the_next_starts_from_the_settings_again(make: Make) -> None:
    data = make()
    first = list(data.train_dataloader())
    data.configure_stage(9, batch_size=2, captions_per_image="all", views=2, crop_scale_min=1.0, color_jitter=0.3, flip=True)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.image) == 2 and len(batch.texts) == 10 and batch.view is not None and data.num_train_batches == 5
    data.configure_stage(9)
    assert data.num_train_batches == 2 and next(iter(data.train_dataloader())).filenames != first[0].filenames
    data.configure_stage(0)
    for one, other in zip(first, data.train_dataloader(), strict=True):
        assert_same(one, other)


def test_changed_captions_are_tokenized_anew_lose_their_phrases_and_leave_the_pictures_as_they_were(make: Make) -> None:
    data = make(captions_per_image=2)
    plain = list(data.train_dataloader())
    data.configure_stage(0, text_augmentation=TextAugmentation(drop=0.15))
    seen = {True: 0, False: 0}
    for before, after in zip(plain, data.train_dataloader(), strict=True):
        assert torch.equal(before.image, after.image) and torch.equal(before.caption_id, after.caption_id)
        for row, (old, new) in enumerate(zip(before.texts, after.texts, strict=True)):
            seen[old == new] += 1
            tokens, mask = data.tokenizer.encode([new], after.tokens.shape[1])
            assert torch.equal(after.tokens[row], tokens[0]) and torch.equal(after.token_mask[row], mask[0])
            phrases = [phrase for phrase in before.phrases if phrase.caption == row]
            assert [phrase for phrase in after.phrases if phrase.caption == row] == (phrases if old == new else [])
            assert set(new.split()) <= set(old.split())
        check(after)
    assert seen[True] and seen[False]
    again = list(data.train_dataloader())
    for one, other in zip(again, data.train_dataloader(), strict=True):
        assert_same(one, other)


def test_a_stage_orders_its_epochs_and_changes_pixels(make: Make) -> None:
    data = make(crop_scale_min=1.0)
    plain = list(data.train_dataloader())
    data.configure_stage(
        0, image_augmentation=ImageAugmentation(grey=1.0), curriculum=Call("datamodules.curriculum.ByLength", {"epochs": 2})
    )
    batches = list(data.train_dataloader())
    assert len(batches) == len(plain) == data.num_train_batches
    pixels = denormalise(batches[0].image)
    assert (pixels - pixels[:, :1]).abs().max() < 0.01  # no colour
    lengths = {}
    for picture in data._split("train").pictures:
        lengths[picture.filename] = sum(len(text.split()) for text in picture.captions)
    easiest = sorted(lengths, key=lambda name: (lengths[name], name))[:4]  # 0.3 of 10 is less than a batch of 4
    assert all(sorted(batch.filenames) == sorted(easiest) for batch in batches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"captions_per_image": 0}, "captions_per_image=0"),
        ({"views": 3}, "views=3"),
        ({"crop_scale_min": 2.0}, "crop_scale_min=2"),
    ],
)
def test_a_value_out_of_range_is_named(make: Make, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)
    with pytest.raises(InputError, match=message):
        make().configure_stage(0, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data\.init_args\.eval_images=0"):
        make(eval_images=0)


def test_a_batch_larger_than_the_training_split_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="batch_size=11 is more than the 10 training pictures"):
        make(batch_size=11).train_dataloader()


def test_limits_take_the_first_pictures_of_each_split(make: Make) -> None:
    data = make(train_images=5, eval_images=2)
    assert {split: len(names) for split, names in data.splits().items()} == {"train": 5, "val": 2, "test": 2}
    assert data.splits()["val"] == make().splits()["val"][:2]


def test_no_folder_given_names_both_remedies_and_the_variable_works(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLICKR30K_ROOT", raising=False)
    with pytest.raises(InputError, match=r"no folder is given.*data\.init_args\.root=PATH.*data=scenes"):
        make(root=None).prepare_data()
    monkeypatch.setenv("FLICKR30K_ROOT", str(make().root))
    assert len(make(root=None).splits()["train"]) == 10


def test_broken_pictures_stop_the_run_or_are_left_out(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    images = Path(str(make().root)) / "images"
    (images / "1001.jpg").write_bytes((images / "1001.jpg").read_bytes()[:300])
    (images / "1010.jpg").write_text("text")
    with pytest.raises(InputError, match="2 of 16 pictures cannot be read"):
        make().prepare_data()
    data = make(skip_broken=True)
    assert "1001.jpg" not in data.splits()["train"] and data.splits()["val"] == ["1011.jpg", "1012.jpg"]
    assert "left out: 2 pictures" in caplog.text
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch.image[0], ImageTransform(16).open(images / "1011.jpg"))  # rows of the cache did not shift


def test_cmyk_and_turned_pictures_go_through(make: Make) -> None:
    path = Path(str(make().root)) / "images" / "1010.jpg"
    Image.open(path).convert("CMYK").save(path)
    left = denormalise(next(iter(make().val_dataloader())).image[0])[:, :, :7]
    assert left[0].min() > 0.8 and left[1:].max() < 0.2


def test_the_tokenizer_learns_from_the_training_split_alone(make: Make) -> None:
    data = make()
    root = Path(str(data.root))
    entries = json.loads((root / "dataset_flickr30k.json").read_text())
    training = [one["raw"] for image in entries["images"] if image["split"] in ("train", "restval") for one in image["sentences"]]
    data.setup()
    assert data.tokenizer.to_json() == Tokenizer.train(training, 300).to_json()


def test_a_given_tokenizer_is_used_and_a_checkpoints_own_comes_first(make: Make, tmp_path: Path) -> None:
    other = Tokenizer.train(["zebra zebra quagga quagga"], 262)
    other.save(tmp_path / "tokenizer.json")
    data = make(tokenizer=str(tmp_path / "tokenizer.json"))
    data.setup()
    assert data.tokenizer.to_json() == other.to_json()
    state = make()
    state.setup()
    for before in (True, False):  # Lightning restores after setup, our own code may do it before
        data = make(tokenizer=str(tmp_path / "tokenizer.json"))
        if before:
            data.load_state_dict(state.state_dict())
        data.setup()
        if not before:
            data.load_state_dict(state.state_dict())
        assert data.tokenizer.to_json() == state.tokenizer.to_json()
        assert_same(next(iter(data.val_dataloader())), next(iter(state.val_dataloader())))


def test_the_state_is_plain_data_and_other_data_are_noticed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    data = make()
    assert data.state_dict() == {}
    data.setup()
    state = data.state_dict()
    assert all(isinstance(value, str) for value in state.values())
    data.load_state_dict(state)
    assert "not those" not in caplog.text
    fewer = make(train_images=4)
    fewer.setup()
    fewer.load_state_dict(state)
    assert "the data are not those that the checkpoint was trained on" in caplog.text


def test_one_line_says_what_is_read(make: Make) -> None:
    assert make().describe().endswith("karpathy captions, 10/3/3 pictures (Karpathy's splits), 64 phrases with boxes")
    assert make(entities=False).describe().endswith("no phrase boxes")


def test_setting_up_again_reads_nothing_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    data = make()
    data.setup("fit")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="datamodules"):
        data.prepare_data()
        data.setup("test")
    assert caplog.text == ""


def test_the_probe_is_fixed_and_prefers_captions_with_boxes(make: Make) -> None:
    probe = make().probe("train", num=3, seed=2)
    check(probe)
    assert_same(probe, make(num_workers=1, batch_size=2).probe("train", num=3, seed=2))
    assert probe.filenames != make().probe("train", num=3, seed=3).filenames
    assert len(probe.texts) == 3 and {phrase.caption for phrase in probe.phrases if phrase.boxes} == {0, 1, 2}
    assert all(text.startswith("a ") for text in probe.texts)  # the only caption of each with two boxed phrases
    assert len(make().probe("val", num=99).filenames) == 3


def test_examples_are_found_by_name(make: Make) -> None:
    batch = make().examples("test", ["1015.jpg", "1013.jpg"])
    check(batch)
    assert batch.filenames == ("1015.jpg", "1013.jpg") and batch.image_id.tolist() == [2, 0] and len(batch.texts) == 10
    with pytest.raises(InputError, match=r"'1000\.jpg' is no picture of the test split"):
        make().examples("test", ["1000.jpg"])
    with pytest.raises(InputError, match="split 'dev'"):
        make().examples("dev", [])


def test_hard_negatives_are_given_by_split(make: Make) -> None:
    data = make()
    assert data.hard_negatives("test") == []
    rows = [{"filename": name, "caption": "a", "negative": "b", "kind": "swap", "seen": False} for name in ("1000.jpg", "1014.jpg")]
    (Path(str(data.root)) / "hard_negatives.json").write_text(json.dumps(rows))
    assert data.hard_negatives("test") == [rows[1]] and data.hard_negatives("val") == []


def test_moving_a_batch_moves_its_tensors_and_keeps_the_rest(make: Make) -> None:
    data = make(views=2)
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {value.device.type for value in moved if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.texts is batch.texts and moved.phrases is batch.phrases


class Watcher(LightningModule):
    """Writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[ImageTextBatch] = []

    def training_step(self, batch: ImageTextBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return (self.weight * batch.image.mean()).sum()

    def validation_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        torch.rand(3)

    def test_step(self, batch: ImageTextBatch, batch_idx: int) -> None:
        self.seen.append(batch)

    def predict_step(self, batch: ImageTextBatch, batch_idx: int) -> tuple[str, ...]:
        return batch.filenames

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class KillAt(Callback):
    """Save, then die."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *ignored: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise ConnectionAbortedError


def trainer(tmp_path: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
    )


@pytest.mark.parametrize(("step", "num_workers"), [(1, 0), (3, 0), (4, 0), (7, 0), (6, 2)])
def test_a_killed_run_goes_on_with_the_very_batches_it_would_have_had(make: Make, tmp_path: Path, step: int, num_workers: int) -> None:
    whole = Watcher()
    trainer(tmp_path).fit(whole, datamodule=make(batch_size=2))
    assert len(whole.seen) == 10
    path = tmp_path / "last.ckpt"
    with pytest.raises(ConnectionAbortedError):
        trainer(tmp_path, KillAt(step, path)).fit(Watcher(), datamodule=make(batch_size=2, num_workers=num_workers))
    resumed = Watcher()
    trainer(tmp_path).fit(resumed, datamodule=make(batch_size=2, num_workers=num_workers), ckpt_path=path, weights_only=True)
    assert len(resumed.seen) == 10 - step
    for one, other in zip(whole.seen[step:], resumed.seen, strict=True):
        assert_same(one, other)
    assert torch.equal(whole.weight, resumed.weight)


def test_testing_and_predicting_see_the_test_split_in_order(make: Make, tmp_path: Path) -> None:
    watcher, data = Watcher(), make()
    trainer(tmp_path).test(watcher, datamodule=data, verbose=False)
    names = [name for batch in watcher.seen for name in batch.filenames]
    predicted = trainer(tmp_path).predict(watcher, datamodule=data)
    assert predicted is not None and [name for batch in predicted for name in batch] == names == ["1013.jpg", "1014.jpg", "1015.jpg"]
