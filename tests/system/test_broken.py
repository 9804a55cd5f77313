"""What surrounds us is broken: a damaged file, a configuration that others broke, our own network. Nothing is written."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from bench.daemon import Daemon, until
from sidecar.demo import stage
from tests.system.lab import Lab, lab
from tests.system.test_hostile_surroundings import fill, small_disk

pytestmark = pytest.mark.real


@pytest.mark.parametrize("shape", ["nginx-1.22", "nginx-1.31"])
def test_a_truncated_include_is_not_written_to(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()
        text = box.include.read_text()
        damaged = text[: text.rindex(";") - 4]
        box.include.write_text(damaged)
        until(lambda: _why_not_writable(sidecar, box.ports[0]), "the damage was seen")

        box.kill(0)

        until(lambda: sidecar.judgements()[box.ports[0]] == "suspect", "the dead one is seen")
        sidecar.wait_event("held", "shop.conf")
        assert box.include.read_text() == damaged
        assert [e["sentence"] for e in sidecar.events("ejected")] == []

        box.include.write_text(text)
        box.wait_out(0)


def _answers(sidecar: Daemon, port: int) -> int:
    return int(next(iter(sidecar.instances()[port]["checks"].values()))["answers"])


def _why_not_writable(sidecar: Daemon, port: int) -> str:
    found = sidecar.instances().get(port, {"servers": ()})
    return "; ".join(server["writable"] or "" for server in found["servers"])


@pytest.mark.parametrize("shape", ["nginx-1.22", "nginx-1.31"])
def test_a_configuration_that_others_broke_is_told_once_and_nothing_is_written(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()
        before = box.include.read_bytes()
        config = box.folder / "nginx.conf"
        whole = config.read_text()
        config.write_text(whole + "nonsense;\n")

        box.kill(0)

        sidecar.wait_event("balancer", "nonsense")
        until(lambda: sidecar.instances()[box.ports[0]]["ejection"], "it is decided")
        seen = _answers(sidecar, box.ports[1])
        until(lambda: _answers(sidecar, box.ports[1]) >= seen + 10, "time for more tries")
        assert box.include.read_bytes() == before

        config.write_text(whole)
        box.wait_out(0)
        told = [e["sentence"] for e in sidecar.events() if "nonsense" in e["sentence"]]
        assert len(told) == 1, told


def test_a_full_disk_under_nginx_keeps_the_old_file_and_is_told_once() -> None:
    box = Lab("nginx-1.22", 4)
    with small_disk(box.folder / "sidecar.d", "64k") as disk, closing(box):
        box.start()
        sidecar = box.running()
        before, filler = box.include.read_bytes(), fill(disk)

        _dies_in_vain(box, sidecar, "the disk is full")
        assert box.include.read_bytes() == before

        filler.unlink()
        box.wait_out(0)
        assert len(_told(sidecar, "the disk is full")) == 1


def test_a_reload_that_says_yes_and_does_not_load_is_rolled_back_and_told_once() -> None:
    with lab("nginx-1.31") as box:
        honest = box.config()
        sidecar = box.running(honest.replace("reload: signal", "reload: ['true']"))
        before = box.include.read_bytes()

        _dies_in_vain(box, sidecar, "did not load")
        until(lambda: box.include.read_bytes() == before, "rolled back")

        sidecar.write(honest)
        sidecar.signal(signal.SIGHUP)
        box.wait_out(0)
        assert len(_told(sidecar, "did not load")) == 1


def _dies_in_vain(box: Lab, sidecar: Daemon, word: str) -> None:
    """The first one dies; that it cannot be taken out is told, and tried again."""
    box.kill(0)
    until(lambda: _told(sidecar, word), lambda: f"{word}\n{sidecar.log_text()[-3000:]}")
    seen = _answers(sidecar, box.ports[1])
    until(lambda: _answers(sidecar, box.ports[1]) >= seen + 8, "time for more tries")


def _told(sidecar: Daemon, word: str) -> list[str]:
    return [e["sentence"] for e in sidecar.events() if word in e["sentence"]]


# ---- our own network ----


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[tuple[str, str, str]]:
    """A network namespace joined to ours by one link: its name, our end of the link, our address."""
    number = os.getpid() % 200
    name, ours, theirs = f"lbs{os.getpid()}", f"lba{os.getpid()}", f"lbb{os.getpid()}"
    address, peer = f"10.213.{number}.1", f"10.213.{number}.2"
    ip("netns", "add", name)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("addr", "add", f"{address}/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "addr", "add", f"{peer}/24", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, ours, address
    finally:
        ip("netns", "del", name)


def test_a_sidecar_whose_own_link_is_cut_ejects_nobody() -> None:
    with network() as (namespace, link, address), lab("haproxy-2.8-none") as box:
        far = stage.Instances(box.ports, address)
        box.instances.stop_all()
        try:
            far.start_all()
            assert box.balancer is not None
            config = box.folder / "haproxy.cfg"
            config.write_text(config.read_text().replace("127.0.0.1:", f"{address}:").replace(f"bind {address}", "bind 127.0.0.1"))
            os.kill(box.balancer.process.pid, signal.SIGUSR2)
            until(lambda: {row.address for row in box.rows().values()} == {f"{address}:{p}" for p in box.ports}, "the new addresses")
            sidecar = box.sidecar()
            sidecar.start(within=("ip", "netns", "exec", namespace))
            sidecar.wait_healthy(box.ports)

            ip("link", "set", link, "down")

            until(lambda: set(sidecar.judgements().values()) == {"suspect"}, lambda: f"it sees nobody\n{sidecar.log_text()}")
            sidecar.wait_event("pool_event")
            assert [e["sentence"] for e in sidecar.events("ejected")] == []
            assert box.in_rotation() == {0, 1, 2, 3}

            ip("link", "set", link, "up")
            sidecar.wait_healthy(box.ports)
            assert [e["sentence"] for e in sidecar.events("ejected")] == []
        finally:
            far.stop_all()
