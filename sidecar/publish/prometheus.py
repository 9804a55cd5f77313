"""Samples as Prometheus reads them: text 0.0.4, or OpenMetrics 1.0 where the scraper prefers it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import groupby

from sidecar.core.samples import Distribution, Sample, grouped
from sidecar.publish.breath import breathing

MAX_LABEL = 256
"""Characters of a label's value at most."""
MAX_ACCEPT = 2000


class Format(Enum):
    """What is written; the value is its Content-Type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def chosen(accept: str | None) -> Format:
    """What an Accept header asks for; text when it is absent, unclear or wants neither."""
    best = {Format.TEXT: 0.0, Format.OPENMETRICS: 0.0}
    for part in (accept or "")[:MAX_ACCEPT].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = _weight(parameters)
        if media == "application/openmetrics-text":
            best[Format.OPENMETRICS] = max(best[Format.OPENMETRICS], weight)
        elif media in ("text/plain", "text/*", "*/*"):
            best[Format.TEXT] = max(best[Format.TEXT], weight)
    return Format.OPENMETRICS if best[Format.OPENMETRICS] > 0 and best[Format.OPENMETRICS] >= best[Format.TEXT] else Format.TEXT


def render(samples: Sequence[Sample], form: Format = Format.TEXT) -> bytes:
    """The page of `/metrics`. Samples of one name must stand together, as `core.samples.samples` gives them."""
    return _page(_lines(samples, form))


async def rendered(samples: Iterable[Sample], form: Format = Format.TEXT) -> bytes:
    """The same from `core.samples.each_sample`, in pieces between which the loop does its other work."""
    found = grouped([each async for each in breathing(samples)])
    return _page([line async for line in breathing(_lines(found, form))])


def _lines(samples: Sequence[Sample], form: Format) -> Iterator[str]:
    is_open = form is Format.OPENMETRICS
    for name, group in groupby(samples, key=lambda each: each.name):
        for place, row in enumerate(group):
            if not place:
                yield from _head(name, row, is_open)
            yield from _rows(row)
    if is_open:
        yield "# EOF"


def _page(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def _head(name: str, sample: Sample, is_open: bool) -> list[str]:
    family = name.removesuffix("_total") if is_open and sample.kind == "counter" else name
    text = sample.help.replace("\\", "\\\\").replace("\n", "\\n")
    lines = [f"# HELP {family} {_quoted(sample.help) if is_open else text}", f"# TYPE {family} {sample.kind}"]
    if is_open and sample.unit:
        lines.append(f"# UNIT {family} {sample.unit}")
    return lines


def _rows(sample: Sample) -> list[str]:
    if not isinstance(sample.value, Distribution):
        return [f"{sample.name}{_labels(sample.labels)} {_number(sample.value)}"]
    found = sample.value
    rows = [f"{sample.name}_bucket{_labels((*sample.labels, ('le', repr(bound))))} {count}" for bound, count in found.buckets]
    rows.append(f"{sample.name}_bucket{_labels((*sample.labels, ('le', '+Inf')))} {found.count}")
    rows.append(f"{sample.name}_sum{_labels(sample.labels)} {_number(found.total)}")
    rows.append(f"{sample.name}_count{_labels(sample.labels)} {found.count}")
    return rows


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


__all__ = ["Format", "chosen", "render", "rendered"]
