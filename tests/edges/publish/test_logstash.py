"""Logstash documents: the shape ECS wants, one line each, and the stream of decisions to a real receiver."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Event
from sidecar.publish import Origin, publishers
from sidecar.publish.ecs import decision, line, numbers
from sidecar.publish.options import LogstashOptions, PublishOptions
from sidecar.store.decisions import Decisions, Record
from tests.core.lab import refused
from tests.edges.publish.receiver import Receiver, bound, running, until
from tests.edges.publish.scene import Scene

WHEN = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def wall_of(at: float) -> datetime:
    return WHEN + timedelta(seconds=at)


def test_a_decision_is_an_ecs_event() -> None:
    record = Record(7, WHEN, "ejected", "rule:consecutive", "shop/10.0.0.5:8080 ejected: 4 timeouts", "shop", "10.0.0.5:8080")

    document = decision(record, "lb-1")

    assert document == {
        "@timestamp": "2026-03-01T12:00:00.250Z",
        "@version": "1",
        "ecs": {"version": "8.11.0"},
        "message": "shop/10.0.0.5:8080 ejected: 4 timeouts",
        "log": {"level": "warning"},
        "host": {"name": "lb-1"},
        "service": {"name": "shop"},
        "server": {"address": "10.0.0.5", "ip": "10.0.0.5", "port": 8080},
        "event": {
            "kind": "event",
            "dataset": "lbsidecar.decision",
            "action": "ejected",
            "category": ["network"],
            "type": ["change"],
            "outcome": "success",
            "id": "7",
        },
        "lbsidecar": {"instance": "10.0.0.5:8080", "by": "rule:consecutive", "enforced": True, "evidence": [], "holds": []},
    }


@pytest.mark.parametrize(
    ("instance", "server"),
    [
        ("[::1]:80", {"address": "::1", "ip": "::1", "port": 80}),
        ("web-1:80", {"address": "web-1", "port": 80}),
    ],
)
def test_an_ip_is_told_only_where_there_is_one(instance: str, server: dict[str, Any]) -> None:
    assert decision(Record(1, WHEN, "healthy", "sidecar", "x", "shop", instance), "lb-1")["server"] == server


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_nothing_that_was_said_can_start_a_second_line(text: str) -> None:
    written = line(decision(Record(1, WHEN, "held", text, text, "shop"), "lb-1"))

    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    assert written.isascii()
    assert json.loads(written)["message"] == text


def test_numbers_are_one_document_for_each_service_and_instance() -> None:
    scene = Scene(3)
    scene.run(30.0)
    scene.answer(2, refused())
    scene.run(3.0)

    found = {
        (d["service"]["name"], d.get("lbsidecar", {}).get("instance", "")): d
        for d in numbers(scene.samples(), "lb-1", WHEN)
        if d is not None
    }

    assert set(found) == {("shop", ""), ("shop", "10.0.0.1:80"), ("shop", "10.0.0.2:80"), ("shop", "10.0.0.3:80")}
    assert found["shop", "10.0.0.2:80"]["lbsidecar"]["judgement"] == "ejected"
    assert found["shop", "10.0.0.2:80"]["lbsidecar"]["serving"] == 0
    assert found["shop", ""]["lbsidecar"]["in_rotation"] == 2
    assert found["shop", ""]["lbsidecar"]["latency"]["probe"]["count"] > 20
    assert found["shop", "10.0.0.1:80"]["lbsidecar"]["latency"]["probe"]["p50"] == pytest.approx(0.0005, rel=0.0055)
    assert found["shop", ""]["event"] == {"kind": "metric", "dataset": "lbsidecar.numbers"}
    for document in found.values():
        assert json.loads(line(document)) == document


async def test_every_decision_reaches_the_receiver_at_once() -> None:
    receiver = await Receiver().start()
    decisions = Decisions(None, 0)
    (publisher,) = publishers(PublishOptions(logstash=LogstashOptions(address=receiver.address)), Origin(list, decisions))
    async with running(publisher.run):
        await until(lambda: publisher.count().connected)
        decisions.append([Event("ejected", float(i), "rule:slow", f"number {i}", "shop") for i in range(500)], wall_of)
        await until(lambda: len(receiver.lines) == 500)
    await receiver.stop()

    assert [json.loads(each)["message"] for each in receiver.lines] == [f"number {i}" for i in range(500)]


async def test_both_publishers_send_their_numbers_to_real_receivers() -> None:
    scene = Scene(2)
    scene.run(30.0)
    one, other = await Receiver().start(), await Receiver().start()
    options = PublishOptions.model_validate(
        {"graphite": {"address": one.address, "interval": "1s"}, "logstash": {"address": other.address, "interval": "1s"}}
    )
    found = publishers(options, Origin(scene.samples, Decisions(None, 0)))

    async with running(found[0].run), running(found[1].run):
        await until(lambda: len(one.lines) > 20 and len(other.lines) >= 3)
    await one.stop()
    await other.stop()

    assert [publisher.name for publisher in found] == ["graphite", "logstash"]
    assert any(each.startswith(b"lbsidecar.shop.all.latency.probe.p50 0.0005") for each in one.lines)
    assert {json.loads(each)["event"]["kind"] for each in other.lines} == {"metric"}


async def test_a_dead_receiver_delays_neither_decisions_nor_the_end() -> None:
    place = bound()
    decisions = Decisions(None, 0)
    (publisher,) = publishers(PublishOptions(logstash=LogstashOptions(address=Address(*place.getsockname()))), Origin(list, decisions))
    async with running(publisher.run) as task:
        for _ in range(24):
            decisions.append([Event("held", 0.0, "hold:panic", "x", "shop")] * 500, wall_of)
            await asyncio.sleep(0)
        await until(lambda: publisher.count().waiting + publisher.count().dropped == 12_000)
        assert publisher.count().waiting == 10_000
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)
    place.close()


def test_nothing_configured_publishes_nothing() -> None:
    assert publishers(PublishOptions(), Origin(list, Decisions(None, 0))) == []
