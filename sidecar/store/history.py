"""What was measured, for weeks: response times as mergeable histograms and how each instance stood, every ten seconds, in SQLite.

A thread writes; taking a row in costs the caller no disk and no wait. Ten seconds are kept for six hours, minutes for a week, ten minutes
for ninety days, and less where the size bound says so: then the oldest go first. The decision log is a file of its own: `decisions`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from lbplugins.values import Operator
from sidecar.core import guard
from sidecar.core.histogram import Histogram
from sidecar.core.model import Judgement, Serving
from sidecar.core.samples import serving
from sidecar.core.window import Latencies, Source
from sidecar.core.world import World

log = logging.getLogger("sidecar.store")

FILE, ASIDE = "history.sqlite3", "history.sqlite3.damaged"
SPANS = (10, 60, 600)
"""Seconds that one row covers, finest first; each is made of the one before."""
KEPT_S = {10: 6 * 3600, 60: 7 * 86_400, 600: 90 * 86_400}
FORMAT = 1
WAITING = 30
"""Batches, ten seconds each, that wait for the disk at most."""
AT_ONCE = 500
"""Rows of one transaction: other threads get their turn in between."""
PAUSE_S = 0.002
TIDY_EVERY_S = 60.0
ROLLED_AFTER_S = 60
"""A minute is summed up so long after its end: by then its last ten seconds have come."""
MIN_BYTES = 4 << 20
_SCHEMA = """
BEGIN;
CREATE TABLE series (id INTEGER PRIMARY KEY, service TEXT, instance TEXT, source TEXT, UNIQUE (service, instance, source));
CREATE TABLE rows (span INTEGER, series INTEGER, at INTEGER, failures INTEGER, state INTEGER, times BLOB,
    PRIMARY KEY (span, series, at)) WITHOUT ROWID;
CREATE TABLE spans (span INTEGER PRIMARY KEY, start INTEGER, end INTEGER);
INSERT INTO spans VALUES (10, 0, 0), (60, 0, 0), (600, 0, 0);
PRAGMA user_version = 1;
COMMIT;
"""
_JUDGEMENTS, _OPERATORS, _SERVINGS = tuple(Judgement), tuple(Operator), tuple(Serving)
SOURCES: tuple[Source, ...] = ("probe", "traffic")


class State(NamedTuple):
    """How an instance stood."""

    judgement: Judgement
    operator: Operator
    serving: Serving

    @property
    def number(self) -> int:
        """As a row has it; 0 is nobody's."""
        return 1 + _JUDGEMENTS.index(self[0]) + 8 * _OPERATORS.index(self[1]) + 64 * _SERVINGS.index(self[2])

    @classmethod
    def of(cls, number: int) -> State | None:
        """None where there is none, or it is damaged."""
        try:
            return cls(_JUDGEMENTS[(number - 1) % 8], _OPERATORS[number - 1 >> 3 & 7], _SERVINGS[number - 1 >> 6]) if number > 0 else None
        except IndexError:
            return None


class Row(NamedTuple):
    """Some seconds of one instance, or of a whole service where `instance` is "". `state`: see `State`, the last of them."""

    service: str
    instance: str
    source: Source
    failures: int
    state: int
    times: Histogram


class Point(NamedTuple):
    """What came within a step that begins at `at`, seconds since 1970."""

    at: int
    failures: int
    state: int
    times: Histogram


@dataclass(frozen=True, slots=True)
class Answer:
    """Points by instance ("" = the whole service), oldest first, steps without any left out. `step_s`: what it became."""

    step_s: int
    points: Mapping[str, Sequence[Point]]


def rows(world: World, latencies: Latencies, start: int, end: int, now: float) -> Iterator[Row | None]:
    """What is known of the monotonic seconds `start` to `end`, both multiples of 5; Nones so that a loop may do other things meanwhile."""
    for name, service in list(world.services.items()):
        policy = world.policy.services.get(name)
        for source in SOURCES:
            if (found := latencies.ended(name, source, start, end, now)) is not None:
                yield Row(name, "", source, found.failures, 0, found.histogram)
        for instance, state in list(service.instances.items()):
            if policy is None or world.state_of(instance) is not state:
                yield None
                continue
            stood = State(guard.judge(state, policy), state.operator, serving(world, state)).number
            for source in SOURCES:
                found = latencies.ended(instance, source, start, end, now)
                if found is not None:
                    yield Row(name, str(instance.address), source, found.failures, stood, found.histogram)
                elif source == "probe":
                    yield Row(name, str(instance.address), source, 0, stood, Histogram())


