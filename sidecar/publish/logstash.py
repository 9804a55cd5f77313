"""Decisions as they come and aggregated numbers once an interval, as JSON lines in ECS's shape for a Logstash `tcp` input.

Fields that ECS defines are objects as it wants them; all else is under `lbsidecar`. One document, one line, one newline at its end.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import socket
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from lbplugins.values import Address
from sidecar.core.samples import Distribution, Sample, SinkCount
from sidecar.publish.breath import breathing
from sidecar.publish.options import LogstashOptions
from sidecar.publish.sink import Sink
from sidecar.store.decisions import Decisions, Record, stamp

ECS_VERSION = "8.11.0"
LISTEN_AHEAD = 10_000
"""Records that may come between two turns of our loop."""
_WARNINGS = frozenset({"ejected", "pool_event", "held", "balancer", "drift", "self", "refused", "discovery"})
_CHANGES = frozenset({"ejected", "returned", "operator", "adopted", "config"})
_NUMBERS = {
    "lbsidecar_service_instances": "instances",
    "lbsidecar_service_in_rotation": "in_rotation",
    "lbsidecar_service_sound": "sound",
    "lbsidecar_instance_serving_ratio": "serving",
    "lbsidecar_instance_last_probe_age_seconds": "last_probe_age",
}

Json = dict[str, Any]
Documents = dict[tuple[str, str], Json]
"""By (service, address); address "" = the service itself."""


class Logstash:
    """The Logstash publisher. `run` is its task."""

    name = "logstash"

    def __init__(
        self,
        options: LogstashOptions,
        samples: Callable[[], Iterable[Sample]],
        decisions: Decisions,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`samples` is asked once an interval, on the loop of `run`, and taken in pieces. `wall` gives seconds since 1970."""
        self._options = options
        self._samples = samples
        self._decisions = decisions
        self._wall = wall
        self._told = decisions.last_id
        self._host = socket.gethostname()
        self._sink = Sink(self.name, options.address)

    def count(self) -> SinkCount:
        return self._sink.count()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sink.run())
            tasks.create_task(self._tell_decisions())
            tasks.create_task(self._tell_numbers())

    async def _tell_decisions(self) -> None:
        """Every record since we were made; it ends with the decision log."""
        while True:
            subscription = self._decisions.subscribe(LISTEN_AHEAD, after=self._told)
            try:
                async for record in subscription:
                    self._told = record.id
                    self._sink.offer((line(decision(record, self._host)),))
            finally:
                subscription.close()
            if not subscription.too_slow:
                return

    async def _tell_numbers(self) -> None:
        interval = self._options.interval
        while True:
            await asyncio.sleep(interval - self._wall() % interval)
            when = datetime.fromtimestamp(self._wall(), UTC)
            documents: Documents = {}
            async for sample in breathing(self._samples()):
                add_number(documents, sample, self._host, when)
            async for document in breathing(documents.values(), every=8):
                self._sink.offer((line(document),))


def decision(record: Record, host: str) -> Json:
    """One entry of the decision log as an ECS event."""
    document = _document(record.when, host, "event", "lbsidecar.decision", record.service, record.instance)
    document["message"] = record.sentence
    document["log"] = {"level": "warning" if record.kind in _WARNINGS else "info"}
    document["event"] |= {
        "action": record.kind,
        "category": ["network"],
        "type": ["change" if record.kind in _CHANGES else "info"],
        "outcome": "failure" if record.kind == "refused" else "success",
        "id": str(record.id),
    }
    told = record.to_json()
    document.setdefault("lbsidecar", {}).update({name: told[name] for name in ("by", "enforced", "evidence", "holds")})
    return document


def numbers(samples: Iterable[Sample], host: str, when: datetime) -> list[Json]:
    """One document for each service and one for each instance, with its latencies, counts and judgement."""
    documents: Documents = {}
    for sample in samples:
        add_number(documents, sample, host, when)
    return list(documents.values())


def add_number(documents: Documents, sample: Sample, host: str, when: datetime) -> None:
    """Put one sample where it belongs; most belong nowhere."""
    labels = dict(sample.labels)
    key = labels.get("service", ""), labels.get("address", "")
    place = _place(sample, labels)
    if place is None or not key[0]:
        return
    if key not in documents:
        documents[key] = _document(when, host, "metric", "lbsidecar.numbers", *key)
        documents[key]["message"] = f"numbers of {key[0]}" + (f"/{key[1]}" if key[1] else "")
    *way, last = place
    inner = documents[key].setdefault("lbsidecar", {})
    for step in way:
        inner = inner.setdefault(step, {})
    value = sample.value
    if last == "judgement":
        inner[last] = labels["judgement"]
    elif isinstance(value, Distribution):
        inner[last] = value.count
    elif math.isfinite(value):
        inner[last] = value


def line(document: Json) -> bytes:
    """The document on one line; ASCII alone, so that no separator of another alphabet can end it early."""
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _document(when: datetime, host: str, kind: str, dataset: str, service: str, instance: str) -> Json:
    document: Json = {
        "@timestamp": stamp(when),
        "@version": "1",
        "ecs": {"version": ECS_VERSION},
        "event": {"kind": kind, "dataset": dataset},
        "host": {"name": host},
    }
    if service:
        document["service"] = {"name": service}
    if instance:
        document["server"] = _server(Address.parse(instance))
        document["lbsidecar"] = {"instance": instance}
    return document


def _server(address: Address) -> Json:
    """ECS wants the IP beside the address, but only where there is one."""
    try:
        ip = {"ip": str(ipaddress.ip_address(address.host))}
    except ValueError:
        ip = {}
    return {"address": address.host, "port": address.port, **ip}


def _place(sample: Sample, labels: dict[str, str]) -> tuple[str, ...] | None:
    """Where under `lbsidecar` a sample stands; None = not sent."""
    if sample.name.endswith("_latency_quantile_seconds"):
        return "latency", labels["source"], "p" + f"{float(labels['quantile']) * 100:g}".replace(".", "")
    if isinstance(sample.value, Distribution):
        return "latency", labels["source"], "count"
    if sample.name == "lbsidecar_instance_judgement":
        return ("judgement",) if sample.value else None
    if (name := _NUMBERS.get(sample.name)) is not None:
        return (name,)
    return None


__all__ = ["Logstash", "decision", "line", "numbers"]
