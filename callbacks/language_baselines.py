"""LanguageBaselines: beside every test result, what counting tokens and pairs of tokens reaches on the same texts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from insight.language_baselines import Bigram, CountedModel, Unigram, evaluate_counted


class LanguageBaselines(Callback):
    """Count on the training split, with the run's own tokenizer, and log figures on the test split as ``test/baseline/<name>/<what>``."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Trainer sets it, its class does not declare it
        train, test = ([window.ids for window in data.windows(split)] for split in ("train", "test"))
        baselines: dict[str, CountedModel] = {"unigram": Unigram.fit(train, data.codec.size), "bigram": Bigram.fit(train, data.codec.size)}
        for name, baseline in baselines.items():
            figures = evaluate_counted(baseline, test, data.codec)
            pl_module.log_dict({f"test/baseline/{name}/{what}": value for what, value in figures.items()}, rank_zero_only=True)
