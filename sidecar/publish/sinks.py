"""From the configuration to receivers: which encoder feeds which transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sidecar import __version__
from sidecar.core.samples import Sample
from sidecar.net.secret import Secret
from sidecar.publish import bulk, ecs, graphite, otlp, remote_write, webhook
from sidecar.publish.alarm import Alarm, Outlook
from sidecar.publish.datagram import Datagrams
from sidecar.publish.feed import Encoder, Origin, Publisher, Tail, numbers, records, utc
from sidecar.publish.options import (
    PAGERDUTY_URL,
    ElasticsearchOptions,
    GraphiteOptions,
    Http,
    LogstashOptions,
    OtlpOptions,
    PublishOptions,
    RemoteWriteOptions,
    StatsdOptions,
    WebhookOptions,
)
from sidecar.publish.post import Post, Receiver
from sidecar.publish.sink import Sink
from sidecar.publish.statsd import Statsd
from sidecar.publish.stream import Stream
from sidecar.store.decisions import Record

_Told = Callable[[Record], Iterable[bytes]]
_Write = Callable[[ecs.Json], bytes]

NUMBERS_WAITING = 200_000
"""Items of a sink that gets every number each time; the bound in bytes holds too."""
WEBHOOK_PAUSE_S = 1.0
"""Slack takes one message a second."""
ANNOTATED = frozenset({"ejected", "returned", "operator", "held", "pool_event", "panic_over", "adopted", "config"})
"""Kinds of decisions that are worth a mark in a graph."""


def publishers(options: PublishOptions, origin: Origin) -> list[Publisher]:
    """The receivers that the configuration names."""
    found: list[Publisher] = []
    if options.graphite is not None:
        found += _graphite(options.graphite, origin)
    if options.logstash is not None:
        found.append(_logstash(options.logstash, origin))
    if options.elasticsearch is not None:
        found.append(_elasticsearch(options.elasticsearch, origin))
    if options.otlp is not None:
        found.append(_otlp(options.otlp, origin))
    if options.remote_write is not None:
        found.append(_remote_write(options.remote_write, origin))
    if options.statsd is not None:
        found.append(_statsd(options.statsd, origin))
    outlook = Outlook(origin)
    return found + [_webhook(name, wanted, origin, outlook) for name, wanted in options.webhooks.items()]


def _graphite(options: GraphiteOptions, origin: Origin) -> list[Publisher]:
    sink = Stream("graphite", options.address, max_waiting=NUMBERS_WAITING)

    def encode(samples: Iterable[Sample], when: float) -> Iterable[bytes]:
        if options.format == "pickle":
            return graphite.frames(samples, options.prefix, when, has_tags=options.tags)
        return (graphite.tagged if options.tags else graphite.lines)(samples, options.prefix, when)

    found = [_of_numbers(sink, origin, options.interval, encode)]
    if options.events is not None:
        receiver = Receiver(options.events, _first, "application/json", batch=1)
        found.append(_of_records(Post("graphite-events", receiver), origin, _annotation))
    return found


def _logstash(options: LogstashOptions, origin: Origin) -> Publisher:
    if options.url is not None:
        sink: Sink = Post("logstash", replace(_receiver(options, options.url, "application/json"), body=_array))
    elif options.transport == "udp":
        assert options.address is not None, "options see to it"
        sink = Datagrams("logstash", options.address)
    else:
        assert options.address is not None, "options see to it"
        sink = Stream("logstash", options.address, options.tls)
    return _of_documents(sink, origin, options.interval, ecs.line)


def _elasticsearch(options: ElasticsearchOptions, origin: Origin) -> Publisher:
    receiver = _receiver(options, options.url.rstrip("/") + "/_bulk", "application/x-ndjson")
    sink = Post("elasticsearch", replace(receiver, judge=bulk.judge, batch=bulk.BATCH))
    return _of_documents(sink, origin, options.interval, partial(bulk.item, index=options.index))


def _otlp(options: OtlpOptions, origin: Origin) -> Publisher:
    as_json = options.encoding == "json"
    resource = (
        ("service.name", "lb-sidecar"),
        ("service.version", __version__),
        ("service.instance.id", origin.host),
        ("host.name", origin.host),
    )
    write, judge = (otlp.json_body, otlp.judge_json) if as_json else (otlp.protobuf_body, otlp.judge_protobuf)
    receiver = _receiver(options, options.url, "application/json" if as_json else "application/x-protobuf")
    receiver = replace(receiver, body=lambda batch, _: write(batch, resource), judge=judge)
    sink = Post("otlp", receiver, max_waiting=NUMBERS_WAITING)

    def encode(samples: Iterable[Sample], when: float) -> Iterable[bytes]:
        return otlp.items(samples, when, origin.started, origin.histograms(), as_json=as_json)

    return _of_numbers(sink, origin, options.interval, encode)


def _remote_write(options: RemoteWriteOptions, origin: Origin) -> Publisher:
    receiver = _receiver(options, options.url, "application/x-protobuf", remote_write.HEADERS)
    sink = Post("remote_write", replace(receiver, body=lambda batch, _: remote_write.body(batch)), max_waiting=NUMBERS_WAITING)
    more = tuple({"job": "lb-sidecar", "instance": origin.host, **options.labels}.items())

    def encode(samples: Iterable[Sample], when: float) -> Iterable[bytes]:
        return remote_write.series(samples, when, origin.histograms(), more, has_native=options.native_histograms)

    return _of_numbers(sink, origin, options.interval, encode)


def _statsd(options: StatsdOptions, origin: Origin) -> Publisher:
    sink = Datagrams("statsd", options.address)
    return _of_numbers(sink, origin, options.interval, Statsd(options.prefix, has_tags=options.tags).datagrams)


def _webhook(name: str, options: WebhookOptions, origin: Origin, outlook: Outlook) -> Publisher:
    receiver = Receiver(
        options.url or PAGERDUTY_URL,
        _with_key if options.key is not None else _first,
        "application/json",
        secret=options.key,
        tls=options.tls,
        batch=1,
        pause_s=WEBHOOK_PAUSE_S,
    )
    sink = Post(f"webhooks.{name}", receiver)
    return Publisher(sink, [Alarm(sink, options, origin, outlook).run])


def _of_numbers(sink: Sink, origin: Origin, interval_s: float, encode: Encoder) -> Publisher:
    return Publisher(sink, [partial(numbers, sink, origin, interval_s, encode)])


def _of_records(sink: Sink, origin: Origin, encode: _Told) -> Publisher:
    return Publisher(sink, [partial(records, sink, Tail(origin.decisions), encode)])


def _of_documents(sink: Sink, origin: Origin, interval_s: float, write: _Write) -> Publisher:
    """ECS documents: decisions at once, numbers once an interval."""

    def encode(samples: Iterable[Sample], when: float) -> Iterator[bytes]:
        for document in ecs.numbers(samples, origin.host, utc(when)):
            yield b"" if document is None else write(document)

    tell = partial(records, sink, Tail(origin.decisions), lambda record: (write(ecs.decision(record, origin.host)),))
    return Publisher(sink, [tell, partial(numbers, sink, origin, interval_s, encode)])


def _receiver(options: Http, url: str, content_type: str, headers: Mapping[str, str] | None = None) -> Receiver:
    every: dict[str, str | Secret] = dict(headers or {})
    if options.authorization is not None:
        every["Authorization"] = options.authorization
    return Receiver(url, _joined, content_type, every, tls=options.tls)


def _annotation(record: Record) -> tuple[bytes, ...]:
    return (webhook.graphite_event(record),) if record.kind in ANNOTATED else ()


def _joined(batch: Sequence[bytes], secret: str) -> bytes:
    return b"".join(batch)


def _array(batch: Sequence[bytes], secret: str) -> bytes:
    return b"[" + b",".join(batch) + b"]"


def _first(batch: Sequence[bytes], secret: str) -> bytes:
    return batch[0]


def _with_key(batch: Sequence[bytes], secret: str) -> bytes:
    return webhook.keyed(batch[0], secret)
