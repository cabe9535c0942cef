"""What a run says: the line of a stage, the table at the end, predictions; and how its weights are read."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from insight.errors import InputError
from insight.metrics import chance_recall
from insight.stages import Stage, matching
from lightning_modules.base import ImageTextModule, Prediction

SHOWN = ("image_to_text_recall_at_1", "image_to_text_recall_at_10", "text_to_image_recall_at_1", "text_to_image_recall_at_10")


def load_weights(model: ImageTextModule, path: Path, data: L.LightningDataModule | None = None) -> None:
    """Load a checkpoint's weights into the model and, when given, its tokenizer into the data module.

    Raises:
        InputError: no such file, a damaged file, or weights of another architecture (the keys are listed).
    """
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    weights, own = (
        {name: value for name, value in state.items() if not name.startswith("losses.")}  # what is of a stage's losses ends with the stage
        for state in (checkpoint["state_dict"], model.state_dict())
    )
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
    model.load_state_dict(weights, strict=False)  # checked above
    if data is not None:
        states = [value for value in checkpoint.values() if isinstance(value, dict) and "tokenizer" in value]
        if not states:
            raise InputError(f"{path}: holds no tokenizer")
        data.load_state_dict(states[0])


def stage_line(title: str, stage: Stage, model: ImageTextModule, trainer: L.Trainer) -> str:
    """What trains, how many parameters, which losses."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if not name.startswith("losses.")}
    patterns = [pattern for pattern in stage.train if not pattern.removeprefix("!").startswith("losses.")]
    trained = sum(parameters[name].numel() for name in matching(patterns, parameters, f"stages.{title.split()[-1]}.train"))
    total = sum(parameter.numel() for parameter in parameters.values())
    terms = {name: term.weight for name, term in stage.losses.items() if term.weight}
    losses = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms.items())
    limit = f"at most {stage.epochs} epochs" if stage.patience else f"{stage.epochs} epochs"
    device = f"{type(trainer.accelerator).__name__.removesuffix('Accelerator').lower()}, {trainer.precision}"
    return f"\n{title} on {device}: {limit}; trains {trained:,} of {total:,} parameters ({', '.join(stage.train)}); loss {losses}"


def chance(data: Any, split: str) -> list[str]:
    """The recalls that a random order would reach, as shown."""
    counts = data.caption_counts(split)
    scores = chance_recall(len(counts), counts)
    return [f"{scores[name]:.3f}" for name in SHOWN]


def summary_table(summary: dict[str, Any], data: Any, run_dir: Path, tracking_uri: str | None) -> str:
    """The table at the end of a run, with chance level beside the recalls, and where to look next."""
    table = Table(title="recall (fraction of queries)", title_justify="left")
    for column in ("", "epochs", *(name.replace("_recall_at_", " R@").replace("_", " ") for name in SHOWN)):
        table.add_column(column, justify="left" if not column else "right")
    for stage in summary["stages"]:
        figures = [f"{stage['metrics'][f'val/{name}']:.3f}" if f"val/{name}" in stage["metrics"] else "-" for name in SHOWN]
        table.add_row(f"val, after {stage['name']}", str(stage["epochs"]), *figures)
    table.add_row("val, chance", "", *chance(data, "val"), end_section=True)
    test = summary["test"]
    if test:
        prefixes = {"test": "test/", "test, re-ranked": "test/reranked_"}
        prefixes |= {f"test, {name.replace('_', ' ')}": f"test/baseline/{name}/" for name in ("colour_histogram", "blind_prior")}
        for label, prefix in prefixes.items():
            if f"{prefix}{SHOWN[0]}" in test:
                table.add_row(label, "", *(f"{test[prefix + name]:.3f}" for name in SHOWN))
        table.add_row("test, chance", "", *chance(data, "test"))
    out = io.StringIO()
    Console(file=out, width=150, force_terminal=False).print(table)
    lines = [out.getvalue().rstrip()]
    if "test/hard_negative_accuracy_seen" in test:
        columns = {
            "model": "test/",
            "re-ranked": "test/reranked_",
            "colour histogram": "test/baseline/colour_histogram/",
            "blind prior": "test/baseline/blind_prior/",
        }
        for kind in ("seen", "unseen"):
            named = {label: f"{prefix}hard_negative_accuracy_{kind}" for label, prefix in columns.items()}
            listed = "  ".join(f"{label} {test[name]:.3f}" for label, name in named.items() if name in test)
            lines.append(f"hard negatives, {kind} combinations (chance .5): {listed}")
    pictures = sorted(run_dir.glob("*/figures"))
    lines.append(f"pictures:  {', '.join(map(str, pictures)) or '(none)'}")
    lines.append(f"results:   {run_dir / 'summary.json'}")
    if tracking_uri:
        served = tracking_uri.startswith("http")  # by a server that is there already
        lines.append(f"MLflow:    {tracking_uri if served else f'.venv/bin/mlflow ui --backend-store-uri {tracking_uri}'}")
    return "\n".join(lines)


def save_predictions(rows: list[Prediction], folder: Path) -> None:
    """Embeddings of pictures (N, E) and captions (C, E) as safetensors, file names and texts as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "image_embedding": torch.cat([row.image_embedding for row in rows]).cpu().contiguous(),
        "text_embedding": torch.cat([row.text_embedding for row in rows]).cpu().contiguous(),
    }
    save_file(tensors, folder / "embeddings.safetensors")
    names = {"filenames": [name for row in rows for name in row.filenames], "texts": [text for row in rows for text in row.texts]}
    (folder / "embeddings.json").write_text(json.dumps(names, ensure_ascii=False))
