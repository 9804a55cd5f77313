"""Told to end, to read again or to stand still, at the worst moments: it ends in time, keeps what it must, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.daemon import Daemon, until
from tests.system.lab import SERVICE, Lab, free_ports, lab

pytestmark = pytest.mark.real

END_WITHIN_S = 5.0
SLACK_S = 5.0
"""For a machine on which other tests run; what hangs here would hang for ever."""

PLUGIN = """
import asyncio, sys, time
from lbplugins.api import Balancer, NoOptions
from lbplugins.values import Address, Ref, Seen, Traits


class Hostile(Balancer):
    traits = Traits(observe_every_s=0.1)
    HOW = "{how}"

    async def observe(self, pools, notes):
        if self.HOW == "thread":
            time.sleep(3600)
        if self.HOW == "executor":
            await asyncio.to_thread(time.sleep, 3600)
        if self.HOW == "stubborn":
            while True:
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    pass
        return {{}}

    async def apply(self, changes):
        return ()

    async def aclose(self):
        if self.HOW == "close":
            await asyncio.sleep(3600)
        if self.HOW == "raise":
            raise RuntimeError("a bug")
"""


def register(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin `hostile` as another distribution would bring it."""
    info = folder / "hostile-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lbplugins]\nhostile = hostile_plugin:Hostile\n")
    (folder / "hostile_plugin.py").write_text(PLUGIN.format(how=how))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", "")))))


