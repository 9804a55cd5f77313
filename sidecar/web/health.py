"""The rules of `/health`, `/livez` and `/readyz`. Pure.

fail = a service with nothing in rotation, failing open, or (after its cold start) nothing in rotation judged healthy. warn = any
instance not healthy, any hold, anything we could not see. The whole is as good as its worst service.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core import guard
from sidecar.core.known import InstanceState, ServiceState
from sidecar.core.model import Judgement, Serving
from sidecar.web import models
from sidecar.web.look import Look, identity, names
from sidecar.web.models import Status

LIVE_S = 5.0
"""The decision loop must have run this lately."""
NOTES = 50
"""Reasons in one answer at most; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A status with every reason why it is not pass, worst first. `healthy`, `in_rotation`: how many of `instances`."""

    status: Status
    why: tuple[str, ...]
    instances: int = 0
    in_rotation: int = 0
    healthy: int = 0


def of_service(look: Look, service: ServiceState) -> Finding:
    called = names(service)
    serving = {i for i, s in service.instances.items() if look.serving(s) is not Serving.NONE}
    judged = {i: look.judgement(s) for i, s in service.instances.items()}
    policy = look.policy_of(service)
    healthy = sum(1 for i in serving if guard.by_probes(service.instances[i], policy) is Judgement.HEALTHY)
    fails = _fails(look, service, len(serving), healthy)
    warns = [f"{called[i]} is {j}" for i, j in judged.items() if j is not Judgement.HEALTHY]
    warns += [f"{called[i]} is stale: no answer for too long" for i, s in service.instances.items() if look.is_stale(s)]
    warns += _holds(look, service)
    warns += [f"balancer {name}: {why}" for name, why in look.balancer_faults(service).items()]
    warns += [f"discovery {name}: {why}" for name, why in service.faults.items()]
    if not service.instances and not fails:
        n = len(service.unlisted)
        warns.append(f"none of its {n} servers has an address that could be asked" if n else "just started: no instance is known yet")
    return Finding(_status(fails, warns), _cut([*fails, *warns]), len(judged), len(serving), healthy)


def of_instance(look: Look, state: InstanceState) -> Finding:
    """fail = it gets nothing, or the evidence against it is complete; warn = otherwise not healthy, held or stale."""
    judgement, serving = look.judgement(state), look.serving(state)
    fails = ["it is not in rotation"] if serving is Serving.NONE else []
    if judgement is Judgement.EJECTED:
        fails.append(state.reason or "it is ejected")
    warns = [state.reason or f"it is {judgement}"] if judgement not in (Judgement.HEALTHY, Judgement.EJECTED) else []
    warns += [f"{h.name}: {h.why}" for h in look.holds_of(state.instance.service, state.instance)]
    warns += ["stale: no answer for too long"] if look.is_stale(state) else []
    healthy = int(judgement is Judgement.HEALTHY)
    return Finding(_status(fails, warns), _cut([*fails, *warns]), 1, int(serving is not Serving.NONE), healthy)


def of_ourselves(look: Look) -> list[str]:
    """What is wrong with the sidecar itself; each is a warning."""
    found = [f"blind: {look.world.blind_why}"] if look.now < look.world.blind_until else []
    if look.world.journal_fault:
        found.append(f"the intents journal cannot be written: {look.world.journal_fault}")
    return found


def live(look: Look, decided_at: float) -> models.Live:
    """Did the decision loop run within LIVE_S? Nothing about instances: restarting us would not heal them."""
    late = look.now - decided_at
    if late <= LIVE_S:
        return models.Live(status=Status.PASS)
    return models.Live(status=Status.FAIL, missing=(f"the decision loop last ran {late:.1f} s ago, {LIVE_S:.0f} s allowed",))


def ready(look: Look) -> models.Live:
    """Every balancer observed and every service's cold start over: from here on the bounds of detection hold."""
    missing = []
    for name in look.policy.balancers:
        balancer = look.world.balancers.get(name)
        if balancer is None or balancer.seen_at == float("-inf"):
            why = f": {balancer.error}" if balancer is not None and balancer.error else ""
            missing.append(f"balancer {name} is not observed yet{why}")
    for name in look.policy.services:
        service = look.world.services.get(name)
        if service is None or is_cold(look, service):
            missing.append(f"service {name} is in its cold start: not every instance has answered often enough")
    return models.Live(status=Status.FAIL if missing else Status.PASS, missing=_cut(missing))


def is_cold(look: Look, service: ServiceState) -> bool:
    """Cold start as the core has it; a service that has no instance is waited for just as long."""
    if service.since is None:
        return look.now - look.world.started_at < look.policy_of(service).guards.cold_s
    return look.world.is_cold(service, look.now)


# ---- application/health+json ----


