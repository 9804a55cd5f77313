"""The page to read first: from what is known to what should be done, and why.

    verdicts -> who should go, who may come back -> guards hold some -> intents (to be journaled first)
    intents in force against the balancers' pictures -> changes (`plan`)

Pure: the same world, policy and `now` give the same Decision. The shell journals the intents, feeds `Journaled` back, sends the changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lbplugins.values import InFlight, Operator, Serve
from sidecar.core import guard, pace, story, traffic
from sidecar.core.charge import Charge
from sidecar.core.known import UNBROKEN_S, InstanceState, Sent, ServiceState
from sidecar.core.model import (
    Act,
    Ask,
    Commanded,
    Decision,
    Ejection,
    Event,
    Evidence,
    Freeze,
    Hold,
    HoldName,
    Instance,
    Intent,
    Judgement,
    Override,
    Reason,
    Result,
    ServerRef,
    Strength,
    Target,
    Verb,
)
from sidecar.core.plan import plan, wanted_of
from sidecar.core.policy import Mode, Policy, RuleMode, Rules, ServicePolicy
from sidecar.core.streak import Streak
from sidecar.core.world import World

TELL_HOLD_AFTER_S = 0.4
"""A hold shorter than this (a witness being asked, a token coming in) is no news."""
WITNESSES_TRIED = 16
"""How many peers are looked at for one to ask; the rest speak at their ordinary pace. Bounds the work when everybody fails."""
AGREE_S = 0.05
"""How old a picture or an answer must be to be asked for anew, when it is wanted as a second voice."""
LEAVING_S = 10.0
"""How long a service that leaves our hands is left alone: by then the new configuration is in force."""


def decide(world: World, policy: Policy, now: float, services: Iterable[str] | None = None) -> Decision:
    """What follows from the world now. `services`: only those that facts have touched; None = all."""
    touched = [n for n in (policy.services if services is None else dict.fromkeys(services)) if n in world.services]
    turn = _Turn(world, now)
    for command in world.commands:
        turn.obey(command)
    turn.expire()
    for name in touched:
        turn.end_words(world.services[name])
        turn.judge(world.services[name], policy.services[name])
    undecided = frozenset(i.instance for i in turn.intents if i.instance is not None)
    changes, plan_holds = plan(world, policy, now, touched, undecided)
    turn.holds += plan_holds
    turn.tell_holds(touched)
    return Decision(
        now,
        tuple(turn.intents),
        changes,
        tuple(turn.holds),
        tuple(turn.asks.values()),
        (*world.events, *turn.events),
        services=tuple(touched),
        looks=tuple(turn.looks),
    )


class _Turn:
    """One decision being made. Collects; never changes the world."""

    def __init__(self, world: World, now: float) -> None:
        self.world, self.now = world, now
        self.intents: list[Intent] = []
        self.holds: list[Hold] = []
        self.events: list[Event] = []
        self.asks: dict[Target, Ask] = {}
        self.looks: dict[str, None] = {}
        self.testimony = guard.Testimony(world)
        self.orphans: set[Instance] = set()

    # ---- one service ----

    def judge(self, service: ServiceState, policy: ServicePolicy) -> None:
        for state in service.instances.values():
            self._news(state, policy)
            if state.ejection is not None or state.unsaid:
                self._close(state)
        self._return(service, policy)
        self._eject(service, policy)
        self._fail_open(service, policy)
        self._show_orphans(service, policy)

    def _show_orphans(self, service: ServiceState, policy: ServicePolicy) -> None:
        """Whom nobody we know has taken out stays out, however well he answers: that is said, not only when he fails."""
        for state in service.instances.values():
            if (hold := guard.orphaned(self.world, state, policy)) is not None:
                self.orphans.add(state.instance)
                if hold not in self.holds:
                    self.holds.append(hold)

    def _news(self, state: InstanceState, policy: ServicePolicy) -> None:
        """Tell a change of judgement that is not an ejection or return."""
        judgement = guard.judge(state, policy)
        if judgement is state.told or judgement is Judgement.EJECTED or state.proposed:
            return
        if judgement is Judgement.SUSPECT and (doubtful := [c for c in state.checks.values() if c.bad_run or c.failed]):
            self._ask_witnesses(state, doubtful[0])
        sentence = story.judged(state, judgement, policy)
        self.events.append(Event(judgement.value, self.now, "sidecar", sentence, policy.name, state.instance))

    def _close(self, state: InstanceState) -> None:
        """Let go of what is undone on every balancer, or was taken out of our hands."""
        ejection = state.ejection
        if state.proposed:
            return
        if state.unsaid:
            for override in state.overrides.values():
                self._end(override, state, "outside", state.unsaid)
        if state.overruled and ejection is not None:
            until = self.now + self.world.policy.services[state.instance.service].rules.hands_off_s
            why = f"{state.overruled} against our ejection"
            self._intend(Act.HANDS_OFF, "outside", why, state, until=until)
            self._say("operator", "outside", f"{state.instance}: {why}: hands off for {(until - self.now) / 60:.0f} min", state)
        elif state.new_life:
            act = Act.FORGET if self._is_undone(state) else Act.RETURN
            self._intend(act, "outside", "an operator's maintenance ended: a new life", state, ejection=ejection)
        elif ejection is not None:
            if not ejection.enforced and ejection.returning:
                self._intend(Act.FORGET, "sidecar", "observed only", state, ejection=ejection)
            elif ejection.enforced and self._nothing_left(state, ejection):
                self._intend(Act.FORGET, "sidecar", "nothing of ours is left on any balancer", state, ejection=ejection)
            elif withdrawn := self._withdrawn(state, ejection):
                self._intend(Act.FORGET, "rule:withdrawn", withdrawn, state, ejection=ejection)
                self._say("returned", "rule:withdrawn", f"{state.instance} is not taken out after all: {withdrawn}", state)
            elif (left := self._others_left(ejection)) != ejection.others and not self._already(state):
                why = "what a hand had out was forgotten there: from now on it is out by us alone"
                self._intend(Act.CLAIM, "sidecar", why, state, ejection=replace(ejection, others=left))

    def _others_left(self, ejection: Ejection) -> tuple[ServerRef, ...]:
        """The servers that a hand still has out. Which they are is on disk before we write to one of them."""
        if ejection.returning or not ejection.enforced or self.world.journal_fault:
            return ejection.others
        pictured = [(server, self.world.seen(server)) for server in ejection.others]
        return tuple(server for server, seen in pictured if seen is None or seen.ours.serve is not Serve.FULL)

    def _nothing_left(self, state: InstanceState, ejection: Ejection) -> bool:
        """It is on its way back, or gone from all lists, and pictures of all its pools from after that show nothing of ours."""
        pools = self.world.policy.services[state.instance.service].pools
        if not ejection.returning and (not pools or state.sources or any(self.world.seen(server) for server in state.servers)):
            return False
        since = state.returned_at if ejection.returning else float("-inf")
        return all(self._has_looked(owner, since) for owner, _ in pools) and self._is_undone(state)

    def _has_looked(self, name: str, since: float) -> bool:
        balancer = self.world.balancers.get(name)
        return balancer is None or (not balancer.error and balancer.seen_at > since)

    def _is_undone(self, state: InstanceState) -> bool:
        others = state.ejection.others if state.ejection is not None else ()
        return all(self._is_undone_at(server) for server in state.servers if server not in others)

    def _is_undone_at(self, server: ServerRef) -> bool:
        """The last picture shows nothing of ours, and nothing of ours is on its way there."""
        balancer = self.world.balancers[server.balancer]
        seen, sent = balancer.seen.get(server.ref), balancer.sent.get(server.ref)
        is_on_its_way = sent is not None and sent.serve is Serve.NONE and not sent.is_settled
        return seen is None or (seen.ours.serve is Serve.FULL and not is_on_its_way)

    def _withdrawn(self, state: InstanceState, ejection: Ejection) -> str:
        """Why an ejection that has reached no balancer yet is let go of: what it was decided on has changed since. "" = it stands."""
        if ejection.returning or not ejection.enforced or not ejection.rule.startswith("rule:"):
            return ""
        for server in [s for s in state.servers if s not in ejection.others]:
            seen, sent = self.world.seen(server), self.world.balancers[server.balancer].sent.get(server.ref)
            if (seen is not None and seen.ours.serve is not Serve.FULL) or (sent is not None and _may_be_out(sent)):
                return ""
        policy = self.world.policy.services[state.instance.service]
        has_recovered = ejection.rule == "rule:consecutive" and guard.failed_check(state, policy) is None
        if state.is_void or has_recovered:
            return "it has answered well, or its evidence is void, before any balancer was told"
        holds = guard.not_ours_to_act(self.world, state, self.now)
        return holds[0].why if holds else ""

    # ---- out ----

    def _eject(self, service: ServiceState, policy: ServicePolicy) -> None:
        if not (accused := _accused(service, policy)):
            return
        among = guard.groups(self.world, service)
        spent = float(sum(state.proposed.count(Act.EJECT) for state in service.instances.values()))
        for state, charge in accused:
            if (
                state.ejection is not None
                and (state.ejection.enforced or not state.ejection.returning)
                and not self._enforced(state, policy, charge.rule)
            ):
                continue  # told already, or still to be given back in earnest
            holds = guard.against_ejection(self.world, service, state, charge, among, self.now, self.testimony, spent=spent)
            names = {hold.name for hold in holds}
            if HoldName.NO_WITNESS in names and charge.check is not None:
                self._ask_witnesses(state, charge.check)
            if names == {HoldName.UNCONFIRMED}:
                self._ask_for_agreement(state)
            if HoldName.CONTRADICTION in names and charge.check is not None and traffic.wants_counts(state.conduct, charge.check):
                self._look_again(state)
            if holds:
                self.holds += holds
                continue
            self._propose_ejection(policy, state, charge, among[0])
            spent += 1.0
            among = [_without(group, state.instance) for group in among]

    def _propose_ejection(self, policy: ServicePolicy, state: InstanceState, charge: Charge, whole: guard.Group) -> None:
        enforced = self._enforced(state, policy, charge.rule)
        repeat = _repeat(state, policy.rules, self.now)
        ejection = Ejection(
            state.instance,
            self.now,
            f"rule:{charge.rule}",
            charge.cause,
            charge.strength,
            repeat,
            self.now + _hold_down(repeat, charge.strength, policy.rules),
            self.testimony.of(state.instance, charge.check) if charge.check is not None else (),
            enforced,
            charge.in_flight,
            others=self._out_by_others(state),
        )
        sentence = story.ejected(state, ejection, whole, policy)
        self._intend(Act.EJECT, ejection.rule, sentence, state, ejection=ejection, evidence=(charge.evidence,))
        if not enforced:
            self.holds.append(Hold(HoldName.OBSERVE, "mode is observe: told, not done", state.instance, policy.name))

    def _out_by_others(self, state: InstanceState) -> tuple[ServerRef, ...]:
        """Its servers that are out on our axis already, before we have said anything."""
        if state.ejection is not None and state.ejection.enforced:
            return state.ejection.others
        pictured = [(server, self.world.seen(server)) for server in state.servers]
        return tuple(server for server, seen in pictured if seen is not None and seen.ours.serve is not Serve.FULL)

    def _ask_for_agreement(self, state: InstanceState) -> None:
        """A log that others may have written needs a second voice: its probe's, or the balancer's own counters."""
        for name in state.targets:
            ask = pace.at_once(self.world, name, self.now)
            if ask is not None and self.now - self.world.targets[name].newest_ended >= AGREE_S:
                self.asks[name] = ask
        self._look_again(state)

    def _look_again(self, state: InstanceState) -> None:
        for server in state.servers:
            if self.now - self.world.balancers[server.balancer].seen_at >= AGREE_S:
                self.looks[server.balancer] = None

    def _ask_witnesses(self, state: InstanceState, check: Streak) -> None:
        """Ask up to three others the same question at once, those first that are not known to be bad."""
        since = check.verdict_at if check.verdict_at is not None else check.last_bad_at
        asked = 0
        for name in guard.witness_targets(self.world, state.instance, check, most=WITNESSES_TRIED):
            target = self.world.targets.get(name)
            if target is None or (target.newest is not Result.OK and target.newest_started >= since):
                continue
            if (ask := pace.at_once(self.world, name, self.now)) is not None and target.newest_started < since:
                self.asks[name] = ask
            asked += 1
            if asked == self.world.policy.pace.witnesses_asked:
                return

    # ---- and back ----

    def _return(self, service: ServiceState, policy: ServicePolicy) -> None:
        for state in _by_time_out(service):
            ejection = state.ejection
            if ejection is None or ejection.returning or state.proposed or state.overruled or state.new_life:
                continue
            if self._witness_lost(state, ejection, policy) and not self.world.freeze_of(service.name, self.now):
                self._propose_return(state, policy, "rule:witness_lost", "every witness failed as well: it is not the instance")
                continue
            if not guard.has_risen(state, policy):
                continue
            holds = guard.against_return(self.world, service, state, self.now)
            self.holds += holds
            if not holds:
                self._propose_return(state, policy, "rule:rise", story.recovered(state, policy))

    def _witness_lost(self, state: InstanceState, ejection: Ejection, policy: ServicePolicy) -> bool:
        """Soon after an ejection all who testified fail too, and nobody else testifies instead."""
        if not ejection.witnesses or not ejection.rule.startswith("rule:") or self.now - ejection.at > policy.rules.undo_s:
            return False
        targets = [self.world.targets.get(witness) for witness in ejection.witnesses]
        if not all(t is not None and t.bad_run >= 2 for t in targets):
            return False
        check = guard.failed_check(state, policy)
        return check is None or not self.testimony.of(state.instance, check)

    def _fail_open(self, service: ServiceState, policy: ServicePolicy) -> None:
        """Too little is left in rotation that is not known to be bad: bring back soft ejections, and all when nothing else is left."""
        if not service.failing_open and all(s.ejection is None or s.ejection.returning for s in service.instances.values()):
            return
        whole = guard.as_heard(self.world, service, guard.groups(self.world, service)[0])
        n = len(whole.counted)
        if service.failing_open and len(whole.sound) >= policy.guards.panic_below * n:
            sentence = f"{service.name}: {len(whole.sound)} of {n} are healthy and in rotation again; no longer failing open"
            self.events.append(Event("panic_over", self.now, "sidecar", sentence, service.name))
        if not n or len(whole.sound) >= policy.guards.panic_below * n or self.world.freeze_of(service.name, self.now):
            return
        serving = [s for i, s in service.instances.items() if i in whole.counted - whole.used]
        nothing_else = all(guard.failed_check(s, policy) is not None for s in serving)
        for state in _by_time_out(service):
            ejection = state.ejection
            if ejection is None or ejection.returning or state.proposed or self._already(state):
                continue
            if ejection.strength is Strength.HARD and not nothing_else:
                continue
            why = f"failing open: {len(whole.sound)} of {n} of {service.name} are healthy and in rotation"
            self._propose_return(state, policy, "rule:panic", why)

    def _propose_return(self, state: InstanceState, policy: ServicePolicy, by: str, why: str) -> None:
        assert state.ejection is not None, "only what is out can come back"
        sentence = story.returned(state, why, self.now)
        self._intend(Act.RETURN, by, sentence, state, ejection=state.ejection)
        enforced = state.ejection.enforced
        self.events.append(Event("returned", self.now, by, sentence, policy.name, state.instance, enforced=enforced))

    # ---- operators ----

    def obey(self, command: Commanded) -> None:
        """Turn a command into intents, or into a hold that says why not."""
        refusal = guard.against_command(self.world, command, self.now)
        if refusal is not None:
            self.holds.append(refusal)
            self.events.append(
                Event("refused", self.now, command.actor, f"{command.state} of {command.instance} refused: {refusal.why}", command.service)
            )
            return
        match command.verb:
            case Verb.OVERRIDE:
                self._override(command)
            case Verb.CLEAR:
                state = self.world.state_of(command.instance) if command.instance else None
                override = state.overrides.get(command.owner) if state else None
                if state is not None and override is not None:
                    self._end(override, state, command.actor, command.reason or "cleared")
                    self._say("operator", command.actor, f"{state.instance}: {override.state} of {command.owner} cleared", state)
            case Verb.FREEZE | Verb.UNFREEZE:
                self._freeze(command, Act.FREEZE if command.verb is Verb.FREEZE else Act.UNFREEZE)
            case Verb.RELEASE:
                self._freeze(command, Act.FREEZE)
                self._give_back(command)
            case Verb.GIVE_BACK:
                self._give_back(command, hands_off_s=LEAVING_S)
            case Verb.ADOPT:
                self._adopt(command)

    def _override(self, command: Commanded) -> None:
        state = self.world.state_of(command.instance) if command.instance else None
        if state is None:
            return
        until = f" for {command.until - self.now:.0f} s" if command.until is not None else ""
        reason = f": {command.reason}" if command.reason else ""
        if command.state is Operator.READY:
            if (mine := state.overrides.get(command.owner)) is not None:
                self._end(mine, state, command.actor, "made ready")
            if state.ejection is not None or command.until is not None:
                hands_off = command.until or self.now + self.world.policy.services[state.instance.service].rules.hands_off_s
                self._intend(Act.HANDS_OFF, command.actor, command.reason or "made ready", state, until=hands_off)
            self._say("operator", command.actor, f"{state.instance} made ready by {command.actor}{until}{reason}", state)
            return
        earlier = [o for o in (state.overrides.get(command.owner), state.ended.get(command.owner)) if o is not None]
        before = dict.fromkeys(word for o in earlier for word in (o.state, *o.before) if word is not command.state)
        override = Override(
            state.instance, command.owner, command.state, command.actor, self.now, command.until, command.reason, tuple(before)
        )
        why = command.reason or command.state.value
        self._intend(Act.OVERRIDE, command.actor, why, state, override=override, is_forced=command.force)
        self._say("operator", command.actor, f"{state.instance} put in {command.state} by {command.actor}{until}{reason}", state)

    def _give_back(self, command: Commanded, hands_off_s: float = 0.0) -> None:
        """Return all we have out. `hands_off_s`: what is still bad must not go out again meanwhile."""
        for state in self._states(command.service):
            if state.ejection is None or state.ejection.returning or state.proposed:
                continue
            why = command.reason or f"released by {command.actor}"
            self._propose_return(state, self.world.policy.services[state.instance.service], command.actor, why)
            if hands_off_s:
                self._intend(Act.HANDS_OFF, command.actor, why, state, until=self.now + hands_off_s)

    def _freeze(self, command: Commanded, act: Act) -> None:
        freeze = Freeze(command.service, command.actor, self.now, command.until, command.reason)
        self.intents.append(Intent(act, self.now, command.actor, command.reason or act.value, freeze=freeze))
        word = "frozen" if act is Act.FREEZE else "unfrozen"
        reason = f": {command.reason}" if command.reason else ""
        sentence = f"{command.service or 'everything'} {word} by {command.actor}{reason}"
        self.events.append(Event("operator", self.now, command.actor, sentence, command.service))

    def _adopt(self, command: Commanded) -> None:
        """Make orphans ours, so that they come back by the ordinary way once they answer well."""
        for state in self._states(command.service):
            if command.instance not in (None, state.instance) or state.ejection is not None:
                continue
            fresh = [s for s in state.servers if not self.world.balancers[s.balancer].error]
            if any((seen := self.world.seen(s)) is not None and seen.ours.serve is Serve.NONE for s in fresh):
                ejection = Ejection(state.instance, self.now, command.actor, f"adopted by {command.actor}", Strength.HARD)
                sentence = f"{state.instance} was out by nobody we know; adopted by {command.actor}"
                self._intend(Act.EJECT, command.actor, sentence, state, ejection=ejection)

    def expire(self) -> None:
        """End freezes whose time is over, and what had ended before we started; write down what the disk would not take."""
        if not self.world.journal_fault:
            self.intents += self.world.unwritten
        for ejection in self.world.lapsed():
            why = "no balancer has it out: it was undone, or never done, before our restart"
            self.intents.append(Intent(Act.FORGET, self.now, "sidecar", why, ejection.instance, ejection))
        for freeze in self.world.freezes.values():
            if freeze.until is not None and self.now >= freeze.until and freeze.service not in self.world.unfreezing:
                self.intents.append(Intent(Act.UNFREEZE, self.now, "sidecar", "its time is over", freeze=freeze))

    def end_words(self, service: ServiceState) -> None:
        """End what operators have given an end."""
        for state in [s for s in service.instances.values() if (s.overrides or s.ended) and not s.proposed]:
            for override in state.overrides.values():
                if override.until is not None and self.now >= override.until:
                    self._end(override, state, "sidecar", "its time is over")
                    self._say("operator", "sidecar", f"{state.instance}: {override.state} of {override.owner} is over", state)
            if state.ended and self._is_unsaid(state, state.ended_at):
                for override in state.ended.values():
                    self._intend(Act.CLEAR, "sidecar", "no balancer shows it any more", state, override=override)
            replaced = [] if self.world.journal_fault or self._already(state) else [o for o in state.overrides.values() if o.before]
            for override in [o for o in replaced if self._is_unsaid(state, o.at)]:
                why = "no balancer shows what it replaced any more"
                self._intend(Act.OVERRIDE, "sidecar", why, state, override=replace(override, before=()), is_forced=True)

    def _end(self, override: Override, state: InstanceState, by: str, why: str) -> None:
        """Its time is over. It stays in the journal until no balancer shows it: a crash in between must not leave it there for ever."""
        self._intend(Act.OVERRIDE, by, why, state, override=replace(override, until=self.now))

    def _is_unsaid(self, state: InstanceState, since: float) -> bool:
        """No balancer shows a word of ours that nobody has wanted since then, and none is on its way."""
        if not all(self._has_looked(owner, since) for owner, _ in self.world.policy.services[state.instance.service].pools):
            return False
        for server in state.servers:
            balancer = self.world.balancers[server.balancer]
            wanted = wanted_of(state, self.world.policy.balancers[server.balancer])
            if server.ref in balancer.said_pending or balancer.said.get(server.ref) not in (None, wanted):
                return False
        return True

    # ---- telling ----

    def tell_holds(self, touched: list[str]) -> None:
        """One event for each episode of each hold that keeps something from happening, whoever it concerns."""
        for name in touched:
            service, policy = self.world.services[name], self.world.policy.services[name]
            unwitnessed = {h.instance for h in self.holds if h.service == name and h.name is HoldName.NO_WITNESS}
            mine = [h for h in self.holds if h.service == name and not (h.name in _MOOT and h.instance in unwitnessed)]
            for hold_name in dict.fromkeys(h.name for h in mine):
                since = service.held_since.get(hold_name)
                is_new = self.now - service.held_last.get(hold_name, float("-inf")) > UNBROKEN_S
                those = tuple(h for h in mine if h.name is hold_name and (hold_name not in _QUIET or h.instance in self.orphans))
                if hold_name in service.held_told or since is None or is_new or not those:
                    continue
                if self.now - since < TELL_HOLD_AFTER_S:
                    continue
                kind = "pool_event" if hold_name is HoldName.NO_WITNESS else "held"
                sentence = story.held(service, policy, hold_name, those)
                self.events.append(Event(kind, self.now, f"hold:{hold_name}", sentence, name, holds=those))

    # ---- small change ----

    def _intend(
        self,
        act: Act,
        by: str,
        why: str,
        state: InstanceState,
        *,
        ejection: Ejection | None = None,
        override: Override | None = None,
        until: float | None = None,
        evidence: tuple[Evidence, ...] = (),
        is_forced: bool = False,
    ) -> None:
        pictured = [] if act is Act.FORGET else [(s, self.world.seen(s)) for s in state.servers]
        notes = tuple((server, seen.note) for server, seen in pictured if seen is not None and seen.note)
        self.intents.append(Intent(act, self.now, by, why, state.instance, ejection, override, None, until, notes, evidence, is_forced))

    def _say(self, kind: str, by: str, sentence: str, state: InstanceState) -> None:
        self.events.append(Event(kind, self.now, by, sentence, state.instance.service, state.instance))

    def _already(self, state: InstanceState) -> bool:
        return any(i.instance == state.instance for i in self.intents)

    def _states(self, service: str) -> list[InstanceState]:
        names = [service] if service else list(self.world.services)
        return [state for name in names if name in self.world.services for state in self.world.services[name].instances.values()]

    def _enforced(self, state: InstanceState, policy: ServicePolicy, rule: str) -> bool:
        if policy.mode is Mode.OBSERVE or policy.rule_modes.get(rule) is RuleMode.OBSERVE or not policy.pools:
            return False
        return any(self.world.policy.balancers[s.balancer].mode is Mode.ACT for s in state.servers)


_QUIET = frozenset({HoldName.HOLD_DOWN, HoldName.STILL_SLOW, HoldName.UNSETTLED, HoldName.OBSERVE, HoldName.OPERATOR})
"""Holds that belong to the ordinary course; shown while they last, not told."""
_MOOT = frozenset({HoldName.MIN_HEALTHY, HoldName.MAX_EJECTED, HoldName.PANIC, HoldName.SINGLE, HoldName.VELOCITY})
"""How many may be out is not the question while nobody testifies that it is the instance at all: then one event says so."""


def _accused(service: ServiceState, policy: ServicePolicy) -> list[tuple[InstanceState, Charge]]:
    """Instances whose evidence is complete and who are not out yet: by hard evidence first, then the longest guilty."""
    found = []
    for state in service.instances.values():
        if state.proposed or state.overruled or (state.ejection is not None and state.ejection.enforced and not state.ejection.returning):
            continue
        if not state.sources:
            continue
        if (check := guard.failed_check(state, policy)) is not None:
            found.append((state, _by_probe(state, check)))
        elif (charge := traffic.accusation(state)) is not None:
            found.append((state, charge))
    return sorted(found, key=lambda pair: (pair[1].strength is not Strength.HARD, pair[1].at, str(pair[0].instance)))


def _by_probe(state: InstanceState, check: Streak) -> Charge:
    in_flight = InFlight.KILL if check.reason is Reason.TIMEOUT else InFlight.KEEP
    evidence = _evidence(state, check, Strength.HARD)
    return Charge(check.rule, Strength.HARD, story.cause(check), check.verdict_at or 0.0, evidence, in_flight, check)


def _by_time_out(service: ServiceState) -> list[InstanceState]:
    out = [s for s in service.instances.values() if s.ejection is not None]
    return sorted(out, key=lambda s: (s.ejection.at if s.ejection else 0.0, str(s.instance)))


def _without(group: guard.Group, instance: Instance) -> guard.Group:
    mine = group.keys.get(instance, frozenset())
    return guard.Group(group.name, group.counted, group.used | (mine & group.counted), group.sound - mine, group.keys)


def _may_be_out(sent: Sent) -> bool:
    """It was told to go, or told to come back while an earlier order to go may still arrive: no picture has shown the end of it."""
    return sent.serve is Serve.NONE or sent.stands or not sent.is_settled


def _evidence(state: InstanceState, check: Streak, strength: Strength) -> Evidence:
    kind = (check.reason or Reason.TIMEOUT).value
    return Evidence(state.instance, kind, strength, False, check.last_bad_at, check.bad_run, check.first_bad_at, check.detail)


def _repeat(state: InstanceState, rules: Rules, now: float) -> int:
    """How often in a row: one more within `repeat_within_s` of the last return, halved for each such span of good conduct."""
    if state.returned_at == float("-inf"):
        return state.repeat
    spans = int((now - state.returned_at) / rules.repeat_within_s)
    return (state.repeat + 1) >> spans if spans < 32 else 0


def _hold_down(repeat: int, strength: Strength, rules: Rules) -> float:
    if strength is Strength.HARD:
        return 0.0 if repeat == 0 else min(rules.hold_down_s * 2.0 ** (repeat - 1), rules.hold_down_max_s)
    return float(min(rules.hold_down_soft_s * 2.0**repeat, rules.hold_down_max_s))


__all__ = ["decide"]
