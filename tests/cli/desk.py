"""The real HTTP surface over the real core in virtual time: what a command meets, without processes to start."""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lbplugins.values import Operator, Ref
from sidecar.cli import client
from sidecar.cli.show import Output
from sidecar.core import guard
from sidecar.core.model import Commanded, Fact, Hold, Instance
from sidecar.core.policy import Policy
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.store.decisions import Decisions
from sidecar.store.history import History
from sidecar.web.desk import SelfHealth
from sidecar.web.options import ApiOptions
from sidecar.web.server import Web
from tests.edges.publish.scene import Scene

WARM_S = 12.0


class LabDesk(Scene):
    """A Scene that answers as the application does. Virtual time moves only in `run`; its present is the real one's at the start."""

    def __post_init__(self) -> None:
        self.decisions_log = Decisions(None, 0)
        self._base = datetime.now(UTC) - timedelta(seconds=WARM_S)
        self._zero = self.now
        self.problems: list[str] = []
        super().__post_init__()
        self.run(WARM_S)

    def feed(self, *facts: Fact) -> None:
        told = len(self.decisions)
        super().feed(*facts)
        for decision in self.decisions[told:]:
            self.decisions_log.append(decision.events, self.wall_of)

    def wall_of(self, at: float) -> datetime:
        return self._base + timedelta(seconds=at - self._zero)


class Desk:
    """`sidecar.web.desk.Desk` over a LabDesk."""

    def __init__(self, lab: LabDesk, folder: Path) -> None:
        """`folder`: where its history would be, which no command asks for."""
        self.lab = lab
        self.folder = folder

    @property
    def history(self) -> History:
        return History(self.folder, 0)

    @property
    def world(self) -> World:
        return self.lab.world

    @property
    def policy(self) -> Policy:
        return self.lab.world.policy

    @property
    def latencies(self) -> Latencies:
        return self.lab.latencies

    @property
    def decisions(self) -> Decisions:
        return self.lab.decisions_log

    def now(self) -> float:
        return self.lab.now

    def wall_of(self, at: float) -> datetime:
        return self.lab.wall_of(at)

    def holds(self) -> tuple[Hold, ...]:
        return self.lab.decisions[-1].holds

    def self_health(self) -> SelfHealth:
        return {
            "version": "1.2.3",
            "mode": "act",
            "config_hash": "abc",
            "policy_version": 1,
            "uptime_s": 3600.0,
            "loop_lag_s": 0.001,
            "rss_bytes": 1 << 26,
            "decided_at": self.lab.now,
            "notes": [],
        }

    async def metrics(self, accept: str | None) -> tuple[bytes, str]:
        return b"", "text/plain"

    async def command(self, command: Commanded) -> str | Hold:
        if (hold := guard.against_command(self.world, command, self.now())) is not None:
            return hold
        told = len(self.lab.events)
        self.lab.feed(command)
        self.lab.run(0.5)
        return self.lab.events[told].sentence if len(self.lab.events) > told else "nothing to do"

    async def wait_for(self, instance: Instance, state: Operator, seconds: float) -> bool:
        self.lab.run(1.5)
        found = self.world.state_of(instance)
        assert found is not None
        return all(seen is not None and not seen.in_flight for seen in map(self.world.seen, found.servers))

    async def reload(self, actor: str) -> list[str]:
        return self.lab.problems

    async def adopt(self, balancer: str, pool: str, diff: bool, actor: str) -> str:
        return f"- server a\n+ server b ({'shown' if diff else 'taken'} for {balancer}/{pool})"


@contextlib.asynccontextmanager
async def serving(lab: LabDesk, folder: Path, **options: object) -> AsyncIterator[str]:
    """The API of this lab on a unix socket (and what `options` add); gives `unix:PATH`."""
    path = folder / "api.sock"
    server = Web(ApiOptions.model_validate({"listen": None, "socket": str(path), **options}), Desk(lab, path.parent))
    assert await server.open() == []
    try:
        yield f"unix:{path}"
    finally:
        await server.close()


def busy(lab: LabDesk, i: int, in_flight: int) -> None:
    """Requests under way at a server."""
    lab.set_seen(i, in_flight=in_flight)
    assert lab.servers[Ref("shop", f"s{i}")].in_flight == in_flight


def free_port() -> int:
    while True:
        with socket.socket() as trial:
            port = random.randrange(20000, 32000)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Ran:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lb-sidecar")
    client.add_parsers(parser.add_subparsers(required=True))
    return parser.parse_args(words)


async def ran(*words: str) -> Ran:
    """Run one command in this loop, its output caught as if piped."""
    args = parsed(*words)
    out, err = io.StringIO(), io.StringIO()
    code = await args.func(args, Output(args.output, out, err))
    return Ran(code, out.getvalue(), err.getvalue())
