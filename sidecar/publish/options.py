"""Where aggregated numbers and decisions are published, as a configuration says it. A dead or slow sink costs its own data only."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from lbplugins.values import Address
from sidecar.net.secret import Secret
from sidecar.net.tls import TlsOptions
from sidecar.net.units import Duration
from sidecar.publish.webhook import Shape

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"


def _address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not an address: write HOST:PORT in quotes, as '127.0.0.1:2003'")
    return Address.parse(value)


def _url(value: Any) -> str:
    """An address of http or https without a user in it; ValueError says what is wrong, without repeating what may be a secret."""
    if not isinstance(value, str) or len(value) > 2000 or any(not c.isprintable() or c.isspace() for c in value):
        raise ValueError("is not an address: write http://HOST:PORT/PATH or https://…")
    try:
        parts = urlsplit(value)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ValueError("is not an address: write http://HOST:PORT/PATH or https://…")
    if "@" in parts.netloc:
        raise ValueError("a user and password must not stand in the address: write authorization: env:NAME or file:/path")
    return value


def _url_or_secret(value: Any) -> str | Secret:
    if isinstance(value, Secret) or (isinstance(value, str) and value.startswith(("env:", "file:"))):
        return value if isinstance(value, Secret) else Secret(value)
    return _url(value)


def _is_clear(url: str) -> bool:
    """Would a secret travel over it so that others can read it?"""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and not ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.scheme == "http" and parts.hostname != "localhost"


SinkAddress = Annotated[
    Address,
    BeforeValidator(_address),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$"}),
]
"""`HOST:PORT`, an IPv6 address in brackets."""
Url = Annotated[str, PlainValidator(_url), WithJsonSchema({"type": "string", "pattern": r"^https?://[^\s@]+$"})]
UrlOrSecret = Annotated[
    str | Secret,
    PlainValidator(_url_or_secret),
    PlainSerializer(lambda value: value.reference if isinstance(value, Secret) else value, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(https?://[^\s@]+|env:\S+|file:/\S+)$"}),
]
Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=128)]
WebhookName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
LabelValue = Annotated[str, StringConstraints(max_length=256)]


class Options(BaseModel):
    """What all sinks have in common: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Options):
    """A sink of numbers."""

    interval: Duration = Field(default=10.0, ge=1.0, le=3600.0, description="How often numbers are sent, 1s..1h.", examples=["10s"])


class Http(Options):
    """A sink that is posted to."""

    authorization: Secret | None = Field(
        default=None, description="Where the value of the Authorization header is, as `ApiKey …` or `Bearer …`.", examples=["env:ES_KEY"]
    )
    tls: TlsOptions | None = Field(default=None, description="How to trust the other side, and how to prove who we are.")

    @model_validator(mode="after")
    def _check_clear(self) -> Http:
        url = getattr(self, "url", None)
        if self.authorization is not None and isinstance(url, str) and _is_clear(url):
            raise ValueError("authorization would travel in the clear: use an address of https")
        return self


class GraphiteOptions(Interval):
    """Percentiles and counts for carbon, over TCP."""

    address: SinkAddress = Field(description="HOST:PORT of a carbon line receiver, or pickle receiver (TCP).", examples=["127.0.0.1:2003"])
    prefix: Prefix = Field(default="lbsidecar", description="First nodes of every path.")
    format: Literal["plaintext", "pickle"] = Field(default="plaintext", description="pickle costs carbon less; its port is usually 2004.")
    tags: bool = Field(default=False, description="Names with tags instead of paths; carbon 1.1 and graphite-web's tag database.")
    events: Url | None = Field(
        default=None, description="graphite-web's events address: decisions as annotations.", examples=["http://127.0.0.1:8080/events/"]
    )


class StatsdOptions(Interval):
    """Gauges and counters as StatsD datagrams."""

    address: SinkAddress = Field(description="HOST:PORT of a StatsD server (UDP).", examples=["127.0.0.1:8125"])
    prefix: Prefix = Field(default="lbsidecar", description="First nodes of every name.")
    tags: bool = Field(default=False, description="DogStatsD's tags instead of paths.")


class LogstashOptions(Interval, Http):
    """Every decision at once, and numbers, as ECS documents: JSON lines over TCP, TLS or UDP, or arrays over HTTP."""

    address: SinkAddress | None = Field(
        default=None, description="HOST:PORT of a `tcp` input with `codec => json_lines`, or of a `udp` input.", examples=["127.0.0.1:5000"]
    )
    transport: Literal["tcp", "udp"] = Field(default="tcp", description="How `address` is reached; TCP with TLS where `tls` is given.")
    url: Url | None = Field(default=None, description="Instead: address of an `http` input, which confirms.", examples=["http://logs:8080"])

    @model_validator(mode="after")
    def _check_one_way(self) -> LogstashOptions:
        if (self.address is None) == (self.url is None):
            raise ValueError("give either address (tcp, udp) or url (http input)")
        if self.url is None and self.authorization is not None:
            raise ValueError("authorization is for url, the http input")
        if self.transport == "udp" and (self.tls is not None or self.url is not None):
            raise ValueError("transport: udp goes with address alone, and has no tls")
        return self


