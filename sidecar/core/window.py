"""Latencies over the last 10 s, 1 min, 5 min and 1 h, per service and per instance, probes and traffic apart. Pure: now is an argument.

A window ends now and is cut into sub-windows that start at round times. It holds the running one and as many before it as fit: it
covers at least (n - 1)/n of its length and never more than all of it. Failures are counted, not timed as if they were good.

A value is stored once, in the running second; a longer sub-window is summed from shorter ones when it ends. Up to FEW samples an hour a
track keeps each one's bucket index: some 600 bytes and 2 a sample, 8.5 KB at most. Beyond that it keeps histograms, at most 41 of
them: about 15 KB where latencies stay within an octave or two, 50 KB where they spread over ten, 200 KB were they to fill the range.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import Literal, NamedTuple

from sidecar.core.histogram import Histogram, index_of, middle
from sidecar.core.model import Instance

Source = Literal["probe", "traffic"]
WindowName = Literal["10s", "1m", "5m", "1h"]


class Level(NamedTuple):
    """How one window is cut: `slots` sub-windows of `width_s` whole seconds. Each width is a multiple of the one before."""

    width_s: int
    slots: int


class Quantile(NamedTuple):
    """`value` in seconds, None while `samples` are fewer than `needed`."""

    value: float | None
    samples: int
    needed: int


@dataclass(frozen=True, slots=True)
class Quantiles:
    """What is published of a track. `values`: (share, seconds) of the quantiles of a window that mean anything; of all good samples since
    the start the sum, in seconds, and how many.
    """

    values: tuple[tuple[float, float], ...]
    total: float
    count: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the start of the track: good samples, failures, and the sum of the good ones in seconds."""

    count: int
    failures: int
    seconds: float


LEVELS = (Level(1, 10), Level(5, 12), Level(30, 10), Level(300, 12))
WINDOWS: Mapping[WindowName, int] = MappingProxyType({"10s": 0, "1m": 1, "5m": 2, "1h": 3})
"""Name of a window -> its place in LEVELS."""
NEEDED: Mapping[str, tuple[float, int]] = MappingProxyType(
    {"p50": (0.5, 20), "p90": (0.9, 100), "p95": (0.95, 200), "p99": (0.99, 1_000), "p999": (0.999, 10_000)}
)
"""Name of a quantile -> its share, and how many samples it takes to mean anything."""
FEW = 4_000
MAX_INSTANCES = 20_000
"""Instances with a track of their own; what comes for others counts for their service only."""
_FAILURE = 0xFFFF
"""Stands for a failure among bucket indices, which end at 2130."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One window of one track: good samples, failures, and the good ones' latencies."""

    count: int
    failures: int
    histogram: Histogram

    def quantiles(self) -> dict[str, Quantile]:
        """p50, p90, p95, p99 and p999."""
        values = self.histogram.quantiles([share for share, _ in NEEDED.values()])
        return {
            name: Quantile(value if self.count >= needed else None, self.count, needed)
            for (name, (_, needed)), value in zip(NEEDED.items(), values, strict=True)
        }


