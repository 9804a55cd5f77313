"""Configurations that are refused at a start are refused at a reload too, and leave all as it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon, until
from tests.system.lab import free_ports, lab

pytestmark = pytest.mark.real
HEAD = "balancers: {lab: {plugin: memory}}\n"
SHOP = "services: {shop: {balancer: lab, instances: ['127.0.0.1:1', '127.0.0.1:2'], probe: %s}}\n"
PLAIN = HEAD + SHOP % "{tcp: true}"


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, PLAIN)
    daemon.start()
    try:
        until(lambda: daemon.ask("/livez")[0] == 200, lambda: daemon.log_text())
        yield daemon
    finally:
        daemon.end(signal.SIGKILL)


def config_hash(daemon: Daemon) -> str:
    _, found = daemon.ask("/api/v1/services")
    return str(found["sidecar"]["config_hash"])


def refused(daemon: Daemon, word: str) -> None:
    before = config_hash(daemon)
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("config", word)
    assert "reload refused" in daemon.wait_event("config", word)["sentence"]
    assert config_hash(daemon) == before

    # and it is no worse for it: the next good file is taken
    daemon.write("mode: observe\n" + PLAIN)
    daemon.signal(signal.SIGHUP)
    until(lambda: config_hash(daemon) != before, "the good file is in force")
    assert "Traceback" not in daemon.log_text() and "never retrieved" not in daemon.log_text()


def test_a_token_that_is_too_weak_is_refused_at_a_reload(sidecar: Daemon, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abcabcabcabc")
    text = sidecar.config.read_text()
    token = f"tokens: {{deploy: {{secret: 'file:{tmp_path}/token', may: [read]}}}}, listen"
    sidecar.config.write_text(text.replace("listen", token, 1))

    refused(sidecar, "weaker than 128 bits")


@pytest.mark.skipif(os.geteuid() != 0, reason="only a file of root's may name programs")
def test_a_program_is_not_believed_once_others_may_write_the_file(sidecar: Daemon) -> None:
    sidecar.write(HEAD + SHOP % "{command: ['/bin/true']}")
    sidecar.config.chmod(0o666)

    refused(sidecar, "must be root's alone")
    sidecar.write(HEAD + SHOP % "{command: ['/bin/true']}")
    assert sidecar.end() == 0
    sidecar.start()
    until(lambda: not sidecar.is_running, "it does not start either")
    assert sidecar.end() == 2
    sidecar.config.chmod(0o644)
    sidecar.start()
    until(lambda: set(sidecar.judgements().values()) == {"healthy"}, lambda: f"the program is asked\n{sidecar.log_text()}")


def test_a_balancer_with_other_options_is_taken_over_without_a_word_of_trouble() -> None:
    with lab("haproxy-2.8-none") as box:
        agent, feed, other = free_ports(3)

        def config(port: int) -> str:
            return box.config().replace("}", f", agent: '127.0.0.1:{agent}', traffic: {{syslog: '127.0.0.1:{port}'}}}}", 1)

        sidecar = box.running(config(feed))
        box.kill(0)
        box.wait_out(0)
        until(lambda: sidecar.events("ejected"), "it is ours")

        for port in (other, feed, other):
            told = len(sidecar.events("config"))
            sidecar.write(config(port))
            sidecar.signal(signal.SIGHUP)
            until(lambda told=told: len(sidecar.events("config")) > told, "it has read")  # type: ignore[misc]
            # long enough for the self-check, four a second, to see whoever stands in the way
            time.sleep(1.0)

        assert [e["sentence"] for kind in ("self", "balancer") for e in sidecar.events(kind)] == []
        assert box.in_rotation() == {1, 2, 3}
        box.instances.start(0)
        box.wait_in(0)
