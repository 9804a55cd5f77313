"""A strict HTTP receiver: what it got, and answers as its script says."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.edges.publish.receiver import bound

Answering = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


async def ok(request: web.Request, body: bytes) -> web.StreamResponse:
    return web.Response(text="ok")


class Posted:
    """Listens on a free port. `bodies` and `headers` of every request, in order; `answer` may be changed while it runs."""

    def __init__(self, answer: Answering = ok, tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answer = answer
        self._tls = tls
        self._place: tuple[str, int] | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._place is not None
        host, port = self._place
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else host}:{port}"

    async def start(self) -> Posted:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{rest:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        if self._place is None:
            listening = bound()
        else:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self._place)
        self._place = listening.getsockname()
        await web.SockSite(self._runner, listening, ssl_context=self._tls).start()
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return await self.answer(request, body)


def answering(status: int, body: bytes = b"", **headers: str) -> Answering:
    async def answer(request: web.Request, got: bytes) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


async def never(request: web.Request, body: bytes) -> web.StreamResponse:
    """Takes everything and says nothing."""
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits so long")


async def endless(request: web.Request, body: bytes) -> web.StreamResponse:
    """Never ends its answer."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)
