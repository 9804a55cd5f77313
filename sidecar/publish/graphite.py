"""Samples as Graphite takes them: `lbsidecar.SERVICE.(INSTANCE|all).latency.SOURCE.p50 0.0123 1767225600`, in seconds; or with tags;
as plaintext lines or pickle frames.

Every node of a path consists of letters, digits, `_` and `-`; all else becomes `_`, so nothing from outside can add a node or a line.
What cannot be a number there (NaN, infinity) is left out.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sidecar.core.samples import Distribution, Quantiles, Sample

MAX_NODE = 128
MAX_TAG = 128
POINTS = 500
"""Of one pickle frame; carbon refuses frames of more than 1 MiB."""
_NOT_IN_TAGS = re.compile(r"[^!-:<-}]")
"""Tags are printable ASCII without `;`, and without the `~` that may not begin one."""
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]")
_OWN = "_sidecar"
"""Node of our own numbers, where a service's name stands otherwise; no service's name begins with `_`."""
_BALANCER = "_balancer"

_SERVICE_GAUGES = {
    "lbsidecar_service_instances": "instances",
    "lbsidecar_service_counted": "counted",
    "lbsidecar_service_in_rotation": "in_rotation",
    "lbsidecar_service_sound": "sound",
    "lbsidecar_service_failing_open": "failing_open",
    "lbsidecar_service_frozen": "frozen",
}
_INSTANCE_GAUGES = {
    "lbsidecar_instance_operator": "operator",
    "lbsidecar_instance_serving_ratio": "serving",
    "lbsidecar_instance_last_probe_age_seconds": "last_probe_age",
}
_BALANCER_GAUGES = {
    "lbsidecar_balancer_up": "up",
    "lbsidecar_balancer_picture_age_seconds": "picture_age",
    "lbsidecar_balancer_drift_age_seconds": "drift_age",
}
_OWN_GAUGES = {
    "lbsidecar_uptime_seconds": "uptime",
    "lbsidecar_loop_lag_seconds": "loop_lag",
    "lbsidecar_resident_memory_bytes": "resident_memory",
    "lbsidecar_blind": "blind",
    "lbsidecar_journal_up": "journal_up",
}
_COUNTED = {"lbsidecar_ejections_total": "ejections", "lbsidecar_returns_total": "returns"}


def lines(samples: Iterable[Sample], prefix: str, when: float) -> Iterator[bytes]:
    """The plaintext lines of one moment, `when` in seconds since 1970; nothings among them."""
    return _written(_placed(samples, prefix), when)


def tagged(samples: Iterable[Sample], prefix: str, when: float) -> Iterator[bytes]:
    """The same with tags: `PREFIX.NAME;label=value… value when`, every sample under its own name."""
    return _written(_tagged(samples, prefix), when)


def frames(samples: Iterable[Sample], prefix: str, when: float, has_tags: bool) -> Iterator[bytes]:
    """The same, plain or tagged, as carbon's pickle frames; nothing where a frame is not full yet."""
    row: list[tuple[str, tuple[int, float]]] = []
    for name, value in _tagged(samples, prefix) if has_tags else _placed(samples, prefix):
        if name and math.isfinite(value):
            row.append((name, (int(when), value)))
        if len(row) == POINTS:
            yield _frame(row)
            row = []
        else:
            yield b""
    if row:
        yield _frame(row)


def _written(named: Iterable[tuple[str, float]], when: float) -> Iterator[bytes]:
    end = f" {int(when)}\n"
    for name, value in named:
        yield f"{name} {value!r}{end}".encode("ascii") if name and math.isfinite(value) else b""


def _placed(samples: Iterable[Sample], prefix: str) -> Iterator[tuple[str, float]]:
    for point in points(samples):
        yield (f"{prefix}.{point.path}", point.value) if point is not None else ("", 0.0)


