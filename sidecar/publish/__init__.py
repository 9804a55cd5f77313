"""Publishing: the same samples and decisions to whoever wants them. A dead or slow receiver costs its own lines only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from sidecar.core.samples import Sample, SinkCount
from sidecar.publish.graphite import Graphite
from sidecar.publish.logstash import Logstash
from sidecar.publish.options import PublishOptions
from sidecar.store.decisions import Decisions


class Publisher(Protocol):
    """One configured receiver."""

    @property
    def name(self) -> str: ...

    def count(self) -> SinkCount:
        """For `core.samples.Own.sinks`."""

    async def run(self) -> None:
        """Its task, until cancelled; then it sends what waits for 1 s at most."""


def publishers(options: PublishOptions, samples: Callable[[], Iterable[Sample]], decisions: Decisions) -> list[Publisher]:
    """The receivers that the configuration names. `samples` is asked on the loop that runs them: best `core.samples.each_sample`."""
    found: list[Publisher] = []
    if options.graphite is not None:
        found.append(Graphite(options.graphite, samples))
    if options.logstash is not None:
        found.append(Logstash(options.logstash, samples, decisions))
    return found


__all__ = ["Publisher", "publishers"]