class Latencies:
    """All tracks. Times are monotonic seconds; one that lies before a later one already seen counts as that later one."""

    def __init__(self, max_instances: int = MAX_INSTANCES, few: int = FEW) -> None:
        """`few`: samples an hour up to which a track keeps each one."""
        self._few = few
        self._max_instances = max_instances
        self._instances: dict[tuple[Instance, Source], _Track] = {}
        self._services: dict[tuple[str, Source], _Track] = {}

    def add(self, instance: Instance, source: Source, seconds: float, now: float) -> int:
        """Count a good answer that took so long; its bucket, as `index_of` says it. ValueError for NaN."""
        if seconds != seconds:
            raise ValueError(f"the latency of {instance} is NaN")
        index, second = index_of(seconds), int(now)
        own, whole = self._instances.get((instance, source)), self._services.get((instance.service, source))
        if own is not None and whole is not None:
            own.add(index, seconds, second)
            whole.add(index, seconds, second)
            return index
        for track in self._tracks(instance, source):
            track.add(index, seconds, second)
        return index

    def fail(self, instance: Instance, source: Source, now: float) -> None:
        """Count a failure; it has no latency."""
        for track in self._tracks(instance, source):
            track.fail(int(now))

    def service(self, service: str, source: Source, window: WindowName, now: float) -> Summary:
        """The whole service, instances since forgotten included; empty if nothing is known."""
        return _summary(self._services.get((service, source)), window, now)

    def instance(self, instance: Instance, source: Source, window: WindowName, now: float) -> Summary:
        """One instance; empty if nothing is known."""
        return _summary(self._instances.get((instance, source)), window, now)

    def told(self, of: Instance | str, source: Source, window: WindowName, now: float) -> Quantiles | None:
        """What is published of an instance or a whole service; None while it has given no good answer. Cheaper than a summary."""
        track = self._services.get((of, source)) if isinstance(of, str) else self._instances.get((of, source))
        return None if track is None or not track.count else Quantiles(track.shown(WINDOWS[window], int(now)), track.seconds, track.count)

    def ended(self, of: Instance | str, source: Source, start: int, end: int, now: float) -> Summary | None:
        """What came from `start` until `end`, whole multiples of 5 s, the last within a minute and over by now; None where nothing did."""
        track = self._services.get((of, source)) if isinstance(of, str) else self._instances.get((of, source))
        found = track.ended(start, end, int(now)) if track is not None else None
        return found if found is not None and (found.count or found.failures) else None

    def totals(self, service: str, source: Source) -> Totals:
        """What a service's counters say since the start."""
        return _totals(self._services.get((service, source)))

    def instance_totals(self, instance: Instance, source: Source) -> Totals:
        return _totals(self._instances.get((instance, source)))

    def forget(self, instance: Instance) -> None:
        """Let an instance's tracks go; the service keeps what it counted."""
        for source in _SOURCES:
            self._instances.pop((instance, source), None)

    def forget_service(self, service: str) -> None:
        """Let a service's tracks go, and those of its instances."""
        for source in _SOURCES:
            self._services.pop((service, source), None)
        for instance in {instance for instance, _ in self._instances if instance.service == service}:
            self.forget(instance)

    @property
    def size_bytes(self) -> int:
        """Memory of all tracks, about."""
        return sum(track.size_bytes for table in (self._instances, self._services) for track in table.values())

    def _tracks(self, instance: Instance, source: Source) -> Iterable[_Track]:
        whole = self._services.get((instance.service, source))
        if whole is None:
            whole = self._services[instance.service, source] = _Track(self._few)
        own = self._instances.get((instance, source))
        if own is None:
            if len(self._instances) >= self._max_instances * len(_SOURCES):
                return (whole,)
            own = self._instances[instance, source] = _Track(self._few)
        return own, whole


