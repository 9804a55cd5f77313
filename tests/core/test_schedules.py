"""Hundreds of random schedules keep every promise; each of these mutants of the core is caught, so that the silence means something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lbplugins.values import Operator
from sidecar.core import acts, decide, guard, known, membership, pace, plan, streak
from sidecar.core.known import InstanceState
from sidecar.core.model import Act, Ask, Hold, HoldName, Outcome, Reason, Result, Target
from sidecar.core.policy import Rules
from sidecar.core.streak import Streak
from sidecar.core.world import World
from tests.core import site
from tests.core.schedules import Violation, run, told
from tests.core.shrink import shrunk

ROOT = Path(__file__).parents[2]
SEEDS = 240
CHUNK = 20
PATIENCE = 150
"""So many schedules a mutant may survive."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_over_random_schedules(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            run(seed)
        except Violation:
            pytest.fail(told(seed), pytrace=False)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_story_byte_for_byte_in_any_process() -> None:
    here = ["\n".join(run(seed).story) for seed in (3, 17, 92)]
    script = "from tests.core.schedules import run\nfor seed in (3, 17, 92): print('\\n'.join(run(seed).story), end='\\0')"

    for hash_seed in ("0", "4242"):
        there = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        )
        assert there.stdout.decode().split("\0")[:-1] == here


@pytest.mark.slow
def test_a_schedule_that_fails_is_shrunk_to_what_it_needs_and_told_in_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    no_last_look_before_the_write(monkeypatch)
    insist = ("forgets", "own_check")
    seed, _ = killed_by((35, *range(PATIENCE)), insist) or pytest.fail("the mutant lives")

    story = told(seed, insist)

    lines = story.splitlines()
    assert len(lines) <= 30 and lines[0].startswith(f"seed {seed}: floor: ")
    faults = [line for line in lines if "* " in line]
    assert 0 < len(faults) < 12
    monkeypatch.undo()
    assert told(seed, insist) == "", "the right core keeps its promises"


def test_what_is_not_needed_is_left_out_and_what_is_stays() -> None:
    tried = []

    def fails(parts: Sequence[int]) -> bool:
        tried.append(parts)
        return {3, 17} <= set(parts)

    assert shrunk(range(40), fails) == (3, 17) and len(tried) < 100


# ---- mutants ----

Mutant = Callable[[pytest.MonkeyPatch], None]


def half_is_not_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard, "budget", lambda n, strength, guards: n)


def no_last_look_before_the_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard, "against_leaving", lambda *args: None)


def what_is_on_its_way_does_not_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(known.Sent, "is_settled", property(lambda self: True))


def nobody_need_testify(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard.Testimony, "of", lambda self, accused, check: (Target(accused.address, site.SPEC),))


def unknown_counts_as_failure(patch: pytest.MonkeyPatch) -> None:
    right = streak.step

    def step(check: Streak, outcome: Outcome, rules: Rules) -> None:
        if outcome.result is Result.UNKNOWN:
            outcome = replace(outcome, result=Result.FAIL, reason=Reason.TIMEOUT)
        right(check, outcome, rules)

    patch.setattr(streak, "step", step)


def one_failure_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(streak, "_complete", lambda check, at, rules: "consecutive")


def a_new_life_keeps_old_evidence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(streak, "clear", lambda check, now: None)


def nothing_is_ever_frozen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "freeze_of", lambda self, service, now: None)


def written_before_it_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    right = World.settle

    def settle(self: World, decision: Any) -> None:
        right(self, decision)
        for intent in decision.intents:
            acts.take_intent(self, intent, decision.at)
            if intent.instance is not None and (state := self.state_of(intent.instance)) is not None:
                state.proposed = ()

    patch.setattr(World, "settle", settle)


def taken_out_whatever_others_say(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "_may_leave", lambda *args: True)


def an_operators_word_is_overwritten(patch: pytest.MonkeyPatch) -> None:
    right = plan._on_operators_axis

    def trample(balancer: Any, ref: Any, wanted: Operator, who: str, now: float) -> Any:
        if (seen := balancer.seen.get(ref)) is not None and seen.operator is not wanted:
            balancer.said[ref] = seen.operator
        return right(balancer, ref, wanted, who, now)

    patch.setattr(plan, "_on_operators_axis", trample)


def hands_are_never_off(patch: pytest.MonkeyPatch) -> None:
    right = guard.not_ours_to_act

    def grab(world: World, state: InstanceState, now: float) -> list[Hold]:
        return [hold for hold in right(world, state, now) if hold.name is not HoldName.HANDS_OFF]

    patch.setattr(guard, "not_ours_to_act", grab)


def an_operators_maintenance_is_no_hold(patch: pytest.MonkeyPatch) -> None:
    right = guard.not_ours_to_act

    def grab(world: World, state: InstanceState, now: float) -> list[Hold]:
        return [hold for hold in right(world, state, now) if hold.name is not HoldName.OPERATOR]

    patch.setattr(guard, "not_ours_to_act", grab)


def forgotten_before_it_is_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide._Turn, "_nothing_left", lambda self, state, ejection: ejection.returning)


