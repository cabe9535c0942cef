"""ScoreCard: how far each method of explanation can be trusted, for the same few validation pairs, tracked like a loss."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks.watcher import Watcher, draw_aside, give_to_loggers
from insight.data.batch import ImageTextBatch
from insight.errors import InputError
from insight.interpret.checks import FILE, check_trust, mark_stage, newest_checks, save_checks
from insight.interpret.faithfulness import PROTOCOL
from insight.interpret.maps import MapFacts, save_maps, write_atomically
from insight.interpret.probe import Probe, make_probe
from insight.interpret.ranking import pair_ranks
from insight.interpret.scorecard import STEPS, Scored, ScoredMethod, cadence, check_methods, family_for, record, score
from insight.interpret.search import VALIDATION, with_ranks
from insight.interpret.tables import FOLDER, write_table

log = logging.getLogger(__name__)

CADENCE = "score_card.json"  # in the run's folder
PICTURES_AT_ONCE = 100
KEPT_PICTURES = 20  # of maps, beside a stage's first; the arrays of all validations are kept


class ScoreCard(Watcher):
    """Scores methods of explanation and leaves the figures as ``insight/<method>/<score>``, and maps and tables in ``STAGE/score_card``.

    In validations: pointing game, energy, other-object rate and specificity where the data mark phrases, deletion and insertion, cost. How
    often is measured once, in the run's first validation, so that scoring takes at most a fifth of validation time; the number is kept in
    ``RUN/score_card.json`` and in the tag ``insight.every_n_validations``, and later stages and resumed runs keep to it.
    Once per stage, at its end: the score card of the last weights, the randomisation check, infidelity and sensitivity
    (``checks.json``), and the maps of many validation pairs with their ranks for the search of right answers with a wrong region.

    Nothing of the training changes: no random number is drawn, weights and gradients stay. Rank zero only; not in the sanity check; only
    within ``fit``. If something fails, the validation's checkpoint is saved first; the error is raised at the next training step or at the
    end.

    Args:
        methods: By the name under which they are recorded.
        num_examples: Validation pairs, a picture and one caption each.
        every_n_validations: Score in the first and then in every n-th validation of a stage; null = measure.
        steps: Points of the curves of deletion and insertion.
        search_method: One of ``methods``, whose maps the search reads; null = the first.
        search_examples: Validation pairs for the search; 0 = no search.
        seed: Chooses the pairs, and the lots of the checks.
        directory: Where to write outside of a stage.

    Raises:
        InputError: no method, one that is unknown or that the model lacks, an unknown setting, a number out of range, no folder to write
            to, a data module without ``probe``.
    """

    name = "score_card"

    def __init__(
        self,
        methods: dict[str, ScoredMethod],
        num_examples: int = 8,
        every_n_validations: int | None = None,
        steps: int = STEPS,
        search_method: str | None = None,
        search_examples: int = 150,
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        super().__init__(num_examples, seed, directory)
        self.check_positive(steps=steps, every_n_validations=1 if every_n_validations is None else every_n_validations)
        if search_examples < 0:
            raise InputError(f"score_card.init_args.search_examples={search_examples}: must be 0 (no search) or more")
        if search_method is not None and search_method not in methods:
            raise InputError(f"score_card.init_args.search_method={search_method}: must be one of the methods, {', '.join(methods)}")
        self.methods, self.steps = methods, steps
        self.every_n_validations = every_n_validations  # None until it was measured
        self.search_method, self.search_examples = search_method or next(iter(methods), ""), search_examples
        self.scoring_seconds: list[float] = []  # of each validation of this fit that was scored
        self._epoch = 0  # of the last validation, from 1
        self._scored_at = -1  # optimiser steps
        self._probe: Probe | None = None
        self._folder = self._run_dir = Path()

    # --- what is kept for a resume ---
    def state_dict(self) -> dict[str, Any]:
        own = {"every_n_validations": self.every_n_validations, "epoch": self._epoch, "scored_at": self._scored_at}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.every_n_validations = state_dict["every_n_validations"]
        self._epoch, self._scored_at = state_dict["epoch"], state_dict["scored_at"]

    # --- a watcher's parts ---
    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_methods(self.methods, pl_module.model, "score_card.init_args.methods")  # type: ignore[arg-type]

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: ImageTextBatch, folder: Path) -> None:
        self._probe, self._folder = self._made(trainer, batch), folder
        self._run_dir = folder.parent if getattr(pl_module, "stage_dir", None) else folder
        self.scoring_seconds = []
        self._score(pl_module, self._made(trainer, _first(batch)))  # a method that this model lacks is found now; kernels get warm
        if self.every_n_validations is None and self._cadence_file.exists():
            self.every_n_validations = json.loads(self._cadence_file.read_text(encoding="utf-8"))["every_n_validations"]
        self._tag(trainer)

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every, self._epoch = self.every_n_validations, trainer.current_epoch + 1
        if every is not None and (self._validations - 1) % every:
            return
        assert self._probe is not None, "begin() made it"
        validating, started = self.validation_seconds(), time.perf_counter()
        figures = self._save(trainer, pl_module, self._score(pl_module, self._probe))
        seconds = time.perf_counter() - started
        self.scoring_seconds.append(seconds)
        if every is None:
            every = self._choose(trainer, seconds, validating)
        pl_module.log_dict({**figures, "insight/score_card_fraction": seconds / every / validating}, rank_zero_only=True)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None, "begin() made it"
        figures: dict[str, float] = {}
        if self._scored_at != trainer.global_step:
            figures |= self._save(trainer, pl_module, self._score(pl_module, self._probe))
        model: Any = pl_module.model
        checks = {name: check_trust(model, self._probe.batch, method, self.seed) for name, method in self.methods.items()}
        path = self._folder / FOLDER / FILE
        save_checks(path, checks, {"stage": self._stage(pl_module), **self._when(trainer), "pairs": len(self._probe)})
        for name, found in checks.items():
            figures |= {f"insight/{name}/{what}": value for what, value in found.scores.items()}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        give_to_loggers(trainer, [path])
        if self.search_examples:
            give_to_loggers(trainer, self._search(trainer, pl_module))
        self.watching.submit(trainer, mark_and_draw, self._folder)

    def release(self) -> None:
        self._probe = None

    # --- scoring ---
    def _made(self, trainer: Trainer, batch: ImageTextBatch) -> Probe:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return make_probe(batch, data.tokenizer, data.context_length)

    def _score(self, pl_module: LightningModule, probe: Probe) -> dict[str, Scored]:
        model: Any = pl_module.model
        return {name: score(family_for(model, method), probe, method.call, self.steps) for name, method in self.methods.items()}

    def _save(self, trainer: Trainer, pl_module: LightningModule, scored: dict[str, Scored]) -> dict[str, float]:
        """Write the maps with their scores; returns the figures by their metric names."""
        assert self._probe is not None, "begin() made it"
        arrays, facts = record(self._probe, scored, self._facts(trainer, pl_module))
        self._scored_at = trainer.global_step
        self.watching.submit(trainer, write_and_draw, self._folder, self._stem(trainer), arrays, facts)
        return {f"insight/{name}/{what}": value for name, one in scored.items() for what, value in one.facts.scores.items()}

    def _facts(self, trainer: Trainer, pl_module: LightningModule) -> MapFacts:
        model: Any = pl_module.model
        verdicts = {name: one.verdict for name, one in newest_checks(self._run_dir).items() if name in self.methods}
        when = self._when(trainer)
        return MapFacts(self._stage(pl_module), when["epoch"], when["step"], model.image.grid_size, (), (), verdicts=verdicts)

    def _when(self, trainer: Trainer) -> dict[str, int]:
        return {"epoch": self._epoch, "step": trainer.global_step}

    @staticmethod
    def _stage(pl_module: LightningModule) -> str:
        return getattr(pl_module, "stage_name", "")

    def _stem(self, trainer: Trainer) -> str:
        when = self._when(trainer)
        return f"epoch{when['epoch']:04d}-step{when['step']:07d}"

    # --- how often ---
    @property
    def _cadence_file(self) -> Path:
        return self._run_dir / CADENCE

    def _choose(self, trainer: Trainer, scoring_seconds: float, validation_seconds: float) -> int:
        self.every_n_validations = cadence(scoring_seconds, validation_seconds)
        facts = {
            "every_n_validations": self.every_n_validations,
            "scoring_seconds": round(scoring_seconds, 3),
            "validation_seconds": round(validation_seconds, 3),
            "protocol": PROTOCOL,
        }
        write_atomically(self._cadence_file, lambda temporary: temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8"))
        give_to_loggers(trainer, [self._cadence_file])
        self._tag(trainer)
        return self.every_n_validations

    def _tag(self, trainer: Trainer) -> None:
        tags = {"insight.protocol": PROTOCOL}
        if self.every_n_validations is not None:
            tags["insight.every_n_validations"] = str(self.every_n_validations)
        for logger in trainer.loggers:
            if hasattr(logger, "set_tags"):
                logger.set_tags(tags)

    # --- for the search ---
    def _search(self, trainer: Trainer, pl_module: LightningModule) -> list[Path]:
        """Maps of many pairs of the validation split, and where each caption finds its picture."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = pl_module.model
        with isolate_rng(include_cuda=False):
            probe = self._made(trainer, data.probe("val", self.search_examples, self.seed))
            ranks = pair_ranks(model, whole_split(data, "val"))
        method = self.methods[self.search_method]
        scored = {self.search_method: score(family_for(model, method), probe, method.call, steps=0)}
        arrays, facts = record(probe, scored, self._facts(trainer, pl_module), largest_picture=96)
        batch = probe.batch
        picture_C = batch.image_id[batch.caption_row].tolist()
        rank_of = {row: ranks[pair] for row, pair in enumerate(zip(picture_C, batch.caption_id.tolist(), strict=True))}
        return list(save_maps(self._folder / FOLDER / VALIDATION, arrays, with_ranks(facts, rank_of)))


