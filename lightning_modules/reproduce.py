"""`python train.py reproduce=RUN_ID`: a run again, from what MLflow holds of it, and whether it ends bitwise as it did.

What the run is comes from the run; where things lie and are tracked comes from this command.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from callbacks.stage_scheduler import write_json
from insight.errors import InputError
from lightning_modules.drive import check_tracking, differences, hush, open_run_dir, open_tracking, run_stages, say
from lightning_modules.engine_cli import EngineCLI, build
from tracking.past import PastRun, find_run
from tracking.reproduce import code_differences, judge
from tracking.run import SOURCE_FOLDER
from tracking.store import store_address, store_errors, without_password

PLACES = ("reproduce", "env", "run_dir", "run.output_dir", "paths", "tracking")  # what may be given beside it
NOT_REPRODUCED = 1


def reproduce(reference: str, composed: dict[str, Any], overrides: list[str]) -> int:
    """Train again; returns 0 where all weights are bitwise equal, 1 where they are not.

    Raises:
        InputError: no such run, other keys beside it, a config that this code does not take, or other data.
    """
    others = [word for word in overrides if not _is_place(word)]
    if others:
        raise InputError(f"reproduce={reference} takes the run's own config; leave out {' '.join(others)}, or start another run with them")
    tracking = composed["tracking"]
    address = store_address(tracking["tracking_uri"], tracking["tracking_uri_env"], tracking["token_env"], composed["run"]["output_dir"])
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch:
        try:
            run = find_run(reference, address, Path(scratch), "reproduce")
        except store_errors() as error:
            raise InputError(f"reproduce={reference}: {without_password(' '.join(str(error).split()))[:300]}") from error
        return _reproduce(run, composed)


def _is_place(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return any(key == place or key.startswith(f"{place}.") for place in PLACES)


def _reproduce(run: PastRun, composed: dict[str, Any]) -> int:
    label = f"run {run.run_id or run.name}"
    then = run.config
    cli = _build_as_it_was(label, run, then, composed)
    hush(cli.settings.log_level)
    check_tracking(cli)
    if str(cli.trainer_arguments.get("devices", 1)) != "1":
        raise InputError(f"{label} ran in several processes; repeat it with: python -m lightning_modules.cli multistage --config CONFIG")
    changed = [f"config {line}" for line in differences(_what(then), _what(cli.frozen))]
    changed = [*map(str, code_differences(run, SOURCE_FOLDER)), *changed]
    say(f"reproducing {label} ({run.name})")
    for line in changed or ["commit, changes, packages, machine and config are as they were"]:
        say(f"  {line}")
    _refuse_other_data(label, run, cli)
    if changed:
        say("  what differs may change the weights; the end of the run says whether it did")
    run_dir = open_run_dir(cli)
    cli.run_dir = str(run_dir)
    code = run_stages(cli)
    if code:
        return code
    verdict = judge(run, json.loads((run_dir / "summary.json").read_text()))
    say(f"\n{verdict.text}")
    write_json(run_dir / "reproduction.json", {"of": run.run_id or run.name, "differences": changed, **verdict._asdict()})
    tracked = open_tracking(cli, run_dir)
    if tracked:
        tracked.logger.set_tags({"reproduces": run.run_id or run.name, "reproduced": str(verdict.equal).lower()})
        tracked.logger.log_artifact(run_dir / "reproduction.json")
        tracked.logger.close("FINISHED")
    return 0 if verdict.equal else NOT_REPRODUCED


def _build_as_it_was(label: str, run: PastRun, then: dict[str, Any], composed: dict[str, Any]) -> EngineCLI:
    """The run's config with this command's places, built."""
    config = {**then, "run_dir": composed["run_dir"], "tracking": {**composed["tracking"], "experiment": then["tracking"]["experiment"]}}
    config["run"] = {**then["run"], "output_dir": composed["run"]["output_dir"]}
    arguments = {**then["data"]["init_args"]}
    if "cache_dir" in arguments:
        arguments["cache_dir"] = composed["paths"]["cache"]
    if composed["paths"]["flickr30k"] is not None:
        arguments["root"] = composed["paths"]["flickr30k"]
    config["data"] = {**then["data"], "init_args": arguments}
    if "deployment" in config:
        config["deployment"] = {**config["deployment"], "register": False}  # a repetition is no candidate of its own
    try:
        return build(config)
    except InputError as error:
        commit = run.tags.get("mlflow.source.git.commit", "unknown")
        raise InputError(f"{label}: its config is not taken by this code ({error}); it was made with commit {commit}") from error


def _what(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the places that a reproduction may have of its own."""
    data = {key: value for key, value in config["data"]["init_args"].items() if key not in ("root", "cache_dir")}
    run = {key: value for key, value in config["run"].items() if key != "output_dir"}
    kept = {key: value for key, value in config.items() if key not in ("tracking", "run_dir", "deployment")}
    return {**kept, "run": run, "data": {**config["data"], "init_args": data}}


def _refuse_other_data(label: str, run: PastRun, cli: EngineCLI) -> None:
    then = run.tags.get("data.fingerprint")
    if then is None:
        say("  data: the run did not record its fingerprint, so nobody knows whether they are the same")
        return
    cli.datamodule.prepare_data()
    now = cli.datamodule.fingerprint()
    if now != then:
        raise InputError(
            f"{label} cannot be reproduced: data: fingerprint {then[:16]} -> {now[:16]} ({run.tags.get('data', 'no description')} -> "
            f"{cli.datamodule.describe()}); give its own data with paths.flickr30k=PATH, or train on these with "
            "python -m lightning_modules.cli multistage --config CONFIG"
        )
