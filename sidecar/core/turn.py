"""One turn of the core: facts in, decision out. Live, in replay and in simulation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.core import pace
from sidecar.core.decide import decide
from sidecar.core.model import Ask, Decision, Fact, Probed, Target
from sidecar.core.world import World


def turn(world: World, facts: Sequence[Fact], now: float) -> tuple[Decision | None, tuple[Ask, ...]]:
    """Absorb a batch, decide for the services it touched, settle.

    The decision is None when nothing in the batch needed one: then only the next questions follow.
    """
    touched: dict[str, None] = {}
    asked: list[Target] = []
    for fact in facts:
        for name in world.absorb(fact):
            touched[name] = None
        if type(fact) is Probed:
            asked.append(fact.outcome.target)
    decision = None
    if touched or world.commands or world.events:
        decision = decide(world, world.policy, now, touched)
        world.settle(decision)
    asks = pace.asks(world, (*asked, *world.unasked), now)
    world.scheduled(asks)
    if decision is None:
        return None, asks
    asks = (*decision.asks, *asks)
    return replace(decision, asks=asks), asks
