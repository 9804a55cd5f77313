"""Sources: what says which instances a service has, and the loop that asks one again and again.

An empty answer is delivered as such; an answer that could not be had is an error. What either means is the core's affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.core.model import Discovered, Instance

DEADLINE_S = 5.0
"""For one asking, all retries of the resolver included."""
HEARTBEAT_S = 60.0
"""An unchanged answer is told again after this long, so that age can be told from silence."""
RETRY_S = 2.0
MAX_INSTANCES = 10_000

Deliver = Callable[[Sequence[Discovered]], None]


class SourceError(Exception):
    """The source could not say. One line, for an operator."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All instances a source knows now, and in how many seconds it is worth asking again."""

    instances: tuple[Instance, ...] = ()
    labels: Mapping[Instance, Mapping[str, str]] = field(default_factory=dict)
    again_s: float = HEARTBEAT_S


class Source(Protocol):
    """One origin of a service's instances. `name` as `dns:shop.example`."""

    @property
    def service(self) -> str: ...

    @property
    def name(self) -> str: ...

    async def read(self) -> Reading:
        """Everything or SourceError, never a part."""


async def run(source: Source, deliver: Deliver, *, deadline_s: float = DEADLINE_S) -> None:
    """Asks the source for ever and delivers what changed, errors included; ends only by cancellation."""
    loop = asyncio.get_running_loop()
    told: Discovered | None = None
    while True:
        fact, again_s = await ask(source, deadline_s=deadline_s)
        if told is None or not _same(told, fact) or fact.at - told.at >= HEARTBEAT_S:
            deliver((fact,))
            told = fact
        await asyncio.sleep(max(0.0, fact.at + again_s - loop.time()))


async def ask(source: Source, *, deadline_s: float = DEADLINE_S) -> tuple[Discovered, float]:
    """One answer as a fact, stamped on arrival, and the seconds until the next asking."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline_s):
            reading = await source.read()
        if len(reading.instances) > MAX_INSTANCES:
            raise SourceError(f"{len(reading.instances)} instances, more than {MAX_INSTANCES}: not believed")
    except TimeoutError:
        return _failed(source, loop.time(), f"no answer within {deadline_s:g} s"), RETRY_S
    except SourceError as error:
        return _failed(source, loop.time(), str(error)), RETRY_S
    return Discovered(source.service, source.name, loop.time(), reading.instances, reading.labels), reading.again_s


def _failed(source: Source, at: float, error: str) -> Discovered:
    return Discovered(source.service, source.name, at, error=" ".join(error.split())[:300])


def _same(one: Discovered, other: Discovered) -> bool:
    return (one.instances, one.labels, one.error) == (other.instances, other.labels, other.error)
