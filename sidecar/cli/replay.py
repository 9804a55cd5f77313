"""`lb-sidecar replay` and `report`: decide recorded facts again, under the same or another configuration."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lbplugins.values import Traits
from sidecar.cli.folder import Unreadable, journal_of, listed, to_read
from sidecar.config import compose
from sidecar.config.load import load
from sidecar.config.plugins import plugin_class
from sidecar.core.model import Event
from sidecar.core.policy import Policy
from sidecar.core.whatif import Rerun
from sidecar.core.world import World
from sidecar.journal.codec import decode
from sidecar.journal.recorder import digest
from sidecar.journal.segments import Batch, Gap, Segment, read
from sidecar.store import clock
from sidecar.store.decisions import Record
from sidecar.store.decisions import read as read_decisions

ACTS = frozenset({"ejected", "returned"})
AGE = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
RIGHT_AFTER_S = 10.0
"""A would-be ejection of something that answered well again within this was not worth it."""


@dataclass
class Told:
    """One act, recorded or replayed, by wall time."""

    when: float
    kind: str
    instance: str
    sentence: str

    def line(self) -> str:
        return f"{datetime.fromtimestamp(self.when).astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3] + f"  {self.kind:9} {self.sentence}"

    def fields(self) -> dict[str, object]:
        when = datetime.fromtimestamp(self.when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"when": when, "kind": self.kind, "instance": self.instance, "sentence": self.sentence}


@dataclass
class Replayed:
    """What came of it."""

    facts: int = 0
    batches: int = 0
    gaps: int = 0
    different: int = 0
    before: list[Told] = field(default_factory=list)
    after: list[Told] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def replay(arguments: argparse.Namespace) -> int:
    """0: the decisions are the same. 1: they differ. 2: nothing to replay, or a configuration that cannot be used."""
    try:
        folder = journal_of(arguments.journal or to_read(arguments.state))
    except Unreadable as error:
        print(f"lb-sidecar replay: {error}", file=sys.stderr)
        return 2
    policy: Policy | None = None
    if arguments.config is not None:
        loaded = load(arguments.config)
        if loaded.config is None:
            for problem in loaded.errors:
                print(problem, file=sys.stderr)
            return 2
        traits: dict[str, Traits] = {name: plugin_class(b.plugin).traits for name, b in loaded.config.balancers.items()}
        policy = compose.policy(loaded.config, traits, loaded.hash)
    try:
        since, until = _moment(arguments.since), _moment(arguments.until)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    unusable: list[str] = []
    segments = list(read(folder, since, until, unusable))
    for line in unusable:
        print(line, file=sys.stderr)
    if not segments:
        print(f"no recorded facts in {folder} for that time; the state folder of `lb-sidecar run` has them", file=sys.stderr)
        return 2
    done = _replayed(segments, policy, since)
    _show(done, is_whatif=policy is not None, as_json=arguments.output == "json")
    same = done.different == 0 if policy is None else _keys(done.before) == _keys(done.after)
    return 0 if same else 1


def _replayed(segments: Iterable[Segment], policy: Policy | None, since: float | None) -> Replayed:
    done = Replayed()
    rerun: Rerun | None = None
    for segment in segments:
        if policy is None or rerun is None:
            rerun = Rerun(decode(segment.snapshot, World), policy, segment.header.monotonic)
        for record in segment.records():
            if isinstance(record, Gap):
                done.gaps += 1
                continue
            _one(done, segment, record, rerun, compare=policy is None, since=since)
        if segment.fault:
            done.faults.append(segment.fault)
    return done


def _one(done: Replayed, segment: Segment, batch: Batch, rerun: Rerun, *, compare: bool, since: float | None) -> None:
    done.batches += 1
    done.facts += len(batch.facts)
    decision = rerun.step(batch.facts, batch.now)
    if compare and batch.digest != (digest(decision) if decision is not None else ""):
        done.different += 1
    if since is not None and segment.wall_of(batch.now) < since:
        return
    done.before += _told(segment, batch.decision.events if batch.decision is not None else ())
    done.after += _told(segment, decision.events if decision is not None else ())


def _told(segment: Segment, events: Iterable[Event]) -> Iterator[Told]:
    for event in events:
        if event.kind in ACTS and event.instance is not None:
            yield Told(segment.wall_of(event.at), event.kind, str(event.instance), event.sentence)


def _keys(told: Iterable[Told]) -> list[tuple[str, str, int]]:
    """Two acts are the same when they do the same to the same instance within a tenth of a second."""
    return [(t.kind, t.instance, round(t.when * 10)) for t in told]


def _show(done: Replayed, *, is_whatif: bool, as_json: bool) -> None:
    unlike = Counter(_keys(done.after))
    unlike.subtract(Counter(_keys(done.before)))
    added = [t for t in done.after if unlike[_keys([t])[0]] > 0]
    removed = [t for t in done.before if unlike[_keys([t])[0]] < 0]
    if as_json:
        fields = {"facts": done.facts, "batches": done.batches, "gaps": done.gaps, "different": done.different, "faults": done.faults}
        print(json.dumps({**fields, "added": [t.fields() for t in added], "removed": [t.fields() for t in removed]}))
        return
    for fault in done.faults:
        print(f"the record ends early: {fault}", file=sys.stderr)
    gaps = f"; {done.gaps} gaps: what follows them is not the whole truth" if done.gaps else ""
    print(f"{done.facts} facts in {done.batches} turns{gaps}")
    if not is_whatif:
        differ = f"{done.different} decisions differ from those recorded: please report this"
        print(differ if done.different else "every decision is the same")
        return
    for sign, told in (("+", added), ("-", removed)):
        for each in told:
            print(f"{sign} {each.line()}")
    kept = len(done.after) - len(added)
    print(f"{len(added)} acts added (+), {len(removed)} gone (-), {kept} as they were")


def report(arguments: argparse.Namespace) -> int:
    """What observe mode would have done, and how often that would have been right. 0, or 2 when there is nothing to report on."""
    try:
        since = _moment(arguments.since)
        folder = to_read(arguments.state)
        log = listed(folder / "decisions") if os.path.lexists(folder / "decisions") else folder / "decisions"
    except (ValueError, Unreadable) as error:
        print(f"lb-sidecar report: {error}", file=sys.stderr)
        return 2
    records = [r for r in read_decisions(log) if since is None or r.when.timestamp() >= since]
    if not records:
        print(f"no decisions in {folder} for that time; another state folder is named with --state", file=sys.stderr)
        return 2
    rows = list(_verdicts(records))
    if arguments.output == "json":
        print(json.dumps(rows))
        return 0
    right = sum(1 for row in rows if row["right"])
    for row in rows:
        verdict = "right" if row["right"] else "not worth it: well again within 10 s"
        length = "no return on record" if row["out_s"] is None else f"out for {row['out_s']} s"
        print(f"{row['when']}  {row['instance']}  {length}  {verdict}\n    {row['sentence']}")
    mode = "acted" if any(r.enforced for r in records if r.kind == "ejected") else "would have acted"
    times = "time" if len(rows) == 1 else "times"
    print(f"{mode} {len(rows)} {times} since {records[0].when:%Y-%m-%d %H:%M} UTC; {right} of {len(rows)} right")
    held = Counter(hold.name for r in records if r.kind in ("held", "pool_event") for hold in r.holds[:1])
    for name, count in held.most_common():
        print(f"held by {name}: {count} times")
    return 0


def _verdicts(records: list[Record]) -> Iterator[dict[str, object]]:
    """Each ejection with how long it lasted; still out counts as right, and so does one that ended by other hands than ours."""
    for i, record in enumerate(records):
        if record.kind != "ejected":
            continue
        key = (record.service, record.instance)
        after = next((r for r in records[i + 1 :] if r.kind in ACTS and (r.service, r.instance) == key), None)
        back = after if after is not None and after.kind == "returned" else None
        out_s = None if back is None else round((back.when - record.when).total_seconds(), 1)
        yield {
            "when": record.when.isoformat(timespec="seconds"),
            "instance": f"{record.service}/{record.instance}",
            "enforced": record.enforced,
            "out_s": out_s,
            "right": out_s is None or out_s > RIGHT_AFTER_S,
            "sentence": record.sentence,
        }


def _moment(text: str | None) -> float | None:
    """Wall seconds of `24h` ago or of an RFC 3339 time; ValueError says how to write it."""
    if text is None:
        return None
    if (age := AGE.fullmatch(text)) is not None:
        return clock.wall() - float(age[1]) * UNITS[age[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is no time: write an age as 24h or 7d, or 2026-01-31T12:03:07Z") from None
