"""A whole sidecar in virtual time: the real core between simulated instances and one simulated balancer.

`Lab.run(seconds)` steps the clock; a test scripts instances (`answer`), the balancer (`servers`) and the operator by plain assignment.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lbplugins.values import Address, Axis, Change, Operator, Ref, Seen, Serve, Setting
from sidecar.core.guard import serves
from sidecar.core.known import InstanceState
from sidecar.core.model import (
    Adopted,
    Applied,
    Ask,
    Configured,
    Decision,
    Event,
    Fact,
    Instance,
    Intent,
    Journaled,
    Nudged,
    Outcome,
    Pictured,
    Probed,
    Reason,
    Result,
    Target,
    Tick,
)
from sidecar.core.policy import BalancerPolicy, Mode, Policy, ProbePlan, ServicePolicy
from sidecar.core.turn import turn
from sidecar.core.world import World

Answer = Callable[[float, float], tuple[Result, Reason | None, float]]
"""(now, timeout) -> result, reason, seconds it took."""


def good(seconds: float = 0.0005) -> Answer:
    return lambda now, timeout: (Result.OK, None, seconds) if seconds < timeout else (Result.FAIL, Reason.TIMEOUT, timeout)


def refused() -> Answer:
    return lambda now, timeout: (Result.FAIL, Reason.REFUSED, 0.0002)


def hangs() -> Answer:
    return lambda now, timeout: (Result.FAIL, Reason.TIMEOUT, timeout)


def status_500() -> Answer:
    return lambda now, timeout: (Result.FAIL, Reason.STATUS, 0.001)


def own_lag() -> Answer:
    return lambda now, timeout: (Result.UNKNOWN, Reason.OWN_LAG, timeout)


def policy(
    mode: Mode = Mode.ACT,
    *,
    balancer: BalancerPolicy | None = None,
    probes: Sequence[ProbePlan] = (ProbePlan("http:/health"),),
    **more: object,
) -> Policy:
    service = ServicePolicy("shop", mode, tuple(probes), pools=(("edge", "shop"),))
    return Policy({"shop": replace(service, **more)}, {"edge": balancer or BalancerPolicy("edge", drain=True, kill=True)})  # type: ignore[arg-type]


@dataclass
class Lab:
    """n instances 10.0.0.1..n:80, servers s1..sn of pool `shop` on balancer `edge`."""

    n: int = 4
    policy: Policy = field(default_factory=policy)
    now: float = 1000.0
    observe_every: float = 1.0
    apply_takes: float = 0.002
    _queue: list[tuple[float, int, object]] = field(default_factory=list, init=False)
    _turn: int = field(default=0, init=False)
    _epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.answers: dict[Address, Answer] = {Address(f"10.0.0.{i}", 80): good() for i in range(1, self.n + 1)}
        self.servers: dict[Ref, Seen] = {
            Ref("shop", f"s{i}"): Seen(address=Address(f"10.0.0.{i}", 80), serving=True, weight=100, generation="g1", note="E w=100")
            for i in range(1, self.n + 1)
        }
        self.reachable = True
        self.disk_full = False
        self.events: list[Event] = []
        self.journal: list[Intent] = []
        self.written: list[tuple[float, Change]] = []
        self.decisions: list[Decision] = []
        self.start()

    def start(self, adopted: Adopted | None = None) -> None:
        """(Re)start the sidecar: a new world, the same balancer and instances."""
        self.world = World()
        self._in_flight: set[Target] = set()
        self._waiting: dict[Target, Ask] = {}
        self._epoch += 1
        self._begin(adopted)

    def _begin(self, adopted: Adopted | None) -> None:
        if adopted is not None:
            self.world.absorb(adopted)
        self.feed(Configured(self.policy, self.now))
        self._at(self.now, self._observe)
        self._at(self.now, self._tick)

    # ---- what tests use ----

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            at, _, what = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            assert callable(what)
            what()
        self.now = end

    def instance(self, i: int) -> InstanceState:
        return self.world.services["shop"].instances[Instance("shop", Address(f"10.0.0.{i}", 80))]

    def seen(self, i: int) -> Seen:
        return self.servers[Ref("shop", f"s{i}")]

    def set_seen(self, i: int, **changes: object) -> None:
        """The balancer's side changes, by an operator or by itself."""
        ref = Ref("shop", f"s{i}")
        seen = replace(self.servers[ref], **changes)  # type: ignore[arg-type]
        serving = seen.ours.serve is Serve.FULL and seen.operator is Operator.READY
        self.servers[ref] = replace(seen, serving=serving if "serving" not in changes else seen.serving)

    def answer(self, i: int, how: Answer) -> None:
        self.answers[Address(f"10.0.0.{i}", 80)] = how

    def out(self) -> list[int]:
        return [i for i in range(1, self.n + 1) if self.seen(i).ours.serve is Serve.NONE]

    def in_rotation(self) -> int:
        return sum(serves(self.world, s) for s in self.world.services["shop"].instances.values())

    def told(self, kind: str) -> list[Event]:
        return [e for e in self.events if e.kind == kind]

    def holds(self) -> set[str]:
        return {h.name.value for h in self.decisions[-1].holds}

    def hold_why(self, name: str) -> str:
        return next((h.why for h in self.decisions[-1].holds if h.name == name), "")

    def nudge(self, i: int) -> None:
        address = Address(f"10.0.0.{i}", 80)
        for target in list(self.world.targets):
            if target.address == address:
                self.feed(Nudged(target, self.now, "closed"))

    def feed(self, *facts: Fact) -> None:
        decision, asks = turn(self.world, facts, self.now)
        self._ask(asks)
        if decision is None:
            return
        self.decisions.append(decision)
        self.events += decision.events
        self._carry_out(decision)

    # ---- the machinery ----

    def _carry_out(self, decision: Decision) -> None:
        if decision.intents:
            self._at(self.now + 0.001, lambda: self._write_down(decision.intents))
        if decision.looks:
            self._at(self.now + self.apply_takes, self._look)
        for changes in (decision.changes or {}).values():
            self._at(self.now + self.apply_takes, lambda c=changes: self._apply(c))

    def _at(self, when: float, what: object) -> None:
        self._turn += 1
        epoch = self._epoch
        heapq.heappush(self._queue, (when, self._turn, lambda: what() if epoch == self._epoch else None))  # type: ignore[operator]

    def _ask(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            self._waiting[ask.target] = ask
            self._at(max(ask.at, self.now), lambda a=ask: self._probe(a))

    def _probe(self, ask: Ask) -> None:
        if self._waiting.get(ask.target) is not ask:
            return
        if ask.target in self._in_flight:
            return
        del self._waiting[ask.target]
        self._in_flight.add(ask.target)
        result, reason, took = self.answers[ask.target.address](self.now, ask.timeout_s)
        outcome = Outcome(ask.target, result, self.now, self.now + took, reason, fresh=ask.fresh)
        self._at(self.now + took, lambda: self._ended(outcome))

    def _ended(self, outcome: Outcome) -> None:
        self._in_flight.discard(outcome.target)
        waiting = self._waiting.get(outcome.target)
        self.feed(Probed(outcome))
        if waiting is not None and self._waiting.get(outcome.target) is waiting:
            self._at(max(waiting.at, self.now), lambda: self._probe(waiting))

    def _observe(self) -> None:
        self._look()
        self._at(self.now + self.observe_every, self._observe)

    def _look(self) -> None:
        if self.reachable:
            self.feed(Pictured("edge", self.now, dict(self.servers), frozenset({"shop"})))
        else:
            self.feed(Pictured("edge", self.now, error="connection refused"))

    def _tick(self) -> None:
        self.feed(Tick(self.now))
        self._at(self.now + 0.1, self._tick)

    def _write_down(self, intents: Sequence[Intent]) -> None:
        if self.disk_full:
            self.feed(Journaled(tuple(intents), self.now, "no space left on device"))
            return
        self.journal += intents
        self.feed(Journaled(tuple(intents), self.now))

    def _apply(self, changes: Sequence[Change]) -> None:
        if not self.reachable:
            self.feed(Applied("edge", self.now, tuple(changes), error="connection refused"))
            return
        done, refused_ones = [], []
        for change in changes:
            seen = self.servers[change.ref]
            if (seen.ours, seen.operator, seen.generation) != (change.expect.ours, change.expect.operator, change.expect.generation):
                refused_ones.append((change, "it has moved"))
                continue
            if change.on is Axis.OURS:
                self._set(change.ref, ours=Setting(change.want.serve, change.want.weight_pct))
            else:
                words = {Serve.FULL: Operator.READY, Serve.DRAIN: Operator.DRAINING, Serve.NONE: Operator.MAINTENANCE}
                self._set(change.ref, operator=words[change.want.serve])
            self.written.append((self.now, change))
            done.append(change)
        self.feed(Applied("edge", self.now, tuple(done), tuple(refused_ones)))
        self._look()

    def _set(self, ref: Ref, **changes: object) -> None:
        self.set_seen(int(ref.server[1:]), **changes)
