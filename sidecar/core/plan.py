"""From what should be to what must be written: the difference between the intents in force and the balancers' pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbplugins.values import Axis, Change, InFlight, Operator, Ref, Seen, Serve, Setting
from sidecar.core import guard
from sidecar.core.known import BalancerState, InstanceState, Sent, in_its_words, is_at, strictest
from sidecar.core.model import Hold, HoldName, Instance, ServerRef
from sidecar.core.policy import BalancerPolicy, Mode, Policy
from sidecar.core.world import World

RETRY_S, RETRY_MAX_S = 0.2, 30.0
"""After a refusal: wait for a fresh picture and this long, doubling."""
EFFECT_GRACE_S = 1.0
"""How much longer than its `settle_s` a change may take to show before it is sent again."""


def plan(
    world: World, policy: Policy, now: float, services: Iterable[str], undecided: frozenset[Instance] = frozenset()
) -> tuple[dict[str, tuple[Change, ...]], list[Hold]]:
    """The changes each balancer needs now for these services, and the holds that keep others back.

    `undecided`: instances about which this very turn means to do something; until that is on disk their axis of ours is left as it is.
    """
    changes: dict[str, list[Change]] = {}
    holds: list[Hold] = []
    concerned = _concerned(world, policy, services)
    leaving: set[ServerRef] = set()
    for state, server in concerned:  # first, for a server that an operator takes out now counts no more for those that we take out
        wanted, who = wanted_of(state, policy.balancers[server.balancer]), sorted({o.actor for o in state.overrides.values()})
        change = _on_operators_axis(world.balancers[server.balancer], server.ref, wanted, ", ".join(who) or "cleared", now)
        if change is not None:
            changes.setdefault(server.balancer, []).append(change)
    worded = {ServerRef(name, change.ref): change.want.serve for name, found in changes.items() for change in found}
    for state, server in concerned:
        ejection = state.ejection
        if ejection is not None and ejection.enforced and state.instance not in undecided and server not in worded:
            change = _on_our_axis(world, policy, server, state, holds, leaving, worded, now)
            if change is not None:
                changes.setdefault(server.balancer, []).append(change)
    for name, ref in _nobodys(world, policy):
        change = _on_operators_axis(world.balancers[name], ref, Operator.READY, "it is no instance of ours any more", now)
        if change is not None:
            changes.setdefault(name, []).append(change)
    return {name: tuple(found) for name, found in changes.items()}, holds


def _concerned(world: World, policy: Policy, services: Iterable[str]) -> list[tuple[InstanceState, ServerRef]]:
    """Those of whom we or an operator have said anything, with each of their servers that we may write to."""
    return [
        (state, server)
        for name in services
        for state in world.services[name].instances.values()
        if state.ejection is not None or state.overrides or state.ended or _said_any(world, state)
        for server in state.servers
        if server.balancer in world.balancers and _may_write(world, policy, server.balancer)
    ]


def _may_write(world: World, policy: Policy, balancer: str) -> bool:
    state = world.balancers[balancer]
    return policy.balancers[balancer].mode is Mode.ACT and balancer not in world.standby and not state.error and bool(state.seen)


# ---- our own axis ----


def _on_our_axis(
    world: World,
    policy: Policy,
    server: ServerRef,
    state: InstanceState,
    holds: list[Hold],
    leaving: set[ServerRef],
    worded: Mapping[ServerRef, Serve],
    now: float,
) -> Change | None:
    ejection = state.ejection
    assert ejection is not None, "asked only for what is out, or on its way back"
    balancer = world.balancers[server.balancer]
    seen = balancer.seen.get(server.ref)
    service = state.instance.service
    if seen is None or server in ejection.others or state.proposed or state.overruled or state.new_life:
        return None
    sent = balancer.sent.get(server.ref)
    want = Setting(Serve.FULL if ejection.returning or not is_at(seen, state.instance) else Serve.NONE)
    if seen.ours.serve is want.serve and (want.serve is Serve.NONE or seen.ours.weight_pct == 100) and not _is_contradicted(sent, want):
        return None
    if want.serve is Serve.NONE and not _may_leave(world, policy, seen, service, now):
        return None
    if seen.writable is not None:
        holds.append(Hold(HoldName.NOT_WRITABLE, f"{server}: {seen.writable}", state.instance, service))
        return None
    if sent is not None and sent.serve is want.serve and not _may_repeat(balancer, sent, seen, now):
        holds.append(_waits(server, state, sent, now))
        return None
    if want.serve is Serve.NONE:
        hold = guard.against_leaving(world, server, ejection.strength, policy.services[service].guards, leaving, worded, now)
        if hold is not None:
            holds.append(Hold(hold.name, hold.why, state.instance, service))
            return None
        leaving.add(server)
    in_flight = ejection.in_flight if policy.balancers[server.balancer].kill and want.serve is Serve.NONE else InFlight.KEEP
    note = seen.note or world.notes.get(server, "")
    why = ejection.cause if want.serve is Serve.NONE else "recovered"
    return Change(server.ref, want, seen, Axis.OURS, in_flight, note, why)


def _may_repeat(balancer: BalancerState, sent: Sent, seen: Seen, now: float) -> bool:
    """The same was sent before: again only if it was refused or forgotten, on a newer picture, with growing patience."""
    if sent.confirmed or sent.generation != seen.generation:
        return balancer.seen_at > sent.at
    wait = _patience_s(sent.retries) if sent.refused else sent.settle_s + EFFECT_GRACE_S
    return now - sent.at >= wait and balancer.seen_at > sent.at


def _waits(server: ServerRef, state: InstanceState, sent: Sent, now: float) -> Hold:
    """Why the same is not sent again yet."""
    service = state.instance.service
    if sent.refused:
        return Hold(HoldName.UNSETTLED, f"{server} was not changed: {sent.refused}; it is told again", state.instance, service)
    why = f"{server} was told {now - sent.at:.1f} s ago; its effect should show within {sent.settle_s + EFFECT_GRACE_S:.1f} s"
    return Hold(HoldName.UNSETTLED, why, state.instance, service)


def _patience_s(refusals: int) -> float:
    return float(min(RETRY_S * 2.0 ** min(refusals, 16), RETRY_MAX_S))


def _is_contradicted(sent: Sent | None, want: Setting) -> bool:
    """The opposite was sent and may still be on its way: what the balancer shows now is not yet the end of it."""
    return sent is not None and sent.serve is not want.serve and not sent.is_settled


def _may_leave(world: World, policy: Policy, seen: Seen, service: str, now: float) -> bool:
    """Nothing is taken out in observe mode or a freeze, nor where an operator has it out already."""
    is_acting = policy.services[service].mode is Mode.ACT
    return is_acting and seen.operator is Operator.READY and world.freeze_of(service, now) is None


# ---- the operator's axis, for drain and maint by our commands ----


def _said_any(world: World, state: InstanceState) -> bool:
    return any(s.ref in world.balancers[s.balancer].said for s in state.servers if s.balancer in world.balancers)


def _nobodys(world: World, policy: Policy) -> list[tuple[str, Ref]]:
    """Servers that show a word of ours although they are no instance's any more: an address has moved, a service was removed."""
    said = [(name, ref) for name, b in world.balancers.items() if b.said and name in policy.balancers for ref in b.said]
    return [(name, ref) for name, ref in said if not _is_anybodys(world, name, ref) and _may_write(world, policy, name)]


