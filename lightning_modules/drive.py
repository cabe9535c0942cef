"""The driver: one fresh Trainer and one ``fit`` per stage, from the ledger's place to the end; then the test and the summary."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.progress import StageProgress
from callbacks.stage_checkpoints import StageCheckpoints
from callbacks.stage_scheduler import StageScheduler, write_json
from insight.digest import state_digest
from insight.errors import InputError
from insight.export.card import CARD
from insight.stages import StagePlan
from lightning_modules.engine_cli import EngineCLI
from lightning_modules.release import check_deployment, release
from lightning_modules.results import check_tokenizer, load_weights, stage_line, summary_table
from tracking.run import RunLock, TrackedRun, status_of
from tracking.store import store_address, without_password

EXIT_INTERRUPTED = 130


def hush(level: str = "WARNING") -> None:
    """Our own messages from ``level`` on; without what says nothing to the user: advertisements, warnings about choices made on purpose."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for package in ("insight", "lightning_modules", "datamodules", "callbacks", "tracking"):
        logging.getLogger(package).setLevel(level)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # pictures come decoded from a memory map
        ".*is available but not used.*",  # trainer=cpu was asked for
        ".*in eval mode at the start of training.*",  # frozen parts are
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",  # Lightning with torch 2.14
        ".*Checkpoint directory.*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def say(text: str) -> None:
    """To the screen, once, whatever the number of processes."""
    if is_first_process():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


