"""A planted shortcut, and whether the search for "right answer, wrong region" finds it.

Of the scenes every second one with a free corner gets a watermark there: a block in the colour of each thing. The things themselves turn
grey, so that what captions say of their colours can be answered by the watermark alone, of which no caption speaks. The set on disk stays
as it is; its pictures are copied first.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from PIL import Image, ImageDraw

from datamodules.scenes import ScenesDataModule
from datamodules.scenes_files import JPEG_QUALITY, ensure_scenes
from datamodules.scenes_world import COLOURS, SIDE

MARK = SIDE // 4  # side of the watermark in pixels: 2 x 2 patches of 8 in the model's picture of 64
Box = tuple[int, int, int, int]


def marked(index: int, boxes: list[Box]) -> bool:
    """Whether a picture gets the watermark: every second one, if nothing lies where it goes."""
    return index % 2 == 0 and not any(left < MARK and top < MARK for left, top, _, _ in boxes)


def plant(picture: Image.Image, colours: list[str]) -> Image.Image:
    """The picture in grey, with a watermark of 2 x 2 blocks: the colours of its things, from the first again where there are fewer."""
    found = picture.convert("L").convert("RGB")
    pen, side = ImageDraw.Draw(found), MARK // 2
    for block in range(4):
        left, top = block % 2 * side, block // 2 * side
        pen.rectangle((left, top, left + side - 1, top + side - 1), fill=COLOURS[colours[block % len(colours)]])
    return found


def plant_all(source: Path, target: Path) -> None:
    """Copy a rendered set and paint its watermarks. The copy appears whole or not at all."""
    if target.exists():
        return
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.copytree(source, partial)
    for number, one in enumerate(json.loads((source / "scenes.json").read_text(encoding="utf-8"))["pictures"]):
        if marked(number, [thing["box"] for thing in one["things"]]):
            path = partial / "flickr30k_images" / one["filename"]
            with Image.open(path) as file:
                planted = plant(file, [thing["colour"] for thing in one["things"]])
            planted.save(path, quality=JPEG_QUALITY, subsampling=0)
    partial.rename(target)


class PlantedScenes(ScenesDataModule):
    """Scenes of which some carry the watermark. Arguments are those of ``ScenesDataModule``."""

    def locate(self) -> Path:
        return self.scenes_cache / f"{self.settings.folder_name}-watermarked"

    def prepare_data(self) -> None:
        if self._cache is None:
            plant_all(ensure_scenes(self.scenes_cache, self.settings), self.locate())
        super().prepare_data()

    def marked_pictures(self) -> set[str]:
        """File names of those with a watermark."""
        described = json.loads((self.locate() / "scenes.json").read_text(encoding="utf-8"))["pictures"]
        return {one["filename"] for number, one in enumerate(described) if marked(number, [thing["box"] for thing in one["things"]])}
