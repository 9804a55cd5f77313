"""Decisions and aggregated numbers as JSON documents in the Elastic Common Schema's shape.

Fields that ECS defines are objects as it wants them; all else is under `lbsidecar`. One document, one line, one newline at its end.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from lbplugins.values import Address
from sidecar.core.samples import Distribution, Quantiles, Sample
from sidecar.publish.graphite import quantile
from sidecar.publish.notices import Notice, Severity
from sidecar.store.decisions import Record, stamp

ECS_VERSION = "8.11.0"
_WARNINGS = frozenset({"ejected", "pool_event", "held", "balancer", "drift", "self", "refused", "discovery"})
_CHANGES = frozenset({"ejected", "returned", "operator", "adopted", "config"})
_LEVELS = {Severity.NOTE: "info", Severity.WARNING: "warning", Severity.PAGE: "critical"}
_NUMBERS = {
    "lbsidecar_service_instances": "instances",
    "lbsidecar_service_in_rotation": "in_rotation",
    "lbsidecar_service_sound": "sound",
    "lbsidecar_instance_serving_ratio": "serving",
    "lbsidecar_instance_last_probe_age_seconds": "last_probe_age",
}

Json = dict[str, Any]
WEIGHT = 7
"""How many samples' work a document is to write."""


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


def alert(notice: Notice, host: str, when: datetime) -> Json:
    """A notice as an ECS alert."""
    told = notice.condition
    instance = told.who if told.service else ""
    document = _document(when, host, "alert", "lbsidecar.notice", told.service, instance)
    document["message"] = notice.sentence
    document["log"] = {"level": _LEVELS[notice.severity]}
    document["event"] |= {
        "id": told.key,
        "action": told.cause.name,
        "category": ["network"],
        "type": ["end" if notice.is_over else "start"],
        "start": stamp(datetime.fromtimestamp(notice.since, UTC)),
        **({"reference": notice.runbook} if notice.runbook else {}),
    }
    found = document.setdefault("lbsidecar", {})
    found |= {"severity": notice.severity.word, "over": notice.is_over, "undo": notice.undo}
    if told.who and not told.service:
        found["balancer"] = told.who
    return document


def numbers(samples: Iterable[Sample], host: str, when: datetime) -> Iterator[Json | None]:
    """One document for each service and one for each instance; between them Nones, so that all of it may be taken in pieces."""
    documents: dict[tuple[str, str], Json] = {}
    for sample in samples:
        _add_number(documents, sample, host, when)
        yield None
    for document in documents.values():
        yield document
        yield from (None,) * WEIGHT


def _add_number(documents: dict[tuple[str, str], Json], sample: Sample, host: str, when: datetime) -> None:
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
    elif isinstance(value, Quantiles):
        inner[last] = {"count": value.count, **{quantile(share): seconds for share, seconds in value.values}}
    elif not isinstance(value, Distribution) and math.isfinite(value):
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
    if isinstance(sample.value, Quantiles):
        return "latency", labels["source"]
    if sample.name == "lbsidecar_instance_judgement":
        return ("judgement",) if sample.value else None
    if (name := _NUMBERS.get(sample.name)) is not None:
        return (name,)
    return None


__all__ = ["Json", "alert", "decision", "line", "numbers"]