def _is_anybodys(world: World, balancer: str, ref: Ref) -> bool:
    server = ServerRef(balancer, ref)
    users = world.balancers[balancer].users.get(ref.pool, ())
    return any(server in state.servers for name in users for state in world.services[name].instances.values())


def wanted_of(state: InstanceState, traits: BalancerPolicy) -> Operator:
    """What our commands want it in on this balancer."""
    return in_its_words(strictest(o.state for o in state.overrides.values()), traits.drain)


def _on_operators_axis(balancer: BalancerState, ref: Ref, wanted: Operator, who: str, now: float) -> Change | None:
    """Set what our commands want where the operator has said nothing himself; undo only what is ours."""
    seen, pending = balancer.seen.get(ref), balancer.said_pending.get(ref)
    if seen is None:
        return None
    if pending is not None and pending.word is wanted and balancer.seen_at <= pending.at + seen.settle_s + EFFECT_GRACE_S:
        return None
    refused = balancer.said_refused.get(ref)
    if refused is not None and not (now - refused.at >= _patience_s(refused.times - 1) and balancer.seen_at > refused.at):
        return None
    ours = balancer.said.get(ref)
    is_so = seen.operator is wanted and (pending is None or pending.word is wanted)
    if is_so or (seen.operator is not Operator.READY and ours is not seen.operator):
        return None
    serve = {Operator.READY: Serve.FULL, Operator.DRAINING: Serve.DRAIN, Operator.MAINTENANCE: Serve.NONE}[wanted]
    return Change(ref, Setting(serve), seen, Axis.OPERATOR, note=seen.note, why=who)
