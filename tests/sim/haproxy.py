"""A simulated HAProxy: its commands, its checks on a clock that is an argument, reload and restart. Pure, and held against the real ones.

    sim = SimHaproxy(config_text, "2.8", now=0.0)
    sim.answer(b"set server shop/s1 state maint\\n", now=1.0)     # what a fresh connection reads: b"\\n"
    sim.serving()                                                # servers that new requests may reach

Checks ask through `due` and `ended`, for whoever plays the network; `tick` does both at once with an `ask` function. What it
leaves out: slow start, DNS, requests themselves (`worker.traffic` holds what they left behind).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbplugins.values import Ref
from tests.sim import haproxy_tables as tables
from tests.sim.haproxy_agent import hear
from tests.sim.haproxy_commands import Worker
from tests.sim.haproxy_config import Unloadable, parse
from tests.sim.haproxy_server import Check, Checker, Result, Server, Status
from tests.sim.haproxy_state import load

VERSIONS = ("2.6", "2.8")
FIRST_PID = 1001


class Question(NamedTuple):
    """One check that begins now: whom it asks, and for an agent-check what it says first."""

    ref: Ref
    is_agent: bool
    host: str
    port: int
    send: str = ""


class Verdict(NamedTuple):
    """How an own check ended."""

    status: Status
    code: int = 0
    said: str = ""


GOOD, REFUSED, BAD = Verdict(Status.L7OK, 200), Verdict(Status.L4CON, 0, "Connection refused"), Verdict(Status.L7STS, 503)
Answer = Verdict | bytes
"""A verdict, or for an agent-check what the agent said before it closed; a verdict there means that it said nothing."""


class SimHaproxy:
    """One HAProxy, master and workers. Owner of all its state; whoever calls it brings the time, monotonic seconds that never go back."""

    def __init__(self, config_text: str, version: str = "2.8", *, now: float = 0.0, epoch: float = 1_700_000_000.0) -> None:
        """`epoch`: the wall time at monotonic 0. Unloadable when the configuration is wrong."""
        if version not in VERSIONS:
            raise ValueError(f"version {version!r} is none of {VERSIONS}")
        self.version, self.epoch = version, epoch
        self._pid = FIRST_PID - 1
        self.leaving: list[Worker] = []
        """Workers of earlier configurations; they answer on connections that were opened before (`connect`)."""
        self.worker = self._started(config_text, now, None)

    # ---- the socket ----

    def answer(self, line: bytes, now: float, level: str = "admin") -> bytes:
        """What a fresh connection to a socket of this level reads until its end."""
        return self.worker.answer(line, now, level)

    def connect(self) -> Worker:
        """The process that a connection opened now belongs to for good, whatever is reloaded later."""
        return self.worker

    # ---- start and end ----

    def reload(self, config_text: str, now: float, state_file: str | None = None) -> bool:
        """The master takes a new worker; false = the configuration is wrong, and the old one goes on. It says so nowhere (2.6).

        `state_file`: the content of `server-state-file`, for proxies that load it.
        """
        try:
            fresh = self._started(config_text, now, state_file)
        except Unloadable:
            return False
        self.worker.old = True
        self.leaving.append(self.worker)
        self.worker = fresh
        return True

    def restart(self, config_text: str, now: float, state_file: str | None = None) -> None:
        """Stopped and started: nothing of the old worker is left. Unloadable: it is not running any more."""
        self.leaving.clear()
        self.worker = self._started(config_text, now, state_file)

    def saved_state(self, now: float) -> str:
        """What an operator writes into the state file before a reload."""
        return tables.states(self.worker.config.proxies.values(), now)

    def _started(self, config_text: str, now: float, state_file: str | None) -> Worker:
        config = parse(config_text)
        self._pid += 1
        worker = Worker(self.version, config, self._pid, now, self.epoch)
        for proxy in config.proxies.values():
            for server in proxy.servers.values():
                server.changed = server.now = now
                server.weighs_in_maint = self.version != "2.6"
        if state_file is not None:
            load(config, state_file, now)
        for proxy in config.proxies.values():
            for server in proxy.servers.values():
                if server.tracked is None:
                    server.inherit()
        _spread(worker, now)
        return worker

    # ---- the clock ----

    def tick(self, now: float, ask: Callable[[Question], Answer] = lambda question: REFUSED if question.is_agent else GOOD) -> None:
        """Runs all checks that are due, each answered at once; unless told, own checks well and agent-checks not at all."""
        for question in self.due(now):
            self.ended(question, ask(question), now)

    def due(self, now: float) -> list[Question]:
        """Begins the checks that are due; each goes on until `ended`, and a server is asked nothing twice at a time."""
        begun = []
        for server, checker in _checkers(self.worker):
            if checker.due > now or checker.state & Check.UNDER_WAY:
                continue
            if checker.is_shown:
                checker.state |= Check.UNDER_WAY
                checker.result, checker.said = Result.UNKNOWN, ""
                begun.append(_question(server, checker))
            else:
                checker.due = now + checker.inter_s
        return begun

    def next_due(self) -> float:
        """When `due` has something to do; infinity = never."""
        return min((c.due for _, c in _checkers(self.worker) if not c.state & Check.UNDER_WAY), default=float("inf"))

    def ended(self, question: Question, answer: Answer, now: float) -> None:
        """A check is answered. One of a worker or server that is gone is for nobody."""
        server = self._server(question.ref)
        checker = None if server is None else server.agent if question.is_agent else server.check
        if server is None or checker is None or not checker.state & Check.UNDER_WAY:
            return
        server.now = now
        if isinstance(answer, bytes):
            hear(server, answer)
        else:
            checker.code = answer.code
            server.failures += checker.take(answer.status, answer.said)
        server.checked(checker)
        checker.state &= ~Check.UNDER_WAY
        checker.due = now + _gap_s(server, checker)

    # ---- the truth ----

    def serving(self, now: float = 0.0) -> frozenset[Ref]:
        """The servers that new requests may reach, backups only where nobody else serves."""
        found: set[Ref] = set()
        for proxy in self.worker.config.proxies.values():
            up = [server for server in proxy.servers.values() if server.serves]
            first = [server for server in up if not server.is_backup] or up[:1]
            found.update(Ref(proxy.name, server.name) for server in first)
        return frozenset(found)

    def server(self, ref: Ref) -> Server:
        """One server of the current worker; KeyError when there is none."""
        return self.worker.config.proxies[ref.pool].servers[ref.server]

    def traffic(self, left: Mapping[Ref, tables.Traffic]) -> None:
        """What requests have left behind, as `show stat` tells it from now on."""
        self.worker.traffic.update({self.server(ref): seen for ref, seen in left.items()})

    def _server(self, ref: Ref) -> Server | None:
        proxy = self.worker.config.proxies.get(ref.pool)
        return proxy.servers.get(ref.server) if proxy is not None else None


def _checkers(worker: Worker) -> Iterator[tuple[Server, Checker]]:
    for proxy in worker.config.proxies.values():
        for server in proxy.servers.values():
            for checker in (server.check, server.agent):
                if checker.state & Check.CONFIGURED:
                    yield server, checker


def _spread(worker: Worker, now: float) -> None:
    """The first checks, one after the other over the longest interval."""
    checkers: Sequence[Checker] = [checker for _, checker in _checkers(worker)]
    shortest = min((checker.inter_s for checker in checkers), default=0.0)
    for place, checker in enumerate(checkers):
        checker.due = now + max(shortest, checker.inter_s) * place / len(checkers)


def _gap_s(server: Server, checker: Checker) -> float:
    if checker.health == checker.best:
        return checker.inter_s
    if not server.next_op and checker.health == 0:
        return checker.down_s or checker.inter_s
    return checker.fast_s or checker.inter_s


def _question(server: Server, checker: Checker) -> Question:
    is_agent = bool(checker.state & Check.AGENT)
    return Question(
        Ref(server.pool, server.name), is_agent, checker.host or server.host, checker.port or server.port, checker.send if is_agent else ""
    )


__all__ = ["BAD", "GOOD", "REFUSED", "VERSIONS", "Answer", "Question", "SimHaproxy", "Verdict"]
