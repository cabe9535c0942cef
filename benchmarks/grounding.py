"""Do explanations point at what people marked? Every method on one trained model, beside baselines that need no model.

python -m benchmarks.grounding --run RUN_FOLDER [--root FLICKR30K]      (writes benchmarks/results/grounding.json)

``phrases``: pointing game and energy inside the boxes of each marked phrase of the test split (one caption of each picture, the one with
most marked phrases), protocol v1 of ``insight/interpret/localisation.py``, each with its 95 % bootstrap interval over pictures. A method
that says what each word has to do with each patch is asked once for the caption; any other for the phrase alone. Beside each stand its
differences from three maps that know no model, phrase by phrase, with their intervals: the middle half of the picture, its largest segment
(neighbouring patches of like colour), and an even map.

``words``: word -> region. Each word of a marked phrase (without articles) points within its whole caption: how many words point at the
phrase's boxes, how many at another object's. Methods without a map for each word use the caption's map for all of its words: what a first
order explanation can say. ``reachable`` is the part of the words whose box holds the centre of a patch at all.

Rows are FAMILY/METHOD: of a model with fusion layers both the towers' logit (dual encoder) and the matching head (cross-attention) are
explained. What a family lacks is under ``left_out`` with the reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from insight.bootstrap import mean_interval
from insight.data.batch import Box
from insight.errors import InputError
from insight.interpret.capture import shown_pictures
from insight.interpret.families import CrossAttention, DualEncoder
from insight.interpret.family import Family
from insight.interpret.localisation import PROTOCOL, PhraseScores, centre_map, centres_inside, largest_segment_map, phrase_scores
from insight.interpret.methods import METHODS
from insight.interpret.probe import Probe, make_probe
from insight.interpret.scorecard import ALONE, Looked, explained, look
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.stages import Call
from lightning_modules.engine_cli import build
from lightning_modules.results import load_weights

RESULT = Path(__file__).parent / "results" / "grounding.json"
ARTICLES = ("a", "an", "the")
LIKE = 0.12  # of colours in 0..1: neighbouring patches whose mean colours are so near (Euclidean) belong to one segment
Means = dict[str, dict[str, float] | None]


# --- baselines ---
def middle_map(grid: int) -> np.ndarray:
    """(g, g): even in the middle half of either side, a little higher in the very middle; nothing elsewhere."""
    inside_gg = centres_inside([(0.25, 0.25, 0.75, 0.75)], grid)
    return inside_gg * (1 + 1e-3 * (1 + centre_map(grid)))


def colour_segments(picture_HW3: np.ndarray, grid: int, like: float = LIKE) -> np.ndarray:
    """Labels (g * g,) of regions in which every patch has a neighbour of like mean colour. ``picture_HW3``: uint8."""
    height, width = (side // grid * grid for side in picture_HW3.shape[:2])
    patches = picture_HW3[:height, :width].reshape(grid, height // grid, grid, width // grid, 3) / 255
    colour_gg3 = patches.mean(axis=(1, 3))
    label_gg = np.full((grid, grid), -1)
    for start in np.ndindex(grid, grid):
        if label_gg[start] >= 0:
            continue
        label, waiting = label_gg.max() + 1, [start]
        label_gg[start] = label
        while waiting:
            row, column = waiting.pop()
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                free = min(near) >= 0 and max(near) < grid and label_gg[near] < 0
                if free and np.linalg.norm(colour_gg3[near] - colour_gg3[row, column]) <= like:
                    label_gg[near] = label
                    waiting.append(near)
    return label_gg.flatten()


def baseline_maps(probe: Probe, grid: int) -> dict[str, np.ndarray]:
    """By name, a map for each phrase (P, g, g)."""
    pictures = shown_pictures(probe.batch.image).cpu().numpy()
    largest = []
    for picture in pictures:
        map_gg = largest_segment_map(colour_segments(picture, grid), grid)
        largest.append((map_gg == map_gg.max()).astype(float))
    rows_P, phrases = probe.pictures.tolist(), len(probe.phrases)
    return {
        "middle": np.stack([middle_map(grid)] * phrases),
        "largest_segment": np.stack([largest[row] for row in rows_P]),
        "even": np.ones((phrases, grid, grid)),
    }


# --- statistics ---
def interval(values_Q: np.ndarray, group_Q: Tensor) -> dict[str, float] | None:
    """Mean and 95 % interval, groups drawn together; values that are NaN take no part. None: there is no value."""
    known = ~np.isnan(values_Q)
    if not known.any():
        return None
    found = mean_interval(torch.from_numpy(values_Q[known]), group_Q[torch.from_numpy(known)])
    return {name: round(value, 4) for name, value in found._asdict().items()}


def judged(scores: PhraseScores, picture_P: Tensor) -> Means:
    names = ("pointing_game", "energy_in_box", "other_object_rate", "specificity")
    return {f"{name}_{PROTOCOL}": interval(values, picture_P) for name, values in zip(names, scores, strict=True)}


def beyond(scores: PhraseScores, baseline: PhraseScores, picture_P: Tensor) -> Means:
    """Differences phrase by phrase: above zero, the method is better than the baseline."""
    return {
        f"pointing_game_{PROTOCOL}": interval(scores.pointing - baseline.pointing, picture_P),
        f"energy_in_box_{PROTOCOL}": interval(scores.energy - baseline.energy, picture_P),
    }


# --- words ---
class Word(NamedTuple):
    """One word of a marked phrase."""

    text: str
    caption: int  # row of the probe
    columns: tuple[int, ...]  # of its tokens
    boxes: tuple[Box, ...]
    others: tuple[Box, ...]


def marked_words(probe: Probe) -> list[Word]:
    """Of every phrase, without articles and signs; only those whose tokens the context holds."""
    found, length = [], probe.batch.tokens.shape[1]
    for phrase, others in zip(probe.phrases, probe.others, strict=True):
        for word in probe.words[phrase.caption]:
            columns = tuple(column for column in word.positions if column < length)
            inside = phrase.start <= word.start and word.end <= phrase.end
            if inside and columns and word.text.isalnum() and word.text.lower() not in ARTICLES:
                found.append(Word(word.text, phrase.caption, columns, phrase.boxes, others))
    return found


def word_scores(looked: Looked, words: Sequence[Word]) -> PhraseScores | None:
    """By the map of each word where the method has one, else by the caption's; None: it says nothing of patches."""
    explanation = looked.explanation
    if explanation.pairs is not None:
        maps = [explanation.pairs[word.caption, list(word.columns)].sum(dim=0) for word in words]
    elif explanation.image is not None:
        maps = [explanation.image[word.caption] for word in words]
    else:
        return None
    return phrase_scores(torch.stack(maps).cpu().numpy(), [word.boxes for word in words], [word.others for word in words])


