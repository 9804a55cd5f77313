"""A running sidecar: configuration in, service out. The only file that knows every edge by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import psutil

from lbplugins.api import BalancerError
from lbplugins.values import Address, Ref, TrafficSample, Traits
from sidecar import __version__
from sidecar.balancers.driver import Driver
from sidecar.balancers.host import Host
from sidecar.balancers.undo import give_back, whereabouts
from sidecar.config import compose
from sidecar.config.load import Loaded, load, unusable_here
from sidecar.config.models import ANY, BalancerOptions, Config
from sidecar.config.plugins import plugin_class
from sidecar.core import traffic
from sidecar.core.histogram import Histogram
from sidecar.core.model import (
    Ask,
    Commanded,
    Configured,
    Decision,
    Ejection,
    Event,
    Fact,
    HoldName,
    Instance,
    Learned,
    Probed,
    Reason,
    Result,
    SelfChecked,
    ServerRef,
    Target,
    Verb,
)
from sidecar.core.policy import Mode, Policy, ServicePolicy
from sidecar.core.samples import Own, Sample, Tallies, each_sample
from sidecar.core.window import Latencies
from sidecar.desk import Desk, wall_of
from sidecar.discovery import source as discovery
from sidecar.eventlog import EventLog
from sidecar.journal.force import fold
from sidecar.journal.intents import Intents
from sidecar.journal.recorder import Recorder
from sidecar.net.lag import LagMeter
from sidecar.probes.engine import Engine
from sidecar.publish import Origin, publishers
from sidecar.publish.breath import breathing
from sidecar.reconcile import Reconciler
from sidecar.store import clock, learned, lease, lock, state_dir
from sidecar.store.decisions import Decisions
from sidecar.store.history import SPANS, History, rows
from sidecar.supervise import Supervisor
from sidecar.web.server import Web, WebError

log = logging.getLogger("sidecar.app")

SELF_CHECK_S = 0.25
CHECKS_A_DEAR_ONE = 4
"""One self-check in so many looks at what takes long with many targets: open descriptors, and whom nobody asks for any more."""
LEARNED_EVERY_S = 30.0
HISTORY_AFTER_S = 0.5
"""After its ten seconds are over they are collected: not at the moment when everything else turns a round second."""
POOLS_EVERY_S = 5.0
RESERVED_DESCRIPTORS = 32
NETWORK_AWAY_S = 1.0
"""A probe that our own network refused says so for this long."""
STOP_WITHIN_S = 3.0
TRAFFIC_EVERY_S = 0.02
"""How long real requests are gathered before the core hears of them."""
ALIVE_WITHIN_S = 5.0
LET_GO_WITHIN_S = 5.0
LOCK_PATH_WITHIN_S = 5.0
KEEPING = frozenset({HoldName.BALANCER_LOST, HoldName.NOT_WRITABLE, HoldName.STANDBY, HoldName.UNSETTLED})
"""Holds that say why what is out cannot be given back."""
STRAYS_EVERY_S = 1.0
STATE_EVERY_S = 1.0
"""How often to look whether the state folder is still there and ours."""


class StartError(Exception):
    """The sidecar cannot start; the message says what to do."""


class App:
    """One sidecar in this process. `start`, then `stop`; `loaded` must be free of errors."""

    def __init__(self, loaded: Loaded, *, observe: bool = False) -> None:
        self.loaded = loaded
        self.observe = observe
        self.config: Config = compose.observing(loaded.require()) if observe else loaded.require()
        self.latencies = Latencies()
        self.tallies = Tallies()
        self.started_at = 0.0
        self.drivers: dict[str, Driver] = {}
        self.has_state = False
        """Is the state folder ours? Until then a start may wait for ever."""
        self.is_lost = False
        """Has another sidecar our state folder? This one must end then, it can no longer write down what it does: `on_lost` is called."""
        self.on_lost: Callable[[], object] = lambda: None
        self._state_fault = ""
        self._leaving: dict[Driver, asyncio.Event] = {}
        self._reloading = asyncio.Lock()
        self._options: dict[str, BalancerOptions] = {}
        self._pools_known: dict[str, frozenset[str]] = {}
        self._unsaid_traffic: dict[str, list[tuple[Instance, TrafficSample]]] = {}
        self._services_at: dict[tuple[str, str], list[str]] = {}
        """By balancer and pool; and by balancer alone, where the pool is ""."""
        self._tasks = Supervisor()
        self.listeners: list[Callable[[Event], object]] = []
        self._lag = LagMeter()
        self._worst_lag = 0.0
        self._probe_lag: float | None = None
        self._told_members: tuple[Policy, list[Driver], dict[str, tuple[Instance, ...]]] | None = None
        self._lapses: Mapping[str, float] | None = None
        self._no_network, self._reached_at = (float("-inf"), ""), float("-inf")
        self._process = psutil.Process()
        self._own: Own | None = None

    # ---- life ----

    async def start(self) -> None:
        """Everything up. StartError when the state folder cannot be had; a balancer that is away is no reason not to start."""
        self.started_at = clock.monotonic()
        self.log = EventLog(self.config.log.level, self.config.log.format)
        self.listeners.append(self.log.tell)
        self._folder = state_dir.resolve(self.config.state.dir, os.environ)
        self.state = self._folder.path
        self.lease = lease.LeaseFile(self.state, clock.boot_id())
        self._state_lock = await self._lock_state()
        self.has_state = True
        self._intents = await asyncio.to_thread(Intents.open, self.state, boottime=clock.boottime, boot_id=clock.boot_id(), wall=clock.wall)
        for problem in self._intents.problems:
            log.warning("%s", problem)
        self._recorder = Recorder(self.state / "recorder", self.config.state.max_size)
        self.decisions = Decisions(self.state / "decisions", max_bytes=self.config.state.max_size // 8)
        self.history = History(self.state, self.config.state.max_size // 4)
        self.reconciler = Reconciler(
            prober=_Nobody(),
            journal=self._intents,
            recorder=self._recorder,
            latencies=self.latencies,
            tallies=self.tallies,
            on_decision=self._decided,
            on_facts=self._took,
        )
        self.web = Web(self.config.api, Desk(self))
        try:
            for line in await self.web.open():
                log.warning("%s", line)
        except WebError as error:
            raise StartError(str(error)) from error
        self._lag.start()
        # who loads a configuration asks `unusable_here`, which believes in programs only from root's own files
        self.engine = Engine(deliver=self.reconciler.deliver, lag=self._lag, allow_commands=True)
        self.reconciler.set_prober(self.engine)
        self._begin()
        self._tasks.start("self-check", self._check_self)
        self._tasks.start("state", self._keep_state)
        self._tasks.start("lease", self._renew_lease)
        self._tasks.start("learned", self._save_learned)
        self._tasks.start("pools", self._follow_pools)
        self._tasks.start("history", self._keep_history)
        self._publish()
        log.info("lb-sidecar %s runs, mode %s, state in %s (%s)", __version__, self.config.mode, self.state, self._folder.origin)

    def _publish(self) -> None:
        """Receivers as the configuration has them now."""
        for task in [t for t in self._tasks.names() if t.startswith("publish-")]:
            self._tasks.stop(task)
        origin = Origin(
            self._samples,
            self.decisions,
            histograms=lambda: self.tallies.latency,
            labels=lambda: {name: service.labels for name, service in self.config.services.items()},
            runbooks=lambda: {name: service.runbook or "" for name, service in self.config.services.items()},
        )
        self._publishers = publishers(self.config.publish, origin)
        for publisher in self._publishers:
            self._tasks.start(f"publish-{publisher.name}", publisher.run)

    def _begin(self) -> None:
        stored = self._intents.replayed
        adopted = fold(stored, clock.monotonic(), clock.boottime(), clock.boot_id(), clock.wall())
        known = learned.load(self.state)
        if known.fault:
            log.warning("%s", known.fault)
        self.engine.specs(compose.probe_specs(self.config))
        facts: list[Fact] = [
            replace(adopted, learned=known.targets),
            Configured(self._policy(), clock.monotonic(), str(self.loaded.path)),
        ]
        self.reconciler.deliver(facts)
        self._follow_config()
        self._find_strays(adopted.ejections, whereabouts(stored, {e.instance for e in adopted.ejections}), adopted.notes or {})

    def _find_strays(
        self, ejections: Sequence[Ejection], servers: frozenset[tuple[Instance, ServerRef]], notes: Mapping[ServerRef, str]
    ) -> None:
        """What an earlier life has out where this configuration has no service: nobody else would bring it back."""
        strays = [e for e in ejections if e.instance.service not in self.config.services]
        where = self._without_service(servers)
        gone = {server.balancer for _, server in where} - self.config.balancers.keys()
        for name in sorted(gone):
            refs = ", ".join(sorted({str(server.ref) for _, server in where if server.balancer == name}))
            self._tell(
                "balancer",
                f"{name}: {refs} is out by us from before and cannot be given back, for the configuration names no balancer {name} "
                "any more; name it again and reload, or make it ready there by hand",
            )
        for each in strays:
            if not any(instance == each.instance and server.balancer in gone for instance, server in where):
                log.warning("%s is out by us from before, and the configuration has its service no more: it is given back", each.instance)
        if strays or where:
            self._tasks.start("strays", partial(self._give_back_strays, strays, where, notes))

    def _without_service(self, servers: Iterable[tuple[Instance, ServerRef]]) -> list[tuple[Instance, ServerRef]]:
        """Those where the configuration as it is now has no service that would bring them back."""
        pools = {name: compose.pools_of(name, options) for name, options in self.config.services.items()}
        return [(i, server) for i, server in servers if (server.balancer, server.ref.pool) not in pools.get(i.service, ())]

    async def _give_back_strays(
        self, strays: Sequence[Ejection], servers: Sequence[tuple[Instance, ServerRef]], notes: Mapping[ServerRef, str]
    ) -> None:
        left = {server.balancer for _, server in servers}
        while left := {server.balancer for _, server in self._without_service(servers)} & left:
            for name in [n for n in left if n in self.drivers and self.drivers[n].is_writer]:
                here = [(i, server.ref.pool) for i, server in self._without_service(servers) if server.balancer == name]
                ours = {(pool, instance.address) for instance, pool in here}
                mine = {server.ref: note for server, note in notes.items() if server.balancer == name}
                with contextlib.suppress(BalancerError):
                    done, refused = await give_back(self.drivers[name].host, ours, mine, LET_GO_WITHIN_S)
                    if not refused:
                        left.discard(name)
                    for ref in done:
                        self._tell("returned", f"{name}/{ref} is given back: no service of the configuration has that pool any more")
            await asyncio.sleep(STRAYS_EVERY_S)
        still = [e for e in strays if e.instance.service not in self.config.services]  # a reload may have brought its service back
        self.reconciler.strike(still, "its service is no longer in the configuration")

    async def stop(self) -> None:
        """Finish what is under way, give up nothing that is out: a lease covers it until we, or the release timer, come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._tasks.aclose()
                await self.web.close()
                await self.engine.aclose()
                self.reconciler.close()
                await asyncio.gather(*(driver.aclose() for driver in [*self.drivers.values(), *self._leaving]))
        self.reconciler.close()
        self._lag.stop()
        self._say_what_stays_out()
        await asyncio.to_thread(self._last_words)

    def _say_what_stays_out(self) -> None:
        services = self.reconciler.world.services.values()
        out = [s.instance for service in services for s in service.instances.values() if s.ejection is not None and s.ejection.enforced]
        if out:
            names = ", ".join(map(str, out))
            log.info("lb-sidecar ends; still out by us: %s (`lb-sidecar release --expired` gives back once the lease is over)", names)
        else:
            log.info("lb-sidecar ends; nothing is out by us")

    def _last_words(self) -> None:
        self.reconciler.finish()
        self._save(self._learned())
        self._recorder.close()
        self._intents.close()
        self.decisions.close()
        self.history.close()
        self._state_lock.release()
        self.log.close()

    async def _lock_state(self) -> lock.Held:
        said = False
        while True:
            held = await asyncio.to_thread(lock.acquire, self.state / "lock")
            if isinstance(held, lock.Held):
                return held
            if isinstance(held, lock.Unusable):
                raise StartError(held.why)
            if not said:
                log.warning(
                    "the state folder %s is in use by %s, which acts; this one waits for its end (Ctrl-C ends this one)",
                    self.state,
                    held.by,
                )
                said = True
            await asyncio.sleep(0.2)

    # ---- configuration ----

    def _policy(self) -> Policy:
        traits: dict[str, Traits] = {name: plugin_class(b.plugin).traits for name, b in self.config.balancers.items()}
        return compose.policy(self.config, traits, self.loaded.hash)

    def _follow_config(self) -> None:
        """Drivers and sources as the configuration has them now."""
        policy = self._policy()
        self._services_at = {}
        for name, service in policy.services.items():
            for place in {*service.pools, *((balancer, "") for balancer, _ in service.pools)}:
                self._services_at.setdefault(place, []).append(name)
        for name in [n for n in self.drivers if n not in self.config.balancers]:
            self._drop_driver(name)
        for name, options in self.config.balancers.items():
            if name not in self.drivers:
                self._start_driver(name, policy)
            elif self._options[name] != options:
                self._start_driver(name, policy, self._drop_driver(name))
            driver = self.drivers[name]
            driver.policy = policy.balancers[name]
            driver.pools = frozenset(pool for s in policy.services.values() for owner, pool in s.pools if owner == name)
            driver.look()
        self.reconciler.tellers = dict(self.drivers)
        for task in [t for t in self._tasks.names() if t.startswith("source-")]:
            self._tasks.stop(task)
        for i, source in enumerate(compose.sources(self.config)):
            self._tasks.start(f"source-{i}-{source.name}", partial(discovery.run, source, self.reconciler.deliver))

    def _start_driver(self, name: str, policy: Policy, predecessor: asyncio.Event | None = None) -> None:
        """`predecessor`: set once the driver before it has let go of lock, ports and files."""
        options = self.config.balancers[name]
        host = Host(name, partial(plugin_class(options.plugin), options.options))
        notes = partial(self.reconciler.notes_of, name)
        driver = Driver(host, policy.balancers[name], self.reconciler.deliver, notes, self.state / f"writer-{name}.lock")
        self.drivers[name], self._options[name] = driver, options
        self._tasks.start(f"feed-{name}", partial(self._listen, host, predecessor))
        self._tasks.start(f"balancer-{name}", partial(_drive, driver, predecessor))

    async def _listen(self, host: Host, predecessor: asyncio.Event | None) -> None:
        if predecessor is not None:
            await predecessor.wait()
        host.listen(partial(self._heard, host.name))

    def _drop_driver(self, name: str) -> asyncio.Event:
        """Set once it has let go of the balancer."""
        self._tasks.stop(f"feed-{name}")
        self._tasks.stop(f"balancer-{name}")
        driver = self.drivers.pop(name)
        is_gone = self._leaving[driver] = asyncio.Event()
        self._tasks.start(f"closing-{name}-{id(driver)}", partial(self._close, driver))
        return is_gone

    async def _close(self, driver: Driver) -> None:
        try:
            await driver.aclose()
        finally:
            self._leaving.pop(driver).set()

    async def reload(self, actor: str) -> list[str]:
        """Take the file as it is now, or keep the old one and say every problem. One at a time: the last word is the newest file's."""
        async with self._reloading:
            fresh, problems = await asyncio.to_thread(_read, self.loaded.path)
            if problems:
                self._tell("config", f"reload refused, the old configuration goes on: {problems[0]}" + _more(problems))
                return problems
            config = compose.observing(fresh.require()) if self.observe else fresh.require()
            if problems := await self._let_go(self._expanded(config)):
                self._tell("config", f"reload refused, the old configuration goes on: {problems[0]}" + _more(problems))
                return problems
            self._take(fresh, config, actor)
        return []

    def _take(self, fresh: Loaded, config: Config, actor: str) -> None:
        self.engine.specs({**compose.probe_specs(self.config), **compose.probe_specs(config)})
        before, self.loaded, self.config = self.config, fresh, config
        for line in self.web.renew(config.api):
            log.warning("%s", line)
        if config.state != before.state:
            log.warning("state is changed; it takes effect at the next start")
        if config.log.format != before.log.format:
            log.warning("log.format is changed; it takes effect at the next start")
        logging.getLogger("sidecar").setLevel(config.log.level.upper())
        if config.publish != before.publish:
            self._publish()
        self._expand()
        self._configure(f"reloaded by {actor}")

    async def _let_go(self, config: Config) -> list[str]:
        """Give back what we have out in services that the new configuration takes out of our hands, while we still know how.

        What could not be given back is named, and why: without its service nobody would bring it back any more.
        """
        traits = {name: plugin_class(b.plugin).traits for name, b in config.balancers.items()}
        coming = compose.policy(config, traits)
        moved = await self._moved(config)
        old_services = self.reconciler.world.policy.services
        leaving = [name for name, old in old_services.items() if _leaves(old, coming.services.get(name), coming, moved)]
        reason = "the new configuration takes it out of our hands"
        facts = [Commanded(Verb.GIVE_BACK, "sidecar", clock.monotonic(), name, reason=reason) for name in leaving]
        self.reconciler.deliver(facts)
        deadline = clock.monotonic() + LET_GO_WITHIN_S
        while self._is_out(leaving) and clock.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return [f"services.{name}: {self._why_out(name)}" for name in leaving if self._is_out([name])]

    def _why_out(self, service: str) -> str:
        why = {hold.why for hold in self.reconciler.holds if hold.service == service and hold.name in KEEPING}
        because = f" ({'; '.join(sorted(why))})" if why else ""
        return (
            f"what we have out could not be given back within {LET_GO_WITHIN_S:g} s{because}, and would stay out; "
            "reload again once it can, or restart, which takes the new file and keeps trying"
        )

    async def _moved(self, config: Config) -> frozenset[str]:
        """Balancers whose name will stand for another one, or for less: what is out on the old must not stay there without us."""
        changed = [name for name in self.drivers if name in config.balancers and config.balancers[name] != self._options[name]]
        return frozenset([name for name in changed if await _is_left(name, self._options[name], config.balancers[name])])

    def _is_out(self, names: Sequence[str]) -> bool:
        services = [self.reconciler.world.services[n] for n in names if n in self.reconciler.world.services]
        return any(s.ejection is not None and s.ejection.enforced for service in services for s in service.instances.values())

    def _configure(self, word: str) -> None:
        self.reconciler.deliver((Configured(self._policy(), clock.monotonic(), str(self.loaded.path)),))
        self._follow_config()
        self._tell("config", f"configuration {word} from {self.loaded.path}, hash {self.loaded.hash}")

    def _expanded(self, config: Config) -> Config:
        """With a service for each pool that none names, as far as the balancers have told their pools."""
        for name, pools in self._pools_known.items():
            config = compose.expand(config, name, pools)
        return config

    def _expand(self) -> bool:
        before, self.config = self.config, self._expanded(self.config)
        return len(self.config.services) != len(before.services)

    async def _follow_pools(self) -> None:
        """For the service `*`: which pools the balancers have."""
        while True:
            template = self.config.services.get(ANY)
            for name in sorted(compose.any_balancers(template)) if template is not None else ():
                with contextlib.suppress(BalancerError):
                    self._pools_known[name] = await self.drivers[name].host.pools(5.0)
            if self._expand():
                self._configure("extended with pools that no service names")
            await asyncio.sleep(POOLS_EVERY_S)

    # ---- what goes on beside the loop ----

    async def _check_self(self) -> None:
        self._lag.worst_since_last()  # what starting up took is over
        for number in count():
            self._worst_lag = self._lag.worst_since_last()
            fault = self._state_fault or self.reconciler.journal_fault
            if self.reconciler.journal_fault:
                self.reconciler.try_journal()
            standby = {n: d.standby for n, d in self.drivers.items() if d.standby and self._writes(n)}
            now = clock.monotonic()
            since, why = self._no_network
            # one address without a route is its own trouble; only when nobody at all can be reached it is ours
            is_cut_off = now - since < NETWORK_AWAY_S < since - self._reached_at
            network = f"our own network is not there ({why})" if is_cut_off else ""
            if is_dear := number % CHECKS_A_DEAR_ONE == 0:
                descriptors = _descriptors(self._process)
                late, self.engine.lateness = self.engine.lateness, Histogram()
                self._probe_lag = late.quantile(0.99) if late.count else None
            self.reconciler.deliver((SelfChecked(now, self._worst_lag, network, descriptors, fault, standby),))
            self._tell_members()
            for target in self.engine.targets() - self.reconciler.world.targets.keys() if is_dear else ():
                self.engine.forget(target)
            await asyncio.sleep(SELF_CHECK_S)

    def _tell_members(self) -> None:
        """Plugins whose pools we fill learn here what discovery knows; the others listen to nobody."""
        world = self.reconciler.world
        told = (world.policy, [*self.drivers.values()], {name: (*service.instances,) for name, service in world.services.items()})
        if told == self._told_members:
            return
        self._told_members = told
        for name, driver in self.drivers.items():
            pools: dict[str, dict[Ref, Address]] = {}
            for service_name, policy in world.policy.services.items():
                for owner, pool in policy.pools:
                    if owner == name and not policy.from_balancer:
                        known = world.services[service_name].instances
                        pools.setdefault(pool, {}).update({Ref(pool, str(i.address)): i.address for i in known})
            driver.members(pools)

    def _writes(self, balancer: str) -> bool:
        policy = self.reconciler.world.policy.balancers.get(balancer)
        return policy is not None and policy.mode is Mode.ACT

    async def _keep_state(self) -> None:
        """A state folder that is removed under our feet is made again, with what is out written into it; else nobody may go out."""
        while True:
            if not await asyncio.to_thread(self._state_lock.still_held):
                await self._restore_state()
            await asyncio.sleep(STATE_EVERY_S)

    async def _restore_state(self) -> None:
        try:
            await asyncio.to_thread(self._folder.restore)
            held = await asyncio.to_thread(lock.acquire, self.state / "lock")
        except state_dir.StateDirError as error:
            self._state_fault = str(error)
            return
        match held:
            case lock.Busy():
                self._state_fault = f"the state folder {self.state} or its lock was removed, and {held.by} has it now"
                log.error("%s: this one ends, and leaves to it what is out", self._state_fault)
                self.is_lost = True
                self.on_lost()
            case lock.Unusable():
                self._state_fault = held.why
            case lock.Held():
                self._state_lock.release()
                self._state_lock, self._state_fault = held, ""
                self.reconciler.write_anew()
                await self._renew()
                self._tell(
                    "self", f"the state folder {self.state} or its lock was removed by somebody; it is there again, with what is out"
                )

    async def _renew_lease(self) -> None:
        while True:
            await self._renew()
            await asyncio.sleep(lease.RENEW_S / 3)

    async def _renew(self) -> None:
        if any(self._writes(name) for name in self.drivers):  # who only observes cannot give back, so it must not promise to
            try:
                await asyncio.to_thread(self.lease.renew, clock.boottime() + lease.LEASE_S, self._standing_by())
            except lease.LeaseError as error:
                log.warning("%s", error)

    def _standing_by(self) -> Mapping[str, float]:
        """Balancers to which another writes, each with the end of our lease there: from when we began to wait, over our restarts."""
        if self._lapses is None:
            before = self.lease.read()
            self._lapses = dict(before.standing_by) if before.boot_id == clock.boot_id() else {}
        end = clock.boottime() + lease.LEASE_S
        waiting = {name: driver for name, driver in self.drivers.items() if self._writes(name) and not driver.is_writer}
        self._lapses = {name: self._lapses.get(name, end) for name, driver in waiting.items() if driver.standby or name in self._lapses}
        return self._lapses

    async def _save_learned(self) -> None:
        while True:
            await asyncio.sleep(LEARNED_EVERY_S)
            await asyncio.to_thread(self._save, self._learned())

    def _save(self, known: Mapping[Target, Learned]) -> None:
        with contextlib.suppress(learned.LearnedError):
            learned.save(self.state, known)

    async def _keep_history(self) -> None:
        """Every ten seconds what was measured in them, when they are over and in pieces; what a stall of minutes hid is left out."""
        span = SPANS[0]
        told = int(clock.monotonic()) // span * span
        while True:
            await asyncio.sleep(span - clock.monotonic() % span + HISTORY_AFTER_S)
            now = clock.monotonic()
            end = int(now) // span * span
            for start in range(max(told, end - 4 * span), end, span):
                found = rows(self.reconciler.world, self.latencies, start, start + span, now)
                self.history.append(int(wall_of(start).timestamp()), [row async for row in breathing(found, 16) if row is not None])
            told = end

    def _learned(self) -> dict[Target, Learned]:
        return {
            name: Learned(t.good, t.median_s, t.slow_s)
            for name, t in self.reconciler.world.targets.items()
            if t.good >= self.reconciler.world.policy.pace.learn_good
        }

    def _decided(self, decision: Decision) -> None:
        self.tallies.count_decision(decision)
        if decision.events:
            self.decisions.append(decision.events, wall_of)
            for event in decision.events:
                for tell in self.listeners:
                    tell(event)

    def _took(self, facts: Sequence[Fact]) -> None:
        own_network, unknown, world = Reason.OWN_NETWORK, Result.UNKNOWN, self.reconciler.world
        for fact in facts:
            if type(fact) is Probed:
                outcome = fact.outcome
                if outcome.reason is own_network:
                    self._no_network = (outcome.ended, outcome.detail)
                elif outcome.result is not unknown:
                    self._reached_at = outcome.ended
            else:
                self.tallies.count(fact, world)

    def _heard(self, balancer: str, batch: Sequence[TrafficSample]) -> None:
        """Real requests: their response times by instance at once, as evidence a moment's worth at a time."""
        heard = self._unsaid_traffic.get(balancer)
        if heard is None:
            heard = self._unsaid_traffic[balancer] = []
            asyncio.get_running_loop().call_later(TRAFFIC_EVERY_S, self._say_traffic, balancer)
        for sample in batch:
            instance = self._instance_of(balancer, sample.where)
            if instance is None:
                continue
            heard.append((instance, sample))
            is_good = traffic.was_good(sample)
            if is_good is None:
                continue
            if is_good and sample.seconds is not None:
                self.latencies.add(instance, "traffic", sample.seconds, sample.at)
            else:
                self.latencies.fail(instance, "traffic", sample.at)
            self.tallies.count_traffic(instance.service, is_good, sample.seconds)

    def _say_traffic(self, balancer: str) -> None:
        if heard := self._unsaid_traffic.pop(balancer):
            self.reconciler.deliver((traffic.tally(balancer, asyncio.get_running_loop().time(), heard),))

    def _instance_of(self, balancer: str, where: Ref | Address) -> Instance | None:
        """Whose a request was: by server, or by address where the feed knows no more."""
        world, pool = self.reconciler.world, ""
        if isinstance(where, Ref):
            picture = world.balancers.get(balancer)
            seen = picture.seen.get(where) if picture is not None else None
            if seen is None or seen.address is None:
                return None
            pool, address = where.pool, seen.address
        else:
            address = where
        found = (Instance(name, address) for name in self._services_at.get((balancer, pool), ()))
        return next((each for each in found if each.service in world.services and each in world.services[each.service].instances), None)

    def _samples(self) -> Iterator[Sample]:
        world = self.reconciler.world
        return each_sample(world, world.policy, self.latencies, clock.monotonic(), self.own())

    def _tell(self, kind: str, sentence: str) -> None:
        event = Event(kind, clock.monotonic(), "sidecar", sentence)
        self.decisions.append((event,), wall_of)
        self.log.tell(event)

    def is_alive(self) -> bool:
        """Decisions are being made."""
        return clock.monotonic() - self.reconciler.turned_at < ALIVE_WITHIN_S

    def own(self) -> Own:
        """What we know of ourselves, for metrics and page."""
        times = self._process.cpu_times()
        return Own(
            self.tallies,
            __version__,
            clock.monotonic() - self.started_at,
            self._worst_lag,
            self._process.memory_info().rss,
            times.user + times.system,
            self.reconciler.holds,
            {p.name: p.count() for p in self._publishers},
            decisions_dropped=self.decisions.dropped,
            recorder_dropped=self._recorder.dropped,
            probe_lag_s=self._probe_lag,
        )

    def notes(self) -> list[str]:
        """What a person should know about this sidecar itself."""
        found = [f"{name} failed and was started again: {why}" for name, why in self._tasks.faults.items()]
        for name, driver in self.drivers.items():
            found += [f"{name}: {word}" for word in (driver.warning, driver.host.feed_fault) if word]
        return [*found, *(fault for fault in (self._recorder.fault, self.decisions.problem, self.history.problem) if fault)]


