"""Broken plugins, each with one fault that a real one might have. `CAUGHT_BY` names the kit's test that must catch it."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from pydantic import BaseModel

from lbplugins.api import BalancerError
from lbplugins.memory import Box, Memory
from lbplugins.testing import Lab
from lbplugins.values import (
    DRAIN,
    FULL,
    KILL,
    MAINTENANCE,
    NONE,
    OPERATOR,
    OURS,
    READY,
    Address,
    Change,
    Pools,
    Ref,
    Refusal,
    Seen,
    Setting,
    Traits,
)  # fmt: skip
from tests.plugins.kit.memory_lab import MemoryLab
from tests.plugins.kit.register_lab import OneRegister, RegisterLab

Notes = Mapping[Ref, str]
Picture = Mapping[Ref, Seen]


def put(box: Box, ref: Ref, seen: Seen) -> None:
    if box.servers[ref] != seen:
        box.servers[ref] = replace(seen, serving=seen.ours.serve is FULL and seen.operator is READY)
        box.told += 1


class LaxOptions(Memory):
    """A typing slip in the configuration passes."""

    class Options(BaseModel):
        pools: dict[str, dict[str, str]] = {}


class OtherVersion(Memory):
    """Made for another contract."""

    api_version = 99


class NoTraits(Memory):
    traits = cast(Traits, {"drain": True})


class OpensTooEarly(Memory):
    """Touches files when it is only built."""

    def __init__(self, options: BaseModel, box: Box | None = None) -> None:
        super().__init__(options, box)
        with tempfile.TemporaryFile():
            pass


class Forgets(Memory):
    """Gives the first server only."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return dict(list((await super().observe(pools, notes)).items())[:1])


class SeesFalseWeight(Memory):
    """Its weight_pct is a share, 0 to 1."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        return {ref: replace(seen, ours=replace(seen.ours, weight_pct=seen.ours.weight_pct // 100)) for ref, seen in picture.items()}


class AllPools(Memory):
    """Gives everything, whatever was asked."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return await super().observe(await self.pools(), notes)


class FailsOnUnknownPool(Memory):
    """One pool that is not there hides all others."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        if unknown := pools - await self.pools():
            raise BalancerError(f"no pools {sorted(unknown)}")
        return await super().observe(pools, notes)


class ListsHalf(Memory):
    async def pools(self) -> frozenset[str]:
        return frozenset(sorted(await super().pools())[:1])


class FillsAnew(Memory):
    """Starts all servers anew whenever discovery speaks, and so returns what is out."""

    async def members(self, pools: Pools) -> None:
        for servers in pools.values():
            for ref, address in servers.items():
                put(self.box, ref, Seen(address=address, weight=self.box.servers[ref].weight))


class NeedsTheMainThread(Memory):
    """Catches a signal."""

    async def open(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: None)

    async def aclose(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)


class LocksAlone(Memory):
    """Each object has a lock of its own, so that two may write."""

    def lock_path(self) -> str | None:
        return f"/run/memory-{id(self)}.lock"


class LocksWhereItStands(Memory):
    def lock_path(self) -> str | None:
        return "memory.lock"


class NotesTooMuch(Memory):
    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {ref: replace(seen, note="x" * 100_000) for ref, seen in (await super().observe(pools, notes)).items()}


class WritesOnObserve(Memory):
    """Looking reloads."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        self.box.told += 1
        return await super().observe(pools, notes)


class Caches(Memory):
    """Repeats its first observation."""

    seen: Picture | None = None

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        self.seen = self.seen or await super().observe(pools, notes)
        return self.seen


class CachesWeights(Memory):
    """Believes the weight of its first look for ever."""

    async def open(self) -> None:
        self.weights = {ref: seen.weight for ref, seen in self.box.servers.items()}

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {ref: replace(seen, weight=self.weights[ref]) for ref, seen in (await super().observe(pools, notes)).items()}


class PartialPicture(Memory):
    """Takes a server out of the file and puts it in again; who looks between sees half."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        held = {change.ref: self.box.servers[change.ref] for change in changes if change.ref in self.box.servers}
        for ref in held:
            del self.box.servers[ref]
        await asyncio.sleep(0)
        self.box.servers.update(held)
        return await super().apply(changes)


class Lies(Memory):
    """Says yes and does nothing."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self._reach()
        return []


