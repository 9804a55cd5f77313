"""Timer wheels: what is due in which millisecond. Putting and dropping cost the same, however much they hold."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

PER_S = 1000
"""Slots a second; slot `n` is due at `n / PER_S` monotonic seconds."""

GRAINS = ((20_000, 2), (2000, 5), (200, 40), (0, 1))
"""From so many starts a second, ticks of so many slots. Below the last but one there is nothing to gain."""

T = TypeVar("T", bound=Hashable)


class Wheel(Generic[T]):
    """Things by slot. Its size follows what it holds: a thing that is dropped leaves nothing behind for long."""

    __slots__ = ("_order", "_slots")

    def __init__(self) -> None:
        self._slots: dict[int, dict[T, None]] = {}  # none of them empty
        self._order: list[int] = []  # a heap of the slots, and of some that are gone

    def __len__(self) -> int:
        """How many slots it keeps in order."""
        return len(self._order)

    def put(self, thing: T, slot: int) -> None:
        bucket = self._slots.get(slot)
        if bucket is None:
            self._slots[slot] = {thing: None}
            heappush(self._order, slot)
        else:
            bucket[thing] = None

    def drop(self, thing: T, slot: int) -> None:
        """Take out what was put into this slot. Nothing happens if it is not there."""
        bucket = self._slots.get(slot)
        if bucket is None:
            return
        bucket.pop(thing, None)
        if not bucket:
            del self._slots[slot]
            if len(self._order) > 2 * len(self._slots) + 64:
                self._order = list(self._slots)
                heapify(self._order)

    def first(self) -> int | None:
        """The earliest slot with something in it."""
        order = self._order
        while order:
            if order[0] in self._slots:
                return order[0]
            heappop(order)
        return None

    def take(self, until: int, most: int) -> list[T]:
        """What is due by `until`, earliest slot first, so many at most; within one slot the order is nobody's concern."""
        taken: list[T] = []
        while most > 0 and (slot := self.first()) is not None and slot <= until:
            bucket = self._slots[slot]
            if len(bucket) <= most:
                taken += bucket
                most -= len(bucket)
                del self._slots[slot]
            else:
                taken += [bucket.popitem()[0] for _ in range(most)]
                most = 0
        return taken


class Deadlines(Generic[T]):
    """Things by the slot in which they must have ended. Nearly all of them have by then, so who has is only left out when it is looked at.

    A thing may be kept until its slot comes; `is_waiting` says whether its time in that slot still counts.
    """

    __slots__ = ("_is_waiting", "_order", "_slots")

    def __init__(self, is_waiting: Callable[[T, int], bool]) -> None:
        self._is_waiting = is_waiting
        self._slots: dict[int, list[T]] = {}  # none of them empty
        self._order: list[int] = []  # a heap of the slots

    def put(self, thing: T, slot: int) -> None:
        bucket = self._slots.get(slot)
        if bucket is None:
            self._slots[slot] = [thing]
            heappush(self._order, slot)
        else:
            bucket.append(thing)

    def first(self) -> int | None:
        """The earliest slot in which something still waits."""
        while self._order:
            slot = self._order[0]
            bucket = self._slots[slot]
            while bucket:
                if self._is_waiting(bucket[-1], slot):
                    return slot
                bucket.pop()
            del self._slots[slot]
            heappop(self._order)
        return None

    def pop(self, until: int) -> T | None:
        """One thing that has waited until the earliest slot, if that is due by `until`."""
        slot = self.first()
        return None if slot is None or slot > until else self._slots[slot].pop()


class Tick:
    """How finely time is cut. A wake-up costs more than a probe, so the calm ones are gathered: the fewer there are, the more coarsely."""

    def __init__(self, at: float) -> None:
        self._grain = 1
        self._since = at
        self._starts = 0

    def slot(self, at: float, now: float) -> int:
        """The slot for what is due at `at`: now, the next millisecond, or the nearest tick within a twentieth of the wait."""
        wait = at - now
        if wait <= 0:
            return int(at * PER_S)
        grain = min(self._grain, int(wait * (PER_S / 20)))
        if grain <= 1:
            return int(at * PER_S) + 1
        return int(at * PER_S / grain + 0.5) * grain

    def count(self, starts: int, now: float) -> None:
        """So many probes were started: from their rate follows the tick."""
        self._starts += starts
        passed = now - self._since
        if passed >= 1:
            rate = self._starts / passed
            self._grain = next(grain for least, grain in GRAINS if rate >= least)
            self._since, self._starts = now, 0
