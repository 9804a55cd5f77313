"""How a simulated HAProxy takes up a state file at its start. Pure."""

from __future__ import annotations

from tests.sim.haproxy_config import Config
from tests.sim.haproxy_server import Admin, Check, Op, Result, Server, Status

KEPT = Admin.FORCED_MAINT | Admin.CONFIGURED | Admin.FORCED_DRAIN


def load(config: Config, text: str, now: float) -> None:
    """Gives every server of a proxy that loads the file the state that stands there under its names."""
    lines = text.splitlines()
    if lines[:1] != ["1"] or len(lines) < 2:
        return
    names = lines[1][2:].split()
    rows = [dict(zip(names, line.split(), strict=False)) for line in lines[2:] if line]
    for row in rows:
        proxy = config.proxies.get(row["be_name"])
        if proxy is not None and proxy.loads_state and row["srv_name"] in proxy.servers:
            _take(proxy.servers[row["srv_name"]], row, now)


def _take(server: Server, row: dict[str, str], now: float) -> None:
    server.now = now
    _take_op(server, Op(int(row["srv_op_state"])), int(row["srv_check_health"]))
    was = int(row["srv_admin_state"]) & KEPT
    if (was ^ server.next_admin) & Admin.CONFIGURED:
        server.set_maint() if server.next_admin & Admin.CONFIGURED else server.set_ready()
    elif was & Admin.FORCED_MAINT and not server.next_admin & Admin.CONFIGURED:
        server.set_maint()
    elif not was & Admin.FORCED_MAINT and server.next_admin & Admin.CONFIGURED:
        server.set_ready()
    first_weight = int(row["srv_iweight"])
    if was & Admin.FORCED_DRAIN and not server.next_admin & Admin.FORCED_MAINT and (first_weight > 0 or server.first_weight == 0):
        server.set_drain()
    server.changed = now - int(row["srv_time_since_last_change"])
    server.check.status, server.check.result = Status(int(row["srv_check_status"])), Result(int(row["srv_check_result"]))
    for checker, column in ((server.check, "srv_check_state"), (server.agent, "srv_agent_state")):
        state = int(row[column])
        if checker.state & state & Check.CONFIGURED and not state & Check.ENABLED:
            checker.state &= ~Check.ENABLED
    server.set_weight(int(row["srv_uweight"]) if first_weight == server.first_weight else server.weight)
    server.port = int(row["srv_port"])
    for checker, kind in ((server.check, "check"), (server.agent, "agent")):
        host, port = row[f"srv_{kind}_addr"], int(row[f"srv_{kind}_port"])
        if host != "-" or port:
            if not checker.is_on:
                return  # HAProxy warns, and reads no further
            checker.host, checker.port = host if host != "-" else checker.host, port or checker.port


def _take_op(server: Server, op: Op, health: int) -> None:
    check = server.check
    if op is Op.STOPPED or (op is Op.STOPPING and check.fall == 1):
        check.health = 0
        server.stop()
    elif op is Op.STOPPING:
        check.health = health if check.rise <= health < check.best else check.rise
        server.soften()
    else:
        check.health = check.best
        server.run()


__all__ = ["load"]
