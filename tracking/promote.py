"""``python -m tracking.promote NAME --version N --to dev|staging|prod``: run the gates of an environment, and set its alias if they hold.

``--to prod`` sets the alias ``champion``. ``--force REASON`` sets it although a gate fails; ``--rollback`` gives it back to the version
that held it before. Exit codes: 0 done, 1 the store can't be reached, 2 a mistake in what was asked, 3 a gate refuses.

The alias is set last, by one call: a promotion that is interrupted leaves the old one in place.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insight.errors import InputError
from insight.export.card import table
from insight.query_ranks import FILES, QueryRanks, read_ranks
from insight.stages import Call
from tracking.facts import user_name
from tracking.gates import Subject, Verdict, bind_gates, run_gates
from tracking.registration import RANKS_TAG, asking
from tracking.registry import Version, fetch, find, open_registry, registered_model
from tracking.shipper import PARENT_TAG
from tracking.store import store_errors, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

ALIASES = {"dev": "dev", "staging": "staging", "prod": "champion"}
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
REFUSED = 3


@dataclasses.dataclass(frozen=True)
class Report:
    """Args:
    model: The registered model.
    version: Asked for.
    alias: To be set.
    holder: The version that had the alias when the gates ran.
    verdicts: By gate.
    forced: Reason of ``--force``; empty without.
    """

    model: str
    version: int
    alias: str
    holder: int | None
    verdicts: dict[str, Verdict]
    forced: str = ""

    @property
    def failed(self) -> list[str]:
        return [name for name, verdict in self.verdicts.items() if verdict.state == "fails"]

    @property
    def granted(self) -> bool:
        return not self.failed or bool(self.forced)

    def markdown(self) -> str:
        """What each gate found, as a table, and what follows from it."""
        held = "nobody" if self.holder is None else f"version {self.holder}"
        rows = [[name, *verdict] for name, verdict in self.verdicts.items()]
        absent = [name for name, verdict in self.verdicts.items() if verdict.state == "absent"]
        lines = [f"models:/{self.model}/{self.version} to @{self.alias}, which {held} holds now", ""]
        lines += [table(["gate", "verdict", "figure", "threshold", "holder", "note"], rows), ""]
        if absent:
            lines.append(f"Not measured, so neither for nor against: {', '.join(absent)}.")
        if self.failed:
            lines.append(f"Refused by: {', '.join(self.failed)}." + (f" Forced: {self.forced}" if self.forced else ""))
        lines.append(f"@{self.alias} {'goes to' if self.granted else 'does not go to'} version {self.version}.")
        return "\n".join(lines)


def read_gates(environment: str, overrides: Sequence[str] = ()) -> dict[str, Call]:
    """The gates of configs/gates/ENVIRONMENT.yaml, with Hydra's overrides.

    Raises:
        InputError: no such environment, or an override of a key that isn't there.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    foreign = [word for word in overrides if not word.lstrip("+~").startswith("gates.")]
    if foreign:
        raise InputError(f"'{foreign[0]}': only gates can be changed here, e.g. gates.latency.arguments.at_most_ms=50")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            composed: Any = OmegaConf.to_container(compose("promote", [f"gates={environment}", *overrides]), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(" ".join(str(error).split())) from error
    gates = {}
    for name, one in composed["gates"].items():
        unknown = one.keys() - {"function", "arguments"}
        if unknown or "function" not in one:
            raise InputError(f"gates.{name}: must have function and arguments{f', not {sorted(unknown)[0]}' if unknown else ''}")
        gates[name] = Call(one["function"], one.get("arguments") or {})
    return gates


def promote(client: MlflowClient, model: str, number: int, environment: str, gates: dict[str, Call], force: str = "") -> Report:
    """Run the gates on a version, and set the environment's alias if all hold or ``force`` says why it is set nevertheless.

    Raises:
        InputError: an unknown model or version, no right to it, a bundle that cannot be trusted, or an alias that moved meanwhile.
    """
    bound = bind_gates(gates)
    alias = ALIASES[environment]
    candidate = find(client, f"models:/{model}/{number}")
    held = holder_of(client, model, alias)
    with tempfile.TemporaryDirectory(prefix="promote-") as folder:
        subject = examine(client, candidate, Path(folder) / "candidate")
        holder = None if held is None else examine(client, find(client, f"models:/{model}/{held}"), Path(folder) / "holder")
        report = Report(model, number, alias, held, run_gates(bound, subject, holder), force)
    record(client, candidate, report)
    if report.granted and held != number:
        if holder_of(client, model, alias) != held:
            raise InputError(f"models:/{model}@{alias} went to another version while the gates ran: promote again")
        with asking(client, f"change the version of '{model}'"):
            client.set_model_version_tag(model, str(number), f"promotion.{alias}.replaces", "" if held is None else str(held))
            client.set_registered_model_alias(model, alias, str(number))
    return report


def rollback(client: MlflowClient, model: str, environment: str) -> tuple[int, int]:
    """Give the alias back to the version that its holder replaced; returns (the one that loses it, the one that has it now).

    Raises:
        InputError: nobody holds the alias, its holder replaced none, or the replaced version is gone.
    """
    alias = ALIASES[environment]
    held = holder_of(client, model, alias)
    if held is None:
        raise InputError(f"model '{model}' has no alias '{alias}': there is nothing to roll back")
    before = find(client, f"models:/{model}/{held}").tags.get(f"promotion.{alias}.replaces")
    if not before:
        raise InputError(f"models:/{model}@{alias} is version {held}, which replaced none: promote another one")
    find(client, f"models:/{model}/{before}")
    with asking(client, f"change the alias '{alias}' of '{model}'"):
        client.set_model_version_tag(model, str(held), f"promotion.{alias}.rolled_back", stamp())
        client.set_registered_model_alias(model, alias, before)
    return held, int(before)


def holder_of(client: MlflowClient, model: str, alias: str) -> int | None:
    version = registered_model(client, model).aliases.get(alias)
    return None if version is None else int(version)


def examine(client: MlflowClient, version: Version, folder: Path) -> Subject:
    """Fetch what the gates look at: bundle, ranks, figures."""
    folder.mkdir()
    with asking(client, f"read {version.address}"):
        bundle = fetch(client, version, folder)
        run = client.get_run(version.run_id)
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{version.run_id}'", order_by=["attributes.run_name DESC"], max_results=1
        )
        last = {name: value for child in children for name, value in child.data.metrics.items() if name.startswith("insight/")}
        ranks = fetch_ranks(client, version, folder)
    return Subject(version.address, bundle, ranks, {**last, **run.data.metrics}, run.data.tags.get("data.fingerprint"))


