"""Lines to a TCP receiver that may be away, slow, stuck or rude, at the price of those lines alone.

`offer` never waits: a full queue drops its oldest lines and counts them. One task writes. What was handed to the network counts as
sent, never as delivered: neither Graphite's nor Logstash's protocol tells. After any fault the batch under way is lost, not repeated.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Iterable
from typing import cast

from tenacity import AsyncRetrying, retry_if_exception_type, stop_never, wait_random_exponential

from lbplugins.values import Address
from sidecar.core.samples import SinkCount
from sidecar.net.dial import LookupFailed, NeverAsked, Resolver

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20
BATCH_BYTES = 16 << 10
"""Written at once, more only if one line is longer: a receiver must take so much within the write deadline."""
CONNECT_WITHIN_S = 3.0
WRITE_WITHIN_S = 2.0
FLUSH_WITHIN_S = 1.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 60.0
GOOD_CONDUCT_S = 5.0
"""A connection that held this long ends the row of failures, so that the next attempt comes at once."""
POLL_S = 0.001
"""Between two looks at what is left where the loop does not tell the moment."""
UNACKED_WITHIN_MS = 30_000
"""The kernel gives a connection up when the other side has confirmed nothing for so long."""

log = logging.getLogger("sidecar.publish")


class Sink:
    """One receiver. `run` is its task: connects, sends, connects again, for ever; cancelled, it sends what waits for 1 s at most."""

    def __init__(self, name: str, address: Address, *, max_waiting: int = MAX_WAITING, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self.name = name
        self.address = address
        self._max_waiting = max_waiting
        self._longest_wait_s = longest_wait_s
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._link: _Link | None = None
        self._sent = 0
        self._dropped = 0
        self._under_way = 0
        self._is_away = False
        self._resolver = Resolver()

    def offer(self, lines: Iterable[bytes]) -> None:
        """Take complete lines, each with its newline. Call it on the loop that runs `run`. Never waits."""
        for line in lines:
            if len(line) > MAX_LINE_BYTES:
                self._dropped += 1
                continue
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        while len(self._waiting) > self._max_waiting or self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._dropped += 1
        self._news.set()

    def count(self) -> SinkCount:
        """Lines sent, dropped and waiting; together all that were offered, except a batch just being written."""
        return SinkCount(self._sent, self._dropped, len(self._waiting), self._link is not None)

    async def run(self) -> None:
        """Serve the receiver until cancelled."""
        faults = (OSError, TimeoutError, LookupFailed, NeverAsked)
        wait = wait_random_exponential(multiplier=FIRST_WAIT_S, max=self._longest_wait_s, min=FIRST_WAIT_S)
        while True:
            async for attempt in AsyncRetrying(wait=wait, stop=stop_never, retry=retry_if_exception_type(faults), reraise=True):
                with attempt:
                    try:
                        await self._serve()
                    except faults as error:
                        self._tell_away(error)
                        raise

    async def _serve(self) -> None:
        """One connection from its beginning to its end; returns if it was a good one, else raises what ended it."""
        loop = asyncio.get_running_loop()
        link = await self._connect()
        began = loop.time()
        self._link = link
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
            self._link = None
            link.end()

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONNECT_WITHIN_S
        family, where = await self._resolver.resolve(self.address.host, self.address.port, deadline)
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_WITHIN_MS)
            async with asyncio.timeout_at(deadline):
                await loop.sock_connect(connection, where)
            if connection.getsockname() == connection.getpeername():
                # A dead port within the range of outgoing ports: TCP lets us connect to ourselves.
                raise ConnectionRefusedError("nothing listens there")
            _, link = await loop.create_connection(lambda: _Link(self._news), sock=connection)
        except BaseException:
            connection.close()
            raise
        return link

    async def _send_waiting(self, link: _Link, within_s: float) -> None:
        """All that waits, in batches, each within its own deadline."""
        self._news.clear()
        while True:
            link.check()
            batch = self._take_batch()
            if not batch:
                return
            self._under_way = len(batch)
            try:
                async with asyncio.timeout(within_s):
                    await link.send(b"".join(batch))
            except (OSError, TimeoutError):
                self._settle(was_sent=False)
                raise
            self._settle(was_sent=True)

    def _settle(self, *, was_sent: bool) -> None:
        """Count the batch under way."""
        if was_sent:
            self._sent += self._under_way
        else:
            self._dropped += self._under_way
        self._under_way = 0

    def _take_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0]) <= BATCH_BYTES):
            line = self._waiting.popleft()
            size += len(line)
            batch.append(line)
        self._waiting_bytes -= size
        return batch

    async def _last_words(self, link: _Link) -> None:
        """Send what waits, unless that takes longer than a farewell may."""
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                await link.settled()
                self._settle(was_sent=True)
                await self._send_waiting(link, FLUSH_WITHIN_S)
        except (OSError, TimeoutError) as error:
            self._settle(was_sent=False)
            log.debug("sink %s: %d lines are lost at the end: %s", self.name, len(self._waiting), error)

    def _tell_away(self, error: Exception) -> None:
        """Once for each outage."""
        if not self._is_away:
            self._is_away = True
            why = str(error) or type(error).__name__
            if isinstance(error, ConnectionRefusedError):
                why = "connection refused, nothing listens there"
            elif isinstance(error, TimeoutError):
                why = "it takes too long"
            log.warning(
                "%s at %s cannot be sent to: %s. It is tried again for ever and only its own lines are lost; check publish.%s.address",
                self.name,
                self.address,
                why,
                self.name,
            )

    def _tell_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.warning("%s at %s takes lines again; %d were lost so far", self.name, self.address, self._dropped)


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


__all__ = ["MAX_WAITING", "Sink"]
