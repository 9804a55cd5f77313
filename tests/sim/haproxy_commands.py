"""The runtime commands of a simulated HAProxy: words in, the exact answer out. Pure.

Texts and their line ends are HAProxy's own, 2.6's slips included: an error that lacks its line feed there ends in one, not two.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.sim import haproxy_tables as tables
from tests.sim.haproxy_config import Config, Proxy, Unloadable, follow, new_server
from tests.sim.haproxy_server import Admin, Check, Checker, Op, Server

LEVELS = ("user", "operator", "admin")
HELP = "  help [<command>]                        : list matching or all commands\n"
USAGE = (
    "usage: set server <backend>/<server> addr | agent | agent-addr | agent-port | agent-send | check-addr | check-port | fqdn | health "
    "| ssl | state | weight\n"
)
STATIC = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.\n"
MOST_WEIGHT = 256
_NUMBER = re.compile(r"\s*([+-]?\d+)")


@dataclass(slots=True)
class Worker:
    """One process: what it serves and what it was told. `old`: a later one has taken over, and it finishes what it has."""

    version: str
    config: Config
    pid: int
    started: float
    epoch: float = 0.0
    """Seconds since the epoch at monotonic 0."""
    old: bool = False
    traffic: dict[Server, tables.Traffic] = field(default_factory=dict)
    rows: tables.Rows = field(default_factory=dict)
    cut: list[Server] = field(default_factory=list)
    """Servers whose sessions were shut down, in order."""

    def answer(self, line: bytes, now: float, level: str = "admin") -> bytes:
        """What a fresh connection reads until its end, after sending this; `level`: the socket's."""
        talk = _Talk(self, now, level)
        return "".join(talk.part(command) for command in _commands(line.decode("utf-8", "surrogateescape"))).encode(
            "utf-8", "surrogateescape"
        )


def _commands(text: str) -> Iterator[str]:
    """Split at line feeds and semicolons that no backslash hides."""
    part = ""
    escaped = False
    for char in text:
        if char in ";\n" and not escaped:
            yield part.removesuffix("\r") if char == "\n" else part
            part = ""
        else:
            part += char
        escaped = char == "\\" and not escaped


