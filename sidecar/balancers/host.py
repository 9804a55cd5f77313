"""One plugin on a thread and loop of its own. Only values cross; a plugin that blocks or hangs harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from math import isfinite
from typing import Any, Protocol, TypeGuard, TypeVar

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import Address, Change, Counters, Operator, Pools, Ref, Refusal, Seen, Serve, Setting, TrafficSample

T = TypeVar("T")

CLOSE_S, JOIN_S = 1.5, 0.5
"""How long a plugin may take to let go, and its thread to end; what hangs longer is left behind."""
FEED_AGAIN_S, FEED_AGAIN_MOST_S = 1.0, 30.0


COUNT_MAX, TEXT_MAX, SETTLE_MAX_S = (1 << 63) - 1, 64 << 10, 3600.0
"""What a balancer may say at most, in numbers, characters and seconds: more is a bug of its plugin."""


FEED_WAITING, FEED_PAUSE_S = 8, 0.02
"""Batches of real requests that may wait for our loop, and how long the feed rests when there are more."""


class Room(Protocol):
    """Where a plugin runs: a loop that runs already, apart from ours."""

    loop: asyncio.AbstractEventLoop

    async def aclose(self) -> None: ...


class Thread:
    """A loop on a thread of its own, from now until `aclose`."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def aclose(self) -> None:
        """End it; one that hangs is left behind."""
        self._is_closing = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join, JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_closing:  # a plugin that stops its loop, or exits on it, is put on it again
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


