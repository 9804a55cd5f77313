"""Reasons not to act. Each guard answers with a named hold and its arithmetic, computed as if the act were done."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import floor

from lbplugins.values import Operator, Seen, Serve, Setting
from sidecar.core import pace, traffic
from sidecar.core.charge import Charge
from sidecar.core.known import ON_ITS_WAY_S, InstanceState, ServiceState, target_of
from sidecar.core.model import (
    Act,
    Commanded,
    Hold,
    HoldName,
    Instance,
    Judgement,
    Result,
    ServerRef,
    Strength,
    Target,
    Verb,
)
from sidecar.core.policy import Guards, Mode, ServicePolicy
from sidecar.core.streak import Streak, risen
from sidecar.core.world import World

Key = Instance | ServerRef

WITNESSES_NAMED = 8
"""More are not needed, neither in a sentence nor to notice that all of them failed."""


@dataclass(frozen=True, slots=True)
class Group:
    """A set of servers that share a budget: a service over all its pools, or one pool.

    `counted`: those not in an operator's drain or maintenance (n). `used`: counted ones not serving, whoever took them out.
    `sound`: serving ones not known to be bad. `keys`: which of these stand for each instance.
    """

    name: str
    counted: frozenset[Key]
    used: frozenset[Key]
    sound: frozenset[Key]
    keys: dict[Instance, frozenset[Key]]

    def out(self, instance: Instance) -> frozenset[Key]:
        return self.used | (self.keys.get(instance, frozenset()) & self.counted)


def needed(policy: ServicePolicy) -> int:
    """How many checks of an instance must be good."""
    return len(policy.probes) if policy.require is None else min(policy.require, len(policy.probes))


def judge(state: InstanceState, policy: ServicePolicy) -> Judgement:
    """What we hold an instance to be, from its evidence alone."""
    judgement = by_probes(state, policy)
    if judgement in (Judgement.HEALTHY, Judgement.PROBATION) and traffic.is_accused(state.conduct):
        return Judgement.SUSPECT
    return judgement


def by_probes(state: InstanceState, policy: ServicePolicy) -> Judgement:
    """The same by its probes alone: whether it can take anybody's place."""
    if state.ejection is not None and not state.ejection.returning:
        return Judgement.EJECTED
    need, doubtful, good = needed(policy), 0, []
    for check in state.checks.values():
        if check.bad_run or check.verdict_at is not None:
            doubtful += 1
        if check.good_run:
            good.append(check)
    if len(state.checks) - doubtful < need:
        return Judgement.SUSPECT
    if not state.checks or len(good) < need:
        return Judgement.UNKNOWN
    if state.probation_at is not None and (
        state.ejection is not None or sum(1 for c in good if c.good_run >= 2 * policy.rules.rise) < need
    ):
        return Judgement.PROBATION
    return Judgement.HEALTHY


def failed_check(state: InstanceState, policy: ServicePolicy) -> Streak | None:
    """The check whose failure completes the evidence against the instance, or None while it is incomplete."""
    failed = [c for c in state.checks.values() if c.verdict_at is not None]
    if not failed or len(state.checks) - len(failed) >= needed(policy):
        return None
    return max(failed, key=lambda c: c.verdict_at or 0.0)


def has_risen(state: InstanceState, policy: ServicePolicy) -> bool:
    return bool(state.checks) and sum(1 for c in state.checks.values() if risen(c, policy.rules)) >= needed(policy)


# ---- who is in rotation ----


def is_in_rotation(seen: Seen) -> bool:
    """May new requests reach this server, as far as the balancer tells?"""
    return seen.serving is not False and seen.ours.serve is Serve.FULL and seen.operator is Operator.READY


def is_out(state: InstanceState) -> bool:
    """Out by our decision: in force, or decided and on its way into the journal."""
    return (state.ejection is not None and not state.ejection.returning) or Act.EJECT in state.proposed


def is_orphan(state: InstanceState, seen: Seen) -> bool:
    """Out on our axis, but by no act of ours that we know of."""
    return seen.ours != Setting() and state.ejection is None


def serves(world: World, state: InstanceState) -> bool:
    """Does the instance get traffic anywhere? Without a balancer: unless we say no."""
    if is_out(state):
        return False
    if not state.servers:
        return state.operator is Operator.READY
    return any(seen is not None and is_in_rotation(seen) for seen in (world.seen(s) for s in state.servers))


