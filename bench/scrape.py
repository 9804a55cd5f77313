"""What a scrape of a large sidecar costs: time, size, and how late it makes the loop that decides. `python -m bench.scrape`.

A whole sidecar runs in this process, 500 services of 20 instances by default, each instance asked every other second by the real engine;
another process scrapes it over HTTP like Prometheus does. Lateness is that of a ticker of 5 ms on the sidecar's own loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.floor import Responder, addresses, compile_all
from sidecar.app import App
from sidecar.config.load import load
from sidecar.demo import stage
from sidecar.desk import Desk
from sidecar.publish.prometheus import Format

TICK_S = 0.005
PATIENCE_S = 120.0
SECONDS_MUST, LAG_MUST = 0.3, 0.02
SCRAPER = """
import http.client, json, sys, time
port, accept, times, pause = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
for _ in range(times):
    time.sleep(pause)
    start = time.monotonic()
    connection.request("GET", "/metrics", headers={"Accept": accept})
    answer = connection.getresponse()
    size = len(answer.read())
    print(json.dumps([start, time.monotonic(), size, answer.status]), flush=True)
"""
ACCEPT = {
    Format.TEXT: "text/plain;version=0.0.4",
    Format.OPENMETRICS: "application/openmetrics-text;version=1.0.0",
    Format.PROTOBUF: "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}


@dataclass(slots=True)
class Ticker:
    """How late each tick on this loop was: (due, fired), monotonic seconds."""

    ticks: list[tuple[float, float]] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self.ticks.append((due, time.monotonic()))

    def lateness(self, windows: Sequence[tuple[float, float]], *, within: bool) -> list[float]:
        """Seconds, of the ticks that were due or fired within any of the windows, or of all others."""
        return [max(0.0, fired - due) for due, fired in self.ticks if any(due < end and fired > start for start, end in windows) is within]


def configuration(folder: Path, services: int, instances: int, port: int, api: int, interval_s: float) -> Path:
    hosts = iter(addresses(services * instances))
    named = {f"shop-{i:03}": {"balancer": "lab", "instances": [f"{next(hosts)}:{port}" for _ in range(instances)]} for i in range(services)}
    path = folder / "lb-sidecar.yaml"
    told = {
        "api": {"listen": f"127.0.0.1:{api}", "socket": str(folder / "api.sock")},
        "state": {"dir": str(folder / "state")},
        "log": {"level": "error"},
        "balancers": {"lab": {"plugin": "memory"}},
        "defaults": {"probe": {"http": "/health", "interval": f"{interval_s}s"}},
        "services": named,
    }
    path.write_text(json.dumps(told))
    return path


async def measure(path: Path, api: int, form: Format, times: int, pause_s: float, warm_s: float) -> dict[str, float]:
    app = App(load(path))
    await app.start()
    try:
        await asyncio.sleep(warm_s)
        ticker = Ticker()
        ticking = asyncio.get_running_loop().create_task(ticker.run())
        scraper = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCRAPER, str(api), ACCEPT[form], str(times), str(pause_s), stdout=asyncio.subprocess.PIPE
        )
        told, _ = await asyncio.wait_for(scraper.communicate(), PATIENCE_S + times * pause_s)
        ticking.cancel()
        desk = Desk(app)
        cpu_s = min(cost(desk, form) for _ in range(7))
    finally:
        await app.stop()
    scrapes = [json.loads(line) for line in told.splitlines()]
    if refused := [each for each in scrapes if each[3] != 200]:
        raise SystemExit(f"{len(refused)} of {times} scrapes were not answered in time (status {refused[0][3]}): the machine is too busy")
    windows = [(start, end) for start, end, _, _ in scrapes]
    during, beside = ticker.lateness(windows, within=True), ticker.lateness(windows, within=False)
    return {
        "seconds": statistics.median(end - start for start, end in windows),
        "slowest": max(end - start for start, end in windows),
        "cpu": cpu_s,
        "bytes": scrapes[-1][2],
        "lag": _share(during, 0.99),
        "worst lag": max(during),
        "lag beside": _share(beside, 0.99),
    }


def cost(desk: Desk, form: Format) -> float:
    """Seconds of the processor for one page, with nothing else on the loop meanwhile."""
    writing = desk.metrics(ACCEPT[form])
    start = time.thread_time()
    with contextlib.suppress(StopIteration):
        while True:
            writing.send(None)
    return time.thread_time() - start


def _share(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scrape", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--instances", type=int, default=20, help="of each service (20)")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="between two probes of an instance (2)")
    parser.add_argument("--times", type=int, default=10, help="scrapes of each form (10)")
    parser.add_argument("--pause", type=float, default=2.0, metavar="S", help="between two scrapes (2)")
    parser.add_argument("--warm", type=float, default=70.0, metavar="S", help="before the first (70)")
    parser.add_argument("--form", choices=[form.name.lower() for form in Format], action="append", help="all three unless said")
    asked = parser.parse_args()
    print(f"scrape: load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    print("\n| form | median, ms | slowest, ms | CPU, ms | loop lag p99, ms | worst lag, ms | lag p99 between scrapes, ms | MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    missed = 0
    for form in [Format[name.upper()] for name in asked.form or ()] or Format:
        with tempfile.TemporaryDirectory(prefix="lbs-") as name:
            folder = Path(name)
            compile_all(folder)
            responder = Responder(folder, folder)
            [api] = stage.free_ports(1)
            path = configuration(folder, asked.services, asked.instances, responder.port, api, asked.interval)
            try:
                found = uvloop.run(measure(path, api, form, asked.times, asked.pause, asked.warm))
            finally:
                responder.stop()
        numbers = [f"{found[key] * 1000:,.1f}" for key in ("seconds", "slowest", "cpu", "lag", "worst lag", "lag beside")]
        print(f"| {form.name.lower()} | {' | '.join(numbers)} | {found['bytes'] / 1e6:,.1f} |", flush=True)
        missed += found["seconds"] > SECONDS_MUST or found["lag"] > LAG_MUST
    print(f"\n{'MISSED' if missed else 'must'}: a scrape in {SECONDS_MUST * 1000:g} ms, lag p99 meanwhile {LAG_MUST * 1000:g} ms")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
