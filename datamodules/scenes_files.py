"""Write the generated set "scenes" to disk in Flickr30k's own layout, so that it goes through the very same reader.

``dataset_flickr30k.json`` (Karpathy's form), ``flickr30k_images/*.jpg``, ``flickr30k_entities.tar.gz`` (Annotations/*.xml and
Sentences/*.txt), ``hard_negatives.json``, and ``scenes.json``: the settings and what every picture holds.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from datamodules.scenes_captions import Caption, make_captions
from datamodules.scenes_draw import Picture, draw
from datamodules.scenes_negatives import Negative, make_negatives
from datamodules.scenes_world import HELD_OUT, SIDE, VERSION, Scene, picture_random, sample_scene
from insight.errors import InputError

logger = logging.getLogger(__name__)

JPEG_QUALITY = 92
ABANDONED_AFTER = 3600  # seconds after which a half-rendered folder is taken for one whose process was killed


class Settings(NamedTuple):
    """What decides every byte, together with VERSION."""

    seed: int
    train: int
    val: int
    test: int

    @classmethod
    def of(cls, seed: int, num_train: int, num_val: int, num_test: int, train_images: int | None, eval_images: int | None) -> Settings:
        """What a data module of scenes renders: a picture is the same however many there are, so no more than are used.

        Raises:
            InputError: a split without pictures.
        """
        for key, value in (("num_train", num_train), ("num_val", num_val), ("num_test", num_test)):
            if value < 1:
                raise InputError(f"data.init_args.{key}={value}: each split needs at least one picture")
        most = eval_images or num_val + num_test
        return cls(seed, min(num_train, train_images or num_train), min(num_val, most), min(num_test, most))

    def describe(self, what: str) -> str:
        """One line for people, who must not take them for photos. ``what``: is served, e.g. ``captions of ``; empty: the pictures."""
        sizes = f"{self.train} training, {self.val} validation and {self.test} test pictures of coloured shapes"
        return f"generated data (scenes v{VERSION}, seed {self.seed}): {what}{sizes}, not {'of ' if what else ''}photos"

    @property
    def folder_name(self) -> str:
        return f"scenes-v{VERSION}-seed{self.seed}-{self.train}-{self.val}-{self.test}"

    def pictures(self) -> Iterator[tuple[str, int]]:
        """(split, index in the split) of every picture."""
        for split in ("train", "val", "test"):
            for index in range(getattr(self, split)):
                yield split, index


class Example(NamedTuple):
    """One picture with all that is written about it."""

    filename: str
    split: str
    scene: Scene
    picture: Picture
    captions: list[Caption]
    negatives: list[Negative]  # of test pictures


def make_example(seed: int, split: str, index: int) -> Example:
    """A picture by its place alone: the same whatever the sizes of the splits are."""
    scene = sample_scene(seed, split, index)
    picture = draw(scene)
    captions = make_captions(picture_random(seed, split, index, "captions"), scene, picture)
    negatives = make_negatives(picture_random(seed, split, index, "negatives"), scene, picture) if split == "test" else []
    return Example(f"{split}-{index:05d}.jpg", split, scene, picture, captions, negatives)


def ensure_scenes(cache: Path, settings: Settings) -> Path:
    """The folder of the set; rendered when it is not there yet. It appears whole or not at all.

    Raises:
        InputError: a folder of that name holds something else.
    """
    final = cache / settings.folder_name
    if final.exists():
        _check(final, settings)
        return final
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache, settings)
    partial = cache / f"{settings.folder_name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    started = time.perf_counter()
    try:
        _write(partial, settings)
        try:
            partial.rename(final)
        except OSError:
            if not final.exists():
                raise
            _check(final, settings)  # another process was faster: theirs is the same
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("rendered %d pictures into %s in %.0f s", sum(settings[1:]), final, time.perf_counter() - started)
    return final


def _check(folder: Path, settings: Settings) -> None:
    path = folder / "scenes.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a set of scenes ({error}): remove the folder {folder}, it is rendered again") from error
    if found != _settings_record(settings):
        raise InputError(f"{path}: settings {found} are not those of its folder's name: remove the folder {folder}, it is rendered again")


def _settings_record(settings: Settings) -> dict[str, int]:
    return {"version": VERSION, **settings._asdict()}


def _remove_abandoned(cache: Path, settings: Settings) -> None:
    for folder in cache.glob(f"{settings.folder_name}.partial-*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            logger.info("removing %s, which a killed process left", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, settings: Settings) -> None:
    images = folder / "flickr30k_images"
    images.mkdir(parents=True)
    karpathy: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    negatives: list[dict[str, Any]] = []
    with _archive(folder / "flickr30k_entities.tar.gz") as archive:
        for number, (split, index) in enumerate(_watched(settings)):
            example = make_example(settings.seed, split, index)
            Image.fromarray(example.picture.pixels).save(images / example.filename, quality=JPEG_QUALITY, subsampling=0)
            sentences, annotation = entities(example, first_chain=100 * (number + 1))
            stem = Path(example.filename).stem
            _add(archive, f"Annotations/{stem}.xml", annotation)
            _add(archive, f"Sentences/{stem}.txt", sentences)
            karpathy.append(_karpathy(example, number))
            described.append(_describe(example))
            negatives += [{"filename": example.filename, **negative._asdict()} for negative in example.negatives]
    _dump(folder / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": karpathy})
    _dump(folder / "hard_negatives.json", negatives)
    held_out = sorted(HELD_OUT)
    _dump(folder / "scenes.json", {"settings": _settings_record(settings), "held_out": held_out, "pictures": described})


def _watched(settings: Settings) -> Iterator[tuple[str, int]]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(list(settings.pictures()), description=f"rendering the generated set {settings.folder_name}")


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar.gz without a time stamp, so that equal content is equal bytes."""
    with open(path, "wb") as file, gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            yield archive


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _karpathy(example: Example, number: int) -> dict[str, Any]:
    sentids = [number * len(example.captions) + row for row in range(len(example.captions))]
    sentences = [
        {"raw": caption.text, "tokens": re.findall(r"\w+", caption.text.lower()), "imgid": number, "sentid": sentid}
        for sentid, caption in zip(sentids, example.captions, strict=True)
    ]
    return {"filename": example.filename, "imgid": number, "split": example.split, "sentids": sentids, "sentences": sentences}


