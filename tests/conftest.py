"""Which tests are left out of the fast loop (`make check`): those with real sockets, disks and processes, and the long random ones."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOMS = ("edges", "plugins", "deploy", "system")
LONG = ("test_schedules.py", "test_arithmetic.py", "test_fuzz.py", "test_common_fault.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here)
        if place.parts[0] in ROOMS or place.name in LONG:
            item.add_marker(pytest.mark.slow)
