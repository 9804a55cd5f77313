"""Our real HAProxy plugin against the simulated HAProxy, in virtual time: operators type between any two of its lines, answers get lost,
HAProxy reloads, we die. Whatever happens, the operator's axis is his, and in the end nothing of ours is left.

    python -m tests.sim.haproxy_plugin --seeds 0:2000
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from random import Random

from lbplugins.api import BalancerError
from lbplugins.haproxy.options import HAProxyOptions
from lbplugins.haproxy.plugin import HAProxy
from lbplugins.values import FULL, NONE, OURS, Change, Ref, Seen, Serve, Setting
from tests.core.schedules import Violation
from tests.sim.haproxy import GOOD, REFUSED, SimHaproxy
from tests.sim.loop import Answer, VirtualLoop

SOCKET = "/run/haproxy/admin.sock"
STEPS = 30
SHAPES = {
    "plain": ("server s1 127.0.0.1:21001 weight 100", "server s2 127.0.0.1:21002 weight 10", "server s3 127.0.0.1:21003"),
    "check": (
        "server s1 127.0.0.1:21001 weight 100 check inter 500ms rise 2 fall 3",
        "server s2 127.0.0.1:21002 weight 3 check inter 300ms rise 1 fall 1",
        "server s3 127.0.0.1:21003 check inter 1s",
    ),
    "mixed": (
        "server s1 127.0.0.1:21001 weight 256 check inter 700ms",
        "server s2 127.0.0.1:21002 weight 7",
        "server s3 127.0.0.1:21003 check inter 400ms weight 20",
    ),
}
STATES = ("ready", "drain", "maint")


class Far:
    """The machine with HAProxy: its socket, what operators type there, and what goes wrong on the way."""

    def __init__(self, loop: VirtualLoop, rng: Random) -> None:
        self.loop, self.rng = loop, rng
        self.text = "\n".join(f"backend {name}\n" + "\n".join(f"    {line}" for line in lines) for name, lines in SHAPES.items()) + "\n"
        self.sim = SimHaproxy(self.text, rng.choice(["2.6", "2.8"]), now=loop.now)
        self.faults = 0.0
        self.between: list[Callable[[], None]] = []
        """What happens right before the next line of ours arrives."""
        self.typed: dict[Ref, dict[str, str]] = {ref: {} for ref in self.refs}
        """The operators' last word on each server: its state, its weight."""
        self.blurred: set[Ref] = set()
        """Of whose weight nobody can tell whether it is an operator's or a cut of ours."""
        self.story: list[str] = []
        loop.listeners[SOCKET] = self

    @property
    def refs(self) -> list[Ref]:
        return [Ref(pool, server.name) for pool, proxy in self.sim.worker.config.proxies.items() for server in proxy.servers.values()]

    def note(self, text: str) -> None:
        self.story.append(f"{self.loop.now - 1000:8.3f}  {text}")

    def connect(self) -> Callable[[bytes], Answer]:
        if self.rng.random() < self.faults / 3:
            raise ConnectionRefusedError
        worker = self.sim.connect()

        def answer(line: bytes) -> Answer:
            self.tick()
            while self.between:
                self.between.pop(0)()
            if self.rng.random() < self.faults / 3:
                return Answer(b"", is_whole=False)  # it broke off before it had arrived
            if b"set " in line or b"able " in line:
                self.note(f"  -> {line.decode().strip()[:200]}")
                self._check(line)
            said = worker.answer(line, self.loop.now)
            return Answer(said, self.rng.choice([0.0005, 0.001, 0.02]), self.rng.random() >= self.faults / 3)

        return answer

    def _check(self, line: bytes) -> None:
        """We were asked for changes on our own axis only."""
        for command in line.decode().split(";"):
            if " state " in command and "show" not in command:
                raise Violation("operator", f"`{command.strip()}` is said, on an operator's axis")

    def tick(self) -> None:
        self.sim.tick(self.loop.now, lambda question: REFUSED if question.is_agent else GOOD)

    def type(self, ref: Ref, what: str, word: str) -> None:
        self.typed[ref][what] = word
        self.note(f"* {ref}: {what} {word}")
        self.tick()
        self.sim.answer(f"set server {ref.pool}/{ref.server} {what} {word}\n".encode(), self.loop.now)

    def reload(self) -> None:
        self.note("* HAProxy reloads")
        self.typed = {ref: {} for ref in self.refs}
        self.sim.reload(self.text, self.loop.now)

    def state_of(self, ref: Ref) -> str:
        return self.typed[ref].get("state", "ready")


