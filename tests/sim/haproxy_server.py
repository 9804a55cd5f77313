"""One server of a simulated HAProxy: its two axes, its checks, and what moves which. Pure; it knows of no clock and no command.

HAProxy keeps for each server what is so now and what shall be, and adopts the latter in one step (`_adopt`), so that a change
of one axis while the other holds it still (a `health down` under maintenance) is lost or kept exactly as in the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum


class Op(IntEnum):
    """The operational axis."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3


class Admin:
    """Bits of the operator's axis. `CONFIGURED` only remembers `disabled` in the configuration. Plain numbers: flags are slow."""

    FORCED_MAINT = 0x01
    INHERITED_MAINT = 0x02
    CONFIGURED = 0x04
    FORCED_DRAIN = 0x08
    INHERITED_DRAIN = 0x10
    UNRESOLVED = 0x20
    MAINT = 0x23
    DRAIN = 0x18


class Check:
    """Bits of what a check is doing."""

    UNDER_WAY = 1
    CONFIGURED = 2
    ENABLED = 4
    PAUSED = 8
    AGENT = 16


class Status(IntEnum):
    """How the last check ended; numbers are HAProxy's own, as `show servers state` gives them."""

    UNKNOWN = 0
    INI = 1
    CHECKED = 3
    SOCKERR = 5
    L4OK = 6
    L4TOUT = 7
    L4CON = 8
    L6OK = 9
    L6TOUT = 10
    L6RSP = 11
    L7TOUT = 12
    L7RSP = 13
    L7OK = 15
    L7STS = 17


class Result(IntEnum):
    """What the last check means."""

    UNKNOWN = 0
    NEUTRAL = 1
    FAILED = 2
    PASSED = 3


PASSED = frozenset({Status.L4OK, Status.L6OK, Status.L7OK})
NEUTRAL = frozenset({Status.UNKNOWN, Status.INI, Status.CHECKED})
HAS_DATA = frozenset({Status.L7OK, Status.L7STS})
"""Those an application has answered; only they bring a server down by its agent-check."""

DESCRIPTION = {
    Status.UNKNOWN: "Unknown",
    Status.INI: "Initializing",
    Status.CHECKED: "No status change",
    Status.SOCKERR: "Socket error",
    Status.L4OK: "Layer4 check passed",
    Status.L4TOUT: "Layer4 timeout",
    Status.L4CON: "Layer4 connection problem",
    Status.L6OK: "Layer6 check passed",
    Status.L6TOUT: "Layer6 timeout",
    Status.L6RSP: "Layer6 invalid response",
    Status.L7TOUT: "Layer7 timeout",
    Status.L7RSP: "Layer7 invalid response",
    Status.L7OK: "Layer7 check passed",
    Status.L7STS: "Layer7 wrong status",
}


@dataclass(slots=True)
class Checker:
    """One check of one server: its own or its agent-check. `inter_s`, `fast_s`, `down_s`: seconds between two; `due`: when the next is."""

    rise: int = 2
    fall: int = 3
    inter_s: float = 2.0
    fast_s: float = 0.0
    down_s: float = 0.0
    state: int = 0
    health: int = 0
    status: Status = Status.INI
    result: Result = Result.UNKNOWN
    code: int = 0
    said: str = ""
    host: str = ""
    port: int = 0
    send: str = ""
    due: float = float("inf")

    @property
    def best(self) -> int:
        """The health of one that never failed of late."""
        return self.rise + self.fall - 1

    @property
    def is_on(self) -> bool:
        return bool(self.state & Check.ENABLED)

    @property
    def is_shown(self) -> bool:
        """`show stat` tells of it."""
        return self.state & (Check.ENABLED | Check.PAUSED) == Check.ENABLED

    @property
    def is_bad(self) -> bool:
        return self.is_on and self.health < self.rise

    def take(self, status: Status, said: str) -> bool:
        """Counts one result; true when it was one failure more."""
        self.said, self.status = said, status
        self.result = Result.PASSED if status in PASSED else Result.NEUTRAL if status in NEUTRAL else Result.FAILED
        if self.result is Result.FAILED and self.health > 0 and (not self.state & Check.AGENT or status in HAS_DATA):
            self.health = self.health - 1 if self.health > self.rise else 0
            return True
        if self.result is Result.PASSED and self.health < self.best:
            self.health += 1
            if self.health >= self.rise:
                self.health = self.best
        return False


