"""Registered models: what an address means, and the bundle behind it.

Addresses: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``runs:/RUN_ID``.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from insight.errors import InputError
from insight.export import bundle
from insight.export.manifest import MANIFEST
from insight.stages import nearest
from tracking.registration import BUNDLE, BUNDLE_TAG, asking
from tracking.store import open_client, resolve_tracking_uri, set_mlflow_defaults, sqlite_path, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")
ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[A-Za-z0-9_-]+))|runs:/(?P<run>[A-Za-z0-9_-]+)")


class Version(NamedTuple):
    """A registered version, or a run that was never registered (``number`` is then None)."""

    name: str
    number: int | None
    run_id: str
    tags: dict[str, str]

    @property
    def address(self) -> str:
        return f"runs:/{self.run_id}" if self.number is None else f"models:/{self.name}/{self.number}"


def load(address: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> bundle.Bundle:
    """Fetch a bundle and read it.

    Args:
        address: See the module.
        tracking_uri: The store; else MLFLOW_TRACKING_URI, else ``outputs/mlflow.db``.
        registry_uri: The model registry, where it is not the store's own.

    Raises:
        InputError: an unknown model, version, alias or run, a registry that refuses, or a bundle that cannot be trusted.
    """
    client = open_registry(tracking_uri, registry_uri)
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        return fetch(client, find(client, address), Path(folder))


def open_registry(tracking_uri: str | None = None, registry_uri: str | None = None, output_dir: str | Path = "outputs") -> MlflowClient:
    """A client of a store that is there.

    Raises:
        InputError: an impossible address, or a SQLite file that does not exist.
    """
    address = resolve_tracking_uri(tracking_uri, output_dir)
    for uri in filter(None, (address, registry_uri)):
        database = sqlite_path(uri)
        if database is not None and not database.exists():
            raise InputError(f"no MLflow store at {database}; give its address with --tracking-uri, or set MLFLOW_TRACKING_URI")
    return open_client(address, registry_uri)


def find(client: MlflowClient, address: str) -> Version:
    """
    Raises:
        InputError: the address is none, or nothing is there. It names what is.
    """
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise InputError(f"'{address}' is no address of a model; right would be models:/flickr/3, models:/flickr@champion or runs:/RUN_ID")
    if parts["run"]:
        run = _asked(client, f"read run {parts['run']}", lambda: client.get_run(parts["run"]))
        if run is None:
            raise InputError(f"{without_password(client.tracking_uri)} has no run '{parts['run']}'")
        return Version(run.info.run_name, None, run.info.run_id, {})
    model = registered_model(client, parts["name"])
    number = parts["version"]
    if parts["alias"]:
        aliases = {name: str(version) for name, version in model.aliases.items()}
        if parts["alias"] not in aliases:
            hint = nearest(parts["alias"], aliases) if aliases else "; it has none yet: python -m tracking.promote sets them"
            raise InputError(f"model '{parts['name']}' has no alias '{parts['alias']}'{hint}")
        number = aliases[parts["alias"]]
    found = _asked(client, f"read {address}", lambda: client.get_model_version(parts["name"], number))
    if found is None:
        known = sorted(int(one.version) for one in client.search_model_versions(f"name = '{parts['name']}'"))
        raise InputError(f"model '{parts['name']}' has no version {number}; it has {', '.join(map(str, known)) or 'none'}")
    if not found.run_id:
        raise InputError(f"{address} belongs to no run, so it is none of this project's versions: its source is {found.source}")
    return Version(found.name, int(found.version), found.run_id, dict(found.tags))


def registered_model(client: MlflowClient, name: str) -> Any:
    """
    Raises:
        InputError: no model is registered by this name.
    """
    check_name(name, "the model's name")
    model = _asked(client, f"read model '{name}'", lambda: client.get_registered_model(name))
    if model is None:
        known = [one.name for one in client.search_registered_models()]
        hint = nearest(name, known) if known else "; there is none yet: every finished run registers one (deployment.register=true)"
        raise InputError(f"{without_password(client.tracking_uri)} has no registered model '{name}'{hint}")
    return model


def check_name(name: str, key: str) -> None:
    """
    Raises:
        InputError: no registered model can be called so.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{key}: '{name}' is no name for a registered model; letters, digits, spaces and _ . - only, e.g. flickr")


def fetch(client: MlflowClient, version: Version, folder: Path) -> bundle.Bundle:
    """Download the bundle of a version into ``folder``, and read it; the registry's digest of it must be right.

    Raises:
        InputError: it holds none, or one that cannot be trusted.
    """
    listed = _asked(client, f"read the files of {version.address}", lambda: client.list_artifacts(version.run_id, BUNDLE))
    if f"{BUNDLE}/{MANIFEST}" not in {file.path for file in listed or ()}:
        raise InputError(f"{version.address} holds no bundle; a run makes one at its end (deployment.bundle=true)")
    path = client.download_artifacts(version.run_id, BUNDLE, str(folder))
    return bundle.load(path, version.tags.get(BUNDLE_TAG))


def _asked(client: MlflowClient, what: str, call: Any) -> Any:
    """The answer, or None when the store says that it has no such thing."""
    set_mlflow_defaults()
    from mlflow.exceptions import MlflowException

    try:
        with asking(client, what):
            return call()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
