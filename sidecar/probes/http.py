"""HTTP/1.1 probes: one request, one answer within fixed caps. No redirects, nothing inflated, no more than the answer's share of us."""

from __future__ import annotations

import re

import httptools

from lbplugins.values import Address
from sidecar.core.model import Reason
from sidecar.net.dial import Wire
from sidecar.probes.attempt import MAX_REQUESTS, Attempt, Failed, Question, Verdict, now
from sidecar.probes.expect import Problem
from sidecar.probes.options import Kind, ProbeSpec

MAX_HEAD = 64 * 1024
MAX_FRAMING = 64 * 1024
"""Bytes beyond head and body that chunk sizes, chunk extensions and trailers may take."""
MAX_HEADERS = 256
"""Header and trailer lines. HAProxy passes on 101; each costs our processor as much as a hundred bytes do."""
MAX_INTERIM = 8
"""1xx answers before the real one."""

_USER_AGENT = "lb-sidecar"
_TIMEOUT = re.compile(rb"timeout\s*=\s*(\d{1,6})")
_HARMLESS = (
    rb"(?>connection: keep-alive\r\n"
    rb"|(?!connection:|content-length:|transfer-encoding:|upgrade:|trailer:)[!#$%&'*+.^_`|~0-9a-z-]++:[\t -~]*+\r\n)*+"
)
"""Headers that say nothing about where the answer ends. Possessive, so that no text is looked at twice."""
_SIMPLE = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\t -~]*+\r\n(?i:" + _HARMLESS + rb"content-length: ?([0-9]{1,7})\r\n" + _HARMLESS + rb")\r\n"
)
_ANNOUNCED = re.compile(rb"(?i)\r\nkeep-alive:[\t -~]*?timeout[\t ]*=[\t ]*([0-9]{1,6})")
_BODILESS = {204, 205, 304}


class _Stale(Exception):
    """The kept connection had been closed before a byte of the answer: that says nothing about this request."""


async def ask_http(attempt: Attempt) -> None:
    """Ask over the kept connection if there is one, else a fresh one. A stale kept one is replaced within the same deadline."""
    request = _request(attempt)
    wire = attempt.reuse()
    if wire is not None:
        try:
            await _exchange(attempt, wire, request)
        except _Stale:
            wire.close()
        else:
            return
    await _exchange(attempt, await attempt.dial(), request)


def _request(attempt: Attempt) -> bytes:
    known = attempt.question.requests
    request = known.get(attempt.address)
    if request is None:
        if len(known) >= MAX_REQUESTS:
            known.clear()
        request = known[attempt.address] = render(attempt.spec, attempt.address)
    return request