def whole(look: Look, only: frozenset[str] | None = None) -> models.Health:
    """`/health`: one check per service, the worst decides. `only`: the services the caller may see, None = all."""
    checks: dict[str, tuple[models.HealthCheck, ...]] = {}
    notes = of_ourselves(look)
    statuses = [Status.WARN] if notes else []
    for service in look.services():
        if only is not None and service.name not in only:
            continue
        finding = of_service(look, service)
        statuses.append(finding.status)
        checks[f"{service.name}:in_rotation"] = (_check(look, service.name, finding.in_rotation, "instances", finding),)
        notes += [f"{service.name}: {why}" for why in finding.why]
    return models.Health(
        status=worst(statuses), description="health of every service behind this sidecar", notes=_cut(notes), checks=checks
    )


def service_health(look: Look, service: ServiceState) -> models.Health:
    """`/health/{service}`: one check per instance."""
    called, finding = names(service), of_service(look, service)
    checks = {f"{called[i]}:judgement": (_judged(look, s),) for i, s in service.instances.items()}
    runbook = look.policy_of(service).runbook
    notes = (*finding.why, *((f"runbook: {runbook}",) if runbook and finding.why else ()))
    text = f"{finding.in_rotation} of {finding.instances} instances in rotation, {finding.healthy} of these healthy"
    return models.Health(status=finding.status, serviceId=service.name, description=text, notes=notes, checks=checks)


def instance_health(look: Look, state: InstanceState) -> models.Health:
    """`/health/{service}/{i}`: one check per probe spec."""
    finding = of_instance(look, state)
    time = look.wall_of(look.now)
    checks = {
        f"{spec}:probe": (
            models.HealthCheck(
                componentId=spec,
                observedValue=check.good_run if not check.bad_run else -check.bad_run,
                observedUnit="answers in a row",
                status=Status.FAIL if check.failed else Status.WARN if check.bad_run or not check.good_run else Status.PASS,
                time=time,
                output=(check.detail or (check.reason.value if check.reason else None)) if check.bad_run else None,
            ),
        )
        for spec, check in state.checks.items()
    }
    name = f"{state.instance.service}/{identity(state.instance)}"
    return models.Health(status=finding.status, serviceId=name, description=state.reason, notes=finding.why, checks=checks)


def worst(statuses: list[Status]) -> Status:
    return max(statuses, key=list(Status).index, default=Status.PASS)


def _judged(look: Look, state: InstanceState) -> models.HealthCheck:
    finding = of_instance(look, state)
    return _check(look, identity(state.instance), look.judgement(state).value, None, finding)


def _check(look: Look, component: str, value: int | str, unit: str | None, finding: Finding) -> models.HealthCheck:
    output = "; ".join(finding.why[:3]) if finding.status is not Status.PASS else None
    return models.HealthCheck(
        componentId=component, observedValue=value, observedUnit=unit, status=finding.status, time=look.wall_of(look.now), output=output
    )


def _fails(look: Look, service: ServiceState, serving: int, healthy: int) -> list[str]:
    n, fails = len(service.instances), []
    if service.failing_open:
        fails.append("failing open: too few are healthy, so doubtful ones get traffic")
    if not n and not service.unlisted and not is_cold(look, service):
        fails.append("nothing is in rotation: no instance is known")
    elif n and not serving:
        fails.append(f"nothing is in rotation: none of {n} instances gets traffic")
    elif n and not healthy and not is_cold(look, service) and look.policy_of(service).probes:
        fails.append(f"none of the {serving} instances in rotation is judged healthy")
    return fails


def _holds(look: Look, service: ServiceState) -> list[str]:
    """One line for each hold and its arithmetic, however many instances it keeps."""
    lines: dict[str, int] = {}
    for hold in look.holds_of(service.name):
        line = f"held by {hold.name}: {hold.why}"
        lines[line] = lines.get(line, 0) + 1
    if (freeze := look.world.freeze_of(service.name, look.now)) is not None:
        lines.setdefault(f"frozen by {freeze.actor}" + (f": {freeze.reason}" if freeze.reason else ""), 1)
    return [line if count == 1 else f"{line} ({count} instances)" for line, count in lines.items()]


def _status(fails: list[str], warns: list[str]) -> Status:
    return Status.FAIL if fails else Status.WARN if warns else Status.PASS


def _cut(lines: list[str]) -> tuple[str, ...]:
    return tuple(lines) if len(lines) <= NOTES else (*lines[:NOTES], f"and {len(lines) - NOTES} more")


__all__ = [
    "LIVE_S", "Finding", "instance_health", "is_cold", "live", "of_instance", "of_ourselves", "of_service", "ready", "service_health",
    "whole", "worst",
]  # fmt: skip
