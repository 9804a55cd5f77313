"""The memory balancer in a box, for the kit: the Box is read and edited directly, not through the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lbplugins.memory import Box, Memory, MemoryOptions
from lbplugins.testing import OPERATOR_AFTER, Lab, expected_truth
from lbplugins.values import FULL, READY, Address, Ref, Seen, Setting

POOLS = {"web": {"a": "127.0.0.1:8081 100", "b": "127.0.0.1:8082 100", "c": "127.0.0.1:8083 7"}, "api": {"a": "[::1]:8081"}}


class MemoryLab(Lab):
    refs = tuple(Ref(pool, server) for pool, servers in POOLS.items() for server in servers)

    def __init__(self, kind: type[Memory] = Memory) -> None:
        self.kind = kind
        self.options = MemoryOptions(pools=POOLS)
        self.box: Box = Memory(self.options).box
        self.lives = 1

    def plugin(self) -> Memory:
        return self.kind(self.options, self.box)

    def truth(self, ref: Ref) -> Setting:
        return expected_truth(self.box.servers[ref])

    def meddle(self, ref: Ref, setting: Setting) -> None:
        seen = self.box.servers[ref]
        operator = OPERATOR_AFTER[setting.serve]
        self._put(ref, replace(seen, operator=operator, serving=seen.ours.serve is FULL and operator is READY))

    def reweigh(self, ref: Ref, weight: int) -> bool:
        self._put(ref, replace(self.box.servers[ref], weight=weight))
        return True

    def address(self, ref: Ref) -> Address:
        return Address.parse(POOLS[ref.pool][ref.server].partition(" ")[0])

    def restart(self) -> bool:
        self.lives += 1
        fresh, before = Memory(self.options).box.servers, self.box.servers
        self.box.servers = {ref: replace(seen, generation=str(self.lives), settle_s=before[ref].settle_s) for ref, seen in fresh.items()}
        return True

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        self.box.down = "switched off by the test"
        yield
        self.box.down = ""

    def effort(self) -> int:
        return self.box.told

    def _put(self, ref: Ref, seen: Seen) -> None:
        self.box.servers[ref] = seen
