"""Before anything is opened, a sidecar gives itself all the open files that it may have, unless somebody has said fewer."""

from __future__ import annotations

import subprocess
import sys

import pytest

RAISED = """
import resource
from sidecar.net.dial import raise_descriptor_limit

resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "then"), [(1024, 2000, 2000), (1500, 1500, 1500), (40, 2000, 40)])
def test_the_limit_is_raised_unless_it_is_low_on_purpose(soft: int, hard: int, then: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISED.format(soft=soft, hard=hard)], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.split() == [str(then), str(hard)]
