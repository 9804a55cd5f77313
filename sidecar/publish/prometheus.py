"""Samples as Prometheus reads them: text 0.0.4, OpenMetrics 1.0, or protocol buffers, as the scraper prefers.

Histograms are classic ones in text, which has no other; in protocol buffers each is also a native one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from sidecar.core.histogram import Histogram
from sidecar.core.samples import Bundle, Distribution, Labels, Quantiles, Sample, distribution, spread
from sidecar.publish import protobuf as pb
from sidecar.publish.breath import breathing
from sidecar.publish.exponential import Exact, exact, native

MAX_LABEL = 256
"""Characters of a label's value at most."""
MAX_ACCEPT = 2000
EVERY = 32
"""Bundles or samples between two turns of the loop."""
KEPT_LABELS = 1 << 15
"""Values of labels of which is kept how they are written: those of 10,000 instances; of most it is what they are."""


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


def render(samples: Iterable[Sample | Bundle], form: Format = Format.TEXT, histograms: Exact | None = None) -> bytes:
    """The page of `/metrics`."""
    page = _Messages(histograms or {}) if form is Format.PROTOBUF else _Text(form)
    for each in samples:
        page.add(each)
    return b"".join(page.pieces())


class Writer:
    """Pages of one `/metrics`, one after the other. Owns the last page of text of each form: most of its rows are in the next one too."""

    def __init__(self) -> None:
        self._last: dict[Format, _Text] = {}

    async def page(self, samples: Iterable[Sample | Bundle], form: Format = Format.TEXT, histograms: Exact | None = None) -> bytes:
        """The same as `render`, best from `core.samples.condensed`, in pieces between which the loop does its other work."""
        page = _Messages(histograms or {}) if form is Format.PROTOBUF else _Text(form, self._last.get(form))
        async for each in breathing(samples, EVERY):
            page.add(each)
        found = b"".join([piece async for piece in breathing(page.pieces(), 1)])
        if isinstance(page, _Text):
            self._last[form] = page
        return found


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def _head(sample: Sample, is_open: bool) -> str:
    family = sample.name.removesuffix("_total") if is_open and sample.kind == "counter" else sample.name
    text = _quoted(sample.help) if is_open else sample.help.replace("\\", "\\\\").replace("\n", "\\n")
    unit = f"# UNIT {family} {sample.unit}\n" if is_open and sample.unit else ""
    return f"# HELP {family} {text}\n# TYPE {family} {sample.kind}\n{unit}"


class _Kept(NamedTuple):
    """A bundle's rows for as long as it stands so, each with the name of its family: whole, or up to the number."""

    standing: tuple[object, ...]
    whole: Sequence[tuple[str, str]]
    moving: Sequence[tuple[str, str]]


class _Text:
    """Rows by the name of their family, since those of one stand together on a page; written as they come, so that no sample is kept."""

    def __init__(self, form: Format, last: _Text | None = None) -> None:
        """`last`: the page before this one; what it has kept of bundles that still stand so is not written anew."""
        self._is_open = form is Format.OPENMETRICS
        self._families: defaultdict[str, list[str]] = defaultdict(list)
        self._heads: dict[str, str] = last._heads if last is not None else {}
        self._before: Mapping[Labels, _Kept] = last._kept if last is not None else {}
        self._kept: dict[Labels, _Kept] = {}

    def add(self, sample: Sample | Bundle) -> None:
        if isinstance(sample, Sample):
            self._families[self._name(sample)] += [f"{start} {_number(value)}\n" for start, value in _rows(sample)]
            return
        kept = self._before.get(sample.labels)
        if kept is None or kept.standing != sample.standing:
            kept = self._keep(sample)
        self._kept[sample.labels] = kept
        families = self._families
        for name, rows in kept.whole:
            families[name].append(rows)
        for (name, start), value in zip(kept.moving, sample.moving, strict=True):
            families[name].append(f"{start} {_number(value)}\n")

    def pieces(self) -> Iterator[bytes]:
        for name, rows in self._families.items():
            yield self._heads[name].encode("utf-8", "replace")
            yield "".join(rows).encode("utf-8", "replace")
            rows.clear()
        if self._is_open:
            yield b"# EOF\n"

    def _keep(self, bundle: Bundle) -> _Kept:
        whole: dict[str, str] = {}
        for each in bundle.standing_samples():
            rows = "".join([f"{start} {_number(value)}\n" for start, value in _rows(each)])
            whole[self._name(each)] = whole.get(each.name, "") + rows
        moving = [(self._name(each), start) for each in bundle.moving_samples() for start, _ in _rows(each)]
        return _Kept(bundle.standing, tuple(whole.items()), moving)

    def _name(self, sample: Sample) -> str:
        if sample.name not in self._heads:
            self._heads[sample.name] = _head(sample, self._is_open)
        return sample.name


