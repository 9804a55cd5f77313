"""Talking to HAProxy's runtime socket: one connection per transaction, one deadline, one checked builder of commands.

Connections are never kept: one that was opened before a reload stays with the old worker, which says yes and changes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import pwd
import re
import stat
from collections.abc import Container, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from lbplugins.api import BalancerError
from lbplugins.values import Ref

NAME = re.compile(r"\A[A-Za-z0-9_.:-]{1,128}\Z")
"""What HAProxy allows in the names of proxies and servers. `;` and a line feed would run a second command."""

MOST_COMMANDS = 200
"""Commands joined on one line."""

MOST_BYTES = 32 * 1024 * 1024
"""The longest answer we read; 1,000 servers take about 300 kB."""

HEAVIEST = 256
"""HAProxy's highest weight."""


class Reply(StrEnum):
    """How the answer to a command ends."""

    ACK = "ack"
    """A line feed alone = done; anything else is an error, up to an empty line."""
    TEXT = "text"
    """Up to an empty line."""
    CSV = "csv"
    """Up to an empty line that is not inside quotes."""


class Command(NamedTuple):
    """One command as it goes on the wire, and how its answer ends."""

    text: str
    reply: Reply


class Verb(StrEnum):
    """Everything we ever tell HAProxy about a server; `{0}` is `backend/server`, `{1}` a weight."""

    STATE_READY = "set server {0} state ready"
    STATE_DRAIN = "set server {0} state drain"
    STATE_MAINT = "set server {0} state maint"
    HEALTH_UP = "set server {0} health up"
    HEALTH_DOWN = "set server {0} health down"
    AGENT_UP = "set server {0} agent up"
    AGENT_DOWN = "set server {0} agent down"
    ENABLE_HEALTH = "enable health {0}"
    DISABLE_HEALTH = "disable health {0}"
    SHUTDOWN_SESSIONS = "shutdown sessions server {0}"
    GET_WEIGHT = "get weight {0}"
    SET_WEIGHT = "set server {0} weight {1:d}"


SHOW_INFO = Command("show info", Reply.TEXT)
SHOW_LEVEL = Command("show cli level", Reply.TEXT)
SHOW_ALL_STATES = Command("show servers state", Reply.TEXT)
SHOW_ALL_STATS = Command("show stat -1 6 -1", Reply.CSV)
SHOW_PROC = Command("show proc", Reply.TEXT)


class Unsayable(ValueError):
    """A name or value that must not reach HAProxy's command line."""


def order(verb: Verb, ref: Ref, known: Container[Ref], weight: int | None = None) -> Command:
    """The only way to a command about a server. Unsayable unless the name is safe and `known` (from the last look) has it."""
    for name in ref:
        if not isinstance(name, str) or NAME.match(name) is None:
            raise Unsayable(f"{name!r} is no HAProxy name (letters, digits, `_ . : -`, at most 128): nothing was sent")
    if ref not in known:
        raise Unsayable(f"HAProxy has no server {ref}")
    if (verb is Verb.SET_WEIGHT) != (weight is not None):
        raise Unsayable(f"{verb.name} and weight {weight!r} do not go together")
    if weight is not None and not 0 <= weight <= HEAVIEST:
        raise Unsayable(f"weight {weight} is not within 0..{HEAVIEST}")
    return Command(verb.value.format(f"{ref.pool}/{ref.server}", weight), Reply.TEXT if verb is Verb.GET_WEIGHT else Reply.ACK)


def show_state(pool: str) -> Command:
    """`show servers state` of one pool; Unsayable for a name HAProxy cannot have."""
    return Command(f"show servers state {_pool(pool)}", Reply.TEXT)


def show_stat(pool: str) -> Command:
    """`show stat` of one pool and its servers. A name that HAProxy would read as a number is asked by asking for all."""
    return SHOW_ALL_STATS if pool[:1] in "0123456789-" else Command(f"show stat {_pool(pool)} 6 -1", Reply.CSV)


def _pool(pool: str) -> str:
    if NAME.match(pool) is None:
        raise Unsayable(f"{pool!r} is no HAProxy backend name (letters, digits, `_ . : -`, at most 128)")
    return pool


