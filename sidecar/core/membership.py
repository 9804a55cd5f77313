"""Who belongs to a service, what is asked of them, and which server of which balancer is whose."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

from lbplugins.values import Address, Operator, Serve
from sidecar.core.known import InstanceState, Known, Sent, ServiceState, TargetState, is_at, strictest, target_of
from sidecar.core.model import Discovered, Instance, PoolRef, ServerRef, Target
from sidecar.core.policy import ProbePlan, ServicePolicy
from sidecar.core.streak import Streak

FAULT_TOLD_EVERY_S = 60.0
"""A source that fails for another reason each time is news no more often."""


def discovered(world: Known, fact: Discovered) -> tuple[str, ...]:
    service = world.services.get(fact.service)
    if service is None:
        return ()
    if fact.error:
        _discovery_fault(world, service, fact.source, fact.error, fact.at)
        return (fact.service,)
    take_members(world, service, fact.source, fact.instances, fact.at, fact.labels or {})
    return (fact.service,)


def take_members(
    world: Known,
    service: ServiceState,
    source: str,
    found: tuple[Instance, ...],
    at: float,
    labels: Mapping[Instance, Mapping[str, str]] | None = None,
    *,
    trusted: bool = False,
) -> None:
    """Accept what a source says, unless it is empty or sharply shrunken and the lost are not matched by joins."""
    old = service.last_good.get(source, ())
    new = tuple(dict.fromkeys(found))
    lost, joined = len(set(old) - set(new)), len(set(new) - set(old))
    shrink = world.policy.services[service.name].guards.shrink
    if old and (not new or (not trusted and lost - joined > shrink * len(old))):
        why = "names no instance" if not new else f"lost {lost} of {len(old)} instances at once"
        _discovery_fault(world, service, source, f"{why}; the last good list of {len(old)} is kept", at)
        return
    if service.faults.pop(source, None) is not None:
        service.fault_at.pop(source, None)
        service.fault_told.pop(source, None)
        world.tell("discovery", at, "sidecar", f"{service.name}: {source} is sound again with {len(new)} instances", service.name)
    service.last_good[source] = new
    for instance in new:
        join(world, service, instance, source, at)
        if labels and instance in labels:
            service.instances[instance].labels = dict(labels[instance])
    for instance in set(old) - set(new):
        state = service.instances.get(instance)
        if state is not None and source in state.sources:
            state.sources.remove(source)
    sweep(world, service)
    map_servers(world, service)


def _discovery_fault(world: Known, service: ServiceState, source: str, why: str, at: float) -> None:
    service.faults[source] = why
    service.fault_at.setdefault(source, at)
    told, told_at = service.fault_told.get(source, ("", float("-inf")))
    if why != told and at - told_at >= FAULT_TOLD_EVERY_S:
        service.fault_told[source] = why, at
        world.tell("discovery", at, "sidecar", f"{service.name}: {source} {why}", service.name)


def join(world: Known, service: ServiceState, instance: Instance, source: str, at: float) -> None:
    if service.since is None:
        service.since = at
    state = service.instances.get(instance)
    if state is None:
        state = InstanceState(instance, at, told_at=at)
        service.instances[instance] = state
        state.hands_off_until = world.adopted_hands_off.pop(instance, float("-inf"))
        for override in [o for o in world.adopted_overrides if o.instance == instance]:
            state.say(override, at)
            owners = frozenset(owner for owner, _ in world.policy.services[service.name].pools)
            state.unclaimed |= world.left_unclaimed.get(instance, owners)
            world.adopted_overrides.remove(override)
        world.left_unclaimed.pop(instance, None)
        service.alert = True
        plan_checks(world, state)
    if source and source not in state.sources:
        state.sources.append(source)


def sweep(world: Known, service: ServiceState) -> None:
    """Drop instances that no source names, except those whose ejection is not yet brought back or struck from the journal."""
    for state in [s for s in service.instances.values() if not s.sources]:
        if state.ejection is not None and state.ejection.enforced:
            continue
        del service.instances[state.instance]
        # an operator's word outlasts a slot that comes and goes
        if state.hands_off_until > float("-inf"):
            world.adopted_hands_off[state.instance] = state.hands_off_until
        if words := (*state.overrides.values(), *state.ended.values()):
            world.adopted_overrides += words
            world.left_unclaimed[state.instance] = state.unclaimed
        for target in state.targets:
            unuse(world, target, state.instance)


def plan_checks(world: Known, state: InstanceState) -> None:
    """Make checks and targets of an instance follow the probe specs of its service; unchanged ones keep their evidence."""
    policy = world.policy.services[state.instance.service]
    for key in state.checks.keys() - {plan.key for plan in policy.probes}:
        del state.checks[key]
    before, state.targets = state.targets, tuple(target_of(state.instance, plan) for plan in policy.probes)
    for target in set(before) - set(state.targets):
        unuse(world, target, state.instance)
    for plan in policy.probes:
        state.checks.setdefault(plan.key, Streak(since=state.since))
        name = target_of(state.instance, plan)
        known = world.targets.get(name)
        if known is None:
            known = _new_target(world, name, plan)
            if (learned := world.learned.get(name)) is not None:
                known.good, known.median_s, known.slow_s = learned.good, learned.median_s, learned.slow_s
        if state.instance not in known.users:
            known.users = (*known.users, state.instance)
        _plan_target(world, known)


def _new_target(world: Known, name: Target, plan: ProbePlan) -> TargetState:
    target = world.targets[name] = TargetState(name, plan, crc32(str(name).encode()))
    world.unasked[name] = None
    return target


def unuse(world: Known, name: Target, instance: Instance) -> None:
    target = world.targets[name]
    target.users = tuple(u for u in target.users if u != instance)
    if not target.users and not target.references:
        del world.targets[name]
    _plan_target(world, target)


def plan_references(world: Known) -> None:
    """Reference targets are asked like any other, but testify only."""
    wanted: dict[Target, list[str]] = {}
    for name, policy in world.policy.services.items():
        for address, key in policy.references:
            wanted.setdefault(Target(address, key), []).append(name)
    for target in list(world.targets.values()):
        target.references = tuple(wanted.pop(target.target, ()))
        if not target.users and not target.references:
            del world.targets[target.target]
    for target_name, names in wanted.items():
        _new_target(world, target_name, ProbePlan(target_name.spec)).references = tuple(names)


def map_servers(world: Known, service: ServiceState) -> None:
    """Which server of which balancer is which instance: by address. Who has none that we know, and may serve, is capacity all the same."""
    policy = world.policy.services[service.name]
    by_address: dict[Address, list[ServerRef]] = {}
    nameless: list[ServerRef] = []
    for owner, pool in policy.pools:
        balancer = world.balancers.get(owner)
        for ref, seen in balancer.of_pool(pool) if balancer else ():
            if seen.address is not None:
                by_address.setdefault(seen.address, []).append(ServerRef(owner, ref))
            elif seen.operator is Operator.READY:
                nameless.append(ServerRef(owner, ref))
    for state in service.instances.values():
        servers = by_address.pop(state.instance.address, [])
        servers += [server for server in state.servers if server not in servers and _is_still_its(world, state, server)]
        state.servers = tuple(servers)
        operator_of_instance(world, state)
    owned = {server for state in service.instances.values() for server in state.servers} if nameless else set()
    unlisted = [server for servers in by_address.values() for server in servers]
    service.unlisted = (*unlisted, *(server for server in nameless if server not in owned))


def _is_still_its(world: Known, state: InstanceState, server: ServerRef) -> bool:
    """A server that shows no address stays with the instance; one with another address until our ejection is undone there."""
    seen = world.seen(server)
    if seen is None or (server.balancer, server.ref.pool) not in world.policy.services[state.instance.service].pools:
        return False
    if seen.address is None:
        return True
    sent = world.balancers[server.balancer].sent.get(server.ref)
    is_ours = state.ejection is not None and state.ejection.enforced and sent is not None and _may_show(sent)
    return is_ours and seen.address != state.instance.address and seen.ours.serve is not Serve.FULL


def _may_show(sent: Sent) -> bool:
    """Can an order of ours to go be what a server shows? Not where a picture has shown that it was given back."""
    return sent.stands or (not sent.confirmed if sent.serve is Serve.FULL else sent.confirmed or not sent.refused)


def operator_of_instance(world: Known, state: InstanceState) -> None:
    words = [seen.operator for server in state.servers if (seen := world.seen(server)) is not None and is_at(seen, state.instance)]
    words += [o.state for o in state.overrides.values()]
    state.operator = strictest(words)


def end_service(world: Known, name: str) -> None:
    for state in world.services[name].instances.values():
        for target in state.targets:
            unuse(world, target, state.instance)
    del world.services[name]


def _plan_target(world: Known, target: TargetState) -> None:
    """Of services that share a target the shortest interval serves all; with equal keys the rest is equal. A learned one is never long."""
    services = (world.policy.services.get(user.service) for user in target.users)
    plans = [plan for service in services if service is not None for plan in service.probes if plan.key == target.target.spec]
    longest = world.policy.pace.max_interval_s
    target.plan = min(plans, key=lambda plan: longest if plan.interval_s is None else plan.interval_s, default=target.plan)


def keep_sources(service: ServiceState, policy: ServicePolicy) -> None:
    """After a reload, lists from pools that are no longer this service's are let go."""
    pools = {str(PoolRef(*pair)) for pair in policy.pools}
    for source in [s for s in service.last_good if "/" in s and not s.startswith(("dns:", "file:", "static")) and s not in pools]:
        for state in service.instances.values():
            if source in state.sources:
                state.sources.remove(source)
        del service.last_good[source]