class History:
    """The store of one running sidecar. Nothing here raises for the disk's sake.

    `dropped`: rows that never reached the disk. `problem`: "" or what is wrong and what follows. One writer: the caller holds the state
    folder's lock. `read` is for any thread.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.dropped = 0
        self.problem = ""
        self.path = directory / FILE
        self._max_bytes = max(max_bytes, MIN_BYTES)
        self._waiting: queue.Queue[tuple[int, Sequence[Row]] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write, name="history", daemon=True)
        self._thread.start()

    def append(self, at: int, rows: Sequence[Row]) -> None:
        """The ten seconds that began at `at`, seconds since 1970. Returns at once."""
        try:
            self._waiting.put_nowait((at, rows))
        except queue.Full:
            self.dropped += len(rows)
            self.problem = f"the disk does not keep up with {self.path}: {self.dropped} rows of the history are lost"

    def read(self, service: str, source: Source, since: int, until: int, step_s: int, instance: str | None = None) -> Answer:
        """Points of a service and its instances, or of one; waits for the disk. Empty where there is nothing.

        A range keeps its own bounds within the last six hours; before, they are whole minutes, and before the last week whole ten minutes.
        """
        try:
            with contextlib.closing(_opened(self.path, is_reader=True)) as database:
                return _read(database, service, source, since, until, max(step_s, SPANS[0]), instance)
        except (sqlite3.Error, ValueError):
            return Answer(step_s, {})

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for `timeout_s` at most. Safe twice."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    # ---- the thread ----

    def _write(self) -> None:
        database: sqlite3.Connection | None = None
        tidied = time.monotonic()
        while (batch := self._waiting.get()) is not None:
            try:
                if database is not None and not self.path.exists():
                    database.close()  # someone removed the file: what is written there nobody will read
                    database = None
                database = database or self._begin()
                for rows in _pieces(batch[1], AT_ONCE):
                    _insert(database, 10, batch[0], rows)
                    time.sleep(PAUSE_S)
                if time.monotonic() - tidied >= TIDY_EVERY_S:
                    tidied = time.monotonic()
                    tidy(database, batch[0], self._max_bytes)
                self.problem = ""
            except (sqlite3.Error, OSError) as error:
                self.dropped += len(batch[1])
                self._despair(database, error)
                database = None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()

    def _begin(self) -> sqlite3.Connection:
        try:
            return _opened(self.path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._set_aside(error)
            return _opened(self.path)

    def _despair(self, database: sqlite3.Connection | None, error: Exception) -> None:
        """A damaged file is set aside, so that the next batch begins a new one; anything else is tried again with the next batch."""
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if is_damaged:
            self._set_aside(error)
        else:
            self.problem = (
                f"the history in {self.path} cannot be written: {error}; free space or mend its rights, nothing else waits for it"
            )

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(ASIDE)
        with contextlib.suppress(OSError):
            self.path.replace(aside)
        for end in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                self.path.with_name(FILE + end).unlink()
        self.problem = f"the history was damaged ({error}): it is set aside as {aside}, and begun anew"
        log.warning("%s", self.problem)


# ---- the file ----


def _opened(path: Path, *, is_reader: bool = False) -> sqlite3.Connection:
    """A database with our tables; a reader's is as it is and never made."""
    if is_reader:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
    is_new = not path.exists()
    database = sqlite3.connect(path, timeout=5.0, isolation_level=None)
    try:
        if is_new:
            path.chmod(0o640)
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(_SCHEMA)
        elif version != FORMAT:
            raise sqlite3.DatabaseError(f"it has format {version}, this version writes {FORMAT}")
        database.execute("SELECT count(*) FROM spans").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _insert(database: sqlite3.Connection, span: int, at: int, rows: Sequence[Row]) -> None:
    with _transaction(database):
        names = [(row.service, row.instance, row.source) for row in rows]
        database.executemany("INSERT OR IGNORE INTO series (service, instance, source) VALUES (?, ?, ?)", names)
        database.executemany(
            "INSERT OR IGNORE INTO rows SELECT ?, id, ?, ?, ?, ? FROM series WHERE service = ? AND instance = ? AND source = ?",
            [(span, at, row.failures, row.state, packed(row.times), *name) for row, name in zip(rows, names, strict=True)],
        )


