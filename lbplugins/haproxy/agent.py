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

FIRST_S = 60.0
LEAST_S = 10.0
"""A server that polled once is taken for polling `FIRST_S` long; later for three of its gaps, and never less than `LEAST_S`: a busy
moment, ours or HAProxy's, does not make someone else's server of it."""

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

    def lasts_s(self) -> float:
        """How long after it the server counts as polling."""
        return max(3 * self.gap_s, LEAST_S) if self.gap_s else FIRST_S


class Agent:
    """The listener and the words it says. Words are kept while it is closed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._words: dict[Ref, bytes] = {}
        self._polls: dict[Ref, Poll] = {}
        self._open: set[_Question] = set()
        self._all_gone = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    async def listen(self) -> None:
        """BalancerError when the address cannot be had. Safe twice."""
        if self._server is not None:
            return
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Question(self), self.address.host, self.address.port)
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
        for question in tuple(self._open):
            question.abort()
        while self._open:
            self._all_gone.clear()
            await self._all_gone.wait()
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
        asking = {ref: poll for ref, poll in self._polls.items() if now - poll.at <= poll.lasts_s()}
        return Polls(frozenset(asking), {ref: 2 * (poll.gap_s or FIRST_GAP_S) + 0.2 for ref, poll in asking.items()})

    def came(self, question: _Question) -> bool:
        """Whether this connection may ask."""
        if self._server is None or len(self._open) >= MOST_AT_ONCE:
            return False
        self._open.add(question)
        return True

    def went(self, question: _Question) -> None:
        self._open.discard(question)
        if not self._open:
            self._all_gone.set()

    def answer(self, question: bytes) -> bytes:
        """The word for the server that this line names, and a note that it asked."""
        pool, _, server = question.decode("ascii", "replace").strip("\r").partition("/")
        if NAME.match(pool) is None or NAME.match(server) is None:
            return b"\n"
        ref = Ref(pool, server)
        now = asyncio.get_running_loop().time()
        if (poll := self._polls.get(ref)) is not None:
            poll.again(now)
        elif len(self._polls) < MOST_ASKERS:
            self._polls[ref] = Poll(now)
        return self._words.get(ref, b"\n")


class _Question(asyncio.Protocol):
    """One connection: a line, an answer, the end. Without a line in time, the end."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._agent.came(self):
            transport.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(PATIENCE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._heard += data
        line, ended, _ = self._heard.partition(b"\n")
        if ended and len(line) <= LONGEST_QUESTION:
            self._transport.write(self._agent.answer(line))
            self._transport.close()
        elif len(self._heard) > LONGEST_QUESTION:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._agent.went(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


__all__ = ["Agent"]
