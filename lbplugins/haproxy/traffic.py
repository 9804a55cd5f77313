"""Real requests from HAProxy's log: syslog datagrams in, batches of TrafficSample out.

Understood are `option httplog` and our own `HC1` format, under the raw, rfc3164 and rfc5424 headers. Everything else is counted and
dropped, as are samples that nobody takes in time: the feed is lossy and bounded, and never makes HAProxy wait.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections import deque
from collections.abc import AsyncIterator, Sequence

from lbplugins.api import BalancerError
from lbplugins.haproxy.options import TrafficOptions
from lbplugins.haproxy.wire import NAME
from lbplugins.values import Address, Ref, TrafficSample

MOST_WAITING = 20_000
"""Samples kept for a reader that is late; then the oldest go."""

MOST_IN_BATCH = 1_000

LONGEST_LINE = 8192
"""Bytes of a datagram that are looked at; HAProxy's default `len` is 1024."""

LOG_FORMAT = "HC1 %ci %f %b %s %Tq %Tw %Tc %Tr %Ta %ST %B %tsc %rc %bq/%sq %sc %HM %HPO"
"""The `log-format` that splits most easily."""

_HEADER = re.compile(
    r"(?:<\d{1,3}>)?"
    r"(?:1 \S+ \S+ \S+ \S+ \S+ (?:-|(?:\[[^\]]*\])+) ?"  # rfc5424
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:\S+ )?[^\s:\[]+(?:\[\d+\])?: )?"  # rfc3164, with or without a host
    r"\ufeff?"
)
_TIMERS = r"(?P<first>-?\d+)/(?P<queue>-?\d+)/(?P<connect>-?\d+)/(?P<answer>-?\d+)/\+?(?P<total>-?\d+)"
_HTTPLOG = re.compile(
    r"\S+:\d+ \[[^\]]+\] \S+ (?P<pool>[^\s/]{1,128})/(?P<server>[^\s/]{1,128}) "
    + _TIMERS
    + r" (?P<status>-?\d+) \+?\d+ \S+ \S+ (?P<end>\S{4}) "
    r"\d+/\d+/\d+/\d+/\+?(?P<retries>\d+) "
)
_OURS = re.compile(
    r"HC1 \S+ \S+ (?P<pool>\S+) (?P<server>\S+) (?P<first>-?\d+) (?P<queue>-?\d+) (?P<connect>-?\d+) (?P<answer>-?\d+) \+?(?P<total>-?\d+) "
    r"(?P<status>-?\d+) \+?\d+ (?P<end>\S{4}) \+?(?P<retries>\d+) "
)
_CUT_BY = {"-": "", "C": "client", "c": "client", "S": "server", "s": "server"}


def parse(line: str, at: float, *, forgeable: bool = False) -> TrafficSample | None:
    """The request that this log line tells of; None when it tells of none that reached a server.

    `seconds` is the server's own time to its answer. Without an answer of the server's, the status is 0: what the client got then
    was HAProxy's.
    """
    header = _HEADER.match(line)
    start = header.end() if header is not None else 0
    match = _OURS.match(line, start) or _HTTPLOG.match(line, start)
    if match is None or NAME.match(match["pool"]) is None or NAME.match(match["server"]) is None:
        return None
    answer, status = int(match["answer"]), int(match["status"])
    has_answered = answer >= 0 and 100 <= status <= 599
    return TrafficSample(
        where=Ref(match["pool"], match["server"]),
        status=status if has_answered else 0,
        seconds=answer / 1000 if has_answered else None,
        retries=int(match["retries"]),
        cut_by=_CUT_BY.get(match["end"][0], "balancer"),
        at=at,
        forgeable=forgeable,
    )


class Traffic(asyncio.DatagramProtocol):
    """The listener and the samples that wait. `dropped`: for want of a reader; `strange`: lines that told of no request."""

    def __init__(self, options: TrafficOptions) -> None:
        self._syslog = options.syslog
        self._is_forgeable = not self._syslog.startswith("unix:")
        self._waiting: deque[TrafficSample] = deque(maxlen=MOST_WAITING)
        self._news = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None
        self._closed = False
        self._gone = asyncio.Event()
        self.dropped = 0
        self.strange = 0

    @property
    def is_listening(self) -> bool:
        return self._transport is not None

    async def listen(self) -> None:
        """BalancerError when the address cannot be had. Safe twice."""
        if self._transport is not None:
            return
        loop = asyncio.get_running_loop()
        try:
            if self._syslog.startswith("unix:"):
                listener = _unix_listener(self._syslog.removeprefix("unix:"))
                self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=listener)
            else:
                address = Address.parse(self._syslog)
                self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(address.host, address.port))
        except OSError as error:
            raise BalancerError(
                f"traffic: cannot listen at {self._syslog} ({error.strerror or error}); is another sidecar or syslog daemon there?"
            ) from error
        self._closed = False

    async def batches(self) -> AsyncIterator[Sequence[TrafficSample]]:
        """What has arrived, oldest first, as soon as there is any; ends when the listener is closed. For one reader."""
        while True:
            while not self._waiting:
                if self._closed:
                    return
                self._news.clear()
                await self._news.wait()
            yield [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_IN_BATCH))]

    async def close(self) -> None:
        """Safe twice."""
        self._closed = True
        self._news.set()
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close()
        await self._gone.wait()
        if self._syslog.startswith("unix:"):
            _unlink_socket(self._syslog.removeprefix("unix:"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gone.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()

    def datagram_received(self, data: bytes, addr: object) -> None:
        line = data[:LONGEST_LINE].decode("utf-8", "replace")
        sample = parse(line, asyncio.get_running_loop().time(), forgeable=self._is_forgeable)
        if sample is None:
            self.strange += 1
            return
        self.dropped += len(self._waiting) == MOST_WAITING
        self._waiting.append(sample)
        self._news.set()


def _unix_listener(path: str) -> socket.socket:
    """A datagram socket at this path, in place of one that an earlier life left behind."""
    _unlink_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o666)  # as /dev/log: HAProxy sends as a user of its own  # noqa: S103
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _unlink_socket(path: str) -> None:
    """Takes away a socket that nobody reads; a file of another kind, or one that somebody reads, stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


__all__ = ["LOG_FORMAT", "Traffic", "parse"]
