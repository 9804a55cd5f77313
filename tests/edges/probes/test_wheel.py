"""The wheel gives everything back in the order of its slots, once; the tick gathers what is calm and nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.probes.wheel import GRAINS, PER_S, Deadlines, Tick, Wheel

ACTS = st.lists(st.tuples(st.sampled_from(["put", "drop", "take"]), st.integers(0, 9), st.integers(0, 30)), max_size=60)


@settings(max_examples=300)
@given(ACTS)
def test_wheel_holds_what_a_plain_list_would(acts: list[tuple[str, int, int]]) -> None:
    wheel: Wheel[int] = Wheel()
    model: dict[int, int] = {}
    for act, thing, slot in acts:
        if act == "put" and thing not in model:
            wheel.put(thing, slot)
            model[thing] = slot
        elif act == "drop" and thing in model:
            wheel.drop(thing, model.pop(thing))
        elif act == "take":
            taken = wheel.take(slot, thing)
            due = sorted((at, each) for each, at in model.items() if at <= slot)
            assert [model.pop(each) for each in taken] == [at for at, _ in due[:thing]]
        assert wheel.first() == min(model.values(), default=None)


def test_dropping_what_is_not_there_is_nothing() -> None:
    wheel: Wheel[str] = Wheel()
    wheel.put("a", 5)

    wheel.drop("b", 5)
    wheel.drop("a", 6)

    assert wheel.take(5, 9) == ["a"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["put", "end", "pop"]), st.integers(0, 9), st.integers(0, 30)), max_size=60))
def test_deadlines_are_those_of_who_still_waits(acts: list[tuple[str, int, int]]) -> None:
    waiting: dict[int, int] = {}
    deadlines: Deadlines[int] = Deadlines(lambda thing, slot: waiting.get(thing) == slot)
    for act, thing, slot in acts:
        if act == "put":
            waiting[thing] = slot
            deadlines.put(thing, slot)
        elif act == "end":
            waiting.pop(thing, None)
        elif (taken := deadlines.pop(slot)) is not None:
            earliest = min(waiting.values())
            assert waiting.pop(taken) == earliest
        else:
            assert all(at > slot for at in waiting.values())
        assert deadlines.first() == min(waiting.values(), default=None)


def test_wheel_does_not_grow_by_what_is_moved() -> None:
    wheel: Wheel[str] = Wheel()
    for slot in range(10_000):
        wheel.put("a", slot)
        wheel.drop("a", slot)

    assert len(wheel) < 200


def _at_rate(rate: float) -> Tick:
    tick = Tick(100.0)
    tick.count(int(rate * 2), 102.0)
    return tick


@given(st.floats(0.0, 1e6), st.floats(0.0, 30.0), st.sampled_from([0, 50, 500, 3000, 10_000]))
def test_slot_is_at_most_a_twentieth_of_the_wait_away(now: float, wait: float, rate: int) -> None:
    at = now + wait

    slot = _at_rate(rate).slot(at, now)

    off = slot / PER_S - at
    assert -max(0.001, wait / 40) <= off + 1e-6
    assert off <= max(0.001, wait / 40) + 1e-6


def test_what_is_due_now_or_soon_is_never_gathered() -> None:
    busy = _at_rate(1000)

    assert busy.slot(49.0, 50.0) == 49_000
    assert busy.slot(50.0201, 50.0) == 50_021


def test_tick_is_coarse_where_wake_ups_are_what_costs() -> None:
    slots = {rate: {_at_rate(rate).slot(50.0 + n / 1000, 40.0) for n in range(100)} for rate in (50, 1000, 3000, 20_000)}

    assert {rate: len(found) for rate, found in slots.items()} == {50: 100, 1000: 3, 3000: 21, 20_000: 51}
    assert [least for least, _ in GRAINS] == sorted((least for least, _ in GRAINS), reverse=True)
