"""kill -9 of the real daemon at random moments, on real balancers: `python -m tests.campaigns.kills --haproxy 300 --nginx 100`.

A story is what befalls the instances of one stack within some seconds: they die, hang, fail, recover. It is played twice on the same
stack: undisturbed, and with the sidecar killed once to three times and started again. A third of the kills is aimed at the moment when
the journal grows, where an intent is on disk and the balancer has heard nothing, or half. When peace has come, balancer, judgements and
journal must be the same in both; and when all instances are well again, everything must be as it was in the beginning.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bench.daemon import Daemon, NeverHappenedError, until
from sidecar.demo.stage import StageError
from tests.system.lab import Lab, lab
from tests.system.test_hostile_ends import in_force

HAPROXY = ("haproxy-2.6-none", "haproxy-2.8-none", "haproxy-2.6-check", "haproxy-2.8-check", "haproxy-2.6-agent", "haproxy-2.8-agent")
NGINX = ("nginx-1.22", "nginx-1.31")
N = 5
MOST_BAD = 2
"""Half of five, rounded down: the guards let all of them go out, so that the end of a story is known."""
STORY_S = 2.5
READY_WITHIN_S = 3.0
"""While no instance hangs: who does takes three timeouts of 1 s until he is known, and the cold start waits for him."""
PEACE_WITHIN_S = 180.0
"""On a machine that is full, a start alone may wait a minute for its second of a processor."""
MOST_FAULTS = 3
CALM_S = 0.3
POLICY = "{hold_down: {first: 100ms, max: 200ms}, flapping: {burst: 1000, per_minute: 600}, velocity: {hard: 100ms}}"
SERVICE = f"  shop: {{balancer: edge, probe: {{http: /health}}, policy: {POLICY}}}\n"
UNDER_WAY = 1
"""HAProxy's mark that a check is running at this very moment: no part of any state."""


class What(StrEnum):
    """What befalls an instance."""

    DIE = "die"
    HANG = "hang"
    FAIL = "fail"
    RECOVER = "recover"


@dataclass(frozen=True, slots=True)
class Act:
    """One instance's turn, `at_s` after the story began."""

    at_s: float
    what: What
    which: int
    was: What | None = None
    """For RECOVER: from what."""


@dataclass(frozen=True, slots=True)
class Kill:
    """`is_aimed`: not at `at_s` but `delay_s` after the journal grew next. `down_s`: until the next start."""

    at_s: float
    down_s: float
    is_aimed: bool
    delay_s: float


@dataclass(frozen=True, slots=True)
class Story:
    seed: int
    acts: tuple[Act, ...]
    kills: tuple[Kill, ...]

    @property
    def bad(self) -> dict[int, What]:
        """Who is not well at the end, and how."""
        found: dict[int, What] = {}
        for act in self.acts:
            if act.what is What.RECOVER:
                found.pop(act.which)
            else:
                found[act.which] = act.what
        return found

    @property
    def never_bad(self) -> set[int]:
        return set(range(N)) - {act.which for act in self.acts}


def story(seed: int, *, aim_s: float) -> Story:
    """`aim_s`: how long after its intent the writing to this balancer takes at most."""
    chance = random.Random(seed)
    bad: dict[int, What] = {}
    acts = []
    for at_s in sorted(chance.uniform(0, STORY_S) for _ in range(chance.randint(2, 6))):
        which = chance.randrange(N)
        if which in bad:
            acts.append(Act(at_s, What.RECOVER, which, bad.pop(which)))
        elif len(bad) < MOST_BAD:
            bad[which] = chance.choice((What.DIE, What.HANG, What.FAIL))
            acts.append(Act(at_s, bad[which], which))
    kills = [
        Kill(chance.uniform(0, STORY_S + 1.0), chance.uniform(0, 0.4), chance.random() < 1 / 3, chance.uniform(0, aim_s))
        for _ in range(chance.choice((1, 1, 2, 3)))
    ]
    return Story(seed, tuple(acts), tuple(sorted(kills, key=lambda kill: kill.at_s)))


# ---- playing ----


def pid_of(sidecar: Daemon) -> int:
    assert sidecar._process is not None, "started before"
    return sidecar._process.pid


