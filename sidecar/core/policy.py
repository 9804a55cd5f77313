"""The numbers of the policy, with design's defaults. `config` composes these; `core` only reads them.

Durations in seconds, shares 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from lbplugins.values import Address


class Mode(StrEnum):
    """`observe` decides and tells but never writes."""

    OBSERVE = "observe"
    ACT = "act"


class RuleMode(StrEnum):
    """What a rule may do: act, only say what it would have done, or not be asked."""

    ACT = "act"
    OBSERVE = "observe"
    OFF = "off"


class ProbePlan(NamedTuple):
    """What the core must know of a probe spec. `key` names it everywhere; `port` replaces the instance's when set."""

    key: str
    interval_s: float | None = None
    timeout_s: float | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how patiently targets are asked."""

    first_interval_s: float = 0.25
    learn_good: int = 30
    baseline_factor: float = 100.0
    min_interval_s: float = 0.1
    max_interval_s: float = 1.0
    pending_gap_s: float = 0.02
    jitter: float = 0.1
    ejected_s: float = 1.0
    ejected_long_s: float = 5.0
    ejected_long_after_s: float = 120.0
    first_timeout_s: float = 1.0
    timeout_factor: float = 4.0
    min_timeout_s: float = 0.06
    max_timeout_s: float = 1.0
    witnesses_asked: int = 3


@dataclass(frozen=True, slots=True)
class Rules:
    """When evidence is enough. `fall_fast` is for refused and reset, at least `fast_spread_s` apart. `off`: rules that are not asked."""

    fall: int = 4
    fall_fast: int = 2
    fast_spread_s: float = 0.15
    rise: int = 2
    window: int = 20
    window_s: float = 60.0
    window_bad: float = 0.5
    undo_s: float = 2.0
    hold_down_s: float = 5.0
    hold_down_max_s: float = 300.0
    hold_down_soft_s: float = 15.0
    repeat_within_s: float = 600.0
    flap_burst: int = 8
    flap_burst_s: float = 30.0
    flap_per_min: float = 2.0
    hands_off_s: float = 900.0
    off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Guards:
    """The most we may do. Shares are of n = instances not in an operator's drain or maintenance, rounded down."""

    max_ejected_hard: float = 0.5
    max_ejected_soft: float = 0.34
    min_healthy: int = 1
    panic_below: float = 0.5
    hard_refill_s: float = 2.0
    soft_refill_s: float = 10.0
    cold_answers: int = 3
    cold_s: float = 10.0
    shrink: float = 0.5
    stale_discovery_s: float = 300.0
    picture_max_age_s: float = 5.0
    blind_lag_s: float = 0.5


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """One service. `require`: how many of `probes` must be good; None = all. `pools`: (balancer, pool) pairs.

    `rule_modes`: where said; those that are off are in `rules.off`.
    """

    name: str
    mode: Mode = Mode.ACT
    probes: tuple[ProbePlan, ...] = ()
    require: int | None = None
    pools: tuple[tuple[str, str], ...] = ()
    rules: Rules = Rules()
    guards: Guards = Guards()
    references: tuple[tuple[Address, str], ...] = ()
    rule_modes: Mapping[str, RuleMode] = field(default_factory=dict)
    slow_start_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    runbook: str = ""
    from_balancer: bool = True


@dataclass(frozen=True, slots=True)
class BalancerPolicy:
    """One balancer as the core needs to know it; the traits are the plugin's."""

    name: str
    mode: Mode = Mode.ACT
    plugin: str = ""
    kill: bool = False
    drain: bool = False
    costly: bool = False
    observe_every_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything `decide` is given besides the world. `version` is the policy version the configuration opted into."""

    services: Mapping[str, ServicePolicy] = field(default_factory=dict)
    balancers: Mapping[str, BalancerPolicy] = field(default_factory=dict)
    pace: Pace = Pace()
    version: int = 1
    config_hash: str = ""
