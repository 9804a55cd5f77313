"""`explain … --state DIR` and `history --state DIR`: the same without a daemon, from what it has left on disk.

`explain` takes the recorded facts in again up to its moment; `history` reads the decision log.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sidecar.cli.folder import Unreadable, journal_of, listed
from sidecar.cli.show import Output, ago, clock, story
from sidecar.cli.show import history as table
from sidecar.core.measure import measure
from sidecar.core.model import Configured, Discovered, Hold, Pictured
from sidecar.core.whatif import Rerun
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.journal.codec import decode
from sidecar.journal.segments import Batch, Segment, read
from sidecar.store.decisions import Decisions, Page, Record
from sidecar.store.decisions import read as read_decisions
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


@dataclass(frozen=True, slots=True)
class Asked:
    """Which decisions are asked for. `what`: SERVICE or SERVICE/NAME; None = all. `since` is inclusive, `until` exclusive."""

    what: str | None
    since: datetime | None
    until: datetime | None
    by: str | None
    limit: int


def history(state: Path, asked: Asked, out: Output) -> int:
    """0: told, if only that nothing matches. 1: it cannot be read. 2: no such instance on record."""
    try:
        folder = listed(state) / "decisions"
        records = list(read_decisions(listed(folder))) if os.path.lexists(folder) else []
        service, instance = _meant(state, asked.what)
    except (Unreadable, OSError) as error:
        print(f"lb-sidecar: {error}", file=sys.stderr)
        return 1
    except Unresolved as error:
        print(f"{error}; there were: {', '.join(error.candidates)}", file=sys.stderr)
        return 2
    newest = itertools.islice((r for r in reversed(records) if _matches(r, asked, service, instance)), asked.limit)
    told = views.decisions(Page(list(newest)))
    if out.form == "json":
        out.json(told.model_dump_json().encode())
    elif told.decisions:
        out.say(f"by the record in {folder}", "yellow")
        out.show(table(list(reversed(told.decisions)), datetime.now(UTC)))
    else:
        out.say(f"nothing is on record in {folder} that matches", "dim")
    return 0


def _meant(state: Path, what: str | None) -> tuple[str | None, str | None]:
    """Service and address:port: a server's name means whom it stood for at the end of the record. Unresolved, Unreadable."""
    service, slash, name = (what or "").partition("/")
    if not slash:
        return service or None, None
    known: World | None = None
    for segment in read(journal_of(state), datetime.now(UTC).timestamp()):
        known = decode(segment.snapshot, World)
        for batch in _batches(segment):
            for fact in batch.facts:
                if isinstance(fact, Configured | Discovered | Pictured):
                    known.absorb(fact)
    if known is None or service not in known.services:
        return service, name
    return service, str(find(known.services[service], name).instance.address)


def _matches(record: Record, asked: Asked, service: str | None, instance: str | None) -> bool:
    return (
        (service is None or record.service == service)
        and (instance is None or record.instance == instance)
        and (asked.since is None or record.when >= asked.since)
        and (asked.until is None or record.when < asked.until)
        and (asked.by is None or record.by == asked.by or record.by.startswith(f"{asked.by}:"))
    )


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
