"""How fast a dead or hanging instance leaves the rotation of a real balancer, and how it comes back. `python -m bench.removal`.

Four instances, 300 requests a second in an open loop, the sidecar with its defaults. Each run: a random wait within a second, then
`kill -9` or `kill -STOP`; a second or three out; then revived. Judged by what the balancer shows and logs, not by what the sidecar says.
First the balancers alone, with checks of their own and no sidecar; then ours. `ratio`: our median out by that of the same binary alone with
its defaults. Nginx alone shows nobody who is out: there it is the last request tried at the dead instance within ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bench import alone
from bench import watch as watches
from bench.daemon import Daemon, NeverHappenedError, until
from bench.load import Load
from sidecar.demo import stage

Fault = Literal["kill", "stop"]
FAULTS: tuple[Fault, ...] = ("kill", "stop")
N = 4
RATE = 300.0
OUT_WITHIN_S, BACK_WITHIN_S = 15.0, 30.0
OBSERVED_S = 10.0
"""How long a dead instance is left to a balancer that never says who is out."""
OUT_FOR_S = {"haproxy": 1.0, "nginx": 3.0}
LOGS_WITHIN_S = 0.3
SPREAD_S = 1.0
LIFE = N
"""Faults per life of the sidecar: one an instance, for a second one within ten minutes has a hold-down, by design."""
RELOAD_S = 2.0
"""How long after its file changed Nginx's old workers may still send requests there: out is when they stop. Later ones are a fault."""
LIMITS: dict[Fault, tuple[float, float]] = {"kill": (0.7, 1.5), "stop": (1.0, 2.0)}
"""Seconds from the fault to out: median, worst."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One balancer in one shape. `alone`: without the sidecar, with these ways of its own."""

    name: str
    binary: stage.Binary
    axis: stage.Axis = "none"
    alone: alone.Alone | None = None

    @property
    def tells(self) -> bool:
        """Whether the balancer's own state says who is out."""
        return self.alone is None or self.alone.tells


@dataclass(frozen=True, slots=True)
class Run:
    """One fault. Seconds from the fault, `back_s` from listening again; `asked`: good health answers it had given when it was back.

    `said`: what the sidecar told meanwhile, for those who look into a bad one. Without it, `rises` is False.
    """

    fault: Fault
    out_s: float | None
    last_attempt_s: float
    reached_after_out: int
    failed: int
    slow: int
    resent: int
    back_s: float | None
    asked: int | None
    rises: bool
    others_out: int
    said: tuple[str, ...]


def cells() -> Iterator[Cell]:
    """What this machine can show: each balancer build alone, then each with the sidecar in each shape."""
    for binary in (*stage.haproxy_binaries(), *stage.nginx_binaries()):
        yield from (Cell(f"{build(binary)}-{way.name}", binary, alone=way) for way in alone.WAYS[binary.kind])
    for binary in stage.haproxy_binaries():
        yield from (Cell(f"{build(binary)}-{axis}", binary, axis) for axis in get_args(stage.Axis))
    for binary in stage.nginx_binaries():
        yield Cell(build(binary), binary)


def build(binary: stage.Binary) -> str:
    """`haproxy-2.8`: its kind and the two numbers that matter."""
    return f"{binary.kind}-{'.'.join(binary.version.split('.')[:2])}"


