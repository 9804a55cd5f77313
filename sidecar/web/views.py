"""From the world to what the API says of services, instances and decisions. Pure: one Look in, models out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lbplugins.values import Operator
from sidecar.core import guard
from sidecar.core.known import InstanceState, ServiceState, timeout_s
from sidecar.core.model import Hold, Instance, Judgement, Strength
from sidecar.core.policy import Mode, ServicePolicy
from sidecar.core.window import Source, Summary, WindowName
from sidecar.store.decisions import Page, Record
from sidecar.store.history import Point, State
from sidecar.web import health, models
from sidecar.web.desk import SelfHealth
from sidecar.web.look import Look, identity
from sidecar.web.outlook import next_of

SHOWN_WINDOW: WindowName = "1m"
"""The window of the percentiles that services and instances carry."""
SOURCES: tuple[Source, ...] = ("probe", "traffic")


def service(look: Look, state: ServiceState) -> models.Service:
    """One service without its instances: `instance` makes these one by one, so that a caller with thousands may pause between two."""
    policy = look.policy_of(state)
    finding = health.of_service(look, state)
    freeze = look.world.freeze_of(state.name, look.now)
    return models.Service(
        service=state.name,
        status=finding.status,
        why=finding.why,
        mode=_mode(look, policy),
        labels=policy.labels,
        runbook=policy.runbook,
        pools=tuple(f"{balancer}/{pool}" for balancer, pool in policy.pools),
        counts=models.Counts(
            instances=finding.instances,
            counted=sum(1 for s in state.instances.values() if s.operator is Operator.READY),
            in_rotation=finding.in_rotation,
            healthy=finding.healthy,
            ejected=sum(1 for s in state.instances.values() if look.judgement(s) is Judgement.EJECTED),
        ),
        room=_room(look, state, policy),
        cold_start=health.is_cold(look, state),
        failing_open=state.failing_open,
        freeze=None
        if freeze is None
        else models.Freeze(
            service=freeze.service,
            actor=freeze.actor,
            since=look.wall_of(freeze.at),
            until=None if freeze.until is None else look.wall_of(freeze.until),
            reason=freeze.reason,
        ),
        holds=tuple(hold(h) for h in look.holds_of(state.name)),
        discovery_faults=dict(state.faults),
        balancer_faults=look.balancer_faults(state),
        unlisted=tuple(str(server) for server in state.unlisted),
        latency=_shown({s: look.latencies.service(state.name, s, SHOWN_WINDOW, look.now) for s in SOURCES}),
    )


def instance(look: Look, state: InstanceState, name: str) -> models.Instance:
    """One instance under the name that `names` gives it."""
    mine = look.targets(state)
    return models.Instance(
        service=state.instance.service,
        instance=identity(state.instance),
        name=name,
        judgement=look.judgement(state),
        operator=state.operator,
        serving=look.serving(state),
        stale=look.is_stale(state),
        since=look.wall_of(state.told_at),
        reason=state.reason,
        next=next_of(look, state),
        holds=tuple(hold(h) for h in look.holds_of(state.instance.service, state.instance)),
        servers=_servers(look, state),
        ejection=_ejection(look, state),
        overrides=_overrides(look, state),
        checks={
            spec: models.Check(
                good_run=check.good_run,
                bad_run=check.bad_run,
                answers=check.answers,
                last_reason=check.reason.value if check.reason else None,
                detail=check.detail,
                rule=check.rule,
                failed=check.failed,
            )
            for spec, check in state.checks.items()
        },
        last_probe_age_s=look.probe_age_s(state),
        interval_s=look.interval_s(state),
        timeout_s=max((timeout_s(target, look.policy.pace) for target in mine), default=None),
        labels=state.labels,
        latency=_shown({s: look.latencies.instance(state.instance, s, SHOWN_WINDOW, look.now) for s in SOURCES}),
    )


def sidecar(look: Look, own: SelfHealth, status: models.Status) -> models.Sidecar:
    """The sidecar itself. `status`: of all services together."""
    return models.Sidecar(
        when=look.wall_of(look.now),
        status=status,
        version=own["version"],
        mode=own["mode"],
        config_hash=own["config_hash"],
        policy_version=own["policy_version"],
        uptime_s=own["uptime_s"],
        loop_lag_s=own["loop_lag_s"],
        rss_bytes=own["rss_bytes"],
        notes=(*own["notes"], *health.of_ourselves(look)),
    )


def latency(summary: Summary) -> models.Latency:
    quantiles = {name: models.Quantile(value=q.value, samples=q.samples, needed=q.needed) for name, q in summary.quantiles().items()}
    return models.Latency(count=summary.count, failures=summary.failures, **quantiles)


def column(points: Sequence[Point]) -> models.Column:
    """Points of the history, as columns."""
    stood = [State.of(point.state) for point in points]
    quantiles = [Summary(point.times.count, point.failures, point.times).quantiles() for point in points]
    return models.Column(
        at=tuple(point.at for point in points),
        count=tuple(point.times.count for point in points),
        failures=tuple(point.failures for point in points),
        min=tuple(point.times.min for point in points),
        p50=tuple(found["p50"].value for found in quantiles),
        p90=tuple(found["p90"].value for found in quantiles),
        p99=tuple(found["p99"].value for found in quantiles),
        max=tuple(point.times.max for point in points),
        judgement=tuple(state.judgement if state else None for state in stood),
        operator=tuple(state.operator if state else None for state in stood),
        serving=tuple(state.serving if state else None for state in stood),
    )


def hold(held: Hold) -> models.Hold:
    return models.Hold(name=held.name.value, why=held.why, instance=_named(held.instance))


def decision(record: Record) -> models.Decision:
    """One record of the decision log, as it is kept."""
    return models.Decision.model_validate(record.to_json())


def decisions(page: Page) -> models.Decisions:
    return models.Decisions(decisions=tuple(decision(record) for record in page.records), next_cursor=page.next_cursor)


def _room(look: Look, state: ServiceState, policy: ServicePolicy) -> models.Room:
    whole = guard.groups(look.world, state)[0]
    n = len(whole.counted)
    return models.Room(
        counted=n,
        out=len(whole.used),
        hard=guard.budget(n, Strength.HARD, policy.guards),
        soft=guard.budget(n, Strength.SOFT, policy.guards),
        sound=len(whole.sound),
        min_healthy=policy.guards.min_healthy,
    )


def _mode(look: Look, policy: ServicePolicy) -> Literal["observe", "act"]:
    """The stricter of the service's own and its balancers'."""
    balancers = [look.policy.balancers[name].mode for name, _ in policy.pools]
    observed = policy.mode is Mode.OBSERVE or (bool(balancers) and all(mode is Mode.OBSERVE for mode in balancers))
    return "observe" if observed else "act"


def _servers(look: Look, state: InstanceState) -> tuple[models.Server, ...]:
    found = []
    for server in state.servers:
        if (seen := look.world.seen(server)) is None:
            continue
        found.append(
            models.Server(
                balancer=server.balancer,
                pool=server.ref.pool,
                server=server.ref.server,
                ours=seen.ours.serve.value,
                operator=seen.operator,
                serving=seen.serving,
                weight=seen.weight,
                weight_pct=seen.ours.weight_pct,
                in_flight=seen.in_flight,
                writable=seen.writable,
                remark=seen.remark,
            )
        )
    return tuple(found)


def _ejection(look: Look, state: InstanceState) -> models.Ejection | None:
    ejection = state.ejection
    if ejection is None:
        return None
    return models.Ejection(
        rule=ejection.rule,
        cause=ejection.cause,
        since=look.wall_of(ejection.at),
        repeat=ejection.repeat,
        not_before=look.wall_of(ejection.until) if ejection.until > look.now else None,
        enforced=ejection.enforced,
        returning=ejection.returning,
        witnesses=tuple(str(witness.address) for witness in ejection.witnesses),
    )


def _overrides(look: Look, state: InstanceState) -> tuple[models.Override, ...]:
    return tuple(
        models.Override(
            owner=o.owner,
            state=o.state,
            actor=o.actor,
            since=look.wall_of(o.at),
            until=None if o.until is None else look.wall_of(o.until),
            reason=o.reason,
        )
        for o in state.overrides.values()
    )


def _shown(found: Mapping[Source, Summary]) -> dict[Literal["probe", "traffic"], models.Latency]:
    """Without the sources that said nothing at all."""
    return {source: latency(summary) for source, summary in found.items() if summary.count or summary.failures}


def _named(instance: Instance | None) -> str:
    return "" if instance is None else identity(instance)


__all__ = ["decision", "decisions", "hold", "instance", "latency", "service", "sidecar"]
