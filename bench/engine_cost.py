"""What a process costs, by the kernel's own accounting: CPU and resident memory of it and its children."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Cost:
    """Since their starts. `cpu_s`: utime + stime; `exact_s`: each living thread's time on a processor, to the nanosecond, by its id."""

    cpu_s: float
    exact_s: dict[int, float]
    resident_bytes: int

    def since(self, before: Cost) -> float:
        """CPU seconds used between the two. In steps of 10 ms only if a thread has ended meanwhile, whose exact time is gone."""
        if before.exact_s.keys() - self.exact_s.keys():
            return self.cpu_s - before.cpu_s
        return sum(self.exact_s.values()) - sum(before.exact_s.values())


def cost(pid: int) -> Cost:
    """Of this process and everything under it; ProcessLookupError when it has ended."""
    cpu_s, pages = 0.0, 0
    exact: dict[int, float] = {}
    for each in tree(pid):
        folder = Path(f"/proc/{each}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            pages += int((folder / "statm").read_text().split()[1])
        except FileNotFoundError:
            if each == pid:
                raise ProcessLookupError(pid) from None
            continue
        # utime and stime of its own, and of children it has waited for
        cpu_s += sum(int(field) for field in fields[11:15]) * TICK_S
        exact |= _threads(folder)
    return Cost(cpu_s, exact, pages * PAGE)


def _threads(folder: Path) -> dict[int, float]:
    found = {}
    for thread in (folder / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found[int(thread.name)] = int((thread / "schedstat").read_text().split()[0]) / 1e9
    return found


def tree(pid: int) -> list[int]:
    """It and its descendants."""
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def busy_s() -> float:
    """Seconds that all processors of this machine have spent working, since its start."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) * TICK_S


def pin(pid: int, processor: int) -> None:
    """Keep it and its children on one processor, their threads too."""
    for each in tree(pid):
        for thread in Path(f"/proc/{each}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {processor})
