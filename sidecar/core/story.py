"""Sentences: what happened and why, for the log, the API, the page and `explain`. Assertions in tests read them too."""

from __future__ import annotations

from sidecar.core import traffic
from sidecar.core.guard import Group, budget, needed
from sidecar.core.known import InstanceState, ServiceState
from sidecar.core.model import Ejection, Hold, HoldName, Judgement
from sidecar.core.policy import ServicePolicy
from sidecar.core.streak import Streak


def cause(check: Streak) -> str:
    """`timeout 4 times in a row within 0.31 s (no answer within 0.06 s)`."""
    reason = check.reason.value if check.reason else "failure"
    detail = f" ({check.detail})" if check.detail else ""
    if check.rule == "window":
        bad = sum(1 for _, was_bad in check.window if was_bad)
        return f"{bad} of the last {len(check.window)} probes failed, last {reason}{detail}"
    if check.bad_run <= 1:
        return f"{reason}{detail}"
    span = check.last_bad_at - check.first_bad_at
    return f"{reason} {check.bad_run} times in a row within {span:.2f} s{detail}"


def judged(state: InstanceState, judgement: Judgement, policy: ServicePolicy) -> str:
    """Why the judgement is now this one."""
    checks = state.checks
    match judgement:
        case Judgement.SUSPECT:
            bad = [c for c in checks.values() if c.bad_run or c.failed]
            charge = traffic.accusation(state)
            return f"{state.instance} is suspect: {cause(bad[0]) if bad else charge.cause if charge else 'doubtful'}"
        case Judgement.HEALTHY:
            after = f", after {state.told}" if state.told is not Judgement.UNKNOWN else ""
            return f"{state.instance} is healthy: {needed(policy)} of {len(checks)} checks answer well{after}"
        case Judgement.PROBATION:
            return f"{state.instance} is on probation after its return"
        case _:
            return f"{state.instance} is {judgement}: no conclusive answer yet"


def ejected(state: InstanceState, ejection: Ejection, whole: Group, policy: ServicePolicy) -> str:
    """The sentence of an ejection, with its witness and the arithmetic of the budget."""
    out, n = len(whole.out(state.instance)), len(whole.counted)
    most = budget(n, ejection.strength, policy.guards)
    names = ", ".join(str(w.address) for w in ejection.witnesses[:3]) or f"its {n - 1} peers"
    verb = "ejected" if ejection.enforced else "would be ejected (observe)"
    again = f"; repeat {ejection.repeat}, not back within {ejection.until - ejection.at:.0f} s" if ejection.repeat else ""
    return f"{state.instance} {verb}: {ejection.cause}; meanwhile {names} answered well; {out} of {n} out, {most} allowed{again}"


def recovered(state: InstanceState, policy: ServicePolicy) -> str:
    runs = [c.good_run for c in state.checks.values()]
    return f"{min(runs, default=0)} good answers in a row, {policy.rules.rise} needed"


def returned(state: InstanceState, why: str, now: float) -> str:
    out = f" after {now - state.ejection.at:.1f} s out" if state.ejection else ""
    verb = "returned" if state.ejection is None or state.ejection.enforced else "would be returned (observe)"
    return f"{state.instance} {verb}{out}: {why}"


def held(service: ServiceState, policy: ServicePolicy, name: HoldName, holds: tuple[Hold, ...]) -> str:
    """One sentence for all instances that one hold keeps as they are."""
    who = [str(h.instance.address) for h in holds if h.instance is not None]
    n = len(service.instances)
    names = ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")
    if name is HoldName.NO_WITNESS:
        share = f"all {n} instances" if len(who) == n else f"{len(who)} of {n} instances ({names})"
        return (
            f"{service.name}: {share} fail and none of the others gives a good answer: the pool, something they share or we ourselves "
            "are to blame; nothing is ejected"
        )
    return f"{service.name}: held by {name} for {names or 'all'}: {holds[0].why}"
