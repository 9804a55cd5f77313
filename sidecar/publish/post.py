"""Batches to an HTTP receiver. What it acknowledges counts as sent; what it may take later is kept and sent again, in order; what it
refuses for good is dropped and counted. So sent + dropped + waiting is all that was offered; a batch whose answer was lost on its
way is sent twice, which receivers that know items by an id (`_bulk`, PagerDuty) do not count twice.

Whatever the receiver says is bounded in bytes and time; redirects, cookies and proxies of the environment are not followed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from sidecar.net.dial import LookupFailed, NeverAsked, Resolver
from sidecar.net.secret import Secret
from sidecar.net.tls import TlsOptions, client_context
from sidecar.publish.sink import CONNECT_WITHIN_S, FLUSH_WITHIN_S, LONGEST_WAIT_S, MAX_WAITING, Away, Sink, log

ANSWER_WITHIN_S = 10.0
MAX_ANSWER_BYTES = 8 << 20
GOOD_CONDUCT_S = 5.0
"""A session that held this long and did some good ends the row of failures, so that the next attempt comes at once."""
LONGEST_STAY_S = 300.0
"""A Retry-After is obeyed up to here."""
SESSION_S = 300.0
"""Secrets and certificates are read again so often, and after every refusal to let us in."""
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_CLOSED = frozenset({401, 403, 404, 405, 407})
"""What an operator must mend, here or there: tried again, not dropped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the items of one batch: `again` are kept, the rest was taken or `refused` for good; `why` is the receiver's word."""

    again: Sequence[bytes] = ()
    refused: int = 0
    why: str = ""


Judge = Callable[[bytes, Sequence[bytes]], Answer]
"""From the body of a 2xx answer and the batch. Raises Away when the body is none that this protocol knows: the batch is kept."""


def all_taken(body: bytes, batch: Sequence[bytes]) -> Answer:
    """For receivers whose status says it all."""
    return Answer()


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where and how batches are posted. `url` and values of `headers` may be secrets; `secret`, if any, is given to `body`."""

    url: str | Secret
    body: Callable[[Sequence[bytes], str], bytes]
    content_type: str
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """What stands before a header's secret, as `ApiKey `."""
    secret: Secret | None = None
    tls: TlsOptions | None = None
    judge: Judge = all_taken
    batch: int = 1000
    batch_bytes: int = 1 << 20
    pause_s: float = 0.0
    """At least so long between two posts."""


