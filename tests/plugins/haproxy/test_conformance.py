"""The conformance kit on real HAProxy 2.6 and 2.8, for each lever that needs no agent of ours, and a static algorithm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lbplugins.testing import BalancerConformance

from .lab import VERSIONS, Fleet, HAProxyLab

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=VERSIONS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(request.param)
    yield fleet
    fleet.close()


class TestPushedAgent(BalancerConformance):
    @pytest.fixture
    def lab(self, fleet: Fleet) -> HAProxyLab:
        return HAProxyLab(fleet, "b")


class TestOwnCheck(BalancerConformance):
    @pytest.fixture
    def lab(self, fleet: Fleet) -> HAProxyLab:
        return HAProxyLab(fleet, "d")


class TestNoCheck(BalancerConformance):
    @pytest.fixture
    def lab(self, fleet: Fleet) -> HAProxyLab:
        return HAProxyLab(fleet, "e")


class TestStaticAlgorithm(BalancerConformance):
    @pytest.fixture
    def lab(self, fleet: Fleet) -> HAProxyLab:
        return HAProxyLab(fleet, "s")
