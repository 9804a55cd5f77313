"""The measurement itself: what balancers' log lines are taken to say, and when runs are called bad."""

from __future__ import annotations

import random
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from bench import alone
from bench.daemon import until
from bench.removal import OBSERVED_S, Cell, Run, Scene, cells, faults_of, ratios, run, show
from bench.watch import Attempt, Watch, haproxy_health, open_log, read_haproxy, read_nginx
from sidecar.demo import stage

PORTS = {"s1": 9001, "s2": 9002}
DATE = "24/Nov/2026:10:33:18.248"
ACCEPTED = datetime.strptime(DATE, "%d/%b/%Y:%H:%M:%S.%f").timestamp()
GOOD = Run("kill", 0.2, 0.19, 0, 0, 0, 0, 0.1, 2, True, 0, ())


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ('web shop/s1 2/3/0/5/10 200 70 - - ---- 6/6/5/2/0 0/0 "GET / HTTP/1.1"', [Attempt(ACCEPTED + 0.005, 9001, 200)]),
        ('web shop/s1 0/0/0/-1/300 502 209 - - KH-- 6/6/2/2/0 0/0 "GET / HTTP/1.1"', [Attempt(ACCEPTED, 9001, 502)]),
        ('web shop/s2 0/0/0/1/1 200 70 - - ---- 6/6/5/2/+1 0/0 "GET / HTTP/1.1"', [Attempt(ACCEPTED, 0, 0), Attempt(ACCEPTED, 9002, 200)]),
        (
            'web shop/s2 2/1003/0/1/9 200 70 - - ---- 6/6/5/2/+1 0/0 "GET / HTTP/1.1"',
            [Attempt(ACCEPTED + 0.002, 0, 0), Attempt(ACCEPTED + 1.005, 9002, 200)],
        ),
        ('web web/<NOSRV> -1/-1/-1/-1/0 400 0 - - CR-- 1/1/0/0/0 0/0 "<BADREQ>"', []),
    ],
)
def test_what_a_line_of_haproxy_says(rest: str, expected: list[Attempt]) -> None:
    found = read_haproxy(f"127.0.0.1:57682 [{DATE}] {rest}\n", 0.0, PORTS)

    assert [(a.port, a.status) for a in found] == [(a.port, a.status) for a in expected]
    assert [a.at for a in found] == pytest.approx([a.at for a in expected])


def test_a_retried_request_of_nginx_was_at_each_address_in_turn() -> None:
    line = "<190>Nov 22 14:26:42 hc: 1000.500|127.0.0.1:9001, 127.0.0.1:9002|502, 200|0.100, 0.050|-, 0.0|-, 0.05|200|0.150|GET|/"

    found = read_nginx(line, 0.0)

    assert [(a.port, a.status) for a in found] == [(9001, 502), (9002, 200)]
    assert [a.at for a in found] == pytest.approx([1000.35, 1000.45])


def test_no_server_to_ask_is_an_attempt_at_none() -> None:
    assert read_nginx("<190>Nov 22 14:26:42 hc: 1000.5|shop|502|0.000|-|-|502|0.001|GET|/", 0.0) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"out_s": None}, "1 never out"),
        ({"out_s": 1.6}, "worst 1.60 > 1.5 s"),
        ({"reached_after_out": 3}, "3 requests reached it after out"),
        ({"others_out": 1}, "1 others ejected"),
        ({"back_s": None}, "1 never back"),
        ({"back_s": -0.1}, "1 back before it listened"),
        ({"asked": 1}, "1 back before 2 good answers"),
        ({"rises": False}, "1 not returned by rise"),
    ],
)
def test_what_makes_a_run_bad(change: dict[str, object], word: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]  # each fits its field

    assert faults_of("kill", [GOOD, GOOD, GOOD]) == []
    assert faults_of("kill", [GOOD, GOOD, bad]) == [word]
    assert "median 0.80 > 0.7 s" in faults_of("kill", [replace(GOOD, out_s=0.8)] * 3)


# ---- the balancers alone ----

DEFAULT, TUNED = alone.WAYS["haproxy"]
(PASSIVE,) = alone.WAYS["nginx"]
SERVERS = """    option httpchk GET /health
    server s1 127.0.0.1:9001 weight 100
    server s2 127.0.0.1:9002 weight 100
"""


def test_haproxy_alone_has_its_check_on_every_server() -> None:
    assert alone.haproxy_config(SERVERS, DEFAULT).count(" weight 100 check inter 2s fall 3 rise 2\n") == 2
    tuned = alone.haproxy_config(SERVERS, TUNED)
    assert tuned.count(" weight 100 check inter 200ms fastinter 50ms fall 2 rise 2\n") == 2
    assert "option httpchk GET /health\n    timeout check 100ms\n" in tuned


