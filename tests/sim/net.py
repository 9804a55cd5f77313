"""What is outside the sidecar and reached over a network: instances that answer probes, balancers, and the links to both.

A balancer handles what it is sent in the order of sending. A message that is on its way arrives although its sender has died since; an
answer may be slow, lost, or cut off.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from lbplugins import memory
from lbplugins.api import BalancerError
from lbplugins.memory import Box, Memory, MemoryOptions
from lbplugins.values import FULL, OURS, READY, Address, Change, Operator, Ref, Refusal, Seen, Serve, Setting, Traits
from sidecar.core.histogram import Histogram
from sidecar.core.model import Ask, Fact, Outcome, Probed, Reason, Result, Target
from sidecar.net.lag import LagMeter
from tests.sim.loop import CURRENT, Killed, Process, VirtualLoop

T = TypeVar("T")

LETS_GO_S = 0.3


class Line(StrEnum):
    """How a link is."""

    GOOD = "good"
    SLOW = "slow"
    CUT = "cut"
    """Nothing arrives, and one is told so."""
    DEAF = "deaf"
    """What is sent arrives, its answer breaks off."""
    SILENT = "silent"
    """What is sent arrives, its answer never does."""


class Link:
    """The way to one balancer."""

    def __init__(self, loop: VirtualLoop, rng: Random) -> None:
        self.loop, self.rng, self.line = loop, rng, Line.GOOD
        self.changed_at = float("-inf")
        self._world = contextvars.Context()
        self._arrived_at = 0.0

    def become(self, line: Line) -> None:
        self.line, self.changed_at = line, self.loop.now

    async def ask(self, work: Callable[[], T]) -> T:
        """What `work`, done at the other end, gives. BalancerError when no answer comes back."""
        answer: asyncio.Future[T] = self.loop.create_future()
        if self.line is Line.CUT:
            raise BalancerError("connection refused")
        self._arrived_at = max(self._arrived_at + 1e-6, self.loop.now + self._delay_s())
        self.loop.call_at(self._arrived_at, self._arrive, work, answer, context=self._world)
        return await answer

    def _arrive(self, work: Callable[[], T], answer: asyncio.Future[T]) -> None:
        result = work()
        if self.line is Line.DEAF or self.line is Line.CUT:
            self.loop.call_later(self._delay_s(), self._break_off, answer)
        elif self.line is not Line.SILENT:
            self.loop.call_later(self._delay_s(), lambda: None if answer.done() else answer.set_result(result))

    def _break_off(self, answer: asyncio.Future[T]) -> None:
        if not answer.done():
            answer.set_exception(BalancerError("the connection broke off: nobody knows what was done"))

    def _delay_s(self) -> float:
        return self.rng.uniform(0.2, 1.2) if self.line is Line.SLOW else self.rng.choice([0.0003, 0.0005, 0.001, 0.02])


@dataclass(slots=True)
class Hands:
    """Who spoke last about one server on each axis: "", "us", "hand", or "both" where nobody could tell any more."""

    ours: str = ""
    operator: str = ""
    typed_at: float = 0.0
    """When a hand last said something on the operator's axis."""


class Watcher:
    """Hears of everything that a balancer is told. The default hears nothing."""

    def about_to_apply(self, balancer: Balancer, process: Process) -> None: ...
    def about_to_write(self, balancer: Balancer, process: Process, change: Change) -> None: ...
    def wrote(self, balancer: Balancer, process: Process, change: Change) -> None: ...
    def refused(self, balancer: Balancer, process: Process, change: Change, why: str) -> None: ...
    def pictured(self, balancer: Balancer, process: Process, moved: Mapping[str, int]) -> None: ...
    def violated(self, promise: str, what: str) -> None: ...


