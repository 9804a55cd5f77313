"""What is done to instances, and when: signals and words, never a restart but after a crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from bench.faultlab.contestants import Balance
from bench.faultlab.instance import Ways
from bench.faultlab.load import ROOT
from sidecar.demo import stage

OBSERVED_S = 12.0
ALL = -1
WELL = Ways()

Deed = Ways | Literal["kill", "stop", "cont"]


@dataclass(frozen=True, slots=True)
class Act:
    """One deed, so many seconds after the onset. `who`: 0 = the first victim, 1 the next …; ALL = everybody."""

    after_s: float
    deed: Deed
    who: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """`blamed`: how many of the first victims may be taken out for it; taking out anybody else is a false ejection."""

    name: str
    words: str
    acts: Sequence[Act]
    blamed: int = 1
    balance: Balance = "roundrobin"
    observed_s: float = OBSERVED_S


def _one(deed: Deed) -> tuple[Act, ...]:
    return (Act(0.0, deed),)


def _flaps(every_s: float, until_s: float) -> tuple[Act, ...]:
    """Down and up in turn, first down."""
    return tuple(Act(i * every_s, Ways(down=i % 2 == 0)) for i in range(int(until_s / every_s)))


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("crash", "kill -9", _one("kill")),
        Fault("hang", "kill -STOP", _one("stop")),
        Fault("slow-20x", "all answers 20 times slower, health too", _one(Ways(slow=20.0))),
        Fault("errors", "30 % of answers are 500, health green", _one(Ways(errors=0.3))),
        Fault("blackhole-503", "503 in 1 ms, health green, least connections", _one(Ways(fast="503")), balance="leastconn"),
        Fault("slow-10x", "all answers 10 times slower", _one(Ways(slow=10.0))),
        Fault("slow-3x", "all answers 3 times slower", _one(Ways(slow=3.0))),
        Fault("blackhole-empty", "an empty 200 in 1 ms, health green, least connections", _one(Ways(fast="empty")), balance="leastconn"),
        Fault("flapping", "refuses and listens in turn, 1.5 s each", _flaps(1.5, OBSERVED_S)),
        Fault("half-open", "open connections are dead silently, new ones work", _one(Ways(half_open=True))),
        Fault("rack", "three die at once", tuple(Act(0.0, "kill", who) for who in range(3)), blamed=3),
        Fault("slow+crash", "one is 20 times slower, another dies 1 s later", (Act(0.0, Ways(slow=20.0)), Act(1.0, "kill", 1)), blamed=2),
        Fault("errors+hang", "one gives 30 % errors, another hangs 1 s later", (Act(0.0, Ways(errors=0.3)), Act(1.0, "stop", 1)), blamed=2),
        Fault("all-slow", "everybody is 5 times slower", (Act(0.0, Ways(slow=5.0), ALL),), blamed=0),
        Fault("all-fail", "everybody answers 500, health too", (Act(0.0, Ways(errors=1.0, ill=True), ALL),), blamed=0),
        Fault("gc", "everybody stands still for up to 200 ms about once a second", (Act(0.0, Ways(pause_s=0.2), ALL),), blamed=0),
        Fault(
            "slow-start",
            "down for 3 s, then 20 times slower at first, as usual after 30 s",
            (Act(0.0, Ways(down=True)), Act(3.0, Ways(warm_s=30.0))),
            observed_s=45.0,
        ),
        Fault("slow-20x-long", "as slow-20x, watched for a minute: attempts to return", _one(Ways(slow=20.0)), observed_s=60.0),
        Fault("none", "nothing", (), blamed=0),
    )
}
MAIN = ("crash", "hang", "slow-20x", "errors", "blackhole-503")
"""What `make bench-faults` plays unless it is told otherwise."""


@dataclass
class Rank:
    """The instances, a process each, alive from run to run. Owns them."""

    ports: Sequence[int]
    service_ms: float = 10.0
    health_ms: float = 0.5
    _processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        for i in range(len(self.ports)):
            self._launch(i)
        for i, port in enumerate(self.ports):
            stage.wait_for(port, f"instance {i + 1}")

    def do(self, deed: Deed, i: int) -> None:
        """At once; it is done when this returns."""
        process = self._processes[i]
        if isinstance(deed, Ways):
            assert process.stdin is not None and process.stdout is not None, "asked for pipes"
            usual = asdict(WELL)
            process.stdin.write(json.dumps({k: v for k, v in asdict(deed).items() if v != usual[k]}).encode() + b"\n")
            process.stdin.flush()
            process.stdout.readline()
        else:
            process.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}[deed])
            if deed == "kill":
                process.wait()

    def heal(self) -> None:
        """Everybody as usual, whatever was done."""
        for i, port in enumerate(self.ports):
            self.do("cont", i)
            if self._has_ended(i):
                self._launch(i)
                stage.wait_for(port, f"instance {i + 1}")
            self.do(WELL, i)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            self._bury(process)
        self._processes.clear()

    def _has_ended(self, i: int) -> bool:
        process = self._processes[i]
        if process.poll() is None:
            return False
        self._bury(process)
        return True

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _launch(self, i: int) -> None:
        argv = [sys.executable, "-m", "bench.faultlab.instance", *map(str, (self.ports[i], i + 1, self.service_ms, self.health_ms))]
        self._processes[i] = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
