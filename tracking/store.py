"""Where tracking data goes: the store's address, its client, and what a store's failure looks like."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from insight.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
NOISY_LOGGERS = ("alembic.runtime.migration", "alembic.runtime.plugins", "mlflow.store.db.utils", "urllib3.connectionpool")


class StoreError(RuntimeError):
    """The store answers, but cannot take this run (its run or experiment was deleted there). Nothing is lost: the journal stays."""


def resolve_tracking_uri(tracking_uri: str | None, output_dir: str | Path = "outputs") -> str:
    """The argument, else ``MLFLOW_TRACKING_URI``, else SQLite in the output folder; checked without touching the network.

    Raises InputError for an address that no MLflow store can have.
    """
    if tracking_uri:
        return _checked(tracking_uri, "tracking_uri")
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return _checked(os.environ["MLFLOW_TRACKING_URI"], "the variable MLFLOW_TRACKING_URI (used because tracking_uri is not set)")
    return f"sqlite:///{Path(output_dir).resolve() / 'mlflow.db'}"


def _checked(uri: str, source: str) -> str:
    shown = without_password(uri)
    examples = "right would be sqlite:///outputs/mlflow.db or http://host:5000"
    if uri == "databricks":
        return uri
    try:
        parts = urlsplit(uri)
        port_given = parts.port is not None
    except ValueError as error:
        raise InputError(f"{source}: {shown!r} is not an address ({error}); {examples}") from error
    scheme = parts.scheme.split("+")[0].lower()
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
            return uri
        raise InputError(
            f"{source}: {shown!r} is a folder, which MLflow no longer takes as a store; {examples} (or MLFLOW_ALLOW_FILE_STORE=true)"
        )
    if scheme not in SCHEMES and scheme not in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}:
        raise InputError(f"{source}: {shown!r} begins with {scheme!r}, which MLflow doesn't know ({', '.join(SCHEMES)}); {examples}")
    if scheme in ("http", "https") and not parts.hostname:
        raise InputError(f"{source}: {shown!r} names no host{' but a port' if port_given else ''}; {examples}")
    if scheme == "sqlite":
        path = uri.partition(":///")[2]
        if not path or path.startswith(":memory:"):
            raise InputError(f"{source}: {shown!r} names no file; three slashes, then a path: {examples}")
        database, question_mark, query = path.partition("?")
        return f"sqlite:///{Path(database).absolute()}{question_mark}{query}"
    return uri


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a (resolved) SQLite address; None for every other store."""
    scheme, _, path = tracking_uri.partition(":///")
    return Path(path.partition("?")[0]) if scheme.startswith("sqlite") else None


def default_artifact_location(tracking_uri: str) -> str | None:
    """Beside the database for SQLite (MLflow's own default is the working directory); None leaves it to the server."""
    database = sqlite_path(tracking_uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def without_password(text: str) -> str:
    """``text`` with the passwords and tokens of addresses in it starred out.

    >>> without_password("http://me:secret@host:5000 and https://token@host/path")
    'http://me:***@host:5000 and https://***@host/path'
    """
    return re.sub(r"://([^/:\s\"]*:)?[^/\s\"]+@", r"://\1***@", text)


def read_variable(key: str, name: str) -> str:
    """The value of the environment variable that a config key names.

    Raises:
        InputError: it is not set.
    """
    value = os.environ.get(name)
    if not value:
        raise InputError(
            f"{key}={name}: this environment variable is not set; export it (the config keeps its name alone), or set {key}=null"
        )
    return value


def store_address(tracking_uri: str | None, tracking_uri_env: str | None, token_env: str | None, output_dir: str | Path) -> str:
    """The store that a config's ``tracking`` means, and its token where MLflow's client reads it at each request.

    Raises:
        InputError: a variable that the config names is not set, or the address is impossible.
    """
    if token_env is not None:
        os.environ["MLFLOW_TRACKING_TOKEN"] = read_variable("tracking.token_env", token_env)
    if tracking_uri_env is not None:
        return _checked(read_variable("tracking.tracking_uri_env", tracking_uri_env), f"the variable {tracking_uri_env}")
    return resolve_tracking_uri(tracking_uri, output_dir)


def address_digest(tracking_uri: str) -> str:
    """A short file name for a store."""
    return hashlib.sha256(without_password(tracking_uri).encode()).hexdigest()[:12]


def set_mlflow_defaults() -> None:
    """No telemetry and no progress bars unless the user says so. MLflow reads the first while it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def open_client(tracking_uri: str, registry_uri: str | None = None) -> MlflowClient:
    """The only place that makes a client. For SQLite this makes or migrates the tables: one process at a time.

    ``registry_uri`` None: the registry is the tracking store's own.
    """
    set_mlflow_defaults()
    if tracking_uri.startswith("http"):  # MLflow reads these at each request; its defaults block for 246 s when a server is gone
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for every run that ends
    from mlflow import MlflowClient

    database = sqlite_path(tracking_uri)
    if database is None:
        return MlflowClient(tracking_uri, registry_uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(database.name + ".lock")), quiet():
        return MlflowClient(tracking_uri, registry_uri)


def store_errors() -> tuple[type[Exception], ...]:
    """What a store that is absent, slow, full or unwilling raises; anything else is a mistake of ours."""
    set_mlflow_defaults()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, StoreError, OSError, ImportError)


class LazyClient:
    """Stands for an MlflowClient until somebody really uses it: Lightning touches ``logger.experiment`` before every fit."""

    def __init__(self, tracking_uri: str) -> None:
        self._tracking_uri = tracking_uri
        self._client: MlflowClient | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._client is None:
            self._client = open_client(self._tracking_uri)
        return getattr(self._client, name)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` against other threads and processes; waits for them. The kernel frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a forked data worker may hold a copy of the descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep migration and retry chatter of this thread's calls off the screen; errors and other threads still speak."""
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
