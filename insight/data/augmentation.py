"""Changes of captions and pictures in training, each a function of the random numbers that it is handed.

H and W pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from insight.errors import InputError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, over 0..1, in RGB
SHORTEST = 4  # letters of a word that may be misspelt
PUNCTUATION = ".,;:!?\"'()"


@dataclasses.dataclass(frozen=True)
class TextAugmentation:
    """Easy data augmentation, https://arxiv.org/abs/1901.11196, section 2, and misspellings. Every number is a word's chance. Captions
    then say less, or say it wrongly: small numbers.

    Args:
        replace: Put a synonym from the table in the word's place.
        misspell: Swap two neighbours inside the word, leave one out, or double one; from four letters on.
        drop: Leave the word out; one word always stays.
        swap: Swap the word with the next.
        synonyms: JSON file of words and their synonyms: ``{"picture": ["photo", "image"]}``.

    Raises:
        InputError: a number outside 0 to 1, or ``replace`` without a table, or the reverse.
    """

    replace: float = 0.0
    misspell: float = 0.0
    drop: float = 0.0
    swap: float = 0.0
    synonyms: str | None = None

    def __post_init__(self) -> None:
        _check_chances("text_augmentation", replace=self.replace, misspell=self.misspell, drop=self.drop, swap=self.swap)
        if bool(self.replace) != (self.synonyms is not None):
            raise InputError("text_augmentation: replace and synonyms (a JSON file of words and their synonyms) need each other")
        if self.synonyms is not None:
            read_synonyms(self.synonyms)

    def __call__(self, text: str, lot: random.Random) -> str:
        """The caption, changed; itself where no lot falls on a word."""
        words = text.split()
        if self.synonyms is not None:
            table = read_synonyms(self.synonyms)
            words = [_replaced(word, table, lot) if lot.random() < self.replace else word for word in words]
        if self.misspell:
            words = [_misspelt(word, lot) if lot.random() < self.misspell else word for word in words]
        if self.drop:
            kept = [word for word in words if lot.random() >= self.drop]
            words = kept or [lot.choice(words)]
        if self.swap:
            for place in range(len(words) - 1):
                if lot.random() < self.swap:
                    words[place], words[place + 1] = words[place + 1], words[place]
        return text if words == text.split() else " ".join(words)


@dataclasses.dataclass(frozen=True)
class ImageAugmentation:
    """Greyscale and blur as in appendix A of https://arxiv.org/abs/2002.05709, random erasing as in algorithm 1 of
    https://arxiv.org/abs/1708.04896. Every number is a picture's chance. Grey pictures make captions about colours wrong; a box may be
    erased.

    Args:
        grey: Take the colours out.
        blur: Gaussian blur, a kernel of a tenth of the side, standard deviation 0.1 to 2 pixels.
        erase: Fill a rectangle of 2 to 33 % of the area with the mean colour.

    Raises:
        InputError: a number outside 0 to 1.
    """

    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        _check_chances("image_augmentation", grey=self.grey, blur=self.blur, erase=self.erase)

    def __call__(self, pixels_3HW: Tensor, lot: random.Random) -> Tensor:
        """(3, H, W) uint8 -> (3, H, W) uint8."""
        if lot.random() < self.grey:
            pixels_3HW = functional.rgb_to_grayscale(pixels_3HW, num_output_channels=3)
        if lot.random() < self.blur:
            size = max(3, round(0.1 * pixels_3HW.shape[-1]) | 1)  # odd
            pixels_3HW = functional.gaussian_blur(pixels_3HW, [size, size], [lot.uniform(0.1, 2.0)])
        if lot.random() < self.erase:
            pixels_3HW = _erased(pixels_3HW, lot)
        return pixels_3HW


@functools.cache
def read_synonyms(path: str) -> dict[str, tuple[str, ...]]:
    """The table of a JSON file, by lower-cased word.

    Raises:
        InputError: no such file, or no table.
    """
    if not Path(path).is_file():
        raise InputError(f"synonyms={path}: no such file")
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"synonyms={path}: not JSON ({error})") from error
    if not isinstance(table, dict) or not all(
        isinstance(others, list) and others and all(isinstance(one, str) and one.strip() for one in others) for others in table.values()
    ):
        raise InputError(f'synonyms={path}: must be like {{"picture": ["photo", "image"]}}')
    return {word.lower(): tuple(others) for word, others in table.items()}


def _check_chances(key: str, **chances: float) -> None:
    for name, chance in chances.items():
        if not 0 <= chance <= 1:
            raise InputError(f"{key}.{name}={chance}: a chance, from 0 to 1")


def _replaced(word: str, table: dict[str, tuple[str, ...]], lot: random.Random) -> str:
    core = word.strip(PUNCTUATION)
    others = table.get(core.lower())
    return word.replace(core, lot.choice(others), 1) if others else word


def _misspelt(word: str, lot: random.Random) -> str:
    if len(word.strip(PUNCTUATION)) < SHORTEST:
        return word
    start = word.index(word.strip(PUNCTUATION))
    place = start + lot.randrange(1, len(word.strip(PUNCTUATION)) - 2)  # first and last letter stay
    kind = lot.randrange(3)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + word[place + 1 :] if kind == 1 else word[:place] + word[place] + word[place:]


def _erased(pixels_3HW: Tensor, lot: random.Random) -> Tensor:
    height, width = pixels_3HW.shape[-2:]
    for _ in range(10):
        area, ratio = height * width * lot.uniform(0.02, 0.33), math.exp(lot.uniform(math.log(0.3), math.log(1 / 0.3)))
        tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tall < height and 0 < wide < width:
            fill = torch.tensor([round(255 * one) for one in MEAN], dtype=pixels_3HW.dtype)[:, None, None]
            return functional.erase(pixels_3HW, lot.randint(0, height - tall), lot.randint(0, width - wide), tall, wide, fill)
    return pixels_3HW
