"""One plugin on a thread and loop of its own. Only values cross; a plugin that blocks or hangs harms nobody else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import Change, Pools, Ref, Refusal, Seen, TrafficSample

T = TypeVar("T")

STOP_S = 3.0


class Host:
    """Calls a plugin from our loop. One call at a time: a call that outlived its deadline must end before the next may begin."""

    def __init__(self, name: str, make: Callable[[], Balancer]) -> None:
        """`make` builds the plugin; it is called on the plugin's own thread."""
        self.name = name
        self._make = make
        self._plugin: Balancer | None = None
        self._is_open = False
        self._last: concurrent.futures.Future[Any] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"balancer-{name}", daemon=True)
        self._thread.start()

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str], within_s: float) -> Mapping[Ref, Seen]:
        """The picture of these pools; BalancerError when the balancer cannot be asked in time."""
        return await self._call(lambda plugin: plugin.observe(pools, notes), within_s, "asked")

    async def apply(self, changes: Sequence[Change], within_s: float) -> Sequence[Refusal]:
        """What was refused; BalancerError when the outcome is unknown."""
        return await self._call(lambda plugin: plugin.apply(changes), within_s, "told")

    async def members(self, pools: Pools, within_s: float) -> None:
        """Tell the plugin what discovery knows."""
        await self._call(lambda plugin: plugin.members(pools), within_s, "told its members")

    async def pools(self, within_s: float) -> frozenset[str]:
        """Names of all pools, where the plugin can list them."""
        return await self._call(lambda plugin: plugin.pools(), within_s, "asked for its pools")

    async def do(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Anything a plugin offers beside the contract, such as adopting an edited file."""
        return await self._call(what, within_s, "told")

    def lock_path(self) -> str | None:
        """Where the one-writer lock belongs; a plain question, no I/O by contract."""
        return self._built().lock_path()

    def listen(self, deliver: Callable[[Sequence[TrafficSample]], object]) -> None:
        """Pass on real requests as they come, on the plugin's thread; nothing happens where there is no feed."""

        async def feed() -> None:
            samples = self._built().traffic()
            if samples is not None:
                async for batch in samples:
                    deliver(batch)

        asyncio.run_coroutine_threadsafe(feed(), self._loop)

    async def aclose(self) -> None:
        """Close the plugin and end its thread; one that hangs is left behind."""

        async def close() -> None:
            if self._plugin is not None:
                await self._plugin.aclose()

        try:
            await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(close(), self._loop)), STOP_S)
        except (TimeoutError, BalancerError, OSError):
            pass
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, STOP_S)

    def _built(self) -> Balancer:
        if self._plugin is None:
            self._plugin = self._make()
        return self._plugin

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    async def _call(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], within_s: float, verb: str) -> T:
        if self._last is not None and not self._last.done():
            raise BalancerError(f"the plugin of {self.name} still has not come back from the last call")

        async def run() -> T:
            plugin = self._built()
            if not self._is_open:
                await plugin.open()
                self._is_open = True
            return await what(plugin)

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        self._last = future
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), within_s)
        except TimeoutError:
            raise BalancerError(f"{self.name} could not be {verb} within {within_s:g} s") from None
        except BalancerError:
            self._is_open = False
            raise
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a plugin is a stranger's code: its bug is this balancer's fault alone
            self._is_open = False
            raise BalancerError(f"the plugin of {self.name} failed: {type(error).__name__}: {str(error)[:200]}") from error
