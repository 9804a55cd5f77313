"""Publishing: the same samples and decisions to whoever wants them. A dead or slow receiver costs its own lines only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from sidecar.core.samples import Sample
from sidecar.publish import ecs, graphite
from sidecar.publish.feed import Origin, Publisher, Tail, numbers, records, utc
from sidecar.publish.options import PublishOptions
from sidecar.publish.stream import Stream
from sidecar.store.decisions import Decisions


def publishers(options: PublishOptions, samples: Callable[[], Iterable[Sample]], decisions: Decisions) -> list[Publisher]:
    """The receivers that the configuration names. `samples` is asked on the loop that runs them: best `core.samples.each_sample`."""
    origin = Origin(samples, decisions)
    found: list[Publisher] = []
    if (wanted := options.graphite) is not None:
        sink = Stream("graphite", wanted.address)
        prefix = wanted.prefix
        found.append(
            Publisher(sink, [partial(numbers, sink, origin, wanted.interval, lambda found, when: graphite.lines(found, prefix, when))])
        )
    if (logstash := options.logstash) is not None:
        sink = Stream("logstash", logstash.address)
        tail = Tail(decisions)

        def documents(found: Iterable[Sample], when: float) -> Iterable[bytes]:
            return (b"" if each is None else ecs.line(each) for each in ecs.numbers(found, origin.host, utc(when)))

        found.append(
            Publisher(
                sink,
                [
                    partial(records, sink, tail, lambda record: (ecs.line(ecs.decision(record, origin.host)),)),
                    partial(numbers, sink, origin, logstash.interval, documents),
                ],
            )
        )
    return found


__all__ = ["Publisher", "publishers"]
