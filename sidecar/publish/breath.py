"""Long rows of work in short pieces: publishing shares its loop with decisions, and a thousand instances must not delay one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

EVERY = 64
"""Samples, lines or rows between two turns of the loop: about a millisecond of work."""


async def breathing(things: Iterable[T], every: int = EVERY) -> AsyncIterator[T]:
    """The things, with a turn of the loop after each `every` of them."""
    for place, thing in enumerate(things, 1):
        yield thing
        if place % every == 0:
            await asyncio.sleep(0)


__all__ = ["breathing"]
