"""What is known. `World.absorb(fact)` takes one fact in; `World.settle(decision)` notes what was decided; nothing else changes it.

Everything here is plain data, so that a snapshot and the facts after it give the same world again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lbplugins.values import Address, Axis, Change, Operator, Ref, Seen, Serve, Setting
from sidecar.core import streak as streaks
from sidecar.core.model import (
    Act,
    Adopted,
    Applied,
    Ask,
    Commanded,
    Configured,
    Decision,
    Discovered,
    Ejection,
    Event,
    Fact,
    Freeze,
    HoldName,
    Instance,
    Intent,
    Journaled,
    Judgement,
    Learned,
    Nudged,
    Outcome,
    Override,
    Pictured,
    PoolRef,
    Probed,
    Result,
    Resumed,
    SelfChecked,
    ServerRef,
    Strength,
    Target,
    Tick,
)
from sidecar.core.policy import Guards, Pace, Policy, ProbePlan, ServicePolicy
from sidecar.core.streak import Streak

GOOD_KEPT = 100
"""Good answers kept per target, seconds each: enough for a third-slowest."""


@dataclass(slots=True)
class TargetState:
    """What one target has taught us. `recent`: the last GOOD_KEPT good totals, a ring written at `good % GOOD_KEPT`.

    `failed_at`: when its last failure ended; `good_since`: when the first good answer after that was asked.
    """

    target: Target
    plan: ProbePlan
    users: tuple[Instance, ...] = ()
    references: tuple[str, ...] = ()
    good: int = 0
    recent: list[float] = field(default_factory=list)
    median_s: float = 0.0
    slow_s: float = 0.0
    newest: Result | None = None
    newest_started: float = float("-inf")
    newest_ended: float = float("-inf")
    scheduled: Ask | None = None
    nudged: bool = False
    count: int = 0
    bad_run: int = 0
    failed_at: float = float("-inf")
    good_since: float = float("-inf")


@dataclass(slots=True)
class InstanceState:
    """One life of one instance.

    `others`: its servers that others had out on our axis before we ejected it. `is_void`: the evidence had gone before the ejection was on
    disk. `overruled`, `unsaid`: somebody made ready by hand what our ejection, or our commands, had out. `ended`: words whose time is over,
    kept until no balancer shows them. `unclaimed`: balancers which we have not
    looked at since our restart; what words of ours they show is ours still. `proposed`: those of our intents that are on their way to disk.
    """

    instance: Instance
    since: float
    sources: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Streak] = field(default_factory=dict)
    servers: tuple[ServerRef, ...] = ()
    operator: Operator = Operator.READY
    ejection: Ejection | None = None
    probation_at: float | None = None
    repeat: int = 0
    returned_at: float = float("-inf")
    flap_level: float = 0.0
    flap_at: float = 0.0
    hands_off_until: float = float("-inf")
    others: frozenset[ServerRef] = frozenset()
    is_void: bool = False
    overruled: str = ""
    unsaid: str = ""
    new_life: bool = False
    overrides: dict[str, Override] = field(default_factory=dict)
    ended: dict[str, Override] = field(default_factory=dict)
    ended_at: float = float("-inf")
    unclaimed: frozenset[str] = frozenset()
    proposed: tuple[Act, ...] = ()
    told: Judgement = Judgement.UNKNOWN
    told_at: float = 0.0
    reason: str = ""

    def say(self, override: Override, at: float) -> None:
        """One owner's word is in force, or over."""
        if override.until is None or at < override.until:
            self.overrides[override.owner] = override
            self.ended.pop(override.owner, None)
            return
        self.overrides.pop(override.owner, None)
        self.ended[override.owner] = override
        self.ended_at, self.unsaid = at, ""