def test_nginx_alone_marks_by_its_own_requests() -> None:
    found = alone.nginx_servers("server 127.0.0.1:9001 max_fails=0;\nserver 127.0.0.1:9002 max_fails=0;\n", PASSIVE)

    assert found == "server 127.0.0.1:9001 max_fails=1 fail_timeout=10s;\nserver 127.0.0.1:9002 max_fails=1 fail_timeout=10s;\n"


def test_a_demo_that_looks_otherwise_is_not_measured_by_mistake() -> None:
    with pytest.raises(ValueError, match="0 server lines without options"):
        alone.haproxy_config(SERVERS.replace("weight 100", "weight 100 check"), DEFAULT)
    with pytest.raises(ValueError, match="1 of 2 lines"):
        alone.nginx_servers("server 127.0.0.1:9001 max_fails=0;\nserver 127.0.0.1:9002 down;\n", PASSIVE)


def test_a_ratio_is_of_medians_of_the_same_fault() -> None:
    native = [replace(GOOD, out_s=s) for s in (4.0, 5.0, 9.0)]
    hung = replace(GOOD, fault="stop", out_s=None)

    assert ratios([GOOD, hung], [*native, hung]) == pytest.approx({"kill": 0.2 / 5.0})
    assert ratios([GOOD], []) == {}


def test_limits_are_for_ours_and_ratios_too(capsys: pytest.CaptureFixture[str]) -> None:
    binary = next(stage.haproxy_binaries())
    ours, theirs = (next(c for c in cells() if c.binary == binary and (c.alone == way)) for way in (None, DEFAULT))
    slow = [replace(GOOD, fault=fault, out_s=5.0) for fault in ("kill", "stop")]

    assert not show(theirs, {theirs.name: slow})
    assert show(ours, {ours.name: slow, theirs.name: slow})

    native, _, bad, _ = capsys.readouterr().out.splitlines()
    assert native.split()[:6] == [theirs.name, "kill", "1", "5.000", "5.000", "-"] and native.endswith("alone")
    assert bad.split()[:6] == [ours.name, "kill", "1", "5.000", "5.000", "1.00"] and "FAIL: median 5.00 > 0.7 s" in bad


def test_only_an_answer_of_its_own_after_that_moment_is_being_back() -> None:
    log, port = open_log()
    watch = Watch(dict, log)

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for at, status in ((1000, 200), (2000, 502), (3000, 200), (4000, 200)):
                line = f"hc: {at}.0|127.0.0.1:9001|{status}|0.0|-|-|{status}|0.0|GET|/"
                sock.sendto(line.encode(), ("127.0.0.1", port))
        until(lambda: len(watch.attempts) == 4, "four lines")
        first, _, third, _ = (a.at for a in watch.attempts)

        assert watch.answered(9001, first) == third
        assert watch.answered(9002, first) is None
    finally:
        watch.stop()


@contextmanager
def scene_of(way: alone.Alone, version: str) -> Iterator[Scene]:
    with ExitStack() as made:
        folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="lbs-")))
        folder.chmod(0o755)
        cell: Cell = next(c for c in cells() if c.alone == way and c.binary.version.startswith(version))
        yield Scene(cell, folder, made)


@pytest.mark.parametrize("version", ["2.6", "2.8"])
def test_haproxy_alone_takes_a_dead_one_out_and_back_by_its_own_check(version: str) -> None:
    with scene_of(TUNED, version) as scene:
        found = run(scene, None, "kill", 0, random.Random(1))

        assert found.out_s is not None and found.out_s > 0
        assert found.back_s is not None and found.back_s > 0
        assert found.asked is not None and found.asked >= 2
        assert (found.others_out, found.said) == (0, ())


def test_a_server_whose_check_fails_is_not_trusted_until_it_has_answered_often_enough() -> None:
    with scene_of(TUNED, "2.8") as scene:
        until(scene.has_settled, "trusted")
        assert haproxy_health(scene.folder / "lb" / "admin.sock") == {f"s{i + 1}": 3 for i in range(4)}

        scene.instances.signal(0, signal.SIGKILL)

        until(lambda: haproxy_health(scene.folder / "lb" / "admin.sock")["s1"] == 0, "down")
        assert not scene.has_settled()
        scene.instances.kill(0)
        scene.instances.start(0)
        until(scene.has_settled, "trusted again")


@pytest.mark.parametrize("version", ["1.22", "1.31"])
def test_nginx_alone_shows_nobody_out_but_stops_asking(version: str) -> None:
    with scene_of(PASSIVE, version) as scene:
        found = run(scene, None, "kill", 0, random.Random(1))

        assert found.out_s is not None and found.out_s == found.last_attempt_s <= OBSERVED_S
        assert found.back_s is not None and found.back_s > 0
        assert (found.failed, found.reached_after_out) == (0, 0)
        assert scene.watch.moves == []
