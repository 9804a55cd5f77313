"""The histogram keeps its stated error, merges like a sum, and stays small."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.histogram import CEILING_S, FLOOR_S, Histogram, index_of, merged, middle

SLOW_BOX = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHARES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
durations = st.one_of(
    st.floats(0.0, 2e4, allow_nan=False),
    st.floats(-20.0, 14.0).map(lambda octaves: 2.0**octaves),
    st.integers(0, 2130).map(lambda index: 2.0 ** (index / 64 - 20)),
)
rows = st.lists(durations, max_size=60)


def filled(values: Sequence[float], scale: int = 6) -> Histogram:
    histogram = Histogram(scale)
    for value in values:
        histogram.add(value)
    return histogram


def exact(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def error_bound(scale: int) -> float:
    return math.exp2(2.0 ** -(scale + 1)) - 1 + 1e-12


def drawn(shape: str, count: int, seed: int) -> list[float]:
    dice = random.Random(seed)
    match shape:
        case "lognormal":
            return [dice.lognormvariate(math.log(0.004), 0.8) for _ in range(count)]
        case "bimodal":
            return [dice.gauss(0.5, 0.02) if dice.random() < 0.02 else dice.gauss(0.002, 0.0001) for _ in range(count)]
        case "heavy tail":
            return [min(0.001 * dice.paretovariate(0.7), CEILING_S) for _ in range(count)]
        case "constant":
            return [0.0123] * count
        case _:
            return [dice.uniform(FLOOR_S, 1.0) for _ in range(count)]


@pytest.mark.parametrize("shape", ["lognormal", "bimodal", "heavy tail", "constant", "uniform"])
@pytest.mark.parametrize("scale", [6, 5, 3, 0])
def test_every_quantile_is_within_the_stated_relative_error(shape: str, scale: int) -> None:
    values = drawn(shape, 20_000, seed=scale)

    histogram = filled(values, scale)

    for share in SHARES:
        assert abs(histogram.quantile(share) / exact(values, share) - 1) <= error_bound(scale), share


def test_scale_six_promises_0_54_percent() -> None:
    assert error_bound(6) < 0.00544


def test_a_constant_is_given_back_exactly() -> None:
    histogram = filled([0.0123] * 7)

    assert histogram.quantiles(SHARES) == [0.0123] * len(SHARES)


@SLOW_BOX
@given(st.lists(durations, min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_any_quantile_of_any_values_is_within_the_error(values: list[float], share: float) -> None:
    want = min(exact(values, share), CEILING_S)

    got = filled(values).quantile(share)

    assert (got == 0.0) if want < FLOOR_S else abs(got / want - 1) <= error_bound(6)


@SLOW_BOX
@given(rows)
def test_count_ends_and_sum(values: list[float]) -> None:
    clamped = [0.0 if each < FLOOR_S else min(each, CEILING_S) for each in values]

    histogram = filled(values)

    assert histogram.count == len(values) == histogram.zeros + sum(count for _, count in histogram.buckets())
    assert (histogram.min, histogram.max) == ((min(clamped), max(clamped)) if clamped else (None, None))
    assert histogram.total == pytest.approx(sum(clamped), rel=error_bound(6))


@SLOW_BOX
@given(rows, rows, rows)
def test_merging_is_adding_in_any_order_and_grouping(a: list[float], b: list[float], c: list[float]) -> None:
    whole = filled(a + b + c)

    left = merged([merged([filled(a), filled(b)]), filled(c)])
    right = merged([filled(c), merged([filled(b), filled(a)])])

    assert left == right == whole
    assert left.total == whole.total


@SLOW_BOX
@given(rows)
def test_merging_nothing_changes_nothing(values: list[float]) -> None:
    histogram = filled(values)

    histogram.merge(Histogram())

    assert histogram == filled(values) == merged([Histogram(), histogram])


def test_a_histogram_merged_into_itself_doubles() -> None:
    histogram = filled([0.001, 0.1, 0.0])

    histogram.merge(histogram)

    assert histogram == filled([0.001, 0.1, 0.0] * 2)


@SLOW_BOX
@given(rows, st.integers(0, 6), st.integers(0, 6))
def test_downscaling_is_what_adding_at_that_scale_gives(values: list[float], first: int, second: int) -> None:
    coarse, fine = sorted((first, second))

    assert filled(values).downscale(fine).downscale(coarse) == filled(values, coarse)


@SLOW_BOX
@given(st.lists(st.tuples(st.integers(1, 2130), st.sampled_from([1, 2, 65_535, 65_536, 2**32 - 1, 2**32])), max_size=6))
def test_counters_never_overflow_however_many_come(counts: list[tuple[int, int]]) -> None:
    histogram, want = Histogram(), dict.fromkeys((index for index, _ in counts), 0)
    for index, times in counts:
        histogram.add_index(index, times)
        want[index] += times

    doubled = merged([histogram, histogram])

    assert dict(histogram.buckets()) == want
    assert dict(doubled.buckets()) == {index: 2 * count for index, count in want.items()}


@given(st.dictionaries(st.just(0) | st.integers(4, 2130), st.integers(1, 70_000), max_size=8))
def test_all_indices_at_once_are_one_after_the_other(counts: dict[int, int]) -> None:
    histogram = Histogram()
    for index, times in counts.items():
        histogram.add_index(index, times)

    assert Histogram.of_indices(counts) == histogram


@given(rows)
def test_known_values_are_added_like_others(values: list[float]) -> None:
    histogram, known = Histogram(), Histogram()
    for value in values:
        histogram.add(value)
        known.add_known(index_of(value), value)

    assert known == histogram


def test_one_add_too_many_for_sixteen_bits() -> None:
    histogram = Histogram()
    histogram.add_index(index_of(0.5), 65_535)

    histogram.add(0.5)

    assert histogram.buckets() == [(index_of(0.5), 65_536)]
    assert histogram.count == 65_536


@SLOW_BOX
@given(rows, st.integers(0, 6))
def test_json_there_and_back(values: list[float], scale: int) -> None:
    histogram = filled(values, scale)

    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))

    assert again == histogram
    assert again.quantiles(SHARES) == histogram.quantiles(SHARES) or not values


@pytest.mark.parametrize(
    "damage",
    [
        {"scale": 7},
        {"scale": "6"},
        {"zeros": -1},
        {"zeros": True},
        {"buckets": [5]},
        {"buckets": [5, 0]},
        {"buckets": [0, 1]},
        {"buckets": [2132, 1]},
        {"buckets": [5, 1.5]},
        {"buckets": None},
        {"ends": [1.0]},
        {"ends": []},
        {"ends": [math.nan, 1.0]},
        {"ends": [0.0, 1e9]},
    ],
)
def test_json_that_is_no_histogram_is_refused(damage: dict[str, object]) -> None:
    good = filled([0.1, 0.2]).to_json()

    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json({**good, **damage})


def test_json_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="object"):
        Histogram.from_json([])


def test_clamping_and_the_zero_bucket() -> None:
    histogram = filled([-1.0, 0.0, 9e-7, 1e-6, 1e4, 2e4, math.inf])

    assert histogram.zeros == 3
    assert histogram.buckets() == [(4, 1), (2130, 3)]
    assert (histogram.min, histogram.max) == (0.0, CEILING_S)
    assert histogram.quantile(3 / 7) == 0.0


def test_nan_is_refused_and_not_counted() -> None:
    histogram = Histogram()

    with pytest.raises(ValueError, match="NaN"):
        histogram.add(math.nan)

    assert histogram == Histogram()


def test_an_empty_histogram_has_no_quantiles() -> None:
    assert all(math.isnan(each) for each in Histogram().quantiles(SHARES))


def test_scales_do_not_mix() -> None:
    with pytest.raises(ValueError, match="downscale the finer"):
        Histogram(5).merge(filled([1.0]))
    with pytest.raises(ValueError, match="finer"):
        Histogram(4).downscale(5)
    with pytest.raises(ValueError, match="0 to 6"):
        Histogram(7)


@SLOW_BOX
@given(st.floats(FLOOR_S, CEILING_S))
def test_the_middle_of_a_bucket_is_near_all_in_it(seconds: float) -> None:
    assert abs(middle(index_of(seconds)) / seconds - 1) <= error_bound(6)


def test_memory_follows_the_range_and_not_the_count() -> None:
    narrow = filled([0.001 + each * 1e-8 for each in range(20_000)])
    widest = filled([FLOOR_S, CEILING_S])

    assert narrow.size_bytes < 700
    assert widest.size_bytes < 5_000
