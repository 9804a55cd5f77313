"""Contradictions across a configuration: each part is valid, but together they cannot work as meant. And advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidecar.config.compose import pools_of
from sidecar.config.models import ANY, Config, PolicyOptions, ServiceOptions
from sidecar.config.plugins import PluginError, plugin_class
from sidecar.config.problems import Problem, Severity, did_you_mean, listed, problem_at, shown
from sidecar.config.tree import Table, place_of
from sidecar.core.model import PoolRef
from sidecar.core.policy import Mode
from sidecar.net.units import duration_text, share_text

Finding = tuple[Sequence[str | int], str, Severity]
"""Path, message, severity."""

ERROR, CONTRADICTION, ADVICE = Severity.ERROR, Severity.CONTRADICTION, Severity.ADVICE


@dataclass(frozen=True, slots=True)
class Names:
    """All names that the file gives, those of faulty entries too: what refers to one is not a second mistake."""

    balancers: frozenset[str]
    services: frozenset[str]


def contradictions(config: Config, tree: Table, names: Names, faulty: Mapping[str, ServiceOptions]) -> list[Problem]:
    """Everything found by looking at more than one value, each where it stands.

    `faulty`: services with mistakes elsewhere, of which only the pools are looked at.
    """
    problems = []
    for path, message, severity in _findings(config, names, faulty):
        place, walked = place_of(tree, path)
        problems.append(problem_at(place, ".".join(walked), message, severity))
    return problems


def _findings(config: Config, names: Names, faulty: Mapping[str, ServiceOptions]) -> Iterator[Finding]:
    yield from _pools({**config.services, **faulty}, names)
    yield from _tokens(config, names)
    yield from _pace(config)
    for name, service in config.services.items():
        path = ("services", name)
        for rule in _SERVICE_RULES:
            for steps, message, severity in rule(config, name, service):
                yield (*path, *steps), message, severity
    yield from _balancers(config, names)


# ---- who stands where ----


def _pools(services: Mapping[str, ServiceOptions], names: Names) -> Iterator[Finding]:
    """Every service in known balancers; every pool in one service only."""
    owners: dict[PoolRef, str] = {}
    for name, service in services.items():
        path = ("services", name)
        if service.balancer is None and not service.pools:
            choice = sorted(names.balancers)[0] if names.balancers else "edge"
            yield path, f"behind which balancer? add `balancer: {choice}`, or `pools: [{choice}/{name}]`", ERROR
            continue
        if service.pools and (service.balancer is not None or service.pool is not None):
            other = "balancer" if service.balancer is not None else "pool"
            yield (*path, other), f"both `{other}` and `pools`: keep `pools`, each as BALANCER/POOL", ERROR
        for index, ref in enumerate(pools_of(name, service)):
            where = (*path, "pools", index) if service.pools else (*path, "balancer")
            if ref.balancer not in names.balancers:
                known = f"there are: {listed(sorted(names.balancers))}" if names.balancers else "none is defined"
                yield where, f"no balancer {shown(ref.balancer)}; {known}{did_you_mean(ref.balancer, names.balancers)}", ERROR
            if name == ANY:
                continue
            if ref in owners and owners[ref] == name:
                yield where, f"the pool {ref} stands twice here: keep one", ERROR
            elif ref in owners:
                message = (
                    f"the pool {ref} belongs to the service {owners[ref]!r} already: an instance has one judge; remove it from one of them"
                )
                yield where, message, ERROR
            owners.setdefault(ref, name)


def _balancers(config: Config, names: Names) -> Iterator[Finding]:
    used = {ref.balancer for name, service in config.services.items() for ref in pools_of(name, service)}
    whole = bool(config.services) and len(config.services) == len(names.services) and used <= names.balancers
    whole = whole and all(pools_of(name, service) for name, service in config.services.items())
    for name, balancer in config.balancers.items():
        if name not in used and whole:
            yield ("balancers", name), f"no service stands behind it: add one with `balancer: {name}`, or remove it", ADVICE
        if balancer.mode is Mode.ACT and config.mode is Mode.OBSERVE and "mode" in balancer.model_fields_set:
            yield ("balancers", name, "mode"), "act here changes nothing while `mode: observe` stands above: the stricter wins", ADVICE


def _tokens(config: Config, names: Names) -> Iterator[Finding]:
    for name, token in config.api.tokens.items():
        for service in sorted(token.services or ()):
            if service not in names.services and ANY not in names.services:
                path = ("api", "tokens", name, "services")
                yield (
                    path,
                    f"no service {shown(service)}; there are: {listed(sorted(names.services))}{did_you_mean(service, names.services)}",
                    ERROR,
                )


def _pace(config: Config) -> Iterator[Finding]:
    pace = config.pace
    if pace.min_interval > pace.max_interval:
        yield (
            ("pace", "min_interval"),
            f"more than max_interval ({duration_text(pace.max_interval)}): no interval fits; lower it",
            CONTRADICTION,
        )
    if pace.min_timeout > pace.max_timeout:
        yield (
            ("pace", "min_timeout"),
            f"more than max_timeout ({duration_text(pace.max_timeout)}): no timeout fits; lower it",
            CONTRADICTION,
        )
    if pace.ejected > pace.ejected_long:
        yield (
            ("pace", "ejected"),
            f"more than ejected_long ({duration_text(pace.ejected_long)}): it must not be asked more often later",
            CONTRADICTION,
        )


# ---- one service ----


def _any(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    """`*` stands for pools that nobody named: it only looks."""
    if name != ANY:
        return
    for key in ("instances", "pool", "runbook"):
        if key in service.model_fields_set:
            yield (key,), f"`{key}` has no meaning for '*', which stands for many pools: name the service that it is for", ERROR
    if service.mode is Mode.ACT:
        yield ("mode",), "'*' only observes: name the pools that may be acted on as services of their own", CONTRADICTION
    for index, ref in enumerate(service.pools):
        if ref.pool != ANY:
            yield (
                ("pools", index),
                f"'*' takes every unnamed pool: write {ref.balancer}/*, or name {ref.pool} as a service of its own",
                ERROR,
            )


def _named(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    if name == ANY:
        return
    for index, ref in enumerate(service.pools):
        if ref.pool == ANY:
            yield ("pools", index), "every pool of a balancer: only the service '*' may say so; name the pools", ERROR


def _probes(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    many = len(service.probe) > 1
    seen: set[str] = set()
    for index, spec in enumerate(service.probe):
        plan = spec.plan()
        path = ("probe", index) if many else ("probe",)
        interval = plan.interval_s if plan.interval_s is not None else config.pace.max_interval
        if plan.timeout_s is not None and plan.timeout_s > interval:
            said = (
                f"the interval ({duration_text(interval)})"
                if plan.interval_s is not None
                else f"pace.max_interval ({duration_text(interval)})"
            )
            yield (
                (*path, "timeout"),
                f"more than {said}: the next probe would be due before this one ends; lower it or raise the interval",
                CONTRADICTION,
            )
        if plan.interval_s is not None and service.policy.window.mode != "off" and _window_never_fills(plan.interval_s, service.policy):
            yield (
                (*path, "interval"),
                f"{service.policy.window.probes} probes need {duration_text(plan.interval_s * service.policy.window.probes)}, longer than "
                f"policy.window.within ({duration_text(service.policy.window.within)}): the windowed rule can never speak; "
                "raise `within`, lower `probes`, or write `window: off`",
                CONTRADICTION,
            )
        if plan.key in seen:
            yield path, f"the same probe twice ({plan.key}): it is asked once; remove one", ERROR
        seen.add(plan.key)
    if isinstance(service.require, int) and service.require > len(service.probe):
        yield ("require",), f"{service.require} of {len(service.probe)} probes can never be good: write at most {len(service.probe)}", ERROR
    if "probe" not in service.model_fields_set:
        yield (), "no probe: only a TCP connection is tried, which a hung process still accepts; add `probe: {http: /health}`", ADVICE


def _window_never_fills(interval_s: float, policy: PolicyOptions) -> bool:
    # A full window spans one interval less than it has probes.
    return interval_s * (policy.window.probes - 1) > policy.window.within


def _instances(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    if service.instances is None:
        return
    first: dict[tuple[object, str], int] = {}
    for index, entry in enumerate(service.instances.static):
        twin = first.setdefault((entry.address, entry.id), index)
        if twin != index:
            yield ("instances", index), f"{entry.address} stands twice (also number {twin + 1}): remove one", ERROR
    count = len(service.instances.static)
    if count == 1:
        yield ("instances",), "one instance: there is no peer to vouch for the network, so it will never be taken out", ADVICE
    if 0 < count <= service.policy.min_healthy and service.policy.min_healthy > 1:
        message = f"all {count} instances must stay in: nothing can ever be taken out; lower it below {count}"
        yield ("policy", "min_healthy"), message, CONTRADICTION
    addresses = {entry.address for entry in service.instances.static}
    for index, reference in enumerate(service.references):
        if reference.address in addresses:
            message = (
                f"{reference.address} is an instance of this service: a reference must be something else that answers when the network does"
            )
            yield ("references", index), message, CONTRADICTION


def _policy(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    policy = service.policy
    if policy.max_ejected.soft > policy.max_ejected.hard:
        soft, hard = share_text(policy.max_ejected.soft), share_text(policy.max_ejected.hard)
        message = f"soft evidence may take out more ({soft}) than hard ({hard}): swap them"
        yield ("policy", "max_ejected"), message, CONTRADICTION
    # Shares come from percentages: a hair of rounding is no contradiction.
    if 1 - policy.max_ejected.hard < policy.panic_below - 1e-9:
        message = (
            f"with {share_text(policy.max_ejected.hard)} out, fewer than panic_below ({share_text(policy.panic_below)}) are left: "
            "everything fails open before the budget is spent; lower one of them"
        )
        yield ("policy", "max_ejected"), message, CONTRADICTION
    if policy.hold_down.first > policy.hold_down.max or policy.hold_down.soft > policy.hold_down.max:
        yield ("policy", "hold_down"), f"longer than its max ({duration_text(policy.hold_down.max)}): raise max", CONTRADICTION
    for key in ("fall", "rise"):
        if getattr(policy, key) == 1:
            word = "lost packet takes an instance out" if key == "fall" else "lucky answer brings it back"
            yield ("policy", key), f"1: a single {word}; 2 or more is safer", ADVICE
    if policy.fall_fast == 1:
        yield ("policy", "fall_fast"), "1: a single refused connection takes an instance out; 2 or more is safer", ADVICE


def _modes(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    if name != ANY and service.mode is Mode.ACT and config.mode is Mode.OBSERVE and "mode" in service.model_fields_set:
        yield ("mode",), "act here changes nothing while `mode: observe` stands above: the stricter wins", ADVICE


def _slow_start(config: Config, name: str, service: ServiceOptions) -> Iterator[Finding]:
    if not service.slow_start:
        return
    for balancer in sorted({ref.balancer for ref in pools_of(name, service)} & set(config.balancers)):
        try:
            traits = plugin_class(config.balancers[balancer].plugin).traits
        except PluginError:
            continue
        if traits.costly:
            yield (
                ("slow_start",),
                f"{balancer} must reload for each step of a ramp, so none is made there; remove it or accept that",
                ADVICE,
            )


Rule = Callable[[Config, str, ServiceOptions], Iterator[Finding]]
_SERVICE_RULES: tuple[Rule, ...] = (_any, _named, _probes, _instances, _policy, _modes, _slow_start)
