"""The whole sidecar in a simulated machine: the real `App` with its reconciler, drivers, hosts, journal, lease and locks.

Simulated are the loop's clock and threads, the disk, the links, the balancers and the instances; in the composition root their names stand
where the real edges stand. What the sidecar does is held against the promises at the moment when it reaches a balancer or the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from lbplugins.api import Balancer as Plugin
from lbplugins.values import NONE, OURS, READY, Address, Change, Ref
from sidecar import app, desk
from sidecar.app import App, StartError
from sidecar.balancers import driver as drivers
from sidecar.balancers.host import Host
from sidecar.config.load import Loaded, load
from sidecar.core.known import in_its_words
from sidecar.core.model import Act, Commanded, Event, Instance, Intent, ServerRef
from sidecar.journal import intents as journal
from sidecar.journal.force import InForce, Stored, about
from sidecar.net import lag
from sidecar.reconcile import Reconciler
from sidecar.store import atomic, clock, lock, state_dir
from sidecar.web.desk import Desk
from tests.core import site
from tests.core.schedules import Violation, most_out
from tests.core.site import address
from tests.sim.disk import Disk
from tests.sim.loop import CURRENT, InTurn, Process, VirtualLoop
from tests.sim.net import Balancer, CostlyRemote, Instances, Link, Prober, Remote, Watcher

FIRST_PID = 5_000_000
"""Beyond what a kernel gives: no such process exists on the machine that runs this."""
LOCK_GRACE_S, LONG_LOCK_GRACE_S = 1.5, 30.0
"""After somebody has deleted a lock file: what was on its way under the old lock may still arrive for so long; the second where the
balancer was slow of late."""
HUNGRY_S = 12.0
POLICY = """\
    policy:
      hold_down: {first: 3s, max: 6s, forget: 60s}
      flapping: {burst: 6, per_minute: 60}
      hands_off: 8s
"""
"""Like the defaults, but minutes are seconds."""


@dataclass(frozen=True, slots=True)
class Layout(site.Layout):
    """`pair`: a second sidecar, with a state folder of its own or the same one."""

    pair: str = ""


def text_of(layout: Layout, folder: str, mode: str = "act") -> str:
    """The configuration of one sidecar."""
    lines = [f"mode: {mode}", f"state: {{dir: {folder}}}", "log: {level: error}", "balancers:"]
    lines += [f"  {name}: {{plugin: {'costly' if layout.costly else 'remote'}, at: {name}}}" for name in layout.balancers]
    lines += ["services:"]
    for service in layout.services:
        pools = ", ".join(f"{b}/{p}" for s, b, p in layout.pools if s == service)
        lines += [f"  {service}:", f"    pools: [{pools}]", "    probe: {http: /health, interval: 300ms, timeout: 150ms}", POLICY.rstrip()]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=512)
def loaded(text: str) -> Loaded:
    """The configuration in this text, by the real way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lb-sidecar.yaml"
        path.write_text(text)
        with surroundings_of_configuration():
            found = load(path)
        problems = tuple(replace(problem, file="lb-sidecar.yaml") for problem in found.problems)
        return replace(found, path=Path("/etc/lb-sidecar/lb-sidecar.yaml"), files=(), problems=problems)


PLUGINS: Mapping[str, type[Plugin]] = {"remote": Remote, "costly": CostlyRemote}


@contextlib.contextmanager
def surroundings_of_configuration() -> Iterator[None]:
    with put((sys.modules[load.__module__], "plugin_class", PLUGINS.__getitem__)):
        yield


@contextlib.contextmanager
def put(*places: tuple[Any, str, object]) -> Iterator[None]:
    """These names stand for these things for a while."""
    missing = object()
    before = [(module, name, vars(module).get(name, missing)) for module, name, _ in places]
    for module, name, thing in places:
        setattr(module, name, thing)
    try:
        yield
    finally:
        for module, name, thing in before:
            if thing is missing:
                delattr(module, name)
            else:
                setattr(module, name, thing)


