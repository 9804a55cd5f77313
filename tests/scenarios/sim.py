"""A scenario in virtual time: the real core between simulated instances, balancers, disk and hands."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from lbplugins.values import Address, Axis, Change, Operator, Ref, Seen, Serve
from sidecar.core.model import (
    Adopted,
    Decision,
    Discovered,
    Event,
    Fact,
    Hold,
    Instance,
    Intent,
    Reason,
    Result,
    SelfChecked,
)
from sidecar.core.policy import BalancerPolicy, Mode, Policy, ProbePlan, ServicePolicy
from sidecar.journal.force import fold
from tests.core.lab import Answer, hangs, own_lag, refused, status_500
from tests.core.site import SPEC, Layout, Server, Side, Site, address
from tests.scenarios.judge import Judge
from tests.scenarios.scenario import Scenario, Step
from tests.scenarios.words import Sentence

WARM_S = 12.0
"""Long enough for 30 good probes of everybody."""
RELOAD_S, TEST_S = 0.05, 0.02
JOIN_S = 1.0
OPERATOR = {"maintenance": Operator.MAINTENANCE, "drain": Operator.DRAINING, "ready": Operator.READY}
SELF_CHECK_S = 0.25
LOOK_S = 0.05
"""While nothing is decided or written, the judge looks so often."""


def run(scenario: Scenario) -> dict[str, float]:
    """What was measured, seconds; BrokenExpectation if it does not come as expected."""
    world = SimWorld(scenario)
    steps = list(scenario.timeline)
    if scenario.layout.start == "cold":
        while steps and steps[0].at == 0.0:
            world.do(steps.pop(0))
    else:
        world.run(WARM_S)
    world.begin()
    for step in steps:
        world.run(world.begun + step.at - world.now)
        world.do(step)
        world.look()
    world.run(world.begun + scenario.length_s - world.now)
    return world.end()


class _Side(Side):
    """A balancer that may say no to every write, and whose writes are remembered."""

    def __init__(self, site: Site, name: str) -> None:
        super().__init__(site, name)
        self.is_stubborn = False
        self.writes: list[float] = []

    def _write(self, change: Change, known: int) -> str:
        return "its configuration is broken: unknown directive" if self.is_stubborn else super()._write(change, known)

    def seen(self, server: Server) -> Seen:
        seen = super().seen(server)
        return replace(seen, writable="its configuration is broken: unknown directive") if self.is_stubborn else seen

    def _apply(self, batch: list[tuple[Change, int]]) -> None:
        if self.reachable and not self.is_stubborn:
            self.writes.append(self.site.now)
        super()._apply(batch)


class SimWorld(Site):
    """A Site that does what scenarios say and answers the judge. Default policy, so that the figures are those that users get."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.begun = 0.0
        self._judge: Judge | None = None
        self._numbers = _numbers(scenario)
        self._held: dict[str, tuple[Hold, ...]] = {}
        self._moves: dict[str, list[float]] = {}
        self._is_news, self._looked_at = False, 0.0
        self._counted: dict[str, tuple[int, int]] = {}
        self._ways: dict[str, Callable[[], None]] = {}
        self._wall_ahead = 0.0
        self._troubles: dict[str, str] = {}
        layout = _layout(scenario, self._numbers)
        super().__init__(layout, _policy(scenario, layout), Random(scenario.id))

    def __post_init__(self) -> None:
        for name, kind in self.scenario.layout.balancers.items():
            side = self.sides[name] = _Side(self, name)
            if kind == "nginx":
                side.apply_s, side.look_s, side.join_s = RELOAD_S + TEST_S, TEST_S, JOIN_S
        for service, balancer, pool in self.layout.pools:
            for name in self.scenario.everybody(service):
                self.sides[balancer].servers[Ref(pool, name.partition("/")[2])] = Server(self._address_of(name))
        self.answers: dict[Address, Answer] = {address(i): self.good() for i in self._numbers.values()}
        self.disk_full = False
        self.events, self.journal, self.written, self.decisions = [], [], [], []
        self.start()

    def begin(self) -> None:
        """Second 0."""
        self.begun = self.now
        self._moves.clear()
        self.events.clear()
        for side in self.sides.values():
            assert isinstance(side, _Side)
            side.writes.clear()
        self._judge = Judge(self.scenario, self)
        self.look()

    def look(self) -> None:
        self._is_news, self._looked_at = False, self.now
        if self._judge is not None:
            self._judge.look(self.now - self.begun)

    def end(self) -> dict[str, float]:
        """What was measured, seconds."""
        assert self._judge is not None, "begun before"
        self._judge.close(self.now - self.begun)
        return self._judge.measured

    # ---- the machinery, watched ----

    def feed(self, *facts: Fact) -> None:
        super().feed(*facts)
        if self._is_news or self.now >= self._looked_at + LOOK_S:
            self.look()

    def good(self) -> Answer:
        rng = self.rng
        return lambda now, timeout: (Result.OK, None, rng.uniform(0.0004, 0.0008))

    def decided(self, decision: Decision) -> None:
        self._is_news |= bool(decision.events or decision.intents or decision.changes)
        for service in decision.services:
            self._held[service] = tuple(h for h in decision.holds if service in (h.service, h.instance.service if h.instance else ""))

    def wrote(self, side: Side, change: Change) -> None:
        self._is_news = True
        if change.on is Axis.OURS:
            server = side.servers[change.ref]
            name = next(n for n, i in self._numbers.items() if address(i) == server.address)
            self._moves.setdefault(name, []).append(self.now)

    def check_self(self) -> None:
        disk = "no space left on device" if self.disk_full else ""
        lag_s = 0.6 if "late" in self._troubles else 0.0
        self.feed(SelfChecked(self.now, lag_s, "", self._troubles.get("descriptors", ""), disk, self.standing_by()))

    def _begin(self, adopted: Adopted | None) -> None:
        super()._begin(adopted)
        self._at(self.now + SELF_CHECK_S, self._look_at_self)

    def _look_at_self(self) -> None:
        self.check_self()
        self._at(self.now + SELF_CHECK_S, self._look_at_self)

    def _write_down(self, intents: Sequence[Intent]) -> None:
        before = len(self.stored)
        super()._write_down(intents)
        self.stored[before:] = [replace(each, wall=self.now + self._wall_ahead) for each in self.stored[before:]]

    def revive(self) -> None:
        self.start(fold(self.stored, self.now, self.now, self.boot, self.now + self._wall_ahead))

    # ---- what happens ----

    def do(self, step: Step) -> None:
        for name in self.scenario.resolve(step.deed) or ("",):
            getattr(self, f"_{step.deed.key}")(name, step.deed)

    def _answer(self, name: str, how: Answer | None, *, closing: bool = False) -> None:
        self._ways.pop(name, None)
        where = self._address_of(name)
        self.answers[where] = how or self.good()
        if closing and self.alive:  # a dying process closes the idle probe connection: that is news
            self.nudge(self._numbers[name])

    def _address_of(self, name: str) -> Address:
        return address(self._numbers[name])

    def _servers(self, name: str, balancer: str = "") -> list[tuple[Side, Ref, Server]]:
        """Where this instance stands."""
        service, server = name.split("/")
        ref = Ref(service, server)
        return [(side, ref, side.servers[ref]) for b, side in self.sides.items() if balancer in ("", b) and ref in side.servers]

    def _well(self, name: str, deed: Sentence) -> None:
        self._answer(name, None)

    def _refuse(self, name: str, deed: Sentence) -> None:
        self._answer(name, refused(), closing=True)

    def _hang(self, name: str, deed: Sentence) -> None:
        self._answer(name, hangs())

    def _status(self, name: str, deed: Sentence) -> None:
        self._answer(name, status_500())

    def _fail(self, name: str, deed: Sentence) -> None:
        reason = Reason(deed["reason"])
        self._answer(name, lambda now, timeout: (Result.FAIL, reason, 0.001))

    def _mixed(self, name: str, deed: Sentence) -> None:
        rng, share, well = self.rng, deed.share(), self.good()
        self._answer(name, lambda now, timeout: status_500()(now, timeout) if rng.random() < share else well(now, timeout))

    def _lossy(self, name: str, deed: Sentence) -> None:
        rng, share, well = self.rng, deed.share(), self.good()
        self._answer(name, lambda now, timeout: hangs()(now, timeout) if rng.random() < share else well(now, timeout))

    def _slow(self, name: str, deed: Sentence) -> None:
        takes = deed.seconds()
        self._answer(name, lambda now, timeout: (Result.OK, None, takes) if takes < timeout else hangs()(now, timeout))

    def _flap(self, name: str, deed: Sentence) -> None:
        def turn() -> None:
            if self._ways.get(name) is not turn:
                return
            dead = self.answers[self._address_of(name)](self.now, 1.0)[0] is not Result.OK
            self._answer(name, None if dead else refused(), closing=not dead)
            self._ways[name] = turn
            self.outside(self.now + deed.seconds(), turn)

        self._ways[name] = turn
        turn()

    def _join(self, name: str, deed: Sentence) -> None:
        service, server = name.split("/")
        self._numbers[name] = max(self._numbers.values()) + 1
        self.answers.setdefault(self._address_of(name), self.good())
        for owner, balancer, pool in self.layout.pools:
            if owner == service:
                side, ref = self.sides[balancer], Ref(pool, server)
                side.servers[ref] = Server(self._address_of(name))
                side.touch(ref)

    def _leave(self, name: str, deed: Sentence) -> None:
        for side, ref, _ in self._servers(name):
            side.touch(ref)
            del side.servers[ref]

    def _move(self, name: str, deed: Sentence) -> None:
        self._numbers[name] = max(self._numbers.values()) + 1
        self.answers[self._address_of(name)] = self.good()
        for side, ref, server in self._servers(name):
            side.touch(ref)
            server.address = self._address_of(name)

    def _word(self, name: str, deed: Sentence) -> None:
        for side, ref, server in self._servers(name, deed["balancer"]):
            side.touch(ref)
            server.operator, server.operator_by = OPERATOR[deed["word"]], "" if deed["word"] == "ready" else "hand"

    def _force(self, name: str, deed: Sentence) -> None:
        for side, ref, server in self._servers(name, deed["balancer"]):
            side.touch(ref)
            server.ours, server.ours_by = replace(server.ours, serve=Serve.FULL), "hand"

    def _weight(self, name: str, deed: Sentence) -> None:
        for side, ref, server in self._servers(name, deed["balancer"]):
            side.touch(ref)
            server.weight = int(deed["n"])

    def _forget(self, name: str, deed: Sentence) -> None:
        self.sides[deed["balancer"]].forget_all(operators_too=True)

    def _deaf(self, name: str, deed: Sentence) -> None:
        self.sides[deed["balancer"]].reachable = False

    def _hears(self, name: str, deed: Sentence) -> None:
        self.sides[deed["balancer"]].reachable = True

    def _check(self, name: str, deed: Sentence) -> None:
        for side, ref, server in self._servers(name, deed["balancer"]):
            side.touch(ref)
            server.down = True

    def _trust(self, name: str, deed: Sentence) -> None:
        for side, ref, server in self._servers(name, deed["balancer"]):
            side.touch(ref)
            server.down = False

    def _stubborn(self, name: str, deed: Sentence) -> None:
        side = self.sides[deed["balancer"]]
        assert isinstance(side, _Side)
        side.is_stubborn = deed.key == "stubborn"

    _willing = _stubborn

    def _die(self, name: str, deed: Sentence) -> None:
        self.crash()

    def _start(self, name: str, deed: Sentence) -> None:
        self.revive()

    def _reboot(self, name: str, deed: Sentence) -> None:
        self.boot += "'"

    def _clock(self, name: str, deed: Sentence) -> None:
        self._wall_ahead += deed.seconds()

    def _pause(self, name: str, deed: Sentence) -> None:
        self.pause(deed.seconds())

    def _late(self, name: str, deed: Sentence) -> None:
        self._hear_nothing("late", "late", own_lag())
        self.outside(self.now + deed.seconds(), lambda: self._hear_again("late"))

    def _hear_nothing(self, trouble: str, why: str, instead: Answer) -> None:
        self._troubles[trouble] = why
        self._kept = dict(self.answers)
        self.answers.update(dict.fromkeys(self._kept, instead))

    def _hear_again(self, trouble: str) -> None:
        self._troubles.pop(trouble)
        self.answers.update(self._kept)

    def _full(self, name: str, deed: Sentence) -> None:
        self.disk_full = deed.key == "full"

    _room = _full

    def _lost(self, name: str, deed: Sentence) -> None:
        why = "3 descriptors left of 40"
        self._hear_nothing("descriptors", why, lambda now, timeout: (Result.UNKNOWN, Reason.NO_DESCRIPTORS, 0.0))

    def _found(self, name: str, deed: Sentence) -> None:
        self._hear_again("descriptors")

    def _standby(self, name: str, deed: Sentence) -> None:
        self.sides[deed["balancer"]].standby = "another sidecar writes to it (pid 4711)"
        self.check_self()

    def _alone(self, name: str, deed: Sentence) -> None:
        self.sides[deed["balancer"]].standby = ""
        self.check_self()

    def _sources(self, name: str, deed: Sentence) -> None:
        names = self.scenario.resolve(deed)
        if name == names[0]:
            service = name.partition("/")[0]
            self.discover(service, [self._numbers[each] for each in names])

    def _blind_source(self, name: str, deed: Sentence) -> None:
        for service in self.layout.static:
            self.feed(Discovered(service, "static", self.now, error="the name server does not answer"))

    # ---- what is true ----

    def is_true(self, state: Sentence, who: str) -> bool | None:
        return bool(getattr(self, f"_is_{state.key}")(who, state))

    def story(self) -> list[str]:
        return [f"  {e.at - self.begun:8.2f} s  {e.kind:<9} {e.sentence}" for e in self.events]

    def _is_out(self, who: str, state: Sentence) -> bool:
        servers = self._servers(who, state.slots.get("balancer", ""))
        if not servers or any(server.serving for _, _, server in servers):
            return False
        return "text" not in state.slots or state["text"] in (self._told_of(who, "ejected")[-1:] or [""])[0]

    def _told_of(self, who: str, kind: str) -> list[str]:
        """Sentences of the events of this kind about whoever has this name now."""
        return [e.sentence for e in self.events if e.kind == kind and e.instance == self._instance(who)]

    def _instance(self, who: str) -> Instance:
        return Instance(who.partition("/")[0], self._address_of(who))

    def _is_in(self, who: str, state: Sentence) -> bool:
        servers = self._servers(who, state.slots.get("balancer", ""))
        return bool(servers) and all(server.serving for _, _, server in servers)

    def _is_judged(self, who: str, state: Sentence) -> bool:
        found = self.world.state_of(self._instance(who))
        return found is not None and found.told.value == state["judgement"]

    def _is_held(self, who: str, state: Sentence) -> bool:
        instance = self._instance(who)
        return any(h.name.value == state["hold"] and h.instance in (None, instance) for h in self._held.get(instance.service, ()))

    def _is_has_word(self, who: str, state: Sentence) -> bool:
        servers = self._servers(who, state["balancer"])
        return bool(servers) and all(server.operator is OPERATOR[state["word"]] for _, _, server in servers)

    def _is_has_weight(self, who: str, state: Sentence) -> bool:
        return all(server.weight == int(state["n"]) for _, _, server in self._servers(who, state["balancer"]))

    def _outs(self, service: str) -> list[int]:
        """How many are out, per balancer."""
        pools = [(self.sides[balancer], pool) for owner, balancer, pool in self.layout.pools if owner == service]
        return [sum(not s.serving for ref, s in side.servers.items() if ref.pool == pool) for side, pool in pools]

    def _is_any_out(self, who: str, state: Sentence) -> bool:
        return any(self._outs(state["service"]))

    def _is_more_out(self, who: str, state: Sentence) -> bool:
        return any(out > int(state["n"]) for out in self._outs(state["service"]))

    def _is_any_ejected(self, who: str, state: Sentence) -> bool:
        return self._count(state, lambda e: e.kind == "ejected" and e.service == state["service"]) > 0

    def _count(self, state: Sentence, fits: Callable[[Event], bool]) -> int:
        """Events that fit, each looked at once however often this is asked."""
        upto, count = self._counted.get(state.text, (0, 0))
        count += sum(fits(e) for e in self.events[upto:])
        self._counted[state.text] = len(self.events), count
        return count

    def _is_moves(self, who: str, state: Sentence) -> bool:
        return _since(self._moves.get(who, []), self.now - state.seconds()) > int(state["n"])

    def _is_told(self, who: str, state: Sentence) -> bool:
        return bool(self._writes(state))

    def _is_storm(self, who: str, state: Sentence) -> bool:
        return _since(self._writes(state), self.now - state.seconds()) > int(state["n"])

    def _writes(self, state: Sentence) -> list[float]:
        side = self.sides[state["balancer"]]
        assert isinstance(side, _Side)
        return side.writes

    def _is_says(self, who: str, state: Sentence) -> bool:
        return self._count(state, lambda e: state["text"] in e.sentence) > int(state.slots.get("n", "0"))


