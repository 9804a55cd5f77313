"""Requests on a fixed schedule, however slowly answers come; latency counts from when each was due, not from when it was sent.

`python -m bench.faultlab.load PORT RATE SECONDS FILE` says `ready`, reads from stdin the monotonic moment at which to begin, and writes one
line a request to FILE: `due taken ended status instance whole resent`. `taken`: when the generator turned to it, so `taken - due` is its
own lateness; `ended` nan: no answer within the time the balancer has; status 0: none came; instance 0: unknown.
"""

from __future__ import annotations

import array
import errno
import gc
import math
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.daemon import NeverHappenedError
from bench.faultlab.clockwork import Clockwork

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 10.0
DRAIN_S = 3.5
"""How long answers are waited for at the end: longer than the 3 s after which each balancer gives up on a server."""
REQUEST = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"
BODY = b"ok\n"


class Request(NamedTuple):
    """One request as its client saw it; monotonic seconds. `ended` None = never; `status` 0 = no answer; `instance` from 1, 0 = unknown."""

    due: float
    taken: float
    ended: float | None
    status: int
    instance: int
    whole: bool
    resent: bool


@dataclass(slots=True)
class _Connection:
    """`request`: the index of what is under way on it, -1 = idle; `was_kept`: it has carried an answer before."""

    sock: socket.socket
    request: int = -1
    got: bytes = b""
    is_open: bool = False
    was_kept: bool = False