class Sidecar:
    """One sidecar that systemd keeps running: its folder, and its life just now."""

    def __init__(self, stack: Stack, name: str, folder: str) -> None:
        self.stack, self.name, self.folder = stack, name, folder
        self.text = text_of(stack.layout, folder)
        self.process: Process | None = None
        self.app: App | None = None
        self.desk: Desk | None = None
        self._stop: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._lives = 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    def boot(self) -> None:
        """Start it, unless it runs."""
        if self.is_alive:
            return
        self._lives += 1
        stack = self.stack
        stack.forget_whose()
        stack.pids += 1
        self.process = process = Process(f"{self.name}.{self._lives}", stack.pids)
        process.on_death = partial(self._died, process)
        self.app = self.desk = None
        stack.sidecar_of[process] = self
        stack.note(f"sidecar {self.name} starts")
        self._task = stack.loop.start_task(self._live(process), process)

    async def _live(self, process: Process) -> None:
        self._stop = stop = asyncio.Event()
        try:
            self.app = running = App(loaded(self.text))
            running.on_lost = stop.set
            await running.start()
            await stop.wait()
            await running.stop()
        except (StartError, state_dir.StateDirError, journal.JournalError) as error:
            self.stack.note(f"sidecar {self.name} cannot start: {error}")
        except asyncio.CancelledError:
            pass
        process.kill("it ended")

    def terminate(self) -> None:
        """SIGTERM, as `lb-sidecar run` takes it."""
        if self.is_alive and self._stop is not None and self._task is not None:
            self._stop.set()
            if self.app is not None and not self.app.has_state:
                self._task.cancel()

    def _died(self, process: Process) -> None:
        self.stack.disk.died(process)
        if process.died_at:
            self.stack.note(f"sidecar {self.name} is gone: {process.died_at}")

    def command(self, command: Commanded) -> None:
        """Give an order at its desk; nothing happens while nobody sits there."""
        if self.is_alive and self.desk is not None and self.process is not None and not self.process.is_stopped:
            self.stack.loop.start_task(self._obey(self.desk, command), self.process)

    async def _obey(self, at: Desk, command: Commanded) -> None:
        answer = await at.command(command)
        self.stack.note(f"    = {answer if isinstance(answer, str) else f'refused by {answer.name}: {answer.why}'}")


