"""The flight recorder keeps what it was told, marks what it lost, stays within its bytes and never stands in the way."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, ItemsView, Iterator
from pathlib import Path

import pytest

from lbplugins.values import Address
from sidecar.core.model import Ask, Decision, Event, Outcome, Phases, Probed, Result, Target, Tick
from sidecar.core.policy import Policy
from sidecar.core.world import World
from sidecar.journal.codec import Json, decode, encode
from sidecar.journal.recorder import Batch, Gap, Recorder, Segment, digest, read
from sidecar.journal.segments import FORMAT, MAGIC

POLICY = Policy(config_hash="abc")
SNAPSHOT: Json = {"pretend": ["world", {"deep": [1, 2, {"x": None}]}]}
WALL = 1.7e9
MUCH = 64 << 20


def probed(number: int) -> Probed:
    target = Target(Address(f"10.0.0.{number % 250}", 80), "http:/health")
    return Probed(Outcome(target, Result.OK, float(number), number + 0.0123, phases=Phases(first_byte=0.01)))


def noise(number: int, size: int) -> Probed:
    """A fact that does not compress."""
    detail = random.Random(number).randbytes(size // 2).hex()
    return Probed(Outcome(Target(Address("h", 1), "s"), Result.FAIL, float(number), float(number), detail=detail))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def one(max_bytes: int = MUCH, **more: float) -> Recorder:
        made.append(Recorder(tmp_path / "flight", max_bytes, **more))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for each in made:
        each.close(30.0)


def segments(tmp_path: Path) -> list[tuple[Segment, list[Batch | Gap]]]:
    return [(each, list(each.records())) for each in read(tmp_path / "flight")]


def facts_of(records: list[Batch | Gap]) -> list[object]:
    return [fact for each in records if isinstance(each, Batch) for fact in each.facts]


def test_a_segment_stands_alone(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    news = Decision(3.0, events=(Event("ejected", 3.0, "rule:refused", "it refused"),), asks=(Ask(probed(1).outcome.target, 4.0, 0.1),))
    quiet = Decision(4.0, asks=news.asks)
    recorder.begin(SNAPSHOT, POLICY, 1.0, WALL)
    recorder.batch(2.0, [probed(1), Tick(2.0)])
    recorder.batch(3.0, [probed(2)], news)
    recorder.batch(4.0, [], quiet)
    recorder.close()
    recorder.close()

    ((segment, records),) = segments(tmp_path)

    assert (segment.snapshot, segment.policy, segment.fault) == (SNAPSHOT, POLICY, "")
    assert (segment.header.wall, segment.header.monotonic, segment.header.config_hash) == (WALL, 1.0, "abc")
    assert records == [
        Batch(2.0, (probed(1), Tick(2.0))),
        Batch(3.0, (probed(2),), digest(news), Decision(3.0, events=news.events)),
        Batch(4.0, (), digest(quiet)),
    ]
    assert recorder.fault == "" and recorder.dropped == 0


def test_a_snapshot_of_the_world_is_given_back(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    world = World()
    for each in range(300):
        world.absorb(probed(each))
    recorder = make()
    recorder.begin(encode(world, World), POLICY, 1.0, WALL)
    recorder.close()

    ((segment, _),) = segments(tmp_path)

    assert decode(segment.snapshot, World) == world


def test_digests_differ_exactly_when_decisions_do() -> None:
    ask = Ask(probed(1).outcome.target, 4.0, 0.1)

    assert digest(Decision(1.0, asks=(ask,))) == digest(Decision(1.0, asks=(Ask(ask.target, 4.0, 0.1),)))
    assert digest(Decision(1.0, asks=(ask,))) != digest(Decision(1.0))


def test_a_new_segment_is_wanted_first_and_then_by_age(make: Callable[..., Recorder]) -> None:
    recorder = make(segment_s=600.0)
    assert recorder.wants_segment
    recorder.begin(SNAPSHOT, POLICY, 100.0, WALL)
    assert not recorder.wants_segment
    assert recorder.flush(60.0)

    recorder.batch(699.0, [])
    assert not recorder.wants_segment
    recorder.batch(700.0, [])

    assert recorder.wants_segment
    recorder.begin(SNAPSHOT, POLICY, 700.0, WALL + 600.0)
    assert not recorder.wants_segment
    assert recorder.flush(60.0)
    assert not recorder.wants_segment


def test_the_oldest_segments_make_room(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    most = 1 << 20
    recorder = make(most)
    started = 0
    for number in range(600):
        if recorder.wants_segment:
            recorder.begin(SNAPSHOT, POLICY, float(number), WALL + number)
            started += 1
        recorder.batch(float(number), [noise(number, 8000)])
        if number % 10 == 0:
            assert recorder.flush(60.0)
    recorder.close(30.0)

    kept = segments(tmp_path)

    assert sum(each.stat().st_size for each in (tmp_path / "flight").iterdir()) <= most
    assert started > 10
    assert 5 < len(kept) < started
    numbers = [fact.outcome.started for _, records in kept for fact in facts_of(records) if isinstance(fact, Probed)]
    assert numbers == [float(each) for each in range(int(numbers[0]), 600)]
    assert recorder.dropped == 0


def test_what_does_not_fit_is_dropped_at_once_and_the_gap_marked(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make(pending_bytes=100_000)
    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
    assert recorder.flush(60.0)

    for number in range(1000):
        recorder.batch(float(number), [noise(number, 2000), Tick(0.0)])
    assert recorder.flush(60.0)
    assert recorder.dropped > 0
    assert recorder.wants_segment
    recorder.batch(5000.0, [Tick(5000.0)])
    recorder.close(30.0)

    ((_, records),) = segments(tmp_path)
    gaps = [each for each in records if isinstance(each, Gap)]
    batches = [each for each in records if isinstance(each, Batch)]
    assert sum(each.batches for each in gaps) == recorder.dropped == 1001 - len(batches)
    assert sum(each.facts for each in gaps) == 2 * recorder.dropped
    whole = sorted([each.now for each in batches] + [float(n) for each in gaps for n in range(int(each.since), int(each.until) + 1)])
    assert whole == [*map(float, range(1000)), 5000.0]
    assert records[-1] == Batch(5000.0, (Tick(5000.0),))


def test_batches_before_the_first_segment_are_a_gap(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.batch(1.0, [Tick(1.0)])
    recorder.begin(SNAPSHOT, POLICY, 2.0, WALL)
    recorder.batch(3.0, [Tick(3.0)])
    recorder.close()

    assert segments(tmp_path)[0][1] == [Gap(1.0, 1.0, 1, 1), Batch(3.0, (Tick(3.0),))]


def test_a_fact_that_is_none_is_reported_and_not_raised(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)

    recorder.batch(1.0, ["no fact"])  # type: ignore[list-item]
    recorder.batch(2.0, [Tick(2.0)])
    recorder.close()

    assert "could not be recorded" in recorder.fault
    assert segments(tmp_path)[0][1] == [Gap(1.0, 1.0, 1, 1), Batch(2.0, (Tick(2.0),))]


def test_torn_anywhere_what_came_before_is_read(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
    for number in range(4):
        recorder.batch(float(number), [probed(number)])
        assert recorder.flush(60.0)
    recorder.close()
    (path,) = (tmp_path / "flight").iterdir()
    content = path.read_bytes()
    seen = set()

    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        problems: list[str] = []
        found = [(each, list(each.records())) for each in read(tmp_path / "flight", problems=problems)]
        if found:
            ((segment, records),) = found
            assert facts_of(records) == [probed(number) for number in range(len(records))]
            assert bool(segment.fault) == (cut not in ends_of_blocks(content))
            seen.add(len(records))
        else:
            assert problems
    assert seen == set(range(5))


def ends_of_blocks(content: bytes) -> set[int]:
    ends, at = set(), len(MAGIC)
    while at < len(content):
        at += 16 + int.from_bytes(content[at + 4 : at + 8], "little")
        ends.add(at)
    return ends


def test_damage_is_never_read_as_facts(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
    recorder.batch(1.0, [probed(number) for number in range(50)])
    recorder.close()
    (path,) = (tmp_path / "flight").iterdir()
    content = path.read_bytes()
    dice = random.Random(8)

    for _ in range(500):
        damaged = bytearray(content)
        damaged[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        for segment in read(tmp_path / "flight"):
            assert (segment.snapshot, segment.policy) == (SNAPSHOT, POLICY)
            assert facts_of(list(segment.records())) in ([], [probed(number) for number in range(50)])


def test_a_time_span_gives_the_segments_that_touch_it(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    for start in (0, 100, 200):
        recorder.begin({"start": start}, POLICY, 5000.0 + start, WALL + start)
        for each in range(start, start + 100, 10):
            recorder.batch(5000.0 + each, [])
        assert recorder.flush(60.0)
    recorder.close()

    def span(since: float | None, until: float | None) -> list[tuple[object, float]]:
        found = read(tmp_path / "flight", None if since is None else WALL + since, None if until is None else WALL + until)
        return [(each.snapshot["start"], [*each.records()][-1].now - 5000.0) for each in found]  # type: ignore[call-overload,index,union-attr]

    assert span(None, None) == [(0, 90.0), (100, 190.0), (200, 290.0)]
    assert span(150, 155) == [(100, 150.0)]
    assert span(100, None) == [(100, 190.0), (200, 290.0)]
    assert span(None, 99) == [(0, 90.0)]
    assert span(1000, None) == [(200, 290.0)]


def test_files_of_others_and_of_newer_versions_are_named_and_left_out(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder = make()
    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
    recorder.close()
    folder = tmp_path / "flight"
    (folder / "flight-000000007.rec").write_bytes(b"something else")
    (folder / "flight-000000008.rec").write_bytes(b"")
    (folder / "flight-x.rec").write_bytes(b"")
    newer = (folder / "flight-000000001.rec").read_bytes()
    make_newer(folder / "flight-000000009.rec", newer)
    problems: list[str] = []

    found = list(read(folder, problems=problems))

    assert [each.path.name for each in found] == ["flight-000000001.rec"]
    assert [each.split(" is left out")[0] for each in problems] == [f"flight-00000000{each}.rec" for each in (7, 8, 9)]
    assert f"newer lb-sidecar wrote it (format {FORMAT + 1}" in problems[-1]


def make_newer(path: Path, content: bytes) -> None:
    from sidecar.journal.segments import _pack, _unpack

    with (path.parent / "flight-000000001.rec").open("rb") as file:
        file.seek(len(MAGIC))
        header, *rest = _unpack(file)
    header = header.replace(b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1))
    path.write_bytes(MAGIC + b"".join(map(_pack, [header, *rest])))
    assert path.read_bytes() != content


def test_numbers_go_on_over_restarts(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    for _ in range(3):
        recorder = make()
        recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
        recorder.close()

    assert sorted(os.listdir(tmp_path / "flight")) == [f"flight-00000000{each}.rec" for each in (1, 2, 3)]


def test_a_folder_that_cannot_be_is_a_fault_and_nothing_worse(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    (tmp_path / "flight").write_text("in the way")
    recorder = make()

    recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
    for number in range(10):
        recorder.batch(float(number), [probed(number)])
    recorder.close(30.0)

    assert "nothing is recorded" in recorder.fault
    assert recorder.dropped == 10


FULL = """
import resource, sys
from pathlib import Path
from tests.edges.journal.test_recorder import POLICY, SNAPSHOT, WALL, Recorder, noise
from sidecar.journal import segments

