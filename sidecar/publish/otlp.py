"""Samples as OTLP metrics: gauges, cumulative sums, summaries and exponential histograms, in protocol buffers or JSON.

An item is one data point with the metric that it belongs to before it; a request gathers the points of one metric again, so that what a
receiver rejects can be counted point by point.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from sidecar.core.histogram import FLOOR_S, Histogram
from sidecar.core.samples import Distribution, Quantiles, Sample
from sidecar.publish import protobuf as pb
from sidecar.publish.exponential import Exact, exact, row
from sidecar.publish.post import Answer

CUMULATIVE = 2
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}
_LENGTH = struct.Struct("!I")
_GAUGE, _SUM, _HISTOGRAM, _EXPONENTIAL, _SUMMARY = 5, 7, 9, 10, 11
"""Numbers of the fields of a Metric that say what it is."""
_NAMES = {_GAUGE: "gauge", _SUM: "sum", _HISTOGRAM: "histogram", _EXPONENTIAL: "exponentialHistogram", _SUMMARY: "summary"}
_TIMELESS = (_GAUGE, _SUMMARY)
"""What has no temporality."""


def items(samples: Iterable[Sample], when: float, started: float, histograms: Exact, *, as_json: bool) -> Iterator[bytes]:
    """One item a sample. `when` and `started` in seconds since 1970."""
    write = _json_item if as_json else _protobuf_item
    times = int(started * 1e9), int(when * 1e9)
    for sample in samples:
        head, point = write(sample, exact(sample, histograms), times)
        yield _LENGTH.pack(len(head)) + head + point


def protobuf_body(batch: Sequence[bytes], resource: Sequence[tuple[str, str]]) -> bytes:
    """An ExportMetricsServiceRequest."""
    about = b"".join(pb.message(1, _attribute(name, value)) for name, value in resource)
    metrics = bytearray()
    for head, points in _gathered(batch).items():
        kind, text = head[0], head[1:]
        content = b"".join(pb.message(1, point) for point in points)
        if kind not in _TIMELESS:
            content += pb.whole(2, CUMULATIVE)
        if kind == _SUM:
            content += pb.whole(3, 1)
        metrics += pb.message(2, text + pb.message(kind, content))
    scope = pb.message(1, pb.text(1, "lb-sidecar"))
    return pb.message(1, pb.message(1, about) + pb.message(2, scope + bytes(metrics)))


def json_body(batch: Sequence[bytes], resource: Sequence[tuple[str, str]]) -> bytes:
    """The same in OTLP's JSON: camel case, 64-bit numbers as text."""
    metrics = []
    for head, points in _gathered(batch).items():
        kind, about = json.loads(head)
        content: dict[str, Any] = {"dataPoints": [json.loads(point) for point in points]}
        if kind not in _TIMELESS:
            content["aggregationTemporality"] = CUMULATIVE
        if kind == _SUM:
            content["isMonotonic"] = True
        metrics.append({**about, _NAMES[kind]: content})
    about = [_json_attribute(name, value) for name, value in resource]
    scope = {"scope": {"name": "lb-sidecar"}, "metrics": metrics}
    return json.dumps({"resourceMetrics": [{"resource": {"attributes": about}, "scopeMetrics": [scope]}]}).encode("ascii")


def judge_protobuf(body: bytes, batch: Sequence[bytes]) -> Answer:
    """What an ExportMetricsServiceResponse says was rejected: field 1 is {1: how many points, 2: why}."""
    rejected, why = 0, ""
    for field, value in _fields(body):
        if field == 1 and isinstance(value, bytes):
            partial = dict(_fields(value))
            count, text = partial.get(1), partial.get(2)
            rejected = count if isinstance(count, int) else 0
            why = text.decode("utf-8", "replace") if isinstance(text, bytes) else ""
    return Answer(refused=min(rejected, len(batch)), why=why[:200])


def judge_json(body: bytes, batch: Sequence[bytes]) -> Answer:
    """The same in JSON. A receiver that says 200 and nothing that we understand has taken it: the status is the protocol's answer."""
    try:
        partial = json.loads(body).get("partialSuccess") or {}
        rejected, why = int(partial.get("rejectedDataPoints") or 0), str(partial.get("errorMessage") or "")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Answer()
    return Answer(refused=min(max(rejected, 0), len(batch)), why=why[:200])


