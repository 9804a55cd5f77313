"""Documents to real receivers: rsyslog for JSON lines over TCP and UDP, an engine of OpenSearch's kind for `_bulk`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.model import Event
from sidecar.publish import Origin, Publisher, publishers
from sidecar.publish.options import PublishOptions
from sidecar.store.decisions import Decisions
from tests.core.lab import refused
from tests.edges.publish.programs import OpenSearch, Rsyslog
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene

pytestmark = pytest.mark.real

EVENTS = 10_000
DOCUMENTS = 2_500
"""The engine takes some milliseconds for each."""
HOSTILE = 'it said "é\u2028\x1b[31m' + "x" * 1500


@pytest.fixture(scope="module")
def rsyslog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rsyslog]:
    found = Rsyslog(tmp_path_factory.mktemp("rsyslog"))
    with found.run():
        yield found


@pytest.fixture
def scene() -> Scene:
    found = Scene(3)
    found.run(30.0)
    found.answer(2, refused())
    found.run(3.0)
    return found


def wall_of(at: float) -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(milliseconds=at)


def events(first: int, count: int) -> list[Event]:
    return [Event("ejected", float(i), "rule:slow", f"number {i}", "shop") for i in range(first, first + count)]


def publisher(settings: dict[str, Any], origin: Origin) -> Publisher:
    (found,) = publishers(PublishOptions.model_validate(settings), origin)
    return found


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_decisions_and_numbers_reach_rsyslog_whole(rsyslog: Rsyslog, scene: Scene, transport: str) -> None:
    decisions = Decisions(None, 0)
    settings = {"logstash": {"address": f"127.0.0.1:{rsyslog.port}", "transport": transport, "interval": "1s"}}
    found = publisher(settings, Origin(scene.samples, decisions, host=f"by-{transport}"))

    async with running(found.run):
        await asyncio.sleep(0)
        decisions.append([Event("held", 0.0, "hold:panic", HOSTILE, "shop")], wall_of)
        await until(lambda: {"event", "metric"} <= {each["event"]["kind"] for each in mine(rsyslog, f"by-{transport}")})

    told = [each for each in mine(rsyslog, f"by-{transport}") if each["event"]["kind"] == "event"]
    assert [each["message"] for each in told] == [HOSTILE]
    assert told[0]["@timestamp"] == "2026-03-01T12:00:00.000Z"
    judged = [each["lbsidecar"].get("judgement") for each in mine(rsyslog, f"by-{transport}") if "server" in each]
    assert "ejected" in judged
    assert rsyslog.bad() == ""


async def test_ten_thousand_lines_with_a_restart_in_between_lose_a_socket_buffer_at_most(tmp_path: Path) -> None:
    receiver = Rsyslog(tmp_path)
    decisions = Decisions(None, 0)
    settings = {"logstash": {"address": f"127.0.0.1:{receiver.port}", "interval": "1h"}}
    found = publisher(settings, Origin(list, decisions))

    async with running(found.run):
        with receiver.run():
            await until(lambda: found.count().connected)
            for first in range(0, EVENTS // 2, 500):
                decisions.append(events(first, 500), wall_of)
                await asyncio.sleep(0.01)
            await until(lambda: found.count().sent >= EVENTS // 4)
        for first in range(EVENTS // 2, EVENTS, 500):
            decisions.append(events(first, 500), wall_of)
            await asyncio.sleep(0.01)
        with receiver.run():
            await until(lambda: found.count().waiting == 0 and found.count().sent + found.count().dropped == EVENTS)
            await until(lambda: any(each["message"] == f"number {EVENTS - 1}" for each in receiver.documents()[-5:]))

    numbers = [int(each["message"].removeprefix("number ")) for each in receiver.documents()]
    assert len(set(numbers)) == len(numbers), "a line was sent twice"
    lost = found.count().sent - len(numbers)
    assert 0 <= lost <= found.count().unconfirmed == found.count().sent
    assert lost * len(json.dumps(receiver.documents()[0])) <= 8 << 20, "more than the kernel's buffers of one connection"
    assert receiver.bad() == ""


async def test_documents_by_bulk_with_a_restart_in_between_are_exact(tmp_path: Path) -> None:
    """What the engine had before its restart it has forgotten: it keeps documents in memory. What came after is all there, once."""
    engine = OpenSearch(tmp_path)
    decisions = Decisions(None, 0)
    found = publisher({"elasticsearch": {"url": engine.url, "interval": "1h"}}, Origin(list, decisions))

    async with running(found.run):
        with engine.run():
            decisions_in(decisions, 0, 500)
            await until(lambda: found.count().sent == 500)
            assert engine.search("logs-lbsidecar-default", {"size": 0, "track_total_hits": True})["hits"]["total"]["value"] == 500
        for first in range(500, DOCUMENTS, 250):
            decisions_in(decisions, first, 250)
            await asyncio.sleep(0.01)
        assert found.count().waiting > 0
        with engine.run():
            await until(lambda: found.count().sent + found.count().dropped == DOCUMENTS, patience_s=90.0)
            hits = engine.search("logs-lbsidecar-default", {"size": 0, "track_total_hits": True})["hits"]["total"]["value"]
            last = engine.search("logs-lbsidecar-default", {"query": {"term": {"event.id": str(DOCUMENTS)}}})["hits"]["hits"]

    assert found.count().dropped == found.count().unconfirmed == 0
    assert hits == DOCUMENTS - 500
    assert last[0]["_source"]["message"] == f"number {DOCUMENTS - 1}"


async def test_a_document_that_the_engine_refuses_is_counted_and_the_others_are_taken(tmp_path: Path) -> None:
    engine = OpenSearch(tmp_path)
    decisions = Decisions(None, 0)
    found = publisher({"elasticsearch": {"url": engine.url, "interval": "1h"}}, Origin(list, decisions))

    with engine.run():
        async with running(found.run):
            engine.put("logs-lbsidecar-default", {"mappings": {"properties": {"message": {"type": "integer"}}}})
            decisions.append([Event("held", 0.0, "hold:panic", text, "shop") for text in ("1", "no number", "3")], wall_of)
            await until(lambda: found.count().sent + found.count().dropped == 3)

    assert found.count().sent == 2
    assert found.count().dropped == 1


def mine(rsyslog: Rsyslog, host: str) -> list[dict[str, Any]]:
    return [each for each in rsyslog.documents() if each["host"]["name"] == host]


def decisions_in(decisions: Decisions, first: int, count: int) -> None:
    decisions.append(events(first, count), wall_of)