def judged_words(scores: PhraseScores, words: Sequence[Word], probe: Probe, query: str) -> dict[str, Any]:
    picture_W = probe.batch.caption_row[[word.caption for word in words]]
    return {"query": query, "right": interval(scores.pointing, picture_W), "other": interval(scores.other, picture_W)}


# --- the run ---
def looked_at(family: Family, probe: Probe, method: Call) -> tuple[Looked, bool]:
    """``look``, and whether the captions were explained: where they are too long for the method, the phrases alone are."""
    try:
        return look(family, probe, method), True
    except InputError:
        assert probe.alone is not None, "there are phrases"
        alone = explained(family, probe.alone, method)
        if alone.image is None or alone.pairs is not None:
            raise
        return Looked(alone, alone.image, ALONE), False


def measure(families: Sequence[Family], probe: Probe, methods: Sequence[str], say: Callable[[str], object] = print) -> dict[str, Any]:
    """Every method on every family."""
    picture_P, words = probe.pictures, marked_words(probe)
    own, grid = [phrase.boxes for phrase in probe.phrases], families[0].grid
    assert grid is not None, "these families read pictures"
    baselines = {name: phrase_scores(maps, own, probe.others) for name, maps in baseline_maps(probe, grid).items()}
    phrases: dict[str, Any] = {name: judged(scores, picture_P) for name, scores in baselines.items()}
    by_word: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for family in families:
        for name in methods:
            title, started = f"{family.name}/{name}", time.perf_counter()
            try:
                looked, whole = looked_at(family, probe, METHODS[name])
            except InputError as error:
                left_out[title] = str(error)
                continue
            if looked.phrases_Pgg is None:
                left_out[title] = "says nothing of patches"
                continue
            scores = phrase_scores(looked.phrases_Pgg.cpu().numpy(), own, probe.others)
            differences = {f"minus_{other}": beyond(scores, baseline, picture_P) for other, baseline in baselines.items()}
            phrases[title] = {"query": looked.query, **judged(scores, picture_P), **differences}
            if whole:
                found = word_scores(looked, words) if words else None
                if found is not None:
                    query = "each word" if looked.explanation.pairs is not None else "the caption for every word"
                    by_word[title] = judged_words(found, words, probe, query)
            say(f"  {title}: {line_of(phrases[title])}  {time.perf_counter() - started:.0f} s")
    reachable = [bool(centres_inside(word.boxes, grid).any()) for word in words]
    facts = {"count": len(words), "reachable": round(float(np.mean(reachable)), 4) if words else math.nan}
    return {"phrases": phrases, "words": {**facts, "methods": by_word}, "left_out": left_out}


