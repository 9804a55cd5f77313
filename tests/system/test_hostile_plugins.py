"""Plugins that hang, lie, raise and exit: nobody but their own balancer may suffer, and nothing of them may keep us from ending."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import NONE, Address, Change, Counters, Ref, Refusal, Seen, Setting, TrafficSample
from sidecar.balancers.driver import Driver
from sidecar.balancers.host import Host
from sidecar.core.model import Applied, Fact, Pictured
from sidecar.core.policy import BalancerPolicy, Mode

REF = Ref("shop", "a")
POOLS = frozenset({"shop"})
SHORT_S = 0.2
LONG_S = 20.0


class Plain(Balancer):
    """Two servers that nobody touches."""

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        return {REF: Seen(address=Address("127.0.0.1", 1))}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        return ()


class HostOf:
    """A host of this plugin, closed at the end."""

    def __init__(self, plugin: type[Balancer]) -> None:
        self.host = Host("lab", lambda: plugin(plugin.Options()))

    async def __aenter__(self) -> Host:
        return self.host

    async def __aexit__(self, *_: object) -> None:
        await self.host.aclose()


async def test_a_call_that_outlived_its_deadline_never_overlaps_the_next() -> None:
    inside, most, release = 0, 0, threading.Event()

    class Stubborn(Plain):
        async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
            await self._shielded()
            return ()

        async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
            self._enter()
            self._leave()
            return {}

        async def _shielded(self) -> None:
            self._enter()
            try:
                while not release.is_set():
                    try:
                        await asyncio.sleep(0.01)
                    except asyncio.CancelledError:
                        continue  # a commit that must not stop halfway
            finally:
                self._leave()

        def _enter(self) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)

        def _leave(self) -> None:
            nonlocal inside
            inside -= 1

    async with HostOf(Stubborn) as host:
        with pytest.raises(BalancerError, match="could not be told within"):
            await host.apply((), SHORT_S)
        with pytest.raises(BalancerError, match="still has not come back"):
            await host.observe(POOLS, {}, SHORT_S)
        release.set()
        await host.observe(POOLS, {}, LONG_S)

    assert most == 1


async def test_calls_into_a_blocked_thread_do_not_pile_up() -> None:
    release, calls = threading.Event(), 0

    class Blocks(Plain):
        async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
            nonlocal calls
            calls += 1
            release.wait(LONG_S)
            return await super().observe(pools, notes)

    async with HostOf(Blocks) as host:
        for _ in range(10):
            with pytest.raises(BalancerError):
                await host.observe(POOLS, {}, 0.05)
        release.set()
        assert REF in await host.observe(POOLS, {}, LONG_S)

    assert calls <= 2, "the one that blocked, and the one after it"


class Lab:
    """A driver of this plugin in act mode, its facts kept."""

    def __init__(self, plugin: type[Balancer], folder: Path, mode: Mode = Mode.ACT) -> None:
        self.facts: list[Fact] = []
        host = Host("lab", lambda: plugin(plugin.Options()))
        policy = BalancerPolicy("lab", mode=mode, observe_every_s=0.05)
        self.driver = Driver(host, policy, self.facts.extend, dict, folder / "writer.lock")
        self.driver.pools = POOLS

    async def __aenter__(self) -> Lab:
        self.task = asyncio.create_task(self.driver.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.driver.aclose()

    async def until_error(self, word: str) -> None:
        async with asyncio.timeout(LONG_S):
            while not any(isinstance(f, Pictured | Applied) and word in f.error for f in self.facts):
                assert not self.task.done(), f"the driver has ended: {self.task}"
                await asyncio.sleep(0.01)


def _observing(answer: object) -> type[Balancer]:
    class Odd(Plain):
        async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[return-value]

    return Odd


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [REF],
        {("shop", "a"): Seen()},
        {REF: None},
        {REF: Seen(address="127.0.0.1:1")},  # type: ignore[arg-type]
        {REF: Seen(weight=float("nan"))},  # type: ignore[arg-type]
        {REF: Seen(operator="ready")},  # type: ignore[arg-type]
        {REF: Seen(settle_s=float("inf"))},
        {REF: Seen(settle_s=-1.0)},
        {REF: Seen(settle_s=float("nan"))},
        {REF: Seen(address=Address("10.0.0.1", 65536))},
        {REF: Seen(address=Address("", 80))},
        {REF: Seen(weight=-1)},
        {REF: Seen(grain_pct=0)},
        {REF: Seen(Setting(weight_pct=101))},
        {REF: Seen(in_flight=10**30)},
        {REF: Seen(counters=Counters(requests="many"))},  # type: ignore[arg-type]
        {REF: Seen(remark="x" * 1_000_000)},
        RuntimeError("a bug"),
        asyncio.CancelledError(),
        SystemExit(3),
        KeyboardInterrupt(),
        TimeoutError(),
    ],
    ids=repr,
)
async def test_what_is_no_picture_is_an_error_of_that_balancer_and_no_more(answer: object, tmp_path: Path) -> None:
    async with Lab(_observing(answer), tmp_path) as lab:
        await lab.until_error("lab")
        assert not any(isinstance(f, Pictured) and not f.error for f in lab.facts)
        lab.facts.clear()
        await lab.until_error("lab")


async def test_a_picture_that_takes_its_time_to_read_holds_up_nobody(tmp_path: Path) -> None:
    read_by: list[threading.Thread] = []

    class Lazy(Mapping[Ref, Seen]):
        def __getitem__(self, ref: Ref) -> Seen:
            read_by.append(threading.current_thread())
            return Seen()

        def __iter__(self) -> Iterator[Ref]:
            return iter((REF,))

        def __len__(self) -> int:
            return 1

    async with Lab(_observing(Lazy()), tmp_path) as lab:
        async with asyncio.timeout(LONG_S):
            while not any(isinstance(f, Pictured) and f.servers == {REF: Seen()} for f in lab.facts):
                await asyncio.sleep(0.01)

    assert read_by and threading.main_thread() not in read_by


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_a_feed_or_a_task_that_exits_takes_nothing_with_it(error: BaseException) -> None:
    class Exits(Plain):
        async def open(self) -> None:
            self.task = asyncio.create_task(self._leave())

        async def _leave(self) -> None:
            raise error

        async def _feed(self) -> AsyncIterator[Sequence[TrafficSample]]:
            raise error
            yield ()

        def traffic(self) -> AsyncIterator[Sequence[TrafficSample]]:
            return self._feed()

    async with HostOf(Exits) as host:
        host.listen(lambda batch: None)
        async with asyncio.timeout(LONG_S):
            while "no real requests are heard of" not in host.feed_fault:
                await asyncio.sleep(0.01)
        for _ in range(3):
            assert REF in await host.observe(POOLS, {}, LONG_S)


async def test_an_answer_to_changes_that_is_none_means_unknown(tmp_path: Path) -> None:
    class Mute(Plain):
        async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
            return None  # type: ignore[return-value]

    async with Lab(Mute, tmp_path) as lab:
        lab.driver.tell([Change(REF, Setting(NONE))])
        await lab.until_error("where refusals were due")


async def test_a_plugin_that_cannot_even_be_built_is_told(tmp_path: Path) -> None:
    class Unbuilt(Plain):
        def __init__(self, options: object) -> None:
            raise RuntimeError("no such library")

    async with Lab(Unbuilt, tmp_path) as lab:
        await lab.until_error("no such library")
        assert "no such library" in lab.driver.standby


async def test_a_plugin_that_stops_its_loop_goes_on(tmp_path: Path) -> None:
    class Stops(Plain):
        async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
            asyncio.get_running_loop().stop()
            return await super().observe(pools, notes)

    async with HostOf(Stops) as host:
        assert REF in await host.observe(POOLS, {}, LONG_S)
        assert REF in await host.observe(POOLS, {}, LONG_S)


async def test_it_is_built_once_and_on_its_own_thread() -> None:
    built: list[str] = []

    class Slow(Plain):
        def __init__(self, options: object) -> None:
            super().__init__(Plain.Options())
            built.append(threading.current_thread().name)
            time.sleep(0.1)

        def lock_path(self) -> str | None:
            return "there"

    async with HostOf(Slow) as host:
        host.listen(lambda batch: None)
        assert await host.writer_lock(LONG_S) == "there"
        await host.observe(POOLS, {}, LONG_S)

    assert built == ["balancer-lab"]


async def test_a_feed_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.balancers.host.FEED_AGAIN_S", 0.1)
    heard: list[TrafficSample] = []
    got = asyncio.Event()
    loop = asyncio.get_running_loop()
    may_listen = threading.Event()

    def take(batch: Sequence[TrafficSample]) -> None:
        heard.extend(batch)
        loop.call_soon_threadsafe(got.set)

    class Feeds(Plain):
        def traffic(self) -> AsyncIterator[Sequence[TrafficSample]]:
            return self._feed()

        async def _feed(self) -> AsyncIterator[Sequence[TrafficSample]]:
            if not may_listen.is_set():
                raise OSError("address in use")
            yield [TrafficSample(REF, 200)]

    async with HostOf(Feeds) as host:
        host.listen(take)
        async with asyncio.timeout(LONG_S):
            while "address in use" not in host.feed_fault:
                await asyncio.sleep(0.01)
        may_listen.set()
        async with asyncio.timeout(LONG_S):
            await got.wait()

    assert heard == [TrafficSample(REF, 200)] and host.feed_fault == ""


async def test_a_feed_that_never_waits_holds_up_nobody_and_what_is_no_sample_is_not_heard() -> None:
    heard = 0
    odd = [None, 5, TrafficSample("x"), TrafficSample(REF, 200, float("nan")), TrafficSample(REF, 200, -1.0), TrafficSample(REF, at="x")]  # type: ignore[arg-type]

    def hear(batch: Sequence[TrafficSample]) -> None:
        nonlocal heard
        assert batch == (TrafficSample(REF, 200, 0.1),)
        heard += 1
        time.sleep(0.001)

    class Floods(Plain):
        async def _feed(self) -> AsyncIterator[Sequence[TrafficSample]]:
            while True:
                yield [TrafficSample(REF, 200, 0.1), *odd]  # type: ignore[list-item]

        def traffic(self) -> AsyncIterator[Sequence[TrafficSample]]:
            return self._feed()

    async with HostOf(Floods) as host:
        host.listen(hear)
        async with asyncio.timeout(LONG_S):
            while heard < 100:
                assert REF in await host.observe(POOLS, {}, LONG_S)
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(1), asyncio.CancelledError()], ids=repr)
async def test_an_error_while_closing_still_frees_the_lock_and_ends_the_thread(error: BaseException, tmp_path: Path) -> None:
    class Bad(Plain):
        async def aclose(self) -> None:
            raise error

    async with Lab(Bad, tmp_path) as lab:
        async with asyncio.timeout(LONG_S):
            while lab.driver.standby:
                await asyncio.sleep(0.01)
        await lab.driver.aclose()
        await lab.driver.aclose()
        lab.task.cancel()

    async with Lab(Plain, tmp_path) as next_one:
        async with asyncio.timeout(LONG_S):
            while next_one.driver.standby:
                await asyncio.sleep(0.01)
    names = [thread.name for thread in threading.enumerate()]
    assert "balancer-lab" not in names


async def test_who_only_observes_leaves_the_lock_to_who_acts(tmp_path: Path) -> None:
    async with Lab(Plain, tmp_path, Mode.OBSERVE) as watching, Lab(Plain, tmp_path) as acting:
        async with asyncio.timeout(LONG_S):
            while acting.driver.standby or not any(isinstance(f, Pictured) for f in watching.facts):
                await asyncio.sleep(0.01)

        watching.driver.policy = BalancerPolicy("lab", observe_every_s=0.05)
        async with asyncio.timeout(LONG_S):
            while "another sidecar writes" not in watching.driver.standby:
                await asyncio.sleep(0.01)

        acting.driver.policy = BalancerPolicy("lab", mode=Mode.OBSERVE, observe_every_s=0.05)
        async with asyncio.timeout(LONG_S):
            while watching.driver.standby:
                await asyncio.sleep(0.01)


async def test_what_waits_for_the_next_reload_is_not_written_once_the_mode_is_observe(tmp_path: Path) -> None:
    written: list[Change] = []

    class Takes(Plain):
        async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
            written.extend(changes)
            return ()

    lab = Lab(Takes, tmp_path)
    lab.driver.policy = BalancerPolicy("lab", costly=True, observe_every_s=0.05)
    async with lab:
        lab.driver.tell([Change(REF, Setting(NONE), why="first")])
        async with asyncio.timeout(LONG_S):
            while not written:
                await asyncio.sleep(0.01)
        lab.driver.tell([Change(REF, Setting(NONE), why="joins the next")])
        lab.driver.policy = BalancerPolicy("lab", mode=Mode.OBSERVE, costly=True, observe_every_s=0.05)
        async with asyncio.timeout(LONG_S):
            while lab.driver._pending:
                await asyncio.sleep(0.01)

    assert [change.why for change in written] == ["first"]
