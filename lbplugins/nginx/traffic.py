"""Real requests as nginx logs them, by syslog: one sample per attempt, charged to the address that was asked.

In nginx.conf (`LOG_FORMAT` below, then):

    access_log syslog:server=127.0.0.1:5515,tag=lb,nohostname,severity=info lb_sidecar;
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import stat
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from lbplugins.api import BalancerError
from lbplugins.nginx.files import who
from lbplugins.values import Address, TrafficSample

LOG_FORMAT = (
    "log_format lb_sidecar '$msec|$upstream_addr|$upstream_status|$upstream_response_time|$upstream_connect_time"
    "|$upstream_header_time|$status|$request_time|$request_method|$uri';"
)
MAX_WAITING = 10_000
"""Samples kept for a slow reader; beyond, the oldest are dropped and counted."""
MAX_BATCH = 1_000
MAX_ATTEMPTS = 100
READS_PER_TURN = 256
RECEIVE_BYTES = 1 << 20

_ATTEMPTS = re.compile(r", | : ")
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,6})?")
CLIENT_CLOSED, TIMED_OUT = "499", "504"


def samples(datagram: bytes, at: float, *, forgeable: bool = False) -> list[TrafficSample]:
    """The attempts of one logged request, in order; empty for a line that is not in our format, or names no server's address.

    With no server to ask, nginx logs the upstream's name in the address's place: that is nobody's failure.
    """
    _, found, line = datagram.decode("utf-8", "replace").rstrip("\r\n\0").partition(": ")
    fields = line.split("|", 9)
    if not found or len(fields) != 10:
        return []
    addresses, statuses, headers = (_ATTEMPTS.split(fields[number]) for number in (1, 2, 5))
    if not len(addresses) == len(statuses) == len(headers) <= MAX_ATTEMPTS:
        return []
    result = []
    for tried, (text, status, header) in enumerate(zip(addresses, statuses, headers, strict=True)):
        address = _address(text)
        if address is not None:
            has_left = fields[6] == CLIENT_CLOSED and tried == len(addresses) - 1
            result.append(_sample(address, status, header, tried, has_left, at, forgeable))
    return result


def _sample(address: Address, status: str, header: str, tried: int, has_left: bool, at: float, forgeable: bool) -> TrafficSample:
    if _SECONDS.fullmatch(header):
        code = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 0
        return TrafficSample(address, code, float(header), tried, "client" if has_left else "", at, forgeable)
    # No header came, so 502 and 504 are nginx's own words: what the server said is nothing.
    cut_by = "client" if has_left else "balancer" if status == TIMED_OUT else "server"
    return TrafficSample(address, 0, None, tried, cut_by, at, forgeable)


def _address(text: str) -> Address | None:
    with contextlib.suppress(ValueError):
        address = Address.parse(text)
        ipaddress.ip_address(address.host)
        return address
    return None


class Feed(AsyncIterator[Sequence[TrafficSample]]):
    """Batches of samples from one socket, opened at the first request for a batch; `dropped` counts what a slow reader missed."""

    def __init__(self, where: str) -> None:
        self.dropped = 0
        self._where = where
        self._socket: socket.socket | None = None
        self._waiting: deque[TrafficSample] = deque(maxlen=MAX_WAITING)
        self._news = asyncio.Event()
        self._is_closed = False

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Sequence[TrafficSample]:
        if self._socket is None and not self._is_closed:
            self._socket = _listen(self._where)
            asyncio.get_running_loop().add_reader(self._socket, self._read)
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]

    def close(self) -> None:
        """No more batches; whoever waits for one is told so. Safe twice; call it in the loop that reads."""
        self._is_closed = True
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            if self._where.startswith("unix:"):
                with contextlib.suppress(OSError):
                    os.unlink(self._where.removeprefix("unix:"))
        self._news.set()

    def _read(self) -> None:
        """Takes what has come, a bounded number at a time so that a flood does not hold the loop."""
        at = time.monotonic()
        for _ in range(READS_PER_TURN):
            if self._socket is None:
                return
            try:
                datagram = self._socket.recv(65_535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP error of somebody's datagram: not ours
                continue
            found = samples(datagram, at, forgeable=not self._where.startswith("unix:"))
            self.dropped += max(0, len(self._waiting) + len(found) - MAX_WAITING)
            self._waiting.extend(found)
            if found:
                self._news.set()


def _listen(where: str) -> socket.socket:
    """A bound datagram socket. BalancerError says why not."""
    path = where.removeprefix("unix:") if where.startswith("unix:") else None
    host, _, port = where.rpartition(":")
    try:
        if path is not None:
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            target: str | tuple[str, int] = path
        else:
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_DGRAM)
            target = (host, int(port))
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            listener.bind(target)
            if path is not None:
                # nginx's workers write here, as a user of their own; the directory says who may come.
                os.chmod(path, 0o666)  # noqa: S103
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise BalancerError(f"cannot listen for nginx's log at {where} as {who()}: {error.strerror or error}; change `traffic`") from error
    return listener


def _remove_stale(path: str) -> None:
    """A socket that nobody listens at is taken away; anything else stays, and bind will say so."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