def groups(world: World, service: ServiceState) -> list[Group]:
    """The service as a whole, then each of its pools."""
    policy = world.policy.services[service.name]
    verdict = {i: failed_check(s, policy) is not None for i, s in service.instances.items()}
    members = {i: s for i, s in service.instances.items() if s.sources or s.ejection is None}
    if any(s.servers for s in members.values()):  # one that stands in no pool can take nobody's place
        members = {i: s for i, s in members.items() if s.servers}
    counted = frozenset[Key](i for i, s in members.items() if s.operator is Operator.READY)
    used = frozenset[Key](i for i in counted if isinstance(i, Instance) and not serves(world, members[i]))
    sound = frozenset[Key](
        i
        for i in counted - used
        if isinstance(i, Instance) and not verdict[i] and by_probes(members[i], policy) in (Judgement.HEALTHY, Judgement.PROBATION)
    )
    whole = Group(service.name, counted, used, sound, {i: frozenset[Key]((i,)) for i in members})
    return [whole, *(_pool(world, service, *pair, verdict) for pair in policy.pools if len(policy.pools) > 1 or service.unlisted)]


def as_heard(world: World, service: ServiceState, whole: Group) -> Group:
    """The service as balancers that can be asked show it, if nobody serves there: an old picture of a lost one feeds nobody."""
    heard = [server for state in service.instances.values() for server in state.servers if not world.balancers[server.balancer].error]
    pictured = [seen for server in heard if (seen := world.seen(server)) is not None]
    if not pictured or any(is_in_rotation(seen) for seen in pictured):
        return whole
    return Group(whole.name, whole.counted, whole.counted, frozenset(), whole.keys)


def _pool(world: World, service: ServiceState, balancer_name: str, pool: str, verdict: dict[Instance, bool]) -> Group:
    balancer = world.balancers[balancer_name]
    owner = {server: s for s in service.instances.values() for server in s.servers}
    counted: set[Key] = set()
    used: set[Key] = set()
    sound: set[Key] = set()
    keys: dict[Instance, frozenset[Key]] = {}
    for ref, seen in balancer.of_pool(pool):
        server = ServerRef(balancer_name, ref)
        state = owner.get(server)
        if state is not None:
            keys[state.instance] = keys.get(state.instance, frozenset()) | {server}
        if seen.operator is not Operator.READY:
            continue
        counted.add(server)
        if (state is not None and is_out(state)) or not is_in_rotation(seen):
            used.add(server)
        elif state is None or not verdict[state.instance]:
            sound.add(server)
    return Group(f"{balancer_name}/{pool}", frozenset(counted), frozenset(used), frozenset(sound), keys)


# ---- ejecting ----


def budget(n: int, strength: Strength, guards: Guards) -> int:
    """The most that may be out of n by evidence of this strength."""
    if strength is Strength.HARD:
        return max(floor(n * guards.max_ejected_hard), 1 if n >= 2 and guards.max_ejected_hard > 0 else 0)
    return max(floor(n * guards.max_ejected_soft), 1 if n >= 3 and guards.max_ejected_soft > 0 else 0)


def over_budget(group: Group, instance: Instance, strength: Strength, guards: Guards) -> Hold | None:
    """Would taking this instance out leave too few? None when it may go by this group."""
    mine = group.keys.get(instance)
    if not mine:
        return None
    n, out = len(group.counted), len(group.out(instance))
    most = budget(n, strength, guards)
    if n == 1:
        return Hold(HoldName.SINGLE, f"it is the only instance of {group.name}", instance)
    if out > most:
        already = len(group.used)
        why = f"{out} of {n} of {group.name} would be out, {most} allowed ({strength} evidence); {already} already not serving"
        return Hold(HoldName.MAX_EJECTED, why, instance)
    left = len(group.sound - mine)
    if left < guards.min_healthy:
        why = f"{left} healthy of {n} would be left in {group.name}, at least {guards.min_healthy} must be"
        return Hold(HoldName.MIN_HEALTHY, why, instance)
    if strength is not Strength.HARD and left < guards.panic_below * n:
        why = f"only {left} of {n} of {group.name} would be healthy, below {guards.panic_below:.0%}: better a doubtful server than none"
        return Hold(HoldName.PANIC, why, instance)
    return None


