"""Everything we publish, as samples: what the world looks like now, and what has been counted since the start. Pure.

Names begin with `lbsidecar_`; units are seconds, bytes and ratios. Labels come from the configuration, discovery and our own words alone:
what an instance answers never becomes a label, and counted rows are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar, get_args

from lbplugins.values import Operator
from sidecar.core import guard
from sidecar.core.histogram import Histogram, index_of
from sidecar.core.known import InstanceState, ServiceState
from sidecar.core.model import (
    Applied,
    Decision,
    Fact,
    Hold,
    Instance,
    Journaled,
    Judgement,
    Outcome,
    Pictured,
    Probed,
    Result,
    ServerRef,
    Serving,
    Target,
)
from sidecar.core.policy import Mode, Policy, ServicePolicy
from sidecar.core.window import Latencies, Quantiles, Source, WindowName
from sidecar.core.world import World

MAX_ROWS = 10_000
"""Rows of one counted family at most; the oldest is let go for a new one, and `lbsidecar_rows_dropped_total` says so."""
SHOWN_WINDOW: WindowName = "1m"
"""The window that the quantiles of a summary cover; its count and sum go on since the start."""
SOURCES: tuple[Source, ...] = ("probe", "traffic")
LOWEST, HIGHEST = -13, 4
"""Exponents of two of the lowest and highest bound of the published histograms: 0.12 ms to 16 s."""
OPERATOR_VALUE = {Operator.READY: 0.0, Operator.DRAINING: 1.0, Operator.MAINTENANCE: 2.0}
SERVING_VALUE = {Serving.NONE: 0.0, Serving.REDUCED: 0.5, Serving.FULL: 1.0}

_OK = Result.OK
_KINDS: Mapping[type, str] = {kind: kind.__name__.lower() for kind in get_args(Fact)}

Kind = Literal["counter", "gauge", "histogram", "summary"]
Labels = tuple[tuple[str, str], ...]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A cumulative histogram: `buckets` (upper bound in seconds, values up to it), rising, without the last, endless one."""

    buckets: tuple[tuple[float, int], ...]
    total: float
    count: int


class Sample(NamedTuple):
    """One number with its name. `unit` is "" or the last part of the name (before `_total`): seconds, bytes, ratio."""

    name: str
    kind: Kind
    value: float | Distribution | Quantiles
    labels: Labels
    unit: str
    help: str


class Bundle(NamedTuple):
    """All samples of one thing. `labels`: whose they are.

    `standing`: as long as it is the same, so are all names and labels, and every number of the samples in `standing_samples`. `moving`: the
    numbers of those in `moving_samples`, in their order; a summary's are its quantiles, sum and count.
    """

    labels: Labels
    standing: tuple[object, ...]
    moving: Sequence[float]
    standing_samples: Callable[[], Iterator[Sample]]
    moving_samples: Callable[[], Iterator[Sample]]


@dataclass(frozen=True, slots=True)
class SinkCount:
    """One sink: lines handed to the network, lost, waiting now. `unconfirmed`: of those sent, nobody tells whether they arrived."""

    sent: int
    dropped: int
    waiting: int
    connected: bool
    unconfirmed: int = 0