class _Said(Exception):
    """A command ends with this text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Talk:
    """One connection; owns its level, which it may lower. What `show stat` shows goes by the socket's."""

    def __init__(self, worker: Worker, now: float, level: str) -> None:
        self.worker, self.now, self.level, self.socket_level = worker, now, level, level

    def part(self, text: str) -> str:
        words = [re.sub(r"\\(.?)", r"\1", word) for word in re.findall(r"(?:\\.|[^ \t\\])+", text)]
        if not words and self.worker.version != "2.6":
            return "\n"
        for verb, act in _VERBS.items():
            if tuple(words[: len(verb)]) == verb:
                try:
                    said = act(self, words[len(verb) :])
                except _Said as end:
                    said = end.text
                return self._ended(said)
        return self._ended(self._unknown(words))

    def _ended(self, said: str) -> str:
        """2.6 adds one line feed to whatever there is, 2.8 completes the line first."""
        if said and not said.endswith("\n") and self.worker.version != "2.6":
            said += "\n"
        return said + "\n"

    def _unknown(self, words: Sequence[str]) -> str:
        if not words:
            return f"Unknown command. Please enter one of the following commands only:\n{HELP}"
        which = "" if self.worker.version == "2.6" else f": '{words[0]}'"
        return f"Unknown command{which}, but maybe one of the following ones is a better match:\n{HELP}"

    # ---- finding ----

    def _admin(self) -> None:
        if self.level != "admin":
            raise _Said("Permission denied\n")

    def _find(self, words: Sequence[str], needs_admin: bool = True) -> Server:
        if needs_admin:
            self._admin()
        name = words[0] if words else ""
        pool, _, server = name.partition("/")
        if not server or (needs_admin and not pool):
            raise _Said("Require 'backend/server'.\n")
        proxy = self._backend(pool, "No such backend.\n")
        if server not in proxy.servers:
            raise _Said("No such server.\n")
        if needs_admin and self.worker.old:
            raise _Said("Proxy is disabled.\n")
        found = proxy.servers[server]
        found.now = self.now
        return found

    def _backend(self, name: str, otherwise: str) -> Proxy:
        proxy = self.worker.config.proxies.get(name)
        if proxy is None or not proxy.has_servers:
            raise _Said(otherwise)
        return proxy

    # ---- looking ----

    def show_info(self, words: Sequence[str]) -> str:
        w = self.worker
        return tables.info(w.version, w.pid, w.epoch + w.started, w.epoch + self.now, w.config.threads, w.old)

    def show_level(self, words: Sequence[str]) -> str:
        return f"{self.level}\n"

    def lower_level(self, level: str) -> str:
        if LEVELS.index(level) > LEVELS.index(self.level):
            return "Permission denied\n"
        self.level = level
        return ""

    def show_states(self, words: Sequence[str]) -> str:
        proxies = self.worker.config.proxies.values()
        return tables.states([self._backend(words[0], "Can't find backend.\n")] if words else proxies, self.now)

    def show_conns(self, words: Sequence[str]) -> str:
        threads = self.worker.config.threads
        proxies = self.worker.config.proxies.values()
        chosen = [self._backend(words[0], "Can't find backend.\n")] if words else [p for p in proxies if p.has_servers]
        lines = [
            f"{p.name}/{s.name} {p.number}/{s.number} {s.host} {s.port} - {self._conns(s)}"
            for p in chosen for s in p.servers.values()
        ]  # fmt: skip
        head = "# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb idle_lim idle_cur"
        return "\n".join([f"{head} idle_per_thr[{threads}]", *lines, ""])

    def _conns(self, server: Server) -> str:
        if server.is_added and self.worker.version == "2.6":
            return f"0 {self._traffic(server).current} 0 0 0 0 0 0"
        return f"5000 {self._traffic(server).current} 0 0 0 0 -1 0{' 0' * self.worker.config.threads}"

    def _traffic(self, server: Server) -> tables.Traffic:
        return self.worker.traffic.get(server, tables.NO_TRAFFIC)

    def show_backend(self, words: Sequence[str]) -> str:
        return "\n".join(["# name", *(p.name for p in self.worker.config.proxies.values() if p.has_servers), ""])

    def show_stat(self, words: Sequence[str]) -> str:
        proxies = list(self.worker.config.proxies.values())
        types = -1
        if len(words) >= 3:
            chosen = [p for p in proxies if p.name == words[0] or str(p.number) == words[0]]
            number = _leading(words[0])
            if not chosen and not number:
                raise _Said("No such proxy.\n")
            if chosen or number > 0:
                proxies = chosen[:1]
            types = _leading(words[1])
        return tables.stats(self.worker.version, proxies, types, self.socket_level, self.now, self.worker.traffic, self.worker.rows)

    def get_weight(self, words: Sequence[str]) -> str:
        server = self._find(words, needs_admin=False)
        return f"{server.weight} (initial {server.first_weight})\n"

    # ---- telling ----

    def set_server(self, words: Sequence[str]) -> str:
        server = self._find(words)
        what, rest = (words[1] if len(words) > 1 else ""), list(words[2:])
        act = _SETTINGS.get(what)
        return act(self, server, rest) if act is not None else USAGE

    def set_weight(self, words: Sequence[str]) -> str:
        return self._weigh(self._find(words), words[1:])

    def _weigh(self, server: Server, rest: Sequence[str]) -> str:
        return weigh(server, rest[0] if rest else "")

    def _state(self, server: Server, rest: Sequence[str]) -> str:
        match rest[:1]:
            case ["ready"]:
                server.set_ready()
            case ["drain"]:
                server.set_drain()
            case ["maint"]:
                server.set_maint()
            case _:
                return "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"
        return ""

    def _health(self, server: Server, rest: Sequence[str]) -> str:
        if server.tracked is not None:
            return "cannot change health on a tracking server.\n"
        match rest[:1]:
            case ["up"]:
                server.check.health = server.check.best
                server.run()
            case ["stopping"]:
                server.check.health = server.check.best
                server.soften()
            case ["down"]:
                server.check.health = 0
                server.stop()
            case _:
                return "'set server <srv> health' expects 'up', 'stopping', or 'down'.\n"
        return ""

    def _agent(self, server: Server, rest: Sequence[str]) -> str:
        if not server.agent.is_on:
            return "agent checks are not enabled on this server.\n"
        match rest[:1]:
            case ["up"]:
                server.agent.health = server.agent.best
                server.run()
            case ["down"]:
                server.agent.health = 0
                server.stop()
            case _:
                return "'set server <srv> agent' expects 'up' or 'down'.\n"
        return ""

    def _addr(self, server: Server, rest: Sequence[str]) -> str:
        if not rest:
            return "set server <b>/<s> addr requires an address and optionally a port.\n"
        text = _move(server, rest[0], rest[2] if len(rest) > 2 and rest[1] == "port" else None)
        server.resolved()
        return f"{text} by 'stats socket command'\n"

    def _agent_addr(self, server: Server, rest: Sequence[str]) -> str:
        return self._point(server.agent, "agent", rest)

    def _check_addr(self, server: Server, rest: Sequence[str]) -> str:
        return self._point(server.check, "health", rest)

    def _point(self, checker: Checker, kind: str, rest: Sequence[str]) -> str:
        if not rest:
            return f"set server <b>/<s> {'check' if kind == 'health' else kind}-addr requires an address and optionally a port.\n"
        return _aim(checker, kind, rest[0], rest[2] if len(rest) > 2 and rest[1] == "port" else None)

    def _agent_port(self, server: Server, rest: Sequence[str]) -> str:
        return _aim(server.agent, "agent", None, rest[0]) if rest else "set server <b>/<s> agent-port requires a port.\n"

    def _check_port(self, server: Server, rest: Sequence[str]) -> str:
        return _aim(server.check, "health", None, rest[0]) if rest else "set server <b>/<s> check-port requires a port.\n"

    def _agent_send(self, server: Server, rest: Sequence[str]) -> str:
        if not server.agent.is_on:
            return "agent checks are not enabled on this server.\n"
        server.agent.send = rest[0] if rest else ""
        return ""

    def _fqdn(self, server: Server, rest: Sequence[str]) -> str:
        if not rest:
            return "set server <b>/<s> fqdn requires a FQDN.\n"
        return "set server <b>/<s> fqdn failed because no resolution is configured.\n"

    def _ssl(self, server: Server, rest: Sequence[str]) -> str:
        if server.is_added:
            return "'set server <srv> ssl' not supported on dynamic servers\n"
        return "'set server <srv> ssl' cannot be set.  default-server should define ssl settings\n"

    def set_maxconn(self, words: Sequence[str]) -> str:
        server, text = self._find(words), words[1] if len(words) > 1 else ""
        match = _NUMBER.match(text)
        if not text:
            return "Require <maxconn>.\n"
        if match is None:
            return "maxconn string empty or preceded by garbage"
        if text[match.end() :]:
            return "Trailing garbage in maxconn string"
        server.maxconn = int(match[1])
        return ""

    def enable_server(self, words: Sequence[str]) -> str:
        self._find(words).set_ready()
        return ""

    def disable_server(self, words: Sequence[str]) -> str:
        self._find(words).set_maint()
        return ""

    def enable_health(self, words: Sequence[str]) -> str:
        return _switch_on(self._find(words).check, "Health check was not configured on this server, cannot enable.\n")

    def enable_agent(self, words: Sequence[str]) -> str:
        return _switch_on(self._find(words).agent, "Agent was not configured on this server, cannot enable.\n")

    def disable_health(self, words: Sequence[str]) -> str:
        self._find(words).check.state &= ~Check.ENABLED
        return ""

    def disable_agent(self, words: Sequence[str]) -> str:
        self._find(words).agent.state &= ~Check.ENABLED
        return ""

    def shutdown_sessions(self, words: Sequence[str]) -> str:
        self.worker.cut.append(self._find(words))
        return ""

    # ---- servers that come and go ----

    def add_server(self, words: Sequence[str]) -> str:
        proxy, name = self._pair(words)
        if not proxy.is_dynamic:
            return "Backend must use a dynamic load balancing to support dynamic servers."
        taken = {server.number for server in proxy.servers.values()}
        try:
            _, server, track = new_server(Proxy("", 0, True), [name, *words[1:]])
            if name in proxy.servers:
                return "Already exists a server with the same name in backend.\n"
            if track:
                follow(self.worker.config, proxy, server, track)
        except Unloadable as fault:
            return f"{fault}\n"
        server.pool, server.is_dynamic_lb, server.is_added = proxy.name, True, True
        server.number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        server.op, server.admin = server.next_op, server.next_admin = Op.STOPPED, Admin.FORCED_MAINT
        server.check.health = server.agent.health = 0
        server.check.state &= ~Check.ENABLED
        server.agent.state &= ~Check.ENABLED
        server.share = server.next_share = 1
        server.weighs_in_maint = self.worker.version != "2.6"
        server.changed = self.now
        server.check.due, server.agent.due = self.now + server.check.inter_s, self.now + server.agent.inter_s
        proxy.servers[name] = server
        return "New server registered.\n"

    def del_server(self, words: Sequence[str]) -> str:
        proxy, name = self._pair(words)
        server = proxy.servers.get(name)
        if server is None:
            return "No such server."
        if server.trackers:
            return "This server cannot be removed at runtime due to other configuration elements pointing to it."
        if not server.admin & Admin.MAINT:
            return "Only servers in maintenance mode can be deleted."
        if self._traffic(server).current:
            return "Server still has connections attached to it, cannot remove it."
        if server.tracked is not None:
            server.tracked.trackers.remove(server)
        del proxy.servers[name]
        return "Server deleted."

    def _pair(self, words: Sequence[str]) -> tuple[Proxy, str]:
        self._admin()
        pool, _, name = (words[0] if words else "").partition("/")
        if not name:
            raise _Said("Require 'backend/server'.")
        return self._backend(pool, "No such backend."), name


