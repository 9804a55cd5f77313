"""The conformance kit: what every balancer plugin must do, as plain pytest tests against your balancer in a box.

    class TestAcme(BalancerConformance):
        @pytest.fixture
        def lab(self, tmp_path):
            return AcmeLab(tmp_path)

It needs pytest and no asyncio plug-in: each test runs a loop of its own. The kit closes the lab.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from lbplugins.api import Balancer, BalancerError
from lbplugins.declared import faults, io_at_construction
from lbplugins.values import (
    DRAIN,
    DRAINING,
    FULL,
    KEEP,
    KILL,
    MAINTENANCE,
    NONE,
    OPERATOR,
    OURS,
    READY,
    Address,
    Axis,
    Change,
    Counters,
    InFlight,
    Operator,
    Ref,
    Refusal,
    Seen,
    Serve,
    Setting,
)  # fmt: skip

OPERATOR_AFTER = {FULL: READY, DRAIN: DRAINING, NONE: MAINTENANCE}
POLL_S = 0.02
CANCELLED_AT_MOST = 24
NOTE_MAX = 4096
WEIGHTS = (1, 50, 99, 100)

T = TypeVar("T")
Picture = Mapping[Ref, Seen]


class Lab(ABC):
    """Your balancer in a box, real or a fake that you trust. Its methods are plain; what it runs, it runs outside the test's loop.

    A new lab has at least two servers, all ready, at full weight and serving.
    """

    refs: Sequence[Ref]
    """The servers, at least two. Others may stand in the same pools."""
    settle_s: float = 0.0
    """Wait at most this long for an effect, where that is longer than the plugin's own `Seen.settle_s` (a busy machine)."""
    deadline_s: float = 30.0
    """One call of the plugin may take this long."""
    recover_s: float = 15.0
    """After `unreachable()` ends, the plugin must work again within this."""

    @abstractmethod
    def plugin(self) -> Balancer:
        """A new, unopened plugin for this balancer; several may live at once."""

    @abstractmethod
    def truth(self, ref: Ref) -> Setting:
        """What this server gets now, both axes together (the stricter), read by another path than the plugin's.

        `weight_pct` is the percent of the operator's current weight; it is not looked at while `serve` is not FULL.
        """

    @abstractmethod
    def meddle(self, ref: Ref, setting: Setting) -> None:
        """The operator's edit on the operator's axis, behind the plugin's back: FULL = ready, DRAIN, NONE = maintenance."""

    @abstractmethod
    def unreachable(self) -> AbstractContextManager[object]:
        """Within it the balancer cannot be asked or told; afterwards it can again, as it was."""

    def reweigh(self, ref: Ref, weight: int) -> bool:
        """The operator's edit of a weight, in the balancer's units; False = this lab or balancer cannot."""
        return False

    def address(self, ref: Ref) -> Address | None:
        """Where this server really is, not asked of the plugin; None = this lab does not know, so that it is not checked."""
        return None

    def restart(self) -> bool:
        """The balancer ends and starts anew as its configuration has it, and serves again; False = this lab or balancer cannot."""
        return False

    def effort(self) -> int | None:
        """How often the balancer was told something or reloaded; None = this lab cannot count."""
        return None

    def close(self) -> None:  # most labs have something to stop, those in memory do not
        """Stop everything. Safe twice."""


class Driver:
    """One plugin, driven as the sidecar drives it: observe, journal the note, apply with `expect`, look again."""

    def __init__(self, lab: Lab, plugin: Balancer, notes: dict[Ref, str] | None = None) -> None:
        self.lab = lab
        self.plugin = plugin
        self.notes: dict[Ref, str] = {} if notes is None else notes
        self.pools = frozenset(ref.pool for ref in lab.refs)

    async def see(self) -> Picture:
        picture = await self.within(self.plugin.observe(self.pools, dict(self.notes)), "observe")
        missing = [str(ref) for ref in self.lab.refs if ref not in picture]
        assert not missing, f"observe gives all servers of the pools or raises BalancerError; it left out {', '.join(missing)}"
        return picture

    async def change(self, ref: Ref, want: Setting, on: Axis = OURS, in_flight: InFlight = KEEP) -> Change:
        """The change the sidecar would send now. Its note is journaled, as before any write."""
        seen = (await self.see())[ref]
        self.notes[ref] = seen.note
        return Change(ref, want, expect=seen, on=on, in_flight=in_flight, note=seen.note, why="conformance")

    async def apply(self, *changes: Change) -> list[Refusal]:
        refusals = list(await self.within(self.plugin.apply(changes), "apply"))
        for refusal in refusals:
            assert isinstance(refusal, Refusal), f"apply returns Refusal values, not {refusal!r}"
            assert refusal.change in changes, f"a Refusal carries the change that it refuses; this one was never asked: {refusal.change}"
            assert refusal.reason.strip(), f"a Refusal says why; the one for {refusal.change.ref} has no reason"
        return refusals

    async def make(self, ref: Ref, want: Setting, on: Axis = OURS, in_flight: InFlight = KEEP) -> Seen:
        """Asks for it, insists that it is not refused, waits until it is so, and gives the server as then seen."""
        refusals = await self.apply(await self.change(ref, want, on, in_flight))
        assert not refusals, f"{ref}: a change of a server that shows no `writable` reason was refused: {refusals[0].reason}"
        return await self.becomes(ref, want, on)

    async def becomes(self, ref: Ref, want: Setting, on: Axis = OURS) -> Seen:
        """Waits until the plugin shows `want` on that axis and the truth agrees with all that the plugin shows."""

        def shown(picture: Picture) -> str:
            seen = picture[ref]
            if on is OPERATOR:
                ok = seen.operator is OPERATOR_AFTER[want.serve]
                return "" if ok else f"asked for {want.serve} on the operator's axis, but observe shows operator {seen.operator}"
            return "" if alike(seen.ours, want, seen.grain_pct) else f"asked for {say(want)} on our axis, observe shows {say(seen.ours)}"

        seen = (await self.until(ref, lambda picture: shown(picture) or self.lie(ref, picture[ref])))[ref]
        if want == Setting() == seen.ours and seen.operator is READY:
            self.notes.pop(ref, None)  # nothing of ours is left: the sidecar forgets the note
        return seen

    async def until(self, ref: Ref, problem: Callable[[Picture], str]) -> Picture:
        """Observes until there is no problem, the last time after `settle_s` has passed; then fails with it."""
        loop = asyncio.get_running_loop()
        started, allowed = loop.time(), self.lab.settle_s
        while True:
            is_last = loop.time() - started >= allowed
            picture = await self.see()
            said = problem(picture)
            if not said:
                return picture
            allowed = max(self.lab.settle_s, picture[ref].settle_s)
            if is_last and loop.time() - started >= allowed:
                pytest.fail(f"{ref}: {said}" + (f", {allowed:g} s after the change" if allowed else ""))
            await asyncio.sleep(POLL_S if allowed else 0)

    def lie(self, ref: Ref, seen: Seen) -> str:
        """Where the truth, read by another path, contradicts what the plugin shows; empty = nowhere."""
        due = expected_truth(seen)
        truth = self.lab.truth(ref)
        if not alike(truth, due, seen.grain_pct):
            return f"observe shows ours {say(seen.ours)} and operator {seen.operator}, but in truth the server gets {say(truth)}"
        if seen.serving and due.serve is not FULL:
            return f"`serving` is the balancer's truth: it cannot be True while the server gets {due.serve}"
        if seen.serving is False and truth.serve is FULL:
            return "`serving` is the balancer's truth: it cannot be False while new requests reach the server"
        return ""

    async def within(self, work: Coroutine[Any, Any, T], name: str) -> T:
        try:
            async with asyncio.timeout(self.lab.deadline_s) as deadline:
                return await work
        except TimeoutError:
            if deadline.expired():
                pytest.fail(f"{name} must end by itself; it took more than {self.lab.deadline_s:g} s")
            raise