def _rows(sample: Sample) -> list[tuple[str, float]]:
    """Each row up to its number, and that."""
    name, found = sample.name, sample.value
    written = ",".join([f'{key}="{_label(value)}"' for key, value in sample.labels])
    within, comma = (f"{{{written}}}", f"{written},") if written else ("", "")
    if isinstance(found, float):
        return [(f"{name}{within}", found)]
    rows: list[tuple[str, float]]
    if isinstance(found, Distribution):
        rows = [(f'{name}_bucket{{{comma}le="{bound!r}"}}', count) for bound, count in found.buckets]
        rows.append((f'{name}_bucket{{{comma}le="+Inf"}}', found.count))
    else:
        rows = [(f'{name}{{{comma}quantile="{share!r}"}}', value) for share, value in found.values]
    return [*rows, (f"{name}_sum{within}", found.total), (f"{name}_count{within}", found.count)]


@lru_cache(KEPT_LABELS)
def _label(value: str) -> str:
    return _quoted(value[:MAX_LABEL])


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    written = repr(value)
    if written.endswith(".0"):
        return written[:-2]
    return _WORDS.get(written, written)


_WORDS = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}


# ---- protocol buffers: io.prometheus.client ----

_KINDS = {"counter": 0, "gauge": 1, "summary": 2, "histogram": 4}


class _Messages:
    """Delimited messages, one a family; a family's rows are written as they come."""

    def __init__(self, histograms: Exact) -> None:
        self._histograms = histograms
        self._families: dict[str, list[bytes]] = {}

    def add(self, sample: Sample | Bundle) -> None:
        for each in spread((sample,)):
            rows = self._families.get(each.name)
            if rows is None:
                head = pb.text(1, each.name) + pb.text(2, each.help) + pb.whole(3, _KINDS[each.kind])
                rows = self._families[each.name] = [head]
            rows.append(pb.message(4, _metric(each, self._histograms)))

    def pieces(self) -> Iterator[bytes]:
        for rows in self._families.values():
            family = b"".join(rows)
            yield pb.varint(len(family)) + family


def _metric(sample: Sample, histograms: Exact) -> bytes:
    labels = b"".join([_pair(name, value) for name, value in sample.labels])
    if isinstance(sample.value, Distribution):
        if (histogram := exact(sample, histograms)) is None:
            return labels + pb.message(7, _classic(sample.value))
        # The world may have moved on since the sample was taken: both shapes tell what is counted now.
        return labels + pb.message(7, _classic(distribution(histogram)) + _native(histogram))
    if isinstance(sample.value, Quantiles):
        return labels + pb.message(4, _quantiles(sample.value))
    return labels + pb.message(3 if sample.kind == "counter" else 2, pb.double(1, sample.value))


@lru_cache(KEPT_LABELS)
def _pair(name: str, value: str) -> bytes:
    return pb.message(1, pb.text(1, name) + pb.text(2, value[:MAX_LABEL]))


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


__all__ = ["Format", "Writer", "chosen", "render"]
