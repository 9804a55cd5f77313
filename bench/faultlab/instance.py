"""One instance: an HTTP server whose answers take their time without using any, and which fails as it is told.

`python -m bench.faultlab.instance PORT NUMBER [SERVICE_MS [HEALTH_MS]]` answers every path but `/health` after a lognormal time, with
its number in `X-Instance`. Each line on its stdin is a JSON object, the fields of `Ways` that are not as usual; `ok` says that they hold.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import random
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from itertools import count
from typing import Literal

from bench.faultlab.clockwork import Clockwork

SIGMA = 0.3
FAST_S = 0.001
WARM_FACTOR = 20.0
"""How much slower than usual an instance is that has just started cold."""
BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Ways:
    """How it behaves. `slow`: all answers take so many times longer; `errors`: the share of requests answered 500, never `/health`.

    `fast`: requests are answered in a millisecond, with a 503 or an empty 200, while `/health` is fine. `ill`: `/health` says 500. `down`:
    it refuses and resets. `half_open`: connections that were open when this was said are dead, silently; new ones are well. `pause_s`: the
    whole process stands still for up to so long, about every second. `warm_s`: slow at first, as usual after so many seconds.
    """

    slow: float = 1.0
    errors: float = 0.0
    fast: Literal["", "503", "empty"] = ""
    ill: bool = False
    down: bool = False
    half_open: bool = False
    pause_s: float = 0.0
    warm_s: float = 0.0


class Instance:
    """Serves from construction; `run` never returns."""

    def __init__(self, port: int, number: int, service_s: float = 0.01, health_s: float = 0.0005) -> None:
        self._port, self._number = port, number
        self._service_s, self._health_s = service_s, health_s
        self._ways, self._since = Ways(), time.monotonic()
        self._clockwork = Clockwork()
        self._poller = self._clockwork.poller
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        self._dead: set[int] = set()
        self._due: list[tuple[float, int, socket.socket, bytes]] = []
        self._turn = count()
        self._chance = random.Random(number)
        self._pause_at = math.inf
        self._listener: socket.socket | None = None
        self._listen()
        os.set_blocking(0, False)
        self._poller.register(0, select.EPOLLIN)
        self._said = b""

    def run(self) -> None:
        while True:
            for fd, _ in self._clockwork.wait(min(self._due[0][0] if self._due else math.inf, self._pause_at)):
                if fd == 0:
                    self._hear()
                elif self._listener is not None and fd == self._listener.fileno():
                    self._accept()
                elif fd in self._open:
                    self._read(fd)
            now = time.monotonic()
            if now >= self._pause_at:
                time.sleep(self._ways.pause_s * self._chance.random())
                self._pause_at = time.monotonic() + 0.5 + self._chance.random()
            while self._due and self._due[0][0] <= now:
                _, _, sock, answer = heapq.heappop(self._due)
                if sock.fileno() >= 0:
                    self._send(sock, answer)

    # ---- orders ----

    def _hear(self) -> None:
        said = os.read(0, 65536)
        if not said:
            sys.exit(0)  # whoever started us has ended
        *lines, self._said = (self._said + said).split(b"\n")
        for line in lines:
            self._become(Ways(**json.loads(line)))
            os.write(1, b"ok\n")

    def _become(self, ways: Ways) -> None:
        self._ways, self._since = ways, time.monotonic()
        self._pause_at = self._since if ways.pause_s else math.inf
        if ways.down:
            self._fall()
        elif self._listener is None:
            self._listen()
        self._dead = set(self._open) if ways.half_open else set()

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._poller.register(self._listener, select.EPOLLIN)

    def _fall(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for sock, _ in self._open.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        self._open.clear()
        self._due.clear()

    # ---- requests ----

    def _accept(self) -> None:
        assert self._listener is not None, "asked only while it listens"
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[sock.fileno()] = sock, bytearray()
            self._poller.register(sock, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        sock, got = self._open[fd]
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            del self._open[fd]
            self._dead.discard(fd)
            sock.close()
            return
        got += data
        while (end := got.find(b"\r\n\r\n")) >= 0:
            path = bytes(got[: got.find(b"\r\n")]).split(b" ")[1]
            del got[: end + 4]
            if fd not in self._dead:
                after, answer = self._answer(path)
                heapq.heappush(self._due, (time.monotonic() + after, next(self._turn), sock, answer))

    def _answer(self, path: bytes) -> tuple[float, bytes]:
        """After how many seconds it answers, and what."""
        ways = self._ways
        factor = ways.slow
        if ways.warm_s:
            factor *= 1 + (WARM_FACTOR - 1) * max(0.0, 1 - (time.monotonic() - self._since) / ways.warm_s)
        if path == b"/health":
            return self._health_s * factor, self._words(500 if ways.ill else 200)
        if ways.fast:
            return FAST_S, self._words(503) if ways.fast == "503" else self._words(200, b"")
        after = self._service_s * factor * self._chance.lognormvariate(0.0, SIGMA)
        return after, self._words(500 if self._chance.random() < ways.errors else 200)

    def _words(self, status: int, body: bytes = b"ok\n") -> bytes:
        reason = {200: "OK", 500: "Internal Server Error", 503: "Service Unavailable"}[status]
        return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\nX-Instance: {self._number}\r\n\r\n".encode() + body

    def _send(self, sock: socket.socket, answer: bytes) -> None:
        try:
            sock.send(answer)
        except OSError:
            fd = sock.fileno()
            self._open.pop(fd, None)
            self._dead.discard(fd)
            sock.close()


def main() -> None:
    port, number, *times_ms = sys.argv[1:]
    Instance(int(port), int(number), *(float(each) / 1000 for each in times_ms)).run()


if __name__ == "__main__":
    main()
