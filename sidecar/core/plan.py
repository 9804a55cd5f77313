"""From what should be to what must be written: the difference between the intents in force and the balancers' pictures."""

from __future__ import annotations

from lbplugins.values import Axis, Change, InFlight, Operator, Ref, Seen, Serve, Setting
from sidecar.core import guard
from sidecar.core.model import Hold, HoldName, ServerRef
from sidecar.core.policy import BalancerPolicy, Mode, Policy
from sidecar.core.world import BalancerState, InstanceState, Sent, World, strictest

RETRY_S, RETRY_MAX_S = 0.2, 30.0
"""After a refusal: wait for a fresh picture and this long, doubling."""
EFFECT_GRACE_S = 1.0
"""How much longer than its `settle_s` a change may take to show before it is sent again."""


def plan(world: World, policy: Policy, now: float) -> tuple[dict[str, tuple[Change, ...]], list[Hold]]:
    """The changes each balancer needs now, and the holds that keep others back."""
    changes: dict[str, list[Change]] = {}
    holds: list[Hold] = []
    for name, service in world.services.items():
        if name not in policy.services:
            continue
        for state in service.instances.values():
            if state.ejection is None and not state.overrides and not _said_any(world, state):
                continue
            for server in state.servers:
                balancer = world.balancers.get(server.balancer)
                if balancer is None or not _may_write(world, policy, server.balancer):
                    continue
                change = _on_operators_axis(world, balancer, server.ref, state, policy.balancers[server.balancer])
                if change is None and state.ejection is not None and state.ejection.enforced:
                    change = _on_our_axis(world, policy, server, state, holds, now)
                if change is not None:
                    changes.setdefault(server.balancer, []).append(change)
    return {name: tuple(found) for name, found in changes.items()}, holds


def _may_write(world: World, policy: Policy, balancer: str) -> bool:
    state = world.balancers[balancer]
    return policy.balancers[balancer].mode is Mode.ACT and balancer not in world.standby and not state.error and bool(state.seen)


# ---- our own axis ----


def _on_our_axis(world: World, policy: Policy, server: ServerRef, state: InstanceState, holds: list[Hold], now: float) -> Change | None:
    ejection = state.ejection
    assert ejection is not None, "asked only for what is out, or on its way back"
    balancer = world.balancers[server.balancer]
    seen = balancer.seen.get(server.ref)
    service = state.instance.service
    if seen is None or state.proposed is not None or state.overruled or state.new_life:
        return None
    want = Setting(Serve.FULL if ejection.returning else Serve.NONE)
    if seen.ours.serve is want.serve and (want.serve is Serve.NONE or seen.ours.weight_pct == 100):
        return None
    if world.freeze_of(service, now) is not None and not ejection.returning:
        return None
    if seen.writable is not None:
        holds.append(Hold(HoldName.NOT_WRITABLE, f"{server}: {seen.writable}", state.instance, service))
        return None
    sent = balancer.sent.get(server.ref)
    if sent is not None and sent.serve is want.serve and not _may_repeat(balancer, sent, seen, now):
        return None
    if want.serve is Serve.NONE and _would_break_floor(world, policy, server, state, holds):
        return None
    in_flight = ejection.in_flight if policy.balancers[server.balancer].kill and want.serve is Serve.NONE else InFlight.KEEP
    note = seen.note or world.notes.get(server, "")
    why = ejection.cause if want.serve is Serve.NONE else "recovered"
    return Change(server.ref, want, seen, Axis.OURS, in_flight, note, why)


def _may_repeat(balancer: BalancerState, sent: Sent, seen: Seen, now: float) -> bool:
    """The same was sent before: again only if it was refused or forgotten, on a newer picture, with growing patience."""
    if sent.confirmed or sent.generation != seen.generation:
        return balancer.seen_at > sent.at
    wait = min(RETRY_S * 2.0**sent.retries, RETRY_MAX_S) if sent.refused else sent.settle_s + EFFECT_GRACE_S
    return now - sent.at >= wait and balancer.seen_at > sent.at


def _would_break_floor(world: World, policy: Policy, server: ServerRef, state: InstanceState, holds: list[Hold]) -> bool:
    """The last look before a server goes: what the balancer shows now may differ from when it was decided."""
    service = world.services[state.instance.service]
    guards = policy.services[service.name].guards
    left = guard.left_in_pool(world, server, state)
    if left >= guards.min_healthy:
        return False
    why = f"{left} would be left in rotation in {server.balancer}/{server.ref.pool}, at least {guards.min_healthy} must be"
    holds.append(Hold(HoldName.MIN_HEALTHY, why, state.instance, service.name))
    return True


# ---- the operator's axis, for drain and maint by our commands ----


def _said_any(world: World, state: InstanceState) -> bool:
    return any(s.ref in world.balancers[s.balancer].said for s in state.servers if s.balancer in world.balancers)


def _on_operators_axis(world: World, balancer: BalancerState, ref: Ref, state: InstanceState, traits: BalancerPolicy) -> Change | None:
    """Set what our commands want where the operator has said nothing himself; undo only what is ours."""
    seen = balancer.seen.get(ref)
    if seen is None or ref in balancer.said_pending:
        return None
    wanted = strictest(o.state for o in state.overrides.values())
    if wanted is Operator.DRAINING and not traits.drain:
        wanted = Operator.MAINTENANCE
    ours = balancer.said.get(ref)
    if seen.operator is wanted or (seen.operator is not Operator.READY and ours is not seen.operator):
        return None
    serve = {Operator.READY: Serve.FULL, Operator.DRAINING: Serve.DRAIN, Operator.MAINTENANCE: Serve.NONE}[wanted]
    who = ", ".join(sorted({o.actor for o in state.overrides.values()})) or "cleared"
    return Change(ref, Setting(serve), seen, Axis.OPERATOR, note=seen.note, why=who)
