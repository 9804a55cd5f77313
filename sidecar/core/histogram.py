"""Latencies as an exponential histogram: mergeable exactly, quantiles within a stated relative error, small.

Bucket `i` of scale `s` holds `[2**(i / 2**s - 20), 2**((i + 1) / 2**s - 20))` seconds, the shape of OpenTelemetry's and Prometheus'
native histograms (their index is ours less 20 * 2**s). A quantile is the geometric middle of its bucket, so its relative error is at most
`2**(1 / 2**(s + 1)) - 1`: 0.54 % at scale 6. Two buckets of a scale are exactly one of the next lower.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import log2
from typing import cast

SCALE = 6
FLOOR_S = 1e-6
"""Shorter is counted in the zero bucket, as 0 s."""
CEILING_S = 1e4
"""Longer is counted as this."""
_SHIFT = 20.0
"""Octaves added so that every index is positive and `int` rounds down."""
_PER_OCTAVE = float(1 << SCALE)
_STEP = 32
"""Counters are added this many at a time, so that a spreading histogram does not move at each new value."""
_LIMITS = {"H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": 0xFFFF_FFFF_FFFF_FFFF}
"""Counters are as wide as the count of all values needs: none of them can overflow."""
_WIDER = {"H": "I", "I": "Q"}


class Histogram:
    """Counts of durations in seconds. `count` of them, `zeros` of those below FLOOR_S.

    Grows only over the range it has seen: 2 bytes a bucket below 65,536 values, 64 buckets an octave at scale 6, at most 34 octaves.
    """

    __slots__ = ("_counts", "_limit", "_low", "_max", "_min", "_per_octave", "count", "scale", "zeros")

    def __init__(self, scale: int = SCALE) -> None:
        """`scale` 0..6; ValueError otherwise."""
        if not 0 <= scale <= SCALE:
            raise ValueError(f"the scale of a histogram is 0 to {SCALE}, not {scale}")
        self.scale = scale
        self.count = 0
        self.zeros = 0
        self._per_octave = float(1 << scale)
        self._min = math.inf
        self._max = -math.inf
        self._low = 0
        self._counts = array("H")
        self._limit = _LIMITS["H"]

    @property
    def total(self) -> float:
        """Sum of all values, seconds, within the error of the scale: kept in the buckets, it merges as exactly as they do."""
        return math.fsum(count * middle(at, self.scale) for at, count in self.buckets())

    @property
    def min(self) -> float | None:
        """The smallest value, seconds; None = there is none."""
        return self._min if self.count else None

    @property
    def max(self) -> float | None:
        """The largest value, seconds; None = there is none."""
        return self._max if self.count else None

    def add(self, seconds: float) -> None:
        """Count one duration; below FLOOR_S and above CEILING_S it is clamped. ValueError for NaN."""
        if seconds >= FLOOR_S:
            if seconds > CEILING_S:
                seconds = CEILING_S
            at = int((log2(seconds) + _SHIFT) * self._per_octave) - self._low
            try:
                if at < 0:
                    raise IndexError
                self._counts[at] += 1
            except (IndexError, OverflowError):  # rare: costs nothing until it happens
                self._put(at + self._low, 1)
                self.count -= 1
        elif seconds != seconds:
            raise ValueError("NaN is no duration")
        else:
            seconds = 0.0
            self.zeros += 1
        self.count += 1
        if seconds < self._min:
            self._min = seconds
        if seconds > self._max:
            self._max = seconds

    def add_known(self, index: int, seconds: float) -> None:
        """`add` at scale 6, for who has asked `index_of` already."""
        at = index - self._low
        try:
            if at < 0 or not index:
                raise IndexError
            self._counts[at] += 1
        except (IndexError, OverflowError):  # as in `add`
            self.add(seconds)
            return
        self.count += 1
        if seconds < self._min:
            self._min = seconds
        if seconds > self._max:
            self._max = seconds if seconds < CEILING_S else CEILING_S

    def merge(self, other: Histogram) -> None:
        """Count everything that `other` counted, exactly; in any order and grouping the result is the same. ValueError: scales differ."""
        if other.scale != self.scale:
            raise ValueError(f"histograms of scales {self.scale} and {other.scale} do not merge; downscale the finer")
        if not other.count:
            return
        self.zeros += other.zeros
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)
        self.count += other.count
        while self.count > self._limit:
            self._widen()
        if other._counts:
            at = self._cover(other._low, other._low + len(other._counts))
            self._add_counts(at, other._counts)

    def quantile(self, q: float) -> float:
        """The value that a share `q` (0..1) of all values does not exceed, seconds, within the error of the scale; NaN when empty."""
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[float]:
        """The same for several at the price of one."""
        if not self.count:
            return [math.nan for _ in qs]
        below = list(accumulate(self._counts, initial=self.zeros))
        out = []
        for q in qs:
            # The smallest value whose rank is at least q of them all; the nudge keeps 0.07 * 100 from being 8.
            at = bisect_left(below, max(1, math.ceil(q * self.count - 1e-9)))
            seconds = middle(self._low + at - 1, self.scale) if at else 0.0
            out.append(min(max(seconds, self._min), self._max))
        return out

    def downscale(self, to: int) -> Histogram:
        """The same values in coarser buckets, exactly what adding them there would have given. ValueError if `to` is finer."""
        if to > self.scale:
            raise ValueError(f"a histogram of scale {self.scale} cannot be made finer, to {to}")
        coarse = Histogram(to)
        fold = self.scale - to
        for at, count in self.buckets():
            coarse._put(at >> fold, count)
        coarse.count, coarse.zeros, coarse._min, coarse._max = self.count, self.zeros, self._min, self._max
        return coarse

    def buckets(self) -> list[tuple[int, int]]:
        """(index, count) of every bucket that is not empty, by index; the zero bucket is `zeros`."""
        return [(self._low + at, count) for at, count in enumerate(self._counts) if count]

    def add_index(self, index: int, times: int = 1) -> None:
        """Count values known only by what `index_of` said; the smallest and largest are then middles of buckets."""
        seconds = middle(index) if index else 0.0
        if index:
            self._put(index >> SCALE - self.scale, times)
        else:
            self.zeros += times
            self.count += times
        self._min = min(self._min, seconds)
        self._max = max(self._max, seconds)

    @classmethod
    def of_indices(cls, counts: Mapping[int, int]) -> Histogram:
        """What `add_index` of all of them gives, at scale 6."""
        made = cls()
        made.zeros = made.count = counts.get(0, 0)
        if indices := sorted(index for index in counts if index):
            low, high = indices[0], indices[-1]
            made._cover(low, low + 1)
            made._cover(high, high + 1)
            for index in indices:
                times = counts[index]
                made.count += times
                while made.count > made._limit:
                    made._widen()
                made._counts[index - made._low] = times
            made._min, made._max = 0.0 if made.zeros else middle(low), middle(high)
        elif made.zeros:
            made._min = made._max = 0.0
        return made

    def to_json(self) -> dict[str, object]:
        """Compact: `buckets` is a flat list of steps from index to index, the first from -1, and counts."""
        flat: list[int] = []
        last = -1
        for at, count in self.buckets():
            flat += (at - last, count)
            last = at
        ends = [self._min, self._max] if self.count else []
        return {"scale": self.scale, "zeros": self.zeros, "ends": ends, "buckets": flat}

    @classmethod
    def from_json(cls, value: object) -> Histogram:
        """The histogram that `to_json` wrote; ValueError says what does not fit."""
        scale, zeros, ends, flat = _fields(value)
        made = cls(scale)
        last = -1
        highest = index_of(CEILING_S) >> SCALE - scale
        for step, count in zip(flat[::2], flat[1::2], strict=True):
            last += step
            if step < 1 or count < 1 or last > highest:
                raise ValueError(f"a histogram's bucket {last} with {count} values: indices rise to at most {highest}, counts are positive")
            made._put(last, count)
        made.zeros = zeros
        made.count += zeros
        if bool(made.count) != bool(ends):
            raise ValueError("a histogram has a smallest and a largest value exactly when it has any")
        if ends:
            made._min, made._max = ends
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Histogram(scale={self.scale}, count={self.count}, min={self.min}, max={self.max})"

    @property
    def size_bytes(self) -> int:
        """Memory held, numbers of Python's own not counted."""
        return sys.getsizeof(self) + sys.getsizeof(self._counts)

    def _content(self) -> tuple[object, ...]:
        return self.scale, self.count, self.zeros, self._min, self._max, self.buckets()

    def _put(self, index: int, times: int) -> None:
        at = index - self._low
        if at < 0 or at >= len(self._counts):
            at = self._cover(index, index + 1)
        self.count += times
        while self.count > self._limit:
            self._widen()
        self._counts[at] += times

    def _cover(self, low: int, high: int) -> int:
        """Make room for the buckets [low, high); the place of `low` among the counters."""
        counts = self._counts
        low_, high_ = low - low % _STEP, high + -high % _STEP
        if not counts:
            self._low = low_
            counts.frombytes(bytes((high_ - low_) * counts.itemsize))
        else:
            if low_ < self._low:
                longer = array(counts.typecode, bytes((self._low - low_) * counts.itemsize))
                longer.extend(counts)
                self._counts = counts = longer
                self._low = low_
            if high_ > (end := self._low + len(counts)):
                counts.frombytes(bytes((high_ - end) * counts.itemsize))
        return low - self._low

    def _widen(self) -> None:
        wider = _WIDER[self._counts.typecode]
        self._counts = array(wider, self._counts)
        self._limit = _LIMITS[wider]

    def _add_counts(self, at: int, counts: array[int]) -> None:
        """Add counters from place `at` on, all at once: as two long numbers, since no counter can carry into the next."""
        mine = self._counts
        if counts.typecode != mine.typecode:
            counts = array(mine.typecode, counts)
        size = mine.itemsize
        part = memoryview(mine).cast("B")[at * size : (at + len(counts)) * size]
        total = int.from_bytes(part, sys.byteorder) + int.from_bytes(memoryview(counts).cast("B"), sys.byteorder)
        part[:] = total.to_bytes(len(part), sys.byteorder)


