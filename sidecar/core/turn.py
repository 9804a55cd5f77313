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
        touched.update(dict.fromkeys(world.absorb(fact)))
        if isinstance(fact, Probed):
            asked.append(fact.outcome.target)
    if not touched and not world.commands and not world.events:
        asks = pace.asks(world, asked, now)
        world.scheduled(asks)
        return None, asks
    decision = decide(world, world.policy, now, touched)
    world.settle(decision)
    more = pace.asks(world, asked, now)
    world.scheduled(more)
    return replace(decision, asks=(*decision.asks, *more)), (*decision.asks, *more)