class _Track:
    """One row of samples; starts with `_Few` and goes over to `_Many` when they are no longer few."""

    __slots__ = ("_few", "_look_at", "_store", "count", "failures", "seconds")

    def __init__(self, few: int) -> None:
        self._few = few
        self._store: _Few | _Many = _Few()
        self.count = 0
        self.failures = 0
        self.seconds = 0.0
        self._look_at = 0
        """At this count the samples may no longer be few."""

    def add(self, index: int, seconds: float, second: int) -> None:
        store = self._store
        if second > store.second or self.count >= self._look_at:
            store = self._at(second)
        self.count += 1
        self.seconds += seconds
        if isinstance(store, _Few):
            store.samples.append(index)
        else:
            store.add(index, seconds)

    def fail(self, second: int) -> None:
        self.failures += 1
        self._at(second).fail()

    def window(self, level: int, second: int) -> Summary:
        return self._at(second).window(level)

    def ended(self, start: int, end: int, second: int) -> Summary:
        return self._at(second).ended(start // LEVELS[1].width_s, end // LEVELS[1].width_s)

    def shown(self, level: int, second: int) -> tuple[tuple[float, float], ...]:
        store = self._at(second)
        if isinstance(store, _Few):
            return store.shown(level)
        return tuple((NEEDED[name][0], each.value) for name, each in store.window(level).quantiles().items() if each.value is not None)

    @property
    def size_bytes(self) -> int:
        return sys.getsizeof(self) + self._store.size_bytes

    def _at(self, second: int) -> _Few | _Many:
        store = self._store
        if second > store.second:
            store.roll(second)
        if isinstance(store, _Few) and len(store.samples) >= self._few:
            store.trim()
            if len(store.samples) >= self._few:
                self._store = store = _Many.of(store)
        self._look_at = self.count + self._few - len(store.samples) if isinstance(store, _Few) else sys.maxsize
        return store


class _Few:
    """Every sample's bucket index, oldest first, and where among them each sub-window starts.

    Places count from the very first sample; `dropped` of them are no longer kept. `marks`: for each level in turn, a ring of places.
    """

    __slots__ = ("dropped", "marks", "samples", "second")

    def __init__(self) -> None:
        self.second = 0
        self.dropped = 0
        self.samples = array("H")
        self.marks = array("Q", bytes(8 * sum(level.slots for level in LEVELS)))

    def fail(self) -> None:
        self.samples.append(_FAILURE)

    def roll(self, second: int) -> None:
        place, before = self.dropped + len(self.samples), self.second
        for width_s, slots, base in _RINGS:
            was, now = before // width_s, second // width_s
            if was == now:
                break  # nor has any longer one ended
            if now == was + 1:
                self.marks[base + now % slots] = place
                continue
            for slot in _passed(was, now, slots):
                self.marks[base + slot % slots] = place
        if second // LEVELS[-1].width_s != self.second // LEVELS[-1].width_s:
            self.second = second
            self.trim()
        self.second = second

    def trim(self) -> None:
        """Let go of what has left the longest window."""
        start = self._start(len(LEVELS) - 1, self.second // LEVELS[-1].width_s - LEVELS[-1].slots + 1)
        del self.samples[: max(0, start - self.dropped)]
        self.dropped = max(start, self.dropped)

    def window(self, level: int) -> Summary:
        width_s, slots = LEVELS[level]
        return self._summary(self._start(level, self.second // width_s - slots + 1), None)

    def ended(self, first: int, end: int) -> Summary:
        """Sub-windows of 5 s that are over."""
        return self._summary(self._start(1, first), self._start(1, end))

    def shown(self, level: int) -> tuple[tuple[float, float], ...]:
        """What the histogram of the window would say, without making it: a bucket index is as good as its value."""
        width_s, slots = LEVELS[level]
        rows = sorted(self.samples[max(0, self._start(level, self.second // width_s - slots + 1) - self.dropped) :])
        good = bisect_left(rows, _FAILURE)
        ranks = ((share, rows[max(1, ceil(share * good - 1e-9)) - 1]) for share, needed in NEEDED.values() if good >= needed)
        return tuple((share, middle(index) if index else 0.0) for share, index in ranks)

    def slot(self, level: int, slot: int) -> Summary:
        """One sub-window, which must still be in the ring; the running one ends now."""
        width_s = LEVELS[level].width_s
        return self._summary(self._start(level, slot), None if slot == self.second // width_s else self._start(level, slot + 1))

    @property
    def size_bytes(self) -> int:
        return sys.getsizeof(self) + sys.getsizeof(self.samples) + sys.getsizeof(self.marks)

    def _start(self, level: int, slot: int) -> int:
        return self.marks[_BASES[level] + slot % LEVELS[level].slots]

    def _summary(self, start: int, end: int | None) -> Summary:
        counts = Counter(self.samples[max(0, start - self.dropped) : None if end is None else max(0, end - self.dropped)])
        failures = counts.pop(_FAILURE, 0)
        histogram = Histogram.of_indices(counts)
        return Summary(histogram.count, failures, histogram)


class _Many:
    """For each level a ring of sub-windows that have ended, the first level's running one included; None = empty."""

    __slots__ = ("failures", "rings", "running", "second")

    def __init__(self, second: int) -> None:
        self.second = second
        self.rings: tuple[list[Histogram | None], ...] = tuple([None] * level.slots for level in LEVELS)
        self.failures = tuple(array("Q", bytes(8 * level.slots)) for level in LEVELS)
        self.running: Histogram | None = None
        """That of the running second."""

    @classmethod
    def of(cls, few: _Few) -> _Many:
        """The same samples as histograms."""
        many = cls(few.second)
        for level, (width_s, slots) in enumerate(LEVELS):
            now = few.second // width_s
            for slot in range(max(0, now - slots + 1), now + (level == 0)):
                many._set(level, slot, few.slot(level, slot))
        many.running = many.rings[0][many.second % LEVELS[0].slots]
        return many

    def add(self, index: int, seconds: float) -> None:
        histogram = self.running
        if histogram is None:
            histogram = self.running = self.rings[0][self.second % LEVELS[0].slots] = Histogram()
        histogram.add_known(index, seconds)

    def fail(self) -> None:
        self.failures[0][self.second % LEVELS[0].slots] += 1

    def roll(self, second: int) -> None:
        for level in range(1, len(LEVELS)):
            width_s = LEVELS[level].width_s
            if (ended := self.second // width_s) != second // width_s:
                self._set(level, ended, self._sum(_inside(level, ended, self.second)))
        for ring, failures, (width_s, slots) in zip(self.rings, self.failures, LEVELS, strict=True):
            # A level's own `ended` was set just now and stays; what is passed over is empty, and so is the running one.
            for slot in _passed(self.second // width_s, second // width_s, slots):
                ring[slot % slots] = None
                failures[slot % slots] = 0
        self.second, self.running = second, None

    def window(self, level: int) -> Summary:
        width_s, slots = LEVELS[level]
        now = self.second // width_s
        ended = [(level, slot) for slot in range(max(0, now - slots + 1), now)]
        return self._sum([*ended, *_running(level, self.second)])

    def ended(self, first: int, end: int) -> Summary:
        return self._sum((1, slot) for slot in range(first, end))

    @property
    def size_bytes(self) -> int:
        rows = sum(sys.getsizeof(row) for row in (*self.rings, *self.failures))
        return sys.getsizeof(self) + rows + sum(each.size_bytes for ring in self.rings for each in ring if each is not None)

    def _set(self, level: int, slot: int, summary: Summary) -> None:
        at = slot % LEVELS[level].slots
        self.rings[level][at] = summary.histogram if summary.count else None
        self.failures[level][at] = summary.failures

    def _sum(self, parts: Iterable[tuple[int, int]]) -> Summary:
        histogram, failures = Histogram(), 0
        for level, slot in parts:
            at = slot % LEVELS[level].slots
            failures += self.failures[level][at]
            if (part := self.rings[level][at]) is not None:
                histogram.merge(part)
        return Summary(histogram.count, failures, histogram)


_SOURCES: tuple[Source, ...] = ("probe", "traffic")
_BASES = tuple(sum(level.slots for level in LEVELS[:at]) for at in range(len(LEVELS)))
"""Where each level's ring starts in `_Few.marks`."""
_RINGS = tuple((level.width_s, level.slots, base) for level, base in zip(LEVELS, _BASES, strict=True))


def _passed(old: int, new: int, slots: int) -> range:
    """The slots entered on the way from `old` to `new`; of a long way only the last ring full."""
    return range(max(old + 1, new - slots + 1), new + 1)


def _inside(level: int, slot: int, second: int) -> Iterator[tuple[int, int]]:
    """The next shorter sub-windows of which one consists, up to `second`: the ring holds older ones in later places."""
    ratio = LEVELS[level].width_s // LEVELS[level - 1].width_s
    last = min((slot + 1) * ratio - 1, second // LEVELS[level - 1].width_s)
    return ((level - 1, each) for each in range(slot * ratio, last + 1))


def _running(level: int, second: int) -> Iterator[tuple[int, int]]:
    """The parts of a level's running sub-window: ended ones of each shorter level, then the running second."""
    for lower in range(level - 1, -1, -1):
        width_s = LEVELS[lower].width_s
        start = second // LEVELS[lower + 1].width_s * (LEVELS[lower + 1].width_s // width_s)
        yield from ((lower, slot) for slot in range(start, second // width_s))
    yield 0, second


def _summary(track: _Track | None, window: WindowName, now: float) -> Summary:
    if track is None:
        return Summary(0, 0, Histogram())
    return track.window(WINDOWS[window], int(now))


def _totals(track: _Track | None) -> Totals:
    return Totals(0, 0, 0.0) if track is None else Totals(track.count, track.failures, track.seconds)


__all__ = ["LEVELS", "NEEDED", "WINDOWS", "Latencies", "Quantile", "Quantiles", "Source", "Summary", "Totals", "WindowName"]
