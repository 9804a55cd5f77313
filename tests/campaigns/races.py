"""An operator's word against our act, at the worst moments, on real HAProxy 2.6 and 2.8: `python -m tests.campaigns.races`.

Between plugin and HAProxy stands a socket that passes every line on, and at a chosen one has the operator speak first, over a connection
of his own. So he is faster than our look, slower than our look but faster than our write, or faster than our read-back; a fifth of the
races are left to chance, with his word from a thread at a random moment. With `--whole` it is the daemon that acts, on instances that die.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from bench.daemon import NeverHappenedError, until
from lbplugins.values import FULL, NONE, Ref, Refusal, Setting
from tests.plugins.haproxy.lab import VERSIONS, Box, Fleet, Tap
from tests.plugins.haproxy.test_agent import Asked, opened
from tests.plugins.haproxy.test_real import Sidecar, eventually
from tests.system.lab import Lab, lab

OUT, BACK = Setting(NONE), Setting()
CUTS = (10, 25, 50, 75)
HIS_WEIGHTS = [weight for weight in range(1, 257) if weight not in (*CUTS, 100)]
"""Of 100. The very weight that we cut to is no edit of his that anybody could see."""
BITS = {"maint": 1, "drain": 8}
RESTORED_WITHIN_S = 0.05
CHANCE_S = 0.012
"""A little longer than an act takes without him."""
POLICY = "{hold_down: {first: 100ms, max: 200ms}, flapping: {burst: 1000, per_minute: 600}, velocity: {hard: 100ms}}"
SERVICE = f"  shop: {{balancer: edge, probe: {{http: /health}}, policy: {POLICY}}}\n"


class Moment(StrEnum):
    """When the operator speaks."""

    LOOK = "before our look"
    WRITE = "between our look and our write"
    PROOF = "between our write and our read-back"
    CHANCE = "at a random moment"


@dataclass
class Tally:
    """What the races have shown; one thread writes."""

    races: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    restored_s: list[float] = field(default_factory=list)
    weights: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.races.update(other.races)
        self.weights.update(other.weights)
        self.refused += other.refused
        self.faults += other.faults
        self.restored_s += other.restored_s


def is_writing(line: str) -> bool:
    """Whether this line of ours changes anything."""
    return any(not command.startswith(("show ", "get ")) for command in line.split(";"))


class Interjection:
    """One word of the operator's, said once. `lines_at`: when each line of ours arrived from the write on, monotonic."""

    def __init__(self, box: Box, command: str, moment: Moment, after_s: float) -> None:
        self.box, self.command, self.moment = box, command, moment
        self.has_written = False
        self.lines_at: list[float] = []
        self._lock = threading.Lock()
        self._is_said = False
        self._thread = threading.Thread(target=self._speak_later, args=(after_s,)) if moment is Moment.CHANCE else None
        if self._thread is not None:
            self._thread.start()

    def before(self, line: str) -> None:
        """The tap's hook: what we are about to tell HAProxy."""
        is_write = is_writing(line)
        moment = Moment.WRITE if is_write else Moment.PROOF if self.has_written else Moment.LOOK
        if moment is self.moment:
            self._speak()
        self.has_written |= is_write
        if self.has_written:
            self.lines_at.append(time.monotonic())

    def finish(self) -> None:
        """Said at last, if the moment never came: an act that was refused writes nothing."""
        if self._thread is not None:
            self._thread.join()
        self._speak()

    def _speak_later(self, after_s: float) -> None:
        time.sleep(after_s)
        self._speak()

    def _speak(self) -> None:
        with self._lock:
            if not self._is_said:
                self._is_said = True
                self.box.say(self.command)


