"""Real carbon and graphite-web: what the render API says is what we said, also after carbon was away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.model import Event
from sidecar.core.samples import Sample
from sidecar.publish import Origin, publishers
from sidecar.publish.options import PublishOptions
from sidecar.store.decisions import Decisions
from tests.core.lab import refused
from tests.edges.publish.programs import Graphite, get_json
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene, quantiles

pytestmark = pytest.mark.real


class Switched(Graphite):
    """With carbon running, until it is switched off and on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stack = contextlib.ExitStack()

    def on(self) -> None:
        self._stack.enter_context(self.carbon())

    def off(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def graphite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switched]:
    found = Switched(tmp_path_factory.mktemp("graphite"))
    with found.web():
        found.on()
        yield found
        found.off()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    scene = Scene(3)
    scene.run(90.0)
    scene.answer(2, refused())
    scene.run(3.0)
    return [each for each in scene.samples() if "latency" in each.name or "judgement" in each.name]


def options(graphite: Graphite, **more: Any) -> PublishOptions:
    port = graphite.pickle_port if more.get("format") == "pickle" else graphite.line_port
    return PublishOptions.model_validate({"graphite": {"address": f"127.0.0.1:{port}", "interval": "1s", **more}})


async def shown(graphite: Graphite, target: str, wanted: int = 1) -> list[tuple[float, int]]:
    """The points of a series, once there are so many."""
    points: list[tuple[float, int]] = []
    async with asyncio.timeout(60):
        while len(points) < wanted:
            await asyncio.sleep(0.2)
            points = await asyncio.to_thread(graphite.points, target)
    return points


async def test_percentiles_read_back_are_ours_in_every_format(graphite: Graphite, samples: list[Sample]) -> None:
    medians = [each for each in samples if each.kind == "summary"]
    p90 = dict(quantiles(samples, "service_latency_seconds").values)[0.9]
    p50 = dict(quantiles(samples, "instance_latency_seconds", address="10.0.0.1:80").values)[0.5]

    async with contextlib.AsyncExitStack() as stack:
        for form in ("plaintext", "pickle"):
            for tags in (False, True):
                told = medians if tags else samples  # a tagged series costs graphite-web a transaction
                origin = Origin(partial(list, told), Decisions(None, 0))
                (publisher,) = publishers(options(graphite, format=form, prefix=f"{form}_{tags}", tags=tags), origin)
                await stack.enter_async_context(running(publisher.run))
        for form in ("plaintext", "pickle"):
            assert (await shown(graphite, f"{form}_False.shop.all.latency.probe.p90"))[0][0] == pytest.approx(p90, rel=1e-9)
            assert (await shown(graphite, f"{form}_False.shop.10_0_0_1_80.latency.probe.p50"))[0][0] == pytest.approx(p50, rel=1e-9)
            assert (await shown(graphite, f"{form}_False.shop.10_0_0_2_80.judgement.ejected"))[0][0] == 1.0
            name = f"name={form}_True.instance_latency_seconds"
            assert (await shown(graphite, f"seriesByTag('{name}','address=10.0.0.1:80','quantile=0.5')"))[0][0] == pytest.approx(p50)


async def test_what_was_measured_while_carbon_was_away_is_there_when_it_is_back(graphite: Switched, samples: list[Sample]) -> None:
    counted = 0

    def now() -> list[Sample]:
        nonlocal counted
        counted += 1
        return [Sample("lbsidecar_uptime_seconds", "gauge", float(counted), (), "seconds", "How often we were asked.")]

    found = publishers(options(graphite, prefix="gap"), Origin(now, Decisions(None, 0)))
    async with running(found[0].run):
        await shown(graphite, "gap._sidecar.uptime", 2)
        await asyncio.to_thread(graphite.off)
        before = counted
        await until(lambda: counted >= before + 4)
        assert found[0].count().waiting >= 1
        await asyncio.to_thread(graphite.on)
        await until(lambda: found[0].count().waiting == 0)
        points = await shown(graphite, "gap._sidecar.uptime", before + 2)

    values = [value for value, _ in points]
    lost = found[0].count().dropped
    missing = set(range(1, int(values[-1]) + 1)) - {int(each) for each in values}
    assert values == sorted(values)
    assert len(missing) <= 1 + lost, "a line in the socket's buffer when carbon died is lost, no other"
    assert {before + 2, before + 3} <= set(values)


async def test_decisions_become_annotations(graphite: Graphite) -> None:
    decisions = Decisions(None, 0)
    found = publishers(options(graphite, events=f"{graphite.url}/events/"), Origin(list, decisions))
    publisher = found[1]
    when = datetime.now(UTC)

    async with running(publisher.run):
        await asyncio.sleep(0)
        decisions.append(
            [
                Event("ejected", 0.0, "rule:consecutive", 'shop/10.0.0.5:8080 ejected: it said "é"', "shop"),
                Event("suspect", 0.0, "sidecar", "not worth a mark", "shop"),
            ],
            lambda _: when,
        )
        await until(lambda: publisher.count().sent == 1)

    (event,) = await asyncio.to_thread(get_json, f"{graphite.url}/events/get_data", tags="lbsidecar")
    assert event["what"] == 'shop/10.0.0.5:8080 ejected: it said "é"'
    assert sorted(event["tags"]) == ["ejected", "lbsidecar", "shop"]
    assert event["when"] == int(when.timestamp())
    assert publisher.count().dropped == 0
