"""The fault lab: instances fail as they are told, load waits for nobody, contestants serve; and what runs are taken to show."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.daemon import until
from bench.faultlab import picture
from bench.faultlab.__main__ import NINE, plays, read, read_all, report, write
from bench.faultlab.contestants import Contestant, Job, contestants
from bench.faultlab.faults import FAULTS, MAIN, WELL, Rank
from bench.faultlab.instance import Ways
from bench.faultlab.lane import SPARE, Lane, Play, Ports, Shape, told_of
from bench.faultlab.load import Load, Request
from bench.faultlab.report import Limit, counted, limits, ranks, verdicts
from bench.faultlab.score import Score, Setup, Told, score
from bench.faultlab.soak import soak

KNOWN = {c.name: c for c in contestants()}
PEERS = [c for c in KNOWN.values() if c.name in ("haproxy-tuned", "nginx-next", "envoy-tuned", "traefik", "caddy-tuned")]
SETUP = Setup("haproxy+us", "slow-20x", 0, n=3, rate=100.0, victims=(1,), blamed=(1,), onset=100.0, observed_s=2.0)


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def rank(ports: Ports) -> Iterator[Rank]:
    made = Rank(ports.take(1))
    made.start()
    yield made
    made.stop()


def get(port: int, path: str = "/", connection: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    asked = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    asked.request("GET", path)
    answer = asked.getresponse()
    assert answer.headers["X-Instance"] == "1"
    found = answer.status, answer.read()
    if connection is None:
        asked.close()
    return found


# ---- instances ----


@pytest.mark.parametrize(
    ("ways", "app", "health"),
    [
        (WELL, (200, b"ok\n"), 200),
        (Ways(errors=1.0), (500, b"ok\n"), 200),
        (Ways(fast="503"), (503, b"ok\n"), 200),
        (Ways(fast="empty"), (200, b""), 200),
        (Ways(ill=True), (200, b"ok\n"), 500),
        (Ways(slow=3.0), (200, b"ok\n"), 200),
        (Ways(pause_s=0.01), (200, b"ok\n"), 200),
    ],
)
def test_an_instance_answers_as_it_is_told_and_is_well_again(rank: Rank, ways: Ways, app: tuple[int, bytes], health: int) -> None:
    rank.do(ways, 0)

    assert get(rank.ports[0]) == app and get(rank.ports[0], "/health")[0] == health

    rank.heal()
    assert get(rank.ports[0]) == (200, b"ok\n") and get(rank.ports[0], "/health")[0] == 200


def test_a_slow_instance_takes_at_least_its_time_and_a_cold_one_too(rank: Rank) -> None:
    for ways in (Ways(slow=1000.0), Ways(warm_s=1000.0)):
        rank.do(ways, 0)
        began = time.monotonic()
        get(rank.ports[0], "/health")
        assert time.monotonic() - began >= 0.0005 * (1000 if ways.slow > 1 else 19)


def test_one_that_is_down_refuses_and_resets_and_listens_again(rank: Rank) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", rank.ports[0], timeout=10)
    get(rank.ports[0], connection=kept)
    rank.do(Ways(down=True), 0)

    with pytest.raises(ConnectionRefusedError):
        get(rank.ports[0])
    with pytest.raises((ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
        get(rank.ports[0], connection=kept)
    kept.close()

    rank.heal()
    assert get(rank.ports[0])[0] == 200


def test_half_open_is_silent_where_it_was_open_and_well_elsewhere(rank: Rank) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", rank.ports[0], timeout=0.3)
    get(rank.ports[0], connection=kept)
    rank.do(Ways(half_open=True), 0)

    with pytest.raises(TimeoutError):
        get(rank.ports[0], connection=kept)
    kept.close()
    assert get(rank.ports[0])[0] == 200


def test_a_killed_and_a_stopped_instance_are_healed(rank: Rank) -> None:
    for deed in ("kill", "stop"):
        rank.do(deed, 0)
        rank.heal()
        assert get(rank.ports[0]) == (200, b"ok\n")


# ---- load ----


def requests_of(port: int, folder: Path, *, rate: float = 200.0, seconds: float = 0.5) -> Load:
    load = Load(port, rate, seconds, folder / "requests")
    load.begin(time.monotonic())
    return load


def test_load_waits_for_nobody_and_counts_from_when_each_was_due(rank: Rank, tmp_path: Path) -> None:
    rank.do("stop", 0)
    load = requests_of(rank.ports[0], tmp_path)
    time.sleep(0.7)
    awake = time.monotonic()
    rank.do("cont", 0)
    try:
        found = load.requests()
    finally:
        load.stop()

    assert len(found) == 100 and [r.due - found[0].due for r in found] == pytest.approx([i / 200 for i in range(100)], abs=1e-5)
    assert all(r.due <= r.taken and r.ended is not None and r.ended >= awake for r in found)
    assert {(r.status, r.instance, r.whole) for r in found} == {(200, 1, True)}


def test_refused_is_no_answer_and_an_empty_one_is_not_whole(rank: Rank, tmp_path: Path) -> None:
    rank.do(Ways(fast="empty"), 0)
    first = requests_of(rank.ports[0], tmp_path)
    empty = first.requests()
    first.stop()
    rank.do(Ways(down=True), 0)
    second = requests_of(rank.ports[0], tmp_path)
    refused = second.requests()
    second.stop()

    assert {(r.status, r.whole) for r in empty} == {(200, False)}
    assert {(r.status, r.whole, r.instance) for r in refused} == {(0, False, 0)} and len(refused) == 100


# ---- contestants ----


@pytest.mark.real
@pytest.mark.parametrize("contestant", PEERS, ids=lambda c: c.name)
@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
def test_each_peer_serves_what_the_instances_say(contestant: Contestant, balance: str, rank: Rank, ports: Ports, tmp_path: Path) -> None:
    listen, *spare = ports.take(1 + SPARE)
    running = contestant.start(Job(tmp_path, listen, rank.ports, spare, balance, settle_s=0.0))  # type: ignore[arg-type]  # pytest's parameters are strings
    try:
        until(lambda: _serves(listen), lambda: f"{contestant.name} serves: {(tmp_path / 'log').read_text()[-2000:]}")
    finally:
        running.stop()

    with pytest.raises(ConnectionRefusedError):
        get(listen)


def _serves(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status == 200 and answer.headers["X-Instance"] == "1"


@pytest.mark.real
def test_a_crash_behind_haproxy_is_seen_by_the_sidecar_and_nobody_else_is_touched(ports: Ports) -> None:
    shape = Shape(n=3, rate=60.0, healthy_s=1.0)
    with Lane(shape, ports) as lane:
        found = lane.play(Play(KNOWN["haproxy+us"], replace(FAULTS["crash"], observed_s=3.0), 0, phase=0.0, first=1))

    assert found.requests >= 170 and found.before_bad < 60
    assert (found.ejections, found.false_ejections, found.returns) == (1, 0, 0)
    assert [e.instance for e in found.told if e.kind == "ejected"] == [2]


@pytest.mark.real
@pytest.mark.parametrize("contestant", ["haproxy+us", "nginx+us-unix"])
def test_one_that_fails_real_requests_behind_a_green_probe_is_out_by_them(contestant: str, ports: Ports) -> None:
    shape = Shape(n=3, rate=150.0, healthy_s=3.0)
    with Lane(shape, ports) as lane:
        found = lane.play(Play(KNOWN[contestant], replace(FAULTS["errors"], observed_s=6.0), 0, phase=0.0, first=1))

    told = [(e.instance, e.by) for e in found.told if e.kind == "ejected"]
    assert (2, "rule:traffic_errors") in told, found.told
    assert {instance for instance, by in told if by == "rule:traffic_errors"} == {2}


# ---- what runs are taken to show ----


def request(due: float, took: float | None = 0.01, status: int = 200, instance: int = 2, *, whole: bool = True) -> Request:
    return Request(due, due, None if took is None else due + took, status, instance, whole, False)


def run(*requests: Request, told: list[Told] | None = None, setup: Setup = SETUP) -> Score:
    steady = [request(99.0 + i / 100, instance=1 + i % 3) for i in range(300)]
    return score(setup, sorted([*steady, *requests], key=lambda r: r.due), told)


@pytest.mark.parametrize(
    ("asked", "bad", "failed"),
    [
        (request(101.0, 0.09), 0, 0),
        (request(101.0, 0.11), 1, 0),
        (request(101.0, 0.01, 500), 1, 1),
        (request(101.0, 0.01, whole=False), 1, 1),
        (request(101.0, None, 0), 1, 1),
        (request(99.5, 0.6), 1, 0),  # under way when it struck
        (request(99.5, 0.3), 0, 0),  # over before it struck
        (request(102.5, 0.3), 0, 0),  # after the window
    ],
)
def test_what_is_bad(asked: Request, bad: int, failed: int) -> None:
    found = run(asked)

    assert (found.bad, found.failed, sum(found.timeline)) == (bad, failed, bad)


def test_bad_requests_before_the_fault_make_a_run_noisy() -> None:
    calm, restless = run(), run(*[request(99.1 + i / 100, 0.2) for i in range(11)])

    assert not calm.is_noisy and restless.is_noisy and restless.bad == 0


def test_taking_out_anybody_but_the_struck_one_or_it_before_it_was_struck_is_false() -> None:
    def told(at: float, kind: str, instance: int) -> Told:
        return Told(at, kind, instance, "rule:slow", "")

    found = run(told=[told(-1.0, "ejected", 1), told(0.3, "ejected", 1), told(0.4, "ejected", 2), told(1.5, "returned", 1)])
    nobody = run(told=[told(0.3, "ejected", 1)], setup=replace(SETUP, blamed=()))

    assert (found.ejections, found.false_ejections, found.returns, found.out_s) == (3, 2, 1, 0.3)
    assert nobody.false_ejections == 1
    assert run().false_ejections is None


def test_what_a_return_costs_is_what_was_bad_after_it() -> None:
    asked = [request(100.1 + i / 2, 0.2, instance=1) for i in range(4)]

    back = [Told(0.2, "ejected", 1, "rule:slow", ""), Told(1.0, "returned", 1, "rule:rise", "")]

    assert run(*asked, told=back).bad_after_return == 2
    assert run(*asked, told=back[:1]).bad_after_return == run(*asked).bad_after_return == 0


def test_a_healthy_instance_that_gets_nothing_for_a_second_is_out() -> None:
    dues = [100.0 + i / 100 for i in range(200)]
    without_3 = [request(due, instance=2) for due in dues]

    assert score(SETUP, without_3, None).others_out == 1
    assert run().others_out == 0


def test_wall_time_of_the_decision_log_becomes_time_from_the_onset() -> None:
    event = {
        "when": "2026-11-24T18:00:01.500000+00:00",
        "kind": "ejected",
        "instance": "127.0.0.1:20002",
        "by": "rule:slow",
        "sentence": "x",
    }

    [found] = told_of([event], [20001, 20002], 1795543201.0)

    assert found == Told(0.5, "ejected", 2, "rule:slow", "x")


# ---- reports ----


def scored(contestant: str, bad: int, *, fault: str = "hang", number: int = 0, noisy: bool = False, false: int | None = None) -> Score:
    plain = run(setup=replace(SETUP, contestant=contestant, fault=fault, round=number))
    return replace(plain, bad=bad, before_bad=99 if noisy else 0, ejections=false, false_ejections=false)


def test_of_the_attempts_at_a_run_the_first_that_was_quiet_counts_and_else_the_last() -> None:
    first, second = scored("haproxy", 900, noisy=True), scored("haproxy", 300)
    other = [scored("haproxy", 1, number=1, noisy=True), scored("haproxy", 2, number=1, noisy=True)]

    assert [s.bad for s in counted([first, *other, second])["hang"]["haproxy"]] == [300, 2]


def test_a_promise_is_kept_by_the_median_but_one_false_ejection_breaks_it() -> None:
    runs = [scored("haproxy+us", bad, number=i, false=int(i == 0)) for i, bad in enumerate((5, 15, 400))]
    native = [scored("haproxy", bad, number=i) for i, bad in enumerate((4, 6, 8))]
    promised = [
        Limit("haproxy+us", "hang", "bad", must=30, goal=20),
        Limit("haproxy+us", "hang", "bad", must=8, goal=0, above="haproxy"),
        Limit("haproxy+us", "hang", "false_ejections", must=0, goal=0),
        Limit("haproxy+us-retry", "hang", "bad", must=0, goal=0),
        Limit("haproxy+us", "crash", "bad", must=0, goal=0),
    ]

    found = verdicts(counted([*runs, *native]), promised)

    assert [(v.value, v.word) for v in found] == [(15, "goal"), (9, "MISSED"), (1, "MISSED"), (None, "not measured")]


def test_ranks_are_among_those_with_the_same_retries() -> None:
    rows = counted([scored("haproxy", 300), scored("haproxy-tuned", 5), scored("haproxy+us", 20), scored("haproxy+us-retry", 6)])["hang"]

    found = list(ranks(rows, lambda name: KNOWN[name].retries))

    assert "first of 2 without" in found[0] and "number 2 of 2 with retries" in found[1]


def test_what_is_promised_can_be_played() -> None:
    promised = list(limits())

    assert {limit.contestant for limit in promised} <= KNOWN.keys() and {limit.fault for limit in promised} <= FAULTS.keys()
    assert all(limit.goal <= limit.must for limit in promised)
    assert set(MAIN) <= FAULTS.keys() and {name for name in NINE if "+us" in name} <= KNOWN.keys()


def test_within_a_round_all_are_struck_alike_and_each_once() -> None:
    who = [KNOWN[name] for name in ("haproxy", "haproxy-tuned", "haproxy+us")]
    due = plays(who, [FAULTS["hang"], FAULTS["crash"]], 2, 8, random.Random(1))

    assert len({(p.contestant.name, p.fault.name, p.round) for p in due}) == len(due) == 12
    assert len({(p.fault.name, p.round, p.phase, p.first) for p in due}) == 4


def test_runs_are_read_as_they_were_written_and_drawn(tmp_path: Path) -> None:
    scores = [scored("haproxy", 300), scored("haproxy+us", 20, false=0), run(told=[Told(0.1, "ejected", 1, "rule:slow", "<&>")])]
    write(tmp_path / "runs.json", {"words": "here"}, scores)

    about, found = read(tmp_path / "runs.json")
    text, is_missed = report(about, found)
    drawn = picture.draw(counted(found))

    assert list(found) == scores
    assert "| haproxy+us | no | 1 | 20 | 20-20 |" in text and "here." in text and is_missed is False
    words = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("text")]
    assert {"haproxy", "haproxy+us", "300", "20"} <= set(words)


def test_two_sittings_are_told_as_one_and_both_are_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, {"words": name}, [scored("haproxy", 300)])

    about, found = read_all([tmp_path / "first", tmp_path / "second"])

    assert about["words"] == "first; and: second" and len(counted(found)["hang"]["haproxy"]) == 2


@pytest.mark.real
def test_the_sidecar_can_be_stopped_beside_busy_loops_without_ejecting_anybody() -> None:
    found = soak(0.03, 1, Shape(n=2, rate=40.0), random.Random(1))

    assert found.requests == 72 and found.stops >= 1 and found.ejections == ()
    assert found.kinds["healthy"] >= 2
