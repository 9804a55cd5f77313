"""The words of the project as values: identities, outcomes, facts, decisions. All frozen; those of each probe by the type checker only.

Times named `at`, `started`, `until` are seconds on the shell's monotonic clock; durations end in `_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar, dataclass_transform

from lbplugins.values import Address, Change, InFlight, Operator, Ref, Seen
from sidecar.core.policy import Policy

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _made_often(cls: type[T]) -> type[T]:
    """A value of which each probe needs one: as frozen as the others to the type checker, at a quarter of their price to make."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


class Judgement(StrEnum):
    """What we hold an instance to be.

    `unknown -> healthy | suspect`, `healthy <-> suspect -> ejected -> probation -> healthy | ejected`.
    """

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    PROBATION = "probation"


class Serving(StrEnum):
    """What an instance really gets of the traffic, over all its pools."""

    FULL = "full"
    REDUCED = "reduced"
    NONE = "none"


class Result(StrEnum):
    """What one asking gave. `UNKNOWN` is evidence of nothing."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why an outcome is not ok. The first group is about the instance, the last (from OWN_LAG on) about ourselves."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    STATUS = "status"
    HEADER = "header"
    BODY = "body"
    JSON = "json"
    IDENTITY = "identity"
    BAD_RESPONSE = "bad_response"
    TLS = "tls"
    TLS_EXPIRED = "tls_expired"
    TLS_NAME = "tls_name"
    COMMAND = "command"
    OWN_LAG = "own_lag"
    NO_DESCRIPTORS = "no_descriptors"
    OWN_NETWORK = "own_network"
    NAME_LOOKUP = "name_lookup"
    CANCELLED = "cancelled"


class Strength(StrEnum):
    """How much a piece of evidence may do: hard ejects, soft may only within the soft budget, advisory never."""

    HARD = "hard"
    SOFT = "soft"
    ADVISORY = "advisory"


class HoldName(StrEnum):
    """Every named reason not to act."""

    OBSERVE = "observe"
    FROZEN = "frozen"
    OPERATOR = "operator"
    HANDS_OFF = "hands_off"
    NO_WITNESS = "no_witness"
    COLD_START = "cold_start"
    BLIND = "blind"
    JOURNAL = "journal"
    STALE_DISCOVERY = "stale_discovery"
    MAX_EJECTED = "max_ejected"
    MIN_HEALTHY = "min_healthy"
    PANIC = "panic"
    VELOCITY = "velocity"
    HOLD_DOWN = "hold_down"
    FLAPPING = "flapping"
    NOT_WRITABLE = "not_writable"
    NOT_IN_POOL = "not_in_pool"
    SINGLE = "single"
    BALANCER_LOST = "balancer_lost"
    STANDBY = "standby"
    UNSETTLED = "unsettled"
    POOL_SHIFT = "pool_shift"
    UNCONFIRMED = "unconfirmed"
    CONTRADICTION = "contradiction"
    STILL_SLOW = "still_slow"


class Instance(NamedTuple):
    """One address of a service. A new identity starts a new life."""

    service: str
    address: Address
    id: str = ""

    def __str__(self) -> str:
        return f"{self.service}/{self.address}" + (f"#{self.id}" if self.id else "")


class Target(NamedTuple):
    """What is asked: an address and the key of a probe spec. Asked once, whoever needs it."""

    address: Address
    spec: str

    def __str__(self) -> str:
        return f"{self.spec} at {self.address}"


class PoolRef(NamedTuple):
    """A pool of one of our balancers, written `balancer/pool`."""

    balancer: str
    pool: str

    def __str__(self) -> str:
        return f"{self.balancer}/{self.pool}"


class ServerRef(NamedTuple):
    """A server of one of our balancers: balancer name + Ref."""

    balancer: str
    ref: Ref

    def __str__(self) -> str:
        return f"{self.balancer}/{self.ref}"


@_made_often
class Phases:
    """Seconds each phase of a probe took; None = not reached or not part of this kind."""

    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    first_byte: float | None = None


@_made_often
class Outcome:
    """The result of one probe. `ended - started` is the total; `fresh` = on a new connection; `detail` = one line."""

    target: Target
    result: Result
    started: float
    ended: float
    reason: Reason | None = None
    detail: str = ""
    phases: Phases = Phases()
    fresh: bool = True
    advice: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.started


# ---- facts: everything that enters the core ----


@_made_often
class Probed:
    """A probe ended."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Nudged:
    """Something about a target is news (its idle connection was closed): ask it at once."""

    target: Target
    at: float
    why: str = ""


