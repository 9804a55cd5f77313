"""The balancer or the sidecar ends and comes again: what was out is repaired, adopted, never orphaned."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from bench.daemon import Daemon, until
from bench.watch import Watch
from tests.system.lab import HAPROXY, SHAPES, Lab, lab

pytestmark = pytest.mark.real

REPAIRED_S = 5.0
"""2 s are promised; more here, where other tests run beside us."""


def pid_of(box: Lab) -> str:
    try:
        return next(line for line in box.haproxy("show info").splitlines() if line.startswith("Pid:"))
    except (OSError, StopIteration):
        return ""


def watching(box: Lab) -> Watch:
    """From now on every move into or out of the rotation is on record."""
    log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    log.bind(("127.0.0.1", 0))
    return Watch(box.look, log)


@pytest.mark.parametrize("shape", HAPROXY)
def test_a_reloaded_or_restarted_haproxy_hears_again_who_is_out(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()
        box.kill(0)
        box.wait_out(0)

        for again in (_reload, _restart):
            old = pid_of(box)
            again(box)
            until(lambda old=old: pid_of(box) not in ("", old), "a new worker answers")  # type: ignore[misc]
            until(lambda: box.in_rotation() == {1, 2, 3}, lambda: f"repaired\n{sidecar.log_text()[-2000:]}", REPAIRED_S)

        box.instances.start(0)
        box.wait_in(0)


def _reload(box: Lab) -> None:
    assert box.balancer is not None
    os.kill(box.balancer.process.pid, signal.SIGUSR2)


def _restart(box: Lab) -> None:
    assert box.balancer is not None
    box.balancer.stop()
    box.start_balancer()


@pytest.mark.parametrize("shape", SHAPES)
def test_after_kill_9_the_recovered_comes_back_and_the_dead_never_does(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()
        box.kill(0, 1)
        box.wait_out(0, 1)
        until(lambda: len(sidecar.events("ejected")) == 2, "both are ejected by us")
        watch = watching(box)
        try:
            since = time.monotonic()
            sidecar.end(signal.SIGKILL)
            box.instances.start(0)

            sidecar.start()

            box.wait_in(0)
            until(lambda: sidecar.judgements().get(box.ports[1]) == "ejected", "the dead one is still ours")
            assert watch.moved(box.ports[1], since, into=True) is None
            assert watch.moves_of_others(box.ports[1], since) == 0
        finally:
            watch.stop()
        box.instances.start(1)
        box.wait_in(1)
        sidecar.wait_healthy(box.ports)


@pytest.mark.parametrize("shape", ["haproxy-2.6-check", "haproxy-2.8-none", "haproxy-2.8-agent", "nginx-1.31"])
def test_sigterm_leaves_out_what_is_out_and_the_next_start_adopts_it(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()
        box.kill(0)
        box.wait_out(0)

        assert sidecar.end(signal.SIGTERM) == 0
        assert box.in_rotation() == {1, 2, 3}
        assert f"still out by us: shop/127.0.0.1:{box.ports[0]} " in sidecar.log_text()
        sidecar.start()

        sidecar.wait_event("adopted")
        assert box.in_rotation() == {1, 2, 3}
        box.instances.start(0)
        box.wait_in(0)


def test_a_bad_file_at_sighup_changes_nothing() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        good, before = sidecar.config.read_text(), _hash(sidecar)
        answers = _answers(sidecar, box.ports[0])

        sidecar.config.write_text(good + "nonsense: [\n")
        sidecar.signal(signal.SIGHUP)

        sidecar.wait_event("config", "reload refused")
        assert _hash(sidecar) == before
        assert _answers(sidecar, box.ports[0]) >= answers, "what was known is kept"
        box.out_and_back(0)

        sidecar.config.write_text(good.replace("http: /health", "http: /healthz"))
        sidecar.signal(signal.SIGHUP)
        sidecar.wait_event("config", "reloaded")
        assert _hash(sidecar) != before


def _hash(sidecar: Daemon) -> str:
    _, found = sidecar.ask("/api/v1/services")
    return str(found["sidecar"]["config_hash"])


def _answers(sidecar: Daemon, port: int) -> int:
    return int(next(iter(sidecar.instances()[port]["checks"].values()))["answers"])


@pytest.mark.parametrize("shape", ["haproxy-2.8-none", "nginx-1.22"])
def test_a_second_sidecar_stands_by_and_takes_over(shape: str) -> None:
    with lab(shape) as box:
        first = box.running()
        second = box.sidecar(name="second")
        second.start()
        second.wait_healthy(box.ports)
        second.wait_event("self", "another sidecar writes to it")
        assert [e["sentence"] for e in first.events("self") if "standing by" in e["sentence"]] == []

        box.kill(0)
        box.wait_out(0)
        assert len(first.events("ejected")) == 1
        box.instances.start(0)
        box.wait_in(0)
        assert second.events("ejected") == []

        first.end(signal.SIGKILL)
        box.kill(1)
        box.wait_out(1)
        assert [e["instance"] for e in second.events("ejected")] == [f"127.0.0.1:{box.ports[1]}"]
