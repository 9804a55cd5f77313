"""The plugin contract: see (`observe`) and tell (`apply`). When, how often, retries and guards are the sidecar's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from lbplugins.values import Change, Pools, Ref, Refusal, Seen, TrafficSample, Traits


class BalancerError(Exception):
    """The balancer as a whole could not be asked or told. The message is for an operator at 3 a.m."""


class NoOptions(BaseModel):
    """Options of a plugin that has none; any key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Balancer(ABC):
    """One load balancer. Subclasses set `Options` and `traits` and implement `observe` and `apply`.

    Each plugin runs on a thread and loop of its own; only values cross. `observe` and `apply` never overlap. A deadline may
    cancel either at any await; the sidecar then observes again. Nothing may happen at import.
    """

    api_version: ClassVar[int] = 1
    Options: ClassVar[type[BaseModel]] = NoOptions
    traits: Traits = Traits()

    def __init__(self, options: BaseModel) -> None:
        """Keep the options; no I/O here."""
        self.options = options

    async def open(self) -> None:
        """Acquire what observing needs. BalancerError if the balancer cannot be reached; it will be called again."""

    async def pools(self) -> frozenset[str]:
        """Names of all pools this balancer has, for services named `*`; empty = it cannot list them."""
        return frozenset()

    async def rights(self) -> Sequence[str]:
        """What we may not do here and would have to, each with its cure, for `lb-sidecar check`; nothing is changed by asking."""
        return ()

    def lock_path(self) -> str | None:
        """A path beside the balancer's socket or files where the one-writer lock belongs, seen by every writer of it; None = no file."""
        return None

    def places(self) -> frozenset[str]:
        """All that these options have us write to, such as sockets and directories; no I/O. By default where `lock_path` is.

        When a new configuration no longer names one of them, what is out there is given back first.
        """
        path = self.lock_path()
        return frozenset() if path is None else frozenset({path})

    async def members(self, pools: Pools) -> None:
        """What discovery knows of each pool, for plugins whose pools we fill. Default: nothing to do."""

    @abstractmethod
    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        """All servers of these pools, or BalancerError; never a partial picture, and nothing is changed by looking.

        `notes`: the last journaled note of each server that we have acted on. A pool the balancer does not have is left out.
        """

    @abstractmethod
    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        """Make the named servers so, touch no other, and return those refused.

        BalancerError = the outcome is unknown; the sidecar observes again.
        """

    def traffic(self) -> AsyncIterator[Sequence[TrafficSample]] | None:
        """Batches of real requests as they arrive, parsed; None = this balancer has no feed. Lossy and bounded."""
        return None

    async def aclose(self) -> None:
        """Let go of everything. Safe twice, and without `open`."""


__all__ = ["Balancer", "BalancerError", "NoOptions"]