class Host:
    """Calls a plugin from our loop. One call at a time: a call that outlived its deadline must end before the next may begin."""

    def __init__(self, name: str, make: Callable[[], Balancer], room: Callable[[str], Room] = Thread) -> None:
        """`make` builds the plugin; it is called in the plugin's own room, a thread unless said otherwise."""
        self.name = name
        self.feed_fault = ""
        """Why no real requests are heard of just now; "" = they are, or there is no feed."""
        self._make = make
        self._plugin: Balancer | None = None
        self._is_open = False
        self._turn = asyncio.Lock()
        self._is_closing = False
        self._room = room(f"balancer-{name}")
        self._loop = self._room.loop

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str], within_s: float) -> Mapping[Ref, Seen]:
        """The picture of these pools; BalancerError when the balancer cannot be asked in time."""

        async def ask(plugin: Balancer) -> Mapping[Ref, Seen]:
            return self._sound(await plugin.observe(pools, notes))

        return await self._call(ask, within_s, "asked")

    async def apply(self, changes: Sequence[Change], within_s: float) -> Sequence[Refusal]:
        """What was refused; BalancerError when the outcome is unknown."""

        async def tell(plugin: Balancer) -> Sequence[Refusal]:
            answer = await plugin.apply(changes)
            asked = {(change.ref, change.on) for change in changes}
            refused = tuple(answer) if isinstance(answer, Sequence) else (None,)
            if not all(_is_refusal(r) and (r.change.ref, r.change.on) in asked for r in refused):
                raise BalancerError(f"the plugin of {self.name} answered {answer!r:.100} to changes, where refusals were due")
            return refused

        return await self._call(tell, within_s, "told")

    async def members(self, pools: Pools, within_s: float) -> None:
        """Tell the plugin what discovery knows."""
        await self._call(lambda plugin: plugin.members(pools), within_s, "told its members")

    async def pools(self, within_s: float) -> frozenset[str]:
        """Names of all pools, where the plugin can list them."""

        async def ask(plugin: Balancer) -> frozenset[str]:
            return frozenset(map(str, await plugin.pools()))

        return await self._call(ask, within_s, "asked for its pools")

    async def do(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Anything a plugin offers beside the contract, such as adopting an edited file."""
        return await self._call(what, within_s, "told")

    def lock_path(self) -> str | None:
        """Where the one-writer lock belongs, asked on the caller's thread: for one who may wait, before any other call."""
        return self._built().lock_path()

    async def writer_lock(self, within_s: float) -> str | None:
        """Where the one-writer lock belongs. The balancer need not be there for it."""

        async def ask(plugin: Balancer) -> str | None:
            return plugin.lock_path()

        return await self._call(ask, within_s, "asked for its lock", opened=False)

    async def places(self, within_s: float) -> frozenset[str]:
        """Where the plugin writes. The balancer need not be there for it."""

        async def ask(plugin: Balancer) -> frozenset[str]:
            return frozenset(map(str, plugin.places()))

        return await self._call(ask, within_s, "asked where it writes", opened=False)

    def listen(self, deliver: Callable[[Sequence[TrafficSample]], object]) -> None:
        """Pass on real requests as they come, on our loop; nothing happens where there is no feed. One that is too fast waits for us."""
        ours = asyncio.get_running_loop()
        waiting: deque[Sequence[TrafficSample]] = deque()

        def hear() -> None:
            deliver(waiting.popleft())

        async def pass_on(batch: Sequence[TrafficSample]) -> None:
            waiting.append(batch)
            ours.call_soon_threadsafe(hear)
            await asyncio.sleep(0)  # a feed that never waits would keep the plugin from all else
            while len(waiting) >= FEED_WAITING:
                await asyncio.sleep(FEED_PAUSE_S)

        asyncio.run_coroutine_threadsafe(self._feed(pass_on), self._loop)

    async def aclose(self) -> None:
        """Close the plugin and end its thread; one that hangs is left behind. Safe twice."""
        if self._is_closing:
            return

        async def close(plugin: Balancer) -> None:
            await plugin.aclose()

        try:
            if self._plugin is not None:
                with contextlib.suppress(BalancerError):  # whatever it fails with, we leave
                    await self._call(close, CLOSE_S, "closed", opened=False)
        finally:
            self._is_closing = True
            await self._room.aclose()

    # ---- on the plugin's thread ----

    def _built(self) -> Balancer:
        if self._plugin is None:
            self._plugin = self._make()
        return self._plugin

    async def _feed(self, pass_on: Callable[[Sequence[TrafficSample]], Awaitable[None]]) -> None:
        wait = FEED_AGAIN_S
        while True:
            try:
                samples = self._built().traffic()
                if samples is None:
                    return
                async for batch in samples:
                    self.feed_fault, wait = "", FEED_AGAIN_S
                    await pass_on(tuple(sample for sample in batch if _is_sample(sample)))
                return
            except BaseException as error:  # a stranger's code: its feed is lost, nothing else
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self.feed_fault = f"no real requests are heard of: {_words(error)}; tried again in {wait:.0f} s"
            await asyncio.sleep(wait)
            wait = min(wait * 2, FEED_AGAIN_MOST_S)

    async def _obey(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], *, opened: bool) -> T:
        try:
            plugin = self._built()
            if opened and not self._is_open:
                await plugin.open()
                self._is_open = True
            return await what(plugin)
        except asyncio.CancelledError:
            raise
        except BalancerError:
            self._is_open = False
            raise
        except BaseException as error:  # a plugin is a stranger's code: its bug, even an exit, is this balancer's fault alone
            self._is_open = False
            raise BalancerError(f"the plugin of {self.name} failed: {_words(error)}") from error

    # ---- on ours ----

    async def _call(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], within_s: float, verb: str, *, opened: bool = True) -> T:
        """What the plugin answers; BalancerError for everything else that may come of it."""
        is_begun = False
        try:
            async with asyncio.timeout(within_s):
                await self._turn.acquire()
                is_begun = True
                return await self._begin(what, opened=opened)
        except TimeoutError:
            if not is_begun:
                raise BalancerError(f"the plugin of {self.name} still has not come back from the last call") from None
            raise BalancerError(f"{self.name} could not be {verb} within {within_s:g} s") from None

    def _begin(self, what: Callable[[Balancer], Coroutine[Any, Any, T]], *, opened: bool) -> asyncio.Future[T]:
        """Start it on the plugin's loop. The turn ends when the call has really ended, not when nobody waits for it any more."""
        ours = asyncio.get_running_loop()
        answer: asyncio.Future[T] = ours.create_future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(self._obey(what, opened=opened))
            tasks.append(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            with contextlib.suppress(RuntimeError):  # our loop is gone, and nobody waits there
                ours.call_soon_threadsafe(settle, task)

        def settle(task: asyncio.Task[T]) -> None:
            self._turn.release()
            error = BalancerError(f"the plugin of {self.name} broke off the call") if task.cancelled() else task.exception()
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        def give_up(answer: asyncio.Future[T]) -> None:
            if answer.cancelled():
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())

        answer.add_done_callback(give_up)
        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            self._turn.release()
            answer.set_exception(BalancerError(f"the plugin of {self.name} is closed"))
        return answer

    def _sound(self, answer: Mapping[Ref, Seen]) -> Mapping[Ref, Seen]:
        """The picture, if it is one: what goes into the core is what the contract says. Reading it may run the plugin's code."""
        if not isinstance(answer, Mapping):
            raise BalancerError(f"the plugin of {self.name} answered {answer!r:.100}, which is no picture of servers")
        seen = dict(answer)
        for ref, one in seen.items():
            if not (_is_ref(ref) and type(one) is Seen and _is_seen(one)):
                raise BalancerError(f"the plugin of {self.name} shows {ref!r:.100} as {one!r:.300}, which is not as the contract has it")
        return seen