def fetch_ranks(client: MlflowClient, version: Version, folder: Path) -> QueryRanks | None:
    """The ranks of the version's test, or None where it was not tested.

    Raises:
        InputError: they are not those that were registered.
    """
    if not set(FILES) <= {file.path for file in client.list_artifacts(version.run_id)}:
        return None
    for name in FILES:
        client.download_artifacts(version.run_id, name, str(folder))
    ranks, digest = read_ranks(folder)
    if version.tags.get(RANKS_TAG) != digest:
        raise InputError(f"{version.address}: the ranks of its test were changed after it was registered (their SHA-256 differs)")
    return ranks


def record(client: MlflowClient, version: Version, report: Report) -> None:
    """Keep the report with the version's run, and its outcome with the version; whoever forced it, by name."""
    facts = {"at": stamp(), "by": user_name(), **dataclasses.asdict(report), "granted": report.granted}
    facts["verdicts"] = {name: verdict._asdict() for name, verdict in report.verdicts.items()}
    outcome = "forced" if report.failed and report.forced else "granted" if report.granted else "refused"
    place = f"promotions/{report.alias}-{facts['at'].replace(':', '')}"
    with asking(client, f"change the version of '{report.model}'"):
        client.log_text(version.run_id, report.markdown() + "\n", f"{place}.md")
        client.log_text(version.run_id, json.dumps(facts, indent=1), f"{place}.json")
        tags = {"": f"{outcome} at {facts['at']} by {facts['by']}", ".failed": ", ".join(report.failed), ".forced": report.forced}
        for name, value in tags.items():
            client.set_model_version_tag(report.model, str(report.version), f"promotion.{report.alias}{name}", value)


def stamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tracking.promote", description="Run an environment's gates on a version; set its alias."
    )
    parser.add_argument("name", help="the registered model, e.g. flickr")
    parser.add_argument("--version", type=int, help="the version to promote")
    parser.add_argument("--to", required=True, choices=ALIASES, help="the environment; prod sets the alias champion")
    parser.add_argument("--force", metavar="REASON", help="set the alias although a gate fails; the reason is kept")
    parser.add_argument("--rollback", action="store_true", help="give the alias back to the version that held it before")
    parser.add_argument("--tracking-uri", help="the MLflow store; else MLFLOW_TRACKING_URI, else outputs/mlflow.db")
    parser.add_argument("--registry-uri", help="the model registry, where it is not the store's own")
    parser.add_argument("overrides", nargs="*", help="changes of gates, e.g. gates.latency.arguments.at_most_ms=50")
    options = parser.parse_intermixed_args(arguments)
    try:
        return _main(options)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except store_errors() as error:
        sys.stderr.write(f"the MLflow store can't be reached or failed; no alias was changed: {without_password(str(error))[:500]}\n")
        return 1


def _main(options: argparse.Namespace) -> int:
    if options.force is not None and not options.force.strip():
        raise InputError("--force needs a reason, which is kept: --force 'the holder is broken'")
    if options.rollback == (options.version is not None):
        raise InputError("give either --version N or --rollback")
    client = open_registry(options.tracking_uri, options.registry_uri)
    if options.rollback:
        lost, now = rollback(client, options.name, options.to)
        sys.stdout.write(f"models:/{options.name}@{ALIASES[options.to]} is version {now} again, not {lost}\n")
        return 0
    gates = read_gates(options.to, options.overrides)
    report = promote(client, options.name, options.version, options.to, gates, options.force or "")
    sys.stdout.write(report.markdown() + "\n")
    return 0 if report.granted else REFUSED


if __name__ == "__main__":
    sys.exit(main())
