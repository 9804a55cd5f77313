"""Datagrams to a receiver that never answers: sent means given to the network; a refusal that comes back costs one of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from lbplugins.values import Address
from sidecar.net.dial import Resolver
from sidecar.publish.sink import CONNECT_WITHIN_S, FLUSH_WITHIN_S, LONGEST_WAIT_S, MAX_WAITING, Sink

MAX_DATAGRAM_BYTES = 65_507
"""UDP over IPv4 carries no more; a longer item is dropped and counted."""
AT_ONCE = 64
"""Datagrams between two turns of the loop."""
POLL_S = 0.001
SEND_WITHIN_S = 2.0


class Datagrams(Sink):
    """Items are whole datagrams."""

    def __init__(self, name: str, address: Address, *, max_waiting: int = MAX_WAITING, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        where = f"udp {address}"
        super().__init__(name, where, max_waiting=max_waiting, max_item_bytes=MAX_DATAGRAM_BYTES, longest_wait_s=longest_wait_s)
        self._address = address
        self._resolver = Resolver()

    async def _serve(self) -> None:
        deadline = asyncio.get_running_loop().time() + CONNECT_WITHIN_S
        family, where = await self._resolver.resolve(self._address.host, self._address.port, deadline)
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as out:
            out.connect(where)
            try:
                while True:
                    self._news.clear()
                    await self._send_waiting(out)
                    self._tell_back()
                    await self._news.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(FLUSH_WITHIN_S):
                        await self._send_waiting(out)
                raise

    async def _send_waiting(self, out: socket.socket) -> None:
        while batch := self._take(0, 1):
            try:
                async with asyncio.timeout(SEND_WITHIN_S):
                    while not _is_sent(out, batch[0]):
                        await asyncio.sleep(POLL_S)
            except BaseException:
                self._settle(dropped=1)
                raise
            self._settle(sent=1)
            if self._sent % AT_ONCE == 0:
                await asyncio.sleep(0)


def _is_sent(out: socket.socket, datagram: bytes) -> bool:
    """Whether the kernel took it; False = it has no room now."""
    try:
        out.send(datagram)
    except BlockingIOError:
        return False
    return True


__all__ = ["Datagrams"]
