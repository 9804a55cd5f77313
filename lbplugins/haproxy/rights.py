"""What we may not do with this HAProxy, each with its cure: asked of the sockets themselves, changing nothing."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import stat
from collections.abc import Awaitable, Callable, Sequence

from lbplugins.api import BalancerError
from lbplugins.haproxy import wire
from lbplugins.haproxy.options import HAProxyOptions
from lbplugins.haproxy.table import parse_process
from lbplugins.haproxy.wire import Command, Reply

GROUP = "haproxy"
"""The group that packages give HAProxy."""

MAY_WE_WRITE = Command("set server", Reply.TEXT)
"""Says which server is missing to whoever may write, and `Permission denied` to others; nothing is changed."""


async def lacking(options: HAProxyOptions, listeners: Sequence[Callable[[], Awaitable[None]]]) -> list[str]:
    """One line for each missing right. `listeners`: what we would have to listen at, tried and let go; BalancerError = cannot."""
    found = await asyncio.gather(*(_socket(path, options) for path in options.socket))
    lines = [line for line in found if line]
    if options.master is not None:
        lines += [line for line in [await _reach(options.master, [wire.SHOW_PROC], options.timeout, half_close=True)] if line]
    for listen in listeners:
        try:
            await listen()
        except BalancerError as error:
            lines.append(str(error))
    return lines


async def _socket(path: str, options: HAProxyOptions) -> str:
    """Why this socket is not enough; "" = it is."""
    try:
        info, level, answer = await wire.ask(path, [wire.SHOW_INFO, wire.SHOW_LEVEL, MAY_WE_WRITE], options.timeout)
        parse_process(info)
    except BalancerError as error:
        return _closed(path) if isinstance(error.__cause__, PermissionError) else str(error)
    # Below it, a server whose agent-check asks us can be moved all the same; the others say so themselves.
    if options.agent is not None or "Permission denied" not in answer:
        return ""
    return (
        f"{path} is `level {level.strip()}`, which may look and not act; write `{_line(path, _group(path))}` in HAProxy's `global` section "
        "and reload it"
    )


async def _reach(path: str, commands: Sequence[Command], timeout_s: float, *, half_close: bool) -> str:
    try:
        await wire.ask(path, commands, timeout_s, half_close=half_close)
    except BalancerError as error:
        return f"master: {error}"
    return ""


def _closed(path: str) -> str:
    """Whose the socket is, and the lines that open it for us."""
    try:
        about = os.stat(path)
    except OSError:
        folder = _shut(path)
        return f"{who()} may not enter {folder}, where {path} is: `chmod o+x {folder}`, or `usermod -aG {_group(folder)} {who()}`"
    group, mode = _group(path), stat.S_IMODE(about.st_mode)
    join = f"`usermod -aG {group} {who()}` and a new start of the sidecar"
    told = f"{who()} may not open {path}, which belongs to {_name(about.st_uid)}:{_group_name(about.st_gid)}, mode {mode:o}"
    if mode & 0o060 == 0o060 and about.st_gid != 0:
        return f"{told}: {join}"
    return f"{told}: write `{_line(path, group)}` in HAProxy's `global` section and reload it, then {join}"


def _shut(path: str) -> str:
    """The first folder on the way that is closed to us."""
    folder = os.path.dirname(path)
    while folder != "/" and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder


def _line(path: str, group: str) -> str:
    return f"stats socket {path} mode 660 group {group} level admin"


def _group(path: str) -> str:
    """The group to share the socket with: its own, unless that is root's, which nobody should join."""
    try:
        gid = os.stat(path).st_gid
    except OSError:
        return GROUP
    return GROUP if gid == 0 else _group_name(gid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def who() -> str:
    """The user we run as, as `usermod` takes it."""
    return _name(os.geteuid())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


__all__ = ["MAY_WE_WRITE", "lacking"]
