"""The image's files without building it: what goes in, what asks for its life, and the script that builds it where that can be done."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon, until
from tests.deploy.pages import ROOT
from tests.system.lab import free_ports

DOCKERFILE = (ROOT / "Dockerfile").read_text()
ALONE = "balancers: {lab: {plugin: memory}}\nservices: {shop: {balancer: lab, instances: [127.0.0.1:1], probe: {tcp: true}}}\n"


def instructions() -> list[tuple[str, str]]:
    """Word and rest of each, lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.fixture
def alive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running sidecar without a balancer."""
    (port,) = free_ports(1)
    daemon = Daemon(tmp_path_factory.mktemp("s"), ALONE, port=port)
    daemon.start()
    try:
        until(lambda: daemon.ask("/livez")[0] == 200, lambda: f"/livez\n{daemon.log_text()}")
        yield daemon
    finally:
        daemon.end()


def health_check(port: int) -> list[str]:
    (found,) = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
    argv: list[str] = json.loads(found[found.index("[") :])
    assert argv[0] == "python"
    assert "8642" in argv[-1]
    return [sys.executable, *(word.replace("8642", str(port)) for word in argv[1:])]


def lives(port: int) -> list[str]:
    text = (ROOT / "deploy" / "keepalived" / "sidecar-lives").read_text()
    return ["sh", "-c", text.replace("/opt/lb-sidecar/bin/python", sys.executable), "sidecar-lives", str(port)]


@pytest.mark.real
@pytest.mark.parametrize("ask", [health_check, lives])
def test_who_asks_for_its_life_hears_of_it_and_of_its_death(ask: object, alive: Daemon) -> None:
    assert callable(ask)
    proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}

    port = alive.port
    assert subprocess.run(ask(port), env=proxied, check=False, timeout=60).returncode == 0

    alive.end()
    assert subprocess.run(ask(port), stderr=subprocess.DEVNULL, check=False, timeout=60).returncode != 0


def test_it_runs_as_nobody_in_particular_and_names_no_registry() -> None:
    found = instructions()

    assert [rest for word, rest in found if word == "USER"] == ["65532:65532"]
    assert [rest for word, rest in found if word == "ENTRYPOINT"] == ['["lb-sidecar"]']
    assert [rest for word, rest in found if word == "CMD"] == ['["run"]']
    assert all("/" not in rest.split()[0] for word, rest in found if word == "FROM")
    assert not re.search(r"index-url|[-]i http", DOCKERFILE)
    assert not re.search(r"\[[^]]*\b(test|demo)\b[^]]*\]\"", DOCKERFILE), "no test or demo dependencies in the image"


def test_what_the_image_copies_is_let_through_and_nothing_else() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for word, rest in instructions() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]}

    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


# ---- deploy/check-image ----


def check_image(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With no container program on PATH but those of this folder."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "timeout", "cat", "id", "env"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    env = {"PATH": str(tools), **environment}
    return subprocess.run(
        [ROOT / "deploy" / "check-image", "lb-sidecar:x"], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_builder_it_says_so_and_is_content(tmp_path: Path) -> None:
    done = check_image(tmp_path)

    assert done.returncode == 0
    assert "was not checked" in done.stdout
    assert "IMAGE_BUILDER" in done.stdout


def test_a_builder_is_given_context_and_tag_and_its_failure_counts(tmp_path: Path) -> None:
    told = tmp_path / "told"

    done = check_image(tmp_path, IMAGE_BUILDER=script(tmp_path / "build", f'echo "$@" >{told}; exit 3'))

    assert done.returncode == 3
    assert told.read_text() == ". lb-sidecar:x\n"


def test_what_was_built_is_tried_and_its_failure_counts(tmp_path: Path) -> None:
    builder = script(tmp_path / "build", "exit 0")
    runner = script(tmp_path / "run", 'echo "ran $1 $2"; [ "$2" = lb-sidecar ]')

    done = check_image(tmp_path, IMAGE_BUILDER=builder, IMAGE_RUNNER=runner)

    assert "ran lb-sidecar:x lb-sidecar" in done.stdout
    assert "ran lb-sidecar:x sh" in done.stdout
    assert done.returncode == 1


READ_ONLY = r"""
set -eu
[ "$1" != sh ] || ! touch /proof 2>/dev/null || { echo "the root is writable" >&2; exit 9; }
export PATH="$VENV/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs "$@"
"""
NAMESPACE = r"""
set -eu
mount --make-rprivate /
for folder in /var/lib /run; do
    mount -t tmpfs -o mode=0755 tmpfs $folder
    install -d -o 65532 -g 65532 -m 0750 $folder/lb-sidecar
    mount -t tmpfs -o uid=65532,gid=65532,mode=0750 tmpfs $folder/lb-sidecar
    mount -o remount,bind,ro $folder
done
if [ -n "$SHUT" ]; then  # the interpreter lies in a home that others may not enter
    mkdir -p "$STAY"
    mount --bind "$PYTHON" "$STAY"
    mount -t tmpfs -o mode=0755 tmpfs "$SHUT"
    mkdir -p "$PYTHON"
    mount --bind "$STAY" "$PYTHON"
    mount -o remount,bind,ro "$SHUT"
    mount -o remount,bind,ro "$PYTHON"
fi
mount -o remount,bind,ro /
shift
exec sh -c "$READ_ONLY" sh "$@"
"""


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount namespace")
def test_it_runs_as_its_user_where_nothing_but_its_folders_can_be_written(tmp_path: Path) -> None:
    """The trial of check-image with the installed package: as uid 65532, the root read-only, all rights gone."""
    python = Path(sys.base_prefix)
    shut = next((str(folder) for folder in reversed(python.parents) if not folder.stat().st_mode & stat.S_IXOTH), "")
    env = {"VENV": sys.prefix, "PYTHON": str(python), "SHUT": shut, "STAY": str(tmp_path / "python"), "READ_ONLY": READ_ONLY}
    runner = script(tmp_path / "run", f'exec unshare -m sh -c {shlex.quote(NAMESPACE)} sh "$@"')

    done = subprocess.run(
        [ROOT / "deploy" / "check-image", "installed"],
        env={**os.environ, **env, "IMAGE_BUILDER": "true", "IMAGE_RUNNER": runner},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs as uid 65532 and /livez answers" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
