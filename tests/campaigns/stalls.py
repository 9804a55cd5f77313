"""The sidecar itself is stalled, starved, out of descriptors, disk or right time: `python -m tests.campaigns.stalls`.

Each scene is one daemon on a real balancer with four instances. From beginning to end nobody who is well may leave the rotation; then,
still under the fault (or once it is over, where the design says that nothing is ejected meanwhile), one is killed, and must be out within
twice the bound. Watched from outside, over the balancer's own socket.

The wall clock is moved for the daemon alone, by a library that is compiled here and put before the C library's `clock_gettime`: setting the
machine's own clock would move it for everybody. The monotonic clocks are moved by a time namespace, which is the kernel's own way.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemon import Daemon, NeverHappenedError, until
from bench.removal import LIMITS
from tests.campaigns.kills import pid_of
from tests.system.lab import SERVICE, Lab, lab
from tests.system.test_hostile_surroundings import exhaust, fill, small_disk

TWICE_THE_BOUND_S = 2 * LIMITS["kill"][1]
YEAR_S = 365 * 86400
LOOK_S = 0.02
VICTIM = 3

STALLER = '''
"""Holds the interpreter's lock for 1.5 s at every look, so that nothing else of the process runs, and uses no processor meanwhile."""
import ctypes, time
from lbplugins.api import Balancer
from lbplugins.values import Traits

class Staller(Balancer):
    traits = Traits(observe_every_s=3.0)
    async def observe(self, pools, notes):
        ctypes.PyDLL(None).usleep(1_500_000)
        return {}
    async def apply(self, changes):
        return ()
