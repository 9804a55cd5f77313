"""Good answers are written as columns of numbers, and come back as the facts they were, among the others and in their order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Decision, Event, Fact, Outcome, Phases, Probed, Reason, Result, Target, Tick
from sidecar.core.policy import Policy
from sidecar.journal.codec import dumps, encode
from sidecar.journal.columns import Columns, Names, rows
from sidecar.journal.recorder import Recorder
from sidecar.journal.segments import MAGIC, Batch, Gap, Header, _pack, read

TARGETS = [Target(Address(f"10.0.0.{i}", 80), "http:/health") for i in range(5)]
SECONDS = st.floats(0, 1e9)
MAYBE = st.none() | SECONDS


@st.composite
def answers(draw: st.DrawFn) -> Probed:
    begun, over = draw(SECONDS), draw(SECONDS)
    first_byte = draw(st.just(over - begun) | MAYBE)
    phases = Phases(draw(st.none() | MAYBE), draw(MAYBE), draw(st.none() | MAYBE), first_byte)
    result, reason = draw(st.just((Result.OK, None)) | st.just((Result.FAIL, Reason.STATUS)) | st.just((Result.OK, Reason.BODY)))
    words = st.just("") | st.text(max_size=3)
    return Probed(
        Outcome(draw(st.sampled_from(TARGETS)), result, begun, over, reason, draw(words), phases, draw(st.booleans()), draw(words))
    )


FACTS = st.lists(answers() | st.builds(Tick, SECONDS), max_size=12)


@settings(deadline=None)
@given(st.lists(FACTS, max_size=4))
def test_facts_come_back_as_they_were(batches: list[list[Fact]]) -> None:
    columns, names = Columns(), Names()
    left = [columns.take(batch, names) for batch in batches]

    found = rows(columns.to_bytes(), names.order)

    for batch, packed in zip(batches, left, strict=True):
        again: list[Fact] = []
        for each in packed:
            again += [next(found) for _ in range(each)] if isinstance(each, int) else [each]
        assert again == batch
        assert repr(again) == repr(batch)
    assert next(found, None) is None


def test_good_answers_leave_nothing_but_their_number() -> None:
    kept = Outcome(TARGETS[0], Result.OK, 5.0, 5.25, phases=Phases(first_byte=0.25), fresh=False)
    fresh = Outcome(TARGETS[1], Result.OK, 5.0, 5.25, phases=Phases(connect=0.125, first_byte=0.0625))
    bad = Outcome(TARGETS[2], Result.FAIL, 5.0, 5.25, Reason.REFUSED)

    left = Columns().take([Probed(kept), Probed(fresh), Probed(bad), Probed(kept)], Names())

    assert left == [2, Probed(bad), 1]


def test_rows_that_were_taken_back_are_gone() -> None:
    columns, names = Columns(), Names()
    columns.take([probed(1)], names)
    before = columns.sizes
    columns.take([probed(2), probed(3)], names)

    columns.cut(before)

    assert list(rows(columns.to_bytes(), names.order)) == [probed(1)]


@pytest.mark.parametrize("spoil", [lambda data: data[:4], lambda data: data[:-1], lambda data: data + b"x"])
def test_columns_that_do_not_fit_are_refused(spoil: object) -> None:
    columns, names = Columns(), Names()
    columns.take([probed(1)], names)

    with pytest.raises(ValueError, match=r"columns|rows"):
        list(rows(spoil(columns.to_bytes()), names.order))  # type: ignore[operator]  # one of the lambdas above
    with pytest.raises(ValueError, match="target 0 of 0"):
        list(rows(columns.to_bytes(), []))


def test_a_block_that_was_lost_takes_no_names_with_it(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 64 << 20, pending_bytes=100)
    recorder.begin({}, Policy(), 0.0, 1e9)
    assert recorder.flush(60.0)
    recorder.batch(1.0, [probed(number) for number in range(20)])
    assert recorder.dropped == 1

    recorder.batch(2.0, [probed(3)])
    recorder.close()

    [segment] = read(tmp_path)
    assert list(segment.records()) == [Gap(1.0, 1.0, 1, 20), Batch(2.0, (probed(3),))]
    assert segment.fault == ""


def test_a_segment_of_the_first_format_is_read(tmp_path: Path) -> None:
    news = Decision(3.0, events=(Event("ejected", 3.0, "rule:refused", "it refused"),))
    old = [Batch(1.0, (probed(1), Tick(1.0))), Gap(1.5, 2.0, 1, 7), Batch(3.0, (probed(2),), "0123456789abcdef", news)]
    head = [dumps(encode(Header(1, 1e9, 0.5, "abc"), Header)), dumps({"a": "snapshot"}), dumps(encode(Policy(), Policy))]
    lines = b"".join(dumps(encode(each, Batch | Gap)) + b"\n" for each in old)
    (tmp_path / "flight-000000001.rec").write_bytes(MAGIC + b"".join(map(_pack, [*head, lines])))

    [segment] = read(tmp_path)

    assert list(segment.records()) == old
    assert (segment.fault, segment.snapshot) == ("", {"a": "snapshot"})


def probed(number: int) -> Probed:
    target = Target(Address(f"10.0.0.{number}", 80), "http:/health")
    return Probed(Outcome(target, Result.OK, float(number), number + 0.25, phases=Phases(first_byte=0.25), fresh=False))
