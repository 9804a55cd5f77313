"""The systemd units as they are installed: understood by systemd, hardened, and right about one another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from sidecar.cli import build_parser
from sidecar.config.load import load
from tests.deploy.pages import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
PROGRAM = "/opt/lb-sidecar/bin/lb-sidecar"
SERVICES = ("lb-sidecar", "lb-sidecar-release")

Unit = dict[str, dict[str, list[str]]]
"""Section -> key -> values in order."""


def parsed(path: Path) -> Unit:
    unit: Unit = defaultdict(lambda: defaultdict(list))
    section = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
            continue
        key, equals, value = line.partition("=")
        assert equals and section, f"{path.name}:{number}: {line!r} is neither a section nor a setting"
        unit[section][key].append(value)
    return unit


def install(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DESTDIR": str(folder)}
    return subprocess.run([SYSTEMD / "install", *words], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of the units, as on a machine with both balancers; the program is one that this machine has."""
    done = install(tmp_path, "--haproxy", "--nginx")
    assert done.returncode == 0, done.stderr
    units = tmp_path / "etc/systemd/system"
    for path in units.rglob("*.service"):
        path.write_text(path.read_text().replace(PROGRAM, sys.executable))
    return units


def test_systemd_understands_every_line(installed: Path) -> None:
    names = sorted(str(path) for path in installed.glob("*.*") if path.is_file())
    assert len(names) == 5

    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{installed}:"},
        capture_output=True,
        text=True,
        check=False,
    )

    mine = [line for line in found.stderr.splitlines() if "lb-sidecar" in line]
    assert (found.returncode, mine) == (0, [])


@pytest.mark.parametrize("name", SERVICES)
def test_what_touches_the_network_is_confined(installed: Path, name: str) -> None:
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(installed / f"{name}.service")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout[-400:] + found.stderr


@pytest.mark.parametrize("words", [(), ("--apache",), ("--haproxy", "nginx")])
def test_install_says_how_it_is_used(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = install(tmp_path, *words)

    assert done.returncode == 2
    assert "--haproxy" in done.stderr
    assert not list(tmp_path.iterdir())


def test_only_what_the_balancer_needs_is_installed(tmp_path: Path) -> None:
    install(tmp_path, "--haproxy")

    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "haproxy.conf" in names
    assert not {name for name in names if "nginx" in name}


@pytest.mark.parametrize("name", SERVICES)
def test_their_commands_exist(name: str) -> None:
    (command,) = parsed(SYSTEMD / f"{name}.service")["Service"]["ExecStart"]
    program, *words = command.split()

    assert program == PROGRAM
    build_parser().parse_args(words)


def test_the_release_is_the_same_user_with_the_same_folders_and_rights() -> None:
    sidecar, release = (parsed(SYSTEMD / f"{name}.service")["Service"] for name in SERVICES)
    shared = {"User", "Group", "StateDirectory", "RuntimeDirectory", "RuntimeDirectoryPreserve", "ReadWritePaths", "SystemCallFilter"}

    assert {key: sidecar[key] for key in shared} == {key: release[key] for key in shared}
    # else the end of the one would take the folder from under the other
    assert release["RuntimeDirectoryPreserve"] == ["yes"]


def test_a_wrong_configuration_is_not_started_again_and_again_but_a_crash_is() -> None:
    unit = parsed(SYSTEMD / "lb-sidecar.service")

    assert unit["Service"]["Restart"] == ["always"]
    assert unit["Service"]["RestartPreventExitStatus"] == ["2"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert (unit["Service"]["Type"], unit["Service"]["WatchdogSec"]) == (["notify"], ["10"])


def test_the_wish_that_nginx_be_reloaded_is_one_file_for_all_three(installed: Path) -> None:
    (watched,) = parsed(installed / "lb-sidecar-nginx-reload.path")["Path"]["PathExists"]
    first, *then = parsed(installed / "lb-sidecar-nginx-reload.service")["Service"]["ExecStart"]
    config = load(ROOT / "deploy/nginx/lb-sidecar.yaml").require()
    wish = config.balancers["web"].options.model_dump()["reload"]

    assert wish[-1] == watched
    assert first == f"/bin/rm -f {watched}", "taken away before the reload, or a wish during it would be lost"
    assert then == ["/usr/sbin/nginx -t -q", "/usr/sbin/nginx -s reload"], "no reload without a test before it"
