"""What the history says over HTTP: steps for a chart, percentiles of any range."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from lbplugins.values import Operator
from sidecar.core.histogram import Histogram, merged
from sidecar.core.model import Event, Judgement, Serving
from sidecar.core.window import Source
from sidecar.store.decisions import Decisions, read
from sidecar.store.history import History, Row, State
from tests.edges.web.conftest import Serve, Surface, bearer
from tests.edges.web.desk import LabDesk, warm

BEGIN = 1_772_352_000  # 2026-03-01T08:00:00Z
RANGE = "since=2026-03-01T08:00:00Z&until=2026-03-01T08:10:00Z"
OUT = State(Judgement.EJECTED, Operator.READY, Serving.NONE)
WELL = State(Judgement.HEALTHY, Operator.READY, Serving.FULL)


class Past:
    """Ten minutes of two instances and one that is gone, in the desk's history; `s2` was out for the third minute."""

    def __init__(self, desk: LabDesk) -> None:
        self.history: History = desk.history
        self.times: dict[str, list[Histogram]] = {}
        chance = random.Random(5)
        for i in range(60):
            rows = [self._row(name, chance, 25, 12 <= i < 18) for name in ("10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:80")]
            whole = Row("shop", "", "probe", 0, 0, merged([each.times for each in rows]))
            self.history.append(BEGIN + 10 * i, [*rows, whole, self._row("10.0.0.1:80", chance, 3, False, "traffic")])
            if i % 20 == 19:  # more would not be waited for
                self._wait_for(BEGIN + 10 * i)

    def _wait_for(self, at: int) -> None:
        deadline = time.monotonic() + 30
        while not self.history.read("shop", "traffic", at, at + 10, 10).points:
            assert time.monotonic() < deadline, self.history.problem
            time.sleep(0.01)

    def _row(self, name: str, chance: random.Random, count: int, is_out: bool, source: Source = "probe") -> Row:
        times = Histogram()
        for _ in range(count):
            times.add(chance.lognormvariate(-5, 0.5))
        if source == "probe":
            self.times.setdefault(name, []).append(times)
        is_out = is_out and name == "10.0.0.2:80"
        return Row("shop", name, source, 2 * is_out, (OUT if is_out else WELL).number, times)


async def get(surface: Surface, path: str, token: str = "READ") -> tuple[int, Any]:
    async with surface.tcp.get(f"/api/v1/services/{path}", headers=bearer(token)) as answer:
        return answer.status, await answer.json()


async def test_a_series_has_every_step_of_every_instance(serve: Serve) -> None:
    surface = await serve()
    past = Past(surface.desk)

    status, found = await get(surface, f"shop/series?{RANGE}&step=60s")

    assert status == 200
    assert (found["source"], found["step_s"], found["since"]) == ("probe", 60, "2026-03-01T08:00:00.000Z")
    assert set(found["instances"]) == {"10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:80"}
    two = found["instances"]["10.0.0.2:80"]
    assert two["at"] == [BEGIN + 60 * i for i in range(10)]
    assert two["count"] == [150] * 10
    assert two["failures"] == [0, 0, 12, *[0] * 7]
    assert two["judgement"] == ["healthy", "healthy", "ejected", *["healthy"] * 7]
    assert two["serving"][2] == "none"
    minute = merged(past.times["10.0.0.2:80"][:6])
    assert two["p50"][0] == pytest.approx(minute.quantile(0.5), rel=1e-9)
    assert two["p90"][0] == pytest.approx(minute.quantile(0.9), rel=1e-9)
    assert two["p99"][0] is None, "150 are too few"
    assert two["max"][0] == pytest.approx(minute.max, rel=0.0055)
    assert found["service"]["count"] == [450] * 10
    assert found["service"]["judgement"] == [None] * 10


async def test_a_series_may_be_of_one_instance_and_of_real_traffic(serve: Serve) -> None:
    surface = await serve()
    Past(surface.desk)

    _, one = await get(surface, f"shop/series?{RANGE}&instance=10.0.0.1:80&source=traffic")

    assert list(one["instances"]) == ["10.0.0.1:80"]
    assert one["step_s"] == 10
    assert one["instances"]["10.0.0.1:80"]["count"] == [3] * 60
    assert one["instances"]["10.0.0.1:80"]["p50"] == [None] * 60


async def test_percentiles_of_any_range_are_those_of_all_values_in_it(serve: Serve) -> None:
    surface = await serve()
    past = Past(surface.desk)

    status, found = await get(surface, "shop/latency?since=2026-03-01T08:01:10Z&until=2026-03-01T08:07:40Z")

    assert status == 200
    assert set(found["instances"]) == {"s1", "s2", "10.9.9.9:80"}
    mine = merged(past.times["10.0.0.1:80"][7:46])
    assert found["instances"]["s1"]["count"] == mine.count == 39 * 25
    assert found["instances"]["s1"]["p90"]["value"] == pytest.approx(mine.quantile(0.9), rel=1e-9)
    whole = merged(each for times in past.times.values() for each in times[7:46])
    assert found["service"]["p99"]["value"] == pytest.approx(whole.quantile(0.99), rel=1e-9)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("shop/series?since=2026-03-01T08:10:00Z&until=2026-03-01T08:00:00Z", "since"),
        ("shop/series?since=yesterday", "since"),
        (f"shop/series?{RANGE}&step=fast", "step"),
        ("shop/series?since=2020-03-01T08:10:00Z&step=10s", "steps"),
        (f"shop/series?{RANGE}&window=1m", "window"),
        (f"shop/latency?{RANGE}&window=1m", "window"),
    ],
)
async def test_what_cannot_be_answered_is_said_with_its_cure(serve: Serve, path: str, word: str) -> None:
    status, found = await get(await serve(), path)

    assert status == 400
    assert word in found["error"] and found["cure"]


async def test_a_token_reads_the_past_of_its_own_services_only(serve: Serve) -> None:
    surface = await serve()

    assert (await get(surface, f"shop/series?{RANGE}", "DEPLOY"))[0] == 200
    assert (await get(surface, f"other/series?{RANGE}", "DEPLOY"))[0] == 403
    assert (await get(surface, f"other/series?{RANGE}"))[0] == 404


async def test_nothing_kept_is_an_empty_answer(serve: Serve) -> None:
    status, found = await get(await serve(), "shop/series")

    assert status == 200
    assert (found["instances"], found["service"]["at"]) == ({}, [])


async def test_decisions_of_any_age_are_read_over_memory_and_disk(serve: Serve, tmp_path: Path) -> None:
    desk = warm(seconds=2.0)
    desk.lab.log = Decisions(tmp_path / "decisions", 8 << 20, keep=20)
    for at in range(100):
        desk.lab.log.append([Event("held", desk.now() + at, "hold:max_ejected", f"number {at}", "shop")], desk.wall_of)
        while at % 50 == 49 and sum(1 for _ in read(tmp_path / "decisions")) <= at:
            time.sleep(0.01)
    surface = await serve(desk)

    found, cursor = [], ""
    while True:
        async with surface.tcp.get(f"/api/v1/decisions?limit=30{cursor}", headers=bearer("READ")) as answer:
            page = await answer.json()
        found += [each["sentence"] for each in page["decisions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == [f"number {at}" for at in reversed(range(100))]
    desk.lab.log.close()
