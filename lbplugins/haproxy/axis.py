"""Which lever moves a server without touching the operator's, and how to read ours, his and the truth. Pure.

HAProxy keeps two axes per server. The admin axis (`set server … state`) is the operator's. Ours is the operational one, moved by the
first lever that fits, here named as in the documentation's decision table:

A   its agent-check asks us: we answer `down` or `up` (and push the same word, if the socket allows).
B   it has an agent-check that nobody answers: `set server … agent down|up`.
C   somebody else owns it (another agent, a tracked server): look only.
D   HAProxy checks it itself: switch that check off and say `health down`; back = switch it on and let it decide.
E   nobody checks it: `set server … health down|up`.

A socket below `level admin` (F) leaves only A.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from lbplugins.haproxy.table import Server
from lbplugins.haproxy.wire import Verb
from lbplugins.values import (
    DRAIN,
    DRAINING,
    FULL,
    MAINTENANCE,
    NONE,
    OURS,
    READY,
    Change,
    Counters,
    Operator,
    Seen,
    Serve,
    Setting,
)  # fmt: skip

UNDER_WAY, CONFIGURED, ENABLED, PAUSED = 1, 2, 4, 8
"""Bits of a check's state."""

UNRESOLVED = 0x20

IN_MAINTENANCE = 0x01 | 0x02 | UNRESOLVED
"""Forced, inherited, unresolved. Bit 4 alone only remembers `disabled` in the configuration."""

IN_DRAIN = 0x08 | 0x10

NOT_SAID_BY_COMMAND = 0x02 | 0x10 | 0x20
"""Admin bits that no `set server` set, so that none lifts them."""

OURS_SAID = (0x01, 0x08)
"""The admin bits as our own `maint` and `drain` leave them."""

STOPPED, STARTING, RUNNING = 0, 1, 2

TAKES_WEIGHTS = ("roundrobin", "leastconn", "random", "unknown")
"""Algorithms whose weights can be cut while they run, as `show stat` names them: `balance random` is `unknown` there. Hashes refuse it,
or would move every client."""

OUR_WORD = "lb-sidecar"
"""How the reason in an agent's answer begins when it is ours."""

_NOTE = re.compile(r"\A([A-E]) w=(\d{1,3})(?: cut=(\d{1,3}))?\Z")


class Lever(StrEnum):
    """The lever that moves a server."""

    AGENT = "A"
    PUSHED = "B"
    FOREIGN = "C"
    CHECK = "D"
    HEALTH = "E"


class Order(NamedTuple):
    """One command about one server."""

    verb: Verb
    weight: int | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What we know of our own acts on a server, from a note in the journal or, better, from memory.

    `weight`: the operator's, before our cut. `cut`: what we set last; None = no cut is known. `check_off`: we switched its own check
    off; `confirmed`: and saw it off. `remembered`: we did it in this life, so that `cut` is exact.
    """

    lever: Lever
    weight: int
    cut: int | None = None
    check_off: bool = False
    confirmed: bool = False
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class Around:
    """What is true round a server: of its process, its pool and our agent."""

    generation: str = ""
    level: str = "admin"
    takes_weights: bool = True
    asks_us: bool = False
    """Its agent-check was answered by us lately."""
    agent_settle_s: float = 0.0
    idle_reserve: bool = False
    """It is a `backup` server, and those before it serve."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """A server as read: for the sidecar (`seen`) and for our next write."""

    server: Server
    lever: Lever
    seen: Seen
    past: Past | None = None


def parse_note(text: str) -> Past | None:
    """The past in a journaled note; None when there is none that we can read."""
    match = _NOTE.match(text)
    if match is None:
        return None
    lever = Lever(match[1])
    return Past(lever, int(match[2]), int(match[3]) if match[3] else None, check_off=lever is Lever.CHECK)


def write_note(lever: Lever, weight: int, cut: int) -> str:
    return f"{lever} w={weight}" + (f" cut={cut}" if cut < weight else "")


def read(server: Server, past: Past | None, around: Around) -> Reading:
    """The server as the sidecar sees it."""
    lever, foreign = classify(server, past, asks_us=around.asks_us)
    operator = operator_says(server)
    serve = ours_say(server, lever, past)
    weight, pct = weights(server, past, serve)
    seen = Seen(
        ours=Setting(serve, pct),
        operator=operator,
        serving=_serving(server, around),
        address=server.address,
        weight=weight,
        grain_pct=grain(weight) if around.takes_weights and around.level == "admin" else 100,
        in_flight=server.in_flight,
        counters=server.counters,
        writable=(_nowhere(server) if serve is FULL else "") or foreign or _why_not_writable(lever, operator, around.level),
        settle_s=around.agent_settle_s if lever is Lever.AGENT else 0.0,
        note=write_note(lever, weight, server.uweight),
        generation=around.generation,
        remark="; ".join(_one_line(part) for part in (*_remarks(server, lever, serve, past, around), *around.remarks)),
    )
    return Reading(server, lever, seen, past)


def classify(server: Server, past: Past | None, *, asks_us: bool) -> tuple[Lever, str | None]:
    """The lever, and for a server that is somebody else's, why we keep off."""
    if server.tracked:
        return Lever.FOREIGN, f"it follows {server.tracked} (`track`): HAProxy takes changes there only"
    if server.agent & CONFIGURED:
        return _classify_agent(server, asks_us)
    if server.check & CONFIGURED and (server.check & ENABLED or (past is not None and past.check_off)):
        return Lever.CHECK, None
    return Lever.HEALTH, None