class Scene:
    """Instances, a balancer in front of them, load and watch; owns them all, and the folder."""

    def __init__(self, cell: Cell, folder: Path, made: ExitStack) -> None:
        *self.ports, listen = stage.free_ports(N + 1)
        self.folder = folder
        self.instances = stage.Instances(self.ports)
        made.callback(self.instances.stop_all)
        self.instances.start_all()
        log, log_port = watches.open_log()
        if cell.binary.kind == "haproxy":
            self.balancer = stage.start_haproxy(cell.binary, folder / "lb", self.ports, axis=cell.axis, listen=listen, log=log_port)
            names = {f"s{i + 1}": port for i, port in enumerate(self.ports)}
            look = watches.haproxy_look(folder / "lb" / "admin.sock", names)
        else:
            self.balancer = stage.start_nginx(cell.binary, folder / "lb", self.ports, listen=listen, log=log_port)
            names, look = {}, watches.nginx_look(folder / "lb" / "sidecar.d" / "shop.conf")
        if cell.alone is not None:
            self.balancer = alone.restart(self.balancer, cell.binary.kind, cell.alone)
        made.callback(self.balancer.stop)
        self.watch = watches.Watch(look, log)
        self.watch.ports = names
        made.callback(self.watch.stop)
        self.load = Load(listen, RATE)
        made.callback(self.load.stop)
        self.cell, self.kind = cell, cell.binary.kind

    def has_settled(self) -> bool:
        """Whether HAProxy's own check, where it is alone, trusts each server fully.

        One that has just started or returned stands on the edge: its first bad answer, not its third, takes it out.
        """
        full = self.cell.alone.health if self.cell.alone is not None else None
        if full is None:
            return True
        found = watches.haproxy_health(self.folder / "lb" / "admin.sock")
        return len(found) == N and all(health >= full for health in found.values())

    @contextmanager
    def sidecar(self) -> Iterator[Daemon | None]:
        """A new one, without a memory, that has seen 30 good answers of everybody; None where the balancer is alone."""
        if self.cell.alone is not None:
            yield None
            return
        config = f"balancers:\n  edge: {self.balancer.yaml}\nservices:\n  shop: {{balancer: edge, probe: {{http: /health}}}}\n"
        daemon = Daemon(self.folder, config)
        shutil.rmtree(daemon.state, ignore_errors=True)
        daemon.start()
        try:
            daemon.wait_healthy(self.ports, learned=True)
            yield daemon
        finally:
            daemon.end()


