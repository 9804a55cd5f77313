"""The state folder is the one that was meant, and nobody else can write to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.store.state_dir import StateDirError, resolve

NOBODY = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_the_configuration_says_wins_and_is_made(tmp_path: Path) -> None:
    found = resolve(tmp_path / "a" / "b", {"STATE_DIRECTORY": str(tmp_path / "c")}, tmp_path / "system")

    assert (found.path, found.origin) == (tmp_path / "a" / "b", "state.dir")
    assert mode_of(found.path) & 0o027 == 0
    assert found.path.is_dir()
    assert not (tmp_path / "c").exists()


def test_then_the_first_of_systemds(tmp_path: Path) -> None:
    found = resolve(None, {"STATE_DIRECTORY": f"{tmp_path}/c:{tmp_path}/d"}, tmp_path / "system")

    assert (found.path, found.origin) == (tmp_path / "c", "$STATE_DIRECTORY")


def test_then_the_systems_where_it_is_ours_or_can_be(tmp_path: Path) -> None:
    for _ in range(2):
        assert resolve(None, {"HOME": str(tmp_path)}, tmp_path / "system").path == tmp_path / "system"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_systems_folder_of_someone_else_is_left_to_them(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    os.chown(tmp_path / "system", NOBODY, NOBODY)

    found = resolve(None, {"HOME": str(tmp_path)}, tmp_path / "system")

    assert found.path == tmp_path / ".local/state/lb-sidecar"
    assert "is not for this user" in found.origin


def test_then_the_users_own(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "system"

    assert resolve(None, {"XDG_STATE_HOME": f"{tmp_path}/x", "HOME": "/h"}, nowhere).path == tmp_path / "x" / "lb-sidecar"
    assert resolve(None, {"XDG_STATE_HOME": "relative", "HOME": str(tmp_path)}, nowhere).path == tmp_path / ".local/state/lb-sidecar"
    with pytest.raises(StateDirError, match=r"neither XDG_STATE_HOME nor HOME is set; set `state.dir`"):
        resolve(None, {}, nowhere)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(mode)

    with pytest.raises(StateDirError, match=rf"can be written by others \(mode {mode:04o}\): `chmod go-w {path}`"):
        resolve(path, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)

    with pytest.raises(StateDirError, match=r"belongs to nobody, and this runs as root; run as that user \(`sudo -u nobody"):
        resolve(path, {})


def test_a_link_is_refused_but_for_systemds_own(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o750)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "private")

    with pytest.raises(StateDirError, match=f"is a symbolic link.*name the folder itself: {tmp_path}/private"):
        resolve(link, {})
    if os.geteuid() == 0:
        assert resolve(None, {"STATE_DIRECTORY": str(link)}).path == tmp_path / "private"
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
        with pytest.raises(StateDirError, match="symbolic link"):
            resolve(None, {"STATE_DIRECTORY": str(link)})


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")

    with pytest.raises(StateDirError, match="symbolic link"):
        resolve(link, {})

    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_folder_or_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StateDirError, match="is not a folder"):
        resolve(tmp_path / "file", {})
    with pytest.raises(StateDirError, match=r"cannot be created: .*; create it for this user \(`install -d"):
        resolve(tmp_path / "file" / "below", {})
    with pytest.raises(StateDirError, match="must be an absolute path"):
        resolve(Path("relative"), {})
