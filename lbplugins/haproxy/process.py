"""One HAProxy process: looked at and told over its own socket, with a memory of what we did to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lbplugins.haproxy import axis, wire
from lbplugins.haproxy.axis import Around, Order, Past, Reading
from lbplugins.haproxy.table import Server, Table, algorithms, join, parse_process, parse_states, parse_stats
from lbplugins.haproxy.wire import Verb
from lbplugins.values import Change, Ref, Setting

MANY_POOLS = 60
"""From here on one question for all pools is cheaper than one per pool."""

BACKEND = "1"
"""The type of a backend's own row in `show stat`."""

STATIC = "static LB algorithm"
"""What HAProxy says when a pool's algorithm takes no weights."""


@dataclass(frozen=True, slots=True)
class Polls:
    """What our agent knows of the polls: who asks it, and how long a word takes to arrive, seconds."""

    asking: frozenset[Ref] = frozenset()
    settle_s: Mapping[Ref, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """One transaction's picture of one process."""

    generation: str
    level: str
    readings: Mapping[Ref, Reading]


@dataclass(frozen=True, slots=True)
class Told:
    """What HAProxy said to our orders: errors per server, and weights that an operator had just changed under us."""

    errors: Mapping[Ref, str]
    raced: Mapping[Ref, int]


class Process:
    """Owner of the memory of one process: what we set there, where nothing of ours was left, and which pools refused weights."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.generation = ""
        self._memory: dict[Ref, Past] = {}
        self._clean: set[Ref] = set()
        self._static: set[str] = set()
        self._veiled: set[str] = set()
        """Pools whose name a frontend has too: asked for by that name, `show stat` gives the frontend's rows and none of theirs."""

    async def reach(self) -> None:
        """BalancerError unless HAProxy answers."""
        (info,) = await wire.ask(self.path, [wire.SHOW_INFO], self.timeout_s)
        parse_process(info)

    async def pools(self) -> frozenset[str]:
        """Names of all backends that have servers."""
        (states,) = await wire.ask(self.path, [wire.SHOW_ALL_STATES], self.timeout_s)
        return frozenset(row["be_name"] for row in parse_states(states) if wire.NAME.match(row["be_name"]))

    async def look(self, pools: Iterable[str], notes: Mapping[Ref, str], polls: Polls) -> Look:
        """All servers of these pools, read over one connection."""
        table = await self._table(sorted(pool for pool in pools if wire.NAME.match(pool)))
        servers, algorithm_of = table.servers or {}, table.algorithms or {}
        remarks = self._new_generation(table) if self.generation != table.generation else ()
        busy = {ref.pool for ref, server in servers.items() if not server.backup and axis.is_serving(server)}
        readings: dict[Ref, Reading] = {}
        for ref, server in servers.items():
            around = Around(
                generation=table.generation,
                level=table.level,
                takes_weights=algorithm_of.get(ref.pool, "").startswith(axis.TAKES_WEIGHTS) and ref.pool not in self._static,
                asks_us=ref in polls.asking,
                agent_settle_s=polls.settle_s.get(ref, 0.0),
                idle_reserve=server.backup and ref.pool in busy,
                remarks=remarks,
            )
            readings[ref] = axis.read(server, self._past(server, notes), around)
            if ref not in self._memory and readings[ref].seen.ours == Setting():
                self._clean.add(ref)
        return Look(table.generation, table.level, readings)

    async def tell(self, look: Look, orders: Sequence[tuple[Ref, Order]]) -> Told:
        """Sends the orders, joined, and puts back a weight that the operator changed since the look.

        Names are checked against that look. BalancerError = it is unknown which were carried out.
        """
        errors: dict[Ref, str] = {}
        raced: dict[Ref, int] = {}
        for some in _batches(orders):
            told = await self._send(look, some)
            errors.update(told.errors)
            raced.update(told.raced)
            if told.raced:
                back = [(ref, Order(Verb.SET_WEIGHT, weight)) for ref, weight in told.raced.items()]
                for batch in _batches(back):
                    errors.update((await self._send(look, batch)).errors)
        self._static.update(ref.pool for ref, text in errors.items() if STATIC in text)
        return Told(errors, raced)

    def will(self, reading: Reading, change: Change) -> None:
        """Remembers a change before it is written: a deadline may cut us off right after."""
        ref = reading.server.ref
        self._memory[ref] = axis.remember(reading, change, axis.target(reading.seen, change.want))

    def did(self, ref: Ref, after: Reading) -> None:
        """Remembers that a read-back showed the change."""
        if ref in self._memory:
            self._memory[ref] = axis.settle(self._memory[ref], after.seen.ours.serve)

    def _past(self, server: Server, notes: Mapping[Ref, str]) -> Past | None:
        past = self._memory.get(server.ref)
        if past is None:
            # A note that is younger than a clean look, of an act that this life has not written, tells of nothing done: it was refused.
            return None if server.ref in self._clean else axis.parse_note(notes.get(server.ref, ""))
        if past.confirmed and server.check & axis.ENABLED:
            # Someone switched the check on again after us; a later switching off is not ours.
            past = self._memory[server.ref] = replace(past, check_off=False, confirmed=False)
        return past

    def _new_generation(self, table: Table) -> tuple[str, ...]:
        """Forgets what a restart or reload undid, and says that there was one."""
        before, self.generation = self.generation, table.generation
        self._static.clear()
        for ref, past in self._memory.items():
            server = (table.servers or {}).get(ref)
            if server is not None and past.check_off and server.check & axis.ENABLED:
                self._memory[ref] = replace(past, check_off=False, confirmed=False)
        if not before:
            return ()
        return (f"HAProxy was reloaded or restarted: pid {before.partition(':')[0]} -> {table.pid}",)

    async def _table(self, pools: Sequence[str]) -> Table:
        many = len(pools) > MANY_POOLS
        states = [wire.SHOW_ALL_STATES] if many else [wire.show_state(pool) for pool in pools]
        all_stats = many or not self._veiled.isdisjoint(pools)
        stats = [wire.SHOW_ALL_STATS] if all_stats else list(dict.fromkeys(wire.show_stat(pool) for pool in pools))
        info, level, *rest = await wire.ask(self.path, [wire.SHOW_INFO, wire.SHOW_LEVEL, *states, *stats], self.timeout_s)
        pid, started = parse_process(info)
        wanted = frozenset(pools)
        state_rows = [row for text in rest[: len(states)] for row in parse_states(text) if row["be_name"] in wanted]
        stat_rows = [row for text in rest[len(states) :] for row in parse_stats(text)]
        veiled = {row["be_name"] for row in state_rows} - {row["pxname"] for row in stat_rows if row["type"] == BACKEND}
        if veiled and not all_stats:
            self._veiled |= veiled
            return await self._table(pools)
        servers = {server.ref: server for server in join(state_rows, stat_rows)}
        return Table(pid, started, level.strip(), servers, algorithms(stat_rows))

    async def _send(self, look: Look, orders: Sequence[tuple[Ref, Order]]) -> Told:
        commands: list[wire.Command] = []
        meant: list[tuple[Ref, Verb]] = []
        for ref, (verb, weight) in orders:
            if verb is Verb.SET_WEIGHT:
                # Read on the same line, right before the write: the operator may have been faster than our look.
                commands.append(wire.order(Verb.GET_WEIGHT, ref, look.readings))
                meant.append((ref, Verb.GET_WEIGHT))
            commands.append(wire.order(verb, ref, look.readings, weight))
            meant.append((ref, verb))
        answers = await wire.ask(self.path, commands, self.timeout_s)
        errors: dict[Ref, str] = {}
        raced: dict[Ref, int] = {}
        for (ref, verb), answer in zip(meant, answers, strict=True):
            if verb is Verb.GET_WEIGHT:
                number = answer.partition(" ")[0]
                if number.isdigit() and int(number) != look.readings[ref].server.uweight:
                    raced[ref] = int(number)
            elif answer:
                errors[ref] = "; ".join(filter(None, (errors.get(ref), " ".join(answer.split())[:200])))
        return Told(errors, raced)


def _batches(orders: Sequence[tuple[Ref, Order]]) -> Iterable[Sequence[tuple[Ref, Order]]]:
    """Slices whose lines stay below the most commands, though a weight takes two."""
    half = wire.MOST_COMMANDS // 2
    return (orders[start : start + half] for start in range(0, len(orders), half))


__all__ = ["Look", "Polls", "Process", "Told"]