class Pretends(Memory):
    """Shows what it was told instead of what is."""

    told: dict[Ref, Setting]

    async def open(self) -> None:
        self.told = {}

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        return {ref: replace(seen, ours=self.told.get(ref, seen.ours)) for ref, seen in picture.items()}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self.told |= {change.ref: change.want for change in changes}
        return []


class WrongAxis(Memory):
    """Ejects with the operator's own maintenance."""

    def _tell(self, change: Change) -> str:
        return super()._tell(replace(change, on=OPERATOR))


class AlwaysServing(Memory):
    """Says that all serve, so that every guard counts wrong."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {ref: replace(seen, serving=True) for ref, seen in (await super().observe(pools, notes)).items()}


class RefusesKill(Memory):
    """Cannot kill, so it does not eject either."""

    def _tell(self, change: Change) -> str:
        return "cannot kill" if change.in_flight is KILL else super()._tell(change)


class Shouts(Memory):
    """Does each change to all servers of the pool."""

    def _tell(self, change: Change) -> str:
        said = super()._tell(change)
        for ref, seen in list(self.box.servers.items()):
            if not said and change.on is OURS:
                put(self.box, ref, replace(seen, ours=change.want))
        return said


class OnlyTheFirst(Memory):
    """Takes one change of a batch."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        return await super().apply(changes[:1])


class DrainIsDown(Memory):
    def _tell(self, change: Change) -> str:
        return super()._tell(replace(change, want=Setting(NONE)) if change.want.serve is DRAIN else change)


class DrainsInSilence(DrainIsDown):
    """Declares no drain, and makes it maintenance without a word."""

    traits = Traits()


class ReadyClearsOurs(Memory):
    """`ready` for the operator undoes our ejection as well."""

    def _tell(self, change: Change) -> str:
        said = super()._tell(change)
        if not said and change.on is OPERATOR and change.want.serve is FULL:
            put(self.box, change.ref, replace(self.box.servers[change.ref], ours=Setting()))
        return said


class NoWeights(Memory):
    """Drops the weight it is told."""

    def _tell(self, change: Change) -> str:
        return super()._tell(replace(change, want=Setting(change.want.serve)))


class ShowsOurCut(Memory):
    """Gives the weight that we cut as the operator's."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        return {ref: replace(seen, weight=max(1, seen.weight * seen.ours.weight_pct // 100)) for ref, seen in picture.items()}


class RoundsToNothing(Memory):
    """One per cent becomes none, as a truncated weight does."""

    def _tell(self, change: Change) -> str:
        return super()._tell(replace(change, want=Setting(NONE)) if change.want.weight_pct == 1 else change)


class LosesWeight(Memory):
    """The operator's weight is gone after an ejection."""

    def _tell(self, change: Change) -> str:
        said = super()._tell(change)
        if not said and change.want.serve is NONE:
            put(self.box, change.ref, replace(self.box.servers[change.ref], weight=1))
        return said


class Toggles(Memory):
    """Out a second time means back."""

    def _tell(self, change: Change) -> str:
        is_out = change.on is OURS and change.expect.ours.serve is NONE
        return super()._tell(replace(change, want=Setting()) if is_out and change.want.serve is NONE else change)


class WritesAlways(Memory):
    """Reloads though all is so already."""

    def _tell(self, change: Change) -> str:
        told = self.box.told
        said = super()._tell(change)
        self.box.told = told + (not said)
        return said


class ReloadsForNothing(Memory):
    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self.box.told += not changes
        return await super().apply(changes)


class IgnoresExpect(Memory):
    def _tell(self, change: Change) -> str:
        seen = self.box.servers.get(change.ref)
        return super()._tell(replace(change, expect=seen or change.expect))


class IgnoresGeneration(Memory):
    """Writes into a balancer that has been restarted since we looked."""

    def _tell(self, change: Change) -> str:
        return super()._tell(replace(change, expect=replace(change.expect, generation="")))


class WritesThenCompares(Memory):
    """Refuses the stale change only after it has written it."""

    def _tell(self, change: Change) -> str:
        if seen := self.box.servers.get(change.ref):
            super()._tell(replace(change, expect=seen))
            return "" if seen == change.expect else "changed meanwhile"
        return super()._tell(change)