class Served(NamedTuple):
    """What one instance did with the real requests that ended since the last word of it.

    `good`, `bad`: how many it answered well, and not; `seconds`: how long the good ones took, at most some tens of them, sorted.
    """

    instance: Instance
    good: int = 0
    bad: int = 0
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Real requests as one balancer logged them. `forgeable`: the feed is one that others can write to as well."""

    balancer: str
    at: float
    served: tuple[Served, ...] = ()
    forgeable: bool = False


@dataclass(frozen=True, slots=True)
class Discovered:
    """What one source says the instances of a service are. `error` set = it could not say; keep the last good."""

    service: str
    source: str
    at: float
    instances: tuple[Instance, ...] = ()
    labels: Mapping[Instance, Mapping[str, str]] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Pictured:
    """What a balancer showed. `error` set = it could not be asked; the last picture stays, and ages."""

    balancer: str
    at: float
    servers: Mapping[Ref, Seen] | None = None
    pools: frozenset[str] = frozenset()
    error: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Journaled:
    """These intents are on disk (or `error` says why not). Only now may they be acted on."""

    intents: tuple[Intent, ...]
    at: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """A balancer took (or refused) these changes; `error` set = outcome unknown."""

    balancer: str
    at: float
    changes: tuple[Change, ...] = ()
    refused: tuple[tuple[Change, str], ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration was loaded: at start and on every reload."""

    policy: Policy
    at: float
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Commanded:
    """An operator's command through our own surfaces, already authorised. `actor` = `operator:NAME` or `token:NAME`."""

    verb: Verb
    actor: str
    at: float
    service: str = ""
    instance: Instance | None = None
    owner: str = ""
    state: Operator = Operator.READY
    until: float | None = None
    reason: str = ""
    force: bool = False


class Verb(StrEnum):
    """Operator commands.

    OVERRIDE, CLEAR per owner; FREEZE, UNFREEZE a service or all (""); ADOPT what is out and not ours; RELEASE all we have out and
    freeze; GIVE_BACK the same without the freeze, when a service leaves our hands.
    """

    OVERRIDE = "override"
    CLEAR = "clear"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    ADOPT = "adopt"
    RELEASE = "release"
    GIVE_BACK = "give_back"