def weigh(server: Server, text: str) -> str:
    """Another weight, absolute or `N%` of the first, rounded down; '' or why not."""
    match = _NUMBER.match(text)
    if not text:
        return "Require <weight> or <weight%>.\n"
    if match is None:
        return "Empty weight string empty or preceded by garbage"
    number, tail = int(match[1]), text[match.end() :]
    if tail == "%":
        if number < 0:
            return "Relative weight must be positive.\n"
        number = min(MOST_WEIGHT, server.first_weight * min(number, 25600) // 100)
    elif not 0 <= number <= MOST_WEIGHT:
        return "Absolute weight can only be between 0 and 256 inclusive.\n"
    elif tail:
        return "Trailing garbage in weight string"
    if number and number != server.first_weight and not server.is_dynamic_lb:
        return STATIC
    server.set_weight(number)
    return ""


def _leading(text: str) -> int:
    match = _NUMBER.match(text)
    return int(match[1]) if match else 0


def _switch_on(checker: Checker, otherwise: str) -> str:
    if not checker.state & Check.CONFIGURED:
        return otherwise
    checker.state |= Check.ENABLED
    return ""


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _move(server: Server, host: str, port: str | None) -> str:
    """Another address for a server, and HAProxy's words for what changed."""
    address = _address(host)
    if address is None:
        return f"Invalid addr '{host}'"
    said = "no need to change the addr" if address == server.host else f"IP changed from '{server.host}' to '{host}'"
    server.host = address
    if port is None:
        return said
    match = _NUMBER.match(port)
    if match is None:
        return f"{said}, problem converting port '{port}' to an int"
    sign = port[0] if port[0] in "+-" else ""
    if sign and not server.maps_ports and not server.check.port:
        return (
            f"{said}, can't change <port> to port map because it is incompatible with current health check port configuration "
            "(use 'port' statement from the 'server' directive."
        )
    before, now = server.port, int(match[1]) & 0xFFFF
    if before == now and (server.maps_ports or not sign):
        return f"{said}, no need to change the port"
    told = f"{said}, port changed from '{'+' * server.maps_ports}{before}' to '{sign}{now}'"
    server.port, server.maps_ports = now, bool(sign)
    return told


def _aim(checker: Checker, kind: str, host: str | None, port: str | None) -> str:
    """Another address for a check, all of it or nothing."""
    if not checker.is_on:
        return f"{kind} checks are not enabled on this server"
    address = _address(host) if host is not None else checker.host
    if address is None:
        return f"invalid addr '{host}'"
    if port is not None:
        if re.fullmatch(r"-?\d+", port) is None:
            return "provided port is not an integer"
        if not 0 <= int(port) <= 65535:
            return "provided port is invalid"
        checker.port = int(port)
    checker.host = address
    return ""


_VERBS: Mapping[tuple[str, ...], Callable[[_Talk, Sequence[str]], str]] = {
    ("show", "info"): _Talk.show_info,
    ("show", "stat"): _Talk.show_stat,
    ("show", "servers", "state"): _Talk.show_states,
    ("show", "servers", "conn"): _Talk.show_conns,
    ("show", "backend"): _Talk.show_backend,
    ("show", "cli", "level"): _Talk.show_level,
    ("operator",): lambda talk, words: talk.lower_level("operator"),
    ("user",): lambda talk, words: talk.lower_level("user"),
    ("get", "weight"): _Talk.get_weight,
    ("set", "weight"): _Talk.set_weight,
    ("set", "server"): _Talk.set_server,
    ("set", "maxconn", "server"): _Talk.set_maxconn,
    ("enable", "server"): _Talk.enable_server,
    ("disable", "server"): _Talk.disable_server,
    ("enable", "health"): _Talk.enable_health,
    ("disable", "health"): _Talk.disable_health,
    ("enable", "agent"): _Talk.enable_agent,
    ("disable", "agent"): _Talk.disable_agent,
    ("shutdown", "sessions", "server"): _Talk.shutdown_sessions,
    ("add", "server"): _Talk.add_server,
    ("del", "server"): _Talk.del_server,
}
_SETTINGS: Mapping[str, Callable[[_Talk, Server, Sequence[str]], str]] = {
    "weight": _Talk._weigh,
    "state": _Talk._state,
    "health": _Talk._health,
    "agent": _Talk._agent,
    "agent-addr": _Talk._agent_addr,
    "agent-port": _Talk._agent_port,
    "agent-send": _Talk._agent_send,
    "check-addr": _Talk._check_addr,
    "check-port": _Talk._check_port,
    "addr": _Talk._addr,
    "fqdn": _Talk._fqdn,
    "ssl": _Talk._ssl,
}

__all__ = ["Worker", "weigh"]