class Post(Sink):
    """Items are documents, or parts of a request's body."""

    confirms = True

    def __init__(self, name: str, receiver: Receiver, *, max_waiting: int = MAX_WAITING, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        where = "its secret address" if isinstance(receiver.url, Secret) else receiver.url
        super().__init__(name, where, max_waiting=max_waiting, longest_wait_s=longest_wait_s)
        self._receiver = receiver
        self._most = receiver.batch
        self._posting: asyncio.Task[None] | None = None
        self._refused_yet = False
        self._did_good = False

    async def _serve(self) -> None:
        opened = await asyncio.to_thread(_opened, self._receiver)
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._did_good = False
        self._is_up = not self._is_away
        async with opened.session() as session:
            try:
                while loop.time() < began + SESSION_S:
                    self._news.clear()
                    while self._waiting:
                        await self._post_next(session, opened)
                        await asyncio.sleep(self._receiver.pause_s)
                    await self._news.wait()
            except Away as error:
                if error.after_s or not self._did_good or loop.time() - began < GOOD_CONDUCT_S:
                    raise
                self._tell_away(error)
            except asyncio.CancelledError:
                await self._last_words(session, opened)
                raise

    async def _post_next(self, session: aiohttp.ClientSession, opened: _Opened) -> None:
        """The next batch. It is a task of its own: cancelled in the middle of it, we still want to know what became of it."""
        self._posting = asyncio.ensure_future(self._post(session, opened))
        try:
            await asyncio.shield(self._posting)
        finally:
            if self._posting.done():
                self._posting = None

    async def _last_words(self, session: aiohttp.ClientSession, opened: _Opened) -> None:
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                if self._posting is not None:
                    await self._posting
                while self._waiting:
                    await self._post(session, opened)
        except (*_FAULTS, Away) as error:
            log.debug("sink %s: %d items are lost at the end: %s", self.name, len(self._waiting), error)

    async def _post(self, session: aiohttp.ClientSession, opened: _Opened) -> None:
        batch = self._take(self._receiver.batch_bytes, self._most)
        left: Sequence[bytes] = batch
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                status, after_s, said = await _exchange(session, opened.url, self._receiver.body(batch, opened.secret))
            left, why = self._account(status, said, batch)
        except _FAULTS as error:
            raise _away(error) from error
        finally:
            self._put_back(left)
        if why:
            raise Away(why, after_s)
        self._tell_back()
        self._did_good = True

    def _account(self, status: int, said: bytes, batch: list[bytes]) -> tuple[Sequence[bytes], str]:
        """Count what the receiver settled; what is left of the batch, and why it must wait, "" = it need not."""
        if 200 <= status < 300:
            answer = self._receiver.judge(said, batch)
            self._most = min(self._receiver.batch, self._most * 2)
            self._settle(sent=len(batch) - len(answer.again) - answer.refused, dropped=answer.refused)
            if answer.refused:
                self._tell_refused(answer.refused, answer.why)
            return answer.again, answer.why if answer.again else ""
        if status == 413 and len(batch) > 1:
            self._most = max(1, len(batch) // 2)
            return batch, ""
        why = f"it answers {status} {_shown(said)}".rstrip()
        if status in _LATER or status in _CLOSED or status < 400:
            return batch, why
        self._settle(dropped=len(batch))
        self._tell_refused(len(batch), why)
        return (), ""

    def _tell_refused(self, count: int, why: str) -> None:
        """Once: what one receiver refuses it will refuse again, and the count is in the metrics."""
        if not self._refused_yet:
            self._refused_yet = True
            log.warning("%s at %s refused %d for good, they are dropped and counted: %s", self.name, self.where, count, why)


_FAULTS = (OSError, TimeoutError, LookupFailed, NeverAsked, aiohttp.ClientError, ValueError)
"""ValueError: aiohttp's for an address or a header that is none."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A receiver with its secrets read."""

    url: str
    headers: Mapping[str, str]
    secret: str
    tls: ssl.SSLContext | None

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=1, resolver=_Names(), ssl=self.tls or True, keepalive_timeout=30.0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S, connect=CONNECT_WITHIN_S)
        return aiohttp.ClientSession(
            connector=connector, headers=self.headers, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )


def _opened(receiver: Receiver) -> _Opened:
    """Reads secrets and certificates, so not on the loop. SecretError, Away."""
    headers = {name: receiver.prefixes.get(name, "") + _text(value) for name, value in receiver.headers.items()}
    headers |= {"Content-Type": receiver.content_type, "User-Agent": "lb-sidecar", "Accept-Encoding": "identity"}
    url = _text(receiver.url)
    try:
        tls = client_context(receiver.tls or TlsOptions()) if url.startswith("https:") else None
    except ValueError as error:
        raise Away(str(error)) from error
    return _Opened(url, headers, _text(receiver.secret) if receiver.secret else "", tls)


def _text(value: str | Secret) -> str:
    return value.read() if isinstance(value, Secret) else value


async def _exchange(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[int, float, bytes]:
    """Status, seconds to stay away at least, and the answer's body as far as we read."""
    async with session.post(url, data=body, allow_redirects=False) as response:
        said = bytearray()
        async for piece in response.content.iter_chunked(64 << 10):
            said += piece
            if len(said) > MAX_ANSWER_BYTES:
                raise Away(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        return response.status, _stay(response.headers.get("Retry-After", "")), bytes(said)


def _stay(text: str) -> float:
    """Retry-After in seconds; a date is not worth the trouble."""
    return min(float(text), LONGEST_STAY_S) if text.isascii() and text.isdigit() else 0.0


def _away(error: BaseException) -> Away:
    if isinstance(error, TimeoutError):
        return Away("it takes too long")
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return Away("connection refused, nothing listens there")
    return Away(str(error) or type(error).__name__)


def _shown(said: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in said[:200].decode("utf-8", "replace"))


class _Names(AbstractResolver):
    """Our own lookup for aiohttp: one at a time for each name, with a deadline, refusing what must not be dialled."""

    def __init__(self) -> None:
        self._resolver = Resolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        deadline = asyncio.get_running_loop().time() + CONNECT_WITHIN_S
        found, where = await self._resolver.resolve(host, port, deadline)
        return [ResolveResult(hostname=host, host=where[0], port=port, family=found, proto=0, flags=socket.AI_NUMERICHOST)]

    async def close(self) -> None:
        pass


__all__ = ["Answer", "Post", "Receiver", "all_taken"]