@dataclass(slots=True)
class Bucket:
    """Tokens spent on ejections: `level` spent at `at`, draining one per refill period."""

    level: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class ServiceState:
    """One service: its instances, its discovery, its budgets."""

    name: str
    since: float | None = None
    cold: bool = True
    instances: dict[Instance, InstanceState] = field(default_factory=dict)
    last_good: dict[str, tuple[Instance, ...]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    fault_at: dict[str, float] = field(default_factory=dict)
    hard_spent: Bucket = field(default_factory=Bucket)
    soft_spent: Bucket = field(default_factory=Bucket)
    unlisted: tuple[ServerRef, ...] = ()
    held_since: dict[HoldName, float] = field(default_factory=dict)
    held_last: dict[HoldName, float] = field(default_factory=dict)
    held_told: list[HoldName] = field(default_factory=list)
    alert: bool = False
    failing_open: bool = False


@dataclass(slots=True)
class Sent:
    """The last change sent to one server and what became of it.

    `confirmed`: a picture has shown it. `is_unsure`: it failed in a way that leaves open whether it was done, and no picture has shown
    since. `told`: the last refusal told.
    """

    serve: Serve
    at: float
    settle_s: float = 0.0
    refused: str = ""
    told: str = ""
    retries: int = 0
    confirmed: bool = False
    is_unsure: bool = False
    generation: str = ""

    @property
    def is_settled(self) -> bool:
        """Nothing of it is on its way any more: a picture has shown it, or the balancer said no, and not merely nothing."""
        return self.confirmed or (bool(self.refused) and not self.is_unsure)


@dataclass(frozen=True, slots=True)
class Word:
    """What was last written on a server's operator axis and not seen yet. `before`: earlier ones whose fate was never known either."""

    word: Operator
    at: float
    before: frozenset[Operator] = frozenset()


@dataclass(slots=True)
class Refused:
    """The balancer said no to a word of ours on the operator's axis, so many times in a row, last at `at`."""

    why: str
    at: float
    times: int = 1
    told: str = ""


@dataclass(slots=True)
class BalancerState:
    """The last picture of one balancer, and what we sent it. `told`: the failure to tell it anything that was told last."""

    name: str
    seen: dict[Ref, Seen] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    seen_at: float = float("-inf")
    error: str = ""
    error_at: float = 0.0
    told: str = ""
    sent: dict[Ref, Sent] = field(default_factory=dict)
    said: dict[Ref, Operator] = field(default_factory=dict)
    said_pending: dict[Ref, Word] = field(default_factory=dict)
    said_refused: dict[Ref, Refused] = field(default_factory=dict)


@dataclass(slots=True)
class World:
    """All of it. `events`: news born while absorbing, handed out by the next decision."""

    started_at: float = 0.0
    policy: Policy = field(default_factory=Policy)
    services: dict[str, ServiceState] = field(default_factory=dict)
    targets: dict[Target, TargetState] = field(default_factory=dict)
    balancers: dict[str, BalancerState] = field(default_factory=dict)
    freezes: dict[str, Freeze] = field(default_factory=dict)
    unfreezing: set[str] = field(default_factory=set)
    notes: dict[ServerRef, str] = field(default_factory=dict)
    adopted: dict[Instance, Ejection] = field(default_factory=dict)
    adopted_overrides: list[Override] = field(default_factory=list)
    adopted_hands_off: dict[Instance, float] = field(default_factory=dict)
    learned: dict[Target, Learned] = field(default_factory=dict)
    commands: list[Commanded] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    blind_until: float = float("-inf")
    blind_why: str = ""
    journal_fault: str = ""
    unwritten: list[Intent] = field(default_factory=list)
    standby: dict[str, str] = field(default_factory=dict)

    # ---- the only two ways in ----

    def absorb(self, fact: Fact) -> tuple[str, ...]:
        """Take one fact in; the names of the services that need a decision because of it (most good answers: none)."""
        match fact:
            case Probed():
                return self._probed(fact.outcome)
            case Nudged():
                return self._nudged(fact)
            case Pictured():
                return self._pictured(fact)
            case Discovered():
                return self._discovered(fact)
            case Journaled():
                return self._journaled(fact)
            case Applied():
                return self._applied(fact)
            case Configured():
                return self._configured(fact)
            case Commanded():
                self.commands.append(fact)
                return (fact.service,) if fact.service else tuple(self.services)
            case SelfChecked():
                return self._self_checked(fact)
            case Resumed():
                return self._resumed(fact)
            case Adopted():
                return self._adopted(fact)
            case Tick():
                return tuple(self.services)

    def settle(self, decision: Decision) -> None:
        """Note what was decided: what was said, asked, proposed and sent, so that it is not said, asked or sent again."""
        self.events.clear()
        self.scheduled(decision.asks)
        for intent in decision.intents:
            if intent.act is Act.FORGET and intent.instance is not None:
                self.adopted.pop(intent.instance, None)
            if intent.act is Act.UNFREEZE and intent.freeze is not None:
                self.unfreezing.add(intent.freeze.service)
            if intent.instance is not None and (state := self.state_of(intent.instance)) is not None:
                state.proposed = (*state.proposed, intent.act)
        self.commands.clear()
        self.unwritten = [intent for intent in self.unwritten if intent not in decision.intents]
        self._settle_judgements(decision)
        self._settle_holds(decision)
        for service in self.services.values():
            service.cold = self.is_cold(service, decision.at)
            service.alert = any(_restless(state) for state in service.instances.values())
        for name, changes in (decision.changes or {}).items():
            balancer = self.balancers[name]
            for change in changes:
                if change.on is Axis.OURS:
                    earlier = balancer.sent.get(change.ref)
                    same = earlier if earlier and earlier.serve is change.want.serve else None
                    balancer.sent[change.ref] = Sent(
                        change.want.serve,
                        decision.at,
                        change.expect.settle_s,
                        told=same.told if same else "",
                        retries=same.retries if same else 0,
                        generation=change.expect.generation,
                    )
                else:
                    word, pending = _operator_of(change.want.serve), balancer.said_pending.get(change.ref)
                    before = frozenset() if pending is None else (pending.before | {pending.word}) - {word}
                    balancer.said_pending[change.ref] = Word(word, decision.at, before)

    def scheduled(self, asks: Iterable[Ask]) -> None:
        """Note which questions are on their way."""
        for ask in asks:
            if (target := self.targets.get(ask.target)) is not None:
                target.scheduled, target.nudged = ask, False

    # ---- looking things up ----

    def state_of(self, instance: Instance) -> InstanceState | None:
        service = self.services.get(instance.service)
        return service.instances.get(instance) if service else None

    def seen(self, server: ServerRef) -> Seen | None:
        balancer = self.balancers.get(server.balancer)
        return balancer.seen.get(server.ref) if balancer else None

    def freeze_of(self, service: str, now: float) -> Freeze | None:
        for name in (service, ""):
            freeze = self.freezes.get(name)
            if freeze is not None and (freeze.until is None or now < freeze.until):
                return freeze
        return None

    def is_cold(self, service: ServiceState, now: float) -> bool:
        """Just started: not every instance has answered often enough, or failed clearly, and the patience is not used up."""
        if not service.cold or service.since is None:
            return service.cold
        guards = self.policy.services[service.name].guards
        if now - service.since >= guards.cold_s:
            return False
        return not all(
            check.answers >= guards.cold_answers or check.failed for state in service.instances.values() for check in state.checks.values()
        )

    # ---- outcomes ----

    def _probed(self, outcome: Outcome) -> tuple[str, ...]:
        target = self.targets.get(outcome.target)
        if target is None:
            return ()
        target.scheduled = None
        target.count += 1
        if outcome.result is not Result.UNKNOWN:
            target.newest = outcome.result
            target.newest_started, target.newest_ended = outcome.started, outcome.ended
        if outcome.result is Result.FAIL:
            target.bad_run += 1
            target.failed_at = outcome.ended
        elif outcome.result is Result.OK:
            target.good_since = outcome.started if target.bad_run else target.good_since
            target.bad_run = 0
            _learn(target, outcome.seconds)
        eventful: list[str] = [name for name in target.references if self.services[name].alert]
        for instance in target.users:
            service = self.services[instance.service]
            state = service.instances[instance]
            check = state.checks[outcome.target.spec]
            rules = self.policy.services[instance.service].rules
            before = (check.bad_run > 0, check.failed, check.answers > 0)
            streaks.step(check, outcome, rules)
            is_turn = before != (check.bad_run > 0, check.failed, check.answers > 0) or check.good_run in (rules.rise, 2 * rules.rise)
            if is_turn or service.cold or self._testifies(service, target, outcome):
                eventful.append(instance.service)
            service.alert = service.alert or outcome.result is Result.FAIL
        return tuple(eventful)

    def _testifies(self, service: ServiceState, target: TargetState, outcome: Outcome) -> bool:
        """Somebody waits for a witness and this one speaks, or one who has testified fails too."""
        if outcome.result is Result.OK:
            return HoldName.NO_WITNESS in service.held_last and outcome.started >= service.held_last[HoldName.NO_WITNESS] - UNBROKEN_S
        return target.bad_run == 2  # what `decide` takes for a witness lost

    def _nudged(self, fact: Nudged) -> tuple[str, ...]:
        target = self.targets.get(fact.target)
        if target is None:
            return ()
        target.nudged, target.scheduled = True, None
        return (*(i.service for i in target.users), *target.references)

    # ---- membership ----

    def _discovered(self, fact: Discovered) -> tuple[str, ...]:
        service = self.services.get(fact.service)
        if service is None:
            return ()
        if fact.error:
            self._discovery_fault(service, fact.source, fact.error, fact.at)
            return (fact.service,)
        self._take_members(service, fact.source, fact.instances, fact.at, fact.labels or {})
        return (fact.service,)

    def _take_members(
        self,
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
        shrink = self.policy.services[service.name].guards.shrink
        if old and (not new or (not trusted and lost - joined > shrink * len(old))):
            why = "names no instance" if not new else f"lost {lost} of {len(old)} instances at once"
            self._discovery_fault(service, source, f"{why}; the last good list of {len(old)} is kept", at)
            return
        if service.faults.pop(source, None) is not None:
            service.fault_at.pop(source, None)
            self._tell("discovery", at, "sidecar", f"{service.name}: {source} is sound again with {len(new)} instances", service.name)
        service.last_good[source] = new
        for instance in new:
            self._join(service, instance, source, at)
            if labels and instance in labels:
                service.instances[instance].labels = dict(labels[instance])
        for instance in set(old) - set(new):
            state = service.instances.get(instance)
            if state is not None and source in state.sources:
                state.sources.remove(source)
        self._sweep(service)
        self._map_servers(service)

    def _discovery_fault(self, service: ServiceState, source: str, why: str, at: float) -> None:
        if service.faults.get(source) != why:
            if source not in service.faults:
                self._tell("discovery", at, "sidecar", f"{service.name}: {source} {why}", service.name)
            service.faults[source] = why
            service.fault_at.setdefault(source, at)

    def _join(self, service: ServiceState, instance: Instance, source: str, at: float) -> None:
        if service.since is None:
            service.since = at
        state = service.instances.get(instance)
        if state is None:
            state = InstanceState(instance, at, told_at=at)
            service.instances[instance] = state
            state.hands_off_until = self.adopted_hands_off.pop(instance, float("-inf"))
            for override in [o for o in self.adopted_overrides if o.instance == instance]:
                state.say(override, at)
                state.unclaimed = frozenset(owner for owner, _ in self.policy.services[service.name].pools)
                self.adopted_overrides.remove(override)
            service.alert = True
            self._plan_checks(state)
        if source and source not in state.sources:
            state.sources.append(source)

    def _sweep(self, service: ServiceState) -> None:
        """Drop instances that no source names, except those whose ejection is not yet brought back or struck from the journal."""
        for state in [s for s in service.instances.values() if not s.sources]:
            if state.ejection is not None and state.ejection.enforced:
                continue
            del service.instances[state.instance]
            if state.hands_off_until > float("-inf"):
                self.adopted_hands_off[state.instance] = state.hands_off_until  # an operator's word outlasts a slot that comes and goes
            for target in self._targets_of(state):
                self._unuse(target, state.instance)

    def _plan_checks(self, state: InstanceState) -> None:
        """Make checks and targets of an instance follow the probe specs of its service; unchanged ones keep their evidence."""
        policy = self.policy.services[state.instance.service]
        wanted = {plan.key: plan for plan in policy.probes}
        for key in [k for k in state.checks if k not in wanted]:
            del state.checks[key]
        mine = {self._target(state.instance, plan): plan for plan in policy.probes}
        for target in list(self.targets.values()):
            if state.instance in target.users and target.target not in mine:
                self._unuse(target, state.instance)
        for key, plan in wanted.items():
            state.checks.setdefault(key, Streak(since=state.since))
            name = self._target(state.instance, plan)
            known = self.targets.get(name)
            if known is None:
                known = self.targets[name] = TargetState(name, plan)
                if (learned := self.learned.get(name)) is not None:
                    known.good, known.median_s, known.slow_s = learned.good, learned.median_s, learned.slow_s
            known.plan = _quicker(known.plan, plan) if known.users and state.instance not in known.users else plan
            if state.instance not in known.users:
                known.users = (*known.users, state.instance)

    def _unuse(self, target: TargetState, instance: Instance) -> None:
        target.users = tuple(u for u in target.users if u != instance)
        if not target.users and not target.references:
            del self.targets[target.target]

    def _plan_references(self) -> None:
        """Reference targets are asked like any other, but testify only."""
        wanted: dict[Target, list[str]] = {}
        for name, policy in self.policy.services.items():
            for address, key in policy.references:
                wanted.setdefault(Target(address, key), []).append(name)
        for target in list(self.targets.values()):
            target.references = tuple(wanted.pop(target.target, ()))
            if not target.users and not target.references:
                del self.targets[target.target]
        for target_name, names in wanted.items():
            self.targets[target_name] = TargetState(target_name, ProbePlan(target_name.spec), references=tuple(names))

    @staticmethod
    def _target(instance: Instance, plan: ProbePlan) -> Target:
        address = instance.address if plan.port is None else instance.address._replace(port=plan.port)
        return Target(address, plan.key)

    def _targets_of(self, state: InstanceState) -> list[TargetState]:
        policy = self.policy.services[state.instance.service]
        names = [self._target(state.instance, plan) for plan in policy.probes]
        return [self.targets[name] for name in names if name in self.targets]

    # ---- balancers ----

    def _pictured(self, fact: Pictured) -> tuple[str, ...]:
        balancer = self.balancers.setdefault(fact.balancer, BalancerState(fact.balancer))
        names = tuple(n for n, p in self.policy.services.items() if any(b == fact.balancer for b, _ in p.pools))
        if fact.error or fact.servers is None:
            if not balancer.error:
                balancer.error_at = fact.at
                self._tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} cannot be asked: {fact.error}")
            balancer.error = fact.error
            return names
        if balancer.error:
            self._tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} answers again")
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
            changed |= self._members_from(fact.balancer, balancer, name, fact.at)
        for ref, seen in balancer.seen.items():
            changed |= self._compare(balancer, ref, earlier.get(ref), seen, fact.at)
        for state in [state for name in names for state in self.services[name].instances.values() if state.unclaimed]:
            state.unclaimed -= {fact.balancer} if fact.at > state.since or state.servers else frozenset()
        return names if changed or any(self.services[n].alert for n in names) else ()

    def _members_from(self, name: str, balancer: BalancerState, service_name: str, at: float) -> bool:
        """Instances from the balancer's own lists, where the configuration names no other source."""
        policy, service = self.policy.services[service_name], self.services[service_name]
        before = list(service.instances)
        if policy.from_balancer:
            for owner, pool in policy.pools:
                if owner != name:
                    continue
                found = tuple(
                    Instance(service_name, seen.address)
                    for ref, seen in balancer.seen.items()
                    if ref.pool == pool and seen.address is not None
                )
                self._take_members(service, str(PoolRef(name, pool)), found, at, trusted=True)
        self._map_servers(service)
        return list(service.instances) != before

    def _map_servers(self, service: ServiceState) -> None:
        """Which server of which balancer is which instance: by address."""
        policy = self.policy.services[service.name]
        by_address: dict[Address, list[ServerRef]] = {}
        for owner, pool in policy.pools:
            balancer = self.balancers.get(owner)
            for ref, seen in balancer.seen.items() if balancer else ():
                if ref.pool == pool and seen.address is not None:
                    by_address.setdefault(seen.address, []).append(ServerRef(owner, ref))
        for state in service.instances.values():
            servers = by_address.pop(state.instance.address, [])
            servers += [server for server in state.servers if server not in servers and self._is_still_its(state, server)]
            state.servers = tuple(servers)
            self._operator_of_instance(state)
        service.unlisted = tuple(server for servers in by_address.values() for server in servers)

    def _is_still_its(self, state: InstanceState, server: ServerRef) -> bool:
        """A server that shows no address stays with the instance; one with another address until our ejection is undone there."""
        seen = self.seen(server)
        if seen is None or (server.balancer, server.ref.pool) not in self.policy.services[state.instance.service].pools:
            return False
        if seen.address is None:
            return True
        sent = self.balancers[server.balancer].sent.get(server.ref)
        was_written = sent is not None and (sent.serve is Serve.FULL or sent.confirmed or not sent.refused)
        is_ours = state.ejection is not None and state.ejection.enforced and was_written
        return is_ours and seen.address != state.instance.address and seen.ours.serve is not Serve.FULL

    def _operator_of_instance(self, state: InstanceState) -> None:
        words = [seen.operator for server in state.servers if (seen := self.seen(server)) is not None and is_at(seen, state.instance)]
        words += [o.state for o in state.overrides.values()]
        state.operator = strictest(words)

    def _compare(self, balancer: BalancerState, ref: Ref, before: Seen | None, seen: Seen, at: float) -> bool:
        """What happened to one server between two pictures. True if anything that a decision reads has moved."""
        server = ServerRef(balancer.name, ref)
        instance_state = self._instance_at(server, seen)
        sent = balancer.sent.get(ref)
        if sent is not None and not sent.confirmed and seen.ours.serve is sent.serve:
            sent.confirmed, sent.generation = True, seen.generation
        if sent is not None and at > sent.at:
            sent.is_unsure = False
        self._adopt(server, seen, instance_state, at)
        if instance_state is not None and seen.ours.serve is Serve.FULL:
            instance_state.others -= {server}
        if sent is None and instance_state is not None and seen.ours.serve is Serve.NONE and _is_out_by_us(instance_state):
            balancer.sent[ref] = Sent(Serve.NONE, at, confirmed=True, generation=seen.generation)  # from an earlier life, or adopted
        by_us = self._compare_said(balancer, ref, before, seen, instance_state)
        if before is None:
            return True
        if before.generation != seen.generation:
            who = instance_state.instance.service if instance_state else ""
            lost = before.ours != seen.ours or before.operator is not seen.operator
            if lost:
                self._tell("drift", at, "outside", f"{server}: {balancer.name} restarted or reloaded and forgot what it was told", who)
            if sent is not None:
                sent.confirmed = False
        elif instance_state is not None and before.operator is not seen.operator and not by_us:
            self._operator_moved(server, before, seen, instance_state, at)
        elif instance_state is not None and _undone(before, seen, sent, instance_state):
            instance_state.overruled = f"{server} was made ready by hand"
        if before.serving is not seen.serving and instance_state is not None and "own check" in seen.remark and seen.serving is False:
            sentence = f"{server} is out by the balancer's own check"
            self._tell("balancer", at, "balancer:own-check", sentence, instance_state.instance.service, instance_state.instance)
        return (before.ours, before.operator, before.serving, before.address, before.weight, before.generation, before.writable) != (
            seen.ours,
            seen.operator,
            seen.serving,
            seen.address,
            seen.weight,
            seen.generation,
            seen.writable,
        )

    def _instance_at(self, server: ServerRef, seen: Seen) -> InstanceState | None:
        for name, policy in self.policy.services.items():
            if (server.balancer, server.ref.pool) in policy.pools and seen.address is not None:
                return self.services[name].instances.get(Instance(name, seen.address))
        return None

    def _adopt(self, server: ServerRef, seen: Seen, state: InstanceState | None, at: float) -> None:
        """Take back what an earlier life of ours has out, if the balancer still shows it; else it has lapsed."""
        if not self.adopted or seen.address is None:
            return
        for name, policy in self.policy.services.items():
            instance = Instance(name, seen.address)
            ejection = self.adopted.get(instance)
            if ejection is None or (server.balancer, server.ref.pool) not in policy.pools:
                continue
            if seen.ours == Setting():
                continue
            del self.adopted[instance]
            self._join(self.services[name], instance, "", at)
            state = self.services[name].instances[instance]
            state.ejection, state.repeat = ejection, ejection.repeat
            state.told, state.told_at = Judgement.EJECTED, ejection.at
            self.balancers[server.balancer].sent[server.ref] = Sent(Serve.NONE, at, confirmed=True, generation=seen.generation)
            self._map_servers(self.services[name])
            self._tell("adopted", at, "sidecar", f"{instance} is out by us from before our restart: {ejection.cause}", name, instance)

    def lapsed(self) -> list[Ejection]:
        """What an earlier life had in its journal and no balancer shows: all of them have been looked at, none has it out."""
        return [ejection for instance, ejection in self.adopted.items() if self._is_nowhere_out(instance)]

    def _is_nowhere_out(self, instance: Instance) -> bool:
        policy = self.policy.services.get(instance.service)
        for owner, pool in policy.pools if policy is not None else ():
            balancer = self.balancers.get(owner)
            if balancer is None or balancer.error or balancer.seen_at == float("-inf"):
                return False
            if any(ref.pool == pool and seen.ours != Setting() and is_at(seen, instance) for ref, seen in balancer.seen.items()):
                return False
        return policy is not None

    def _operator_moved(self, server: ServerRef, before: Seen, seen: Seen, state: InstanceState, at: float) -> None:
        """Somebody else's word about an instance changed; the end of his drain or maintenance starts a new life."""
        sentence = f"{server}: operator {before.operator} -> {seen.operator}"
        self._tell("operator", at, "outside", sentence, state.instance.service, state.instance)
        if seen.operator is Operator.READY:
            for check in state.checks.values():
                streaks.clear(check, at)
            state.probation_at, state.repeat = None, 0
            state.new_life = state.ejection is not None and seen.ours.serve is not Serve.NONE

    def _compare_said(self, balancer: BalancerState, ref: Ref, before: Seen | None, seen: Seen, state: InstanceState | None) -> bool:
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
            has_drain = self.policy.balancers[balancer.name].drain
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

    # ---- what became of intents and changes ----

    def _journaled(self, fact: Journaled) -> tuple[str, ...]:
        touched = [i.instance.service for i in fact.intents if i.instance is not None]
        for intent in fact.intents:
            state = self.state_of(intent.instance) if intent.instance else None
            if state is not None:
                state.proposed = _less(state.proposed, intent.act)
        if fact.error:
            if not self.journal_fault:
                self._tell("self", fact.at, "sidecar", f"the intents journal cannot be written, nothing is ejected: {fact.error}")
            self.journal_fault = fact.error
            for intent in fact.intents:
                if intent.act is not Act.EJECT:  # giving back and obeying need no permission from our disk
                    self._take_intent(intent, fact.at)
                    self.unwritten.append(intent)
            del self.unwritten[:-UNWRITTEN_KEPT]
            return tuple(touched)
        for intent in fact.intents:
            self._take_intent(intent, fact.at)
        return tuple(touched) or tuple(self.services)

    def _take_intent(self, intent: Intent, at: float) -> None:
        self.notes.update(dict(intent.notes))
        if intent.act is Act.FREEZE and intent.freeze is not None:
            self.freezes[intent.freeze.service] = intent.freeze
        elif intent.act is Act.UNFREEZE and intent.freeze is not None:
            self.freezes.pop(intent.freeze.service, None)
            self.unfreezing.discard(intent.freeze.service)
        state = self.state_of(intent.instance) if intent.instance else None
        if state is None:
            if intent.ejection is not None and intent.act is Act.EJECT:  # gone meanwhile: nothing was written, so it will lapse
                self.adopted[intent.ejection.instance] = intent.ejection
            return
        match intent.act:
            case Act.EJECT:
                self._ejected(state, intent, at)
            case Act.RETURN if state.ejection is not None:
                state.ejection, state.new_life = replace(state.ejection, returning=True), False
                state.probation_at = state.returned_at = at
                self._spend_flap(state, at)
                if intent.by == "rule:panic":
                    self.services[state.instance.service].failing_open = True
                for check in state.checks.values():
                    check.window.clear()
                    check.verdict_at, check.rule = None, ""
            case Act.FORGET:
                state.ejection, state.overruled, state.new_life = None, "", False
                for server in state.servers:
                    self.notes.pop(server, None)
                    if (balancer := self.balancers.get(server.balancer)) is not None:
                        balancer.sent.pop(server.ref, None)
                self._sweep(self.services[state.instance.service])
            case Act.OVERRIDE if intent.override is not None:
                state.say(intent.override, at)
                self._operator_of_instance(state)
            case Act.CLEAR if intent.override is not None:
                state.overrides.pop(intent.override.owner, None)
                state.ended.pop(intent.override.owner, None)
                self._operator_of_instance(state)
            case Act.HANDS_OFF:
                state.hands_off_until, state.overruled = intent.until or at, ""
                if state.ejection is not None:
                    state.ejection, state.new_life = replace(state.ejection, returning=True), False
                    state.probation_at = state.returned_at = at
            case _:
                pass

    def _ejected(self, state: InstanceState, intent: Intent, at: float) -> None:
        assert intent.ejection is not None, "an EJECT intent carries its ejection"
        if intent.ejection.enforced:
            self.adopted.pop(state.instance, None)  # this one is in force now
        if state.ejection is None and intent.by.startswith("rule:"):
            pictured = [(server, self.seen(server)) for server in state.servers]
            state.others = frozenset(server for server, seen in pictured if seen is not None and seen.ours.serve is not Serve.FULL)
        elif not intent.by.startswith("rule:"):
            state.others = frozenset()  # adopted: from now on it is ours
        state.ejection, state.repeat, state.probation_at = intent.ejection, intent.ejection.repeat, None
        state.is_void = not any(check.failed for check in state.checks.values())
        self._spend_flap(state, at)
        service = self.services[state.instance.service]
        guards = self.policy.services[service.name].guards
        hard = intent.ejection.strength is Strength.HARD
        bucket, refill = (service.hard_spent, guards.hard_refill_s) if hard else (service.soft_spent, guards.soft_refill_s)
        bucket.level = max(0.0, bucket.level - (at - bucket.at) / refill) + 1.0
        bucket.at = at
        for check in state.checks.values():
            check.window.clear()
            if check.rule == "window":
                check.verdict_at, check.rule = None, ""

    def _spend_flap(self, state: InstanceState, at: float) -> None:
        rules = self.policy.services[state.instance.service].rules
        state.flap_level = max(0.0, state.flap_level - (at - state.flap_at) * rules.flap_per_min / 60.0) + 1.0
        state.flap_at = at

    def _applied(self, fact: Applied) -> tuple[str, ...]:
        balancer = self.balancers.setdefault(fact.balancer, BalancerState(fact.balancer))
        for change, why in fact.refused:
            if change.on is Axis.OPERATOR:
                self._word_refused(balancer, change, why, fact.at)
            if (sent := balancer.sent.get(change.ref)) is not None and change.on is Axis.OURS:
                # Once is no news: it moved between our look and our write, and is looked at again at once.
                if sent.retries and sent.told != why:
                    self._tell("refused", fact.at, "sidecar", f"{fact.balancer}/{change.ref} refused: {why}")
                    sent.told = why
                sent.refused, sent.at, sent.retries, sent.is_unsure = why, fact.at, sent.retries + 1, False
        if fact.error:
            for change in fact.changes:
                if (sent := balancer.sent.get(change.ref)) is not None and change.on is Axis.OURS:
                    sent.refused, sent.at, sent.retries, sent.is_unsure = fact.error, fact.at, sent.retries + 1, True
            if balancer.told != fact.error:
                self._tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} could not be told: {fact.error}")
        balancer.told = fact.error
        return tuple(n for n, p in self.policy.services.items() if any(b == fact.balancer for b, _ in p.pools))

    def _word_refused(self, balancer: BalancerState, change: Change, why: str, at: float) -> None:
        pending = balancer.said_pending.get(change.ref)
        if pending is not None and pending.word is _operator_of(change.want.serve):
            del balancer.said_pending[change.ref]
            if pending.before:
                last = strictest(pending.before)
                balancer.said_pending[change.ref] = Word(last, at, pending.before - {last})
        earlier = balancer.said_refused.get(change.ref)
        refused = balancer.said_refused[change.ref] = Refused(why, at, earlier.times + 1 if earlier else 1, earlier.told if earlier else "")
        if refused.times > 1 and refused.told != why:
            self._tell("refused", at, "sidecar", f"{balancer.name}/{change.ref} refused: {why}")
            refused.told = why

    # ---- ourselves ----

    def _configured(self, fact: Configured) -> tuple[str, ...]:
        self.policy = fact.policy
        if not self.services:
            self.started_at = fact.at
        for name in fact.policy.balancers:
            self.balancers.setdefault(name, BalancerState(name))
        for name in [n for n in self.balancers if n not in fact.policy.balancers]:
            del self.balancers[name]
        for name in fact.policy.services:
            service = self.services.setdefault(name, ServiceState(name))
            _keep_sources(service, fact.policy.services[name])
        for name in [n for n in self.services if n not in fact.policy.services]:
            self._end_service(name)
        for service in self.services.values():
            for state in service.instances.values():
                self._plan_checks(state)
                if state.ejection is not None and not state.ejection.enforced:
                    state.ejection = None  # told only: under the new configuration it is decided anew
            self._map_servers(service)
            self._sweep(service)
        self._plan_references()
        return tuple(self.services)

    def _end_service(self, name: str) -> None:
        for state in self.services[name].instances.values():
            for target in list(self.targets.values()):
                if state.instance in target.users:
                    self._unuse(target, state.instance)
        del self.services[name]

    def _self_checked(self, fact: SelfChecked) -> tuple[str, ...]:
        guards = next((p.guards for p in self.policy.services.values()), None)
        limit = guards.blind_lag_s if guards else Guards().blind_lag_s
        why = fact.network or fact.descriptors or (f"our own loop was {fact.lag_s:.2f} s late" if fact.lag_s > limit else "")
        if why:
            if fact.at - self.blind_until > EPISODE_S:
                self._tell("self", fact.at, "sidecar", f"blind, nothing is ejected: {why}")
            self.blind_until, self.blind_why = fact.at + 1.0, why
        if self.journal_fault and not fact.journal:
            self._tell("self", fact.at, "sidecar", "the intents journal can be written again")
        elif fact.journal and not self.journal_fault:
            self._tell("self", fact.at, "sidecar", f"the intents journal cannot be written, nothing is ejected: {fact.journal}")
        self.journal_fault = fact.journal
        standby = dict(fact.standby or {})
        for name in sorted(standby.keys() - self.standby.keys()):
            self._tell("self", fact.at, "sidecar", f"standing by for balancer {name}: {standby[name]}")
        moved, self.standby = standby != self.standby, standby
        return tuple(self.services) if why or moved else ()

    def _resumed(self, fact: Resumed) -> tuple[str, ...]:
        """We did not watch for a while: runs of failures from before and during are void."""
        for service in self.services.values():
            for state in service.instances.values():
                for check in state.checks.values():
                    streaks.clear(check, fact.at)
        self.blind_until, self.blind_why = fact.at + 1.0, f"we did not run for {fact.gap_s:.1f} s"
        self._tell("self", fact.at, "sidecar", f"we did not run for {fact.gap_s:.1f} s; evidence from before is void")
        return tuple(self.services)

    def _adopted(self, fact: Adopted) -> tuple[str, ...]:
        self.adopted = {e.instance: e for e in fact.ejections}
        self.adopted_overrides = list(fact.overrides)
        self.freezes.update({f.service: f for f in fact.freezes})
        self.notes.update(fact.notes or {})
        self.adopted_hands_off = dict(fact.hands_off or {})
        self.learned = dict(fact.learned or {})
        return ()

    # ---- settling ----

    def _settle_judgements(self, decision: Decision) -> None:
        for event in decision.events:
            if event.kind == "panic_over":
                self.services[event.service].failing_open = False
            state = self.state_of(event.instance) if event.instance else None
            if state is not None and event.kind in Judgement.__members__.values():
                state.told, state.told_at, state.reason = Judgement(event.kind), decision.at, event.sentence
                if event.kind == Judgement.HEALTHY:
                    state.probation_at = None

    def _settle_holds(self, decision: Decision) -> None:
        """Remember since when each service is held by what, and which holds were told, so that one episode is one event."""
        now = decision.at
        held: dict[str, set[HoldName]] = {}
        for hold in decision.holds:
            held.setdefault(hold.service, set()).add(hold.name)
        for event in decision.events:
            if event.kind in ("held", "pool_event") and event.service in self.services:
                told = self.services[event.service].held_told
                told.extend(h.name for h in event.holds if h.name not in told)
        for name, names in held.items():
            service = self.services.get(name)
            if service is None:
                continue
            for hold_name in sorted(names):
                if now - service.held_last.get(hold_name, float("-inf")) > UNBROKEN_S:
                    service.held_since[hold_name] = now
                service.held_last[hold_name] = now
        for service in self.services.values():
            for hold_name in [h for h, last in service.held_last.items() if now - last > EPISODE_S]:
                del service.held_since[hold_name], service.held_last[hold_name]
                if hold_name in service.held_told:
                    service.held_told.remove(hold_name)

    def _tell(self, kind: str, at: float, by: str, sentence: str, service: str = "", instance: Instance | None = None) -> None:
        self.events.append(Event(kind, at, by, sentence, service, instance))
        del self.events[:-EVENTS_KEPT]


