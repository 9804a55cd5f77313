"""`lb-sidecar explain … --state DIR`: the same story without a daemon, by taking the recorded facts in again up to that moment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sidecar.cli.folder import Unreadable, journal_of
from sidecar.cli.show import Output, ago, clock, story
from sidecar.core.measure import measure
from sidecar.core.model import Hold
from sidecar.core.whatif import Rerun
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.journal.codec import decode
from sidecar.journal.segments import Batch, Segment, read
from sidecar.store.decisions import Decisions
from sidecar.web import views
from sidecar.web.look import Look, Unresolved, find, names

LOOK_BACK = timedelta(hours=1)
"""How far before the moment the story may begin."""


@dataclass
class Past:
    """The world as it was at a moment, and what led there."""

    look: Look
    at: datetime
    decisions: Decisions


def explain(state: Path, instance: str, at: datetime | None, out: Output) -> int:
    """0: told. 1: nothing is recorded for that time, or it cannot be read. 2: no such instance then."""
    try:
        folder = journal_of(state)
        past = _past(folder, at)
    except Unreadable as error:
        print(f"lb-sidecar: {error}", file=sys.stderr)
        return 1
    if past is None:
        print(f"nothing is recorded in {folder} for that time; --state is the state folder of `lb-sidecar run`", file=sys.stderr)
        return 1
    name, slash, rest = instance.partition("/")
    service = past.look.world.services.get(name)
    if not slash or service is None:
        known = ", ".join(past.look.world.services) or "none"
        print(f"{instance!r} is not SERVICE/NAME of a service of that time; there were: {known}", file=sys.stderr)
        return 2
    try:
        found = find(service, rest)
    except Unresolved as error:
        print(f"{error}; there were: {', '.join(error.candidates)}", file=sys.stderr)
        return 2
    address = str(found.instance.address)
    told = views.decisions(past.decisions.query(service=name, instance=address, limit=50))
    shown = views.instance(past.look, found, names(service)[found.instance])
    if out.form == "json":
        out.json(f'{{"instance":{shown.model_dump_json()},"decisions":{told.model_dump_json()}}}'.encode())
    else:
        now = datetime.now(UTC)
        out.say(
            f"As of {clock(past.at, now)}, {ago(past.at, now)} ago, by the record in {folder}; what has come since is not in it", "yellow"
        )
        out.show(story(shown, list(reversed(told.decisions)), past.at))
    return 0


def _past(folder: Path, at: datetime | None) -> Past | None:
    """Take in everything recorded up to `at` (None = to the end), beginning in the hour before it."""
    until = None if at is None else at.timestamp()
    since = None if until is None else until - LOOK_BACK.total_seconds()
    decisions = Decisions(None, max_bytes=0)
    latencies = Latencies()
    rerun: Rerun | None = None
    holds: tuple[Hold, ...] = ()
    last: tuple[Segment, float] | None = None
    for segment in read(folder, since, until):
        rerun = Rerun(decode(segment.snapshot, World))
        last = (segment, segment.header.monotonic)
        for batch in _batches(segment):
            decision = rerun.step(batch.facts, batch.now)
            last = (segment, batch.now)
            measure(latencies, rerun.world, batch.facts, batch.now)
            if decision is not None:
                kept = tuple(h for h in holds if h.service not in decision.services)
                holds = (*kept, *decision.holds)
                decisions.append(decision.events, partial(_wall, segment))
    if rerun is None or last is None:
        return None
    segment, now = last
    look = Look(rerun.world, rerun.world.policy, now, partial(_wall, segment), latencies, holds)
    return Past(look, look.wall_of(now), decisions)


def _wall(segment: Segment, at: float) -> datetime:
    return datetime.fromtimestamp(segment.wall_of(at), UTC)


def _batches(segment: Segment) -> Iterator[Batch]:
    return (record for record in segment.records() if isinstance(record, Batch))
