"""It dies at any moment, and others give back what it had out: no orphan, no dead instance in rotation, no foreign word undone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from bench.daemon import Daemon, until
from sidecar.journal import intents
from sidecar.journal.force import InForce
from tests.system.lab import Lab, lab

pytestmark = pytest.mark.real


def command(*words: str) -> tuple[int, str]:
    """Exit code and all that `lb-sidecar` said."""
    done = subprocess.run([sys.executable, "-m", "sidecar", *words], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def replayed(sidecar: Daemon) -> None:
    """What it has recorded is decided again just as it was."""
    code, said = command("replay", str(sidecar.state))
    assert code == 0, said


def with_one_out(box: Lab, config: str | None = None) -> Daemon:
    sidecar = box.running(config)
    box.kill(0)
    box.wait_out(0)
    until(lambda: sidecar.events("ejected"), "it is ours")
    return sidecar


def expire(sidecar: Daemon) -> None:
    """As if two minutes had passed since its last sign of life."""
    path = sidecar.state / "lease"
    lease = json.loads(path.read_text())
    path.write_text(json.dumps({**lease, "until": 1.0}))


def is_given_back(box: Lab) -> bool:
    return {0, 1, 2, 3} == box.in_rotation()


# ---- killed at random ----


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_leaves_no_orphan_and_brings_no_dead_one_back(seed: int) -> None:
    chance = random.Random(seed)
    with lab("haproxy-2.8-none") as box:
        sidecar = box.running()
        dead: set[int] = set()
        for _ in range(8):
            which = chance.randrange(2)
            if which in dead:
                box.instances.start(which)
                dead.discard(which)
            else:
                box.kill(which)
                dead.add(which)
            time.sleep(chance.uniform(0.0, 1.2))
            sidecar.end(signal.SIGKILL)
            sidecar.start()

        until(lambda: box.in_rotation() == {0, 1, 2, 3} - dead, lambda: f"{dead} are out\n{sidecar.log_text()[-3000:]}")
        sidecar.wait_healthy([box.ports[i] for i in {0, 1, 2, 3} - dead])
        until(lambda: sum(sidecar.judgements()[box.ports[i]] == "ejected" for i in dead) == len(dead), "those out are ours")
        for i in sorted(dead):
            box.instances.start(i)
        sidecar.wait_healthy(box.ports)
        assert is_given_back(box)
        until(lambda: not in_force(sidecar), lambda: f"the journal is clean: {in_force(sidecar)}")
        assert "Traceback" not in sidecar.log_text()
        assert sidecar.end() == 0
        replayed(sidecar)


def in_force(sidecar: Daemon) -> list[str]:
    """Ejections that the journal still has in force."""
    force = InForce()
    for each in intents.read(sidecar.state).stored:
        force.take(each)
    return [str(instance) for instance in force.ejections]


def test_who_dies_again_after_a_crash_in_the_middle_of_his_return_stays_out() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        box.instances.start(0)
        box.wait_in(0)
        sidecar.end(signal.SIGKILL)  # before the journal has forgotten it, if we are lucky
        sidecar.start()
        sidecar.wait_healthy(box.ports)

        box.kill(0)
        box.wait_out(0)
        until(lambda: sidecar.judgements()[box.ports[0]] == "ejected", "it is ours")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert 0 not in box.in_rotation()
            time.sleep(0.01)


# ---- release ----


@pytest.mark.parametrize("shape", ["haproxy-2.6-check", "haproxy-2.8-none", "nginx-1.31"])
def test_once_the_lease_is_over_what_a_dead_sidecar_has_out_is_given_back(shape: str) -> None:
    with lab(shape) as box:
        sidecar = with_one_out(box)
        sidecar.end(signal.SIGKILL)
        config = str(sidecar.config)

        code, said = command("release", "--expired", config)
        assert code == 0 and 0 not in box.in_rotation(), said

        expire(sidecar)
        box.instances.start(0)
        code, said = command("release", "--expired", config)
        assert code == 0 and "given back" in said, said
        box.wait_in(0)
        assert "nothing of ours is out" in command("release", "--expired", config)[1]

        sidecar.start()
        sidecar.wait_healthy(box.ports)
        box.out_and_back(0)


def test_the_end_of_a_lease_that_ends_soon_is_waited_for() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end(signal.SIGKILL)
        path = sidecar.state / "lease"
        lease = json.loads(path.read_text())
        end = time.clock_gettime(time.CLOCK_BOOTTIME) + 4.0
        path.write_text(json.dumps({**lease, "until": end}))

        code, said = command("release", "--expired", str(sidecar.config))

        assert time.clock_gettime(time.CLOCK_BOOTTIME) > end
        assert (code, "is given back" in said) == (0, True), said
        assert is_given_back(box)


def test_a_living_sidecar_whose_lease_could_not_be_renewed_keeps_what_it_has_out() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        expire(sidecar)

        code, said = command("release", "--expired", str(sidecar.config))

        assert code == 1 and "answers for what is out there" in said, said
        assert 0 not in box.in_rotation()
        assert not [e for e in sidecar.events("operator") if "hands off" in e["sentence"]]


def succeeded(box: Lab) -> tuple[Daemon, Daemon]:
    """One that died with an instance out, and another that writes in its place."""
    first = with_one_out(box)
    second = box.sidecar(name="second")
    second.start()
    second.wait_healthy(box.ports[1:])
    until(lambda: _stands_by(second), "it knows that it is the second")
    first.end(signal.SIGKILL)
    until(lambda: not _stands_by(second), "it has taken over")
    return first, second


def test_what_a_dead_sidecar_has_out_is_given_back_though_another_has_taken_over_which_then_judges_for_itself() -> None:
    with lab("haproxy-2.8-none") as box:
        first, second = succeeded(box)
        expire(first)

        code, said = command("release", "--expired", str(first.config))

        assert code == 0 and "given back" in said, said
        box.wait_out(0)
        until(lambda: second.judgements().get(box.ports[0]) == "ejected", "now it is the second's")
        box.instances.start(0)
        box.wait_in(0)


def test_what_one_that_stands_by_has_out_is_given_back_once_it_answers_no_more_and_is_no_word_of_an_operator() -> None:
    with lab("haproxy-2.8-none") as box:
        first, _ = succeeded(box)
        path = first.state / "lease"
        first.start()
        until(lambda: json.loads(path.read_text())["standing_by"], "it stands by, and says so")
        first.end(signal.SIGKILL)
        box.instances.start(0)
        promise = json.loads(path.read_text())
        promise["standing_by"] = dict.fromkeys(promise["standing_by"], 1.0)  # as if it had waited for long
        path.write_text(json.dumps(promise))
        first.start()
        until(lambda: first.judgements(), "it lives, and stands by again")

        code, said = command("release", "--expired", str(first.config))

        assert code == 0 and "given back" in said, said
        box.wait_in(0)
        until(lambda: first.judgements().get(box.ports[0]) == "healthy", "it has let go of it as well")
        assert not [e for e in first.events("operator") if "hands off" in e["sentence"]]


def _stands_by(sidecar: Daemon) -> bool:
    return "standing by" in str(sidecar.ask("/health/shop")[1])


def test_release_all_without_a_daemon_gives_back_and_freezes_the_next_start() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end()

        code, said = command("release", "--all", str(sidecar.config))
        assert code == 0 and "frozen" in said, said
        assert is_given_back(box)

        sidecar.start()
        sidecar.wait_healthy(box.ports[1:])
        until(lambda: sidecar.judgements()[box.ports[0]] == "suspect", "it is known to be dead")
        time.sleep(2)
        assert is_given_back(box) and len(sidecar.events("ejected")) == 1


def test_release_all_freezes_even_if_the_balancer_is_away() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end()
        assert box.balancer is not None
        box.balancer.stop()

        code, said = command("release", "--all", str(sidecar.config))
        assert code == 1 and "frozen" in said, said

        box.start_balancer()
        sidecar.start()
        sidecar.wait_healthy(box.ports[1:])
        until(lambda: sidecar.judgements()[box.ports[0]] in ("suspect", "ejected"), "it is known to be dead")
        time.sleep(2)
        assert is_given_back(box)


def test_release_all_asks_the_daemon_that_runs() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)

        code, said = command("release", "--all", str(sidecar.config))

        assert code == 0 and "frozen" in said, said
        until(lambda: is_given_back(box), lambda: f"all are back\n{sidecar.log_text()[-2000:]}")
        time.sleep(2)
        assert is_given_back(box), "frozen"
        assert not [e for e in sidecar.events("operator") if "hands off" in e["sentence"]]


# ---- another configuration at the next start ----


def test_what_is_out_of_a_service_that_is_gone_at_the_next_start_is_given_back() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end()
        other = f"  other: {{instances: ['127.0.0.1:{box.ports[1]}'], balancer: edge, pool: other, probe: {{http: /health}}}}\n"
        sidecar.write(box.config(service=other))

        sidecar.start()

        box.wait_in(0)
        until(lambda: not in_force(sidecar), lambda: f"the journal is clean: {in_force(sidecar)}")


def test_release_gives_back_what_is_out_of_a_service_that_is_gone() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end()
        expire(sidecar)
        other = f"  other: {{instances: ['127.0.0.1:{box.ports[1]}'], balancer: edge, pool: other, probe: {{http: /health}}}}\n"
        sidecar.write(box.config(service=other))

        code, said = command("release", "--expired", str(sidecar.config))

        assert code == 0 and is_given_back(box), said


def test_restarted_only_to_observe_it_lets_the_timer_give_back() -> None:
    with lab("haproxy-2.8-none") as box:
        sidecar = with_one_out(box)
        sidecar.end()
        sidecar.write(box.config("mode: observe\n"))
        sidecar.start()
        sidecar.wait_healthy(box.ports[1:])
        assert box.in_rotation() == {1, 2, 3}

        expire(sidecar)
        code, said = command("release", "--expired", str(sidecar.config))

        assert code == 0 and is_given_back(box), said
