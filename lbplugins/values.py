"""The values that cross between lb-sidecar and a balancer plugin. Standard library only.

All are frozen; every field after the first has a default, so that a small plugin stays small.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Serve(StrEnum):
    """What one axis lets a server get: all traffic, none that is new, or nothing."""

    FULL = "full"
    DRAIN = "drain"
    NONE = "none"


class Operator(StrEnum):
    """What the operator (a person, a deploy script) has said about a server on the operator's axis."""

    READY = "ready"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"


class Axis(StrEnum):
    """Where a change is written: on our own axis, or on the operator's for our drain/maint commands."""

    OURS = "ours"
    OPERATOR = "operator"


class InFlight(StrEnum):
    """What becomes of requests under way when a server is taken out. KILL is best effort."""

    KEEP = "keep"
    KILL = "kill"


FULL, DRAIN, NONE = Serve.FULL, Serve.DRAIN, Serve.NONE
READY, DRAINING, MAINTENANCE = Operator.READY, Operator.DRAINING, Operator.MAINTENANCE
OURS, OPERATOR = Axis.OURS, Axis.OPERATOR
KEEP, KILL = InFlight.KEEP, InFlight.KILL


class Address(NamedTuple):
    """Where a server listens: an IP address (or a name the balancer was given) and a TCP port 1..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`10.0.0.5:8080`, `[::1]:80` or `name:80`; ValueError says what is wrong with the text."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to 65535")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif not host or ":" in host or any(c.isspace() or c in "/[]" for c in host):
            raise ValueError(f"{text!r} is not HOST:PORT; an IPv6 address goes in brackets, as [::1]:80")
        return cls(host, int(port))


class Ref(NamedTuple):
    """One server in one pool, by the balancer's own names."""

    pool: str
    server: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.server}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What an axis gives a server. `weight_pct`: 1..100, percent of the operator's current weight."""

    serve: Serve = FULL
    weight_pct: int = 100


@dataclass(frozen=True, slots=True)
class Counters:
    """Running totals of one server since the balancer (re)started; None = this balancer does not count it."""

    requests: int | None = None
    connect_errors: int | None = None
    response_errors: int | None = None
    retries: int | None = None
    status_5xx: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One server as the balancer has it now."""

    ours: Setting = Setting()
    """Our own axis; `FULL` at 100 only when nothing of ours is left to undo."""
    operator: Operator = READY
    """The operator's axis, whoever wrote it."""
    serving: bool | None = None
    """The balancer's truth, its own checks included: may new requests reach it? None = it cannot tell."""
    address: Address | None = None
    weight: int = 1
    """The operator's current weight in the balancer's units: never the one we cut it to."""
    grain_pct: int = 1
    """The smallest step of `weight_pct` this server can express; 100 = no weights."""
    in_flight: int | None = None
    """Requests under way, when the balancer knows."""
    counters: Counters | None = None
    writable: str | None = None
    """None, or why a change on our axis would be refused now."""
    settle_s: float = 0.0
    """Seconds from a successful apply until the effect must be seen."""
    note: str = ""
    """What the plugin needs in order to undo an act of ours after our restart; the core journals it with the intent."""
    generation: str = ""
    """Changes whenever the balancer restarted or reloaded."""
    remark: str = ""
    """Anything a person should read beside this server; one line."""


@dataclass(frozen=True, slots=True)
class Change:
    """Make one server so: absolute and idempotent.

    `expect` makes it compare-and-set, on `ours, operator, address, weight, generation` only: when the balancer no
    longer shows these, refuse. On OURS only FULL and NONE are asked; on OPERATOR, FULL = ready, DRAIN, NONE = maintenance.
    """

    ref: Ref
    want: Setting = Setting()
    expect: Seen = Seen()
    on: Axis = OURS
    in_flight: InFlight = KEEP
    note: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The balancer said no to one change. A value, not an exception: the others go on."""

    change: Change
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """One real request as the balancer saw it.

    `where`: the server, by Ref or by Address. `status`: the HTTP status, 0 = none. `seconds`: time of the server's answer, None = it
    gave none. `cut_by`: '' or who ended it early ('server', 'client', 'balancer'). `at`: monotonic seconds of receipt. `forgeable`: it came
    a way that others than the balancer can send by, such as UDP: then it ejects nobody unless a probe or the counters agree.
    """

    where: Ref | Address
    status: int = 0
    seconds: float | None = None
    retries: int = 0
    cut_by: str = ""
    at: float = 0.0
    forgeable: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What a plugin's balancer can do.

    `drain`: it knows DRAIN. `kill`: it can cut requests under way. `costly`: each apply is dear (a reload), so changes are batched.
    `membership`: a server is out by being absent from the pool. `observe_every_s`: how often observing is worth while, seconds.
    """

    drain: bool = False
    kill: bool = False
    costly: bool = False
    membership: bool = False
    observe_every_s: float = 1.0


def differences(seen: Seen, expect: Seen) -> list[str]:
    """Which compare-and-set fields moved, as `name: expected -> seen`; empty = the change may go on.

    >>> differences(Seen(weight=5), Seen(weight=3))
    ['weight: 3 -> 5']
    """
    names = ("ours", "operator", "address", "weight", "generation")
    return [f"{name}: {getattr(expect, name)} -> {getattr(seen, name)}" for name in names if getattr(seen, name) != getattr(expect, name)]


Pools = Mapping[str, Mapping[Ref, Address]]
"""What discovery knows: pool -> server -> address."""

__all__ = [
    "DRAIN", "DRAINING", "FULL", "KEEP", "KILL", "MAINTENANCE", "NONE", "OPERATOR", "OURS", "READY",
    "Address", "Axis", "Change", "Counters", "InFlight", "Operator", "Pools", "Ref", "Refusal", "Seen", "Serve",
    "Setting", "TrafficSample", "Traits", "differences",
]  # fmt: skip
