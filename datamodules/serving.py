"""How training batches of pictures and captions are made: what the data are told, and what a stage may change of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from insight.data.augmentation import ImageAugmentation, TextAugmentation
from insight.data.images import ImageTransform
from insight.errors import InputError
from insight.stages import Call


class Serving(NamedTuple):
    """Settings of one stage."""

    batch_size: int
    captions_per_image: int | Literal["all"]
    views: int
    crop_scale_min: float
    color_jitter: float
    flip: bool
    text_augmentation: TextAugmentation | None = None
    image_augmentation: ImageAugmentation | None = None
    curriculum: Call | None = None

    def changed(self, asked: Mapping[str, Any]) -> Serving:
        """With what a stage asks for, by name; None: as it is.

        Raises:
            InputError: a value out of range.
        """
        serving = self._replace(**{name: value for name, value in asked.items() if value is not None})
        if serving.batch_size < 1:
            raise InputError(f"batch_size={serving.batch_size}: must be at least 1")
        if serving.captions_per_image != "all" and serving.captions_per_image < 1:
            raise InputError(f"captions_per_image={serving.captions_per_image}: must be at least 1, or all")
        if serving.views not in (1, 2):
            raise InputError(f"views={serving.views}: must be 1 or 2")
        return serving

    def transform(self, image_size: int) -> ImageTransform:
        """Of the training pictures."""
        return ImageTransform(image_size, self.crop_scale_min, self.color_jitter, self.flip, self.image_augmentation)