'''

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long long *shift(void) {
    static volatile long long *at, none;
    if (!at) {
        int f = open(getenv("SHIFT_FILE"), O_RDONLY);
        void *m = f < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, f, 0);
        at = m == MAP_FAILED ? &none : m;
    }
    return at;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(id, t);
    if (!r && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += *shift();
    return r;
}
int gettimeofday(struct timeval *t, void *z) {
    struct timespec s;
    clock_gettime(CLOCK_REALTIME, &s);
    t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timespec s;
    clock_gettime(CLOCK_REALTIME, &s);
    if (t) *t = s.tv_sec;
    return s.tv_sec;
}
"""


@dataclass
class Shown:
    """What one scene has shown. `out_s`: from the kill, or from the end of the fault, to out; None = not in this scene."""

    name: str
    looks: int = 0
    wronged: int = 0
    ejected: list[str] = field(default_factory=list)
    out_s: float | None = None
    note: str = ""
    faults: list[str] = field(default_factory=list)


class Scene:
    """A daemon that has learned, four instances, and somebody who looks at the balancer all the time."""

    def __init__(self, name: str, box: Lab, sidecar: Daemon) -> None:
        self.shown, self.box, self.sidecar = Shown(name), box, sidecar
        self._dead: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def kill_one(self) -> None:
        """One dies, and goes out."""
        since = time.monotonic()
        self.dies_silently()
        self.time_out(since)

    def dies_silently(self) -> None:
        """One dies; when it goes out is looked at later."""
        self._dead.add(VICTIM)
        self.box.kill(VICTIM)

    def time_out(self, since: float) -> None:
        """Notes how long after `since` it was out."""
        self.shown.out_s = self.box.wait_out(VICTIM) - since

    def end(self) -> Shown:
        """Well again, and every ejection accounted for."""
        if self._dead:
            self.box.instances.start(VICTIM)
            self.box.wait_in(VICTIM)
        until(lambda: self.box.in_rotation() == {0, 1, 2, 3}, "all serve again")
        self.stop_looking()
        killed = {f"127.0.0.1:{self.box.ports[i]}" for i in self._dead}
        self.shown.ejected = [e["sentence"] for e in self.sidecar.events("ejected") if e["instance"] not in killed]
        if "Traceback" in self.sidecar.log_text():
            self.shown.faults.append(f"a traceback\n{self.sidecar.log_text()[-3000:]}")
        return self.shown

    def stop_looking(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            found = self.box.look() or {}
            self.shown.looks += 1
            self.shown.wronged += sum(1 for i, port in enumerate(self.box.ports) if i not in self._dead and not found.get(port, True))


@contextmanager
def scene(
    name: str,
    shape: str = "haproxy-2.8-none",
    *,
    more: str = "",
    service: str = "",
    environment: Mapping[str, str] | None = None,
    descriptors: int | None = None,
    learned: bool = True,
) -> Iterator[Scene]:
    """`more`, `service`: further balancers and services; `environment`, `descriptors`: of the sidecar alone."""
    with lab(shape) as box:
        sidecar = box.sidecar(box.config(service=SERVICE + service).replace("balancers:\n", f"balancers:\n{more}"))
        with surroundings(environment or {}, descriptors):
            sidecar.start()
        sidecar.wait_healthy(box.ports, learned=learned)
        one = Scene(name, box, sidecar)
        try:
            yield one
        finally:
            one.stop_looking()


@contextmanager
def surroundings(environment: Mapping[str, str], descriptors: int | None) -> Iterator[None]:
    """What is started meanwhile inherits these."""
    before, (soft, hard) = dict(os.environ), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.environ.update(environment)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.environ.clear()
        os.environ.update(before)


# ---- the scenes ----


def stopped(rounds: int, shape: str) -> Shown:
    """SIGSTOP and SIGCONT again and again; at last one dies while we stand still."""
    chance = random.Random(rounds)
    with scene(f"SIGSTOP x{rounds} on {shape}", shape) as one:
        for _ in range(rounds):
            one.sidecar.signal(signal.SIGSTOP)
            time.sleep(chance.choice((0.02, 0.1, 0.3, 1.0, 1.5, 3.0)) * chance.uniform(0.7, 1.3))
            one.sidecar.signal(signal.SIGCONT)
            time.sleep(chance.uniform(0, 0.6))
        one.sidecar.signal(signal.SIGSTOP)
        one.dies_silently()
        time.sleep(2.0)
        one.sidecar.signal(signal.SIGCONT)
        one.time_out(time.monotonic())
        return one.end()


def held_lock(seconds: float, *, learned: bool = True) -> Shown:
    """A plugin stalls the whole interpreter, 1.5 s of every 4.5."""
    with tempfile.TemporaryDirectory() as folder:
        name, found = "the loop stalled for 1.5 s of each 4.5", {"PYTHONPATH": register(Path(folder))}
        other = "  other: {balancer: staller, pool: x, instances: ['127.0.0.1:1'], probe: {tcp: true}}\n"
        with scene(name, more="  staller: {plugin: staller}\n", service=other, environment=found, learned=learned) as one:
            time.sleep(seconds)
            one.kill_one()
            return one.end()


def register(folder: Path) -> str:
    """A plugin `staller` as another distribution would bring it; the path to find it."""
    info = folder / "staller-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: staller\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lbplugins]\nstaller = staller_plugin:Staller\n")
    (folder / "staller_plugin.py").write_text(STALLER)
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def busy(seconds: float) -> Shown:
    """Eight busy loops on all processors, the sidecar nicer than they are."""
    with scene("8 busy loops, the sidecar at nice 10") as one:
        os.setpriority(os.PRIO_PROCESS, pid_of(one.sidecar), 10)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
        try:
            time.sleep(seconds)
            one.kill_one()
            one.shown.note = f"{os.cpu_count()} processors"
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        return one.end()


def few_descriptors(seconds: float, limit: int) -> Shown:
    """So few from the start."""
    with scene(f"{limit} descriptors", descriptors=limit) as one:
        time.sleep(seconds)
        one.kill_one()
        return one.end()


def full_disk(seconds: float) -> Shown:
    """No room for the journal: the dead one stays by design, and goes once there is room."""
    with lab("haproxy-2.8-none") as box, small_disk(box.folder / "sidecar.state") as disk:
        sidecar = box.running(learned=True)
        filler = fill(disk)
        exhaust(sidecar, box.ports[VICTIM])  # by commands that drain it for a moment
        until(lambda: VICTIM in box.in_rotation(), "it is ready again")
        one = Scene("the disk full", box, sidecar)
        one.dies_silently()
        time.sleep(seconds)
        if VICTIM not in box.in_rotation():
            one.shown.faults.append("ejected without a journal")
        filler.unlink()
        one.time_out(time.monotonic())
        shown = one.end()
        sidecar.end()
        return shown


def moved_clock(jumps: int) -> Shown:
    """The wall clock a year forwards and backwards, again and again, and a year ahead when one dies."""
    name = f"the wall clock set by a year x{jumps}"
    with tempfile.TemporaryDirectory() as folder, wall_clock(Path(folder)) as clock, scene(name, environment=clock.environment) as one:
        for n in range(jumps):
            clock.move(YEAR_S if n % 2 == 0 else -YEAR_S)
            time.sleep(1.0)
        clock.move(YEAR_S)
        time.sleep(1.0)
        one.kill_one()
        event = one.sidecar.wait_event("ejected")
        one.shown.note = f"its own log says {event['when'][:4]}"
        if int(event["when"][:4]) <= time.gmtime().tm_year:
            one.shown.faults.append(f"the clock did not move: {event['when']}")
        return one.end()


class Clock:
    """A wall clock for whoever is started in this environment."""

    def __init__(self, library: Path, shift: Path, shared: mmap.mmap) -> None:
        self.environment = {"LD_PRELOAD": str(library), "SHIFT_FILE": str(shift)}
        self._shared = shared

    def move(self, seconds: int) -> None:
        """So far from the real one."""
        self._shared[:8] = struct.pack("q", seconds)


@contextmanager
def wall_clock(folder: Path) -> Iterator[Clock]:
    source, library, shift = folder / "shift.c", folder / "shift.so", folder / "shift"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    shift.write_bytes(bytes(8))
    with shift.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        yield Clock(library, shift, shared)


def moved_monotonic() -> Shown:
    """Killed with one out, and started again where the monotonic clocks are a year ahead, as after a snapshot was restored elsewhere."""
    with scene("CLOCK_MONOTONIC and CLOCK_BOOTTIME a year ahead at a restart") as one:
        one.kill_one()
        one.sidecar.wait_event("ejected")
        one.sidecar.end(signal.SIGKILL)
        ahead = ("unshare", "--time", "--fork", "--kill-child", f"--monotonic={YEAR_S}", f"--boottime={YEAR_S}")
        one.sidecar.start(within=ahead)
        one.sidecar.wait_healthy(one.box.ports[:VICTIM], learned=True)
        if VICTIM in one.box.in_rotation():
            one.shown.faults.append("the dead one came back")
        shown = one.end()
        one.sidecar.wait_healthy(one.box.ports)
        return shown


def scenes(scale: float) -> list[Callable[[], Shown]]:
    """All that this machine can show; `scale` 1 = the whole campaign."""
    return [
        lambda: stopped(max(2, int(40 * scale)), "haproxy-2.8-none"),
        lambda: stopped(max(2, int(20 * scale)), "haproxy-2.6-check"),
        lambda: stopped(max(2, int(20 * scale)), "nginx-1.31"),
        lambda: held_lock(60 * scale),
        lambda: busy(60 * scale),
        lambda: few_descriptors(30 * scale, 40),
        lambda: full_disk(20 * scale),
        *([lambda: moved_clock(max(4, int(30 * scale)))] if shutil.which("cc") else []),
        *([moved_monotonic] if Path("/proc/self/ns/time").exists() else []),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that each scene takes")
    asked = parser.parse_args()
    started = time.monotonic()
    all_: list[Shown] = []
    for play in scenes(asked.scale):
        try:
            shown = play()
        except NeverHappenedError as error:
            shown = Shown("a scene that broke off", faults=[str(error)])
        out = "" if shown.out_s is None else f", the dead one out after {shown.out_s:.2f} s"
        print(f"  {shown.name}: {shown.wronged} of {shown.looks} looks found a healthy one out{out} {shown.note}", flush=True)
        for fault in (*shown.faults, *shown.ejected):
            print(f"    {fault}")
        all_.append(shown)
    outs = [shown.out_s for shown in all_ if shown.out_s is not None]
    late = [shown.name for shown in all_ if shown.out_s is not None and shown.out_s > TWICE_THE_BOUND_S]
    ejected, faults = sum(len(s.ejected) for s in all_), sum(len(s.faults) for s in all_)
    print(
        f"stalls: {len(all_)} scenes, {sum(s.looks for s in all_)} looks: {ejected} ejections of healthy instances; a dead one out after "
        f"{max(outs, default=0.0):.2f} s at worst, {TWICE_THE_BOUND_S:.1f} s allowed ({', '.join(late) or 'none later'}); "
        f"{faults} other faults; {(time.monotonic() - started) / 60:.1f} min"
    )
    return int(bool(late) or any(s.ejected or s.faults or s.wronged for s in all_))


if __name__ == "__main__":
    sys.exit(main())
