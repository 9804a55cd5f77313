"""What the rest of the sidecar takes from a configuration: the core's policy, the probes, the sources."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lbplugins.values import Traits
from sidecar.config.models import ANY, Config, PaceOptions, PolicyOptions, ServiceOptions
from sidecar.core.model import PoolRef
from sidecar.core.policy import BalancerPolicy, Guards, Mode, Pace, Policy, RuleMode, Rules, ServicePolicy
from sidecar.discovery import Source, build_sources
from sidecar.probes.options import ProbeSpec


def policy(config: Config, traits: Mapping[str, Traits], config_hash: str = "") -> Policy:
    """The core's policy. `traits`: of each balancer's plugin, by the balancer's name; the service `*` must be expanded before."""
    return Policy(
        services={name: _service_policy(config, name, service) for name, service in config.services.items() if name != ANY},
        balancers={name: _balancer_policy(config, name, traits.get(name, Traits())) for name in config.balancers},
        pace=pace(config.pace),
        version=config.policy_version,
        config_hash=config_hash,
    )


def stricter(*modes: Mode) -> Mode:
    """observe, if anyone says so."""
    return Mode.OBSERVE if Mode.OBSERVE in modes else Mode.ACT


def pools_of(name: str, service: ServiceOptions) -> tuple[PoolRef, ...]:
    """The pools of a service; without `pool` and `pools`, the one that has its name."""
    if service.pools:
        return service.pools
    return (PoolRef(service.balancer, service.pool or name),) if service.balancer is not None else ()


def expand(config: Config, balancer: str, pools: Collection[str]) -> Config:
    """The configuration with a service, in observe mode, for each of these pools of a balancer that no service names.

    Only where the service `*` stands for that balancer; asking again with the same pools changes nothing.
    """
    template = config.services.get(ANY)
    if template is None or balancer not in any_balancers(template):
        return config
    taken = {pool for name, service in config.services.items() if name != ANY for pool in pools_of(name, service)}
    services = dict(config.services)
    for pool in sorted(pools):
        if (ref := PoolRef(balancer, pool)) in taken:
            continue
        name = _free_name(ref, services)
        services[name] = template.model_copy(update={"balancer": None, "pool": None, "pools": (ref,), "mode": Mode.OBSERVE})
    return config.model_copy(update={"services": services})


def any_balancers(template: ServiceOptions) -> frozenset[str]:
    """The balancers whose unnamed pools the service `*` takes."""
    return frozenset(ref.balancer for ref in pools_of(ANY, template))


