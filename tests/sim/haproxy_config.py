"""What a simulated HAProxy takes from a configuration: proxies in order, their servers, sockets, the state file. The rest is skipped."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.sim.haproxy_server import Admin, Check, Checker, Op, Server

WEIGHTED = ("roundrobin", "leastconn", "random", "first")
"""Algorithms whose weights may change while they run; so may those of `hash-type consistent`."""

SHOWN_AS = {"random": "unknown"}
"""How `show stat` names an algorithm, where it is not its own name."""

FLAGS = frozenset({"check", "agent-check", "backup", "disabled", "enabled", "check-ssl", "ssl", "no-check", "no-agent-check"})
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
FIRST_NUMBER = 2
"""Of the first proxy of a configuration."""


class Unloadable(ValueError):
    """The configuration is wrong: a start fails, a reload keeps the old worker."""


@dataclass(slots=True)
class Proxy:
    """One `frontend`, `backend` or `listen`."""

    name: str
    number: int
    has_servers: bool
    mode: str = "http"
    algorithm: str = "roundrobin"
    hash_type: str = "map-based"
    loads_state: bool = False
    is_http_check: bool = False
    servers: dict[str, Server] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    """Of its `default-server`."""

    @property
    def is_dynamic(self) -> bool:
        return self.algorithm in WEIGHTED or self.hash_type == "consistent"


@dataclass(slots=True)
class Config:
    """Proxies by name, in order; `levels`: of the `stats socket`s by their paths."""

    proxies: dict[str, Proxy] = field(default_factory=dict)
    levels: dict[str, str] = field(default_factory=dict)
    threads: int = 1


def parse(text: str) -> Config:
    """The configuration. Unloadable when it has what HAProxy would refuse and we look for."""
    config, defaults = Config(), Proxy("", 0, True)
    section: Proxy | None = None
    tracking: list[tuple[Proxy, Server, str]] = []
    for kind, words in _lines(text):
        if kind == "global":
            _global(config, words)
        elif kind == "defaults":
            defaults = Proxy("", 0, True) if words[0] == "defaults" else defaults
            _common(defaults, words)
        elif words[0] == kind:
            section = _new_proxy(config, defaults, words)
        elif section is not None:
            _common(section, words)
            if words[0] == "server":
                name, server, track = new_server(section, words[1:])
                if name in section.servers:
                    raise Unloadable(f"server {section.name}/{name} stands twice")
                section.servers[name] = server
                if track:
                    tracking.append((section, server, track))
    for proxy, server, track in tracking:
        follow(config, proxy, server, track)
    return config


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    kind = ""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if not line[0].isspace():
            kind = words[0]
            if kind not in ("global", "defaults", "frontend", "backend", "listen", "resolvers", "peers", "userlist", "program", "cache"):
                raise Unloadable(f"unknown section {kind!r}")
        yield kind, words


def _global(config: Config, words: list[str]) -> None:
    if words[:2] == ["stats", "socket"]:
        level = words[words.index("level") + 1] if "level" in words else "operator"
        config.levels[words[2]] = level
    elif words[0] == "nbthread":
        config.threads = int(words[1])


def _new_proxy(config: Config, defaults: Proxy, words: list[str]) -> Proxy:
    kind, name = words[0], words[1]
    proxy = Proxy(
        name, FIRST_NUMBER + len(config.proxies), kind != "frontend", defaults.mode, defaults.algorithm, defaults.hash_type,
        defaults.loads_state, defaults.is_http_check, options=defaults.options,
    )  # fmt: skip
    if name in config.proxies:
        raise Unloadable(f"proxy {name} stands twice")
    config.proxies[name] = proxy
    return proxy


def _common(proxy: Proxy, words: list[str]) -> None:
    match words:
        case ["mode", mode]:
            proxy.mode = mode
        case ["balance", algorithm, *_]:
            proxy.algorithm = algorithm.partition("(")[0]
        case ["hash-type", kind, *_]:
            proxy.hash_type = kind
        case ["load-server-state-from-file", where]:
            proxy.loads_state = where == "global"
        case ["option", "httpchk", *_]:
            proxy.is_http_check = True
        case ["default-server", *options]:
            proxy.options += tuple(options)


def new_server(proxy: Proxy, words: list[str]) -> tuple[str, Server, str]:
    """A server from what stands behind `server`: its name, itself, and the name of the one it tracks. Unloadable: an unknown word."""
    name, address = words[0], words[1]
    options = dict(_options((*proxy.options, *words[2:])))
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "0")
    number = int(options.get("id", "0")) or 1 + max((server.number for server in proxy.servers.values()), default=0)
    weight = int(options.get("weight", "1"))
    server = Server(
        proxy.name, name, number, _ip(host), int(port), proxy.is_dynamic, weight, weight, weight, weight, is_backup="backup" in options,
        maxconn=int(options.get("maxconn", "0")), has_own_number="id" in options, hostname="" if _is_ip(host) else host,
    )  # fmt: skip
    _checks(server, options)
    if "disabled" in options:
        server.admin = server.next_admin = Admin.FORCED_MAINT | Admin.CONFIGURED
        server.op = server.next_op = Op.STOPPED
        server.check.state |= Check.PAUSED
        server.check.health = 0
    return name, server, options.get("track", "")


def _options(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(words):
        word = words[at]
        if word in FLAGS:
            yield word, ""
            at += 1
        elif word in _KNOWN and at + 1 < len(words):
            yield word, words[at + 1]
            at += 2
        else:
            raise Unloadable(f"unknown keyword '{word}'.")


_WITH_VALUE = (
    "weight inter fastinter downinter rise fall agent-inter agent-addr agent-port agent-send addr port id maxconn track slowstart "
    "cookie on-marked-down on-marked-up observe error-limit init-addr resolvers"
)
_KNOWN = frozenset(_WITH_VALUE.split())


def _checks(server: Server, options: Mapping[str, str]) -> None:
    own, agent = server.check, server.agent
    own.rise, own.fall = int(options.get("rise", "2")), int(options.get("fall", "3"))
    own.health, agent.health = own.rise, agent.rise
    own.inter_s = seconds(options.get("inter", "2s"))
    own.fast_s, own.down_s = seconds(options.get("fastinter", "0")), seconds(options.get("downinter", "0"))
    agent.inter_s = seconds(options.get("agent-inter", "2s"))
    own.host = agent.host = options.get("addr", "")
    own.port = agent.port = int(options.get("port", "0"))
    agent.host, agent.port = options.get("agent-addr", agent.host), int(options.get("agent-port", agent.port))
    agent.send = options.get("agent-send", "").replace("\\n", "\n")
    if "check" in options:
        own.state = Check.CONFIGURED | Check.ENABLED
    if "agent-check" in options:
        agent.state = Check.CONFIGURED | Check.ENABLED | Check.AGENT


def follow(config: Config, proxy: Proxy, server: Server, track: str) -> None:
    """Makes a server track another, named `SERVER` or `POOL/SERVER`. Unloadable when there is none that is checked."""
    pool, _, name = track.rpartition("/")
    leader = config.proxies.get(pool or proxy.name, proxy).servers.get(name)
    if leader is None or not (leader.check.state | leader.agent.state or leader.tracked):
        raise Unloadable(f"unable to find required server '{name}' for tracking")
    server.tracked = leader
    leader.trackers.insert(0, server)


def seconds(text: str) -> float:
    """`500` (milliseconds), `500ms`, `2s`, `1h`."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(digits) * UNITS[text[len(digits) :] or "ms"]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _ip(host: str) -> str:
    """The address as HAProxy shows it; a name is taken for this machine, the only one a test resolves."""
    return str(ipaddress.ip_address(host.strip("[]"))) if _is_ip(host) else "127.0.0.1"


__all__ = ["SHOWN_AS", "Checker", "Config", "Proxy", "Unloadable", "follow", "new_server", "parse", "seconds"]
