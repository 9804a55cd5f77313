"""Random schedules against the whole sidecar: what may go wrong does, and what reaches a balancer or the disk must keep the promises.

    python -m tests.sim.stack_schedules --seeds 0:500
    python -m tests.sim.stack_schedules --story 17
    python -m tests.sim.stack_mutants

One seed is one plan: a layout, and a list of things that happen, each at its moment. A plan that breaks a promise is shrunk: what can be
left out while it still breaks the same promise is left out, and the rest is told. The same plan gives the same story again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from random import Random

from lbplugins.values import NONE, Address, Operator, Ref, Serve, Setting
from sidecar.core.model import Commanded, Instance, Verb
from tests.core import shrink
from tests.core.schedules import most_out
from tests.sim.net import Balancer, Line
from tests.sim.stack import Layout, Sidecar, Stack, Violation, address, surroundings, text_of

QUIET_S, CHAOS_S, SETTLE_S, HANDS_OFF_S = 4.0, 28.0, 12.0, 9.0
"""Out of the cold start; all that goes wrong; the longest hold-down and what clearing up takes; an operator's last word has ended."""
OUT_WITHIN_S = 8.0
"""How soon one that goes bad in peace must be out."""
SEEN_WITHIN_S = 3.0
"""What an operator has typed is seen by then, unless the balancer cannot be asked."""
STARTS_WITHIN_S = 0.5
LONGEST_AWAY_S = 4.0
DEADLINES_S = 21.0
"""What a balancer that has been silent may keep us waiting: one apply."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happens, `at` seconds after the start: the name of a method of `Chaos`, and what it is given."""

    at: float
    kind: str
    given: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:6.2f} s  {self.kind.replace('_', ' ')} {', '.join(map(str, self.given))}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided beforehand. `victim`: which of those in rotation dies in peace."""

    seed: int
    layout: Layout
    happenings: tuple[Happening, ...]
    victim: int = 0

    def without(self, *kinds: str) -> Plan:
        return replace(self, happenings=tuple(h for h in self.happenings if h.kind not in kinds))


# ---- what may happen ----


class Chaos:
    """Does to a stack what a plan says. Every method that is a kind of happening can be left out of a plan without a trace."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.is_peace = self.was_silent = False

    def strike(self, happening: Happening) -> None:
        if not self.is_peace:
            self.stack.note(f"* {str(happening)[10:].strip()}")
            getattr(self, happening.kind)(*happening.given)

    # instances

    def behave(self, those: Sequence[int], how: str) -> None:
        for i in those:
            self.stack.instances.ways[address(i)] = how

    # balancers, their own checks, their operators

    def own_check(self, balancer: str, ref: Ref, how: str) -> None:
        self.stack.balancers[balancer].check(ref, is_down=how == "down")

    def operator(self, balancer: str, ref: Ref, word: Operator, *, between: bool = False) -> None:
        """Somebody types at the balancer itself. `between`: right before a write of ours, which is refused then and knows it."""
        there = self.stack.balancers[balancer]
        hands = there.hands[ref]
        if there.seen(ref).operator is word:
            return
        may_be_ours = hands.operator == "us" or there.seen(ref).address in self.stack.worded
        there.touch(ref, operator=word)
        is_certain = between and there.link.line is Line.GOOD and hands.operator == "" and len(self.stack.sidecars) == 1
        hands.operator = "" if word is Operator.READY else "both" if may_be_ours and not is_certain else "hand"
        hands.typed_at = self.stack.loop.now

    def health(self, balancer: str, ref: Ref, serve: Serve) -> None:
        """Somebody types on our own axis: down where we said nothing, or up against us."""
        there = self.stack.balancers[balancer]
        hands = there.hands[ref]
        if serve is NONE:
            if there.seen(ref).ours.serve is NONE or self._may_be_ours(there, ref):
                return  # nobody could tell whose it is
            hands.ours = "hand"
        else:
            hands.ours = ""
        there.touch(ref, ours=Setting(serve))

    def _may_be_ours(self, there: Balancer, ref: Ref) -> bool:
        """Is an ejection of it in force, or one of ours on its way there? One that is bad may be ejected any moment."""
        stack, where = self.stack, there.seen(ref).address
        owned = {i.address for folder in stack.folders for i in stack.in_force(folder).ejections}
        return where in owned or stack.instances.ways.get(where or address(0), "good") != "good"

    def weight(self, balancer: str, ref: Ref, weight: int) -> None:
        self.stack.balancers[balancer].touch(ref, weight=weight)

    def race(self, balancer: str, ref: Ref, word: Operator) -> None:
        """Somebody types between our look and our write; where we write nothing, a little later all the same."""
        said: list[bool] = []

        def say(*, between: bool) -> None:
            if not said and not self.is_peace:
                said.append(True)
                self.operator(balancer, ref, word, between=between)

        self.stack.balancers[balancer].before_write.append(partial(say, between=True))
        self.stack.later(0.6, partial(say, between=False))

    def restart(self, balancer: str, keeps: str) -> None:
        self.stack.balancers[balancer].restart(keeps_operators=keeps == "keeps operators")

    def line(self, balancer: str, line: Line) -> None:
        self.stack.balancers[balancer].link.become(line)
        self.was_silent |= line is Line.SILENT

    # we ourselves

    def kill(self, name: str, point: int, away_s: float) -> None:
        """kill -9 at the point-th of all points that it passes from now on, or soon at any; 0 = now."""
        sidecar = self._sidecar(name)
        if not sidecar.is_alive or sidecar.process is None:
            return
        process = sidecar.process
        process.fuse = point or None
        late_s = 2.0 if point else 0.0
        self.stack.later(late_s, lambda: process.kill("kill -9"))
        self._back(sidecar, late_s + away_s)

    def _back(self, sidecar: Sidecar, after_s: float) -> None:
        self.stack.later(after_s, lambda: None if self.is_peace else sidecar.boot())

    def power(self, away_s: float) -> None:
        """The machine loses power; balancers and instances are elsewhere and go on."""
        stack = self.stack
        for sidecar in stack.sidecars:
            if sidecar.process is not None:
                sidecar.process.kill("the power is gone")
            self._back(sidecar, away_s)
        stack.disk.power_cut()
        stack.boots += 1

    def terminate(self, name: str, away_s: float) -> None:
        self._sidecar(name).terminate()
        self._back(self._sidecar(name), away_s + 3.5)

    def stop(self, name: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        process = self._sidecar(name).process
        if process is None or not process.runs:
            return
        process.is_stopped = True
        self.stack.later(seconds, lambda: self.stack.loop.resume(process))

    def disk(self, how: str) -> None:
        disk = self.stack.disk
        disk.full, disk.broken = how == "full", how == "broken"
        disk.slow_s = {"slow": 0.4, "hangs": 3.0}.get(how, 0.001)

    def clock(self, seconds: float) -> None:
        self.stack.wall_ahead_s += seconds

    def lock_deleted(self, balancer: str) -> None:
        self.stack.lose_lock(balancer)

    def reload(self, name: str, mode: str) -> None:
        """SIGHUP after the file was edited: `act`, `observe`, or broken."""
        sidecar = self._sidecar(name)
        if sidecar.is_alive and sidecar.app is not None and sidecar.desk is not None and sidecar.process is not None:
            whole = text_of(self.stack.layout, sidecar.folder)
            sidecar.text = "balancers: []" if mode == "broken" else text_of(self.stack.layout, sidecar.folder, mode)
            self.stack.loop.start_task(sidecar.app.reload("operator:SIGHUP"), sidecar.process)
            if mode == "broken":
                self.stack.later(0.5, lambda: setattr(sidecar, "text", whole))

    def _sidecar(self, name: str) -> Sidecar:
        return next(s for s in self.stack.sidecars if s.name == name)

    # commands

    def command(self, name: str, verb: Verb, service: str, i: int, owner: str, state: Operator, lasts_s: float) -> None:
        stack = self.stack
        instance = Instance(service, address(i)) if i else None
        until = stack.loop.now + lasts_s if lasts_s else None
        if verb is Verb.OVERRIDE:
            stack.worded.add(address(i))
            for balancer in stack.balancers.values():
                for ref, hands in balancer.hands.items():
                    is_news = stack.loop.now - hands.typed_at < SEEN_WITHIN_S or balancer.link.line is not Line.GOOD
                    if hands.operator == "hand" and is_news and balancer.seen(ref).address == address(i):
                        hands.operator = "both"
        if verb is Verb.ADOPT:
            for balancer in stack.balancers.values():
                for hands in balancer.hands.values():
                    hands.ours = "both" if hands.ours == "hand" else hands.ours
        self._sidecar(name).command(
            Commanded(verb, "operator:root", stack.loop.now, service, instance, owner if i else "", state, until, "as planned")
        )

    # ---- peace ----

    def heal(self) -> None:
        """The end of all faults. What operators said by hand stays said."""
        stack, self.is_peace = self.stack, True
        stack.note("* peace")
        for balancer in stack.balancers.values():
            balancer.before_write.clear()
            balancer.link.line = Line.GOOD
            for ref in sorted(balancer.down):
                balancer.check(ref, is_down=False)
        stack.instances.ways.clear()
        self.disk("good")
        for sidecar in stack.sidecars:
            if sidecar.process is not None and sidecar.process.is_alive:
                sidecar.process.fuse = None
                if sidecar.process.is_stopped:
                    stack.loop.resume(sidecar.process)
            sidecar.text = text_of(stack.layout, sidecar.folder)
            sidecar.boot()
        stack.run(5.0)
        self._each_alone(self._clear)

    def _each_alone(self, what: Callable[[Sidecar], None]) -> None:
        """Of a pair only one writes: each gets its turn, and with it the chance to undo what it did."""
        for sidecar in self.stack.sidecars:
            for other in self.stack.sidecars:
                if other is not sidecar:
                    other.terminate()
            self.stack.run(4.0 if len(self.stack.sidecars) > 1 else 0.1)
            sidecar.boot()
            self.stack.run(3.0)
            what(sidecar)

    def _clear(self, sidecar: Sidecar) -> None:
        if sidecar.app is not None and sidecar.process is not None:
            self.stack.loop.start_task(sidecar.app.reload("operator:SIGHUP"), sidecar.process)
        self.stack.run(DEADLINES_S if self.was_silent else 1.0)
        for service in ("", *self.stack.layout.services):
            sidecar.command(Commanded(Verb.UNFREEZE, "operator:root", self.stack.loop.now, service))
        self.stack.run(0.5)
        for (service, _, _), members in self.stack.layout.pools.items():
            for i, owner in itertools.product(members, ("root", "deploy")):
                instance = Instance(service, address(i))
                sidecar.command(Commanded(Verb.CLEAR, "operator:root", self.stack.loop.now, service, instance, owner))
        self.stack.run(SETTLE_S)


# ---- one plan ----


def plan_of(seed: int, insist: Sequence[str] = ()) -> Plan:
    """What happens under this seed. `insist`: kinds of happening that must be frequent."""
    rng = Random(f"{seed} plan")
    layout = _layout_of(rng, insist)
    kinds = [kind for kind in MAKERS if rng.random() < 0.45] + ["sick"] * 3 + ["well"] + [*insist] * 4
    at, happenings = QUIET_S, []
    while at < QUIET_S + CHAOS_S:
        at += min(rng.expovariate(0.6), 5.0)
        for _ in range(rng.choice([1, 1, 1, 2])):
            kind = rng.choice([k for k in kinds if k in MAKERS])
            happenings += [replace(h, at=round(h.at, 3)) for h in MAKERS[kind](rng, layout, at)]
            at += rng.choice([0.0, 0.0, 0.05])
    return Plan(seed, layout, tuple(sorted(happenings, key=lambda h: h.at)), rng.randrange(8))


def _layout_of(rng: Random, insist: Sequence[str]) -> Layout:
    n = rng.choice([1, 2, 3, 3, 4, 4, 5, 6])
    everybody = tuple(range(1, n + 1))
    some = tuple(sorted(rng.sample(everybody, max(1, n - rng.randint(0, n // 2)))))
    costly = rng.random() < 0.15
    pair = rng.choice(["", "", "", "own", "shared"])
    pair = next((kind for kind in ("own", "shared") if kind in insist), pair)
    match rng.randrange(7):
        case 0 | 1 | 2:
            pools = {("shop", "edge", "shop"): everybody}
        case 3:
            pools = {("shop", "edge", "http"): everybody, ("shop", "edge", "ws"): some}
        case 4 | 5:
            pools = {("shop", "edge", "shop"): everybody, ("shop", "web", "shop"): some}
        case _:
            pools = {("shop", "edge", "shop"): everybody, ("cart", "edge", "cart"): some}
    return Layout(pools, costly=costly, pair=pair)


Maker = Callable[[Random, Layout, float], list[Happening]]


def _members(layout: Layout) -> list[int]:
    return sorted({i for members in layout.pools.values() for i in members})


def _server(rng: Random, layout: Layout) -> tuple[str, Ref]:
    (_, balancer, pool), members = rng.choice(list(layout.pools.items()))
    return balancer, Ref(pool, f"s{rng.choice(members)}")


def _name(rng: Random, layout: Layout) -> str:
    return rng.choice("AAB") if layout.pair else "A"


def _sick(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """One, half or all of them, in one way; mostly only for a while."""
    everybody = _members(layout)
    many = rng.choice([1, 1, 1, 1, 1, 2, (len(everybody) + 1) // 2, len(everybody)])
    those = tuple(sorted(rng.sample(everybody, min(many, len(everybody)))))
    how = rng.choice(["refused", "refused", "hangs", "status", "flaky", "unknown"])
    ill = [Happening(at, "behave", (those, how))]
    return [*ill, Happening(at + rng.uniform(0.5, 8.0), "behave", (those, "good"))] if rng.random() < 0.7 else ill


def _one_dies_of_many(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """All are well, one is not any more: about 0.2 s later it is being taken out."""
    everybody = tuple(_members(layout))
    return [Happening(at, "behave", (everybody, "good")), Happening(at + 1.0, "behave", ((rng.choice(everybody),), "refused"))]


def _well(rng: Random, layout: Layout, at: float) -> list[Happening]:
    everybody = _members(layout)
    those = tuple(sorted(rng.sample(everybody, rng.choice([1, max(1, len(everybody) // 2), len(everybody)]))))
    return [Happening(at, "behave", (those, "good"))]


def _own_check(rng: Random, layout: Layout, at: float) -> list[Happening]:
    server = _server(rng, layout)
    return [Happening(at, "own_check", (*server, "down")), Happening(at + rng.uniform(0.5, 8.0), "own_check", (*server, "up"))]


def _operator(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "operator", (*_server(rng, layout), rng.choice(list(Operator))))]


def _health(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "health", (*_server(rng, layout), rng.choice([Serve.NONE, Serve.FULL])))]


def _taken_by_hand(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """Somebody takes one that is well out on our own axis; we die and start again."""
    everybody = Happening(at, "behave", (tuple(_members(layout)), "good"))
    out = Happening(at + 1.0, "health", (*_server(rng, layout), Serve.NONE))
    return [everybody, out, Happening(at + 2.5, "kill", ("A", 0, 0.05))]


def _weight(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "weight", (*_server(rng, layout), rng.randint(1, 200)))]


def _race(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """With somebody who is just falling ill, so that there is a write to be raced."""
    *change, ill = _one_dies_of_many(rng, layout, at)
    those = ill.given[0]
    assert isinstance(those, tuple)
    balancer, ref = rng.choice([(b, Ref(p, f"s{i}")) for (_, b, p), members in layout.pools.items() for i in those if i in members])
    return [*change, ill, Happening(at + 1.0, "race", (balancer, ref, rng.choice([Operator.MAINTENANCE, Operator.DRAINING])))]


def _restart(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "restart", (rng.choice(layout.balancers), rng.choice(["keeps operators", "forgets all"])))]


def _line(rng: Random, layout: Layout, at: float) -> list[Happening]:
    balancer, bad = rng.choice(layout.balancers), rng.choice([Line.SLOW, Line.CUT, Line.DEAF, Line.DEAF, Line.SILENT])
    return [Happening(at, "line", (balancer, bad)), Happening(at + rng.uniform(0.5, 6.0), "line", (balancer, Line.GOOD))]


def _kill(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """While something is to be done, so that there is something to be in the middle of."""
    change = _one_dies_of_many(rng, layout, at) if rng.random() < 0.7 else _well(rng, layout, at + 1.0)
    away_s = rng.choice([0.05, 1.0, LONGEST_AWAY_S])
    return [*change, Happening(at + 1.0, "kill", (_name(rng, layout), rng.randint(1, 9), away_s))]


def _flap(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """Out for the second time, well again, and we die while it is held down."""
    everybody = tuple(_members(layout))
    one = (rng.choice(everybody),)
    how = [(0.0, everybody, "good"), (1.0, one, "refused"), (2.0, one, "good"), (4.5, one, "refused"), (5.2, one, "good")]
    flapping = [Happening(at + after, "behave", (those, way)) for after, those, way in how]
    return [*flapping, Happening(at + 5.2 + rng.uniform(0.0, 0.5), "kill", ("A", 0, 0.05))]


def _word_lost(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """A word of ours arrives, its answer does not; later it is taken back."""
    (said,) = _command(Verb.OVERRIDE)(rng, layout, at + 0.05)
    name, verb, service, i, owner, state, _ = said.given
    clear = (name, Verb.CLEAR, service, i, owner, Operator.READY, 0.0)
    balancer = rng.choice([b for s, b, _ in layout.pools if s == service])
    line = [Happening(at, "line", (balancer, Line.DEAF)), Happening(at + 1.5, "line", (balancer, Line.GOOD))]
    return [*line, Happening(said.at, "command", (name, verb, service, i, owner, state, 0.0)), Happening(at + 5.0, "command", clear)]


def _word_raced(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """An operator says the same at the balancer, right before our word arrives; later ours is taken back, his is not."""
    (service, balancer, pool), members = rng.choice(list(layout.pools.items()))
    i, name = rng.choice(members), _name(rng, layout)
    word = rng.choice([Operator.MAINTENANCE, Operator.DRAINING])
    said, clear = (
        Happening(at + after, "command", (name, verb, service, i, "root", state, 0.0))
        for after, verb, state in ((0.05, Verb.OVERRIDE, word), (5.0, Verb.CLEAR, Operator.READY))
    )
    return [Happening(at, "race", (balancer, Ref(pool, f"s{i}"), word)), said, clear]


def _power(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [
        *_one_dies_of_many(rng, layout, at),
        Happening(at + 1.0 + rng.uniform(0.15, 0.5), "power", (rng.choice([0.5, LONGEST_AWAY_S]),)),
    ]


def _terminate(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "terminate", (_name(rng, layout), rng.choice([0.1, LONGEST_AWAY_S])))]


def _stop(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "stop", (_name(rng, layout), rng.choice([0.7, 2.5, 5.0])))]


def _disk(rng: Random, layout: Layout, at: float) -> list[Happening]:
    how = rng.choice(["full", "full", "broken", "slow", "hangs"])
    return [Happening(at, "disk", (how,)), Happening(at + rng.uniform(0.5, 6.0), "disk", ("good",))]


def _hung_disk(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """One dies while the disk hangs, and is well again before it has taken the word."""
    well, ill = _one_dies_of_many(rng, layout, at)
    disk = [Happening(at + 0.9, "disk", ("hangs",)), Happening(at + 3.3, "disk", ("good",))]
    return [well, ill, *disk, Happening(at + 3.3, "behave", well.given)]


def _clock(rng: Random, layout: Layout, at: float) -> list[Happening]:
    return [Happening(at, "clock", (rng.choice([-3.2e7, -3600.0, 3600.0, 3.2e7]),))]


def _lock_deleted(rng: Random, layout: Layout, at: float) -> list[Happening]:
    """And soon there is something to write."""
    return [Happening(at, "lock_deleted", (rng.choice(layout.balancers),)), *_one_dies_of_many(rng, layout, at + 1.5)]


def _reload(rng: Random, layout: Layout, at: float) -> list[Happening]:
    name, mode = _name(rng, layout), rng.choice(["act", "observe", "broken"])
    back = [Happening(at + rng.uniform(1.0, 5.0), "reload", (name, "act"))] if mode == "observe" else []
    return [Happening(at, "reload", (name, mode)), *back]


def _command(*verbs: Verb) -> Maker:
    def make(rng: Random, layout: Layout, at: float) -> list[Happening]:
        (service, _, _), members = rng.choice(list(layout.pools.items()))
        verb = rng.choice(verbs)
        i = rng.choice(members) if verb in (Verb.OVERRIDE, Verb.CLEAR) else 0
        state = rng.choice([Operator.DRAINING, Operator.MAINTENANCE, Operator.READY]) if verb is Verb.OVERRIDE else Operator.READY
        lasts_s = rng.choice([0.0, rng.uniform(1.0, 8.0)]) if verb in (Verb.OVERRIDE, Verb.FREEZE) else 0.0
        return [Happening(at, "command", (_name(rng, layout), verb, service, i, rng.choice(["root", "deploy"]), state, round(lasts_s, 2)))]

    return make


MAKERS: dict[str, Maker] = {
    "sick": _sick, "well": _well, "own_check": _own_check, "operator": _operator, "health": _health, "taken_by_hand": _taken_by_hand,
    "weight": _weight, "race": _race, "flap": _flap, "word_lost": _word_lost, "word_raced": _word_raced, "restart": _restart,
    "line": _line, "kill": _kill, "power": _power, "terminate": _terminate, "stop": _stop, "disk": _disk, "hung_disk": _hung_disk,
    "clock": _clock, "lock_deleted": _lock_deleted, "reload": _reload, "override": _command(Verb.OVERRIDE), "clear": _command(Verb.CLEAR),
    "freeze": _command(Verb.FREEZE, Verb.UNFREEZE), "release": _command(Verb.RELEASE), "adopt": _command(Verb.ADOPT),
}  # fmt: skip
CRASHES = ("kill", "power", "terminate", "stop")


def run(plan: Plan, heard: Callable[[Stack], None] = lambda stack: None) -> Stack:
    """This plan to its end. Violation, which has the story, if a promise was broken. `heard` gets the stack in either case."""
    stack = Stack(plan.seed, plan.layout)
    with surroundings(stack):
        try:
            _run(plan, stack, Chaos(stack))
        except Violation as violation:
            violation.story = stack.story
            raise
        except AssertionError as fault:
            broken = Violation("shell", str(fault))
            broken.story = [*stack.story, f"!! {fault}"]
            raise broken from fault
        finally:
            heard(stack)
            stack.close()
    return stack


def _run(plan: Plan, stack: Stack, chaos: Chaos) -> None:
    for i, sidecar in enumerate(stack.sidecars):
        stack.later(i * STARTS_WITHIN_S, sidecar.boot)
    start = stack.loop.now
    for happening in plan.happenings:
        stack.run(start + happening.at - stack.loop.now)
        chaos.strike(happening)
    stack.run(max(0.0, start + QUIET_S + CHAOS_S - stack.loop.now))
    chaos.heal()
    stack.check_peace()
    written = stack.writes
    stack.run(3.0)
    if stack.writes > written:
        stack.violated("quiet", "still writing long after peace")
    stack.run(HANDS_OFF_S)
    _one_dies(plan, stack)


def _one_dies(plan: Plan, stack: Stack) -> None:
    """After all this the sidecar must still be able to do its work: one that dies in peace goes out."""
    for service in plan.layout.services:
        servers = [(b, ref) for s, name, p in plan.layout.pools if s == service for b, ref in stack._pool(name, p)]
        standing = sorted({where for b, ref in servers if b.serves(ref) and (where := b.seen(ref).address) is not None})
        victim = standing[plan.victim % len(standing)] if standing else None
        if victim is None or not _has_room(plan, stack, service, victim):
            continue
        stack.note(f"* in peace {victim} dies")
        stack.instances.ways[victim] = "refused"
        stack.run(OUT_WITHIN_S)
        if any(b.serves(ref) for b, ref in servers if b.seen(ref).address == victim):
            stack.violated("liveness", f"{victim} of {service} is dead, there is room, and it is still in rotation")
        stack.instances.ways.clear()
        stack.run(4.0)


def _has_room(plan: Plan, stack: Stack, service: str, victim: Address) -> bool:
    gone: set[Address] = {victim}
    counted: set[Address] = set()
    for s, name, pool in plan.layout.pools:
        if s != service:
            continue
        servers = stack._pool(name, pool)
        ready = [(b, ref) for b, ref in servers if b.seen(ref).operator is Operator.READY]
        if any(b.seen(ref).address == victim and ((b, ref) not in ready or not b.serves(ref)) for b, ref in servers):
            return False
        if any(b.seen(ref).address == victim for b, ref in ready):
            out = sum(1 for b, ref in ready if not b.serves(ref) or b.seen(ref).address == victim)
            if out > most_out(len(ready)):
                return False
        if len(ready) < len(servers):
            return False
        counted |= {where for b, ref in ready if (where := b.seen(ref).address) is not None}
        gone |= {where for b, ref in ready if not b.serves(ref) and (where := b.seen(ref).address) is not None}
    return len(counted) > 1 and len(gone) <= most_out(len(counted))


def fingerprint(stack: Stack) -> str:
    return sha256("\n".join(stack.story).encode()).hexdigest()


# ---- the same without the crash ----


def equals_without_crashes(plan: Plan, stack: Stack) -> Violation | None:
    """Does the run end as it would have, had nobody died or stopped? What was typed about the same moment may end either way."""
    if not any(h.kind in CRASHES for h in plan.happenings):
        return None
    calm, typed = (
        run(plan.without(*CRASHES)).final(),
        {f"{h.given[0]}/{h.given[1]}" for h in plan.happenings if h.kind in ("race", "health")},
    )
    moved = [
        f"{server} is {state} instead of {calm[server]}"
        for server, state in stack.final().items()
        if not calm[server].startswith(state) and not state.startswith(calm[server]) and server not in typed
    ]
    return Violation("crash equivalence", "; ".join(moved)) if moved else None


# ---- a story that people can read ----


def broken_by(plan: Plan) -> Violation | None:
    try:
        run(plan)
    except Violation as violation:
        return violation
    return None


def shrunk(plan: Plan, promise: str, tries: int = 400) -> Plan:
    """The plan without everything that it does not need to break this promise."""

    def still_fails(happenings: Sequence[Happening]) -> bool:
        found = broken_by(replace(plan, happenings=tuple(happenings)))
        return found is not None and found.promise == promise

    return replace(plan, happenings=shrink.shrunk(plan.happenings, still_fails, tries))


def told(plan: Plan, violation: Violation, *, lines: int = 40) -> str:
    """What had to happen, and how it went."""
    needed = shrunk(plan, violation.promise)
    again = broken_by(needed) or violation
    pools = "; ".join(f"{s} on {b}/{p}: {len(m)} servers" for (s, b, p), m in needed.layout.pools.items())
    pair = {"": "one sidecar", "own": "two sidecars", "shared": "two sidecars with one state folder"}[needed.layout.pair]
    head = [f"seed {plan.seed}: {again}", f"  {pools}; {pair}{', every change is a reload' if needed.layout.costly else ''}"]
    return "\n".join([*head, *(f"  {h}" for h in needed.happenings), "how it went:", *again.story[-lines:]])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.stack_schedules", description="Random schedules against the whole sidecar.")
    parser.add_argument("--seeds", default="0:200", help="FROM:TO, TO not included")
    parser.add_argument("--insist", default="", help="kinds of happening that must be frequent, separated by commas")
    parser.add_argument("--story", type=int, help="print the whole story of this one seed")
    parser.add_argument("--calm", action="store_true", help="also compare each with the same plan without crashes")
    parser.add_argument("--whole", action="store_true", help="do not shrink what fails")
    options = parser.parse_args(arguments)
    insist = tuple(filter(None, options.insist.split(",")))
    if options.story is not None:
        return _tell_one(plan_of(options.story, insist))
    first, last = (int(part) for part in options.seeds.split(":"))
    broken: Counter[str] = Counter()
    for seed, violation in failures(range(first, last), insist, calm=options.calm):
        broken[violation.promise] += 1
        is_news = broken[violation.promise] == 1 and not options.whole and violation.promise != "crash equivalence"
        print(told(plan_of(seed, insist), violation) if is_news else f"seed {seed}: {violation}", flush=True)
    print(f"{last - first} schedules, broken: {dict(broken) or 'none'}")
    return 1 if broken else 0


def _tell_one(plan: Plan) -> int:
    stacks: list[Stack] = []
    with contextlib.suppress(Violation):
        run(plan, stacks.append)
    print("\n".join([str(plan.layout), *map(str, plan.happenings), "", *stacks[0].story]))
    return 1 if stacks[0].broken else 0


def failures(seeds: Sequence[int], insist: Sequence[str] = (), *, calm: bool = False) -> Iterator[tuple[int, Violation]]:
    """Those of these seeds that break a promise, and which. `calm`: that of ending as without crashes as well."""
    for seed in seeds:
        plan = plan_of(seed, insist)
        violation = broken_by(plan) or (equals_without_crashes(plan, run(plan)) if calm else None)
        if violation is not None:
            yield seed, violation


if __name__ == "__main__":
    sys.exit(main())
