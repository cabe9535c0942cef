"""What `python train.py --help` prints: every group and option with the first line of its file, every key of `run` and the like."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from docstring_parser import parse

from lightning_modules.settings import ADDED, Deployment, Dimension, RunSettings, Sweep, Tracking

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NOT_CHOSEN = ("recipe", "gates")  # Hydra chooses a recipe by data and stages; gates are tracking.promote's
WIDTH = 120
USAGE = """\
MultiModal Insight Engine: trains image-text transformers in stages, and shows what they look at after every validation.

main job:     python train.py +experiment=flickr_multistage
your data:    python train.py +experiment=flickr_multistage data=flickr30k data.init_args.root=PATH
texts:        python train.py +experiment=language_model
try out:      python train.py +experiment=flickr_multistage trainer=debug
go on:        python train.py resume=RUN_FOLDER
again:        python train.py reproduce=RUN_ID
best values:  python train.py +experiment=flickr_multistage +sweep=rates                (Optuna; the same command goes on)
all values:   python train.py --multirun +experiment=flickr_multistage seed_everything=0,1,2 [hydra/launcher=joblib]
one key:      python train.py +experiment=flickr_multistage stages.end_to_end.epochs=5
another key:  python train.py +experiment=flickr_multistage +trainer.max_epochs=5       (not in the config yet: with a plus)
the config:   python train.py +experiment=flickr_multistage --cfg job

"""
MORE = """\
every key of a model, data set, stage, callback and trainer, with its type and help:
  python -m lightning_modules.cli multistage --help
the gates of a promotion: python -m tracking.promote --help
Hydra's own flags: python train.py --hydra-help
"""


def describe_groups(configs: Path = CONFIGS) -> str:
    """The whole text."""
    parts = [USAGE, "groups and their options (group=option):\n"]
    for group in sorted(path for path in configs.iterdir() if path.is_dir()):
        if group.name in NOT_CHOSEN:
            continue
        plus = "+" if group.name in ADDED else ""
        parts.append(f"\n  {plus}{group.name}=\n")
        parts += [_line(path.stem, first_comment(path)) for path in sorted(group.glob("*.yaml"))]
    parts.append("\nkeys (key=value):\n\n")
    parts += [_line(key, comment) for key, comment in top_keys(configs / "train.yaml").items()]
    for prefix, kind in (("run", RunSettings), ("tracking", Tracking), ("deployment", Deployment), ("sweep", Sweep)):
        parts += [_line(f"{prefix}.{one.arg_name}", one.description or "") for one in parse(kind.__doc__ or "").params]
    parts += [_line(f"sweep.space.NAME.{one.arg_name}", one.description or "") for one in parse(Dimension.__doc__ or "").params]
    return "".join([*parts, "\n", MORE])


def first_comment(path: Path) -> str:
    """The first comment of a config that is about it."""
    lines = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line for line in lines if not line.startswith("@package")), "")


def top_keys(path: Path) -> dict[str, str]:
    """The keys of ``train.yaml`` that stand below a comment, with that comment."""
    found = re.findall(r"^# (.*)\n([a-z_]+):", path.read_text(), re.MULTILINE)
    return {key: comment for comment, key in found if key != "defaults"}


def _line(name: str, text: str) -> str:
    head = f"    {name:<28}"
    body = " ".join(text.split())
    return textwrap.fill(body, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False) + "\n"
