"""The whole sidecar, as `run` starts it: percentiles, judgement, journal, flight recorder and API on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.daemon import Daemon, until
from bench.floor import Asked
from bench.peers import How, Job, Prober, Running

IN_A_SERVICE = 20
ANSWERS_WITHIN_S = 60.0


class Sidecar(Running):
    """One that runs. `daemon` can be asked like any other, about these `services`."""

    def __init__(self, job: Job, how: How) -> None:
        self.services = [f"s{first // IN_A_SERVICE:03}" for first in range(0, len(job.asked), IN_A_SERVICE)]
        self.daemon = _Daemon(job.folder, "\n".join(_config(self.services, job.asked, job.interval_s, how)))
        self.daemon.start()
        until(lambda: self.daemon.ask("/livez")[0], lambda: f"the sidecar answers\n{self.daemon.log_text()[-2000:]}", ANSWERS_WITHIN_S)

    @property
    def pid(self) -> int:
        return self.daemon.pid

    @property
    def is_alive(self) -> bool:
        return self.daemon.is_running

    def stop(self) -> None:
        self.daemon.end()

    @property
    def recorder(self) -> Path:
        """The flight recorder's folder."""
        return self.daemon.state / "recorder"


class _Daemon(Daemon):
    @property
    def pid(self) -> int:
        assert self._process is not None, "started before"
        return self._process.pid


def sidecar(how: How) -> Prober:
    return Prober(f"lb-sidecar ({how})", how, lambda job: Sidecar(job, how))


def _config(services: Sequence[str], asked: Sequence[Asked], interval_s: float, how: How) -> Iterator[str]:
    """Twenty instances a service; timeout as for the peers, everything else by default."""
    yield "balancers: {lab: {plugin: memory}}"
    yield "log: {level: warning}"
    yield "services:"
    fresh = ", fresh: true" if how == "fresh" else ""
    probe = f"{{http: {asked[0].path}, interval: {round(interval_s * 1000)}ms, timeout: 1s{fresh}}}"
    for i, name in enumerate(services):
        instances = ", ".join(f"'{each}'" for each in asked[i * IN_A_SERVICE : (i + 1) * IN_A_SERVICE])
        yield f"  {name}: {{balancer: lab, instances: [{instances}], probe: {probe}}}"
