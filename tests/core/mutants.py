"""Mistakes planted in the core, one at a time: each must be found by schedules that the right core survives.

    python -m tests.core.mutants --patience 1000

Some are of an outsider, who had not seen what the schedules do.
"""

from __future__ import annotations
import __future__

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from statistics import median
from typing import Any

import pytest

from lbplugins.values import Operator
from sidecar.core import acts, decide, guard, known, membership, pace, pictures, plan, streak
from sidecar.core.known import InstanceState
from sidecar.core.model import Act, Ask, Hold, HoldName, Outcome, Reason, Result, Target
from sidecar.core.policy import Rules
from sidecar.core.streak import Streak
from sidecar.core.world import World
from tests.core import site
from tests.core.schedules import Violation, run

Mutant = Callable[[pytest.MonkeyPatch], None]


def swapped(owner: Any, name: str, right: str, wrong: str) -> Mutant:
    """A mutant with one piece of the source of a function, or of a class's method, exchanged."""

    def mutant(patch: pytest.MonkeyPatch) -> None:
        function = inspect.unwrap(vars(owner)[name])
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(right) == 1, f"{name} has {source.count(right)} of {right!r}: plant the mistake anew"
        found: dict[str, Any] = {}
        code = compile(source.replace(right, wrong), f"<mutant of {name}>", "exec", __future__.annotations.compiler_flag)
        exec(code, function.__globals__, found)
        patch.setattr(owner, name, found[name])

    return mutant


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


@dataclass(frozen=True, slots=True)
class Killing:
    """How a mutant is planted and found: kinds of fault that must be frequent for its mistake to matter, a schedule that is likely to."""

    plant: Mutant
    likely: int = 0
    insist: tuple[str, ...] = ()


MUTANTS: dict[str, Killing] = {
    "half_is_not_enough": Killing(half_is_not_enough, 3),
    "no_last_look_before_the_write": Killing(no_last_look_before_the_write, 40, ("forgets", "own_check")),
    "what_is_on_its_way_does_not_count": Killing(what_is_on_its_way_does_not_count, 29, ("slow",)),
    "nobody_need_testify": Killing(nobody_need_testify, 0),
    "unknown_counts_as_failure": Killing(unknown_counts_as_failure, 9),
    "one_failure_is_enough": Killing(one_failure_is_enough, 0),
    "a_new_life_keeps_old_evidence": Killing(a_new_life_keeps_old_evidence, 5, ("pause", "sick")),
    "nothing_is_ever_frozen": Killing(nothing_is_ever_frozen, 0),
    "written_before_it_is_on_disk": Killing(written_before_it_is_on_disk, 3),
    "taken_out_whatever_others_say": Killing(taken_out_whatever_others_say, 29),
    "an_operators_word_is_overwritten": Killing(an_operators_word_is_overwritten, 3),
    "hands_are_never_off": Killing(hands_are_never_off, 16),
    "an_operators_maintenance_is_no_hold": Killing(an_operators_maintenance_is_no_hold, 3),
    "forgotten_before_it_is_undone": Killing(forgotten_before_it_is_undone, 3),
    "forgotten_while_something_is_on_its_way": Killing(forgotten_while_something_is_on_its_way, 29),
    "nothing_is_adopted": Killing(nothing_is_adopted, 3),
    "no_word_is_reclaimed_after_a_restart": Killing(no_word_is_reclaimed_after_a_restart, 23),
    "words_are_struck_at_once": Killing(words_are_struck_at_once, 1, ("override", "crash", "clear")),
    "two_may_write": Killing(two_may_write, 9),
    "nobody_comes_back": Killing(nobody_comes_back, 25),
    "nobody_fails_open": Killing(nobody_fails_open, 98, ("dusk",)),
    "blind_is_no_hold": Killing(blind_is_no_hold, 32),
    "a_full_disk_is_no_hold": Killing(a_full_disk_is_no_hold, 4),
    "decided_and_written_in_one_turn": Killing(decided_and_written_in_one_turn, 12, ("slow_disk", "well")),
    "returned_at_the_first_chance_of_others": Killing(returned_at_the_first_chance_of_others, 4, ("hand_ours", "sick")),
    "the_suspect_is_asked_no_more": Killing(the_suspect_is_asked_no_more, 0),
    # ---- an outsider's ----
    "one_more_than_the_budget": Killing(swapped(guard, "over_budget", "if out > most:", "if out > most + 1:"), 36),
    "anybody_may_testify": Killing(
        swapped(guard.Testimony, "_may_testify", "return target.failed_at", "return True or target.failed_at"), 25
    ),
    "withdrawn_while_on_its_way": Killing(swapped(decide._Turn, "_withdrawn", "or (sent is not None and _may_be_out(sent))", ""), 62),
    "a_good_answer_leaves_the_fast_run": Killing(swapped(streak, "step", "streak.bad_run = streak.fast_run = 0", "streak.bad_run = 0"), 10),
    "a_pause_voids_nothing": Killing(swapped(World, "_resumed", "streaks.clear(check, fact.at)", "pass"), 5, ("pause", "sick")),
    "what_others_had_out_is_forgotten": Killing(
        swapped(acts, "_ejected", "replace(intent.ejection, others=others)", "replace(intent.ejection, others=())"),
        12,
        ("hand_ours", "sick"),
    ),
    "made_ready_by_hand_and_taken_out_again": Killing(swapped(pictures, "_undone", "state.is_out_by_us", "False"), 78),
    "a_word_outlasts_the_process_that_had_it": Killing(
        swapped(
            pictures,
            "_compare_said",
            "    elif seen.operator is Operator.READY:\n        del balancer.said[ref]\n",
            "",
        ),
        1,
        ("override", "forgets", "standby"),
    ),
    "a_lost_witness_changes_nothing": Killing(
        swapped(decide._Turn, "_witness_lost", "if not ejection.witnesses", "if True"), 0, ("domino",)
    ),
    # ---- more of our own ----
    "a_balancers_own_check_does_not_count": Killing(
        swapped(guard, "is_in_rotation", "seen.serving is not False and ", ""), 0, ("own_check",)
    ),
    "who_is_in_maintenance_counts": Killing(
        swapped(guard, "groups", "for i, s in members.items() if s.operator is Operator.READY)", "for i, s in members.items())"), 3
    ),
    "nothing_need_be_written_down": Killing(
        swapped(acts, "_may_go_unwritten", "    return intent.act not in", "    return True or intent.act not in"), 23
    ),
    "an_order_of_ours_may_always_show": Killing(
        swapped(membership, "_may_show", "return sent.stands", "return True or sent.stands"), 75, ("move", "hand_ours", "lost")
    ),
    "a_word_is_waited_for_for_ever": Killing(
        swapped(pictures, "_compare_said", "at - pending.at > ON_ITS_WAY_S", "False"), 114, ("override", "lossy", "hand_operator", "clear")
    ),
    "a_replaced_word_is_forgotten": Killing(swapped(decide._Turn, "_override", "tuple(before)", "()"), 85, ("override", "crash", "slow")),
    "the_opposite_on_its_way_is_no_matter": Killing(swapped(plan, "_is_contradicted", "sent is not None", "False"), 29),
    "an_answer_from_another_life_counts": Killing(
        swapped(streak, "step", " or outcome.started < streak.since", ""), 173, ("hand_operator", "sick")
    ),
    "returned_whatever_holds": Killing(swapped(decide._Turn, "_return", "if not holds:", "if True:"), 14),
    "what_was_never_answered_was_said": Killing(
        swapped(acts, "next_word", "if pending.is_answered else set()", ""), 118, ("override", "hand_operator", "slow")
    ),
    "failing_open_in_a_freeze": Killing(
        swapped(decide._Turn, "_fail_open", " or self.world.freeze_of(service.name, self.now)", ""), 10, ("freeze", "dusk")
    ),
    "a_word_on_its_way_does_not_count": Killing(
        swapped(guard, "against_leaving", "in (before.keys(), after):", "in (before.keys(),):"), 0, ("override", "slow")
    ),
    "hands_off_ends_with_the_process": Killing(swapped(World, "_adopted", "dict(fact.hands_off or {})", "{}"), 26, ("hand_ours", "crash")),
    "an_ended_word_is_not_kept": Killing(
        swapped(known.InstanceState, "say", "self.ended[override.owner] = override", "pass"), 1, ("override", "crash", "clear")
    ),
}
"""Of each mutant's name."""


