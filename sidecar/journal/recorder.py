"""The flight recorder: everything that entered the core and what came of it, for `explain --at` and `replay`.

The caller only packs; one thread compresses and writes. The recorder never waits for the disk and never raises: what does not fit
is dropped and the gap is marked, a disk that fails is `fault`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sidecar.core.model import Decision, Fact, Pictured
from sidecar.core.policy import Policy
from sidecar.journal.codec import CodecError, Json, dumps, encode
from sidecar.journal.columns import Columns, Names
from sidecar.journal.pictures import Pictures
from sidecar.journal.segments import Batch, Gap, Packed, Segment, Writer, line, read

SEGMENT_S = 600.0
PENDING_BYTES = 8 << 20
"""Packed records that may wait for the disk; more are dropped."""
BLOCK_BYTES = 256 << 10
FLUSH_S = 1.0


@dataclass(frozen=True, slots=True)
class _Begin:
    """A new segment. The thread dumps the snapshot, so nobody may change it any more."""

    snapshot: Json
    policy: Policy
    now: float
    wall: float
    names: Names


@dataclass(slots=True)
class _Stretch:
    """What came between two looks of the thread: lines, the rows they count, and what is lost with them; None = nothing.

    `batches`: how many of those in `gap` are not counted as lost already.
    """

    lines: list[bytes] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    gap: Gap | None = None
    batches: int = 0

    def add(self, packed: bytes, gap: Gap, batches: int) -> None:
        self.lines.append(packed)
        self.gap = gap if self.gap is None else self.gap.joined(gap)
        self.batches += batches


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
        self._names = Names()
        self._pictures = Pictures()
        self._queue: deque[_Begin | _Stretch] = deque()
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
            self._names = Names()
            self._pictures.forget()
            self._queue.append(_Begin(snapshot, policy, now, wall, self._names))
            self._news.notify_all()
        if is_first:
            self._thread.start()

    def batch(self, now: float, facts: Sequence[Fact], decision: Decision | None = None) -> None:
        """Record facts taken in together and what was decided. Costs some microseconds a fact, never an exception, never a wait."""
        self._newest = now
        gap = Gap(now, now, 1, len(facts))
        if self._begun_at is None:
            self._lose(gap, 1)
            return
        with self._news:
            stretch = self._last()
            before = stretch.columns.sizes
            packed = self._packed(now, facts, decision, stretch.columns)
            added = len(packed) + stretch.columns.grown(before)
            if packed and self._queued_bytes + added <= self._pending_bytes:
                self._push_gap()
                self._push(packed, gap, 1, added)
            else:
                stretch.columns.cut(before)
                self._lose(gap, 1)

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

    def _packed(self, now: float, facts: Sequence[Fact], decision: Decision | None, columns: Columns) -> bytes:
        """The line of a batch, its good answers in the columns; empty when a fact is none."""
        try:
            packed = columns.take(facts, self._names)
            left = tuple(self._pictures.packed(each) if isinstance(each, Pictured) else each for each in packed)
            if decision is None:
                return line(Packed(now, left))
            is_news = bool(decision.intents or decision.changes or decision.events)
            return line(Packed(now, left, digest(decision), replace(decision, asks=()) if is_news else None))
        except (CodecError, TypeError, AttributeError) as error:
            self._codec_fault = f"a fact could not be recorded: {error}; please report this"
            return b""

    def _last(self) -> _Stretch:
        """The stretch that grows just now."""
        if not self._queue or not isinstance(last := self._queue[-1], _Stretch):
            last = _Stretch()
            self._queue.append(last)
        return last

    def _push_gap(self) -> None:
        if self._gap is not None:
            packed = line(self._gap)
            self._push(packed, self._gap, 0, len(packed))
            self._gap = None

    def _push(self, packed: bytes, gap: Gap, batches: int, size: int) -> None:
        self._last().add(packed, gap, batches)
        self._queued_bytes += size
        if self._queued_bytes >= BLOCK_BYTES:
            self._news.notify_all()

    def _lose(self, gap: Gap, batches: int) -> None:
        self._dropped += batches
        self._is_spoiled = True
        self._pictures.forget()
        self._gap = gap if self._gap is None else self._gap.joined(gap)

    def _give_up_queue(self) -> None:
        for each in self._queue:
            if isinstance(each, _Stretch) and each.gap is not None:
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

    def _write(self, items: list[_Begin | _Stretch]) -> None:
        for item in items:
            if isinstance(item, _Begin):
                self._writer.begin(item.snapshot, item.policy, item.now, item.wall, item.names)
            elif item.gap is not None:
                self._writer.write(b"".join(item.lines), item.columns, item.gap, item.batches)


def digest(decision: Decision) -> str:
    """Sixteen hexadecimal digits that two decisions share exactly when they are equal; CodecError when it is not a decision."""
    return hashlib.blake2b(dumps(encode(decision, Decision)), digest_size=8).hexdigest()


__all__ = ["Batch", "Gap", "Recorder", "Segment", "digest", "read"]
