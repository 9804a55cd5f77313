"""What is known, and how it changes. `World.absorb(fact)` takes one fact in; `World.settle(decision)` notes what was decided; nothing else
changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lbplugins.values import Axis, Serve
from sidecar.core import acts, membership, pictures, traffic
from sidecar.core import streak as streaks
from sidecar.core.known import EPISODE_S, GOOD_KEPT, UNBROKEN_S, BalancerState, InstanceState, Known, Sent, ServiceState, TargetState
from sidecar.core.model import (
    Act,
    Adopted,
    Applied,
    Ask,
    Commanded,
    Configured,
    Decision,
    Discovered,
    Fact,
    HoldName,
    Instance,
    Journaled,
    Judgement,
    Nudged,
    Outcome,
    Pictured,
    Probed,
    Result,
    Resumed,
    SelfChecked,
    Tick,
    Traffic,
)
from sidecar.core.policy import Guards, Policy

SOON_S, LATER_S, CALM_S = 0.1, 1.0, 10.0
"""How long a service is left alone in which something is under way, in which somebody is out, in which all is well."""
ALL_LOOKED_AT = 30
"""From so many good answers on, the median follows each tenth, and each that is slow."""
_OK, _FAIL, _UNKNOWN = Result.OK, Result.FAIL, Result.UNKNOWN
"""An enum's member costs more to look up than all that most good answers lead to."""