class Stack(Watcher):
    """One machine with its sidecars, and the world round it. `run` drives it; a broken promise comes out there as a Violation."""

    def __init__(self, seed: int, layout: Layout) -> None:
        self.layout = layout
        self.story: list[str] = []
        self.loop = VirtualLoop()
        self.disk = Disk(Random(f"{seed} disk"))
        self.disk.on_sync = self._synced
        self.loop.thread_s = lambda: self.disk.slow_s
        self.instances = Instances(Random(f"{seed} instances"))
        self.wall_ahead_s, self.boots = 1_700_000_000.0, 1
        self.pids = FIRST_PID
        self.broken: Violation | None = None
        self.sidecar_of: dict[Process, Sidecar] = {}
        self.balancers = {
            name: Balancer(name, self._servers(name), Link(self.loop, Random(f"{seed} {name}")), self) for name in layout.balancers
        }
        folders = {"": ("/state/a",), "own": ("/state/a", "/state/b"), "shared": ("/state/a", "/state/a")}[layout.pair]
        self.sidecars = [Sidecar(self, "AB"[i], folder) for i, folder in enumerate(folders)]
        self.writes = self.ejections = 0
        self._known: dict[tuple[Process, str], Mapping[str, int]] = {}
        self._told: dict[int, tuple[Change, Mapping[str, int]]] = {}
        self._in_force: dict[str, tuple[object, InForce]] = {}
        self._held_until: dict[tuple[str, Instance], float] = {}
        self._lock_gone_at: dict[str, float] = {}
        self._hungry_since: dict[str, float] = {}
        self.worded: set[Address] = set()
        """Of whom a command of ours has ever spoken: from then on an operator's own word may be taken for ours."""

    def _servers(self, name: str) -> dict[Ref, Address]:
        return {Ref(p, f"s{i}"): address(i) for (_, b, p), members in self.layout.pools.items() if b == name for i in members}

    # ---- driving ----

    def run(self, seconds: float) -> None:
        """Let so much time pass. Violation, also for what must not last."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.run_until(min(self.loop.now + 1.0, end))
            self._check()
            self._check_hunger()

    def _check(self) -> None:
        for sidecar in self.sidecars:
            if sidecar.app is not None and sidecar.is_alive and sidecar.app._tasks.faults:
                self.violated("shell", f"a task of sidecar {sidecar.name} failed: {sidecar.app._tasks.faults}")
        if self.broken is not None:
            raise self.broken

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.loop.call_later(seconds, what, context=contextvars.Context())

    def note(self, text: str) -> None:
        self.story.append(f"{self.loop.now - 1000:9.3f}  {text}")

    def violated(self, promise: str, what: str) -> None:
        """The first counts; the run ends here."""
        if self.broken is None:
            self.note(f"!! {promise}: {what}")
            self.broken = Violation(promise, what)
            self.loop.stop()

    def close(self) -> None:
        """Everything ends, nothing that was left runs any more."""
        for process in self.sidecar_of:
            process.on_death = lambda: None
            process.kill()
        self.loop.bury()

    def lose_lock(self, balancer: str) -> None:
        """Somebody deletes the file of the one-writer lock."""
        self.disk.remove(self.balancers[balancer].lock_path)
        self._lock_gone_at[balancer] = self.loop.now

    # ---- what our sidecars say and do ----

    def tell(self, sidecar: Sidecar, events: Sequence[Event]) -> None:
        for event in events:
            self.note(f"  {sidecar.name} . {event.kind}: {event.sentence}")

    def journaled(self, process: Process, intents: Sequence[Intent]) -> None:
        """These are on disk, says the journal."""
        sidecar = self.sidecar_of[process]
        for intent in intents:
            instance = about(intent)
            self.note(f"  {sidecar.name}   on disk: {intent.act} {instance or ''} by {intent.by}")
            if instance is None:
                continue
            key = (sidecar.folder, instance)
            if intent.act is Act.EJECT and intent.ejection is not None:
                self._ejected(sidecar, instance, intent)
                self._held_until[key] = intent.ejection.until
            elif intent.act is Act.RETURN and intent.by == "rule:rise" and self.loop.now < self._held_until.get(key, 0.0) - 1e-6:
                self.violated("hold-down", f"{instance} comes back {self._held_until[key] - self.loop.now:.2f} s too early")

    def _ejected(self, sidecar: Sidecar, instance: Instance, intent: Intent) -> None:
        self.ejections += 1
        bad_at = self.instances.bad_at.get(instance.address, float("-inf"))
        if intent.by.startswith("rule:") and self.loop.now - bad_at > 75.0:
            self.violated("evidence", f"{instance} is ejected by {intent.by} and has not failed for {self.loop.now - bad_at:.0f} s")
        for balancer in self.balancers.values():
            for ref, hands in balancer.hands.items():
                if hands.ours == "hand" and balancer.seen(ref).address == instance.address:
                    hands.ours = "both"  # from now on nobody can tell the two apart

    def forget_whose(self) -> None:
        """At a new start: whose something is nobody can tell but by the journals; a journal knows instances, not servers."""
        journals = [self._read(bytes(file.data)) for f in self.folders if (file := self.disk.names.get(f"{f}/{journal.NAME}")) is not None]
        words = {
            (word.instance.address, in_its_words(state, not self.layout.costly))
            for force in journals
            for _, stored in force.overrides.values()
            if (word := stored.intent.override) is not None
            for state in (word.state, *word.before)
        }
        ejections = [e for force in journals for _, stored in force.ejections.values() if (e := stored.intent.ejection) is not None]
        out = {ejection.instance.address for ejection in ejections}
        theirs = {server for ejection in ejections for server in ejection.others}
        for balancer in self.balancers.values():
            for ref, hands in balancer.hands.items():
                seen = balancer.seen(ref)
                is_known = len(self.folders) == 1 and ServerRef(balancer.name, ref) in theirs
                if hands.ours == "hand" and seen.address in out and not is_known:
                    hands.ours = "both"
                if seen.address is None or seen.operator is READY:
                    continue
                is_said = (seen.address, seen.operator) in words
                if is_said != (hands.operator == "us"):
                    hands.operator = "both"

    def _synced(self, path: str) -> None:
        if path.startswith("/state/"):
            self._check_orphans()

    def in_force(self, folder: str) -> InForce:
        """What this folder's journal would say after a power cut at this moment."""
        mark, data = self.disk.certain(f"{folder}/{journal.NAME}")
        if folder not in self._in_force or self._in_force[folder][0] != mark:
            self._in_force[folder] = mark, self._read(data)
        return self._in_force[folder][1]

    def _read(self, data: bytes) -> InForce:
        force = InForce()
        for stored in journal._parse(data, Path(journal.NAME)).stored:
            force.take(stored)
        return force

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(sidecar.folder for sidecar in self.sidecars))

    def _check_orphans(self) -> None:
        """What is out by us has an owner on disk, whatever happens to the power."""
        owned = {instance.address for folder in self.folders for instance in self.in_force(folder).ejections}
        for balancer in self.balancers.values():
            for ref, hands in balancer.hands.items():
                if hands.ours == "us" and balancer.seen(ref).address not in owned:
                    self.violated("orphan", f"{balancer.name}/{ref} is out by us, and no journal on disk knows of it")

    # ---- Watcher: at the balancers ----

    def pictured(self, balancer: Balancer, process: Process, moved: Mapping[str, int]) -> None:
        self._known[process, balancer.name] = moved

    def told(self, balancer: str, changes: Sequence[Change]) -> None:
        """The core has given these to the driver: what it could know is what it had seen by now."""
        process = CURRENT.get()
        assert process is not None
        for change in changes:
            self._told[id(change)] = change, self._known.get((process, balancer), {})

    def about_to_apply(self, balancer: Balancer, process: Process) -> None:
        self._check_writer(balancer, process)

    def _check_writer(self, balancer: Balancer, process: Process) -> None:
        """One writer: who tells it something holds the lock beside it."""
        holder = self.disk.holder(balancer.lock_path)
        if process.is_alive and holder is not process:
            was_slow = self.loop.now - balancer.link.changed_at < LONG_LOCK_GRACE_S
            grace_s = LONG_LOCK_GRACE_S if was_slow else LOCK_GRACE_S
            if self.loop.now - self._lock_gone_at.get(balancer.name, float("-inf")) < grace_s:
                return
            who = f"{self.sidecar_of[holder].name} has it" if holder is not None else "nobody has it"
            self.violated("one writer", f"{self.sidecar_of[process].name} writes to {balancer.name} without the lock ({who})")

    def about_to_write(self, balancer: Balancer, process: Process, change: Change) -> None:
        where, hands, seen = f"{balancer.name}/{change.ref}", balancer.hands[change.ref], balancer.seen(change.ref)
        self._check_writer(balancer, process)
        if change.on is not OURS:
            if seen.operator is not READY and hands.operator == "hand":
                self.violated("operator", f"{where}: {change.want.serve} is written over an operator's own {seen.operator}")
        elif change.want.serve is not NONE:
            if hands.ours == "hand":
                self.violated("ownership", f"{where} is given back, and it was taken out by a hand that is not ours")
        else:
            self._check_ejection(balancer, process, change, where)

    def _check_ejection(self, balancer: Balancer, process: Process, change: Change, where: str) -> None:
        seen = balancer.seen(change.ref)
        owned = {instance.address for instance in self.in_force(self.sidecar_of[process].folder).ejections}
        if seen.address not in owned:
            self.violated("journal", f"{where} is taken out, and no ejection of {seen.address} is on disk")
        if seen.operator is not READY:
            self.violated("operator", f"{where} is taken out while an operator has it in {seen.operator}")
        _, known = self._told.get(id(change), (change, {}))
        pool = change.ref.pool
        counted = [ref for ref, each in balancer.box.servers.items() if ref.pool == pool and each.operator is READY]
        out = sum(1 for ref in counted if ref == change.ref or not balancer.serves(ref))
        if known.get(pool, 0) == balancer.moved.get(pool, 0) and seen.serving and out > most_out(len(counted)):
            self.violated("floor", f"{where} is taken out: {out} of {len(counted)} would be out, {most_out(len(counted))} may be")

    def wrote(self, balancer: Balancer, process: Process, change: Change) -> None:
        self.writes += 1
        self.note(f"  {self.sidecar_of[process].name} -> {balancer.name}/{change.ref}: {change.want.serve} on {change.on} ({change.why})")
        if len(self.sidecars) > 1:  # for the other sidecar somebody else has changed something
            for key in [key for key in self._known if key[0] is not process and key[1] == balancer.name]:
                self._known[key] = dict.fromkeys(balancer.moved, -1) | {change.ref.pool: -1}
        self._check_orphans()

    def refused(self, balancer: Balancer, process: Process, change: Change, why: str) -> None:
        self.note(f"  {self.sidecar_of[process].name} -> {balancer.name}/{change.ref}: {change.want.serve} refused: {why}")

    # ---- what must not last, and what must not be left ----

    def _check_hunger(self) -> None:
        """A service with nothing in rotation, though something is out only by us and can be told so, is fed within seconds."""
        for service in self.layout.services:
            servers = [(b, ref) for s, name, p in self.layout.pools if s == service for b, ref in self._pool(name, p)]
            ours = [
                ref
                for b, ref in servers
                if b.hands[ref].ours == "us" and ref not in b.down and b.seen(ref).operator is READY and self._tells(b)
            ]
            frozen = any(name in self.in_force(folder).freezes for folder in self.folders for name in (service, ""))
            if not ours or frozen or any(b.serves(ref) for b, ref in servers):
                self._hungry_since.pop(service, None)
            elif self.loop.now - self._hungry_since.setdefault(service, self.loop.now) > HUNGRY_S:
                self.violated("floor", f"{service}: nothing has been in rotation for {HUNGRY_S:.0f} s, and {len(ours)} are out by us")

    def _pool(self, balancer: str, pool: str) -> list[tuple[Balancer, Ref]]:
        return [(self.balancers[balancer], ref) for ref in self.balancers[balancer].box.servers if ref.pool == pool]

    def _tells(self, balancer: Balancer) -> bool:
        """Can the one who has servers out there tell it so just now?"""
        holder = self.disk.holder(balancer.lock_path)
        return balancer.link.line == "good" and holder is not None and holder.runs and len(self.sidecars) == 1

    def check_peace(self) -> None:
        """All is well and nobody has said otherwise: nothing is on our conscience."""
        for balancer in self.balancers.values():
            for ref, hands in balancer.hands.items():
                seen = balancer.seen(ref)
                if hands.ours == "us" or hands.operator == "us":
                    self.violated("way back", f"{balancer.name}/{ref} is still {seen.ours.serve}, {seen.operator} by us, and all is well")
                if hands.ours == "" and seen.operator is READY and not seen.serving:
                    self.violated("way back", f"{balancer.name}/{ref} does not serve")
        for folder in self.folders:
            if left := self.in_force(folder).ejections:
                self.violated("orphan", f"the journal in {folder} still has {', '.join(map(str, left))} out")
        self._check()

    def final(self) -> dict[str, str]:
        """How each server stands, to compare two runs; an operator's word only where it is known whose it is."""
        return {
            f"{name}/{ref}": f"{seen.ours.serve}, weight {seen.weight}{'' if hands.operator == 'both' else f', {seen.operator}'}"
            for name, balancer in self.balancers.items()
            for ref, hands in balancer.hands.items()
            if (seen := balancer.seen(ref))
        }