def _classify_agent(server: Server, asks_us: bool) -> tuple[Lever, str | None]:
    if not server.agent & ENABLED:
        return Lever.FOREIGN, f"an operator switched its agent-check off; `enable agent {server.ref}` switches it on"
    if asks_us:
        return Lever.AGENT, None
    if server.agent_status == "L4CON":
        return Lever.PUSHED, None
    if server.agent_status in ("", "INI"):
        return Lever.FOREIGN, "its agent-check has not run yet; we look again"
    return Lever.FOREIGN, (
        f"its agent-check is answered by someone else ({server.agent_status}), who would undo what we write; "
        "point `agent-addr`, `agent-port` and `agent-send` at the sidecar, or remove the agent-check"
    )


def operator_says(server: Server) -> Operator:
    """The operator's axis. The status text is no help: an own check that fails hides a drain."""
    if server.admin & IN_MAINTENANCE:
        return MAINTENANCE
    return DRAINING if server.admin & IN_DRAIN else READY


def ours_say(server: Server, lever: Lever, past: Past | None) -> Serve:
    """Our axis. DRAIN, which we never ask for, means half undone: not in force any more, yet something is left to undo."""
    if lever is Lever.HEALTH:
        # His maintenance swallows a `health down`: his `ready` will bring the server up, so nothing of ours is left.
        return NONE if server.op == STOPPED and not server.admin & IN_MAINTENANCE else FULL
    if lever is Lever.CHECK:
        if server.check & ENABLED:
            return FULL
        # His maintenance and `ready` bring it up and leave its own check off, which we must switch on again.
        return NONE if server.op == STOPPED else DRAIN
    if lever is Lever.FOREIGN and (past is None or past.lever not in (Lever.AGENT, Lever.PUSHED)):
        return FULL
    return NONE if _agent_down(server) else FULL


def _agent_down(server: Server) -> bool:
    if server.agent_health is not None and server.agent_rise is not None and server.agent_health < server.agent_rise:
        return True
    # Loaded from a state file, a server is down although its agent's health reads as good.
    return server.op == STOPPED and not server.admin & IN_MAINTENANCE and server.check & (CONFIGURED | ENABLED) != CONFIGURED | ENABLED


