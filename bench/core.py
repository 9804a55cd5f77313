"""What the way from outcome to decision costs, and how long it takes. `python -m bench.core`.

10,000 instances in 500 services, each asked once a second, so 10,000 facts a second in real time; a batch each few milliseconds.

Cost: CPU of the thread that takes facts in, part by part, and of the recorder's own thread; per fact. `rest`: pictures and self-checks,
which come as in a sidecar. Tipping: the loop, the intents on disk, the drivers and a real HAProxy behind a tap; from the batch that holds
the last fact an ejection needs until its command passes the tap.
"""

from __future__ import annotations

import argparse
import heapq
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.core_tipping import tipping
from bench.floor import addresses
from lbplugins.memory import Memory
from lbplugins.values import Address, Ref, Seen
from sidecar.core.measure import measure
from sidecar.core.model import Ask, Configured, Discovered, Fact, Instance, Outcome, Phases, Pictured, Probed, Result, SelfChecked, Target
from sidecar.core.policy import BalancerPolicy, Policy, ProbePlan, ServicePolicy
from sidecar.core.samples import Tallies
from sidecar.core.turn import turn
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.journal.codec import encode
from sidecar.journal.recorder import Recorder

SERVICES, INSTANCES = 500, 20
TOOK_S = 0.0004
PLAN = ProbePlan("http:/health", 1.0, 1.0)
WARM_S = 15.0
"""In the world's own time: everybody known, and spread by the jitter."""
PARTS = ("absorb + decide", "journal", "journal's thread", "percentiles and tallies", "rest")
JUDGED = PARTS[:3]
MUST_US, GOAL_US = 8.0, 4.0
TIP_MUST_MS, TIP_GOAL_MS = 50.0, 10.0