@dataclass(slots=True)
class Tallies:
    """What is counted since the start. Owner: the loop that absorbs facts; changed by the `count…` methods only.

    `probes`: those without a good answer, by service, address, result and reason; Latencies count the others. `latency`: good answers
    by (service, source). Counters of a thing that is gone stay until MAX_ROWS others have come.
    """

    probes: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    traffic: dict[tuple[str, str], int] = field(default_factory=dict)
    latency: dict[tuple[str, Source], Histogram] = field(default_factory=dict)
    ejections: dict[tuple[str, str, str, bool], int] = field(default_factory=dict)
    returns: dict[tuple[str, str, str, bool], int] = field(default_factory=dict)
    decisions: dict[tuple[str, str], int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    picture_errors: dict[str, int] = field(default_factory=dict)
    changes: dict[tuple[str, str], int] = field(default_factory=dict)
    journal_errors: int = 0
    rows_dropped: int = 0

    def count(self, fact: Fact, world: World) -> None:
        """Count one fact, after `world` has absorbed it: that tells whose the target of a probe is."""
        self.count_kind(type(fact))
        match fact:
            case Probed(outcome):
                target = world.targets.get(outcome.target)
                seconds = outcome.ended - outcome.started
                for instance in target.users if target else ():
                    if outcome.result is _OK:
                        self.count_good(instance.service, index_of(seconds), seconds)
                    else:
                        self.count_poor(instance, outcome)
            case Pictured():
                if fact.error:
                    self._add(self.picture_errors, fact.balancer)
            case Applied():
                self._add(self.changes, (fact.balancer, "error" if fact.error else "applied"), len(fact.changes))
                self._add(self.changes, (fact.balancer, "refused"), len(fact.refused))
            case Journaled():
                self.journal_errors += bool(fact.error)
            case _:
                pass

    def count_kind(self, kind: type[Fact], number: int = 1) -> None:
        """So many facts of this kind were taken in."""
        name = _KINDS[kind]
        self.facts[name] = self.facts.get(name, 0) + number

    def count_good(self, service: str, index: int, seconds: float) -> None:
        """Time one good answer to a probe, of which `index_of` has said the bucket."""
        histogram = self.latency.get((service, "probe"))
        if histogram is None:
            self._time(service, "probe", seconds)
        else:
            histogram.add_known(index, seconds)

    def count_poor(self, instance: Instance, outcome: Outcome) -> None:
        """Count one probe that gave no good answer."""
        reason = outcome.reason.value if outcome.reason else ""
        self._add(self.probes, (instance.service, str(instance.address), outcome.result.value, reason))

    def count_traffic(self, service: str, ok: bool, seconds: float | None) -> None:
        """Count one real request; only good ones are timed."""
        self._add(self.traffic, (service, "ok" if ok else "fail"))
        if ok and seconds is not None and seconds == seconds:
            self._time(service, "traffic", seconds)

    def count_decision(self, decision: Decision) -> None:
        """Count the news of one decision."""
        for event in decision.events:
            self._add(self.decisions, (event.kind, whose(event.by)))
            table = {"ejected": self.ejections, "returned": self.returns}.get(event.kind)
            if table is not None and event.instance is not None:
                self._add(table, (event.service, str(event.instance.address), whose(event.by), event.enforced))

    def _time(self, service: str, source: Source, seconds: float) -> None:
        key = (service, source)
        histogram = self.latency.get(key)
        if histogram is None:
            self._make_room(self.latency)
            histogram = self.latency[key] = Histogram()
        histogram.add(seconds if seconds > 0.0 else 0.0)

    def _add(self, table: dict[K, int], key: K, by: int = 1) -> None:
        if key in table:
            table[key] += by
        elif by:
            self._make_room(table)
            table[key] = by

    def _make_room(self, table: dict[K, V]) -> None:
        if len(table) >= MAX_ROWS:
            del table[next(iter(table))]
            self.rows_dropped += 1


@dataclass(frozen=True, slots=True)
class Own:
    """What the shell knows of ourselves. None = unknown here. `holds`: those in force."""

    tallies: Tallies
    version: str = ""
    uptime_s: float = 0.0
    lag_s: float = 0.0
    rss_bytes: int | None = None
    cpu_s: float | None = None
    holds: tuple[Hold, ...] = ()
    sinks: Mapping[str, SinkCount] = field(default_factory=dict)
    decisions_dropped: int = 0
    recorder_dropped: int = 0
    probe_lag_s: float | None = None


def samples(world: World, policy: Policy, latencies: Latencies, now: float, own: Own) -> list[Sample]:
    """All of them, those of one name beside one another, none of States."""
    return grouped(each_sample(world, policy, latencies, now, own))


def each_sample(world: World, policy: Policy, latencies: Latencies, now: float, own: Own) -> Iterator[Sample]:
    """The same one by one, so that a loop with other duties may turn to them in between; the world may move meanwhile."""
    return spread(condensed(world, policy, latencies, now, own))


def spread(found: Iterable[Sample | Bundle]) -> Iterator[Sample]:
    """Samples alone."""
    for each in found:
        if isinstance(each, Sample):
            yield each
        else:
            yield from each.standing_samples()
            yield from each.moving_samples()


def condensed(world: World, policy: Policy, latencies: Latencies, now: float, own: Own) -> Iterator[Sample | Bundle]:
    """The same with all of an instance in one: who writes them again and again need not write names and labels anew."""
    yield from _ourselves(world, policy, own, now)
    yield from _balancers(world, policy, own.tallies, now)
    for name, service in sorted(world.services.items()):
        service_policy = policy.services.get(name)
        if service_policy is not None and world.services.get(name) is service:
            yield from _service(world, service, service_policy, latencies, now, own)
    yield from _counted(own.tallies)


def grouped(found: Iterable[Sample]) -> list[Sample]:
    """Those of one name beside one another, in the order in which the names first come."""
    kept = list(found)
    order = {name: place for place, name in enumerate(dict.fromkeys(each.name for each in kept))}
    return sorted(kept, key=lambda each: order[each.name])


def serving(world: World, state: InstanceState) -> Serving:
    """What an instance really gets over all its pools, as the balancers show it; where none has, by our and the operator's word."""
    pictures = [seen for server in state.servers if (seen := world.seen(server)) is not None]
    if not pictures:
        pools = world.policy.services[state.instance.service].pools
        shown = any(world.balancers[name].seen_at > float("-inf") for name, _ in pools if name in world.balancers)
        return Serving.NONE if shown or not guard.serves(world, state) else Serving.FULL
    getting = [seen for seen in pictures if guard.is_in_rotation(seen)]
    if not getting or guard.is_out(state):
        return Serving.NONE
    whole = len(getting) == len(pictures) and all(seen.ours.weight_pct == 100 for seen in pictures)
    return Serving.FULL if whole else Serving.REDUCED


def whose(by: str) -> str:
    """`by` without the name of a person or token, which would make a row of each: rule:slow, hold:panic, operator, token, outside."""
    kind, _, _ = by.partition(":")
    return by if kind in ("rule", "hold", "balancer") else kind


def distribution(histogram: Histogram) -> Distribution:
    """The histogram at powers of two: bounds that every native histogram has too, so that they merge without error."""
    by_octave = Counter[int]()
    for index, count in histogram.buckets():
        by_octave[(index >> histogram.scale) - 20 + 1] += count  # of scale 0 bucket i ends at 2 ** (i + 1 - 20)
    below = histogram.zeros + sum(count for exponent, count in by_octave.items() if exponent < LOWEST)
    buckets = []
    for exponent in range(LOWEST, HIGHEST + 1):
        below += by_octave[exponent]
        buckets.append((2.0**exponent, below))
    return Distribution(tuple(buckets), histogram.total, histogram.count)


# ---- ourselves ----


def _ourselves(world: World, policy: Policy, own: Own, now: float) -> Iterator[Sample]:
    yield _gauge("build_info", 1, "Version of lb-sidecar.", version=own.version)
    yield _gauge("config_info", 1, "Hash of the configuration in force.", hash=policy.config_hash)
    yield _gauge("policy_version", policy.version, "Version of the policy's defaults that the configuration opted into.")
    yield _gauge("uptime_seconds", own.uptime_s, "Seconds since start.", "seconds")
    yield _gauge("loop_lag_seconds", own.lag_s, "Worst lateness of our own loop since it was last checked.", "seconds")
    if own.probe_lag_s is not None:
        text = "How late probes started in the last second: 99 of 100 wake-ups were less late with the one that had waited longest."
        yield _gauge("probe_lag_seconds", own.probe_lag_s, text, "seconds")
    if own.rss_bytes is not None:
        yield _gauge("resident_memory_bytes", own.rss_bytes, "Resident memory of the sidecar.", "bytes")
    if own.cpu_s is not None:
        yield _counter("cpu_seconds", own.cpu_s, "Processor time used by the sidecar.", "seconds")
    yield _gauge("blind", now < world.blind_until, "1 = we cannot trust our own measurements now, nothing is ejected.")
    yield _gauge("journal_up", not world.journal_fault, "0 = intents cannot be written, nothing is ejected.")
    yield _counter("journal_errors", own.tallies.journal_errors, "Intents that could not be written.")
    yield _counter("decision_log_dropped", own.decisions_dropped, "Decisions that are in memory, but did not reach the disk.")
    yield _counter("recorder_dropped", own.recorder_dropped, "Facts that the flight recorder did not take.")
    yield _counter("rows_dropped", own.tallies.rows_dropped, "Counted rows let go because there were too many.")
    yield _gauge("frozen", world.freeze_of("", now) is not None, "1 = everything is frozen: no ejection and no return.")
    for name, sink in sorted(own.sinks.items()):
        yield _counter("sink_sent", sink.sent, "Lines handed to the network; over HTTP, acknowledged.", sink=name)
        text = "Of the lines sent, those whose arrival nobody confirms: all over TCP and UDP, none over HTTP."
        yield _counter("sink_unconfirmed", sink.unconfirmed, text, sink=name)
        yield _counter("sink_dropped", sink.dropped, "Lines lost because the receiver was away, slow or broke off.", sink=name)
        yield _gauge("sink_waiting", sink.waiting, "Lines waiting to be sent.", sink=name)
        yield _gauge("sink_up", sink.connected, "1 = connected.", sink=name)


# ---- balancers ----


def _balancers(world: World, policy: Policy, tallies: Tallies, now: float) -> Iterator[Sample]:
    for name, balancer in sorted(world.balancers.items()):
        known = policy.balancers.get(name)
        seen_yet = balancer.seen_at > float("-inf")
        yield _gauge("balancer_up", seen_yet and not balancer.error, "1 = the balancer answers us.", balancer=name)
        yield _gauge("balancer_acting", bool(known and known.mode is Mode.ACT), "0 = observe: nothing is written to it.", balancer=name)
        yield _gauge("balancer_standby", name in world.standby, "1 = another writer holds it, we stand by.", balancer=name)
        if seen_yet:
            age = max(0.0, now - balancer.seen_at)
            yield _gauge("balancer_picture_age_seconds", age, "Age of the balancer's last picture.", "seconds", balancer=name)
        drift = max((now - sent.at for sent in balancer.sent.values() if not sent.confirmed), default=0.0)
        text = "How long the balancer has not shown what we told it; 0 = it shows all of it."
        yield _gauge("balancer_drift_age_seconds", max(0.0, drift), text, "seconds", balancer=name)
        errors = tallies.picture_errors.get(name, 0)
        yield _counter("balancer_errors", errors, "Times the balancer could not be asked.", balancer=name)
        for result in ("applied", "refused", "error"):
            count = tallies.changes.get((name, result), 0)
            yield _counter("changes", count, "Changes sent to the balancer, by what became of them.", balancer=name, result=result)


# ---- services and instances ----


def _service(
    world: World, service: ServiceState, policy: ServicePolicy, latencies: Latencies, now: float, own: Own
) -> Iterator[Sample | Bundle]:
    name = service.name
    whole = guard.groups(world, service)[0]
    yield _gauge("service_acting", policy.mode is Mode.ACT, "0 = observe: decided and told, never written.", service=name)
    yield _gauge("service_instances", len(service.instances), "Instances known.", service=name)
    yield _gauge("service_counted", len(whole.counted), "Instances not in an operator's drain or maintenance.", service=name)
    yield _gauge("service_in_rotation", len(whole.counted - whole.used), "Instances that get traffic.", service=name)
    yield _gauge("service_sound", len(whole.sound), "Instances that get traffic and answer well.", service=name)
    yield _gauge("service_cold", service.cold, "1 = just started, nothing is ejected yet.", service=name)
    yield _gauge("service_failing_open", service.failing_open, "1 = too few are healthy: doubtful ones get traffic.", service=name)
    yield _gauge("service_frozen", world.freeze_of(name, now) is not None, "1 = no ejection and no return.", service=name)
    yield _gauge("service_discovery_faults", len(service.faults), "Discovery sources that cannot be trusted now.", service=name)
    held = Counter(hold.name.value for hold in own.holds if hold.service == name)
    for hold, count in sorted(held.items()):
        yield _gauge("holds", count, "Acts held back now, by the reason's name.", service=name, name=hold)
    for source in SOURCES:
        if (histogram := own.tallies.latency.get((name, source))) is not None:
            labels = (("service", name), ("source", source))
            text = "Response times of good answers since the start."
            yield Sample("lbsidecar_response_seconds", "histogram", distribution(histogram), labels, "seconds", text)
        if (told := latencies.told(name, source, SHOWN_WINDOW, now)) is not None:
            yield _summary("service", told, (("service", name), ("source", source)))
    for state in sorted(service.instances.values(), key=lambda each: str(each.instance)):
        if world.state_of(state.instance) is state:
            yield _instance(world, state, policy, latencies, now)


def _instance(world: World, state: InstanceState, policy: ServicePolicy, latencies: Latencies, now: float) -> Bundle:
    who = (("service", state.instance.service), ("address", str(state.instance.address)))
    shown = [(server, seen) for server in state.servers if (seen := world.seen(server)) is not None]
    servers = tuple([(server, guard.is_in_rotation(seen)) for server, seen in shown])
    busy = [(server, seen.in_flight) for server, seen in shown if seen.in_flight is not None]
    age = probe_age_s(world, state.instance, policy, now)
    summaries = [(s, told) for s in SOURCES if (told := latencies.told(state.instance, s, SHOWN_WINDOW, now)) is not None]
    moving: list[float] = [] if age is None else [age]
    moving += [number for _, number in busy]
    for source, told in summaries:
        moving += [seconds for _, seconds in told.values]
        moving += (told.total, told.count)
        if source == "probe":
            moving.append(told.count)  # the good ones of `probes`
    judged = guard.judge(state, policy), state.operator, serving(world, state), servers
    shape = len(busy), age is None, tuple([(source, len(told.values)) for source, told in summaries])
    return Bundle(who, (judged, shape), moving, partial(_judged, who, *judged), partial(_measured, who, age, busy, summaries))


def _judged(
    who: Labels, judged: Judgement, operator: Operator, serves: Serving, servers: Sequence[tuple[ServerRef, bool]]
) -> Iterator[Sample]:
    for judgement in Judgement:
        text = "1 for the judgement that the instance has now, 0 for the others."
        yield _gauge("instance_judgement", judgement is judged, text, "", (*who, ("judgement", judgement.value)))
    yield _gauge("instance_operator", OPERATOR_VALUE[operator], "The operator's word: 0 ready, 1 draining, 2 maintenance.", "", who)
    text = "What the instance really gets of the traffic: 1 full, 0.5 reduced, 0 none."
    yield _gauge("instance_serving_ratio", SERVING_VALUE[serves], text, "ratio", who)
    for server, is_in in servers:
        yield _gauge("server_in_rotation", is_in, "1 = the balancer sends new requests to this server.", "", _where(server, who))


def _measured(
    who: Labels, age: float | None, busy: Sequence[tuple[ServerRef, int]], summaries: Sequence[tuple[Source, Quantiles]]
) -> Iterator[Sample]:
    if age is not None:
        text = "Time since the last answer to a probe; of several probe specs the oldest."
        yield _gauge("instance_last_probe_age_seconds", age, text, "seconds", who)
    for server, number in busy:
        yield _gauge("server_in_flight", number, "Requests under way at this server.", "", _where(server, who))
    for source, found in summaries:
        yield _summary("instance", found, (*who, ("source", source)))
        if source == "probe":
            yield _counter("probes", found.count, "Probes by their result.", "", (*who, ("result", Result.OK.value), ("reason", "")))


def _where(server: ServerRef, who: Labels) -> Labels:
    return (("balancer", server.balancer), ("pool", server.ref.pool), ("server", server.ref.server), *who)


def probe_age_s(world: World, instance: Instance, policy: ServicePolicy, now: float) -> float | None:
    """Seconds since the last answer to a probe of this instance, of several specs the oldest; None = none has answered yet."""
    ages = []
    for plan in policy.probes:
        address = instance.address if plan.port is None else instance.address._replace(port=plan.port)
        target = world.targets.get(Target(address, plan.key))
        if target is None or target.newest_ended == float("-inf"):
            return None
        ages.append(max(0.0, now - target.newest_ended))
    return max(ages, default=None)


def _summary(of: str, value: Quantiles, labels: Labels) -> Sample:
    """Quantiles over the last minute, without those for which there are too few samples to mean anything."""
    text = f"Response times of the {of}'s good answers: quantiles of the last minute, absent while there are too few; count and sum of all."
    return Sample(f"lbsidecar_{of}_latency_seconds", "summary", value, labels, "seconds", text)


# ---- counted since the start ----


def _counted(tallies: Tallies) -> Iterator[Sample]:
    for (service, address, result, reason), count in list(tallies.probes.items()):
        labels = (("service", service), ("address", address), ("result", result), ("reason", reason))
        yield _counter("probes", count, "Probes by their result.", "", labels)
    for (service, result), count in sorted(tallies.traffic.items()):
        yield _counter("traffic_requests", count, "Real requests as the balancer saw them.", service=service, result=result)
    for name, table, text in (
        ("ejections", tallies.ejections, "Ejections; enforced=false: told in observe mode, not done."),
        ("returns", tallies.returns, "Returns; enforced=false: told in observe mode, not done."),
    ):
        for (service, address, by, enforced), count in sorted(table.items()):
            yield _counter(name, count, text, service=service, address=address, by=by, enforced=str(enforced).lower())
    for (kind, by), count in sorted(tallies.decisions.items()):
        yield _counter("decisions", count, "Entries of the decision log.", kind=kind, by=by)
    for fact, count in sorted(tallies.facts.items()):
        yield _counter("facts", count, "Facts taken in, by their kind.", kind=fact)


def _gauge(name: str, value: float, text: str, unit: str = "", labels: Labels | None = None, /, **more: str) -> Sample:
    return Sample(f"lbsidecar_{name}", "gauge", float(value), labels or tuple(more.items()), unit, text)


def _counter(name: str, value: float, text: str, unit: str = "", labels: Labels | None = None, /, **more: str) -> Sample:
    return Sample(f"lbsidecar_{name}_total", "counter", float(value), labels or tuple(more.items()), unit, text)


__all__ = [
    "Bundle", "Distribution", "Labels", "Own", "Quantiles", "Sample", "SinkCount", "Tallies", "condensed", "distribution", "each_sample",
    "grouped", "probe_age_s", "samples", "serving", "spread", "whose",
]  # fmt: skip
