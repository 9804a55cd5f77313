"""What a receiver is fed with: everything that is counted and measured once an interval, and every entry of the decision log at once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sidecar.core.samples import Sample, SinkCount
from sidecar.publish.breath import breathing
from sidecar.publish.exponential import Exact
from sidecar.publish.sink import Sink
from sidecar.store.decisions import Decisions, Record

LISTEN_AHEAD = 10_000
"""Records that may come between two turns of our loop."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where published things come from; every function is called on the loop that publishes.

    `samples`: best `core.samples.each_sample`, taken in pieces. `histograms`: behind the samples' distributions. `wall`: seconds since
    1970. `started`: the same, of this life. `labels` and `runbooks`: by service, as configured.
    """

    samples: Callable[[], Iterable[Sample]]
    decisions: Decisions
    histograms: Callable[[], Exact] = dict
    labels: Callable[[], Mapping[str, Mapping[str, str]]] = dict
    runbooks: Callable[[], Mapping[str, str]] = dict
    wall: Callable[[], float] = time.time
    host: str = field(default_factory=socket.gethostname)
    started: float = field(default_factory=time.time)


Feed = Callable[[], Coroutine[object, object, None]]
Encoder = Callable[[Iterable[Sample], float], Iterable[bytes]]
"""From all samples and the seconds since 1970 to what a sink takes, one by one."""


class Publisher:
    """One configured receiver: its sink, and what feeds it. `run` is its task."""

    def __init__(self, sink: Sink, feeds: Sequence[Feed]) -> None:
        self.name = sink.name
        self._sink = sink
        self._feeds = feeds

    def count(self) -> SinkCount:
        """For `core.samples.Own.sinks`."""
        return self._sink.count()

    async def run(self) -> None:
        """Until cancelled; then what waits is sent for 1 s at most."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sink.run())
            for feed in self._feeds:
                tasks.create_task(feed())


async def numbers(sink: Sink, origin: Origin, interval_s: float, encode: Encoder) -> None:
    """Feed everything once an interval, at round times of the wall clock: two points in one slot of carbon's would be one."""
    async for when in moments(origin, interval_s):
        async for item in breathing(encode(origin.samples(), when)):
            if item:
                sink.offer((item,))


async def moments(origin: Origin, interval_s: float) -> AsyncIterator[float]:
    """The round times of the wall clock as they come."""
    while True:
        await asyncio.sleep(interval_s - origin.wall() % interval_s)
        yield origin.wall()


async def records(sink: Sink, tail: Tail, encode: Callable[[Record], Iterable[bytes]]) -> None:
    """Feed every record of the tail at once."""
    async for record in tail.records():
        sink.offer(encode(record))


class Tail:
    """The decision log from the moment of its making on. Owns how far it has been read, so reading may begin anew after a failure."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._last = decisions.last_id

    async def records(self) -> AsyncIterator[Record]:
        """As they come; what a busy loop missed comes later, as far as it is still in memory. Ends with the decision log."""
        while True:
            subscription = self._decisions.subscribe(LISTEN_AHEAD, after=self._last)
            try:
                async for record in subscription:
                    self._last = record.id
                    yield record
            finally:
                subscription.close()
            if not subscription.too_slow:
                return


def utc(when: float) -> datetime:
    return datetime.fromtimestamp(when, UTC)


__all__ = ["Encoder", "Feed", "Origin", "Publisher", "Tail", "moments", "numbers", "records", "utc"]
