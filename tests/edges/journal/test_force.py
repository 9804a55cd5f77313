"""What a row of intents amounts to, in this boot and after another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Operator
from sidecar.core.model import Act, Adopted, Freeze, Intent
from sidecar.journal.force import InForce, Stored, fold
from tests.edges.journal.test_intents import BOOT, ONE, S1, S2, TWO, ejected, forgotten, frozen, overridden, returned

NOW, BOOTTIME, WALL = 500.0, 2000.0, 1.7e9


def stored(*intents: Intent, boot_id: str = BOOT, boottime: float = 1000.0) -> list[Stored]:
    return [Stored(each, boottime, boot_id, WALL) for each in intents]


def adopt(rows: list[Stored], wall: float | None = None) -> Adopted:
    return fold(rows, NOW, BOOTTIME, BOOT, wall)


def cleared(owner: str) -> Intent:
    return replace(overridden(owner, Operator.READY), act=Act.CLEAR)


def unfrozen(service: str) -> Intent:
    return replace(frozen(service), act=Act.UNFREEZE)


def hands_off(until: float | None, at: float = 10.0) -> Intent:
    return Intent(Act.HANDS_OFF, at, "outside", "made ready by hand", ONE, until=until)


def test_nothing_is_nothing() -> None:
    assert adopt([]) == Adopted(NOW, notes={}, hands_off={})


def test_an_ejection_stands_until_it_is_forgotten() -> None:
    assert adopt(stored(ejected())).ejections == (ejected().ejection,)
    assert [each.returning for each in adopt(stored(ejected(), returned())).ejections] == [True]
    assert adopt(stored(ejected(), returned(), forgotten())).ejections == ()
    assert adopt(stored(ejected(), forgotten(), ejected(at=40.0))).ejections == (ejected(at=40.0).ejection,)


def test_a_new_ejection_ends_a_return() -> None:
    assert [each.returning for each in adopt(stored(ejected(), returned(), ejected(at=40.0))).ejections] == [False]


def test_a_return_keeps_the_notes_that_a_crash_would_need() -> None:
    noted = ejected(notes=((S1, "weight 7"), (S2, "weight 3")))

    assert adopt(stored(noted, returned())).notes == {S1: "weight 7", S2: "weight 3"}
    assert adopt(stored(noted, replace(returned(), notes=((S1, "weight 8"), (S2, ""))))).notes == {S1: "weight 8"}
    assert adopt(stored(noted, returned(), forgotten())).notes == {}


def test_forgetting_one_instance_leaves_the_notes_of_others() -> None:
    rows = stored(ejected(notes=((S1, "a"),)), ejected(TWO, notes=((S2, "b"),)), forgotten())

    assert adopt(rows).notes == {S2: "b"}


def test_overrides_are_per_owner() -> None:
    rows = stored(overridden("kim", Operator.DRAINING), overridden("ci", Operator.MAINTENANCE), cleared("ci"))

    assert [(each.owner, each.state) for each in adopt(rows).overrides] == [("kim", Operator.DRAINING)]


def test_freezes_are_per_service() -> None:
    assert [each.service for each in adopt(stored(frozen("shop"), frozen(""), unfrozen("shop"))).freezes] == [""]


def test_hands_off_holds_until_its_end_and_lets_the_ejection_go() -> None:
    adopted = adopt(stored(ejected(), hands_off(until=900.0)))

    assert adopted.hands_off == {ONE: 900.0}
    assert [each.returning for each in adopted.ejections] == [True]
    assert adopt(stored(hands_off(until=499.0))).hands_off == {}
    assert adopt(stored(hands_off(until=None))).hands_off == {ONE: math.inf}


def test_a_freeze_that_is_over_is_not_adopted() -> None:
    assert adopt(stored(frozen("shop", until=500.0))) == adopt([])


def test_an_override_that_is_over_is_adopted_as_such_until_it_is_cleared() -> None:
    rows = stored(overridden("kim", Operator.DRAINING, until=499.0))

    assert [(each.owner, each.until) for each in adopt(rows).overrides] == [("kim", 499.0)]
    assert adopt([*rows, *stored(cleared("kim"))]).overrides == ()


OTHER_LIVES = {
    "another boot": stored(ejected(notes=((S1, "w 7"),)), boot_id="boot-b"),
    "boottime went back": stored(ejected(notes=((S1, "w 7"),)), boottime=BOOTTIME + 1.0),
    "monotonic went back": stored(ejected(at=NOW + 1.0, notes=((S1, "w 7"),))),
}


@pytest.mark.parametrize("rows", OTHER_LIVES.values(), ids=OTHER_LIVES)
def test_an_ejection_of_another_life_has_expired_but_is_given_back_and_not_orphaned(rows: list[Stored]) -> None:
    adopted = adopt(rows)

    assert [(each.instance, each.returning, each.at, each.until) for each in adopted.ejections] == [(ONE, True, NOW, NOW)]
    assert adopted.notes == {S1: "w 7"}


@pytest.mark.parametrize(("passed", "left"), [(None, 90.0), (0.0, 90.0), (30.0, 60.0), (-1e7, 90.0), (1e7, None)])
def test_words_of_another_boot_keep_the_time_they_had_left(passed: float | None, left: float | None) -> None:
    rows = stored(
        overridden("kim", Operator.MAINTENANCE, at=10.0, until=100.0),
        frozen("shop", at=10.0, until=100.0),
        hands_off(100.0, at=10.0),
        boot_id="boot-b",
    )

    adopted = adopt(rows, None if passed is None else WALL + passed)

    ends = [*(each.until for each in adopted.freezes), *(adopted.hands_off or {}).values()]
    assert ends == ([] if left is None else [NOW + left] * 2)
    assert [each.until for each in adopted.overrides] == [NOW + (left or 0.0)], "what is over is adopted too: somebody must undo it"
    assert {each.at for each in adopted.overrides} | {each.at for each in adopted.freezes} <= {NOW}


def test_words_without_an_end_hold_over_boots() -> None:
    rows = stored(overridden("kim", Operator.MAINTENANCE), frozen(""), boot_id="boot-b")

    adopted = adopt(rows, WALL + 1e9)

    assert [each.until for each in adopted.overrides] == [None]
    assert [each.until for each in adopted.freezes] == [None]


def test_hands_off_of_long_ago_is_let_go_in_time() -> None:
    force = InForce()
    force.take(stored(hands_off(until=50.0))[0])

    force.take(stored(replace(hands_off(until=950.0, at=60.0), instance=TWO))[0])

    assert list(force.hands_off) == [TWO]


notes = st.lists(st.tuples(st.sampled_from([S1, S2]), st.sampled_from(["", "a", "b"])), max_size=2).map(tuple)
acts = st.one_of(
    st.builds(lambda i, at, n: ejected(i, at, notes=n), st.sampled_from([ONE, TWO]), st.floats(0, 400), notes),
    st.builds(lambda i, n: replace(returned(i), notes=n), st.sampled_from([ONE, TWO]), notes),
    st.builds(forgotten, st.sampled_from([ONE, TWO])),
    st.builds(lambda o, s, n: replace(overridden(o, s), notes=n), st.sampled_from("ab"), st.sampled_from(list(Operator)), notes),
    st.builds(lambda o, n: replace(cleared(o), notes=n), st.sampled_from("ab"), notes),
    st.builds(frozen, st.sampled_from(["", "shop"])),
    st.builds(unfrozen, st.sampled_from(["", "shop"])),
    st.builds(lambda until, n: replace(hands_off(until), notes=n), st.sampled_from([None, 400.0, 900.0]), notes),
    st.just(Intent(Act.EJECT, 10.0, "?", "says nothing")),
    st.just(Intent(Act.UNFREEZE, 10.0, "?", "all", freeze=Freeze("", "?", 1.0))),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(acts, st.sampled_from([BOOT, "boot-b"])), max_size=14), st.integers(0, 14))
def test_keeping_only_what_is_in_force_loses_nothing(rows: list[tuple[Intent, str]], cut: int) -> None:
    all_of_it = [Stored(intent, 1000.0, boot_id, WALL + at) for at, (intent, boot_id) in enumerate(rows)]
    force = InForce()
    for each in all_of_it[:cut]:
        force.take(each)
    kept = force.records()

    assert len(kept) <= min(cut, len(all_of_it))
    assert adopt(kept + all_of_it[cut:]) == adopt(all_of_it)
    assert fold(kept, NOW, BOOTTIME, "boot-b") == fold(all_of_it[:cut], NOW, BOOTTIME, "boot-b")
