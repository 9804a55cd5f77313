"""A simulated and a real HAProxy whose checks run while they are told things: what they settle at after each step is equal.

The own checks ask HAProxy itself, where a map says what a server answers; agent-checks ask a thread of ours. A step is a line of
commands, another answer to a check, or another word of an agent, in every backend at once. A check that was under way while a
command came may end after it: what a real HAProxy shows then must be what the simulated one shows for some such moment.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from random import Random
from typing import NamedTuple

from lbplugins.values import Ref
from tests.plugins.haproxy.lab import Box, free_port
from tests.sim.differential_haproxy import Failure, comparable, difference
from tests.sim.differential_scripts import plain_line, ready
from tests.sim.haproxy import BAD, GOOD, Answer, Question, SimHaproxy, Verdict
from tests.sim.haproxy_config import Config
from tests.sim.haproxy_server import Check, Status

INTER_S = 0.1
COPIES = 8
LOOK = "show servers state {pool};show stat {pool} 6 -1"
NAMES = ("s1", "s2", "s3")
STEPS = 5
PATIENCE_S = 20.0
SETTLED_S = 2.0
"""Of the simulated clock, in which every check has ended often enough to have its way."""

SHAPES: dict[str, Sequence[str]] = {
    "own": ("s1 {here} weight 100 check rise 2 fall 3", "s2 {here} weight 10 check rise 1 fall 1", "s3 {here} weight 3"),
    "both": (
        "s1 {here} weight 100 {agent}/s1\\n",
        "s2 {here} weight 50 check rise 1 fall 2 {agent}/s2\\n",
        "s3 {here} weight 7 check backup",
    ),
    "follow": ("s1 {here} weight 100 check rise 2 fall 2", "s2 {here} weight 9 track s1", "s3 {here} weight 20 check rise 1 {agent}/s3\\n"),
}
ANSWERS = ("ok", "bad", "gone")
WORDS = (
    b"up\n", b"up\n", b"down\n", b"down #lb-sidecar refused\n", b"stopped\n", b"fail #db is gone, really\n", b"ready\n", b"drain\n",
    b"maint\n",
    b"up ready 100%\n", b"ready,up,50%\n", b"67% up\n", b"0%\n", b"150%\n", b"33%\r\n", b"garbage\n", b"\n", b"fail#db\n",
    b"down,maint#why x\n",
    b"UP\n", b"Down # spaced reason \n", b"up #fine\n", b"maxconn:5\n", b"up drain\n", b"down ready\n", b"up down\n", b"up strange\n",
)  # fmt: skip


class Agents:
    """A thread that answers every agent-check with the word kept for it."""

    def __init__(self) -> None:
        self.words: dict[str, bytes] = {}
        self.port = 0
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._up.wait()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        while not self.port:
            port = free_port()
            try:
                server = await asyncio.start_server(self._answer, "127.0.0.1", port, backlog=512)
            except OSError:
                continue
            self.port = port
        self._up.set()
        async with server:
            await self._end.wait()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.words.get((await reader.readline()).decode().strip(), b"up\n"))
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


class Step(NamedTuple):
    """What happens to one backend: a line of commands, or one server's answers. `server` names whose; "" = a line."""

    line: str = ""
    server: str = ""
    answer: str = ""
    word: bytes = b""

    def __str__(self) -> str:
        return (
            self.line
            or f"{self.server} now {'answers its check with ' + self.answer if self.answer else f'has its agent say {self.word!r}'}"
        )


