"""A planted shortcut, and whether the search for "right answer, wrong region" finds it.

Of the scenes every second one with a free corner gets a watermark there: a block in the colour of each thing. The things themselves turn
grey, so that what captions say of their colours can be answered by the watermark alone, of which no caption speaks. The set on disk stays
as it is; its pictures are copied first.

    python -m benchmarks.shortcut      (writes benchmarks/results/shortcut.json)

A dual encoder is trained on them in one stage of the shipped recipe, with the score card on; then ``insight.interpret.search`` reads what
the score card left. A finding is right where the picture carries the watermark and the highest cell of the map lies in it.
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


# --- training and searching ---
def train(run_dir: Path, cache: Path, epochs: int, seed: int, overrides: list[str]) -> None:
    words = ["+experiment=flickr_dual_encoder", "~stages.single_modality", "~stages.cross_modal", f"stages.end_to_end.epochs={epochs}"]
    words += ["data.class_path=benchmarks.shortcut.PlantedScenes", "+callbacks.score_card.init_args.search_examples=600"]
    words += ["trainer=cpu", f"seed_everything={seed}", "run.test=false", "tracking.enabled=false", "deployment=none"]
    words += [f"paths.cache={cache}", f"run_dir={run_dir}", *overrides]
    config = compose_plain(CONFIGS, words)
    for key in ("resume", *HYDRA_ONLY):
        config.pop(key, None)
    config["callbacks"] = {"score_card": config["callbacks"]["score_card"]}
    run_stages(build(config))


if __name__ == "__main__":
    import sys

    from lightning_modules.drive import run_stages
    from lightning_modules.engine_cli import build
    from lightning_modules.front import HYDRA_ONLY
    from lightning_modules.overrides import CONFIGS, compose_plain

    train(Path(sys.argv[1]), Path("/tmp/exp/cache"), int(sys.argv[2]), 0, sys.argv[3:])
