"""One writer at a time, whoever tries and however the last one ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.store.lock import Busy, Held, Unusable, acquire

HOLDER = """
import sys
from pathlib import Path
from sidecar.store.lock import acquire

print(acquire(Path(sys.argv[1]), "the first"), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert child.stdout is not None
    assert "Held" in child.stdout.readline()
    yield child
    child.kill()
    child.communicate(timeout=30)


def taken(path: Path) -> Held:
    lock = acquire(path)
    assert isinstance(lock, Held), lock
    return lock


def test_a_second_process_is_told_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    second = acquire(tmp_path / "lock")

    assert isinstance(second, Busy)
    assert second.by.startswith(f"the first, process {holder.pid} on {os.uname().nodename} since 2")


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_when_the_holder_is_gone_the_next_may_have_it(tmp_path: Path, holder: subprocess.Popen[str], how: str) -> None:
    if how == "killed":
        holder.kill()
    else:
        holder.communicate("end\n", timeout=30)
    holder.wait(30)

    lock = taken(tmp_path / "lock")

    assert lock.still_held()
    assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()
    lock.release()


def test_within_one_process_too(tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")

    assert isinstance(acquire(tmp_path / "lock"), Busy)

    first.release()
    first.release()
    assert not first.still_held()
    taken(tmp_path / "lock").release()


def test_another_name_for_the_same_file_is_the_same_lock(tmp_path: Path) -> None:
    """As two containers see one volume under two paths."""
    first = taken(tmp_path / "lock")
    (tmp_path / "elsewhere").mkdir()
    os.link(tmp_path / "lock", tmp_path / "elsewhere" / "lock")

    assert isinstance(acquire(tmp_path / "elsewhere" / "lock"), Busy)

    first.release()


def test_a_holder_notices_that_its_file_was_replaced(tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert not first.still_held()

    second = taken(tmp_path / "lock")

    assert second.still_held() and not first.still_held()
    first.release()
    second.release()


@pytest.mark.parametrize("signature", ["", "nonsense", "[1]", '{"who": 1}', "[" * 5000])
def test_a_holder_that_has_not_signed_is_still_a_holder(tmp_path: Path, signature: str) -> None:
    first = taken(tmp_path / "lock")
    (tmp_path / "lock").write_text(signature)

    assert acquire(tmp_path / "lock") == Busy(tmp_path / "lock", "another process that has not signed")

    first.release()


def test_a_signature_cannot_play_tricks_on_a_terminal(tmp_path: Path) -> None:
    first = taken(tmp_path / "lock")
    (tmp_path / "lock").write_text(json.dumps({"who": "\x1b[2Jx", "pid": 1, "host": "h", "since": "9" * 900}))

    busy = acquire(tmp_path / "lock")

    assert isinstance(busy, Busy)
    assert busy.by.startswith("?[2Jx, process 1 on h since 999")
    assert len(busy.by) == 300
    first.release()


def test_a_signature_of_the_dead_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(30)
    first = taken(tmp_path / "lock")
    (tmp_path / "lock").write_text(json.dumps({"who": "x", "pid": dead.pid, "host": os.uname().nodename, "since": "then"}))

    busy = acquire(tmp_path / "lock")

    assert isinstance(busy, Busy)
    assert busy.by == f"another process (the signature is of process {dead.pid}, which has ended)"
    first.release()


def test_where_there_can_be_no_lock_the_cure_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")

    def why(name: str) -> str:
        found = acquire(tmp_path / name)
        assert isinstance(found, Unusable)
        assert found.why.endswith("nothing keeps a second sidecar from writing too")
        return found.why

    assert f"create the folder {tmp_path}/absent" in why("absent/lock")
    assert "it must be a plain file" in why("folder")
    assert "it must be a plain file" in why("link")
    assert not (tmp_path / "victim").exists()


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from sidecar.store.lock import Held, acquire

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(acquire(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_needs_only_to_read_the_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _read_only_user(Path(folder) / "lock")


def _read_only_user(path: Path) -> None:
    def try_as_nobody() -> str:
        # Imports happen before the change of user: our own files may not be readable for nobody.
        done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, str(path)], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    assert "Unusable" in (said := try_as_nobody()) and "make " in said and "install -m 0644" in said
    lock = taken(path)
    assert "Busy" in try_as_nobody()
    lock.release()
    assert "Held" in try_as_nobody()
