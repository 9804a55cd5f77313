"""Real TCP receivers, good and bad, each on a free port below the range of outgoing ones."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Awaitable, Callable

from lbplugins.values import Address

PATIENCE_S = 30.0


def bound() -> socket.socket:
    """A socket bound to a free loopback port of 20000..31999, not listening: connecting to it is refused."""
    while True:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", random.randrange(20000, 32000)))
        except OSError:
            made.close()
            continue
        return made


class Receiver:
    """Listens, and treats each connection as its script says. `lines`: whole lines got; `connections`: how many came."""

    def __init__(
        self,
        *,
        read: bool = True,
        hang_up_after: int | None = None,
        rcvbuf: int | None = None,
        garbage: bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.lines: list[bytes] = []
        self.connections = 0
        self._read, self._hang_up_after, self._rcvbuf, self._garbage = read, hang_up_after, rcvbuf, garbage
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.address = Address("127.0.0.1", 0)

    async def start(self, at: Address | None = None) -> Receiver:
        if at is None:
            listening = bound()
        else:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(at)
        if self._rcvbuf:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
        self.address = Address(*listening.getsockname())
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=1 << 21, ssl=self._tls)
        return self

    async def stop(self) -> None:
        """Close the port and break every connection off."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            if self._garbage:
                writer.write(self._garbage)
            if not self._read:
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
                await asyncio.Event().wait()
            got = 0
            while line := await reader.readline():
                if line.endswith(b"\n"):
                    self.lines.append(line)
                    got += 1
                if self._hang_up_after is not None and got >= self._hang_up_after:
                    return
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for what must come true; the patience is for a busy machine, not a measure."""
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(make: Callable[[], Awaitable[None]]):  # type: ignore[no-untyped-def]  # a generator of nothing
    """A publisher's task for the length of the block, then cancelled as the application does."""
    task = asyncio.ensure_future(make())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
