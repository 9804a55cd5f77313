"""What a failing schedule needs, and no more: delta debugging over whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrunk(parts: Sequence[T], still_fails: Callable[[Sequence[T]], bool], tries: int = 400) -> tuple[T, ...]:
    """The parts without those that it does not need in order to fail. Ever smaller pieces are left out, until no single one can be."""
    needed = tuple(parts)
    size = max(1, len(needed) // 2)
    while size and tries > 0:
        at, has_shrunk = 0, False
        while at < len(needed) and tries > 0:
            tries -= 1
            less = needed[:at] + needed[at + size :]
            if still_fails(less):
                needed, has_shrunk = less, True
            else:
                at += size
        if not has_shrunk or size > 1:
            size = size // 2 if size > 1 else (1 if has_shrunk else 0)
    return needed


__all__ = ["shrunk"]