# ---- in the places of the real edges ----


class WatchedDriver(drivers.Driver):
    """The real driver; what it is told is noted."""

    stack: Stack

    def tell(self, changes: Sequence[Change]) -> None:
        self.stack.told(self.host.name, changes)
        super().tell(changes)


class WatchedIntents(journal.Intents):
    """The real journal; what it has taken is noted."""

    stack: Stack

    def append(self, intents: Sequence[Intent]) -> None:
        super().append(intents)
        process = CURRENT.get()
        assert process is not None
        self.stack.journaled(process, intents)


class Storyteller:
    """Stands where the decision log stands: every sentence goes into the story."""

    dropped, problem = 0, ""

    def __init__(self, stack: Stack, directory: Path, *, max_bytes: int) -> None:
        process = CURRENT.get()
        assert process is not None
        self._stack, self._sidecar = stack, stack.sidecar_of[process]

    def append(self, events: Sequence[Event], wall_of: object) -> None:
        self._stack.tell(self._sidecar, events)

    def close(self) -> None: ...


class Quiet:
    """Stands where the log, the flight recorder and the history stand: nobody reads them here."""

    dropped, fault, problem, wants_segment = 0, "", "", False

    def __init__(self, *arguments: object) -> None: ...

    def tell(self, event: Event) -> None: ...

    def begin(self, *arguments: object) -> None: ...

    def batch(self, *arguments: object) -> None: ...

    def append(self, *arguments: object) -> None: ...

    def close(self) -> None: ...


