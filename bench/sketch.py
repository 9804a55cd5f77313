"""What the percentiles cost: adding, merging, asking, bytes; and how far off they are. `python -m bench.sketch`.

CPU time of this process, medians of the rounds, least to most; a figure includes the loop that calls it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import psutil

from lbplugins.values import Address
from sidecar.core.histogram import SCALE, Histogram, merged
from sidecar.core.model import Instance
from sidecar.core.window import WINDOWS, Latencies

SEED = 5
VALUES = 50_000
INSTANCES = 100
BOUND = 2 ** (1 / 2 ** (SCALE + 1)) - 1
SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)
HOUR_S = 3600
HOUR_INSTANCES = 100


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `must`, `goal`: at most; None = told only."""

    what: str
    unit: str
    values: Sequence[float]
    must: float | None = None
    goal: float | None = None

    def line(self) -> str:
        middle = statistics.median(self.values)
        verdict = ""
        if self.must is not None and self.goal is not None:
            word = "goal" if middle <= self.goal else "must" if middle <= self.must else "MISSED"
            verdict = f"{word} (must <= {self.must:g}, goal {self.goal:g})"
        return f"| {self.what} | {middle:,.4g} {self.unit} | {min(self.values):,.4g}-{max(self.values):,.4g} | {verdict} |"


def streams(n: int = VALUES) -> Mapping[str, list[float]]:
    """Seconds: kinds of latency that are hard in different ways."""
    chance = random.Random(SEED)
    return {
        "lognormal": [chance.lognormvariate(math.log(0.004), 0.8) for _ in range(n)],
        "bimodal": [
            0.5 * chance.lognormvariate(0, 0.05) if chance.random() < 0.02 else 0.002 * chance.lognormvariate(0, 0.1) for _ in range(n)
        ],
        "heavy-tailed": [min(0.001 * chance.paretovariate(1.1), 1000.0) for _ in range(n)],
        "constant": [0.0002] * n,
    }


def error(values: Sequence[float]) -> float:
    """The worst relative error over all quantiles that are shown."""
    histogram = filled(values)
    ordered = sorted(values)
    exact = [ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1] for share in SHARES]
    return max(abs(found - true) / true for found, true in zip(histogram.quantiles(SHARES), exact, strict=True))


def filled(values: Sequence[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def merges_exactly(values: Sequence[float]) -> bool:
    """Parts merged in any order and grouping are what one histogram of everything is."""
    parts = [filled(values[i::4]) for i in range(4)]
    whole = filled(values)
    in_order = all(merged(order) == whole for order in itertools.permutations(parts))
    return in_order and merged([merged(parts[:2]), merged(parts[2:])]) == whole


def each_us(call: Callable[[], object], times: int, rounds: int, per_call: int = 1) -> list[float]:
    """CPU us of one of the `per_call` things that a call does, by rounds."""
    found = []
    for _ in range(rounds):
        gc.collect()
        before = time.process_time()
        for _ in range(times):
            call()
        found.append((time.process_time() - before) / times / per_call * 1e6)
    return found


def figures(rounds: int) -> Iterator[Figure]:
    """Every row."""
    values = streams()["lognormal"]
    yield Figure("add to one histogram", "us", each_us(lambda: filled(values), 1, rounds, len(values)))
    latencies, instances, now = service(values)
    yield Figure("add: instance, service, windows", "us", _adding(latencies, instances, values, now, rounds), 0.6, 0.2)
    one, other = filled(values), filled(values[::2])
    yield Figure("merge", "us", each_us(lambda: one.merge(other), 1000, rounds), 20, 2)
    yield Figure(f"quantiles of a service of {INSTANCES} instances, {len(WINDOWS)} windows", "ms", _asking(latencies, now, rounds), 1, 0.2)
    yield Figure(f"the same from its {INSTANCES} instances, merged", "ms", _asking_merged(latencies, instances, now, rounds))
    for name, stream in streams().items():
        yield Figure(f"worst error of a quantile, {name}", "%", [error(stream) * 100], BOUND * 100, BOUND * 100)
        yield Figure(f"one histogram of {VALUES:,} values, {name}", "bytes", [filled(stream).size_bytes])
    yield Figure("error guaranteed at every quantile", "%", [BOUND * 100], 1, 0.55)
    for rate in (1.0, 10.0):
        yield Figure(f"an hour at {rate:g} a second: memory an instance", "KiB", [hour_bytes(rate) / 1024])


def service(values: Sequence[float]) -> tuple[Latencies, list[Instance], float]:
    """A service that has been measured for ten minutes, ten times a second each; its instances, and now."""
    latencies = Latencies()
    instances = [Instance("shop", Address(f"10.0.{i // 250}.{i % 250 + 1}", 80)) for i in range(INSTANCES)]
    endless = itertools.cycle(values)
    seconds = 600
    for second, instance, _ in itertools.product(range(seconds), instances, range(10)):
        latencies.add(instance, "probe", next(endless), 1000.0 + second)
    return latencies, instances, 1000.0 + seconds - 1


def _adding(latencies: Latencies, instances: Sequence[Instance], values: Sequence[float], now: float, rounds: int) -> list[float]:
    def add() -> None:
        for value, instance in zip(values, itertools.cycle(instances)):  # the instances go round
            latencies.add(instance, "probe", value, now)

    return each_us(add, 1, rounds, len(values))


def _asking(latencies: Latencies, now: float, rounds: int) -> list[float]:
    def ask() -> None:
        for window in WINDOWS:
            latencies.service("shop", "probe", window, now).quantiles()

    return [us / 1000 for us in each_us(ask, 50, rounds)]


def _asking_merged(latencies: Latencies, instances: Sequence[Instance], now: float, rounds: int) -> list[float]:
    def ask() -> None:
        for window in WINDOWS:
            merged(latencies.instance(instance, "probe", window, now).histogram for instance in instances).quantiles(SHARES)

    return [us / 1000 for us in each_us(ask, 2, rounds)]


@cache
def hour_bytes(rate: float) -> float:
    """What one instance's percentiles hold after an hour, by the resident memory of a process that has done nothing else."""
    done = subprocess.run([sys.executable, "-m", "bench.sketch", "--hour", str(rate)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def fill_hour(rate: float) -> float:
    """Bytes an instance, in this process: one service, answers that spread as in life."""
    chance = random.Random(SEED)
    values = itertools.cycle([chance.lognormvariate(math.log(0.0005), 0.4) for _ in range(9973)])
    latencies = Latencies()
    instances = [Instance("shop", Address(f"10.0.{i // 250}.{i % 250 + 1}", 80)) for i in range(HOUR_INSTANCES)]
    process = psutil.Process()
    before = process.memory_info().rss
    for turn in range(int(HOUR_S * rate)):
        for instance in instances:
            latencies.add(instance, "probe", next(values), turn / rate)
    return (process.memory_info().rss - before) / HOUR_INSTANCES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sketch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hour", type=float, metavar="RATE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.hour is not None:
        print(fill_hour(asked.hour))
        return 0
    print(f"percentiles: {asked.rounds} rounds, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    print("| what | median | least-most | verdict |\n|---|---|---|---|")
    for figure in figures(asked.rounds):
        print(figure.line(), flush=True)
    exact = {name: merges_exactly(stream[:5000]) for name, stream in streams().items()}
    print(f"\nmerged in every order and grouping, the same: {'yes' if all(exact.values()) else f'NO: {exact}'}")
    return 0 if all(exact.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
