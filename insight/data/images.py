"""Pictures from file to tensor: one way for training and for serving.

A picture file is opened (``open_image``), squashed to a square of ``working_size`` (``working_image``; this is what the cache holds),
and then resized to the model's ``image_size`` (evaluation) or cropped at random and resized (training). Nothing of the picture is cut
off in evaluation, so that a box given in fractions of the picture stays true.
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from insight.data.augmentation import MEAN, ImageAugmentation
from insight.data.batch import Box
from insight.errors import InputError

STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 64_000_000  # beyond it a file is a mistake or an attack; Flickr30k's pictures have about 190,000
WORKING_MARGIN = 1.25  # training crops from a picture this much larger than the model's
PREPROCESSING_VERSION = 1  # of open_image + working_image: part of the cache's key
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)  # Pillow's ways to say "broken"
SMALLEST_VISIBLE = 0.25  # a box of which a crop leaves less than this part is dropped


def open_image(path: str | Path) -> Image.Image:
    """A picture file as 8-bit RGB, turned upright by its EXIF tag, transparency laid on white.

    Reads greyscale, palette, CMYK and 16-bit pictures.

    Raises:
        InputError: missing, no picture, truncated, larger than ``MAX_PIXELS``, or of a kind that has no RGB form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such picture file: restore it, or take it out of the annotation")
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {file.width} x {file.height} is more than {MAX_PIXELS:,} pixels (a decompression bomb?): shrink or remove it"
                )
            return _to_rgb(ImageOps.exif_transpose(file))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: more than {MAX_PIXELS:,} pixels (a decompression bomb?): shrink or remove it") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: not a picture, whatever its name says: replace or remove it") from error
    except InputError:
        raise
    except UNDECODABLE as error:
        raise InputError(f"{path}: the picture cannot be decoded ({error}): download it again or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels: save it with 8 or 16 bits")
        image = Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def working_size(image_size: int) -> int:
    """Side of the square that pictures are kept at."""
    return math.ceil(image_size * WORKING_MARGIN)


