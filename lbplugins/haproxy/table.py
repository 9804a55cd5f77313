"""HAProxy's own tables as values. Columns are found by name, never by place: 2.6 and 2.8 differ in their number."""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lbplugins.api import BalancerError
from lbplugins.values import Address, Counters, Ref


@dataclass(frozen=True, slots=True)
class Server:
    """One server as one process has it. Bit fields are HAProxy's; `None` and '' = this server has no such column."""

    ref: Ref
    op: int = 2
    """0 stopped, 1 starting, 2 running, 3 stopping."""
    admin: int = 0
    """1 forced maintenance, 2 inherited, 4 `disabled` in the configuration, 8 forced drain, 0x10 inherited, 0x20 unresolved."""
    uweight: int = 1
    iweight: int = 1
    check: int = 0
    """1 running, 2 configured, 4 enabled, 8 paused; of its own check."""
    agent: int = 0
    """The same bits and 16, of its agent-check."""
    address: Address | None = None
    agent_status: str = ""
    agent_health: int | None = None
    agent_rise: int | None = None
    last_agent: str = ""
    check_status: str = ""
    check_health: int | None = None
    check_rise: int | None = None
    last_check: str = ""
    tracked: str = ""
    backup: bool = False
    in_flight: int | None = None
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class Table:
    """What one process showed in one transaction."""

    pid: int
    started: int
    level: str = "admin"
    servers: Mapping[Ref, Server] | None = None
    algorithms: Mapping[str, str] | None = None
    """Pool -> `balance` algorithm; empty below level operator."""

    @property
    def generation(self) -> str:
        return f"{self.pid}:{self.started}"


def parse_process(text: str) -> tuple[int, int]:
    """Pid and start time (seconds) from `show info`; BalancerError when it is not HAProxy that answers."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    try:
        return int(fields["Pid"]), int(fields["Start_time_sec"])
    except (KeyError, ValueError) as error:
        raise BalancerError(
            f"`show info` has no usable Pid and Start_time_sec; is this HAProxy 2.4 or newer? It began {text[:80]!r}"
        ) from error


def parse_states(text: str) -> list[dict[str, str]]:
    """Rows of `show servers state` by column name; [] for an unknown backend. BalancerError when it is not that table."""
    lines = text.splitlines()
    if lines[:1] == ["Can't find backend."]:
        return []
    if len(lines) < 2 or lines[0] != "1" or not lines[1].startswith("# "):
        raise BalancerError(f"`show servers state` has an unknown format; it began {text[:80]!r}")
    names = lines[1][2:].split()
    return [_row(names, line.split(), "show servers state") for line in lines[2:] if line and not line.startswith("#")]


def parse_stats(text: str) -> list[dict[str, str]]:
    """Rows of `show stat` by column name; [] for an unknown proxy. BalancerError when it is not that table."""
    if text.startswith("No such proxy."):
        return []
    if not text.startswith("# pxname,"):
        raise BalancerError(f"`show stat` has an unknown format; it began {text[:80]!r}")
    names, *rows = csv.reader(io.StringIO(text[2:], newline="\n"))
    return [_row(names, row, "show stat") for row in rows if row]


def _row(names: Sequence[str], values: Sequence[str], table: str) -> dict[str, str]:
    if len(names) != len(values):
        raise BalancerError(f"`{table}` has a row of {len(values)} values under {len(names)} names: {' '.join(values)[:80]!r}")
    return dict(zip(names, values, strict=True))


def join(states: Sequence[Mapping[str, str]], stats: Sequence[Mapping[str, str]]) -> Iterator[Server]:
    """One Server per row of the state table, with what `show stat` knows of it."""
    by_ref = {Ref(row["pxname"], row["svname"]): row for row in stats if row["type"] == "2"}
    for state in states:
        ref = Ref(state["be_name"], state["srv_name"])
        try:
            yield _server(ref, state, by_ref.get(ref, {}))
        except (KeyError, ValueError) as error:
            raise BalancerError(f"HAProxy's tables on {ref} cannot be read: {error!r}") from error


def algorithms(stats: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Pool -> algorithm, where the socket's level shows it."""
    return {row["pxname"]: row["algo"] for row in stats if row["type"] == "1" and row.get("algo")}


def _server(ref: Ref, state: Mapping[str, str], stat: Mapping[str, str]) -> Server:
    return Server(
        ref=ref,
        op=int(state["srv_op_state"]),
        admin=int(state["srv_admin_state"]),
        uweight=int(state["srv_uweight"]),
        iweight=int(state["srv_iweight"]),
        check=int(state["srv_check_state"]),
        agent=int(state["srv_agent_state"]),
        address=_address(state["srv_addr"], state.get("srv_port", "0")),
        agent_status=stat.get("agent_status", "").removeprefix("* "),
        agent_health=_number(stat.get("agent_health")),
        agent_rise=_number(stat.get("agent_rise")),
        last_agent=stat.get("last_agt", ""),
        check_status=stat.get("check_status", "").removeprefix("* "),
        check_health=_number(stat.get("check_health")),
        check_rise=_number(stat.get("check_rise")),
        last_check=stat.get("last_chk", ""),
        tracked=stat.get("tracked", ""),
        backup=stat.get("bck") == "1",
        in_flight=_number(stat.get("scur")),
        counters=Counters(
            requests=_number(stat.get("req_tot")),
            connect_errors=_number(stat.get("econ")),
            response_errors=_number(stat.get("eresp")),
            retries=_number(stat.get("wretr")),
            status_5xx=_number(stat.get("hrsp_5xx")),
        ),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _address(host: str, port: str) -> Address | None:
    if port == "0" or not port.isdigit() or not 1 <= int(port) <= 65535:
        return None
    try:
        return Address(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        return None


_WORKER = re.compile(r"\A(\d+)\s+worker\b")


def parse_old_workers(text: str) -> tuple[int, ...]:
    """Pids of workers of earlier configurations that still run, from the master's `show proc`."""
    _, found, rest = text.partition("# old workers")
    if not found:
        return ()
    lines = rest.partition("\n#")[0].splitlines()
    return tuple(int(match[1]) for line in lines if (match := _WORKER.match(line)))


__all__ = ["Server", "Table", "algorithms", "join", "parse_old_workers", "parse_process", "parse_states", "parse_stats"]
