"""TextSamples: what a language model writes, for the same few beginnings in every validation run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.watcher import Watcher
from insight.data.language import TextBatch
from insight.generation import GREEDY, Generated, Sampling, beam_search, generate
from insight.interpret.untouched import evaluating
from insight.models.language_model import LanguageReader


class TextSamples(Watcher):
    """Writes ``STAGE/samples/epochEEEE-stepSSSSSSS.txt`` after each validation and hands it to the loggers.

    Each validation text is begun with its first words and continued greedily, by beams and by lot; then texts are written from nothing, by
    lot. Nothing of the training changes: lots are drawn from generators of their own. Rank zero only; not in the sanity check; only within
    ``fit``. If something fails, the validation's checkpoint is saved first; the error is raised at the next training step or at the end.

    Args:
        num_examples: Validation texts that are begun, and texts from nothing.
        prompt_tokens: So many tokens of each text are given.
        max_new_tokens: Longest continuation, as far as the model's context reaches.
        temperature: Of what is drawn by lot.
        top_k: Of what is drawn by lot; null: all tokens.
        top_p: Of what is drawn by lot.
        beams: Of the search by beams.
        every_n_validations: Write in the first and then in every n-th validation of a stage.
        seed: Chooses the texts, and the lots.
        directory: Where to write outside of a stage.

    Raises:
        InputError: a number out of range, no folder to write to, a data module without ``probe``.
    """

    name = "text_samples"

    def __init__(
        self,
        num_examples: int = 4,
        prompt_tokens: int = 4,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_k: int | None = 40,
        top_p: float = 0.95,
        beams: int = 4,
        every_n_validations: int = 1,
        seed: int = 0,
        directory: str | None = None,
    ) -> None:
        super().__init__(num_examples, seed, directory)
        self.check_positive(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, beams=beams)
        self.check_positive(every_n_validations=every_n_validations)
        self.prompt_tokens, self.max_new_tokens = prompt_tokens, max_new_tokens
        self.beams, self.every_n_validations = beams, every_n_validations
        self.sampling = Sampling(temperature, top_k, top_p)
        self._prompts: list[list[int]] = []
        self._texts: tuple[str, ...] = ()
        self._folder = Path()

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: TextBatch, folder: Path) -> None:  # type: ignore[override]
        room: int = pl_module.model.context_length - 1  # type: ignore[union-attr, assignment, operator]
        kept = min(self.prompt_tokens + 1, room)  # and the start; never the end
        self._prompts = [ids[mask][:-1][:kept].tolist() for ids, mask in zip(batch.tokens, batch.token_mask, strict=True)]
        self._texts, self._folder = batch.texts, folder

    def watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (self._validations - 1) % self.every_n_validations:
            return
        codec: Any = trainer.datamodule.codec  # type: ignore[attr-defined]
        with evaluating(pl_module.model), trainer.precision_plugin.forward_context():  # type: ignore[arg-type]
            text = self.write(pl_module, codec)
        name = f"epoch{trainer.current_epoch + 1:04d}-step{trainer.global_step:07d}.txt"
        self.watching.submit(trainer, save_text, self._folder / "samples" / name, text)

    def write(self, pl_module: LightningModule, codec: Any) -> str:
        """The whole file."""
        model: Any = pl_module.model
        device, end = pl_module.device, codec.end

        def drawn(prompts: list[list[int]]) -> Generated:
            return generate(LanguageReader(model), prompts, self._room(model, prompts), end, self.sampling, self.seed, device)

        most = self._room(model, self._prompts)
        ways = {
            "greedy": generate(LanguageReader(model), self._prompts, most, end, GREEDY, device=device),
            f"{self.beams} beams": beam_search(LanguageReader(model), self._prompts, most, end, self.beams, device=device),
            "by lot": drawn(self._prompts),
        }
        lines = []
        for row, (prompt, text) in enumerate(zip(self._prompts, self._texts, strict=True)):
            lines.append(f"begins   {codec.decode(prompt)}\ntext     {text}")
            lines += [f"{way:<9}{codec.decode([*prompt, *written.tokens[row]])}" for way, written in ways.items()]
            lines.append("")
        lines += [f"nothing  {codec.decode(tokens)}" for tokens in drawn([[codec.start]] * self.num_examples).tokens]
        return "\n".join(lines) + "\n"

    def _room(self, model: Any, prompts: list[list[int]]) -> int:
        """Tokens that may follow, as far as the context reaches."""
        return min(self.max_new_tokens, model.context_length - max(map(len, prompts)))

    def release(self) -> None:
        self._prompts, self._texts = [], ()


def save_text(path: Path, text: str) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [path]
