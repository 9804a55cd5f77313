"""The loop that everything else hangs on: facts in, turn of the core, intents to disk, changes to balancers, questions to the prober.

Owns the World. Synchronous between facts and effects: nothing here waits for a disk, a balancer or a sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lbplugins.values import Change, Ref
from sidecar.core.measure import measure
from sidecar.core.model import (
    Act,
    Ask,
    Decision,
    Ejection,
    Fact,
    Hold,
    Instance,
    Intent,
    Journaled,
    Resumed,
    Tick,
)
from sidecar.core.samples import Tallies
from sidecar.core.turn import turn
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.journal.codec import Json, encode
from sidecar.journal.intents import JournalError
from sidecar.journal.recorder import Recorder

log = logging.getLogger("sidecar.reconcile")

PAUSED_S = 2.0
"""A gap between two turns longer than this means that we did not run; the self-check alone makes four a second."""

SHORTEST_REST_S = 0.01
"""Between two looks that no fact has asked for."""

JOURNAL_WITHIN_S = 2.0
"""A disk that takes longer for an intent counts as failed until it has taken it."""


@dataclass(slots=True)
class _Writing:
    """Intents on their way to the disk. `is_answered`: the core was told what became of them."""

    intents: tuple[Intent, ...]
    timer: asyncio.TimerHandle | None = None
    is_answered: bool = False


class Journal(Protocol):
    """Where intents are written down; blocks on the disk, so it is called from a thread."""

    def append(self, intents: Sequence[Intent]) -> None: ...
    def compact(self) -> None: ...


class Prober(Protocol):
    """What asks the targets."""

    def ask_all(self, asks: Iterable[Ask]) -> None: ...


class Teller(Protocol):
    """One balancer's driver."""

    def tell(self, changes: Sequence[Change]) -> None: ...
    def look(self) -> None: ...


