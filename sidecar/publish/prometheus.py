"""Samples as Prometheus reads them: text 0.0.4, OpenMetrics 1.0, or protocol buffers, as the scraper prefers.

Histograms are classic ones in text, which has no other; in protocol buffers each is also a native one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from sidecar.core.histogram import Histogram
from sidecar.core.samples import Distribution, Quantiles, Sample, distribution
from sidecar.publish import protobuf as pb
from sidecar.publish.breath import breathing
from sidecar.publish.exponential import Exact, exact, native

MAX_LABEL = 256
"""Characters of a label's value at most."""
MAX_ACCEPT = 2000


class Format(Enum):
    """What is written; the value is its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


def chosen(accept: str | None) -> Format:
    """What an Accept header asks for; text when it is absent, unclear or wants none of ours."""
    best = dict.fromkeys(Format, 0.0)
    for part in (accept or "")[:MAX_ACCEPT].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        form = _MEDIA.get(media)
        if form is not None and (form is not Format.PROTOBUF or set(parameters) >= _DELIMITED):
            best[form] = max(best[form], _weight(parameters))
    return max((Format.PROTOBUF, Format.OPENMETRICS, Format.TEXT), key=lambda form: best[form]) if any(best.values()) else Format.TEXT


_MEDIA = {
    "application/vnd.google.protobuf": Format.PROTOBUF,
    "application/openmetrics-text": Format.OPENMETRICS,
    "text/plain": Format.TEXT,
    "text/*": Format.TEXT,
    "*/*": Format.TEXT,
}
_DELIMITED = {"proto=io.prometheus.client.metricfamily", "encoding=delimited"}


def render(samples: Iterable[Sample], form: Format = Format.TEXT, histograms: Exact | None = None) -> bytes:
    """The page of `/metrics`."""
    families: Families = {}
    for each in samples:
        families.setdefault(each.name, []).append(each)
    return b"".join(_pieces(families, form, histograms or {}))


async def rendered(samples: Iterable[Sample], form: Format = Format.TEXT, histograms: Exact | None = None) -> bytes:
    """The same from `core.samples.each_sample`, in pieces between which the loop does its other work."""
    families: Families = {}
    async for each in breathing(samples):
        families.setdefault(each.name, []).append(each)
    page = bytearray()
    async for piece in breathing(_pieces(families, form, histograms or {})):
        page += piece
    return bytes(page)


Families = dict[str, list[Sample]]
"""Samples by name: those of one name stand together on a page."""


def _pieces(families: Families, form: Format, histograms: Exact) -> Iterator[bytes]:
    if form is Format.PROTOBUF:
        yield from _messages(families, histograms)
        return
    is_open = form is Format.OPENMETRICS
    for name, rows in families.items():
        yield _head(name, rows[0], is_open).encode("utf-8", "replace")
        for row in rows:
            yield _rows(row).encode("utf-8", "replace")
    if is_open:
        yield b"# EOF\n"


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def _head(name: str, sample: Sample, is_open: bool) -> str:
    family = name.removesuffix("_total") if is_open and sample.kind == "counter" else name
    text = sample.help.replace("\\", "\\\\").replace("\n", "\\n")
    unit = f"# UNIT {family} {sample.unit}\n" if is_open and sample.unit else ""
    return f"# HELP {family} {_quoted(sample.help) if is_open else text}\n# TYPE {family} {sample.kind}\n{unit}"


def _rows(sample: Sample) -> str:
    found = sample.value
    if isinstance(found, Distribution):
        rows = [f"{sample.name}_bucket{_labels((*sample.labels, ('le', repr(bound))))} {count}\n" for bound, count in found.buckets]
        rows.append(f"{sample.name}_bucket{_labels((*sample.labels, ('le', '+Inf')))} {found.count}\n")
    elif isinstance(found, Quantiles):
        rows = [f"{sample.name}{_labels((*sample.labels, ('quantile', repr(q))))} {_number(value)}\n" for q, value in found.values]
    else:
        return f"{sample.name}{_labels(sample.labels)} {_number(found)}\n"
    rows.append(f"{sample.name}_sum{_labels(sample.labels)} {_number(found.total)}\n")
    rows.append(f"{sample.name}_count{_labels(sample.labels)} {found.count}\n")
    return "".join(rows)


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value[:MAX_LABEL])}"' for name, value in labels) + "}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"


# ---- protocol buffers: io.prometheus.client ----

_KINDS = {"counter": 0, "gauge": 1, "summary": 2, "histogram": 4}


def _messages(families: Families, histograms: Exact) -> Iterator[bytes]:
    """Delimited messages; a nothing for each row before its family, so that a long family is still taken in pieces."""
    for name, rows in families.items():
        family = bytearray(pb.text(1, name) + pb.text(2, rows[0].help) + pb.whole(3, _KINDS[rows[0].kind]))
        for row in rows:
            family += pb.message(4, _metric(row, histograms))
            yield b""
        yield pb.varint(len(family))
        yield bytes(family)


def _metric(sample: Sample, histograms: Exact) -> bytes:
    labels = b"".join(pb.message(1, pb.text(1, name) + pb.text(2, value[:MAX_LABEL])) for name, value in sample.labels)
    if isinstance(sample.value, Distribution):
        if (histogram := exact(sample, histograms)) is None:
            return labels + pb.message(7, _classic(sample.value))
        # The world may have moved on since the sample was taken: both shapes tell what is counted now.
        return labels + pb.message(7, _classic(distribution(histogram)) + _native(histogram))
    if isinstance(sample.value, Quantiles):
        return labels + pb.message(4, _quantiles(sample.value))
    return labels + pb.message(3 if sample.kind == "counter" else 2, pb.double(1, sample.value))


def _quantiles(found: Quantiles) -> bytes:
    values = (pb.message(3, pb.double(1, share) + pb.double(2, seconds)) for share, seconds in found.values)
    return pb.whole(1, found.count) + pb.double(2, found.total) + b"".join(values)


def _classic(found: Distribution) -> bytes:
    buckets = (pb.message(3, pb.whole(1, count) + pb.double(2, bound)) for bound, count in (*found.buckets, (math.inf, found.count)))
    return pb.whole(1, found.count) + pb.double(2, found.total) + b"".join(buckets)


def _native(histogram: Histogram) -> bytes:
    found = native(histogram)
    return (
        pb.signed(5, found.schema)
        + pb.double(6, found.zero_threshold)
        + pb.whole(7, found.zeros)
        + b"".join(pb.message(12, pb.signed(1, gap) + pb.whole(2, length)) for gap, length in found.spans)
        + pb.packed_signed(13, found.deltas)
    )


__all__ = ["Format", "chosen", "render", "rendered"]
