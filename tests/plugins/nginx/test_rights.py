"""What the nginx plugin says it may not do, against running nginx."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.nginx.lab import BINARIES, NginxLab
from tests.plugins.stranger import NOBODY, needs_root, rights_of_nobody

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=sorted(BINARIES))
def box(request: pytest.FixtureRequest) -> Iterator[NginxLab]:
    """In a folder that others may enter."""
    home = Path(tempfile.mkdtemp(prefix="ngx"))
    box = NginxLab(home, request.param)
    yield box
    box.close()
    shutil.rmtree(home, ignore_errors=True)


async def rights(box: NginxLab, **options: object) -> list[str]:
    return list(await box.plugin(**options).rights())


async def of_nobody(box: NginxLab, **options: object) -> list[str]:
    known = {"config": box.config, "servers_dir": box.servers_dir, "binary": box.binary, "prefix": box.home}
    return await rights_of_nobody("lbplugins.nginx", "Nginx", {**known, **options})


def tree(box: NginxLab) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(box.servers_dir.rglob("*"))}


async def test_its_own_user_lacks_nothing_and_asking_changes_nothing(box: NginxLab) -> None:
    before, reloads, workers = tree(box), box.reloads(), box.active_workers()

    assert await rights(box) == []
    assert (tree(box), box.reloads(), box.active_workers()) == (before, reloads, workers)


async def test_a_configuration_that_is_not_there_is_told_beside_the_rest(box: NginxLab) -> None:
    lines = await rights(box, config=box.home / "none.conf", servers_dir=box.home / "none.d")

    assert len(lines) == 2
    assert any("none.conf does not exist" in line for line in lines)
    assert any(f"install -d -m 0755 {box.home / 'none.d'}" in line for line in lines)


async def test_a_broken_configuration_is_no_right_but_stops_us_all_the_same(box: NginxLab) -> None:
    sound = box.config.read_text()
    box.config.write_text(sound.replace("events {", "events { nonsense on;"))
    try:
        (line,) = await rights(box)
    finally:
        box.config.write_text(sound)

    assert "nonsense" in line and "mend it" in line


async def test_commands_that_cannot_be_run_are_told(box: NginxLab) -> None:
    lines = await rights(box, reload=["reload-nginx-now"], test=["/nowhere/test-nginx"])

    assert [line.partition(":")[0] for line in lines] == ["test", "reload"]
    assert "'reload-nginx-now'" in lines[1]
    assert await rights(box, reload=["/bin/true"], test=["/bin/true"]) == []


async def test_sudo_is_asked_whether_it_would(box: NginxLab, tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text(f'#!/bin/sh\necho asked "$@" >> {tmp_path}/asked\nexit 1\n')
    sudo.chmod(0o755)

    (line,) = await rights(box, reload=[str(sudo), "-n", "-u", "root", "/usr/sbin/nginx", "-s", "reload"])

    assert "NOPASSWD: /usr/sbin/nginx -s reload" in line
    assert (tmp_path / "asked").read_text() == "asked -l -n -u root /usr/sbin/nginx -s reload\n"


async def test_a_stopped_nginx_is_told(tmp_path: Path) -> None:
    box = NginxLab(tmp_path, "1.22")
    box.close()

    (line,) = await rights(box)

    assert "does not run" in line


@needs_root
async def test_nobody_is_told_every_cure(box: NginxLab) -> None:
    os.chmod(box.log, 0o600)

    lines = "\n".join(await of_nobody(box))

    assert f"`chown nobody {box.servers_dir}`" in lines
    assert f"`chown nobody: {box.file}`" in lines
    assert "may not signal nginx, which runs as root" in lines
    assert f"nobody ALL=(root) NOPASSWD: {box.binary} -p {box.home}/ -c {box.config} -s reload" in lines
    assert f"reload: [sudo, -n, {box.binary}, -p, {box.home}/, -c, {box.config}, -s, reload]" in lines


@needs_root
async def test_nobody_may_not_test_where_the_pid_file_is_shut(box: NginxLab) -> None:
    mode = stat.S_IMODE(os.stat(box.pid_file).st_mode)
    os.chmod(box.pid_file, 0o644)
    try:
        lines = [line for line in await of_nobody(box) if "test: [sudo" in line]
    finally:
        os.chmod(box.pid_file, mode)

    assert len(lines) == 1
    assert "Permission denied" in lines[0]
    assert f"NOPASSWD: {box.binary} -p {box.home}/ -t -q -c {box.config}" in lines[0]


@needs_root
async def test_nobody_with_the_cures_lacks_nothing(box: NginxLab) -> None:
    for path in (box.servers_dir, box.file):
        os.chown(path, NOBODY, NOBODY)
    try:
        assert await of_nobody(box, reload=["/bin/true"], test=["/bin/true"]) == []
    finally:
        for path in (box.servers_dir, box.file):
            os.chown(path, 0, 0)
