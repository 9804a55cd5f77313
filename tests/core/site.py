"""The world round the core for random schedules: balancers with pools, drivers that take their time, hands that meddle, a disk.

`Site` is a `Lab` with several balancers. Every server remembers who spoke last on each of its axes, so that a trespass shows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from lbplugins.values import Address, Axis, Change, Operator, Ref, Seen, Serve, Setting, differences
from sidecar.core.known import in_its_words
from sidecar.core.model import (
    Act,
    Adopted,
    Applied,
    Configured,
    Decision,
    Discovered,
    Fact,
    Instance,
    Intent,
    Journaled,
    Outcome,
    Override,
    Pictured,
    Reason,
    Result,
    Resumed,
    SelfChecked,
    Target,
    Tick,
)
from sidecar.core.policy import BalancerPolicy, Mode, Policy, ProbePlan, Rules, ServicePolicy
from sidecar.journal.force import InForce, Stored, fold
from sidecar.reconcile import is_binding
from tests.core.lab import Answer, Lab, hangs, own_lag, refused, status_500

SPEC = "http:/health"
RULES = Rules(hold_down_s=1.0, hold_down_max_s=8.0, repeat_within_s=60.0, flap_burst=6, flap_per_min=60.0, hands_off_s=20.0)
"""Like the defaults, but minutes are seconds: a schedule must end while somebody waits for it."""
FULLY = Setting()
WORD = {Serve.FULL: Operator.READY, Serve.DRAIN: Operator.DRAINING, Serve.NONE: Operator.MAINTENANCE}


@dataclass(slots=True, eq=False)
class Server:
    """One server as it really is. `ours_by`, `operator_by`: who spoke last on that axis, "us", "hand" or nobody."""

    address: Address
    operator: Operator = Operator.READY
    operator_by: str = ""
    ours: Setting = FULLY
    ours_by: str = ""
    ours_for: Address | None = None
    down: bool = False
    weight: int = 100

    @property
    def serving(self) -> bool:
        return not self.down and self.ours.serve is Serve.FULL and self.operator is Operator.READY


@dataclass(frozen=True, slots=True)
class Layout:
    """Which instances stand in which pools. `static`: the instances come from a list, not from the balancers."""

    pools: dict[tuple[str, str, str], tuple[int, ...]]
    static: dict[str, tuple[int, ...]] = field(default_factory=dict)
    costly: bool = False

    @property
    def balancers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(balancer for _, balancer, _ in self.pools))

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(service for service, _, _ in self.pools))


def address(i: int) -> Address:
    return Address(f"10.0.0.{i}", 80)


def policy_for(layout: Layout, *, mode: Mode = Mode.ACT, rules: Rules = RULES, interval_s: float = 0.3, drain: bool = True) -> Policy:
    probes = (ProbePlan(SPEC, interval_s, 0.15),)
    services = {
        name: ServicePolicy(
            name,
            mode,
            probes,
            pools=tuple((b, p) for s, b, p in layout.pools if s == name),
            rules=rules,
            from_balancer=name not in layout.static,
        )
        for name in layout.services
    }
    balancers = {name: BalancerPolicy(name, drain=drain, kill=True, costly=layout.costly) for name in layout.balancers}
    return Policy(services, balancers)


class Side:
    """One balancer and the driver of ours that watches and tells it: one transaction at a time, each takes its time."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.servers: dict[Ref, Server] = {}
        self.generation = 1
        self.reachable, self.answers_lost, self.standby = True, False, ""
        self.look_s, self.apply_s, self.join_s = 0.002, 0.002, 1.0 if site.layout.costly else 0.0
        self.moved: dict[str, int] = {}
        """How often others than we have changed something in a pool: what we cannot have known is not held against us."""
        self.known: dict[str, int] = {}
        self.pictured: dict[Ref, Seen] = {}
        self.blurred: set[Ref] = set()
        """Where an operator has changed a word of ours since our last look: if he puts it back, nobody can tell."""
        self.readied: set[Ref] = set()
        """Where a hand was the last to speak on our axis, and made ready what we had out."""
        self.unsaid: set[Ref] = set()
        """What a hand has made ready on the operator's axis since we, or a restart, last spoke there."""
        self.before_write: Callable[[Side, Sequence[Change]], None] = lambda side, changes: None
        self.restart_driver()

    def restart_driver(self) -> None:
        self.pending: dict[tuple[Ref, Axis], tuple[Change, int]] = {}
        self._life = getattr(self, "_life", 0) + 1
        self.pictured.clear()
        self._busy = self._look_next = False
        self._look_at = self.site.now
        self._applied_at = float("-inf")

    @property
    def is_at_work(self) -> bool:
        """Is something of ours on its way to it?"""
        return self._busy or bool(self.pending)

    # ---- others' hands ----

    def touch(self, ref: Ref) -> Server:
        """Somebody else is about to change this server."""
        self.moved[ref.pool] = self.moved.get(ref.pool, 0) + 1
        return self.servers[ref]

    def forget_all(self, *, operators_too: bool) -> None:
        """A restart or reload: nothing that was told at run time survives."""
        self.generation += 1
        if not self._busy:  # a picture that is being taken may still show it
            self.unsaid.clear()
        for ref in self.servers:
            server = self.touch(ref)
            server.ours, server.ours_by = FULLY, ""
            if operators_too:
                server.operator, server.operator_by = Operator.READY, ""

    # ---- the driver ----

    def tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.pending[(change.ref, change.on)] = (change, self.known.get(change.ref.pool, 0))
        self.kick()

    def kick(self) -> None:
        if self._busy:
            return
        now = self.site.now
        if self.pending and now >= self._applied_at + self.join_s and not self._look_next:
            self._begin_apply()
        elif now >= self._look_at:
            self._begin_look()
        else:
            due = min(self._look_at, self._applied_at + self.join_s if self.pending else self._look_at)
            self._later(max(due, now + 1e-6), self.kick)

    def _later(self, when: float, what: Callable[[], None]) -> None:
        life = self._life
        self.site.outside(when, lambda: what() if life == self._life else None)

    def _begin_look(self) -> None:
        self._busy, self._look_next, self._look_at = True, False, self.site.now + 1.0
        picture = None
        if self.reachable:
            picture = {ref: self.seen(server) for ref, server in self.servers.items()}
        known = dict(self.moved)
        self._later(self.site.now + self.look_s, lambda: self._looked(picture, known))

    def _looked(self, picture: dict[Ref, Seen] | None, known: dict[str, int]) -> None:
        self._busy = False
        if picture is None:
            self.site.feed(Pictured(self.name, self.site.now, error="connection refused"))
        else:
            self.site.before_picture(self, picture)
            self.known, self.pictured = known, picture
            self.blurred.clear()
            self.site.feed(Pictured(self.name, self.site.now, picture, frozenset(ref.pool for ref in picture)))
        self.kick()

    def _begin_apply(self) -> None:
        batch, self.pending = list(self.pending.values()), {}
        if self.standby:
            self.kick()
            return
        self._busy = True
        self._later(self.site.now + self.apply_s, lambda: self._apply(batch))

    def _apply(self, batch: list[tuple[Change, int]]) -> None:
        self.before_write(self, [change for change, _ in batch])
        done, refusals = [], []
        if self.reachable:
            for change, known in batch:
                why = self._write(change, known)
                if why and self.answers_lost:
                    self._blur(change)
                (refusals if why else done).append((change, why))
        changes = tuple(change for change, _ in batch)
        for change in changes if not self.reachable else ():
            self._blur(change)
        self._busy, self._look_next, self._applied_at, self._look_at = False, True, self.site.now, self.site.now
        if not self.reachable or self.answers_lost:
            self.site.feed(Applied(self.name, self.site.now, changes, error="no answer"))
        else:
            self.site.feed(Applied(self.name, self.site.now, tuple(c for c, _ in done), tuple(refusals)))
        self.kick()

    def _blur(self, change: Change) -> None:
        """We were refused but did not hear it: what somebody else has written here looks like ours."""
        server = self.servers.get(change.ref)
        if server is not None and change.on is Axis.OPERATOR and server.operator is WORD[change.want.serve]:
            server.operator_by = "" if server.operator is Operator.READY else "us"
        if server is not None and change.on is Axis.OURS and server.ours_by == "hand":
            server.ours_by = "both"

    def _write(self, change: Change, known: int) -> str:
        server = self.servers.get(change.ref)
        if server is None:
            return "no such server"
        if moved := differences(self.seen(server), change.expect):
            return ", ".join(moved)
        self.site.about_to_write(self, server, change, known == self.moved.get(change.ref.pool, 0))
        if change.on is Axis.OURS:
            self.readied.discard(change.ref)
            server.ours, server.ours_for = Setting(change.want.serve), server.address
            server.ours_by = "" if change.want.serve is Serve.FULL else "us"
        else:
            self.unsaid.discard(change.ref)
            server.operator = WORD[change.want.serve]
            server.operator_by = "" if server.operator is Operator.READY else "us"
        self.site.wrote(self, change)
        return ""

    def seen(self, server: Server) -> Seen:
        return Seen(
            server.ours,
            server.operator,
            server.serving,
            server.address,
            server.weight,
            note=f"w={server.weight}",
            generation=f"g{self.generation}",
            remark="own check DOWN" if server.down else "",
        )


