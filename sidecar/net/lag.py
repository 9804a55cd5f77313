"""How late our own loop runs. What we delayed ourselves must never count against an instance."""

from __future__ import annotations

import asyncio
import time
from collections import deque

TICK_S = 0.01
WORTH_KEEPING_S = 0.001
MAX_RECORDS = 4096


class LagMeter:
    """Measures its loop's lateness by a ticker every 10 ms; owns nothing else. Bounded: 4,096 late ticks.

    A stall is seen from the first tick that it delayed, so up to 10 ms of it stay unseen. Start it on the loop that it measures.
    It reads the loops' clock by itself, since uvloop's `time()` stands still within a turn.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._late: deque[tuple[float, float]] = deque()  # (due, fired), oldest first
        self._dropped_until = float("-inf")
        self._dropped_worst = 0.0
        self._worst = 0.0

    def start(self) -> None:
        """Begin to measure the running loop. Safe twice."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._arm(time.monotonic())

    def stop(self) -> None:
        """End. What was measured stays readable. Safe twice."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def overlapping(self, start: float, end: float) -> float:
        """The worst single lateness within `start`..`end` (monotonic), seconds; one still going on counts up to now."""
        worst = self._overdue_within(start, end)
        if start < self._dropped_until:
            worst = max(worst, self._dropped_worst)
        for due, fired in reversed(self._late):
            if fired <= start:
                break
            worst = max(worst, min(fired, end) - max(due, start))
        return worst

    def worst_since_last(self) -> float:
        """The worst lateness since this was last called, seconds; one still going on counts up to now."""
        worst, self._worst = max(self._worst, self._overdue_within(float("-inf"), float("inf"))), 0.0
        return worst

    def _overdue_within(self, start: float, end: float) -> float:
        if self._loop is None:
            return 0.0
        return max(0.0, min(time.monotonic(), end) - max(self._due, start))

    def _arm(self, now: float) -> None:
        assert self._loop is not None
        self._due = (round(now / TICK_S) + 1) * TICK_S  # a round time, at which the probes' ticks come as well: one wake-up for both
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        now = time.monotonic()
        lateness = now - self._due
        if lateness >= WORTH_KEEPING_S:
            self._keep(now, lateness)
        self._arm(now)

    def _keep(self, now: float, lateness: float) -> None:
        self._worst = max(self._worst, lateness)
        self._late.append((self._due, now))
        if len(self._late) > MAX_RECORDS:
            # Merged rather than lost: a probe as old as this is then unknown rather than wrongly late.
            due, fired = self._late.popleft()
            self._dropped_until = fired
            self._dropped_worst = max(self._dropped_worst, fired - due)
