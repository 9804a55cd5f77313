"""Plain `http` and `tcp` probes at the cost of their system calls: no task each, all sockets on one epoll set.

A probe on a kept connection is one `send` when it is due and one `recv` when the kernel has news. What has arrived is stamped with the
moment at which the kernel said so, before anything of it is read: reading a batch takes time that is ours and not the instance's.
Reasons, limits and phases are those of `attempt` and `http`; nothing here knows what an outcome will be used for.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import resource
import select
import socket
import sys
from _socket import socket as Socket  # `socket.socket` looks up an enum for each argument, at the price of a whole kept probe
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.core.model import Outcome, Phases, Reason, Result, Target
from sidecar.net.addresses import ip_problem
from sidecar.net.dial import RESERVED_DESCRIPTORS, SockAddr
from sidecar.net.lag import LagMeter
from sidecar.probes.attempt import Failed, Question, Verdict, network_failure, now, one_line, timed_out, unless_late
from sidecar.probes.http import Answer, glance, judge, render
from sidecar.probes.options import Kind
from sidecar.probes.wheel import PER_S, Deadlines

FIRST_BYTES, READ_BYTES = 2048, 16 * 1024
"""Read at first and then at once: most answers are short, and what is made ready for a long one costs."""
BATCH = 256
"""News taken from the kernel at once."""
MAX_REQUEST = 4096
"""Longer requests take the other way: this one always fits into the buffer of an empty connection."""
MAX_KNOWN, MAX_KNOWN_BYTES = 64, 1024
"""Answers remembered of a question, and how long they may be."""
ANNOUNCED_SHARE = 0.8
"""From this share of the idle time that a server has announced, its closing is no news and the connection is not used any more."""

_NEWS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_FLAGS = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_NEVER = float("inf")
_IDLE, _CONNECT, _HEADERS, _BODY = "idle", "connect", "headers", "body"
_OK = Result.OK
_OPEN = Verdict(None, may_keep=False, keep_s=None)
"""What an open port means to who asked for no more."""


class Line:
    """One target: where it is, what is sent, its connection if one is open, and the probe under way on it if there is one."""

    __slots__ = (
        "announced_at",
        "answer",
        "broken",
        "connect_s",
        "deadline_slot",
        "dialed",
        "fd",
        "first_byte_s",
        "fresh",
        "is_near",
        "phase",
        "place",
        "question",
        "request",
        "sent",
        "sock",
        "started",
        "target",
        "timeout_s",
    )

    def __init__(self, target: Target, question: Question) -> None:
        self.target = target
        self.question = question
        self.request = b""
        self.place = self._find_place()
        """Family and address to dial; None = this way of asking is not for lines."""
        self.is_near = self.place is not None and _is_near(self.place[1][0])
        self.sock: Socket | None = None
        self.fd = -1
        self.phase = _IDLE
        self.fresh = True
        self.announced_at = _NEVER
        """From when on the server may close the idle connection, by its own announcement."""
        self.deadline_slot = 0
        self.started = self.timeout_s = self.dialed = self.sent = 0.0
        self.connect_s: float | None = None
        self.first_byte_s: float | None = None
        self.answer: Answer | None = None
        self.broken: OSError | None = None

    def _find_place(self) -> tuple[int, SockAddr] | None:
        """Names, addresses that we refuse and impossible ports need the resolver, which has the words for them."""
        spec, (host, port) = self.question.spec, self.target.address
        if spec.kind not in (Kind.HTTP, Kind.TCP):
            return None
        try:
            if ip_problem(host) is not None or not 1 <= port <= 65535:
                return None
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
        except (ValueError, OSError):
            return None
        if spec.kind is Kind.HTTP:
            self.request = render(spec, self.target.address)
        return (found[0][0], found[0][4]) if len(self.request) <= MAX_REQUEST else None


L = TypeVar("L", bound=Line)


class Lines(Generic[L]):
    """Asks over lines, as many at once as there are. Owns their connections; somebody else watches `fileno` and the deadlines."""

    def __init__(self, *, lag: LagMeter, ended: Callable[[L, Outcome], None], idle_ended: Callable[[L, str, bytes], None]) -> None:
        """`ended` hears of every probe, once; `idle_ended` how an idle connection ended and what the other side said unasked.

        They are called in the middle of a batch: they may neither start nor drop anything. Needs a running loop.
        """
        self._loop = asyncio.get_running_loop()
        self._lag = lag
        self._ended = ended
        self._idle_ended = idle_ended
        self._epoll = select.epoll()
        self._by_fd: dict[int, L] = {}
        self._deadlines: Deadlines[L] = Deadlines(_is_under_way)
        self._ceiling = _descriptor_ceiling()
        self._keep_below = self._ceiling - self._ceiling // 4  # with more targets than descriptors, the rest must do without keeping
        self._outgoing = _first_outgoing_port()

    def fileno(self) -> int:
        """Readable when there is something to take."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close every connection; nobody hears of what was under way. Safe twice."""
        for line in list(self._by_fd.values()):
            self.drop(line)
        self._epoll.close()

    def start(self, line: L, timeout_s: float, *, fresh: bool) -> None:
        """Ask now, over the open connection unless `fresh` or the server may be about to close it. It must not be under way."""
        try:
            line.phase = _CONNECT
            line.started = line.sent = at = now()
            line.timeout_s = timeout_s
            line.deadline_slot = slot = int((at + timeout_s) * PER_S) + 1
            self._deadlines.put(line, slot)
            line.connect_s = line.first_byte_s = None
            if line.sock is None:
                self._dial(line, at)
                return
            if not fresh and at < line.announced_at:
                line.fresh, line.phase = False, _HEADERS
                try:
                    if line.sock.send(line.request) == len(line.request):
                        return
                except OSError:
                    pass
            self._dial_anew(line)
        except Exception as error:  # a bug of ours ends one probe, not the asking
            self._broke(line, error)

    def drop(self, line: L) -> None:
        """Close its connection; nobody hears of a probe under way."""
        self._hang_up(line)
        line.phase = _IDLE

    def next_deadline(self) -> int | None:
        """The slot of the earliest deadline."""
        return self._deadlines.first()

    def drain(self) -> None:
        """Take all that has arrived."""
        while self.take():
            pass

    def take(self) -> bool:
        """Take what has arrived, a batch at most; whether there may be more.

        One reading of the clock stands for the batch: all of it was there when the kernel said so.
        """
        events = self._epoll.poll(0, BATCH)
        at = now()
        for fd, flags in events:
            line = self._by_fd.get(fd)
            if line is not None:
                try:
                    self._hear(line, flags, at)
                except Exception as error:  # as above
                    self._broke(line, error)
        return len(events) == BATCH

    def expire(self, slot: int) -> None:
        """End what is overdue at this slot. An answer that has arrived by now counts, however late we are ourselves."""
        first = self._deadlines.first()
        if first is None or first > slot:
            return
        self.drain()
        while (line := self._deadlines.pop(slot)) is not None:
            self._fail(line, timed_out(line.phase, line.timeout_s), now())

    # ---- connections ----

    def _dial_anew(self, line: L) -> None:
        """A kept connection that had ended says nothing about this request: the same probe goes on over a new one."""
        self._hang_up(line)
        self._dial(line, now())

    def _dial(self, line: L, at: float) -> None:
        assert line.place is not None
        line.fresh, line.phase, line.dialed = True, _CONNECT, at
        family, address = line.place
        try:
            line.sock = sock = Socket(family, _FLAGS)
            line.fd = fd = sock.fileno()
            if fd >= self._ceiling:
                raise OSError(errno.EMFILE, f"descriptor {fd} of {self._ceiling}: the last are reserved")
            _check(sock.connect_ex(address), 0, errno.EINPROGRESS)
            if line.is_near:  # on this machine it is there by now: saves a wake-up
                self._connected(line, now())
            if line.sock is sock:
                self._by_fd[fd] = line
                self._epoll.register(fd, _NEWS | select.EPOLLOUT if line.phase is _CONNECT else _NEWS)
        except OSError as error:
            self._fail(line, network_failure(line.phase, error), now())

    def _connected(self, line: L, at: float) -> None:
        """Go on if it is: the kernel says so, or what went wrong, in answer to the next call on the socket."""
        assert line.sock is not None and line.place is not None
        address = line.place[1]
        sent = now()
        if line.request:
            try:
                if line.sock.send(line.request) < len(line.request):
                    raise OSError(errno.ENOBUFS, "our own kernel took only a part of the request")
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError) as error:
                line.broken = error  # an answer may have come before the reset
        else:
            code = line.sock.connect_ex(address)
            if code in (errno.EALREADY, errno.EINPROGRESS):
                return
            _check(code, 0, errno.EISCONN)
        if address[1] >= self._outgoing and line.sock.getsockname()[:2] == address[:2]:
            # A dead port of this host: TCP lets us connect to ourselves.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself, so nothing listens there")
        line.connect_s = at - line.dialed
        if not line.request:
            self._conclude(line, _OPEN, at)
            return
        line.phase, line.sent = _HEADERS, sent
        if line.broken is not None:
            self._read(line, now())

    def _hang_up(self, line: L) -> None:
        if line.sock is not None:
            self._by_fd.pop(line.fd, None)
            line.sock.close()  # which takes it off the epoll set too
            line.sock, line.fd = None, -1
        line.broken = None
        self._forget_answer(line)

    def _forget_answer(self, line: L) -> None:
        if line.answer is not None:
            line.answer.let_go()
            line.answer = None

    # ---- news ----

    def _hear(self, line: L, flags: int, at: float) -> None:
        phase = line.phase
        if phase is _HEADERS or phase is _BODY:
            fd = line.fd
            self._read(line, at)
            if flags & _ENDED and line.phase is _IDLE and line.fd == fd:
                self._unasked(line)  # the end came together with the answer, and is not told again
        elif phase is _IDLE:
            self._unasked(line)
        else:
            try:
                self._connected(line, at)
            except OSError as error:
                self._fail(line, network_failure(_CONNECT, error), at)
            if line.phase is _HEADERS and flags & ~select.EPOLLOUT:
                self._read(line, at)  # it spoke or ended before it was asked, and that is not told again

    def _read(self, line: L, at: float) -> None:
        """Take the first bytes of an answer, or more of it."""
        assert line.sock is not None
        try:
            data = line.sock.recv(FIRST_BYTES)
            if len(data) == FIRST_BYTES:
                with suppress(OSError):
                    data += line.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if line.answer is None and not line.fresh and isinstance(error, ConnectionResetError):
                self._dial_anew(line)
            else:
                self._fail(line, network_failure(line.phase, error), at)
            return
        if line.answer is None:
            if data:
                line.first_byte_s = at - line.sent
                verdict = line.question.known.get(data) or self._glanced(line.question, data)
                if verdict is not None:
                    self._conclude(line, verdict, at)
                    return
            elif not line.fresh:
                self._dial_anew(line)
                return
            elif line.broken is not None:
                self._fail(line, network_failure(_HEADERS, line.broken), at)
                return
        self._parse(line, data, at)

    def _glanced(self, question: Question, data: bytes) -> Verdict | None:
        """The verdict on an answer of which a look is enough."""
        if (verdict := glance(data, question)) is not None:
            _remember(question, data, verdict)
        return verdict

    def _parse(self, line: L, data: bytes, at: float) -> None:
        """Read on until the answer is whole or there is no more for now."""
        assert line.sock is not None
        is_whole = line.answer is None  # in one piece, so far
        answer = line.answer = line.answer or Answer.to(line.question.spec)
        try:
            _feed(answer, data)
            while not answer.is_done:
                is_whole = False
                if answer.has_head:
                    line.phase = _BODY
                _feed(answer, line.sock.recv(READ_BYTES))
                at = now()
        except BlockingIOError:
            return
        except Failed as failed:
            self._fail(line, failed, at)
            return
        except OSError as error:
            self._fail(line, network_failure(line.phase, error), at)
            return
        verdict = judge(answer, line.question)
        if is_whole:
            _remember(line.question, data, verdict)
        self._conclude(line, verdict, at)

    def _unasked(self, line: L) -> None:
        """Something happened to an idle connection."""
        assert line.sock is not None
        try:
            data = line.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            how, data = "reset", b""
        except OSError as error:
            how, data = error.strerror or str(error), b""
        else:
            how = "spoke unasked" if data else "closed"
        self._hang_up(line)
        self._idle_ended(line, how, data)

    # ---- ends ----

    def _conclude(self, line: L, verdict: Verdict, at: float) -> None:
        if verdict.failed is not None:
            self._fail(line, verdict.failed, at)
            return
        line.phase = _IDLE
        if verdict.may_keep and line.fd < self._keep_below:
            line.announced_at = _NEVER if verdict.keep_s is None else at + verdict.keep_s * ANNOUNCED_SHARE
            if line.answer is not None:
                self._forget_answer(line)
        else:
            self._hang_up(line)
        phases = Phases(None, line.connect_s, None, line.first_byte_s)
        self._ended(line, Outcome(line.target, _OK, line.started, at, None, "", phases, line.fresh))

    def _fail(self, line: L, failed: Failed, at: float) -> None:
        failed = unless_late(failed, self._lag, line.started, line.timeout_s)
        self.drop(line)
        phases = Phases(None, line.connect_s, None, line.first_byte_s)
        detail = one_line(failed.detail)
        self._ended(line, Outcome(line.target, failed.result, line.started, at, failed.reason, detail, phases, line.fresh))

    def _broke(self, line: L, error: Exception) -> None:
        """Told to the loop's handler, and never counted against the instance."""
        self._loop.call_exception_handler({"message": f"probe of {line.target} broke", "exception": error})
        if line.phase is not _IDLE:
            self._fail(line, Failed(Reason.CANCELLED, f"our own error: {error!r}", result=Result.UNKNOWN), now())


def _is_under_way(line: Line, slot: int) -> bool:
    return line.deadline_slot == slot and line.phase is not _IDLE


def _is_near(ip: str) -> bool:
    """Whether a connection is open by the time that `connect` returns."""
    return ipaddress.ip_address(ip).is_loopback


def _remember(question: Question, data: bytes, verdict: Verdict) -> None:
    if len(data) <= MAX_KNOWN_BYTES:
        if len(question.known) >= MAX_KNOWN:
            question.known.clear()
        question.known[data] = verdict


def _feed(answer: Answer, data: bytes) -> None:
    if data:
        answer.feed(data)
    else:
        answer.end()


def _check(code: int, *fine: int) -> None:
    if code not in fine:
        raise OSError(code, errno.errorcode.get(code, str(code)))


def _descriptor_ceiling() -> int:
    """The first descriptor that is left to the balancers and the API: without them we could not even say what is wrong."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit - min(RESERVED_DESCRIPTORS, limit // 4)


def _first_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 1
