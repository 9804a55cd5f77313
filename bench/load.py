"""Open-loop load: requests leave on a fixed schedule, however slowly answers come, so that a stall hides nothing.

`python -m bench.load PORT RATE` writes one line per request to stdout until SIGTERM: `due ended status instance resent`, times in
monotonic seconds, status 0 = no answer, instance `-` = unknown. Latency counts from the time due.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import IO

TIMEOUT_S = 10.0
MAX_OPEN = 4000
DRAIN_S = 1.0
REQUEST = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its client saw it. `status` 0 = no answer; `instance` = port of who answered, 0 = unknown."""

    due: float
    ended: float
    status: int
    instance: int
    resent: bool


class _Connection(asyncio.Protocol):
    """One kept connection, one request at a time; `answer` is done with (status, instance), or (0, 0) when it closed first."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, int]] | None = None
        self.is_open = False
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.is_open = transport, True

    def ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[tuple[int, int]]:
        self.got, self.answer = b"", loop.create_future()
        self.transport.write(REQUEST)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        length = int(headers.get(b"content-length", b"-1"))
        if length >= 0 and len(body) >= length:
            self._done(int(lines[0].split()[1]), int(headers.get(b"x-instance", b"0")))
            if headers.get(b"connection") == b"close":
                self.transport.close()
        elif length < 0:
            self.transport.abort()  # an error page without a length: the balancer's own, a failure either way
            self._done(int(lines[0].split()[1]), 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._done(0, 0)

    def _done(self, status: int, instance: int) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((status, instance))


class Generator:
    """Sends `rate` requests a second to one port and writes what became of them."""

    def __init__(self, port: int, rate: float) -> None:
        self.port, self.rate = port, rate
        self._idle: list[_Connection] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0
        while not stop.is_set():
            while start + sent / self.rate <= loop.time():
                self._send(start + sent / self.rate)
                sent += 1
            await asyncio.sleep(max(0.0, start + sent / self.rate - loop.time()))
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=DRAIN_S)

    def _send(self, due: float) -> None:
        if len(self._under_way) >= MAX_OPEN:
            self._tell(due, 0, 0, resent=False)
            return
        task = asyncio.get_running_loop().create_task(self._one(due))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, due: float) -> None:
        status = instance = 0
        resent = False
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(TIMEOUT_S):
                connection, was_kept = await self._connect()
                status, instance = await connection.ask(asyncio.get_running_loop())
                if status == 0 and was_kept and not connection.got:
                    # A kept connection that closes without a byte may be asked again (RFC 9110, 9.2.2): browsers and proxies do.
                    resent = True
                    connection, _ = await self._connect(fresh=True)
                    status, instance = await connection.ask(asyncio.get_running_loop())
                if connection.is_open and status:
                    self._idle.append(connection)
        self._tell(due, status, instance, resent=resent)

    async def _connect(self, *, fresh: bool = False) -> tuple[_Connection, bool]:
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.is_open and not connection.transport.is_closing():
                return connection, True
        _, made = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self.port)
        return made, False

    def _tell(self, due: float, status: int, instance: int, *, resent: bool) -> None:
        ended = asyncio.get_running_loop().time()
        sys.stdout.write(f"{due:.6f} {ended:.6f} {status} {instance} {resent:d}\n")
        sys.stdout.flush()


class Load:
    """A generator in a process of its own, and what it tells. Start by constructing, `stop` once."""

    def __init__(self, port: int, rate: float = 300.0) -> None:
        self.requests: deque[Request] = deque(maxlen=200_000)
        self._process = subprocess.Popen([sys.executable, "-m", "bench.load", str(port), str(rate)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None, "asked for a pipe"
        self._lines = self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(self._lines,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            due, ended, status, instance, resent = line.split()
            self.requests.append(Request(float(due), float(ended), int(status), int(instance), resent == "1"))

    def between(self, since: float, until: float) -> list[Request]:
        """Requests that were due then and have ended."""
        return [r for r in list(self.requests) if since <= r.due <= until]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(TIMEOUT_S)
        if not self._reader.is_alive():
            self._lines.close()


async def generate(port: int, rate: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Generator(port, rate).run(stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float, help="requests a second")
    asked = parser.parse_args()
    asyncio.run(generate(asked.port, asked.rate))


if __name__ == "__main__":
    main()