def weights(server: Server, past: Past | None, serve: Serve) -> tuple[int, int]:
    """The operator's weight and the percent of it that is in force.

    What we remember is exact. From the journal we only know that a cut was possible: of a server that we hold out and never cut,
    a lower weight is the operator's edit.
    """
    now = server.uweight
    whole = now, 100
    if past is None or not 0 < now < past.weight:
        return whole
    cut = now == past.cut if past.remembered else past.cut is not None or serve is FULL
    return (past.weight, -(-100 * now // past.weight)) if cut else whole


def grain(weight: int) -> int:
    """The smallest step in percent that a weight can express."""
    return min(100, -(-100 // weight)) if weight > 0 else 100


def is_serving(server: Server) -> bool:
    """Whether new requests may reach it by its own state."""
    return server.op in (STARTING, RUNNING) and not server.admin & (IN_MAINTENANCE | IN_DRAIN) and server.uweight > 0


def _nowhere(server: Server) -> str:
    """Why there is nobody to judge or to take out; "" = there is. That its name is not resolved is no operator's word."""
    if server.admin & UNRESOLVED and not server.admin & (IN_MAINTENANCE & ~UNRESOLVED):
        return (
            "its name is not resolved now (a free slot of `server-template`, or DNS does not answer): HAProxy gives it nothing until it is"
        )
    if server.address is None:
        return "it has no address and port by which to judge it (a unix socket?): never asked, never written"
    return ""


def _why_not_writable(lever: Lever, operator: Operator, level: str) -> str | None:
    if lever is Lever.AGENT:
        return None
    if level != "admin":
        return f"this socket is `level {level}`; give the sidecar one of `level admin`, or an agent-check that asks it"
    if operator is MAINTENANCE and lever in (Lever.CHECK, Lever.HEALTH):
        return "it is in the operator's maintenance, in which HAProxy would forget our change; it is possible again when that ends"
    return None


def _remarks(server: Server, lever: Lever, serve: Serve, past: Past | None, around: Around) -> Iterable[str]:
    own_check = server.check & CONFIGURED and server.check & ENABLED
    rise = server.check_rise
    if own_check and server.check_health is not None and rise is not None and server.check_health < rise:
        yield f"own check DOWN ({server.check_status}{': ' + server.last_check if server.last_check else ''})"
    if server.check & CONFIGURED and not server.check & ENABLED and lever is Lever.HEALTH:
        yield "its own check is switched off, not by us"
    if server.check & CONFIGURED and server.check & PAUSED and not server.admin & IN_MAINTENANCE:
        yield "its own check is stuck in pause; the operator's `state maint`, then `state ready`, start it again"
    if serve is DRAIN:
        yield "our ejection was undone and left its own check off"
    if serve is NONE and lever is Lever.HEALTH and past is None:
        yield "held down by a command that our journal does not know"
    if around.idle_reserve:
        yield "backup server, idle while the others serve"
    if server.uweight == 0:
        yield "its weight is 0"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:160])


# ---- changes ----


def why_refuse(reading: Reading, change: Change) -> str:
    """Why this change cannot be written to this server as it is; "" = it can."""
    seen, want = reading.seen, change.want
    if change.on is OURS:
        if want.serve is DRAIN:
            return "HAProxy has no drain on our own axis; ask it on the operator's"
        if want == seen.ours:
            return ""
        if want.serve is FULL and want.weight_pct < 100 and seen.grain_pct >= 100:
            return f"{want.weight_pct} % is not possible: its pool's algorithm, or its weight {seen.weight}, allows only all or none"
        return seen.writable or ""
    return _why_refuse_operator(reading, want.serve)


def _why_refuse_operator(reading: Reading, want: Serve) -> str:
    server = reading.server
    if OPERATOR_AFTER[want] is reading.seen.operator:
        return ""
    if want is FULL and server.admin not in OURS_SAID:
        return (
            f"it was not put out of service by a command of ours (admin bits {server.admin:#x}); "
            f"if that is meant, say `set server {server.ref} state ready` on HAProxy's socket"
        )
    if server.admin & NOT_SAID_BY_COMMAND and want is DRAIN:
        return f"its state is inherited or its name unresolved (admin bits {server.admin:#x}): `drain` would not change it"
    return ""


OPERATOR_AFTER = {FULL: READY, DRAIN: DRAINING, NONE: MAINTENANCE}
_STATE = {FULL: Verb.STATE_READY, DRAIN: Verb.STATE_DRAIN, NONE: Verb.STATE_MAINT}
_OUT = {
    Lever.AGENT: (Verb.AGENT_DOWN,),
    Lever.PUSHED: (Verb.AGENT_DOWN,),
    Lever.CHECK: (Verb.DISABLE_HEALTH, Verb.HEALTH_DOWN),
    Lever.HEALTH: (Verb.HEALTH_DOWN,),
}
_BACK = {
    Lever.AGENT: (Verb.AGENT_UP,),
    Lever.PUSHED: (Verb.AGENT_UP,),
    Lever.CHECK: (Verb.ENABLE_HEALTH,),
    Lever.HEALTH: (Verb.HEALTH_UP,),
}


def plan(reading: Reading, change: Change, level: str) -> list[Order]:
    """The commands that make it so, in order; [] = it is so. Only for a change that `why_refuse` lets pass."""
    seen, want = reading.seen, change.want
    if change.on is not OURS:
        return [] if OPERATOR_AFTER[want.serve] is seen.operator else [Order(_STATE[want.serve])]
    if level != "admin" or seen.writable is not None:
        return []
    turn = [Order(verb) for verb in (_BACK if want.serve is FULL else _OUT)[reading.lever]] if want.serve is not seen.ours.serve else []
    goal = target(seen, want)
    weigh = [Order(Verb.SET_WEIGHT, goal)] if goal != reading.server.uweight else []
    # Cut before it comes back, restore after it is out: it never gets more than asked.
    return weigh + turn if want.serve is FULL else turn + weigh


def target(seen: Seen, want: Setting) -> int:
    """The absolute weight for a setting: floor, but never 0, which is out; an operator's 0 stays."""
    if want.weight_pct >= 100 or seen.weight == 0 or seen.grain_pct >= 100:
        return seen.weight
    return max(1, seen.weight * want.weight_pct // 100)


def remember(reading: Reading, change: Change, goal: int) -> Past:
    """What we shall know once this change is written."""
    off = reading.lever is Lever.CHECK and (change.want.serve is NONE or reading.seen.ours.serve is not FULL)
    return Past(reading.lever, reading.seen.weight, goal, check_off=off, remembered=True)


def settle(past: Past, serve: Serve) -> Past:
    """The past once a read-back showed our axis at `serve`."""
    return replace(past, check_off=past.check_off and serve is not FULL, confirmed=past.check_off and serve is NONE)


def unmet(after: Reading, change: Change) -> str:
    """Why the change is not in force in this read-back; "" = it is."""
    seen, want = after.seen, change.want
    if change.on is not OURS:
        due = OPERATOR_AFTER[want.serve]
        return "" if seen.operator is due else f"written, but HAProxy shows operator {seen.operator}"
    if after.lever is Lever.AGENT and seen.settle_s > 0:
        return ""  # the next poll says it for good; one under way may still carry our word from before
    if seen.ours.serve is not want.serve:
        return f"written, but HAProxy shows {seen.ours.serve}"
    goal = target(seen, want)
    return "" if after.server.uweight == goal else f"weight {goal} was written, but HAProxy shows {after.server.uweight}"


def is_shaky(after: Reading, change: Change) -> bool:
    """Whether a check that was under way when we switched it off may still bring the server up: one success does, whatever its `rise`."""
    return _is_ejection(after, change) and bool(after.server.check & UNDER_WAY)


def is_shaken(after: Reading, change: Change) -> bool:
    """Whether such a check has done so, not the operator."""
    return _is_ejection(after, change) and after.seen.ours.serve is DRAIN and after.seen.operator is change.expect.operator


def _is_ejection(after: Reading, change: Change) -> bool:
    return change.on is OURS and change.want.serve is NONE and after.lever is Lever.CHECK


def mend(after: Reading, change: Change) -> list[Order]:
    """What must be taken back at once when the operator's maintenance came between our look and our write.

    HAProxy resumes a check at his `ready` only if it is switched on then; ours would leave it paused for good.
    """
    raced = change.on is OURS and change.want.serve is NONE and after.seen.operator is MAINTENANCE
    return [Order(Verb.ENABLE_HEALTH)] if raced and after.lever is Lever.CHECK and not after.server.check & ENABLED else []


def _serving(server: Server, around: Around) -> bool | None:
    """A reserve gets nothing while others serve, but would once they do not: that is no server that is out."""
    return None if around.idle_reserve and is_serving(server) else is_serving(server)


def merge(views: Sequence[Seen]) -> Seen:
    """One server over several processes of one configuration: the most careful of each word.

    Where our axis differs between them, `ours` is DRAIN: equal to nothing that is ever asked, so that the next change is written.
    """
    first = views[0]
    if len(views) == 1:
        return first
    same_weight = len({view.weight for view in views}) == 1
    counts = [view.in_flight for view in views if view.in_flight is not None]
    settings = {view.ours for view in views}
    severity = (READY, DRAINING, MAINTENANCE)
    remarks = list(dict.fromkeys(view.remark for view in views if view.remark))
    if not same_weight:
        remarks.append("its weight differs between the processes: " + ", ".join(str(view.weight) for view in views))
    return replace(
        first,
        ours=first.ours if len(settings) == 1 else Setting(DRAIN, min(setting.weight_pct for setting in settings)),
        operator=max((view.operator for view in views), key=severity.index),
        serving=False if any(view.serving is False for view in views) else None if any(view.serving is None for view in views) else True,
        grain_pct=max(view.grain_pct for view in views) if same_weight else 100,
        in_flight=sum(counts) if counts else None,
        counters=_total(views),
        writable=next((view.writable for view in views if view.writable is not None), None),
        settle_s=max(view.settle_s for view in views),
        note=next((view.note for view in views if "cut=" in view.note), first.note),
        remark="; ".join(remarks),
    )


def _total(views: Sequence[Seen]) -> Counters | None:
    known = [view.counters for view in views if view.counters is not None]
    if not known:
        return None

    def total(counts: Iterable[int | None]) -> int | None:
        numbers = [count for count in counts if count is not None]
        return sum(numbers) if numbers else None

    return Counters(
        requests=total(c.requests for c in known),
        connect_errors=total(c.connect_errors for c in known),
        response_errors=total(c.response_errors for c in known),
        retries=total(c.retries for c in known),
        status_5xx=total(c.status_5xx for c in known),
    )


__all__ = [
    "OUR_WORD", "TAKES_WEIGHTS", "Around", "Lever", "Order", "Past", "Reading", "classify", "grain", "is_serving", "is_shaken", "is_shaky",
    "mend", "merge", "parse_note", "plan", "read", "remember", "settle", "target", "unmet", "why_refuse", "write_note",
]  # fmt: skip