def tidy(database: sqlite3.Connection, now: int, max_bytes: int) -> None:
    """Sum up what has ended, let go of what is too old or too much."""
    for fine, coarse in pairwise(SPANS):
        _sum_up(database, fine, coarse, (now - ROLLED_AFTER_S) // coarse * coarse)
    for span, kept_s in KEPT_S.items():
        _drop(database, span, now - kept_s)
    while _size(database) > max_bytes:
        span, start, end = _widest(database)
        if start >= end:
            break
        _drop(database, span, start + max(span, (end - start) // 10))
    database.execute("PRAGMA incremental_vacuum")


def _sum_up(database: sqlite3.Connection, fine: int, coarse: int, until: int) -> None:
    """Rows of the coarser span from those of the finer, from where that ended last time."""
    since = max(*_bounds(database)[coarse], 0)
    if until <= since:
        return
    for (series,) in database.execute("SELECT id FROM series").fetchall():
        found = database.execute(
            "SELECT at, failures, state, times FROM rows WHERE span = ? AND series = ? AND at >= ? AND at < ? ORDER BY at",
            (fine, series, since, until),
        ).fetchall()
        if not found:
            continue
        with _transaction(database):
            for at, parts in groupby(found, key=lambda row: row[0] // coarse * coarse):
                point = _merged(at, parts)
                values = (coarse, series, at, point.failures, point.state, packed(point.times))
                database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)", values)
        time.sleep(PAUSE_S)
    database.execute("UPDATE spans SET end = ? WHERE span = ?", (until, coarse))


def _drop(database: sqlite3.Connection, span: int, before: int) -> None:
    if before <= _bounds(database)[span][0]:
        return
    for (series,) in database.execute("SELECT id FROM series").fetchall():
        database.execute("DELETE FROM rows WHERE span = ? AND series = ? AND at < ?", (span, series, before))
    database.execute("UPDATE spans SET start = ? WHERE span = ?", (before, span))
    database.execute("DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM rows WHERE series = id AND span IN (10, 60, 600))")


def _widest(database: sqlite3.Connection) -> tuple[int, int, int]:
    """The span with most rows, and where it begins and ends."""
    found = database.execute("SELECT span, min(at), max(at) FROM rows GROUP BY span ORDER BY count(*) DESC LIMIT 1").fetchone()
    return found or (SPANS[0], 0, 0)


def _size(database: sqlite3.Connection) -> int:
    """Bytes in use, what is free within the file left out."""
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def _bounds(database: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    """By span: before what nothing is kept any more, and up to where it has been summed up."""
    return {span: (start, end) for span, start, end in database.execute("SELECT span, start, end FROM spans")}


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


# ---- reading ----


def _read(database: sqlite3.Connection, service: str, source: Source, since: int, until: int, step_s: int, instance: str | None) -> Answer:
    parts = plan(since, until, step_s, _bounds(database))
    step_s = max([step_s, *(span for span, _, _ in parts if span > step_s)])
    series = database.execute("SELECT id, instance FROM series WHERE service = ? AND source = ? ORDER BY instance", (service, source))
    found: dict[str, list[Point]] = {}
    for number, name in series.fetchall():
        if instance not in (None, name):
            continue
        rows: list[tuple[int, int, int, bytes]] = []
        for span, start, end in parts:
            rows += database.execute(
                "SELECT at, failures, state, times FROM rows WHERE span = ? AND series = ? AND at >= ? AND at < ? ORDER BY at",
                (span, number, start, end),
            )
        if rows:
            steps = groupby(rows, key=lambda row: (row[0] - since) // step_s)
            found[name] = [_merged(since + at * step_s, each) for at, each in steps]
    return Answer(step_s, found)


def plan(since: int, until: int, step_s: int, bounds: Mapping[int, tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Which rows answer for a range: (span, from, until), oldest first, without overlap. Coarse ones within, fine ones at its edges."""
    parts: list[tuple[int, int, int]] = []
    starts = [bounds[span][0] for span in SPANS]
    for place, least in enumerate(SPANS):
        # where finer rows are gone the coarser must do, whatever the step
        low, high = max(since, starts[place]), min(until, starts[place - 1] if place else until)
        spans = [span for span in SPANS if span == least or least < span <= step_s]
        parts = [*_covered(low, high, spans, bounds), *parts]
    return parts


def _covered(low: int, high: int, spans: Sequence[int], bounds: Mapping[int, tuple[int, int]]) -> list[tuple[int, int, int]]:
    if low >= high or not spans:
        return []
    *finer, span = spans
    if span == SPANS[0]:
        return [(span, low, high)]
    begin, end = -(-low // span) * span if finer else low, min(high // span * span if finer else high, bounds[span][1])
    if begin >= end:
        return _covered(low, high, finer, bounds)
    return [*_covered(low, begin, finer, bounds), (span, begin, end), *_covered(end, high, finer, bounds)]


def _merged(at: int, rows: Iterable[tuple[int, int, int, bytes]]) -> Point:
    times, failures, state = Histogram(), 0, 0
    for _, failed, latest, body in rows:
        failures += failed
        state = latest
        unpacked(body, times)
    return Point(at, failures, state, times)


def packed(times: Histogram) -> bytes:
    """A histogram of our finest scale in few bytes: how many are below it, then steps from bucket to bucket and counts; some 20 a row."""
    out = bytearray()
    last = 0
    _put(out, times.zeros)
    for index, count in times.buckets():
        _put(out, index - last)
        _put(out, count)
        last = index
    return bytes(out)


def unpacked(body: bytes, into: Histogram) -> None:
    """Count what `packed` wrote; ValueError when it is damaged. Smallest and largest are then middles of their buckets."""
    numbers = _numbers(body)
    if zeros := next(numbers, 0):
        into.add_index(0, zeros)
    index = 0
    for step in numbers:
        index += step
        if not 0 < index < 1 << 12:
            raise ValueError(f"a history's bucket {index}")
        into.add_index(index, next(numbers, 0))


def _put(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _numbers(body: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0


def _pieces(rows: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    return (rows[at : at + most] for at in range(0, len(rows), most))


__all__ = ["KEPT_S", "SPANS", "Answer", "History", "Point", "Row", "State", "packed", "plan", "rows", "tidy", "unpacked"]