class ElasticsearchOptions(Interval, Http):
    """The same documents by `_bulk`, for Elasticsearch and OpenSearch."""

    url: Url = Field(description="Address of the cluster; `/_bulk` is added.", examples=["https://es.example:9200"])
    index: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=200)] = Field(
        default="logs-lbsidecar-default", description="Data stream or index."
    )


class OtlpOptions(Interval, Http):
    """Numbers for an OpenTelemetry collector, response times as exponential histograms."""

    url: Url = Field(description="Address for metrics, whole.", examples=["http://127.0.0.1:4318/v1/metrics"])
    encoding: Literal["protobuf", "json"] = Field(default="protobuf", description="Some receivers do not read json.")


class RemoteWriteOptions(Interval, Http):
    """Numbers for Prometheus remote write 1.0."""

    url: Url = Field(description="Address, whole.", examples=["https://mimir.example/api/v1/push"])
    labels: dict[LabelName, LabelValue] = Field(
        default={}, max_length=32, description="For every series; `job` is lb-sidecar and `instance` this host unless said here."
    )
    native_histograms: bool = Field(default=False, description="Send native histograms beside classic ones; the receiver must know them.")


class WebhookOptions(Options):
    """Notices for people: what came, held and is over, one message for each service."""

    shape: Shape = Field(description="slack, teams, pagerduty, or ecs: one JSON document a notice.")
    url: UrlOrSecret | None = Field(
        default=None,
        description="Address, or where it is; Slack's and Teams' are secrets; PagerDuty has one.",
        examples=["env:SLACK"],
    )
    key: Secret | None = Field(default=None, description="PagerDuty's routing key.", examples=["file:/etc/lb-sidecar/pagerduty.key"])
    at_least: Literal["note", "warning", "page"] = Field(
        default="note", description="note: an ejection that worked. warning: it may get worse. page: somebody must look now."
    )
    services: frozenset[Annotated[str, StringConstraints(min_length=1, max_length=64)]] | None = Field(
        default=None, description="Only these services, and what concerns the sidecar itself; default: all."
    )
    labels: dict[LabelName, LabelValue] = Field(default={}, max_length=32, description="Only services with these labels.")
    tls: TlsOptions | None = Field(default=None, description="How to trust the other side.")

    @model_validator(mode="after")
    def _check_shape(self) -> WebhookOptions:
        if (self.shape is Shape.PAGERDUTY) != (self.key is not None):
            raise ValueError("key is PagerDuty's routing key: shape pagerduty needs it, the others have none")
        if self.url is None and self.shape is not Shape.PAGERDUTY:
            raise ValueError(f"shape {self.shape} needs url: an address, or env:NAME or file:/path where it is kept")
        if self.key is not None and isinstance(self.url, str) and _is_clear(self.url):
            raise ValueError("key would travel in the clear: use an address of https")
        return self


class PublishOptions(Options):
    """The sinks; none by default. `/metrics` needs no key here."""

    graphite: GraphiteOptions | None = Field(default=None, description="Numbers for carbon over TCP, as lines or pickle; nobody confirms.")
    logstash: LogstashOptions | None = Field(
        default=None, description="Decisions at once and numbers as ECS documents; confirmed by url (HTTP), not by address (TCP, UDP)."
    )
    elasticsearch: ElasticsearchOptions | None = Field(
        default=None, description="The same documents by _bulk, for Elasticsearch and OpenSearch; each is confirmed."
    )
    otlp: OtlpOptions | None = Field(
        default=None, description="Numbers for an OpenTelemetry collector over HTTP, response times as exponential histograms; confirmed."
    )
    remote_write: RemoteWriteOptions | None = Field(
        default=None, description="Numbers for a Prometheus that does not scrape, by remote write 1.0; confirmed."
    )
    statsd: StatsdOptions | None = Field(default=None, description="Gauges and counters as StatsD datagrams over UDP; nobody confirms.")
    webhooks: dict[WebhookName, WebhookOptions] = Field(default={}, max_length=32, description="Receivers of notices by name.")

    def secrets(self) -> Iterator[tuple[str, Secret]]:
        """Every secret with its place under `publish`."""
        for name in ("logstash", "elasticsearch", "otlp", "remote_write"):
            sink = getattr(self, name)
            if sink is not None and sink.authorization is not None:
                yield f"{name}.authorization", sink.authorization
        for name, webhook in self.webhooks.items():
            for key, value in (("url", webhook.url), ("key", webhook.key)):
                if isinstance(value, Secret):
                    yield f"webhooks.{name}.{key}", value
