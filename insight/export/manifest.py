"""The manifest of a bundle: its format and version, and the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from insight.errors import InputError

FORMAT, VERSION = "multimodal-insight-engine bundle", 1
MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List what is in ``folder``; the last file to be written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {name: {"bytes": len(content := (folder / name).read_bytes()), "sha256": digest(content)} for name in names}
    text = json.dumps({"format": FORMAT, "version": VERSION, "files": files}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_files(folder: Path, needed: Sequence[str], sha256: str | None = None) -> tuple[dict[str, bytes], str]:
    """The content of every file by name, and the manifest's own digest. Each file is read once, and what was checked is what is returned.

    Args:
        folder: The bundle.
        needed: Files that must be listed.
        sha256: What the manifest's digest must be, where somebody who can be trusted says so.

    Raises:
        InputError: no manifest, one of another format or version, or a file that is missing, cut off or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: no bundle (there is no {MANIFEST}); a finished run leaves one at RUN/bundle")
    raw = (folder / MANIFEST).read_bytes()
    if sha256 is not None and digest(raw) != sha256:
        raise InputError(f"{folder}/{MANIFEST}: was changed: its SHA-256 is {digest(raw)[:12]}..., the registry has {sha256[:12]}...")
    files = {}
    for name, facts in _listed(folder, raw, needed).items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise InputError(f"{folder}/{MANIFEST}: names '{name}', which is no place in the bundle")
        if not path.is_file():
            raise InputError(f"{folder}: {name} is missing; fetch the bundle again")
        if (size := path.stat().st_size) != facts["bytes"]:
            raise InputError(f"{folder}: {name} has {size} bytes instead of {facts['bytes']}: cut off or changed; fetch the bundle again")
        files[name] = path.read_bytes()
        if digest(files[name]) != facts["sha256"]:
            raise InputError(f"{folder}: {name} was changed after the bundle was written (its SHA-256 differs); fetch the bundle again")
    return files, digest(raw)


def _listed(folder: Path, raw: bytes, needed: Sequence[str]) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{folder}/{MANIFEST}: not JSON ({error}); fetch the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{folder}/{MANIFEST}: not a bundle of this project")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{folder}: bundle version {manifest.get('version')}, this code reads version {VERSION}: "
            "use the release that wrote it, or make the bundle again from its run"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(one, dict) and {"bytes", "sha256"} <= one.keys() for one in files.values()):
        raise InputError(f"{folder}/{MANIFEST}: lists no files with their bytes and sha256")
    require(folder, files, needed)
    return files


def require(folder: Path, listed: Collection[str], needed: Sequence[str]) -> None:
    """
    Raises:
        InputError: the manifest lists not all of ``needed``.
    """
    missing = [name for name in needed if name not in listed]
    if missing:
        raise InputError(f"{folder}/{MANIFEST}: does not list {', '.join(missing)}; fetch the bundle again, or make it again from its run")


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