def render(spec: ProbeSpec, address: Address) -> bytes:
    """The request as sent."""
    default_port = 443 if spec.kind is Kind.HTTPS else 80
    bare = f"[{address.host}]" if ":" in address.host else address.host
    host = spec.host or (bare if address.port == default_port else str(address))
    lines = [f"{spec.method} {spec.path} HTTP/1.1", f"Host: {host}"]
    given = {name.lower() for name in spec.headers}
    if "user-agent" not in given:
        lines.append(f"User-Agent: {_USER_AGENT}")
    if "accept" not in given:
        lines.append("Accept: */*")
    lines.append("Accept-Encoding: identity")
    if spec.fresh:
        lines.append("Connection: close")
    lines += [f"{name}: {value}" for name, value in spec.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _exchange(attempt: Attempt, wire: Wire, request: bytes) -> None:
    answer = Answer.to(attempt.spec)
    try:
        await _fetch(attempt, wire, request, answer)
    finally:
        answer.let_go()
    verdict = judge(answer, attempt.question)
    if verdict.failed is not None:
        raise verdict.failed
    if verdict.may_keep and not wire.has_pending:
        attempt.keep, attempt.keep_s = wire, verdict.keep_s


def judge(answer: Answer, question: Question) -> Verdict:
    """What a whole answer means for this question."""
    problem = question.expectation.problem(answer.status, answer.headers, answer.body, answer.is_cut)
    if problem is not None:
        return _bad(problem, answer.status)
    return Verdict(None, answer.may_keep and not question.spec.fresh, answer.announced_s())


def _bad(problem: Problem, status: int) -> Verdict:
    # 408: the server gave up waiting for our request, which we may have sent late.
    return Verdict(Failed(problem.reason, problem.detail, by_lateness=status == 408), may_keep=False, keep_s=None)


_SIMPLE_GOOD = (Verdict(None, may_keep=True, keep_s=None), Verdict(None, may_keep=False, keep_s=None))
"""By whether the spec wants a new connection each time."""


def glance(data: bytes, question: Question) -> Verdict | None:
    """The verdict on an answer of the simplest form that came in one piece, as `Answer` and `judge` give it; None = they must look."""
    spec = question.spec
    if spec.method == "HEAD" or (found := _SIMPLE.match(data)) is None:
        return None
    status, size, begin = int(found[1]), int(found[2]), found.end()
    if len(data) != begin + size or size > spec.max_body or status in _BODILESS or question.expectation.needs_headers:
        return None
    problem = question.expectation.problem(status, (), data[begin:], False)
    if problem is not None:
        return _bad(problem, status)
    if b"imeout" in data and (announced := _ANNOUNCED.search(data, 0, begin)) is not None:
        return Verdict(None, may_keep=not spec.fresh, keep_s=float(announced[1]))
    return _SIMPLE_GOOD[spec.fresh]


async def _fetch(attempt: Attempt, wire: Wire, request: bytes, answer: Answer) -> None:
    attempt.phase = "headers"
    sent = now()
    broken: OSError | None = None
    try:
        await wire.send(request)
    except (BrokenPipeError, ConnectionResetError) as error:
        broken = error  # an answer may have come before the reset
    is_first = True
    while not answer.is_done:
        try:
            data = await wire.receive(just_sent=is_first)
        except ConnectionResetError:
            if is_first and not attempt.fresh:
                raise _Stale from None
            raise
        if is_first:
            if data:
                attempt.first_byte_s = now() - sent
            elif not attempt.fresh:
                raise _Stale
            elif broken is not None:
                raise broken
            is_first = False
        if data:
            answer.feed(data)
        else:
            answer.end()
        if answer.has_head:
            attempt.phase = "body"


class Answer:
    """One response as it arrives, strictly read and within caps."""

    @classmethod
    def to(cls, spec: ProbeSpec) -> Answer:
        """The answer to come to a request of this spec."""
        return cls(is_head=spec.method == "HEAD", max_body=spec.max_body)

    def __init__(self, is_head: bool, max_body: int) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_done = False
        self.is_cut = False
        self.may_keep = False
        self._is_head = is_head
        self._max_body = max_body
        self._parts: list[bytes] = []
        self._size = 0
        self._received = 0
        self._interim = 0
        self._ends_with_connection = False
        self._fault = ""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        """What was read of it, at most `max_body` bytes."""
        return b"".join(self._parts)[: self._max_body]

    def let_go(self) -> None:
        """Break the cycle with the parser, so that no garbage waits for the collector."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Take what arrived. `Failed` if it is no HTTP/1 answer or passes a cap."""
        assert self._parser is not None
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.is_done, self.may_keep = True, False
        except httptools.HttpParserError as error:
            if self._fault:
                raise Failed(Reason.BAD_RESPONSE, self._fault) from error
            if not self.is_done:
                raise Failed(Reason.BAD_RESPONSE, f"not a valid HTTP/1.1 answer: {error}; it began {data[:40]!r}") from error
            self.may_keep = False
        self._check_caps()

    def end(self) -> None:
        """The other side closed. `Failed` unless that is how this body ends."""
        if self.has_head and self._ends_with_connection:
            self.is_done = True
            return
        if self._received == 0:
            what = "closed without an answer"
        elif not self.has_head:
            what = f"closed within the head, after {self._received} bytes"
        else:
            what = f"closed within the body, after {self._size} bytes of it"
        raise Failed(Reason.BAD_RESPONSE, f"the server {what}", by_lateness=True)

    def announced_s(self) -> float | None:
        """Seconds from `Keep-Alive: timeout=N`, None = not said."""
        for name, value in self.headers:
            if name.lower() == b"keep-alive" and (match := _TIMEOUT.search(value.lower())):
                return float(match[1])
        return None

    def _check_caps(self) -> None:
        if self._fault:
            raise Failed(Reason.BAD_RESPONSE, self._fault)
        if self._interim > MAX_INTERIM:
            raise Failed(Reason.BAD_RESPONSE, f"more than {MAX_INTERIM} interim (1xx) answers")
        if self._size > self._max_body:
            self.is_done, self.is_cut, self.may_keep = True, True, False
        if self.is_done:
            return
        if not self.has_head and self._received > MAX_HEAD:
            raise Failed(Reason.BAD_RESPONSE, f"the head is longer than {MAX_HEAD // 1024} KiB")
        if self._received > MAX_HEAD + self._max_body + MAX_FRAMING:
            raise Failed(Reason.BAD_RESPONSE, "chunk sizes and trailers without end")

    # What httptools calls; an exception in here would lose its type, so they take notes.

    def on_message_begin(self) -> None:
        if self.is_done:
            self.may_keep = False  # bytes beyond the answer: nobody knows what the next one would be

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_done:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._fault = f"more than {MAX_HEADERS} header lines"
            raise ValueError(self._fault)  # ends the parsing; the note tells why
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_done or self._parser is None:
            return
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            self.headers = []
            return
        self.status = status
        self.has_head = True
        if version not in ("1.0", "1.1") or not 100 <= status <= 599:
            self._fault = f"not a valid HTTP/1.1 answer: HTTP/{version} with status {status}"
        self._note_framing(version)
        if self._is_head:
            self.is_done = True

    def _note_framing(self, version: str) -> None:
        names = {name.lower() for name, _ in self.headers}
        tokens = {t.strip().lower() for name, value in self.headers if name.lower() == b"connection" for t in value.split(b",")}
        is_bodiless = self._is_head or self.status in (204, 304)
        self._ends_with_connection = not is_bodiless and not names & {b"content-length", b"transfer-encoding"}
        persists = b"keep-alive" in tokens if version == "1.0" else b"close" not in tokens
        self.may_keep = persists and not self._ends_with_connection

    def on_body(self, data: bytes) -> None:
        if self.is_done:
            self.may_keep = False  # a body where none may be, as after HEAD
            return
        if self._size <= self._max_body:
            self._parts.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_done = True
