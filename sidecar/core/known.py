"""What is known, as plain data: a snapshot of it and the facts after it give the same again. `World` takes facts in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lbplugins.values import Change, Operator, Ref, Seen, Serve, Setting
from sidecar.core.conduct import Conduct
from sidecar.core.model import (
    Act,
    Ask,
    Commanded,
    Ejection,
    Event,
    Freeze,
    HoldName,
    Instance,
    Intent,
    Judgement,
    Learned,
    Override,
    Result,
    ServerRef,
    Target,
)
from sidecar.core.policy import Pace, Policy, ProbePlan
from sidecar.core.streak import Streak

GOOD_KEPT = 100
"""Good answers kept per target, seconds each: enough for a third-slowest."""
UNBROKEN_S = 0.5
"""A hold that was absent this long begins anew."""
EPISODE_S = 5.0
"""A hold, or a blindness, that was absent this long is over; the next one is told anew."""
ON_ITS_WAY_S = 30.0
"""No balancer is waited for so long: a change of which nothing was heard since has arrived or never will."""
EVENTS_KEPT = 1000


@dataclass(slots=True)
class TargetState:
    """What one target has taught us. `recent`: the last GOOD_KEPT good totals, a ring written at `good % GOOD_KEPT`.

    `failed_at`: when its last failure ended; `good_since`: when the first good answer after that was asked. `phase`: where in its interval
    it is asked, the same on every run.
    """

    target: Target
    plan: ProbePlan
    phase: int
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

    `is_void`: the evidence had gone before the ejection was on disk. `hands_off_why`: in whose words, "" = not known after a restart.
    `overruled`, `unsaid`: somebody made ready by hand what our ejection, or our commands, had out. `ended`: words whose time is over,
    kept until no balancer shows them. `unclaimed`: balancers which we have not looked at since our restart; what words of ours they show
    is ours still. `proposed`: those of our intents that are on their way to disk.
    """

    instance: Instance
    since: float
    sources: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Streak] = field(default_factory=dict)
    conduct: Conduct = field(default_factory=Conduct)
    targets: tuple[Target, ...] = ()
    servers: tuple[ServerRef, ...] = ()
    operator: Operator = Operator.READY
    ejection: Ejection | None = None
    probation_at: float | None = None
    repeat: int = 0
    returned_at: float = float("-inf")
    flap_level: float = 0.0
    flap_at: float = 0.0
    hands_off_until: float = float("-inf")
    hands_off_why: str = ""
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

    @property
    def is_out_by_us(self) -> bool:
        """Our ejection of it is in force."""
        return self.ejection is not None and self.ejection.enforced and not self.ejection.returning

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
    """One service: its instances, its discovery, its budgets.

    `fault_told`: what was told last of each source that fails, and when. `alert`: not all of it is simply healthy.
    `decided_at`: the last decision; `look_at`: decide again then at the latest.
    `usual_slow`, `usual_bad`: the shares of its real requests that are slow, and bad, while nobody is doubted, of `counted` requests.
    """

    name: str
    since: float | None = None
    cold: bool = True
    instances: dict[Instance, InstanceState] = field(default_factory=dict)
    last_good: dict[str, tuple[Instance, ...]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    fault_at: dict[str, float] = field(default_factory=dict)
    fault_told: dict[str, tuple[str, float]] = field(default_factory=dict)
    hard_spent: Bucket = field(default_factory=Bucket)
    soft_spent: Bucket = field(default_factory=Bucket)
    unlisted: tuple[ServerRef, ...] = ()
    held_since: dict[HoldName, float] = field(default_factory=dict)
    held_last: dict[HoldName, float] = field(default_factory=dict)
    held_told: list[HoldName] = field(default_factory=list)
    alert: bool = False
    decided_at: float = float("-inf")
    look_at: float = float("-inf")
    failing_open: bool = False
    usual_slow: float = 0.0
    usual_bad: float = 0.0
    counted: int = 0


@dataclass(slots=True)
class Sent:
    """The last change sent to one server and what became of it.

    `confirmed`: a picture has shown it. `is_unsure`: it failed in a way that leaves open whether it was done, and no picture has shown
    since. `expect`: what the server showed when it was sent. `told`: the last refusal told. `stands`: an earlier NONE was there when this
    was sent, and no picture has shown it undone since.
    """

    serve: Serve
    at: float
    settle_s: float = 0.0
    refused: str = ""
    told: str = ""
    retries: int = 0
    confirmed: bool = False
    is_unsure: bool = False
    stands: bool = False
    generation: str = ""
    expect: Seen | None = None

    def is_of(self, change: Change) -> bool:
        """Is this what was sent last? The answer to an earlier one leaves the later on its way."""
        return self.serve is change.want.serve and self.expect in (None, change.expect)

    @property
    def is_settled(self) -> bool:
        """Nothing of it is on its way any more: a picture has shown it, or the balancer said no, and not merely nothing."""
        return self.confirmed or (bool(self.refused) and not self.is_unsure)


@dataclass(frozen=True, slots=True)
class Word:
    """What was last written on a server's operator axis and not seen yet.

    `before`: earlier ones whose fate was never known either. `is_answered`: it was taken, or what became of it stays open.
    """

    word: Operator
    at: float
    before: frozenset[Operator] = frozenset()
    is_answered: bool = False


@dataclass(slots=True)
class Refused:
    """The balancer said no to a word of ours on the operator's axis, so many times in a row, last at `at`."""

    why: str
    at: float
    times: int = 1
    told: str = ""


@dataclass(slots=True)
class BalancerState:
    """The last picture of one balancer, and what we sent it.

    `refs`: the servers it shows, by pool. `users`: whose each pool is. `told`: the failure to tell it anything that was told last.
    """

    name: str
    seen: dict[Ref, Seen] = field(default_factory=dict)
    refs: dict[str, list[Ref]] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    pools: list[str] = field(default_factory=list)
    seen_at: float = float("-inf")
    error: str = ""
    error_at: float = 0.0
    told: str = ""
    sent: dict[Ref, Sent] = field(default_factory=dict)
    said: dict[Ref, Operator] = field(default_factory=dict)
    said_pending: dict[Ref, Word] = field(default_factory=dict)
    said_refused: dict[Ref, Refused] = field(default_factory=dict)

    def of_pool(self, pool: str) -> Iterator[tuple[Ref, Seen]]:
        """Its servers, as the last picture shows them."""
        seen = self.seen
        return ((ref, seen[ref]) for ref in self.refs.get(pool, ()))

    def services(self) -> tuple[str, ...]:
        """Whose instances it serves."""
        return tuple(dict.fromkeys(name for names in self.users.values() for name in names))


@dataclass(slots=True)
class Known:
    """All of it.

    `left_unclaimed`: `unclaimed` of those that no source names any more, though an operator's word about them is in force.
    `events`: news born while absorbing, handed out by the next decision. `unasked`: targets that nobody is about to ask.
    """

    started_at: float = 0.0
    policy: Policy = field(default_factory=Policy)
    services: dict[str, ServiceState] = field(default_factory=dict)
    targets: dict[Target, TargetState] = field(default_factory=dict)
    unasked: dict[Target, None] = field(default_factory=dict)
    balancers: dict[str, BalancerState] = field(default_factory=dict)
    freezes: dict[str, Freeze] = field(default_factory=dict)
    unfreezing: set[str] = field(default_factory=set)
    notes: dict[ServerRef, str] = field(default_factory=dict)
    adopted: dict[Instance, Ejection] = field(default_factory=dict)
    adopted_overrides: list[Override] = field(default_factory=list)
    adopted_hands_off: dict[Instance, float] = field(default_factory=dict)
    left_unclaimed: dict[Instance, frozenset[str]] = field(default_factory=dict)
    learned: dict[Target, Learned] = field(default_factory=dict)
    commands: list[Commanded] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    blind_until: float = float("-inf")
    blind_why: str = ""
    journal_fault: str = ""
    unwritten: list[Intent] = field(default_factory=list)
    standby: dict[str, str] = field(default_factory=dict)

    def nudge(self, name: Target) -> None:
        """Ask it at once, whatever was planned."""
        if (target := self.targets.get(name)) is not None:
            target.nudged, target.scheduled = True, None
            self.unasked[name] = None

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
            check.answers >= guards.cold_answers or check.failed
            for state in service.instances.values()
            if state.ejection is None or state.ejection.returning  # one that is out from before our restart need not be known anew
            for check in state.checks.values()
        )

    def lapsed(self) -> list[Ejection]:
        """What an earlier life had in its journal and no balancer shows: all of them have been looked at, none has it out."""
        return [ejection for ejection in self.adopted.values() if self._is_nowhere_out(ejection.instance, ejection.others)]

    def _is_nowhere_out(self, instance: Instance, others: tuple[ServerRef, ...]) -> bool:
        policy = self.policy.services.get(instance.service)
        for owner, pool in policy.pools if policy is not None else ():
            balancer = self.balancers.get(owner)
            if balancer is None or balancer.error or balancer.seen_at == float("-inf"):
                return False
            seen_at = [seen for ref, seen in balancer.of_pool(pool) if ServerRef(owner, ref) not in others and is_at(seen, instance)]
            if any(seen.ours != Setting() for seen in seen_at):
                return False
        return policy is not None

    # ---- telling ----

    def tell(self, kind: str, at: float, by: str, sentence: str, service: str = "", instance: Instance | None = None) -> None:
        self.events.append(Event(kind, at, by, sentence, service, instance))
        del self.events[:-EVENTS_KEPT]


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


def is_at(seen: Seen, instance: Instance) -> bool:
    """Is this server still this instance? One without an address is taken at its name."""
    return seen.address is None or seen.address == instance.address


def target_of(instance: Instance, plan: ProbePlan) -> Target:
    """What is asked to learn about an instance by this spec."""
    return Target(instance.address if plan.port is None else instance.address._replace(port=plan.port), plan.key)