@dataclass(slots=True)
class World(Known):
    """What is known, with the only two ways in."""

    def absorb(self, fact: Fact) -> Sequence[str]:
        """Take one fact in; the names of the services that need a decision because of it (most good answers: none)."""
        match fact:
            case Probed():
                target = self.targets.get(fact.outcome.target)
                return self.probed(target, fact.outcome) if target is not None else ()
            case Nudged():
                self.nudge(fact.target)
                return ()
            case Traffic():
                return traffic.taken(self, fact)
            case Pictured():
                return pictures.pictured(self, fact)
            case Discovered():
                return membership.discovered(self, fact)
            case Journaled():
                return acts.journaled(self, fact)
            case Applied():
                return acts.applied(self, fact)
            case Configured():
                return self._configured(fact)
            case Commanded():
                self.commands.append(fact)
                return (fact.service,) if fact.service else tuple(self.services)
            case SelfChecked():
                return self._self_checked(fact)
            case Resumed():
                return self._resumed(fact)
            case Adopted():
                return self._adopted(fact)
            case Tick():
                return self._ticked(fact.at)

    def wake_at(self) -> float:
        """When to decide again at the latest, though no fact comes."""
        return min((service.look_at for service in self.services.values()), default=float("inf"))

    def settle(self, decision: Decision) -> None:
        """Note what was decided: what was said, asked, proposed and sent, so that it is not said, asked or sent again."""
        self.events.clear()
        self.scheduled(decision.asks)
        for intent in decision.intents:
            if intent.act is Act.FORGET and intent.instance is not None and intent.ejection is not None and intent.ejection.enforced:
                self.adopted.pop(intent.instance, None)  # what observe mode only told says nothing of an earlier life's act
            if intent.act is Act.UNFREEZE and intent.freeze is not None:
                self.unfreezing.add(intent.freeze.service)
            if intent.instance is not None and (state := self.state_of(intent.instance)) is not None:
                state.proposed = (*state.proposed, intent.act)
        self.commands.clear()
        if self.unwritten:
            self.unwritten = [intent for intent in self.unwritten if intent not in decision.intents]
        self._settle_judgements(decision)
        self._settle_holds(decision)
        for service in [self.services[name] for name in decision.services]:
            service.cold = self.is_cold(service, decision.at)
            service.alert = bool(service.held_last) or any(map(_restless, service.instances.values()))
            service.decided_at = decision.at
            service.look_at = decision.at + self._patience(service)
        for name, changes in (decision.changes or {}).items():
            balancer = self.balancers[name]
            for change in changes:
                if change.on is Axis.OURS:
                    earlier = balancer.sent.get(change.ref)
                    same = earlier if earlier and earlier.serve is change.want.serve else None
                    balancer.sent[change.ref] = Sent(
                        change.want.serve,
                        decision.at,
                        change.expect.settle_s,
                        told=same.told if same else "",
                        retries=same.retries if same else 0,
                        stands=earlier is not None and (earlier.stands or (earlier.serve is Serve.NONE and earlier.confirmed)),
                        generation=change.expect.generation,
                        expect=change.expect,
                    )
                else:
                    word, pending = acts.operator_of(change.want.serve), balancer.said_pending.get(change.ref)
                    balancer.said_pending[change.ref] = acts.next_word(pending, word, decision.at)

    def scheduled(self, asks: Iterable[Ask]) -> None:
        """Note which questions are on their way."""
        for ask in asks:
            if (target := self.targets.get(ask.target)) is not None:
                target.scheduled, target.nudged = ask, False
            if self.unasked:
                self.unasked.pop(ask.target, None)

    def probed(self, target: TargetState, outcome: Outcome) -> Sequence[str]:
        """`absorb` for who has looked the target up: of nearly all facts."""
        target.scheduled = None
        target.count += 1
        result = outcome.result
        if result is not _UNKNOWN:
            target.newest = result
            target.newest_started, target.newest_ended = outcome.started, outcome.ended
        if result is _OK:
            if target.bad_run:
                target.good_since, target.bad_run = outcome.started, 0
            _learn(target, outcome.ended - outcome.started)
        elif result is _FAIL:
            target.bad_run += 1
            target.failed_at = outcome.ended
        eventful = [name for name in target.references if self.services[name].alert] if target.references else []
        for instance in target.users:
            if self._is_news(instance, target, outcome):
                eventful.append(instance.service)
        return eventful

    def _is_news(self, instance: Instance, target: TargetState, outcome: Outcome) -> bool:
        """One user of the target is credited with its answer. Does anything follow from it?"""
        name = instance.service
        service, rules = self.services[name], self.policy.services[name].rules
        check = service.instances[instance].checks[outcome.target.spec]
        was_bad, verdict_at, was_silent = check.bad_run > 0, check.verdict_at, not check.answers
        streaks.step(check, outcome, rules)
        if outcome.result is _FAIL:
            service.alert = True
        if was_bad is not (check.bad_run > 0) or verdict_at != check.verdict_at or (was_silent and check.answers):
            return True
        run = check.good_run
        return run == rules.rise or run == 2 * rules.rise or service.cold or (service.alert and self._testifies(service, target, outcome))

    def _testifies(self, service: ServiceState, target: TargetState, outcome: Outcome) -> bool:
        """Somebody waits for a witness and this one speaks, or one who has testified fails too."""
        if outcome.result is _OK:
            return service.held_last.get(HoldName.NO_WITNESS) == service.decided_at
        return target.bad_run == 2  # what `decide` takes for a witness lost

    def _configured(self, fact: Configured) -> tuple[str, ...]:
        self.policy = fact.policy
        if not self.services:
            self.started_at = fact.at
        for name in fact.policy.balancers:
            self.balancers.setdefault(name, BalancerState(name))
        for name in [n for n in self.balancers if n not in fact.policy.balancers]:
            del self.balancers[name]
        for balancer in self.balancers.values():
            balancer.users = _users(fact.policy, balancer.name)
        for name in fact.policy.services:
            service = self.services.setdefault(name, ServiceState(name))
            membership.keep_sources(service, fact.policy.services[name])
        for name in [n for n in self.services if n not in fact.policy.services]:
            membership.end_service(self, name)
        for service in self.services.values():
            for state in service.instances.values():
                membership.plan_checks(self, state)
                if state.ejection is not None and not state.ejection.enforced:
                    state.ejection = None  # told only: under the new configuration it is decided anew
            for balancer in [b for b in self.balancers.values() if service.name in b.services() and b.seen]:
                pictures.members_from(self, balancer, service.name, fact.at)
            membership.map_servers(self, service)
            membership.sweep(self, service)
        membership.plan_references(self)
        return tuple(self.services)

    def _self_checked(self, fact: SelfChecked) -> tuple[str, ...]:
        guards = next((p.guards for p in self.policy.services.values()), None)
        limit = guards.blind_lag_s if guards else Guards().blind_lag_s
        why = fact.network or fact.descriptors or (f"our own loop was {fact.lag_s:.2f} s late" if fact.lag_s > limit else "")
        if why:
            if fact.at - self.blind_until > EPISODE_S:
                self.tell("self", fact.at, "sidecar", f"blind, nothing is ejected: {why}")
            self.blind_until, self.blind_why = fact.at + 1.0, why
        if self.journal_fault and not fact.journal:
            self.tell("self", fact.at, "sidecar", "the intents journal can be written again")
        elif fact.journal and not self.journal_fault:
            self.tell("self", fact.at, "sidecar", f"the intents journal cannot be written, nothing is ejected: {fact.journal}")
        is_mended, self.journal_fault = bool(self.journal_fault) and not fact.journal, fact.journal
        standby = dict(fact.standby or {})
        for name in sorted(standby.keys() - self.standby.keys()):
            self.tell("self", fact.at, "sidecar", f"standing by for balancer {name}: {standby[name]}")
        moved, self.standby = standby != self.standby, standby
        if moved or (is_mended and self.unwritten):
            return tuple(self.services)
        return tuple(name for name, service in self.services.items() if service.alert) if why else ()

    def _ticked(self, at: float) -> tuple[str, ...]:
        """Where time alone may have changed something."""
        if any(freeze.until is not None and freeze.until <= at for freeze in self.freezes.values()):
            return tuple(self.services)
        return tuple(name for name, service in self.services.items() if service.look_at <= at + 1e-6)

    def _resumed(self, fact: Resumed) -> tuple[str, ...]:
        """We did not watch for a while: runs of failures from before and during are void."""
        for service in self.services.values():
            for state in service.instances.values():
                for check in state.checks.values():
                    streaks.clear(check, fact.at)
        self.blind_until, self.blind_why = fact.at + 1.0, f"we did not run for {fact.gap_s:.1f} s"
        self.tell("self", fact.at, "sidecar", f"we did not run for {fact.gap_s:.1f} s; evidence from before is void")
        return tuple(self.services)

    def _adopted(self, fact: Adopted) -> tuple[str, ...]:
        self.adopted = {e.instance: e for e in fact.ejections}
        self.adopted_overrides = list(fact.overrides)
        self.freezes.update({f.service: f for f in fact.freezes})
        self.notes.update(fact.notes or {})
        self.adopted_hands_off = dict(fact.hands_off or {})
        self.learned = dict(fact.learned or {})
        return ()

    def _patience(self, service: ServiceState) -> float:
        """How long the service may go without a decision while nothing is heard of it, seconds."""
        is_held = service.decided_at in service.held_last.values()
        if service.cold or is_held or any(map(_unsettled, service.instances.values())):
            return SOON_S
        return LATER_S if service.alert else CALM_S

    def _settle_judgements(self, decision: Decision) -> None:
        for event in decision.events:
            if event.kind == "panic_over":
                self.services[event.service].failing_open = False
            state = self.state_of(event.instance) if event.instance else None
            if state is not None and event.kind in Judgement.__members__.values():
                state.told, state.told_at, state.reason = Judgement(event.kind), decision.at, event.sentence
                if event.kind == Judgement.HEALTHY:
                    state.probation_at = None

    def _settle_holds(self, decision: Decision) -> None:
        """Remember since when each service is held by what, and which holds were told, so that one episode is one event."""
        now = decision.at
        held: dict[str, set[HoldName]] = {}
        for hold in decision.holds:
            held.setdefault(hold.service, set()).add(hold.name)
        for event in decision.events:
            if event.kind in ("held", "pool_event") and event.service in self.services:
                told = self.services[event.service].held_told
                told.extend(h.name for h in event.holds if h.name not in told)
        for name, names in held.items():
            service = self.services.get(name)
            if service is None:
                continue
            for hold_name in sorted(names):
                if now - service.held_last.get(hold_name, float("-inf")) > UNBROKEN_S:
                    service.held_since[hold_name] = now
                service.held_last[hold_name] = now
        for service in [self.services[name] for name in decision.services]:
            for hold_name in [h for h, last in service.held_last.items() if now - last > EPISODE_S]:
                del service.held_since[hold_name], service.held_last[hold_name]
                if hold_name in service.held_told:
                    service.held_told.remove(hold_name)


