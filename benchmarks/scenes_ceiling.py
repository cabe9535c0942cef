"""What a perfect reader of the captions could reach on the generated set: many captions are true of several pictures.

    python -m benchmarks.scenes_ceiling

Reads every test caption (`datamodules.scenes_reader`), asks of every test picture whether it is true of it, and writes
benchmarks/results/scenes_ceiling.json. The reader takes captions at their word; it does not guess what their writers left out.

Text to image: a caption that is true of n pictures finds its own at rank k with probability min(k, n) / n.
Image to text: among the captions that are true of a picture the reader puts those first that are true of the fewest pictures;
the chance that the first k hold one of the picture's own is counted under ties broken by lot.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.progress import track

from datamodules.scenes_files import make_example
from datamodules.scenes_reader import is_true, read

RESULTS = Path(__file__).parent / "results" / "scenes_ceiling.json"


def fits(seed: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """``(captions, pictures)`` bool: the caption is true of the picture; and each caption's own picture."""
    examples = [make_example(seed, "test", index) for index in track(range(pictures), "drawing")]
    captions = [(row, read(caption)) for row, example in enumerate(examples) for caption in example.captions]
    true = [[is_true(reading, example.scene, example.picture) for example in examples] for _, reading in track(captions, "reading")]
    return np.array(true), np.array([row for row, _ in captions])


def text_to_image(true_CB: np.ndarray, k: int) -> float:
    """Expected recall at k of captions whose pictures are ranked true ones first, by lot among them."""
    count_C = true_CB.sum(axis=1)
    return float((np.minimum(k, count_C) / count_C).mean())


def image_to_text(true_CB: np.ndarray, own_C: np.ndarray, k: int) -> float:
    """Expected recall at k of pictures whose true captions are ranked by how few pictures they are true of, by lot among equals."""
    count_C = true_CB.sum(axis=1)
    found = []
    for picture in range(true_CB.shape[1]):
        left, missed = k, 1.0
        rows = np.flatnonzero(true_CB[:, picture])
        for count in np.unique(count_C[rows]):
            equal = rows[count_C[rows] == count]
            own, drawn = int((own_C[equal] == picture).sum()), min(left, len(equal))
            for turn in range(drawn):  # no own caption among `drawn` of them, without repetition
                missed *= max(0, len(equal) - own - turn) / (len(equal) - turn)
            left -= drawn
            if not left:
                break
        found.append(1 - missed)
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="first pictures of the test split")
    parser.add_argument("--seed", type=int, default=0, help="of the generated set")
    arguments = parser.parse_args()
    true_CB, own_C = fits(arguments.seed, arguments.pictures)
    report: dict = {"command": f"python -m benchmarks.scenes_ceiling --pictures {arguments.pictures} --seed {arguments.seed}"}
    for k in (1, 5, 10):
        report[f"image_to_text_recall_at_{k}"] = round(image_to_text(true_CB, own_C, k), 4)
        report[f"text_to_image_recall_at_{k}"] = round(text_to_image(true_CB, k), 4)
    report["median_pictures_of_a_caption"] = float(np.median(true_CB.sum(axis=1)))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
