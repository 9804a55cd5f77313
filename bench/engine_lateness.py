"""How late the sidecar started its probes, from its own flight recorder: played again, the core says when each was due."""

from __future__ import annotations

from pathlib import Path

from sidecar.core.model import Probed, Target
from sidecar.core.turn import turn
from sidecar.core.world import World
from sidecar.journal.codec import decode
from sidecar.journal.segments import Gap, read


def lateness(folder: Path, since: float, until: float) -> list[float]:
    """Seconds from due to started, of each probe that was due between the two monotonic moments.

    Needs a recorder that was closed; what follows a gap is not believed. A probe asked for the past was due when it was asked for.
    """
    found: list[float] = []
    for segment in read(folder):
        world, due = decode(segment.snapshot, World), dict[Target, float]()
        for record in segment.records():
            if isinstance(record, Gap):
                break
            for fact in record.facts:
                if isinstance(fact, Probed):
                    at = due.pop(fact.outcome.target, None)
                    # one that had started before it was asked anew answers an earlier question
                    if at is not None and since <= at <= until and fact.outcome.started >= at:
                        found.append(fact.outcome.started - at)
            for ask in turn(world, record.facts, record.now)[1]:
                due[ask.target] = max(ask.at, record.now)
    return found
