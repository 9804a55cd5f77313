"""The event stream: live, gapless after a reconnect, bounded, and rid of whoever does not read."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from sidecar.core.model import Event
from sidecar.web.stream import CLIENTS
from tests.edges.web.conftest import Serve, Surface, bearer

PATIENCE_S = 60.0


def tell(surface: Surface, *sentences: str, service: str = "shop") -> None:
    lab = surface.desk.lab
    lab.log.append([Event("held", lab.now, "rule:test", sentence, service) for sentence in sentences], lab.wall_of)


async def events(answer: aiohttp.ClientResponse, count: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            line = await answer.content.readline()
            assert line, "the stream ended early"
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


async def opened(answer: aiohttp.ClientResponse) -> None:
    """The stream is subscribed once its first line is here."""
    async with asyncio.timeout(PATIENCE_S):
        assert await answer.content.readline() == b"retry: 3000\n"


async def test_decisions_arrive_as_they_are_made(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.get("/api/v1/events") as answer:
        await opened(answer)
        tell(surface, "one", "two\n\ndata: forged")
        got = await events(answer, 2)

    assert answer.content_type == "text/event-stream"
    assert [d["sentence"] for d in got] == ["one", "two\n\ndata: forged"]
    assert {d["by"] for d in got} == {"rule:test"}


async def test_what_was_missed_comes_first(serve: Serve) -> None:
    surface = await serve()
    async with surface.tcp.get("/api/v1/events") as answer:
        await opened(answer)
        tell(surface, "seen")
        last = (await events(answer, 1))[0]["id"]
    tell(surface, "missed 1", "missed 2")

    async with surface.tcp.get("/api/v1/events", headers={"Last-Event-ID": str(last)}) as answer:
        missed = await events(answer, 2)
        tell(surface, "live")
        live = await events(answer, 1)

    assert [d["sentence"] for d in missed + live] == ["missed 1", "missed 2", "live"]


@pytest.mark.parametrize("sent", ["abc", "-1", "1" * 19, "1.5"])
async def test_an_id_that_is_none_is_told(serve: Serve, sent: str) -> None:
    surface = await serve()

    async with surface.tcp.get("/api/v1/events", headers={"Last-Event-ID": sent}) as answer:
        assert answer.status == 400


async def test_a_service_and_a_tokens_services_are_all_that_comes(serve: Serve) -> None:
    surface = await serve()

    async with (
        surface.tcp.get("/api/v1/events?service=api") as of_api,
        surface.tcp.get("/api/v1/events", headers=bearer("DEPLOY")) as of_token,
    ):
        await opened(of_api)
        await opened(of_token)
        tell(surface, "for api", service="api")
        tell(surface, "for shop")
        tell(surface, "for api again", service="api")
        api, token = await events(of_api, 2), await events(of_token, 1)

    assert [d["sentence"] for d in api] == ["for api", "for api again"]
    assert [d["sentence"] for d in token] == ["for shop"]
    async with surface.tcp.get("/api/v1/events?service=api", headers=bearer("DEPLOY")) as answer:
        assert answer.status == 403


async def test_silence_is_filled_with_heartbeats(serve: Serve) -> None:
    surface = await serve()
    surface.web.stream.heartbeat_s = 0.02

    async with surface.tcp.get("/api/v1/events") as answer:
        async with asyncio.timeout(PATIENCE_S):
            assert await answer.content.readuntil(b": still here\n\n")


async def test_no_more_than_so_many_listen_and_leaving_makes_room(serve: Serve) -> None:
    surface = await serve()
    async with aiohttp.ClientSession(surface.base, connector=aiohttp.TCPConnector(limit=0)) as session:
        streams = [await session.get("/api/v1/events") for _ in range(CLIENTS)]

        async with session.get("/api/v1/events") as answer:
            refused = (answer.status, answer.headers["Retry-After"])
        streams.pop().close()
        async with asyncio.timeout(PATIENCE_S):
            while surface.web.stream.listening == CLIENTS:
                await asyncio.sleep(0.01)
        async with session.get("/api/v1/events") as answer:
            again = answer.status
        for stream in streams:
            stream.close()

    assert (refused, again) == ((503, "15"), 200)


async def test_who_does_not_read_is_dropped_and_nobody_else_notices(serve: Serve) -> None:
    surface = await serve()
    surface.web.stream.write_s = 0.2
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", surface.port))
    lazy.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async with surface.tcp.get("/api/v1/events") as answer:
        await opened(answer)
        sent = 0
        async with asyncio.timeout(PATIENCE_S):
            while surface.web.stream.dropped == 0:
                tell(surface, *["x" * 2000] * 50)
                sent += 50
                await events(answer, 50)
        tell(surface, "still here")
        last = await events(answer, 1)

    lazy.close()
    assert last[0]["sentence"] == "still here"
    assert surface.web.stream.dropped == 1


async def test_closing_the_surface_ends_the_streams(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.get("/api/v1/events") as answer:
        await opened(answer)
        async with asyncio.timeout(PATIENCE_S):
            await surface.web.close()
            rest = await answer.content.read()

    assert rest.strip() == b""
    assert surface.web.stream.listening == 0