UNBROKEN_S = 0.5
"""A hold that was absent this long begins anew."""
BLIND_S = 0.5
"""How long a sign that we cannot judge holds ejections back; it is looked for four times a second."""
EPISODE_S = 5.0
"""A hold that was absent this long is over; the next one is told anew."""
EVENTS_KEPT = 1000
UNWRITTEN_KEPT = 1000
"""Intents that took effect while the disk was full, and are written down when it has room again."""


def strictest(words: Iterable[Operator]) -> Operator:
    """Maintenance before draining before ready."""
    order = (Operator.READY, Operator.DRAINING, Operator.MAINTENANCE)
    return max(words, key=order.index, default=Operator.READY)


def in_its_words(word: Operator, has_drain: bool) -> Operator:
    """A balancer that knows no draining is given maintenance instead."""
    return Operator.MAINTENANCE if word is Operator.DRAINING and not has_drain else word


def timeout_s(target: TargetState, pace: Pace) -> float:
    """How long an answer of this target may take: learned from its third-slowest of the last good ones."""
    if target.plan.timeout_s is not None:
        return target.plan.timeout_s
    if target.good < pace.learn_good:
        return pace.first_timeout_s
    return min(max(pace.timeout_factor * target.slow_s, pace.min_timeout_s), pace.max_timeout_s)


