"""Lines to a TCP receiver, plain or TLS, that may be away, slow, stuck or rude, at the price of those lines alone.

What was handed to the network counts as sent, never as delivered: neither Graphite's nor Logstash's line protocol tells. After any fault
the batch under way is lost, not repeated.
"""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from lbplugins.values import Address
from sidecar.net.dial import Resolver
from sidecar.net.tls import TlsOptions, client_context
from sidecar.publish.sink import CONNECT_WITHIN_S, FLUSH_WITHIN_S, LONGEST_WAIT_S, MAX_WAITING, Away, Sink, log

BATCH_BYTES = 16 << 10
"""Written at once, more only if one line is longer: a receiver must take so much within the write deadline."""
WRITE_WITHIN_S = 2.0
GOOD_CONDUCT_S = 5.0
"""A connection that held this long ends the row of failures, so that the next attempt comes at once."""
POLL_S = 0.001
"""Between two looks at what is left where the loop does not tell the moment."""
UNACKED_WITHIN_MS = 30_000
"""The kernel gives a connection up when the other side has confirmed nothing for so long."""
SHUTDOWN_WITHIN_S = 1.0


class Stream(Sink):
    """Items are complete lines, or frames, written one after another."""

    def __init__(
        self,
        name: str,
        address: Address,
        tls: TlsOptions | None = None,
        *,
        max_waiting: int = MAX_WAITING,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        super().__init__(name, str(address), max_waiting=max_waiting, longest_wait_s=longest_wait_s)
        self._address = address
        self._tls = tls
        self._resolver = Resolver()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        link = await self._connect()
        began = loop.time()
        try:
            while True:
                await self._send_waiting(link, WRITE_WITHIN_S)
                self._tell_back()
                await self._news.wait()
        except (OSError, TimeoutError) as error:
            if loop.time() - began < GOOD_CONDUCT_S:
                raise
            self._tell_away(error)
        except asyncio.CancelledError:
            await self._last_words(link)
            raise
        finally:
            link.end()

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONNECT_WITHIN_S
        try:
            context = None if self._tls is None else await asyncio.to_thread(client_context, self._tls)
        except ValueError as error:
            raise Away(str(error)) from error
        family, where = await self._resolver.resolve(self._address.host, self._address.port, deadline)
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_WITHIN_MS)
            async with asyncio.timeout_at(deadline):
                await loop.sock_connect(connection, where)
                if connection.getsockname() == connection.getpeername():
                    # A dead port within the range of outgoing ports: TCP lets us connect to ourselves.
                    raise ConnectionRefusedError("nothing listens there")
                link = _Link(self._news)
                if context is None or self._tls is None:
                    await loop.create_connection(lambda: link, sock=connection)
                else:
                    name = self._tls.server_name or self._address.host
                    await loop.create_connection(
                        lambda: link, sock=connection, ssl=context, server_hostname=name, ssl_shutdown_timeout=SHUTDOWN_WITHIN_S
                    )
        except BaseException:
            connection.close()
            raise
        return link

    async def _send_waiting(self, link: _Link, within_s: float) -> None:
        """All that waits, in batches, each within its own deadline."""
        self._news.clear()
        while True:
            link.check()
            batch = self._take(BATCH_BYTES, MAX_WAITING)
            if not batch:
                return
            try:
                async with asyncio.timeout(within_s):
                    await link.send(b"".join(batch))
            except (OSError, TimeoutError):
                self._settle(dropped=len(batch))
                raise
            self._settle(sent=len(batch))

    async def _last_words(self, link: _Link) -> None:
        """Send what waits, unless that takes longer than a farewell may."""
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                await link.settled()
                self._settle(sent=self._under_way)
                await self._send_waiting(link, FLUSH_WITHIN_S)
        except (OSError, TimeoutError) as error:
            self._settle(dropped=self._under_way)
            log.debug("sink %s: %d lines are lost at the end: %s", self.name, len(self._waiting), error)


class _Link(asyncio.Protocol):
    """One connection. Whatever the receiver says is thrown away; that it hangs up is `check`'s news."""

    def __init__(self, news: asyncio.Event) -> None:
        self._news = news
        self._transport: asyncio.Transport | None = None
        self._why: Exception | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # cast: uvloop's transports do what asyncio's do without being of their class
        self._transport = cast(asyncio.Transport, transport)
        # Nothing may lie in our own buffer: `send` ends when the kernel has it all.
        self._transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        self._ended(ConnectionResetError("the receiver hung up"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc or ConnectionResetError("the receiver hung up"))

    def check(self) -> None:
        """ConnectionError or whatever ended the connection, if it has ended."""
        if self._why is not None:
            raise ConnectionResetError(str(self._why)) from self._why

    async def send(self, data: bytes) -> None:
        """Hand it to the kernel; returns when all of it is there."""
        assert self._transport is not None
        self._transport.write(data)
        await self.settled()

    async def settled(self) -> None:
        """Wait until the kernel has everything that was sent."""
        await asyncio.sleep(0)  # uvloop writes at the end of its turn
        while self._why is None and self._left():
            await self._writable.wait()
            if self._left():
                await asyncio.sleep(POLL_S)
        self.check()

    def end(self) -> None:
        """Close at once; what the kernel does not have yet is lost."""
        if self._transport is None:
            return
        if self._left():
            self._transport.abort()
        else:
            self._transport.close()

    def _left(self) -> int:
        """Bytes that the kernel does not have yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _ended(self, why: Exception) -> None:
        self._why = self._why or why
        self._writable.set()
        self._news.set()


__all__ = ["Stream"]