class Balancer:
    """A balancer as it really is. `down`: servers that its own check has taken out."""

    def __init__(self, name: str, servers: Mapping[Ref, Address], link: Link, watcher: Watcher) -> None:
        self.name, self.link, self.watcher = name, link, watcher
        self.generation = 1
        self.box = Box({ref: Seen(address=where, serving=True, weight=100, generation="g1") for ref, where in servers.items()})
        self.down: set[Ref] = set()
        self.hands = {ref: Hands() for ref in servers}
        self.moved: dict[str, int] = {}
        """How often others than the sidecar that asks have changed something in a pool."""
        self.before_write: list[Callable[[], None]] = []
        """What an operator does right before our next write arrives."""

    @property
    def lock_path(self) -> str:
        return f"/run/{self.name}.lock"

    def seen(self, ref: Ref) -> Seen:
        return self.box.servers[ref]

    def serves(self, ref: Ref) -> bool:
        return bool(self.box.servers[ref].serving)

    # ---- others' hands ----

    def touch(self, ref: Ref, **changes: Any) -> None:
        """Somebody else than we changes this server."""
        self.moved[ref.pool] = self.moved.get(ref.pool, 0) + 1
        self._set(ref, **changes)

    def check(self, ref: Ref, *, is_down: bool) -> None:
        (self.down.add if is_down else self.down.discard)(ref)
        self.touch(ref)

    def restart(self, *, keeps_operators: bool) -> None:
        """A restart or reload: what was told at run time is forgotten."""
        self.generation += 1
        for ref, hands in self.hands.items():
            self.touch(ref, ours=Setting(), generation=f"g{self.generation}")
            hands.ours = ""
            if not keeps_operators:
                self.touch(ref, operator=READY)
                hands.operator = ""

    def _set(self, ref: Ref, **changes: Any) -> None:
        seen = replace(self.box.servers[ref], **changes)
        self.box.servers[ref] = replace(seen, serving=seen.ours.serve is FULL and seen.operator is READY and ref not in self.down)

    # ---- what we see and tell ----

    def snapshot(self, pools: frozenset[str]) -> tuple[dict[Ref, Seen], dict[str, int]]:
        return {ref: seen for ref, seen in self.box.servers.items() if ref.pool in pools}, dict(self.moved)

    def tell(self, plugin: Remote, process: Process, changes: Sequence[Change]) -> Sequence[Refusal]:
        """The memory plugin's own compare-and-set, one change after the other, at the moment of arrival."""
        while self.before_write:
            self.before_write.pop(0)()
        refusals: list[Refusal] = []
        for change in changes:
            before = self.box.servers.get(change.ref)
            would = not plugin.differs(before, change) if before is not None else False
            if would:
                self.watcher.about_to_write(self, process, change)
            refused = _at_once(Memory.apply(plugin, [change]))
            refusals += refused
            if refused:
                self.watcher.refused(self, process, change, refused[0].reason)
                continue
            self._set(change.ref)
            hands = self.hands[change.ref]
            if change.on is OURS:
                hands.ours = "" if change.want.serve is FULL else "us"
            else:
                hands.operator = "" if change.want.serve is FULL else "us"
            self.watcher.wrote(self, process, change)
        return refusals


class RemoteOptions(BaseModel):
    """Which simulated balancer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str


class Remote(Memory):
    """The memory plugin at the far end of a link: it sees and tells what `Balancer` has."""

    Options = RemoteOptions  # type: ignore[assignment]
    traits = Traits(drain=True, kill=True)
    balancers: ClassVar[Mapping[str, Balancer]] = {}

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, RemoteOptions)
        self.balancer = self.balancers[options.at]
        super().__init__(MemoryOptions(), self.balancer.box)
        self._is_asked = False

    def lock_path(self) -> str | None:
        return self.balancer.lock_path

    def differs(self, before: Seen, change: Change) -> bool:
        """Will compare-and-set refuse this? Told by the plugin's own rule, so that a broken one shows."""
        return bool(vars(memory)["differences"](before, change.expect))

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        process = _current()
        async with self._alone():
            seen, moved = await self.balancer.link.ask(lambda: self.balancer.snapshot(pools))
        self.balancer.watcher.pictured(self.balancer, process, moved)
        return seen

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        process = _current()
        self.balancer.watcher.about_to_apply(self.balancer, process)
        process.point("before the balancer is told")
        async with self._alone():
            return await self.balancer.link.ask(lambda: self._arrived(process, changes))

    def _arrived(self, process: Process, changes: Sequence[Change]) -> Sequence[Refusal]:
        refusals = self.balancer.tell(self, process, changes)
        try:
            process.point("after the balancer was told")
        except Killed:
            pass  # it is the sender that is gone, not we
        return refusals

    def _alone(self) -> _Alone:
        return _Alone(self)


