"""What the API says and takes, as pydantic models: the one description that handlers, `/api/openapi.json` and clients share.

Times named `when`, `since`, `until`, `not_before` are RFC 3339 in UTC; durations end in `_s` and are seconds. Keys may be added; none
is renamed or removed within `/api/v1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from lbplugins.values import Operator
from sidecar.core.model import HoldName, Judgement, Serving
from sidecar.net.units import parse_duration

TTL_MAX_S = 30 * 86400.0
"""The longest an override or freeze may be given; without an end it stays until cleared."""


class Status(StrEnum):
    """`application/health+json`: pass and warn are answered with 200, fail with 503."""

    PASS = "pass"  # noqa: S105 - no password, the format's word
    WARN = "warn"
    FAIL = "fail"


def _rfc3339(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


When = Annotated[
    datetime, PlainSerializer(_rfc3339, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization")
]
"""A moment, written `2026-03-01T08:30:00.250Z`."""


class Model(BaseModel):
    """What we send. Clients ignore keys they do not know: newer sidecars send more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Body(BaseModel):
    """What we are sent. Unknown keys are errors: a misspelt `ttl` must not mean for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---- percentiles ----


class Quantile(Model):
    """`value` in seconds; null while there are fewer than `needed` samples."""

    value: float | None = None
    samples: int = 0
    needed: int = 0


class Latency(Model):
    """Response times of one source over one window. `count`: good answers, timed; `failures`: counted, never timed."""

    count: int = 0
    failures: int = 0
    p50: Quantile = Quantile(needed=20)
    p90: Quantile = Quantile(needed=100)
    p95: Quantile = Quantile(needed=200)
    p99: Quantile = Quantile(needed=1000)
    p999: Quantile = Quantile(needed=10_000)


class Latencies(Model):
    """`/api/v1/services/{s}/latency`: merged over the service, and each instance by its name."""

    service: Latency
    instances: Mapping[str, Latency]


class Column(Model):
    """The history of an instance, or of a whole service, one entry of each row for a step in which something came, oldest first.

    `at`: when the step begins, seconds since 1970. Times in seconds; `min` and `max` within half a percent, quantiles null where there are
    too few samples, as everywhere. `judgement`, `operator` and `serving`: at the end of the step; of a service, null.
    """

    at: tuple[int, ...] = ()
    count: tuple[int, ...] = ()
    failures: tuple[int, ...] = ()
    min: tuple[float | None, ...] = ()
    p50: tuple[float | None, ...] = ()
    p90: tuple[float | None, ...] = ()
    p99: tuple[float | None, ...] = ()
    max: tuple[float | None, ...] = ()
    judgement: tuple[Judgement | None, ...] = ()
    operator: tuple[Operator | None, ...] = ()
    serving: tuple[Serving | None, ...] = ()


class Series(Model):
    """`/api/v1/services/{s}/series`. Instances by address:port, those that are gone too.

    `step_s`: at least what was asked for, more where only coarser rows are kept.
    """

    source: str
    since: When
    until: When
    step_s: int
    service: Column
    instances: Mapping[str, Column]


# ---- services and instances ----


class Hold(Model):
    """A named reason not to act, with its arithmetic in words. `instance`: address:port, "" = the whole service."""

    name: str = Field(examples=["max_ejected", "no_witness"], description="one of: " + ", ".join(HoldName))
    why: str
    instance: str = ""


class Server(Model):
    """One server of one balancer, as the balancer shows it. `ours`: what our axis gives it. `serving` null = the balancer cannot tell."""

    balancer: str
    pool: str
    server: str
    ours: str
    operator: Operator
    serving: bool | None
    weight: int
    weight_pct: int
    in_flight: int | None = None
    writable: str | None = Field(None, description="null, or why a change would be refused now")
    remark: str = ""


class Ejection(Model):
    """We took it out. `enforced` false = observe mode: told, nothing written. `not_before`: no return earlier, null = at once."""

    rule: str
    cause: str
    since: When
    repeat: int = 0
    not_before: When | None = None
    enforced: bool = True
    returning: bool = False
    witnesses: tuple[str, ...] = ()


class Override(Model):
    """One owner's word; the strictest of all owners' wins. `until` null = until cleared."""

    owner: str
    state: Operator
    actor: str
    since: When
    until: When | None = None
    reason: str = ""


class Check(Model):
    """What one probe spec says about the instance: runs of like answers, and the last failure."""

    good_run: int = 0
    bad_run: int = 0
    answers: int = 0
    last_reason: str | None = None
    detail: str = ""
    rule: str = ""
    failed: bool = False


class Instance(Model):
    """One address of a service. `name`: the balancer's server name where it is unambiguous, else the address."""

    service: str
    instance: str = Field(description="address:port, the identity", examples=["10.0.0.5:8080"])
    name: str
    judgement: Judgement
    operator: Operator
    serving: Serving
    stale: bool = Field(description="no answer for more than three intervals and a second")
    since: When
    reason: str
    next: str = Field(description="what happens next, in one sentence")
    holds: tuple[Hold, ...] = ()
    servers: tuple[Server, ...] = ()
    ejection: Ejection | None = None
    overrides: tuple[Override, ...] = ()
    checks: Mapping[str, Check] = {}
    last_probe_age_s: float | None = None
    interval_s: float | None = None
    timeout_s: float | None = None
    labels: Mapping[str, str] = {}
    latency: Mapping[Literal["probe", "traffic"], Latency] = {}


