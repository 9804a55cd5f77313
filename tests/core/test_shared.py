"""One address and check is one target, asked as often as the most impatient of its services wants."""

from __future__ import annotations

import pytest

from lbplugins.values import Address
from sidecar.core.model import Configured, Discovered, Instance, Outcome, Probed, Result, Target
from sidecar.core.policy import Policy, ProbePlan, ServicePolicy
from sidecar.core.turn import turn
from sidecar.core.world import World

WHERE = Address("10.0.0.1", 80)
TARGET = Target(WHERE, "http:/")


def policy(**intervals: float | None) -> Policy:
    return Policy({name: ServicePolicy(name, probes=(ProbePlan("http:/", each),)) for name, each in intervals.items()})


def configured(world: World, now: float, **intervals: float | None) -> None:
    found = [Discovered(name, "static", now, (Instance(name, WHERE),)) for name in intervals]
    turn(world, (Configured(policy(**intervals), now), *found), now)


@pytest.mark.parametrize("intervals", [{"a": 1.0, "b": 5.0}, {"b": 5.0, "a": 1.0}, {"a": None, "b": 5.0}, {"a": None, "b": 1.0}])
def test_the_shortest_interval_serves_all_also_after_a_reload(intervals: dict[str, float | None]) -> None:
    world = World()

    for now in (0.0, 10.0):
        configured(world, now, **intervals)

        assert list(world.targets) == [TARGET]
        assert {user.service for user in world.targets[TARGET].users} == {"a", "b"}
        assert world.targets[TARGET].plan.interval_s == intervals["a"]


def test_a_fixed_interval_that_is_shorter_than_any_learned_one_counts() -> None:
    world = World()

    configured(world, 0.0, a=None, b=0.5)

    assert world.targets[TARGET].plan.interval_s == 0.5


def test_when_the_impatient_one_goes_the_other_is_asked_at_its_own_pace() -> None:
    world = World()
    configured(world, 0.0, a=1.0, b=5.0)

    configured(world, 10.0, b=5.0)

    assert world.targets[TARGET].plan.interval_s == 5.0


def test_one_answer_counts_for_every_service() -> None:
    world = World()
    configured(world, 0.0, a=1.0, b=5.0)

    turn(world, (Probed(Outcome(TARGET, Result.OK, 1.0, 1.1)),), 1.1)

    for name in "ab":
        [state] = world.services[name].instances.values()
        assert state.checks["http:/"].answers == 1
