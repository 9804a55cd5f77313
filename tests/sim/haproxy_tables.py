"""What a simulated HAProxy shows: `show servers state`, `show stat`, `show info`, with the columns of the version. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.sim.haproxy_config import SHOWN_AS, Proxy
from tests.sim.haproxy_server import DESCRIPTION, HAS_DATA, Admin, Check, Checker, Op, Server, Status

STATE_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change "
    "srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn "
    "srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)
_FIRST = (
    "pxname svname qcur qmax scur smax slim stot bin bout dreq dresp ereq econ eresp wretr wredis status weight act bck chkfail chkdown "
    "lastchg downtime qlimit pid iid sid throttle lbtot tracked type rate rate_lim rate_max check_status check_code check_duration "
    "hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx hrsp_other hanafail req_rate req_rate_max req_tot cli_abrt srv_abrt comp_in comp_out "
    "comp_byp comp_rsp lastsess last_chk last_agt qtime ctime rtime ttime agent_status agent_code agent_duration check_desc agent_desc "
    "check_rise check_fall check_health agent_rise agent_fall agent_health addr cookie mode algo conn_rate conn_rate_max conn_tot "
    "intercepted dcon dses wrew connect reuse cache_lookups cache_hits srv_icur src_ilim qtime_max ctime_max rtime_max ttime_max eint "
    "idle_conn_cur safe_conn_cur used_conn_cur need_conn_est uweight agg_server_status agg_server_check_status agg_check_status"
)
_SINCE_2_8 = "srid sess_other h1sess h2sess h3sess req_other h1req h2req h3req proto"
_LAST = (
    "- ssl_sess ssl_reused_sess ssl_failed_handshake h2_headers_rcvd h2_data_rcvd h2_settings_rcvd h2_rst_stream_rcvd h2_goaway_rcvd "
    "h2_detected_conn_protocol_errors h2_detected_strm_protocol_errors h2_rst_stream_resp h2_goaway_resp h2_open_connections "
    "h2_backend_open_streams h2_total_connections h2_backend_total_streams h1_open_connections h1_open_streams h1_total_connections "
    "h1_total_streams h1_bytes_in h1_bytes_out h1_spliced_bytes_in h1_spliced_bytes_out"
)
STAT_COLUMNS = {"2.6": f"{_FIRST} {_LAST}".split(), "2.8": f"{_FIRST} {_SINCE_2_8} {_LAST}".split()}
HEADERS = {version: f"# {','.join(columns)}," for version, columns in STAT_COLUMNS.items()}
AGE = "\0"
"""Stands where a time will."""


_COUNTS = (
    "qcur qmax scur smax stot bin bout dresp econ eresp wretr wredis lbtot rate rate_max hrsp_1xx hrsp_2xx hrsp_3xx hrsp_4xx hrsp_5xx "
    "hrsp_other cli_abrt srv_abrt qtime ctime rtime ttime wrew connect reuse srv_icur qtime_max ctime_max rtime_max ttime_max eint "
    "idle_conn_cur safe_conn_cur used_conn_cur need_conn_est req_tot"
)
_ZERO = dict.fromkeys(_COUNTS.split(), "0")
OPERATOR_SEES = ("addr", "algo", "cookie")
"""Columns that stay empty below `level operator`."""

FRONTEND, BACKEND, SERVER = 1, 2, 4
"""Bits of the second word of `show stat NAME TYPES -1`."""


class Traffic(NamedTuple):
    """What requests have left behind at one server, for whoever plays them."""

    current: int = 0
    requests: int = 0
    connect_errors: int = 0
    response_errors: int = 0
    retries: int = 0
    status_5xx: int = 0


NO_TRAFFIC = Traffic()


class Row(NamedTuple):
    """What `show stat` shows of a server as long as `key` stays so, in halves: between them stands what only time changes."""

    key: object
    stat: tuple[str, str]


Rows = dict[Server, Row]
"""A memory of rows: most servers look as they did at the last look."""


def states(proxies: Iterable[Proxy], now: float) -> str:
    """The table of `show servers state`, which is also the content of a state file."""
    lines = [_aged(_state(p, s), str(int(now) - int(s.changed))) for p in proxies if p.has_servers for s in p.servers.values()]
    return "\n".join(["1", f"# {STATE_COLUMNS}", *lines, ""])


def _aged(halves: tuple[str, str], age: str) -> str:
    return f"{halves[0]}{age}{halves[1]}"


def _state(proxy: Proxy, s: Server) -> tuple[str, str]:
    check, agent = s.check, s.agent
    return (
        f"{proxy.number} {proxy.name} {s.number} {s.name} {s.host} {s.op:d} {s.admin} {s.weight} {s.first_weight} ",
        f" {check.status:d} {check.result:d} {check.health} {check.state} {agent.state} 0 {s.has_own_number:d} {s.hostname or '-'} "
        f"{s.port} - 0 {check.port} {check.host or '-'} {agent.host or '-'} {agent.port}",
    )


def stats(version: str, proxies: Iterable[Proxy], types: int, level: str, now: float, traffic: Mapping[Server, Traffic], rows: Rows) -> str:
    """The table of `show stat`; `types` as there, negative = all."""
    columns = STAT_COLUMNS[version]
    lines = [HEADERS[version]]
    for proxy in proxies:
        if types & FRONTEND and not proxy.has_servers:
            lines.append(_csv(columns, _frontend(proxy), level))
        if types & SERVER:
            for s in proxy.servers.values():
                halves = _remembered(columns, proxy, s, level, traffic.get(s, NO_TRAFFIC), rows)
                lines.append(_aged(halves, f"{int(now) - int(s.changed)},{_downtime(s, now)}"))
        if types & BACKEND and proxy.has_servers:
            lines.append(_csv(columns, _backend(proxy), level))
    return "\n".join([*lines, ""])


def _remembered(columns: Sequence[str], proxy: Proxy, s: Server, level: str, traffic: Traffic, rows: Rows) -> tuple[str, str]:
    first, own, agent = _first(s), s.check, s.agent
    key = (
        level, traffic, s.op, s.admin, s.weight, s.share, s.host, s.port, s.maxconn, s.failures, s.times_down,
        own.state, own.health, own.status, own.code, own.said, agent.state, agent.health, agent.status, agent.code, agent.said,
        first.op, first.check.state, first.check.health, first.agent.state, first.agent.health,
    )  # fmt: skip
    known = rows.get(s)
    if known is None or known.key != key:
        before, _, after = _csv(columns, _server(proxy, s, traffic), level).partition(f"{AGE},{AGE}")
        known = rows[s] = Row(key, (before, after))
    return known.stat


def _downtime(s: Server, now: float) -> str:
    if not s.check.is_on:
        return ""
    return str(int(s.down_s + (max(0, int(now) - int(s.changed)) if s.op is Op.STOPPED else 0)))


def _csv(columns: Sequence[str], row: Mapping[str, str], level: str) -> str:
    hidden = OPERATOR_SEES if level == "user" else ()
    return ",".join([_quoted(row.get(name, "")) if name not in hidden else "" for name in columns]) + ","


def _quoted(text: str) -> str:
    if not ('"' in text or "," in text or "\n" in text or "\r" in text):
        return text
    return '"' + text.replace('"', '""') + '"'


def _server(proxy: Proxy, s: Server, traffic: Traffic) -> dict[str, str]:
    row = {
        **_ZERO,
        "pxname": proxy.name, "svname": s.name, "type": "2", "pid": "1", "iid": str(proxy.number), "sid": str(s.number), "mode": proxy.mode,
        "slim": str(s.maxconn or ""), "status": status(s), "weight": str(s.share), "uweight": str(s.weight), "-": "-", "lastsess": "-1",
        "act": str(int(not s.is_backup)), "bck": str(int(s.is_backup)), "lastchg": AGE, "downtime": AGE, "srid": "0",
        "addr": f"[{s.host}]:{s.port}" if ":" in s.host else f"{s.host}:{s.port}",
        "ssl_sess": "0", "ssl_reused_sess": "0", "ssl_failed_handshake": "0",
        "scur": str(traffic.current), "req_tot": str(traffic.requests), "econ": str(traffic.connect_errors),
        "eresp": str(traffic.response_errors), "wretr": str(traffic.retries), "hrsp_5xx": str(traffic.status_5xx),
    }  # fmt: skip
    if proxy.mode != "http":
        row |= dict.fromkeys(("req_tot", "hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "hrsp_other"), "")
    if s.tracked is not None:
        row["tracked"] = f"{s.tracked.pool}/{s.tracked.name}"
    if s.check.is_on:
        row |= {"chkfail": str(s.failures), "chkdown": str(s.times_down)}
    if s.check.is_shown:
        top = _checked(s)
        row |= _check("check", s.check) | {"last_chk": s.check.said}
        row |= {"check_rise": str(top.rise), "check_fall": str(top.fall), "check_health": str(top.health)}
    if s.agent.is_shown:
        row |= _check("agent", s.agent) | {"last_agt": s.agent.said, "agent_duration": "0"}
        row |= {"agent_rise": str(s.agent.rise), "agent_fall": str(s.agent.fall), "agent_health": str(s.agent.health)}
    return row


def _check(kind: str, checker: Checker) -> dict[str, str]:
    mark = "* " if checker.state & Check.UNDER_WAY else ""
    return {
        f"{kind}_status": f"{mark}{'L7OK' if checker.status is Status.L7OK else checker.status.name}",
        f"{kind}_code": str(checker.code) if checker.status in HAS_DATA else "",
        f"{kind}_duration": "0" if checker.status >= Status.CHECKED else "",
        f"{kind}_desc": DESCRIPTION[checker.status],
    }


def _checked(server: Server) -> Checker:
    """The check at the end of the chain of those tracked."""
    return _first(server).check


def _first(server: Server) -> Server:
    while server.tracked is not None:
        server = server.tracked
    return server


def status(s: Server) -> str:
    """The word in the column `status`."""
    if s.admin & Admin.UNRESOLVED:
        return "MAINT (resolution)"
    if s.admin & Admin.INHERITED_MAINT and s.tracked is not None:
        return f"MAINT (via {s.tracked.pool}/{s.tracked.name})"
    if s.admin & Admin.MAINT:
        return "MAINT"
    first = _first(s)
    check, agent = first.check, first.agent
    word = _word(s, check, agent)
    if "%" not in word:
        return word
    up = first.op is not Op.STOPPED
    return word.replace("%", f"{check.health - check.rise + 1}/{check.fall}" if up else f"{check.health}/{check.rise}")


def _word(s: Server, check: Checker, agent: Checker) -> str:
    is_sinking = check.is_on and check.health < check.best
    if s.op in (Op.RUNNING, Op.STARTING):
        if s.admin & Admin.DRAIN:
            return "DRAIN (agent)" if agent.is_on else "DRAIN %" if is_sinking else "DRAIN"
        return "UP %" if is_sinking else "UP" if check.is_on else "no check"
    if s.op is Op.STOPPING:
        is_whole = (not s.check.is_on and s.tracked is None) or check.health == check.best
        return "NOLB" if is_whole else "NOLB %"
    if agent.is_on and agent.health == 0:
        return "DOWN (agent)"
    if check.is_on and check.health == 0:
        return "DOWN"
    return "DOWN %" if agent.is_on or check.is_on else "DOWN"


def _backend(proxy: Proxy) -> dict[str, str]:
    active = [s for s in proxy.servers.values() if s.serves and not s.is_backup]
    backups = [s for s in proxy.servers.values() if s.serves and s.is_backup]
    weight = sum(s.share for s in active or backups[:1])
    return {
        "pxname": proxy.name, "svname": "BACKEND", "type": "1", "pid": "1", "iid": str(proxy.number), "sid": "0", "mode": proxy.mode,
        "status": "UP" if weight or not proxy.servers else "DOWN", "weight": str(weight), "act": str(len(active)), "bck": str(len(backups)),
        "algo": SHOWN_AS.get(proxy.algorithm, proxy.algorithm), "-": "-",
    }  # fmt: skip


def _frontend(proxy: Proxy) -> dict[str, str]:
    return {
        "pxname": proxy.name, "svname": "FRONTEND", "type": "0", "pid": "1", "iid": str(proxy.number), "sid": "0", "mode": proxy.mode,
        "status": "OPEN", "-": "-",
    }  # fmt: skip


def info(version: str, pid: int, started: float, now: float, threads: int, old: bool) -> str:
    """The lines of `show info` that say which process this is. `started`: seconds since the epoch."""
    up = int(now) - int(started)
    lines = {
        "Name": "HAProxy", "Version": {"2.6": "2.6.12-1+deb12u4", "2.8": "2.8.25-5cf5d0683"}[version], "Nbthread": threads, "Nbproc": 1,
        "Process_num": 1, "Pid": pid, "Uptime": f"{up // 86400}d {up // 3600 % 24}h{up // 60 % 60:02}m{up % 60:02}s", "Uptime_sec": up,
        "Stopping": int(old), "Start_time_sec": int(started),
    }  # fmt: skip
    return "".join(f"{name}: {value}\n" for name, value in lines.items())
