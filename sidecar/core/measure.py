"""From outcomes to response times: every user of a probed target is credited with its answer."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.model import Fact, Probed, Result
from sidecar.core.window import Latencies
from sidecar.core.world import World

_OK, _FAIL = Result.OK, Result.FAIL


def measure(latencies: Latencies, world: World, facts: Iterable[Fact], now: float) -> None:
    """Good answers are timed, failures counted, unknown ones are nothing."""
    for fact in facts:
        if type(fact) is not Probed:
            continue
        outcome = fact.outcome
        target = world.targets.get(outcome.target)
        for instance in target.users if target is not None else ():
            if outcome.result is _OK:
                latencies.add(instance, "probe", outcome.ended - outcome.started, now)
            elif outcome.result is _FAIL:
                latencies.fail(instance, "probe", now)