def health(port: int) -> int | None:
    """The status that an instance answers; None = nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


class Ready:
    """How long one life of the sidecar took to be ready, from its start: by the clock, and without what it waited for a processor.

    None while it is not, and for good when it was killed before. `saw_hang`: an instance hung meanwhile.
    """

    def __init__(self, sidecar: Daemon, saw_hang: bool) -> None:
        self.took_s: float | None = None
        self.own_s: float | None = None
        self.saw_hang = saw_hang
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._wait, args=(sidecar, time.monotonic()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _wait(self, sidecar: Daemon, since: float) -> None:
        pid = pid_of(sidecar)
        while not self._ended.wait(0.02):
            if sidecar.ask("/readyz")[0] == 200:
                self.took_s = time.monotonic() - since
                with suppress(OSError):
                    self.own_s = self.took_s - int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
                return


@dataclass(frozen=True, slots=True)
class State:
    """Where balancer, sidecar and journal stand, by instance."""

    balancer: object
    judgements: tuple[str | None, ...]
    out: frozenset[int]
    """What the journal has in force."""


@dataclass
class Tally:
    """What one stack has shown; its thread is the only writer."""

    shape: str
    stories: int = 0
    kills: int = 0
    aimed: int = 0
    lives: list[Ready] = field(default_factory=list)
    """Those that came to be ready."""
    peace_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    broken: int = 0
    """Stacks that could not go on for want of a port or of time."""


class Stack:
    """One balancer with five instances and one sidecar, which is killed."""

    def __init__(self, box: Lab, sidecar: Daemon, tally: Tally) -> None:
        self.box, self.sidecar, self.tally = box, sidecar, tally
        self._hung: set[int] = set()
        self._life: Ready | None = None
        self.well = self._settled({})

    def play(self, told: Story) -> None:
        """Both ways; what differs is noted."""
        expected = self._played(told, ())
        found = self._played(told, told.kills)
        self.tally.stories += 1
        if found != expected:
            self.tally.faults.append(f"{self.tally.shape} seed {told.seed}: with the kill {found}, without {expected}")

    def _played(self, told: Story, kills: Sequence[Kill]) -> State:
        """The state at peace; then all are healed, and everything is as in the beginning."""
        started = time.monotonic()
        moves: list[Act | Kill] = [*told.acts, *kills]
        for each in sorted(moves, key=lambda each: each.at_s):
            self._watch_until(started + each.at_s, told)
            if isinstance(each, Act):
                self._act(each)
            else:
                self._note_life()
                self._kill(each)
        calm = time.monotonic()
        state = self._settled(told.bad)
        if kills:
            self.tally.peace_s.append(time.monotonic() - calm)
        self._note_life()
        for which, was in told.bad.items():
            self._act(Act(0.0, What.RECOVER, which, was))
        healed = self._settled({})
        if healed != self.well:
            self.tally.faults.append(f"{self.tally.shape} seed {told.seed}: healed {healed}, in the beginning {self.well}")
        return state

    def _watch_until(self, at: float, told: Story) -> None:
        """Meanwhile nobody who was always well may be out."""
        while (left := at - time.monotonic()) > 0:
            found = self.box.look()
            wronged = [i for i in told.never_bad if found is not None and not found.get(self.box.ports[i], True)]
            if wronged:
                self.tally.faults.append(f"{self.tally.shape} seed {told.seed}: {wronged} out, though always well")
            time.sleep(min(left, 0.05))

    def _act(self, act: Act) -> None:
        instances = self.box.instances
        match act.what, act.was:
            case What.DIE, _:
                instances.kill(act.which)
            case What.HANG, _:
                instances.signal(act.which, signal.SIGSTOP)
                self._hung.add(act.which)
                if self._life is not None and self._life.took_s is None:
                    self._life.saw_hang = True
            case What.FAIL, _:
                self._make_it_say(act.which, signal.SIGUSR1, 500)
            case What.RECOVER, What.DIE:
                instances.start(act.which)
            case What.RECOVER, What.HANG:
                instances.signal(act.which, signal.SIGCONT)
                self._hung.discard(act.which)
            case _:
                self._make_it_say(act.which, signal.SIGUSR2, 200)

    def _make_it_say(self, which: int, number: signal.Signals, status: int) -> None:
        """Waits until it does: of two signals that a busy instance finds at once, the later one is handled first."""
        self.box.instances.signal(which, number)
        until(lambda: health(self.box.ports[which]) == status, f"instance {which} says {status}")

    def _kill(self, kill: Kill) -> None:
        if kill.is_aimed and self._journal_grows():
            self.tally.aimed += 1
            time.sleep(kill.delay_s)
        self.sidecar.end(signal.SIGKILL)
        self.tally.kills += 1
        time.sleep(kill.down_s)
        self.sidecar.start()
        self._life = Ready(self.sidecar, bool(self._hung))

    def _journal_grows(self) -> bool:
        """Whether it did within a second."""
        path = self.sidecar.state / "intents"
        size, deadline = path.stat().st_size, time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if path.stat().st_size != size:
                return True
            time.sleep(0.001)
        return False

    def _note_life(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            life.stop()
            if life.took_s is not None:
                self.tally.lives.append(life)

    def _settled(self, bad: dict[int, What]) -> State:
        """The state once the bad ones, and nobody else, are out by our act, and nothing moves any more."""
        before: State | None = None

        def is_calm() -> bool:
            nonlocal before
            is_balanced = self.box.in_rotation() == set(range(N)) - bad.keys()
            state = self._state()
            expected = tuple("ejected" if i in bad else "healthy" for i in range(N))
            is_there = is_balanced and state.out == bad.keys() and state.judgements == expected
            is_still, before = is_there and state == before, state
            return is_still

        until(is_calm, lambda: f"peace with {bad} out: {before}\n{self.sidecar.log_text()[-3000:]}", PEACE_WITHIN_S, CALM_S)
        assert before is not None, "settled"
        return before

    def _state(self) -> State:
        told = self.sidecar.judgements()
        ports = {str(port): i for i, port in enumerate(self.box.ports)}
        return State(
            self._balancer(),
            tuple(told.get(port) for port in self.box.ports),
            frozenset(ports[name.rpartition(":")[2]] for name in in_force(self.sidecar)),
        )

    def _balancer(self) -> object:
        if self.box.binary.kind == "nginx":
            return self.box.include.read_text()
        return tuple((r.address, r.op, r.admin, r.weight, r.check & ~UNDER_WAY) for _, r in sorted(self.box.rows().items()))


def run(shape: str, kills: int, seed: int, until_s: float = float("inf")) -> Tally:
    """Stories until so many kills are done, or the clock (monotonic) says `until_s`. Each fault costs a stack; then with a new one."""
    tally = Tally(shape)
    while tally.kills < kills and time.monotonic() < until_s and len(tally.faults) < MOST_FAULTS:
        try:
            with lab(shape, N) as box:
                sidecar = box.running(box.config(service=SERVICE))
                stack = Stack(box, sidecar, tally)
                while tally.kills < kills and time.monotonic() < until_s:
                    seed += 1
                    stack.play(story(seed, aim_s=0.3 if box.binary.kind == "nginx" else 0.03))
                if "Traceback" in sidecar.log_text():
                    tally.faults.append(f"{shape}: a traceback\n{sidecar.log_text()[-3000:]}")
        except NeverHappenedError as error:
            tally.faults.append(f"{shape} seed {seed}: {error}")
        except StageError as error:
            # Somebody else on this machine has taken the port of an instance that was dead, or all of its time.
            tally.broken += 1
            print(f"  {shape} seed {seed}: {error}", flush=True)
    print(f"  {shape}: {tally.kills} kills, ready {how_soon(tally.lives, saw_hang=False)}, {len(tally.faults)} faults", flush=True)
    for fault in tally.faults:
        print(f"    {fault}", flush=True)
    return tally


def summary(tallies: Sequence[Tally], took_s: float) -> str:
    """One line."""
    lives = [life for tally in tallies for life in tally.lives]
    peace = sorted(s for tally in tallies for s in tally.peace_s) or [0.0]
    return (
        f"kills: {sum(t.kills for t in tallies)} ({sum(t.aimed for t in tallies)} aimed) in {sum(t.stories for t in tallies)} stories on "
        f"{', '.join(t.shape for t in tallies)}: {sum(len(t.faults) for t in tallies)} differences or orphans; "
        f"ready {how_soon(lives, saw_hang=False)}, {how_soon(lives, saw_hang=True)} while an instance hangs; "
        f"peace after {statistics.median(peace):.1f} s median, {peace[-1]:.1f} s worst; {took_s / 60:.1f} min"
    )


def how_soon(lives: Sequence[Ready], *, saw_hang: bool) -> str:
    """Median and worst by the clock, and in brackets without waiting for a processor."""
    found = [(life.took_s, own_s(life)) for life in lives if life.saw_hang is saw_hang and life.took_s is not None]
    if not found:
        return "never seen"
    clock, own = sorted(took for took, _ in found), sorted(own for _, own in found)
    return f"after {statistics.median(clock):.2f} s median, {clock[-1]:.2f} s worst ({statistics.median(own):.2f}, {own[-1]:.2f})"


def own_s(life: Ready) -> float:
    return life.own_s or life.took_s or 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--haproxy", type=int, default=300, help="kills on HAProxy")
    parser.add_argument("--nginx", type=int, default=100, help="kills on Nginx")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=25.0, help="no new story after that")
    parser.add_argument("--at-once", type=int, default=4, help="stacks beside each other")
    asked = parser.parse_args()
    os.nice(5)
    started = time.monotonic()
    shares = [(shape, -(-asked.haproxy // len(HAPROXY))) for shape in HAPROXY] + [(shape, -(-asked.nginx // len(NGINX))) for shape in NGINX]
    with ThreadPoolExecutor(asked.at_once) as pool:
        jobs = [
            pool.submit(run, shape, kills, asked.seed + 100_000 * n, started + 60 * asked.minutes)
            for n, (shape, kills) in enumerate(shares)
            if kills
        ]
        tallies = [job.result() for job in jobs]
    print(summary(tallies, time.monotonic() - started))
    late = any(own_s(life) > READY_WITHIN_S for tally in tallies for life in tally.lives if not life.saw_hang)
    return int(late or any(t.faults for t in tallies) or sum(t.kills for t in tallies) < asked.haproxy + asked.nginx)


if __name__ == "__main__":
    sys.exit(main())