@asynccontextmanager
async def opened(lab: Lab, notes: dict[Ref, str] | None = None) -> AsyncIterator[Driver]:
    """A new plugin of the lab, open, in a driver; closed at the end."""
    plugin = lab.plugin()
    driver = Driver(lab, plugin, notes)
    try:
        await driver.within(plugin.open(), "open")
        yield driver
    finally:
        await driver.within(plugin.aclose(), "aclose")


def alike(got: Setting, want: Setting, grain_pct: int) -> bool:
    """Whether `got` is `want` for a server that expresses weights in steps of `grain_pct`. All of it, 100, is always exact."""
    if got.serve is not want.serve or want.serve is not FULL:
        return got.serve is want.serve
    return got.weight_pct == want.weight_pct or (want.weight_pct < 100 and abs(got.weight_pct - want.weight_pct) <= grain_pct)


def say(setting: Setting) -> str:
    """`none`, `drain`, `full` or `full at 50 %`, for messages."""
    return f"full at {setting.weight_pct} %" if setting.serve is FULL and setting.weight_pct != 100 else str(setting.serve)


def expected_truth(seen: Seen) -> Setting:
    """What a server so seen must really get: the stricter of both axes."""
    if seen.ours.serve is NONE or seen.operator is MAINTENANCE:
        return Setting(NONE)
    return Setting(DRAIN) if seen.operator is DRAINING else seen.ours


def hostile(ref: Ref) -> Iterator[Ref]:
    """Names that end a command, climb a path or hide a second command, all made from a real server's name."""
    pool, server = ref
    for name in (
        "", " ", "*", "x" * 20_000, f"../{server}", f"{server}/", f"{server};b", f"{server}#", f"{server} {{",
        f"{server} ", f" {server}", f"{server}\n", f"{server}\r\n", f"{server}\0", f"{server}\n{server}",
    ):  # fmt: skip
        yield Ref(pool, name)
    for name in ("", f"{pool}\n", f"{pool};", f"../{pool}", f" {pool}", f"{pool}/", "..", "*"):
        yield Ref(name, server)


class _CancelledAt(Awaitable[T]):
    """Awaits the work and cancels the task around it when the work waits for the `turn`-th time; `reached` says whether it did."""

    def __init__(self, work: Coroutine[Any, Any, T], turn: int) -> None:
        self.work = work
        self.turn = turn
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        step = self.work.__await__()
        turn = 0
        thrown: BaseException | None = None
        while True:
            try:
                wait = step.send(None) if thrown is None else step.throw(thrown)
            except StopIteration as end:
                result: T = end.value
                return result
            if turn == self.turn:
                task = asyncio.current_task()
                assert task is not None
                self.reached = task.cancel()
            turn += 1
            thrown = None
            try:
                yield wait
            except BaseException as error:
                thrown = error