@dataclass
class Crowd:
    """The world and its instances, all well, in a time of their own; gives what is due and takes what is asked."""

    services: int = SERVICES
    now: float = 1000.0
    world: World = field(default_factory=World)
    _due: list[tuple[float, Target]] = field(default_factory=list)
    _quarter: int = 0

    def begin(self) -> list[Fact]:
        """The facts of a start."""
        hosts = iter(addresses(self.services * INSTANCES))
        names = {f"s{i:03}": [Instance(f"s{i:03}", Address(next(hosts), 8080)) for _ in range(INSTANCES)] for i in range(self.services)}
        self.servers = {Ref(name, str(i.address)): Seen(address=i.address, serving=True) for name, them in names.items() for i in them}
        policies = {name: ServicePolicy(name, probes=(PLAN,), pools=(("lab", name),), from_balancer=False) for name in names}
        traits = Memory.traits
        policy = Policy(policies, {"lab": BalancerPolicy("lab", drain=traits.drain, kill=traits.kill, costly=traits.costly)})
        found = [Discovered(name, "static", self.now, tuple(them)) for name, them in names.items()]
        return [Configured(policy, self.now), *found, self.picture()]

    def beside(self) -> list[Fact]:
        """What else a sidecar's core hears: a picture each second, a self-check four times."""
        quarter = int(self.now * 4)
        if quarter == self._quarter:
            return []
        self._quarter = quarter
        return [SelfChecked(self.now), *([self.picture()] if quarter % 4 == 0 else [])]

    def picture(self) -> Pictured:
        return Pictured("lab", self.now, dict(self.servers), frozenset(ref.pool for ref in self.servers))

    def take(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            heapq.heappush(self._due, (max(ask.at, self.now), ask.target))

    def due(self) -> list[Fact]:
        """Good answers of all that should have been asked by now."""
        facts: list[Fact] = []
        while self._due and self._due[0][0] <= self.now:
            at, target = heapq.heappop(self._due)
            facts.append(Probed(Outcome(target, Result.OK, at, over := at + TOOK_S, phases=Phases(first_byte=over - at), fresh=False)))
        return facts


class Meter:
    """CPU seconds of this thread, by part."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys(PARTS, 0.0)

    def run(self, part: str, call: Callable[[], object]) -> None:
        before = time.thread_time()
        call()
        self.parts[part] += time.thread_time() - before


class Loop:
    """What the reconciler does each turn, taken apart to be measured."""

    def __init__(self, crowd: Crowd, recorder: Recorder) -> None:
        self.crowd, self.recorder = crowd, recorder
        self.latencies, self.tallies = Latencies(), Tallies()

    def step(self, facts: Sequence[Fact], meter: Meter | None = None, part: str = PARTS[0]) -> None:
        """One turn, into the meter; without one, nothing is recorded either."""
        crowd, now = self.crowd, self.crowd.now
        if meter is None:
            crowd.take(turn(crowd.world, facts, now)[1])
            measure(self.latencies, crowd.world, facts, now)
            return
        before = time.thread_time()
        decision, asks = turn(crowd.world, facts, now)
        meter.parts[part] += time.thread_time() - before
        meter.run(PARTS[1], lambda: self.recorder.batch(now, facts, decision))
        meter.run(PARTS[3], lambda: measure(self.latencies, crowd.world, facts, now, self.tallies))
        crowd.take(asks)


def costs(seconds: float, batch_s: float, folder: Path, services: int = SERVICES) -> dict[str, float]:
    """CPU us a fact, by part, over so many seconds in real time."""
    crowd, recorder = Crowd(services), Recorder(folder, 256 << 20)
    loop = Loop(crowd, recorder)
    loop.step(crowd.begin())
    end = crowd.now + WARM_S
    while crowd.now < end:
        crowd.now += 0.01
        loop.step([*crowd.due(), *crowd.beside()])
    recorder.begin(encode(crowd.world, World), crowd.world.policy, crowd.now, time.time())
    loop.step([crowd.picture()], Meter())  # a segment of ten minutes begins with one that is written whole
    recorder.flush(30.0)
    meter, facts = Meter(), 0
    elsewhere = time.process_time() - time.thread_time()
    start, began = time.monotonic(), crowd.now
    while crowd.now < began + seconds:
        crowd.now += batch_s
        batch = crowd.due()
        facts += len(batch)
        if batch:
            loop.step(batch, meter)
        if beside := crowd.beside():
            loop.step(beside, meter, PARTS[4])
        # never ahead of real time; behind it on a machine that is not ours, with the same facts in the same batches
        time.sleep(max(0.0, start + crowd.now - began - time.monotonic()))
    took = time.monotonic() - start
    recorder.flush(30.0)
    meter.parts[PARTS[2]] = time.process_time() - time.thread_time() - elsewhere
    recorder.close()
    found = {part: spent / facts * 1e6 for part, spent in meter.parts.items()}
    return found | {"facts/s": facts / took, "dropped": recorder.dropped}


def _verdict(found: float, must: float, goal: float) -> str:
    return f"{'goal' if found <= goal else 'must' if found <= must else 'MISSED'} (must <= {must:g}, goal {goal:g})"


def tell_costs(runs: Sequence[dict[str, float]]) -> None:
    print("| CPU us a fact | median | least-most |\n|---|---|---|")
    for name in (*PARTS, "facts/s", "dropped"):
        values = [run[name] for run in runs]
        print(f"| {name} | {statistics.median(values):,.2f} | {min(values):,.2f}-{max(values):,.2f} |")
    whole = statistics.median(sum(run[part] for part in JUDGED) for run in runs)
    print(f"\n- absorb + decide + journal, us a fact: **{whole:.2f}**: {_verdict(whole, MUST_US, GOAL_US)}\n", flush=True)


def tell_tipping(seconds: Sequence[float], missing: int) -> None:
    if not seconds:
        print(f"- tipping fact to command: none of {missing} was seen")
        return
    ordered = sorted(seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 for share in (0.5, 0.99))
    print(
        f"- from the tipping fact to the command on HAProxy's socket, ms, {len(ordered)} ejections: p50 {p50:.1f}, p99 **{p99:.1f}**, "
        f"most {ordered[-1] * 1000:.1f}: {_verdict(p99, TIP_MUST_MS, TIP_GOAL_MS)}"
        + (f"; {missing} more were not ejected in time" if missing else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the cost (5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured in each (5)")
    parser.add_argument("--batch", type=float, default=2.0, metavar="MS", help="between two batches of facts (2)")
    parser.add_argument("--only", choices=("cost", "tipping"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    print(f"core: load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="lbs-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if asked.only != "tipping":
            tell_costs([costs(asked.seconds, asked.batch / 1000, folder / str(i)) for i in range(asked.rounds)])
        if asked.only != "cost":
            tell_tipping(*tipping(folder, asked.batch / 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
