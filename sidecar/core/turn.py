"""One turn of the core: facts in, decision out. Live, in replay and in simulation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.core import pace
from sidecar.core.decide import decide
from sidecar.core.known import TargetState
from sidecar.core.model import Ask, Decision, Fact, Probed
from sidecar.core.world import World


def turn(world: World, facts: Sequence[Fact], now: float) -> tuple[Decision | None, tuple[Ask, ...]]:
    """Absorb a batch, decide for the services it touched, settle.

    The decision is None when nothing in the batch needed one: then only the next questions follow.
    """
    touched: dict[str, None] = {}
    asked: list[TargetState] = []
    for fact in facts:
        if type(fact) is not Probed:
            names = world.absorb(fact)
        elif (target := world.targets.get(fact.outcome.target)) is not None:
            names = world.probed(target, fact.outcome)
            asked.append(target)
        else:
            continue
        for name in names:
            touched[name] = None
    decision = None
    if touched or world.commands or world.events:
        decision = decide(world, world.policy, now, touched)
        world.settle(decision)
    if world.unasked:
        asked += [target for name in world.unasked if (target := world.targets.get(name)) is not None]
    asks = pace.asks(world, asked, now)
    world.scheduled(asks)
    if decision is None:
        return None, asks
    asks = (*decision.asks, *asks)
    return replace(decision, asks=asks), asks
