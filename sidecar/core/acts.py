"""What became of what was decided: intents on disk, changes on balancers."""

from __future__ import annotations

from dataclasses import replace

from lbplugins.values import Axis, Change, Operator, Serve
from sidecar.core import membership
from sidecar.core.conduct import begin_anew
from sidecar.core.known import BalancerState, InstanceState, Known, Refused, Word, strictest
from sidecar.core.model import Act, Applied, Event, Hold, HoldName, Intent, Journaled, ServerRef, Strength

UNWRITTEN_KEPT = 1000
"""Intents that took effect while the disk was full, and are written down when it has room again."""


def journaled(world: Known, fact: Journaled) -> tuple[str, ...]:
    touched = [i.instance.service for i in fact.intents if i.instance is not None]
    for intent in fact.intents:
        state = world.state_of(intent.instance) if intent.instance else None
        if state is not None:
            state.proposed = _less(state.proposed, intent.act)
    if fact.error:
        if not world.journal_fault:
            world.tell("self", fact.at, "sidecar", f"the intents journal cannot be written, nothing is ejected: {fact.error}")
        world.journal_fault = fact.error
        for intent in fact.intents:
            if _may_go_unwritten(intent):
                take_intent(world, intent, fact.at)
                world.unwritten.append(intent)
            elif intent.act is Act.OVERRIDE:
                why = f"{intent.why} of {intent.instance} is not done, since it could not be written down: {fact.error}"
                world.tell("refused", fact.at, intent.by, why, intent.instance.service if intent.instance else "", intent.instance)
        del world.unwritten[:-UNWRITTEN_KEPT]
        return tuple(touched)
    for intent in fact.intents:
        take_intent(world, intent, fact.at)
    return tuple(touched) or tuple(world.services)


def _may_go_unwritten(intent: Intent) -> bool:
    """Giving back needs no permission from our disk; what takes out would have no owner after a crash."""
    if intent.act is Act.OVERRIDE and intent.override is not None:
        return intent.is_forced or (intent.override.until is not None and intent.override.until <= intent.at)
    return intent.act not in (Act.EJECT, Act.CLAIM)


def take_intent(world: Known, intent: Intent, at: float) -> None:
    world.notes.update(dict(intent.notes))
    if intent.act is Act.FREEZE and intent.freeze is not None:
        world.freezes[intent.freeze.service] = intent.freeze
    elif intent.act is Act.UNFREEZE and intent.freeze is not None:
        world.freezes.pop(intent.freeze.service, None)
        world.unfreezing.discard(intent.freeze.service)
    state = world.state_of(intent.instance) if intent.instance else None
    if state is None:
        if intent.ejection is not None and intent.act is Act.EJECT:  # gone meanwhile: nothing was written, so it will lapse
            world.adopted[intent.ejection.instance] = intent.ejection
        return
    match intent.act:
        case Act.EJECT:
            _ejected(world, state, intent, at)
        case Act.CLAIM if state.ejection is not None and intent.ejection is not None:
            # where a hand has come back meanwhile, it is others' as before
            left = {s for s in state.ejection.others if s in intent.ejection.others or _is_out_at(world, s)}
            state.ejection = replace(state.ejection, others=tuple(s for s in state.ejection.others if s in left))
        case Act.RETURN if state.ejection is not None:
            state.ejection, state.new_life = replace(state.ejection, returning=True), False
            state.probation_at = state.returned_at = at
            _spend_flap(world, state, at)
            begin_anew(state.conduct, on_trial=state.ejection.strength is not Strength.HARD)
            if intent.by == "rule:panic":
                world.services[state.instance.service].failing_open = True
            for check in state.checks.values():
                check.window.clear()
                check.verdict_at, check.rule = None, ""
        case Act.FORGET:
            state.ejection, state.overruled, state.new_life = None, "", False
            for server in state.servers:
                world.notes.pop(server, None)
                if (balancer := world.balancers.get(server.balancer)) is not None:
                    balancer.sent.pop(server.ref, None)
            membership.sweep(world, world.services[state.instance.service])
        case Act.OVERRIDE if intent.override is not None:
            state.say(intent.override, at)
            membership.operator_of_instance(world, state)
        case Act.CLEAR if intent.override is not None:
            state.overrides.pop(intent.override.owner, None)
            state.ended.pop(intent.override.owner, None)
            membership.operator_of_instance(world, state)
        case Act.HANDS_OFF:
            state.hands_off_until, state.overruled = intent.until or at, ""
            state.hands_off_why = f"{intent.why} ({intent.by})"
            if state.ejection is not None:
                state.ejection, state.new_life = replace(state.ejection, returning=True), False
                state.probation_at = state.returned_at = at
        case _:
            pass


