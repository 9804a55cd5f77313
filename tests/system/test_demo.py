"""What a newcomer sees first: `lb-sidecar demo --script` shows a fault found and healed, by itself, and leaves nothing running."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.lab import free_ports

pytestmark = pytest.mark.real
SHOWN_WITHIN_S = 60
"""As promised for a machine on which everything is installed."""


@pytest.mark.parametrize("balancer", ["haproxy", "nginx"])
def test_the_demo_shows_a_fault_healed_and_leaves_nothing_behind(balancer: str) -> None:
    (port,) = free_ports(1)
    argv = [sys.executable, "-m", "sidecar", "demo", "--balancer", balancer, "--script", "--listen", f"127.0.0.1:{port}"]

    done = subprocess.run(argv, capture_output=True, text=True, timeout=SHOWN_WITHIN_S, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    told = ["all 4 instances are healthy", "ejected", "out after", "returned", "back after"]
    assert re.search(".*".join(told), done.stdout, re.DOTALL), done.stdout
    (folder,) = re.findall(r"configuration: (\S+)/lb-sidecar.yaml", done.stdout)
    (instance,) = set(re.findall(r"ejected   shop/127.0.0.1:(\d+)", done.stdout))
    left = subprocess.run(["pgrep", "-fa", f"{folder}|sidecar.demo.instance {instance}"], capture_output=True, text=True, check=False)
    assert not left.stdout, left.stdout
    assert not Path(folder).exists()
