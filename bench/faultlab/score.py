"""What a run comes to: numbers from requests as clients saw them, and from what the sidecar told. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.faultlab.load import Request, lateness

BAD_AFTER_S = 0.1
SLOW_FACTOR = 3.0
END_S = 4.0
"""The last seconds of a run, in which it shows whether the faulty one still gets its share."""
UNHEARD, UNHEARD_S = 20, 1.0
"""A healthy instance that is left out of so many turns of the rotation in a row, and so long, is out."""
BIN_S = 0.25
LATE_S, RESTLESS = 0.02, 10
"""A run is noisy where the generator's own p99 lateness or the bad requests before the fault are above these."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of the sidecar's. `at_s`: from the onset, by its wall clock; `instance`: from 1, 0 = none."""

    at_s: float
    kind: str
    instance: int
    by: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What was played. `victims`: instances from 1, the one struck first first; `blamed`: those that may be taken out."""

    contestant: str
    fault: str
    round: int
    n: int
    rate: float
    victims: tuple[int, ...]
    blamed: tuple[int, ...]
    onset: float
    observed_s: float
    service_ms: float = 10.0


@dataclass(frozen=True, slots=True)
class Score:
    """One run. Seconds and milliseconds as named; counts are of requests that ended after the onset and were due within the window.

    `failed`: no whole 200; `bad`: those, and the ones slower than 100 ms; `others_bad`: bad ones that a healthy instance answered with a
    200, which is noise or overload; `slow_pct`: slower than three times the usual median; `share_end_pct`: of the last 4 s, how much the
    victims answered; `others_out`: healthy instances that got nothing for a while; `ejections`, `false_ejections`, `returns` (of blamed
    ones), `out_s`: the sidecar's, None where there is none or it did not. `timeline`: bad requests a quarter of a second by due time.
    """

    contestant: str
    fault: str
    round: int
    requests: int
    bad: int
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    last_bad_s: float
    bad_end: int
    share_end_pct: float
    slow_pct: float
    others_bad: int
    others_out: int
    ejections: int | None
    false_ejections: int | None
    returns: int | None
    out_s: float | None
    resent: int
    before_bad: int
    late_p99_ms: float
    late_max_ms: float
    timeline: tuple[int, ...]
    told: tuple[Told, ...]

    @property
    def bad_after_return(self) -> int:
        """Bad requests that were due after the first return of a blamed one, to a quarter of a second: what the attempt cost."""
        back = next((e.at_s for e in self.told if e.kind == "returned" and e.at_s > 0), None) if self.returns else None
        return 0 if back is None else sum(self.timeline[int(back / BIN_S) :])

    @property
    def is_noisy(self) -> bool:
        return self.late_p99_ms > 1000 * LATE_S or self.before_bad > RESTLESS


def took(request: Request) -> float:
    """Seconds since it was due; infinite when no answer came."""
    return float("inf") if request.ended is None else request.ended - request.due


def is_bad(request: Request) -> bool:
    return has_failed(request) or took(request) > BAD_AFTER_S


def has_failed(request: Request) -> bool:
    return request.status != 200 or not request.whole


def score(setup: Setup, requests: Sequence[Request], told: Sequence[Told] | None) -> Score:
    """`told` None = no sidecar."""
    onset, end = setup.onset, setup.onset + setup.observed_s
    seen = [r for r in requests if r.due < end and (r.ended is None or r.ended >= onset)]
    bad = [r for r in seen if is_bad(r)]
    last = [r for r in seen if r.due >= end - END_S]
    times = sorted(took(r) for r in seen)
    late = lateness(requests)
    healthy = set(range(1, setup.n + 1)) - set(setup.victims)
    ejected = [e for e in told or () if e.kind == "ejected"]
    right = [e for e in ejected if e.instance in setup.blamed and e.at_s >= 0]
    return Score(
        contestant=setup.contestant,
        fault=setup.fault,
        round=setup.round,
        requests=len(seen),
        bad=len(bad),
        failed=sum(has_failed(r) for r in bad),
        p50_ms=1000 * statistics.median(times),
        p99_ms=1000 * _finite(times[int(0.99 * len(times))]),
        max_ms=1000 * _finite(times[-1]),
        last_bad_s=max((r.due - onset for r in bad), default=0.0),
        bad_end=sum(is_bad(r) for r in last),
        share_end_pct=100 * sum(r.instance in setup.victims for r in last) / max(1, len(last)),
        slow_pct=100 * sum(t > SLOW_FACTOR * setup.service_ms / 1000 for t in times) / len(times),
        others_bad=sum(r.instance in healthy and not has_failed(r) for r in bad),
        others_out=len(left_out(setup, seen, healthy)),
        ejections=None if told is None else len(ejected),
        false_ejections=None if told is None else len(ejected) - len(right),
        returns=None if told is None else sum(e.kind == "returned" and e.instance in setup.blamed and e.at_s >= 0 for e in told),
        out_s=min((e.at_s for e in right), default=None),
        resent=sum(r.resent for r in seen),
        before_bad=sum(is_bad(r) for r in requests if r.ended is not None and r.ended < onset),
        late_p99_ms=1000 * late[0],
        late_max_ms=1000 * late[1],
        timeline=timeline(bad, onset, setup.observed_s),
        told=tuple(told or ()),
    )


def left_out(setup: Setup, seen: Sequence[Request], healthy: Iterable[int]) -> set[int]:
    """Healthy instances that answered nothing of what was due within some UNHEARD turns of the rotation."""
    gap = max(UNHEARD_S, UNHEARD * setup.n / setup.rate)
    out = set()
    for instance in healthy:
        dues = [r.due for r in seen if r.instance == instance and r.due >= setup.onset]
        marks = [setup.onset, *dues, setup.onset + setup.observed_s]
        if max(b - a for a, b in pairwise(marks)) > gap:
            out.add(instance)
    return out


def timeline(bad: Sequence[Request], onset: float, observed_s: float) -> tuple[int, ...]:
    bins = [0] * round(observed_s / BIN_S)
    for request in bad:
        bins[min(len(bins) - 1, max(0, int((request.due - onset) / BIN_S)))] += 1
    return tuple(bins)


def _finite(seconds: float) -> float:
    """A request without an answer took at least as long as was waited for it."""
    return min(seconds, 10.0)
