"""When to ask each target next, how patiently, and whether on a fresh connection."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from zlib import crc32

from sidecar.core.known import InstanceState, TargetState, timeout_s
from sidecar.core.model import Ask, Instance, Target
from sidecar.core.policy import Pace
from sidecar.core.streak import Streak
from sidecar.core.world import World


def asks(world: World, targets: Iterable[TargetState], now: float) -> tuple[Ask, ...]:
    """The next question for each of these targets that has none scheduled and is still used."""
    return tuple([_next(world, each, now) for each in targets if each.scheduled is None and (each.users or each.references)])


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
        return Ask(target.target, now, patience, True)
    calm = interval_s(target, pace)
    if target.count == 0:
        return Ask(target.target, now + _share(target) * min(calm, pace.first_interval_s), patience)
    gap, second = calm, False
    for user in target.users:
        service = world.services.get(user.service)
        if service is None or not service.alert or (state := service.instances.get(user)) is None:
            continue  # where nobody is anything but healthy, there is no hurry
        check = state.checks[target.target.spec]
        if state.ejection is not None or check.pending:
            gap = min(gap, _gap(state, check, calm, now, pace, world.policy.services[user.service].rules.rise))
            second = second or check.bad_run == 1
    if gap == pace.pending_gap_s:
        return Ask(target.target, max(now, target.newest_ended + gap), patience, fresh=second)
    swing = 1.0 + pace.jitter * (2.0 * _share(target) - 1.0)
    last = target.newest_started if target.newest_started > now - gap else now - gap
    at = last + gap * swing
    return Ask(target.target, at if at > now else now, patience)


def _gap(state: InstanceState, check: Streak, calm: float, now: float, pace: Pace, rise: int) -> float:
    """Seconds between two probes as this user of the target needs it."""
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


def _share(target: TargetState) -> float:
    """0..1, the same on every run: the phase and jitter of a target's next question, by its identity."""
    return crc32(target.count.to_bytes(8, "little"), target.phase) / 0xFFFFFFFF


def peers(world: World, instance: Instance, most: int) -> list[InstanceState]:
    """At most so many others of the service, from a place of this instance's own on, so that not all ask the same three."""
    states = world.services[instance.service].instances
    start = crc32(str(instance).encode()) % len(states)
    others = (s for s in chain(islice(states.values(), start, None), islice(states.values(), start)) if s.instance != instance)
    return list(islice(others, most))
