"""docs/3am.md, word for word, on real balancers: what a dead sidecar has out comes back by hand, and by `release --all`."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from bench.daemon import Daemon, until
from tests.deploy.pages import ROOT, blocks
from tests.system.lab import HAPROXY, SHAPES, Lab

pytestmark = pytest.mark.real
PAGE = ROOT / "docs" / "3am.md"
OUT = 1
"""The index of the instance that is taken out: server s2."""


def block_with(word: str) -> str:
    (found,) = [block.text for block in blocks(PAGE) if word in block.text]
    return found


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(request.param, 4)
    try:
        lab.start()
        yield lab
    finally:
        lab.close()


def abandoned(lab: Lab) -> Daemon:
    """A sidecar that has taken out an instance and was killed then; the instance lives again."""
    daemon = lab.sidecar()
    daemon.start()
    daemon.wait_healthy(lab.ports)
    lab.instances.kill(OUT)
    daemon.wait_event("ejected")
    until(lambda: lab.ports[OUT] not in in_rotation(lab), "it is out")
    daemon.end(SIGKILL)
    lab.instances.start(OUT)
    return daemon


def in_rotation(lab: Lab) -> set[int]:
    """Ports of the instances that the balancer has in, by its own word."""
    if lab.binary.kind == "nginx":
        lines = (lab.folder / "sidecar.d" / "shop.conf").read_text().splitlines()
        return {int(m[1]) for line in lines if (m := re.match(r"server 127\.0\.0\.1:(\d+)", line)) and " down" not in line}
    rows = [line.split() for line in say(lab, "show servers state shop").splitlines()]
    return {int(row[18]) for row in rows if len(row) > 20 and row[0].isdigit() and row[5] == "2" and row[6] == "0"}


def say(lab: Lab, words: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(lab.folder / "admin.sock"))
        sock.sendall(words.encode() + b"\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


@pytest.mark.parametrize("lab", HAPROXY, indirect=True)
def test_haproxy_takes_the_printed_words(lab: Lab) -> None:
    abandoned(lab)
    (program,) = re.findall(r"awk '(.*?)'", block_with("awk"), re.DOTALL)

    printed = subprocess.run(["awk", program], input=say(lab, "show servers state"), capture_output=True, text=True, check=True).stdout

    lines = printed.splitlines()
    assert len(lines) == 1, f"the one server that is out, and no other:\n{printed}"
    assert "shop/s2" in lines[0]
    lever = {"none": "health up", "check": "enable health", "agent": "agent up"}[lab.axis]
    assert lever in lines[0]
    assert re.search(rf"`[^`]*{lever}[^`]*`", PAGE.read_text()), "and the table says the same"
    assert say(lab, lines[0]).strip() == ""
    until(lambda: in_rotation(lab) == set(lab.ports), lambda: say(lab, "show servers state shop"))


@pytest.mark.parametrize("lab", [s for s in SHAPES if s.startswith("nginx")], indirect=True)
def test_nginx_takes_the_edited_file(lab: Lab) -> None:
    abandoned(lab)
    file = lab.folder / "sidecar.d" / "shop.conf"
    theirs = f"server 127.0.0.1:{lab.ports[0]} max_fails=0 down;  # lb-sidecar ejected held"
    file.write_text(file.read_text().replace(f"server 127.0.0.1:{lab.ports[0]} max_fails=0;", theirs))
    (sed,) = re.findall(r"^sed .*$", block_with("sed -i"), re.MULTILINE)

    subprocess.run(["sh", "-c", sed.replace("/etc/nginx/sidecar.d/", f"{file.parent}/")], check=True)

    assert theirs in file.read_text(), "what a person holds down stays down"
    assert f"server 127.0.0.1:{lab.ports[OUT]} max_fails=0;\n" in file.read_text()
    argv = [lab.binary.path, "-p", f"{lab.folder}/", "-c", f"{lab.folder}/nginx.conf", "-e", f"{lab.folder}/error.log"]
    subprocess.run([*argv, "-t", "-q"], check=True)
    subprocess.run([*argv, "-s", "reload"], check=True)
    until(lambda: answered_by(lab, lab.ports[OUT]), "a request reaches it again")


def answered_by(lab: Lab, port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", lab.listen, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip() == str(port)
    finally:
        connection.close()


@pytest.mark.parametrize("lab", ["haproxy-2.6-check", "haproxy-2.8-agent", "nginx-1.22"], indirect=True)
def test_release_all_gives_back_and_freezes(lab: Lab) -> None:
    daemon = abandoned(lab)
    assert "lb-sidecar release --all" in block_with("systemctl stop lb-sidecar\n")

    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "release", "--all", daemon.config], capture_output=True, text=True, check=False, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert "is given back" in done.stdout
    assert "frozen" in done.stdout
    until(lambda: in_rotation(lab) == set(lab.ports), "it is back")


@pytest.mark.parametrize("lab", ["haproxy-2.8-none"], indirect=True)
def test_the_intents_tell_what_is_out_without_any_program_of_ours(lab: Lab) -> None:
    daemon = abandoned(lab)
    (pipe,) = re.findall(r"^sed .*intents .*$", block_with("sed -nE"), re.MULTILINE)

    look = pipe.replace("/var/lib/lb-sidecar", str(daemon.state))
    told = subprocess.run(["sh", "-c", look], capture_output=True, text=True, check=True).stdout

    assert f"eject shop 127.0.0.1:{lab.ports[OUT]} shop/127.0.0.1:{lab.ports[OUT]} ejected: " in told