def forgotten_while_something_is_on_its_way(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide._Turn, "_has_looked", lambda self, name, since: True)
    patch.setattr(plan, "_is_contradicted", lambda sent, want: False)


def nothing_is_adopted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "_adopted", lambda self, fact: ())


def no_word_is_reclaimed_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    right = membership.join

    def join(world: Any, service: Any, instance: Any, source: str, at: float) -> None:
        right(world, service, instance, source, at)
        service.instances[instance].unclaimed = frozenset()

    patch.setattr(membership, "join", join)


def words_are_struck_at_once(patch: pytest.MonkeyPatch) -> None:
    def end(self: Any, override: Any, state: InstanceState, by: str, why: str) -> None:
        self._intend(Act.CLEAR, by, why, state, override=override)

    patch.setattr(decide._Turn, "_end", end)


def two_may_write(patch: pytest.MonkeyPatch) -> None:
    right = plan._may_write

    def may_write(world: World, policy: Any, name: str) -> bool:
        world.standby = {}
        return right(world, policy, name)

    patch.setattr(plan, "_may_write", may_write)


def an_address_is_as_good_as_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "is_at", lambda seen, instance: True)


def nobody_comes_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guard, "has_risen", lambda state, policy: False)


def nobody_fails_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide._Turn, "_fail_open", lambda self, service, policy: None)


def blind_is_no_hold(patch: pytest.MonkeyPatch) -> None:
    right = guard._we_ourselves

    def see(*args: Any) -> list[Hold]:
        return [hold for hold in right(*args) if hold.name is not HoldName.BLIND]

    patch.setattr(guard, "_we_ourselves", see)


def a_full_disk_is_no_hold(patch: pytest.MonkeyPatch) -> None:
    right = guard._we_ourselves

    def write(*args: Any) -> list[Hold]:
        return [hold for hold in right(*args) if hold.name is not HoldName.JOURNAL]

    patch.setattr(guard, "_we_ourselves", write)


def decided_and_written_in_one_turn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide, "plan", lambda world, policy, now, services, undecided: plan.plan(world, policy, now, services))


def returned_at_the_first_chance_of_others(patch: pytest.MonkeyPatch) -> None:
    """What others had out before us is made ours, and given back."""
    patch.setattr(guard, "_out_by_others", lambda world, state: "")
    patch.setattr(decide._Turn, "_out_by_others", lambda self, state: ())
    patch.setattr(acts, "_is_out_at", lambda world, server: False)


def the_suspect_is_asked_no_more(patch: pytest.MonkeyPatch) -> None:
    right = pace._next

    def ask(world: World, target: Any, now: float) -> Ask:
        return replace(right(world, target, now), at=now + 60.0) if target.bad_run else right(world, target, now)

    patch.setattr(pace, "_next", ask)


MUTANTS: dict[Mutant, tuple[int, tuple[str, ...]]] = {
    half_is_not_enough: (7, ()),
    no_last_look_before_the_write: (35, ("forgets", "own_check")),
    what_is_on_its_way_does_not_count: (40, ("slow",)),
    nobody_need_testify: (0, ()),
    unknown_counts_as_failure: (9, ()),
    one_failure_is_enough: (0, ()),
    a_new_life_keeps_old_evidence: (75, ()),
    nothing_is_ever_frozen: (5, ()),
    written_before_it_is_on_disk: (12, ()),
    taken_out_whatever_others_say: (29, ()),
    an_operators_word_is_overwritten: (0, ()),
    hands_are_never_off: (16, ()),
    an_operators_maintenance_is_no_hold: (15, ()),
    forgotten_before_it_is_undone: (7, ()),
    forgotten_while_something_is_on_its_way: (29, ()),
    nothing_is_adopted: (1, ()),
    no_word_is_reclaimed_after_a_restart: (1, ()),
    words_are_struck_at_once: (48, ("override", "crash", "clear")),
    two_may_write: (5, ()),
    an_address_is_as_good_as_another: (37, ("move", "slow_disk")),
    nobody_comes_back: (7, ()),
    nobody_fails_open: (22, ("dusk",)),
    blind_is_no_hold: (32, ()),
    a_full_disk_is_no_hold: (5, ()),
    decided_and_written_in_one_turn: (122, ()),
    returned_at_the_first_chance_of_others: (64, ()),
    the_suspect_is_asked_no_more: (0, ()),
}
"""For each a schedule that is likely to catch it, and the kinds of fault that must be frequent for its mistake to matter."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_killed_by_a_schedule_that_the_right_core_survives(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    likely, insist = MUTANTS[mutant]
    mutant(monkeypatch)

    killed = killed_by((likely, *range(PATIENCE)), insist)

    monkeypatch.undo()
    assert killed is not None
    assert killed_by((killed[0],), insist) is None


def killed_by(seeds: Iterable[int], insist: tuple[str, ...] = ()) -> tuple[int, str] | None:
    """The first of these seeds that breaks a promise, and which."""
    for seed in seeds:
        try:
            run(seed, insist)
        except Violation as violation:
            return seed, violation.promise
    return None