def _free_name(ref: PoolRef, services: Collection[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", ref.pool).lstrip("_.-")[:64] or "pool"
    wanted = [plain, f"{ref.balancer}.{plain}"[:64], *(f"{plain[:60]}.{number}" for number in range(2, 1000))]
    return next(name for name in wanted if name not in services)


def probe_specs(config: Config) -> Mapping[str, ProbeSpec]:
    """Every probe by its key, those of references too."""
    specs = [spec for service in config.services.values() for spec in service.probe]
    specs += [reference.probe for service in config.services.values() for reference in service.references if reference.probe is not None]
    return {spec.key: spec for spec in specs}


def sources(config: Config) -> list[Source]:
    """The sources of all services that do not take their instances from balancers."""
    return [source for name, service in config.services.items() if name != ANY for source in build_sources(name, service.instances)]


def _balancer_policy(config: Config, name: str, traits: Traits) -> BalancerPolicy:
    balancer = config.balancers[name]
    return BalancerPolicy(
        name=name,
        mode=stricter(config.mode, balancer.mode),
        plugin=balancer.plugin,
        kill=traits.kill,
        drain=traits.drain,
        costly=traits.costly,
        observe_every_s=traits.observe_every_s,
    )


def _service_policy(config: Config, name: str, service: ServiceOptions) -> ServicePolicy:
    pools = pools_of(name, service)
    balancers = [config.balancers[ref.balancer].mode for ref in pools if ref.balancer in config.balancers]
    # A balancer that only observes does not stop the others; when all of them do, nothing can be enforced.
    everywhere = Mode.OBSERVE if balancers and Mode.ACT not in balancers else Mode.ACT
    first = service.probe[0]
    return ServicePolicy(
        name=name,
        mode=stricter(config.mode, service.mode, everywhere),
        probes=tuple(spec.plan() for spec in service.probe),
        require=1 if service.require == "any" else None if service.require == "all" else service.require,
        pools=tuple((ref.balancer, ref.pool) for ref in pools),
        rules=rules(service.policy),
        guards=guards(service.policy),
        references=tuple((reference.address, (reference.probe or first).key) for reference in service.references),
        rule_modes=rule_modes(service.policy),
        slow_start_s=service.slow_start,
        labels=dict(service.labels),
        runbook=service.runbook or "",
        from_balancer=service.instances is None,
    )


def rule_modes(options: PolicyOptions) -> Mapping[str, RuleMode]:
    """The rules whose mode is said; the others follow the policy version."""
    said = {"consecutive": options.consecutive, "slow": options.slow, "traffic_errors": options.traffic_errors}
    if options.window.mode is not RuleMode.ACT:
        said["window"] = options.window.mode
    return {rule: mode for rule, mode in said.items() if mode is not None}


def rules(options: PolicyOptions) -> Rules:
    """The numbers that say when evidence is enough."""
    return Rules(
        fall=options.fall,
        fall_fast=options.fall_fast,
        fast_spread_s=options.fast_spread,
        rise=options.rise,
        window=options.window.probes,
        window_s=options.window.within,
        window_bad=options.window.bad,
        undo_s=options.undo_within,
        hold_down_s=options.hold_down.first,
        hold_down_max_s=options.hold_down.max,
        hold_down_soft_s=options.hold_down.soft,
        repeat_within_s=options.hold_down.forget,
        flap_burst=options.flapping.burst,
        flap_burst_s=options.flapping.within,
        flap_per_min=options.flapping.per_minute,
        hands_off_s=options.hands_off,
        off=frozenset(rule for rule, mode in rule_modes(options).items() if mode is RuleMode.OFF),
    )


def guards(options: PolicyOptions) -> Guards:
    """The numbers that say how much may be done."""
    return Guards(
        max_ejected_hard=options.max_ejected.hard,
        max_ejected_soft=options.max_ejected.soft,
        min_healthy=options.min_healthy,
        panic_below=options.panic_below,
        hard_refill_s=options.velocity.hard,
        soft_refill_s=options.velocity.soft,
        cold_answers=options.cold_start.answers,
        cold_s=options.cold_start.at_most,
        shrink=options.discovery.shrink,
        stale_discovery_s=options.discovery.stale,
        picture_max_age_s=options.picture_max_age,
        blind_lag_s=options.own_lag,
    )


def pace(options: PaceOptions) -> Pace:
    """The numbers that say how often and how patiently targets are asked."""
    return Pace(
        first_interval_s=options.first_interval,
        learn_good=options.learn,
        baseline_factor=options.baseline_factor,
        min_interval_s=options.min_interval,
        max_interval_s=options.max_interval,
        pending_gap_s=options.pending_gap,
        jitter=options.jitter,
        ejected_s=options.ejected,
        ejected_long_s=options.ejected_long,
        ejected_long_after_s=options.ejected_long_after,
        first_timeout_s=options.first_timeout,
        timeout_factor=options.timeout_factor,
        min_timeout_s=options.min_timeout,
        max_timeout_s=options.max_timeout,
        witnesses_asked=options.witnesses,
    )


def observing(config: Config) -> Config:
    """The same configuration, only observing: what `run --observe` uses."""
    return config.model_copy(update={"mode": Mode.OBSERVE})
