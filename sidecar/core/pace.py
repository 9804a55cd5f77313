"""When to ask each target next, how patiently, and whether on a fresh connection."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from zlib import crc32

from sidecar.core.known import InstanceState, TargetState, target_of, timeout_s
from sidecar.core.model import Ask, Instance, Target
from sidecar.core.policy import Pace
from sidecar.core.world import World


def asks(world: World, targets: Iterable[Target], now: float) -> tuple[Ask, ...]:
    """The next question for each of these targets that has none scheduled."""
    due = []
    for name in targets:
        target = world.targets.get(name)
        if target is not None and target.scheduled is None:
            due.append(_next(world, target, now))
    return tuple(due)


def unscheduled(world: World, service: str) -> list[Target]:
    """Targets of a service that nobody is about to ask."""
    policy = world.policy.services[service]
    names = [target_of(i, plan) for i in world.services[service].instances for plan in policy.probes]
    names += [Target(*reference) for reference in policy.references]
    return [name for name in names if (target := world.targets.get(name)) is not None and target.scheduled is None]


def at_once(world: World, name: Target, now: float, *, fresh: bool = False) -> Ask | None:
    """Ask a witness now, unless that is already the plan."""
    target = world.targets.get(name)
    if target is None or (target.scheduled is not None and target.scheduled.at <= now):
        return None
    return Ask(name, now, timeout_s(target, world.policy.pace), fresh)


def interval_s(target: TargetState, pace: Pace) -> float:
    """The calm cadence of a target: as configured, or learned from how fast it answers."""
    if target.plan.interval_s is not None:
        return target.plan.interval_s
    if target.good < pace.learn_good:
        return pace.first_interval_s
    return min(max(pace.baseline_factor * target.median_s, pace.min_interval_s), pace.max_interval_s)


def _next(world: World, target: TargetState, now: float) -> Ask:
    pace = world.policy.pace
    patience = timeout_s(target, pace)
    if target.nudged:
        return Ask(target.target, now, patience, fresh=True)
    if target.count == 0:
        return Ask(target.target, now + _share(target.target, 0) * min(interval_s(target, pace), pace.first_interval_s), patience)
    states = [state for user in target.users if (state := world.state_of(user)) is not None]
    calm = interval_s(target, pace)
    gaps = [_gap(s, target, calm, now, pace, world.policy.services[s.instance.service].rules.rise) for s in states]
    if pace.pending_gap_s in gaps:
        second = any(state.checks[target.target.spec].bad_run == 1 for state in states)
        return Ask(target.target, max(now, target.newest_ended + pace.pending_gap_s), patience, fresh=second)
    gap = min(gaps, default=calm)
    swing = 1.0 + pace.jitter * (2.0 * _share(target.target, target.count) - 1.0)
    last = max(target.newest_started, now - gap)
    return Ask(target.target, max(now, last + gap * swing), patience)


def _gap(state: InstanceState, target: TargetState, calm: float, now: float, pace: Pace, rise: int) -> float:
    """Seconds between two probes as this user of the target needs it."""
    check = state.checks[target.target.spec]
    if state.ejection is not None and not state.ejection.returning:
        if 0 < check.good_run < rise:
            return pace.pending_gap_s
        out = now - state.ejection.at
        calm = min(calm, pace.ejected_s)
        if out <= pace.ejected_long_after_s:
            return calm
        return min(pace.ejected_long_s, calm + (out - pace.ejected_long_after_s) / pace.ejected_long_after_s)
    if check.pending:
        return pace.pending_gap_s
    return calm


def _share(target: Target, turn: int) -> float:
    """0..1, the same on every run: the phase and jitter of a target by its identity."""
    return crc32(f"{target}#{turn}".encode()) / 0xFFFFFFFF


def peers(world: World, instance: Instance, most: int) -> list[InstanceState]:
    """At most so many others of the service, from a place of this instance's own on, so that not all ask the same three."""
    states = world.services[instance.service].instances
    start = crc32(str(instance).encode()) % len(states)
    others = (s for s in chain(islice(states.values(), start, None), islice(states.values(), start)) if s.instance != instance)
    return list(islice(others, most))
