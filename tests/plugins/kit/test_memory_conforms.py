"""The memory plugin passes the whole kit."""

import pytest
from memory_lab import MemoryLab

from lbplugins.testing import BalancerConformance


class TestMemory(BalancerConformance):
    @pytest.fixture
    def lab(self) -> MemoryLab:
        return MemoryLab()
