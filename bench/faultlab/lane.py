"""One run after another on one set of instances: a fresh contestant, load, the fault, what became of the requests."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.faultlab.contestants import Contestant, Job, Running
from bench.faultlab.faults import ALL, Act, Fault, Rank
from bench.faultlab.load import Load
from bench.faultlab.score import Score, Setup, Told, score
from sidecar.demo import stage

SOON_S = 0.2
SPARE = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Instances, requests a second, the instances' usual times, and how long there is load before the fault, not counting its phase."""

    n: int = 8
    rate: float = 500.0
    service_ms: float = 10.0
    health_ms: float = 0.5
    healthy_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Play:
    """One run that is due. `phase` 0..1 s: how much later than usual the fault comes; `first`: the first victim, from 0."""

    contestant: Contestant
    fault: Fault
    round: int
    phase: float
    first: int
    attempt: int = 0


class Ports:
    """Free ports, each given once in a round, for lanes that run side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = stage.free_ports(1)[0]

    def take(self, n: int) -> list[int]:
        with self._lock:
            found: list[int] = []
            while len(found) < n:
                self._next = self._next + 1 if self._next < stage.LAST_PORT else stage.FIRST_PORT
                if _is_free(self._next):
                    found.append(self._next)
            return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as tcp, closing(socket.socket(type=socket.SOCK_DGRAM)) as udp:
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Lane:
    """Owns its instances; one run at a time."""

    def __init__(self, shape: Shape, ports: Ports) -> None:
        self.shape, self._ports = shape, ports
        self._rank = Rank(ports.take(shape.n), shape.service_ms, shape.health_ms)

    def __enter__(self) -> Lane:
        self._rank.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rank.stop()

    def play(self, play: Play) -> Score:
        """One run, from all well. Raises what the contestant raises when it does not come up."""
        self._rank.heal()
        with ExitStack() as made:
            folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="lbs-")))
            folder.chmod(0o755)
            listen, *spare = self._ports.take(1 + SPARE)
            job = Job(folder, listen, self._rank.ports, spare, play.fault.balance)
            running = play.contestant.start(job)
            made.callback(running.stop)
            made.callback(self._rank.heal)
            return self._strike(play, running, job)

    def _strike(self, play: Play, running: Running, job: Job) -> Score:
        shape, fault = self.shape, play.fault
        load = Load(job.listen, shape.rate, shape.healthy_s + play.phase + fault.observed_s, job.folder / "requests")
        try:
            start = time.monotonic() + SOON_S
            load.begin(start)
            onset = start + shape.healthy_s + play.phase
            victims = _victims(fault, play.first, shape.n)
            self._act(fault.acts, victims, onset)
            requests = load.requests()
        finally:
            load.stop()
        setup = Setup(
            contestant=play.contestant.name,
            fault=fault.name,
            round=play.round,
            n=shape.n,
            rate=shape.rate,
            victims=tuple(i + 1 for i in victims),
            blamed=tuple(i + 1 for i in victims[: fault.blamed]),
            onset=onset,
            observed_s=fault.observed_s,
            service_ms=shape.service_ms,
        )
        told = told_of(running.events(), self._rank.ports, onset + time.time() - time.monotonic()) if play.contestant.is_ours else None
        return score(setup, requests, told)

    def _act(self, acts: Sequence[Act], victims: Sequence[int], onset: float) -> None:
        time.sleep(max(0.0, onset - time.monotonic()))
        for act in sorted(acts, key=lambda act: act.after_s):
            time.sleep(max(0.0, onset + act.after_s - time.monotonic()))
            for i in victims if act.who == ALL else (victims[act.who],):
                self._rank.do(act.deed, i)


def _victims(fault: Fault, first: int, n: int) -> list[int]:
    """Everybody for whom the fault has a deed, the first one first."""
    if any(act.who == ALL for act in fault.acts):
        return [(first + i) % n for i in range(n)]
    most = max((act.who for act in fault.acts), default=-1)
    return [(first + i) % n for i in range(most + 1)]


def told_of(events: Sequence[dict[str, Any]], ports: Sequence[int], onset_wall: float) -> list[Told]:
    """The decision log, seen from the onset. Instances by their place among the ports."""
    numbers = {str(port): i for i, port in enumerate(ports, 1)}
    told = []
    for event in events:
        at = datetime.fromisoformat(event["when"]).timestamp() - onset_wall
        instance = numbers.get(event["instance"].rpartition(":")[2], 0)
        told.append(Told(round(at, 3), event["kind"], instance, event["by"], event["sentence"]))
    return told
