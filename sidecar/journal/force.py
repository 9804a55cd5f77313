"""What a row of intents amounts to: which of them are still in force, and what a new start adopts of them. Pure.

Times inside an intent are monotonic seconds of the boot in which it was written; a record of another boot is of another *life*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sidecar.core.model import Act, Adopted, Instance, Intent, ServerRef

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Stored:
    """An intent as it lies on disk, with the clocks when it was written: `boottime` and `wall` in seconds."""

    intent: Intent
    boottime: float
    boot_id: str
    wall: float


@dataclass(slots=True)
class InForce:
    """The records whose effect has not ended; `take` them in the order they were written. Each entry keeps its place in that order.

    RETURN and HANDS_OFF leave an ejection `returning`, with its notes: until the balancer has obeyed, a crash still needs them to undo
    our act. FORGET ends both. A newer note of the same server replaces the older, an empty one ends it. Bounded by the instances,
    owners and servers we have acted on.
    """

    ejections: dict[Instance, tuple[int, Stored]] = field(default_factory=dict)
    overrides: dict[tuple[Instance, str], tuple[int, Stored]] = field(default_factory=dict)
    freezes: dict[str, tuple[int, Stored]] = field(default_factory=dict)
    hands_off: dict[Instance, tuple[int, Stored]] = field(default_factory=dict)
    notes: dict[ServerRef, tuple[int, Stored, str]] = field(default_factory=dict)
    taken: int = 0

    def take(self, stored: Stored) -> None:
        """Let one more record have its effect. One that does not say what its act is about changes nothing but notes."""
        self.taken += 1
        intent, entry = stored.intent, (self.taken, stored)
        instance = about(intent)
        for server, note in intent.notes:
            if note:
                _put(self.notes, server, (*entry, note))
            else:
                self.notes.pop(server, None)
        match intent.act:
            case Act.EJECT if intent.ejection is not None:
                _put(self.ejections, intent.ejection.instance, entry)
            case Act.CLAIM if intent.ejection is not None:
                self._amend(intent.ejection.instance, others=intent.ejection.others)
            case Act.RETURN if instance is not None:
                self._returning(instance)
            case Act.HANDS_OFF if instance is not None:
                self._returning(instance)
                self.hands_off = {each: (at, old) for each, (at, old) in self.hands_off.items() if not _has_ended(old, stored)}
                _put(self.hands_off, instance, entry)
            case Act.FORGET if instance is not None:
                self._forget(instance)
            case Act.OVERRIDE if intent.override is not None:
                _put(self.overrides, (intent.override.instance, intent.override.owner), entry)
            case Act.CLEAR if intent.override is not None:
                self.overrides.pop((intent.override.instance, intent.override.owner), None)
            case Act.FREEZE if intent.freeze is not None:
                _put(self.freezes, intent.freeze.service, entry)
            case Act.UNFREEZE:
                self.freezes.pop(intent.freeze.service if intent.freeze is not None else "", None)

    def records(self) -> list[Stored]:
        """The fewest records that amount to the same, in their order."""
        tables = (self.ejections, self.overrides, self.freezes, self.hands_off)
        found = {number: stored for table in tables for number, stored in table.values()}
        notes: dict[int, list[tuple[ServerRef, str]]] = {}
        for server, (number, stored, note) in self.notes.items():
            # The act may be over while its note is not. CLEAR of nobody's word has no other effect than its notes.
            found.setdefault(number, replace(stored, intent=_bare(stored.intent)))
            notes.setdefault(number, []).append((server, note))
        return [
            replace(stored, intent=replace(stored.intent, notes=tuple(notes.get(number, ())))) for number, stored in sorted(found.items())
        ]

    def _returning(self, instance: Instance) -> None:
        self._amend(instance, returning=True)

    def _amend(self, instance: Instance, **changes: Any) -> None:
        number, stored = self.ejections.get(instance, (0, None))
        if stored is not None and stored.intent.ejection is not None:
            ejection = replace(stored.intent.ejection, **changes)
            self.ejections[instance] = number, replace(stored, intent=replace(stored.intent, ejection=ejection))

    def _forget(self, instance: Instance) -> None:
        self.ejections.pop(instance, None)
        for server in [each for each, (_, stored, _) in self.notes.items() if about(stored.intent) == instance]:
            del self.notes[server]


@dataclass(frozen=True, slots=True)
class _Life:
    """This life of the sidecar, and how times of another are carried over into it."""

    now: float
    boottime: float
    boot_id: str
    wall: float | None

    def has(self, stored: Stored) -> bool:
        """Do this record's times mean anything on our clock?"""
        return stored.boot_id == self.boot_id and stored.boottime <= self.boottime and stored.intent.at <= self.now

    def at(self, stored: Stored, at: float) -> float:
        return at if self.has(stored) else self.now

    def until(self, stored: Stored, end: float | None) -> float | None:
        """`end` on our clock: the time left when it was written, less what the wall clock, if given, says has passed since."""
        if end is None or self.has(stored) or math.isinf(end):
            return end
        passed = 0.0 if self.wall is None else max(0.0, self.wall - stored.wall)
        return self.now + max(0.0, end - stored.intent.at - passed)

    def goes_on(self, end: float | None) -> bool:
        return end is None or end > self.now


