"""`/api/v1/events`: decisions as server-sent events. Few clients, bounded queues, and who cannot keep up is dropped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from sidecar.store.decisions import Decisions, Record, Subscription
from sidecar.web import views
from sidecar.web.auth import Caller
from sidecar.web.problem import Problem

CLIENTS = 32
QUEUE = 256
HEARTBEAT_S = 15.0
WRITE_S = 5.0
"""A client that takes nothing for so long is too slow."""
RETRY_MS = 3000


@dataclass(slots=True)
class Stream:
    """All listeners. `heartbeat_s`: a comment line that often, so that proxies and clients know we live."""

    decisions: Decisions
    heartbeat_s: float = HEARTBEAT_S
    write_s: float = WRITE_S
    listening: int = 0
    dropped: int = 0
    _open: set[Subscription] = field(default_factory=set)

    def close(self) -> None:
        """End all streams."""
        for subscription in list(self._open):
            subscription.close()

    async def serve(self, request: web.Request, caller: Caller, service: str | None, after: int | None) -> web.StreamResponse:
        """Until the client goes, falls behind or we close. `after`: the id it saw last; what it missed comes first, as far as it fits."""
        if self.listening >= CLIENTS:
            raise Problem(
                503, f"{CLIENTS} clients listen already", "close another page or stream, or ask /api/v1/decisions", retry_after_s=15
            )
        self.listening += 1
        subscription = self.decisions.subscribe(QUEUE, after=after)
        self._open.add(subscription)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"})
        is_too_slow = False
        try:
            await response.prepare(request)
            await self._write(response, f"retry: {RETRY_MS}\n\n".encode())
            await self._pass_on(response, subscription, caller, service)
        except TimeoutError:
            is_too_slow = True
        except ConnectionError:
            pass  # the client has gone by itself
        finally:
            self.listening -= 1
            self._open.discard(subscription)
            subscription.close()
        if is_too_slow or subscription.too_slow:
            self.dropped += 1
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _pass_on(self, response: web.StreamResponse, subscription: Subscription, caller: Caller, service: str | None) -> None:
        while True:
            try:
                record = await asyncio.wait_for(anext(subscription), self.heartbeat_s)
            except TimeoutError:
                await self._write(response, b": still here\n\n")
                continue
            except StopAsyncIteration:
                return
            if _concerns(record, caller, service):
                await self._write(response, _event(record))

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        await asyncio.wait_for(response.write(data), self.write_s)


def last_id(text: str | None) -> int | None:
    """`Last-Event-ID` as an id; Problem 400 if it is none of ours."""
    if text is None or not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Problem(400, f"{text[:40]!r} is no event id", "send the `id` of the last event you saw, or leave Last-Event-ID out")
    return int(text)


def _concerns(record: Record, caller: Caller, service: str | None) -> bool:
    if service is not None and record.service != service:
        return False
    return caller.services is None or caller.sees(record.service)


def _event(record: Record) -> bytes:
    # JSON escapes line ends, so that no sentence can end the event early or forge another
    return f"id: {record.id}\nevent: decision\ndata: {views.decision(record).model_dump_json()}\n\n".encode()


__all__ = ["CLIENTS", "QUEUE", "Stream", "last_id"]