class Counts(Model):
    """`counted`: instances not in an operator's drain or maintenance (n of every guard)."""

    instances: int = 0
    counted: int = 0
    in_rotation: int = 0
    healthy: int = 0
    ejected: int = 0


class Room(Model):
    """What the guards leave room for. `counted`: instances not in an operator's drain or maintenance.

    `out`: those of them that get no traffic, whoever took them out; `hard` and `soft`: so many may be out by evidence of that kind;
    `sound`: get traffic and answer well.
    """

    counted: int
    out: int
    hard: int
    soft: int
    sound: int
    min_healthy: int


class Freeze(Model):
    """No ejection and no return. `service` "" = everything."""

    service: str
    actor: str
    since: When
    until: When | None = None
    reason: str = ""


class Service(Model):
    """What users call, over all pools of all balancers. `why`: each reason why the status is not pass."""

    service: str
    status: Status
    why: tuple[str, ...] = ()
    mode: Literal["observe", "act"]
    labels: Mapping[str, str] = {}
    runbook: str = ""
    pools: tuple[str, ...] = ()
    counts: Counts
    room: Room | None = None
    cold_start: bool = False
    failing_open: bool = False
    freeze: Freeze | None = None
    holds: tuple[Hold, ...] = ()
    discovery_faults: Mapping[str, str] = {}
    balancer_faults: Mapping[str, str] = {}
    unlisted: tuple[str, ...] = Field((), description="servers in its pools that are no instance of it: untouched, counted as capacity")
    latency: Mapping[Literal["probe", "traffic"], Latency] = {}
    instances: Mapping[str, Instance] = {}


class Sidecar(Model):
    """The sidecar itself: `/api/v1/services` carries it beside the services."""

    when: When
    status: Status
    version: str = ""
    mode: str = ""
    config_hash: str = ""
    policy_version: int = 1
    uptime_s: float | None = None
    loop_lag_s: float | None = None
    rss_bytes: int | None = None
    notes: tuple[str, ...] = ()


class Services(Model):
    """`/api/v1/services`."""

    sidecar: Sidecar
    services: Mapping[str, Service]


# ---- decisions ----


class Evidence(Model):
    """One reason to think so, `count` times from `first` to `when`. `kind`: why an answer was not good, or a rule's name."""

    kind: str
    strength: str
    good: bool
    count: int = 1
    first: When | None = None
    when: When
    detail: str = ""
    instance: str = ""


class Decision(Model):
    """Something that happened or was refused, by whom and why. `by`: rule:NAME, operator:NAME, token:NAME, balancer:own-check, outside.

    `id` grows by one; `instance`: address:port or "".
    """

    id: int
    when: When
    kind: str
    by: str
    sentence: str
    service: str = ""
    instance: str = ""
    evidence: tuple[Evidence, ...] = ()
    holds: tuple[Hold, ...] = ()
    enforced: bool = True


