"""The kit's rules, against both versions of nginx."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbplugins.testing import BalancerConformance, Lab
from tests.plugins.nginx.lab import BINARIES, NginxLab


@pytest.mark.real
class TestNginx(BalancerConformance):
    @pytest.fixture(params=sorted(BINARIES))
    def lab(self, request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
        return NginxLab(tmp_path, request.param)
