"""The decision log: what happened and why, newest in memory, all of it as JSON lines on disk, live to those who listen.

Appending costs the caller no disk and no wait: a thread writes. What the disk does not take in time is counted, stays in memory, and
is news in `problem`. Segments are `decisions-<first id>.jsonl`; the oldest are removed when together they are over `max_bytes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

from sidecar.core.model import Event, Evidence, Hold

PREFIX, SUFFIX = "decisions-", ".jsonl"
SEGMENTS = 8
"""Into how many segments `max_bytes` is divided."""
MIN_SEGMENT_BYTES = 64 << 10
WAITING = 10_000
"""Records that wait for the disk at most."""
BATCH = 500
MAX_LINE_BYTES = 256 << 10
MAX_SENTENCE = 2000
MAX_ITEMS = 100
"""Evidence or holds of one record at most."""
MAX_LIMIT = 1000
"""Records of one page at most."""


@dataclass(frozen=True, slots=True)
class RecordedEvidence:
    """One reason, as it was: `count` of them from `first` to `when`, `strength` hard, soft or advisory. `instance`: address:port."""

    kind: str
    strength: str
    good: bool
    count: int
    first: datetime | None
    when: datetime
    detail: str = ""
    instance: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "strength": self.strength,
            "good": self.good,
            "count": self.count,
            "first": None if self.first is None else stamp(self.first),
            "when": stamp(self.when),
            "detail": self.detail,
            "instance": self.instance,
        }


@dataclass(frozen=True, slots=True)
class RecordedHold:
    """One named reason not to act, with its arithmetic. `instance`: address:port, "" = the whole service."""

    name: str
    why: str
    instance: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "why": self.why, "instance": self.instance}


@dataclass(frozen=True, slots=True)
class Record:
    """One event of the decision log. `id` grows by one; `instance` is `address:port` or ""; `when` is UTC."""

    id: int
    when: datetime
    kind: str
    by: str
    sentence: str
    service: str = ""
    instance: str = ""
    evidence: tuple[RecordedEvidence, ...] = ()
    holds: tuple[RecordedHold, ...] = ()
    enforced: bool = True

    def to_json(self) -> dict[str, Any]:
        """The API's and the file's shape; times as RFC 3339 UTC."""
        return {
            "id": self.id,
            "when": stamp(self.when),
            "kind": self.kind,
            "by": self.by,
            "sentence": self.sentence,
            "service": self.service,
            "instance": self.instance,
            "evidence": [each.to_json() for each in self.evidence],
            "holds": [each.to_json() for each in self.holds],
            "enforced": self.enforced,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Read back; ValueError if this is no record. Unknown fields are ignored, missing ones take their defaults."""
        try:
            return cls(
                int(value["id"]),
                datetime.fromisoformat(value["when"]).astimezone(UTC),
                str(value["kind"]),
                str(value["by"]),
                str(value["sentence"]),
                str(value.get("service", "")),
                str(value.get("instance", "")),
                tuple(_evidence_from(each) for each in value.get("evidence", ())),
                tuple(RecordedHold(str(h["name"]), str(h["why"]), str(h.get("instance", ""))) for h in value.get("holds", ())),
                bool(value.get("enforced", True)),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a record of the decision log: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Page:
    """Records, newest first. `next_cursor`: give it back for the older ones; None = there are none that match in memory."""

    records: list[Record] = field(default_factory=list)
    next_cursor: str | None = None


class Subscription:
    """New records as they come: `async for record in subscription`. Ends when closed, or when `maxsize` of them wait unread.

    Used on the loop that subscribed; filled from any thread.
    """

    def __init__(self, owner: Decisions, maxsize: int, waiting: Sequence[Record]) -> None:
        self.too_slow = False
        self._owner = owner
        self._maxsize = maxsize
        self._loop = asyncio.get_running_loop()
        self._waiting = deque(waiting)
        self._news = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Record:
        while True:
            self._news.clear()  # before looking, so that news from another thread in between wakes us again
            if self._closed:
                raise StopAsyncIteration
            if self._waiting:
                return self._waiting.popleft()
            await self._news.wait()

    def close(self) -> None:
        """End it; a reader that waits is let go. Safe twice."""
        self._closed = True
        self._owner.unsubscribe(self)
        with contextlib.suppress(RuntimeError):  # its loop is gone: nobody waits there
            self._loop.call_soon_threadsafe(self._news.set)

    def offer(self, records: Sequence[Record]) -> bool:
        """Hand records over; False when the reader has fallen too far behind, or his loop is gone."""
        if len(self._waiting) + len(records) > self._maxsize:
            self.too_slow = self._closed = True
            return False
        self._waiting.extend(records)
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:
            return False
        return True


class Which(TypedDict, total=False):
    """Which decisions are asked for. `instance`: address:port; `since` inclusive, `until` exclusive; `by`: the whole, or its kind."""

    service: str | None
    instance: str | None
    since: datetime | None
    until: datetime | None
    by: str | None


class Decisions:
    """The decision log of one running sidecar. `directory` None = memory only. Nothing here raises for the disk's sake.

    `dropped`: records that never reached the disk. `problem`: "" or what is wrong with the disk and what to do. One writer: the caller
    holds the state folder's lock.
    """

    def __init__(self, directory: Path | None, max_bytes: int, keep: int = 10_000) -> None:
        self.dropped = 0
        self.problem = ""
        self._kept: deque[Record] = deque(maxlen=keep)
        self._guard = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._next_id = 1
        self._waiting: queue.Queue[Record | None] = queue.Queue(WAITING)
        self._segments: _Segments | None = None
        self._writer: threading.Thread | None = None
        if directory is not None:
            self._segments = _Segments(directory, max_bytes)
            self._recall(directory, keep)
            self._writer = threading.Thread(target=self._write, name="decision-log", daemon=True)
            self._writer.start()

    @property
    def last_id(self) -> int:
        """Of the newest record; 0 = there has never been one."""
        return self._next_id - 1

    def append(self, events: Sequence[Event], wall_of: Callable[[float], datetime]) -> None:
        """Take these events in. `wall_of` turns monotonic seconds into UTC. Returns at once, whatever the disk does."""
        if not events:
            return
        with self._guard:
            records = [_record(self._next_id + place, event, wall_of) for place, event in enumerate(events)]
            self._next_id += len(records)
            self._kept.extend(records)
            listeners = list(self._subscriptions)
        for listener in listeners:
            if not listener.offer(records):
                listener.close()
        if self._writer is not None:
            for place, record in enumerate(records):
                try:
                    self._waiting.put_nowait(record)
                except queue.Full:
                    self.dropped += len(records) - place
                    self.problem = "the disk does not keep up: decisions are kept in memory only; look at the state folder's disk"
                    break

    def query(self, *, limit: int = 100, cursor: str | None = None, **which: Unpack[Which]) -> Page:
        """What matches of the newest `keep`, newest first. ValueError for a cursor that is none of ours."""
        below = _cursor(cursor)
        limit = min(max(limit, 1), MAX_LIMIT)
        with self._guard:
            kept = list(self._kept)
        found: list[Record] = []
        for record in reversed(kept):
            if record.id >= below or not _matches(record, **which):
                continue
            if len(found) == limit:
                return Page(found, str(found[-1].id))
            found.append(record)
        return Page(found)

    def recall(self, *, limit: int = 100, cursor: str | None = None, **which: Unpack[Which]) -> Page:
        """The same of those that are on disk alone, older than all in memory. Reads the whole log: not for the loop."""
        with self._guard:
            oldest = self._kept[0].id if self._kept and len(self._kept) == self._kept.maxlen else 0
        if self._segments is None or not oldest or ((since := which.get("since")) is not None and since >= self._kept[0].when):
            return Page()
        below, limit = min(_cursor(cursor), oldest), min(max(limit, 1), MAX_LIMIT)
        found: deque[Record] = deque(maxlen=limit + 1)
        try:
            found.extend(r for r in read(self._segments.directory) if r.id < below and _matches(r, **which))
        except OSError:
            return Page()
        newest = list(reversed(found))
        return Page(newest[:limit], str(newest[limit - 1].id) if len(newest) > limit else None)

    def subscribe(self, maxsize: int = 256, *, after: int | None = None) -> Subscription:
        """Every record from now on, without a gap; with `after` first those newer than this id, as far as they fit in half of `maxsize`.

        Call it on the loop that will read. Close it when done.
        """
        with self._guard:
            missed = [] if after is None else [record for record in self._kept if record.id > after][-max(1, maxsize // 2) :]
            subscription = Subscription(self, maxsize, missed)
            self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._guard:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for `timeout_s` at most; end all subscriptions. Safe twice."""
        for subscription in list(self._subscriptions):
            subscription.close()
        if self._writer is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._writer.join(timeout_s)
        self._writer = None

    # ---- the disk ----

    def _recall(self, directory: Path, keep: int) -> None:
        """The newest records of earlier lives, and the id to go on from."""
        assert self._segments is not None
        try:
            paths = segments(directory)
            batches: list[list[Record]] = []
            for path in reversed(paths):
                batches.append(list(_records(path)))
                if sum(map(len, batches)) >= keep:
                    break
            self._kept.extend(record for batch in reversed(batches) for record in batch)
            if self._kept:
                self._next_id = max(record.id for record in self._kept) + 1
            if paths:
                # A file may hold nothing but a torn line: its number is taken nevertheless.
                self._next_id = max(self._next_id, _number(paths[-1]) + 1)
        except OSError as error:
            self.problem = _cannot("read", directory, error)

    def _write(self) -> None:
        """The writer thread: everything that waits, in batches, until told to end."""
        assert self._segments is not None
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._waiting.get_nowait())
            ended = None in batch
            records = [record for record in batch if record is not None]
            if not records:
                continue
            try:
                self._segments.write(records)
                self.problem = ""
            except OSError as error:
                self.dropped += len(records)
                self.problem = _cannot("written", self._segments.directory, error)
        self._segments.close()


class _Segments:
    """The files of one folder, written by one thread. After an error the file is cut back to its last whole line."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self._segment_bytes = max(max_bytes // SEGMENTS, MIN_SEGMENT_BYTES)
        self._max_bytes = max(max_bytes, 2 * self._segment_bytes)
        self._fd = -1
        self._size = 0

    def write(self, records: Sequence[Record]) -> None:
        """Add these; OSError = none of them is in the file."""
        data = b"".join(_line(record) for record in records)
        if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
            self.close()  # someone removed the file: what is written there nobody will read
        if self._fd < 0:
            self._go_on(records[0].id)
        elif self._size and self._size + len(data) > self._segment_bytes:
            self.close()
            self._open(self._path(records[0].id))
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self.close()  # the folder may have been replaced; the next write looks again
            raise
        self._size += len(data)
        self._drop_oldest()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _go_on(self, first_id: int) -> None:
        """Continue the newest file where its last whole line ends, or begin one."""
        self.directory.mkdir(mode=0o750, exist_ok=True)
        paths = segments(self.directory)
        newest = paths[-1] if paths and paths[-1].stat().st_size < self._segment_bytes else None
        self._open(newest or self._path(first_id))

    def _open(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size
        if self._size:
            whole = os.pread(self._fd, self._size, 0).rfind(b"\n") + 1
            os.ftruncate(self._fd, whole)
            self._size = whole

    def _path(self, first_id: int) -> Path:
        return self.directory / f"{PREFIX}{first_id:016d}{SUFFIX}"

    def _drop_oldest(self) -> None:
        paths = segments(self.directory)
        sizes = [path.stat().st_size for path in paths]
        for path, size in zip(paths[:-1], sizes, strict=False):
            if sum(sizes) <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            sizes.remove(size)


def read(directory: Path) -> Iterator[Record]:
    """All records of a state folder, oldest first, without a running sidecar; OSError if it cannot be read. Torn lines are passed over."""
    for path in segments(directory):
        try:
            yield from _records(path)
        except FileNotFoundError:
            continue  # a running sidecar has just removed its oldest


def segments(directory: Path) -> list[Path]:
    """The log's files in this folder, oldest first; none when there is no such folder."""
    try:
        found = [path for path in directory.iterdir() if path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    return sorted((path for path in found if _digits(path).isascii() and _digits(path).isdigit()), key=_number)


def stamp(when: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, as 2026-01-31T12:00:00.000Z."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _record(number: int, event: Event, wall_of: Callable[[float], datetime]) -> Record:
    return Record(
        number,
        wall_of(event.at),
        event.kind,
        event.by,
        event.sentence[:MAX_SENTENCE],
        event.service or (event.instance.service if event.instance else ""),
        str(event.instance.address) if event.instance else "",
        tuple(_recorded(each, wall_of) for each in event.evidence[:MAX_ITEMS]),
        tuple(_held(each) for each in event.holds[:MAX_ITEMS]),
        event.enforced,
    )


def _recorded(evidence: Evidence, wall_of: Callable[[float], datetime]) -> RecordedEvidence:
    return RecordedEvidence(
        evidence.kind,
        evidence.strength.value,
        evidence.good,
        evidence.count,
        wall_of(evidence.first_at) if evidence.first_at else None,
        wall_of(evidence.at),
        evidence.detail[:MAX_SENTENCE],
        str(evidence.instance.address),
    )


def _held(hold: Hold) -> RecordedHold:
    return RecordedHold(hold.name.value, hold.why[:MAX_SENTENCE], str(hold.instance.address) if hold.instance else "")


def _matches(
    record: Record,
    service: str | None = None,
    instance: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    by: str | None = None,
) -> bool:
    return (
        (service is None or record.service == service)
        and (instance is None or record.instance == instance)
        and (since is None or record.when >= since)
        and (until is None or record.when < until)
        and (by is None or record.by == by or record.by.startswith(f"{by}:"))
    )


def _cursor(text: str | None) -> float:
    if text is None:
        return float("inf")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text[:40]!r} is not a cursor: give back `next_cursor` of the page before, or none")
    return int(text)


def _line(record: Record) -> bytes:
    return json.dumps(record.to_json(), ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _records(path: Path) -> Iterator[Record]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                continue  # torn, or longer than any of ours
            try:
                yield Record.from_json(json.loads(line))
            except (ValueError, RecursionError):
                continue  # damaged: the lines around it are still true


def _evidence_from(value: Mapping[str, Any]) -> RecordedEvidence:
    first = value.get("first")
    return RecordedEvidence(
        str(value["kind"]),
        str(value["strength"]),
        bool(value["good"]),
        int(value["count"]),
        None if first is None else datetime.fromisoformat(first).astimezone(UTC),
        datetime.fromisoformat(value["when"]).astimezone(UTC),
        str(value.get("detail", "")),
        str(value.get("instance", "")),
    )


def _digits(path: Path) -> str:
    return path.name[len(PREFIX) : -len(SUFFIX)]


def _number(path: Path) -> int:
    return int(_digits(path))


def _cannot(verb: str, directory: Path, error: OSError) -> str:
    why = error.strerror or str(error)
    return f"the decision log in {directory} cannot be {verb}: {why}; new decisions are in memory only: free space or mend its rights"


__all__ = ["Decisions", "Page", "Record", "RecordedEvidence", "RecordedHold", "Subscription", "read", "segments", "stamp"]
