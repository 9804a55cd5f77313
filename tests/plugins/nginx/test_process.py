"""Processes as /proc shows them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbplugins.api import BalancerError
from lbplugins.nginx.process import ErrorLogs, Life, Master, argv_of_test, build_of, find_binary, headline, run
from tests.plugins.nginx.lab import BINARIES


def _life(pid: int) -> Life:
    return Life(pid, int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))


def test_a_worker_that_began_after_an_edit_counts_as_having_read_it(tmp_path: Path) -> None:
    for number in range(10):
        file = tmp_path / str(number)
        file.write_text("edited")
        with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as worker:
            master = Master(Life(1, 1), 0, "nginx: master process", None, frozenset({_life(worker.pid)}), 0)
            worker.kill()
        assert file.stat().st_ctime <= master.loaded_at()
    assert Master(Life(1, 1), 0, "", None, frozenset(), 0).loaded_at() == float("-inf")


def test_the_oldest_worker_says_what_is_loaded() -> None:
    young, old = Life(8, 9_000), Life(7, 5_000)
    both, alone = (Master(Life(1, 1), 0, "", None, frozenset(lives), 0).loaded_at() for lives in ((young, old), (old,)))

    assert both == pytest.approx(alone, abs=5)


@pytest.mark.parametrize("version", sorted(BINARIES))
def test_a_program_tells_its_build(version: str) -> None:
    build = build_of(find_binary(BINARIES[version]))

    assert ".".join(map(str, build.version)).startswith(version) and build.pid_file.endswith("nginx.pid")
    argv = argv_of_test("nginx", build, Path("/etc/nginx/nginx.conf"), "/srv")
    assert argv[-4:] == ["-p", "/srv/", "-e", "stderr"]
    assert argv_of_test("nginx", build._replace(version=(1, 18, 0)), Path("/c"), None) == ["nginx", "-t", "-q", "-c", "/c"]


def test_a_command_that_hangs_or_floods_is_killed_with_its_children() -> None:
    with pytest.raises(BalancerError, match=r"did not end within 0\.3 s"):
        run(["/bin/sh", "-c", "sleep 600 & sleep 600"], 0.3, "/")
    with pytest.raises(BalancerError, match="did not end within"):
        run(["/bin/sh", "-c", "yes"], 60, "/")
    assert run(["/bin/sh", "-c", "echo so; exit 4"], 60, "/") == (4, "so\n")


def test_a_daemon_left_behind_does_not_hold_us() -> None:
    code, text = run(["/bin/sh", "-c", "sleep 600 & echo $!"], 60, "/")
    try:
        assert code == 0
    finally:
        os.kill(int(text), signal.SIGKILL)


def test_the_line_that_matters_is_shown_clean() -> None:
    assert (
        headline("nginx: [warn] x\nnginx: [emerg] no \x1b[31m\u00e9 such in /c:3\nnginx: test failed\n")
        == "nginx: [emerg] no  [31m  such in /c:3"
    )
    assert headline("2026/11/24 10:54:26 [emerg] 15174#15174: unknown directive") == "[emerg] unknown directive"
    assert headline("one\ntwo\n\n") == "two" and headline("") == "no output" and len(headline("x" * 999)) == 400


def test_only_this_masters_new_emergencies_count(tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    log.write_text("2026/01/01 00:00:00 [emerg] 77#77: old\n")
    os.mkfifo(tmp_path / "pipe")
    logs = ErrorLogs([log, tmp_path / "pipe", tmp_path / "gone"])

    assert logs.emergency(77) is None
    with log.open("a") as file:
        file.write("2026/01/01 00:00:00 [emerg] 78#78: theirs\n2026/01/01 00:00:00 [notice] 77#77: fine\n")
    assert logs.emergency(77) is None
    with log.open("a") as file:
        file.write("2026/01/01 00:00:00 [emerg] 77#77: bind() to 0.0.0.0:80 failed\n")
    assert "bind() to" in (logs.emergency(77) or "")
    log.rename(tmp_path / "error.log.1")
    log.write_text("[emerg] 77#77: after rotation\n")
    assert logs.emergency(77) == "[emerg] after rotation"
