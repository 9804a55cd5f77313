"""What a policy amounts to, worked out before anything fails: time to detect and to return, false ejections, load, most that can be out.

Bounds hold for one failing instance beside sound ones, from the end of the cold start on; where the windowed rule is the quicker one,
once the window is full. They count our own part only: a machine starved of CPU, or a disk slower than `WRITE_S`, adds its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, comb, inf
from typing import NamedTuple

from sidecar.core.guard import budget, needed
from sidecar.core.model import Learned, Strength
from sidecar.core.policy import Mode, Pace, ProbePlan, RuleMode, Rules, ServicePolicy

DAY_S = 86400.0
ASSUMED_ANSWER_S = 0.1
"""How long answers are taken to last at most while a target is not known."""
WRITE_S = 0.02
"""Most from a decision until the change is on its way: the intent's fsync on an ordinary disk, one turn of the loop."""
RELOAD_S = 1.0
"""Most that a test and reload take on a costly balancer of ordinary size."""
JOIN_S = 1.0
"""On a costly balancer, changes within this time of another share the next reload."""
WAKE_S = 0.1
"""How often we look whether a hold-down is over."""
LOSS = 0.01
"""The share of probes that are lost, each by itself, in `false_ejections`."""
MOST_N = 20
REPEATS = 8


class Failure(StrEnum):
    """How an instance fails, as probes see it."""

    REFUSED = "refused"
    """Connections refused or reset: somebody answered, and said no."""
    TIMEOUT = "timeout"
    """No answer within the timeout."""
    WRONG = "wrong answer"
    """Status, body or TLS not as expected, as fast as a good answer."""


class Span(NamedTuple):
    """Seconds, at least and at most."""

    least: float
    most: float

    def __add__(self, other: object) -> Span:  # times add up, tuples do not
        return Span(self.least + other.least, self.most + other.most) if isinstance(other, Span) else NotImplemented


class Out(NamedTuple):
    """Of `n` instances, the most that may be out on hard and on soft evidence."""

    n: int
    hard: int
    soft: int


