"""Our histograms in the shapes of others that count by powers: Prometheus' native ones and OpenTelemetry's exponential ones.

Bucket `i` of ours is OpenTelemetry's `i - 20 * 2**scale`, and Prometheus' one more; no count changes its bucket on the way. What ends a
bucket here begins it there: no measured time lies exactly on a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.histogram import FLOOR_S, Histogram
from sidecar.core.samples import Distribution, Sample
from sidecar.core.window import Source

OCTAVES = 20
"""What our index is higher than theirs, in powers of two."""
MOST_BUCKETS = 640
"""Of a row that also holds its empty buckets: ten octaves at our finest."""

Exact = Mapping[tuple[str, Source], Histogram]
"""The histograms behind the published distributions, by service and source."""


@dataclass(frozen=True, slots=True)
class Native:
    """A Prometheus native histogram. `spans`: (gap to the one before, length); `deltas`: from count to count over all spans."""

    count: int
    total: float
    schema: int
    zero_threshold: float
    zeros: int
    spans: tuple[tuple[int, int], ...]
    deltas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """An OpenTelemetry exponential histogram: `counts[k]` values in bucket `offset + k` of `scale`."""

    scale: int
    offset: int
    counts: tuple[int, ...]


def exact(sample: Sample, histograms: Exact) -> Histogram | None:
    """The whole histogram of which a sample shows the distribution; None = there is none, or it has counted nothing."""
    if not isinstance(sample.value, Distribution):
        return None
    labels = dict(sample.labels)
    source: Source = "traffic" if labels.get("source") == "traffic" else "probe"
    found = histograms.get((labels.get("service", ""), source))
    return found if found is not None and found.count else None


def native(histogram: Histogram) -> Native:
    """The histogram as Prometheus wants it, at its own scale."""
    first = OCTAVES * (1 << histogram.scale) - 1
    spans: list[tuple[int, int]] = []
    deltas: list[int] = []
    end, last = 0, 0
    for index, count in histogram.buckets():
        at = index - first
        if spans and at == end:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((at - end, 1))
        end = at + 1
        deltas.append(count - last)
        last = count
    return Native(histogram.count, histogram.total, histogram.scale, FLOOR_S, histogram.zeros, tuple(spans), tuple(deltas))


def row(histogram: Histogram, most: int = MOST_BUCKETS) -> Row:
    """The histogram without gaps, made coarser until it has at most `most` buckets."""
    buckets = histogram.buckets()
    if not buckets:
        return Row(histogram.scale, 0, ())
    low, high = buckets[0][0], buckets[-1][0]
    fold = 0
    while (high >> fold) - (low >> fold) >= most and fold < histogram.scale:
        fold += 1
    low, high, scale = low >> fold, high >> fold, histogram.scale - fold
    counts = [0] * (high - low + 1)
    for index, count in buckets:
        counts[(index >> fold) - low] += count
    return Row(scale, low - OCTAVES * (1 << scale), tuple(counts))


__all__ = ["Exact", "Native", "Row", "exact", "native", "row"]