def against_leaving(
    world: World,
    server: ServerRef,
    strength: Strength,
    guards: Guards,
    leaving: Set[ServerRef],
    worded: Mapping[ServerRef, Serve],
    now: float,
) -> Hold | None:
    """The last look before a server goes: what its pool shows now may differ from when it was decided, or when it was out before.

    `leaving`: servers that go in this same turn. Those that were told something which no picture shows yet count as out, whichever it was.
    While an operator's word is on its way through us (`worded` in this turn), it must be right both before it has arrived and after; one
    whom that word brings back counts, but not as serving.
    """
    balancer = world.balancers[server.balancer]
    before = {ref: seen for ref, seen in balancer.of_pool(server.ref.pool) if seen.operator is Operator.READY}
    gone = {ref for ref, seen in before.items() if not is_in_rotation(seen)} | {server.ref}
    gone |= {ref for ref in before if ServerRef(server.balancer, ref) in leaving}
    on_their_way = {ref for ref, sent in balancer.sent.items() if not sent.is_settled and now - sent.at < ON_ITS_WAY_S}
    gone |= before.keys() & on_their_way
    words = {ref: word.word is Operator.READY for ref, word in balancer.said_pending.items() if ref.pool == server.ref.pool}
    words |= {s.ref: serve is Serve.FULL for s, serve in worded.items() if (s.balancer, s.ref.pool) == (server.balancer, server.ref.pool)}
    after = {ref for ref in before if ref not in words} | {ref for ref, is_ready in words.items() if is_ready}
    gone |= words.keys() & after
    for counted in (before.keys(), after):
        n, out, most = len(counted), len(gone & counted | {server.ref}), budget(len(counted), strength, guards)
        pool = f"{server.balancer}/{server.ref.pool}"
        if out > most:
            return Hold(HoldName.MAX_EJECTED, f"{out} of {n} of {pool} would be out, {most} allowed ({strength} evidence)")
        if n - out < guards.min_healthy:
            return Hold(HoldName.MIN_HEALTHY, f"{n - out} would be left in rotation in {pool}, at least {guards.min_healthy} must be")
    return None


def against_ejection(
    world: World,
    service: ServiceState,
    state: InstanceState,
    charge: Charge,
    among: list[Group],
    now: float,
    testimony: Testimony,
    *,
    spent: float,
) -> list[Hold]:
    """Every reason not to take this instance out now; empty = it may go. `spent`: ejections already decided in this turn."""
    policy = world.policy.services[service.name]
    holds = [*_we_ourselves(world, service, state, now), *not_ours_to_act(world, state, now)]
    for group in among:
        if (hold := over_budget(group, state.instance, charge.strength, policy.guards)) is not None:
            holds.append(hold)
            break
    holds += _velocity(service, state, charge.strength, policy.guards, now, spent)
    holds += _who_else_says_so(world, service, state, charge, testimony, now)
    return [_of(hold, service.name) for hold in holds]


def _who_else_says_so(
    world: World, service: ServiceState, state: InstanceState, charge: Charge, testimony: Testimony, now: float
) -> list[Hold]:
    """Is it the instance at all? Peers answer that, and real requests where a probe accuses, and the other way round."""
    if charge.check is None:
        counted = sum(1 for s in service.instances.values() if s.operator is Operator.READY)
        most = budget(counted, charge.strength, world.policy.services[service.name].guards)
        return traffic.against(world, service, state, charge, most)
    if not testimony.of(state.instance, charge.check):
        why = "no other instance has given a good answer since its last counted failure"
        return [Hold(HoldName.NO_WITNESS, why, state.instance)]
    why = traffic.contradicts(state.conduct, charge.check, now)
    return [Hold(HoldName.CONTRADICTION, why, state.instance)] if why else []