def run(scene: Scene, daemon: Daemon | None, fault: Fault, i: int, chance: random.Random) -> Run:
    """One fault at instance i, from all well to all well."""
    watch, port = scene.watch, scene.ports[i]
    if daemon is not None:
        daemon.wait_healthy(scene.ports)
    until(lambda: all(watch.in_rotation(p) for p in scene.ports), "all in rotation")
    until(scene.has_settled, "every server trusted again by the balancer's own check")
    time.sleep(SPREAD_S * chance.random())
    known = len(daemon.events()) if daemon is not None else 0

    at = time.monotonic()
    scene.instances.signal(i, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    _wait_out(scene, port, at)
    listening = _revive(scene, fault, i)
    with suppress(NeverHappenedError):
        until(lambda: _back(scene, port, listening), "back", BACK_WITHIN_S, 0.001 if scene.cell.tells else 0.1)
    asked = _asked(port) if fault == "kill" else None
    back = _back(scene, port, at if scene.cell.tells else listening)
    time.sleep(LOGS_WITHIN_S)
    events = daemon.events()[known:] if daemon is not None else []
    return _judged(scene, events, fault, port, at, listening, back, asked)


def _wait_out(scene: Scene, port: int, at: float) -> None:
    if not scene.cell.tells:
        time.sleep(at + OBSERVED_S - time.monotonic())
        return
    with suppress(NeverHappenedError):
        until(lambda: scene.watch.moved(port, at, into=False), "out", OUT_WITHIN_S, watches.POLL_S)
    time.sleep(OUT_FOR_S[scene.kind])


def _back(scene: Scene, port: int, since: float) -> float | None:
    """When it was back in rotation, or, where the balancer does not tell, when it was first sent a request that it answered."""
    return scene.watch.moved(port, since, into=True) if scene.cell.tells else scene.watch.answered(port, since)


def _revive(scene: Scene, fault: Fault, i: int) -> float:
    """The moment at which it listens (or runs) again."""
    if fault == "stop":
        scene.instances.signal(i, signal.SIGCONT)
        return time.monotonic()
    scene.instances.kill(i)
    scene.instances.start(i)
    return time.monotonic()


def _asked(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/asked", timeout=5) as answer:
        return int(answer.read())


def _judged(
    scene: Scene,
    events: Sequence[dict[str, Any]],
    fault: Fault,
    port: int,
    at: float,
    listening: float,
    back: float | None,
    asked: int | None,
) -> Run:
    watch = scene.watch
    # HAProxy hides where a retried request was refused, or, alone, met a full accept queue: while one instance is bad it was there.
    hidden = scene.kind == "haproxy" and (fault == "kill" or scene.cell.alone is not None)
    tried = watch.tried((port, 0) if hidden else (port,), at, listening if scene.cell.tells else at + OBSERVED_S)
    out = _out(scene, port, at, tried)
    hurt = [r for r in scene.load.between(at - 1.0, listening) if r.ended >= at]
    reached = [a.at for a in tried]
    if scene.kind == "haproxy":
        # What HAProxy cuts on kept connections it neither answers nor logs: its client sees the connection close, and asks again.
        reached += [r.due for r in hurt if r.due > at and (r.resent or r.status != 200)]
    returned = [e for e in events if e["kind"] == "returned" and e["instance"].endswith(f":{port}")]
    return Run(
        fault,
        None if out is None else out - at,
        max((when - at for when in reached), default=0.0),
        0 if out is None else sum(1 for when in reached if when > out),
        sum(1 for r in hurt if r.status != 200),
        sum(1 for r in hurt if r.status == 200 and r.ended - r.due > 1.0),
        sum(1 for r in hurt if r.resent),
        None if back is None else back - listening,
        asked,
        bool(returned) and returned[-1]["by"] == "rule:rise" and "2 needed" in returned[-1]["sentence"],
        watch.moves_of_others(port, at),
        tuple(e["sentence"] for e in events),
    )


def _out(scene: Scene, port: int, at: float, tried: Sequence[watches.Attempt]) -> float | None:
    """When it was out; None = never."""
    if not scene.cell.tells:
        return max((a.at for a in tried), default=at)
    out = scene.watch.moved(port, at, into=False)
    if out is not None and scene.kind == "nginx":
        # The file is only the word; old workers act on the one before until they have been replaced.
        out = max([out, *(a.at for a in tried if a.at <= out + RELOAD_S)])
    return out


# ---- the verdict ----


def faults_of(fault: Fault, runs: Sequence[Run]) -> list[str]:
    """What is wrong with these runs, in words; empty = PASS."""
    median, worst = LIMITS[fault]
    outs = [r.out_s for r in runs if r.out_s is not None]
    wrong = []
    if len(outs) < len(runs):
        wrong.append(f"{len(runs) - len(outs)} never out")
    if outs and statistics.median(outs) > median:
        wrong.append(f"median {statistics.median(outs):.2f} > {median} s")
    if outs and max(outs) > worst:
        wrong.append(f"worst {max(outs):.2f} > {worst} s")
    counts = {
        "requests reached it after out": sum(r.reached_after_out for r in runs),
        "others ejected": sum(r.others_out for r in runs),
        "never back": sum(r.back_s is None for r in runs),
        "back before it listened": sum(r.back_s is not None and r.back_s < 0 for r in runs),
        "back before 2 good answers": sum(r.asked is not None and r.asked < 2 for r in runs),
        "not returned by rise": sum(not r.rises for r in runs),
    }
    return wrong + [f"{count} {what}" for what, count in counts.items() if count]


HEADER = (
    f"{'cell':23} {'fault':5} {'n':>2}  {'out med':>7} {'worst':>6} {'ratio':>5}  {'last med':>8} {'worst':>6}  {'after':>5} {'failed':>6} "
    f"{'slow':>4} {'resent':>6}  {'back med':>8} {'worst':>6}  {'others':>6}  verdict"
)


def median_out(runs: Sequence[Run], fault: Fault) -> float | None:
    """Seconds; None where no such run ended with it out."""
    outs = [r.out_s for r in runs if r.fault == fault and r.out_s is not None]
    return statistics.median(outs) if outs else None


def ratios(runs: Sequence[Run], native: Sequence[Run]) -> dict[Fault, float]:
    """Our median out by the native one's, for each fault that both have."""
    pairs = {fault: (median_out(runs, fault), median_out(native, fault)) for fault in FAULTS}
    return {fault: ours / theirs for fault, (ours, theirs) in pairs.items() if ours is not None and theirs}


def line(name: str, fault: Fault, runs: Sequence[Run], verdict: str, ratio: float | None) -> str:
    """One row; seconds; failed, slow and resent requests are medians a run."""
    outs, lasts = [r.out_s for r in runs if r.out_s is not None], [r.last_attempt_s for r in runs]
    backs = [r.back_s for r in runs if r.back_s is not None]
    return (
        f"{name:23} {fault:5} {len(runs):2}  {_two(outs, 7)} {'-' if ratio is None else f'{ratio:.2f}':>5}  {_two(lasts, 8)}  "
        f"{sum(r.reached_after_out for r in runs):5} "
        f"{statistics.median(r.failed for r in runs):6g} {statistics.median(r.slow for r in runs):4g} "
        f"{statistics.median(r.resent for r in runs):6g}  {_two(backs, 8)}  {sum(r.others_out for r in runs):6}  {verdict}"
    )


def _two(values: Sequence[float], width: int) -> str:
    return f"{statistics.median(values):{width}.3f} {max(values):6.3f}" if values else f"{'-':>{width}} {'-':>6}"


def measure(cell: Cell, runs: int, chance: random.Random) -> list[Run]:
    """`runs` of each fault. Instances take turns; each sidecar lives for one fault an instance."""
    due: list[Fault] = [fault for _ in range(runs) for fault in FAULTS]
    found: list[Run] = []
    with ExitStack() as made:
        folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="lbs-")))
        folder.chmod(0o755)
        scene = Scene(cell, folder, made)
        for first in range(0, len(due), LIFE):
            with scene.sidecar() as daemon:
                order = chance.sample(range(N), N)
                found += [run(scene, daemon, fault, i, chance) for fault, i in zip(due[first : first + LIFE], order, strict=False)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.removal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of each fault in each cell (10)")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, as JSON")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of the random waits and turns")
    asked = parser.parse_args()
    known = list(cells())
    chosen = [c for c in known if not asked.only or c.name in asked.only]
    if asked.runs < 1 or not chosen or len(chosen) < len(set(asked.only or ())):
        parser.error(f"--runs is at least 1, and the cells of this machine are: {' '.join(c.name for c in known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    print(f"removal: {asked.runs} runs of each fault, seed {asked.seed}, {_load()}\n{HEADER}", flush=True)
    chance = random.Random(asked.seed)
    results: dict[str, list[Run]] = {}
    failed = False
    for cell in chosen:
        try:
            results[cell.name] = measure(cell, asked.runs, chance)
        except (NeverHappenedError, stage.StageError) as error:
            print(f"{cell.name:23} FAIL: {error}", flush=True)
            failed = True
            continue
        failed |= show(cell, results)
        if asked.json:
            asked.json.write_text(json.dumps({n: [asdict(r) for r in runs] for n, runs in results.items()}, indent=1))
    print(f"at the end {_load()}")
    return 1 if failed else 0


def show(cell: Cell, results: Mapping[str, Sequence[Run]]) -> bool:
    """Print a cell's rows; whether one is bad. Limits and ratios are for ours only."""
    native = results.get(f"{build(cell.binary)}-{alone.DEFAULT}", ())
    ratio = ratios(results[cell.name], native) if cell.alone is None else {}
    failed = False
    for fault in FAULTS:
        runs = [r for r in results[cell.name] if r.fault == fault]
        wrong = faults_of(fault, runs) if cell.alone is None else []
        failed |= bool(wrong)
        verdict = "alone" if cell.alone is not None else f"FAIL: {'; '.join(wrong)}" if wrong else "PASS"
        print(line(cell.name, fault, runs, verdict, ratio.get(fault)), flush=True)
    return failed


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


if __name__ == "__main__":
    sys.exit(main())
