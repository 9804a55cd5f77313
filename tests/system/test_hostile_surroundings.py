"""Disk, socket, descriptors and processors fail under a running sidecar. It ejects nobody for that, goes on, and heals."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.daemon import Daemon, until
from tests.system.lab import Lab, lab
from tests.system.test_hostile_ends import command, expire, in_force, is_given_back, replayed, with_one_out

pytestmark = pytest.mark.real


def never_out(box: Lab, *which: int, seconds: float) -> None:
    """For so long none of these leaves the rotation; silence of the balancer is no word."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = box.look() or {}
        gone = [i for i in which if not found.get(box.ports[i], True)]
        assert not gone, f"{gone} went out"
        time.sleep(0.02)


# ---- the state folder ----


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0750", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError:
                return path


def exhaust(sidecar: Daemon, port: int) -> None:
    """Commands until the last page of the journal is full as well: on a full disk they are obeyed all the same."""
    override = f"/api/v1/services/shop/instances/127.0.0.1:{port}/override/test"
    for _ in range(20):
        assert sidecar.ask(override, "PUT", {"state": "draining", "reason": "x" * 300})[0] == 200
        assert sidecar.ask(override, "DELETE")[0] == 200
        if any("cannot be written" in e["sentence"] for e in sidecar.events("self")):
            return
    raise AssertionError("the disk is not full")


def test_a_full_disk_means_no_ejection_and_returns_go_on() -> None:
    with lab("haproxy-2.8-none") as box, small_disk(box.folder / "sidecar.state") as disk:
        sidecar = with_one_out(box)
        until(lambda: command("replay", str(disk))[0] == 0, "the flight recorder has begun")
        filler = fill(disk)
        exhaust(sidecar, box.ports[3])

        box.kill(1)
        until(lambda: sidecar.judgements()[box.ports[1]] == "suspect", "the dead one is seen")
        box.instances.start(0)
        box.wait_in(0)
        assert 1 in box.in_rotation(), "no journal, no ejection"

        filler.unlink()
        box.wait_out(1)
        box.instances.start(1)
        box.wait_in(1)
        sidecar.wait_event("self", "can be written again")
        assert "Traceback" not in sidecar.log_text()
        assert sidecar.end() == 0
        replayed(sidecar)