class Pair:
    """The two, and what the servers of both are said to answer."""

    def __init__(self, version: str, copies: int) -> None:
        self.version = version
        self.agents = Agents()
        self.names = [f"{shape}{number}" for number in range(copies) for shape in SHAPES]
        self.answers: dict[Ref, Verdict] = {}
        self.now = 0.0
        self.raced = 0
        self.check_port = free_port()
        self.dir = Path(tempfile.mkdtemp(prefix="hapmap"))
        self.map = self.dir / "checks.map"
        self.map.touch()
        self.box = Box(version, self._backends(), extra_global="nbthread 1", defaults=_DEFAULTS)
        self.sim = SimHaproxy((self.box.dir / "h.cfg").read_text(), version)

    def _backends(self) -> str:
        text = [_CHECKED.format(port=self.check_port, map=self.map)]
        for name in self.names:
            text += [f"backend {name}", "    option httpchk", '    http-check send meth GET uri / hdr x-who "%[be_name]/%[srv_name]"']
            agent = f"agent-check agent-addr 127.0.0.1 agent-port {self.agents.port} agent-send {name}"
            lines = SHAPES[name.rstrip("0123456789")]
            text += [f"    server {line.format(here=f'127.0.0.1:{self.check_port}', agent=agent)}" for line in lines]
        return "\n".join(text) + "\n"

    def start(self) -> None:
        """Every answer good, then every server up: in this order, or an earlier word would still come."""
        for pool in self.names:
            self.take({pool: [Step(server=s, answer="ok") for s in NAMES] + [Step(server=s, word=b"up\n") for s in NAMES]})
        self.settle()
        time.sleep(5 * INTER_S)
        self.take({pool: [Step(line=ready(pool))] for pool in self.names})
        self.settle()

    def take(self, steps: Mapping[str, Sequence[Step]]) -> None:
        """Plays steps on both; several commands go in one line, as one backend's."""
        for pool, some in steps.items():
            for step in some:
                if step.line:
                    self.box.cli(step.line)
                    self.sim.answer(step.line.encode() + b"\n", self.now)
                elif step.word:
                    self.agents.words[f"{pool}/{step.server}"] = step.word
                else:
                    self.answers[Ref(pool, step.server)] = verdict(self.version, step.answer)
                    key = f"{self.map} {pool}/{step.server}"
                    self.box.cli(f"del map {key};add map {key} {step.answer}")

    def settle(self) -> None:
        self.now = settled(self.sim, self.now, self.ask)

    def ask(self, question: Question) -> Answer:
        if question.is_agent:
            return self.agents.words.get(str(question.ref), b"up\n")
        return self.answers.get(question.ref, GOOD)

    def tables(self, sim: SimHaproxy, pool: str) -> tuple[str, str]:
        return steady(self.box.cli(LOOK.format(pool=pool))), self.shown(sim, pool)

    def shown(self, sim: SimHaproxy, pool: str) -> str:
        return steady(sim.answer(LOOK.format(pool=pool).encode() + b"\n", self.now).decode())

    def different(self, steps: Mapping[str, Step], before: SimHaproxy) -> dict[str, str]:
        """The backends that settled at something else, and at what; looks twice, since equality may only be passing."""
        late = time.monotonic() + PATIENCE_S
        time.sleep(5 * INTER_S)
        self._unequal(list(steps), late)
        time.sleep(2 * INTER_S)
        left = self._unequal(list(steps), late)
        return {pool: how for pool in left if (how := self._explained(pool, steps[pool], before))}

    def _unequal(self, pools: Sequence[str], late: float) -> Sequence[str]:
        """Those that are not once equal until then. A few looks are taken in any case: a check under way hides what its last one said."""
        looks = 0
        while pools and (looks < 5 or time.monotonic() < late):
            pools = [pool for pool in pools if difference(*self.tables(self.sim, pool), "")]
            looks += 1
            if pools:
                time.sleep(INTER_S / 3)
        return pools

    def _explained(self, pool: str, step: Step, before: SimHaproxy) -> str:
        """'' when a check that was under way explains what the real one shows; the simulated one then goes on from there."""
        how = difference(*self.tables(self.sim, pool), f"settled after `{step}`")
        if not how:
            return ""
        # Some looks, since a check under way hides what its last one said.
        seen = set()
        for _ in range(20):
            seen.add(self.tables(self.sim, pool)[0])
            time.sleep(INTER_S / 5)
        for other in alternatives(before, pool, step.line, self.now - SETTLED_S, self.ask):
            if self.shown(other, pool) in seen:
                self.sim.worker.config.proxies[pool] = other.worker.config.proxies[pool]
                self.raced += 1
                return ""
        return how

    def close(self) -> None:
        self.box.close()
        self.agents.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def verdict(version: str, answer: str) -> Verdict:
    """What a check makes of this answer; a connection closed without one is called differently."""
    gone = Verdict(Status.L7RSP if version == "2.6" else Status.SOCKERR)
    return {"ok": GOOD, "bad": BAD, "gone": gone}[answer]


def settled(sim: SimHaproxy, now: float, ask: Callable[[Question], Answer]) -> float:
    """The time after which all checks have had their way."""
    late = now + SETTLED_S
    while now < late:
        now += INTER_S / 4
        sim.tick(now, ask)
    return late


def steady(text: str) -> str:
    """Tables without what changes from one check to the next."""
    lines = []
    for line in comparable(text).splitlines():
        words = line.split(" ")
        if len(words) == 25:
            words[11], words[13], words[14] = "-", str(int(words[13]) & ~1), str(int(words[14]) & ~1)
        lines.append(" ".join(words))
    fields = [";".join(f for f in line.split(";") if not f.startswith(("chkfail=", "chkdown=", "last_chk="))) for line in lines]
    return "\n".join(fields).replace("_status=* ", "_status=") + "\n"


class Moment(NamedTuple):
    """One check of one server, under way from before the command of number `begin` until before that of number `end`."""

    server: str
    is_agent: bool
    begin: int
    end: int


