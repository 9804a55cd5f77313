"""The probe engine: asks each target when the core wants it, never twice at once, and hands back facts in batches.

Plain http and tcp go over `lines`; what needs a name lookup, TLS or a program is a task of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from zlib import crc32

from sidecar.core.histogram import Histogram
from sidecar.core.model import Ask, Fact, Nudged, Outcome, Probed, Reason, Result, Target
from sidecar.net.dial import Resolver, Wire
from sidecar.net.lag import LagMeter
from sidecar.probes.attempt import Attempt, Question, conclude, now, one_line
from sidecar.probes.kinds import PROBES
from sidecar.probes.lines import ANNOUNCED_SHARE, Line, Lines
from sidecar.probes.options import Kind, ProbeSpec
from sidecar.probes.wheel import PER_S, Tick, Wheel

FRESH_EVERY, FRESH_AFTER_S = 20, 5.0
"""One probe in so many of a kept target opens a new connection, so that `accept` is tested too, unless it has done so just now."""
SLACK_S = 0.0005
"""What is due within this is started together: one wake-up instead of many."""
MAX_STARTS = 256
"""Starts in one wake-up, so that a backlog of ours does not hold up the loop."""
SUB_BATCH = 8
"""Starts between two looks at what has arrived."""

HOLD_SLOTS = 2
"""Good answers wait so long, and no longer, for those that are about to come."""
_FAR = sys.maxsize
_OK = Result.OK


class _State(Line):
    """What the engine holds of one target beside its line: the next asking, and the task and wire of the kinds that need them."""

    __slots__ = ("asked", "due", "is_asking", "renewed", "slot", "task", "was_brief", "wire")

    def __init__(self, target: Target, question: Question) -> None:
        super().__init__(target, question)
        self.due: Ask | None = None
        self.slot: int | None = None  # where it stands on the wheel
        self.is_asking = False
        self.task: asyncio.Task[Outcome] | None = None
        self.wire: Wire | None = None
        self.asked = -(crc32(str(target).encode()) % FRESH_EVERY)  # since the last fresh one; else all that began together would go on so
        self.renewed = float("-inf")
        self.was_brief = False  # its last idle connection ended after a single answer

    @property
    def idle_fd(self) -> int:
        """The descriptor of its idle connection, -1 = there is none."""
        return self.wire._fd if self.wire is not None else self.fd


class _Budget:
    """A token bucket: `rate` starts a second, a tenth of a second's worth at once."""

    __slots__ = ("_at", "_most", "_rate", "_tokens")

    def __init__(self, rate: float, at: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate / 10)
        self._tokens = self._most
        self._at = at

    def left(self, at: float) -> int:
        """Starts that are free now."""
        self._tokens = min(self._most, self._tokens + (at - self._at) * self._rate)
        self._at = at
        return int(self._tokens)

    def spend(self, starts: int) -> None:
        self._tokens -= starts

    @property
    def wait_s(self) -> float:
        """Seconds until one is free."""
        return max(0.0, (1 - self._tokens) / self._rate)


