"""What the web needs of the running process. The application implements it; nothing here imports the application."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol, TypedDict

from lbplugins.values import Operator
from sidecar.core.model import Commanded, Hold, Instance
from sidecar.core.policy import Policy
from sidecar.core.window import Latencies
from sidecar.core.world import World
from sidecar.store.decisions import Decisions
from sidecar.store.history import History


class SelfHealth(TypedDict):
    """The process itself. `decided_at`: monotonic seconds of the last decision; `notes`: what a person should know, one line each."""

    version: str
    mode: str
    config_hash: str
    policy_version: int
    uptime_s: float
    loop_lag_s: float
    rss_bytes: int
    decided_at: float
    notes: list[str]


class Desk(Protocol):
    """Where the web asks and commands. Everything is called on the loop that owns the world; only the `async` ones may take time."""

    @property
    def world(self) -> World:
        """Read only."""

    @property
    def policy(self) -> Policy:
        """The one in force."""

    @property
    def latencies(self) -> Latencies: ...

    @property
    def decisions(self) -> Decisions: ...

    @property
    def history(self) -> History: ...

    def now(self) -> float:
        """Monotonic seconds, the clock of the facts."""

    def wall_of(self, at: float) -> datetime:
        """The UTC moment of a monotonic one."""

    def holds(self) -> tuple[Hold, ...]:
        """Those of the last decision about each service."""

    def self_health(self) -> SelfHealth: ...

    async def metrics(self, accept: str | None) -> tuple[bytes, str]:
        """All numbers, in the format that an Accept header asks for, and its Content-Type."""

    async def command(self, command: Commanded) -> str | Hold:
        """Obey an authorised command: one sentence once it is journaled, or the hold that refuses it."""

    async def wait_for(self, instance: Instance, state: Operator, seconds: float) -> bool:
        """True as soon as every balancer shows the instance so (drained: and no request is under way), False after so long."""

    async def reload(self, actor: str) -> list[str]:
        """Read the configuration again: the problems for which the old one was kept; empty = the new one is in force."""

    async def adopt(self, balancer: str, pool: str, diff: bool, actor: str) -> str:
        """Take over what is out and not ours, or an edited file; with `diff` only say what that would be. ValueError says what is wrong."""


__all__ = ["Desk", "SelfHealth"]