def ended(daemon: Daemon, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
    """Its exit code and how long it took."""
    since = time.monotonic()
    return daemon.end(number), time.monotonic() - since


@pytest.mark.parametrize("how", ["thread", "executor", "stubborn", "close", "raise"])
def test_it_ends_in_time_whatever_a_plugin_does(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path / "plugins", how, monkeypatch)
    (instance,) = free_ports(1)
    config = "balancers:\n  a: {plugin: hostile}\n  b: {plugin: hostile}\n  c: {plugin: hostile}\nservices:\n"
    config += f"  shop: {{pools: [a/shop, b/shop, c/shop], instances: ['127.0.0.1:{instance}'], probe: {{http: /health}}}}\n"
    daemon = Daemon(tmp_path / "run", config)
    daemon.start()
    try:
        until(lambda: daemon.instances(), lambda: f"it runs\n{daemon.log_text()[-2000:]}")

        code, took_s = ended(daemon)

        assert code == 0 and took_s < END_WITHIN_S + SLACK_S
        assert "Traceback" not in daemon.log_text()
    finally:
        daemon.end(signal.SIGKILL)


def test_it_ends_in_time_while_nobody_reads_its_log(tmp_path: Path) -> None:
    dead = free_ports(3)
    instances = ", ".join(f"'127.0.0.1:{each}'" for each in dead)
    service = f"  shop: {{balancer: lab, instances: [{instances}], probe: {{http: /}}}}\n"
    config = f"log: {{level: debug}}\nbalancers:\n  lab: {{plugin: memory}}\nservices:\n{service}"
    daemon = Daemon(tmp_path / "run", config)
    reading, writing = os.pipe()
    while True:  # full from the start
        os.set_blocking(writing, False)
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    process = subprocess.Popen([sys.executable, "-m", "sidecar", "run", str(daemon.config)], stdout=writing, stderr=writing)
    try:
        until(lambda: daemon.instances(), "it runs, and answers")
        since = time.monotonic()
        process.terminate()

        assert process.wait(30) == 0
        assert time.monotonic() - since < END_WITHIN_S + SLACK_S
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


def test_one_that_waits_for_anothers_state_folder_ends_when_told_and_survives_a_hangup(tmp_path: Path) -> None:
    (instance,) = free_ports(1)
    service = f"  shop: {{balancer: lab, instances: ['127.0.0.1:{instance}'], probe: {{http: /}}}}\n"
    config = f"balancers:\n  lab: {{plugin: memory}}\nservices:\n{service}"
    first = Daemon(tmp_path, config, name="first")
    second = Daemon(tmp_path, config, name="second")
    second.state = first.state
    second.write(config)
    try:
        first.start()
        until(lambda: first.instances(), "the first runs")
        second.start()
        until(lambda: "is in use by" in second.log_text(), lambda: f"the second waits\n{second.log_text()}")
        second.signal(signal.SIGHUP)
        time.sleep(0.3)
        assert second.is_running

        code, took_s = ended(second)
        assert code == 0 and took_s < END_WITHIN_S + SLACK_S

        second.start()
        until(lambda: second.log_text().count("is in use by") == 2, "it waits again")
        first.end(signal.SIGKILL)
        until(lambda: second.instances(), lambda: f"it takes over\n{second.log_text()}")
        assert ended(second)[0] == 0
        assert "lb-sidecar ends; nothing is out by us" in second.log_text()
    finally:
        first.end(signal.SIGKILL)
        second.end(signal.SIGKILL)


@pytest.mark.parametrize("dead", [False, True], ids=["all-healthy", "one-dead"])
def test_standing_still_for_five_seconds_costs_nobody_his_place(dead: bool) -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        if dead:
            box.kill(0)
            box.wait_out(0)
            until(lambda: sidecar.events("ejected"), "it is ours")
        before = len(sidecar.events("ejected"))

        sidecar.signal(signal.SIGSTOP)
        time.sleep(5)
        sidecar.signal(signal.SIGCONT)

        sidecar.wait_event("self", "did not run")
        time.sleep(3)
        assert len(sidecar.events("ejected")) == before
        assert box.in_rotation() == ({1, 2, 3} if dead else {0, 1, 2, 3})
        if dead:
            box.instances.start(0)
            box.wait_in(0)


def test_who_dies_while_we_stand_still_goes_out_after() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        sidecar.signal(signal.SIGSTOP)
        box.kill(2)
        time.sleep(3)
        sidecar.signal(signal.SIGCONT)
        box.wait_out(2)
        assert box.in_rotation() == {0, 1, 3}


# ---- SIGHUP ----


def reloaded(sidecar: Daemon, config: str) -> None:
    before = len(sidecar.events("config"))
    sidecar.write(config)
    sidecar.signal(signal.SIGHUP)
    until(lambda: len(sidecar.events("config")) > before, lambda: f"it was read again\n{sidecar.log_text()[-2000:]}")


def with_one_out(box: Lab) -> Daemon:
    sidecar = box.running()
    box.kill(0)
    box.wait_out(0)
    until(lambda: sidecar.events("ejected"), "it is ours")
    return sidecar


@pytest.mark.parametrize("shape", ["haproxy-2.8-none", "haproxy-2.6-check", "nginx-1.31"])
def test_what_is_out_is_given_back_before_the_mode_is_observe_and_taken_out_again_after(shape: str) -> None:
    with lab(shape) as box:
        sidecar = with_one_out(box)

        reloaded(sidecar, box.config("mode: observe\n"))
        box.wait_in(0) if "check" not in shape else until(lambda: box.rows()[0].admin == 0, "nothing of ours is left")
        until(lambda: any(not e["enforced"] for e in sidecar.events("ejected")), "now it would only have acted")

        reloaded(sidecar, box.config())
        box.wait_out(0)
        box.instances.start(0)
        box.wait_in(0)


def test_what_is_out_is_given_back_when_its_service_is_removed() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        other = f"  other: {{instances: ['127.0.0.1:{box.ports[1]}'], balancer: edge, pool: other, probe: {{http: /health}}}}\n"

        reloaded(sidecar, box.config(service=other))

        box.wait_in(0)
        assert sidecar.ask("/api/v1/services/shop")[0] == 404


def test_a_service_is_not_let_go_of_while_what_is_out_cannot_be_given_back() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        path = box.folder / "admin.sock"
        other = f"  other: {{instances: ['127.0.0.1:{box.ports[1]}'], balancer: edge, pool: other, probe: {{http: /health}}}}\n"
        path.rename(path.with_name("hidden.sock"))
        sidecar.wait_event("balancer", "cannot be asked")

        reloaded(sidecar, box.config(service=other))

        (refused,) = sidecar.events("config")
        assert "refused" in refused["sentence"] and "no socket at" in refused["sentence"] and "reload again" in refused["sentence"]
        path.with_name("hidden.sock").rename(path)
        box.instances.start(0)
        box.wait_in(0)
        reloaded(sidecar, box.config(service=other))
        assert sidecar.ask("/api/v1/services/shop")[0] == 404


def test_what_is_out_is_given_back_on_a_process_that_is_named_no_more() -> None:
    with lab("haproxy-2.8-none") as box, lab("haproxy-2.8-none") as second:
        shop = (
            f"  shop: {{balancer: edge, probe: {{http: /health}}, instances: ['127.0.0.1:{box.ports[0]}', '127.0.0.1:{box.ports[1]}']}}\n"
        )
        sockets = [f"{each.folder}/admin.sock" for each in (second, box)]
        for i, port in enumerate(box.ports):
            second.haproxy(f"set server shop/s{i + 1} addr 127.0.0.1 port {port}")
        sidecar = box.sidecar(f"balancers: {{edge: {{plugin: haproxy, socket: {sockets}}}}}\nservices:\n{shop}")
        sidecar.start()
        sidecar.wait_healthy(box.ports[:2])
        box.kill(0)
        until(lambda: box.rows()[0].op == second.rows()[0].op == 0, "it is out in both processes")

        reloaded(sidecar, f"balancers: {{edge: {{plugin: haproxy, socket: [{sockets[0]}]}}}}\nservices:\n{shop}")

        until(lambda: box.rows()[0].op == 2, "it is in where nobody writes any more")
        until(lambda: second.rows()[0].op == 0, "it is out where we still write")


def test_what_is_out_is_given_back_when_the_name_of_a_balancer_comes_to_mean_another() -> None:
    with lab("haproxy-2.8-none") as box, lab("haproxy-2.8-none") as second:
        sidecar = with_one_out(box)

        reloaded(sidecar, second.config())

        box.wait_in(0)
        second.kill(0)
        second.wait_out(0)


@pytest.mark.parametrize("is_service_back", [False, True])
def test_what_is_out_on_a_balancer_that_a_restart_no_longer_names_is_told_and_given_back_once_it_is_named_again(
    is_service_back: bool,
) -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        other = f"  other: {{balancer: lab, instances: ['127.0.0.1:{box.ports[1]}'], probe: {{http: /health}}}}\n"
        sidecar.end(signal.SIGKILL)
        sidecar.write(f"balancers: {{lab: {{plugin: memory}}}}\nservices:\n{other}")
        sidecar.start()

        sidecar.wait_event("balancer", "shop/s1 is out by us from before and cannot be given back")
        assert "it is given back" not in sidecar.log_text() and 0 not in box.in_rotation()

        named = box.config(service=(SERVICE if is_service_back else "") + other).replace("services:", "  lab: {plugin: memory}\nservices:")
        reloaded(sidecar, named)
        if is_service_back:
            until(lambda: sidecar.judgements().get(box.ports[0]) == "ejected", "it is its service's again")
            assert 0 not in box.in_rotation()
            box.instances.start(0)
        box.wait_in(0)


def test_the_newest_file_wins_however_often_it_is_told_to_read() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        for mode in ("mode: observe\n", "", "mode: observe\n", "mode: act\n", "mode: observe\n", ""):
            sidecar.write(box.config(mode))
            sidecar.signal(signal.SIGHUP)
            time.sleep(0.05)

        def is_acting() -> bool:
            status, found = sidecar.ask("/api/v1/services")
            return status == 200 and found["sidecar"]["mode"] == "act"

        until(lambda: is_acting() and sum(e["sentence"].count("reloaded") for e in sidecar.events("config")) >= 1, "it has read")
        time.sleep(1)
        until(is_acting, "the last file is in force")
        box.wait_out(0)
        box.instances.start(0)
        box.wait_in(0)
        assert "Traceback" not in sidecar.log_text()


def test_a_new_receiver_is_served_after_a_reload() -> None:
    with lab("haproxy-2.8-none") as box, socket.create_server(("127.0.0.1", free_ports(1)[0])) as server:
        sidecar = box.running()
        server.settimeout(20)
        port = server.getsockname()[1]

        reloaded(sidecar, box.config(f"publish: {{graphite: {{address: '127.0.0.1:{port}', interval: 1s}}}}\n"))

        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(65536).startswith(b"lbsidecar.")


def test_sigterm_while_it_writes_leaves_no_orphan() -> None:
    with lab("nginx-1.31") as box:
        sidecar = box.running()
        for round_ in range(4):
            box.kill(0)
            until(lambda: sidecar.judgements().get(box.ports[0]) in ("suspect", "ejected"), "it is about to write")
            time.sleep(0.05 * round_)
            code, took_s = ended(sidecar)
            assert code == 0 and took_s < END_WITHIN_S + SLACK_S
            sidecar.start()
            box.wait_out(0)
            box.instances.start(0)
            box.wait_in(0)
            sidecar.wait_healthy(box.ports)