def working_image(image: Image.Image, image_size: int) -> Tensor:
    """The whole picture squashed to a square -> (3, S, S) uint8, S = ``working_size(image_size)``."""
    side = working_size(image_size)
    squashed = functional.resize(image, [side, side], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return functional.pil_to_tensor(squashed)


def normalise(image: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 as the model reads it."""
    return functional.normalize(image.float() / 255, list(MEAN), list(STD), inplace=True)


def denormalise(image: Tensor) -> Tensor:
    """What the model reads, (..., 3, H, W) -> 0..1, for drawing."""
    mean = torch.tensor(MEAN, dtype=image.dtype, device=image.device).view(3, 1, 1)
    std = torch.tensor(STD, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * std + mean).clamp(0, 1)


class Crop(NamedTuple):
    """The part of a picture that the model sees, in pixels of the working image, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    side: int  # of the working image
    mirrored: bool = False

    def box(self, box: Box) -> Box | None:
        """A box in fractions of the whole picture -> in fractions of the part; None when too little of it is left."""
        x1, y1, x2, y2 = box
        left, top, width, height = (value / self.side for value in (self.left, self.top, self.width, self.height))
        seen_x1, seen_x2 = max(x1, left), min(x2, left + width)
        seen_y1, seen_y2 = max(y1, top), min(y2, top + height)
        area = max(0.0, seen_x2 - seen_x1) * max(0.0, seen_y2 - seen_y1)
        if area <= 0 or area < SMALLEST_VISIBLE * (x2 - x1) * (y2 - y1):
            return None
        new_x1, new_x2 = (seen_x1 - left) / width, (seen_x2 - left) / width
        if self.mirrored:
            new_x1, new_x2 = 1 - new_x2, 1 - new_x1
        return (new_x1, (seen_y1 - top) / height, new_x2, (seen_y2 - top) / height)


class ImageTransform:
    """From the working image to what the model reads.

    Args:
        image_size: Side of the model's picture.
        crop_scale_min: Smallest area of a random crop, as a fraction of the picture; 1 = no crop.
        color_jitter: Strength: brightness, contrast and saturation change by up to 0.4 of it. Hue stays: captions name colours.
        flip: Mirror half of the pictures. Off by default, as captions speak of left and right.
        more: Further changes of the pixels, after all others.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        image_size: int,
        crop_scale_min: float = 1.0,
        color_jitter: float = 0.0,
        flip: bool = False,
        more: ImageAugmentation | None = None,
    ) -> None:
        if image_size < 1:
            raise InputError(f"image_size={image_size}: must be at least 1")
        if not 0 < crop_scale_min <= 1:
            raise InputError(f"crop_scale_min={crop_scale_min}: must be above 0 and at most 1")
        if not 0 <= color_jitter <= 2:
            raise InputError(f"color_jitter={color_jitter}: must be between 0 (none) and 2")
        self.image_size = image_size
        self.crop_scale_min = crop_scale_min
        self.color_jitter = color_jitter
        self.flip = flip
        self.more = more

    def open(self, path: str | Path) -> Tensor:
        """A file -> what the model reads, (3, H, W) float32: the same numbers as by way of the cache."""
        return self.evaluate(working_image(open_image(path), self.image_size))

    def prepare(self, image: Image.Image) -> Tensor:
        """The same for an opened picture of any mode.

        Raises:
            InputError: the picture has no RGB form, or cannot be decoded.
        """
        try:
            return self.evaluate(working_image(_to_rgb(ImageOps.exif_transpose(image)), self.image_size))
        except UNDECODABLE as error:
            raise InputError(f"the picture cannot be decoded ({error}): send it again") from error

    def evaluate(self, image: Tensor) -> Tensor:
        """Working images (..., 3, S, S) uint8 -> (..., 3, H, W) float32: the whole picture."""
        return normalise(self.resize(image))

    def resize(self, image: Tensor) -> Tensor:
        """(..., 3, h, w) uint8 -> (..., 3, H, W) uint8."""
        size = [self.image_size, self.image_size]
        return functional.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)

    def augment(self, image: Tensor, lot: random.Random) -> tuple[Tensor, Crop]:
        """Working image (3, S, S) uint8 -> a random crop of it as (3, H, W) uint8, and the crop. All chance comes from ``lot``.

        What comes out is for ``normalise``, which costs less for a whole batch.
        """
        crop = self.draw_crop(image.shape[-1], lot)
        pixels = self.resize(image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])
        if crop.mirrored:
            pixels = functional.horizontal_flip(pixels)
        if self.color_jitter:
            pixels = self._jitter(pixels, lot)
        if self.more is not None:
            pixels = self.more(pixels, lot)
        return pixels, crop

    def draw_crop(self, side: int, lot: random.Random) -> Crop:
        """RandomResizedCrop: area in (crop_scale_min, 1), aspect ratio in (3/4, 4/3); the whole picture when ten draws don't fit."""
        mirrored = self.flip and lot.random() < 0.5
        if self.crop_scale_min < 1:
            for _ in range(10):
                area = side * side * lot.uniform(self.crop_scale_min, 1)
                ratio = math.exp(lot.uniform(math.log(3 / 4), math.log(4 / 3)))
                width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if 0 < width <= side and 0 < height <= side:
                    return Crop(lot.randint(0, side - width), lot.randint(0, side - height), width, height, side, mirrored)
        return Crop(0, 0, side, side, side, mirrored)

    def _jitter(self, pixels: Tensor, lot: random.Random) -> Tensor:
        strength = 0.4 * self.color_jitter
        changes = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
        factors = [lot.uniform(max(0.0, 1 - strength), 1 + strength) for _ in changes]
        pixels = pixels.float() / 255  # torchvision's contrast floors whole numbers, which takes milliseconds with two threads
        for index in lot.sample(range(3), 3):
            pixels = changes[index](pixels, factors[index])
        return (pixels * 255 + 0.5).to(torch.uint8)
