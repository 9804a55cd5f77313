"""Good answers as columns of numbers: what nearly all facts are, at a tenth of the price of JSON and none of its precision lost.

A row is a target by its number, when it was asked and when it had answered; the phases only where they do not follow from these.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TypeVar

from sidecar.core.model import Fact, Outcome, Phases, Probed, Result, Target

ROW_BYTES, PHASES_BYTES = 20, 16
"""A row, and what one with phases of its own has more."""
_FRESH, _HAS_PHASES = 2, 1
_SIZES = struct.Struct("<II")
_OK = Result.OK
N = TypeVar("N", int, float)


class Names:
    """The targets of one segment, numbered in the order in which they first answered."""

    __slots__ = ("order", "places")

    def __init__(self) -> None:
        self.order: list[Target] = []
        """Only ever longer: another thread may look at what is there."""
        self.places: dict[Target, int] = {}

    def place(self, target: Target) -> int:
        """Its number, a new one if it has none."""
        place = self.places[target] = len(self.order)
        self.order.append(target)
        return place


class Columns:
    """Rows in the order in which they came."""

    __slots__ = ("answers", "connect", "ended", "first_byte", "started")

    def __init__(self) -> None:
        self.answers: array[int] = array("I")
        """Four times the number of the target, and what else there is to know in the two lowest bits."""
        self.started: array[float] = array("d")
        self.ended: array[float] = array("d")
        self.connect: array[float] = array("d")
        self.first_byte: array[float] = array("d")

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows, and how many of them with phases of their own."""
        return len(self.answers), len(self.connect)

    def grown(self, before: tuple[int, int]) -> int:
        """Bytes added since there were so many."""
        return (len(self.answers) - before[0]) * ROW_BYTES + (len(self.connect) - before[1]) * PHASES_BYTES

    def cut(self, sizes: tuple[int, int]) -> None:
        """Take back all that came after so many."""
        plain, special = sizes
        del self.answers[plain:], self.started[plain:], self.ended[plain:], self.connect[special:], self.first_byte[special:]

    def take(self, facts: Sequence[Fact], names: Names) -> list[Fact | int]:
        """Each run of good answers becomes rows, and their number; all other facts are left as they are."""
        left: list[Fact | int] = []
        places, run = names.places, 0
        answers, started, ended = self.answers.append, self.started.append, self.ended.append
        for fact in facts:
            if type(fact) is Probed and (outcome := fact.outcome).result is _OK and outcome.reason is None:
                phases = outcome.phases
                if phases.dns is None and phases.tls is None and not outcome.detail and not outcome.advice:
                    place = places.get(outcome.target)
                    if place is None:
                        place = names.place(outcome.target)
                    begun, over = outcome.started, outcome.ended
                    answer = place << 2 | _FRESH if outcome.fresh else place << 2
                    started(begun)
                    ended(over)
                    if phases.connect is not None or phases.first_byte != over - begun:
                        answer |= _HAS_PHASES
                        self.connect.append(_number(phases.connect))
                        self.first_byte.append(_number(phases.first_byte))
                    answers(answer)
                    run += 1
                    continue
            if run:
                left.append(run)
                run = 0
            left.append(fact)
        if run:
            left.append(run)
        return left

    def to_bytes(self) -> bytes:
        """All of it; the bytes of like weight beside one another, which is what makes them compress."""
        sizes = _SIZES.pack(len(self.answers), len(self.connect))
        return sizes + _planes(self.answers) + b"".join(map(_planes, (self.started, self.ended, self.connect, self.first_byte)))


def rows(data: bytes, names: Sequence[Target]) -> Iterator[Probed]:
    """What `to_bytes` wrote, one after another. ValueError: they do not fit, or name a target that nobody has named."""
    columns = _Reader(data)
    answers = columns.next(array("I"), columns.plain)
    started, ended = (columns.next(array("d"), columns.plain) for _ in range(2))
    own = zip(columns.next(array("d"), columns.special), columns.next(array("d"), columns.special), strict=True)
    for answer, begun, over in zip(answers, started, ended, strict=True):
        if answer >> 2 >= len(names):
            raise ValueError(f"target {answer >> 2} of {len(names)}")
        connected, heard = map(_maybe, next(own)) if answer & _HAS_PHASES else (None, over - begun)
        phases = Phases(connect=connected, first_byte=heard)
        yield Probed(Outcome(names[answer >> 2], _OK, begun, over, phases=phases, fresh=bool(answer & _FRESH)))


class _Reader:
    """Columns, one after another."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _SIZES.size:
            raise ValueError("columns without sizes")
        self.plain, self.special = _SIZES.unpack_from(data)
        self._data, self._at = data, _SIZES.size
        if len(data) != _SIZES.size + self.plain * ROW_BYTES + self.special * PHASES_BYTES:
            raise ValueError(f"{self.plain} rows, {self.special} of them with phases, in {len(data)} bytes")

    def next(self, column: array[N], count: int) -> array[N]:
        """This empty column, filled."""
        size = column.itemsize
        planes = self._data[self._at : self._at + count * size]
        self._at += count * size
        data = bytearray(len(planes))
        for at in range(size):
            data[at::size] = planes[at * count : (at + 1) * count]
        column.frombytes(data)
        if sys.byteorder == "big":
            column.byteswap()
        return column


def _planes(column: array[N]) -> bytes:
    """First the lowest byte of each number, then the next."""
    size = column.itemsize
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    data = column.tobytes()
    return b"".join(data[at::size] for at in range(size))


def _number(seconds: float | None) -> float:
    return float("nan") if seconds is None else seconds


def _maybe(seconds: float) -> float | None:
    return None if seconds != seconds else seconds