def _since(moments: list[float], at: float) -> int:
    return len(moments) - bisect_left(moments, at)


def _numbers(scenario: Scenario) -> dict[str, int]:
    """A number for each instance, all different; Site makes addresses of them."""
    names = [name for service in scenario.layout.services for name in scenario.everybody(service)]
    return {name: i for i, name in enumerate(names, 1)}


def _layout(scenario: Scenario, numbers: dict[str, int]) -> Layout:
    services = scenario.layout.services
    pools = {
        (name, balancer, name): tuple(numbers[each] for each in scenario.everybody(name))
        for name, s in services.items()
        for balancer in s.on
    }
    static = {name: tuple(numbers[each] for each in scenario.everybody(name)) for name, s in services.items() if s.listed}
    return Layout(pools, static)


def _policy(scenario: Scenario, layout: Layout) -> Policy:
    services = {
        name: ServicePolicy(
            name,
            Mode.ACT,
            (ProbePlan(SPEC, scenario.layout.services[name].interval_s),),
            pools=tuple((b, p) for s, b, p in layout.pools if s == name),
            from_balancer=name not in layout.static,
        )
        for name in layout.services
    }
    kinds = scenario.layout.balancers
    balancers = {
        name: BalancerPolicy(name, plugin=kind, drain=kind == "haproxy", kill=kind == "haproxy", costly=kind == "nginx")
        for name, kind in kinds.items()
    }
    return Policy(services, balancers)