@dataclass(frozen=True, slots=True)
class SelfChecked:
    """Our own health. `lag_s`: worst lateness of our loop since the last one; the flags say what we cannot do now."""

    at: float
    lag_s: float = 0.0
    network: str = ""
    descriptors: str = ""
    journal: str = ""
    standby: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """We did not run for `gap_s` (paused, suspended): evidence from before is void."""

    at: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Adopted:
    """Read back at start from the intents: what is ours from an earlier life of this sidecar."""

    at: float
    ejections: tuple[Ejection, ...] = ()
    overrides: tuple[Override, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    notes: Mapping[ServerRef, str] | None = None
    hands_off: Mapping[Instance, float] | None = None
    learned: Mapping[Target, Learned] | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at: float


Fact = (
    Probed
    | Nudged
    | Traffic
    | Discovered
    | Pictured
    | Journaled
    | Applied
    | Configured
    | Commanded
    | SelfChecked
    | Resumed
    | Adopted
    | Tick
)


# ---- what we hold, decide and ask ----


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reason to think so. `kind` is a Reason or a rule's name; `count` of them since `first_at`, the last at `at`."""

    instance: Instance
    kind: str
    strength: Strength
    good: bool
    at: float
    count: int = 1
    first_at: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ejection:
    """We have taken an instance out. `repeat`: how many times in a row, 0 first; `until`: no return before (hold-down).

    `enforced` False = observe mode, nothing was written. `returning`: the return is journaled, but not yet seen on every balancer.
    `others`: its servers that a hand had out on our axis before us; those stay out when it returns.
    """

    instance: Instance
    at: float
    rule: str
    cause: str
    strength: Strength = Strength.HARD
    repeat: int = 0
    until: float = 0.0
    witnesses: tuple[Target, ...] = ()
    enforced: bool = True
    in_flight: InFlight = InFlight.KEEP
    returning: bool = False
    others: tuple[ServerRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Override:
    """One owner's word about an instance; the strictest of all owners' wins. `until` None = until cleared.

    `before`: earlier words of his that a balancer may still show.
    """

    instance: Instance
    owner: str
    state: Operator
    actor: str
    at: float
    until: float | None = None
    reason: str = ""
    before: tuple[Operator, ...] = ()


@dataclass(frozen=True, slots=True)
class Freeze:
    """No ejection and no return. `service` "" = everything."""

    service: str
    actor: str
    at: float
    until: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a target taught us: good probes seen, median and third-slowest of the last 100, seconds."""

    good: int
    median_s: float
    slow_s: float


class Act(StrEnum):
    """What an intent is for. After RETURN the servers are still ours until FORGET says that none of our act is left on a balancer.

    CLAIM: of an ejection's `others` only these are left.
    """

    EJECT = "eject"
    CLAIM = "claim"
    RETURN = "return"
    OVERRIDE = "override"
    CLEAR = "clear"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    HANDS_OFF = "hands_off"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Intent:
    """What we mean to do, written and fsynced before any balancer hears of it.

    `notes`: the plugin's, per server. `evidence`: what an EJECT rests on. `is_forced`: an operator wants it though the disk fails.
    """

    act: Act
    at: float
    by: str
    why: str
    instance: Instance | None = None
    ejection: Ejection | None = None
    override: Override | None = None
    freeze: Freeze | None = None
    until: float | None = None
    notes: tuple[tuple[ServerRef, str], ...] = ()
    evidence: tuple[Evidence, ...] = ()
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """A named reason not to act now, with its arithmetic in words."""

    name: HoldName
    why: str
    instance: Instance | None = None
    service: str = ""


@_made_often
class Ask:
    """Probe this target at `at` (now or earlier = at once), give it `timeout_s`, on a fresh connection if `fresh`."""

    target: Target
    at: float
    timeout_s: float
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in one sentence; what the decision log, the stream and `explain` show.

    `kind`: ejected, returned, suspect, healthy, held, operator, drift, discovery, balancer, self, config, pool_event …
    `by`: `rule:NAME`, `operator:NAME`, `token:NAME`, `balancer:own-check`, `outside`, `sidecar`.
    """

    kind: str
    at: float
    by: str
    sentence: str
    service: str = ""
    instance: Instance | None = None
    evidence: tuple[Evidence, ...] = ()
    holds: tuple[Hold, ...] = ()
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from the world now: intents to journal, changes to write, holds, questions, and the news in sentences.

    `services`: those it looked at; their holds are all in `holds`. `looks`: balancers whose picture is wanted now.
    The shell journals `intents`, feeds `Journaled` back, sends `changes`, and wakes the core at `World.wake_at()`.
    """

    at: float
    intents: tuple[Intent, ...] = ()
    changes: Mapping[str, tuple[Change, ...]] | None = None
    holds: tuple[Hold, ...] = ()
    asks: tuple[Ask, ...] = ()
    events: tuple[Event, ...] = ()
    services: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
