"""Samples as Prometheus remote write 1.0: a series is one item, a request a snappy block of them.

Histograms are classic series, and native ones beside them where the receiver is said to know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sidecar.core.histogram import Histogram
from sidecar.core.samples import Distribution, Quantiles, Sample
from sidecar.publish import protobuf as pb
from sidecar.publish.exponential import Exact, exact, native
from sidecar.publish.prometheus import MAX_LABEL
from sidecar.publish.snappy import compress

HEADERS = {"Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}

Labels = Sequence[tuple[str, str]]


def series(samples: Iterable[Sample], when: float, histograms: Exact, more: Labels, *, has_native: bool) -> Iterator[bytes]:
    """One item a series; `more` labels join those of each. `when` in seconds since 1970."""
    at = int(when * 1000)
    for sample in samples:
        labels = [*sample.labels, *more]
        if isinstance(sample.value, Distribution):
            for bound, count in (*((repr(bound), count) for bound, count in sample.value.buckets), ("+Inf", sample.value.count)):
                yield _series(f"{sample.name}_bucket", [*labels, ("le", bound)], _value(count, at))
        elif isinstance(sample.value, Quantiles):
            for share, seconds in sample.value.values:
                yield _series(sample.name, [*labels, ("quantile", repr(share))], _value(seconds, at))
        else:
            yield _series(sample.name, labels, _value(sample.value, at))
            continue
        yield _series(f"{sample.name}_sum", labels, _value(sample.value.total, at))
        yield _series(f"{sample.name}_count", labels, _value(sample.value.count, at))
        if has_native and (histogram := exact(sample, histograms)) is not None:
            yield _series(sample.name, labels, _histogram(histogram, at))


def body(batch: Sequence[bytes]) -> bytes:
    """A WriteRequest."""
    return compress(b"".join(batch))


def _series(name: str, labels: Labels, content: bytes) -> bytes:
    """A TimeSeries; labels must be sorted, and an empty one is none."""
    pairs = sorted((("__name__", name), *((key, value[:MAX_LABEL]) for key, value in labels if value)))
    return pb.message(1, b"".join(pb.message(1, pb.text(1, key) + pb.text(2, value)) for key, value in pairs) + content)


def _value(value: float, at: int) -> bytes:
    return pb.message(2, pb.double(1, value) + pb.whole(2, at))


def _histogram(histogram: Histogram, at: int) -> bytes:
    found = native(histogram)
    spans = b"".join(pb.message(11, pb.signed(1, gap) + pb.whole(2, length)) for gap, length in found.spans)
    return pb.message(
        4,
        pb.whole(1, found.count)
        + pb.double(3, found.total)
        + pb.signed(4, found.schema)
        + pb.double(5, found.zero_threshold)
        + pb.whole(6, found.zeros)
        + spans
        + pb.packed_signed(12, found.deltas)
        + pb.whole(15, at),
    )


__all__ = ["HEADERS", "body", "series"]
