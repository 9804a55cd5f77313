"""Instances from a file in Prometheus' file_sd form: `[{"targets": ["10.0.0.5:8080"], "labels": {"zone": "b"}}]`, JSON or YAML.

The file's time, size and inode are looked at every second. A broken file is an error as a whole: a half-written one must never
look like a service that shrank.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lbplugins.values import Address
from sidecar.core.model import Instance
from sidecar.discovery.source import MAX_INSTANCES, Reading, SourceError
from sidecar.net.addresses import host_problem

POLL_S = 1.0
MAX_FILE_BYTES = 4 << 20
MAX_LABELS = 32
MAX_LABEL_CHARS = 128

Stamp = tuple[int, int, int]


class File:
    """One watched file. Owns the last answer, and the one thread that may still be waiting for a hung disk."""

    def __init__(self, service: str, path: Path) -> None:
        self.service = service
        self.name = f"file:{path}"
        self._path = path
        self._stamp: Stamp | None = None
        self._reading = Reading()
        self._pending: asyncio.Task[tuple[Stamp, Reading]] | None = None

    async def read(self) -> Reading:
        """All instances in the file; SourceError names the file and what is wrong with it."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(asyncio.to_thread(self._look, self._stamp, self._reading))
            self._pending.add_done_callback(lambda task: task.cancelled() or task.exception())  # its error is told by the next read
        await asyncio.wait((self._pending,))
        task, self._pending = self._pending, None
        self._stamp, self._reading = task.result()
        return self._reading

    def _look(self, stamp: Stamp | None, reading: Reading) -> tuple[Stamp, Reading]:
        try:
            with self._path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                now = (status.st_mtime_ns, status.st_size, status.st_ino)
                if now == stamp:
                    return now, reading
                raw = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror}; the instances known before are kept") from error
        return now, parse(raw, self.service, str(self._path))


def parse(raw: bytes, service: str, file: str) -> Reading:
    """The instances in a file_sd text; SourceError names the entry at fault. The same address twice counts once."""
    groups = _document(raw, file)
    if not isinstance(groups, list):
        raise SourceError(f'{file}: not a list of groups, as [{{"targets": ["10.0.0.5:8080"]}}]')
    labels: dict[Instance, dict[str, str]] = {}
    for number, group in enumerate(groups, 1):
        words = _labels(group, f"{file}: group {number}")
        for target in _targets(group, f"{file}: group {number}"):
            labels.setdefault(Instance(service, target), words)
            if len(labels) > MAX_INSTANCES:
                raise SourceError(f"{file}: more than {MAX_INSTANCES} targets: not believed")
    return Reading(tuple(labels), {instance: words for instance, words in labels.items() if words}, POLL_S)


def _document(raw: bytes, file: str) -> Any:
    if len(raw) > MAX_FILE_BYTES:
        raise SourceError(f"{file}: bigger than {MAX_FILE_BYTES >> 20} MiB: not believed")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise SourceError(f"{file}: empty; write [] if the service has no instances")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if file.endswith(".json"):
            raise SourceError(f"{file}: not JSON: {error}") from error
    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, AssertionError) as error:
        # ruamel answers some malformed texts with errors of its own insides; all of them mean the same to the reader.
        raise SourceError(f"{file}: neither JSON nor YAML: {' '.join(str(error).split())[:150]}") from error


def _targets(group: Any, where: str) -> Iterator[Address]:
    targets = group.get("targets") if isinstance(group, dict) else None
    if not isinstance(targets, list):
        raise SourceError(f"{where}: no `targets` list")
    for target in targets:
        try:
            address = Address.parse(target if isinstance(target, str) else repr(target))
        except ValueError as error:
            raise SourceError(f"{where}: {str(error)[:150]}") from error
        if (problem := host_problem(address.host)) is not None:
            raise SourceError(f"{where}: {problem}")
        yield address


def _labels(group: Any, where: str) -> dict[str, str]:
    """The group's labels; those that begin with `__` are Prometheus' own and dropped."""
    labels = group.get("labels") or {} if isinstance(group, dict) else {}
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        raise SourceError(f"{where}: `labels` must be a mapping of at most {MAX_LABELS} words")
    kept = {}
    for name, value in labels.items():
        words = f"{name}{value}"
        if not isinstance(name, str) or isinstance(value, dict | list) or len(words) > 2 * MAX_LABEL_CHARS or not words.isprintable():
            raise SourceError(f"{where}: label {str(name)[:40]!r} is not a short printable text")
        if not name.startswith("__"):
            kept[name] = str(value)
    return kept
