"""The real core in virtual time, with everything that publishing reads kept beside it as the application does."""

from __future__ import annotations

from sidecar.core.model import Fact, Probed, Result
from sidecar.core.samples import Distribution, Own, Quantiles, Sample, SinkCount, Tallies, samples
from sidecar.core.window import Latencies
from tests.core.lab import Lab


class Scene(Lab):
    """A Lab that counts its facts and decisions and keeps latencies."""

    def __post_init__(self) -> None:
        self.tallies = Tallies()
        self.latencies = Latencies()
        super().__post_init__()

    def feed(self, *facts: Fact) -> None:
        told = len(self.decisions)
        super().feed(*facts)
        for decision in self.decisions[told:]:
            self.tallies.count_decision(decision)
        for fact in facts:
            self.tallies.count(fact, self.world)
            if isinstance(fact, Probed):
                self._keep_latency(fact)

    def samples(self, **more: object) -> list[Sample]:
        own = Own(
            self.tallies,
            version="1.2.3",
            uptime_s=12.5,
            lag_s=0.002,
            probe_lag_s=0.003,
            holds=self.decisions[-1].holds,
            sinks={"graphite": SinkCount(5, 2, 1, True, 4)},
            **more,  # type: ignore[arg-type]
        )
        return samples(self.world, self.world.policy, self.latencies, self.now, own)

    def _keep_latency(self, fact: Probed) -> None:
        target = self.world.targets.get(fact.outcome.target)
        for instance in target.users if target else ():
            if fact.outcome.result is Result.OK:
                self.latencies.add(instance, "probe", fact.outcome.seconds, self.now)
            else:
                self.latencies.fail(instance, "probe", self.now)


def numbers(found: list[Sample]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All but distributions as a reader of Prometheus' text has them: a summary is a number for each quantile, its count and its sum."""
    read: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for each in found:
        if isinstance(each.value, Quantiles):
            read |= {(each.name, (*each.labels, ("quantile", str(share)))): seconds for share, seconds in each.value.values}
            read |= {(f"{each.name}_count", each.labels): each.value.count, (f"{each.name}_sum", each.labels): each.value.total}
        elif not isinstance(each.value, Distribution):
            read[each.name, each.labels] = each.value
    return read


def values(found: list[Sample], name: str, /, **labels: str) -> list[object]:
    """The values of all samples of this name whose labels include these."""
    return [each.value for each in found if each.name == f"lbsidecar_{name}" and labels.items() <= dict(each.labels).items()]


def value(found: list[Sample], name: str, /, **labels: str) -> float:
    (only,) = values(found, name, **labels)
    assert isinstance(only, float)
    return only


def quantiles(found: list[Sample], name: str, /, **labels: str) -> Quantiles:
    (only,) = values(found, name, **labels)
    assert isinstance(only, Quantiles)
    return only
