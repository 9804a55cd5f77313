"""Real requests as evidence: taken in by instance, and what follows when one of them stands out from its peers in the same moments."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import median

from lbplugins.values import Counters, Operator, Ref, Seen, TrafficSample
from sidecar.core.charge import Charge
from sidecar.core.conduct import BAD, FRESH_S, SLOW, Conduct, Count, Doubt, Measure
from sidecar.core.known import GOOD_KEPT, BalancerState, InstanceState, Known, ServiceState, TargetState
from sidecar.core.model import Evidence, Hold, HoldName, Instance, Result, Served, Strength, Traffic
from sidecar.core.streak import Streak

SECONDS_KEPT = 32
"""Times of good answers kept of one instance's batch: at any rate enough for a median."""
NOT_ITS_FAULT = frozenset({501, 505})
"""5xx that tell of the request, not of the instance. 429 is none of them: it is the instance's right."""
SHIFTED = log(2.0)
"""When the peers take so much longer than is usual for them, being slow is no distinction."""
WITNESS_REQUESTS = 3
"""A peer has something to say of the same moments when it has served so many requests in them."""
BESIDE = 3.0
"""An instance's share of bad requests must be so many times its peers' in the same moments."""
SILENT_GAPS, SILENT_S = 5.0, 0.05
"""Nothing for so many usual gaps, and so long, while its peers are asked: silence is a question."""
CONTRADICTING = 5
"""So many good answers to real requests, after the probe began to fail, and hardly a bad one, contradict it."""
LISTEN_S = 1.0
"""So long, at most, enough of them, or the balancer's own counts, are waited for."""


# ---- from samples to a fact ----


def tally(balancer: str, at: float, heard: Sequence[tuple[Instance, TrafficSample]]) -> Traffic:
    """One fact of what was heard since the last: the same whatever order the samples came in within it."""
    good: dict[Instance, list[float]] = {}
    bad: dict[Instance, int] = {}
    for instance, sample in heard:
        is_good = was_good(sample)
        if is_good:
            good.setdefault(instance, []).append(sample.seconds or 0.0)
        elif is_good is not None:
            bad[instance] = bad.get(instance, 0) + 1
    served = tuple(
        Served(instance, len(good.get(instance, ())), bad.get(instance, 0), _spread(sorted(good.get(instance, ()))))
        for instance in sorted(good.keys() | bad.keys())
    )
    return Traffic(balancer, at, served, any(sample.forgeable for _, sample in heard))


def was_good(sample: TrafficSample) -> bool | None:
    """Did the instance answer this request well? None = it tells nothing: the client left, or the request itself was at fault."""
    if sample.seconds is None:
        return None if sample.cut_by == "client" else False
    return sample.status < 500 or sample.status in NOT_ITS_FAULT