def fold(stored: Iterable[Stored], now_monotonic: float, boottime: float, boot_id: str, wall: float | None = None) -> Adopted:
    """What of our earlier lives is still ours or still holds now, in this boot's monotonic seconds.

    An ejection of another boot, or of a clock that has gone backwards since, has expired: it is adopted as `returning`, so that the
    server is given back and not left without an owner. An override whose time has passed is adopted too, as what it is: the balancer may
    still show it, and only who knows it to be ours can undo it. Operators' words hold over boots, with the time they had left when written;
    `wall` (seconds) shortens that by what has passed.
    """
    force, life = InForce(), _Life(now_monotonic, boottime, boot_id, wall)
    for each in stored:
        force.take(each)
    overrides = [
        replace(word, at=life.at(each, word.at), until=life.until(each, word.until))
        for _, each in force.overrides.values()
        if (word := each.intent.override) is not None
    ]
    freezes = [
        replace(freeze, at=life.at(each, freeze.at), until=life.until(each, freeze.until))
        for _, each in force.freezes.values()
        if (freeze := each.intent.freeze) is not None
    ]
    hands_off = {instance: life.until(each, each.intent.until) for instance, (_, each) in force.hands_off.items()}
    return Adopted(
        at=now_monotonic,
        ejections=tuple(
            ejection if life.has(each) else replace(ejection, at=life.now, until=life.now, returning=True)
            for _, each in force.ejections.values()
            if (ejection := each.intent.ejection) is not None
        ),
        overrides=tuple(overrides),
        freezes=tuple(each for each in freezes if life.goes_on(each.until)),
        notes={server: note for server, (_, _, note) in force.notes.items()},
        hands_off={instance: math.inf if end is None else end for instance, end in hands_off.items() if life.goes_on(end)},
    )


def about(intent: Intent) -> Instance | None:
    """The instance an intent is about, wherever it says so."""
    if intent.instance is not None:
        return intent.instance
    if intent.ejection is not None:
        return intent.ejection.instance
    return intent.override.instance if intent.override is not None else None


def _put(table: dict[K, V], key: K, entry: V) -> None:
    """Set it and move it to the end: a dict's order is that of the records."""
    table.pop(key, None)
    table[key] = entry


def _has_ended(old: Stored, new: Stored) -> bool:
    """Was `old`'s time over when `new` was written?"""
    if old.intent.until is None:
        return False
    if old.boot_id == new.boot_id:
        return old.intent.until <= new.intent.at
    return old.intent.until - old.intent.at <= new.wall - old.wall


def _bare(intent: Intent) -> Intent:
    """An intent that carries nothing but notes."""
    return replace(intent, act=Act.CLEAR, instance=about(intent), ejection=None, override=None, freeze=None, until=None)


__all__ = ["InForce", "Stored", "about", "fold"]