class Reconciler:
    """One per process. `deliver` from our loop, `deliver_threadsafe` from others."""

    def __init__(
        self,
        *,
        prober: Prober,
        journal: Journal,
        recorder: Recorder | None,
        latencies: Latencies,
        on_decision: Callable[[Decision], None],
        on_facts: Callable[[Sequence[Fact]], None],
        pen: Executor | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        """`tallies` count probes; who counts the other facts is `on_facts`.

        `on_facts` and `on_decision` hear of each turn after it; they must not wait. `pen` runs the journal's calls, one at a time."""
        self.world = World()
        self.tellers: Mapping[str, Teller] = {}
        self.holds: tuple[Hold, ...] = ()
        self.turns = 0
        self.turned_at = float("-inf")
        self._waiting: list[asyncio.Future[None]] = []
        self.journal_fault = ""
        self._loop = asyncio.get_running_loop()
        self._prober, self._journal, self._recorder = prober, journal, recorder
        self._latencies, self._tallies = latencies, tallies
        self._on_decision, self._on_facts = on_decision, on_facts
        self._inbox: list[Fact] = []
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._pen = pen or ThreadPoolExecutor(1, thread_name_prefix="intents")
        self._newest_ejection: dict[Instance, Ejection] = {}
        self._holds_of: dict[str, tuple[Hold, ...]] = {}
        self._is_closed = self._is_trying = self._wants_segment = False

    def deliver(self, facts: Sequence[Fact]) -> None:
        """Facts for the next turn, which comes before anything else that waits for the loop."""
        self._inbox.extend(facts)
        if not self._due and not self._is_closed:
            self._due = True
            self._loop.call_soon(self._turn)

    def deliver_threadsafe(self, facts: Sequence[Fact]) -> None:
        self._loop.call_soon_threadsafe(self.deliver, facts)

    def next_journaled(self) -> asyncio.Future[None]:
        """Done when intents have next been written down (or could not be) and taken in."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        return future

    def set_prober(self, prober: Prober) -> None:
        """The prober delivers to us and we ask it: one of the two must come second."""
        self._prober = prober

    def close(self) -> None:
        """Decide nothing more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def finish(self) -> None:
        """Wait, after `close`, until what is being written down is on disk. Blocks; use a thread."""
        self._pen.shutdown(wait=True)

    # ---- one turn ----

    def _turn(self) -> None:
        self._due = False
        if self._is_closed:
            return
        now = self._loop.time()
        facts: Sequence[Fact] = self._inbox
        self._inbox = []
        if self.turns and now - self.turned_at > PAUSED_S:
            facts = [Resumed(now, now - self.turned_at), *facts]
        if self._recorder is not None and (self._wants_segment or self._recorder.wants_segment):
            self._wants_segment = False
            self._recorder.begin(_snapshot(self.world), self.world.policy, now, time.time())
        decision, asks = turn(self.world, facts, now)
        self.turns += 1
        self.turned_at = now
        if self._recorder is not None:
            self._recorder.batch(now, facts, decision)
        self._prober.ask_all(asks)
        if decision is not None:
            self._carry_out(decision)
        if decision is not None or self._timer is None:
            self._rest(now)
        # what only counts and tells comes last: should it fail, nothing that was decided is lost
        measure(self._latencies, self.world, facts, now, self._tallies)
        self._on_facts(facts)
        if self._waiting and any(isinstance(fact, Journaled) for fact in facts):
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
        if decision is not None:
            self._on_decision(decision)

    def _carry_out(self, decision: Decision) -> None:
        self._keep_holds(decision)
        if decision.intents:
            self._write_down(decision.intents)
        for name, changes in (decision.changes or {}).items():
            if (teller := self.tellers.get(name)) is not None:
                teller.tell(changes)
        for name in decision.looks:
            if (teller := self.tellers.get(name)) is not None:
                teller.look()

    def _rest(self, now: float) -> None:
        """Until the next fact, or until time alone may have changed something."""
        if self._timer is not None:
            self._timer.cancel()
        wake_at = max(self.world.wake_at(), now + SHORTEST_REST_S)
        self._timer = self._loop.call_at(wake_at, self._wake) if wake_at < float("inf") else None

    def _wake(self) -> None:
        self._timer = None
        self.deliver((Tick(self._loop.time()),))

    def _keep_holds(self, decision: Decision) -> None:
        """A decision tells the holds of the services it looked at; the others' last ones stand."""
        found: dict[str, list[Hold]] = {name: [] for name in decision.services}
        for hold in decision.holds:
            if hold.service in found:
                found[hold.service].append(hold)
        self._holds_of.update((name, tuple(holds)) for name, holds in found.items())
        self.holds = tuple(h for name in self.world.services for h in self._holds_of.get(name, ()))

    # ---- write-ahead ----

    def _write_down(self, intents: tuple[Intent, ...]) -> None:
        """Intents that will touch a balancer or bind us go to disk first; what is only told needs none."""
        binding, told = tuple(filter(is_binding, intents)), tuple(i for i in intents if not is_binding(i))
        if told:
            self.deliver((Journaled(told, self._loop.time()),))
        if binding and not self._is_closed:
            writing = _Writing(binding)
            writing.timer = self._loop.call_later(JOURNAL_WITHIN_S, self._is_too_slow, writing)
            self._newest_ejection.update(
                (i.ejection.instance, i.ejection) for i in binding if i.act is Act.EJECT and i.ejection is not None
            )
            self._pen.submit(self._append, writing)

    def strike(self, ejections: Sequence[Ejection], why: str) -> None:
        """These are ours no more, though no decision said so: the journal forgets them."""
        self._write_down(tuple(Intent(Act.FORGET, self._loop.time(), "sidecar", why, e.instance, e) for e in ejections))

    def _append(self, writing: _Writing) -> None:
        error = _fault_of(partial(self._journal.append, writing.intents))
        with contextlib.suppress(RuntimeError):  # our loop is gone: the next start reads it from the disk
            self._loop.call_soon_threadsafe(self._written, writing, error)

    def _written(self, writing: _Writing, error: str) -> None:
        self.journal_fault = error
        if not writing.is_answered:
            self._answer(writing, error)
        elif not error:
            # they were given up and nothing came of them: the journal must not say otherwise, unless the same has been decided anew
            late = [i.ejection for i in writing.intents if i.act is Act.EJECT and i.ejection is not None]
            self.strike([e for e in late if self._newest_ejection.get(e.instance) is e], "written down too late")

    def _is_too_slow(self, writing: _Writing) -> None:
        """A disk that hangs is as good as none: nobody goes out, and who comes back need not wait for it."""
        if not writing.is_answered:
            self.journal_fault = f"the disk has not taken them within {JOURNAL_WITHIN_S:g} s; repair it or free it of load"
            self._answer(writing, self.journal_fault)

    def _answer(self, writing: _Writing, error: str) -> None:
        writing.is_answered = True
        if writing.timer is not None:
            writing.timer.cancel()
        self.deliver((Journaled(writing.intents, self._loop.time(), error),))

    def try_journal(self) -> None:
        """After a failure: see in the background whether the journal can be written again. One try at a time."""
        if not self._is_closed and not self._is_trying:
            self._is_trying = True
            self._pen.submit(self._try)

    def write_anew(self) -> None:
        """The state folder has become another one: all that is in force goes into it, and a new segment of the recorder."""
        self._wants_segment = True
        self.try_journal()

    def _try(self) -> None:
        error = _fault_of(self._journal.compact)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tried, error)

    def _tried(self, error: str) -> None:
        self._is_trying, self.journal_fault = False, error

    # ---- beside the way ----

    def notes_of(self, balancer: str) -> dict[Ref, str]:
        """The last journaled note of each server of this balancer."""
        return {server.ref: note for server, note in self.world.notes.items() if server.balancer == balancer}


def _snapshot(world: World) -> Json:
    """All that is known. Nothing of it is garbage, and looking for some half-way takes longer than the whole."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return encode(world, World)
    finally:
        if was_on:
            gc.enable()


def _fault_of(write: Callable[[], None]) -> str:
    """Why it could not be written, "" = it was. Whatever it is, somebody waits for a word."""
    try:
        write()
    except JournalError as failure:
        return str(failure)
    except Exception as failure:
        log.exception("the intents journal failed")
        return f"{type(failure).__name__}: {failure}"
    return ""


def is_binding(intent: Intent) -> bool:
    """Must this be on disk before it is acted on? What observe mode only tells need not."""
    is_only_told = intent.ejection is not None and not intent.ejection.enforced
    return not (is_only_told and intent.act in (Act.EJECT, Act.RETURN, Act.FORGET))