def _learn(target: TargetState, seconds: float) -> None:
    good, recent = target.good, target.recent
    if len(recent) < GOOD_KEPT:
        recent.append(seconds)
    else:
        recent[good % GOOD_KEPT] = seconds
    target.good = good = good + 1
    if good <= ALL_LOOKED_AT or good % 10 == 0 or seconds > target.slow_s:
        ordered = sorted(target.recent)
        target.slow_s = ordered[-min(3, len(ordered))]
        middle = ordered[len(ordered) // 2]
        # slow: a median that follows a sick instance quickly would stretch its own cadence
        target.median_s = middle if target.good <= GOOD_KEPT else target.median_s + (middle - target.median_s) * 0.02


def _restless(state: InstanceState) -> bool:
    """Not simply healthy: every answer of its service matters to somebody."""
    if state.told is not Judgement.HEALTHY or state.ejection is not None or state.overrides or state.ended or state.unclaimed:
        return True
    return any(check.bad_run or check.verdict_at is not None for check in state.checks.values())


def _unsettled(state: InstanceState) -> bool:
    """Something about it is under way, or may change by time alone; a steady state, in or out, is not."""
    ejection = state.ejection
    if state.proposed or state.ended or state.overrides or state.overruled or state.unsaid or state.new_life:
        return True
    if ejection is not None and (ejection.returning or state.told is not Judgement.EJECTED):
        return True
    return ejection is None and any(check.bad_run or check.verdict_at is not None for check in state.checks.values())


def _users(policy: Policy, balancer: str) -> dict[str, list[str]]:
    """Whose each pool of this balancer is."""
    users: dict[str, list[str]] = {}
    for name, service in policy.services.items():
        for owner, pool in service.pools:
            if owner == balancer:
                users.setdefault(pool, []).append(name)
    return users
