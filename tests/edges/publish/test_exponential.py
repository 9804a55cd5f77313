"""Histograms in the shapes of others: no value changes its bucket on the way."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.histogram import Histogram
from sidecar.publish.exponential import MOST_BUCKETS, native, row

SECONDS = st.floats(min_value=1.1e-6, max_value=9e3)


def filled(values: list[float], scale: int) -> Histogram:
    made = Histogram(scale)
    for each in values:
        made.add(each)
    return made


@settings(max_examples=300, deadline=None)
@given(st.lists(SECONDS, max_size=50), st.integers(0, 6))
def test_prometheus_reads_the_same_counts_in_the_same_buckets(values: list[float], scale: int) -> None:
    histogram = filled(values, scale)

    found = native(histogram)

    at, count, read = 0, 0, Counter[int]()
    deltas = iter(found.deltas)
    for gap, length in found.spans:
        at += gap
        for _ in range(length):
            count += next(deltas)
            read[at] = count
            at += 1
    assert list(deltas) == []
    assert all(gap > 0 for gap, _ in found.spans[1:]), "spans that touch are one"
    assert read == Counter(ours + 1 - 20 * 2**scale for ours, times in histogram.buckets() for _ in range(times))
    for index in read:
        low, high = 2 ** ((index - 1) / 2**scale), 2 ** (index / 2**scale)
        assert any(low * (1 - 1e-9) <= value <= high * (1 + 1e-9) for value in values)


@settings(max_examples=300, deadline=None)
@given(st.lists(SECONDS, max_size=50), st.integers(1, 80))
def test_a_row_without_gaps_keeps_every_value_within_its_size(values: list[float], most: int) -> None:
    histogram = filled(values, 6)

    found = row(histogram, most)

    assert sum(found.counts) == len(values)
    assert len(found.counts) <= most or found.scale == 0
    assert not found.counts or (found.counts[0] and found.counts[-1])
    for place, count in enumerate(found.counts):
        low, high = (2 ** ((found.offset + place + k) / 2**found.scale) for k in (0, 1))
        assert count == sum(low * (1 - 1e-9) <= value < high * (1 + 1e-9) for value in values) or _is_near_a_bound(values, low, high)


def test_ten_octaves_stay_as_fine_as_they_are() -> None:
    histogram = filled([0.001 * 2 ** (k / 8) for k in range(79)], 6)

    assert row(histogram).scale == 6
    assert len(row(histogram).counts) <= MOST_BUCKETS
    assert row(filled([1e-6, 9e3], 6)).scale == 4


def _is_near_a_bound(values: list[float], low: float, high: float) -> bool:
    return any(math.isclose(value, bound, rel_tol=1e-8) for value in values for bound in (low, high))
