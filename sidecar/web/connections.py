"""Limits of the listeners: how many connections, how long for headers, how long a reader may stall.

aiohttp closes no connection that sends half a request (slowloris); `Guarded` stands between the transport and aiohttp's protocol and does.
When a listener is full, the connection that has waited longest without a request makes room, so that half-open ones starve nobody.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from aiohttp import web

_FULL_BODY = b'{"error":"too many connections","cure":"close some, or try again in 1 s","status":503}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s"
) % (len(_FULL_BODY), _FULL_BODY)
HEAD_ENDS = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of one listener. `per_ip` holds for peers that are not this machine.

    `headers_s`: for a request's head. `request_s`: from there to the last byte of the answer; `?wait=` adds to it. `stalled_s`: how long a
    reader may take nothing. `unparsed_bytes`: most that may arrive without a whole head in it.
    """

    connections: int = 256
    per_ip: int = 64
    headers_s: float = 5.0
    request_s: float = 10.0
    stalled_s: float = 20.0
    unparsed_bytes: int = 128 << 10


DEFAULTS = Limits()


@dataclass(slots=True)
class Crowd:
    """All connections of one listener. `idle`: those without a request under way, the longest waiting first."""

    limits: Limits
    by_transport: dict[asyncio.BaseTransport, Guarded] = field(default_factory=dict)
    idle: OrderedDict[Guarded, None] = field(default_factory=OrderedDict)
    by_ip: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    def admit(self, newcomer: Guarded) -> bool:
        """Is there room, if need be by closing one that only waits?"""
        ip = newcomer.ip
        if ip and self.by_ip[ip] >= self.limits.per_ip and not self._make_room(ip):
            return False
        return len(self.by_transport) < self.limits.connections or self._make_room("")

    def busy(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request head has arrived on this connection."""
        if transport is not None and (guarded := self.by_transport.get(transport)) is not None:
            guarded.request_began()

    def free(self, transport: asyncio.BaseTransport | None) -> None:
        """Its answer is written."""
        if transport is not None and (guarded := self.by_transport.get(transport)) is not None:
            guarded.request_ended()

    def close(self) -> None:
        for each in list(self.by_transport.values()):
            each.drop()

    def _make_room(self, ip: str) -> bool:
        victim = next((g for g in self.idle if not ip or g.ip == ip), None)
        if victim is None:
            self.refused += 1
            return False
        victim.drop()
        return True


class Guarded(asyncio.Protocol):
    """One connection: counts it, gives its headers a deadline, and drops it when its reader stalls."""

    def __init__(self, inner: web.RequestHandler, crowd: Crowd) -> None:
        self.ip = ""
        self._inner = inner
        self._crowd = crowd
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._unparsed = 0
        self._has_head = False
        self._is_busy = False
        self._is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # listeners here are streams; uvloop's transports are no subclasses of asyncio's
        transport = self._transport = cast(asyncio.Transport, transport)
        self.ip = _remote_ip(transport.get_extra_info("peername"))
        if not self._crowd.admit(self):
            self._is_refused = True
            transport.write(_FULL)
            transport.close()
            return
        self._crowd.by_transport[transport] = self
        self._crowd.idle[self] = None
        self._crowd.by_ip[self.ip] += 1
        self._arm()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unparsed += len(data)
        if not self._is_busy:
            # behind a whole head comes its body: aiohttp, whose turn is next, stops reading by itself when it has enough
            self._has_head = self._has_head or HEAD_ENDS in data
            if not self._has_head and self._unparsed > self._crowd.limits.unparsed_bytes:
                self.drop()
                return
            if self._deadline is None:
                self._arm()
        self._inner.data_received(data)

    def eof_received(self) -> None:
        if not self._is_refused:
            self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._stalled is not None:
            self._stalled.cancel()
        if self._is_refused or self._transport is None:
            return
        self._forget()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if not self._is_refused:
            self._stalled = self._loop.call_later(self._crowd.limits.stalled_s, self.drop)
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if not self._is_refused:
            self._inner.resume_writing()

    def request_began(self) -> None:
        self._disarm()
        self._is_busy, self._has_head, self._unparsed = True, False, 0
        self._crowd.idle.pop(self, None)

    def request_ended(self) -> None:
        """From here the next head is awaited; if part of it may be here already, its time runs."""
        self._is_busy = False
        self._crowd.idle[self] = None
        if self._unparsed:
            self._arm()
        self._unparsed = 0

    def drop(self) -> None:
        """Close without waiting for what is unsent."""
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _forget(self) -> None:
        if self._transport is not None and self._crowd.by_transport.pop(self._transport, None) is not None:
            self._crowd.idle.pop(self, None)
            self._crowd.by_ip[self.ip] -= 1
            if self._crowd.by_ip[self.ip] <= 0:
                del self._crowd.by_ip[self.ip]

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self._loop.call_later(self._crowd.limits.headers_s, self.drop)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def guarded(server: Callable[[], web.RequestHandler], crowd: Crowd) -> Callable[[], Guarded]:
    """A protocol factory for `loop.create_server`."""
    return lambda: Guarded(server(), crowd)


def _remote_ip(peer: object) -> str:
    """The peer's IP; "" for this machine and unix sockets, to which the limit per IP does not apply."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    ip = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    plain = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None else ip
    return "" if plain.is_loopback else str(plain)


__all__ = ["DEFAULTS", "Crowd", "Guarded", "Limits", "guarded"]
