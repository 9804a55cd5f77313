"""A desk on the real core: a `Lab` world in virtual time, its decision log and its latencies. Nothing of it is a mock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lbplugins.values import Address, Operator, Ref, Seen
from sidecar.core.model import Commanded, Fact, Hold, Instance, Pictured, Probed, Result, ServerRef
from sidecar.core.policy import BalancerPolicy, Mode, Policy, ProbePlan, ServicePolicy
from sidecar.core.turn import turn
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.store.decisions import Decisions
from sidecar.store.history import History
from sidecar.web.desk import SelfHealth
from tests.core.lab import Lab, good

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
WARM_S = 12.0


class DeskLab(Lab):
    """`Lab` with the decision log and the latencies beside it, as the application has them, and with any servers in any pools."""

    def __post_init__(self) -> None:
        self.log = Decisions(None, 1 << 20)
        self.latencies = Latencies()
        self.held: dict[str, tuple[Hold, ...]] = {}
        self.began = self.now
        self.decided_at = self.now
        super().__post_init__()

    def feed(self, *facts: Fact) -> None:
        for fact in facts:
            if isinstance(fact, Probed):
                self._measure(fact)
        decision, asks = turn(self.world, facts, self.now)
        self._ask(asks)
        self.decided_at = self.now
        if decision is None:
            return
        self.decisions.append(decision)
        del self.decisions[:-100]
        self.events += decision.events
        self.log.append(decision.events, self.wall_of)
        for name in decision.services:
            self.held[name] = tuple(h for h in decision.holds if h.service == name)
        if decision.intents:
            self._at(self.now + 0.001, lambda: self._write_down(decision.intents))
        for changes in (decision.changes or {}).values():
            self._at(self.now + self.apply_takes, lambda c=changes: self._apply(c))

    def wall_of(self, at: float) -> datetime:
        return START + timedelta(seconds=at - self.began)

    def add(self, pool: str, server: str, address: str, **seen: object) -> None:
        """One more server at the balancer, with an instance that answers well behind it."""
        where = Address.parse(address)
        self.answers.setdefault(where, good())
        self.servers[Ref(pool, server)] = replace(Seen(address=where, serving=True, weight=100, generation="g1"), **seen)  # type: ignore[arg-type]

    def _look(self) -> None:
        if not self.reachable:
            return super()._look()
        return self.feed(Pictured("edge", self.now, dict(self.servers), frozenset(ref.pool for ref in self.servers)))

    def _set(self, ref: Ref, **changes: object) -> None:
        seen = replace(self.servers[ref], **changes)  # type: ignore[arg-type]
        self.servers[ref] = replace(seen, serving=seen.ours.serve == "full" and seen.operator is Operator.READY)

    def _measure(self, fact: Probed) -> None:
        target = self.world.targets.get(fact.outcome.target)
        for instance in target.users if target is not None else ():
            if fact.outcome.result is Result.OK:
                self.latencies.add(instance, "probe", fact.outcome.seconds, self.now)
            elif fact.outcome.result is Result.FAIL:
                self.latencies.fail(instance, "probe", self.now)


class LabDesk:
    """What the application does for the web, over a DeskLab. `advance` moves the virtual clock on every command."""

    def __init__(self, lab: DeskLab, advance_s: float = 0.01) -> None:
        self.lab = lab
        self.advance_s = advance_s
        self.problems: list[str] = []
        self.adopted: list[tuple[str, str, bool, str]] = []
        self.commands: list[Commanded] = []
        self.frozen_loop_s = 0.0
        self.kept: History | None = None

    @property
    def world(self) -> World:
        return self.lab.world

    @property
    def policy(self) -> Policy:
        return self.lab.world.policy

    @property
    def latencies(self) -> Latencies:
        return self.lab.latencies

    @property
    def decisions(self) -> Decisions:
        return self.lab.log

    @property
    def history(self) -> History:
        assert self.kept is not None, "a surface puts one in"
        return self.kept

    def now(self) -> float:
        return self.lab.now + self.frozen_loop_s

    def wall_of(self, at: float) -> datetime:
        return self.lab.wall_of(at)

    def holds(self) -> tuple[Hold, ...]:
        return tuple(hold for held in self.lab.held.values() for hold in held)

    def self_health(self) -> SelfHealth:
        return SelfHealth(
            version="0.1.0",
            mode="act",
            config_hash="5f3a9c1e",
            policy_version=1,
            uptime_s=self.lab.now - self.lab.began,
            loop_lag_s=0.0004,
            rss_bytes=48 << 20,
            decided_at=self.lab.decided_at,
            notes=[],
        )

    async def metrics(self, accept: str | None) -> tuple[bytes, str]:
        lines = ["# TYPE lbsidecar_probes_total counter"]
        for name in self.policy.services:
            lines.append(f'lbsidecar_probes_total{{service="{name}"}} {self.latencies.totals(name, "probe").count}')
        return ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4; charset=utf-8"

    async def command(self, command: Commanded) -> str | Hold:
        self.commands.append(command)
        before = len(self.lab.decisions)
        self.lab.feed(command)
        refused = [
            h for d in self.lab.decisions[before:] for h in d.holds if h.instance == command.instance and command.instance is not None
        ]
        said = [e for d in self.lab.decisions[before:] for e in d.events if e.by == command.actor]
        self.lab.run(self.advance_s)
        if said and said[-1].kind == "refused":
            return refused[-1]
        return said[-1].sentence if said else "nothing to do"

    async def wait_for(self, instance: Instance, state: Operator, seconds: float) -> bool:
        end = self.lab.now + seconds
        while self.lab.now < end:
            found = self.world.state_of(instance)
            seen = [self.world.seen(ServerRef(s.balancer, s.ref)) for s in found.servers] if found else []
            if seen and all(s is not None and s.operator is state for s in seen):
                return True
            self.lab.run(min(0.1, end - self.lab.now))
        return False

    async def reload(self, actor: str) -> list[str]:
        return self.problems

    async def adopt(self, balancer: str, pool: str, diff: bool, actor: str) -> str:
        self.adopted.append((balancer, pool, diff, actor))
        if pool == "empty":
            raise ValueError("nothing there is out without an owner")
        return f"{balancer}/{pool}: s1 is out by nobody we know"


def service(name: str, **more: object) -> ServicePolicy:
    return replace(ServicePolicy(name, Mode.ACT, (ProbePlan("http:/health"),), pools=(("edge", name),)), **more)  # type: ignore[arg-type]


def policies(*services: ServicePolicy) -> Policy:
    return Policy({s.name: s for s in services}, {"edge": BalancerPolicy("edge", drain=True, kill=True)})


def warm(n: int = 4, seconds: float = WARM_S, **more: object) -> LabDesk:
    """A shop of n healthy instances, past its cold start; by default long enough for all timeouts to be learned."""
    lab = DeskLab(n, **more)  # type: ignore[arg-type]
    lab.run(seconds)
    return LabDesk(lab)