def _describe(example: Example) -> dict[str, Any]:
    things = [
        {"size": thing.size, "texture": thing.texture, "colour": thing.colour, "shape": thing.shape, "box": box, "seen": thing.seen}
        for thing, box in zip(example.scene.things, example.picture.boxes, strict=True)
    ]
    background = f"{example.scene.background.kind} {example.scene.background.colour}"
    return {"filename": example.filename, "split": example.split, "seen": example.scene.seen, "background": background, "things": things}


def entities(example: Example, first_chain: int) -> tuple[str, str]:
    """The picture's Sentences and Annotations file. One chain per thing or group of things that a phrase means, one for the background.

    Box edges are written as distances from the picture's left and top edge, 0 to SIDE.
    """
    groups = sorted({phrase.members for caption in example.captions for phrase in caption.phrases if phrase.members}, key=sorted)
    chains = {members: first_chain + 1 + row for row, members in enumerate(groups)}
    sentences = "".join(_marked(caption, chains, first_chain) + "\n" for caption in example.captions)
    rows = ["<annotation>", f"<filename>{example.filename}</filename>"]
    rows.append(f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>")
    for thing, box in enumerate(example.picture.boxes):
        names = "".join(f"<name>{chain}</name>" for members, chain in chains.items() if thing in members)
        if names:
            edges = "".join(f"<{edge}>{at}</{edge}>" for edge, at in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            rows.append(f"<object>{names}<bndbox>{edges}</bndbox></object>")
    rows += [f"<object><name>{first_chain}</name><scene>1</scene><nobox>1</nobox></object>", "</annotation>"]
    return sentences, "\n".join(rows) + "\n"


def _marked(caption: Caption, chains: dict[frozenset[int], int], scene_chain: int) -> str:
    text, end = "", 0
    for phrase in caption.phrases:
        chain = {"notvisual": 0, "scene": scene_chain}.get(phrase.kind) if not phrase.members else chains[phrase.members]
        text += _spaced(caption.text[end : phrase.start]) + f"[/EN#{chain}/{phrase.kind} {caption.text[phrase.start : phrase.end]}]"
        end = phrase.end
    return text + _spaced(caption.text[end:])


def _spaced(text: str) -> str:
    """Entities sets a space before a comma and a full stop."""
    return text.replace(",", " ,").replace(".", " .")
