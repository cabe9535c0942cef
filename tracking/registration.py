"""A finished run asks to become a version of a registered model. The request lies in RUN/tracking/registration.json.

It is carried out once everything that the run recorded has arrived: at the run's end, or by ``python -m tracking.sync``. Exactly once:
a version is found again by its model and run, and what one store has answered is kept beside the journal's offset.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from insight.errors import InputError
from insight.export.manifest import MANIFEST
from tracking.records import PARENT_KEY, Journal
from tracking.shipper import Sender, StoreState
from tracking.store import StoreError, file_lock, open_client, quiet, set_mlflow_defaults, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

BUNDLE = "bundle"  # the artifact folder of a run that holds it
BUNDLE_TAG, RANKS_TAG = "bundle.sha256", "ranks.sha256"
FINISHED = "summary.json"  # the last file that a run writes: one that was killed before that is trained on, and no version yet
DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


@dataclasses.dataclass(frozen=True)
class Registration:
    """Args:
    name: The registered model.
    tags: Of the version.
    description: Of the version, Markdown.
    registry_uri: The registry, where it is not the tracking store's own.
    """

    name: str
    tags: dict[str, str]
    description: str
    registry_uri: str | None = None


def request(run_dir: str | Path, registration: Registration) -> None:
    """Write the request, atomically."""
    path = _path(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    kept = dataclasses.replace(registration, registry_uri=registration.registry_uri and without_password(registration.registry_uri))
    temporary.write_text(json.dumps(dataclasses.asdict(kept), indent=1))
    os.replace(temporary, path)


def deliver(run_dir: str | Path, tracking_uri: str) -> str | None:
    """Register the version that was asked for; returns its address, or None where none was.

    Raises:
        InputError: the registry does not let this user register.
        One of ``store_errors()``: it is away, or the run has not arrived there as a whole.
    """
    path = _path(run_dir)
    if not path.exists() or not (Path(run_dir) / FINISHED).exists():
        return None
    registration = Registration(**json.loads(path.read_text()))
    sender = Sender(Journal(path.parent / PARENT_KEY), tracking_uri)
    with file_lock(sender.state.lock_path("register")), quiet():
        known = sender.state.registered
        if known is not None:
            return known
        run_id = sender.state.run_id
        if run_id is None or sender.records_left():
            raise StoreError("not all that the run recorded has arrived there")
        if registration.registry_uri and "***" in registration.registry_uri:
            raise InputError(f"the registry {registration.registry_uri} needs a password, which isn't kept: set MLFLOW_REGISTRY_URI")
        client = open_client(tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI") or registration.registry_uri)
        with asking(client, f"register a version of '{registration.name}'"):
            sender.state.registered = address = _register(client, run_id, registration)
        return address


def pending(run_dir: str | Path, tracking_uri: str) -> bool:
    """Whether a finished run has asked and is no version yet."""
    state = StoreState(Journal(Path(run_dir) / "tracking" / PARENT_KEY), tracking_uri)
    return _path(run_dir).exists() and (Path(run_dir) / FINISHED).exists() and state.registered is None


def _path(run_dir: str | Path) -> Path:
    return Path(run_dir) / "tracking" / "registration.json"


def _register(client: MlflowClient, run_id: str, registration: Registration) -> str:
    from mlflow.exceptions import MlflowException

    name = registration.name
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        _create_model(client, name)
    versions = list(client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"))
    if not versions:
        if f"{BUNDLE}/{MANIFEST}" not in {file.path for file in client.list_artifacts(run_id, BUNDLE)}:
            raise StoreError(f"run {run_id} has no bundle in the store: was RUN/{BUNDLE} deleted before it was sent?")
        source = f"runs:/{run_id}/{BUNDLE}"
        versions = [client.create_model_version(name, source, run_id, tags=registration.tags, description=registration.description)]
    return f"models:/{name}/{versions[0].version}"


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Models of MultiModal Insight Engine; one version per finished run.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
            raise


@contextlib.contextmanager
def asking(client: MlflowClient, what: str) -> Iterator[None]:
    """A store's refusal becomes one line that says what was asked.

    Raises:
        InputError: the store does not let this user do ``what``.
    """
    set_mlflow_defaults()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in DENIED:
            raise
        place = without_password(client.tracking_uri)
        raise InputError(f"{place} does not let you {what}: ask its owner for the right, or set your own account's token") from error
