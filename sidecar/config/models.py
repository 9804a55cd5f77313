"""The whole configuration as frozen models: every key with its unit, default and reason. Unknown keys are errors.

Numbers of the policy take their defaults from `sidecar.core.policy`, the only place where they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    StringConstraints,
)
from pydantic_core import CoreSchema, core_schema

from sidecar.core.model import PoolRef
from sidecar.core.policy import Guards, Mode, Pace, RuleMode, Rules
from sidecar.discovery.options import AddressText, Instances, Labels
from sidecar.net.units import Duration, Share, Size
from sidecar.probes.options import ProbeSpec
from sidecar.publish.options import PublishOptions
from sidecar.web.options import ApiOptions

ANY = "*"
"""The service that stands for every pool which no other names."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
POOL_NAME = r"^[A-Za-z0-9_.:@-]{1,128}$"

_RULES, _GUARDS, _PACE = Rules(), Guards(), Pace()

Name = Annotated[str, StringConstraints(pattern=NAME)]
Count = Annotated[int, Field(strict=True, ge=1, le=1000)]


def _not_empty(value: tuple[ProbeSpec, ...]) -> tuple[ProbeSpec, ...]:
    # Not `min_length`: pydantic counts only the valid ones and would tell one mistake twice.
    if not value:
        raise ValueError("no probe in the list: give at least one, as {http: /health}")
    return value


