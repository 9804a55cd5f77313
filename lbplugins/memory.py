"""A balancer that is only a dict: to probe, judge and publish without one, and the smallest complete plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import (
    DRAIN,
    DRAINING,
    FULL,
    MAINTENANCE,
    NONE,
    OURS,
    READY,
    Address,
    Change,
    Pools,
    Ref,
    Refusal,
    Seen,
    Traits,
    differences,
)  # fmt: skip

OPERATOR_AFTER = {FULL: READY, DRAIN: DRAINING, NONE: MAINTENANCE}


@dataclass
class Box:
    """The "balancer" itself, which outlives the plugin objects that share it; change it to play the operator.

    `down`: not empty = it cannot be reached, and why. `told`: how often a change altered a server.
    """

    servers: dict[Ref, Seen] = field(default_factory=dict)
    down: str = ""
    told: int = 0


class MemoryOptions(BaseModel):
    """Without `pools` the pools are what discovery knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pools: dict[str, dict[str, str]] = Field(default={}, description='pool -> server -> "host:port", or "host:port 50" with a weight')

    @field_validator("pools")
    @classmethod
    def _readable(cls, pools: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for servers in pools.values():
            for text in servers.values():
                read_server(text)
        return pools


class Memory(Balancer):
    """Keeps what it is told in `box`; a second Memory given the same box sees the same servers."""

    Options = MemoryOptions
    traits = Traits(drain=True, kill=True)

    def __init__(self, options: BaseModel, box: Box | None = None) -> None:
        super().__init__(options)
        self.named = MemoryOptions.model_validate(options).pools
        self.box = box or Box({Ref(pool, name): read_server(text) for pool, names in self.named.items() for name, text in names.items()})

    async def pools(self) -> frozenset[str]:
        return frozenset(ref.pool for ref in self.box.servers)

    async def members(self, pools: Pools) -> None:
        """Makes these pools hold these servers when the options name none; a server whose address moved starts anew."""
        if self.named:
            return
        known = {ref: address for servers in pools.values() for ref, address in servers.items()}
        for ref in [ref for ref in self.box.servers if ref.pool in pools and ref not in known]:
            del self.box.servers[ref]
        for ref, address in known.items():
            if ref not in self.box.servers or self.box.servers[ref].address != address:
                self.box.servers[ref] = Seen(address=address, serving=True)

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        self._reach()
        return {ref: seen for ref, seen in self.box.servers.items() if ref.pool in pools}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self._reach()
        return [Refusal(change, reason) for change in changes if (reason := self._tell(change))]

    def _reach(self) -> None:
        if self.box.down:
            raise BalancerError(f"memory balancer: {self.box.down}")

    def _tell(self, change: Change) -> str:
        """Why not, or "" when it is so now."""
        seen = self.box.servers.get(change.ref)
        if seen is None:
            return f"no server {str(change.ref)!r} here"
        if moved := differences(seen, change.expect):
            return "changed meanwhile, look again: " + ", ".join(moved)
        after = replace(seen, ours=change.want) if change.on is OURS else replace(seen, operator=OPERATOR_AFTER[change.want.serve])
        after = replace(after, serving=after.ours.serve is FULL and after.operator is READY)
        if after != seen:
            self.box.servers[change.ref] = after
            self.box.told += 1
        return ""


def read_server(text: str) -> Seen:
    """`host:port` or `host:port WEIGHT` as a server that serves; ValueError says what is wrong with the text."""
    address, _, weight = text.strip().partition(" ")
    weight = weight.strip() or "1"
    if not weight.isascii() or not weight.isdigit() or not 1 <= int(weight) <= 1_000_000:
        raise ValueError(f"{text!r}: the weight after the address must be a whole number from 1 to 1000000")
    return Seen(address=Address.parse(address), weight=int(weight), serving=True)


__all__ = ["Box", "Memory", "MemoryOptions", "read_server"]