def _tagged(samples: Iterable[Sample], prefix: str) -> Iterator[tuple[str, float]]:
    for sample in samples:
        name = f"{prefix}.{sample.name.removeprefix('lbsidecar_')}"
        tags = "".join(f";{key}={_NOT_IN_TAGS.sub('_', value[:MAX_TAG])}" for key, value in sample.labels if value)
        if isinstance(sample.value, Distribution | Quantiles):
            yield f"{name}.count{tags}", float(sample.value.count)
            yield f"{name}.sum{tags}", sample.value.total
            if isinstance(sample.value, Quantiles):
                yield from ((f"{name}{tags};quantile={share}", seconds) for share, seconds in sample.value.values)
        else:
            yield f"{name}{tags}", sample.value


def _frame(row: list[tuple[str, tuple[int, float]]]) -> bytes:
    body = pickle.dumps(row, protocol=2)
    return struct.pack("!L", len(body)) + body


class Point(NamedTuple):
    """One number and its path, the prefix left out. `grows`: it counts since the start."""

    path: str
    value: float
    grows: bool = False


def points(samples: Iterable[Sample]) -> Iterator[Point | None]:
    """What Graphite gets; counters of several rows are summed to one. Nones between them, so that it may all be taken in pieces."""
    sums: Counter[str] = Counter()
    for sample in samples:
        labels = dict(sample.labels)
        if isinstance(sample.value, Distribution):
            yield None  # the service's summary has the same count and sum
        elif isinstance(sample.value, Quantiles):
            where = path(labels["service"], labels.get("address", "all"), "latency", labels["source"])
            yield Point(f"{where}.count", float(sample.value.count), grows=True)
            yield Point(f"{where}.sum", sample.value.total, grows=True)
            yield from (Point(f"{where}.{quantile(share)}", seconds) for share, seconds in sample.value.values)
        elif sample.kind == "counter":
            for name in _counter_paths(sample.name, labels):
                sums[name] += sample.value  # type: ignore[assignment]  # a Counter adds floats as well
            yield None
        elif (gauge := _gauge_path(sample.name, labels)) is not None:
            yield Point(gauge, sample.value)
    for name, value in sums.items():
        yield Point(name, float(value), grows=True)


def quantile(share: float) -> str:
    """What a quantile is called: p50, p999."""
    return "p" + f"{share * 100:g}".replace(".", "")


def path(*nodes: str) -> str:
    """A path of these nodes, each made safe."""
    return ".".join(node(each) for each in nodes)


def node(text: str) -> str:
    """One node of a path: never empty, at most 128 letters, digits, `_` and `-`."""
    return _FORBIDDEN.sub("_", text[:MAX_NODE]) or "_"


def _gauge_path(name: str, labels: dict[str, str]) -> str | None:
    service, instance = labels.get("service", ""), labels.get("address", "all")
    if name == "lbsidecar_instance_judgement":
        return path(service, instance, "judgement", labels["judgement"])
    if name == "lbsidecar_holds":
        return path(service, "all", "holds", labels["name"])
    if (last := _SERVICE_GAUGES.get(name) or _INSTANCE_GAUGES.get(name)) is not None:
        return path(service, instance, last)
    if (last := _BALANCER_GAUGES.get(name)) is not None:
        return path(_BALANCER, labels["balancer"], last)
    if (last := _OWN_GAUGES.get(name)) is not None:
        return path(_OWN, last)
    return None


def _counter_paths(name: str, labels: dict[str, str]) -> list[str]:
    """Cumulative since the start; in Graphite use `nonNegativeDerivative` or `perSecond`."""
    service = labels.get("service", "")
    if name == "lbsidecar_probes_total":
        return [path(service, who, "probes", labels["result"]) for who in (labels["address"], "all")]
    if name == "lbsidecar_traffic_requests_total":
        return [path(service, "all", "traffic", labels["result"])]
    if (last := _COUNTED.get(name)) is not None:
        last = last if labels["enforced"] == "true" else f"would_be_{last}"
        return [path(service, who, last) for who in (labels["address"], "all")]
    if name == "lbsidecar_sink_dropped_total":
        return [path(_OWN, "sink", labels["sink"], "dropped")]
    return []


__all__ = ["Point", "frames", "lines", "node", "path", "points", "quantile", "tagged"]
