"""The history on disk: what goes in comes out, over every range, after every death, within its bounds."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Operator
from sidecar.core.histogram import Histogram
from sidecar.core.model import Judgement, Serving
from sidecar.store.history import ASIDE, KEPT_S, SPANS, History, Row, State, packed, plan, rows, tidy, unpacked
from tests.core.lab import refused
from tests.edges.publish.scene import Scene

NOW = 1_800_000_000
SECONDS = st.one_of(st.just(0.0), st.floats(1e-7, 2e4))


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def times(*seconds: float) -> Histogram:
    found = Histogram()
    for each in seconds:
        found.add(each)
    return found


def row(*seconds: float, instance: str = "10.0.0.1:80", failures: int = 0, state: int = 0) -> Row:
    return Row("shop", instance, "probe", failures, state, times(*seconds))


@contextlib.contextmanager
def kept(folder: Path, max_bytes: int = 64 << 20) -> Iterator[History]:
    history = History(folder, max_bytes)
    try:
        yield history
    finally:
        history.close(30.0)


def counts(history: History, since: int, until: int, step: int = 10, instance: str = "10.0.0.1:80") -> list[tuple[int, int]]:
    found = history.read("shop", "probe", since, until, step).points.get(instance, ())
    return [(each.at, each.times.count) for each in found]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(SECONDS, st.integers(1, 70_000)), max_size=30))
def test_a_packed_histogram_has_every_value_in_its_bucket(values: list[tuple[float, int]]) -> None:
    whole = Histogram()
    for seconds, often in values:
        for _ in range(min(often, 3)):
            whole.add(seconds)

    found = Histogram()
    unpacked(packed(whole), found)

    assert (found.count, found.zeros, found.buckets()) == (whole.count, whole.zeros, whole.buckets())


@pytest.mark.parametrize("state", [State(j, o, s) for j in Judgement for o in Operator for s in Serving])
def test_a_state_is_a_number_and_back(state: State) -> None:
    assert State.of(state.number) == state


@pytest.mark.parametrize("number", [0, -1, 8, 1 << 30])
def test_a_number_that_is_no_state_is_none(number: int) -> None:
    assert State.of(number) is None


def test_ten_seconds_are_read_back_by_instance_and_step(tmp_path: Path) -> None:
    with kept(tmp_path) as history:
        for i in range(12):
            history.append(NOW + 10 * i, [row(0.001, 0.002, failures=1, state=i), row(0.5, instance=""), row(0.3, instance="10.0.0.2:80")])
        until(lambda: len(counts(history, NOW, NOW + 120)) == 12)

        assert counts(history, NOW + 20, NOW + 40) == [(NOW + 20, 2), (NOW + 30, 2)]
        assert counts(history, NOW, NOW + 120, 60) == [(NOW, 12), (NOW + 60, 12)]
        minute = history.read("shop", "probe", NOW, NOW + 60, 60, "10.0.0.1:80").points
        assert list(minute) == ["10.0.0.1:80"]
        assert (minute["10.0.0.1:80"][0].failures, minute["10.0.0.1:80"][0].state) == (6, 5)
        assert history.read("shop", "traffic", NOW, NOW + 120, 10).points == {}
        assert history.read("nobody", "probe", NOW, NOW + 120, 10).points == {}


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for i in range(3):
        with kept(tmp_path) as history:
            history.append(NOW + 10 * i, [row(0.001)])

    with kept(tmp_path) as history:
        assert counts(history, NOW, NOW + 60) == [(NOW, 1), (NOW + 10, 1), (NOW + 20, 1)]


@pytest.mark.real
def test_a_kill_in_the_middle_of_writing_loses_only_what_was_not_written(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from sidecar.core.histogram import Histogram\n"
        "from sidecar.store.history import History, Row\n"
        "history, times = History(pathlib.Path(sys.argv[1]), 64 << 20), Histogram()\n"
        "times.add(0.001)\n"
        f"for at in range({NOW}, {NOW} + 10**6, 10):\n"
        "    history.append(at, [Row('shop', f'10.0.0.{i}:80', 'probe', 0, 0, times) for i in range(100)])\n"
        "    while history._waiting.qsize() > 5: pass\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
        until(lambda: (tmp_path / "history.sqlite3-wal").exists() and (tmp_path / "history.sqlite3-wal").stat().st_size > 200_000)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

        with kept(tmp_path) as history:
            history.append(NOW - 100, [row(0.001)])
            until(partial(counts, history, NOW - 100, NOW))
            assert history.problem == ""
            ats = [at for at, count in counts(history, NOW, NOW + 10**6) if count == 1]
        assert ats and ats == list(range(NOW, ats[-1] + 10, 10))


@pytest.mark.parametrize("body", [b"this is no database at all, and has never been one" * 100, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_damaged_file_is_set_aside_and_told_once(tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history.sqlite3").write_bytes(body)

    with kept(tmp_path) as history:
        for i in range(3):
            history.append(NOW + 10 * i, [row(0.001)])
        until(lambda: counts(history, NOW, NOW + 60))

    assert (tmp_path / ASIDE).read_bytes() == body
    assert [each.message for each in caplog.records if "set aside" in each.message and ASIDE in each.message] == [
        each.message for each in caplog.records
    ]
    assert len(caplog.records) == 1


def test_damage_while_it_runs_costs_the_history_and_nothing_else(tmp_path: Path) -> None:
    with kept(tmp_path) as history:
        for i in range(20):
            history.append(NOW + 10 * i, [row(0.001, instance=f"10.0.0.{k}:80") for k in range(200)])
        until(lambda: len(counts(history, NOW, NOW + 200)) == 20)
    path = tmp_path / "history.sqlite3"
    damaged = bytearray(path.read_bytes())
    damaged[4096 : len(damaged) - 4096] = random.Random(1).randbytes(len(damaged) - 8192)
    path.write_bytes(damaged)

    with kept(tmp_path) as history:
        for i in range(20, 24):
            history.append(NOW + 10 * i, [row(0.001)])
        until(lambda: counts(history, NOW + 220, NOW + 240))

    assert (tmp_path / ASIDE).exists()


def test_a_folder_that_cannot_be_written_is_told_and_costs_no_wait(tmp_path: Path) -> None:
    with kept(tmp_path / "none") as history:
        began = time.monotonic()
        for i in range(1000):
            history.append(NOW + 10 * i, [row(0.001)])
        assert time.monotonic() - began < 10
        until(lambda: history.dropped >= 900)
        assert "history" in history.problem
        assert history.read("shop", "probe", NOW, NOW + 60, 10).points == {}


# ---- summing up ----


def written(folder: Path, hours: float, step: int = 10) -> tuple[History, sqlite3.Connection]:
    """Some hours until NOW with a value and a failure each ten seconds, and the database."""
    with kept(folder) as history:
        history.append(NOW - 10, [row(0.002, failures=1)])
    database = sqlite3.connect(folder / "history.sqlite3", isolation_level=None)
    body, ats = packed(times(0.002)), range(NOW - int(hours * 3600), NOW - 10, step)
    database.executemany("INSERT INTO rows VALUES (10, 1, ?, 1, 0, ?)", [(at, body) for at in ats])
    return history, database


def test_minutes_and_ten_minutes_are_summed_up_exactly_and_old_rows_go(tmp_path: Path) -> None:
    history, database = written(tmp_path, 12)
    before = history.read("shop", "probe", NOW - 5 * 3600, NOW, 3600).points

    tidy(database, NOW, 64 << 20)

    assert history.read("shop", "probe", NOW - 5 * 3600, NOW, 3600).points == before
    (oldest,) = database.execute("SELECT min(at) FROM rows WHERE span = 10").fetchone()
    assert NOW - KEPT_S[10] <= oldest < NOW - KEPT_S[10] + 10
    assert sum(count for _, count in counts(history, NOW - 12 * 3600, NOW, 60)) == 12 * 360
    assert sum(count for _, count in counts(history, NOW - 12 * 3600, NOW, 3600)) == 12 * 360
    assert history.read("shop", "probe", NOW - 12 * 3600, NOW, 10).step_s == 60
    database.close()


def test_summing_up_again_and_again_changes_nothing(tmp_path: Path) -> None:
    history, database = written(tmp_path, 3)

    for later in range(0, 1300, 130):
        tidy(database, NOW + later, 64 << 20)
        assert sum(count for _, count in counts(history, NOW - 3 * 3600, NOW, 600)) == 3 * 360
    database.close()


def test_the_oldest_go_first_when_there_is_too_much(tmp_path: Path) -> None:
    history, database = written(tmp_path, 5, 1)
    for series in range(2, 40):
        database.execute("INSERT INTO series VALUES (?, 'shop', ?, 'probe')", (series, f"10.0.0.{series}:80"))
        database.execute("INSERT INTO rows SELECT span, ?, at, failures, state, times FROM rows WHERE series = 1", (series,))
    limit = 4 << 20

    tidy(database, NOW, limit)

    size, pages, free = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count"))
    assert size * (pages - free) <= limit
    found = counts(history, NOW - 5 * 3600, NOW, 600)
    assert found and found[-1][0] >= NOW - 1200, "the newest are there"
    database.close()


@given(
    st.integers(0, 20_000),
    st.integers(0, 20_000),
    st.sampled_from([10, 30, 60, 300, 600, 3600]),
    st.lists(st.integers(0, 20_000), min_size=4, max_size=4),
)
def test_a_plan_covers_what_is_kept_once_and_in_order(since: int, length: int, step: int, edges: list[int]) -> None:
    start60, end60, end600, start10 = sorted(edges)[0], sorted(edges)[3] // 60 * 60, sorted(edges)[2] // 600 * 600, sorted(edges)[1]
    bounds = {10: (start10, 0), 60: (start60, end60), 600: (0, end600)}

    parts = plan(since, since + length, step, bounds)

    assert all(low < high for _, low, high in parts)
    assert all(one[2] <= other[1] for one, other in pairwise(parts))
    assert all(since <= low and high <= since + length for _, low, high in parts)
    covered = {at for _, low, high in parts for at in range(low, high)}
    assert covered >= set(range(max(since, start10), since + length)), "what is kept finely is answered to the second"
    assert {span for span, _, _ in parts} <= set(SPANS)


# ---- from the world ----


def test_what_the_world_measured_is_what_is_kept() -> None:
    scene = Scene(4)
    scene.run(20.0)
    scene.answer(2, refused())
    scene.run(30.0)
    end = int(scene.now) // 10 * 10

    found = {(each.instance, each.source): each for each in rows(scene.world, scene.latencies, end - 10, end, scene.now) if each}

    assert set(found) == {("", "probe"), *((f"10.0.0.{i}:80", "probe") for i in range(1, 5))}
    assert found["10.0.0.1:80", "probe"].times.quantile(0.5) == pytest.approx(0.0005, rel=0.0055)
    assert State.of(found["10.0.0.1:80", "probe"].state) == State(Judgement.HEALTHY, Operator.READY, Serving.FULL)
    assert State.of(found["10.0.0.2:80", "probe"].state) == State(Judgement.EJECTED, Operator.READY, Serving.NONE)
    assert found["10.0.0.2:80", "probe"].failures > 0
    assert found["", "probe"].times.count == sum(each.times.count for (name, _), each in found.items() if name)


def test_ten_seconds_after_ten_seconds_nothing_is_missed_or_counted_twice() -> None:
    scene = Scene(2)
    kept_in_all = 0
    for _ in range(12):
        scene.run(10.0)
        end = int(scene.now) // 10 * 10
        kept_in_all += sum(
            each.times.count for each in rows(scene.world, scene.latencies, end - 10, end, scene.now) if each and not each.instance
        )
    end = int(scene.now) // 10 * 10

    late = scene.latencies.ended("shop", "probe", end, end, scene.now)
    assert late is None
    whole = scene.latencies.totals("shop", "probe").count
    scene.run(10.0)
    kept_in_all += sum(
        each.times.count for each in rows(scene.world, scene.latencies, end, end + 10, scene.now) if each and not each.instance
    )
    assert whole <= kept_in_all <= scene.latencies.totals("shop", "probe").count