class ComparesWithItsMemory(Memory):
    """Compares with its own last look, not with the balancer."""

    last: Picture

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        self.last = await super().observe(pools, notes)
        return self.last

    def _tell(self, change: Change) -> str:
        if change.ref in self.box.servers and self.last.get(change.ref) == change.expect:
            change = replace(change, expect=self.box.servers[change.ref])
        return super()._tell(change)


class ComparesEverything(Memory):
    """Refuses because a counter moved."""

    def _tell(self, change: Change) -> str:
        return "counters moved" if change.expect.counters else super()._tell(change)


class OverridesOperator(Memory):
    """Our return ends the operator's maintenance."""

    def _tell(self, change: Change) -> str:
        said = super()._tell(change)
        if not said and change.on is OURS and change.want.serve is FULL:
            put(self.box, change.ref, replace(self.box.servers[change.ref], operator=READY))
        return said


class KeepsOldWeight(OneRegister):
    """Gives back the weight it once noted though the operator has set another since."""

    def _theirs(self, ref: Ref, register: object) -> int:
        self.first = getattr(self, "first", {})
        return cast(int, self.first.setdefault(ref, self.registers.servers[ref].weight))


class Invents(Memory):
    """Creates the server that it was told about."""

    def _tell(self, change: Change) -> str:
        self.box.servers.setdefault(change.ref, change.expect)
        return super()._tell(change)


class AllOrNothing(Memory):
    """One refusal stops the batch."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        bad = [change for change in changes if change.ref not in self.box.servers]
        return [Refusal(change, "no such server") for change in bad] or await super().apply(changes)


class RaisesRefusal(Memory):
    """Fails as a whole for one server that is not there."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        if refusals := await super().apply(changes):
            raise BalancerError(refusals[0].reason)
        return []


class GivesNoReason(Memory):
    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        return [Refusal(refusal.change) for refusal in await super().apply(changes)]


class TrustsNames(Memory):
    """Sends names as they come, so that the balancer reads up to the end of the command."""

    def _tell(self, change: Change) -> str:
        pool, server = change.ref
        return super()._tell(replace(change, ref=Ref(pool, server.split("\n")[0].split(";")[0].strip())))


class Swallows(Memory):
    """No error when the balancer is away: an empty world instead."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {} if self.box.down else await super().observe(pools, notes)


class RefusesWhenAway(Memory):
    """Calls an unknown outcome a refusal."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        return [Refusal(change, self.box.down) for change in changes] if self.box.down else await super().apply(changes)


class LeaksOSError(Memory):
    def _reach(self) -> None:
        if self.box.down:
            raise ConnectionRefusedError(self.box.down)


class WaitsForEver(Memory):
    """Waits for a balancer that is away."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        while self.box.down:
            await asyncio.sleep(0.01)
        return await super().observe(pools, notes)


class NeverRecovers(Memory):
    """Once lost, always lost."""

    is_lost = False

    def _reach(self) -> None:
        self.is_lost = self.is_lost or bool(self.box.down)
        if self.is_lost:
            raise BalancerError("lost")


class OpensWithOSError(Memory):
    async def open(self) -> None:
        if self.box.down:
            raise FileNotFoundError(self.box.down)


class TornByCancel(Memory):
    """Cancelled half-way it has shut the neighbour and not opened it again."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        other = Ref("web", "b")
        seen = self.box.servers[other]
        put(self.box, other, replace(seen, operator=MAINTENANCE))
        await asyncio.sleep(0)
        put(self.box, other, seen)
        return await super().apply(changes)


class StuckByCancel(Memory):
    """Cancelled while it holds its lock, it never works again."""

    is_busy = False

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        if self.is_busy:
            raise BalancerError("busy")
        self.is_busy = True
        await asyncio.sleep(0)
        self.is_busy = False
        return await super().apply(changes)


class HidesCancel(Memory):
    """Turns a cancellation into an error of its own."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise BalancerError("interrupted") from None
        return await super().observe(pools, notes)


class ForgetsItsEjection(Memory):
    """Knows what is ours only as long as it lives: a new one takes its ejection for the operator's."""

    async def open(self) -> None:
        self.ours: set[Ref] = set()

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        return {ref: seen if ref in self.ours else replace(seen, ours=Setting()) for ref, seen in picture.items()}

    def _tell(self, change: Change) -> str:
        self.ours.add(change.ref)
        return super()._tell(change)


