"""The journal on disk: one JSON object a line, only ever appended to. A line counts once its newline is written.

Kinds of record: ``open`` (which run this is; also written when a process goes on with it), ``metrics``, ``params``, ``tags``,
``artifact``, ``status``. All have ``time`` in milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)
Record = dict[str, Any]
PARENT_KEY = "run"  # folder of the journal of a run as a whole; each stage has its own beside it


class Contents(NamedTuple):
    """What earlier processes wrote."""

    points: dict[str, dict[int, float]]  # metric -> step -> value
    params: dict[str, str]
    tags: dict[str, str]
    last_step: int | None


class Journal:
    """``folder/journal.jsonl``. Safe to append to from several threads of one process, and to read from anywhere meanwhile."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.path = self.folder / "journal.jsonl"
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    @property
    def run_dir(self) -> Path:
        """RUN of RUN/tracking/<key>: paths below it are written relative to it, so that a moved run folder can still be sent."""
        return self.folder.parent.parent

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one whole line; if the disk refuses (full), no half line stays behind and the OSError is raised."""
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **fields}).encode() + b"\n"
        with self._lock:
            if self._descriptor is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                self._cut_torn_line(self._descriptor)
            end = os.fstat(self._descriptor).st_size
            try:
                written = os.write(self._descriptor, line)
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
            except OSError:
                os.ftruncate(self._descriptor, end)
                raise

    def last(self) -> Record | None:
        """The last whole record, read from the end: quick in a long journal."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            tail, start = b"", end
            while start > 0 and tail.rfind(b"\n", 0, tail.rfind(b"\n")) < 0:  # two newlines: a whole line between them
                start = max(0, start - 65536)
                file.seek(start)
                tail = file.read(end - start)
        lines = tail[: tail.rfind(b"\n") + 1].splitlines()
        return json.loads(lines[-1]) if lines else None

    def ended(self) -> bool:
        """Whether the last process that wrote said how it ended. One that was killed could not."""
        last = self.last()
        return last is None or last["kind"] == "status"

    def mark_killed(self) -> int:
        """Write the KILLED that the process before could not; returns when its last record was written, in milliseconds."""
        last = self.last()
        assert last is not None, "only a journal with records can lack its end"
        self.append("status", {"status": "KILLED", "time": last["time"]})
        return last["time"]

    def _cut_torn_line(self, descriptor: int) -> None:
        """A killed process may have left half a line; the process that goes on writes that record again."""
        end = os.fstat(descriptor).st_size
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            newline = os.pread(descriptor, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            logger.warning("%s ended in a half-written line of %d bytes (the process was killed); it is cut off", self.path, end - keep)
            os.ftruncate(descriptor, keep)

    def read(self, offset: int = 0) -> Iterator[tuple[int, Record]]:
        """Yield (offset after the record, record) of every whole line from ``offset`` on."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written now, or torn by a kill
                offset += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    logger.warning("%s: the line ending at byte %d is damaged and is skipped", self.path, offset)
                    continue
                yield offset, record

    def opening(self) -> Record | None:
        """The first record: which run this journal belongs to. None before anything was written."""
        return next((record for _, record in self.read() if record["kind"] == "open"), None)

    def contents(self) -> Contents:
        points: dict[str, dict[int, float]] = {}
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        last_step: int | None = None
        for _, record in self.read():
            if record["kind"] == "metrics":
                last_step = record["step"] if last_step is None else max(last_step, record["step"])
                for name, value in record["values"].items():
                    points.setdefault(name, {}).setdefault(record["step"], value)
            elif record["kind"] == "params":
                params.update(record["values"])
            elif record["kind"] == "tags":
                tags.update(record["values"])
        return Contents(points, params, tags, last_step)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
