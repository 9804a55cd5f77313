"""The desk: what the HTTP surface asks and commands of the running sidecar. Implements `sidecar.web.desk.Desk`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from lbplugins.api import Balancer
from lbplugins.values import Operator
from sidecar.balancers.driver import Driver
from sidecar.core import guard
from sidecar.core.model import Commanded, Hold, Instance, Verb
from sidecar.core.policy import Policy
from sidecar.core.samples import Own, condensed
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.publish.prometheus import Writer, chosen
from sidecar.reconcile import Reconciler
from sidecar.store.decisions import Decisions
from sidecar.store.history import History
from sidecar.web.desk import SelfHealth

JOURNALED_WITHIN_S = 5.0
POLL_S = 0.05
READY_SHOWS_WITHIN_S = 2.0
ADOPT_WITHIN_S = 30.0


class Sidecar(Protocol):
    """What the desk needs of the application."""

    reconciler: Reconciler
    latencies: Latencies
    decisions: Decisions
    history: History

    @property
    def drivers(self) -> Mapping[str, Driver]: ...
    def own(self) -> Own: ...
    def notes(self) -> list[str]: ...
    async def reload(self, actor: str) -> list[str]: ...


class Desk:
    """One per sidecar; called on its loop."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._scraped = Writer()

    @property
    def world(self) -> World:
        return self._sidecar.reconciler.world

    @property
    def policy(self) -> Policy:
        return self.world.policy

    @property
    def latencies(self) -> Latencies:
        return self._sidecar.latencies

    @property
    def decisions(self) -> Decisions:
        return self._sidecar.decisions

    @property
    def history(self) -> History:
        return self._sidecar.history

    def now(self) -> float:
        return time.monotonic()

    def wall_of(self, at: float) -> datetime:
        return wall_of(at)

    def holds(self) -> tuple[Hold, ...]:
        return self._sidecar.reconciler.holds

    def self_health(self) -> SelfHealth:
        own, policy = self._sidecar.own(), self.policy
        modes = {s.mode.value for s in policy.services.values()}
        return {
            "version": own.version,
            "mode": modes.pop() if len(modes) == 1 else "mixed",
            "config_hash": policy.config_hash,
            "policy_version": policy.version,
            "uptime_s": own.uptime_s,
            "loop_lag_s": own.lag_s,
            "rss_bytes": own.rss_bytes or 0,
            "decided_at": self._sidecar.reconciler.turned_at,
            "notes": self._sidecar.notes(),
        }

    async def metrics(self, accept: str | None) -> tuple[bytes, str]:
        form = chosen(accept)
        own = self._sidecar.own()
        found = condensed(self.world, self.policy, self.latencies, self.now(), own)
        return await self._scraped.page(found, form, own.tallies.latency), form.value

    async def command(self, command: Commanded) -> str | Hold:
        """Refused by a guard at once, or obeyed: the sentence comes when it is journaled."""
        if (hold := guard.against_command(self.world, command, self.now())) is not None:
            return hold
        journaled = self._sidecar.reconciler.next_journaled()
        self._sidecar.reconciler.deliver((command,))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(journaled, JOURNALED_WITHIN_S)
        if command.verb is Verb.OVERRIDE and command.state is Operator.READY and command.instance is not None:
            await self.wait_for(command.instance, Operator.READY, READY_SHOWS_WITHIN_S)
        return _obeyed(command)

    async def wait_for(self, instance: Instance, state: Operator, seconds: float) -> bool:
        deadline = self.now() + seconds
        while not self._shows(instance, state):
            if self.now() >= deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _shows(self, instance: Instance, state: Operator) -> bool:
        found = self.world.state_of(instance)
        if found is None or not found.servers:
            return False
        seen = [self.world.seen(server) for server in found.servers]
        if state is Operator.READY:
            return all(s is not None and s.operator is Operator.READY for s in seen)
        # a balancer without drain shows maintenance instead, which is stricter
        return all(s is not None and s.operator is not Operator.READY and not s.in_flight for s in seen)

    async def reload(self, actor: str) -> list[str]:
        return await self._sidecar.reload(actor)

    async def adopt(self, balancer: str, pool: str, diff: bool, actor: str) -> str:
        driver = self._sidecar.drivers.get(balancer)
        if driver is None:
            raise ValueError(f"no balancer {balancer!r}; there are: {', '.join(sorted(self._sidecar.drivers))}")
        service = next((n for n, p in self.policy.services.items() if (balancer, pool) in p.pools), None)
        if service is None:
            raise ValueError(f"no service uses the pool {balancer}/{pool}")
        words = [await self._edited(driver, pool, diff=diff), *self._orphans(service, balancer, pool)]
        if not diff:
            self._sidecar.reconciler.deliver((Commanded(Verb.ADOPT, actor, self.now(), service),))
            driver.look()
        told = "\n".join(word for word in words if word)
        return told or f"nothing to adopt in {balancer}/{pool}"

    async def _edited(self, driver: Driver, pool: str, *, diff: bool) -> str:
        """A plugin that keeps a file shows and takes over what was edited there by hand."""

        async def ask(plugin: Balancer) -> str:
            method: Callable[[str], object] | None = getattr(plugin, "diff" if diff else "adopt", None)
            if method is None:
                return ""
            answer = method(pool)
            told = await answer if inspect.isawaitable(answer) else answer
            return str(told or "")

        return await driver.host.do(ask, ADOPT_WITHIN_S)

    def _orphans(self, service: str, balancer: str, pool: str) -> list[str]:
        found = []
        for state in self.world.services[service].instances.values():
            for server in state.servers:
                seen = self.world.seen(server)
                if (server.balancer, server.ref.pool) == (balancer, pool) and seen is not None and guard.is_orphan(state, seen):
                    found.append(f"{server} is out and nobody we know did it: ours from now on, back as soon as it answers well")
        return found


def _obeyed(command: Commanded) -> str:
    what = str(command.instance or command.service or "everything")
    words = {Verb.FREEZE: "frozen", Verb.UNFREEZE: "unfrozen", Verb.RELEASE: "released", Verb.CLEAR: "cleared", Verb.ADOPT: "adopted"}
    return f"{what} {words.get(command.verb, command.state.value)} by {command.actor}"


def wall_of(at: float) -> datetime:
    """The UTC moment of a monotonic one, by the clocks as they stand now."""
    return datetime.fromtimestamp(time.time() - (time.monotonic() - at), UTC)