class BalancerConformance:
    """Derive a test class from it and give it a fixture `lab`. Each test is one rule of the contract."""

    @pytest.fixture
    def lab(self) -> Lab:
        raise NotImplementedError("give your test class a fixture `lab` that returns a new Lab")

    @pytest.fixture(autouse=True)
    def _lab_closes(self, lab: Lab) -> Iterator[None]:
        yield
        lab.close()

    # ---- what it declares ----

    def test_declares_version_traits_and_options(self, lab: Lab) -> None:
        problems = faults(type(lab.plugin()))

        assert not problems, "; ".join(problems)

    def test_does_nothing_before_open(self, lab: Lab) -> None:
        plugin = lab.plugin()

        try:
            touched = io_at_construction(type(plugin), plugin.options)
        except TypeError as error:
            pytest.fail(f"a plugin is built from its options alone, as Plugin(options): {error}")
        assert not touched, f"__init__ keeps the options and touches nothing; open() is the place for {touched}"

    # ---- seeing ----

    def test_observes_every_server(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            picture = await driver.see()

            strays = [str(ref) for ref in picture if ref.pool not in driver.pools]
            assert not strays, f"observe gives the servers of the pools asked for and no others; it also gave {', '.join(strays)}"
            for ref in lab.refs:
                _assert_well_formed(ref, picture[ref])
                _assert_at_rest(driver, ref, picture[ref])
                address = lab.address(ref)
                assert address in (None, picture[ref].address), f"{ref} stands at {address}, but observe shows {picture[ref].address}"

        _run(lab, rule)

    def test_observes_only_the_pools_asked_for(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            for pool in driver.pools:
                picture = await driver.within(driver.plugin.observe(frozenset({pool}), {}), "observe")
                assert {ref.pool for ref in picture} == {pool}, (
                    f"asked for pool {pool}, observe gave {sorted({ref.pool for ref in picture})}"
                )
            nothing = await driver.within(driver.plugin.observe(frozenset(), {}), "observe")
            assert not nothing, f"asked for no pool, observe gives nothing; it gave {', '.join(map(str, nothing))}"

        _run(lab, rule)

    def test_leaves_out_a_pool_it_does_not_have(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            real = await driver.see()
            pool = lab.refs[0].pool
            for name in ("no-such-pool", "", f"{pool}\n", f"../{pool}", f"{pool};", f"{pool} ", "*", "x" * 20_000):
                picture = await driver.within(driver.plugin.observe(driver.pools | {name}, {}), "observe")
                assert set(picture) == set(real), (
                    f"a pool that the balancer does not have ({name[:40]!r}) is left out; observe gave {sorted(map(str, picture))}"
                )

        _run(lab, rule)

    def test_lists_pools_it_can_observe(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            pools = await driver.within(driver.plugin.pools(), "pools")

            assert not pools or driver.pools <= pools, (
                f"pools() gives all pools or none; it gave {sorted(pools)} and not {sorted(driver.pools)}"
            )
            seen = {ref.pool for ref in await driver.within(driver.plugin.observe(pools, {}), "observe")}
            assert pools <= seen, (
                f"pools() names what can be observed, or a service would stay empty; no server was seen in {sorted(pools - seen)}"
            )

        _run(lab, rule)

    def test_members_that_it_has_change_nothing(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            await driver.make(lab.refs[0], Setting(NONE))
            before, effort, truths = await driver.see(), lab.effort(), _truths(lab)
            known: dict[str, dict[Ref, Address]] = {pool: {} for pool in driver.pools}
            for ref, seen in before.items():
                if seen.address is not None:
                    known[ref.pool][ref] = seen.address

            await driver.within(driver.plugin.members(known), "members")

            after = await driver.see()
            for ref in lab.refs:
                _assert_same(ref, before[ref], after[ref], "members() with the servers that the balancer has changes nothing")
            assert _truths(lab) == truths, "members() with the servers that the balancer has changes nothing"
            assert lab.effort() == effort, "members() with the servers that the balancer has must not tell it anything (or reload it)"

        _run(lab, rule)

    def test_observing_changes_nothing(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            first = await driver.see()
            effort, truths = lab.effort(), _truths(lab)

            for notes in ({}, {ref: first[ref].note for ref in lab.refs}):
                again = await driver.within(driver.plugin.observe(driver.pools, notes), "observe")
                for ref in lab.refs:
                    _assert_same(ref, first[ref], again[ref], "two observations with nothing between them must agree")

            assert _truths(lab) == truths, "observing must change nothing in the balancer"
            assert lab.effort() == effort, "observing must not tell the balancer anything (or reload it)"

        _run(lab, rule)

    def test_sees_an_operators_edit(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref, others = lab.refs[0], lab.refs[1:]
            await driver.see()
            for serve in (NONE, DRAIN, FULL) if driver.plugin.traits.drain else (NONE, FULL):
                lab.meddle(ref, Setting(serve))

                def shown(picture: Picture, want: Operator = OPERATOR_AFTER[serve]) -> str:
                    seen = picture[ref]
                    if seen.operator is not want:
                        return f"the operator made it {want}, but observe shows operator {seen.operator}"
                    if seen.ours != Setting():
                        return f"what only the operator did is not ours, but observe shows ours {say(seen.ours)}"
                    return driver.lie(ref, seen)

                picture = await driver.until(ref, shown)
                for other in others:
                    assert picture[other].operator is READY, (
                        f"{other}: the operator did not touch it, observe shows {picture[other].operator}"
                    )

        _run(lab, rule)

    def test_sees_an_operators_weight(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            weight = _another_weight((await driver.see())[ref])
            _reweigh(lab, ref, weight)

            def shown(picture: Picture) -> str:
                seen = picture[ref]
                if seen.weight != weight:
                    return f"the operator set weight {weight}, but observe shows weight {seen.weight}"
                return (
                    "" if seen.ours == Setting() else f"an operator's weight is not a cut of ours, but observe shows ours {say(seen.ours)}"
                )

            await driver.until(ref, shown)

        _run(lab, rule)

    def test_observers_are_never_partial(self, lab: Lab) -> None:
        async def look(driver: Driver, stop: asyncio.Event) -> None:
            while not stop.is_set():
                try:
                    await driver.see()
                except BalancerError:
                    pass  # "cannot say" is allowed, half a picture is not
                await asyncio.sleep(0)

        async def rule(driver: Driver) -> None:
            stop = asyncio.Event()
            async with opened(lab) as one, opened(lab) as two:
                lookers = [asyncio.create_task(look(other, stop)) for other in (one, two)]
                try:
                    for want in (Setting(NONE), Setting(), Setting(NONE), Setting()):
                        await driver.make(lab.refs[0], want)
                finally:
                    stop.set()
                    await asyncio.gather(*lookers)

        _run(lab, rule)

    # ---- telling ----

    def test_ejects_and_returns(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            for ref in lab.refs[:2]:
                before = (await driver.see())[ref]
                out = await driver.make(ref, Setting(NONE))
                assert out.address == before.address, f"{ref}: an ejection must not change its address: {before.address} -> {out.address}"
                assert out.operator is READY, f"{ref}: our ejection is on our own axis, but observe shows operator {out.operator}"
                back = await driver.make(ref, Setting())
                assert back.ours == Setting(), f"{ref}: after the return nothing of ours is left, but observe shows ours {say(back.ours)}"
                assert back.weight == before.weight, (
                    f"{ref}: out and back must keep the operator's weight {before.weight}, not {back.weight}"
                )

        _run(lab, rule)

    def test_kill_is_at_least_an_ejection(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            await driver.make(lab.refs[0], Setting(NONE), in_flight=KILL)
            await driver.make(lab.refs[0], Setting())

        _run(lab, rule)

    def test_touches_only_what_is_named(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            named, others = lab.refs[0], lab.refs[1:]
            for want, on in (
                (Setting(NONE), OURS),
                (Setting(), OURS),
                (Setting(FULL, 50), OURS),
                (Setting(), OURS),
                (Setting(NONE), OPERATOR),
                (Setting(), OPERATOR),
            ):
                before = await driver.see()
                if want.weight_pct < 100 and before[named].grain_pct >= 100:
                    continue
                await driver.make(named, want, on)
                after = await driver.see()
                for ref in others:
                    assert lab.truth(ref) == Setting(), (
                        f"{ref} was not named, but it now gets {say(lab.truth(ref))} after {say(want)} for {named}"
                    )
                    _assert_same(ref, before[ref], after[ref], f"{ref} was not named in the change of {named}")

        _run(lab, rule)

    def test_makes_several_at_once(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            first, second = lab.refs[:2]
            await driver.make(first, Setting(NONE))

            refused = await driver.apply(await driver.change(first, Setting()), await driver.change(second, Setting(NONE)))

            assert not refused, f"one apply carries changes of several servers; it refused {refused[0].change.ref}: {refused[0].reason}"
            await driver.becomes(first, Setting())
            await driver.becomes(second, Setting(NONE))

        _run(lab, rule)

    def test_operators_axis_takes_ready_drain_and_maintenance(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            if driver.plugin.traits.drain:
                await driver.make(ref, Setting(DRAIN), OPERATOR)
            else:
                refused = await driver.apply(await driver.change(ref, Setting(DRAIN), OPERATOR))
                assert refused, "without traits.drain, DRAIN is refused; it must not become something else in silence"
                await driver.becomes(ref, Setting(), OPERATOR)
            for serve in (NONE, FULL):
                seen = await driver.make(ref, Setting(serve), OPERATOR)
                assert seen.ours == Setting(), f"{ref}: {serve} was asked on the operator's axis, but observe shows ours {say(seen.ours)}"

        _run(lab, rule)

    def test_the_two_axes_do_not_mix(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            await driver.make(ref, Setting(NONE), OPERATOR)
            change = await driver.change(ref, Setting(), OURS)
            await driver.apply(change)
            seen = await driver.becomes(ref, Setting(NONE), OPERATOR)
            assert seen.ours == Setting(), f"{ref}: nothing of ours is left, but observe shows ours {say(seen.ours)}"
            await driver.make(ref, Setting(), OPERATOR)
            await driver.make(ref, Setting(NONE))
            await driver.make(ref, Setting(), OPERATOR)  # he is ready already: our ejection stays
            await driver.becomes(ref, Setting(NONE))

        _run(lab, rule)

    def test_weights_round_trip_within_the_grain(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            before = (await driver.see())[ref]
            for pct in WEIGHTS:
                refused = await driver.apply(await driver.change(ref, Setting(FULL, pct)))
                if before.grain_pct < 100:
                    assert not refused, (
                        f"{ref}: grain_pct {before.grain_pct} promises weights, but {pct} % was refused: {refused[0].reason}"
                    )
                seen = await driver.becomes(ref, Setting(FULL, 100 if refused else pct))
                assert seen.weight == before.weight, (
                    f"{ref}: `weight` is the operator's, never our cut: {before.weight} became {seen.weight} at {pct} %"
                )
            assert seen.ours == Setting(), f"{ref}: at 100 % nothing of ours is left, but observe shows ours {say(seen.ours)}"

        _run(lab, rule)

    def test_weight_survives_an_ejection(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            before = (await driver.see())[ref]
            cut = 50 if before.grain_pct < 100 else 100
            for want in (Setting(FULL, cut), Setting(NONE, cut), Setting(FULL, cut), Setting(NONE), Setting()):
                seen = await driver.make(ref, want)
                assert seen.weight == before.weight, f"{ref}: the operator's weight {before.weight} became {seen.weight} after {say(want)}"
            assert seen.ours == Setting(), f"{ref}: given back whole, but observe shows ours {say(seen.ours)}"

        _run(lab, rule)

    def test_saying_it_twice_costs_nothing(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            cuts = [Setting(FULL, 50), Setting()] if (await driver.see())[ref].grain_pct < 100 else []
            for want, on in (
                *((cut, OURS) for cut in cuts),
                (Setting(NONE), OURS),
                (Setting(), OURS),
                (Setting(NONE), OPERATOR),
                (Setting(), OPERATOR),
            ):
                await driver.make(ref, want, on)
                effort = lab.effort()
                await driver.make(ref, want, on)
                assert lab.effort() == effort, f"{ref}: {say(want)} was so already; asking again must not tell the balancer (or reload it)"

        _run(lab, rule)

    def test_no_changes_no_effort(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            await driver.see()
            effort, truths = lab.effort(), _truths(lab)

            refused = await driver.apply()

            assert not refused, f"no changes, no refusals; got {refused}"
            assert lab.effort() == effort, "no changes, no effort: the balancer must not be told (or reloaded)"
            assert _truths(lab) == truths, "no changes, nothing changes"

        _run(lab, rule)

    # ---- compare and set ----

    def test_a_stale_expect_is_refused(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            fresh = await driver.change(ref, Setting(NONE))
            seen, effort = fresh.expect, lab.effort()
            for field, stale in (
                ("ours", replace(seen, ours=Setting(NONE))),
                ("operator", replace(seen, operator=MAINTENANCE)),
                ("address", replace(seen, address=Address("192.0.2.1", 9))),
                ("weight", replace(seen, weight=seen.weight + 1)),
                ("generation", replace(seen, generation=f"{seen.generation}-earlier")),
            ):
                for want, on in ((Setting(NONE), OURS), (Setting(NONE), OPERATOR)):
                    refused = await driver.apply(replace(fresh, expect=stale, want=want, on=on))
                    assert refused, (
                        f"{ref}: apply is compare-and-set; `expect.{field}` is not what the balancer shows, so it must be refused"
                    )
                    assert lab.truth(ref) == Setting(), f"{ref}: a change with a stale `expect.{field}` must write nothing"
            assert lab.effort() == effort, f"{ref}: refused changes must not tell the balancer anything (or reload it)"

        _run(lab, rule)

    def test_an_operator_who_was_faster_wins(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            first, second = lab.refs[:2]
            late, other = await driver.change(first, Setting(NONE)), await driver.change(second, Setting(NONE))
            lab.meddle(first, Setting(NONE))

            refused = await driver.apply(late, other)

            assert late in [refusal.change for refusal in refused], (
                f"{first}: the operator acted after we looked; apply must look again and refuse"
            )
            seen = await driver.becomes(first, Setting(NONE), OPERATOR)
            assert seen.ours == Setting(), f"{first}: refused, so nothing of ours, but observe shows ours {say(seen.ours)}"

        _run(lab, rule)

    def test_what_moves_by_itself_is_not_compared(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            fresh = await driver.change(ref, Setting(NONE))
            moved = replace(
                fresh.expect,
                serving=not fresh.expect.serving,
                in_flight=77,
                counters=Counters(requests=10**9),
                remark="x",
                settle_s=9.0,
                grain_pct=7,
            )

            refused = await driver.apply(replace(fresh, expect=moved))

            assert not refused, f"`expect` compares ours, operator, address, weight and generation only, but: {refused[0].reason}"
            await driver.becomes(ref, Setting(NONE))

        _run(lab, rule)

    # ---- the operator wins ----

    def test_operators_maintenance_survives_eject_and_return(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            await driver.make(ref, Setting(NONE))
            lab.meddle(ref, Setting(NONE))
            for want in (Setting(), Setting(NONE), Setting()):
                await driver.until(ref, lambda picture: _unless(picture[ref].operator is MAINTENANCE, "the operator's maintenance is gone"))
                change = await driver.change(ref, want)
                refused = await driver.apply(change)
                if change.expect.writable is not None and want != change.expect.ours:
                    assert refused, f"{ref}: `writable` said {change.expect.writable!r}, so the change had to be refused"
                assert lab.truth(ref).serve is NONE, f"{ref}: the operator's maintenance was overridden by {say(want)} on our axis"
            await driver.until(ref, lambda picture: _unless(picture[ref].operator is MAINTENANCE, "the operator's maintenance is gone"))
            lab.meddle(ref, Setting())
            await self._comes_back(driver, ref)

        _run(lab, rule)

    def test_operators_weight_survives_our_cut(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            before = (await driver.see())[ref]
            await driver.make(ref, Setting(FULL, 50) if before.grain_pct < 100 else Setting(NONE))
            weight = _another_weight(before)
            _reweigh(lab, ref, weight)

            seen = await self._comes_back(driver, ref)

            assert seen.weight == weight, (
                f"{ref}: the operator set weight {weight} during our act; giving back must keep it, not {seen.weight}"
            )

        _run(lab, rule)

    async def _comes_back(self, driver: Driver, ref: Ref) -> Seen:
        """Returns what is ours, as far as the plugin says that it may write, and waits until the server is whole."""
        seen = (await driver.until(ref, lambda picture: _unless(picture[ref].operator is READY, "the operator's `ready` is not seen")))[ref]
        if seen.writable is not None:
            refused = await driver.apply(await driver.change(ref, Setting(NONE)))
            assert refused, f"{ref}: `writable` said {seen.writable!r}, so a change had to be refused"
            return seen
        if seen.ours != Setting():
            return await driver.make(ref, Setting())
        return await driver.becomes(ref, Setting())

    # ---- saying no, and failing ----

    def test_refuses_a_stranger_and_does_the_rest(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            first, second = lab.refs[:2]
            for stranger in (Ref(first.pool, "no-such-server"), Ref("no-such-pool", first.server)):
                before = await driver.see()
                good = await driver.change(first, Setting(NONE)), await driver.change(second, Setting(NONE))
                bad = replace(good[0], ref=stranger)

                refused = await driver.apply(good[0], bad, good[1])

                assert [refusal.change for refusal in refused] == [bad], (
                    f"the balancer has no {stranger}: that change alone is refused; refused were {[str(r.change.ref) for r in refused]}"
                )
                for ref in (first, second):
                    await driver.becomes(ref, Setting(NONE))
                assert set(await driver.see()) == set(before), "a change for a server that does not exist must not create one"
                refused = await driver.apply(await driver.change(first, Setting()), await driver.change(second, Setting()))
                assert not refused, f"the way back was refused: {refused}"
                for ref in (first, second):
                    await driver.becomes(ref, Setting())

        _run(lab, rule)

    def test_refuses_hostile_names(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref, other = lab.refs[:2]
            before = await driver.see()
            model, effort = await driver.change(ref, Setting(NONE)), lab.effort()
            for on in (OURS, OPERATOR):
                bad = [replace(model, ref=name, on=on) for name in hostile(ref)]
                refused = [refusal.change for refusal in await driver.apply(*bad)]
                for change in bad:
                    assert change in refused, f"names from outside are checked before use: {tuple(change.ref)!r:.80} must be refused"
            picture = await driver.see()
            assert set(picture) == set(before), "hostile names must not create servers"
            assert lab.effort() == effort, "nothing but hostile names was asked: the balancer must not be told (or reloaded)"
            for server in (ref, other):
                assert lab.truth(server) == Setting(), f"{server}: only hostile names were asked, but it now gets {say(lab.truth(server))}"
                _assert_at_rest(driver, server, picture[server])

        _run(lab, rule)

    def test_says_so_when_unreachable(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            change = await driver.change(lab.refs[0], Setting(NONE))
            with lab.unreachable():
                await _says_balancer_error("observe", driver.within(driver.plugin.observe(driver.pools, {}), "observe"))
                await _says_balancer_error("apply", driver.within(driver.plugin.apply([change]), "apply"))
                await _says_balancer_error("observe", driver.within(driver.plugin.observe(driver.pools, {}), "observe"))
            await _works_again(lab, driver.see)
            assert lab.truth(change.ref) == Setting(), (
                f"{change.ref}: an apply that failed is over; whether it is tried again is the sidecar's, which may not mean it any more"
            )

        _run(lab, rule)

    def test_recovers_by_itself(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            await driver.see()
            with lab.unreachable():
                await _says_balancer_error("observe", driver.within(driver.plugin.observe(driver.pools, {}), "observe"))
            await _works_again(lab, driver.see)
            await driver.make(lab.refs[0], Setting(NONE))
            await driver.make(lab.refs[0], Setting())

        _run(lab, rule)

    def test_opens_while_unreachable_or_says_so(self, lab: Lab) -> None:
        async def rule() -> None:
            plugin = lab.plugin()
            driver = Driver(lab, plugin)
            is_open = False
            try:
                with lab.unreachable():
                    try:
                        await driver.within(plugin.open(), "open")
                        is_open = True
                    except BalancerError as error:
                        assert str(error).strip(), "a BalancerError says in words what is wrong"
                    except Exception as error:
                        pytest.fail(
                            f"open raises BalancerError and nothing else while unreachable; it raised {type(error).__name__}: {error}"
                        )
                if not is_open:
                    await _works_again(lab, lambda: driver.within(plugin.open(), "open"))
                await _works_again(lab, driver.see)
            finally:
                await driver.within(plugin.aclose(), "aclose")

        _run_bare(rule)

    def test_cancelled_anywhere_leaves_a_working_plugin(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            for turn in range(CANCELLED_AT_MOST):
                want = Setting(NONE) if turn % 2 == 0 else Setting()
                change = await driver.change(ref, want)
                looked = await _cancelled("observe", lab, driver.plugin.observe(driver.pools, dict(driver.notes)), turn)
                told = await _cancelled("apply", lab, driver.plugin.apply([change]), turn)
                await _converges(driver, ref, want)
                for other in lab.refs[1:]:
                    assert lab.truth(other) == Setting(), f"{other} was not named, but a cancelled apply left it at {say(lab.truth(other))}"
                if not looked and not told:
                    return

        _run(lab, rule)

    # ---- restarts ----

    def test_a_new_plugin_undoes_our_ejection(self, lab: Lab) -> None:
        async def rule() -> None:
            ref = lab.refs[0]
            notes: dict[Ref, str] = {}
            async with opened(lab, notes) as earlier:
                before = (await earlier.see())[ref]
                await earlier.make(ref, Setting(NONE))
            async with opened(lab, notes) as later:
                seen = (await later.see())[ref]
                assert seen.ours.serve is NONE, (
                    f"{ref}: out by us, then we restarted; observe with our note shows ours {say(seen.ours)}: nobody would bring it back"
                )
                back = await later.make(ref, Setting())
                assert back.ours == Setting(), f"{ref}: given back, but observe shows ours {say(back.ours)}"
                assert back.weight == before.weight, f"{ref}: the operator's weight {before.weight} became {back.weight} over our restart"

        _run_bare(rule)

    def test_a_new_plugin_gives_back_the_operators_weight(self, lab: Lab) -> None:
        async def rule() -> None:
            ref = lab.refs[0]
            notes: dict[Ref, str] = {}
            async with opened(lab, notes) as first:
                before = (await first.see())[ref]
                if before.grain_pct >= 100:
                    return  # no weights, nothing to give back
                await first.make(ref, Setting(FULL, 50))
            async with opened(lab, notes) as second:
                seen = (await second.see())[ref]
                assert alike(seen.ours, Setting(FULL, 50), seen.grain_pct) and seen.ours != Setting(), (
                    f"{ref}: our cut to 50 % is in force, but after our restart observe shows ours {say(seen.ours)}"
                )
                assert seen.weight == before.weight, (
                    f"{ref}: the operator's weight is {before.weight}; our cut made observe show {seen.weight}"
                )
                if before.grain_pct <= 25:
                    await second.make(ref, Setting(FULL, 25))
                await second.make(ref, Setting(NONE, 50))
            async with opened(lab, notes) as third:
                back = await third.make(ref, Setting())
                assert back.weight == before.weight, f"{ref}: the operator's weight {before.weight} became {back.weight} over two restarts"
                assert back.ours == Setting(), f"{ref}: given back, but observe shows ours {say(back.ours)}"

        _run_bare(rule)

    def test_ours_is_full_only_when_nothing_is_left(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref = lab.refs[0]
            steps = [Setting(FULL, 50)] if (await driver.see())[ref].grain_pct < 100 else []
            for step in (*steps, Setting(NONE)):
                seen = await driver.make(ref, step)
                assert seen.ours != Setting(), f"{ref}: {say(step)} is still in force, but observe shows nothing of ours"
            lab.meddle(ref, Setting(NONE))
            await driver.until(ref, lambda picture: _unless(picture[ref].operator is MAINTENANCE, "the operator's maintenance is not seen"))
            lab.meddle(ref, Setting())
            await self._comes_back(driver, ref)  # whether or not his `ready` ended our ejection too

        _run(lab, rule)

    def test_a_restarted_balancer_is_another(self, lab: Lab) -> None:
        async def rule(driver: Driver) -> None:
            ref, other = lab.refs[:2]
            await driver.make(ref, Setting(NONE))
            late = await driver.change(other, Setting(NONE))
            if not lab.restart():
                pytest.skip("this lab cannot restart its balancer (Lab.restart)")
            await _works_again(lab, driver.see)

            refused = await driver.apply(late)

            assert [refusal.change for refusal in refused] == [late], (
                f"{other}: the balancer was restarted after we looked; `generation` must be another, so that apply refuses"
            )
            seen = (await driver.until(ref, lambda picture: driver.lie(ref, picture[ref])))[ref]
            assert seen.generation != late.expect.generation, (
                f"{ref}: `generation` changes whenever the balancer restarts: {seen.generation!r}"
            )
            await driver.until(ref, lambda picture: picture[ref].writable or "")
            await driver.make(ref, Setting(NONE))
            await driver.make(ref, Setting())

        _run(lab, rule)

    # ---- where it runs, closing ----

    def test_works_on_a_thread_of_its_own(self, lab: Lab) -> None:
        async def rule() -> None:
            async with opened(lab) as driver:
                await driver.make(lab.refs[0], Setting(NONE))
                await driver.make(lab.refs[0], Setting())

        with ThreadPoolExecutor(max_workers=1) as thread:
            try:
                thread.submit(asyncio.run, rule()).result()
            except Exception as error:
                pytest.fail(f"each plugin runs on a thread and loop of its own, not the main one; there: {type(error).__name__}: {error}")

    def test_every_writer_sees_the_same_lock(self, lab: Lab) -> None:
        plugins = lab.plugin(), lab.plugin()
        one, other = (plugin.lock_path() for plugin in plugins)

        assert one == other, f"lock_path() is beside what the balancer owns, the same for every writer of it: {one} and {other}"
        assert one is None or (isinstance(one, str) and one.startswith("/")), f"lock_path() is an absolute path or None, not {one!r}"
        here, there = (plugin.places() for plugin in plugins)
        assert here == there and all(isinstance(place, str) for place in here), (
            f"places() names what these options have us write to, the same each time: {here} and {there}"
        )

    def test_close_is_idempotent(self, lab: Lab) -> None:
        async def rule() -> None:
            never_opened = lab.plugin()
            await _closes(never_opened, "without open")
            await _closes(never_opened, "twice, without open")
            plugin = lab.plugin()
            await plugin.open()
            await Driver(lab, plugin).see()
            await _closes(plugin, "after open")
            await _closes(plugin, "twice")

        _run_bare(rule)

    def test_closing_undoes_nothing(self, lab: Lab) -> None:
        async def rule() -> None:
            ref = lab.refs[0]
            notes: dict[Ref, str] = {}
            async with opened(lab, notes) as driver:
                await driver.make(ref, Setting(NONE))
            assert lab.truth(ref).serve is NONE, (
                f"{ref}: closing lets go of resources and undoes nothing; whether it comes back is the sidecar's"
            )
            async with opened(lab, notes) as driver:
                await driver.make(ref, Setting())

        _run_bare(rule)


def _run(lab: Lab, rule: Callable[[Driver], Coroutine[Any, Any, None]]) -> None:
    """Runs one rule with one opened plugin on a loop of its own."""

    async def with_plugin() -> None:
        async with opened(lab) as driver:
            await rule(driver)

    _run_bare(with_plugin)


def _run_bare(rule: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        asyncio.run(rule())
    except BalancerError as error:
        pytest.fail(
            "BalancerError means that the balancer as a whole cannot be asked or told, but it could: a server or pool that it "
            f"does not have, or a change that it refuses, is a value. It was raised here: {error}"
        )


def _truths(lab: Lab) -> dict[Ref, Setting]:
    return {ref: lab.truth(ref) for ref in lab.refs}


def _unless(ok: bool, problem: str) -> str:
    return "" if ok else problem


def _reweigh(lab: Lab, ref: Ref, weight: int) -> None:
    if not lab.reweigh(ref, weight):
        pytest.skip("this lab has no operator's weight edit (Lab.reweigh)")


def _another_weight(seen: Seen) -> int:
    """A weight that is neither the operator's nor any cut of it that the kit makes."""
    return seen.weight + 3 if seen.weight < 100 else seen.weight - 3


def _assert_well_formed(ref: Ref, seen: Seen) -> None:
    assert isinstance(seen, Seen), f"{ref}: observe gives Seen values, not {type(seen).__name__}"
    assert isinstance(seen.ours, Setting) and isinstance(seen.ours.serve, Serve), f"{ref}: `ours` is a Setting, not {seen.ours!r}"
    assert isinstance(seen.operator, Operator), f"{ref}: `operator` is an Operator, not {seen.operator!r}"
    assert 1 <= seen.ours.weight_pct <= 100, f"{ref}: weight_pct is 1..100, not {seen.ours.weight_pct}"
    assert 1 <= seen.grain_pct <= 100, f"{ref}: grain_pct is 1..100, not {seen.grain_pct}"
    assert seen.weight >= 0, f"{ref}: the operator's weight is not negative: {seen.weight}"
    assert 0 <= seen.settle_s < 3600, f"{ref}: settle_s is seconds, 0 to an hour, not {seen.settle_s}"
    assert seen.address is None or isinstance(seen.address, Address), f"{ref}: `address` is an Address or None, not {seen.address!r}"
    assert isinstance(seen.note, str) and len(seen.note) <= NOTE_MAX, f"{ref}: `note` is text of at most {NOTE_MAX} characters"
    assert "\n" not in seen.remark, f"{ref}: `remark` is one line"


def _assert_at_rest(driver: Driver, ref: Ref, seen: Seen) -> None:
    assert seen.ours == Setting() and seen.operator is READY, (
        f"{ref}: nobody has acted, but observe shows ours {say(seen.ours)}, operator {seen.operator}"
    )
    assert seen.serving is not False, f"{ref}: a server of a new lab serves, but observe shows serving {seen.serving}"
    assert seen.writable is None, f"{ref}: a server of a new lab can be written, but `writable` says {seen.writable!r}"
    assert driver.lab.truth(ref) == Setting(), f"{ref}: in a new lab every server gets full, not {say(driver.lab.truth(ref))}"


def _assert_same(ref: Ref, before: Seen, after: Seen, rule: str) -> None:
    for name in ("ours", "operator", "address", "weight"):
        was, now = getattr(before, name), getattr(after, name)
        assert was == now, f"{rule}, but {ref} {name}: {was} -> {now}"


async def _says_balancer_error(name: str, work: Awaitable[object]) -> None:
    try:
        answer = await work
    except BalancerError as error:
        assert str(error).strip(), f"{name}: a BalancerError says in words what is wrong, for someone at 3 a.m."
    except Exception as error:
        pytest.fail(f"{name} while unreachable raises BalancerError and nothing else; it raised {type(error).__name__}: {error}")
    else:
        pytest.fail(f"{name} while unreachable must raise BalancerError; it returned {answer!r:.200}")


async def _works_again(lab: Lab, attempt: Callable[[], Awaitable[object]]) -> None:
    """Tries as the sidecar does, again and again, the last time after `recover_s` has passed."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        is_last = loop.time() - started >= lab.recover_s
        try:
            await attempt()
            return
        except BalancerError as error:
            assert not is_last, f"reachable again for {lab.recover_s:g} s, but the same plugin still says: {error}"
            await asyncio.sleep(POLL_S)


async def _cancelled(name: str, lab: Lab, work: Coroutine[Any, Any, object], turn: int) -> bool:
    """Cancels it where it waits for the `turn`-th time; False = it had ended before. It must then end soon, in one of two ways."""
    attempt = _CancelledAt(work, turn)

    async def run() -> None:
        await attempt

    task = asyncio.create_task(run())
    done, _ = await asyncio.wait({task}, timeout=lab.deadline_s)
    assert done, f"{name} must end when it is cancelled; it went on for {lab.deadline_s:g} s"
    if not task.cancelled() and (error := task.exception()) is not None:
        pytest.fail(
            f"{name} cancelled at its wait {turn} must let the cancellation through (or finish); it raised {type(error).__name__}: {error}"
        )
    return attempt.reached


async def _converges(driver: Driver, ref: Ref, want: Setting) -> None:
    """After a cut-off apply the same plugin can look and be told again, until all is as wanted."""
    loop = asyncio.get_running_loop()
    started, tries = loop.time(), 0
    while True:
        is_last = tries >= 5 and loop.time() - started >= driver.lab.recover_s
        seen = (await driver.see())[ref]
        is_so = alike(seen.ours, want, seen.grain_pct)
        problem = driver.lie(ref, seen) or ("" if is_so else f"observe shows ours {say(seen.ours)}, not {say(want)}")
        if not problem:
            return
        if not is_so and (refused := await driver.apply(await driver.change(ref, want))):
            problem = f"refused: {refused[0].reason}"
        assert not is_last, f"{ref}: after a cancelled apply the picture must be true and the same plugin still do as told, but {problem}"
        tries += 1
        await asyncio.sleep(0 if tries < 5 else POLL_S)


async def _closes(plugin: Balancer, how: str) -> None:
    try:
        await plugin.aclose()
    except Exception as error:
        pytest.fail(f"aclose is safe {how}; it raised {type(error).__name__}: {error}")


def rules(kit: type[BalancerConformance] = BalancerConformance) -> Sequence[str]:
    """The names of the kit's tests, sorted."""
    return sorted(name for name in dir(kit) if name.startswith("test_"))


__all__ = ["BalancerConformance", "Driver", "Lab", "alike", "expected_truth", "hostile", "opened", "rules"]
