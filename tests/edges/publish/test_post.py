"""A posting sink against receivers that are good, away, slow, refusing, overloaded, lying or endless."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from sidecar.net.secret import Secret
from sidecar.net.tls import TlsOptions
from sidecar.publish.post import Post, Receiver
from sidecar.publish.sinks import _array
from tests.edges.publish.posted import Posted, answering, endless, never, ok
from tests.edges.publish.receiver import bound, running, until


@pytest.fixture
async def receiver() -> AsyncIterator[Posted]:
    found = await Posted().start()
    yield found
    await found.stop()


def post(url: str | Secret, **more: Any) -> Post:
    max_waiting = more.pop("max_waiting", 10_000)
    return Post("logstash", Receiver(url, _array, "application/json", **more), max_waiting=max_waiting, longest_wait_s=0.2)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(start, start + count)]


def got(receiver: Posted) -> list[int]:
    return [number for body in receiver.bodies for number in json.loads(body)]


def whole(sink: Post) -> int:
    count = sink.count()
    return count.sent + count.dropped + count.waiting + sink._under_way


async def test_batches_arrive_in_order_with_their_headers(receiver: Posted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("LOGS_KEY", "a-long-enough-key")
    sink = post(receiver.url, batch=100, headers={"Authorization": Secret("env:LOGS_KEY")})
    async with running(sink.run):
        sink.offer(numbered(250))
        await until(lambda: sink.count().sent == 250)

    assert got(receiver) == list(range(250))
    assert len(receiver.bodies) == 3
    assert receiver.headers[0]["Authorization"] == "a-long-enough-key"
    assert receiver.headers[0]["Content-Type"] == "application/json"


async def test_ten_thousand_events_with_a_restart_in_between_lose_none(receiver: Posted) -> None:
    sink = post(receiver.url, batch=500, max_waiting=10_000)
    async with running(sink.run):
        for start in range(0, 10_000, 500):
            sink.offer(numbered(500, start))
            if start == 3000:
                await receiver.stop()
            if start == 6000:
                await until(lambda: not sink.count().connected)
                await receiver.start()
            await asyncio.sleep(0.01)
        await until(lambda: whole(sink) == 10_000 and sink.count().waiting == 0)

    assert sorted(set(got(receiver))) == list(range(10_000))
    assert sink.count().sent == 10_000
    assert sink.count().dropped == 0


async def test_what_was_produced_is_what_was_sent_and_dropped_and_waits(receiver: Posted) -> None:
    await receiver.stop()
    sink = post(receiver.url, batch=100, max_waiting=1000)
    async with running(sink.run):
        for start in range(0, 5000, 100):
            sink.offer(numbered(100, start))
            assert whole(sink) == start + 100
            await asyncio.sleep(0)
        assert sink.count().dropped >= 3900
        await receiver.start()
        await until(lambda: sink.count().waiting == 0 and sink._under_way == 0)

    assert sink.count().sent + sink.count().dropped == 5000
    assert len(got(receiver)) == sink.count().sent
    assert got(receiver)[-1] == 4999


@pytest.mark.parametrize("status", [429, 500, 503, 401, 404, 302])
async def test_who_cannot_take_it_now_gets_it_later(receiver: Posted, status: int) -> None:
    receiver.answer = answering(status, b"busy", Location="http://127.0.0.1:1/")
    sink = post(receiver.url)
    async with running(sink.run):
        sink.offer(numbered(10))
        await until(lambda: len(receiver.bodies) >= 2)
        assert whole(sink) == 10
        assert sink.count().dropped == 0
        receiver.answer = ok
        await until(lambda: sink.count().sent == 10)


async def test_what_is_refused_for_good_is_dropped_counted_and_told_once(receiver: Posted, caplog: pytest.LogCaptureFixture) -> None:
    receiver.answer = answering(400, b"field [host] of type [text]\n\x1b[31m")
    sink = post(receiver.url, batch=5)
    with caplog.at_level(logging.WARNING, "sidecar.publish"):
        async with running(sink.run):
            sink.offer(numbered(20))
            await until(lambda: sink.count().dropped == 20)

    assert len(receiver.bodies) == 4
    (record,) = caplog.records
    assert "field [host] of type [text]" in record.message
    assert record.message.isprintable()


async def test_a_batch_that_is_too_large_is_halved_until_it_fits(receiver: Posted) -> None:
    async def small(request: web.Request, body: bytes) -> web.StreamResponse:
        return web.Response(status=413 if len(json.loads(body)) > 3 else 200)

    receiver.answer = small
    sink = post(receiver.url, batch=1000)
    async with running(sink.run):
        sink.offer(numbered(20))
        await until(lambda: sink.count().sent == 20)

    assert sink.count().dropped == 0


async def test_the_receiver_says_how_long_to_stay_away(receiver: Posted) -> None:
    receiver.answer = answering(503, Retry_After="2")
    sink = post(receiver.url)
    loop = asyncio.get_running_loop()
    async with running(sink.run):
        sink.offer(numbered(1))
        await until(lambda: len(receiver.bodies) == 1)
        began = loop.time()
        await until(lambda: len(receiver.bodies) == 2)

        assert loop.time() - began >= 1.9


async def test_an_endless_answer_is_cut_off_and_nothing_is_lost(receiver: Posted) -> None:
    receiver.answer = endless
    sink = post(receiver.url)
    async with running(sink.run):
        sink.offer(numbered(10))
        await until(lambda: len(receiver.bodies) >= 2)
        receiver.answer = ok
        await until(lambda: sink.count().sent == 10)


async def test_a_black_hole_delays_neither_the_loop_nor_the_end(receiver: Posted) -> None:
    receiver.answer = never
    sink = post(receiver.url, max_waiting=100)
    async with running(sink.run) as task:
        sink.offer(numbered(10))
        await until(lambda: len(receiver.bodies) == 1)
        for start in range(10, 1010, 100):
            sink.offer(numbered(100, start))
            assert whole(sink) == start + 100
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)
    assert whole(sink) == 1010
    assert sink.count().sent == 0


async def test_what_waits_is_sent_before_the_end(receiver: Posted) -> None:
    sink = post(receiver.url, batch=100)
    async with running(sink.run) as task:
        await until(lambda: not sink._waiting)
        await asyncio.sleep(0.05)
        sink.offer(numbered(1000))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert got(receiver) == list(range(1000))


async def test_an_answer_that_is_on_its_way_at_the_end_still_counts(receiver: Posted) -> None:
    async def late(request: web.Request, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response()

    receiver.answer = late
    sink = post(receiver.url)
    async with running(sink.run) as task:
        sink.offer(numbered(10))
        await until(lambda: len(receiver.bodies) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert sink.count().sent == 10
    assert len(receiver.bodies) == 1


async def test_a_refused_connection_and_a_missing_secret_are_only_outages(caplog: pytest.LogCaptureFixture) -> None:
    place = bound()
    away = post(f"http://127.0.0.1:{place.getsockname()[1]}/")
    secretless = post(Secret("env:NO_SUCH_VARIABLE_HERE"))
    with caplog.at_level(logging.WARNING, "sidecar.publish"):
        async with running(away.run), running(secretless.run):
            away.offer(numbered(1))
            secretless.offer(numbered(1))
            await until(lambda: len(caplog.records) == 2)
    place.close()

    assert "nothing listens there" in caplog.text
    assert "NO_SUCH_VARIABLE_HERE" in caplog.text
    assert away.count().waiting == secretless.count().waiting == 1


async def test_tls_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    receiver = await Posted(tls=context).start()
    trusting, doubting = post(receiver.url, tls=TlsOptions(ca=tmp_path / "ca.pem")), post(receiver.url)
    async with running(trusting.run), running(doubting.run):
        trusting.offer(numbered(3))
        doubting.offer(numbered(3))
        await until(lambda: trusting.count().sent == 3 and doubting._is_away)
    await receiver.stop()

    assert doubting.count().waiting == 3
    assert len(receiver.bodies) == 1