class Decisions(Model):
    """`/api/v1/decisions`, newest first; ask again with `cursor=next_cursor` for older ones, null = no more."""

    decisions: tuple[Decision, ...]
    next_cursor: str | None = None


# ---- health ----


class HealthCheck(Model):
    """One entry of `checks` in application/health+json."""

    componentId: str
    componentType: str = "component"
    observedValue: int | float | str | None = None
    observedUnit: str | None = None
    status: Status
    time: When
    output: str | None = None


class Health(Model):
    """application/health+json. For readers, never for what restarts things: that asks `/livez`."""

    status: Status
    serviceId: str | None = None
    description: str = ""
    notes: tuple[str, ...] = ()
    checks: Mapping[str, tuple[HealthCheck, ...]] = {}


class Live(Model):
    """`/livez` and `/readyz`: our own; `missing` says what is awaited."""

    status: Status
    missing: tuple[str, ...] = ()


# ---- what we are told ----


def _ttl(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("write a duration with its unit, as 15m, or seconds as a number")
    return parse_duration(value) if isinstance(value, str) else value


Ttl = Annotated[
    float,
    BeforeValidator(_ttl),
    Field(gt=0, le=TTL_MAX_S),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$"}, {"type": "number", "exclusiveMinimum": 0}]}),
]


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable text, without line ends or control characters")
    return text


Sentence = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True), AfterValidator(_one_line)]


class _Timed(Body):
    ttl: Ttl | None = Field(None, description="how long: 15m, 2h, or seconds; at most 30 days", examples=["15m"])
    until: datetime | None = Field(None, description="or until when, RFC 3339 with its offset")
    reason: Sentence = Field("", description="why; shown to everybody who asks")

    @model_validator(mode="after")
    def _one_end(self) -> _Timed:
        if self.ttl is not None and self.until is not None:
            raise ValueError("`ttl` and `until` are two ends for one thing: give one of them")
        if self.until is not None and self.until.tzinfo is None:
            raise ValueError("`until` has no offset: write it as 2026-03-01T08:30:00Z")
        return self


class OverrideBody(_Timed):
    """`PUT …/override/{owner}`. Who did it is the token or the socket's user, never the body."""

    state: Operator = Field(description="ready, draining or maintenance")
    force: bool = Field(False, description="pass the guard that refuses; this act only, and logged")


class FreezeBody(_Timed):
    """`PUT /api/v1/freeze`."""


class ReasonBody(Body):
    """`POST /api/v1/release`."""

    reason: Sentence = ""


class Done(Model):
    """An act is journaled. `reached`: with `?wait=`, whether the balancers showed it in time; null = not waited for."""

    done: str
    actor: str
    reached: bool | None = None


class Reloaded(Model):
    """`POST /api/v1/reload`: empty `problems` = the new configuration is in force; else the old one was kept."""

    problems: tuple[str, ...] = ()


class Adopted(Model):
    """`/api/v1/adopt`: what was adopted, or with GET the difference that adopting would accept."""

    pool: str
    text: str


class Error(Model):
    """Every answer that is not what was asked for. `cure`: what to do. `hold`: the guard that refused. `candidates`: what may be meant."""

    error: str
    cure: str
    status: int
    hold: HoldName | None = None
    candidates: tuple[str, ...] | None = None


__all__ = [
    "TTL_MAX_S",
    "Adopted",
    "Check",
    "Column",
    "Counts",
    "Decision",
    "Decisions",
    "Done",
    "Ejection",
    "Error",
    "Evidence",
    "Freeze",
    "FreezeBody",
    "Health",
    "HealthCheck",
    "Hold",
    "Instance",
    "Latencies",
    "Latency",
    "Live",
    "Override",
    "OverrideBody",
    "Quantile",
    "ReasonBody",
    "Reloaded",
    "Room",
    "Series",
    "Server",
    "Service",
    "Services",
    "Sidecar",
    "Status",
]  # fmt: skip