@dataclass(slots=True, eq=False)
class Server:
    """A server and those that track it. `weight` is the operator's (`uweight`), `share` what the balancing was told of it."""

    pool: str
    name: str
    number: int
    host: str
    port: int
    is_dynamic_lb: bool = True
    first_weight: int = 1
    weight: int = 1
    share: int = 1
    next_share: int = 1
    op: Op = Op.RUNNING
    next_op: Op = Op.RUNNING
    admin: int = 0
    next_admin: int = 0
    check: Checker = field(default_factory=Checker)
    agent: Checker = field(default_factory=lambda: Checker(rise=1, fall=1))
    is_backup: bool = False
    is_added: bool = False
    has_own_number: bool = False
    maxconn: int = 0
    hostname: str = ""
    maps_ports: bool = False
    """Its port is an offset to the client's."""
    tracked: Server | None = None
    trackers: list[Server] = field(default_factory=list)
    changed: float = 0.0
    down_s: float = 0.0
    failures: int = 0
    times_down: int = 0
    weighs_in_maint: bool = True
    """The balancing hears of a weight under maintenance at once; 2.6 tells it when that ends."""
    now: float = 0.0
    """When the change under way happens, for `changed` and `down_s`; whoever changes a server sets it."""

    # ---- what it gets ----

    @property
    def serves(self) -> bool:
        """New requests may reach it."""
        return self.op in (Op.STARTING, Op.RUNNING) and not self.admin & (Admin.MAINT | Admin.DRAIN) and self.share > 0

    # ---- the operational axis ----

    def stop(self) -> None:
        if self.admin & Admin.MAINT or self.next_op is Op.STOPPED:
            return
        self.next_op = Op.STOPPED
        self._settle()
        for tracker in self._followers():
            tracker.stop()

    def run(self) -> None:
        if self.admin & Admin.MAINT or self.next_op in (Op.STARTING, Op.RUNNING):
            return
        self.next_op = Op.RUNNING
        self._settle()
        for tracker in self._followers():
            tracker.run()

    def soften(self) -> None:
        """`stopping`: no new clients but those that know it."""
        if self.admin & Admin.MAINT or self.next_op is Op.STOPPING:
            return
        self.next_op = Op.STOPPING
        self._settle()
        for tracker in self._followers():
            tracker.soften()

    def checked(self, checker: Checker) -> None:
        """Draws the consequence of a check that has ended."""
        is_agent = bool(checker.state & Check.AGENT)
        if checker.result is Result.FAILED:
            if checker.health == 0 and (not is_agent or checker.status is Status.L7STS):
                self.stop()
        elif checker.result is Result.PASSED:
            if self.next_admin & Admin.MAINT or self._tracks_stopped() or self.check.is_bad or self.agent.is_bad:
                return
            if not (is_agent and self.next_op is Op.STOPPING):
                self.run()

    # ---- the operator's axis ----

    def set_maint(self) -> None:
        self._raise(Admin.FORCED_MAINT)
        self._lower(Admin.FORCED_DRAIN)

    def set_drain(self) -> None:
        self._raise(Admin.FORCED_DRAIN)
        self._lower(Admin.FORCED_MAINT)

    def set_ready(self) -> None:
        self._lower(Admin.FORCED_DRAIN)
        self._lower(Admin.FORCED_MAINT)

    def resolved(self) -> None:
        self._lower(Admin.UNRESOLVED)

    def inherit(self) -> None:
        """At the start: hands maintenance and drain on to those that track it. Only for one that tracks nobody."""
        for tracker in self._followers():
            if self.next_admin & (Admin.MAINT | Admin.CONFIGURED):
                tracker._raise(Admin.INHERITED_MAINT)
            if self.next_admin & Admin.DRAIN:
                tracker._raise(Admin.INHERITED_DRAIN)

    # ---- weights ----

    def set_weight(self, weight: int) -> None:
        self.weight = self.next_share = weight
        self._settle()
        if self.weighs_in_maint:
            self.share = weight

    # ---- how it happens ----

    def _followers(self) -> Iterator[Server]:
        for tracker in self.trackers:
            tracker.now = self.now
            yield tracker

    def _tracks_stopped(self) -> bool:
        return self.tracked is not None and self.tracked.next_op is Op.STOPPED

    def _raise(self, flag: int) -> None:
        if self.next_admin & flag:
            return
        self.next_admin |= flag
        self._settle()
        kind, inherited = _kind(flag)
        if self.next_admin & ~flag & kind:
            return
        for tracker in self._followers():
            tracker._raise(inherited)

    def _lower(self, flag: int) -> None:
        if not self.next_admin & flag:
            return
        self.next_admin &= ~flag
        self._settle()
        kind, inherited = _kind(flag)
        if self.next_admin & kind:
            return
        for tracker in self._followers():
            tracker._lower(inherited)

    def _settle(self) -> None:
        """What shall be becomes so, the operational axis first, unless maintenance holds it."""
        if not self.admin & Admin.MAINT:
            wanted, self.next_admin = self.next_admin, self.admin
            self._settle_op()
            self.next_admin = wanted
        if not self.admin & Admin.MAINT and self.next_admin & Admin.MAINT:
            self._enter_maint()
        elif self.admin & Admin.MAINT and not self.next_admin & Admin.MAINT:
            self._leave_maint()
        elif self.next_admin & Admin.MAINT:
            self.admin = self.next_admin
        if not self.next_admin & Admin.MAINT:
            self._settle_drain()

    def _settle_op(self) -> None:
        if self.op is not self.next_op:
            if self.next_op is Op.STOPPED:
                self.times_down += 1
            elif self.next_op is Op.RUNNING:
                if self.op is Op.STOPPED:
                    self.down_s += max(0.0, int(self.now) - int(self.changed))
                self.next_share = self.weight
            self.changed = self.now
            self._adopt()
        elif self.share != self.next_share:
            self._adopt()

    def _enter_maint(self) -> None:
        if self.check.is_on:
            self.check.state |= Check.PAUSED
            self.check.health = 0
        if self.op is Op.STOPPED:
            self.admin = self.next_admin
            return
        self.check.health = 0
        self.changed = self.now
        self.next_op = Op.STOPPED
        self.times_down += 1
        self._adopt()

    def _leave_maint(self) -> None:
        if self.check.is_on:
            self.check.state &= ~Check.PAUSED
            self.check.health = self.check.rise
        if not (self._tracks_stopped() or self.agent.is_bad or self.check.is_bad):
            if self.tracked is not None and self.tracked.next_op is Op.STOPPING:
                self.next_op = Op.STOPPING
            else:
                self.changed = self.now
                self.next_op = Op.RUNNING
        self.next_share = self.weight
        self._adopt()

    def _settle_drain(self) -> None:
        is_drained, shall_be = bool(self.admin & Admin.DRAIN), bool(self.next_admin & Admin.DRAIN)
        if is_drained and not shall_be:
            self.down_s += max(0.0, int(self.now) - int(self.changed))
            self.next_share = self.weight
        if is_drained is not shall_be:
            self.changed = self.now
            self._adopt()
        elif shall_be:
            self.admin = self.next_admin

    def _adopt(self) -> None:
        self.op, self.admin, self.share = self.next_op, self.next_admin, self.next_share


def _kind(flag: int) -> tuple[int, int]:
    """All flags of the same meaning, and the one that trackers get."""
    return (Admin.MAINT, Admin.INHERITED_MAINT) if flag & Admin.MAINT else (Admin.DRAIN, Admin.INHERITED_DRAIN)