def _spread(seconds: list[float]) -> tuple[float, ...]:
    """At most SECONDS_KEPT of them, evenly over their order."""
    n = len(seconds)
    if n <= SECONDS_KEPT:
        return tuple(round(s, 6) for s in seconds)
    return tuple(round(seconds[(2 * k + 1) * n // (2 * SECONDS_KEPT)], 6) for k in range(SECONDS_KEPT))


# ---- taken in ----


def taken(world: Known, fact: Traffic) -> tuple[str, ...]:
    """Take a batch in; the services in which it makes, or ends, an accusation."""
    by_service: dict[str, list[Served]] = {}
    for served in fact.served:
        by_service.setdefault(served.instance.service, []).append(served)
    return tuple(name for name, rows in by_service.items() if name in world.services and _served(world, world.services[name], rows, fact))


def _served(world: Known, service: ServiceState, rows: Sequence[Served], fact: Traffic) -> bool:
    pool = _Pool(s.conduct for s in service.instances.values() if fact.at - s.conduct.newest_at <= FRESH_S)
    news = False
    for row in rows:
        state = service.instances.get(row.instance)
        if state is None or state.is_out_by_us:
            continue  # what is under way when we take it out, we may have cut off ourselves
        conduct = state.conduct
        before = is_accused(conduct)
        slow = _slow_among(conduct, row, pool)
        requests = row.good + row.bad
        conduct.take(row.seconds, requests, slow, row.bad, fact.at, forgeable=fact.forgeable)
        if conduct.usual is not None and row.good:
            conduct.slow.take(slow, row.good, service.usual_slow, SLOW, fact.at)
        conduct.bad.take(row.bad, requests, service.usual_bad, BAD, fact.at)
        if conduct.usual is not None and not is_accused(conduct):
            _count_usual(service, requests, slow, row.bad)
        news |= before or is_accused(conduct)
    _ask_the_silent(world, service, fact.at)
    if news:
        service.alert = True
    return news


class _Pool:
    """How those who serve now stand to what is usual for them, and how long they take, as logarithms; each looked at without itself."""

    def __init__(self, conducts: Iterable[Conduct]) -> None:
        known = [(c.drift, c.usual + c.drift) for c in conducts if c.usual is not None]
        self._drifts, self._levels = sorted(drift for drift, _ in known), sorted(level for _, level in known)

    def beside(self, conduct: Conduct) -> tuple[float, float] | None:
        """(by how much the others have moved, how long they take); None = there are no others."""
        if conduct.usual is None or len(self._drifts) < 2:
            return None
        return _middle(self._drifts, conduct.drift), _middle(self._levels, conduct.usual + conduct.drift)


def _middle(ordered: list[float], own: float) -> float:
    """The median of all but one of them."""
    i, middle = bisect_left(ordered, own), (len(ordered) - 1) // 2
    return ordered[middle if middle < i else middle + 1]


def _slow_among(conduct: Conduct, row: Served, pool: _Pool) -> int:
    """How many of its good answers were slow for it, as the peers are now. A sample of them stands for all."""
    if not row.seconds or (beside := pool.beside(conduct)) is None:
        return 0
    limit = conduct.limit_s(beside[0], exp(beside[1]))
    return round(sum(s > limit for s in row.seconds) * row.good / len(row.seconds))


def _count_usual(service: ServiceState, requests: int, slow: int, bad: int) -> None:
    """How often requests of this service are slow, or bad, while nobody is accused: over the last thousands."""
    service.counted = min(service.counted + requests, 5000)
    share = min(1.0, requests / max(200, service.counted))
    service.usual_slow += (slow / requests - service.usual_slow) * share
    service.usual_bad += (bad / requests - service.usual_bad) * share


def _is_complete(conduct: Conduct, doubt: Doubt, measure: Measure) -> bool:
    return doubt.level >= conduct.enough(measure) and doubt.hits >= measure.hits // (2 if conduct.trial else 1)


def _ask_the_silent(world: Known, service: ServiceState, at: float) -> None:
    """Whoever hears nothing where requests were expected is asked at once."""
    for state in service.instances.values():
        conduct = state.conduct
        if conduct.is_silent or not conduct.gap_s or at - conduct.newest_at < max(SILENT_GAPS * conduct.gap_s, SILENT_S):
            continue
        conduct.is_silent = True
        if state.ejection is None and state.operator is Operator.READY and at - conduct.newest_at < FRESH_S:
            for name in state.targets:
                world.nudge(name)


def counted(world: Known, balancer: BalancerState, refs: Iterable[Ref], earlier: Mapping[Ref, Seen], at: float) -> None:
    """Note what the balancer counted for these servers since its last picture. Totals that began anew tell nothing."""
    for ref in refs:
        seen, before = balancer.seen.get(ref), earlier.get(ref)
        if seen is None or before is None or seen.address is None or seen.generation != before.generation:
            continue
        if seen.counters is None or before.counters is None:
            continue
        requests, failed = _total(seen.counters) - _total(before.counters), _failed(seen.counters) - _failed(before.counters)
        if requests < 0 or failed < 0:
            continue
        for name in balancer.users.get(ref.pool, ()):
            if (state := world.services[name].instances.get(Instance(name, seen.address))) is not None:
                state.conduct.count(Count(at, requests, failed, seen.in_flight))


def _total(counters: Counters) -> int:
    return counters.requests or 0


def _failed(counters: Counters) -> int:
    return (counters.status_5xx or 0) + (counters.connect_errors or 0) + (counters.response_errors or 0)


# ---- what follows ----


def is_accused(conduct: Conduct) -> bool:
    """Is the evidence against it by real requests complete?"""
    return any(_is_complete(conduct, doubt, measure) for doubt, measure in ((conduct.bad, BAD), (conduct.slow, SLOW)))


def accusation(state: InstanceState) -> Charge | None:
    """Its evidence by real requests, when that is complete; errors before slowness, for who answers wrongly may well be fast."""
    conduct = state.conduct
    for rule, doubt, measure in (("traffic_errors", conduct.bad, BAD), ("slow", conduct.slow, SLOW)):
        if _is_complete(conduct, doubt, measure):
            cause = _cause(conduct, rule, doubt)
            evidence = Evidence(state.instance, rule, Strength.SOFT, False, conduct.newest_at, doubt.hits, doubt.since, cause)
            return Charge(rule, Strength.SOFT, cause, conduct.newest_at, evidence)
    return None


def against(world: Known, service: ServiceState, state: InstanceState, charge: Charge, most: int) -> list[Hold]:
    """Why a charge by real requests does not stand. `most`: how many of the pool soft evidence may have out.

    Its peers, in the very moments of the evidence, decide who is to blame: where they do the same it is the pool, what they share, or
    ourselves.
    """
    conduct = state.conduct
    doubt, measure = (conduct.slow, SLOW) if charge.rule == "slow" else (conduct.bad, BAD)
    peers = [s.conduct for s in service.instances.values() if s is not state]
    seen = [(c, c.since(doubt.since)) for c in peers]
    witnesses = [(c, counts) for c, counts in seen if counts[0] >= WITNESS_REQUESTS]
    if not witnesses:
        return [Hold(HoldName.NO_WITNESS, "no peer has served real requests in the same moments", state.instance)]
    same = sum(1 for c, _ in seen if (c.slow if measure is SLOW else c.bad).level >= measure.enough / 3)
    if same + 1 > max(1, most):
        return [Hold(HoldName.POOL_SHIFT, f"{same} of its {len(peers)} peers do the same in the same moments", state.instance)]
    requests = sum(counts[0] for _, counts in witnesses)
    hits = sum(counts[1] if measure is SLOW else counts[2] for _, counts in witnesses)
    mine, theirs = doubt.hits / max(1, doubt.requests), (hits + 0.5) / (requests + 1.0)
    if mine < BESIDE * theirs:
        what = "slow" if measure is SLOW else "bad"
        why = f"{mine:.0%} of its requests are {what}, {theirs:.0%} of its peers' in the same moments; {BESIDE:.0f} times as many needed"
        return [Hold(HoldName.POOL_SHIFT, why, state.instance)]
    drifts = [c.drift for c in peers if c.usual is not None and conduct.newest_at - c.newest_at <= FRESH_S]
    if measure is SLOW and drifts and median(drifts) > SHIFTED:
        why = f"its peers take {exp(median(drifts)):.1f} times as long as is usual for them: the whole pool is slow"
        return [Hold(HoldName.POOL_SHIFT, why, state.instance)]
    if conduct.may_be_forged(doubt.since) and not _agrees(world, state, charge):
        why = "the log came over UDP, which anybody on the network may write to; neither its probe nor the balancer's counters agree yet"
        return [Hold(HoldName.UNCONFIRMED, why, state.instance)]
    return []


def still_slow(world: Known, state: InstanceState) -> str:
    """Why one that went for slowness is not tried yet: its probe is as slow as its answers were. "" = nothing says so."""
    for name in state.targets:
        usual, target = state.conduct.probes_s.get(name.spec, 0.0), world.targets.get(name)
        if target is None or not usual or target.newest is not Result.OK:
            continue
        took = target.newest_ended - target.newest_started
        if took > max(3.0 * usual, usual + 0.002):
            return f"its probe takes {_ms(took)}, {_ms(usual)} before it was taken out"
    return ""


def contradicts(conduct: Conduct, check: Streak, now: float) -> str:
    """What real requests say against a failing probe: "" = nothing. While they go well, enough of them are waited for, a second at most."""
    since = check.first_bad_at + SILENT_S
    requests, _, bad = conduct.since(since)
    if bad > 0.1 * requests or conduct.good_at < max(since, check.last_bad_at - 2.0 * conduct.gap_s):
        return ""
    good = requests - bad
    if good < CONTRADICTING and now - since > min(LISTEN_S, 2.0 * CONTRADICTING * conduct.gap_s):
        return ""
    if wants_counts(conduct, check) and now - since > LISTEN_S:
        return ""
    return f"{good} of {requests} real requests were answered well while the probe failed: the probe or what it asks is to blame"


def wants_counts(conduct: Conduct, check: Streak) -> bool:
    """What speaks for it came over a feed that others can write to, and the balancer's own counts do not say so yet."""
    since = check.first_bad_at + SILENT_S
    if not conduct.may_be_forged(since):
        return False
    counts = [count for count in conduct.counts if count.at >= since][1:]  # the first began before
    requests, failed = sum(count.requests for count in counts), sum(count.failed for count in counts)
    return requests - failed < CONTRADICTING or failed > 0.1 * requests


def _agrees(world: Known, state: InstanceState, charge: Charge) -> bool:
    """Does the probe, or the balancer by its own counts, say the same?"""
    since = charge.evidence.first_at
    for name in state.targets:
        target = world.targets.get(name)
        if target is None or target.newest_ended < since:
            continue
        if target.bad_run >= 2 or (charge.rule == "slow" and _is_slow(target)):
            return True
    counts = [count for count in state.conduct.counts if count.at >= since]
    if charge.rule == "traffic_errors":
        return 2 * sum(count.failed for count in counts) >= charge.evidence.count
    peers = [s.conduct for s in world.services[state.instance.service].instances.values() if s is not state]
    mine = [count.in_flight for count in counts if count.in_flight is not None]
    theirs = [count.in_flight for c in peers for count in c.counts if count.at >= since and count.in_flight is not None]
    return bool(mine and theirs) and sum(mine) / len(mine) >= max(2.0, 2.0 * sum(theirs) / len(theirs))


def _is_slow(target: TargetState) -> bool:
    """Its last two answers took far longer than usual: one alone is what any busy machine does."""
    last = [target.recent[(target.good - back) % len(target.recent)] for back in (1, 2)] if len(target.recent) == GOOD_KEPT else []
    last = last or target.recent[-2:]
    return len(last) == 2 and bool(target.median_s) and min(last) > max(3.0 * target.median_s, 0.002)


def _cause(conduct: Conduct, rule: str, doubt: Doubt) -> str:
    span = conduct.newest_at - doubt.since
    if rule == "traffic_errors":
        return f"{doubt.hits} of its last {doubt.requests} real requests failed within {span:.2f} s"
    slower = exp(sorted(conduct.recent)[3 * len(conduct.recent) // 4]) if conduct.recent else 0.0
    return (
        f"{doubt.hits} of its last {doubt.requests} real requests were slow within {span:.2f} s "
        f"(a quarter of the last {len(conduct.recent)} took {_ms(slower)} or more; usual is {_ms(exp(conduct.usual or 0.0))})"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


__all__ = ["accusation", "against", "contradicts", "counted", "is_accused", "still_slow", "taken", "tally", "wants_counts", "was_good"]