class Generator:
    """One run. Columns are kept in arrays, so that nothing is allocated that the garbage collector would look at."""

    def __init__(self, port: int, rate: float, seconds: float) -> None:
        self._address, self._rate = ("127.0.0.1", port), rate
        self._total = round(rate * seconds)
        self._taken = array.array("d", [math.nan]) * self._total
        self._ended = array.array("d", [math.nan]) * self._total
        self._status, self._instance = array.array("i", [0]) * self._total, array.array("i", [0]) * self._total
        self._whole, self._resent = bytearray(self._total), bytearray(self._total)
        self._clockwork = Clockwork()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._asking: dict[int, _Connection] = {}
        self._pending = 0
        self._oldest = 0

    def run(self, start: float) -> None:
        sent, end, look = 0, start + self._total / self._rate + DRAIN_S, start
        while sent < self._total or (self._pending and time.monotonic() < end):
            due = start + sent / self._rate if sent < self._total else end
            for fd, events in self._clockwork.wait(min(due, look + 0.1)):
                if connection := self._connections.get(fd):
                    self._ready(connection, events)
            now = time.monotonic()
            while sent < self._total and start + sent / self._rate <= now:
                self._take(sent, now)
                sent += 1
            if now >= look + 0.1:
                look = now
                self._give_up(start, sent, now)

    def _take(self, request: int, now: float) -> None:
        self._taken[request] = now
        self._pending += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                self._ask(connection, request)
                return
        self._connect(request)

    def _connect(self, request: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(self._address)
        connection = self._asking[request] = _Connection(sock, request)
        if error in (0, errno.EINPROGRESS):
            self._connections[sock.fileno()] = connection
            self._clockwork.poller.register(sock, select.EPOLLIN if error == 0 else select.EPOLLIN | select.EPOLLOUT)
        if error == 0:
            connection.is_open = True
            self._ask(connection, request)
        elif error != errno.EINPROGRESS:
            sock.close()
            self._end(request, 0, 0, False)

    def _ask(self, connection: _Connection, request: int) -> None:
        connection.request, connection.got = request, b""
        self._asking[request] = connection
        try:
            connection.sock.send(REQUEST)
        except OSError:
            self._broke(connection)

    def _ready(self, connection: _Connection, events: int) -> None:
        if not connection.is_open:
            if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._broke(connection)
                return
            connection.is_open = True
            self._clockwork.poller.modify(connection.sock, select.EPOLLIN)
            self._ask(connection, connection.request)
            return
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broke(connection)
        elif connection.request >= 0:
            connection.got += data
            self._parse(connection)

    def _parse(self, connection: _Connection) -> None:
        head, found, body = connection.got.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        length = int(headers.get(b"content-length", b"-1"))
        if length >= 0 and len(body) < length:
            return
        request, connection.request = connection.request, -1
        self._end(request, int(lines[0].split()[1]), int(headers.get(b"x-instance", b"0")), body == BODY)
        # an error page without a length is the balancer's own: a failure either way
        if length < 0 or headers.get(b"connection") == b"close":
            self._close(connection)
        else:
            connection.was_kept = True
            self._idle.append(connection)

    def _broke(self, connection: _Connection) -> None:
        """A kept connection that closes without a byte may be asked again (RFC 9110, 9.2.2): browsers and proxies do."""
        self._close(connection)
        request, connection.request = connection.request, -1
        if request < 0:
            return
        if connection.was_kept and not connection.got and not self._resent[request]:
            self._resent[request] = 1
            self._connect(request)
        else:
            self._end(request, 0, 0, False)

    def _close(self, connection: _Connection) -> None:
        connection.is_open = False
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()

    def _end(self, request: int, status: int, instance: int, whole: bool) -> None:
        self._ended[request] = time.monotonic()
        self._status[request], self._instance[request], self._whole[request] = status, instance, whole
        self._asking.pop(request, None)
        self._pending -= 1

    def _give_up(self, start: float, sent: int, now: float) -> None:
        """No answer after GIVE_UP_S is none; oldest first, each looked at once."""
        while self._oldest < sent and now - (start + self._oldest / self._rate) > GIVE_UP_S:
            if math.isnan(self._ended[self._oldest]):
                connection = self._asking[self._oldest]
                connection.request = -1
                self._close(connection)
                self._end(self._oldest, 0, 0, False)
            self._oldest += 1

    def write(self, file: Path, start: float) -> None:
        with file.open("w") as out:
            for i in range(self._total):
                columns = (self._status[i], self._instance[i], self._whole[i], self._resent[i])
                out.write(f"{start + i / self._rate:.6f} {self._taken[i]:.6f} {self._ended[i]:.6f} {' '.join(map(str, columns))}\n")


class Load:
    """A generator in a process of its own; ready when constructed."""

    def __init__(self, port: int, rate: float, seconds: float, file: Path) -> None:
        self._file, self._seconds = file, seconds
        argv = [sys.executable, "-m", "bench.faultlab.load", str(port), str(rate), str(seconds), str(file)]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None and self._process.stdin is not None, "asked for pipes"
        self._process.stdout.readline()

    def begin(self, start: float) -> None:
        """Monotonic seconds of the first request."""
        assert self._process.stdin is not None, "asked for a pipe"
        self._process.stdin.write(f"{start}\n".encode())
        self._process.stdin.flush()

    def requests(self) -> list[Request]:
        """All of them, in the order in which they were due; waits for the end. NeverHappenedError when it does not come."""
        try:
            self._process.wait(self._seconds + 2 * GIVE_UP_S + DRAIN_S)
        except subprocess.TimeoutExpired as error:
            raise NeverHappenedError(f"the generator of {self._seconds:.0f} s of load did not end: this machine is too busy") from error
        return read(self._file.read_text().splitlines())

    def stop(self) -> None:
        """Safe twice, and after the end."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def read(lines: Sequence[str]) -> list[Request]:
    """What `Generator.write` wrote."""
    requests = []
    for line in lines:
        due, taken, ended, status, instance, whole, resent = line.split()
        end = None if ended == "nan" else float(ended)
        requests.append(Request(float(due), float(taken), end, int(status), int(instance), whole == "1", resent == "1"))
    return requests


def lateness(requests: Sequence[Request]) -> tuple[float, float]:
    """The generator's own, p99 and most, seconds."""
    late = [r.taken - r.due for r in requests]
    return statistics.quantiles(late, n=100)[98], max(late)


def main() -> None:
    port, rate, seconds, file = sys.argv[1:]
    generator = Generator(int(port), float(rate), float(seconds))
    gc.disable()
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    generator.run(start)
    generator.write(Path(file), start)


if __name__ == "__main__":
    main()
