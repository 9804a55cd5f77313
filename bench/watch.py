"""Looking over a balancer's shoulder: when each server left and joined the rotation, and which requests were tried where.

Nothing here asks the sidecar. HAProxy is asked every 5 ms over its admin socket, Nginx's include is read every 5 ms, and both send
their log lines as datagrams.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

POLL_S = 0.005
RECEIVE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request at one server. `at`: when it went there, monotonic seconds to a millisecond; port 0 = a retry, HAProxy hides where."""

    at: float
    port: int
    status: int


class Look(Protocol):
    """Which instances are in rotation now, by port; None = the balancer did not say."""

    def __call__(self) -> Mapping[int, bool] | None: ...


class Watch:
    """Polls and listens from construction to `stop`. `moves`: (at, port, in rotation) whenever that changed."""

    def __init__(self, look: Look, log: socket.socket) -> None:
        self.moves: list[tuple[float, int, bool]] = []
        self.attempts: deque[Attempt] = deque(maxlen=500_000)
        self._look, self._log = look, log
        self._now = dict(look() or {})
        self._ended = threading.Event()
        log.settimeout(0.2)
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._poll, self._listen)]
        for thread in self._threads:
            thread.start()

    def in_rotation(self, port: int) -> bool | None:
        return self._now.get(port)

    def moved(self, port: int, since: float, *, into: bool) -> float | None:
        """When it first moved in or out after `since`; None = not yet."""
        return next((at for at, who, now in list(self.moves) if at >= since and who == port and now is into), None)

    def moves_of_others(self, port: int, since: float) -> int:
        """How often any other instance went out."""
        return sum(1 for at, who, now in list(self.moves) if at >= since and who != port and not now)

    def tried(self, ports: tuple[int, ...], since: float, until: float) -> list[Attempt]:
        return [a for a in list(self.attempts) if since < a.at <= until and a.port in ports]

    def answered(self, port: int, since: float) -> float | None:
        """When it was first tried after `since` with an answer that is not the balancer's own; None = not yet."""
        return next((a.at for a in self.tried((port,), since, float("inf")) if 200 <= a.status < 500), None)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        self._log.close()

    def _poll(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            found = self._look()
            at = time.monotonic()
            due = max(due + POLL_S, at)
            for port, now in (found or {}).items():
                if self._now.get(port) is not now:
                    self._now[port] = now
                    self.moves.append((at, port, now))

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                line = self._log.recv(8192).decode("utf-8", "replace")
            except TimeoutError:
                continue
            # Both balancers write wall time; it is turned into ours at once, so that a clock that is set costs one line at most.
            shift = time.monotonic() - time.time()
            self.attempts.extend(read_haproxy(line, shift, self.ports) if "[" in line else read_nginx(line, shift))

    ports: Mapping[str, int] = {}
    """HAProxy's server names; set before traffic flows."""


def open_log() -> tuple[socket.socket, int]:
    """A bound socket for log datagrams, and its port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    for port in range(31000, 32000):
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return sock, port
    raise OSError("no free UDP port from 31000 to 31999")


# ---- HAProxy ----

_HTTPLOG = re.compile(
    r"\[(?P<date>[^\]]+)\] \S+ \S+/(?P<server>\S+) (?P<tr>-?\d+)/(?P<tw>-?\d+)/\S+ (?P<status>-?\d+) "
    r".*? \d+/\d+/\d+/\d+/(?P<retries>\+?\d+) "
)


def haproxy_look(admin: Path, ports: Mapping[str, int]) -> Look:
    """In rotation = running, and no word of an operator against it, by `show servers state`."""

    def look() -> Mapping[int, bool] | None:
        rows = _states(admin)
        return None if rows is None else {ports[r[3]]: r[5] in ("1", "2") and not int(r[6]) & 0x29 for r in rows if r[3] in ports}

    return look


def haproxy_health(admin: Path) -> Mapping[str, int]:
    """How far HAProxy's own check trusts each server, by name: `fall + rise - 1` = fully; empty when it did not say."""
    return {row[3]: int(row[12]) for row in _states(admin) or ()}


def _states(admin: Path) -> list[list[str]] | None:
    """The rows of `show servers state`; None = no answer."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            sock.connect(str(admin))
            sock.sendall(b"show servers state shop\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    except OSError:
        return None
    return [line.split() for line in text.splitlines()[2:] if line]


def read_haproxy(line: str, shift: float, ports: Mapping[str, int]) -> list[Attempt]:
    """Of one `httplog` line. A retry counts as an attempt at an unknown server: HAProxy names only the one that answered.

    That attempt came first; the queue time of the line (Tw) has grown by what it took.
    """
    found = _HTTPLOG.search(line)
    if found is None:
        return []
    accepted = datetime.strptime(found["date"], "%d/%b/%Y:%H:%M:%S.%f").timestamp()
    first = accepted + shift + max(0, int(found["tr"])) / 1000
    at = first + max(0, int(found["tw"])) / 1000
    status = int(found["status"])
    retried = [Attempt(first, 0, 0)] if found["retries"].lstrip("+") != "0" else []
    return [*retried, *([Attempt(at, ports[found["server"]], status)] if found["server"] in ports else [])]


# ---- Nginx ----

_SERVER = re.compile(r"^\s*server\s+127\.0\.0\.1:(\d+)([^;]*);", re.MULTILINE)
_PARTS = re.compile(r", | : ")


def nginx_look(include: Path) -> Look:
    """In rotation = not `down` in the include."""

    def look() -> Mapping[int, bool] | None:
        try:
            text = include.read_text()
        except OSError:
            return None
        return {int(port): "down" not in rest.split() for port, rest in _SERVER.findall(text)}

    return look


def read_nginx(line: str, shift: float) -> list[Attempt]:
    """Of one line in the sidecar's own format: each attempt began when the ones before it had ended."""
    fields = line.partition(": ")[2].split("|")
    if len(fields) < 8:
        return []
    at = float(fields[0]) + shift - float(fields[7])
    attempts = []
    for address, status, took in zip(*(_PARTS.split(fields[n]) for n in (1, 2, 3)), strict=False):
        port = address.rpartition(":")[2]
        if port.isdigit():
            attempts.append(Attempt(at, int(port), int(status) if status.isdigit() else 0))
        at += float(took) if took.replace(".", "").isdigit() else 0.0
    return attempts