class Options(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shorthand:
    """Lets a mapping be written as one value: `hold_down: 5s` for `hold_down: {first: 5s}`."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def widen(value: Any) -> Any:
            return value if value is None or isinstance(value, Mapping | list | BaseModel) else dict.fromkeys(self.keys, value)

        return core_schema.no_info_before_validator_function(widen, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        table = handler(core)
        single = handler.resolve_ref_schema(table)["properties"][self.keys[0]]
        return {"anyOf": [table, {key: value for key, value in single.items() if key not in ("default", "description", "title")}]}


class OneOrMany:
    """Lets a list of one probe be written without the brackets."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def listed(value: Any) -> Any:
            if isinstance(value, str | int | float):
                raise ValueError(f"{str(value)[:40]!r} does not say how to ask: write a mapping, as {{http: /health}}, or a list of them")
            return (value,) if isinstance(value, Mapping | BaseModel) else value

        return core_schema.no_info_before_validator_function(listed, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


Probes = Annotated[tuple[ProbeSpec, ...], Field(max_length=16), AfterValidator(_not_empty), OneOrMany()]
"""One probe or a list."""


# ---- policy ----


class MaxEjected(Options):
    """The most that may be out of traffic at once, as a share of the instances not in an operator's drain or maintenance."""

    hard: Share = Field(
        default=_GUARDS.max_ejected_hard,
        ge=0,
        le=1,
        description="For refused, reset, timeouts: half, so that an outage of ours halves at worst.",
    )
    soft: Share = Field(
        default=_GUARDS.max_ejected_soft, ge=0, le=1, description="For slow, errors in traffic: softer evidence, smaller share."
    )


class Velocity(Options):
    """How soon one more instance may be taken out after the budget's burst is spent."""

    hard: Duration = Field(default=_GUARDS.hard_refill_s, gt=0, le=600, description="Time to earn back one ejection on hard evidence.")
    soft: Duration = Field(default=_GUARDS.soft_refill_s, gt=0, le=3600, description="Time to earn back one ejection on soft evidence.")


class Window(Options):
    """The rule beside consecutive failures: too many bad among the last probes."""

    mode: RuleMode = Field(default=RuleMode.ACT, description="act, observe or off.")
    probes: Annotated[int, Field(strict=True, ge=4, le=1000)] = Field(
        default=_RULES.window, description="How many of the last probes are looked at."
    )
    within: Duration = Field(default=_RULES.window_s, ge=1, le=3600, description="Older probes do not count.")
    bad: Share = Field(default=_RULES.window_bad, gt=0, le=1, description="At least this share of them bad.")


class HoldDown(Options):
    """How long an instance stays out at least. A first hard ejection has none: a rolling restart must cost nothing."""

    first: Duration = Field(default=_RULES.hold_down_s, ge=0, le=3600, description="Second ejection in a row; doubles with each more.")
    soft: Duration = Field(default=_RULES.hold_down_soft_s, ge=0, le=3600, description="First ejection on soft evidence.")
    max: Duration = Field(default=_RULES.hold_down_max_s, ge=0, le=86400, description="The doubling ends here.")
    forget: Duration = Field(
        default=_RULES.repeat_within_s, gt=0, le=86400, description="Good for this long: the next ejection is a first one again."
    )


class Flapping(Options):
    """How often an instance may change sides; only returns are delayed by it, never an ejection."""

    burst: Count = Field(default=_RULES.flap_burst, description="Changes allowed at once.")
    within: Duration = Field(default=_RULES.flap_burst_s, gt=0, le=3600, description="For how long the burst is allowed.")
    per_minute: float = Field(default=_RULES.flap_per_min, gt=0, le=600, description="Changes a minute after that.")


class ColdStart(Options):
    """After our start nothing is ejected until each instance of the service is known."""

    answers: Count = Field(default=_GUARDS.cold_answers, description="Answers of each instance that end the cold start.")
    at_most: Duration = Field(default=_GUARDS.cold_s, gt=0, le=600, description="It ends then in any case.")


class DiscoveryGuard(Options):
    """When what discovery says is not believed."""

    shrink: Share = Field(default=_GUARDS.shrink, gt=0, le=1, description="Losing more than this share at once is held, not followed.")
    stale: Duration = Field(default=_GUARDS.stale_discovery_s, gt=0, le=86400, description="A source silent for so long is shown as stale.")


class PolicyOptions(Options):
    """When evidence is enough, and the most that may be done about it."""

    fall: Count = Field(default=_RULES.fall, description="Timeouts, wrong answers, TLS errors in a row until an ejection.")
    fall_fast: Count = Field(default=_RULES.fall_fast, description="Refused or reset connections in a row until an ejection.")
    fast_spread: Duration = Field(
        default=_RULES.fast_spread_s, ge=0, le=60, description="Those must span at least this long: a restart's blink is no failure."
    )
    rise: Count = Field(default=_RULES.rise, description="Good answers in a row until a return.")
    window: Annotated[Window, Shorthand("mode")] = Field(default=Window(), description="Too many bad of the last probes; or one word: off.")
    consecutive: RuleMode | None = Field(default=None, description="act, observe or off, for the rules fall and fall_fast.")
    slow: RuleMode | None = Field(
        default=None, description="Slow in real traffic against its peers. Default: acts, where the balancer's `traffic` is given."
    )
    traffic_errors: RuleMode | None = Field(default=None, description="Errors in real traffic against its peers. Default as for slow.")
    undo_within: Duration = Field(
        default=_RULES.undo_s, ge=0, le=60, description="Every witness fails so soon after an ejection: it is undone."
    )
    hold_down: Annotated[HoldDown, Shorthand("first")] = Field(default=HoldDown(), description="How long an instance stays out at least.")
    flapping: Flapping = Field(default=Flapping(), description="How often an instance may change sides.")
    hands_off: Duration = Field(
        default=_RULES.hands_off_s, ge=0, le=86400, description="An operator's `ready` against our ejection: we keep away this long."
    )
    max_ejected: Annotated[MaxEjected, Shorthand("hard", "soft")] = Field(
        default=MaxEjected(), description="Most that may be out; or one share for both."
    )
    velocity: Velocity = Field(default=Velocity(), description="How fast ejections may follow one another.")
    min_healthy: Annotated[int, Field(strict=True, ge=0, le=10_000)] = Field(
        default=_GUARDS.min_healthy, description="Fewest instances left serving by our act."
    )
    panic_below: Share = Field(
        default=_GUARDS.panic_below, ge=0, lt=1, description="Fewer healthy than this share: fail open, everything gets traffic."
    )
    cold_start: ColdStart = Field(default=ColdStart(), description="How long to learn before the first ejection.")
    discovery: DiscoveryGuard = Field(default=DiscoveryGuard(), description="When discovery is not believed.")
    picture_max_age: Duration = Field(
        default=_GUARDS.picture_max_age_s, gt=0, le=600, description="A balancer not seen for this long: nothing is ejected there."
    )
    own_lag: Duration = Field(default=_GUARDS.blind_lag_s, gt=0, le=10, description="Our own loop later than this: we are blind and hold.")


class PaceOptions(Options):
    """How often and how patiently targets are asked when a probe gives no `interval` or `timeout`; one for the whole sidecar."""

    first_interval: Duration = Field(default=_PACE.first_interval_s, gt=0, le=60, description="Between probes until a target is known.")
    learn: Count = Field(default=_PACE.learn_good, description="Good probes until it is known.")
    baseline_factor: float = Field(
        default=_PACE.baseline_factor, gt=1, le=10_000, description="Then the interval is this many times its usual answer time."
    )
    min_interval: Duration = Field(default=_PACE.min_interval_s, ge=0.01, le=60, description="Never more often.")
    max_interval: Duration = Field(default=_PACE.max_interval_s, ge=0.01, le=600, description="Never more seldom while in rotation.")
    pending_gap: Duration = Field(
        default=_PACE.pending_gap_s, ge=0.001, le=10, description="After a first failure: pause between confirming probes."
    )
    jitter: Share = Field(default=_PACE.jitter, ge=0, le=0.5, description="Spread of each interval, so that targets do not march in step.")
    ejected: Duration = Field(default=_PACE.ejected_s, gt=0, le=600, description="Longest interval of an ejected instance at first.")
    ejected_long: Duration = Field(default=_PACE.ejected_long_s, gt=0, le=3600, description="And later.")
    ejected_long_after: Duration = Field(default=_PACE.ejected_long_after_s, ge=0, le=86400, description="When later begins.")
    first_timeout: Duration = Field(default=_PACE.first_timeout_s, gt=0, le=60, description="Patience until a target is known.")
    timeout_factor: float = Field(default=_PACE.timeout_factor, gt=1, le=1000, description="Then this many times its third-slowest of 100.")
    min_timeout: Duration = Field(default=_PACE.min_timeout_s, ge=0.001, le=60, description="Never less patient.")
    max_timeout: Duration = Field(default=_PACE.max_timeout_s, ge=0.001, le=60, description="Never more patient.")
    witnesses: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(
        default=_PACE.witnesses_asked, description="Peers asked at once when one is suspected."
    )


# ---- services and balancers ----


class Reference(Options):
    """A target that is known to answer when the network does: a witness, never judged."""

    address: AddressText = Field(description="HOST:PORT.", examples=["10.0.0.1:53"])
    probe: ProbeSpec | None = Field(default=None, description="How to ask it; default: the service's first probe.")


def _require(value: Any) -> Any:
    if value in ("all", "any") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{str(value)[:40]!r} is not all, any or a number from 1: say how many of the probes must be good")


def _pool_path(value: Any) -> PoolRef:
    if isinstance(value, PoolRef):
        return value
    balancer, slash, pool = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not slash or not balancer or not pool or "/" in pool:
        raise ValueError(f"{str(value)[:40]!r} is not BALANCER/POOL, as edge/shop_http")
    return PoolRef(balancer, pool)


class _PoolPath:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_pool_path, serialization=core_schema.to_string_ser_schema())

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[^/]+/[^/]+$"}


class ServiceOptions(Options):
    """One service: where it stands, how its instances are asked, what may be done about them."""

    balancer: str | None = Field(default=None, description="The balancer it stands behind.", examples=["edge"])
    pool: Annotated[str, StringConstraints(pattern=POOL_NAME)] | None = Field(
        default=None, description="Its pool there. Default: the service's name."
    )
    pools: tuple[Annotated[PoolRef, _PoolPath()], ...] = Field(
        default=(), max_length=256, description="Several pools, as [edge/shop, web/shop]; judged once, applied in all."
    )
    instances: Instances | None = Field(default=None, description="Default: the servers that the balancers list.")
    probe: Probes = Field(
        default=(ProbeSpec(tcp=True),),
        description="How to ask, or a list. Default: a TCP connection, which proves little.",
    )
    require: Annotated[Literal["all", "any"] | int, BeforeValidator(_require)] = Field(
        default="all", description="How many of several probes must be good."
    )
    policy: PolicyOptions = Field(default=PolicyOptions(), description="Rules and guards.")
    mode: Mode = Field(default=Mode.ACT, description="observe decides and tells but never writes; the stricter of all modes wins.")
    labels: Labels = Field(default={}, max_length=32, description="Shown everywhere with the service.")
    runbook: Annotated[str, StringConstraints(pattern=r"^https?://\S+$", max_length=500)] | None = Field(
        default=None, description="A link for the one who is paged."
    )
    slow_start: Duration = Field(
        default=0.0, ge=0, le=3600, description="Ramp of a returning instance's weight; 0 = none. Not on balancers that reload."
    )
    references: tuple[Annotated[Reference, Shorthand("address")], ...] = Field(
        default=(), max_length=32, description="Witnesses besides the other instances."
    )


class DefaultsOptions(Options):
    """What every service has that does not say otherwise."""

    probe: Probes | None = Field(default=None, description="How to ask.")
    require: Annotated[Literal["all", "any"] | int, BeforeValidator(_require)] | None = None
    policy: PolicyOptions | None = Field(default=None, description="Laid under each service's policy, key by key.")
    mode: Mode | None = None
    labels: Labels = Field(default={}, max_length=32)
    slow_start: Duration | None = None


class BalancerOptions(Options):
    """One load balancer: its plugin, and the plugin's own keys beside it."""

    plugin: str = Field(description="Which plugin drives it; `lb-sidecar plugin list` shows them.", examples=["haproxy"])
    mode: Mode = Field(default=Mode.ACT, description="observe never writes to this balancer.")
    options: InstanceOf[BaseModel] = Field(description="The plugin's own keys, checked by the plugin.")


class StateOptions(Options):
    """The state folder: intents, flight recorder, what was learned. Here and not with the store, which knows no units."""

    dir: Path | None = Field(
        default=None,
        description="The folder. Default: $STATE_DIRECTORY, then /var/lib/lb-sidecar, then the user's state folder, said once at start.",
        examples=["/var/lib/lb-sidecar"],
    )
    max_size: Size = Field(
        default=512 << 20,
        ge=16 << 20,
        description="Most bytes of flight recorder kept, oldest dropped first; at least 16MiB.",
        examples=["512MiB"],
    )


class LogLevel(StrEnum):
    """Least important line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogOptions(Options):
    """Our own log, on standard error."""

    level: LogLevel = Field(default=LogLevel.INFO, description="debug, info, warning or error.")
    format: Literal["text", "json"] = Field(default="text", description="text for people, json for collectors.")


class Config(Options):
    """A whole, valid configuration."""

    mode: Mode = Field(
        default=Mode.ACT, description="observe: decide and tell, never write. Also per balancer, service, rule; the stricter wins."
    )
    policy_version: Literal[1] = Field(default=1, description="Defaults change only with a new version, which you opt into here.")
    api: ApiOptions = Field(default=ApiOptions(), description="Health endpoint, page, API.")
    state: StateOptions = Field(default=StateOptions(), description="State folder.")
    log: LogOptions = Field(default=LogOptions(), description="Our own log.")
    pace: PaceOptions = Field(default=PaceOptions(), description="How often targets are asked.")
    balancers: dict[Name, BalancerOptions] = Field(default={}, max_length=64, description="The load balancers, by name.")
    services: dict[str, ServiceOptions] = Field(
        default={}, max_length=5000, description="The services, by name; '*' = every pool that no other names."
    )
    publish: PublishOptions = Field(default=PublishOptions(), description="Sinks for numbers and decisions.")
