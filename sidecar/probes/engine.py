"""The probe engine: asks each target when the core wants it, never twice at once, and hands back facts in batches."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from sidecar.core.model import Ask, Fact, Nudged, Outcome, Probed, Reason, Result, Target
from sidecar.net.dial import Resolver, Wire
from sidecar.net.lag import LagMeter
from sidecar.probes.attempt import Attempt, Question, conclude, now, one_line
from sidecar.probes.kinds import PROBES
from sidecar.probes.options import Kind, ProbeSpec

FRESH_EVERY = 20
"""One probe in so many of a kept target opens a new connection, so that `accept` is tested too."""
SLACK_S = 0.0005
"""What is due within this is started together: one wake-up instead of many."""
ANNOUNCED_SHARE = 0.8
"""From this share of the idle time that a server has announced, its closing is no news and the connection is not used any more."""


class _State:
    """What the engine holds of one target: the next asking, the one under way, the kept connection."""

    __slots__ = ("announced_at", "asked", "due", "entry", "kept", "question", "target", "task")

    def __init__(self, target: Target, question: Question) -> None:
        self.target = target
        self.question = question
        self.due: Ask | None = None
        self.entry = 0  # which heap entry is valid
        self.task: asyncio.Task[Outcome] | None = None
        self.kept: Wire | None = None
        self.announced_at = float("inf")  # from when on the server may close the kept one, by its own announcement
        self.asked = 0


class _Budget:
    """A token bucket: `rate` starts a second, a tenth of a second's worth at once."""

    __slots__ = ("_at", "_most", "_rate", "_tokens")

    def __init__(self, rate: float, at: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate / 10)
        self._tokens = self._most
        self._at = at

    def take(self, at: float) -> float:
        """0 = taken; else the seconds until there is one."""
        self._tokens = min(self._most, self._tokens + (at - self._at) * self._rate)
        self._at = at
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Engine:
    """Probes on one loop. Every ask gives exactly one `Probed`, unless a later ask replaces it or its target is forgotten.

    Bounded: one ask, one probe and one connection per target; `max_in_flight` probes at once; `budget_per_s` starts.
    """

    def __init__(
        self,
        *,
        deliver: Callable[[Sequence[Fact]], None],
        lag: LagMeter,
        budget_per_s: float = 20000,
        max_in_flight: int = 1024,
        allow_commands: bool = False,
    ) -> None:
        """`deliver` is called on this loop with all facts of one turn. `lag` must measure this loop. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._lag = lag
        self._budget = _Budget(budget_per_s, now())
        self._max_in_flight = max_in_flight
        self._allow_commands = allow_commands
        self._resolver = Resolver()
        self._questions: dict[str, Question] = {}
        self._states: dict[Target, _State] = {}
        self._heap: list[tuple[float, int, _State]] = []
        self._entries = count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._running: set[asyncio.Task[Outcome]] = set()
        self._outbox: list[Probed | Nudged] = []
        self._is_flushing = False
        self._is_closed = False

    def specs(self, specs: Mapping[str, ProbeSpec]) -> None:
        """Replace all known specs by these, named by their keys. Targets of the others are forgotten. ValueError changes nothing."""
        questions = {}
        for key, spec in specs.items():
            if spec.kind is Kind.COMMAND and not self._allow_commands:
                raise ValueError(f"probe {key} runs a program; command probes are off unless the configuration belongs to root")
            questions[key] = Question(spec)
        self._questions = questions
        for target, state in list(self._states.items()):
            question = questions.get(target.spec)
            if question is None:
                self.forget(target)
            else:
                state.question = question

    def ask(self, ask: Ask) -> None:
        """Probe the target at `ask.at`; replaces what was to be asked of it next. While it is in flight, it waits for the end."""
        if self._is_closed:
            return
        state = self._states.get(ask.target)
        if state is None:
            question = self._questions.get(ask.target.spec)
            if question is None:
                self._send(Probed(self._unasked(ask.target, f"no such probe: {ask.target.spec}")))
                return
            state = self._states[ask.target] = _State(ask.target, question)
        state.due = ask
        if state.task is None:
            self._schedule(state, ask)

    def forget(self, target: Target) -> None:
        """Ask it no more and drop its connection; nothing about it is delivered from now on, not even what is in flight."""
        state = self._states.pop(target, None)
        if state is None:
            return
        state.due, state.entry = None, 0
        self._close_kept(state)
        if state.task is not None:
            state.task.cancel()
        self._outbox = [fact for fact in self._outbox if _target_of(fact) != target]

    def targets(self) -> frozenset[Target]:
        """All targets asked for and not forgotten."""
        return frozenset(self._states)

    @property
    def in_flight(self) -> int:
        """Probes under way."""
        return len(self._running)

    async def aclose(self) -> None:
        """Cancel what is under way, close every connection, deliver nothing more. Safe twice."""
        self._is_closed = True
        for target in list(self._states):
            self.forget(target)
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        self._outbox.clear()
        if self._running:
            await asyncio.wait(self._running)

    # ---- when ----

    def _schedule(self, state: _State, ask: Ask) -> None:
        state.entry = next(self._entries)
        heapq.heappush(self._heap, (ask.at, state.entry, state))
        if len(self._heap) > 2 * len(self._states) + 64:
            self._compact()
        if ask.at < self._timer_at and len(self._running) < self._max_in_flight:
            self._arm(ask.at)

    def _compact(self) -> None:
        """Drop the entries that later asks have replaced."""
        self._heap = [entry for entry in self._heap if entry[2].entry == entry[1]]
        heapq.heapify(self._heap)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._start_due)

    def _start_due(self) -> None:
        """Start all that is due, as far as the budget goes, earliest first; then sleep until the next."""
        self._timer, self._timer_at = None, float("inf")
        woken = now()
        while self._heap and len(self._running) < self._max_in_flight:
            at, entry, state = self._heap[0]
            if state.entry != entry:
                heapq.heappop(self._heap)
                continue
            if at > woken + SLACK_S:
                self._arm(at)
                return
            if wait_s := self._budget.take(woken):
                self._arm(woken + wait_s)
                return
            heapq.heappop(self._heap)
            self._start(state)

    # ---- one probe ----

    def _start(self, state: _State) -> None:
        ask = state.due
        assert ask is not None
        state.due, state.entry = None, 0
        kept = self._take_kept(state, ask)
        attempt = Attempt(state.target, state.question, ask.timeout_s, self._lag, self._resolver, kept)
        # Cancelled before its first step a task would never get to close the connection it was given: `_ended` does.
        task = self._loop.create_task(conclude(attempt, PROBES[state.question.spec.kind]))
        state.task = task
        state.asked += 1
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(state, attempt, done))

    def _take_kept(self, state: _State, ask: Ask) -> Wire | None:
        is_turn = state.asked % FRESH_EVERY == FRESH_EVERY - 1
        if ask.fresh or is_turn or now() >= state.announced_at:
            self._close_kept(state)
        kept, state.kept = state.kept, None
        return kept

    def _ended(self, state: _State, attempt: Attempt, task: asyncio.Task[Outcome]) -> None:
        self._running.discard(task)
        state.task = None
        attempt.drop()
        if self._states.get(state.target) is state:
            self._keep(state, attempt)
            self._send(Probed(self._outcome(state.target, task)))
            if state.due is not None:
                self._schedule(state, state.due)
        elif attempt.keep is not None:
            attempt.keep.close()
        if self._timer is None and self._heap and not self._is_closed:
            self._arm(max(self._heap[0][0], now()))

    def _outcome(self, target: Target, task: asyncio.Task[Outcome]) -> Outcome:
        if task.cancelled():
            return self._unasked(target, "the probe was cancelled")
        error = task.exception()
        if error is None:
            return task.result()
        # A bug of ours: told to the loop's handler, never counted against the instance, and the asking goes on.
        self._loop.call_exception_handler({"message": f"probe of {target} broke", "exception": error, "task": task})
        return self._unasked(target, one_line(f"our own error: {error!r}"))

    def _unasked(self, target: Target, why: str) -> Outcome:
        at = now()
        return Outcome(target, Result.UNKNOWN, at, at, Reason.CANCELLED, one_line(why))

    # ---- kept connections ----

    def _keep(self, state: _State, attempt: Attempt) -> None:
        wire = attempt.keep
        if wire is None:
            return
        state.kept = wire
        idle_s = float("inf") if attempt.keep_s is None else attempt.keep_s * ANNOUNCED_SHARE
        state.announced_at = now() + idle_s
        wire.rest(lambda how, unasked: self._kept_ended(state, how, unasked))

    def _kept_ended(self, state: _State, how: str, unasked: bytes) -> None:
        self._close_kept(state)
        at = now()
        is_idle_timeout = unasked.startswith((b"HTTP/1.1 408", b"HTTP/1.0 408"))
        if at < state.announced_at and not is_idle_timeout:
            self._send(Nudged(state.target, at, f"the idle connection was {how}" if not unasked else f"the idle connection {how}"))

    def _close_kept(self, state: _State) -> None:
        if state.kept is not None:
            state.kept.close()
            state.kept = None

    # ---- facts ----

    def _send(self, fact: Probed | Nudged) -> None:
        if self._is_closed:
            return
        self._outbox.append(fact)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        facts, self._outbox = self._outbox, []
        if facts:
            self._deliver(tuple(facts))


def _target_of(fact: Probed | Nudged) -> Target:
    return fact.outcome.target if isinstance(fact, Probed) else fact.target