class Ring:
    """One HAProxy and our plugin, with the operator between them."""

    def __init__(self, box: Box, tap: Tap, ours: Sidecar, chance: random.Random, tally: Tally) -> None:
        self.box, self.tap, self.ours, self.chance, self.tally = box, tap, ours, chance, tally

    async def race(self, ref: Ref, word: str, moment: Moment, want: Setting) -> None:
        """He says `word` while we take it out, or bring it back; then we bring it back if he lets us; then he lifts his word."""
        name = f"{self.box.version} {ref} {word} {moment}, we want {want.serve}"
        if want == BACK:
            await self.ours.make(ref, OUT)
        seen_lines = len(self.tap.lines)
        change = await self.ours.change(ref, want)
        refusals = await self._interrupted(f"set server {ref} state {word}", moment, lambda: self.ours.plugin.apply([change]))
        self.tally.refused += len(refusals)
        await self._expect_his(ref, word, f"{name}: right after it")
        if (await self.ours.look(ref)).ours != BACK:
            await self.ours.ask(ref, BACK)
        await self._expect_his(ref, word, f"{name}: after our return")

        await asyncio.to_thread(self.box.say, f"set server {ref} state ready")
        if (await self.ours.look(ref)).ours != BACK:
            await self.ours.ask(ref, BACK)
        await self._expect_whole(ref, name)
        if said := [line for line in self.tap.lines[seen_lines:] if " state " in line.replace("show servers state", "")]:
            self.tally.faults.append(f"{name}: we wrote to his axis: {said}")
        self.tally.races[f"{word} {moment}"] += 1

    async def weigh(self, ref: Ref, moment: Moment) -> None:
        """He sets a weight while we cut it."""
        his = self.chance.choice(HIS_WEIGHTS)
        name = f"{self.box.version} {ref} weight {his} {moment}"
        change = await self.ours.change(ref, Setting(FULL, self.chance.choice(CUTS)))
        refusals = await self._interrupted(f"set server {ref} weight {his}", moment, lambda: self.ours.plugin.apply([change]))
        if moment is Moment.WRITE and not self.last.has_written:
            self.tally.faults.append(f"{name}: not even written: {refusals}")
        elif moment is Moment.WRITE:
            # Our overwriting line, the one that puts his back, the read-back: it arrives once his weight is in force again.
            self.tally.restored_s.append(self.last.lines_at[2] - self.last.lines_at[0])
            if not refusals or await asyncio.to_thread(self.box.weight, ref) != his:
                self.tally.faults.append(f"{name}: not put back, {await asyncio.to_thread(self.box.weight, ref)}")
        if (await self.ours.look(ref)).ours != BACK:
            await self.ours.ask(ref, BACK)
        found = await asyncio.to_thread(self.box.weight, ref)
        if found != his:
            self.tally.weights["lost"] += 1
            self.tally.faults.append(f"{name}: {found} at the end")
        self.tally.weights[str(moment)] += 1
        await asyncio.to_thread(self.box.say, f"set server {ref} weight 100%")

    async def _interrupted(self, command: str, moment: Moment, act: Callable[[], Awaitable[Sequence[Refusal]]]) -> Sequence[Refusal]:
        self.last = Interjection(self.box, command, moment, self.chance.uniform(0, CHANCE_S))
        self.tap.before = self.last.before
        refusals = await act()
        await asyncio.to_thread(self.last.finish)
        self.tap.before = lambda line: None
        return refusals

    async def _expect_his(self, ref: Ref, word: str, when: str) -> None:
        state = await asyncio.to_thread(self.box.state, ref)
        if not int(state["srv_admin_state"]) & BITS[word]:
            self.tally.faults.append(f"{when} his {word} is gone: {state}")

    async def _expect_whole(self, ref: Ref, name: str) -> None:
        """Nobody has a word against it any more, and its own check runs if it has one."""
        try:
            await eventually(lambda: self.box.status(ref).startswith(("UP", "no check")), "up")
        except AssertionError:
            self.tally.faults.append(f"{name}: {await asyncio.to_thread(self.box.state, ref)} at the end")
            return
        state = await asyncio.to_thread(self.box.state, ref)
        if ref.pool == "d" and state["srv_check_state"] not in ("6", "7"):
            self.tally.faults.append(f"{name}: its own check stands still: {state}")


@asynccontextmanager
async def ring(fleet: Fleet, seed: int, tally: Tally) -> AsyncIterator[Ring]:
    tap = Tap(str(fleet.box.dir / f"ring{seed}.sock"), fleet.box.socket)
    ours = Sidecar(tap.path)
    await ours.plugin.open()
    try:
        yield Ring(fleet.box, tap, ours, random.Random(seed), tally)
    finally:
        await ours.plugin.aclose()
        tap.close()


@asynccontextmanager
async def agent_ring(fleet: Fleet, version: str, seed: int, tally: Tally) -> AsyncIterator[Ring]:
    """The same, with an agent-check that asks us."""
    asked = Asked(version, fleet.origins[0])
    tap = Tap(str(asked.box.dir / "ring.sock"), asked.box.socket)
    ours = Sidecar(tap.path)
    ours.plugin = asked.plugin(tap.path)
    try:
        async with opened(ours.plugin):
            yield Ring(asked.box, tap, ours, random.Random(seed), tally)
    finally:
        tap.close()
        asked.box.close()
        asked.held.close()


