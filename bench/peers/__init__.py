"""Who else asks instances how they are: each peer's own health checks, configured to ask the same, and started alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.floor import Asked, start_prober

How = Literal["kept", "fresh"]
END_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be asked, how often and how. `folder`: for the prober alone; `built`: the C programs."""

    asked: Sequence[Asked]
    interval_s: float
    folder: Path
    built: Path


class Running:
    """A prober under way. What `pid` and its children use is measured; what runs `beside` it, to drive it, is not."""

    def __init__(self, measured: subprocess.Popen[bytes], beside: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self._processes = [*beside, measured]
        self._measured = measured

    @property
    def pid(self) -> int:
        return self._measured.pid

    @property
    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        """End all of it. Safe twice."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


@dataclass(frozen=True, slots=True)
class Prober:
    """One contender. `how`: whether it keeps its connections, which the responder's counts prove; `most`: probes a second asked of it."""

    name: str
    how: How
    start: Callable[[Job], Running]
    most: float = float("inf")


def launch(job: Job, argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """With its output in `log` of the job's folder, and no environment but this."""
    clean = {"PATH": os.environ.get("PATH", ""), "HOME": str(job.folder), **(env or {})}
    with (job.folder / "log").open("ab") as log:
        return subprocess.Popen(argv, cwd=job.folder, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def floor(how: How) -> Prober:
    """Our C program: what the same system calls cost without anything else."""
    return Prober(f"C floor ({how})", how, lambda job: Running(start_prober(job.built, job.asked, how, job.interval_s)))


def found(*names: str) -> str | None:
    """The first of these that is an executable; a bare name is looked for on the PATH."""
    return next((path for name in names if (path := shutil.which(name))), None)