@contextmanager
def freezable_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own that can be made to hang."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    folder.chmod(0o750)
    try:
        yield folder
    finally:
        subprocess.run(["fsfreeze", "-u", str(folder)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_hangs_means_no_ejection_and_returns_go_on() -> None:
    with lab("haproxy-2.8-none") as box, freezable_disk(box.folder / "sidecar.state") as disk:
        sidecar = with_one_out(box)
        subprocess.run(["fsfreeze", "-f", str(disk)], check=True)

        box.kill(1)
        sidecar.wait_event("self", "cannot be written")
        box.instances.start(0)
        box.wait_in(0)
        assert 1 in box.in_rotation(), "no journal, no ejection"
        assert sidecar.ask("/livez")[0] == 200

        subprocess.run(["fsfreeze", "-u", str(disk)], check=True)
        box.wait_out(1)
        box.instances.start(1)
        box.wait_in(1)
        sidecar.wait_healthy(box.ports)
        until(lambda: not in_force(sidecar), lambda: f"the journal is clean: {in_force(sidecar)}")
        assert "Traceback" not in sidecar.log_text()
        assert sidecar.end() == 0
        replayed(sidecar)


def test_a_start_on_a_full_disk_adopts_and_gives_back() -> None:
    with lab("haproxy-2.8-none") as box, small_disk(box.folder / "sidecar.state") as disk:
        sidecar = with_one_out(box)
        sidecar.end(signal.SIGKILL)
        fill(disk)

        sidecar.start()
        sidecar.wait_event("adopted")
        box.instances.start(0)
        box.wait_in(0)
        assert "Traceback" not in sidecar.log_text()
        assert sidecar.end() == 0


def test_what_a_dead_sidecar_has_out_is_given_back_though_its_disk_has_gone_read_only() -> None:
    with lab("haproxy-2.8-none") as box, small_disk(box.folder / "sidecar.state") as disk:
        sidecar = with_one_out(box)
        sidecar.end(signal.SIGKILL)
        expire(sidecar)
        box.instances.start(0)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        code, said = command("release", "--expired", str(sidecar.config))

        assert "edge/shop/s1 is given back" in said and is_given_back(box), said
        assert code == 1 and "Read-only file system" in said  # that it is done could not be written down


def test_a_state_folder_deleted_under_its_feet_is_made_again_with_what_is_out() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        shutil.rmtree(sidecar.state)

        sidecar.wait_event("self", "is there again")
        until(lambda: in_force(sidecar), "what is out is in the new journal")
        assert sidecar.state.stat().st_mode & 0o777 == 0o750
        box.kill(1)
        box.wait_out(1)
        until(lambda: len(in_force(sidecar)) == 2, "the journal goes on")
        assert "Traceback" not in sidecar.log_text()
        sidecar.end(signal.SIGKILL)
        replayed(sidecar)
        sidecar.start()
        sidecar.wait_event("adopted")
        assert "is there again" in str(sidecar.events("self")), "the decision log goes on too"
        box.instances.start(0)
        box.instances.start(1)
        sidecar.wait_healthy(box.ports)
        assert sidecar.end() == 0


def test_a_state_folder_that_cannot_be_made_again_means_no_ejection_until_it_can() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        shutil.rmtree(sidecar.state)
        sidecar.state.write_text("in the way")

        sidecar.wait_event("self", "is not a folder")
        box.kill(1)
        box.instances.start(0)
        box.wait_in(0)
        assert 1 in box.in_rotation(), "no journal, no ejection"

        sidecar.state.unlink()
        box.wait_out(1)
        until(lambda: in_force(sidecar) == [f"shop/127.0.0.1:{box.ports[1]}"], lambda: f"only the dead one: {in_force(sidecar)}")
        assert "Traceback" not in sidecar.log_text()
        assert sidecar.end() == 0


def test_a_sidecar_whose_state_folder_another_has_taken_ends_and_leaves_it_the_rest() -> None:
    with lab("haproxy-2.8-none") as box:
        first = with_one_out(box)
        second = Daemon(box.folder, box.config(), name="second")
        second.state = first.state
        second.write(box.config())
        box.daemons.append(second)
        second.start()
        until(lambda: "is in use by" in second.log_text(), lambda: second.log_text())

        first.signal(signal.SIGSTOP)
        (first.state / "lock").unlink()
        until(lambda: "mode act" in second.log_text(), lambda: second.log_text())
        first.signal(signal.SIGCONT)

        until(lambda: not first.is_running, lambda: f"the first ends\n{first.log_text()}")
        assert first.end() == 1
        assert "has it now: this one ends" in first.log_text()
        second.wait_event("adopted")
        box.instances.start(0)
        second.wait_healthy(box.ports)
        assert second.end() == 0


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_journal_cut_short_leaves_no_orphan_unseen(keep: int) -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end(signal.SIGKILL)
        journal = sidecar.state / "intents"
        journal.write_bytes(journal.read_bytes()[:keep])

        sidecar.start()
        sidecar.wait_healthy(box.ports[1:])
        until(lambda: any("adopt" in hold["why"] for hold in sidecar.instances()[box.ports[0]]["holds"]), "it is shown")
        assert box.in_rotation() == {1, 2, 3}
        status, _ = sidecar.ask("/api/v1/adopt?pool=edge/shop", "POST")
        assert status == 200
        box.instances.start(0)
        box.wait_in(0)


# ---- the balancer's socket and process ----


def test_a_socket_that_goes_and_comes_back() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        path = box.folder / "admin.sock"
        hidden = path.with_name("hidden.sock")
        for i in (0, 1):
            path.rename(hidden)
            sidecar.wait_event("balancer", "cannot be asked")
            box.kill(i)
            until(lambda i=i: sidecar.judgements()[box.ports[i]] != "healthy", "it is seen")  # type: ignore[misc]
            hidden.rename(path)
            box.wait_out(i)
            box.instances.start(i)
            box.wait_in(i)
        sidecar.wait_healthy(box.ports)
        assert len(sidecar.events("ejected")) == 2
        assert sidecar.end() == 0
        replayed(sidecar)


def test_a_haproxy_that_stands_still_costs_nobody_his_place() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        workers = [int(line.split()[1]) for line in box.haproxy("show info").splitlines() if line.startswith("Pid:")]
        os.kill(workers[0], signal.SIGSTOP)
        try:
            box.kill(0)
            sidecar.wait_event("balancer", "cannot be asked")
        finally:
            os.kill(workers[0], signal.SIGCONT)
        box.wait_out(0)
        assert box.in_rotation() == {1, 2, 3}
        box.instances.start(0)
        box.wait_in(0)
        sidecar.wait_healthy(box.ports)
        assert sidecar.end() == 0
        replayed(sidecar)


def test_a_haproxy_restarted_every_second() -> None:
    with lab("haproxy-2.8-check") as box:
        sidecar = box.running()
        box.kill(3)
        for _ in range(6):
            assert box.balancer is not None
            box.balancer.stop()
            box.start_balancer()
            time.sleep(1)
        until(lambda: box.in_rotation() == {0, 1, 2}, lambda: f"only the dead one is out\n{sidecar.log_text()[-3000:]}")
        box.instances.start(3)
        box.wait_in(3)
        sidecar.wait_healthy(box.ports)
        assert {e["instance"] for e in sidecar.events("ejected")} <= {f"127.0.0.1:{box.ports[3]}"}
        assert not [e for e in sidecar.events("operator") if "hands off" in e["sentence"]]
        assert sidecar.end() == 0
        replayed(sidecar)


# ---- descriptors and processors ----


@pytest.mark.parametrize("descriptors", [24, 40])
def test_few_descriptors_eject_nobody(descriptors: int) -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.sidecar()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        try:
            sidecar.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: sidecar.log_text() or not sidecar.is_running, "it has said something")

        never_out(box, 0, 1, 2, 3, seconds=8)

        assert not [line for line in sidecar.log_text().splitlines() if "[ejected]" in line]
        if sidecar.is_running:
            assert sidecar.end() == 0
        else:
            assert "descriptor" in sidecar.log_text() or "open files" in sidecar.log_text()


def test_descriptors_that_run_out_eject_nobody_and_it_heals() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        pid = sidecar._process.pid  # type: ignore[union-attr]
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(3, open_now - 6), hard))

        never_out(box, 0, 1, 2, 3, seconds=6)

        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
        sidecar.wait_healthy(box.ports)
        assert sidecar.events("ejected") == []
        box.out_and_back(0)
        assert sidecar.end() == 0


def test_eight_busy_loops_eject_nobody() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running(learned=True)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
        try:
            never_out(box, 0, 1, 2, 3, seconds=12)
            assert sidecar.events("ejected") == []
            box.kill(0)
            box.wait_out(0)
            box.instances.start(0)
            box.wait_in(0)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        assert len(sidecar.events("ejected")) == 1
        assert sidecar.end() == 0
        replayed(sidecar)


def test_two_sidecars_of_one_state_folder_write_one_at_a_time() -> None:
    with lab("haproxy-2.8-none") as box:
        first = box.running()
        second = Daemon(box.folder, box.config(), name="second")
        second.state = first.state
        second.write(box.config())
        box.daemons.append(second)
        second.start()
        until(lambda: "is in use by" in second.log_text(), lambda: second.log_text())

        box.out_and_back(0)
        box.kill(1)
        box.wait_out(1)
        first.end(signal.SIGKILL)

        second.wait_event("adopted")
        box.instances.start(1)
        box.wait_in(1)
        second.wait_healthy(box.ports)
        assert second.end() == 0
        replayed(second)
