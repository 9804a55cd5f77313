"""What the balancers show: compared with what they showed before and with what they were told."""

from __future__ import annotations

from lbplugins.values import Operator, Ref, Seen, Serve, Setting
from sidecar.core import membership
from sidecar.core import streak as streaks
from sidecar.core.known import BalancerState, InstanceState, Known, Sent, in_its_words
from sidecar.core.model import Instance, Judgement, Pictured, PoolRef, ServerRef


def pictured(world: Known, fact: Pictured) -> tuple[str, ...]:
    balancer = world.balancers.setdefault(fact.balancer, BalancerState(fact.balancer))
    names = tuple(n for n, p in world.policy.services.items() if any(b == fact.balancer for b, _ in p.pools))
    if fact.error or fact.servers is None:
        if not balancer.error:
            balancer.error_at = fact.at
            world.tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} cannot be asked: {fact.error}")
        balancer.error = fact.error
        return names
    if balancer.error:
        world.tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} answers again")
        balancer.error = ""
    earlier, balancer.seen = balancer.seen, dict(fact.servers)
    balancer.seen_at = fact.at
    for ref in [ref for ref, before in earlier.items() if _is_another(before, balancer.seen.get(ref))]:
        balancer.sent.pop(ref, None)  # whatever is still on its way there will be refused
        balancer.said_pending.pop(ref, None)
        balancer.said_refused.pop(ref, None)
    balancer.pools = sorted(fact.pools)
    changed = earlier.keys() != balancer.seen.keys()
    for name in names:
        changed |= _members_from(world, fact.balancer, balancer, name, fact.at)
    for ref, seen in balancer.seen.items():
        changed |= _compare(world, balancer, ref, earlier.get(ref), seen, fact.at)
    for state in [state for name in names for state in world.services[name].instances.values() if state.unclaimed]:
        state.unclaimed -= {fact.balancer} if fact.at > state.since or state.servers else frozenset()
    return names if changed or any(world.services[n].alert for n in names) else ()


def _members_from(world: Known, name: str, balancer: BalancerState, service_name: str, at: float) -> bool:
    """Instances from the balancer's own lists, where the configuration names no other source."""
    policy, service = world.policy.services[service_name], world.services[service_name]
    before = list(service.instances)
    if policy.from_balancer:
        for owner, pool in policy.pools:
            if owner != name:
                continue
            found = tuple(
                Instance(service_name, seen.address) for ref, seen in balancer.seen.items() if ref.pool == pool and seen.address is not None
            )
            membership.take_members(world, service, str(PoolRef(name, pool)), found, at, trusted=True)
    membership.map_servers(world, service)
    return list(service.instances) != before


def _compare(world: Known, balancer: BalancerState, ref: Ref, before: Seen | None, seen: Seen, at: float) -> bool:
    """What happened to one server between two pictures. True if anything that a decision reads has moved."""
    server = ServerRef(balancer.name, ref)
    instance_state = _instance_at(world, server, seen)
    sent = balancer.sent.get(ref)
    if sent is not None and not sent.confirmed and seen.ours.serve is sent.serve:
        sent.confirmed, sent.generation = True, seen.generation
    if sent is not None and at > sent.at:
        sent.is_unsure = False
    _adopt(world, server, seen, instance_state, at)
    if instance_state is not None and seen.ours.serve is Serve.FULL:
        instance_state.others -= {server}
    if sent is None and instance_state is not None and seen.ours.serve is Serve.NONE and _is_out_by_us(instance_state):
        balancer.sent[ref] = Sent(Serve.NONE, at, confirmed=True, generation=seen.generation)  # from an earlier life, or adopted
    by_us = _compare_said(world, balancer, ref, before, seen, instance_state)
    if before is None:
        return True
    if before.generation != seen.generation:
        who = instance_state.instance.service if instance_state else ""
        lost = before.ours != seen.ours or before.operator is not seen.operator
        if lost:
            world.tell("drift", at, "outside", f"{server}: {balancer.name} restarted or reloaded and forgot what it was told", who)
        if sent is not None:
            sent.confirmed = False
    elif instance_state is not None and before.operator is not seen.operator and not by_us:
        _operator_moved(world, server, before, seen, instance_state, at)
    elif instance_state is not None and _undone(before, seen, sent, instance_state):
        instance_state.overruled = f"{server} was made ready by hand"
    if before.serving is not seen.serving and instance_state is not None and "own check" in seen.remark and seen.serving is False:
        sentence = f"{server} is out by the balancer's own check"
        world.tell("balancer", at, "balancer:own-check", sentence, instance_state.instance.service, instance_state.instance)
    return (before.ours, before.operator, before.serving, before.address, before.weight, before.generation, before.writable) != (
        seen.ours,
        seen.operator,
        seen.serving,
        seen.address,
        seen.weight,
        seen.generation,
        seen.writable,
    )