@dataclass(frozen=True, slots=True)
class Manner:
    """How one target is asked: calm interval and timeout in seconds; `slow_s`: how long its good answers take at most."""

    interval_s: float
    timeout_s: float
    slow_s: float
    is_known: bool


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One service. `known` of `instances` have taught us their pace; the bounds of the others hold before they have.

    `detect`: from the fault until the change is sent to the balancer. `in_force`: until the balancer must have obeyed. `back`: from the
    end of the fault until the return is sent, after up to `ejected_long_after_s` out; `back_late`: after longer. `after_repeat`: the same
    for the 1st, 2nd … ejection in a row after the first, hold-down included. `false_per_day`: of the worst instance. `costly`: a balancer
    must reload for each change. `never`: why nobody will be taken out; "" = they will be.
    """

    service: str
    instances: int
    known: int
    detect: Mapping[Failure, Span]
    in_force: Mapping[Failure, Span]
    back: Span
    back_late: Span
    after_repeat: tuple[Span, ...]
    false_per_day: float
    false_per_day_of_service: float
    probes_per_s: float
    most_out: tuple[Out, ...]
    costly: bool = False
    never: str = ""

    def most_out_now(self) -> Out:
        """The row for as many instances as there are."""
        return next((row for row in self.most_out if row.n == self.instances), Out(self.instances, 0, 0))


def arithmetic(
    policy: ServicePolicy,
    pace: Pace,
    learned: Sequence[Sequence[Learned | None]],
    *,
    costly: bool = False,
    settle_s: float = 0.0,
) -> Arithmetic:
    """The numbers of one service. `learned`: for each instance, what each of `policy.probes` has taught us, None = nothing yet.

    No instances at all: the bounds of one that is not known. `costly`, `settle_s`: the worst of its balancers.
    """
    everyone = [[manner(plan, pace, each) for plan, each in zip(policy.probes, row, strict=True)] for row in learned]
    manners = everyone or [[manner(plan, pace, None) for plan in policy.probes]]
    witness = _witness_s(manners)
    detect = {
        failure: _widest(_detect(policy, pace, row, each, failure) for row, each in zip(manners, witness, strict=True))
        for failure in Failure
    }
    late = Span(0.0, settle_s + (RELOAD_S if costly else 0.0))
    back = _widest(_back(policy, pace, row, late=False) for row in manners)
    held = [hold_down_s(repeat, policy.rules) + WAKE_S + WRITE_S for repeat in range(1, REPEATS + 1)]
    false = [false_ejections(policy, row, LOSS) for row in manners]
    n = len(learned)
    return Arithmetic(
        service=policy.name,
        instances=n,
        known=sum(all(m.is_known for m in row) for row in everyone),
        detect=detect,
        in_force={failure: span + late for failure, span in detect.items()},
        back=back,
        back_late=_widest(_back(policy, pace, row, late=True) for row in manners),
        after_repeat=tuple(Span(back.least, max(back.most, each)) for each in held),
        false_per_day=max(false),
        false_per_day_of_service=sum(false) if n else 0.0,
        # A reference is asked like an instance; how fast it answers is not known here, so the quickest pace is taken.
        probes_per_s=sum(1.0 / m.interval_s for row in everyone for m in row) + len(policy.references) / pace.min_interval_s,
        most_out=tuple(most_out(policy, count) for count in sorted({*range(1, MOST_N + 1), *([n] if n else [])})),
        costly=costly,
        never=_never(policy, n),
    )


def manner(plan: ProbePlan, pace: Pace, learned: Learned | None) -> Manner:
    """How a target is asked, by its plan and by what it has taught us."""
    if learned is None or learned.good < pace.learn_good:
        interval_s = pace.first_interval_s if plan.interval_s is None else plan.interval_s
        timeout_s = pace.first_timeout_s if plan.timeout_s is None else plan.timeout_s
        return Manner(interval_s, timeout_s, min(ASSUMED_ANSWER_S, timeout_s), is_known=False)
    interval_s = min(max(pace.baseline_factor * learned.median_s, pace.min_interval_s), pace.max_interval_s)
    timeout_s = min(max(pace.timeout_factor * learned.slow_s, pace.min_timeout_s), pace.max_timeout_s)
    interval_s = interval_s if plan.interval_s is None else plan.interval_s
    timeout_s = timeout_s if plan.timeout_s is None else plan.timeout_s
    return Manner(interval_s, timeout_s, min(learned.slow_s, timeout_s), is_known=True)


# ---- out ----


def _detect(policy: ServicePolicy, pace: Pace, row: Sequence[Manner], witness_s: float, failure: Failure) -> Span:
    """From the fault of the instance that is asked so until the change is sent; its witnesses take up to `witness_s`."""
    verdicts = [_first_failure(m, pace, failure) + _evidence(m, policy.rules, pace, failure) for m in row]
    # So many checks must fail before the instance has; if all do, it is the last of the fastest so many that decides.
    must_fail = len(verdicts) - needed(policy) + 1
    span = Span(sorted(v.least for v in verdicts)[must_fail - 1], sorted(v.most for v in verdicts)[must_fail - 1])
    if failure is Failure.WRONG:  # which only one of the checks may see
        span = Span(span.least, max(v.most for v in verdicts))
    return span + Span(0.0, witness_s + WRITE_S)


def _witness_s(manners: Sequence[Sequence[Manner]]) -> list[float]:
    """For each instance, how long its slowest peer may need to testify.

    Twice its slowest answer: a peer that is just being asked ends first and is asked again, as what began before the verdict is no
    testimony.
    """
    slowest = [max(m.slow_s for m in row) for row in manners]
    first, second = sorted(range(len(slowest)), key=lambda i: -slowest[i])[:2] if len(slowest) > 1 else (0, 0)
    return [2.0 * slowest[second if i == first else first] for i in range(len(slowest))]


def _first_failure(m: Manner, pace: Pace, failure: Failure) -> Span:
    """From the fault until the first probe that meets it is asked; below 0 for one that is under way and will hang."""
    under_way = -m.slow_s if failure is Failure.TIMEOUT else 0.0
    return Span(under_way, max(m.interval_s * (1.0 + pace.jitter), m.slow_s))


def _evidence(m: Manner, rules: Rules, pace: Pace, failure: Failure) -> Span:
    """From the first failing probe's start until the evidence is complete: by the consecutive rule, or by the window if that is sooner."""
    least_s = m.timeout_s if failure is Failure.TIMEOUT else 0.0
    most_s = m.timeout_s if failure is Failure.TIMEOUT else m.slow_s
    if "consecutive" in rules.off:
        by_run = Span(inf, inf)
    elif failure is Failure.REFUSED:
        by_run = _spread(rules, pace, most_s)
    else:
        by_run = Span(_run_s(rules.fall, least_s, pace), _run_s(rules.fall, most_s, pace))
    if "window" in rules.off:
        return by_run
    bad = max(1, ceil(rules.window_bad * rules.window - 1e-9))
    # With fewer good answers in the window's time than it looks at, more bad ones must fill it.
    is_full = rules.window * max(m.interval_s * (1.0 + pace.jitter), m.slow_s) <= rules.window_s
    least = min(by_run.least, _run_s(bad, least_s, pace))
    return Span(least, min(by_run.most, _run_s(bad if is_full else rules.window, most_s, pace)))


def _spread(rules: Rules, pace: Pace, most_s: float) -> Span:
    """So many refusals, and so far apart; each takes up to `most_s`."""
    gaps = min(rules.fall_fast, rules.fall) - 1
    gap_s = pace.pending_gap_s
    apart_s = rules.fast_spread_s + gap_s + most_s if rules.fast_spread_s > 0 else 0.0
    return Span(max(rules.fast_spread_s, gaps * gap_s), most_s + max(apart_s, gaps * (gap_s + most_s)))


