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


@pytest.mark.parametrize("words", [("--balancer", "haproxy"), ("--balancer", "nginx", "--script")], ids=["nobody there", "script"])
def test_the_demo_shows_a_fault_healed_and_leaves_nothing_behind(words: tuple[str, ...]) -> None:
    (port,) = free_ports(1)
    argv = [sys.executable, "-m", "sidecar", "demo", *words, "--listen", f"127.0.0.1:{port}"]

    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SHOWN_WITHIN_S, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    told = ["all 4 instances are healthy", "ejected", "out after", "returned", "back after"]
    assert re.search(".*".join(told), done.stdout, re.DOTALL), done.stdout
    (folder,) = re.findall(r"configuration: (\S+)/lb-sidecar.yaml", done.stdout)
    (instance,) = set(re.findall(r"ejected   shop/127.0.0.1:(\d+)", done.stdout))
    left = subprocess.run(["pgrep", "-fa", f"{folder}|sidecar.demo.instance {instance}"], capture_output=True, text=True, check=False)
    assert not left.stdout, left.stdout
    assert not Path(folder).exists()


def test_each_fault_is_answered_with_its_bound_and_then_with_the_time_it_took() -> None:
    (port,) = free_ports(1)
    argv = [sys.executable, "-u", "-m", "sidecar", "demo", "--listen", f"127.0.0.1:{port}"]
    shown: list[str] = []
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as demo:
        assert demo.stdin is not None and demo.stdout is not None
        for line in demo.stdout:
            shown.append(line)
            if "ready." in line:
                demo.stdin.write("kill 2\n")
            elif "after `kill 2`" in line:
                demo.stdin.write("quit\n")
    assert demo.returncode == 0, "".join(shown)

    told = [r"kill 2 \(127\.0\.0\.1:\d+\): it is out within \d+\.\d s; faster once 30 good answers of each are in \(\d+ are\)"]
    told += ["ejected ", r"out \d+\.\d\d s after `kill 2`"]
    assert re.search(".*".join(told), "".join(shown), re.DOTALL), "".join(shown)
