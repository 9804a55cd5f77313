"""Our real HAProxy plugin between operators, reloads, lost answers and our own deaths, against a simulated HAProxy in virtual time."""

from __future__ import annotations

import pytest

from lbplugins.haproxy import axis
from lbplugins.haproxy.wire import Verb
from tests.core.schedules import Violation
from tests.sim.haproxy_plugin import run

pytestmark = pytest.mark.slow
SEEDS = 40


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_what_operators_said_stands_and_nothing_of_ours_is_left(first: int) -> None:
    for seed in range(first, first + 20):
        try:
            run(seed)
        except Violation as violation:
            pytest.fail("\n".join(violation.story[-40:]), pytrace=False)


def test_the_same_seed_gives_the_same_story() -> None:
    assert run(3).story == run(3).story


def test_a_plugin_that_leaves_a_check_switched_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(axis._BACK, axis.Lever.CHECK, (Verb.HEALTH_UP,))

    with pytest.raises(Violation):
        for seed in range(20):
            run(seed)