class ForgetsNote(OneRegister):
    """Remembers by itself, and so takes the weight that it cut before its restart for the operator's."""

    async def open(self) -> None:
        self.own: dict[Ref, str] = {}

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return await super().observe(pools, self.own)

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self.own |= {change.ref: change.note for change in changes}
        return await super().apply(changes)


class ClaimsFull(Memory):
    """Shows a cut as nothing of ours, so that nobody undoes it."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        return {ref: replace(seen, ours=Setting(seen.ours.serve)) for ref, seen in picture.items()}


class ClosesOnce(Memory):
    is_closed = False

    async def aclose(self) -> None:
        if self.is_closed:
            raise RuntimeError("closed already")
        self.is_closed = True


class ReturnsAllOnClose(Memory):
    """Gives back on its way out what only the sidecar may give back."""

    async def aclose(self) -> None:
        for ref, seen in list(self.box.servers.items()):
            put(self.box, ref, replace(seen, ours=Setting()))


class SwapsAddresses(Memory):
    """Gives each server its neighbour's address: one would be judged, and the other taken out for it."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {ref: replace(seen, address=self._beside(ref)) for ref, seen in (await super().observe(pools, notes)).items()}

    def _tell(self, change: Change) -> str:
        is_fresh = change.ref in self.box.servers and change.expect.address == self._beside(change.ref)
        address = self.box.servers[change.ref].address if is_fresh else change.expect.address
        return super()._tell(replace(change, expect=replace(change.expect, address=address)))

    def _beside(self, ref: Ref) -> Address | None:
        refs = list(self.box.servers)
        return self.box.servers[refs[refs.index(ref) - 1]].address


class ListsPhantoms(Memory):
    """Names pools that it cannot observe, which would become services without an instance."""

    async def pools(self) -> frozenset[str]:
        return await super().pools() | {"template"}


class StaysDark(Memory):
    """Whoever was out once is never again said to serve, so that the guards let nobody else go."""

    dark: frozenset[Ref] = frozenset()

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        self.dark |= {ref for ref, seen in picture.items() if seen.serving is False}
        return {ref: replace(seen, serving=seen.serving and ref not in self.dark) for ref, seen in picture.items()}


class TriesAgainByItself(Memory):
    """Keeps what could not be told, and tells it once the balancer is back, when nobody means it any more."""

    kept: tuple[Change, ...] = ()

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture, kept = await super().observe(pools, notes), self.kept
        self.kept = ()
        return await super().observe(pools, notes) if kept and not await super().apply(kept) else picture

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        self.kept = tuple(changes) if self.box.down else ()
        return await super().apply(changes)


class OneGeneration(Memory):
    """A restarted balancer looks like the one before, so what was meant for that one is written to it."""

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        return {ref: replace(seen, generation="1") for ref, seen in (await super().observe(pools, notes)).items()}

    def _tell(self, change: Change) -> str:
        seen = self.box.servers.get(change.ref)
        generation = change.expect.generation if seen is None or change.expect.generation != "1" else seen.generation
        return super()._tell(replace(change, expect=replace(change.expect, generation=generation)))


class ShowsYesterday(Memory):
    """What it has once seen taken out stays so in its eyes, though a restart has brought it back."""

    out: frozenset[Ref] = frozenset()

    async def observe(self, pools: frozenset[str], notes: Notes) -> Picture:
        picture = await super().observe(pools, notes)
        missed = {ref for ref in self.out & picture.keys() if picture[ref].ours.serve is FULL}
        return {ref: replace(seen, ours=Setting(NONE), serving=False) if ref in missed else seen for ref, seen in picture.items()}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        refused = await super().apply(changes)
        done = [c for c in changes if c.on is OURS and c not in [r.change for r in refused]]
        self.out -= {c.ref for c in done if c.want.serve is FULL}
        self.out |= {c.ref for c in done if c.want.serve is NONE}
        return refused


