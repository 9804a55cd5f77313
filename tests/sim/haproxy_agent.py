"""What an agent's answer does to a server of a simulated HAProxy. Pure."""

from __future__ import annotations

import re

from tests.sim.haproxy_commands import weigh
from tests.sim.haproxy_server import Check, Server, Status

HEALTH = {"up": True, "down": False, "stopped": False, "fail": False}
ADMIN = ("ready", "drain", "maint")
INCOMPLETE = "Ignoring incomplete line from agent"


def hear(server: Server, said: bytes) -> None:
    """Takes the first line of the answer: words in any order, of each kind the last one counts. Draws no consequence for the health."""
    agent = server.agent
    if not agent.state & Check.ENABLED:
        return
    line = re.match(rb"[^\r\n\0]*(?=[\r\n])", said)
    if line is None:
        _took(server, agent.status, INCOMPLETE)
        return
    text = line[0].decode("latin-1")
    words, _, reason = _parted(text)
    health = next((word for word in reversed(words) if word.lower() in HEALTH), "")
    admin = next((word.lower() for word in reversed(words) if word.lower() in ADMIN), "")
    weight = next((word for word in reversed(words) if word[0].isdigit() and "%" in word), "")
    strange = next((word for word in words if not _known(word)), "")
    _move_admin(server, admin)
    warning = weigh(server, weight) if weight else ""
    if health:
        is_up = HEALTH[health.lower()]
        agent.health = agent.best if is_up else 0
        told = (strange or warning or reason) if is_up or not reason else reason
        _took(server, Status.L7OK if is_up else Status.L7STS, f"via agent : {health}" + (f" ({told})" if told else ""))
    elif strange:
        _took(server, Status.CHECKED, f"agent reports an error : {strange}")
    elif warning:
        _took(server, Status.CHECKED, f"agent warns : {warning}")
    else:
        _took(server, Status.CHECKED, "")


def _took(server: Server, status: Status, said: str) -> None:
    server.failures += server.agent.take(status, said[:63])


def _move_admin(server: Server, admin: str) -> None:
    if admin == "drain":
        server.set_drain()
    elif admin == "maint":
        server.set_maint()
    elif admin:
        server.set_ready()


def _parted(text: str) -> tuple[list[str], str, str]:
    """The words, and behind a `#` that begins one, the reason."""
    match = re.search(r"(?:^|[ \t,])(#)", text)
    head, reason = (text[: match.start(1)], text[match.end(1) :].lstrip(" \t")) if match else (text, "")
    return [word for word in re.split(r"[ \t,]+", head) if word], "#" if match else "", reason


def _known(word: str) -> bool:
    return word.lower() in HEALTH or word.lower() in ADMIN or (word[0].isdigit() and "%" in word) or word.lower().startswith("maxconn:")


__all__ = ["hear"]
