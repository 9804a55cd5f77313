"""What the balancers show: compared with what they showed before and with what they were told."""

from __future__ import annotations

from collections.abc import Iterable, Set

from lbplugins.values import Operator, Ref, Seen, Serve, Setting
from sidecar.core import membership, traffic
from sidecar.core import streak as streaks
from sidecar.core.known import ON_ITS_WAY_S, BalancerState, InstanceState, Known, Sent, in_its_words
from sidecar.core.model import Instance, Judgement, Pictured, PoolRef, ServerRef


def pictured(world: Known, fact: Pictured) -> tuple[str, ...]:
    """Take a picture in. What stayed as it was, and concerns nobody in whom we have a hand, costs one comparison."""
    balancer = world.balancers.setdefault(fact.balancer, BalancerState(fact.balancer))
    names = balancer.services()
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
    first, balancer.seen_at, balancer.pools = balancer.seen_at == float("-inf"), fact.at, sorted(fact.pools)
    moved = {ref for ref, seen in balancer.seen.items() if earlier.get(ref) != seen} | (earlier.keys() - balancer.seen.keys())
    for ref in [ref for ref in moved if ref in earlier and _is_another(earlier[ref], balancer.seen.get(ref))]:
        balancer.sent.pop(ref, None)  # whatever is still on its way there will be refused
        balancer.said_pending.pop(ref, None)
        balancer.said_refused.pop(ref, None)
    if earlier.keys() != balancer.seen.keys():
        balancer.refs = _by_pool(balancer.seen)
    touched = {name for ref in moved if ref not in earlier or ref not in balancer.seen for name in balancer.users.get(ref.pool, ())}
    watched = {name for name in names if first or world.services[name].alert}
    for name in [name for name in names if name in watched or any(name in balancer.users.get(ref.pool, ()) for ref in moved)]:
        if members_from(world, balancer, name, fact.at):
            touched.add(name)
    traffic.counted(world, balancer, moved, earlier, fact.at)
    for ref in _to_compare(world, balancer, moved, watched):
        if _compare(world, balancer, ref, earlier.get(ref), balancer.seen[ref], fact.at):
            touched.update(balancer.users.get(ref.pool, ()))
    for state in [state for name in watched for state in world.services[name].instances.values() if state.unclaimed]:
        state.unclaimed -= {fact.balancer} if fact.at > state.since or state.servers else frozenset()
    for instance, unclaimed in list(world.left_unclaimed.items()):
        world.left_unclaimed[instance] = unclaimed - {fact.balancer}
    return tuple(n for n in names if n in touched or world.adopted or world.services[n].alert)


def _by_pool(seen: Iterable[Ref]) -> dict[str, list[Ref]]:
    refs: dict[str, list[Ref]] = {}
    for ref in seen:
        refs.setdefault(ref.pool, []).append(ref)
    return refs


def _to_compare(world: Known, balancer: BalancerState, moved: Set[Ref], watched: Set[str]) -> list[Ref]:
    """Servers of which there may be news: in the picture's order, so that the same facts always tell the same story."""
    if world.adopted:
        return list(balancer.seen)
    ours = balancer.sent.keys() | balancer.said.keys() | balancer.said_pending.keys()
    ours |= {ref for pool, names in balancer.users.items() if not watched.isdisjoint(names) for ref in balancer.refs.get(pool, ())}
    return [ref for ref in balancer.seen if ref in moved or ref in ours] if moved or ours else []


def members_from(world: Known, balancer: BalancerState, service_name: str, at: float) -> bool:
    """Instances from the balancer's own lists, where the configuration names no other source."""
    policy, service = world.policy.services[service_name], world.services[service_name]
    before = list(service.instances)
    if policy.from_balancer:
        for owner, pool in policy.pools:
            if owner == balancer.name:
                found = tuple(Instance(service_name, seen.address) for _, seen in balancer.of_pool(pool) if seen.address is not None)
                membership.take_members(world, service, str(PoolRef(owner, pool)), found, at, trusted=True)
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
    if sent is not None and seen.ours.serve is Serve.FULL:
        sent.stands = False
    _adopt(world, server, seen, instance_state, at)
    if sent is None and instance_state is not None and seen.ours.serve is Serve.NONE and instance_state.is_out_by_us:
        balancer.sent[ref] = Sent(Serve.NONE, at, confirmed=True, generation=seen.generation)  # from an earlier life, or adopted
    by_us = _compare_said(world, balancer, ref, before, seen, instance_state, at)
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
    elif instance_state is not None and balancer.name not in world.standby and _undone(before, seen, sent, instance_state):
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
    if seen.address is None:
        return None
    for name in world.balancers[server.balancer].users.get(server.ref.pool, ()):
        if (state := world.services[name].instances.get(Instance(name, seen.address))) is not None:
            return state
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
        if seen.ours == Setting() or server in ejection.others:
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


def _compare_said(
    world: Known, balancer: BalancerState, ref: Ref, before: Seen | None, seen: Seen, state: InstanceState | None, at: float
) -> bool:
    """Keep track of which word on the operator's axis is ours: written by us, and still shown. True if this change was our doing."""
    pending = balancer.said_pending.get(ref)
    if pending is not None and pending.is_answered and seen.operator is pending.word:  # until then it is an operator's own
        del balancer.said_pending[ref]
        balancer.said_refused.pop(ref, None)
        balancer.said.pop(ref, None)
        if pending.word is not Operator.READY:
            balancer.said[ref] = pending.word
        return True
    if pending is not None and seen.operator in pending.before - {Operator.READY}:
        balancer.said[ref] = seen.operator
        return True
    if pending is not None and at - pending.at > ON_ITS_WAY_S:
        del balancer.said_pending[ref]  # something else is shown: it never will be
    if state is not None and balancer.name in state.unclaimed and ref not in balancer.said:
        has_drain = world.policy.balancers[balancer.name].drain
        words = [word for o in (*state.overrides.values(), *state.ended.values()) for word in (o.state, *o.before)]
        if seen.operator in {in_its_words(word, has_drain) for word in words}:
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
        state.is_out_by_us
        and sent is not None
        and sent.confirmed
        and sent.serve is Serve.NONE
        and before.ours.serve is Serve.NONE
        and seen.ours.serve is Serve.FULL
    )
