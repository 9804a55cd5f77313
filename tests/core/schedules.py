"""Random schedules against the core: what may go wrong does, in any order, and after every event the promises must hold.

    python -m tests.core.schedules --seeds 0:2000
    python -m tests.core.schedules --seeds 0:1000000 --facts 5000000
    python -m tests.core.schedules --seeds 0:2000 --coverage docs/coverage.md
    python -m tests.core.schedules --hour

One seed is one schedule: a layout of pools and balancers, a choice of the kinds of fault that happen at all, about half a minute of
them, then peace. A seed that breaks a promise is shrunk: faults that it does not need for that are left out, and the rest is told. The
same seed gives the same story again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from random import Random
from statistics import median

from lbplugins.values import Address, Axis, Change, Operator, Ref, Seen, Serve, Setting
from sidecar.core.guard import judge
from sidecar.core.known import InstanceState, in_its_words
from sidecar.core.model import (
    Act,
    Commanded,
    Configured,
    Decision,
    Discovered,
    Ejection,
    Fact,
    Instance,
    Intent,
    Outcome,
    Result,
    SelfChecked,
    Target,
    Verb,
)
from sidecar.core.policy import Mode, ProbePlan
from sidecar.core.streak import FAST
from tests.core import coverage
from tests.core.lab import Lab
from tests.core.lab import policy as lab_policy
from tests.core.shrink import shrunk
from tests.core.site import RULES, SPEC, Layout, Server, Side, Site, address, policy_for

QUIET_S = 6.0
"""Before the first fault: long enough to be out of the cold start."""
CHAOS_S = 26.0
SETTLE_S = RULES.hold_down_max_s + 5.0 + 2.0
"""After the last fault: the longest hold-down, what the balancers may take, and the flapping guard's patience."""
OUT_WITHIN_S = 8.0
"""How soon one that goes bad in peace must be out."""


Covered = tuple[str, str, str]
"""A judgement, the fault before it, and what held an act back or was done."""


