"""A scenario on real processes: instances, a real balancer, the sidecar as a daemon. Seen from outside, by the balancer and the API."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from bench.daemon import until
from sidecar.demo import stage
from tests.scenarios.judge import Judge
from tests.scenarios.scenario import ROOT, Scenario, Shape, Step
from tests.scenarios.words import Sentence
from tests.system.lab import Lab, free_ports, lab

TOLERANCE_S = 3.0
"""What a starved machine may take longer than a file says, here and nowhere else; what it really took is measured."""
SETUP_S = 120.0
"""Patience with processes that start, which is no part of what is measured."""
POLL_S = 0.02
STARTS = frozenset({"well", "start", "forget", "move"})
"""Deeds that start a process, which takes as long as the machine likes: second N is when it listens, or its API answers."""
ADMIN = {"maintenance": (0x23, "maint"), "drain": (0x18, "drain"), "ready": (0x3B, "ready")}


def run(scenario: Scenario, shape: Shape) -> dict[str, float]:
    """What was measured, seconds; BrokenExpectation if it does not come as expected."""
    with lab(shape, scenario.layout.services["shop"].instances) as box, RealWorld(scenario, box).ended() as world:
        steps = world.begin(list(scenario.timeline))
        judge = Judge(scenario, world, TOLERANCE_S)
        while world.now < scenario.length_s + TOLERANCE_S:
            while steps and steps[0].at <= world.now:
                world.do(steps.pop(0))
            world.look()
            judge.look(world.now)
            time.sleep(POLL_S)
        judge.close(world.now)
        return judge.measured


class RealWorld:
    """Does what scenarios say to a Lab, and answers the judge. Its clock stands while a process starts."""

    def __init__(self, scenario: Scenario, box: Lab) -> None:
        self.scenario, self.box = scenario, box
        self.sidecar = box.sidecar()
        self._zero = 0.0
        self._seen: dict[int, bool] = {}
        self._moves: dict[str, list[float]] = {}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._asked: dict[str, Any] = {}
        self._flaps: dict[str, float] = {}
        self._moody: set[int] = set()
        self._spare = ExitStack()

    @contextmanager
    def ended(self) -> Iterator[RealWorld]:
        with self._spare:
            yield self

    @property
    def now(self) -> float:
        return time.monotonic() - self._zero

    def begin(self, steps: list[Step]) -> list[Step]:
        """Second 0; what is still to come."""
        if any(step.deed.key in ("mixed", "lossy") for step in steps):
            self._make_moody()
        if self.scenario.layout.start == "cold":
            while steps and steps[0].at == 0.0:
                self.do(steps.pop(0))
            self._start("", steps[0].deed if steps else None)
        else:
            self.sidecar.start()
            until(self._all_are_known, lambda: f"all are known well\n{self.sidecar.log_text()}", SETUP_S)
        self._zero = time.monotonic()
        return steps

    def _all_are_known(self) -> bool:
        """Well, in rotation, and with the thirty good answers from when on bounds hold."""
        found = self.sidecar.instances()
        good = [i for i in found.values() if i["judgement"] == "healthy" and i["serving"] == "full" and (i["timeout_s"] or 1.0) < 1.0]
        return len(good) == len(self.box.ports)

    def do(self, step: Step) -> None:
        began = time.monotonic()
        for name in self.scenario.resolve(step.deed) or ("",):
            self._flaps.pop(name, None)
            getattr(self, f"_{step.deed.key}")(name, step.deed)
        if step.deed.key in STARTS:
            self._zero += time.monotonic() - began

    def look(self) -> None:
        """At the balancer, once; what is due is done. The API is asked when the judge wants it, once a look."""
        self._asked.clear()
        for due in [each for each in self._later if each[0] <= self.now]:
            self._later.remove(due)
            due[1]()
        found = self.box.look() or {}
        for i, port in enumerate(self.box.ports):
            if port in found and self._seen.get(i, found[port]) is not found[port]:
                self._moves.setdefault(f"shop/s{i + 1}", []).append(self.now)
            if port in found:
                self._seen[i] = found[port]

    # ---- what happens ----

    def _well(self, name: str, deed: Sentence) -> None:
        i = _index(name)
        if not self.box.instances.is_running(i):
            self._moody.discard(i)
            self._launch(name, deed)
            until(lambda: _listens(self.box.ports[i]), f"{name} listens", SETUP_S)
        if i in self._moody:
            self._mood(name, lose=0.0, fail=0.0)
        else:
            self.box.instances.signal(i, signal.SIGUSR2)
            self.box.instances.signal(i, signal.SIGCONT)

    def _refuse(self, name: str, deed: Sentence) -> None:
        self.box.instances.kill(_index(name))

    def _hang(self, name: str, deed: Sentence) -> None:
        self.box.instances.signal(_index(name), signal.SIGSTOP)

    def _status(self, name: str, deed: Sentence) -> None:
        self.box.instances.signal(_index(name), signal.SIGUSR1)

    def _mixed(self, name: str, deed: Sentence) -> None:
        self._mood(name, lose=0.0, fail=deed.share())

    def _lossy(self, name: str, deed: Sentence) -> None:
        self._mood(name, lose=deed.share(), fail=0.0)

    def _mood(self, name: str, *, lose: float, fail: float) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port(name)}/mood/{lose}/{fail}", timeout=5) as answer:
            assert answer.status == 200

    def _make_moody(self) -> None:
        """Other processes on the same ports; before anybody asks them."""
        self.box.instances.stop_all()
        for i, port in enumerate(self.box.ports):
            self.box.instances._processes[i] = subprocess.Popen([sys.executable, "-m", "tests.scenarios.moody", str(port)], cwd=ROOT)
        self._moody.update(range(len(self.box.ports)))
        for port in self.box.ports:
            until(lambda port=port: _listens(port), f"the moody instance on {port} listens", SETUP_S)  # type: ignore[misc]

    def _flap(self, name: str, deed: Sentence) -> None:
        span = self._flaps[name] = deed.seconds()

        def turn() -> None:
            if self._flaps.get(name) is span:
                (self._refuse if self.box.instances.is_running(_index(name)) else self._launch)(name, deed)
                self._later.append((self.now + span, turn))

        turn()

    def _launch(self, name: str, deed: Sentence) -> None:
        self.box.instances.launch(_index(name))

    def _move(self, name: str, deed: Sentence) -> None:
        i = _index(name)
        (port,) = free_ports(1)
        other = stage.Instances([port])
        self._spare.callback(other.stop_all)
        other.start(0)
        said = self.box.haproxy(f"set server {name} addr 127.0.0.1 port {port}")
        assert "changed" in said, said
        self.box.instances.kill(i)
        # from now on the instance of this name is the other one
        self.box.ports[i] = self.box.instances.ports[i] = port
        self.box.instances._processes[i] = other._processes.pop(0)

    def _word(self, name: str, deed: Sentence) -> None:
        assert self.box.haproxy(f"set server {name} state {ADMIN[deed['word']][1]}") == "\n"

    def _force(self, name: str, deed: Sentence) -> None:
        assert self.box.haproxy(f"set server {name} health up") == "\n"

    def _weight(self, name: str, deed: Sentence) -> None:
        assert self.box.haproxy(f"set server {name} weight {deed['n']}") == "\n"

    def _forget(self, name: str, deed: Sentence) -> None:
        assert self.box.balancer is not None, "started before"
        self.box.balancer.stop()
        self.box.start_balancer()

    def _die(self, name: str, deed: Sentence) -> None:
        self.sidecar.end(signal.SIGKILL)

    def _start(self, name: str, deed: Sentence | None) -> None:
        self.sidecar.start()
        until(self.sidecar.instances, lambda: f"it runs\n{self.sidecar.log_text()}", SETUP_S)

    def _pause(self, name: str, deed: Sentence) -> None:
        self.sidecar.signal(signal.SIGSTOP)
        self._later.append((self.now + deed.seconds(), lambda: self.sidecar.signal(signal.SIGCONT)))

    # ---- what is true ----

    def is_true(self, state: Sentence, who: str) -> bool | None:
        found: bool | None = getattr(self, f"_is_{state.key}")(who, state)
        return found

    def story(self) -> list[str]:
        return [f"  {e['when']}  {e['kind']:<9} {e['sentence']}" for e in self.sidecar.events()] + [self.sidecar.log_text()[-1500:]]

    def _is_out(self, who: str, state: Sentence) -> bool | None:
        if (serves := self._seen.get(_index(who))) is None or serves or "text" not in state.slots:
            return None if serves is None else not serves
        about = [e["sentence"] for e in self._events() if e["kind"] == "ejected" and e["instance"] == f"127.0.0.1:{self._port(who)}"]
        return bool(about) and state["text"] in about[-1]

    def _is_in(self, who: str, state: Sentence) -> bool | None:
        return self._seen.get(_index(who))

    def _is_judged(self, who: str, state: Sentence) -> bool | None:
        found = self._instance(who)
        return None if found is None else found["judgement"] == state["judgement"]

    def _is_held(self, who: str, state: Sentence) -> bool | None:
        found = self._instance(who)
        return None if found is None else any(hold["name"] == state["hold"] for hold in found["holds"])

    def _is_has_word(self, who: str, state: Sentence) -> bool | None:
        row = self._row(who)
        return None if row is None else (row.admin & 0x3B == 0 if state["word"] == "ready" else bool(row.admin & ADMIN[state["word"]][0]))

    def _is_has_weight(self, who: str, state: Sentence) -> bool | None:
        row = self._row(who)
        return None if row is None else row.weight == int(state["n"])

    def _is_any_out(self, who: str, state: Sentence) -> bool:
        return not all(self._seen.values())

    def _is_more_out(self, who: str, state: Sentence) -> bool:
        return sum(not serves for serves in self._seen.values()) > int(state["n"])

    def _is_any_ejected(self, who: str, state: Sentence) -> bool | None:
        return self._counted(lambda e: bool(e["kind"] == "ejected"), 0)

    def _is_moves(self, who: str, state: Sentence) -> bool:
        moves = self._moves.get(who, [])
        return len(moves) - bisect_left(moves, self.now - state.seconds()) > int(state["n"])

    def _is_says(self, who: str, state: Sentence) -> bool | None:
        return self._counted(lambda e: state["text"] in e["sentence"], int(state.slots.get("n", "0")))

    def _counted(self, fits: Callable[[dict[str, Any]], bool], most: int) -> bool | None:
        events = self._events()
        return sum(fits(e) for e in events) > most if events else None

    def _port(self, who: str) -> int:
        return self.box.ports[_index(who)]

    def _events(self) -> list[dict[str, Any]]:
        return self._once("events", self.sidecar.events)  # type: ignore[no-any-return]

    def _instance(self, who: str) -> dict[str, Any] | None:
        return self._once("instances", self.sidecar.instances).get(self._port(who))  # type: ignore[no-any-return]

    def _row(self, who: str) -> Any:
        return self._once("rows", self._rows).get(_index(who))

    def _rows(self) -> dict[int, Any]:
        try:
            return dict(self.box.rows())
        except OSError:
            return {}

    def _once(self, name: str, ask: Callable[[], Any]) -> Any:
        if name not in self._asked:
            self._asked[name] = ask()
        return self._asked[name]


def _listens(port: int) -> bool:
    with closing(socket.socket()) as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _index(name: str) -> int:
    return int(name.rpartition("/s")[2]) - 1