def _gathered(batch: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for item in batch:
        end = _LENGTH.size + _LENGTH.unpack_from(item)[0]
        found.setdefault(item[_LENGTH.size : end], []).append(item[end:])
    return found


# ---- protocol buffers ----


def _protobuf_item(sample: Sample, histogram: Histogram | None, times: tuple[int, int]) -> tuple[bytes, bytes]:
    kind = _kind(sample, histogram)
    head = bytes((kind,)) + pb.text(1, sample.name) + pb.text(2, sample.help) + pb.text(3, _unit(sample))
    when = pb.fixed64(2, times[0]) + pb.fixed64(3, times[1])
    attributes = [_attribute(name, value) for name, value in sample.labels]
    if histogram is not None:
        return head, b"".join(pb.message(1, each) for each in attributes) + when + _exponential(histogram)
    if isinstance(sample.value, Distribution):
        return head, b"".join(pb.message(9, each) for each in attributes) + when + _explicit(sample.value)
    about = b"".join(pb.message(7, each) for each in attributes) + when
    return head, about + (_summary(sample.value) if isinstance(sample.value, Quantiles) else pb.double(4, sample.value))


def _exponential(histogram: Histogram) -> bytes:
    found = row(histogram)
    return (
        pb.fixed64(4, histogram.count)
        + pb.double(5, histogram.total)
        + pb.signed(6, found.scale)
        + pb.fixed64(7, histogram.zeros)
        + pb.message(8, pb.signed(1, found.offset) + pb.packed(2, found.counts))
        + pb.double(12, histogram.min or 0.0)
        + pb.double(13, histogram.max or 0.0)
        + pb.double(14, FLOOR_S)
    )


def _explicit(found: Distribution) -> bytes:
    counts = b"".join(count.to_bytes(8, "little") for count in _apart(found))
    bounds = b"".join(struct.pack("<d", bound) for bound, _ in found.buckets)
    return pb.fixed64(4, found.count) + pb.double(5, found.total) + pb.message(6, counts) + pb.message(7, bounds)


def _summary(found: Quantiles) -> bytes:
    values = (pb.message(6, pb.double(1, share) + pb.double(2, seconds)) for share, seconds in found.values)
    return pb.fixed64(4, found.count) + pb.double(5, found.total) + b"".join(values)


def _attribute(name: str, value: str) -> bytes:
    return pb.text(1, name) + pb.message(2, pb.text(1, value))


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message from outside; ends where it makes no sense."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            number, at = _varint(content, at)
            yield key >> 3, number
        elif key & 7 == 2:
            size, at = _varint(content, at)
            yield key >> 3, content[at : at + size]
            at += size
        else:
            return


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    return number, len(content)


# ---- JSON ----


def _json_item(sample: Sample, histogram: Histogram | None, times: tuple[int, int]) -> tuple[bytes, bytes]:
    about = {"name": sample.name, "description": sample.help, "unit": _unit(sample)}
    point: dict[str, Any] = {
        "attributes": [_json_attribute(name, value) for name, value in sample.labels],
        "startTimeUnixNano": str(times[0]),
        "timeUnixNano": str(times[1]),
    }
    if histogram is not None:
        found = row(histogram)
        point |= {
            "count": str(histogram.count),
            "sum": histogram.total,
            "scale": found.scale,
            "zeroCount": str(histogram.zeros),
            "zeroThreshold": FLOOR_S,
            "positive": {"offset": found.offset, "bucketCounts": [str(count) for count in found.counts]},
            "min": histogram.min,
            "max": histogram.max,
        }
    elif isinstance(sample.value, Distribution):
        counts, bounds = [str(count) for count in _apart(sample.value)], [bound for bound, _ in sample.value.buckets]
        point |= {"count": str(sample.value.count), "sum": sample.value.total, "bucketCounts": counts, "explicitBounds": bounds}
    elif isinstance(sample.value, Quantiles):
        values = [{"quantile": share, "value": seconds} for share, seconds in sample.value.values]
        point |= {"count": str(sample.value.count), "sum": sample.value.total, "quantileValues": values}
    else:
        point["asDouble"] = sample.value if sample.value - sample.value == 0 else _WORDS.get(sample.value, "NaN")
    return json.dumps([_kind(sample, histogram), about]).encode("ascii"), json.dumps(point).encode("ascii")


_WORDS = {float("inf"): "Infinity", float("-inf"): "-Infinity"}


def _json_attribute(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}


def _kind(sample: Sample, histogram: Histogram | None) -> int:
    if histogram is not None:
        return _EXPONENTIAL
    if isinstance(sample.value, Distribution):
        return _HISTOGRAM
    if isinstance(sample.value, Quantiles):
        return _SUMMARY
    return _SUM if sample.kind == "counter" else _GAUGE


def _unit(sample: Sample) -> str:
    return _UNITS.get(sample.unit, "")


def _apart(found: Distribution) -> list[int]:
    """Counts of each bucket alone, with the endless last one."""
    upto = [0, *(count for _, count in found.buckets), found.count]
    return [count - before for before, count in pairwise(upto)]


__all__ = ["items", "json_body", "judge_json", "judge_protobuf", "protobuf_body"]
