"""Mistakes planted in the shell, one at a time: each must be found by schedules that the right shell survives."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lbplugins import memory
from sidecar import app, reconcile
from sidecar.balancers import driver, host
from sidecar.core.model import Adopted, Applied, Intent, Journaled
from sidecar.journal import force, intents
from sidecar.journal.force import InForce, Stored
from sidecar.reconcile import Reconciler
from sidecar.store import lock
from tests.core.schedules import Violation
from tests.sim import stack
from tests.sim.stack import put
from tests.sim.stack_schedules import plan_of, run

Place = tuple[Any, str, object]
Mutant = Callable[[], Sequence[Place]]


def write_before_intent() -> Sequence[Place]:
    """The core hears that an intent is on disk when it has only been sent there."""

    def write_down(self: Reconciler, intents: tuple[Intent, ...]) -> None:
        self.deliver((Journaled(intents, self._loop.time()),))
        writing = reconcile._Writing(intents, is_answered=True)
        self._pen.submit(self._append, writing)

    return [(Reconciler, "_write_down", write_down)]


def no_fsync() -> Sequence[Place]:
    """Appended, not synced: a power cut takes it."""

    class Lazy(stack.WatchedIntents):
        def append(self, intents_: Sequence[Intent]) -> None:
            files = vars(intents)["os"]
            with put((intents, "os", _with(files, fsync=lambda fd: None))):
                super().append(intents_)

    return [(stack, "WatchedIntents", Lazy)]


def renamed_and_not_synced() -> Sequence[Place]:
    """A rewritten journal whose name is not on disk: a power cut brings the old one back."""
    return [(intents, "_sync_folder", lambda folder: None)]


def a_torn_line_stays() -> Sequence[Place]:
    """What a full disk took half of is neither cut off nor rewritten: what follows it will not be believed."""
    return [(intents.Intents, "_settle", lambda self: None), (intents.Intents, "compact", lambda self: None)]


def a_full_disk_is_not_told() -> Sequence[Place]:
    """An intent that could not be written down counts as written."""

    class Deaf(stack.WatchedIntents):
        def append(self, intents_: Sequence[Intent]) -> None:
            try:
                super().append(intents_)
            except intents.JournalError:
                return

    return [(stack, "WatchedIntents", Deaf)]


def the_journal_is_not_read() -> Sequence[Place]:
    """A new start adopts nothing."""
    return [(app, "fold", lambda *given: Adopted(given[1]))]


def hold_downs_are_not_adopted() -> Sequence[Place]:
    """What comes from before is free to come back at once."""

    def fold(*given: Any) -> Adopted:
        adopted = force.fold(*given)
        return replace(adopted, ejections=tuple(replace(e, until=0.0) for e in adopted.ejections))

    return [(app, "fold", fold)]


def a_return_ends_it() -> Sequence[Place]:
    """A return in the journal counts as done: a crash before the balancer obeys leaves an orphan."""
    return [(InForce, "_returning", lambda self, instance: self._forget(instance))]


def no_look_before_the_write() -> Sequence[Place]:
    """Compare-and-set compares nothing."""
    return [(memory, "differences", lambda seen, expect: [])]


def refused_is_done() -> Sequence[Place]:
    """What a balancer said no to counts as applied."""
    return _answers(lambda said: replace(said, changes=(*said.changes, *(c for c, _ in said.refused)), refused=()))


def a_lost_answer_is_a_refusal() -> Sequence[Place]:
    """No answer counts as not done."""
    return _answers(lambda said: Applied(said.balancer, said.at, (), tuple((c, "no answer") for c in said.changes)) if said.error else said)


def _answers(lie: Callable[[Applied], Applied]) -> Sequence[Place]:
    """The driver tells something else than the balancer answered."""
    right = driver.Driver._apply

    async def apply(self: driver.Driver) -> None:
        deliver = self._deliver
        self._deliver = lambda facts: deliver([lie(fact) if isinstance(fact, Applied) else fact for fact in facts])
        try:
            await right(self)
        finally:
            self._deliver = deliver

    return [(driver.Driver, "_apply", apply)]


def no_lock_is_taken() -> Sequence[Place]:
    """Everybody who asks has the lock."""
    return [(driver, "acquire", lambda path: lock.Held(path, -1)), (lock.Held, "still_held", lambda self: True)]


def a_deleted_lock_is_kept() -> Sequence[Place]:
    """Nobody looks whether the lock file is still the one that others see."""
    return [(lock.Held, "still_held", lambda self: self._fd >= 0)]


def who_stands_by_writes() -> Sequence[Place]:
    """The lock is looked at and does not matter."""
    return [
        (driver.Driver, "is_writer", property(lambda self: True)),
        (driver.Driver, "standby", property(lambda self: "", lambda self, word: None)),
    ]


def two_in_one_folder() -> Sequence[Place]:
    """The state folder's lock is not asked for: two write the same journal."""

    async def lock_state(self: app.App) -> lock.Held:
        return lock.Held(Path("/state/a/lock"), -1)

    async def keep_state(self: app.App) -> None:
        await asyncio.Event().wait()

    return [(app.App, "_lock_state", lock_state), (app.App, "_keep_state", keep_state)]


