"""The measurement of cost itself: what is counted, whose time is taken, what is called good, and that each peer really asks."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import engine, sketch
from bench.core import JUDGED, costs
from bench.core_tipping import _tell
from bench.daemon import until
from bench.engine import Aim, Cell, Entry, Sample, judged, keeps_up, missed, of, panel, ratio, read, run, table, write
from bench.engine_cost import cost, tree
from bench.engine_lateness import lateness
from bench.engine_plot import draw
from bench.floor import FloorError, Responder, ask_once, compile_all
from bench.peers import Job, Prober, floor
from bench.peers.checkers import probers
from bench.peers.ours import Sidecar, mixed, sidecar

OURS, FLOOR = "lb-sidecar (kept)", "C floor (kept)"
SETTING = engine.Setting(Path(), 0.1, 0.0)
PEERS = [*probers(), floor("kept"), floor("fresh"), sidecar("kept"), sidecar("fresh")]


def sample(cpu_us: float, rate: float = 100.0) -> Sample:
    return Sample(rate, 100.0, cpu_us, 0.1, 10.0, 0.0, 0.1, 0.0)


AIM = Aim("CPU per probe vs C floor", ratio("cpu_us", OURS, FLOOR), must=2.6, goal=1.8)
CELL = Cell("kept", "1,000 targets", (), [AIM])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    compile_all(folder)
    return folder


@pytest.fixture
def responder(built: Path, tmp_path: Path) -> Iterator[Responder]:
    made = Responder(built, tmp_path)
    yield made
    made.stop()


def get(address: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_responder_counts_requests_connections_and_refusals_at_every_loopback_address(responder: Responder) -> None:
    before = responder.counts()

    wanted = (("127.1.0.1", "/health"), ("127.9.8.7", "/json"), ("127.0.0.1", "/fail"))
    found = [get(address, responder.port, path) for address, path in wanted]

    assert found == [(200, b"ok\n"), (200, b'{"status":"ok"}'), (503, b"no\n")]
    assert responder.counts().since(before) == (3, 3, 1)


def test_some_addresses_fail_whatever_they_are_asked(built: Path, tmp_path: Path) -> None:
    responder = Responder(built, tmp_path, fail_from=248)
    try:
        found = [get(f"127.1.0.{last}", responder.port, "/json")[0] for last in (247, 248, 250)]
    finally:
        responder.stop()

    assert found == [200, 503, 503]


def test_a_kept_connection_and_a_request_in_pieces_are_each_counted_once(responder: Responder) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", responder.port, timeout=10)
    connection.connect()
    before = responder.counts()
    for piece in (b"GET /health HTTP/1.1\r\nHo", b"st: a\r\n\r", b"\n"):
        connection.sock.sendall(piece)
        time.sleep(0.05)  # so that they come apart
    first = connection.sock.recv(4096)
    connection.sock.sendall(b"GET /fail HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    second = b"".join(iter(lambda: connection.sock.recv(4096), b""))
    connection.close()

    assert first.startswith(b"HTTP/1.1 200") and second.startswith(b"HTTP/1.1 503")
    assert responder.counts().since(before).requests == 2


def test_an_answer_that_takes_its_time_takes_at_least_that(built: Path, tmp_path: Path) -> None:
    responder = Responder(built, tmp_path, delay_us=3000)
    try:
        took = ask_once(built, responder.asked(3), 12)
    finally:
        responder.stop()

    assert len(took) == 12 and min(took) >= 0.003


def test_who_does_not_answer_is_said(built: Path, responder: Responder) -> None:
    responder.stop()

    with pytest.raises(FloorError, match=r"one at a time: .*refused"):
        ask_once(built, responder.asked(1), 5)


@pytest.mark.parametrize("prober", PEERS, ids=lambda prober: prober.name.replace(" ", "-"))
def test_each_prober_asks_every_target_in_the_way_it_says(prober: Prober, built: Path, responder: Responder, tmp_path: Path) -> None:
    running = prober.start(Job(responder.asked(3), 0.1, tmp_path, built))
    try:
        until(lambda: responder.counts().requests >= 3, lambda: f"{prober.name} asks: {engine._tail(tmp_path / 'log')}")
        before = responder.counts()
        until(lambda: responder.counts().since(before).requests >= 12, f"{prober.name} goes on")
        found = responder.counts().since(before)
        assert running.is_alive and cost(running.pid).cpu_s >= 0
    finally:
        running.stop()

    # what is under way at either moment may count on one side only; a kept connection is renewed now and then
    assert found.accepted >= found.requests - 3 if prober.how == "fresh" else found.accepted <= found.requests / 3
    assert found.failed == 0 and not running.is_alive


def test_the_mixed_crowd_is_asked_in_three_ways_and_all_are_well(built: Path, responder: Responder, tmp_path: Path) -> None:
    running = mixed().start(Job(responder.asked(200), 0.5, tmp_path, built))
    assert isinstance(running, Sidecar)
    try:
        until(lambda: running.daemon.ask("/readyz")[0] == 200, lambda: running.daemon.log_text()[-2000:])
        found = {name: running.daemon.ask(f"/api/v1/services/{name}")[1]["instances"].values() for name in running.services}
    finally:
        running.stop()

    judgements = {name: {each["judgement"] for each in them} for name, them in found.items()}
    assert set(map(frozenset, judgements.values())) == {frozenset({"healthy"})}
    assert not running.is_alive


def test_what_children_use_is_counted_and_what_ended_threads_used_as_well() -> None:
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(1, flush=True)\ninput()"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        before = cost(process.pid)
        assert process.stdout.readline() == b"1\n"
        alive = cost(process.pid)
    finally:
        for pid in reversed(tree(process.pid)):
            subprocess.run(["kill", "-KILL", str(pid)], check=False)
        process.wait()
        process.stdin.close()
        process.stdout.close()

    assert alive.since(before) >= 0.2
    gone = alive.__class__(alive.cpu_s + 1.0, {1: 0.0}, alive.resident_bytes)
    assert gone.since(alive) == pytest.approx(1.0)


def test_lateness_is_what_the_flight_recorder_shows(built: Path, responder: Responder, tmp_path: Path) -> None:
    running = sidecar("kept").start(Job(responder.asked(5), 0.1, tmp_path, built))
    began = time.monotonic()
    try:
        until(lambda: responder.counts().requests >= 40, "asked often enough")
    finally:
        running.stop()
    assert isinstance(running, Sidecar)

    found = lateness(running.recorder, began, time.monotonic())

    assert len(found) >= 20 and all(0 <= late < 60 for late in found)
    assert lateness(running.recorder, began + 1e6, began + 2e6) == []


def test_aims_are_judged_by_medians() -> None:
    results = {OURS: [sample(20), sample(22), sample(90)], FLOOR: [sample(10)]}

    assert list(judged(CELL, results)) == ["- CPU per probe vs C floor: **2.2** (must <= 2.6, goal 1.8): must"]
    assert AIM.verdict(1.8) == "goal" and AIM.verdict(2.7) == "MISSED"
    assert Aim("probes a second", of("rate", OURS), 20_000, 40_000, at_least=True).verdict(30_000) == "must"
    assert list(judged(CELL, {OURS: [sample(20)]})) == ["- CPU per probe vs C floor: not measured (must <= 2.6, goal 1.8)"]


def test_who_makes_fewer_probes_than_asked_is_not_praised_in_silence() -> None:
    slow = {OURS: [sample(20, 60), sample(20, 60), sample(20)], FLOOR: [sample(10)]}

    assert not keeps_up(slow)
    assert next(judged(CELL, slow)).endswith(": must (of few probes: it did not keep up)")


def test_quick_fails_on_what_noise_cannot_explain_and_on_nothing_else() -> None:
    one_good_round = {OURS: [sample(900), sample(52)], FLOOR: [sample(1), sample(10)]}
    all_far_off = {OURS: [sample(54), sample(60)], FLOOR: [sample(9), sample(10)]}
    starved = {OURS: [replace(sample(60, 10), others=1.8)], FLOOR: [sample(9)]}

    assert missed(CELL, one_good_round, 2.0) == missed(CELL, starved, 2.0) == []
    assert missed(CELL, {**starved, OURS: [sample(60, 10)]}, 2.0) != []
    assert missed(CELL, all_far_off, 2.0) == ["kept: CPU per probe vs C floor: 5.40 at best, 2.6 x 2 allowed"]


def test_a_table_shows_medians_noise_and_our_share() -> None:
    lines = table(CELL, {OURS: [sample(20), sample(30), sample(25)], FLOOR: [sample(10)]}).splitlines()

    assert lines[4].startswith("| lb-sidecar (kept) | 100 | 100 | 25.0 |") and lines[4].endswith("| 20.0-30.0 |  |")
    assert lines[5].endswith("| 10.0-10.0 | 2.50 |")


def test_a_picture_is_sound_and_shows_every_row() -> None:
    results = {OURS: [sample(20)], "a <b> & c": [sample(4000)], FLOOR: [sample(10)]}

    root = ElementTree.fromstring(draw([panel(CELL, results)]))

    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["1,000 targets: CPU us a probe", FLOOR, "10", OURS, "20", "a <b> & c", "4,000"]
    widths = [float(element.attrib["width"]) for element in list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:]]
    assert widths == sorted(widths) and widths[-1] <= 820


def test_everybody_has_a_turn_first_and_who_breaks_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def entry(name: str) -> Entry:
        def measure(setting: engine.Setting) -> Sample:
            order.append(name)
            if name == "broken":
                raise FloorError("it does not start")
            return sample(1)

        return Entry(name, measure)

    found = run(Cell("c", "t", [entry("a"), entry("broken"), entry("b")], []), SETTING, 2)

    assert order == ["a", "broken", "b", "broken", "b", "a"]
    assert list(found) == ["a", "b"] and "c: broken: it does not start" in capsys.readouterr().err


def test_what_was_written_of_other_cells_stays(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    write(file, "then", {"kept": {OURS: [sample(20)]}, "calm": {OURS: [sample(30)]}})
    write(file, "now", {"kept": {OURS: [sample(25)]}})

    assert read(file) == {"kept": ("now", {OURS: [sample(25)]}), "calm": ("then", {OURS: [sample(30)]})}


def test_the_page_gets_its_tables_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{engine.BEGIN}\nold\n{engine.END}\nafter\n")
    engine.document({"kept": ("2026-11-24", {OURS: [sample(25)]})}, tmp_path)
    once = page.read_text()
    engine.document({"kept": ("2026-11-24", {OURS: [sample(25)]})}, tmp_path)

    assert page.read_text() == once and once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    assert "| lb-sidecar (kept) | 100 |" in once and "1 rounds, 2026-11-24." in once
    assert (tmp_path / "pictures" / "probing.svg").read_text().startswith("<svg")


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("mine")

    with pytest.raises(FloorError, match="no place for the tables"):
        engine.document({"kept": ("now", {OURS: [sample(25)]})}, tmp_path)

    assert (tmp_path / "performance.md").read_text() == "mine"


@pytest.mark.parametrize("stream", ["lognormal", "bimodal", "heavy-tailed", "constant"])
def test_percentiles_are_within_their_bound_and_merge_exactly(stream: str) -> None:
    values = sketch.streams(5000)[stream]

    assert sketch.error(values) <= sketch.BOUND < 0.0055
    assert sketch.merges_exactly(values)


def test_the_cost_of_a_fact_is_told_by_part(tmp_path: Path) -> None:
    found = costs(0.5, 0.002, tmp_path, services=3)

    assert all(found[part] > 0 for part in JUDGED) and found["dropped"] == 0
    assert 0 < found["facts/s"] < 3 * 20 * 3


def test_the_tap_names_the_servers_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    _tell(b"show servers state\nset server s001/i02 health down; set server s003/i04 weight 5\n", 12.5)

    assert capsys.readouterr().out == "12.500000 s001/i02\n12.500000 s003/i04\n"
