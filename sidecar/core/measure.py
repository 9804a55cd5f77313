"""From outcomes to response times: every user of a probed target is credited with its answer."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.model import Fact, Probed, Result
from sidecar.core.samples import Tallies
from sidecar.core.window import Latencies
from sidecar.core.world import World

_OK, _FAIL = Result.OK, Result.FAIL


def measure(latencies: Latencies, world: World, facts: Iterable[Fact], now: float, tallies: Tallies | None = None) -> None:
    """Good answers are timed, failures counted, unknown ones are nothing. `tallies`: count the probes among the facts there as well."""
    number = 0
    for fact in facts:
        if type(fact) is not Probed:
            continue
        number += 1
        outcome = fact.outcome
        target = world.targets.get(outcome.target)
        for instance in target.users if target is not None else ():
            if outcome.result is _OK:
                seconds = outcome.ended - outcome.started
                index = latencies.add(instance, "probe", seconds, now)
                if tallies is not None:
                    tallies.count_good(instance.service, index, seconds)
                continue
            if outcome.result is _FAIL:
                latencies.fail(instance, "probe", now)
            if tallies is not None:
                tallies.count_poor(instance, outcome)
    if tallies is not None and number:
        tallies.count_kind(Probed, number)
