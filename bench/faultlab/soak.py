"""Nothing is wrong but the sidecar's own machine: `python -m bench.faultlab.soak`. Whatever is ejected is ejected falsely.

Healthy instances under load behind HAProxy, the sidecar with its defaults; beside it as many busy loops as processors, twice, in its own
scheduling group; and about every twenty seconds it is stopped for up to two. Exit 1 when anything was ejected.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.daemon import Daemon
from bench.faultlab.contestants import Job, contestants
from bench.faultlab.faults import Rank
from bench.faultlab.lane import SPARE, Ports, Shape, told_of
from bench.faultlab.load import Load, lateness
from bench.faultlab.score import Told, is_bad

LOOK_S = 10.0
STOP_EVERY_S, STOPPED_S = 20.0, 2.0


@dataclass(frozen=True, slots=True)
class Soak:
    """What came of it. `kinds`: how many events of each kind the sidecar told; `ejections`: those that must not be."""

    minutes: float
    requests: int
    bad: int
    late_p99_ms: float
    stops: int
    kinds: dict[str, int]
    ejections: tuple[Told, ...]


def soak(minutes: float, hogs: int, shape: Shape, chance: random.Random, name: str = "haproxy+us") -> Soak:
    """NeverHappenedError when the sidecar does not come up."""
    contestant = next(c for c in contestants() if c.name == name)
    ports = Ports()
    with ExitStack() as made:
        folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="lbs-")))
        folder.chmod(0o755)
        rank = Rank(ports.take(shape.n), shape.service_ms, shape.health_ms)
        made.callback(rank.stop)
        rank.start()
        listen, *spare = ports.take(1 + SPARE)
        running = contestant.start(Job(folder, listen, rank.ports, spare))
        made.callback(running.stop)
        assert running.daemon is not None, "one of ours"
        load = Load(listen, shape.rate, 60 * minutes, folder / "requests")
        made.callback(load.stop)
        made.enter_context(_hogs(hogs))
        begin = time.monotonic() + 0.2
        load.begin(begin)
        stops = _watch(running.daemon, begin + 60 * minutes, chance)
        requests = load.requests()
        told = told_of(running.events(), rank.ports, begin + time.time() - time.monotonic())
    kinds = dict(Counter(each.kind for each in told))
    bad, late = sum(is_bad(r) for r in requests), 1000 * lateness(requests)[0]
    return Soak(minutes, len(requests), bad, late, stops, kinds, tuple(each for each in told if each.kind == "ejected"))


def _watch(daemon: Daemon, until: float, chance: random.Random) -> int:
    """Stops the sidecar now and then, says what it says; how often it was stopped."""
    stops, look = 0, time.monotonic()
    while time.monotonic() < until:
        time.sleep(min(STOP_EVERY_S * (0.5 + chance.random()), max(0.0, until - time.monotonic())))
        daemon.signal(signal.SIGSTOP)
        try:
            time.sleep(STOPPED_S * chance.random())
        finally:
            daemon.signal(signal.SIGCONT)
        stops += 1
        if time.monotonic() >= look + LOOK_S:
            look = time.monotonic()
            kinds = Counter(event["kind"] for event in daemon.events())
            print(f"  {max(0.0, until - look):5.0f} s to go: {dict(kinds)}", flush=True)
    return stops


@contextmanager
def _hogs(n: int) -> Iterator[None]:
    """Busy loops in our own session, where the sidecar is too, and nobody else of the lab."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faultlab.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--hogs", type=int, default=2 * (os.cpu_count() or 1), help="busy loops (two a processor)")
    parser.add_argument("--rate", type=float, default=Shape().rate, help="requests a second")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    print(f"{asked.minutes:g} minutes, {asked.hogs} busy loops, {asked.rate:g} requests/s, seed {asked.seed}", flush=True)
    found = soak(asked.minutes, asked.hogs, Shape(rate=asked.rate), random.Random(asked.seed))
    if asked.json:
        asked.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    for each in found.ejections:
        print(f"  EJECTED at {each.at_s:.1f} s: {each.sentence}")
    print(
        f"{len(found.ejections)} ejections in {found.minutes:g} minutes (must be 0); {found.requests} requests, {found.bad} bad; stopped "
        f"{found.stops} times; the generator's lateness p99 {found.late_p99_ms:.1f} ms; events: {found.kinds}"
    )
    return 1 if found.ejections else 0


if __name__ == "__main__":
    sys.exit(main())
