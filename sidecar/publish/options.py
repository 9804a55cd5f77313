"""Where aggregated numbers and decisions are published, as a configuration says it. A dead or slow sink costs its own data only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema

from lbplugins.values import Address
from sidecar.net.units import Duration


def _address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not an address: write HOST:PORT in quotes, as '127.0.0.1:2003'")
    return Address.parse(value)


SinkAddress = Annotated[
    Address,
    BeforeValidator(_address),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$"}),
]
"""`HOST:PORT`, an IPv6 address in brackets."""


class GraphiteOptions(BaseModel):
    """Percentiles and counts as Graphite plaintext over TCP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: SinkAddress = Field(description="HOST:PORT of a carbon line receiver (TCP).", examples=["127.0.0.1:2003"])
    interval: Duration = Field(
        default=10.0, ge=1.0, le=3600.0, description="How often, 1s..1h; match carbon's finest retention.", examples=["10s"]
    )
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=128)] = Field(
        default="lbsidecar", description="First nodes of every path."
    )


class LogstashOptions(BaseModel):
    """Every decision and event as one JSON line over TCP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: SinkAddress = Field(description="HOST:PORT of a Logstash `tcp` input with `codec => json_lines`.", examples=["127.0.0.1:5000"])
    interval: Duration = Field(
        default=10.0,
        ge=1.0,
        le=3600.0,
        description="How often the aggregated numbers are sent, 1s..1h; events go at once.",
        examples=["10s"],
    )


class PublishOptions(BaseModel):
    """The sinks; none by default. `/metrics` needs no key here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graphite: GraphiteOptions | None = None
    logstash: LogstashOptions | None = None
