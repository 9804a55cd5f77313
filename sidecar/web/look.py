"""One look at the world: the questions that views, health and outlook share. Pure; everything is computed for one `now`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from lbplugins.values import Operator
from sidecar.core import guard, pace
from sidecar.core.known import InstanceState, ServiceState, TargetState
from sidecar.core.model import Hold, Instance, Judgement, Serving, Target
from sidecar.core.policy import Policy, ServicePolicy
from sidecar.core.window import Latencies
from sidecar.core.world import World

STALE_INTERVALS, STALE_EXTRA_S = 3.0, 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """The world at `now` (monotonic). `holds`: those of the last decision, all services. `wall_of` gives UTC."""

    world: World
    policy: Policy
    now: float
    wall_of: Callable[[float], datetime]
    latencies: Latencies
    holds: tuple[Hold, ...] = ()

    def policy_of(self, service: ServiceState) -> ServicePolicy:
        return self.policy.services[service.name]

    def services(self) -> Iterator[ServiceState]:
        """Those that the policy in force names, in its order."""
        return (self.world.services[name] for name in self.policy.services if name in self.world.services)

    def holds_of(self, service: str, instance: Instance | None = None) -> list[Hold]:
        """Of a service, all; of an instance, its own."""
        return [h for h in self.holds if h.service == service and (instance is None or h.instance == instance)]

    def judgement(self, state: InstanceState) -> Judgement:
        return guard.judge(state, self.policy.services[state.instance.service])

    def serving(self, state: InstanceState) -> Serving:
        """What it really gets, by what the balancers show; where none has shown anything yet, by the operator's word."""
        seen = [s for server in state.servers if (s := self.world.seen(server)) is not None]
        if not seen:
            pooled = any(self._observed(name) for name, _ in self.policy.services[state.instance.service].pools)
            return Serving.NONE if pooled or state.operator is not Operator.READY else Serving.FULL
        getting = [s for s in seen if guard.is_in_rotation(s)]
        if not getting:
            return Serving.NONE
        whole = len(getting) == len(seen) and all(s.ours.weight_pct == 100 for s in seen)
        return Serving.FULL if whole else Serving.REDUCED

    def targets(self, state: InstanceState) -> list[TargetState]:
        """What is asked about it, one per probe spec."""
        address = state.instance.address
        names = [
            Target(address if plan.port is None else address._replace(port=plan.port), plan.key)
            for plan in self.policy.services[state.instance.service].probes
        ]
        return [self.world.targets[name] for name in names if name in self.world.targets]

    def interval_s(self, state: InstanceState) -> float | None:
        """The calm gap between two askings, of its least often asked check; None = nothing is asked."""
        return max((pace.interval_s(target, self.policy.pace) for target in self.targets(state)), default=None)

    def probe_age_s(self, state: InstanceState) -> float | None:
        """Seconds since the oldest of its checks was last answered; None = one never was."""
        ended = [target.newest_ended for target in self.targets(state)]
        if not ended or min(ended) == float("-inf"):
            return None
        return max(0.0, self.now - min(ended))

    def is_stale(self, state: InstanceState) -> bool:
        """What we hold of it is older than three intervals and a second."""
        interval = self.interval_s(state)
        if interval is None:
            return False
        if state.ejection is not None:  # what is out may be asked less often
            interval = max(interval, self.policy.pace.ejected_long_s)
        age = self.probe_age_s(state)
        return (age if age is not None else self.now - state.since) > STALE_INTERVALS * interval + STALE_EXTRA_S

    def balancer_faults(self, service: ServiceState) -> dict[str, str]:
        """What keeps us from seeing or telling the balancers of a service."""
        faults: dict[str, str] = {}
        for name in dict.fromkeys(balancer for balancer, _ in self.policy_of(service).pools):
            state = self.world.balancers.get(name)
            if state is not None and state.error:
                faults[name] = state.error
            elif not self._observed(name):
                faults[name] = "not observed yet"
            elif name in self.world.standby:
                faults[name] = f"standing by: {self.world.standby[name]}"
        return faults

    def _observed(self, balancer: str) -> bool:
        state = self.world.balancers.get(balancer)
        return state is not None and state.seen_at > float("-inf")


def identity(instance: Instance) -> str:
    """`10.0.0.5:8080`, with `#id` where there is one: the instance within its service."""
    return str(instance.address) + (f"#{instance.id}" if instance.id else "")


def names(service: ServiceState) -> dict[Instance, str]:
    """How people call each instance: its first server's name, unless another one answers to it too."""
    first = {i: (s.servers[0].ref.server if s.servers else identity(i)) for i, s in service.instances.items()}
    uses: dict[str, int] = {}
    for name in first.values():
        uses[name] = uses.get(name, 0) + 1
    return {i: name if uses[name] == 1 else identity(i) for i, name in first.items()}


class Unresolved(Exception):
    """No instance, or more than one, answers to a name. `candidates`: what could be meant."""

    def __init__(self, text: str, service: str, candidates: tuple[str, ...], *, is_ambiguous: bool) -> None:
        what = "could be any of several instances" if is_ambiguous else "is no instance"
        super().__init__(f"{text[:80]!r} {what} of {service}")
        self.candidates, self.is_ambiguous = candidates, is_ambiguous


CANDIDATES = 20


def find(service: ServiceState, text: str) -> InstanceState:
    """The instance meant by address:port, server name, pool/server or a prefix that fits one alone; Unresolved otherwise."""
    answers = {i: _answers_to(s) for i, s in service.instances.items()}
    exact = [i for i, mine in answers.items() if text in mine]
    found = exact or [i for i, mine in answers.items() if text and any(begins(name, text) for name in mine)]
    if len(found) == 1:
        return service.instances[found[0]]
    raise Unresolved(text, service.name, _called(service, found or list(answers)), is_ambiguous=bool(found))


def begins(name: str, text: str) -> bool:
    """Is this a prefix of the name that ends no number halfway? Whoever says `s1` once that is gone must not hit `s10`."""
    return name.startswith(text) and not (text[-1:].isdigit() and name[len(text) : len(text) + 1].isdigit())


def _answers_to(state: InstanceState) -> set[str]:
    servers = {form for s in state.servers for form in (s.ref.server, str(s.ref), str(s))}
    return {identity(state.instance), str(state.instance.address), *servers}


def _called(service: ServiceState, found: list[Instance]) -> tuple[str, ...]:
    called = names(service)
    return tuple(f"{called[i]} ({identity(i)})" if called[i] != identity(i) else called[i] for i in found[:CANDIDATES])


__all__ = ["Look", "Unresolved", "begins", "find", "identity", "names"]