async def ask(path: str, commands: Sequence[Command], timeout_s: float, *, half_close: bool = False) -> list[str]:
    """One answer per command, over one fresh connection within `timeout_s` in all; an ACK's "" means done.

    `half_close` is for the master socket, which keeps the connection open until our side is closed. BalancerError names the
    socket and the cure. At most `MOST_COMMANDS` commands.
    """
    if len(commands) > MOST_COMMANDS:
        raise ValueError(f"{len(commands)} commands on one line, at most {MOST_COMMANDS}")
    line = ";".join(command.text for command in commands)
    try:
        async with asyncio.timeout(timeout_s):
            raw = await _exchange(path, line, half_close)
    except TimeoutError as error:
        raise BalancerError(f"no answer from {path} within {timeout_s:g} s: HAProxy hangs, is paused, or is swamped with work") from error
    except OSError as error:
        raise BalancerError(_why_unreachable(path, error)) from error
    return split(path, raw, commands)


async def _exchange(path: str, line: str, half_close: bool) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(line.encode("ascii") + b"\n")
        if half_close:
            writer.write_eof()
        chunks: list[bytes] = []
        size = 0
        while chunk := await reader.read(65536):
            chunks.append(chunk)
            size += len(chunk)
            if size > MOST_BYTES:
                raise BalancerError(f"{path} answered more than {MOST_BYTES} bytes; is this HAProxy's socket?")
        return b"".join(chunks).decode("utf-8", "replace")
    finally:
        writer.transport.abort()


def split(path: str, raw: str, commands: Iterable[Command]) -> list[str]:
    """The joined answers, one per command. BalancerError when some are missing: what was done is then unknown."""
    answers: list[str] = []
    at = 0
    for command in commands:
        if command.reply is Reply.ACK and raw.startswith("\n", at):
            answers.append("")
            at += 1
            continue
        end = _csv_end(raw, at) if command.reply is Reply.CSV else raw.find("\n\n", at)
        if end < 0:
            raise BalancerError(f"{path} broke off before answering {command.text!r}: HAProxy was stopped or reloaded meanwhile")
        answers.append(raw[at:end].strip("\n"))
        at = end + 2
    return answers


def _csv_end(raw: str, at: int) -> int:
    end = raw.find("\n\n", at)
    while end >= 0 and raw.count('"', at, end) % 2:
        end = raw.find("\n\n", end + 1)
    return end


def _why_unreachable(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"no socket at {path}: is HAProxy running, and does its configuration say `stats socket {path} level admin`?"
    if error.errno == errno.ECONNREFUSED:
        return f"nobody listens at {path}: HAProxy is stopped (its socket file stays behind); start it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"user {_user(os.geteuid())} may not open {path}: {_rights(path)}"
    if error.errno == errno.EAGAIN:
        return f"{path} takes no more connections now: its backlog is full; HAProxy hangs or is swamped with work"
    return f"{path}: {error.strerror or error}"


def _rights(path: str) -> str:
    """Whose the socket is, and what would open it for us."""
    try:
        about = os.stat(path)
    except OSError:
        return f"a directory above it is closed to us; allow `x` on it, e.g. `chmod o+x {os.path.dirname(path)}`"
    try:
        group = grp.getgrgid(about.st_gid).gr_name
    except KeyError:
        group = str(about.st_gid)
    mode = stat.S_IMODE(about.st_mode)
    told = f"it belongs to {_user(about.st_uid)}:{group}, mode {mode:o}"
    if mode & 0o060 == 0o060:
        return f"{told}; add our user to group {group}"
    return f"{told}; write `mode 660 group {group}` on its `stats socket` line and add our user to that group"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


__all__ = [
    "HEAVIEST", "MOST_COMMANDS", "NAME", "SHOW_ALL_STATES", "SHOW_INFO", "SHOW_LEVEL", "SHOW_PROC",
    "Command", "Reply", "Unsayable", "Verb", "ask", "order", "show_stat", "show_state", "split",
]  # fmt: skip
