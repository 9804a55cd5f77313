"""What every receiver has in common: a bounded queue that never waits, one task that serves it, and patience between two attempts.

`offer` never waits: a full queue drops its oldest items and counts them. What a kind of receiver confirms, and what becomes of a batch
under way when it breaks off, is said where that kind is: `stream`, `datagram`, `post`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_random_exponential

from sidecar.core.samples import SinkCount
from sidecar.net.dial import LookupFailed, NeverAsked
from sidecar.net.secret import SecretError

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 << 20
MAX_ITEM_BYTES = 1 << 20
CONNECT_WITHIN_S = 3.0
FLUSH_WITHIN_S = 1.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 60.0

log = logging.getLogger("sidecar.publish")


class Away(Exception):
    """The receiver cannot take anything now; the message says why. `after_s`: how long it asked us to stay away at least."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


FAULTS = (OSError, TimeoutError, LookupFailed, NeverAsked, SecretError, Away)
"""What ends a session and is answered by trying again."""


class Sink(ABC):
    """One receiver. `run` is its task: serves it for ever; cancelled, it sends what waits for 1 s at most.

    `name` is the sink's in metrics and under `publish` in the configuration; `where` is for people.
    """

    confirms: ClassVar[bool] = False
    """Does the receiver say what has arrived?"""

    def __init__(
        self,
        name: str,
        where: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        max_item_bytes: int = MAX_ITEM_BYTES,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        self.name = name
        self.where = where
        self._max_waiting, self._max_waiting_bytes, self._max_item_bytes = max_waiting, max_waiting_bytes, max_item_bytes
        self._longest_wait_s = longest_wait_s
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._is_up = False
        self._sent = 0
        self._dropped = 0
        self._under_way = 0
        self._is_away = False

    def offer(self, items: Iterable[bytes]) -> None:
        """Take items, each whole. Call it on the loop that runs `run`. Never waits."""
        for item in items:
            if len(item) > self._max_item_bytes:
                self._dropped += 1
                continue
            self._waiting.append(item)
            self._waiting_bytes += len(item)
        self._drop_oldest()
        self._news.set()

    def count(self) -> SinkCount:
        """Items sent, dropped and waiting; together all that were offered, except a batch just being written."""
        return SinkCount(self._sent, self._dropped, len(self._waiting), self._is_up, 0 if self.confirms else self._sent)

    async def run(self) -> None:
        """Serve the receiver until cancelled."""
        patience = wait_random_exponential(multiplier=FIRST_WAIT_S, max=self._longest_wait_s, min=FIRST_WAIT_S)

        def wait(state: RetryCallState) -> float:
            fault = state.outcome.exception() if state.outcome is not None else None
            return max(patience(state), fault.after_s if isinstance(fault, Away) else 0.0)

        while True:
            async for attempt in AsyncRetrying(wait=wait, stop=stop_never, retry=retry_if_exception_type(FAULTS), reraise=True):
                with attempt:
                    try:
                        await self._serve()
                    except FAULTS as error:
                        self._tell_away(error)
                        raise
                    finally:
                        self._is_up = False

    @abstractmethod
    async def _serve(self) -> None:
        """One session from its beginning to its end; returns if it was a good one, else raises one of FAULTS."""

    def _take(self, most_bytes: int, most: int) -> list[bytes]:
        """The oldest that wait, as many as fit and at least one; none when none waits. They are under way until `_settle`."""
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(batch) < most and (not batch or size + len(self._waiting[0]) <= most_bytes):
            item = self._waiting.popleft()
            size += len(item)
            batch.append(item)
        self._waiting_bytes -= size
        self._under_way = len(batch)
        return batch

    def _settle(self, *, sent: int = 0, dropped: int = 0) -> None:
        """Count so many of the batch under way as gone."""
        self._sent += sent
        self._dropped += dropped
        self._under_way -= sent + dropped

    def _put_back(self, items: Iterable[bytes]) -> None:
        """These of the batch under way wait again, before all others."""
        kept = list(items)
        self._waiting.extendleft(reversed(kept))
        self._waiting_bytes += sum(map(len, kept))
        self._under_way -= len(kept)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._waiting) > self._max_waiting or self._waiting_bytes > self._max_waiting_bytes:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._dropped += 1

    def _tell_away(self, error: Exception) -> None:
        """Once for each outage."""
        if not self._is_away:
            self._is_away = True
            log.warning(
                "%s at %s cannot be sent to: %s. It is tried again for ever and only its own lines are lost; check publish.%s",
                self.name,
                self.where,
                _why(error),
                self.name,
            )

    def _tell_back(self) -> None:
        self._is_up = True
        if self._is_away:
            self._is_away = False
            log.warning("%s at %s takes lines again; %d were lost so far", self.name, self.where, self._dropped)


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused, nothing listens there"
    if isinstance(error, TimeoutError):
        return "it takes too long"
    return str(error) or type(error).__name__


__all__ = ["MAX_WAITING", "Away", "Sink"]