def index_of(seconds: float) -> int:
    """The bucket of a duration at scale 6, clamped like `add`: 4 to 2130, so it fits 16 bits; 0 = the zero bucket."""
    if seconds < FLOOR_S:
        return 0
    return int((log2(seconds if seconds < CEILING_S else CEILING_S) + _SHIFT) * _PER_OCTAVE)


def middle(index: int, scale: int = SCALE) -> float:
    """Geometric middle of a bucket, seconds."""
    return cast(float, 2.0 ** ((index + 0.5) / (1 << scale) - _SHIFT))  # a float to a float power: mypy cannot know it is no complex


def merged(histograms: Iterable[Histogram], scale: int = SCALE) -> Histogram:
    """All of them as one; those of a finer scale are downscaled."""
    total = Histogram(scale)
    for each in histograms:
        total.merge(each if each.scale == scale else each.downscale(scale))
    return total


def _fields(value: object) -> tuple[int, int, list[float], list[int]]:
    """The parts of a written histogram, their kinds checked."""
    if not isinstance(value, dict):
        raise ValueError("a histogram is an object")
    scale, zeros, ends, flat = (value.get(name) for name in ("scale", "zeros", "ends", "buckets"))
    if not (type(scale) is int and type(zeros) is int and zeros >= 0):
        raise ValueError("a histogram's scale and zeros are whole numbers")
    if not isinstance(flat, list) or len(flat) % 2 or not all(type(each) is int for each in flat):
        raise ValueError("a histogram's buckets are pairs of whole numbers")
    if (
        not isinstance(ends, list)
        or len(ends) not in (0, 2)
        or not all(type(each) in (int, float) and 0 <= each <= CEILING_S for each in ends)
    ):
        raise ValueError(f"a histogram's ends are its smallest and largest value, 0 to {CEILING_S:g} s")
    return scale, zeros, [float(each) for each in ends], flat


def _is_duration(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= CEILING_S  # type: ignore[operator]  # a number, as just seen


__all__ = ["CEILING_S", "FLOOR_S", "SCALE", "Histogram", "index_of", "merged", "middle"]