def killed_by(plant: Mutant, seeds: Iterable[int], insist: Sequence[str] = ()) -> tuple[int, str] | None:
    """The first of these seeds under which the mutant breaks a promise, and which."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in seeds:
            try:
                run(seed, insist)
            except Violation as violation:
                return seed, violation.promise
    return None


def _try(name: str, patience: int) -> tuple[str, int, str, bool]:
    """How many schedules it took, 0 = it lives; by which promise; whether the right core survives the last."""
    killing = MUTANTS[name]
    found = killed_by(killing.plant, range(patience), killing.insist)
    if found is None:
        return name, 0, "", True
    seed, promise = found
    try:
        run(seed, killing.insist)
    except Violation:
        return name, seed + 1, promise, False
    return name, seed + 1, promise, True


def main(arguments: Sequence[str] | None = None) -> int:
    """Each mutant, how many schedules it took, and by which promise it fell; a table for docs/proof.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.mutants")
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--patience", type=int, default=1000, help="so many schedules each may survive")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    found = []
    with Pool(options.processes) as pool:
        for each in pool.imap(partial(_try, patience=options.patience), options.names or list(MUTANTS)):
            name, schedules, promise, is_sound = each
            insist = f" ({', '.join(MUTANTS[name].insist)} frequent)" if MUTANTS[name].insist else ""
            became = f"{schedules} | {promise}" if schedules else f"more than {options.patience} | ALIVE"
            print(f"| {name.replace('_', ' ')}{insist} | {became} |{'' if is_sound else ' and so does the right core'}", flush=True)
            found.append(each)
    print(f"{len(found)} mutants, median {median(each[1] or options.patience for each in found):.0f} schedules")
    return 0 if all(schedules and is_sound for _, schedules, _, is_sound in found) else 1


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["MUTANTS", "Killing", "Mutant", "killed_by", "swapped"]