class _Nobody:
    """Stands in until the engine, which needs the reconciler first, is there."""

    def ask_all(self, asks: Iterable[Ask]) -> None:
        raise AssertionError("nothing is asked before the engine is there")


async def _is_left(name: str, old: BalancerOptions, new: BalancerOptions) -> bool:
    """Does anything to which the old options lead lie beyond the new ones?"""
    return old.plugin != new.plugin or not await _places_of(name, old) <= await _places_of(name, new)


async def _places_of(name: str, options: BalancerOptions) -> frozenset[str]:
    host = Host(name, partial(plugin_class(options.plugin), options.options))
    try:
        return await host.places(LOCK_PATH_WITHIN_S)
    except BalancerError:
        return frozenset()
    finally:
        await host.aclose()


async def _drive(driver: Driver, predecessor: asyncio.Event | None) -> None:
    if predecessor is not None:
        await predecessor.wait()
    await driver.run()


def _read(path: Path) -> tuple[Loaded, list[str]]:
    """A configuration, and all that speaks against running it here; blocks on the disk."""
    loaded = load(path)
    return loaded, [str(problem) for problem in (*loaded.errors, *unusable_here(loaded))]


def _leaves(old: ServicePolicy, new: ServicePolicy | None, policy: Policy, moved: frozenset[str]) -> bool:
    """Could we no longer undo under the new policy what we did under the old one? `moved`: balancers that will be others."""
    if new is None or not set(old.pools) <= set(new.pools) or any(balancer in moved for balancer, _ in old.pools):
        return True
    acts = {balancer for balancer, _ in new.pools if policy.balancers[balancer].mode is Mode.ACT}
    return new.mode is Mode.OBSERVE or any(balancer not in acts for balancer, _ in old.pools)


def _more(problems: Sequence[str]) -> str:
    return f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""


def _descriptors(process: psutil.Process) -> str:
    """Why we could not open what a decision needs; "" while there are enough."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = limit - process.num_fds()
    return f"{free} file descriptors left of {limit}" if free < min(RESERVED_DESCRIPTORS, limit // 4) else ""
