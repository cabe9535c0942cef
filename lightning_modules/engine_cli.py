"""One parser for both doors, Hydra's mapping and a saved config.yaml: checks every value against the signatures, and builds."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from insight.errors import InputError
from insight.metric_names import check_metric_name
from insight.stages import Stage, StagePlan, check_arguments, check_plan
from lightning_modules.keys import CLASSES, check_keys, check_words
from lightning_modules.settings import Deployment, RunSettings, Tracking
from lightning_modules.staged import StagedData, StagedModule


class EngineCLI(LightningCLI):
    """LightningCLI whose config also holds ``stages``, ``callbacks`` by name, ``tracking``, ``deployment`` and ``run``; it builds, it never
    runs.

    After construction: ``model``, ``datamodule``, ``plan``, ``callbacks``, ``settings``, ``tracking``, ``deployment``, ``frozen``.
    """

    def __init__(self, args: list[str] | dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sys.argv.*")  # Hydra's words are there; children start from them
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            super().__init__(
                L.LightningModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,  # it asserts when the MLflow store is a database (Lightning #19441); config.yaml is ours
                seed_everything_default=0,
                parser_kwargs={"exit_on_error": False},
                args=args,
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--stages", type=dict[str, Stage], default={}, help="Stages by name, in the order in which they run.")
        parser.add_argument("--callbacks", type=dict[str, Callback], default={}, help="Callbacks by name; each stage gets fresh ones.")
        parser.add_class_arguments(Tracking, "tracking")
        parser.add_class_arguments(Deployment, "deployment")
        parser.add_class_arguments(RunSettings, "run")
        parser.add_argument("--run_dir", type=str | None, default=None, help="Folder of the run; null: a new one under run.output_dir.")

    def _set_seed(self) -> None:
        if isinstance(self.config.seed_everything, bool):
            raise InputError("seed_everything: give a whole number, so that the run can be repeated")
        L.seed_everything(self.config.seed_everything, workers=False, verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """No Trainer yet: every stage gets its own from ``trainer_arguments``."""

    def after_instantiate_classes(self) -> None:
        built = self.config_init
        self.callbacks: dict[str, Callback] = built["callbacks"]
        self.settings: RunSettings = built["run"]
        self.tracking: Tracking = built["tracking"]
        self.deployment: Deployment = built["deployment"]
        self.run_dir: str | None = built["run_dir"]
        self.plan = StagePlan(built["stages"], self.config.seed_everything)
        if not isinstance(self.model, StagedModule):
            raise InputError(f"model.class_path={type(self.model).__name__}: must be a module of lightning_modules that trains in stages")
        self._check_data()
        check_plan(self.plan)
        for name, stage in self.plan.stages.items():
            self.model.check_stage(name, stage)
            check_arguments(self.datamodule.configure_stage, stage.data.given, f"stages.{name}.data", supplied=["stage_seed"])
            owned = ("callbacks", "logger", "max_epochs", "default_root_dir", "enable_checkpointing")
            check_arguments(L.Trainer.__init__, stage.trainer, f"stages.{name}.trainer", supplied=("self", *owned))
            if stage.monitor is not None:
                check_metric_name(stage.monitor)
        self._check_sizes()

    def _check_data(self) -> None:
        """The data module is one that a run of stages and this model can use."""
        needed = {name for name in vars(StagedData) if not name.startswith("_")} | StagedData.__annotations__.keys()
        needed |= {"configure_stage", *self.model.data_needs}
        missing = sorted(name for name in needed if not hasattr(self.datamodule, name))
        if missing:
            raise InputError(
                f"data.class_path={type(self.datamodule).__name__}: has no {', '.join(missing)}, which {type(self.model).__name__} needs: "
                "choose data for this task"
            )

    def _check_sizes(self) -> None:
        model, data = self.config.model.init_args, self.config.data.init_args
        for key in ("image_size", "context_length", "vocab_size"):
            if key in model and key in data and model[key] != data[key]:
                raise InputError(
                    f"model.init_args.{key}={model[key]} but data.init_args.{key}={data[key]}: the two must be equal, so give both"
                )

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for every stage's Trainer (built anew at each call: strategies and plugins have state)."""
        arguments = dict(self.parser.instantiate(self.config).trainer.items(branches=False, nested=False))
        return {name: value for name, value in arguments.items() if value is not None and name not in ("callbacks", "logger")}

    @property
    def frozen(self) -> dict[str, Any]:
        """The whole config as plain data, defaults included, without the run's own folder: replayable."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        config.pop("config", None)
        if self.model.settled:
            config["model"]["init_args"] |= self.model.settled
        return {**config, "run_dir": None}


def build(args: list[str] | dict[str, Any]) -> EngineCLI:
    """Parse, check every value against the signatures, and build.

    Raises:
        InputError: the deepest lines of what the parser found wrong.
    """
    if isinstance(args, dict):
        check_keys(args)
    else:
        check_words(args)
    try:
        return EngineCLI(copy.deepcopy(args))  # the parser changes what it is given
    except InputError:
        raise
    except (ArgumentError, ValueError) as error:  # jsonargparse wraps what a constructor raises
        raise InputError(shorten(str(error))) from error


def shorten(message: str) -> str:
    """The path of keys and the deepest complaints of a long parser message."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    keys = [line.split('"')[1] for line in lines if line.startswith("Parser key ") and line.count('"') >= 2]
    noise = (
        "Parser key ",
        "usage:",
        "error:",
        "Does not validate against any",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Given value type:",
        "Given value: {",
        "Given value: Namespace",
        "Given value: NestedArg",
    )
    rest = [line for line in lines if not line.startswith(noise)]
    if len(keys) > 1 and keys[0] in CLASSES:
        keys.insert(1, "init_args")
    return f"{'.'.join(keys)}: {' '.join(rest)}" if keys else " ".join(rest or lines)