segments.RETRY_S = 0.0
folder = Path(sys.argv[1])
recorder = Recorder(folder, 64 << 20)
recorder.begin(SNAPSHOT, POLICY, 0.0, WALL)
recorder.batch(1.0, [noise(1, 1000)])
assert recorder.flush(60.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for number in range(2, 40):
    recorder.batch(float(number), [noise(number, 2000)])
assert recorder.flush(60.0)
print("fault:", recorder.fault)
assert recorder.wants_segment
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.batch(50.0, [])
recorder.begin(SNAPSHOT, POLICY, 51.0, WALL + 51.0)
recorder.batch(52.0, [])
recorder.close(60.0)
print("after:", recorder.fault, recorder.dropped)
"""


def test_a_full_disk_is_a_fault_that_heals_and_leaves_a_marked_gap(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "flight")], capture_output=True, text=True, timeout=100, check=False, cwd=Path.cwd()
    )

    assert done.returncode == 0, done.stderr
    assert "fault: nothing is recorded" in done.stdout
    assert "free space there" in done.stdout
    assert "after:  39" in done.stdout
    (first, before), (second, after) = segments(tmp_path)
    assert (first.fault, second.fault) == ("", "")
    assert [type(each) for each in before] == [Batch]
    assert after == [Gap(2.0, 50.0, 39, 38), Batch(52.0, ())]


class Hanging(dict[str, Json]):
    """A snapshot at which the writing thread hangs until it is let go, as it would at a dead disk."""

    def __init__(self) -> None:
        super().__init__(world={})
        self.is_reached, self.may_go = threading.Event(), threading.Event()

    def items(self) -> ItemsView[str, Json]:  # type: ignore[override]  # dict's own view cannot be named
        self.is_reached.set()
        self.may_go.wait(60.0)
        return super().items()


def test_a_caller_never_waits_for_a_thread_that_hangs(tmp_path: Path, make: Callable[..., Recorder]) -> None:
    recorder, hanging = make(pending_bytes=50_000), Hanging()
    recorder.begin(hanging, POLICY, 0.0, WALL)
    assert hanging.is_reached.wait(60.0)

    for number in range(1, 501):
        recorder.batch(float(number), [noise(number, 2000)])
        if number % 100 == 0:
            recorder.begin(SNAPSHOT, POLICY, number + 0.5, WALL + number)
    assert not recorder.flush(0.0)
    recorder.close(timeout_s=0.0)
    hanging.may_go.set()
    recorder.close(60.0)

    (_, lost), (_, after) = segments(tmp_path)
    assert lost == []
    assert recorder.dropped == 500
    assert after == [Gap(1.0, 500.0, 500, 500)]
