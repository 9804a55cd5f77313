"""The measurement itself: what balancers' log lines are taken to say, and when runs are called bad."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from bench.removal import Run, faults_of
from bench.watch import Attempt, read_haproxy, read_nginx

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
