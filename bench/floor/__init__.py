"""Two small C programs, compiled on the spot: what answers every probe and counts it, and the least that probing can cost."""

from __future__ import annotations

import math
import mmap
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from bench.daemon import NeverHappenedError, until
from sidecar.demo import stage

HERE = Path(__file__).parent
_COUNTERS = struct.Struct("=QQQ")


class FloorError(Exception):
    """A part could not be built or started; the message says which and what to do."""


class Counts(NamedTuple):
    """Since the responder's start: requests answered, connections taken, answers that were no 200."""

    requests: int
    accepted: int
    failed: int

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing to ask: an address of the loopback network, and a path there."""

    address: str
    port: int
    path: str = "/health"

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def compile_all(folder: Path) -> None:
    """`responder` and `prober` into the folder; FloorError where there is no compiler, or it refuses."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise FloorError("no C compiler: install one, on Debian with apt-get install gcc libc6-dev")
    for name in ("responder", "prober"):
        argv = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(folder / name), str(HERE / f"{name}.c")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FloorError(f"{name}.c does not compile: {done.stderr.strip()}")


def addresses(n: int) -> list[str]:
    """n different addresses of 127.0.0.0/8, 127.0.0.1 not among them; at most 62,500 x 250."""
    return [f"127.{1 + i // 62500}.{i // 250 % 250}.{i % 250 + 1}" for i in range(n)]


class Responder:
    """Answers on all loopback addresses at `port` until `stop`. Start by constructing."""

    def __init__(self, built: Path, folder: Path, *, delay_us: int = 0, fail_from: int = 256) -> None:
        """`built`: where `compile_all` put it; `delay_us`: from each request to its answer; `fail_from`: last bytes of who always fails."""
        [self.port] = stage.free_ports(1)
        path = folder / f"counters-{self.port}"
        path.write_bytes(bytes(_COUNTERS.size))
        with path.open("r+b") as file:
            self._counters = mmap.mmap(file.fileno(), _COUNTERS.size)
        self._process = subprocess.Popen([str(built / "responder"), str(self.port), str(path), str(delay_us), str(fail_from)])
        try:
            stage.wait_for(self.port, "the responder")
            until(lambda: self.counts().accepted, "the responder counts our first call, which is nobody's", poll_s=0.001)
        except (stage.StageError, NeverHappenedError):
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def counts(self) -> Counts:
        return Counts(*_COUNTERS.unpack_from(self._counters))

    def asked(self, n: int, path: str = "/health") -> list[Asked]:
        return [Asked(address, self.port, path) for address in addresses(n)]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def start_prober(
    built: Path, asked: Sequence[Asked], how: Literal["kept", "fresh"], interval_s: float, tick_s: float = 0.01
) -> subprocess.Popen[bytes]:
    """The floor, asking until killed. The longer its tick the cheaper it is: 10 ms is hard to beat, and not how one should measure."""
    tick_s = interval_s / math.ceil(interval_s / tick_s - 1e-9)  # a wheel has whole ticks: a shorter interval would ask more often
    process = subprocess.Popen(
        [str(built / "prober"), how, str(round(interval_s * 1e6)), str(round(tick_s * 1e6))], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None, "asked for a pipe"
    with process.stdin as pipe:
        pipe.write(_lines(asked))
    return process


def ask_once(built: Path, asked: Sequence[Asked], count: int, gap_s: float = 0.001) -> list[float]:
    """Seconds that each of `count` answers took when nothing else was under way; FloorError when one did not come."""
    argv = [str(built / "prober"), "once", str(count), str(round(gap_s * 1e6))]
    done = subprocess.run(argv, input=_lines(asked), capture_output=True, check=False, timeout=30 + 10 * count * gap_s)
    if done.returncode:
        raise FloorError(f"one at a time: {done.stderr.decode(errors='replace').strip()}")
    return [int(line) / 1e9 for line in done.stdout.split()]


def _lines(asked: Sequence[Asked]) -> bytes:
    return "".join(f"{each.address} {each.port} {each.path}\n" for each in asked).encode()


def raise_file_limit(needed: int) -> None:
    """So many open files for us and whoever we start; FloorError where the machine forbids it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise FloorError(f"{needed} open files are needed, {hard} are allowed: raise the limit (ulimit -Hn), or measure fewer targets")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else needed, hard))


__all__ = ["Asked", "Counts", "FloorError", "Responder", "addresses", "ask_once", "compile_all", "raise_file_limit", "start_prober"]
