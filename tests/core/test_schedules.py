"""Hundreds of random schedules keep every promise; each of these mutants of the core is caught, so that the silence means something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.core.mutants import MUTANTS, killed_by
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
    killing = MUTANTS["no_last_look_before_the_write"]
    seed, _ = killed_by(killing.plant, (killing.likely, *range(PATIENCE)), killing.insist) or pytest.fail("the mutant lives")
    killing.plant(monkeypatch)

    story = told(seed, killing.insist)

    lines = story.splitlines()
    assert len(lines) <= 30 and lines[0].startswith(f"seed {seed}: floor: ")
    faults = [line for line in lines if "* " in line]
    assert 0 < len(faults) < 12
    monkeypatch.undo()
    assert told(seed, killing.insist) == "", "the right core keeps its promises"


def test_what_is_not_needed_is_left_out_and_what_is_stays() -> None:
    tried = []

    def fails(parts: Sequence[int]) -> bool:
        tried.append(parts)
        return {3, 17} <= set(parts)

    assert shrunk(range(40), fails) == (3, 17) and len(tried) < 100


# ---- mutants ----


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed_by_a_schedule_that_the_right_core_survives(name: str) -> None:
    killing = MUTANTS[name]

    found = killed_by(killing.plant, (killing.likely, *range(PATIENCE)), killing.insist)

    assert found is not None
    run(found[0], killing.insist)
