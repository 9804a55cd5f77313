"""A picture is written as its difference to the last one, and read back whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.values import Operator, Ref, Seen
from sidecar.core.model import Pictured, Tick
from sidecar.core.policy import Policy
from sidecar.journal.pictures import Pictures, Repictured
from sidecar.journal.recorder import Recorder
from sidecar.journal.segments import Batch, Gap, read

SERVERS = st.none() | st.dictionaries(
    st.builds(Ref, st.just("shop"), st.sampled_from("abc")), st.builds(Seen, weight=st.integers(1, 2), in_flight=st.integers(0, 1))
)
PICTURES = st.builds(Pictured, st.sampled_from(["edge", "web"]), st.floats(0, 9), SERVERS, error=st.sampled_from(["", "away"]))


@settings(deadline=None)
@given(st.lists(PICTURES, max_size=12))
def test_pictures_come_back_as_they_were(shown: list[Pictured]) -> None:
    writer, reader = Pictures(), Pictures()

    again = [reader.unpacked(writer.packed(each)) for each in shown]

    assert again == shown
    assert [list(each.servers or ()) for each in again] == [list(each.servers or ()) for each in shown]


def picture(at: float, **changed: Seen) -> Pictured:
    return Pictured("edge", at, {Ref("shop", name): changed.get(name, Seen()) for name in "abc"}, frozenset({"shop"}))


def test_only_what_changed_is_written() -> None:
    pictures = Pictures()
    pictures.packed(picture(1.0))
    drained = Seen(operator=Operator.DRAINING)

    packed = pictures.packed(picture(2.0, b=drained))

    assert packed == Repictured(Pictured("edge", 2.0, None, frozenset({"shop"})), {Ref("shop", "b"): drained})


def test_a_difference_to_a_picture_that_nobody_has_is_refused() -> None:
    with pytest.raises(ValueError, match="difference to nothing"):
        Pictures().unpacked(Repictured(picture(1.0), {}))


def test_each_segment_and_what_follows_a_gap_begins_with_a_whole_picture(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 64 << 20, pending_bytes=3000)
    for start in (0.0, 100.0):
        recorder.begin({}, Policy(), start, 1e9 + start)
        for at in range(3):
            recorder.batch(start + at, [picture(start + at)])
            assert recorder.flush(60.0)
    recorder.batch(200.0, [picture(200.0, a=Seen(weight=9)), *(Tick(float(each)) for each in range(999))])
    assert recorder.dropped == 1
    recorder.batch(300.0, [picture(300.0, a=Seen(weight=9))])
    recorder.close()

    first, second = ([*segment.records()] for segment in read(tmp_path))

    assert first == [Batch(at, (picture(at),)) for at in (0.0, 1.0, 2.0)]
    assert second[:3] == [Batch(at, (picture(at),)) for at in (100.0, 101.0, 102.0)]
    assert second[3:] == [Gap(200.0, 200.0, 1, 1000), Batch(300.0, (picture(300.0, a=Seen(weight=9)),))]