def _ejected(world: Known, state: InstanceState, intent: Intent, at: float) -> None:
    assert intent.ejection is not None, "an EJECT intent carries its ejection"
    if intent.ejection.enforced:
        world.adopted.pop(state.instance, None)  # this one is in force now
    others = intent.ejection.others
    if (state.ejection is None or not state.ejection.enforced) and intent.by.startswith("rule:"):
        since = [server for server in state.servers if _is_out_at(world, server)]  # a hand may have come since it was decided
        others = tuple(dict.fromkeys((*others, *since)))
    state.ejection, state.repeat, state.probation_at = replace(intent.ejection, others=others), intent.ejection.repeat, None
    instance, enforced = state.instance, intent.ejection.enforced
    holds = () if enforced else (Hold(HoldName.OBSERVE, "mode is observe: told, not done", instance, instance.service),)
    world.events.append(Event("ejected", at, intent.by, intent.why, instance.service, instance, intent.evidence, holds, enforced))
    if intent.ejection.rule == "rule:slow":
        state.conduct.probes_s = {t.spec: world.targets[t].median_s for t in state.targets if t in world.targets}
    state.is_void = intent.ejection.strength is Strength.HARD and not any(check.failed for check in state.checks.values())
    _spend_flap(world, state, at)
    service = world.services[state.instance.service]
    guards = world.policy.services[service.name].guards
    hard = intent.ejection.strength is Strength.HARD
    bucket, refill = (service.hard_spent, guards.hard_refill_s) if hard else (service.soft_spent, guards.soft_refill_s)
    bucket.level = max(0.0, bucket.level - (at - bucket.at) / refill) + 1.0
    bucket.at = at
    for check in state.checks.values():
        check.window.clear()
        if check.rule == "window":
            check.verdict_at, check.rule = None, ""


def _is_out_at(world: Known, server: ServerRef) -> bool:
    return (seen := world.seen(server)) is not None and seen.ours.serve is not Serve.FULL


def _spend_flap(world: Known, state: InstanceState, at: float) -> None:
    rules = world.policy.services[state.instance.service].rules
    state.flap_level = max(0.0, state.flap_level - (at - state.flap_at) * rules.flap_per_min / 60.0) + 1.0
    state.flap_at = at


def applied(world: Known, fact: Applied) -> tuple[str, ...]:
    balancer = world.balancers.setdefault(fact.balancer, BalancerState(fact.balancer))
    for change in fact.changes:
        if change.on is Axis.OPERATOR:
            _word_taken(balancer, change, fact.at)
    for change, why in fact.refused:
        if change.on is Axis.OPERATOR:
            _word_refused(world, balancer, change, why, fact.at)
        if (sent := balancer.sent.get(change.ref)) is not None and change.on is Axis.OURS and sent.is_of(change):
            # Once is no news: it moved between our look and our write, and is looked at again at once.
            if sent.retries and sent.told != why:
                world.tell("refused", fact.at, "sidecar", f"{fact.balancer}/{change.ref} refused: {why}")
                sent.told = why
            sent.refused, sent.at, sent.retries, sent.is_unsure = why, fact.at, sent.retries + 1, False
    if fact.error:
        for change in fact.changes:
            if (sent := balancer.sent.get(change.ref)) is not None and change.on is Axis.OURS:
                sent.refused, sent.at, sent.retries, sent.is_unsure = fact.error, fact.at, sent.retries + 1, True
        if balancer.told != fact.error:
            world.tell("balancer", fact.at, "sidecar", f"balancer {fact.balancer} could not be told: {fact.error}")
    balancer.told = fact.error
    pools = dict.fromkeys(change.ref.pool for change in (*fact.changes, *(change for change, _ in fact.refused)))
    return tuple(name for pool in pools for name in balancer.users.get(pool, ()))


def next_word(pending: Word | None, word: Operator, at: float) -> Word:
    """A word sent after another that no picture has shown. What was not answered yet may still be refused: it is not ours so far."""
    if pending is None:
        return Word(word, at)
    earlier = {pending.word} if pending.is_answered else set()
    taken = pending.before | earlier  # also the same word, said before one that came between: what then shows it is ours
    return Word(word, at, taken - {word}, word in taken)


def _word_taken(balancer: BalancerState, change: Change, at: float) -> None:
    """A word of ours is there now, or may be: an answer to an earlier one may have come between."""
    word, pending = operator_of(change.want.serve), balancer.said_pending.get(change.ref)
    if pending is None:
        balancer.said_pending[change.ref] = Word(word, at, is_answered=True)
    elif pending.word is word:
        balancer.said_pending[change.ref] = replace(pending, is_answered=True)
    else:
        balancer.said_pending[change.ref] = replace(pending, before=pending.before | {word})


def _word_refused(world: Known, balancer: BalancerState, change: Change, why: str, at: float) -> None:
    pending = balancer.said_pending.get(change.ref)
    if pending is not None and pending.word is operator_of(change.want.serve) and not pending.is_answered:
        del balancer.said_pending[change.ref]
        if pending.before:
            last = strictest(pending.before)
            balancer.said_pending[change.ref] = Word(last, at, pending.before - {last}, is_answered=True)
    earlier = balancer.said_refused.get(change.ref)
    refused = balancer.said_refused[change.ref] = Refused(why, at, earlier.times + 1 if earlier else 1, earlier.told if earlier else "")
    if refused.times > 1 and refused.told != why:
        world.tell("refused", at, "sidecar", f"{balancer.name}/{change.ref} refused: {why}")
        refused.told = why


def operator_of(serve: Serve) -> Operator:
    return {Serve.FULL: Operator.READY, Serve.DRAIN: Operator.DRAINING, Serve.NONE: Operator.MAINTENANCE}[serve]


def _less(acts: tuple[Act, ...], one: Act) -> tuple[Act, ...]:
    """Without the first of its kind."""
    i = acts.index(one) if one in acts else len(acts)
    return (*acts[:i], *acts[i + 1 :])
