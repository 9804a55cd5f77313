"""HAProxy as a balancer: see and tell, over its runtime socket and, where configured, its agent-check."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from pydantic import BaseModel

from lbplugins.api import Balancer, BalancerError
from lbplugins.haproxy import axis, rights, wire
from lbplugins.haproxy.agent import Agent
from lbplugins.haproxy.axis import Lever, Order, Reading
from lbplugins.haproxy.options import HAProxyOptions
from lbplugins.haproxy.process import Look, Polls, Process, Told
from lbplugins.haproxy.table import parse_old_workers
from lbplugins.haproxy.traffic import Traffic
from lbplugins.haproxy.wire import Verb
from lbplugins.values import FULL, KILL, NONE, OURS, Address, Change, Ref, Refusal, Seen, Serve, TrafficSample, Traits, differences

LOST = "?"
"""The generation of a process that did not answer, when others did."""

STEADY_S = 0.25
"""How long an apply waits for checks under way that could undo it, seconds. Good ones end in milliseconds; a slow one that still
undoes us shows as half undone at the next look."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """All processes at one moment. `looks` stand in the order of the sockets, None where one did not answer."""

    looks: tuple[Look | None, ...]
    seen: Mapping[Ref, Seen]

    def readings(self, ref: Ref) -> list[Reading]:
        return [look.readings[ref] for look in self.looks if look is not None and ref in look.readings]


class HAProxy(Balancer):
    """One HAProxy, or several processes of one configuration, each looked at, told and failing on its own."""

    Options: ClassVar[type[BaseModel]] = HAProxyOptions
    traits = Traits(drain=True, kill=True)

    def __init__(self, options: BaseModel) -> None:
        super().__init__(options)
        if not isinstance(options, HAProxyOptions):
            raise TypeError(f"HAProxy takes HAProxyOptions, not {type(options).__name__}")
        self._options = options
        self._processes = [Process(path, options.timeout) for path in options.socket]
        self._agent = Agent(options.agent) if options.agent is not None else None

        self._traffic = Traffic(options.traffic) if options.traffic is not None else None
        self._addresses: dict[Ref, Address | None] = {}
        """Of the servers that our agent has a word for: a word is not for whoever comes after."""

    async def open(self) -> None:
        """Listens for agent-checks and log lines, then asks every process; BalancerError if none of them answers."""
        if self._agent is not None:
            await self._agent.listen()
        if self._traffic is not None:
            await self._traffic.listen()
        _of_any(await asyncio.gather(*(process.reach() for process in self._processes), return_exceptions=True))

    async def pools(self) -> frozenset[str]:
        """Every backend that has servers, in any process."""
        answers = _of_any(await asyncio.gather(*(process.pools() for process in self._processes), return_exceptions=True))
        return frozenset(pool for pools in answers if pools is not None for pool in pools)

    async def rights(self) -> Sequence[str]:
        """Sockets that are closed to us or of too low a level, and addresses at which we cannot listen; needs no `open`."""
        return await rights.lacking(self._options, [self._try_agent, self._try_traffic])

    async def _try_agent(self) -> None:
        if self._options.agent is not None and (self._agent is None or not self._agent.is_listening):
            agent = Agent(self._options.agent)  # it holds no word, so whoever asks it now is left as he is
            await agent.listen()
            await agent.close()

    async def _try_traffic(self) -> None:
        if self._options.traffic is not None and (self._traffic is None or not self._traffic.is_listening):
            traffic = Traffic(self._options.traffic)
            await traffic.listen()
            await traffic.close()

    def lock_path(self) -> str:
        return self._options.socket[0] + ".lb-sidecar.lock"

    def places(self) -> frozenset[str]:
        return frozenset(self._options.socket)

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        picture = await self._look(pools, notes)
        if self._agent is not None:
            self._adopt_words(self._agent, picture)
        old = await self._old_workers()
        return {ref: seen if seen.ours.serve is FULL else _remarked(seen, old) for ref, seen in picture.seen.items()}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        if not changes:
            return []
        notes = {change.ref: change.note for change in changes if change.note}
        pools = frozenset(change.ref.pool for change in changes)
        picture = await self._look(pools, notes)
        refusals = {index: reason for index, change in enumerate(changes) if (reason := _why_refuse(picture, change))}
        allowed = {index: change for index, change in enumerate(changes) if index not in refusals}
        self._say(picture, allowed.values())
        failed = await self._write(picture, allowed.values())
        if failed is not None:
            picture = await self._steady(await self._look(pools, notes), list(allowed.values()), notes)
            commanded = {change.ref for change in allowed.values() if change.on is not OURS}
            for index, change in allowed.items():
                if reason := failed.get(change.ref) or _why_unmet(picture, change, commanded):
                    refusals[index] = reason
                else:
                    self._did(picture, change)
            await self._mend(picture, [change for index, change in allowed.items() if index in refusals])
        await self._kill(picture, [change for index, change in allowed.items() if index not in refusals])
        return [Refusal(changes[index], reason) for index, reason in sorted(refusals.items())]

    def traffic(self) -> AsyncIterator[Sequence[TrafficSample]] | None:
        """Real requests from HAProxy's log, where it is configured; for one reader."""
        return self._traffic.batches() if self._traffic is not None else None

    async def aclose(self) -> None:
        if self._traffic is not None:
            await self._traffic.close()
        if self._agent is not None:
            await self._agent.close()

    async def _look(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Picture:
        polls = self._agent.polls() if self._agent is not None else Polls()
        answers = await asyncio.gather(*(process.look(pools, notes, polls) for process in self._processes), return_exceptions=True)
        looks = _of_any(answers)
        generation = ",".join(LOST if look is None else look.generation for look in looks)
        lost = tuple(f"a process is not reached: {answer}" for answer in answers if isinstance(answer, BalancerError))
        refs = dict.fromkeys(ref for look in looks if look is not None for ref in look.readings)
        picture = Picture(looks, {})
        seen = {ref: replace(axis.merge([reading.seen for reading in picture.readings(ref)]), generation=generation) for ref in refs}
        return Picture(looks, {ref: _remarked(one, lost) for ref, one in seen.items()})

    def _adopt_words(self, agent: Agent, picture: Picture) -> None:
        """Gives the agent a word for each server that polls it: what is in force, until we decide otherwise."""
        for ref, seen in picture.seen.items():
            reading = picture.readings(ref)[0]
            if reading.lever is not Lever.AGENT:
                continue
            if agent.says(ref):
                if self._addresses.get(ref) != seen.address:
                    self._word(agent, ref, seen, FULL)  # our word was about another instance of that name
            elif seen.ours.serve is FULL:
                self._word(agent, ref, seen, FULL)
            elif reading.past is not None or f"down ({axis.OUR_WORD}" in reading.server.last_agent:
                self._word(agent, ref, seen, NONE, "still out")

    def _word(self, agent: Agent, ref: Ref, seen: Seen, serve: Serve, why: str = "") -> None:
        agent.say(ref, serve, why)
        self._addresses[ref] = seen.address

    def _say(self, picture: Picture, changes: Iterable[Change]) -> None:
        """Sets our agent's words, before anything is pushed: a poll in between would undo it."""
        for change in changes:
            if self._agent is not None and change.on is OURS and any(r.lever is Lever.AGENT for r in picture.readings(change.ref)):
                self._word(self._agent, change.ref, picture.seen[change.ref], change.want.serve, change.why)

    async def _write(self, picture: Picture, changes: Iterable[Change]) -> dict[Ref, str] | None:
        """What went wrong, per server; None = there was nothing to write. BalancerError if every process failed."""
        jobs = []
        for process, look in zip(self._processes, picture.looks, strict=True):
            if look is None:
                continue
            orders = [(change, order) for change in changes for order in _orders(look, change)]
            for change in changes:
                # Without an order as well: our agent has its word already.
                if change.on is OURS and change.ref in look.readings:
                    process.will(look.readings[change.ref], change)
            if orders:
                jobs.append(process.tell(look, [(change.ref, order) for change, order in orders]))
        if not jobs:
            return None
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        _of_any(answers)
        failed: dict[Ref, str] = {}
        for answer in answers:
            if isinstance(answer, Told):
                failed |= {ref: f"HAProxy said: {text}" for ref, text in answer.errors.items()}
                failed |= {ref: f"the operator set weight {weight} while we wrote; it was put back" for ref, weight in answer.raced.items()}
        return failed

    def _did(self, picture: Picture, change: Change) -> None:
        if change.on is not OURS:
            return
        for process, look in zip(self._processes, picture.looks, strict=True):
            if look is not None and change.ref in look.readings:
                process.did(change.ref, look.readings[change.ref])

    async def _steady(self, picture: Picture, changes: Sequence[Change], notes: Mapping[Ref, str]) -> Picture:
        """The picture once checks that were under way have ended, with what they undid ejected again; after `STEADY_S`, as it is then."""
        pools = frozenset(change.ref.pool for change in changes)
        loop = asyncio.get_running_loop()
        started = loop.time()
        while loop.time() - started < STEADY_S and _which(axis.is_shaky, picture, changes):
            await asyncio.sleep(0.01)
            picture = await self._look(pools, notes)
        undone = _which(axis.is_shaken, picture, changes)
        undone = [change for change in undone if picture.seen[change.ref].generation == change.expect.generation]
        if undone and await self._write(picture, undone) is not None:
            picture = await self._look(pools, notes)
        return picture

    async def _mend(self, picture: Picture, refused: Sequence[Change]) -> None:
        """Takes back what an operator's maintenance, faster than our write, would turn into harm."""
        jobs = []
        for process, look in zip(self._processes, picture.looks, strict=True):
            if look is None:
                continue
            known = [(change, look.readings[change.ref]) for change in refused if change.ref in look.readings]
            orders = [(change.ref, order) for change, reading in known for order in axis.mend(reading, change)]
            if orders:
                jobs.append(process.tell(look, orders))
        _of_any(await asyncio.gather(*jobs, return_exceptions=True))

    async def _kill(self, picture: Picture, changes: Sequence[Change]) -> None:
        """Cuts what is under way at servers that are out now; best effort, as their ejection stands either way."""
        cut = {change.ref for change in changes if change.in_flight is KILL and change.want.serve is NONE}
        order = Order(Verb.SHUTDOWN_SESSIONS)
        jobs = []
        for process, look in zip(self._processes, picture.looks, strict=True):
            if look is not None and look.level == "admin":
                busy = [ref for ref in cut if ref in look.readings and look.readings[ref].server.in_flight != 0]
                if busy:
                    jobs.append(process.tell(look, [(ref, order) for ref in busy]))
        for answer in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, BalancerError):
                raise answer

    async def _old_workers(self) -> tuple[str, ...]:
        """Remarks on workers of earlier configurations, which still serve and no longer listen to us."""
        if self._options.master is None:
            return ()
        try:
            (text,) = await wire.ask(self._options.master, [wire.SHOW_PROC], self._options.timeout, half_close=True)
        except BalancerError as error:
            return (f"old workers unknown: {error}",)
        return tuple(f"old worker pid {pid} still serves; its requests may reach this server" for pid in parse_old_workers(text))


