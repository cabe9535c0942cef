"""What a run says: the line of a stage, the table at the end; and how its weights are read."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from insight.errors import InputError
from insight.stages import Stage, matching
from lightning_modules.staged import StagedModule


def load_weights(model: StagedModule, path: Path, data: L.LightningDataModule | None = None) -> dict[str, Any]:
    """Load a checkpoint's weights into the model and, when given, what goes with them (the tokenizer) into the data module. Returns the
    state of the data module that the weights were trained with; empty where the file holds none.

    Raises:
        InputError: no such file, a damaged file, or weights of another architecture (the keys are listed).
    """
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    weights, own = checkpoint["state_dict"], model.state_dict()
    wrong = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if wrong or missing or unknown:
        parts = [("other shape", wrong), ("missing in the file", missing), ("unknown to the model", unknown)]
        listed = "; ".join(f"{what}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" for what, names in parts if names)
        raise InputError(f"{path} holds weights of another architecture: {listed}. Use the config.yaml beside its run")
    model.load_state_dict(weights)
    states = [value for value in checkpoint.values() if isinstance(value, dict) and "fingerprint" in value]
    if data is not None:
        if not states:
            raise InputError(f"{path}: holds no state of a data module (its tokenizer)")
        data.load_state_dict(states[0])
    return states[0] if states else {}


def check_tokenizer(path: Path, trained_with: dict[str, Any], data: Any) -> None:
    """The weights of ``path`` go on with the tokenizer that they were trained with: elsewhere the same ids mean other words.

    Args:
        trained_with: What ``load_weights`` returned.

    Raises:
        InputError: the data module has another one.
    """
    if trained_with.get("tokenizer") not in (None, data.state_dict().get("tokenizer")):
        raise InputError(
            f"{path} was trained with another tokenizer than the data have: set data.init_args.tokenizer to the tokenizer.json of its run"
        )


def stage_line(title: str, stage: Stage, model: StagedModule, trainer: L.Trainer) -> str:
    """What trains, how many parameters, which losses."""
    parameters = dict(model.named_parameters())
    trained = sum(parameters[name].numel() for name in matching(stage.train, parameters, f"stages.{title.split()[-1]}.train"))
    total = sum(parameter.numel() for parameter in parameters.values())
    terms = {name: term.weight for name, term in stage.losses.items() if term.weight}
    losses = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms.items())
    limit = f"at most {stage.epochs} epochs" if stage.patience else f"{stage.epochs} epochs"
    device = f"{type(trainer.accelerator).__name__.removesuffix('Accelerator').lower()}, {trainer.precision}"
    return f"\n{title} on {device}: {limit}; trains {trained:,} of {total:,} parameters ({', '.join(stage.train)}); loss {losses}"


def summary_table(model: StagedModule, summary: dict[str, Any], data: Any, run_dir: Path, tracking_uri: str | None) -> str:
    """The table at the end of a run, with chance level (or what else the task compares with) beside it, and where to look next."""
    shown, test = model.shown, summary["test"]
    table = Table(title=shown.title, title_justify="left")
    for column in ("", "epochs", *shown.metrics.values()):
        table.add_column(column, justify="left" if not column else "right")

    def cells(figures: dict[str, float], prefix: str = "") -> list[str]:
        return [f"{figures[prefix + name]:.3f}" if prefix + name in figures else "-" for name in shown.metrics]

    for stage in summary["stages"]:
        table.add_row(f"val, after {stage['name']}", str(stage["epochs"]), *cells(stage["metrics"], "val/"))
    for label, figures in model.references(data, "val").items():
        table.add_row(f"val, {label}", "", *cells(figures))
    if test:
        table.add_section()
        for label, prefix in shown.tests.items():
            if any(prefix + name in test for name in shown.metrics):
                table.add_row(label, "", *cells(test, prefix))
        for label, figures in model.references(data, "test").items():
            table.add_row(f"test, {label}", "", *cells(figures))
    out = io.StringIO()
    Console(file=out, width=150, force_terminal=False).print(table)
    lines = [out.getvalue().rstrip(), *model.remarks(test)]
    pictures = sorted(run_dir.glob("*/figures"))
    if pictures:
        lines.append(f"pictures:  {', '.join(map(str, pictures))}")
    lines.append(f"results:   {run_dir / 'summary.json'}")
    if tracking_uri:
        served = tracking_uri.startswith("http")  # by a server that is there already
        lines.append(f"MLflow:    {tracking_uri if served else f'.venv/bin/mlflow ui --backend-store-uri {tracking_uri}'}")
    return "\n".join(lines)