class Testimony:
    """Whose newest answer is good, looked up once for all who are accused in a turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._good: dict[tuple[str, str], list[tuple[float, Instance | None, Target]]] = {}

    def of(self, accused: Instance, check: Streak) -> tuple[Target, ...]:
        """Up to WITNESSES_NAMED others whose newest answer to the same question is good and was asked after the last counted failure."""
        since = check.verdict_at if check.verdict_at is not None else check.last_bad_at
        found: list[Target] = []
        for started, instance, target in self._speakers(accused.service, _spec_of(self._world, accused, check)):
            if started < since or len(found) == WITNESSES_NAMED:
                break
            if instance != accused and self._may_testify(target, check):
                found.append(target)
        return tuple(found)

    def _may_testify(self, name: Target, check: Streak) -> bool:
        """One that failed at the same time as the accused has seen a common fault end.

        It testifies only once the accused was asked again since and failed still; else whoever is asked first after an outage would
        have the others ejected.
        """
        target = self._world.targets[name]
        return target.failed_at < check.first_bad_at or check.last_bad_asked_at >= target.good_since

    def _speakers(self, service: str, spec: str) -> list[tuple[float, Instance | None, Target]]:
        """Latest first: when it was asked, who (None = a reference), and the target."""
        if (known := self._good.get((service, spec))) is not None:
            return known
        policy = self._world.policy.services[service]
        plan = next(p for p in policy.probes if p.key == spec)
        names: list[tuple[Instance | None, Target]] = [
            (s.instance, target_of(s.instance, plan)) for s in self._world.services[service].instances.values() if not is_out(s)
        ]
        names += [(None, Target(*reference)) for reference in policy.references]
        good = [
            (target.newest_started, instance, name)
            for instance, name in names
            if (target := self._world.targets.get(name)) is not None and target.newest is Result.OK
        ]
        self._good[(service, spec)] = sorted(good, key=lambda row: (-row[0], row[2]))
        return self._good[(service, spec)]


def witness_targets(world: World, instance: Instance, check: Streak, *, most: int) -> list[Target]:
    """Whom to ask about an instance that fails: at most so many peers that are not out, the same question; then the reference targets."""
    policy = world.policy.services[instance.service]
    spec = _spec_of(world, instance, check)
    plan = next(p for p in policy.probes if p.key == spec)
    names = [target_of(peer.instance, plan) for peer in pace.peers(world, instance, most) if not is_out(peer)]
    return [*names, *(Target(*reference) for reference in policy.references)]


def _spec_of(world: World, instance: Instance, check: Streak) -> str:
    checks = world.services[instance.service].instances[instance].checks
    return next(key for key, c in checks.items() if c is check)


def _we_ourselves(world: World, service: ServiceState, state: InstanceState, now: float) -> list[Hold]:
    holds = []
    if now < world.blind_until:
        holds.append(Hold(HoldName.BLIND, world.blind_why, state.instance))
    if world.journal_fault:
        holds.append(Hold(HoldName.JOURNAL, f"what we do could not be written down first: {world.journal_fault}", state.instance))
    if world.is_cold(service, now):
        guards = world.policy.services[service.name].guards
        since = service.since if service.since is not None else now
        why = f"just started: {guards.cold_answers} answers of every instance, or {guards.cold_s - (now - since):.1f} s more"
        holds.append(Hold(HoldName.COLD_START, why, state.instance))
    if service.faults:
        source, why = next(iter(service.faults.items()))
        holds.append(Hold(HoldName.STALE_DISCOVERY, f"{source}: {why}", state.instance))
    return holds


def not_ours_to_act(world: World, state: InstanceState, now: float) -> list[Hold]:
    """Others' words, and balancers that cannot be told: reasons that hold as well for an ejection which has not reached any yet."""
    holds = []
    policy = world.policy.services[state.instance.service]
    if (freeze := world.freeze_of(state.instance.service, now)) is not None:
        holds.append(Hold(HoldName.FROZEN, f"frozen by {freeze.actor}" + (f": {freeze.reason}" if freeze.reason else ""), state.instance))
    if state.ejection is None and (out := _out_by_others(world, state)):
        holds.append(Hold(HoldName.OPERATOR, f"{out} is out by a hand we do not know; `adopt` makes it ours", state.instance))
    if state.operator is not Operator.READY:
        holds.append(Hold(HoldName.OPERATOR, f"an operator has it in {state.operator}", state.instance))
    if now < state.hands_off_until:
        why = state.hands_off_why or "so it was said earlier"
        holds.append(Hold(HoldName.HANDS_OFF, f"{why}; hands off for {state.hands_off_until - now:.0f} s more", state.instance))
    if policy.pools and policy.mode is Mode.ACT and state.operator is Operator.READY:
        holds += _cannot_write(world, state, now)
    return holds


def orphaned(world: World, state: InstanceState, policy: ServicePolicy) -> Hold | None:
    """It is out, by nobody we know, where we may write: then nobody else will bring it back either."""
    if state.ejection is not None or state.proposed or policy.mode is not Mode.ACT or not (out := _out_by_others(world, state)):
        return None
    if not any(world.policy.balancers[s.balancer].mode is Mode.ACT and s.balancer not in world.standby for s in state.servers):
        return None
    return Hold(HoldName.OPERATOR, f"{out} is out by a hand we do not know; `adopt` makes it ours", state.instance, policy.name)


def _out_by_others(world: World, state: InstanceState) -> str:
    """Its servers, if all of them are out on our axis already: to eject it would be to make somebody else's act ours, and undo it later."""
    for server in state.servers:
        seen = world.seen(server)
        if seen is None or not is_orphan(state, seen):
            return ""
    return ", ".join(map(str, state.servers))


