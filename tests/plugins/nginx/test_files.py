"""Files that a balancer reads are replaced whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbplugins.api import BalancerError
from lbplugins.nginx.files import Replacement, check_directory, read, save

OLD = b"server 10.0.0.1:80;\n" * 50


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.conf"
    path.write_bytes(OLD)
    path.chmod(0o604)
    return path


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_a_replacement_keeps_mode_and_owner_and_leaves_nothing_behind(file: Path) -> None:
    if os.geteuid() == 0:
        os.chown(file, 33, 34)
    before = file.stat()
    swap = Replacement()

    swap.put(file, b"new", OLD)
    swap.keep()

    after = file.stat()
    assert file.read_bytes() == b"new" and after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert names(file.parent) == ["shop.conf"]


def test_undone_the_old_file_itself_is_back(file: Path) -> None:
    before = file.stat()
    swap = Replacement()
    swap.put(file, b"new", OLD)
    swap.undo()
    swap.undo()

    assert file.read_bytes() == OLD and file.stat().st_ino == before.st_ino
    assert names(file.parent) == ["shop.conf"]


def test_a_file_that_somebody_else_changes_meanwhile_stays_theirs(file: Path) -> None:
    swap = Replacement()
    with pytest.raises(BalancerError, match="changed by somebody else"):
        swap.put(file, b"new", b"what we had read")
    assert file.read_bytes() == OLD and names(file.parent) == ["shop.conf"]

    swap.put(file, b"new", OLD)
    file.write_bytes(b"theirs")
    with pytest.raises(BalancerError, match="left as edited"):
        swap.undo()
    assert file.read_bytes() == b"theirs" and names(file.parent) == ["shop.conf"]


def test_leftovers_of_an_earlier_death_are_no_obstacle(file: Path) -> None:
    for left in (".shop.conf.lb-sidecar-new", ".shop.conf.lb-sidecar-old"):
        (file.parent / left).write_bytes(b"half")
    swap = Replacement()

    swap.put(file, b"new", OLD)
    swap.keep()

    assert file.read_bytes() == b"new" and names(file.parent) == ["shop.conf"]


@pytest.mark.parametrize("limit", [0, 1, 4096, 8191])
def test_a_write_cut_short_anywhere_leaves_the_old_bytes(file: Path, limit: int) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from lbplugins.api import BalancerError; from lbplugins.nginx.files import Replacement\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"try:\n    Replacement().put(Path({str(file)!r}), b'x' * 8192, Path({str(file)!r}).read_bytes())\n"
        "except BalancerError as error:\n    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )

    assert done.returncode == 1 and "shop.conf" in done.stderr, done.stderr
    assert file.read_bytes() == OLD and names(file.parent) == ["shop.conf"]


def test_a_symbolic_link_is_neither_read_nor_replaced(file: Path) -> None:
    link = file.parent / "link.conf"
    link.symlink_to(file)

    with pytest.raises(BalancerError, match="symbolic link"):
        read(link, 1 << 20, follow=False)
    with pytest.raises(BalancerError, match="not a regular file"):
        Replacement().put(link, b"new", OLD)
    assert link.is_symlink() and file.read_bytes() == OLD


def test_pipes_and_large_files_are_refused_without_waiting(tmp_path: Path, file: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(BalancerError, match="not a regular file"):
        read(tmp_path / "pipe", 100)
    with pytest.raises(BalancerError, match="larger than 10 bytes"):
        read(file, 10)


def test_a_directory_in_the_place_of_a_file_is_told_and_costs_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BalancerError, match="not a regular file"):
            read(tmp_path, 1000)

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "d"
    place.mkdir()
    check_directory(place)
    place.chmod(mode)

    with pytest.raises(BalancerError, match=f"chmod go-w {place}"):
        check_directory(place)


def test_a_directory_must_be_a_real_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("")

    with pytest.raises(BalancerError, match="symbolic link"):
        check_directory(tmp_path / "link")
    with pytest.raises(BalancerError, match="not a directory"):
        check_directory(tmp_path / "file")
    with pytest.raises(BalancerError, match="install -d"):
        check_directory(tmp_path / "gone")
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 65534, 65534)
        with pytest.raises(BalancerError, match="uid 65534"):
            check_directory(tmp_path / "real")


def test_a_file_of_our_own_is_whole(tmp_path: Path) -> None:
    save(tmp_path / "note", b"one")
    save(tmp_path / "note", b"two")

    assert (tmp_path / "note").read_bytes() == b"two" and names(tmp_path) == ["note"]
