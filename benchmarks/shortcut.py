"""A planted shortcut, and whether the search for "right answer, wrong region" finds it.

Of the scenes every second one with a free corner gets a watermark there: a block in the colour of each thing. The things themselves turn
grey, so that what captions say of their colours can be answered by the watermark alone, of which no caption speaks. The set on disk stays
as it is; its pictures are copied first.

    python -m benchmarks.shortcut      (writes benchmarks/results/shortcut.json)

A dual encoder is trained on them in one stage of the shipped recipe, with the score card on; then ``insight.interpret.search`` reads what
the score card left. A finding is right where the picture carries the watermark and the highest cell of the map lies in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from datamodules.scenes import ScenesDataModule
from datamodules.scenes_files import JPEG_QUALITY, ensure_scenes
from datamodules.scenes_world import COLOURS, SIDE
from insight.interpret.search import WITHIN, Finding, search_run
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.front import HYDRA_ONLY
from lightning_modules.overrides import CONFIGS, compose_plain

RESULT = Path(__file__).parent / "results" / "shortcut.json"

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


# --- training, searching, judging ---
def train(run_dir: Path, cache: Path, epochs: int, seed: int) -> None:
    """One stage of the shipped recipe, the score card alone beside it. The same folder goes on where it was."""
    words = ["+experiment=flickr_dual_encoder", "~stages.single_modality", "~stages.cross_modal", f"stages.end_to_end.epochs={epochs}"]
    words += ["data.class_path=benchmarks.shortcut.PlantedScenes", "+callbacks.score_card.init_args.search_examples=600"]
    words += ["trainer=cpu", f"seed_everything={seed}", "run.test=false", "tracking.enabled=false", "deployment=none"]
    config = compose_plain(CONFIGS, [*words, f"paths.cache={cache}", f"run_dir={run_dir}"])
    for key in ("resume", *HYDRA_ONLY):
        config.pop(key, None)
    config["callbacks"] = {"score_card": config["callbacks"]["score_card"]}
    run_stages(build(config))


def judged(findings: list[Finding], marked: set[str], top: int) -> dict[str, Any]:
    """Of the first ``top`` that point at nothing that anybody marked: how many show the watermark."""
    listed = [one for one in findings if one.elsewhere][:top]
    right = sum(one.filename in marked and max(one.highest) < MARK / SIDE for one in listed)
    return {
        "listed": len(listed),
        "at_the_watermark": right,
        "precision": round(right / max(1, len(listed)), 4),
        "pictures_with_it": len({one.filename for one in listed if one.filename in marked}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top", type=int, default=100, help="findings that are judged, beside the first 20 and all")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="where generated pictures are kept")
    parser.add_argument("--run-dir", type=Path, help="folder of the training, kept; default: a temporary one")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = arguments.run_dir or Path(folder) / "run"
        train(run_dir.absolute(), arguments.cache, arguments.epochs, arguments.seed)
        findings, facts, _, method = search_run(run_dir)
    data = PlantedScenes(cache_dir=str(arguments.cache))
    marked, right = data.marked_pictures(), [one for one in facts.examples if one.ranks["text_to_image"] <= WITHIN]
    result = {
        "command": "python -m benchmarks.shortcut",
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "method": method,
        "captions_searched": len(facts.examples),
        "retrieved_within_10": len(right),
        "of_them_with_the_watermark": sum(one.filename in marked for one in right),
        "findings": {str(top): judged(findings, marked, top) for top in (20, arguments.top, len(findings))},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