def alternatives(before: SimHaproxy, pool: str, line: str, now: float, ask: Callable[[Question], Answer]) -> Iterator[SimHaproxy]:
    """What else may follow: that one check of this backend, or two, began and ended between any two of the commands."""
    parts = line.split(";") if line else []
    servers = before.worker.config.proxies[pool].servers
    spans = [(begin, end) for begin in range(len(parts) + 1) for end in range(begin, len(parts) + 1)]
    moments = [Moment(name, is_agent, *span) for name in servers for is_agent in (False, True) for span in spans]
    pairs = (pair for pair in combinations(moments, 2) if pair[0][:2] != pair[1][:2])
    for some in chain(((moment,) for moment in moments), pairs):
        sim = _alone(before, pool)
        if _races(sim, pool, parts, some, now, ask):
            settled(sim, now, ask)
            yield sim


def _alone(sim: SimHaproxy, pool: str) -> SimHaproxy:
    """A copy with this backend only."""
    small, worker = copy.copy(sim), copy.copy(sim.worker)
    worker.config, worker.rows, worker.traffic, worker.cut = Config({pool: sim.worker.config.proxies[pool]}), {}, {}, []
    small.worker, small.leaving = worker, []
    return copy.deepcopy(small)


def _races(sim: SimHaproxy, pool: str, parts: Sequence[str], some: Sequence[Moment], now: float, ask: Callable[[Question], Answer]) -> bool:
    """Plays the commands with these checks in between; false when one of them cannot begin then."""
    for place in range(len(parts) + 1):
        for moment in some:
            server = sim.server(Ref(pool, moment.server))
            checker = server.agent if moment.is_agent else server.check
            if moment.begin == place:
                if not checker.is_shown or not checker.state & Check.CONFIGURED:
                    return False
                checker.state |= Check.UNDER_WAY
            if moment.end == place:
                question = Question(Ref(pool, moment.server), moment.is_agent, "", 0)
                sim.ended(question, ask(question), now)
        _say(sim, parts[place : place + 1], now)
    return True


def _say(sim: SimHaproxy, parts: Sequence[str], now: float) -> None:
    for part in parts:
        sim.answer(part.encode() + b"\n", now)


def step(random: Random, pool: str) -> Step:
    """One random step of one backend."""
    dice = random.random()
    if dice < 0.6:
        return Step(line=plain_line(random, pool))
    shape = pool.rstrip("0123456789")
    if dice < 0.8 or shape == "own":
        return Step(
            server=random.choice({"own": ("s1", "s2"), "both": ("s2", "s3"), "follow": ("s1", "s3")}[shape]), answer=random.choice(ANSWERS)
        )
    return Step(server=random.choice({"both": ("s1", "s2"), "follow": ("s3",)}[shape]), word=random.choice(WORDS))


def run(
    version: str, scripts: int, seed: int, most_failures: int = 10, copies: int = COPIES, steps: int = STEPS
) -> tuple[list[Failure], int]:
    """Plays so many scripts of so many steps, one per backend at a time; the failures, and how often a check under way explained it.

    `copies`: backends of each shape.
    """
    pair = Pair(version, copies)
    failures: list[Failure] = []
    raced = 0
    try:
        for number in range(-(-scripts // len(pair.names))):
            failed = list(_round(pair, seed, number, steps))
            raced, pair.raced = raced + pair.raced, 0
            failures += failed
            if len(failures) >= most_failures:
                break
            if failed:
                pair.close()
                pair = Pair(version, copies)
        return failures, raced
    finally:
        pair.close()


def _round(pair: Pair, seed: int, number: int, count: int) -> Iterator[Failure]:
    """One script in every backend, step by step, until one fails."""
    random = Random(f"{seed}/clock/{number}")
    pair.start()
    told: dict[str, list[str]] = {pool: [] for pool in pair.names}
    for _ in range(count):
        steps = {pool: step(random, pool) for pool in pair.names}
        before = copy.deepcopy(pair.sim)
        pair.take({pool: [one] for pool, one in steps.items()})
        pair.settle()
        for pool, one in steps.items():
            told[pool].append(str(one))
        failed = pair.different(steps, before)
        for pool, how in failed.items():
            yield Failure(f"haproxy-{pair.version} clock seed {seed} round {number} ({pool})", told[pool], how)
        if failed:
            return


_CHECKED = """frontend checks
    bind 127.0.0.1:{port}
    http-request reject if {{ req.hdr(x-who),map_str({map},ok) -m str gone }}
    http-request return status 503 if {{ req.hdr(x-who),map_str({map},ok) -m str bad }}
    http-request return status 200
"""
_DEFAULTS = f"default-server inter {INTER_S * 1000:.0f}ms agent-inter {INTER_S * 1000:.0f}ms"

__all__ = ["run"]
