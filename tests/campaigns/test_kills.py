"""One story of the campaign `kills`, and what stories are made of."""

from __future__ import annotations

import pytest

from tests.campaigns.kills import MOST_BAD, What, run, story


@pytest.mark.real
def test_a_story_ends_alike_with_and_without_the_kill() -> None:
    tally = run("haproxy-2.8-none", kills=1, seed=30)

    assert tally.faults == []
    assert tally.kills >= 1 and tally.lives


def test_no_story_asks_for_more_than_the_guards_allow() -> None:
    told = [story(seed, aim_s=0.1) for seed in range(500)]

    assert max(len(each.bad) for each in told) == MOST_BAD
    assert {act.what for each in told for act in each.acts} == set(What)
    assert all(each.kills and each.never_bad for each in told)
    assert any(kill.is_aimed for each in told for kill in each.kills)
