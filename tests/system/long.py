"""What takes minutes, with nothing shortened; not part of the gate. `python -m tests.system.long lease|rolling [SHAPE …]`.

`lease`: a sidecar is killed for good while it has two instances out; the shipped timer's command, and the compose companion's, give
them back once the lease is over, and not before. `rolling`: eight instances are restarted one after the other under load, each down for
five seconds.
Prints one line a run; exit 1 if any broke its promise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bench.daemon import Daemon, until
from bench.load import Load
from bench.watch import Watch
from tests.deploy.pages import ROOT
from tests.system.lab import HAPROXY, SHAPES, Lab, lab

N, RATE, DOWN_S = 8, 300.0, 5.0
MOST_OUT = 4
"""Half of eight, by hard evidence."""
BACK_WITHIN_S = 3.0
OWN_CHECK_S = 2.0
"""A server with a check of HAProxy's own (`inter 2s`) comes back when the second of these is good: so much longer at most."""
UNDER_WAY_S = 0.1
"""Requests sent so long before the kill may be at the one that dies."""
GIVEN_BACK_WITHIN_S = 10.0
AT_ONCE = 3
CONFIG = "/etc/lb-sidecar/lb-sidecar.yaml"


# ---- the end of a lease ----


def by_timer(config: Path) -> subprocess.Popen[bytes]:
    """The release unit's command when its timer has it run: at these seconds of the clock, one run at a time."""
    deploy = ROOT / "deploy" / "systemd"
    (program,) = re.findall(r"^ExecStart=\S+/lb-sidecar (.+)$", (deploy / "lb-sidecar-release.service").read_text(), re.MULTILINE)
    (every,) = re.findall(r"^OnCalendar=\*:\*:00/(\d+)$", (deploy / "lb-sidecar-release.timer").read_text(), re.MULTILINE)
    command = program.replace(CONFIG, str(config))
    loop = f'while :; do sleep $(({every} - $(date +%-S) % {every})); "{sys.executable}" -m sidecar {command}; done'
    return _loop(loop)


def by_companion(config: Path) -> subprocess.Popen[bytes]:
    """The shell of the compose file's `release` service."""
    (script,) = re.findall(r'command: \["(trap .*)"\]', (ROOT / "deploy" / "compose" / "docker-compose.yaml").read_text())
    command = script.replace("$$", "$").replace(CONFIG, str(config)).replace("lb-sidecar release", f'"{sys.executable}" -m sidecar release')
    return _loop(command)


def _loop(script: str) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that all of it can be ended."""
    return subprocess.Popen(["sh", "-c", script], start_new_session=True)


def lease(shape: str, *, companion: bool) -> bool:
    with lab(shape) as box:
        sidecar = box.running()
        box.kill(0, 1)
        box.wait_out(0, 1)
        until(lambda: len(sidecar.events("ejected")) == 2, "both are ours")
        sidecar.end(signal.SIGKILL)
        box.instances.start(0)
        box.instances.start(1)
        ends = json.loads((sidecar.state / "lease").read_text())["until"]
        loop = (by_companion if companion else by_timer)(sidecar.config)
        try:
            until(lambda: box.in_rotation() & {0, 1}, "one is given back", 200)
            early = _boottime() < ends
            box.wait_in(0, 1)
        finally:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()
        after = _boottime() - ends
    is_good = not early and after <= GIVEN_BACK_WITHIN_S
    by, verdict = "companion" if companion else "timer", "" if is_good else "  BAD"
    print(f"lease {shape} by {by}: both back {after:.2f} s after its end{verdict}", flush=True)
    return is_good


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# ---- a rolling restart ----


def rolling(shape: str) -> bool:
    with lab(shape, N) as box:
        sidecar = box.running(learned=True)
        log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        log.bind(("127.0.0.1", 0))
        watch, load = Watch(box.look, log), Load(box.listen, RATE)
        try:
            until(lambda: len(load.requests) > RATE, "requests are answered")
            spans = [_restarted(box, i) for i in range(N)]
            sidecar.wait_healthy(box.ports)
            time.sleep(1.0)
        finally:
            load.stop()
            watch.stop()
        bad = _faults(box, sidecar, watch, load, spans)
    failed = sum(r.status != 200 for r in load.requests)
    out = max(out for _, out, _, _ in spans)
    back = max(watch_back for _, _, _, watch_back in spans)
    print(f"rolling {shape}: {len(load.requests)} requests, {failed} failed; out within {out:.2f} s, back within {back:.2f} s", flush=True)
    for line in bad:
        print(f"  BAD: {line}", flush=True)
    return not bad


Span = tuple[float, float, float, float]
"""When it was killed; seconds until it was out; when it listened again; seconds until it was back."""


def _restarted(box: Lab, i: int) -> Span:
    killed = time.monotonic()
    box.kill(i)
    out = box.wait_out(i) - killed
    time.sleep(max(0.0, killed + DOWN_S - time.monotonic()))
    box.instances.start(i)
    listens = time.monotonic()
    return killed, out, listens, box.wait_in(i) - listens


def _faults(box: Lab, sidecar: Daemon, watch: Watch, load: Load, spans: Sequence[Span]) -> list[str]:
    found = [f"{r.status} at {r.due:.3f}" for r in load.requests if r.status != 200 and not _is_while_found(r.due, spans)]
    most = BACK_WITHIN_S + (OWN_CHECK_S if box.axis == "check" else 0.0)
    found += [f"back only {back:.2f} s after it listened" for _, _, _, back in spans if back > most]
    out: set[int] = set()
    for at, port, is_in in watch.moves:
        (out.discard if is_in else out.add)(port)
        if len(out) > MOST_OUT:
            found.append(f"{len(out)} out at {at:.3f}")
    if out:
        found.append(f"still out: {out}")
    ejected = sorted(e["instance"] for e in sidecar.events("ejected"))
    if ejected != sorted(f"127.0.0.1:{port}" for port in box.ports):
        found.append(f"ejected: {ejected}")
    return found + [e["sentence"] for e in sidecar.events("held")]


def _is_while_found(due: float, spans: Sequence[Span]) -> bool:
    return any(killed - UNDER_WAY_S <= due <= killed + out + UNDER_WAY_S for killed, out, _, _ in spans)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lease", "rolling"))
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"{', '.join(SHAPES)}; default: all")
    asked = parser.parse_args()
    if strange := set(asked.shapes) - set(SHAPES):
        parser.error(f"there is no shape {', '.join(strange)}")
    shapes = asked.shapes or SHAPES
    if asked.what == "rolling":
        return int(sum(rolling(shape) for shape in shapes) < len(shapes))
    runs = [(shape, False) for shape in shapes] + [(shape, True) for shape in shapes if shape in HAPROXY]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [pool.submit(lease, shape, companion=companion) for shape, companion in runs]
        return int(sum(each.result() for each in done) < len(runs))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        raise SystemExit(main())