async def race_all(version: str, races: int, weights: int, seed: int, tally: Tally) -> None:
    """So many of either, over all levers and moments; A, which waits for polls, gets a tenth."""
    fleet = Fleet(version)
    try:
        async with ring(fleet, seed, tally) as one:
            for _ in range(races - races // 10):
                await one.race(Ref(one.chance.choice("bde"), one.chance.choice("xyz")), *_drawn(one.chance))
            for _ in range(weights):
                await one.weigh(Ref(one.chance.choice("be"), one.chance.choice("xyz")), _moment(one.chance))
        async with agent_ring(fleet, version, seed, tally) as other:
            for _ in range(races // 10):
                await other.race(Ref("a", other.chance.choice("xy")), *_drawn(other.chance))
    finally:
        fleet.close()


def _drawn(chance: random.Random) -> tuple[str, Moment, Setting]:
    return chance.choice(sorted(BITS)), _moment(chance), chance.choice((OUT, OUT, BACK))


def _moment(chance: random.Random) -> Moment:
    return chance.choice((Moment.LOOK, Moment.WRITE, Moment.WRITE, Moment.PROOF, Moment.CHANCE))


# ---- the whole daemon ----


def race_whole(shape: str, races: int, seed: int) -> Tally:
    """An instance dies; right before the daemon's first write about it the operator speaks; his word must outlast all that follows."""
    tally, chance = Tally(), random.Random(seed)
    with lab(shape, 4) as box:
        tap = Tap(str(box.folder / "ring.sock"), str(box.folder / "admin.sock"))
        try:
            assert box.balancer is not None
            sidecar = box.running(box.config(service=SERVICE).replace("admin.sock", "ring.sock"))
            for n in range(races):
                which, word = chance.randrange(4), chance.choice(sorted(BITS))
                _race_whole(box, tap, which, word, f"{shape} race {n}", tally)
                sidecar.wait_healthy(box.ports)
        except NeverHappenedError as error:
            tally.faults.append(f"{shape}: {error}")
        finally:
            tap.close()
    return tally


def _race_whole(box: Lab, tap: Tap, which: int, word: str, name: str, tally: Tally) -> None:
    said = threading.Event()

    def before(line: str) -> None:
        if not said.is_set() and is_writing(line):
            box.haproxy(f"set server shop/s{which + 1} state {word}")
            said.set()

    def is_his() -> bool:
        return bool(box.rows()[which].admin & BITS[word])

    tap.before = before
    box.kill(which)
    until(said.is_set, f"{name}: the daemon writes")
    for is_alive in (False, True):
        if is_alive:
            box.instances.start(which)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            if not is_his():
                tally.faults.append(f"{name}: his {word} is gone: {box.rows()[which]}")
                break
            time.sleep(0.02)
    box.haproxy(f"set server shop/s{which + 1} state ready")
    box.wait_in(which)
    tally.races[f"{word} {Moment.WRITE}, whole daemon"] += 1


def summary(tally: Tally, took_s: float) -> str:
    """One line."""
    restored = sorted(1000 * s for s in tally.restored_s) or [0.0]
    moments = ", ".join(f"{n} {moment}" for moment, n in sorted(tally.races.items()))
    return (
        f"races: {sum(tally.races.values())} of maint and drain ({moments}), {tally.refused} of our acts refused; "
        f"{sum(tally.weights.values()) - tally.weights['lost']} of a weight, {tally.weights['lost']} lost, {len(tally.restored_s)} of them "
        f"overwritten and put back after {statistics.median(restored):.1f} ms median, {restored[-1]:.1f} ms worst; "
        f"{len(tally.faults)} overrides or things left behind; {took_s / 60:.1f} min"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=1000, help="of maint and drain, on each HAProxy")
    parser.add_argument("--weights", type=int, default=300, help="of a weight, on each HAProxy")
    parser.add_argument("--whole", type=int, default=20, help="with the whole daemon, on each shape")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.nice(5)
    started = time.monotonic()
    tally = Tally()
    for n, version in enumerate(VERSIONS):
        asyncio.run(race_all(version, asked.races, asked.weights, asked.seed + n, tally))
    shapes = ("haproxy-2.6-none", "haproxy-2.8-check", "haproxy-2.8-agent")
    with ThreadPoolExecutor(len(shapes)) as pool:
        for found in [pool.submit(race_whole, shape, asked.whole, asked.seed + n) for n, shape in enumerate(shapes)]:
            tally.add(found.result())
    for fault in tally.faults:
        print(f"  {fault}")
    print(summary(tally, time.monotonic() - started))
    return int(bool(tally.faults) or max(tally.restored_s, default=0.0) > RESTORED_WITHIN_S)


if __name__ == "__main__":
    sys.exit(main())