def _cannot_write(world: World, state: InstanceState, now: float) -> list[Hold]:
    if not state.servers:
        return [Hold(HoldName.NOT_IN_POOL, "it is in no pool of ours: probed, never written", state.instance)]
    acting = [s for s in state.servers if world.policy.balancers[s.balancer].mode is Mode.ACT]
    if not acting:
        return []
    standby = [s for s in acting if s.balancer in world.standby]
    if len(standby) == len(acting):
        return [Hold(HoldName.STANDBY, world.standby[acting[0].balancer], state.instance)]
    lost = {name: why for name in dict.fromkeys(s.balancer for s in acting if s not in standby) if (why := _lost(world, state, name, now))}
    if all(s.balancer in lost for s in acting if s not in standby):
        return [Hold(HoldName.BALANCER_LOST, "; ".join(lost.values()), state.instance)]
    whys = [seen.writable for s in acting if (seen := world.seen(s)) is not None]
    if whys and all(whys):
        return [Hold(HoldName.NOT_WRITABLE, str(whys[0]), state.instance)]
    return []


def _lost(world: World, state: InstanceState, name: str, now: float) -> str:
    """Why what this balancer last showed is no ground to eject on; "" when it is."""
    balancer, longest = world.balancers[name], world.policy.services[state.instance.service].guards.picture_max_age_s
    if balancer.error:
        return f"balancer {name} cannot be asked: {balancer.error}"
    age, longest = now - balancer.seen_at, max(longest, 3.0 * world.policy.balancers[name].observe_every_s)
    return f"balancer {name} was last looked at {age:.1f} s ago, {longest:.0f} s at most" if age > longest else ""


def _velocity(service: ServiceState, state: InstanceState, strength: Strength, guards: Guards, now: float, spent: float) -> list[Hold]:
    hard = strength is Strength.HARD
    bucket, refill = (service.hard_spent, guards.hard_refill_s) if hard else (service.soft_spent, guards.soft_refill_s)
    level = max(0.0, bucket.level - (now - bucket.at) / refill) + spent
    burst = max(1, budget(len(service.instances), strength, guards)) if hard else 1
    if level + 1.0 <= burst + 1e-9:
        return []
    return [Hold(HoldName.VELOCITY, f"{level:.1f} of {burst} ejections in a row are used; one more each {refill:.0f} s", state.instance)]


# ---- coming back ----


def against_return(world: World, service: ServiceState, state: InstanceState, now: float) -> list[Hold]:
    """Every reason not to bring this instance back yet."""
    rules = world.policy.services[service.name].rules
    assert state.ejection is not None, "only what is out can come back"
    holds = []
    if (freeze := world.freeze_of(service.name, now)) is not None:
        holds.append(Hold(HoldName.FROZEN, f"frozen by {freeze.actor}", state.instance))
    if now < state.ejection.until:
        holds.append(Hold(HoldName.HOLD_DOWN, f"repeat {state.ejection.repeat}: {state.ejection.until - now:.1f} s to go", state.instance))
    if state.ejection.rule == "rule:slow" and now - state.ejection.at < rules.hold_down_max_s and (why := traffic.still_slow(world, state)):
        holds.append(Hold(HoldName.STILL_SLOW, why, state.instance))
    level = max(0.0, state.flap_level - (now - state.flap_at) * rules.flap_per_min / 60.0)
    if level > rules.flap_burst - 1.0:
        why = f"{level:.1f} changes lately, {rules.flap_burst} allowed, then {rules.flap_per_min:.0f} a minute"
        holds.append(Hold(HoldName.FLAPPING, why, state.instance))
    return [_of(hold, service.name) for hold in holds]


# ---- operators' own acts ----


def against_command(world: World, command: Commanded, now: float) -> Hold | None:
    """The guard that an operator's drain or maintenance would break, or the disk that cannot keep it; `force` passes it."""
    if command.verb is not Verb.OVERRIDE or command.state is Operator.READY or command.instance is None or command.force:
        return None
    service = world.services.get(command.service)
    state = world.state_of(command.instance)
    if service is None or state is None:
        return None
    if world.journal_fault:
        why = f"it could not be written down, so that after a crash nobody would bring it back: {world.journal_fault}"
        return Hold(HoldName.JOURNAL, why, command.instance, service.name)
    if state.operator is not Operator.READY:
        return None
    guards = world.policy.services[service.name].guards
    for group in groups(world, service):
        mine = group.keys.get(command.instance, frozenset())
        left = len((group.counted - group.used) - mine)
        if mine and left < guards.min_healthy:
            n = len(group.counted)
            why = f"{left} of {n} of {group.name} would be left in rotation, at least {guards.min_healthy} must be"
            return Hold(HoldName.MIN_HEALTHY, why, command.instance, service.name)
    return None


def _of(hold: Hold, service: str) -> Hold:
    return Hold(hold.name, hold.why, hold.instance, service)
