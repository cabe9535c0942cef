"""Visual question answering on the generated set "scenes": the same pictures, with questions where the captions stand."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datamodules.flickr30k_files import Picture
from datamodules.image_cache import ImageCache
from datamodules.samples import Sample, Split, SplitTexts
from datamodules.scenes import ScenesDataModule
from datamodules.scenes_files import Settings
from datamodules.scenes_questions import ANSWERS, KINDS, VERSION, make_questions
from datamodules.scenes_world import sample_scene
from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.question_baselines import Asked

FILE = f"questions-v{VERSION}.json"  # beside the captions


class VisualQuestionsDataModule(ScenesDataModule):
    """Questions about scenes, up to seven of a picture, with answers from a fixed list (``answers``).

    Args:
        cache_dir: The set is rendered to a folder in it, and the questions are written beside its captions, on first use.
        num_train: Pictures to render for training.
        num_val: For validation.
        num_test: For the test.
        image_size: Side of the model's picture.
        context_length: Tokens of a question, with its start and end.
        vocab_size: Most entries of the tokenizer that is trained on the training questions.
        tokenizer: A tokenizer file (RUN/tokenizer.json) to use instead of training one.
        batch_size: Training pictures per step, over all devices.
        eval_batch_size: Pictures per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        captions_per_image: Questions of each picture in a training batch, or "all". Evaluation always has all.
        crop_scale_min: Smallest area of a training crop; 1 = no crop, so that what is counted is in the picture.
        color_jitter: Strength of the change of brightness, contrast and saturation in training; 0 = none.
        train_images: Use only so many training pictures, for a quick look.
        eval_images: Use only so many validation and test pictures each.
        seed: Of the scenes and questions; the same seed gives the same.
    """

    title = "questions on scenes"
    answers = ANSWERS
    kinds = KINDS

    def __init__(
        self,
        cache_dir: str = "outputs/cache",
        num_train: int = 6000,
        num_val: int = 600,
        num_test: int = 1000,
        image_size: int = 64,
        context_length: int = 24,
        vocab_size: int = 600,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        captions_per_image: int | Literal["all"] = 3,
        crop_scale_min: float = 1.0,
        color_jitter: float = 0.0,
        train_images: int | None = None,
        eval_images: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            cache_dir,
            num_train,
            num_val,
            num_test,
            image_size,
            context_length,
            vocab_size,
            tokenizer,
            batch_size,
            eval_batch_size,
            num_workers,
            captions_per_image,
            crop_scale_min=crop_scale_min,
            color_jitter=color_jitter,
            train_images=train_images,
            eval_images=eval_images,
            seed=seed,
        )
        self.entities = False  # they mark phrases of the captions
        self._asked: dict[str, list[Asked]] = {}  # by file name

    def prepare_data(self) -> None:
        if self._asked:
            return
        super().prepare_data()
        self._asked = ensure_questions(self.locate(), self.settings)
        self._pictures = tuple(_with_questions(picture, self._asked[picture.filename]) for picture in self._pictures)

    def _make_splits(self) -> None:
        super()._make_splits()
        for name, split in self._splits.items():
            asked = self.questions_of(split.pictures)
            answer_C = torch.tensor([ANSWERS.index(one.answer) for one in asked])
            kind_C = torch.tensor([KINDS.index(one.kind) for one in asked])
            self._splits[name] = QuestionSplit(
                split.pictures, split.rows, split.cache, split.texts, split.transform.image_size, answer_C, kind_C
            )

    def questions_of(self, pictures: Sequence[Picture]) -> list[Asked]:
        """In the order of the captions' ids."""
        return [one for picture in pictures for one in self._asked[picture.filename]]

    def questions(self, split: str) -> list[Asked]:
        """All of a split, in the order of the captions' ids."""
        return self.questions_of(self._split(split).pictures)

    def describe(self) -> str:
        return f"{super().describe()}; questions v{VERSION} about them, {len(ANSWERS)} answers"


class QuestionSplit(Split):
    """A split whose captions are questions."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        rows: Sequence[int],
        cache: ImageCache,
        texts: SplitTexts,
        image_size: int,
        answer_C: Tensor,
        kind_C: Tensor,
    ) -> None:
        super().__init__(pictures, rows, cache, texts, image_size)
        self.answer_C, self.kind_C = answer_C, kind_C

    def collate(self, samples: list[Sample]) -> ImageTextBatch:
        batch = super().collate(samples)
        return batch._replace(answer=self.answer_C[batch.caption_id], kind=self.kind_C[batch.caption_id])


def ensure_questions(folder: Path, settings: Settings) -> dict[str, list[Asked]]:
    """The questions of a rendered set, by file name; written into its folder when they are not there yet.

    Raises:
        InputError: the file holds something else.
    """
    path = folder / FILE
    if not path.is_file():
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(_written(settings), separators=(",", ":")), encoding="utf-8")
        os.replace(partial, path)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {name: [Asked(*one) for one in rows] for name, rows in kept.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the questions of a set of scenes ({error}): remove the file, it is written again") from error


def _written(settings: Settings) -> dict[str, list[Asked]]:
    found = {}
    for split, index in settings.pictures():
        questions = make_questions(settings.seed, split, index, sample_scene(settings.seed, split, index))
        found[f"{split}-{index:05d}.jpg"] = [Asked(one.kind, one.text, one.answer) for one in questions]
    return found


def _with_questions(picture: Picture, asked: Sequence[Asked]) -> Picture:
    return picture._replace(captions=tuple(one.question for one in asked), numbers=tuple(range(len(asked))))