def _of_any(answers: Sequence[T | BaseException]) -> tuple[T | None, ...]:
    """The answers, None for a process that could not be asked; raises if that is all of them, or for any other error."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not isinstance(error, BalancerError):
            raise error
    if errors and len(errors) == len(answers):
        raise BalancerError("; ".join(map(str, errors))) from errors[0]
    return tuple(None if isinstance(answer, BaseException) else answer for answer in answers)


def _remarked(seen: Seen, remarks: Sequence[str]) -> Seen:
    return replace(seen, remark="; ".join(filter(None, (seen.remark, *remarks)))) if remarks else seen


def _which(rule: Callable[[Reading, Change], bool], picture: Picture, changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if any(rule(reading, change) for reading in picture.readings(change.ref))]


def _orders(look: Look, change: Change) -> list[Order]:
    reading = look.readings.get(change.ref)
    return axis.plan(reading, change, look.level) if reading is not None else []


def _why_refuse(picture: Picture, change: Change) -> str:
    """Why this change is not even written; "" = it may be."""
    if any(wire.NAME.match(name) is None for name in change.ref):
        return f"{tuple(change.ref)!r:.300} is no name of a HAProxy server (letters, digits, `_ . : -`, at most 128); nothing was sent"
    seen = picture.seen.get(change.ref)
    if seen is None:
        return f"HAProxy has no server {change.ref}"
    if moved := differences(seen, change.expect):
        return "changed since we looked: " + ", ".join(moved)
    reasons = (axis.why_refuse(reading, change) for reading in picture.readings(change.ref))
    return next(filter(None, reasons), "")


def _why_unmet(picture: Picture, change: Change, commanded: Container[Ref]) -> str:
    """Why the read-back does not count as success; "" = it does. `commanded`: servers whose operator's axis we wrote, too."""
    seen = picture.seen.get(change.ref)
    if seen is None:
        return f"HAProxy no longer has server {change.ref}: reloaded while we wrote"
    if seen.generation != change.expect.generation or seen.address != change.expect.address:
        moved = differences(replace(change.expect, generation=seen.generation, address=seen.address), change.expect)
        return "HAProxy was reloaded, restarted or lost while we wrote: " + ", ".join(moved)
    if change.on is OURS and seen.operator is not change.expect.operator and change.ref not in commanded:
        return f"the operator was faster: {change.expect.operator} -> {seen.operator}"
    return next(filter(None, (axis.unmet(reading, change) for reading in picture.readings(change.ref))), "")


__all__ = ["HAProxy"]
