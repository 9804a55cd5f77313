from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.nginx.lab import BINARIES, NginxLab


@pytest.fixture(params=sorted(BINARIES))
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NginxLab]:
    box = NginxLab(tmp_path, request.param)
    yield box
    box.close()
