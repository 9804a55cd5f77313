"""Windows hold what happened in them: no older value, no failure timed, bounded memory."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.histogram import index_of
from sidecar.core.model import Instance
from sidecar.core.window import FEW, LEVELS, WINDOWS, Latencies, Quantile, Source, WindowName

SLOW_BOX = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ONE = Instance("shop", Address("10.0.0.1", 80))
TWO = Instance("shop", Address("10.0.0.2", 80))
NAMES: tuple[WindowName, ...] = ("10s", "1m", "5m", "1h")
LENGTH_S = {"10s": 10, "1m": 60, "5m": 300, "1h": 3600}


class Remembered:
    """The same said slowly: every sample with its time, windows by looking at all of them."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, float | None]] = []

    def window(self, name: WindowName, now: int) -> tuple[int, int, dict[int, int]]:
        width_s, slots = LEVELS[WINDOWS[name]]
        start = (now // width_s - slots + 1) * width_s
        inside = [seconds for at, seconds in self.samples if at >= start]
        good = [index_of(seconds) for seconds in inside if seconds is not None]
        return len(good), len(inside) - len(good), {index: good.count(index) for index in set(good)}


def seen(latencies: Latencies, name: WindowName, now: float, instance: Instance | None = ONE) -> tuple[int, int, dict[int, int]]:
    summary = latencies.instance(instance, "probe", name, now) if instance else latencies.service("shop", "probe", name, now)
    return summary.count, summary.failures, dict(summary.histogram.buckets())


gaps = st.one_of(st.integers(0, 3), st.integers(0, 40), st.integers(0, 700), st.integers(3000, 9000))
steps = st.lists(st.tuples(gaps, st.one_of(st.none(), st.sampled_from([0.001, 0.01, 0.5])), st.sampled_from([1, 1, 2, 5, 90])), max_size=30)


@settings(SLOW_BOX, max_examples=150)
@given(steps, st.integers(0, 100_000), st.sampled_from([0, 5, 100]))
def test_windows_are_what_was_counted_in_them(steps: list[tuple[int, float | None, int]], start: int, few: int) -> None:
    latencies, truth, now = Latencies(few=few), Remembered(), start
    for gap, seconds, times in steps:
        now += gap
        for _ in range(times):
            if seconds is None:
                latencies.fail(ONE, "probe", now + 0.5)
            else:
                latencies.add(ONE, "probe", seconds, now + 0.5)
            truth.samples.append((now, seconds))
        if times == 2:
            assert seen(latencies, "1m", now) == truth.window("1m", now)

    for name in NAMES:
        assert seen(latencies, name, now) == truth.window(name, now) == seen(latencies, name, now, None)
    for later in (1, 4, 29, 301):
        now += later
        for name in NAMES:
            assert seen(latencies, name, now) == truth.window(name, now)


@pytest.mark.parametrize("rate", [0.2, 1, 6])
def test_a_steady_rate_for_two_hours(rate: float) -> None:
    dice = random.Random(7)
    latencies, truth = Latencies(), Remembered()
    for at in range(int(7200 * rate)):
        seconds = None if dice.random() < 0.01 else dice.lognormvariate(math.log(0.004), 0.5)
        now = 1000 + at / rate
        truth.samples.append((int(now), seconds))
        if seconds is None:
            latencies.fail(ONE, "probe", now)
        else:
            latencies.add(ONE, "probe", seconds, now)

    end = truth.samples[-1][0]
    truth.samples = [each for each in truth.samples if each[0] > end - 4000]

    for name in NAMES:
        assert seen(latencies, name, end) == truth.window(name, end)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_never_reaches_further_back_than_its_length(name: WindowName) -> None:
    length_s = LENGTH_S[name]
    width_s, slots = LEVELS[WINDOWS[name]]

    for start in (7200, 7200 + width_s - 1):
        latencies = Latencies()
        latencies.add(ONE, "probe", 0.1, start)

        assert seen(latencies, name, start + length_s - width_s - 0.001)[0] == 1
        assert seen(latencies, name, start + length_s)[0] == 0
    assert width_s * slots == length_s


def test_sources_and_instances_stay_apart_and_the_service_has_all() -> None:
    latencies = Latencies()
    latencies.add(ONE, "probe", 0.001, 5.0)
    latencies.add(ONE, "traffic", 0.1, 5.0)
    latencies.add(TWO, "probe", 0.002, 5.0)
    latencies.fail(TWO, "probe", 5.0)

    assert seen(latencies, "10s", 5.0, ONE)[:2] == (1, 0)
    assert seen(latencies, "10s", 5.0, TWO)[:2] == (1, 1)
    assert seen(latencies, "10s", 5.0, None)[:2] == (2, 1)
    assert latencies.service("shop", "traffic", "10s", 5.0).count == 1
    assert latencies.service("other", "probe", "10s", 5.0).count == 0


def test_quantiles_wait_for_enough_samples() -> None:
    latencies = Latencies()
    edges = {"p50": 20, "p90": 100, "p95": 200, "p99": 1_000, "p999": 10_000}

    for sample in range(1, 10_001):
        latencies.add(ONE, "traffic", 0.25, 5.0)
        if sample in {each + nudge for each in edges.values() for nudge in (-1, 0)}:
            got = latencies.instance(ONE, "traffic", "10s", 5.0).quantiles()
            want = {name: Quantile(0.25 if sample >= needed else None, sample, needed) for name, needed in edges.items()}
            assert {name: (each.samples, each.needed) for name, each in got.items()} == {
                name: (each.samples, each.needed) for name, each in want.items()
            }
            for name, each in got.items():
                assert (each.value is None) == (want[name].value is None)
                assert each.value is None or each.value == pytest.approx(0.25, rel=0.0055)


@pytest.mark.parametrize("few", [0, FEW])
def test_what_is_told_of_a_window_is_what_its_summary_says(few: int) -> None:
    dice = random.Random(3)
    latencies = Latencies(few=few)
    for at in range(3000):
        latencies.fail(ONE, "probe", 1000 + at / 40)
        latencies.add(ONE, "probe", dice.choice([0.0, dice.lognormvariate(-5, 1.5)]), 1000 + at / 40)

    for name in NAMES:
        for now in (1075, 1084, 1120):
            summary, told = latencies.instance(ONE, "probe", name, now), latencies.told(ONE, "probe", name, now)
            assert told is not None and latencies.told("shop", "probe", name, now) == told
            assert [value for _, value in told.values] == [each.value for each in summary.quantiles().values() if each.value is not None]
            assert (told.count, told.total) == (3000, latencies.totals("shop", "probe").seconds)
    assert latencies.told(TWO, "probe", "1m", 1075) is None


def test_failures_move_no_quantile() -> None:
    latencies = Latencies()
    for _ in range(100):
        latencies.add(ONE, "probe", 0.01, 5.0)
        latencies.fail(ONE, "probe", 5.0)

    summary = latencies.instance(ONE, "probe", "10s", 5.0)

    assert (summary.count, summary.failures) == (100, 100)
    assert summary.quantiles()["p90"].value == pytest.approx(0.01, rel=0.0055)


def test_a_late_sample_counts_as_of_the_latest_second() -> None:
    latencies = Latencies()
    latencies.add(ONE, "probe", 0.01, 100.0)
    latencies.add(ONE, "probe", 0.01, 40.0)

    assert seen(latencies, "10s", 100.0)[0] == 2


def test_forgetting_an_instance_keeps_the_service() -> None:
    latencies = Latencies()
    latencies.add(ONE, "probe", 0.01, 5.0)
    latencies.add(TWO, "traffic", 0.01, 5.0)

    latencies.forget(ONE)

    assert seen(latencies, "10s", 5.0, ONE)[0] == 0
    assert seen(latencies, "10s", 5.0, None)[0] == 1
    latencies.forget_service("shop")
    assert latencies.size_bytes == 0


def test_totals_run_on() -> None:
    latencies = Latencies()
    for now in (5.0, 9000.0):
        latencies.add(ONE, "probe", 0.25, now)
        latencies.fail(ONE, "probe", now)

    for totals in (latencies.totals("shop", "probe"), latencies.instance_totals(ONE, "probe")):
        assert (totals.count, totals.failures, totals.seconds) == (2, 2, 0.5)
    assert latencies.totals("shop", "traffic").count == 0


def test_nan_is_refused_before_anything_is_counted() -> None:
    latencies = Latencies()

    with pytest.raises(ValueError, match=r"10\.0\.0\.1:80 is NaN"):
        latencies.add(ONE, "probe", math.nan, 5.0)

    assert latencies.totals("shop", "probe").count == 0


def test_instances_beyond_the_limit_count_for_their_service_only() -> None:
    latencies = Latencies(max_instances=1)
    sources: tuple[Source, ...] = ("probe", "traffic")
    for instance in (ONE, TWO):
        for source in sources:
            latencies.add(instance, source, 0.01, 5.0)

    assert latencies.instance(TWO, "probe", "10s", 5.0).count == 0
    assert latencies.service("shop", "probe", "10s", 5.0).count == 2


@pytest.mark.parametrize(("rate", "spread", "most_bytes"), [(1, 0.8, 9_000), (10, 0.1, 20_000), (20, 0.8, 60_000)])
def test_memory_of_an_instance_is_bounded(rate: int, spread: float, most_bytes: int) -> None:
    dice = random.Random(3)
    latencies = Latencies()
    worst = 0
    for now in range(4000):
        for _ in range(rate):
            latencies.add(ONE, "probe", dice.lognormvariate(math.log(0.004), spread), now)
        if now % 250 == 0:
            worst = max(worst, latencies.size_bytes)

    assert worst / 2 < most_bytes, worst / 2  # the instance's track and the service's are alike


def test_few_samples_are_kept_singly_and_many_as_histograms() -> None:
    latencies = Latencies()
    for _ in range(FEW - 1):
        latencies.add(ONE, "probe", 0.01, 5.0)
    before = latencies.size_bytes

    for _ in range(10 * FEW):
        latencies.add(ONE, "probe", 0.01, 5.0)

    assert latencies.size_bytes < before
    assert seen(latencies, "1h", 5.0) == (11 * FEW - 1, 0, {index_of(0.01): 11 * FEW - 1})