def _run_s(count: int, each_s: float, pace: Pace) -> float:
    return count * each_s + (count - 1) * pace.pending_gap_s


# ---- and back ----


def _back(policy: ServicePolicy, pace: Pace, row: Sequence[Manner], *, late: bool) -> Span:
    """From the end of the fault until the return is sent; `late`: after an outage so long that it is asked but seldom."""
    rise = policy.rules.rise
    spans = []
    for m in row:
        # Not `ejected_s`, which may be shorter: the first question after the verdict was put at the calm pace.
        pause_s = max(pace.ejected_long_s, m.interval_s) if late else m.interval_s
        # One that still hangs must end before the next may begin.
        first = max(pause_s * (1.0 + pace.jitter), m.timeout_s)
        spans.append(Span(_run_s(rise, 0.0, pace), first + _run_s(rise, m.slow_s, pace) + WRITE_S))
    good = needed(policy)
    return Span(sorted(s.least for s in spans)[good - 1], sorted(s.most for s in spans)[good - 1])


def hold_down_s(repeat: int, rules: Rules) -> float:
    """How long an instance stays out at least, ejected on hard evidence for the `repeat`-th time in a row after the first (0)."""
    return 0.0 if repeat == 0 else min(rules.hold_down_s * 2.0 ** (repeat - 1), rules.hold_down_max_s)


# ---- by mistake, at what cost, and how many ----


def false_ejections(policy: ServicePolicy, row: Sequence[Manner], loss: float) -> float:
    """How often a day a sound instance is taken out when each probe is lost with this probability, whatever the others do.

    Real losses come in bursts that hit the witnesses as well; those are held, not counted here.
    """
    rates = [_verdicts_per_day(m, policy.rules, loss) for m in row]
    # A check that has failed stays so until its next good answer, about an interval later: the others must fall in that time.
    failed = [min(1.0, rate * m.interval_s / DAY_S) for rate, m in zip(rates, row, strict=True)]
    others = len(row) - needed(policy)
    return sum(rate * _all_of(others, [f for j, f in enumerate(failed) if j != i]) for i, rate in enumerate(rates))


def _verdicts_per_day(m: Manner, rules: Rules, loss: float) -> float:
    calm = DAY_S / m.interval_s
    by_run = 0.0 if "consecutive" in rules.off else calm * loss**rules.fall
    if "window" in rules.off:
        return by_run
    bad, size = max(1, ceil(rules.window_bad * rules.window - 1e-9)), rules.window
    # The window fills up at a bad answer that pushes a good one out, with all the other bad ones in between.
    by_window = comb(size - 1, bad - 1) * loss**bad * (1.0 - loss) ** (size - bad + 1)
    return by_run + calm / (1.0 - loss) * by_window


def _all_of(count: int, chances: Sequence[float]) -> float:
    """About the chance that `count` of these are so at once: the elementary symmetric polynomial."""
    sums = [1.0] + [0.0] * count
    for chance in chances:
        for k in range(count, 0, -1):
            sums[k] += sums[k - 1] * chance
    return sums[count]


def most_out(policy: ServicePolicy, n: int) -> Out:
    """The most that our act may have out of `n`, all of them sound before."""
    guards = policy.guards
    if n == 1:
        return Out(1, 0, 0)
    hard = min(budget(n, Strength.HARD, guards), n - guards.min_healthy)
    soft = min(budget(n, Strength.SOFT, guards), n - guards.min_healthy, n - ceil(guards.panic_below * n - 1e-9))
    return Out(n, max(hard, 0), max(soft, 0))


def _never(policy: ServicePolicy, n: int) -> str:
    """Why no instance of this service will be taken out, whatever happens; "" = it will be."""
    if not policy.pools:
        return "it stands behind no balancer: judged and published only"
    if policy.mode is Mode.OBSERVE:
        return "mode is observe: told, not done"
    match policy.rule_modes.get("consecutive"):
        case RuleMode.OBSERVE:
            return "policy.consecutive is observe: told, not done, but by the windowed rule"
        case RuleMode.OFF:
            return "policy.consecutive is off: only the windowed rule takes out"
    if n == 1:
        return "it has one instance, which is never taken out"
    if n > 1 and not most_out(policy, n).hard:
        return f"none of {n} may be out by policy.max_ejected and policy.min_healthy"
    return ""


def _widest(spans: Iterable[Span]) -> Span:
    all_of_them = list(spans)
    return Span(min(s.least for s in all_of_them), max(s.most for s in all_of_them))


__all__ = [
    "ASSUMED_ANSWER_S", "JOIN_S", "LOSS", "WRITE_S", "Arithmetic", "Failure", "Manner", "Out", "Span",
    "arithmetic", "false_ejections", "hold_down_s", "manner", "most_out",
]  # fmt: skip
