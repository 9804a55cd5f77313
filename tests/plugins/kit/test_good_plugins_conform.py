"""Good plugins of every make pass the whole kit: it raises no false alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lbplugins.memory import Memory
from lbplugins.testing import BalancerConformance
from lbplugins.values import Change, Refusal
from tests.plugins.kit.memory_lab import MemoryLab
from tests.plugins.kit.register_lab import OneRegister, Plain, RegisterLab


class TestMemory(BalancerConformance):
    @pytest.fixture
    def lab(self) -> MemoryLab:
        return MemoryLab()


class TestOneRegister(BalancerConformance):
    @pytest.fixture
    def lab(self) -> RegisterLab:
        return RegisterLab()


class TestCoarseWeights(BalancerConformance):
    @pytest.fixture
    def lab(self) -> RegisterLab:
        return RegisterLab(OneRegister, first="c")


class TestNeitherDrainNorWeights(BalancerConformance):
    @pytest.fixture
    def lab(self) -> RegisterLab:
        return RegisterLab(Plain)


class TestSettlesLater(BalancerConformance):
    @pytest.fixture
    def lab(self) -> MemoryLab:
        lab = MemoryLab(SettlesLater)
        lab.box.servers = {ref: replace(seen, settle_s=2.0) for ref, seen in lab.box.servers.items()}
        lab.recover_s = 2.0
        return lab


class SettlesLater(Memory):
    """Its balancer takes a moment to do as told, as one with a reload does."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        before = dict(self.box.servers)
        refusals = await super().apply(changes)
        after = {ref: seen for ref, seen in self.box.servers.items() if seen != before[ref]}
        if after:
            self.box.servers.update({ref: before[ref] for ref in after})
            asyncio.get_running_loop().call_later(0.05, self.box.servers.update, after)
        return refusals