class Counter:
    """Stands where the HTTP surface stands: operators give their orders at the desk behind it."""

    def __init__(self, stack: Stack, options: object, at: Desk) -> None:
        process = CURRENT.get()
        assert process is not None
        self._sidecar, self._desk = stack.sidecar_of[process], at

    async def open(self) -> list[str]:
        self._sidecar.desk = self._desk
        return []

    async def close(self) -> None: ...

    def renew(self, options: object) -> list[str]:
        return []


@dataclass
class Room:
    """Where a plugin runs: here on the same loop, so that one order of events is all there is."""

    name: str
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def aclose(self) -> None: ...


@contextlib.contextmanager
def surroundings(stack: Stack) -> Iterator[None]:
    """Inside, a started `App` runs in this machine."""
    loop, disk = stack.loop, stack.disk

    def wall() -> float:
        return loop.now + stack.wall_ahead_s

    times = SimpleNamespace(monotonic=loop.time, time=wall)
    files = disk.os()
    Remote.balancers = stack.balancers
    WatchedDriver.stack = WatchedIntents.stack = stack
    logging.disable(logging.CRITICAL)
    try:
        with put(
            (app, "EventLog", Quiet),
            (app, "Recorder", Quiet),
            (app, "History", Quiet),
            (app, "Decisions", partial(Storyteller, stack)),
            (app, "Web", partial(Counter, stack)),
            (app, "Engine", partial(Prober, stack.instances)),
            (app, "Host", partial(Host, room=Room)),
            (app, "Driver", WatchedDriver),
            (app, "Intents", WatchedIntents),
            (app, "Reconciler", lambda **given: Reconciler(**given, pen=InTurn(loop, lambda: disk.slow_s))),
            (app, "plugin_class", PLUGINS.__getitem__),
            (app, "load", lambda path: loaded(_current(stack).text)),
            (app, "_descriptors", lambda process: ""),
            (state_dir, "_ready", lambda path, origin, rights: state_dir.StateDir(path, origin)),
            (clock, "monotonic", loop.time),
            (clock, "boottime", loop.time),
            (clock, "wall", wall),
            (clock, "boot_id", lambda: f"boot-{stack.boots}"),
            (desk, "time", times),
            (lag, "time", times),
            (lag, "TICK_S", 0.1),
            (journal, "os", files),
            (journal, "open", disk.opened),
            (atomic, "os", files),
            (atomic, "open", disk.opened),
            (lock, "os", files),
            (lock, "fcntl", disk.fcntl()),
            (lock, "datetime", SimpleNamespace(now=lambda zone: datetime.fromtimestamp(wall(), zone))),
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _current(stack: Stack) -> Sidecar:
    process = CURRENT.get()
    assert process is not None
    return stack.sidecar_of[process]


__all__ = ["Layout", "Sidecar", "Stack", "Stored", "Violation", "address", "surroundings"]
