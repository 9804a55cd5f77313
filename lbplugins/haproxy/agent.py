"""Our answers to HAProxy's agent-check: `up` or `down`, from memory, and nothing else ever.

`ready`, `maint` and `drain` move the operator's axis, weights overwrite his: none is in this file. While we hold no word for a
server the connection is closed with an empty line, which leaves it as it is.
"""

from __future__ import annotations

import asyncio
import string

from lbplugins.api import BalancerError
from lbplugins.haproxy.axis import OUR_WORD
from lbplugins.haproxy.process import Polls
from lbplugins.haproxy.wire import NAME
from lbplugins.values import FULL, Address, Ref, Serve

LONGEST_QUESTION = 300
"""Bytes of `agent-send`: two names, a slash and the line feed."""

PATIENCE_S = 1.0
"""How long a connection may take to ask."""

MOST_AT_ONCE = 512
"""Open connections; more are closed unheard."""

MOST_ASKERS = 20_000
"""Servers whose polls are remembered."""

FIRST_GAP_S = 2.0
"""HAProxy's default `agent-inter`, taken until two polls have shown the real one."""

FORGOTTEN_S = 60.0
"""A server that polled once is taken for polling this long; later, for three of its gaps."""

_SAYABLE = frozenset(string.ascii_letters + string.digits + " .,:_-/()%=+")


class Poll:
    """When one server asked: the last time, and the longest gap of late, seconds on the loop's clock."""

    __slots__ = ("at", "gap_s")

    def __init__(self, at: float) -> None:
        self.at = at
        self.gap_s = 0.0

    def again(self, at: float) -> None:
        # Slowly forgetting: one long pause of ours must not stretch every later deadline.
        self.gap_s = max(at - self.at, self.gap_s * 0.9)
        self.at = at


class Agent:
    """The listener and the words it says. Words are kept while it is closed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._words: dict[Ref, bytes] = {}
        self._polls: dict[Ref, Poll] = {}
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """BalancerError when the address cannot be had. Safe twice."""
        if self._server is not None:
            return
        try:
            self._server = await asyncio.start_server(self._serve, self.address.host, self.address.port, limit=LONGEST_QUESTION)
        except OSError as error:
            raise BalancerError(
                f"agent {self.address}: cannot listen there ({error.strerror or error}); "
                "is another sidecar running? HAProxy's agent-port must reach this address"
            ) from error

    async def close(self) -> None:
        """Stops answering; HAProxy then leaves every server as it is. Safe twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for writer in tuple(self._open):
            writer.transport.abort()
        await server.wait_closed()

    def say(self, ref: Ref, serve: Serve, why: str = "") -> None:
        """From the next poll on, answers so for this server. `why` is shown by HAProxy beside a DOWN."""
        reason = "".join(c if c in _SAYABLE else " " for c in why)[:80].strip()
        self._words[ref] = b"up\n" if serve is FULL else f"down #{OUR_WORD} {reason}".rstrip().encode("ascii") + b"\n"

    def says(self, ref: Ref) -> bool:
        """Whether there is a word for this server."""
        return ref in self._words

    def polls(self) -> Polls:
        """Who asks us now, and how soon a new word is sure to have arrived."""
        now = asyncio.get_running_loop().time()
        asking = {ref: poll for ref, poll in self._polls.items() if now - poll.at <= (3 * poll.gap_s if poll.gap_s else FORGOTTEN_S)}
        return Polls(frozenset(asking), {ref: 2 * (poll.gap_s or FIRST_GAP_S) + 0.2 for ref, poll in asking.items()})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_AT_ONCE:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(PATIENCE_S):
                question = await reader.readuntil(b"\n")
                writer.write(self._answer(question))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not HAProxy, or gone: nothing to say
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    def _answer(self, question: bytes) -> bytes:
        pool, _, server = question.decode("ascii", "replace").strip("\r\n").partition("/")
        if NAME.match(pool) is None or NAME.match(server) is None:
            return b"\n"
        ref = Ref(pool, server)
        now = asyncio.get_running_loop().time()
        if (poll := self._polls.get(ref)) is not None:
            poll.again(now)
        elif len(self._polls) < MOST_ASKERS:
            self._polls[ref] = Poll(now)
        return self._words.get(ref, b"\n")


__all__ = ["Agent"]