class Site(Lab):
    """The core between many balancers and instances; the clock, the probes and the disk are the Lab's."""

    def __init__(self, layout: Layout, policy: Policy, rng: Random) -> None:
        self.layout, self.rng = layout, rng
        self.sides: dict[str, Side] = {}
        self._paused: set[Target] = set()
        self.force = InForce()
        self.stored: list[Stored] = []
        self.about: set[Address] = set()
        """Of whom an ejection is on its way to the disk."""
        self.fsync_s = 0.001
        self.pen_free = 0.0
        self.heard: dict[Target, list[Outcome]] = {}
        self.boot = "boot"
        self.alive = True
        super().__init__(0, policy)

    def __post_init__(self) -> None:
        for (_, balancer, pool), members in self.layout.pools.items():
            side = self.sides.setdefault(balancer, Side(self, balancer))
            for i in members:
                side.servers[Ref(pool, f"s{i}")] = Server(address(i))
        everybody = {i for members in (*self.layout.pools.values(), *self.layout.static.values()) for i in members}
        self.answers: dict[Address, Answer] = {address(i): self.good() for i in sorted(everybody)}
        self.disk_full = False
        self.events, self.journal, self.written, self.decisions = [], [], [], []
        self.start()

    # ---- instances ----

    def good(self) -> Answer:
        rng = self.rng
        return lambda now, timeout: (Result.OK, None, rng.uniform(0.0005, 0.02))

    def behave(self, where: Address, how: str) -> None:
        rng = self.rng
        share = rng.uniform(0.2, 0.8)

        def flaky(now: float, timeout: float) -> tuple[Result, Reason | None, float]:
            return (Result.FAIL, Reason.STATUS, 0.001) if rng.random() < share else (Result.OK, None, 0.002)

        ways = {"good": self.good(), "refused": refused(), "hangs": hangs(), "status": status_500(), "unknown": own_lag(), "flaky": flaky}
        self.answers[where] = ways[how]

    # ---- the sidecar's life ----

    def start(self, adopted: Adopted | None = None) -> None:
        super().start(adopted)
        for name, instances in self.layout.static.items():
            self.discover(name, instances)

    def _begin(self, adopted: Adopted | None) -> None:
        self.alive, self._timer = True, 0
        self._paused.clear()
        if adopted is not None:
            self.world.absorb(adopted)
        self.feed(Configured(self.policy, self.now))
        self.check_self()
        self._forget_whose()
        for side in self.sides.values():
            side.restart_driver()
            side.kick()

    def _forget_whose(self) -> None:
        """After a restart nobody can tell an operator's word from one that our journal has for the same server."""
        for _, server in self.words_on_disk():
            server.operator_by = "us"

    def words_on_disk(self) -> list[tuple[str, Server]]:
        """Servers that show on the operator's axis what an override in the journal would have made of them."""
        found = []
        for (instance, _), (_, stored) in self.force.overrides.items():
            override = stored.intent.override
            words = [override.state, *override.before] if override is not None else []
            for balancer, server in self.servers_at(instance):
                has_drain = self.policy.balancers[balancer].drain
                if server.operator in {in_its_words(word, has_drain) for word in words}:
                    found.append((balancer, server))
        return found

    def words_of(self, server: Server) -> list[Override]:
        """What the journal has said about the instance at this server, over or not."""
        stored = [entry[1].intent.override for entry in self.force.overrides.values()]
        return [word for word in stored if word is not None and word.instance.address == server.address]

    def others_on_disk(self) -> list[Server]:
        """Servers of which our journal knows that a hand has them out beside our ejection."""
        ejections = [stored.intent.ejection for _, stored in self.force.ejections.values()]
        refs = [server for ejection in ejections if ejection is not None for server in ejection.others]
        return [server for balancer, ref in refs if (server := self.sides[balancer].servers.get(ref)) is not None]

    def servers_at(self, instance: Instance) -> list[tuple[str, Server]]:
        """The servers of one instance, each with its balancer's name."""
        return [
            (balancer, server)
            for service, balancer, pool in self.layout.pools
            for ref, server in self.sides[balancer].servers.items()
            if service == instance.service and ref.pool == pool and server.address == instance.address
        ]

    def discover(self, service: str, instances: Iterable[int]) -> None:
        self.feed(Discovered(service, "static", self.now, tuple(Instance(service, address(i)) for i in instances)))

    def crash(self) -> None:
        """kill -9: what is in memory is gone, what a balancer was just being told may or may not arrive."""
        self.alive = False
        self._epoch += 1
        for side in self.sides.values():
            side.restart_driver()

    def revive(self) -> None:
        self.start(fold(self.stored, self.now, self.now, self.boot, self.now))

    def pause(self, gap_s: float) -> None:
        """We do not run for a while; what was being asked then is evidence of nothing."""
        self.now += gap_s
        self._paused |= self._in_flight
        self.feed(Resumed(self.now, gap_s))

    # ---- the machinery ----

    def outside(self, when: float, what: Callable[[], None]) -> None:
        """Something that goes on whether the sidecar lives or not."""
        self._turn += 1
        heapq.heappush(self._queue, (when, self._turn, what))

    def feed(self, *facts: Fact) -> None:
        if self.alive:
            super().feed(*facts)

    def _ended(self, outcome: Outcome) -> None:
        if outcome.target in self._paused:
            self._paused.discard(outcome.target)
            outcome = replace(outcome, result=Result.UNKNOWN, reason=Reason.OWN_LAG)
        if outcome.ended < self.now:
            outcome = replace(outcome, ended=self.now)
        if outcome.result is not Result.UNKNOWN:
            self.heard.setdefault(outcome.target, []).append(outcome)
            del self.heard[outcome.target][:-40]
        super()._ended(outcome)

    def _carry_out(self, decision: Decision) -> None:
        self.decided(decision)
        self.about |= {i.instance.address for i in decision.intents if i.act is Act.EJECT and i.instance is not None}
        binding = tuple(i for i in decision.intents if is_binding(i))
        told = tuple(i for i in decision.intents if not is_binding(i))
        if told:
            self._at(self.now, lambda: self.feed(Journaled(told, self.now)))
        if binding:
            self.pen_free = max(self.pen_free, self.now) + self.fsync_s
            self._at(self.pen_free, lambda: self._write_down(binding))
        for name, changes in (decision.changes or {}).items():
            self.sides[name].tell(changes)
        self._timer += 1
        this = self._timer
        self._at(max(self.world.wake_at(), self.now + 0.001), lambda: self.feed(Tick(self.now)) if this == self._timer else None)

    def _write_down(self, intents: Sequence[Intent]) -> None:
        self.about -= {i.instance.address for i in intents if i.instance is not None}
        if not self.disk_full:
            for intent in intents:
                stored = Stored(intent, self.now, self.boot, self.now)
                self.stored.append(stored)
                self.force.take(stored)
        super()._write_down(intents)
        self.journaled(intents)

    def check_self(self) -> None:
        fault = "no space left on device" if self.disk_full else ""
        self.feed(SelfChecked(self.now, journal=fault, standby=self.standing_by()))

    def standing_by(self) -> dict[str, str]:
        return {name: side.standby for name, side in self.sides.items() if side.standby}

    # ---- for those who watch ----

    def decided(self, decision: Decision) -> None: ...

    def journaled(self, intents: Sequence[Intent]) -> None: ...

    def before_picture(self, side: Side, picture: dict[Ref, Seen]) -> None: ...

    def about_to_write(self, side: Side, server: Server, change: Change, knew: bool) -> None: ...

    def wrote(self, side: Side, change: Change) -> None: ...