class Sidecar:
    """What the core and its journal are to the plugin: the last picture, the notes, one call at a time."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.notes: dict[Ref, str] = {}
        self.returned: set[Ref] = set()
        self.picture: Mapping[Ref, Seen] = {}
        self.live()

    def live(self) -> None:
        """Start anew. A weight that an operator has lowered while we had a server out looks like a cut of ours to who knows a note only."""
        self.far.blurred |= {ref for ref in self.notes if "weight" in self.far.typed.get(ref, {})}
        self.plugin = HAProxy(HAProxyOptions(socket=(SOCKET,)))

    async def observe(self) -> None:
        try:
            self.picture = await self.plugin.observe(frozenset(SHAPES), self.notes)
        except BalancerError as error:
            self.far.note(f"    {error}")
            return
        for ref in [ref for ref in self.returned if (seen := self.picture.get(ref)) is not None and seen.ours == Setting()]:
            self.returned.discard(ref)
            self.notes.pop(ref, None)  # as the core forgets it

    async def tell(self, wanted: Mapping[Ref, Serve]) -> None:
        """Make these servers so, as one transaction; what is refused or not answered is looked at again by whoever asks next."""
        changes = [
            Change(ref, Setting(serve), seen, OURS, note=seen.note or self.notes.get(ref, ""), why="a test")
            for ref, serve in wanted.items()
            if (seen := self.picture.get(ref)) is not None and seen.writable is None
        ]
        for change in changes:
            (self.returned.add if change.want.serve is FULL else self.returned.discard)(change.ref)
        self.notes |= {change.ref: change.note for change in changes if change.note}
        try:
            refused = await self.plugin.apply(changes)
        except BalancerError as error:
            self.far.note(f"    {error}")
            return
        kept = {refusal.change.ref for refusal in refused}
        self._check([change for change in changes if change.ref not in kept])

    def _check(self, done: Sequence[Change]) -> None:
        """What was said to be done is so, unless an operator has typed since."""
        self.far.tick()
        serving = self.far.sim.serving()
        for change in done:
            is_out = self.far.state_of(change.ref) != "ready" or self.far.typed[change.ref].get("weight") == "0"
            if change.want.serve is NONE and change.ref in serving:
                raise Violation("told", f"{change.ref} is said to be out, and it serves")
            if change.want.serve is FULL and change.expect.operator == "ready" and not is_out and not change.expect.serving:
                self.far.note(f"    {change.ref} is back")


async def play(far: Far, sidecar: Sidecar) -> None:
    """A random script, then peace: everything of ours is undone, everything of the operators' stands."""
    rng, refs = far.rng, far.refs
    await sidecar.observe()
    for _ in range(STEPS):
        far.faults = rng.choice([0.0, 0.0, 0.1, 0.4])
        match rng.randrange(10):
            case 0 | 1:
                far.type(rng.choice(refs), *rng.choice([("state", rng.choice(STATES)), ("weight", str(rng.randint(1, 100)))]))
            case 2 | 3:
                ref, what = rng.choice(refs), rng.choice([("state", rng.choice(STATES)), ("weight", str(rng.randint(1, 100)))])
                far.between.append(lambda ref=ref, what=what: far.type(ref, *what))  # type: ignore[misc]
            case 4 if rng.random() < 0.4:
                far.reload()
            case 5 if rng.random() < 0.5:
                far.note("* we die, and start again")
                sidecar.live()
            case _:
                pass
        await sidecar.observe()
        await sidecar.tell({ref: rng.choice([NONE, FULL]) for ref in rng.sample(refs, rng.randint(1, 3))})
        await asyncio.sleep(rng.uniform(0.0, 1.5))
    await _peace(far, sidecar)


async def _peace(far: Far, sidecar: Sidecar) -> None:
    """What operators have typed stands; once they have ended their maintenance, nothing of ours is left either."""
    far.faults = 0.0
    far.between.clear()
    far.note("* peace")
    await _undo(far, sidecar)
    for ref in far.refs:
        if far.state_of(ref) != "ready":
            far.type(ref, "state", "ready")
    await _undo(far, sidecar)
    for ref, seen in sidecar.picture.items():
        if seen.ours != Setting():
            raise Violation("way back", f"{ref} still shows {seen.ours}: {seen.writable or seen.remark}")


async def _undo(far: Far, sidecar: Sidecar) -> None:
    for _ in range(8):
        await sidecar.observe()
        if left := {ref: FULL for ref, seen in sidecar.picture.items() if seen.ours != Setting()}:
            await sidecar.tell(left)
        await asyncio.sleep(2.0)
        far.tick()
    await sidecar.observe()
    serving = far.sim.serving(far.loop.now)
    for ref, seen in sidecar.picture.items():
        server, typed, word = far.sim.server(ref), far.typed[ref], far.state_of(ref)
        if word != "ready" and (ref in serving or seen.operator == "ready"):
            raise Violation("operator", f"its operator has {ref} in {word}, and it shows {seen.operator}")
        if word == "ready" and ref not in serving:
            raise Violation("way back", f"{ref} does not serve, and its operator has it ready: {seen}")
        if "weight" in typed and ref not in far.blurred and server.weight != int(typed["weight"]):
            raise Violation("weight", f"{ref} has weight {server.weight}, and its operator has set {typed['weight']}")


def run(seed: int) -> Far:
    """One script to its end. Violation, which has the story, if a promise was broken."""
    loop = VirtualLoop()
    far = Far(loop, Random(seed))
    asyncio.set_event_loop(loop)
    task = loop.start_task(_all(far), None)
    try:
        while not task.done():
            loop.run_until(loop.now + 1.0)
        task.result()
    except Violation as violation:
        violation.story = [f"seed {seed}", *far.story, f"!! {violation}"]
        raise
    finally:
        asyncio.set_event_loop(None)
        loop.bury()
    return far


async def _all(far: Far) -> None:
    await play(far, Sidecar(far))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.haproxy_plugin", description="Our HAProxy plugin against a simulated one.")
    parser.add_argument("--seeds", default="0:500", help="FROM:TO, TO not included")
    parser.add_argument("--lines", type=int, default=40)
    options = parser.parse_args(arguments)
    first, last = (int(part) for part in options.seeds.split(":"))
    broken = 0
    for seed in range(first, last):
        try:
            run(seed)
        except Violation as violation:
            broken += 1
            print("\n".join(violation.story[-options.lines :]) if broken == 1 else f"seed {seed}: {violation}", flush=True)
    print(f"{last - first} scripts, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