CAUGHT_BY: dict[type[Memory] | type[OneRegister], str] = {
    LaxOptions: "test_declares_version_traits_and_options",
    OtherVersion: "test_declares_version_traits_and_options",
    NoTraits: "test_declares_version_traits_and_options",
    OpensTooEarly: "test_does_nothing_before_open",
    Forgets: "test_observes_every_server",
    SwapsAddresses: "test_observes_every_server",
    SeesFalseWeight: "test_observes_every_server",
    AllPools: "test_observes_only_the_pools_asked_for",
    FailsOnUnknownPool: "test_leaves_out_a_pool_it_does_not_have",
    ListsHalf: "test_lists_pools_it_can_observe",
    ListsPhantoms: "test_lists_pools_it_can_observe",
    FillsAnew: "test_members_that_it_has_change_nothing",
    NeedsTheMainThread: "test_works_on_a_thread_of_its_own",
    LocksAlone: "test_every_writer_sees_the_same_lock",
    LocksWhereItStands: "test_every_writer_sees_the_same_lock",
    NotesTooMuch: "test_observes_every_server",
    WritesOnObserve: "test_observing_changes_nothing",
    Caches: "test_sees_an_operators_edit",
    CachesWeights: "test_sees_an_operators_weight",
    PartialPicture: "test_observers_are_never_partial",
    Lies: "test_ejects_and_returns",
    Pretends: "test_ejects_and_returns",
    WrongAxis: "test_ejects_and_returns",
    AlwaysServing: "test_ejects_and_returns",
    StaysDark: "test_ejects_and_returns",
    RefusesKill: "test_kill_is_at_least_an_ejection",
    Shouts: "test_touches_only_what_is_named",
    OnlyTheFirst: "test_makes_several_at_once",
    DrainIsDown: "test_operators_axis_takes_ready_drain_and_maintenance",
    DrainsInSilence: "test_operators_axis_takes_ready_drain_and_maintenance",
    ReadyClearsOurs: "test_the_two_axes_do_not_mix",
    NoWeights: "test_weights_round_trip_within_the_grain",
    ShowsOurCut: "test_weights_round_trip_within_the_grain",
    RoundsToNothing: "test_weights_round_trip_within_the_grain",
    LosesWeight: "test_weight_survives_an_ejection",
    Toggles: "test_saying_it_twice_costs_nothing",
    WritesAlways: "test_saying_it_twice_costs_nothing",
    ReloadsForNothing: "test_no_changes_no_effort",
    IgnoresExpect: "test_a_stale_expect_is_refused",
    IgnoresGeneration: "test_a_stale_expect_is_refused",
    WritesThenCompares: "test_a_stale_expect_is_refused",
    ComparesWithItsMemory: "test_an_operator_who_was_faster_wins",
    ComparesEverything: "test_what_moves_by_itself_is_not_compared",
    OverridesOperator: "test_operators_maintenance_survives_eject_and_return",
    KeepsOldWeight: "test_operators_weight_survives_our_cut",
    Invents: "test_refuses_a_stranger_and_does_the_rest",
    AllOrNothing: "test_refuses_a_stranger_and_does_the_rest",
    RaisesRefusal: "test_refuses_a_stranger_and_does_the_rest",
    GivesNoReason: "test_refuses_a_stranger_and_does_the_rest",
    TrustsNames: "test_refuses_hostile_names",
    Swallows: "test_says_so_when_unreachable",
    RefusesWhenAway: "test_says_so_when_unreachable",
    LeaksOSError: "test_says_so_when_unreachable",
    WaitsForEver: "test_says_so_when_unreachable",
    TriesAgainByItself: "test_says_so_when_unreachable",
    NeverRecovers: "test_recovers_by_itself",
    OpensWithOSError: "test_opens_while_unreachable_or_says_so",
    TornByCancel: "test_cancelled_anywhere_leaves_a_working_plugin",
    StuckByCancel: "test_cancelled_anywhere_leaves_a_working_plugin",
    HidesCancel: "test_cancelled_anywhere_leaves_a_working_plugin",
    ForgetsItsEjection: "test_a_new_plugin_undoes_our_ejection",
    ForgetsNote: "test_a_new_plugin_gives_back_the_operators_weight",
    ClaimsFull: "test_ours_is_full_only_when_nothing_is_left",
    OneGeneration: "test_a_restarted_balancer_is_another",
    ShowsYesterday: "test_a_restarted_balancer_is_another",
    ClosesOnce: "test_close_is_idempotent",
    ReturnsAllOnClose: "test_closing_undoes_nothing",
}


def lab_of(broken: type[Memory] | type[OneRegister]) -> Lab:
    """A new lab with the broken plugin in it; impatient, since nothing in it takes time."""
    lab: Lab = RegisterLab(broken) if issubclass(broken, OneRegister) else MemoryLab(broken)
    lab.deadline_s = lab.recover_s = 0.5
    return lab
