"""What happens next to an instance, in one sentence: the question that follows every "why"."""

from __future__ import annotations

from lbplugins.values import Operator
from sidecar.core import guard, traffic
from sidecar.core.known import InstanceState, in_its_words
from sidecar.core.model import Hold, HoldName, Judgement
from sidecar.core.policy import Mode, ServicePolicy
from sidecar.core.streak import Streak
from sidecar.web.look import Look


def next_of(look: Look, state: InstanceState) -> str:
    """One sentence; nothing in it is a promise beyond what the policy says."""
    policy = look.policy.services[state.instance.service]
    if state.operator is not Operator.READY:
        return _under_operator(look, state)
    judgement = look.judgement(state)
    freeze = look.world.freeze_of(state.instance.service, look.now)
    if freeze is not None and judgement is not Judgement.HEALTHY:
        until = f" for {span(freeze.until - look.now)} more" if freeze.until is not None else " until it is unfrozen"
        return f"nothing: frozen by {freeze.actor}{until}"
    match judgement:
        case Judgement.EJECTED:
            return _while_out(look, state, policy)
        case Judgement.SUSPECT:
            return _while_suspect(look, state, policy)
        case Judgement.PROBATION:
            return _on_probation(state, policy)
        case Judgement.UNKNOWN:
            return "waits for its first answers" if state.checks else "nothing: no probe is configured for it"
        case Judgement.HEALTHY:
            interval = look.interval_s(state)
            again = f"asked again within {span(interval)}" if interval is not None else "nothing"
            return again + ("; observe mode: nothing is ever written" if policy.mode is Mode.OBSERVE else "")


def span(seconds: float) -> str:
    """`250 ms`, `12 s`, `5 min`, `3.0 h`: about so long, for people."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _under_operator(look: Look, state: InstanceState) -> str:
    balancers = [look.policy.balancers[name] for name, _ in look.policy.services[state.instance.service].pools]
    mine = [o for o in state.overrides.values() if any(in_its_words(o.state, b.drain) is state.operator for b in balancers)]
    if not mine:
        return f"stays in {state.operator} until its operator makes it ready at the balancer"
    last = max(mine, key=lambda o: o.until if o.until is not None else float("inf"))
    until = f"for {span(last.until - look.now)} more" if last.until is not None else f"until owner {last.owner} clears it"
    return f"stays in {state.operator} {until}, by {last.actor}"


def _while_out(look: Look, state: InstanceState, policy: ServicePolicy) -> str:
    ejection = state.ejection
    assert ejection is not None, "judged ejected means there is an ejection"
    missing = sorted(policy.rules.rise - c.good_run for c in state.checks.values())[: guard.needed(policy)]
    more = max(missing, default=policy.rules.rise)
    wait = ejection.until - look.now
    when = f"not before {span(wait)} from now" if wait > 0 else ""
    answers = f"after {_counted(more, 'more good answer')} in a row" if more > 0 else ""
    others = [h for h in _holds(look, state) if h.name is not HoldName.HOLD_DOWN]
    held = f"once this no longer holds: {others[0].name} ({others[0].why})" if others else ""
    conditions = ", ".join(part for part in (answers, when, held) if part)
    verb = "returns" if ejection.enforced else "would be returned"
    return f"{verb} {conditions}" if conditions else f"{verb} at once"


def _while_suspect(look: Look, state: InstanceState, policy: ServicePolicy) -> str:
    check = guard.failed_check(state, policy)
    if check is None:
        if traffic.is_accused(state.conduct):
            return _held_or(look, state, "is ejected at the next real requests like these")
        worst = max(state.checks.values(), key=lambda c: c.bad_run)
        left = max(1, policy.rules.fall - worst.bad_run)
        return f"{_counted(left, 'more failure')} in a row complete the evidence (fewer if refused); a good answer clears it"
    return _held_or(look, state, "is ejected as soon as another instance answers well")


def _held_or(look: Look, state: InstanceState, otherwise: str) -> str:
    if holds := _holds(look, state):
        return f"stays in as long as this holds: {holds[0].name} ({holds[0].why})"
    return otherwise


def _on_probation(state: InstanceState, policy: ServicePolicy) -> str:
    if state.ejection is not None:
        return "its return waits until every balancer shows it"
    least = min((_good(c) for c in state.checks.values()), default=0)
    return f"healthy after {_counted(max(1, 2 * policy.rules.rise - least), 'more good answer')} in a row"


def _good(check: Streak) -> int:
    return check.good_run


def _holds(look: Look, state: InstanceState) -> list[Hold]:
    return look.holds_of(state.instance.service, state.instance)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


__all__ = ["next_of", "span"]
