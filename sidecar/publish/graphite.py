"""Samples as Graphite's plaintext lines: `lbsidecar.SERVICE.(INSTANCE|all).latency.SOURCE.p50 0.0123 1767225600`, in seconds.

Every node of a path consists of letters, digits, `_` and `-`; all else becomes `_`, so nothing from outside can add a node or a line.
What cannot be a number there (NaN, infinity) is left out.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sidecar.core.samples import Distribution, Sample, SinkCount
from sidecar.publish.breath import breathing
from sidecar.publish.options import GraphiteOptions
from sidecar.publish.sink import Sink

MAX_NODE = 128
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


class Graphite:
    """The Graphite publisher. `run` is its task."""

    name = "graphite"

    def __init__(self, options: GraphiteOptions, samples: Callable[[], Iterable[Sample]], wall: Callable[[], float] = time.time) -> None:
        """`samples` is asked once an interval, on the loop of `run`, and taken in pieces. `wall` gives seconds since 1970."""
        self._options = options
        self._samples = samples
        self._wall = wall
        self._sink = Sink(self.name, options.address)

    def count(self) -> SinkCount:
        return self._sink.count()

    async def run(self) -> None:
        """Send everything once an interval until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sink.run())
            tasks.create_task(self._feed())

    async def _feed(self) -> None:
        """At round times of the wall clock: two points in one slot of carbon's would be one."""
        interval = self._options.interval
        while True:
            await asyncio.sleep(interval - self._wall() % interval)
            async for line in breathing(lines(self._samples(), self._options.prefix, self._wall())):
                self._sink.offer((line,))


def lines(samples: Iterable[Sample], prefix: str, when: float) -> Iterator[bytes]:
    """The lines of one moment, `when` in seconds since 1970."""
    end = f" {int(when)}\n"
    for where, value in points(samples):
        if math.isfinite(value):
            yield f"{prefix}.{where} {value!r}{end}".encode("ascii")


def points(samples: Iterable[Sample]) -> Iterator[tuple[str, float]]:
    """(path after the prefix, value) of what Graphite gets; counters of several rows are summed to one."""
    sums: Counter[str] = Counter()
    for sample in samples:
        labels = dict(sample.labels)
        if isinstance(sample.value, Distribution):
            where = path(labels["service"], "all", "latency", labels["source"])
            yield f"{where}.count", float(sample.value.count)
            yield f"{where}.sum", sample.value.total
        elif sample.kind == "counter":
            for name in _counter_paths(sample.name, labels):
                sums[name] += sample.value  # type: ignore[assignment]  # a Counter adds floats as well
        elif (gauge := _gauge_path(sample.name, labels)) is not None:
            yield gauge, sample.value
    yield from ((name, float(value)) for name, value in sums.items())


def path(*nodes: str) -> str:
    """A path of these nodes, each made safe."""
    return ".".join(node(each) for each in nodes)


def node(text: str) -> str:
    """One node of a path: never empty, at most 128 letters, digits, `_` and `-`."""
    return _FORBIDDEN.sub("_", text[:MAX_NODE]) or "_"


def _gauge_path(name: str, labels: dict[str, str]) -> str | None:
    service, instance = labels.get("service", ""), labels.get("address", "all")
    if name.endswith("_latency_quantile_seconds"):
        share = labels["quantile"].removeprefix("0.")
        return path(service, instance, "latency", labels["source"], f"p{share if len(share) > 1 else share + '0'}")
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


__all__ = ["Graphite", "lines", "node", "path", "points"]