class Violation(AssertionError):
    """A promise was broken; `story` tells how it came to it."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise
        self.story: list[str] = []


def most_out(n: int) -> int:
    """What design.md allows on hard evidence, written down again so that the core does not judge itself."""
    return 0 if n < 2 else max(1, n // 2)


class Watched(Site):
    """A site whose every step is held against the promises."""

    def __init__(self, seed: int, layout: Layout, **policy: object) -> None:
        self.story: list[str] = []
        self.told = 0
        self.boundary: dict[Instance, float] = {}
        self.started_at = 1000.0
        self.known_instances: set[Instance] = set()
        self.hungry_since: dict[str, float] = {}
        self.facts = 0
        self.written_by_us: list[Change] = []
        self.alone_since: dict[Instance, float] = {}
        self.made_ready: dict[tuple[str, Ref], Instance] = {}
        """Where the core was shown that a hand has brought back what it holds out, and has not let go of it since."""
        self.fault = ""
        self.covered: set[Covered] | None = None
        super().__init__(layout, policy_for(layout, **policy), Random(seed))  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self.story.append(f"{self.now:9.3f}  {text}")

    # ---- what is told, for the story and for the comparison of two runs ----

    def feed(self, *facts: Fact) -> None:
        if not self.alive:
            return
        self.facts += len(facts)
        super().feed(*facts)
        for event in self.events[self.told :]:
            self.note(f"    . {event.kind}: {event.sentence}")
        self.told = len(self.events)
        self._note_births()
        self.check_witnesses()

    def _note_births(self) -> None:
        now_known = {i for service in self.world.services.values() for i in service.instances}
        for instance in now_known - self.known_instances:
            self.boundary[instance] = max(self.boundary.get(instance, 0.0), self.now)
        self.known_instances = now_known

    def start(self, *args: object) -> None:
        self.started_at = self.now
        self.made_ready, self.alone_since = {}, {}
        self.known_instances = set()
        super().start(*args)  # type: ignore[arg-type]

    def pause(self, gap_s: float) -> None:
        resumed = self.now + gap_s
        for instance in self.known_instances:
            self.boundary[instance] = resumed
        super().pause(gap_s)

    # ---- at each decision ----

    def decided(self, decision: Decision) -> None:
        if self.covered is not None and self.fault:
            self.covered |= self._covers(decision)
        for intent in decision.intents:
            self._check_intent(intent)
        for name, changes in (decision.changes or {}).items():
            for change in changes:
                self._check_change(self.sides[name], change)

    def _covers(self, decision: Decision) -> set[Covered]:
        """What was judged, after which fault, and what became of it: each hold, or what was done."""
        about = [(hold.instance, hold.name.value) for hold in decision.holds]
        about += [(intent.instance, intent.act.value) for intent in decision.intents if intent.act in (Act.EJECT, Act.RETURN)]
        return {
            (judge(state, self.policy.services[instance.service]).value, self.fault, what)
            for instance, what in about
            if instance is not None and (state := self.world.state_of(instance)) is not None
        }

    def _check_intent(self, intent: Intent) -> None:
        if intent.act in (Act.HANDS_OFF, Act.RETURN, Act.FORGET):
            self.made_ready = {where: instance for where, instance in self.made_ready.items() if instance != intent.instance}
        if intent.instance is None or not intent.by.startswith(("rule:", "outside")):
            return
        if intent.at < self.now:
            return  # decided and done while the disk was full; written down now
        if intent.act is Act.EJECT and intent.by.startswith("rule:"):
            self._check_ejection(intent.instance, intent)
        if intent.act is Act.OVERRIDE and intent.by == "outside" and not self._was_unsaid(intent.instance):
            raise Violation("word", f"{intent.instance}: {intent.why}, and no hand has done so")
        if intent.act is Act.RETURN and intent.by.startswith("rule:") and self.is_frozen(intent.instance.service):
            raise Violation("freeze", f"{intent.instance} is brought back by {intent.by} while frozen")

    def _was_unsaid(self, instance: Instance) -> bool:
        """Has somebody made one of its servers ready at the balancer?"""
        return any(
            side.servers[ref].address == instance.address for side in self.sides.values() for ref in side.unsaid & side.servers.keys()
        )

    def _check_ejection(self, instance: Instance, intent: Intent) -> None:
        since = max(self.boundary.get(instance, 0.0), self.started_at)
        completed = evidence(self.heard.get(Target(instance.address, SPEC), []), since)
        if completed is None:
            raise Violation("evidence", f"{instance} ejected ({intent.why}) without complete evidence asked since {since:.3f}")
        assert intent.ejection is not None
        others = [
            [o for o in self.heard.get(Target(other.address, SPEC), []) if o.ended >= max(self.started_at, self.boundary.get(other, 0.0))]
            for other in self.world.services[instance.service].instances
            if other != instance
        ]
        failures = last_failures([o for o in self.heard.get(Target(instance.address, SPEC), []) if o.started >= since])
        if not any(is_witness(heard, completed, failures) for heard in others):
            raise Violation("witness", f"{instance} ejected, but nobody answered well since {completed:.3f}")
        standing = [s for s in self.world.services[instance.service].instances.values() if s.sources and s.operator is Operator.READY]
        out = [
            s for s in standing if Act.EJECT in s.proposed or (s.ejection is not None and s.ejection.enforced and not s.ejection.returning)
        ]
        if intent.ejection.enforced and len(out) > most_out(len(standing)):
            raise Violation(
                "floor", f"{instance} ejected: {len(out)} of {len(standing)} would be out by us, {most_out(len(standing))} may be"
            )
        if self.is_frozen(instance.service):
            raise Violation("freeze", f"{instance} ejected while frozen")
        if self.now < self.world.blind_until:
            raise Violation("blind", f"{instance} ejected while blind")
        if self.world.journal_fault:
            raise Violation("journal", f"{instance} ejected though nothing can be written down")
        if (hands_off := self.force.hands_off.get(instance)) is not None and (hands_off[1].intent.until or 0.0) > self.now:
            raise Violation("operator", f"{instance} ejected while hands are off")
        for service, balancer, pool in self.layout.pools:
            side = self.sides[balancer]
            for ref, seen in side.pictured.items() if service == instance.service and side.reachable else ():
                if ref.pool == pool and seen.address == instance.address and seen.operator is not Operator.READY:
                    raise Violation("operator", f"{instance} ejected though an operator has it in {seen.operator}")

    def _check_change(self, side: Side, change: Change) -> None:
        if side.standby:
            raise Violation("standby", f"{side.name}/{change.ref} is written while standing by")
        if change.on is not Axis.OURS:
            return
        instance = self.instance_of(side, change.ref, change.expect.address)
        in_force = self.force.ejections.get(instance)
        ejection = in_force[1].intent.ejection if in_force else None
        if change.want.serve is Serve.NONE:
            if ejection is None or ejection.returning:
                raise Violation("journal", f"{side.name}/{change.ref} is taken out, but no ejection of {instance} is on disk")
            if self.is_frozen(instance.service):
                raise Violation("freeze", f"{side.name}/{change.ref} is taken out while frozen")
            if self.policy.services[instance.service].mode is Mode.OBSERVE:
                raise Violation("observe", f"{side.name}/{change.ref} is taken out in observe mode")
            if change.expect.operator is not Operator.READY:
                raise Violation("operator", f"{side.name}/{change.ref} is taken out though an operator has it in {change.expect.operator}")
            if self.made_ready.get((side.name, change.ref)) == instance:
                raise Violation("operator", f"{side.name}/{change.ref} is taken out again though a hand has made it ready")

    def before_picture(self, side: Side, picture: dict[Ref, Seen]) -> None:
        for ref in side.unsaid & picture.keys() & side.pictured.keys():
            before, seen = side.pictured[ref], picture[ref]
            is_a_word_of_ours = ref in self.world.balancers[side.name].said_pending
            same = (before.generation, before.address) == (seen.generation, seen.address)
            if same and before.operator is not Operator.READY and seen.operator is Operator.READY and not is_a_word_of_ours and self.alive:
                self.boundary[self.instance_of(side, ref, seen.address)] = self.now  # a new life
        for ref in side.readied & picture.keys() & side.pictured.keys():
            before, seen = side.pictured[ref], picture[ref]
            same = (before.generation, before.operator, before.address) == (seen.generation, seen.operator, seen.address)
            if same and before.ours.serve is Serve.NONE and seen.ours.serve is Serve.FULL and self.alive and not side.standby:
                state = self.world.state_of(self.instance_of(side, ref, seen.address))
                if state is not None and state.ejection is not None and state.ejection.enforced and not state.ejection.returning:
                    self.made_ready[side.name, ref] = state.instance

    # ---- at each write ----

    def about_to_write(self, side: Side, server: Server, change: Change, knew: bool) -> None:
        where = f"{side.name}/{change.ref}"
        if change.on is Axis.OPERATOR:
            if server.operator is not Operator.READY and server.operator_by == "hand":
                raise Violation("operator", f"{where}: {change.want.serve} written over an operator's own {server.operator}")
        elif change.want.serve is Serve.FULL:
            if server.ours_by == "hand":
                raise Violation("ownership", f"{where}: given back, but it was taken out by a hand that is not ours")
        elif knew:
            self._check_floor(side, server, where, change.ref.pool)

    def _check_floor(self, side: Side, server: Server, where: str, pool: str) -> None:
        counted = [s for ref, s in side.servers.items() if ref.pool == pool and s.operator is Operator.READY]
        out = sum(1 for s in counted if not s.serving or s is server)
        if server.serving and out > most_out(len(counted)):
            raise Violation("floor", f"{where} taken out: {out} of {len(counted)} would be out, {most_out(len(counted))} may be")

    def wrote(self, side: Side, change: Change) -> None:
        self.written_by_us.append(change)
        self.note(f"  -> {side.name}/{change.ref}: {change.want.serve} on {change.on} axis ({change.why})")
        self._check_orphans()

    def journaled(self, intents: Sequence[Intent]) -> None:
        for intent in intents:
            if intent.act is Act.EJECT and intent.instance is not None:
                self._blur(intent.instance)
            self.note(f"    w {intent.act} {intent.instance or ''} by {intent.by}{' (disk full)' if self.disk_full else ''}")
        self._check_orphans()

    def _blur(self, instance: Instance) -> None:
        """Out by a hand that we have not seen yet, and out by us: from now on nobody can tell the two apart."""
        for side in self.sides.values():
            for ref, server in side.servers.items():
                seen = side.pictured.get(ref)
                where = {server.address, seen.address if seen is not None else None}
                if server.ours_by == "hand" and (seen is None or (seen.ours.serve is Serve.FULL and instance.address in where)):
                    server.ours_by = "both"

    def _check_orphans(self) -> None:
        """What we have out has an ejection in force, or a return that is on its way, on disk."""
        owned = {instance.address for instance in self.force.ejections}
        for side in self.sides.values():
            for ref, server in side.servers.items():
                if server.ours_by == "us" and server.address not in owned and server.ours_for not in owned:
                    raise Violation("orphan", f"{side.name}/{ref} is out by us and nobody on disk knows")

    # ---- now and then ----

    def check_hunger(self) -> None:
        """A service with nothing in rotation, though it would have something had we not taken it out, is fed within seconds."""
        for service in self.layout.services:
            servers = [(side, s) for side, s in self.servers_of(service)]
            ours = [s for side, s in servers if s.ours_by == "us" and not s.down and s.operator is Operator.READY and self.may_write(side)]
            starving = bool(ours) and not any(s.serving for _, s in servers) and self.alive and not self.is_frozen(service)
            if not starving:
                self.hungry_since.pop(service, None)
            elif self.now - self.hungry_since.setdefault(service, self.now) > 10.0:
                raise Violation("floor", f"{service}: nothing has been in rotation for 10 s, and {len(ours)} are out by us")

    def check_witnesses(self) -> None:
        """If all who have testified fail soon after, and nobody else testifies, it was not the instance: it comes back."""
        for instance in self.force.ejections:
            state = self.world.state_of(instance)
            if state is None or state.ejection is None or not self._is_alone(state.ejection, state):
                self.alone_since.pop(instance, None)
            elif self.now - self.alone_since.setdefault(instance, self.now) > 0.25:
                raise Violation("witness", f"{instance} stays out, and everybody who has testified against it fails as well")

    def _is_alone(self, ejection: Ejection, state: InstanceState) -> bool:
        """Was this taken out by a rule a moment ago, and does nobody answer well now? Not while anything keeps us from giving back."""
        if not ejection.rule.startswith("rule:") or ejection.returning or state.proposed or state.overruled or state.new_life:
            return False
        if self.now - ejection.at > RULES.undo_s or not self.alive or self.is_frozen(ejection.instance.service) or not ejection.witnesses:
            return False
        everybody = [Target(i.address, SPEC) for i in self.world.services[ejection.instance.service].instances if i != ejection.instance]
        return all(_has_failed_twice(self.heard.get(target, [])) for target in {*everybody, *ejection.witnesses})

    def check_strangers(self) -> None:
        """A slot that has another address now stands for another instance: what we did to the old one is undone within seconds."""
        out = {instance.address for instance in self.force.ejections}
        for side in self.sides.values():
            for ref, server in side.servers.items():
                key = f"{side.name}/{ref}"
                is_stranger = server.ours_by == "us" and server.ours_for != server.address and server.address not in out
                if not is_stranger or not self.alive or not self.may_write(side):
                    self.hungry_since.pop(key, None)
                elif self.now - self.hungry_since.setdefault(key, self.now) > 10.0:
                    raise Violation("identity", f"{key} is still out for what {server.ours_for} did, and is {server.address} now")

    def may_write(self, side: Side) -> bool:
        return side.reachable and not side.standby and not side.answers_lost and side.look_s < 1.0 and side.apply_s < 1.0

    def check_peace(self) -> None:
        """All is well and nobody has said otherwise: everything serves, nothing is on our conscience."""
        for side in self.sides.values():
            for ref, server in side.servers.items():
                if server.ours_by == "us" or server.operator_by == "us":
                    raise Violation("way back", f"{side.name}/{ref} is still {server.ours.serve}/{server.operator} by us, all is well")
                if server.ours_by == "" and server.operator is Operator.READY and not server.serving:
                    raise Violation("way back", f"{side.name}/{ref} does not serve")
        if self.force.ejections:
            raise Violation("orphan", f"the journal still has {', '.join(map(str, self.force.ejections))} out")

    # ---- looking things up ----

    def is_frozen(self, service: str) -> bool:
        for name in (service, ""):
            freeze = self.world.freezes.get(name)  # not the disk's: a word of an operator holds although the disk is full
            if freeze is not None and (freeze.until is None or self.now < freeze.until):
                return True
        return False

    def instance_of(self, side: Side, ref: Ref, where: Address | None) -> Instance:
        service = next(s for s, b, p in self.layout.pools if b == side.name and p == ref.pool)
        assert where is not None
        return Instance(service, where)

    def servers_of(self, service: str) -> list[tuple[Side, Server]]:
        return [
            (self.sides[b], server)
            for s, b, p in self.layout.pools
            if s == service
            for ref, server in self.sides[b].servers.items()
            if ref.pool == p
        ]


def evidence(heard: Sequence[Outcome], since: float) -> float | None:
    """When the evidence against a target was complete at the earliest, counting only what was asked after `since`; None = it is not."""
    answers = [o for o in heard if o.result is not Result.UNKNOWN and o.started >= since]
    run: list[Outcome] = []
    for outcome in reversed(answers):
        if outcome.result is Result.OK:
            break
        run.insert(0, outcome)
    fast: list[Outcome] = []
    completed = []
    for i, outcome in enumerate(run, start=1):
        fast = [*fast, outcome] if outcome.reason in FAST else []
        spread = outcome.ended - fast[0].ended >= RULES.fast_spread_s if fast else False
        if (len(fast) >= RULES.fall_fast and spread) or (i >= RULES.fall and (spread or len(fast) < i)):
            completed.append(outcome.ended)
    last = answers[-RULES.window :]
    if len(last) == RULES.window and sum(o.result is Result.FAIL for o in last) >= RULES.window_bad * len(last):
        completed.append(max(o.ended for o in last if o.result is Result.FAIL) - RULES.window_s)
    return min(completed, default=None)


def _has_failed_twice(heard: Sequence[Outcome]) -> bool:
    answers = [o for o in heard if o.result is not Result.UNKNOWN]
    return len(answers) > 1 and all(o.result is Result.FAIL for o in answers[-2:])


def last_failures(heard: Sequence[Outcome]) -> list[Outcome]:
    """The newest run of failures, oldest first, whatever came after it."""
    run: list[Outcome] = []
    for outcome in reversed(heard):
        if outcome.result is Result.FAIL:
            run.insert(0, outcome)
        elif outcome.result is Result.OK and run:
            break
    return run


def is_witness(heard: Sequence[Outcome], since: float, failures: Sequence[Outcome]) -> bool:
    """It answers well since then, and has not just seen the end of what the accused, in these failures, was not asked about since."""
    answers = [o for o in heard if o.result is not Result.UNKNOWN]
    if not answers or answers[-1].result is not Result.OK or answers[-1].started < since:
        return False
    failed = [i for i, outcome in enumerate(answers) if outcome.result is Result.FAIL]
    if not failed or not failures or answers[failed[-1]].ended < failures[0].ended:
        return True
    return failures[-1].started >= answers[failed[-1] + 1].started


# ---- what may go wrong ----


class Chaos:
    """The faults of one schedule. Each method in KINDS does one thing to the site; `heal` undoes all that is not an operator's word."""

    def __init__(self, seed: int, site: Watched, insist: Sequence[str] = (), only: Mapping[int, object] | None = None) -> None:
        """`only`: the strikes that happen, by number, and the state of chance in which each did; None = all."""
        self.site, self.rng = site, Random(seed * 7919 + 1)
        self.only, self.turns, self.chances = only, 0, dict[int, object]()
        self.kinds = [kind for kind in KINDS if self.rng.random() < 0.5] or ["sick"]
        self.kinds += ["sick"] * 3 + ["well"] * 2 + [*insist] * 4
        self.next_address, self.is_peace, self.is_noted, self.strikes = 100, False, False, 0
        self.removed: list[tuple[Side, Ref, Server]] = []

    def strike(self) -> None:
        self.turns += 1
        if self.only is not None:
            if self.turns not in self.only:
                return
            self.rng.setstate(self.only[self.turns])  # type: ignore[arg-type]
        elif self.is_noted:
            self.chances[self.turns] = self.rng.getstate()
        kind = self.rng.choice(self.kinds)
        if self.site.alive or kind in OUTSIDE:
            self.strikes += 1
            self.site.fault = kind
            getattr(self, kind)()

    def _say(self, text: str) -> None:
        self.site.note(f"* {text}")

    def _side(self) -> Side:
        return self.rng.choice(list(self.site.sides.values()))

    def _server(self) -> tuple[Side, Ref]:
        side = self._side()
        return side, self.rng.choice(list(side.servers))

    def _instance(self) -> Instance | None:
        known = sorted(self.site.known_instances)
        return self.rng.choice(known) if known else None

    def _service(self) -> str:
        return self.rng.choice(self.site.layout.services)

    def _addresses(self) -> list[Address]:
        return sorted({s.address for side in self.site.sides.values() for s in side.servers.values()})

    # ---- instances ----

    def sick(self) -> None:
        """One, half or all of them, in one way."""
        everybody = self._addresses()
        many = self.rng.choice([1, 1, 1, 1, 2, (len(everybody) + 1) // 2, len(everybody)])
        how = self.rng.choice(["refused", "refused", "hangs", "status", "flaky", "unknown"])
        those = self.rng.sample(everybody, min(many, len(everybody)))
        self._say(f"{', '.join(map(str, those))}: {how}")
        for where in those:
            self.site.behave(where, how)

    def well(self) -> None:
        everybody = self._addresses()
        those = self.rng.sample(everybody, self.rng.choice([1, max(1, len(everybody) // 2), len(everybody)]))
        self._say(f"{', '.join(map(str, those))}: good")
        for where in those:
            self.site.behave(where, "good")

    # ---- balancers and their operators ----

    def own_check(self) -> None:
        side, ref = self._server()
        server = side.touch(ref)
        server.down = not server.down
        self._say(f"{side.name}/{ref}: own check {'DOWN' if server.down else 'up'}")

    def dusk(self) -> None:
        """Of each service half of what serves fails, and the balancers' own checks take the rest out."""
        for service in self.site.layout.services:
            standing = sorted({s.address for _, s in self.site.servers_of(service) if s.serving})
            for where in standing[: len(standing) // 2]:
                self.site.behave(where, "refused")
            later = self.site.now + 2.0
            self.site.outside(later, lambda service=service: None if self.is_peace else self._all_down(service))  # type: ignore[misc]
        self._say("dusk")

    def domino(self) -> None:
        """One falls, then all the others; it was none of them."""
        first, *others = self.rng.sample(self._addresses(), len(self._addresses()))
        how, gap_s, lasts_s = self.rng.choice(["refused", "status", "hangs"]), self.rng.uniform(0.3, 2.0), self.rng.uniform(2.0, 6.0)
        self._say(f"{first}: {how}, the others will follow")

        def behave(those: Sequence[Address], how: str) -> None:
            if not self.is_peace:
                self._say(f"{', '.join(map(str, those))}: {how}")
                for where in those:
                    self.site.behave(where, how)

        self.site.behave(first, how)
        self.site.outside(self.site.now + gap_s, partial(behave, others, how))
        self.site.outside(self.site.now + gap_s + lasts_s, partial(behave, [first, *others], "good"))

    def _all_down(self, service: str) -> None:
        for side, server in self.site.servers_of(service):
            if server.serving:
                side.moved = {ref.pool: side.moved.get(ref.pool, 0) + 1 for ref in side.servers}
                server.down = True
        self._say(f"{service}: own checks take out all that is left")

    def hand_operator(self, side: Side | None = None, ref: Ref | None = None) -> None:
        if side is None or ref is None:
            side, ref = self._server()
        server = side.touch(ref)
        word = self.rng.choice([o for o in Operator if o is not server.operator])
        self._say(f"{side.name}/{ref}: operator {server.operator} -> {word} by hand")
        seen, was_ours = side.pictured.get(ref), server.operator_by == "us"
        server.operator, server.operator_by = word, "" if word is Operator.READY else "hand"
        if word is Operator.READY:
            side.unsaid.add(ref)
        if seen is not None and seen.operator is word and word is not Operator.READY and (was_ours or ref in side.blurred):
            server.operator_by = "us"  # as before our last look: nobody can tell that it was ever otherwise
        if was_ours:
            side.blurred.add(ref)
        pending = self.site.world.balancers[side.name].said_pending.get(ref) if side.name in self.site.world.balancers else None
        believed: set[Operator | None] = {pending.word, *pending.before} if pending is not None else set()
        if side.name in self.site.world.balancers and (seen is None or seen.operator is not Operator.READY or side.is_at_work):
            believed.add(self.site.world.balancers[side.name].said.get(ref))
        if word in believed and word is not Operator.READY:
            server.operator_by = "maybe"  # the very word whose fate we have not been told
        has_drain = self.site.policy.balancers[side.name].drain
        words = [said for o in self.site.words_of(server) for said in (o.state, *o.before)]
        if not side.pictured and word in {in_its_words(said, has_drain) for said in words}:
            server.operator_by = "maybe"  # on disk it is ours, and nobody has looked since the restart
        if word is Operator.READY and server.ours_by == "us" and self.rng.random() < 0.3:
            server.ours, server.ours_by = Setting(), ""  # some balancers clear both

    def hand_ours(self, side: Side | None = None, ref: Ref | None = None) -> None:
        """Somebody writes on our own axis: ready against our ejection, or down where we said nothing."""
        if side is None or ref is None:
            side, ref = self._server()
        server = side.touch(ref)
        if server.ours.serve is Serve.FULL:
            ours = server.address in {i.address for i in self.site.force.ejections} or server.address in self.site.about
            seen = side.pictured.get(ref)
            if ours or side.is_at_work or (seen is not None and seen.ours.serve is not Serve.FULL):
                return  # then nobody could tell whose it is
            server.ours, server.ours_by = Setting(Serve.NONE), "hand"
        else:
            if server.ours_by == "us":
                side.readied.add(ref)
            server.ours, server.ours_by = Setting(), ""
        self._say(f"{side.name}/{ref}: our axis made {server.ours.serve} by hand")

    def hand_weight(self, side: Side | None = None, ref: Ref | None = None) -> None:
        if side is None or ref is None:
            side, ref = self._server()
        side.touch(ref).weight = self.rng.randint(1, 200)
        self._say(f"{side.name}/{ref}: weight edited")

    def race(self) -> None:
        """From now on operators meddle between our look and our write."""
        self._say("operators meddle between look and write")

        def meddle(side: Side, changes: Sequence[Change]) -> None:
            if self.rng.random() < 0.4:
                ref = self.rng.choice([ref for ref in side.servers if ref.pool == changes[0].ref.pool])
                if self.rng.random() < 0.5 and changes[0].ref in side.servers:
                    ref = changes[0].ref
                self.rng.choice([self.hand_operator, self.hand_ours, self.hand_weight])(side, ref)

        for side in self.site.sides.values():
            side.before_write = meddle

    def move(self) -> None:
        """A slot gets another address: another instance, sound at first."""
        side, ref = self._server()
        old = side.servers[ref].address
        words = {instance.address for instance, _ in self.site.force.overrides}
        if "crash" in self.kinds and (old in words or old in {i.address for i in self.site.force.ejections}):
            return  # both at once is more than a journal that knows addresses can tell
        self.next_address += 1
        for each in self.site.sides.values():
            for r, server in each.servers.items():
                if server.address == old and (each is side or self.rng.random() < 0.5):
                    each.touch(r).address = address(self.next_address)
        self.site.behave(address(self.next_address), "good")
        self._say(f"{side.name}/{ref}: {old} -> {address(self.next_address)}")

    def remove(self) -> None:
        side, ref = self._server()
        if len([r for r in side.servers if r.pool == ref.pool]) < 2:
            return
        side.touch(ref)
        self.removed.append((side, ref, side.servers.pop(ref)))
        self._say(f"{side.name}/{ref}: removed")

    def add(self) -> None:
        if self.removed:
            side, ref, server = self.removed.pop()
            side.servers[ref] = Server(server.address)
            side.touch(ref)
            side.unsaid.add(ref)
            self._say(f"{side.name}/{ref}: added again")

    def lost(self) -> None:
        side = self._side()
        side.reachable = not side.reachable
        self._say(f"{side.name} is {'back' if side.reachable else 'lost'}")

    def slow(self) -> None:
        side = self._side()
        side.look_s, side.apply_s = self.rng.choice([(0.002, 0.002), (1.5, 0.002), (0.002, 2.0), (0.8, 0.8)])
        self._say(f"{side.name} takes {side.look_s} s to look at, {side.apply_s} s to tell")

    def lossy(self) -> None:
        side = self._side()
        side.answers_lost = not side.answers_lost
        self._say(f"{side.name}: answers {'get lost, what was told arrives' if side.answers_lost else 'arrive'}")

    def forgets(self) -> None:
        side = self._side()
        operators_too = self.rng.random() < 0.5
        side.forget_all(operators_too=operators_too)
        self._say(f"{side.name} reloads and forgets our words{', the operators as well' if operators_too else ''}")

    # ---- we ourselves ----

    def crash(self) -> None:
        site = self.site
        site.crash()
        self._forget_whose()
        gap = self.rng.choice([0.05, 1.0, 4.0])
        if self.rng.random() < 0.2:
            site.boot += "+"
        self._say(f"kill -9; back in {gap} s{', the machine as well' if site.boot.endswith('+') else ''}")
        site.outside(site.now + gap, self._revive)

    def _forget_whose(self) -> None:
        """What is in no journal is nobody's now; what the journal has for the same instance is ours."""
        site = self.site
        said = [server for _, server in site.words_on_disk()]
        for server in [server for side in site.sides.values() for server in side.servers.values()]:
            if server.operator_by == "us" and server not in said:
                raise Violation("orphan", f"a word of ours at {server.address} is in no journal: {server.operator}")
        others = site.others_on_disk()
        for server in [server for instance in site.force.ejections for _, server in site.servers_at(instance)]:
            if server.ours_by == "hand" and server not in others:
                server.ours_by = "both"

    def _revive(self) -> None:
        if not self.site.alive:
            self._say("the sidecar starts again")
            self.site.revive()

    def disk(self) -> None:
        self.site.disk_full = not self.site.disk_full
        self._say(f"disk {'full' if self.site.disk_full else 'has room'}")
        self.site.check_self()

    def slow_disk(self) -> None:
        self.site.fsync_s = self.rng.choice([0.001, 0.3, 1.2])
        self._say(f"fsync takes {self.site.fsync_s} s")

    def pause(self) -> None:
        gap = self.rng.choice([2.5, 5.0])
        self._say(f"stopped for {gap} s")
        self.site.pause(gap)

    def lag(self) -> None:
        self._say("own loop 0.8 s late")
        self.site.feed(SelfChecked(self.site.now, 0.8, journal="full" if self.site.disk_full else "", standby=self.site.standing_by()))

    def standby(self) -> None:
        side = self._side()
        side.standby = "" if side.standby else "another writes"
        self._say(f"{side.name}: {'standing by' if side.standby else 'we are the writer'}")
        self.site.check_self()

    # ---- commands ----

    def _command(self, verb: Verb, **more: object) -> None:
        self._say(f"command {verb} {' '.join(str(v) for v in more.values())}")
        self.site.feed(Commanded(verb, "operator:root", self.site.now, **more))  # type: ignore[arg-type]

    def override(self) -> None:
        if (instance := self._instance()) is not None:
            state = self.rng.choice([Operator.DRAINING, Operator.MAINTENANCE])
            until = self.site.now + self.rng.uniform(1.0, 8.0) if self.rng.random() < 0.5 else None
            owner = self.rng.choice(["root", "deploy"])
            self._command(Verb.OVERRIDE, service=instance.service, instance=instance, owner=owner, state=state, until=until)

    def make_ready(self) -> None:
        if (instance := self._instance()) is not None:
            self._command(Verb.OVERRIDE, service=instance.service, instance=instance, owner="root", state=Operator.READY)

    def clear(self) -> None:
        if (instance := self._instance()) is not None:
            self._command(Verb.CLEAR, service=instance.service, instance=instance, owner=self.rng.choice(["root", "deploy"]))

    def freeze(self) -> None:
        until = self.site.now + self.rng.uniform(1.0, 8.0) if self.rng.random() < 0.5 else None
        self._command(Verb.FREEZE, service=self.rng.choice([self._service(), ""]), until=until)

    def unfreeze(self) -> None:
        self._command(Verb.UNFREEZE, service=self.rng.choice([self._service(), ""]))

    def release(self) -> None:
        self._command(Verb.RELEASE, service=self._service())

    def adopt(self) -> None:
        self._command(Verb.ADOPT, service=self._service())
        for side in self.site.sides.values():
            for server in side.servers.values():
                if server.ours_by == "hand":
                    server.ours_by = "adopted"

    # ---- configuration and discovery ----

    def reload(self) -> None:
        """The same again, or observe mode for a while; what leaves our hands is given back first, as the shell does."""
        site = self.site
        if self.rng.random() < 0.3:
            self._say("configuration reloaded, the same")
            site.feed(Configured(site.policy, site.now))
            return
        mode = Mode.OBSERVE if all(s.mode is Mode.ACT for s in site.policy.services.values()) else Mode.ACT
        self._say(f"configuration reloaded: mode {mode}")
        if mode is Mode.OBSERVE:
            for name in site.policy.services:
                self._command(Verb.GIVE_BACK, service=name)
            site.outside(site.now + 1.0, lambda: self._set_mode(mode) if not self.is_peace else None)
        else:
            self._set_mode(mode)

    def _set_mode(self, mode: Mode) -> None:
        site = self.site
        services = {name: replace(policy, mode=mode) for name, policy in site.policy.services.items()}
        site.policy = replace(site.policy, services=services)
        site.feed(Configured(site.policy, site.now))

    def shrink(self) -> None:
        for name, members in self.site.layout.static.items():
            those = self.rng.sample(members, self.rng.randint(0, len(members)))
            self._say(f"{name}: the list names {len(those)} of {len(members)}")
            self.site.discover(name, sorted(those))

    def list_fails(self) -> None:
        for name in self.site.layout.static:
            self._say(f"{name}: the list cannot be read")
            self.site.feed(Discovered(name, "static", self.site.now, error="no such file"))

    # ---- peace ----

    def heal(self) -> None:
        """The end of all faults. What operators said by hand stays said."""
        site, self.is_peace = self.site, True
        site.fault = ""
        self._say("peace")
        for side in site.sides.values():
            side.before_write = lambda side, changes: None
            side.reachable, side.answers_lost, side.standby = True, False, ""
            side.look_s = side.apply_s = 0.002
            for ref, server in side.servers.items():
                if server.down:
                    side.touch(ref).down = False
        for where in site.answers:
            site.behave(where, "good")
        site.disk_full, site.fsync_s = False, 0.001
        if not site.alive:
            self._revive()
        if any(policy.mode is Mode.OBSERVE for policy in site.policy.services.values()):
            self._set_mode(Mode.ACT)
        site.check_self()
        for name, members in site.layout.static.items():
            site.discover(name, members)
        site.run(2.5 + max(0.0, site.pen_free - site.now))
        for name in (*site.layout.services, ""):
            self._command(Verb.UNFREEZE, service=name)
        for instance in sorted(site.known_instances):
            for owner in ("root", "deploy"):
                self._command(Verb.CLEAR, service=instance.service, instance=instance, owner=owner)


KINDS = (
    "own_check", "dusk", "hand_operator",
    "hand_ours", "hand_weight", "race", "move", "remove", "add", "lost", "slow", "lossy", "forgets", "crash",
    "disk", "slow_disk", "pause", "lag", "standby", "override", "make_ready", "clear", "freeze", "unfreeze", "release", "adopt", "reload",
    "shrink", "list_fails", "domino",
)  # fmt: skip
OUTSIDE = frozenset(
    {"sick", "well", "own_check", "dusk", "domino", "hand_operator", "hand_ours", "hand_weight", "move", "remove", "add", "lost", "forgets"}
)
"""What happens without us just as well."""


# ---- one schedule ----


def layout_of(rng: Random) -> Layout:
    n = rng.choice([1, 2, 2, 3, 3, 4, 4, 5, 6, 8])
    everybody = tuple(range(1, n + 1))
    some = tuple(sorted(rng.sample(everybody, max(1, n - rng.randint(0, n // 2)))))
    costly = rng.random() < 0.2
    match rng.randrange(8):
        case 0 | 1 | 2:
            return Layout({("shop", "edge", "shop"): everybody}, costly=costly)
        case 3:
            return Layout({("shop", "edge", "http"): everybody, ("shop", "edge", "ws"): some}, costly=costly)
        case 4 | 5:
            return Layout({("shop", "edge", "shop"): everybody, ("shop", "web", "shop"): some}, costly=costly)
        case 6:
            return Layout({("shop", "edge", "shop"): some}, {"shop": everybody}, costly)
        case _:
            return Layout({("shop", "edge", "shop"): everybody, ("cart", "edge", "cart"): some}, costly=costly)


def site_of(seed: int, rng: Random) -> Watched:
    layout = layout_of(rng)
    return Watched(seed, layout, interval_s=rng.choice([0.1, 0.2]), drain=rng.random() < 0.7)


def run(seed: int, insist: Sequence[str] = ()) -> Watched:
    """One schedule to its end; Violation, which has the story, if a promise was broken. `insist`: kinds of fault that must be frequent."""
    rng = Random(seed)
    site = site_of(seed, rng)
    try:
        _run(Chaos(seed, site, insist), site, rng)
    except Violation as violation:
        violation.story = [f"seed {seed}", *site.story]
        raise
    return site


def _run(chaos: Chaos, site: Watched, rng: Random) -> None:
    site.note(f"{site.layout}; {', '.join(sorted(set(chaos.kinds)))}")
    site.run(QUIET_S)
    end = site.now + CHAOS_S
    while site.now < end:
        _go(site, min(rng.expovariate(1.2), 6.0))
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            chaos.strike()
    chaos.heal()
    _go(site, SETTLE_S)
    site.check_peace()
    written = len(site.written_by_us)
    site.run(3.0)
    if len(site.written_by_us) > written:
        raise Violation("quiet", "still writing long after peace")
    _one_goes_bad(site, rng)


def _go(site: Watched, seconds: float) -> None:
    """Run in steps, so that what must not last is looked at while it lasts."""
    end = site.now + seconds
    while site.now < end:
        site.run(min(1.0, max(end - site.now, 1e-3)))
        site.check_hunger()
        site.check_strangers()


def _one_goes_bad(site: Watched, rng: Random) -> None:
    """After all this the core must still be able to do its work: one that dies in peace goes out."""
    site.run(RULES.hands_off_s)
    for service in site.layout.services:
        servers = site.servers_of(service)
        known = {instance.address for instance in site.known_instances if instance.service == service}
        where = sorted({s.address for _, s in servers if s.serving and s.address in known})
        if len(where) < 2 or not _room(site, service, victim := rng.choice(where)):
            continue
        site.note(f"* in peace {victim} dies")
        site.behave(victim, "refused")
        site.run(OUT_WITHIN_S)
        if any(s.serving for _, s in servers if s.address == victim):
            raise Violation("liveness", f"{victim} of {service} is dead, there is room, and it is still in rotation")
        site.behave(victim, "good")


def _room(site: Watched, service: str, victim: Address) -> bool:
    for s, b, p in site.layout.pools:
        servers = [server for ref, server in site.sides[b].servers.items() if s == service and b and ref.pool == p]
        counted = [server for server in servers if server.operator is Operator.READY]
        if any(server.address == victim for server in counted):
            out = sum(1 for server in counted if not server.serving or server.address == victim)
            if out > most_out(len(counted)) or any(server.address == victim and not server.serving for server in servers):
                return False
    addresses = {instance.address for instance in site.known_instances if instance.service == service}
    standing: dict[Address, list[Server]] = {where: [s for _, s in site.servers_of(service) if s.address == where] for where in addresses}
    ready = {where for where, servers in standing.items() if servers and all(s.operator is Operator.READY for s in servers)}
    gone = {where for where in ready if not any(s.serving for s in standing[where])}
    return victim in ready and len(gone | {victim}) <= most_out(len(ready))


# ---- a story that people can read ----

STORY_LINES = 24
"""So many lines of how it went are told, at most."""
_QUIET_WORDS = (". healthy:", ". suspect:", ". unknown:", ". probation:", " w ")


def told(seed: int, insist: Sequence[str] = ()) -> str:
    """Which faults this seed needs to break its promise, and how it went: a short story in an operator's words; "" = it breaks none."""
    whole = _played(seed, insist, None)
    if whole[0] is None:
        return ""
    promise, chances = whole[0].promise, whole[1]

    def still_fails(turns: Sequence[int]) -> bool:
        found = _played(seed, insist, {turn: chances[turn] for turn in turns})[0]
        return found is not None and found.promise == promise

    needed = shrunk(sorted(chances), still_fails, tries=200)
    violation, _, site = _played(seed, insist, {turn: chances[turn] for turn in needed})
    assert violation is not None
    layout = site.layout
    pools = "; ".join(f"{service} on {balancer}/{pool}: {len(them)} servers" for (service, balancer, pool), them in layout.pools.items())
    lines = [line for line in site.story[1:] if not any(word in line for word in _QUIET_WORDS)]
    if len(lines) > STORY_LINES:
        lines = [*lines[: STORY_LINES // 2], f"           … {len(lines) - STORY_LINES + 1} lines …", *lines[1 - STORY_LINES // 2 :]]
    return "\n".join([f"seed {seed}: {violation}", f"  {pools}{'; every change is a reload' if layout.costly else ''}", *lines])


def _played(seed: int, insist: Sequence[str], only: Mapping[int, object] | None) -> tuple[Violation | None, Mapping[int, object], Watched]:
    """One schedule, with all its strikes or `only` these; the promise it broke, and the state of chance before each strike."""
    rng = Random(seed)
    site = site_of(seed, rng)
    chaos = Chaos(seed, site, insist, only)
    chaos.is_noted = True
    try:
        _run(chaos, site, rng)
    except Violation as violation:
        return violation, chaos.chances, site
    return None, chaos.chances, site


@dataclass(frozen=True, slots=True)
class Ran:
    """What one schedule took: facts taken in, faults struck; `broken`: the promise it broke, and its story. `covered`: if asked for."""

    seed: int
    facts: int
    faults: int
    broken: tuple[str, str, list[str]] | None = None
    covered: frozenset[Covered] = frozenset()


def ran(seed: int, *, covers: bool = False) -> Ran:
    """One schedule, told so that it can cross to another process."""
    rng = Random(seed)
    site = site_of(seed, rng)
    site.covered = set() if covers else None
    chaos = Chaos(seed, site)
    broken = None
    try:
        _run(chaos, site, rng)
    except Violation as violation:
        broken = violation.promise, str(violation), [f"seed {seed}", *site.story]
    return Ran(seed, site.facts, chaos.strikes, broken, frozenset(site.covered or ()))


def many(seeds: Iterable[int], facts: int | None, processes: int, *, covers: bool = False) -> Iterator[Ran]:
    """Schedules in so many processes at once, until so many facts were taken in."""
    total = 0
    with Pool(processes) as pool:
        for each in pool.imap_unordered(partial(ran, covers=covers), seeds, chunksize=4):
            yield each
            total += each.facts
            if facts is not None and total >= facts:
                pool.terminate()
                return


def hour() -> str:
    """What an hour of 20 instances, asked each second and all well, takes the core and its simulated world."""
    lab = Lab(20, lab_policy(probes=(ProbePlan(SPEC, 1.0),)))
    began, busy = time.perf_counter(), time.process_time()
    lab.run(3600.0)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    probes = sum(target.count for target in lab.world.targets.values())
    return f"1 h of 20 instances at 1 s: {probes:,} probes in {took:.2f} s, {busy:.2f} s of processor time"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.core.schedules", description="Random schedules against the core.")
    parser.add_argument("--seeds", default="0:500", help="FROM:TO, TO not included")
    parser.add_argument("--facts", type=int, help="stop once so many facts have been taken in")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at once (default: one a processor)")
    parser.add_argument("--story", type=int, help="print the whole story of this one seed")
    parser.add_argument("--whole", action="store_true", help="do not shrink what fails")
    parser.add_argument("--coverage", type=Path, help="write what was covered into this page")
    parser.add_argument("--hour", action="store_true", help="how long an hour of 20 instances takes that are asked each second")
    options = parser.parse_args(arguments)
    if options.hour:
        print(hour())
        return 0
    if options.story is not None:
        one = ran(options.story)
        print("\n".join(one.broken[2] if one.broken else run(options.story).story))
        return 1 if one.broken else 0
    first, last = (int(part) for part in options.seeds.split(":"))
    began, all_ran = time.perf_counter(), []
    broken: dict[str, list[int]] = {}
    covered: Counter[Covered] = Counter()
    for each in many(range(first, last), options.facts, options.processes, covers=options.coverage is not None):
        all_ran.append(replace(each, covered=frozenset()))
        covered.update(each.covered)
        if each.broken is not None:
            promise, what, _ = each.broken
            print(f"seed {each.seed}: {what}" if promise in broken or options.whole else told(each.seed), flush=True)
            broken.setdefault(promise, []).append(each.seed)
    took = time.perf_counter() - began
    total = sum(each.facts for each in all_ran)
    print(
        f"{total:,} facts in {len(all_ran):,} schedules (median {median(each.facts for each in all_ran):,.0f} facts,"
        f" {median(each.faults for each in all_ran):.0f} faults each), seeds {first}:{max(each.seed for each in all_ran) + 1},"
        f" {sum(map(len, broken.values()))} broken promises, {took:.0f} s, {total / took:,.0f} facts a second"
    )
    if options.coverage is not None:
        seeds = f"{first} to {max(each.seed for each in all_ran)}"
        options.coverage.write_text(coverage.page(covered, seeds, len(all_ran), total))
    for promise, those in broken.items():
        print(f"{promise}: {len(those)} of {len(all_ran)} schedules, {those[:12]}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
