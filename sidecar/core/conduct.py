"""How an instance treats real requests: what is usual for it, and two sequential tests against that.

Both tests are of one kind (Page's cumulative sum on a Bernoulli likelihood ratio): a request is a hit or not, hits are `usual` for this
pool so often, and would be much more frequent if the instance were sick. Evidence grows by at most one hit per `QUANTUM_S`, so that a
pause that ends in a burst of late answers weighs as the one event it is, and it takes `ENOUGH` of it, so that a verdict needs several
moments, not several requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log

QUANTUM_S = 0.02
"""Requests that ended within this time of one another are one piece of evidence."""
FRESH_S = 10.0
"""What was heard longer ago says nothing of now."""
LEARN_REQUESTS, LEARN_S = 32, 2.0
"""So many good answers, over so long, tell what is usual for an instance."""
FOLLOW_S = 600.0
"""Time constant with which what is usual follows what is: a deploy is usual after some minutes, a sick hour is not."""
RECENT = 16
"""Good answers whose median is what an instance does now."""
ROWS_KEPT = 256
"""Batches remembered at least, for a comparison with what the peers did in the same moments: the last five seconds of a busy instance."""
COUNTS_KEPT = 16
TRIAL_REQUESTS = 64
"""So many requests after a return, half of the evidence is enough."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The constants of one test. `floor`: the least share of hits that is taken for usual, added to what the pool shows times `margin`.

    `sick`: the share of hits of a sick instance. `enough`: the log-likelihood ratio that convicts. `hits`: at least so many.
    """

    floor: float
    margin: float
    sick: float
    enough: float
    hits: int


SLOW = Measure(floor=0.02, margin=1.25, sick=0.6, enough=17.0, hits=6)
BAD = Measure(floor=0.01, margin=1.5, sick=0.25, enough=11.0, hits=4)
"""Seventeen nats: one false alarm in e^17 requests at the very edge of what is usual, and far rarer below it."""


@dataclass(slots=True)
class Doubt:
    """One test under way. `level`: log-likelihood ratio, nats; `since`: when it last left zero; `hits` of `requests` since then."""

    level: float = 0.0
    since: float = 0.0
    hits: int = 0
    requests: int = 0
    quantum_at: float = float("-inf")
    in_quantum: float = 0.0

    def take(self, hits: int, requests: int, usual: float, measure: Measure, at: float) -> None:
        """A batch of requests that ended by `at`, `hits` of them bad ones of this kind."""
        gain, loss = weights(usual, measure)
        if at - self.quantum_at >= QUANTUM_S:
            self.quantum_at, self.in_quantum = at, 0.0
        before = min(gain, self.in_quantum)
        self.in_quantum += hits * gain - (requests - hits) * loss
        if self.level == 0.0:
            self.since, self.hits, self.requests = at, 0, 0
        self.level = min(max(0.0, self.level + min(gain, self.in_quantum) - before), 1.5 * measure.enough)
        self.hits += hits
        self.requests += requests

    def clear(self) -> None:
        self.level, self.hits, self.requests, self.in_quantum = 0.0, 0, 0, 0.0


@dataclass(slots=True)
class Row:
    """One batch: requests that ended by `at`, and how many of them were slow, and bad. `forgeable`: others can write to that feed."""

    at: float
    requests: int
    slow: int
    bad: int
    forgeable: bool = False


@dataclass(slots=True)
class Count:
    """What the balancer itself counted for one server between two pictures of it; `in_flight` at the second."""

    at: float
    requests: int
    failed: int
    in_flight: int | None


@dataclass(slots=True)
class Conduct:
    """What real requests say of one instance. Logarithms of seconds throughout.

    `usual`: what is usual for it; None until learned. `drift`: how far the median of its `recent` good answers is from that. `gap_s`: the
    usual time between two requests. `trial`: requests left of its trial after a return. `probes_s`: how long its probes took, by spec,
    when it was ejected for slowness.
    """

    usual: float | None = None
    drift: float = 0.0
    learned: int = 0
    first_at: float = 0.0
    newest_at: float = float("-inf")
    good_at: float = float("-inf")
    gap_s: float = 0.0
    is_silent: bool = False
    trial: int = 0
    recent: list[float] = field(default_factory=list)
    slow: Doubt = field(default_factory=Doubt)
    bad: Doubt = field(default_factory=Doubt)
    rows: list[Row] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    probes_s: dict[str, float] = field(default_factory=dict)

    def enough(self, measure: Measure) -> float:
        """The evidence that convicts now: on trial half of it."""
        return measure.enough / 2 if self.trial else measure.enough

    def limit_s(self, shift: float, peers_s: float) -> float:
        """Seconds above which an answer is slow: twice what is usual here, moved as the peers have moved, and a floor above it."""
        assert self.usual is not None, "nothing is slow before it is known what is usual"
        expected = exp(self.usual + shift)
        return max(2.0 * expected, expected + max(0.005, peers_s / 2.0))

    def take(self, seconds: tuple[float, ...], requests: int, slow: int, bad: int, at: float, *, forgeable: bool = False) -> None:
        """A batch: the times of good answers (a sample of them), and how many of all its requests were slow, and bad."""
        if not self.learned and seconds:
            self.first_at = at
        if requests and self.newest_at > float("-inf"):
            self.gap_s += ((at - self.newest_at) / requests - self.gap_s) * min(1.0, 0.05 * requests)
        elapsed = at - self.newest_at
        if elapsed > FRESH_S:
            self.slow.clear()
            self.bad.clear()
            self.recent.clear()
        self.newest_at, self.is_silent = at, False
        self.trial = max(0, self.trial - requests)
        self.rows.append(Row(at, requests, slow, bad, forgeable))
        if len(self.rows) > 2 * ROWS_KEPT:
            del self.rows[:-ROWS_KEPT]
        if seconds:
            self.good_at = at
            self._learn(seconds, at, elapsed)

    def count(self, count: Count) -> None:
        self.counts.append(count)
        del self.counts[:-COUNTS_KEPT]

    def may_be_forged(self, at: float) -> bool:
        """Did any of what was heard from then on come over a feed that others can write to? Honest lines between make it no truer."""
        return any(row.forgeable for row in self.rows if row.at >= at)

    def since(self, at: float) -> tuple[int, int, int]:
        """(requests, slow, bad) of the batches from then on."""
        requests = slow = bad = 0
        for row in reversed(self.rows):
            if row.at < at:
                break
            requests, slow, bad = requests + row.requests, slow + row.slow, bad + row.bad
        return requests, slow, bad

    def _learn(self, seconds: tuple[float, ...], at: float, elapsed: float) -> None:
        self.recent += [log(max(s, 1e-4)) for s in seconds]
        del self.recent[:-RECENT]
        self.learned += len(seconds)
        now = sorted(self.recent)[len(self.recent) // 2]
        if self.usual is None:
            if self.learned >= LEARN_REQUESTS and at - self.first_at >= LEARN_S:
                self.usual = now
        elif self.slow.level < SLOW.enough / 3:
            # what is faster than usual is the new usual soon: a warm-up is not what an instance is like
            pace = FOLLOW_S if now > self.usual else FRESH_S
            self.usual += (now - self.usual) * min(1.0, max(0.0, elapsed) / pace)
        self.drift = now - self.usual if self.usual is not None else 0.0


def weights(usual: float, measure: Measure) -> tuple[float, float]:
    """What a hit adds and any other request takes away, nats, where so large a share of hits is usual."""
    common = min(usual * measure.margin + measure.floor, 0.45)
    sick = min(0.9, max(measure.sick, 3.0 * common))
    return log(sick / common), log((1.0 - common) / (1.0 - sick))


def begin_anew(conduct: Conduct, *, on_trial: bool) -> None:
    """It comes back from an ejection: nothing is held against it. On trial, for what it did to real requests, it is watched closely."""
    conduct.slow.clear()
    conduct.bad.clear()
    conduct.recent.clear()
    conduct.rows.clear()
    conduct.counts.clear()
    conduct.drift, conduct.trial, conduct.is_silent = 0.0, TRIAL_REQUESTS if on_trial else 0, True