def _instance_at(world: Known, server: ServerRef, seen: Seen) -> InstanceState | None:
    for name, policy in world.policy.services.items():
        if (server.balancer, server.ref.pool) in policy.pools and seen.address is not None:
            return world.services[name].instances.get(Instance(name, seen.address))
    return None


def _adopt(world: Known, server: ServerRef, seen: Seen, state: InstanceState | None, at: float) -> None:
    """Take back what an earlier life of ours has out, if the balancer still shows it; else it has lapsed."""
    if not world.adopted or seen.address is None:
        return
    for name, policy in world.policy.services.items():
        instance = Instance(name, seen.address)
        ejection = world.adopted.get(instance)
        if ejection is None or (server.balancer, server.ref.pool) not in policy.pools:
            continue
        if seen.ours == Setting():
            continue
        del world.adopted[instance]
        membership.join(world, world.services[name], instance, "", at)
        state = world.services[name].instances[instance]
        state.ejection, state.repeat = ejection, ejection.repeat
        state.told, state.told_at = Judgement.EJECTED, ejection.at
        world.balancers[server.balancer].sent[server.ref] = Sent(Serve.NONE, at, confirmed=True, generation=seen.generation)
        membership.map_servers(world, world.services[name])
        world.tell("adopted", at, "sidecar", f"{instance} is out by us from before our restart: {ejection.cause}", name, instance)


def _operator_moved(world: Known, server: ServerRef, before: Seen, seen: Seen, state: InstanceState, at: float) -> None:
    """Somebody else's word about an instance changed; the end of his drain or maintenance starts a new life."""
    sentence = f"{server}: operator {before.operator} -> {seen.operator}"
    world.tell("operator", at, "outside", sentence, state.instance.service, state.instance)
    if seen.operator is Operator.READY:
        for check in state.checks.values():
            streaks.clear(check, at)
        state.probation_at, state.repeat = None, 0
        state.new_life = state.ejection is not None and seen.ours.serve is not Serve.NONE


def _compare_said(world: Known, balancer: BalancerState, ref: Ref, before: Seen | None, seen: Seen, state: InstanceState | None) -> bool:
    """Keep track of which word on the operator's axis is ours: written by us, and still shown. True if this change was our doing."""
    pending = balancer.said_pending.get(ref)
    if pending is not None and seen.operator is pending.word:
        del balancer.said_pending[ref]
        balancer.said_refused.pop(ref, None)
        balancer.said.pop(ref, None)
        if pending.word is not Operator.READY:
            balancer.said[ref] = pending.word
        return True
    if pending is not None and seen.operator in pending.before - {Operator.READY}:
        balancer.said[ref] = seen.operator
        return True
    if state is not None and balancer.name in state.unclaimed and ref not in balancer.said:
        has_drain = world.policy.balancers[balancer.name].drain
        if seen.operator in {in_its_words(o.state, has_drain) for o in (*state.overrides.values(), *state.ended.values())}:
            balancer.said[ref] = seen.operator
    said = balancer.said.get(ref)
    if said is None or seen.operator is said:
        return False
    if before is not None and before.generation == seen.generation and pending is None:
        del balancer.said[ref]
        if seen.operator is Operator.READY and state is not None and state.overrides:
            state.unsaid = f"{balancer.name}/{ref} was made ready by hand"
    elif seen.operator is Operator.READY:
        del balancer.said[ref]
    return False


def _is_another(before: Seen, seen: Seen | None) -> bool:
    """The server is gone, or stands for another address and shows nothing that was ever told it."""
    if seen is None:
        return True
    return before.address != seen.address and seen.ours.serve is Serve.FULL and seen.operator is Operator.READY


def _undone(before: Seen, seen: Seen, sent: Sent | None, state: InstanceState) -> bool:
    """Somebody made ready by hand what we had out, in the same life of the balancer."""
    return (
        _is_out_by_us(state)
        and sent is not None
        and sent.confirmed
        and sent.serve is Serve.NONE
        and before.ours.serve is Serve.NONE
        and seen.ours.serve is Serve.FULL
    )


def _is_out_by_us(state: InstanceState) -> bool:
    return state.ejection is not None and state.ejection.enforced and not state.ejection.returning