# --- the run's folder ---
def new_run_dir(output_dir: Path, name: str) -> Path:
    """A folder of its own, also for two runs that start in the same second; ``latest`` points to it."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    output_dir.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        folder = output_dir / (f"{stamp}_{name}" if attempt == 0 else f"{stamp}_{name}_{attempt + 1}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise InputError(f"run.output_dir={output_dir}: no free name for a run folder")


def point_latest(run_dir: Path, output_dir: Path) -> None:
    """``output_dir/latest`` -> the run, replaced atomically."""
    link = output_dir / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(run_dir, output_dir), target_is_directory=True)
    os.replace(link, output_dir / "latest")


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """``key: old -> new`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [] if list(old) == list(new) or set(old) != set(new) else [f"{key or 'config'}: order {list(old)} -> {list(new)}"]
        for name in dict.fromkeys([*old, *new]):
            lines += differences(old.get(name, "(absent)"), new.get(name, "(absent)"), f"{key}.{name}" if key else str(name))
        return lines if key.startswith("stages") or not key else [line for line in lines if ": order [" not in line]
    return [] if old == new else [f"{key}: {old} -> {new}"]


def open_run_dir(cli: EngineCLI, latest: bool = True) -> Path:
    """The run's folder with the frozen config in it; ``latest`` points to it, unless told not to.

    Raises:
        InputError: the folder belongs to a run with another config; shows the difference.
    """
    output_dir = Path(cli.settings.output_dir)
    if cli.run_dir is None:
        run_dir = new_run_dir(output_dir, cli.settings.name)
    else:
        run_dir = Path(cli.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.yaml"
    if path.exists():
        changed = differences(yaml.safe_load(path.read_text()), cli.frozen)
        if changed:
            listed = "\n  ".join(changed[:20])
            raise InputError(f"{run_dir} was made by another config (its value -> the one asked for):\n  {listed}\nchoose another run_dir")
    elif is_first_process():
        temporary = path.with_name("config.yaml.tmp")
        temporary.write_text(yaml.safe_dump(cli.frozen, sort_keys=False))
        os.replace(temporary, path)
    if is_first_process():
        output_dir.mkdir(parents=True, exist_ok=True)  # run_dir may lie elsewhere
        if latest:
            point_latest(run_dir, output_dir)
    return run_dir


# --- signals ---
@contextlib.contextmanager
def graceful_stop() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) asks for a stop at the next safe point; the second one stops at once."""
    stop = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("\nstopping at the next safe point, saved; once more to stop at once (what was saved before stays)")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class KeepHandlers(Callback):
    """Puts our signal handlers back when a fit begins: Lightning sets its own for SIGTERM, which stops without saving."""

    def __init__(self) -> None:
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.handlers.items():
                signal.signal(number, handler)


# --- training ---
def run_stages(cli: EngineCLI, only: str | None = None, weights: Path | None = None, sweep_dir: Path | None = None) -> int:
    """Train what is left of the plan, test, write the summary. Returns the exit code.

    ``only`` one stage, from given ``weights``; as a trial of the sweep in ``sweep_dir``.
    """
    hush(cli.settings.log_level)
    check_tracking(cli)
    check_deployment(cli)
    if only is not None:
        cli.plan = StagePlan({only: cli.plan.stages[only]}, cli.plan.seed)
    run_dir = open_run_dir(cli, latest=sweep_dir is None)  # many trials would hide the run that people trained
    with RunLock(run_dir), graceful_stop() as stop:
        if (run_dir / "summary.json").exists():
            say(f"{run_dir} is finished; its results are in {run_dir / 'summary.json'}. A new run_dir starts another run.")
            return 0
        tracked = open_tracking(cli, run_dir, sweep_dir)
        try:
            _run(cli, run_dir, weights, stop, tracked)
        except (KeyboardInterrupt, SystemExit) as error:
            if tracked:
                tracked.finish("KILLED" if stop.is_set() else status_of(error), error)
            if not (stop.is_set() or isinstance(error, KeyboardInterrupt)):
                raise
            say(f"\nstopped. Go on with: python train.py resume={run_dir}")
            return EXIT_INTERRUPTED
        except BaseException as error:
            if tracked:
                tracked.finish(status_of(error), error)
            raise
        if tracked:
            tracked.finish("FINISHED")
            registered = tracked.deliver_registration()
            if registered:
                say(f"registered: {registered}")
    return 0


def check_tracking(cli: EngineCLI) -> str | None:
    """The store's address, or None when the config turns tracking off.

    Raises:
        InputError: a variable whose name the config holds (address, token) is not set.
    """
    if not cli.tracking.enabled:
        return None
    tracking = cli.tracking
    return store_address(tracking.tracking_uri, tracking.tracking_uri_env, tracking.token_env, cli.settings.output_dir)


def open_tracking(cli: EngineCLI, run_dir: Path, sweep_dir: Path | None = None) -> TrackedRun | None:
    """The MLflow side, or None when the config turns it off. A trial, whose folder is a number, is named after its sweep too."""
    address = check_tracking(cli)
    name = f"{run_dir.absolute().parent.name}-{run_dir.name}" if run_dir.name.isdigit() else None
    return (
        None
        if address is None
        else TrackedRun(run_dir, cli.tracking.experiment, name, address, cli.settings.output_dir, None, 15.0, sweep_dir)
    )


def _run(cli: EngineCLI, run_dir: Path, weights: Path | None, stop: threading.Event, tracked: TrackedRun | None) -> None:
    data, model = cli.datamodule, cli.model
    if hasattr(data, "stop_asked"):
        data.stop_asked = stop.is_set  # what takes minutes stops at its next batch
    if data.generated:
        say(data.describe())  # before anything else: these are not photos
    data.prepare_data()
    data.setup("fit")
    if not data.generated:
        say(data.describe())
    model.check_data(data)
    if is_first_process():
        model.save_inputs(run_dir, data)
        write_json(run_dir / "splits.json", data.splits())
    say(f"run: {run_dir}")
    scheduler = StageScheduler(cli.plan, run_dir)
    if tracked:
        tags = {"data.fingerprint": data.fingerprint(), "data": data.describe(), "seed": str(cli.plan.seed), "env": cli.settings.env}
        tracked.start(cli.frozen, tags, run_dir / "config.yaml", [run_dir / name for name in model.input_files])
    if weights is not None:
        check_tokenizer(weights, load_weights(model, weights), data)
    while not scheduler.done:
        _fit_stage(cli, scheduler, stop, tracked)
        if stop.is_set():
            raise KeyboardInterrupt
    facts = _test(cli, scheduler) if cli.settings.test else {}
    summary = {"stages": scheduler.ledger["done"], "test": facts}
    if tracked:
        tracked.log_metrics(facts)
    bundle = release(cli, scheduler, summary, tracked) if is_first_process() else None
    if is_first_process():
        write_json(run_dir / "summary.json", summary)
    if tracked:
        for name in ("summary.json", *(model.result_files if facts else ())):
            tracked.log_artifact(run_dir / name)
    say(summary_table(model, summary, data, run_dir, without_password(tracked.logger.tracking_uri) if tracked else None))
    if bundle:
        say(f"bundle:    {bundle.folder} (its card: {bundle.folder / 'card' / CARD})")


def _fit_stage(cli: EngineCLI, scheduler: StageScheduler, stop: threading.Event, tracked: TrackedRun | None) -> None:
    index, name, stage, folder = scheduler.index, scheduler.name, scheduler.stage, scheduler.folder()
    title = f"stage {index + 1}/{len(scheduler.plan.stages)} {name}"
    handoff, resume = scheduler.handoff_path(), scheduler.resume_path()
    if handoff is not None:
        load_weights(cli.model, handoff)
    L.seed_everything(scheduler.seed, workers=False, verbose=False)
    cli.datamodule.configure_stage(scheduler.seed, **stage.data.given)
    folder.mkdir(exist_ok=True)
    checkpoints = StageCheckpoints(folder, stage.monitor, stage.mode, stage.patience, cli.settings.save_every_n_steps, stop)
    logger = tracked.stage_logger(index, name) if tracked else None
    configured, progress = copy.deepcopy(list(cli.callbacks.values())), StageProgress(title, cli.model.progress)
    callbacks: list[Callback] = [scheduler, *configured, progress, KeepHandlers(), checkpoints]
    trainer = make_trainer(cli, callbacks, logger, max_epochs=stage.epochs, **stage.trainer)
    say(stage_line(title, stage, cli.model, trainer) + (f"\n  goes on from {resume}" if resume else ""))
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resume, weights_only=True if resume else None)
    except BaseException as error:
        if tracked and logger:
            tracked.finish_stage(logger, "KILLED" if stop.is_set() else status_of(error))
        raise
    scheduler.commit(
        {
            "best": str((folder / "best.ckpt").relative_to(scheduler.run_dir)),
            "best_epoch": checkpoints.best_epoch,
            "monitor": stage.monitor,
            "metrics": checkpoints.best_metrics,
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu_started, 1),
            "resumed": resume is not None,
            "weights": state_digest(cli.model.state_dict()),
        }
    )
    if tracked and logger:
        tracked.finish_stage(logger, "FINISHED")


def make_trainer(cli: EngineCLI, callbacks: list[Callback], logger: Any, max_epochs: int, **stage_arguments: Any) -> L.Trainer:
    """The config's Trainer with the stage's own arguments over it. ``trainer.max_epochs``, where set, bounds every stage."""
    arguments = {**cli.trainer_arguments, **stage_arguments}
    arguments["max_epochs"] = min(max_epochs, arguments.get("max_epochs") or max_epochs)
    arguments.update(logger=logger or False, callbacks=callbacks, use_distributed_sampler=False, enable_model_summary=False)
    return L.Trainer(**arguments)


def _test(cli: EngineCLI, scheduler: StageScheduler) -> dict[str, float]:
    handoff = scheduler.handoff_path()
    assert handoff is not None, "a plan has at least one stage"
    load_weights(cli.model, handoff)
    say("test: the best weights of the last stage")
    # every process tests the whole split: retrieval, hard negatives and re-ranking need all pictures in one place
    one = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    rank = getattr(rank_zero_only, "rank", 0)
    trainer = make_trainer(cli, copy.deepcopy(list(cli.callbacks.values())), None, max_epochs=1, **one)
    metrics = trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    if is_first_process():
        cli.model.save_results(scheduler.run_dir, cli.datamodule)
    return {name: float(value) for name, value in metrics[0].items()}


# --- one run's weights ---
def evaluate(cli: EngineCLI, function: str, config_path: str | None, checkpoint: str | None, output: str | None) -> int:
    """``validate``, ``test`` or ``predict`` with a run's best weights and its own tokenizer."""
    hush()
    if function == "predict" and not is_overridden("predict_step", cli.model):
        raise InputError(f"predict: {type(cli.model).__name__} has nothing to predict; validate and test give its figures")
    run_dir = Path(config_path).parent if config_path else None
    path = Path(checkpoint) if checkpoint else best_of(run_dir, function)
    load_weights(cli.model, path, cli.datamodule)
    cli.datamodule.prepare_data()
    cli.datamodule.setup(function)
    say(cli.datamodule.describe())
    say(f"{function}: weights of {path}")
    callbacks = copy.deepcopy(list(cli.callbacks.values())) if function == "test" else []
    trainer = make_trainer(cli, callbacks, None, max_epochs=1)
    if function == "predict":
        rows: Any = trainer.predict(cli.model, datamodule=cli.datamodule)
        folder = Path(output) if output else path.parent.parent / "predictions"
        say(cli.model.save_predictions(rows, folder))
        return 0
    metrics = getattr(trainer, function)(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    say("\n".join(f"{name:<48}{float(value):.4f}" for name, value in sorted(metrics.items())))
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / f"{function}.json").write_text(json.dumps({name: float(value) for name, value in metrics.items()}, indent=1))
        if function == "test" and is_first_process():
            cli.model.save_results(Path(output), cli.datamodule)
    return 0


def best_of(run_dir: Path | None, function: str) -> Path:
    """The best checkpoint of a run's last finished stage.

    Raises:
        InputError: there is none; ``function`` is what it was needed for.
    """
    ledger = run_dir / "stages.json" if run_dir else None
    if run_dir is None or ledger is None or not ledger.exists():
        raise InputError(
            f"{function} needs the weights of a run: give --config RUN/config.yaml of a run with a finished stage, or --ckpt_path FILE"
        )
    done = json.loads(ledger.read_text())["done"]
    if not done:
        raise InputError(f"{ledger}: no stage is finished yet; give --ckpt_path FILE")
    return run_dir / done[-1]["best"]