def _learn(target: TargetState, seconds: float) -> None:
    if len(target.recent) < GOOD_KEPT:
        target.recent.append(seconds)
    else:
        target.recent[target.good % GOOD_KEPT] = seconds
    target.good += 1
    if target.good <= GOOD_KEPT or target.good % 10 == 0 or seconds > target.slow_s:
        ordered = sorted(target.recent)
        target.slow_s = ordered[-min(3, len(ordered))]
        middle = ordered[len(ordered) // 2]
        # slow: a median that follows a sick instance quickly would stretch its own cadence
        target.median_s = middle if target.good <= GOOD_KEPT else target.median_s + (middle - target.median_s) * 0.02


def _quicker(one: ProbePlan, other: ProbePlan) -> ProbePlan:
    """Two services share a target: the shorter interval serves both; with equal keys the rest is equal."""
    if other.interval_s is not None and (one.interval_s is None or other.interval_s < one.interval_s):
        return other
    return one


def _operator_of(serve: Serve) -> Operator:
    return {Serve.FULL: Operator.READY, Serve.DRAIN: Operator.DRAINING, Serve.NONE: Operator.MAINTENANCE}[serve]


def _less(acts: tuple[Act, ...], one: Act) -> tuple[Act, ...]:
    """Without the first of its kind."""
    i = acts.index(one) if one in acts else len(acts)
    return (*acts[:i], *acts[i + 1 :])


def is_at(seen: Seen, instance: Instance) -> bool:
    """Is this server still this instance? One without an address is taken at its name."""
    return seen.address is None or seen.address == instance.address


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


def _restless(state: InstanceState) -> bool:
    """Not simply healthy: every answer of its service matters to somebody."""
    if state.told is not Judgement.HEALTHY or state.ejection is not None or state.overrides:
        return True
    return any(check.bad_run or check.failed for check in state.checks.values())


def _keep_sources(service: ServiceState, policy: ServicePolicy) -> None:
    """After a reload, lists from pools that are no longer this service's are let go."""
    pools = {str(PoolRef(*pair)) for pair in policy.pools}
    for source in [s for s in service.last_good if "/" in s and not s.startswith(("dns:", "file:", "static")) and s not in pools]:
        for state in service.instances.values():
            if source in state.sources:
                state.sources.remove(source)
        del service.last_good[source]


__all__ = [
    "BalancerState", "InstanceState", "Sent", "ServiceState", "TargetState", "World", "strictest", "timeout_s",
]  # fmt: skip
