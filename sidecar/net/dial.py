"""Connections with one absolute deadline: name lookup, TCP connect, TLS, bytes in and out, and the watch while idle.

Sockets of our own instead of asyncio's transports: the deadline only wakes the waiting read, which then tries once more, so bytes that
had arrived count however late our loop was; and an idle connection tells at once when the other side closes it.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from sidecar.net.addresses import host_problem, ip_problem

READ_BYTES = 16 * 1024
RESERVED_DESCRIPTORS = 32
USUAL_DESCRIPTORS, MOST_DESCRIPTORS = 1024, 1 << 20
"""What a shell gives, for the sake of programs that use `select`; and as many as any sidecar needs."""

SockAddr = tuple[Any, ...]  # as the socket module has it: (host, port) or (host, port, flow, scope)


class DeadlinePassed(Exception):
    """The deadline came, and nothing more had arrived by then."""


class LookupFailed(Exception):
    """A name could not be turned into an IP in time; the message says which and why."""


class NeverAsked(Exception):
    """The address is one that we refuse to dial; the message says why."""


class Resolver:
    """Names to IPs with a deadline, at most one lookup per name at a time, however often it is asked."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], asyncio.Future[list[Any]]] = {}

    async def resolve(self, host: str, port: int, deadline: float) -> tuple[socket.AddressFamily, SockAddr]:
        """Where to dial; an IP costs nothing. LookupFailed, or NeverAsked for an address we refuse."""
        if not 1 <= port <= 65535:
            raise NeverAsked(f"{host}: {port} is no port; the name lookup would silently take another")
        try:
            family, address = _numeric(host, port)
        except socket.gaierror:
            family, address = await self._look_up(host, port, deadline)
        if problem := _refused(address[0]):
            raise NeverAsked(problem if problem.startswith(host) else f"{host}: {problem}")
        return family, address

    async def _look_up(self, host: str, port: int, deadline: float) -> tuple[socket.AddressFamily, SockAddr]:
        if problem := host_problem(host):
            raise LookupFailed(problem)
        loop = asyncio.get_running_loop()
        lookup = self._running.get((host, port))
        if lookup is None:
            lookup = asyncio.ensure_future(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._running[host, port] = lookup
            lookup.add_done_callback(lambda done: self._ended(host, port, done))
        try:
            async with asyncio.timeout_at(deadline):
                found = await asyncio.shield(lookup)
        except TimeoutError:
            raise LookupFailed(f"{host}: the name lookup took too long") from None
        except (OSError, UnicodeError) as error:
            raise LookupFailed(f"{host}: {error}") from error
        family, _, _, _, address = found[0]
        return family, address

    def _ended(self, host: str, port: int, lookup: asyncio.Future[list[Any]]) -> None:
        del self._running[host, port]
        if not lookup.cancelled():
            lookup.exception()  # read, so that a failure after everyone gave up is not reported as forgotten


@lru_cache(maxsize=16384)
def _numeric(host: str, port: int) -> tuple[socket.AddressFamily, SockAddr]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
    return found[0][0], found[0][4]


@lru_cache(maxsize=16384)
def _refused(ip: str) -> str | None:
    return ip_problem(ip)


class Wire:
    """One connection, and the deadline of whatever is being done on it. One waiter at a time; owns its socket."""

    __slots__ = ("_expired", "_fd", "_is_unwanted", "_loop", "_on_end", "_reading", "_sock", "_timer", "_waiter")

    def __init__(self, deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._fd = -1
        self._waiter: asyncio.Future[None] | None = None
        self._reading = False
        self._is_unwanted = False
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._on_end: Callable[[str, bytes], None] | None = None
        self.until(deadline)

    def until(self, deadline: float) -> None:
        """Everything from now on must be done by `deadline` (monotonic seconds)."""
        if self._timer is not None:
            self._timer.cancel()
        self._expired = False
        self._on_end = None
        self._timer = self._loop.call_at(deadline, self._expire)

    async def connect(self, family: socket.AddressFamily, address: SockAddr) -> None:
        """Open the TCP connection. OSError as the kernel has it, DeadlinePassed."""
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._fd = sock.fileno()
        _keep_reserve(self._fd)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _raise_if(sock.connect_ex(address), (0, errno.EINPROGRESS))
        while not _is_connected(sock):
            await self._writable()
        if sock.getsockname() == sock.getpeername():
            # A dead port on this host within the range of outgoing ports: TCP lets us connect to ourselves.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself, so nothing listens there")

    async def secure(self, context: ssl.SSLContext, server_name: str | None) -> ssl.SSLSocket:
        """TLS on the open connection; the socket is for reading the certificate. SSLError, OSError, DeadlinePassed."""
        assert self._sock is not None
        self._stop_reading()
        self._sock = sock = context.wrap_socket(self._sock, server_hostname=server_name, do_handshake_on_connect=False)
        while True:
            try:
                sock.do_handshake()
                return sock
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()

    async def send(self, data: bytes) -> None:
        """Write all of it. OSError, DeadlinePassed."""
        assert self._sock is not None
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()
            except ssl.SSLWantReadError:
                await self._readable()

    async def receive(self, just_sent: bool = False) -> bytes:
        """What has arrived, at most 16 KiB; b"" = closed by the other side. OSError, DeadlinePassed.

        `just_sent` saves the read that would find nothing, right after a request.
        """
        assert self._sock is not None
        if just_sent and not isinstance(self._sock, ssl.SSLSocket):
            await self._readable()
        while True:
            try:
                data = self._sock.recv(READ_BYTES)
                if not data and isinstance(self._sock, ssl.SSLSocket):
                    _raise_if_reset(self._sock)
                return data
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()

    @property
    def has_pending(self) -> bool:
        """Whether decrypted bytes wait that the socket will not announce."""
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def rest(self, on_end: Callable[[str, bytes], None]) -> None:
        """Keep it idle, without a deadline, and watch: `on_end(how, unasked bytes)` once when it ends or the other side speaks."""
        self._cancel_timer()
        self._on_end = on_end
        self._start_reading()

    def close(self) -> None:
        """Close at once; whoever waits on it gets cancelled. Safe twice, and before it was open."""
        self._cancel_timer()
        self._on_end = None
        self._stop_reading()
        if self._waiter is not None:
            self._loop.remove_writer(self._fd)
            self._waiter.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._expired = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _readable(self) -> None:
        self._start_reading()
        await self._woken()

    async def _writable(self) -> None:
        self._loop.add_writer(self._fd, self._wake)
        try:
            await self._woken()
        finally:
            if self._sock is not None:
                self._loop.remove_writer(self._fd)

    async def _woken(self) -> None:
        """Until the socket is ready or the deadline comes; the caller tries once more in either case."""
        if self._expired:
            raise DeadlinePassed
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _start_reading(self) -> None:
        # The reader stays registered from probe to probe: a kept probe then costs one send and one receive.
        self._is_unwanted = False
        if not self._reading:
            self._loop.add_reader(self._fd, self._on_readable)
            self._reading = True

    def _stop_reading(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def _on_readable(self) -> None:
        if self._waiter is not None:
            self._wake()
        elif self._on_end is not None:
            self._watch(self._on_end)
        elif self._is_unwanted:
            self._stop_reading()  # it would fire for ever
        else:
            self._is_unwanted = True  # announced once more before what woke us had been read: usual, and over by now

    def _watch(self, on_end: Callable[[str, bytes], None]) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return  # a TLS record without content, such as a session ticket
        except ConnectionResetError:
            on_end("reset", b"")
        except OSError as error:
            on_end(error.strerror or str(error), b"")
        else:
            on_end("spoke unasked" if data else "closed", data)


def _is_connected(sock: socket.socket) -> bool:
    _raise_if(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), (0,))
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _raise_if_reset(sock: ssl.SSLSocket) -> None:
    """Until Python 3.12 a reset under TLS reads as an end (CPython gh-115627), but only a reset leaves the socket without a peer."""
    try:
        sock.getpeername()
    except OSError as error:
        raise ConnectionResetError(errno.ECONNRESET, "reset under TLS") from error


def _raise_if(code: int, fine: tuple[int, ...]) -> None:
    if code not in fine:
        raise OSError(code, errno.errorcode.get(code, str(code)))


def raise_descriptor_limit() -> None:
    """As many open files as this process may give itself. A limit below the usual one is somebody's wish, and stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if USUAL_DESCRIPTORS <= soft < most:
        with suppress(OSError):  # the kernel allows fewer: then we have what we had
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _keep_reserve(descriptor: int) -> None:
    """Leave the last descriptors to the balancers and the API: without them we could not even say what is wrong."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and descriptor >= limit - min(RESERVED_DESCRIPTORS, limit // 4):
        raise OSError(errno.EMFILE, f"descriptor {descriptor} of {limit}: the last are reserved")
