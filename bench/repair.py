"""How soon a real HAProxy that was reloaded or restarted hears again who is out. `python -m bench.repair`.

Four instances, two of them killed and ejected by the sidecar with its defaults; then HAProxy is reloaded (or restarted) again and again.
Seconds from the first answer of the new process on its socket, in which it knows nothing of ours, until it shows both out again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

from bench.daemon import Daemon, NeverHappenedError, until
from bench.removal import build
from bench.watch import haproxy_look
from sidecar.demo import stage

Act = Literal["reload", "restart"]
ACTS: tuple[Act, ...] = get_args(Act)
N, OUT = 4, 2
LIMIT_S = 2.0
POLL_S = 0.003
HEADER = f"{'HAProxy, server lines':25} {'act':8} {'n':>3}  {'median':>7} {'worst':>7}  verdict"


class Scene:
    """A HAProxy with two of its instances dead and ejected; `made` owns all of it."""

    def __init__(self, binary: stage.Binary, axis: stage.Axis, folder: Path, made: ExitStack) -> None:
        *ports, listen = stage.free_ports(N + 1)
        self.instances = stage.Instances(ports)
        made.callback(self.instances.stop_all)
        self.instances.start_all()
        self.balancer = stage.start_haproxy(binary, folder / "lb", ports, axis=axis, listen=listen)
        made.callback(lambda: self.balancer.stop())
        self.socket = folder / "lb" / "admin.sock"
        self.look = haproxy_look(self.socket, {f"s{i + 1}": port for i, port in enumerate(ports)})
        self.dead, self.alive = set(ports[:OUT]), set(ports[OUT:])
        self.daemon = Daemon(
            folder, f"balancers:\n  edge: {self.balancer.yaml}\nservices:\n  shop: {{balancer: edge, probe: {{http: /health}}}}\n"
        )
        made.callback(self.daemon.end)
        self.daemon.start()
        self.daemon.wait_healthy(ports)
        for i in range(OUT):
            self.instances.kill(i)
        until(lambda: len(self.daemon.events("ejected")) >= OUT and self.is_repaired(), "both dead instances are out")

    def is_repaired(self) -> bool:
        seen = self.look() or {}
        return {port for port, serves in seen.items() if serves} == self.alive

    def pid(self) -> str:
        """Of the process that answers on the socket; "" = none does."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(2)
                sock.connect(str(self.socket))
                sock.sendall(b"show info\n")
                text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        except OSError:
            return ""
        return next((line for line in text.splitlines() if line.startswith("Pid:")), "")

    def reload(self) -> None:
        self.balancer.process.send_signal(signal.SIGUSR2)

    def restart(self) -> None:
        self.balancer.stop()
        with (self.balancer.folder / "haproxy.err").open("ab") as errors:
            self.balancer.process = subprocess.Popen(self.balancer.process.args, stdout=subprocess.DEVNULL, stderr=errors)


def repaired(scene: Scene, act: Callable[[], None]) -> float:
    """Seconds of one repair; NeverHappenedError if none came."""
    old = scene.pid()
    act()
    began = until(lambda: scene.pid() not in ("", old), "a new process answers", poll_s=POLL_S)
    return until(scene.is_repaired, "both are out again", poll_s=POLL_S) - began


def measure(binary: stage.Binary, axis: stage.Axis, runs: int) -> dict[Act, list[float]]:
    """`runs` of each act."""
    with ExitStack() as made:
        folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="lbs-")))
        scene = Scene(binary, axis, folder, made)
        acts: dict[Act, Callable[[], None]] = {"reload": scene.reload, "restart": scene.restart}
        found: dict[Act, list[float]] = {act: [] for act in ACTS}
        for act in ACTS:
            for _ in range(runs):
                found[act].append(repaired(scene, acts[act]))
                time.sleep(random.random())  # so that it comes at any moment between two looks of the sidecar, a second apart
        return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.repair", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of each act in each cell (10)")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells only, as haproxy-2.8-check")
    asked = parser.parse_args()
    known = {f"{build(binary)}-{axis}": (binary, axis) for binary in stage.haproxy_binaries() for axis in get_args(stage.Axis)}
    if asked.runs < 1 or not set(asked.only or ()) <= known.keys():
        parser.error(f"--runs is at least 1, and the cells of this machine are: {' '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    print(f"repair: {asked.runs} of each, {_load()}\n{HEADER}", flush=True)
    failed = False
    for name in asked.only or known:
        try:
            found = measure(*known[name], asked.runs)
        except (NeverHappenedError, stage.StageError) as error:
            print(f"{name:25} FAIL: {error}", flush=True)
            failed = True
            continue
        for act, times in found.items():
            is_late = max(times) > LIMIT_S
            failed |= is_late
            verdict = f"FAIL: worst > {LIMIT_S:g} s" if is_late else "PASS"
            print(f"{name:25} {act:8} {len(times):3}  {statistics.median(times):7.3f} {max(times):7.3f}  {verdict}", flush=True)
    print(f"at the end {_load()}")
    return 1 if failed else 0


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


if __name__ == "__main__":
    sys.exit(main())
