"""The decision log: what it keeps, gives back, survives and refuses to wait for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lbplugins.values import Address
from sidecar.core.model import Event, Evidence, Hold, HoldName, Instance, Strength
from sidecar.store.decisions import Decisions, Record, read, segments

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MIB = 1 << 20
A = Instance("shop", Address("10.0.0.5", 8080))


def wall_of(at: float) -> datetime:
    return START + timedelta(seconds=at)


def event(at: float, sentence: str = "it happened", *, kind: str = "ejected", by: str = "rule:consecutive", service: str = "shop") -> Event:
    return Event(kind, at, by, sentence, service, Instance(service, A.address))


def wait_until(condition: object, patience_s: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Decisions]:
    decisions = Decisions(tmp_path, 8 * MIB)
    yield decisions
    decisions.close()


def test_newest_comes_first_with_ids_that_grow(log: Decisions) -> None:
    log.append([event(1.0, "one"), event(2.0, "two")], wall_of)
    log.append([event(3.0, "three")], wall_of)

    records = log.query().records

    assert [(r.id, r.sentence) for r in records] == [(3, "three"), (2, "two"), (1, "one")]
    assert records[0].when == START + timedelta(seconds=3)


def test_a_record_tells_evidence_and_holds_in_wall_time(log: Decisions) -> None:
    evidence = Evidence(A, "timeout", Strength.HARD, False, at=9.0, count=4, first_at=8.5, detail="no answer within 0.06 s")
    hold = Hold(HoldName.MAX_EJECTED, "3 of 4 would be out, 2 allowed", A, "shop")
    log.append([Event("held", 10.0, "hold:max_ejected", "held", "shop", A, (evidence,), (hold,), enforced=False)], wall_of)

    told = log.query().records[0].to_json()

    assert told["when"] == "2026-03-01T12:00:10.000Z"
    assert told["instance"] == "10.0.0.5:8080"
    assert told["enforced"] is False
    assert told["evidence"] == [
        {
            "kind": "timeout",
            "strength": "hard",
            "good": False,
            "count": 4,
            "first": "2026-03-01T12:00:08.500Z",
            "when": "2026-03-01T12:00:09.000Z",
            "detail": "no answer within 0.06 s",
            "instance": "10.0.0.5:8080",
        }
    ]
    assert told["holds"] == [{"name": "max_ejected", "why": "3 of 4 would be out, 2 allowed", "instance": "10.0.0.5:8080"}]
    assert Record.from_json(json.loads(json.dumps(told))).to_json() == told


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"service": "shop"}, ["b", "a"]),
        ({"service": "blog"}, ["c"]),
        ({"instance": "10.0.0.5:8080"}, ["c", "b", "a"]),
        ({"instance": "10.0.0.5:80"}, []),
        ({"by": "operator"}, ["b"]),
        ({"by": "operator:ann"}, ["b"]),
        ({"by": "oper"}, []),
        ({"since": START + timedelta(seconds=2)}, ["c", "b"]),
        ({"until": START + timedelta(seconds=2)}, ["a"]),
        ({"since": START + timedelta(seconds=2), "until": START + timedelta(seconds=3)}, ["b"]),
    ],
)
def test_query_keeps_to_what_is_asked(log: Decisions, asked: dict[str, object], wanted: list[str]) -> None:
    log.append([event(1.0, "a"), event(2.0, "b", by="operator:ann"), event(3.0, "c", service="blog")], wall_of)

    found = log.query(**asked)  # type: ignore[arg-type]

    assert [r.sentence for r in found.records] == wanted


def test_pages_follow_one_another_without_gap_or_repeat(log: Decisions) -> None:
    log.append([event(float(i), str(i)) for i in range(25)], wall_of)

    told: list[str] = []
    cursor = None
    while True:
        page = log.query(limit=10, cursor=cursor)
        told += [r.sentence for r in page.records]
        log.append([event(99.0, "news")], wall_of)
        if (cursor := page.next_cursor) is None:
            break

    assert told == [str(i) for i in reversed(range(25))]


@pytest.mark.parametrize("cursor", ["", "-1", "x", "1 ", "9" * 30, "١"])
def test_a_foreign_cursor_is_refused_in_words(log: Decisions, cursor: str) -> None:
    with pytest.raises(ValueError, match="next_cursor"):
        log.query(cursor=cursor)


def test_a_new_start_remembers_and_goes_on_counting(tmp_path: Path) -> None:
    first = Decisions(tmp_path, 8 * MIB)
    first.append([event(float(i), str(i)) for i in range(30)], wall_of)
    first.close()

    second = Decisions(tmp_path, 8 * MIB, keep=10)
    second.append([event(50.0, "after")], wall_of)
    second.close()

    assert [r.id for r in second.query().records] == list(range(31, 21, -1))
    assert [r.id for r in read(tmp_path)] == list(range(1, 32))
    assert len(segments(tmp_path)) == 1


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    first = Decisions(tmp_path, 8 * MIB)
    first.append([event(1.0, "one"), event(2.0, "two"), event(3.0, "three")], wall_of)
    first.close()
    path = segments(tmp_path)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff{damaged]\n" + b"[1]\n" + lines[1] + lines[2][:-7])

    second = Decisions(tmp_path, 8 * MIB)
    second.append([event(4.0, "four")], wall_of)
    second.close()

    assert [(r.id, r.sentence) for r in read(tmp_path)] == [(1, "one"), (2, "two"), (3, "four")]


def test_the_disk_is_never_given_more_than_its_share(tmp_path: Path) -> None:
    limit = 1 * MIB
    log = Decisions(tmp_path, limit, keep=100)
    for i in range(40):
        log.append([event(float(i), f"{i} " + "x" * 1500) for _ in range(50)], wall_of)
    log.close(timeout_s=30.0)

    newest = list(read(tmp_path))

    assert sum(p.stat().st_size for p in segments(tmp_path)) <= limit + limit // 8
    assert newest[-1].id == 2000
    assert [r.id for r in newest] == list(range(newest[0].id, 2001))
    assert newest[0].id > 1


def test_one_enormous_sentence_is_cut(log: Decisions) -> None:
    log.append([event(1.0, "x" * 1_000_000)], wall_of)

    assert len(log.query().records[0].sentence) == 2000


def test_a_folder_that_cannot_be_written_is_news_and_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file where the folder should be")

    log = Decisions(blocked, 8 * MIB)
    log.append([event(1.0)], wall_of)
    wait_until(lambda: log.dropped == 1)
    kept, problem = log.query().records, log.problem
    log.close()

    assert len(kept) == 1
    assert "memory only" in problem
    assert str(blocked) in problem


def test_writing_goes_on_when_the_folder_is_mended(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.write_text("in the way")
    log = Decisions(folder, 8 * MIB)
    log.append([event(1.0, "lost")], wall_of)
    wait_until(lambda: log.dropped == 1)

    folder.unlink()
    log.append([event(2.0, "kept")], wall_of)
    log.close(timeout_s=30.0)

    assert [r.sentence for r in read(folder)] == ["kept"]
    assert log.problem == ""


def test_a_folder_that_is_removed_is_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    log = Decisions(folder, 8 * MIB)
    log.append([event(1.0, "removed")], wall_of)
    wait_until(lambda: [r.sentence for r in read(folder)] == ["removed"])

    shutil.rmtree(folder)
    log.append([event(2.0, "kept")], wall_of)
    log.close(timeout_s=30.0)

    assert [(r.id, r.sentence) for r in read(folder)] == [(2, "kept")]


def test_a_disk_that_hangs_delays_nobody(tmp_path: Path) -> None:
    """A FIFO in the place of the newest segment: opening it for reading and writing works, and a full pipe blocks the writer for good."""
    fifo = tmp_path / "decisions-0000000000000001.jsonl"
    log = Decisions(tmp_path, 8 * MIB)
    os.mkfifo(fifo)
    count = 12_000

    for i in range(count // 100):
        log.append([event(float(i), "x" * 500)] * 100, wall_of)

    assert log.query(limit=1).records[0].id == count
    assert log.dropped > 0
    drain = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        stop = threading.Event()
        reader = threading.Thread(target=_drain, args=(drain, stop))
        reader.start()
        log.close(timeout_s=30.0)
    finally:
        stop.set()
        reader.join()
        os.close(drain)


def _drain(fd: int, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            os.read(fd, 1 << 16)
        except BlockingIOError:
            time.sleep(0.001)


def test_without_a_folder_it_is_all_in_memory() -> None:
    log = Decisions(None, 0, keep=3)
    log.append([event(float(i), str(i)) for i in range(5)], wall_of)
    log.close()

    assert [r.sentence for r in log.query().records] == ["4", "3", "2"]
    assert log.dropped == 0


async def test_a_subscriber_hears_every_record_in_order(log: Decisions) -> None:
    subscription = log.subscribe()
    log.append([event(1.0, "one"), event(2.0, "two")], wall_of)

    heard = [await asyncio.wait_for(anext(subscription), 10) for _ in range(2)]
    later = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    log.append([event(3.0, "three")], wall_of)

    assert [r.sentence for r in heard] == ["one", "two"]
    assert (await asyncio.wait_for(later, 10)).sentence == "three"


async def test_a_subscriber_is_woken_from_another_thread(log: Decisions) -> None:
    subscription = log.subscribe()
    waiting = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)

    thread = threading.Thread(target=log.append, args=([event(1.0, "from afar")], wall_of))
    thread.start()
    record = await asyncio.wait_for(waiting, 10)
    thread.join()

    assert record.sentence == "from afar"


async def test_a_subscriber_who_was_away_first_hears_what_he_missed(log: Decisions) -> None:
    log.append([event(float(i), str(i)) for i in range(1, 6)], wall_of)

    subscription = log.subscribe(after=3)
    log.append([event(6.0, "6")], wall_of)

    assert [(await anext(subscription)).sentence for _ in range(3)] == ["4", "5", "6"]


async def test_a_subscriber_who_does_not_read_is_let_go(log: Decisions) -> None:
    slow, quick = log.subscribe(maxsize=4), log.subscribe(maxsize=100)

    log.append([event(float(i)) for i in range(4)], wall_of)
    log.append([event(4.0)], wall_of)

    assert slow.too_slow
    assert [record async for record in slow] == []
    assert len([await anext(quick) for _ in range(5)]) == 5


async def test_closing_the_log_ends_those_who_listen(log: Decisions) -> None:
    subscription = log.subscribe()
    waiting = asyncio.ensure_future(_all(subscription))
    await asyncio.sleep(0)

    log.close()

    assert await asyncio.wait_for(waiting, 10) == []


async def _all(subscription: object) -> list[Record]:
    return [record async for record in subscription]  # type: ignore[attr-defined]


def test_a_subscriber_whose_loop_is_gone_is_forgotten(log: Decisions) -> None:
    async def subscribe() -> None:
        log.subscribe()

    asyncio.run(subscribe())
    log.append([event(1.0)], wall_of)

    assert len(log.query().records) == 1


def test_what_is_no_longer_in_memory_is_recalled_from_disk_page_by_page(tmp_path: Path) -> None:
    log = Decisions(tmp_path, 8 * MIB, keep=50)
    for at in range(300):
        log.append([event(float(at), f"number {at}", by="rule:slow" if at % 2 else "outside")], wall_of)
    wait_until(lambda: sum(1 for _ in read(tmp_path)) == 300)

    assert [r.id for r in log.query(limit=1000).records] == list(range(300, 250, -1))
    first = log.recall(limit=200)
    assert [r.id for r in first.records] == list(range(250, 50, -1))
    assert [r.id for r in log.recall(limit=200, cursor=first.next_cursor).records] == list(range(50, 0, -1))
    assert log.recall(limit=200, cursor=first.next_cursor).next_cursor is None
    early = log.recall(by="rule", since=wall_of(10.0), until=wall_of(20.0)).records
    assert [r.sentence for r in early] == [f"number {at}" for at in (19, 17, 15, 13, 11)]
    assert log.recall(since=wall_of(280.0)).records == [], "memory has them all"
    log.close()


def test_nothing_is_recalled_while_memory_has_everything(log: Decisions) -> None:
    log.append([event(1.0)], wall_of)

    assert log.recall().records == []
    assert Decisions(None, 0).recall().records == []
