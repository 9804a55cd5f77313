"""The flight recorder: everything that entered the core and what came of it, for `explain --at` and `replay`.

The caller only encodes; one thread compresses and writes. The recorder never waits for the disk and never raises: what does not fit
is dropped and the gap is marked, a disk that fails is `fault`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sidecar.core.model import Decision, Fact
from sidecar.core.policy import Policy
from sidecar.journal.codec import CodecError, Json, dumps, encode
from sidecar.journal.segments import Batch, Gap, Segment, Writer, line, read

SEGMENT_S = 600.0
PENDING_BYTES = 8 << 20
"""Encoded records that may wait for the disk; more are dropped."""
BLOCK_BYTES = 256 << 10
FLUSH_S = 1.0


@dataclass(frozen=True, slots=True)
class _Begin:
    """A new segment. The thread dumps the snapshot, so nobody may change it any more."""

    snapshot: Json
    policy: Policy
    now: float
    wall: float


@dataclass(frozen=True, slots=True)
class _Record:
    """One line for the file, and what is lost with it. `batches`: how many of those are not counted as lost already."""

    gap: Gap
    data: bytes
    batches: int


class Recorder:
    """Writes segments to a folder, at most `max_bytes` of them. One caller; `close` it.

    Call `begin` first, and again whenever `wants_segment`: a segment is due by age or size, or the last one is spoiled by a gap.
    """

    def __init__(self, directory: Path, max_bytes: int, *, segment_s: float = SEGMENT_S, pending_bytes: int = PENDING_BYTES) -> None:
        """No I/O yet; the folder is made with the first segment."""
        self._dropped = 0
        self._pending_bytes = pending_bytes
        self._segment_s = segment_s
        self._begun_at: float | None = None
        self._begins = 0
        self._is_spoiled = False
        self._gap: Gap | None = None
        self._codec_fault = ""
        self._queue: deque[_Begin | _Record] = deque()
        self._queued_bytes = 0
        self._newest = 0.0
        self._is_closing = False
        self._is_flushing = False
        self._is_writing = False
        self._news = threading.Condition()
        self._writer = Writer(directory, max_bytes)
        self._thread = threading.Thread(target=self._run, name="flight-recorder", daemon=True)

    @property
    def fault(self) -> str:
        """Why facts are not recorded just now, in words; "" = they are."""
        if self._begun_at is not None and not self._is_closing and not self._thread.is_alive():
            return "the flight recorder's thread has died; restart the sidecar to record again"
        return self._writer.fault or self._codec_fault

    @property
    def dropped(self) -> int:
        """Batches lost since the start."""
        return self._dropped + self._writer.dropped

    @property
    def wants_segment(self) -> bool:
        """Call `begin` with a fresh snapshot when convenient."""
        if self._begins > self._writer.begins:
            return False  # the last one still waits for the disk
        if self._begun_at is None or self._is_spoiled or self._newest - self._begun_at >= self._segment_s:
            return True
        return self._writer.wants_segment

    def begin(self, snapshot: Json, policy: Policy, now: float, wall: float) -> None:
        """Start a segment with the world as it is at `now` (monotonic) = `wall`, seconds. The snapshot must not change afterwards."""
        is_first = self._begun_at is None
        self._begun_at = self._newest = now
        self._is_spoiled, self._codec_fault = False, ""
        with self._news:
            if any(isinstance(each, _Begin) for each in self._queue):
                # The disk is a whole segment behind: give that one up, so that only one snapshot is ever held.
                self._give_up_queue()
            else:
                self._begins += 1
            self._queue.append(_Begin(snapshot, policy, now, wall))
            self._news.notify_all()
        if is_first:
            self._thread.start()

    def batch(self, now: float, facts: Sequence[Fact], decision: Decision | None = None) -> None:
        """Record facts taken in together and what was decided. Costs some microseconds a fact, never an exception, never a wait."""
        self._newest = now
        gap = Gap(now, now, 1, len(facts))
        try:
            record = _Record(gap, line(_batch(now, facts, decision)), 1)
        except CodecError as error:
            self._codec_fault = f"a fact could not be recorded: {error}; please report this"
            self._lose(gap, 1)
            return
        if self._begun_at is None or self._queued_bytes + len(record.data) > self._pending_bytes:
            self._lose(gap, 1)
            return
        with self._news:
            self._push_gap()
            self._push(record)

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait, for at most so long, until all that was recorded so far has been written; False = it has not."""
        with self._news:
            self._is_flushing = True
            self._news.notify_all()
            return self._news.wait_for(lambda: not self._queue and not self._is_writing, timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most so long, and end the thread. Safe twice, and before `begin`."""
        with self._news:
            self._push_gap()
            self._is_closing = True
            self._news.notify_all()
        if self._begun_at is not None:
            self._thread.join(timeout_s)

    def _push_gap(self) -> None:
        if self._gap is not None:
            self._push(_Record(self._gap, line(self._gap), 0))
            self._gap = None

    def _push(self, record: _Record) -> None:
        self._queue.append(record)
        self._queued_bytes += len(record.data)
        if self._queued_bytes >= BLOCK_BYTES:
            self._news.notify_all()

    def _lose(self, gap: Gap, batches: int) -> None:
        self._dropped += batches
        self._is_spoiled = True
        self._gap = gap if self._gap is None else self._gap.joined(gap)

    def _give_up_queue(self) -> None:
        for each in self._queue:
            if isinstance(each, _Record):
                self._lose(each.gap, each.batches)
        self._queue.clear()
        self._queued_bytes = 0
        self._is_spoiled = False  # the segment about to begin starts clean

    def _run(self) -> None:
        """The thread: a block each FLUSH_S or BLOCK_BYTES, whichever comes first."""
        is_last = False
        while not is_last:
            with self._news:
                if not (self._is_closing or self._is_flushing or self._queued_bytes >= BLOCK_BYTES):
                    self._news.wait(FLUSH_S)
                is_last = self._is_closing
                items = list(self._queue)
                self._queue.clear()
                self._queued_bytes = 0
                self._is_flushing, self._is_writing = False, True
            self._write(items)
            with self._news:
                self._is_writing = False
                self._news.notify_all()
        self._writer.close()

    def _write(self, items: list[_Begin | _Record]) -> None:
        waiting: list[_Record] = []
        for item in items:
            if isinstance(item, _Record):
                waiting.append(item)
                continue
            self._write_records(waiting)
            waiting = []
            self._writer.begin(item.snapshot, item.policy, item.now, item.wall)
        self._write_records(waiting)

    def _write_records(self, records: list[_Record]) -> None:
        if records:
            gap = records[0].gap
            for each in records[1:]:
                gap = gap.joined(each.gap)
            self._writer.write(b"".join(each.data for each in records), gap, sum(each.batches for each in records))


def digest(decision: Decision) -> str:
    """Sixteen hexadecimal digits that two decisions share exactly when they are equal; CodecError when it is not a decision."""
    return hashlib.blake2b(dumps(encode(decision, Decision)), digest_size=8).hexdigest()


def _batch(now: float, facts: Sequence[Fact], decision: Decision | None) -> Batch:
    if decision is None:
        return Batch(now, tuple(facts))
    is_news = bool(decision.intents or decision.changes or decision.events)
    return Batch(now, tuple(facts), digest(decision), replace(decision, asks=()) if is_news else None)


__all__ = ["Batch", "Gap", "Recorder", "Segment", "digest", "read"]
