"""Keeps one balancer observed and told: apply, then look; look in between; one transaction at a time; one writer per balancer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lbplugins.api import BalancerError
from lbplugins.values import Axis, Change, Pools, Ref
from sidecar.balancers.host import Host
from sidecar.core.model import Applied, Fact, Pictured
from sidecar.core.policy import BalancerPolicy, Mode
from sidecar.store.lock import Busy, Held, acquire

OBSERVE_WITHIN_S, APPLY_WITHIN_S = 5.0, 20.0
JOIN_S = 1.0
"""On a costly balancer the first change goes at once, those within the next second share the following reload."""


class Driver:
    """Owns one Host, its pending changes and its lock. Runs on our loop; delivers `Pictured` and `Applied`."""

    def __init__(
        self,
        host: Host,
        policy: BalancerPolicy,
        deliver: Callable[[Sequence[Fact]], None],
        notes: Callable[[], Mapping[Ref, str]],
        fallback_lock: Path,
    ) -> None:
        """`notes`: the last journaled ones of this balancer's servers, asked for at each look."""
        self.host = host
        self.policy = policy
        self.pools: frozenset[str] = frozenset()
        self._members: Pools = {}
        self._told_members: Pools = {}
        self._notes = notes
        self.standby = ""
        """For whom we do not write. Empty before the first try as well: without the lock nothing is written either way."""
        self.warning = ""
        self._deliver = deliver
        self._fallback_lock = fallback_lock
        self._lock: Held | None = None
        self._pending: dict[tuple[Ref, Axis], Change] = {}
        self._wake = asyncio.Event()
        self._look_now = False
        self._applied_at = float("-inf")

    @property
    def is_writer(self) -> bool:
        """May we write to it now?"""
        return self._lock is not None and not self.standby

    def tell(self, changes: Sequence[Change]) -> None:
        """These should be so; a newer word about a server replaces an older one that was not sent yet."""
        for change in changes:
            self._pending[(change.ref, change.on)] = change
        self._wake.set()

    def members(self, pools: Pools) -> None:
        """What discovery knows of pools whose members the balancer does not list itself."""
        if pools != self._members:
            self._members = pools
            self.look()

    def look(self) -> None:
        """Observe now rather than at the next turn."""
        self._look_now = True
        self._wake.set()

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            await self._take_lock()
            if self._pending and loop.time() >= self._may_apply_at():
                await self._apply()
                look_at = loop.time()
            if self._look_now or loop.time() >= look_at:
                self._look_now = False
                started = loop.time()
                await self._observe()
                look_at = started + self.policy.observe_every_s
            due = min(look_at, self._may_apply_at() if self._pending else look_at)
            self._wake.clear()
            if self._look_now:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self._wake.wait()

    async def aclose(self) -> None:
        """Let go of the balancer and of the lock. Safe twice."""
        try:
            await self.host.aclose()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _take_lock(self) -> None:
        """Become the one writer of this balancer, or stand by and say for whom. Who only observes keeps nobody from writing."""
        if self.policy.mode is Mode.OBSERVE:
            self._unlock()
            self.standby = ""
            return
        if self._lock is not None and self._lock.still_held():
            return
        self._unlock()
        try:
            beside = await self.host.writer_lock(OBSERVE_WITHIN_S)
        except BalancerError as error:
            self.standby = str(error)
            return
        got = acquire(Path(beside)) if beside else acquire(self._fallback_lock)
        if not isinstance(got, Held | Busy) and beside:
            self.warning = f"{got.why}; it is kept at {self._fallback_lock}, which sidecars on other machines or in containers cannot see"
            got = acquire(self._fallback_lock)
        if isinstance(got, Held):
            self._lock, self.standby = got, ""
        elif isinstance(got, Busy):
            self.standby = f"another sidecar writes to it: {got.by}"
        else:
            self.standby = got.why

    def _may_apply_at(self) -> float:
        return self._applied_at + JOIN_S if self.policy.costly else float("-inf")

    async def _apply(self) -> None:
        changes = tuple(self._pending.values())
        self._pending.clear()
        loop = asyncio.get_running_loop()
        if not self.is_writer:
            return
        try:
            refusals = await self.host.apply(changes, APPLY_WITHIN_S)
        except BalancerError as error:
            self._deliver((Applied(self.host.name, loop.time(), changes, error=str(error)),))
            return
        finally:
            self._applied_at = loop.time()
        refused = tuple((r.change, r.reason) for r in refusals)
        named = {(change.ref, change.on) for change, _ in refused}
        done = tuple(c for c in changes if (c.ref, c.on) not in named)
        self._deliver((Applied(self.host.name, loop.time(), done, refused),))

    async def _observe(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._members != self._told_members:
                members = self._members
                await self.host.members(members, OBSERVE_WITHIN_S)
                self._told_members = members
            seen = await self.host.observe(self.pools, self._notes(), OBSERVE_WITHIN_S)
        except BalancerError as error:
            self._deliver((Pictured(self.host.name, loop.time(), error=str(error)),))
            return
        self._deliver((Pictured(self.host.name, loop.time(), dict(seen), frozenset(ref.pool for ref in seen)),))