def late_is_not_struck() -> Sequence[Place]:
    """An intent that was given up and reaches the disk late stays there."""
    return [(Reconciler, "strike", lambda self, ejections, why: None)]


def two_calls_at_once() -> Sequence[Place]:
    """A call that outlived its deadline does not keep the next one waiting."""

    class Open(asyncio.Lock):
        async def acquire(self) -> Any:
            return True

        def release(self) -> None: ...

    return [(host, "asyncio", _with(asyncio, Lock=Open))]


def nothing_is_looked_at_again() -> Sequence[Place]:
    """After its first picture a balancer is only looked at when it is told something."""
    right = driver.Driver._observe

    async def observe(self: driver.Driver) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._applied_at < 1.0 or not self.__dict__.get("_has_looked"):
            self.__dict__["_has_looked"] = True
            await right(self)

    return [(driver.Driver, "_observe", observe)]


def only_the_last_record_counts() -> Sequence[Place]:
    """Rewriting the journal keeps only what was written last."""
    right = InForce.records

    def records(self: InForce) -> list[Stored]:
        return right(self)[-1:]

    return [(InForce, "records", records)]


def what_is_forgotten_stays() -> Sequence[Place]:
    """A record that ends an ejection ends nothing: the next start takes up what was undone long ago."""
    return [(InForce, "_forget", lambda self, instance: None)]


def _with(module: Any, **names: object) -> Any:
    """A module, or what stands for it, with other things under these names."""

    class Instead:
        def __getattr__(self, name: str) -> Any:
            return names[name] if name in names else getattr(module, name)

    return Instead()


@dataclass(frozen=True, slots=True)
class Killing:
    """How a mutant is found: kinds of happening that must be frequent for its mistake to matter, and a schedule that is likely to."""

    insist: tuple[str, ...] = ()
    likely: int = 0


MUTANTS: dict[Mutant, Killing] = {
    write_before_intent: Killing(),
    no_fsync: Killing(),
    renamed_and_not_synced: Killing(),
    a_torn_line_stays: Killing(("disk", "sick"), 5),
    a_full_disk_is_not_told: Killing(("disk", "sick"), 5),
    the_journal_is_not_read: Killing(),
    hold_downs_are_not_adopted: Killing(("flap",), 2),
    a_return_ends_it: Killing(),
    no_look_before_the_write: Killing(("race",)),
    refused_is_done: Killing(("word_raced",), 2),
    a_lost_answer_is_a_refusal: Killing(("word_lost",), 2),
    no_lock_is_taken: Killing(("own",)),
    a_deleted_lock_is_kept: Killing(("own", "lock_deleted")),
    who_stands_by_writes: Killing(("own",)),
    two_in_one_folder: Killing(("shared", "kill"), 2),
    late_is_not_struck: Killing(("hung_disk",)),
    two_calls_at_once: Killing(("line",), 1),
    nothing_is_looked_at_again: Killing(("restart", "operator"), 4),
    only_the_last_record_counts: Killing(("kill",), 25),
    what_is_forgotten_stays: Killing(("kill",)),
}


def killed_by(mutant: Mutant, seeds: Sequence[int], insist: Sequence[str] = ()) -> tuple[int, str] | None:
    """The first of these seeds under which the mutant breaks a promise, and which."""
    for seed in seeds:
        plan = plan_of(seed, insist)
        try:
            with put(*mutant()):
                run(plan)
        except Violation as violation:
            return seed, violation.promise
    return None


def main(patience: int = 60) -> int:
    """Each mutant, the schedule that kills it, and by which promise."""
    alive = 0
    for mutant, killing in MUTANTS.items():
        found = killed_by(mutant, range(patience), killing.insist)
        alive += found is None
        print(f"{mutant.__name__}: {f'killed by schedule {found[0]} ({found[1]})' if found else 'ALIVE'}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["MUTANTS", "Killing", "Mutant", "killed_by"]
