"""A small folder in Flickr30k's formats, written with other means than those that read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPLITS = ["train"] * 8 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 3


def five_captions(index: int) -> list[str]:
    colour = ["red", "green", "blue", "grey"][index % 4]
    return [
        f"A {colour} dog , number {index} , runs on grass .",
        f'The "{colour}" one jumps , and a man watches .',
        f"Dog {index} .",
        f"a {colour} dog and a {colour} ball",
        f"Somebody 's dog , it is {colour} .",
    ]


@pytest.fixture
def captions_of() -> Callable[[int], list[str]]:
    return five_captions


@pytest.fixture
def write_flickr(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder: pictures half red (left) and half of their own shade (right), captions in the wanted files."""

    def write(
        *kinds: str, count: int = 16, images: str = "images", entities: bool = False, name: str = "flickr", raw: Callable[[str], str] = str
    ) -> Path:
        root = tmp_path / name
        folder = root / images
        folder.mkdir(parents=True)
        names = [f"{1000 + index}.jpg" for index in range(count)]
        for index, file in enumerate(names):
            pixels = np.zeros((40, 60, 3), dtype=np.uint8)
            pixels[:, :30, 0] = 255
            pixels[:, 30:] = 16 * index
            Image.fromarray(pixels).save(folder / file, quality=95)
        rows = [(file, number, text) for index, file in enumerate(names) for number, text in enumerate(five_captions(index))]
        if "karpathy" in kinds:
            entries = [
                {"filename": file, "split": SPLITS[index], "sentences": [{"raw": raw(text)} for text in five_captions(index)]}
                for index, file in enumerate(names)
            ]
            (root / "dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": entries}))
        if "token" in kinds:
            (root / "results_20130124.token").write_text("".join(f"{file}#{number}\t{text}\n" for file, number, text in rows))
        if "csv" in kinds:
            lines = [f"{file}| {number}| {text}" for file, number, text in rows]
            lines[4] = lines[4].replace("| 4| ", "| 4   ")  # as in Kaggle's row of 2199200615.jpg
            (root / "results.csv").write_text("image_name| comment_number| comment\n" + "\n".join(lines) + "\n")
        if "captions" in kinds:
            quoted = [text if number == 2 else '"' + text.replace('"', '""') + '"' for _, number, text in rows]
            lines = [f"{file},{text}" for (file, _, _), text in zip(rows, quoted, strict=True)]
            (root / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
        if entities:
            write_entities(root, names)
        return root

    return write


def write_entities(root: Path, names: list[str]) -> None:
    """Chain 7 is the left half of the picture, drawn on an original of twice the size; chain 8 has no box, chain 0 is nothing visible."""
    for kind in ("Annotations", "Sentences"):
        (root / kind).mkdir()
    for index, file in enumerate(names):
        one, two, three, _, five = five_captions(index)
        colour = one.split()[1]
        marked = [
            one.replace(f"A {colour} dog", f"[/EN#7/animals A {colour} dog]").replace("grass", "[/EN#8/scene grass]"),
            two.replace("a man", "[/EN#9/people/other a man]"),
            three,
            f"[/EN#7/animals a {colour} dog] and [/EN#7/other a {colour} ball]",
            five.replace("it is", "[/EN#0/notvisual it] is"),
        ]
        stem = file.removesuffix(".jpg")
        (root / "Sentences" / f"{stem}.txt").write_text("\n".join(marked) + "\n")
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{file}</filename><size><width>120</width><height>80</height><depth>3</depth></size>"
            "<object><name>7</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>60</xmax><ymax>80</ymax></bndbox></object>"
            "<object><name>8</name><scene>1</scene><nobndbox>1</nobndbox></object>"
            "<object><name>9</name><name>10</name><bndbox><xmin>90</xmin><ymin>20</ymin><xmax>120</xmax><ymax>60</ymax></bndbox></object>"
            "</annotation>"
        )