def whole_split(data: Any, split: str) -> Iterator[ImageTextBatch]:
    """Every picture with all of its captions, in every process alike."""
    names = data.splits()[split]
    for first in range(0, len(names), PICTURES_AT_ONCE):
        yield data.examples(split, names[first : first + PICTURES_AT_ONCE])


def write_and_draw(folder: Path, stem: str, arrays: dict[str, np.ndarray], facts: MapFacts) -> list[Path]:
    """Write maps and scores, the table over all validations so far, and draw both. Returns the files."""
    maps = save_maps(folder / FOLDER / f"{stem}.safetensors", arrays, facts)
    drawn = draw_aside(maps[0], folder / FOLDER)
    for kind in ("methods", "score_card"):
        for old in sorted((folder / FOLDER).glob(f"epoch*-{kind}.png"))[1:-KEPT_PICTURES]:
            old.unlink()
    return [*maps, write_table(folder / FOLDER), *drawn]


def mark_and_draw(folder: Path) -> list[Path]:
    """Mark all maps of the stage with what its checks found, and draw the newest again."""
    drawn = [(maps, draw_aside(maps, maps.parent if maps.parent.name == FOLDER else folder / "figures")) for maps in mark_stage(folder)]
    return [path for maps, pictures in drawn for path in (maps.with_suffix(".json"), *pictures)]


def _first(batch: ImageTextBatch) -> ImageTextBatch:
    """The first pair alone."""
    one = batch._asdict()
    one |= {name: one[name][:1] for name in ("tokens", "token_mask", "caption_row", "caption_id", "texts")}
    return ImageTextBatch(**{**one, "phrases": tuple(phrase for phrase in batch.phrases if phrase.caption == 0)})
