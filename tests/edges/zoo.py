"""The zoo: bad servers on real sockets, each in threads of its own, so that it goes on while the asking loop is blocked.

A behaviour is a function of one accepted connection. `Server(behaviour)` listens on a free loopback port below the range of outgoing
ports, and takes all connections down when the `with` ends.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

import h2.config
import h2.connection
import h2.events

from lbplugins.values import Address

FIRST_PORT, LAST_PORT = 20000, 32000

Behaviour = Callable[[socket.socket], None]


def listener(host: str = "127.0.0.1", backlog: int | None = 64) -> socket.socket:
    """A socket bound to a free port; `backlog` None = bound but not listening, so that connecting is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(500):
        sock = socket.socket(family, socket.SOCK_STREAM)
        if backlog is not None:  # two that do not listen would share a port with it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, random.randint(FIRST_PORT, LAST_PORT)))
            if backlog is not None:
                sock.listen(backlog)
        except OSError:
            sock.close()
        else:
            return sock
    raise AssertionError("no free port found")


@contextlib.contextmanager
def closed_port() -> Iterator[Address]:
    """A port where nothing listens and nobody else can begin to."""
    with listener(backlog=None) as sock:
        yield Address("127.0.0.1", sock.getsockname()[1])


@contextlib.contextmanager
def full_backlog() -> Iterator[Address]:
    """A port whose queue of connections is full: the next SYN gets no answer at all."""
    with listener(backlog=0) as sock, contextlib.ExitStack() as held:
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        time.sleep(0.05)  # not for timing: lets the kernel finish the hand-shakes of those that fit
        yield Address("127.0.0.1", sock.getsockname()[1])


@dataclass
class Server:
    """One bad server. `tls`: a server-side context to wrap each connection in, the handshake in its own thread."""

    behaviour: Behaviour
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    accepted: int = 0
    _connections: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _is_closing: bool = False

    def __enter__(self) -> Server:
        self._listener = listener(self.host)
        self.address = Address(self.host, self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for connection in self._connections:
            connection.close()
        assert not any(thread.is_alive() for thread in self._threads), "a behaviour of the zoo does not end when its connection does"

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            connection.settimeout(20)
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            self.behaviour(connection)


# ---- what behaviours are made of ----


def read_request(sock: socket.socket) -> bytes:
    """The head of one request; b"" when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            return b""
        data += more
    return data


def wait_for_end(sock: socket.socket) -> None:
    """Read until the client goes away."""
    while sock.recv(4096):
        pass


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def answer(body: bytes = b"ok", status: str = "200 OK", headers: bytes = b"") -> bytes:
    """One plain response."""
    return b"HTTP/1.1 " + status.encode() + b"\r\nContent-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


def saying(*parts: bytes, then: Behaviour = wait_for_end) -> Behaviour:
    """To each request these bytes, then `then`."""

    def behave(sock: socket.socket) -> None:
        if read_request(sock):
            for part in parts:
                sock.sendall(part)
            then(sock)

    return behave


def closing(sock: socket.socket) -> None:
    """Close with FIN, once the client has no unread bytes with us."""
    sock.shutdown(socket.SHUT_WR)
    wait_for_end(sock)


# ---- behaviours ----


def good(sock: socket.socket) -> None:
    """Answers every request on a kept connection."""
    while read_request(sock):
        sock.sendall(answer())


def silent(sock: socket.socket) -> None:
    """Accepts, reads, never answers."""
    wait_for_end(sock)


def hurried_reset(sock: socket.socket) -> None:
    """Resets the connection as soon as the request is there."""
    sock.recv(1)
    reset(sock)


def reset_at_accept(sock: socket.socket) -> None:
    """Resets without reading."""
    reset(sock)


def drip(sock: socket.socket) -> None:
    """One byte of the body every 50 ms, for ever."""
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


def drip_head(sock: socket.socket) -> None:
    """One byte of the head every 50 ms, for ever."""
    read_request(sock)
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100000:
        sock.sendall(bytes([byte]))
        time.sleep(0.05)


def endless_headers(sock: socket.socket) -> None:
    """Headers as fast as they are taken."""
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        sock.sendall(b"X-Header: more\r\n" * 500)


def endless_body(sock: socket.socket) -> None:
    """A chunked body as fast as it is taken."""
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        sock.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def endless_chunk_extension(sock: socket.socket) -> None:
    """A chunk whose size line never ends."""
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=")
    while True:
        sock.sendall(b"b" * 4096)


def endless_continue(sock: socket.socket) -> None:
    """100 Continue, again and again."""
    read_request(sock)
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def spontaneous(sock: socket.socket) -> None:
    """Speaks before it is asked, as an SSH server does."""
    sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    wait_for_end(sock)


class Grpc:
    """A gRPC health server. `statuses`: service name -> serving status (1 = SERVING); others are NOT_FOUND."""

    def __init__(self, statuses: dict[str, int]) -> None:
        self.statuses = statuses
        self.seen: list[dict[str, str]] = []

    def __call__(self, sock: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        body = b""
        while data := sock.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.seen.append({str(k): str(v) for k, v in event.headers or ()})
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    self._reply(connection, event.stream_id or 1, body)
            sock.sendall(connection.data_to_send())

    def _reply(self, connection: h2.connection.H2Connection, stream: int, body: bytes) -> None:
        name = body[7:].decode()  # five bytes of gRPC frame, one of field, one of length
        status = self.statuses.get(name)
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if status is None:
            connection.send_headers(stream, [*head, ("grpc-status", "5"), ("grpc-message", "unknown service")], end_stream=True)
            return
        connection.send_headers(stream, head)
        message = b"\x08" + bytes([status])
        connection.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)


class Kept:
    """Answers on kept connections, and ends or disturbs all idle ones when told."""

    def __init__(self, headers: bytes = b"") -> None:
        self.headers = headers
        self.requests = 0
        self.open: list[socket.socket] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._end: dict[socket.socket, Behaviour] = {}

    def __call__(self, sock: socket.socket) -> None:
        self.open.append(sock)
        while True:
            # Each connection is ended by the thread that reads it: closing it from another would leave that one waiting.
            if end := self._end.get(sock):
                end(sock)
                return
            if select.select([sock], [], [], 0.01)[0]:
                if not read_request(sock):
                    return
                self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        with self._lock:
            self.requests += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(0.002)
        with self._lock:
            self._at_once -= 1
        sock.sendall(answer(headers=self.headers))

    def end_idle(self, how: Behaviour) -> None:
        """End all open connections, soon."""
        ended, self.open = self.open, []
        self._end.update((sock, how) for sock in ended)


def fin(sock: socket.socket) -> None:
    """Say FIN."""
    sock.shutdown(socket.SHUT_WR)