def line_of(found: dict[str, Any]) -> str:
    parts = []
    for score in ("pointing_game", "energy_in_box"):
        one = found[f"{score}_{PROTOCOL}"]
        parts.append(f"{score} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
        for name in ("middle", "largest_segment"):
            if f"minus_{name}" in found:
                difference = found[f"minus_{name}"][f"{score}_{PROTOCOL}"]
                parts.append(f"- {name} {difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")
    return "  ".join(parts)


def opened(run: Path, root: Path | None, cache: Path | None) -> tuple[Any, Any, dict[str, float]]:
    """The run's model with the best weights of its last finished stage, its data module, and that stage's figures.

    Raises:
        InputError: no finished stage, or weights of another architecture.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    arguments = config["data"]["init_args"]
    if root is not None:
        if "root" not in arguments:
            raise InputError(f"--root {root}: the data of {run} are {config['data']['class_path']}, which render their own pictures")
        arguments["root"] = str(root)
    if cache is not None:
        arguments["cache_dir"] = str(cache)
    done = json.loads((run / "stages.json").read_text(encoding="utf-8"))["done"] if (run / "stages.json").is_file() else []
    if not done:
        raise InputError(f"{run}: no stage is finished")
    cli = build({**config, "run_dir": None, "callbacks": {}})
    cli.datamodule.prepare_data()
    load_weights(cli.model, run / done[-1]["best"], cli.datamodule)
    return cli.model.model.eval(), cli.datamodule, done[-1]["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with at least one finished stage")
    parser.add_argument("--root", type=Path, help="folder of Flickr30k, if it lies elsewhere than when the run was trained")
    parser.add_argument("--cache", type=Path, help="folder of decoded pictures; by default the run's")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--pictures", type=int, default=200, help="of the split, those with marked phrases first")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD", help="by default all")
    parser.add_argument("--output", type=Path, default=RESULT, help="file that is written; results of other data in it stay")
    options = parser.parse_args()
    try:
        model, data, metrics = opened(options.run, options.root, options.cache)
        probe = make_probe(data.probe(options.split, options.pictures, seed=0), data.tokenizer, data.context_length)
        if not probe.phrases:
            raise InputError("no phrase of these data is marked with a box: Flickr30k Entities must lie beside the pictures")
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    families: list[Family] = [DualEncoder(model)]
    if isinstance(model, CrossAttentionMultiModalTransformer):
        families.append(CrossAttention(model))
    print(data.describe())
    print(f"{len(probe)} captions of the {options.split} split, {len(probe.phrases)} phrases ({probe.cut} cut off by the context)")
    found = measure(families, probe, options.methods, functools.partial(print, flush=True))
    facts = {
        "generated": data.generated,
        "model": type(model).__name__,
        "recall": {name: round(value, 4) for name, value in metrics.items() if name.endswith("_recall_at_10")},
        "split": options.split,
        "captions": len(probe),
        "phrases_with_boxes": len(probe.phrases),
        "cut_off": probe.cut,
        "protocol": PROTOCOL,
    }
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    kept[data.title] = {**facts, **found}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    words = found["words"]
    print(f"{words['count']} words, {words['reachable']:.3f} of them with a box that the centre of a patch lies in")
    for title, one in words["methods"].items():
        other = "none" if one["other"] is None else f"{one['other']['value']:.3f}"
        print(f"  {title} ({one['query']}): right {one['right']['value']:.3f}, other {other}")
    for title, reason in found["left_out"].items():
        print(f"  left out: {title}: {reason}")
    print(f"results: {options.output}")


if __name__ == "__main__":
    main()