class Engine:
    """Probes on one loop. Every ask gives exactly one `Probed`, unless a later ask replaces it or its target is forgotten.

    Bounded: one ask, one probe and one connection per target; `max_in_flight` probes at once; `budget_per_s` starts.
    """

    def __init__(
        self,
        *,
        deliver: Callable[[Sequence[Fact]], None],
        lag: LagMeter,
        budget_per_s: float = 50_000,
        max_in_flight: int = 4096,
        allow_commands: bool = False,
    ) -> None:
        """`deliver` is called on this loop with all facts of one wake-up. `lag` must measure this loop. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._lag = lag
        self._budget = _Budget(budget_per_s, now())
        self._max_in_flight = max_in_flight
        self._allow_commands = allow_commands
        self._resolver = Resolver()
        self._questions: dict[str, Question] = {}
        self._states: dict[Target, _State] = {}
        self._lines: Lines[_State] = Lines(lag=lag, ended=self._ended, idle_ended=self._kept_ended)
        self._loop.add_reader(self._lines.fileno(), self._take)
        self._wheel: Wheel[_State] = Wheel()
        self._tick = Tick(now())
        self._timer: asyncio.TimerHandle | None = None
        self._timer_slot = _FAR
        self._running: set[asyncio.Task[Outcome]] = set()
        self._busy = 0
        self._is_full = False  # something is due and waits for a probe to end
        self._outbox: list[Probed | Nudged] = []
        self._is_flushing = False
        self._is_held = False  # what is in the outbox waits for what comes in a moment
        self._is_urgent = False  # some of it must not
        self._is_closed = False
        self.lateness = Histogram()
        """How late probes started, seconds: for each wake-up the one that had waited longest. Who reads it may leave an empty one."""

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
                self._send(Probed(_unasked(ask.target, f"no such probe: {ask.target.spec}")))
                return
            state = self._states[ask.target] = _State(ask.target, question)
        state.due = ask
        if not state.is_asking:
            self._schedule(state, ask)

    def ask_all(self, asks: Iterable[Ask]) -> None:
        """`ask` for each of these, at half the price."""
        states, put, slot_of, at = self._states, self._wheel.put, self._tick.slot, now()
        first = _FAR
        for each in asks:
            state = states.get(each.target)
            if state is None or state.slot is not None or self._is_closed:
                self.ask(each)
                continue
            state.due = each
            if not state.is_asking:
                state.slot = slot = slot_of(each.at, at)
                put(state, slot)
                if slot < first:
                    first = slot
        if first < self._timer_slot and self._busy < self._max_in_flight:
            self._arm(first)

    def forget(self, target: Target) -> None:
        """Ask it no more and drop its connection; nothing about it is delivered from now on, not even what is in flight."""
        state = self._states.pop(target, None)
        if state is None:
            return
        self._unschedule(state)
        state.due = None
        if state.task is not None:
            state.task.cancel()
        elif state.is_asking:
            self._busy -= 1
        self._close_kept(state)
        self._outbox = [fact for fact in self._outbox if _target_of(fact) != target]

    def targets(self) -> frozenset[Target]:
        """All targets asked for and not forgotten."""
        return frozenset(self._states)

    @property
    def in_flight(self) -> int:
        """Probes under way."""
        return self._busy

    async def aclose(self) -> None:
        """Cancel what is under way, close every connection, deliver nothing more. Safe twice."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._lines.fileno())
            for target in list(self._states):
                self.forget(target)
            self._lines.close()
        if self._timer is not None:
            self._timer.cancel()
        self._outbox.clear()
        if self._running:
            await asyncio.wait(self._running)

    # ---- when ----

    def _schedule(self, state: _State, ask: Ask) -> None:
        self._unschedule(state)
        state.slot = slot = self._tick.slot(ask.at, now())
        self._wheel.put(state, slot)
        if slot < self._timer_slot and self._busy < self._max_in_flight:
            self._arm(slot)

    def _unschedule(self, state: _State) -> None:
        if state.slot is not None:
            self._wheel.drop(state, state.slot)
            state.slot = None

    def _unarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_slot = None, _FAR

    def _arm(self, slot: int) -> None:
        self._unarm()
        self._timer_slot = slot
        self._timer = self._loop.call_at(slot / PER_S, self._wake)

    def _wake(self) -> None:
        """Take what has arrived, end what is overdue, start what is due; then sleep until the next."""
        self._timer, self._timer_slot = None, _FAR
        self._lines.drain()
        self._lines.expire(int(now() * PER_S))
        self._start_due()
        # the last answers of what was just started come in a moment: all the good ones together are one turn of the core
        self._is_held = bool(self._outbox) and self._busy > 0 and not (self._is_urgent or self._is_held)
        if not self._is_held:
            self._flush()
        self._sleep()

    def _sleep(self) -> None:
        """Until the next that is due, or overdue."""
        if self._is_closed:
            return
        slot = self._lines.next_deadline() or _FAR
        if self._is_held:
            slot = min(slot, int(now() * PER_S) + HOLD_SLOTS)
        self._is_full = self._busy >= self._max_in_flight
        if not self._is_full and (due := self._wheel.first()) is not None:
            wait_s = self._budget.wait_s
            slot = min(slot, max(due, int((now() + wait_s) * PER_S) + 1) if wait_s else due)
        if slot < self._timer_slot:
            self._arm(slot)

    def _start_due(self) -> None:
        """Start all that is due, as far as the budget goes, earliest first."""
        woken = now()
        until = int((woken + SLACK_S) * PER_S)
        first = self._wheel.first()
        if first is None or first > until:
            return
        self.lateness.add(max(0.0, woken - first / PER_S))
        free = min(self._budget.left(woken), self._max_in_flight - self._busy, MAX_STARTS)
        due = self._wheel.take(until, free)
        for started, state in enumerate(due, 1):
            state.slot = None
            self._start(state)
            if started % SUB_BATCH == 0:
                self._lines.drain()  # or the first to answer would seem as slow as our sending is
        self._budget.spend(len(due))
        self._tick.count(len(due), woken)

    # ---- one probe ----

    def _start(self, state: _State) -> None:
        ask, state.due = state.due, None
        assert ask is not None
        state.asked += 1
        state.is_asking = True
        self._busy += 1
        fresh = ask.fresh or (state.asked >= FRESH_EVERY and ask.at >= state.renewed + FRESH_AFTER_S)
        if fresh:
            state.asked, state.renewed = 0, ask.at
        if state.place is not None:
            self._lines.start(state, ask.timeout_s, fresh=fresh)
        else:
            self._start_task(state, ask.timeout_s, fresh=fresh)

    def _ended(self, state: _State, outcome: Outcome) -> None:
        self._busy -= 1
        state.is_asking = False
        self._outbox.append(Probed(outcome))
        if outcome.result is not _OK:
            self._is_urgent = True
        if state.due is not None:
            self._schedule(state, state.due)

    def _start_task(self, state: _State, timeout_s: float, *, fresh: bool) -> None:
        if fresh or now() >= state.announced_at:
            self._close_kept(state)
        kept, state.wire = state.wire, None
        attempt = Attempt(state.target, state.question, timeout_s, self._lag, self._resolver, kept)
        # Cancelled before its first step a task would never get to close the connection it was given: `_task_ended` does.
        task = self._loop.create_task(conclude(attempt, PROBES[state.question.spec.kind]))
        state.task = task
        self._running.add(task)
        task.add_done_callback(lambda done: self._task_ended(state, attempt, done))

    def _task_ended(self, state: _State, attempt: Attempt, task: asyncio.Task[Outcome]) -> None:
        self._running.discard(task)
        state.task = None
        attempt.drop()
        if self._states.get(state.target) is state:
            self._keep(state, attempt)
            outcome = self._outcome(state.target, task)
            state.fresh = outcome.fresh
            self._ended(state, outcome)
            self._flush_soon()
        else:
            self._busy -= 1
            if attempt.keep is not None:
                attempt.keep.close()
        self._sleep()

    def _outcome(self, target: Target, task: asyncio.Task[Outcome]) -> Outcome:
        if task.cancelled():
            return _unasked(target, "the probe was cancelled")
        error = task.exception()
        if error is None:
            return task.result()
        # A bug of ours: told to the loop's handler, never counted against the instance, and the asking goes on.
        self._loop.call_exception_handler({"message": f"probe of {target} broke", "exception": error, "task": task})
        return _unasked(target, one_line(f"our own error: {error!r}"))

    # ---- kept connections ----

    def _keep(self, state: _State, attempt: Attempt) -> None:
        wire = attempt.keep
        if wire is None:
            return
        state.wire = wire
        idle_s = float("inf") if attempt.keep_s is None else attempt.keep_s * ANNOUNCED_SHARE
        state.announced_at = now() + idle_s
        wire.rest(lambda how, unasked: self._kept_ended(state, how, unasked))

    def _kept_ended(self, state: _State, how: str, unasked: bytes) -> None:
        """News, unless the server said before that it would, or has the habit: the one before ended after a single answer too."""
        self._close_kept(state)
        at = now()
        is_brief = state.fresh and not unasked
        has_habit = is_brief and state.was_brief
        state.was_brief = is_brief
        is_idle_timeout = unasked.startswith((b"HTTP/1.1 408", b"HTTP/1.0 408"))
        if at < state.announced_at and not is_idle_timeout and not has_habit:
            self._send(Nudged(state.target, at, f"the idle connection was {how}" if not unasked else f"the idle connection {how}"))

    def _close_kept(self, state: _State) -> None:
        self._lines.drop(state)
        if state.wire is not None:
            state.wire.close()
            state.wire = None

    # ---- facts ----

    def _take(self) -> None:
        """The lines have news; if it is more than a batch, others on this loop get their turn in between."""
        self._lines.take()
        self._flush()
        if self._is_held:
            self._is_held = False
            self._unarm()
            self._sleep()
        elif self._is_full:
            self._sleep()

    def _send(self, fact: Probed | Nudged) -> None:
        if not self._is_closed:
            self._outbox.append(fact)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = self._is_urgent = False
        facts, self._outbox = self._outbox, []
        if facts and not self._is_closed:
            self._deliver(tuple(facts))


def _unasked(target: Target, why: str) -> Outcome:
    at = now()
    return Outcome(target, Result.UNKNOWN, at, at, Reason.CANCELLED, one_line(why))


def _target_of(fact: Probed | Nudged) -> Target:
    return fact.outcome.target if isinstance(fact, Probed) else fact.target