def _is_refusal(one: object) -> TypeGuard[Refusal]:
    return type(one) is Refusal and type(one.change) is Change and _is_text(one.reason)


def _is_sample(one: object) -> bool:
    return (
        type(one) is TrafficSample
        and (_is_ref(one.where) or _is_address(one.where))
        and _is_count(one.status, 0, 999)
        and _is_count(one.retries)
        and (one.seconds is None or (isinstance(one.seconds, int | float) and 0 <= one.seconds < float("inf")))
        and isinstance(one.at, int | float)
        and isfinite(one.at)
        and _is_text(one.cut_by)
    )


def _is_ref(ref: object) -> bool:
    return type(ref) is Ref and _is_text(ref.pool) and _is_text(ref.server)


def _is_seen(one: Seen) -> bool:
    """Is every field of the type and within the range that it says? A dataclass does not ask."""
    return (
        type(one.ours) is Setting
        and isinstance(one.ours.serve, Serve)
        and isinstance(one.operator, Operator)
        and isinstance(one.serving, bool | None)
        and (one.address is None or _is_address(one.address))
        and all(_is_count(number, 1, 100) for number in (one.ours.weight_pct, one.grain_pct))
        and _is_count(one.weight)
        and (one.in_flight is None or _is_count(one.in_flight))
        and all(_is_text(text) for text in (one.note, one.generation, one.remark))
        and (one.writable is None or _is_text(one.writable))
        and (one.counters is None or _are_counters(one.counters))
        and isinstance(one.settle_s, int | float)
        and 0 <= one.settle_s <= SETTLE_MAX_S
    )


def _is_address(address: object) -> bool:
    return type(address) is Address and _is_text(address.host) and address.host != "" and _is_count(address.port, 1, 65535)


def _are_counters(counters: object) -> bool:
    if type(counters) is not Counters:
        return False
    counts = (counters.requests, counters.connect_errors, counters.response_errors, counters.retries, counters.status_5xx)
    return all(count is None or _is_count(count) for count in counts)


def _is_count(number: object, least: int = 0, most: int = COUNT_MAX) -> bool:
    return isinstance(number, int) and least <= number <= most


def _is_text(text: object) -> bool:
    return isinstance(text, str) and len(text) <= TEXT_MAX


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
