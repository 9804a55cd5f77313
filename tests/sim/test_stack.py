"""The whole sidecar in simulated machines keeps every promise; each mistake planted in its shell is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.stack import Violation, put
from tests.sim.stack_mutants import MUTANTS, Mutant, killed_by
from tests.sim.stack_schedules import CHAOS_S, QUIET_S, broken_by, equals_without_crashes, fingerprint, plan_of, run, shrunk, told

pytestmark = pytest.mark.slow
SEEDS = 24
CHUNK = 4
PATIENCE = 40
"""So many schedules a mutant may survive."""
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_whatever_happens_and_whoever_dies(first: int) -> None:
    for plan in map(plan_of, range(first, first + CHUNK)):
        try:
            stack = run(plan)
        except Violation as violation:
            pytest.fail(told(plan, violation), pytrace=False)
        assert stack.loop.now > 1000 + QUIET_S + CHAOS_S


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_ends_as_if_nobody_had_died(seed: int) -> None:
    plan = plan_of(seed, ("kill",))

    assert equals_without_crashes(plan, run(plan)) is None


def test_the_same_seed_gives_the_same_story_in_any_process() -> None:
    here = [fingerprint(run(plan_of(seed))) for seed in (3, 5)]
    script = "from tests.sim.stack_schedules import *\nprint([fingerprint(run(plan_of(seed))) for seed in (3, 5)])"

    for hash_seed in ("0", "4242"):
        command = [sys.executable, "-c", script]
        there = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == str(here)


def test_a_failing_plan_is_shrunk_to_what_it_needs_and_told() -> None:
    """Compare-and-set compares nothing: what remains of the plan is short, and still breaks the same promise."""
    mutant = next(mutant for mutant in MUTANTS if mutant.__name__ == "no_look_before_the_write")
    with put(*mutant()):
        seed, plan, violation = next((s, p, v) for s in range(20) if (v := broken_by(p := plan_of(s, ("race",)))) is not None)
        needed = shrunk(plan, violation.promise)
        story = told(plan, violation)

    assert len(needed.happenings) < len(plan.happenings) / 2
    assert broken_by(needed) is None, "the right shell keeps its promises even so"
    assert story.startswith(f"seed {seed}: {violation.promise}")
    assert all(str(happening) in story for happening in needed.happenings)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_killed_by_a_schedule_that_the_right_shell_survives(mutant: Mutant) -> None:
    killing = MUTANTS[mutant]

    found = killed_by(mutant, (killing.likely, *range(PATIENCE)), killing.insist)

    assert found is not None, f"no schedule of {PATIENCE} has found it"
    assert broken_by(plan_of(found[0], killing.insist)) is None