class _Alone:
    """observe and apply must never overlap; and this plugin takes its time to let go when a deadline cuts it off."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def __aenter__(self) -> None:
        if self._remote._is_asked:
            self._remote.balancer.watcher.violated("contract", f"{self._remote.balancer.name} is asked while it is still being asked")
        self._remote._is_asked = True

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is asyncio.CancelledError:
            await asyncio.sleep(LETS_GO_S)
        self._remote._is_asked = False


class CostlyRemote(Remote):
    """One whose every change is a reload."""

    traits = Traits(costly=True)


# ---- instances ----

Answer = tuple[Result, Reason | None, float]
"""Result, reason, and the seconds it took."""


class Instances:
    """How each address answers. One that is not named answers well."""

    def __init__(self, rng: Random) -> None:
        self.ways: dict[Address, str] = {}
        self.bad_at: dict[Address, float] = {}
        self._rng = rng

    def answer(self, where: Address, now: float, timeout_s: float) -> Answer:
        way = self.ways.get(where, "good")
        if way == "flaky":
            way = self._rng.choice(["good", "status"])
        if way not in ("good", "unknown"):
            self.bad_at[where] = now
        match way:
            case "refused":
                return Result.FAIL, Reason.REFUSED, 0.0002
            case "hangs":
                return Result.FAIL, Reason.TIMEOUT, timeout_s
            case "status":
                return Result.FAIL, Reason.STATUS, 0.001
            case "unknown":
                return Result.UNKNOWN, Reason.OWN_NETWORK, 0.001
            case _:
                return Result.OK, None, self._rng.uniform(0.0005, 0.02)


class Prober:
    """Stands where the engine stands: asks when told to, one question per target at a time."""

    def __init__(
        self, instances: Instances, *, deliver: Callable[[Sequence[Fact]], None], lag: LagMeter, allow_commands: bool = False
    ) -> None:
        self._instances, self._deliver, self._lag = instances, deliver, lag
        self._loop = asyncio.get_running_loop()
        self._due: dict[Target, Ask] = {}
        self._asked: set[Target] = set()
        self.lateness = Histogram()
        self._is_closed = False

    def specs(self, specs: Mapping[str, object]) -> None: ...

    def ask_all(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            self._due[ask.target] = ask
            if ask.target not in self._asked:
                self._loop.call_at(max(ask.at, self._loop.time()), self._start, ask)

    def forget(self, target: Target) -> None:
        self._due.pop(target, None)
        self._asked.discard(target)

    def targets(self) -> frozenset[Target]:
        return frozenset(self._due.keys() | self._asked)

    async def aclose(self) -> None:
        self._is_closed = True

    def _start(self, ask: Ask) -> None:
        if self._due.get(ask.target) is not ask or ask.target in self._asked or self._is_closed:
            return
        del self._due[ask.target]
        self._asked.add(ask.target)
        started = self._loop.time()
        result, reason, took = self._instances.answer(ask.target.address, started, ask.timeout_s)
        self._loop.call_later(took, self._end, ask, Outcome(ask.target, result, started, started + took, reason, fresh=ask.fresh))

    def _end(self, ask: Ask, outcome: Outcome) -> None:
        if ask.target not in self._asked or self._is_closed:
            return
        self._asked.discard(ask.target)
        now = self._loop.time()
        if self._lag.overlapping(outcome.started, now) > max(0.005, ask.timeout_s / 5):
            outcome = replace(outcome, result=Result.UNKNOWN, reason=Reason.OWN_LAG)
        self._deliver((Probed(replace(outcome, ended=now)),))
        if (due := self._due.get(ask.target)) is not None:
            self._loop.call_at(max(due.at, now), self._start, due)


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


def _current() -> Process:
    process = CURRENT.get()
    assert process is not None
    return process


__all__ = ["Balancer", "CostlyRemote", "Instances", "Line", "Link", "Operator", "Prober", "Remote", "RemoteOptions", "Serve", "Watcher"]
