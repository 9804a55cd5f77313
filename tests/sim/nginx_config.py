"""How a simulated nginx reads its configuration: the grammar, and of the meaning what upstreams need; it refuses in nginx's words. Pure.

Directives that neither our plugin nor an operator's upstream block needs are unknown here, though nginx knows them.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LONGEST = 4096
"""Bytes of a token, comments too."""

METHODS = frozenset({"ip_hash", "hash", "random", "least_conn"})
NO_BACKUP = frozenset({"ip_hash", "hash", "random"})
TIME = re.compile(r"(?:\d+(?:y|M|w|d|h|m(?!s)|s|ms)?)+\Z")
SIZE = re.compile(r"(\d+)([kKmM]?)\Z")
SMALLEST_ZONE = 8 * 4096
MOST = 2**63 - 1


class Emergency(Exception):
    """nginx refuses the configuration with this text, `in FILE:LINE` included where nginx adds it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One `server` of an upstream. `out`: '' or why it gets nothing new: `down`, `drain`; `late`: its name is resolved as nginx runs."""

    address: str
    weight: int = 1
    out: str = ""
    backup: bool = False
    late: bool = False


@dataclass(slots=True)
class Upstream:
    """One `upstream` block. `where`: file and line of its beginning."""

    name: str
    where: str
    peers: list[Peer] = field(default_factory=list)
    method: str = ""
    zone: str = ""
    singles: set[str] = field(default_factory=set)
    """Directives that may stand once, and did."""

    def shares(self) -> dict[str, int]:
        """What each address gets of new requests, in relation; {} = nobody serves, the client gets 502."""
        for group in (False, True):
            found: dict[str, int] = {}
            for peer in self.peers:
                if peer.backup is group and not peer.out:
                    found[peer.address] = found.get(peer.address, 0) + peer.weight
            if found:
                return found
        return {}


@dataclass(slots=True)
class Loaded:
    """A configuration that nginx takes."""

    upstreams: dict[str, Upstream] = field(default_factory=dict)
    listens: list[str] = field(default_factory=list)
    zones: dict[str, int] = field(default_factory=dict)
    workers: int = 1


def load(files: Mapping[str, str], config: str, version: str, resolves: Callable[[str], bool]) -> Loaded:
    """The configuration in these files. Emergency: nginx refuses it. `resolves`: whether a host name has an address."""
    reader = _Reader(files, config, version, resolves)
    reader.file(config, "main")
    reader.finish()
    return reader.loaded


@dataclass(frozen=True, slots=True)
class Statement:
    """The words of a directive; `end` is `;`, `{`, `}` or "" at the end of the file; `line` is where that stands."""

    words: tuple[str, ...]
    end: str
    line: int


_SPACE = " \t\r\n"
_ESCAPED = {'"': '"', "'": "'", "\\": "\\", "t": "\t", "r": "\r", "n": "\n"}


def statements(text: str, file: str) -> Iterator[Statement]:
    """The file in pieces, as nginx's own reader takes them, character by character."""
    data = text.encode("utf-8", "surrogateescape").decode("latin-1")
    at, line = 0, 1
    while True:
        words, end, at, line = _statement(data, at, line, file)
        yield Statement(tuple(words), end, line)
        if not end:
            return


def _statement(data: str, at: int, line: int, file: str) -> tuple[list[str], str, int, int]:
    words: list[str] = []
    while True:
        at, line = _skip(data, at, line, file)
        if at >= len(data):
            if words:
                raise Emergency(f'unexpected end of file, expecting ";" or "}}" in {file}:{line}')
            return words, "", at, line
        char = data[at]
        if char in ";{}":
            if (char == "}") is bool(words):
                raise Emergency(f'unexpected "{char}" in {file}:{line}')
            return words, char, at + 1, line
        word, end, at, line = _word(data, at, line, file)
        words.append(word)
        if end:
            return words, end, at, line


def _skip(data: str, at: int, line: int, file: str) -> tuple[int, int]:
    """Past white space and comments."""
    while at < len(data) and (data[at] in _SPACE or data[at] == "#"):
        if data[at] == "#":
            start = at
            while at < len(data) and data[at] != "\n":
                at += 1
            _check_length(data, start, at, line, file, "")
        elif data[at] == "\n":
            line += 1
            at += 1
        else:
            at += 1
    return at, line


def _word(data: str, at: int, line: int, file: str) -> tuple[str, str, int, int]:
    """One word from here, what ended it (`;` or `{`, or ""), and where the next begins."""
    quote = data[at] if data[at] in "\"'" else ""
    start, first = at + len(quote), line
    if quote:
        at += 1
    is_variable = False
    while at < len(data):
        char = data[at]
        line += char == "\n"
        if char == "\\":
            line += data[at + 1 : at + 2] == "\n"
            at += 2
            is_variable = False
            continue
        if is_variable and char == "{":
            at += 1
            continue
        if char == "$":
            is_variable = True
        else:
            is_variable = False
            if quote:
                if char == quote:
                    _check_length(data, start, at, first, file, quote)
                    return _after_quote(data, _unescaped(data[start:at]), at + 1, line, file)
            elif char in _SPACE or char in ";{":
                _check_length(data, start, at, first, file, "")
                return _unescaped(data[start:at]), char if char in ";{" else "", at + 1, line
        at += 1
    _check_length(data, start, at, first, file, quote)
    raise Emergency(f'unexpected end of file, expecting ";" or "}}" in {file}:{line}')


def _after_quote(data: str, word: str, at: int, line: int, file: str) -> tuple[str, str, int, int]:
    """A quoted word must be followed by space, an end, or `)`."""
    if at >= len(data):
        raise Emergency(f'unexpected end of file, expecting ";" or "}}" in {file}:{line}')
    char = data[at]
    if char in ";{":
        return word, char, at + 1, line
    if char in _SPACE:
        return word, "", at + 1, line + (char == "\n")
    if char == ")":
        return word, "", at, line
    raise Emergency(f'unexpected "{char}" in {file}:{line}')


def _check_length(data: str, start: int, end: int, line: int, file: str, quote: str) -> None:
    if end - start < LONGEST or start + LONGEST >= len(data):
        return
    if quote:
        raise Emergency(f'too long parameter, probably missing terminating "{quote}" character in {file}:{line}')
    raise Emergency(f'too long parameter "{data[start : start + 10]}..." started in {file}:{line}')


def _unescaped(raw: str) -> str:
    return re.sub(r"\\([\"'\\trn])", lambda match: _ESCAPED[match[1]], raw)


# ---- what directives there are ----

ANY = range(1, 10_000)
_Args = range | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a directive may stand, with how many words behind it, and whether with a block."""

    places: tuple[str, ...]
    args: _Args
    is_block: bool = False


_HTTP = ("http", "server", "location")
RULES: Mapping[str, Sequence[Rule]] = {
    "worker_processes": [Rule(("main",), (1,))],
    "user": [Rule(("main",), (1, 2))],
    "pid": [Rule(("main",), (1,))],
    "daemon": [Rule(("main",), (1,))],
    "worker_shutdown_timeout": [Rule(("main",), (1,))],
    "error_log": [Rule(("main", *_HTTP), ANY)],
    "events": [Rule(("main",), (0,), True)],
    "worker_connections": [Rule(("events",), (1,))],
    "http": [Rule(("main",), (0,), True)],
    "access_log": [Rule(_HTTP, ANY)],
    **{f"{kind}_temp_path": [Rule(_HTTP, range(1, 5))] for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")},
    "server": [Rule(("http",), (0,), True), Rule(("upstream",), ANY)],
    "listen": [Rule(("server",), ANY)],
    "server_name": [Rule(("server",), ANY)],
    "location": [Rule(("server", "location"), (1, 2), True)],
    "proxy_pass": [Rule(("location",), (1,))],
    "return": [Rule(("server", "location"), (1, 2))],
    "upstream": [Rule(("http",), (1,), True)],
    "zone": [Rule(("upstream",), (1, 2))],
    "keepalive": [Rule(("upstream",), (1,))],
    "keepalive_requests": [Rule((*_HTTP, "upstream"), (1,))],
    "keepalive_time": [Rule((*_HTTP, "upstream"), (1,))],
    "keepalive_timeout": [Rule(_HTTP, (1, 2)), Rule(("upstream",), (1,))],
    "ip_hash": [Rule(("upstream",), (0,))],
    "least_conn": [Rule(("upstream",), (0,))],
    "hash": [Rule(("upstream",), (1, 2))],
    "random": [Rule(("upstream",), (0, 1, 2))],
    "include": [Rule(("main", "events", "http", "server", "location", "upstream"), (1,))],
    "resolver": [Rule(_HTTP, ANY)],
}
NEWER: Mapping[str, Sequence[Rule]] = {
    "keepalive": [Rule(("upstream",), (1, 2))],
    "sticky": [Rule(("upstream",), range(2, 10_000))],
}
"""What 1.31 has instead or besides."""


class _Reader:
    """One reading of a configuration; owns what it has found."""

    def __init__(self, files: Mapping[str, str], config: str, version: str, resolves: Callable[[str], bool]) -> None:
        self.files, self.version, self.resolves = files, version, resolves
        self.home = posixpath.dirname(config)
        self.rules = RULES if version == "1.22" else {**RULES, **NEWER}
        self.loaded = Loaded()
        self.upstream: Upstream | None = None
        self.has_events = False

    # ---- the walk ----

    def file(self, path: str, place: str, where: str = "") -> None:
        if path not in self.files:
            raise Emergency(f'open() "{path}" failed (2: No such file or directory){where}')
        self._block(statements(self.files[path], path), path, place, is_file=True)

    def _block(self, source: Iterator[Statement], file: str, place: str, is_file: bool = False) -> int:
        """Takes statements to the end of the block; the line of its end."""
        for statement in source:
            at = f"in {file}:{statement.line}"
            if statement.end == "}":
                if is_file:
                    raise Emergency(f'unexpected "}}" {at}')
                return statement.line
            if not statement.end:
                if not is_file:
                    raise Emergency(f'unexpected end of file, expecting "}}" {at}')
                return statement.line
            rule = self._rule(statement, place, at)
            if rule.is_block:
                self._open(statement, source, file)
            else:
                self._directive(statement, place, at)
        raise AssertionError("a file ends with a statement that says so")

    def _rule(self, statement: Statement, place: str, at: str) -> Rule:
        name, *args = statement.words
        for rule in self.rules.get(name, ()):
            if place not in rule.places:
                continue
            if not rule.is_block and statement.end == "{":
                raise Emergency(f'directive "{name}" is not terminated by ";" {at}')
            if rule.is_block and statement.end != "{":
                raise Emergency(f'directive "{name}" has no opening "{{" {at}')
            if len(args) not in rule.args:
                raise Emergency(f'invalid number of arguments in "{name}" directive {at}')
            return rule
        if name in self.rules:
            raise Emergency(f'"{name}" directive is not allowed here {at}')
        raise Emergency(f'unknown directive "{name}" {at}')

    def _open(self, statement: Statement, source: Iterator[Statement], file: str) -> None:
        name, *args = statement.words
        if name != "upstream":
            self._block(source, file, name)
            self.has_events = self.has_events or name == "events"
            if name == "http":
                self._finish_http()
            return
        where = f"{file}:{statement.line}"
        if args[0] in self.loaded.upstreams:
            raise Emergency(f'duplicate upstream "{args[0]}" in {where}')
        self.upstream = self.loaded.upstreams[args[0]] = Upstream(args[0], where)
        end = self._block(source, file, "upstream")
        if not self.upstream.peers:
            raise Emergency(f"no servers are inside upstream in {file}:{end}")
        self.upstream = None

    def _directive(self, statement: Statement, place: str, at: str) -> None:
        name, *args = statement.words
        if name == "include":
            self._include(args[0], place, f" {at}")
        elif place == "upstream":
            self._of_upstream(name, args, at)
        elif name == "listen":
            self.loaded.listens.append(args[0])
        elif name == "worker_processes" and args[0].isdigit():
            self.loaded.workers = int(args[0])

    def _include(self, pattern: str, place: str, at: str) -> None:
        path = posixpath.join(self.home, pattern)
        if not re.search(r"[*?\[]", path):
            self.file(path, place, at)
            return
        for found in sorted(file for file in self.files if fnmatch.fnmatchcase(file, path) and file.count("/") == path.count("/")):
            if not posixpath.basename(found).startswith("."):
                self.file(found, place, at)

    # ---- upstreams ----

    def _of_upstream(self, name: str, args: Sequence[str], at: str) -> None:
        upstream = self.upstream
        assert upstream is not None, "an upstream's directives stand in one"
        if name == "server":
            upstream.peers.append(self._peer(upstream, args, at))
        elif name in METHODS:
            _check_method(name, args, at)
            upstream.method = name
        elif name == "zone":
            self._zone(upstream, args, at)
        elif name == "keepalive":
            self._keepalive(upstream, args, at)
        elif name.startswith("keepalive_"):
            if name in upstream.singles:
                raise Emergency(f'"{name}" directive is duplicate {at}')
            upstream.singles.add(name)
            if name == "keepalive_requests" and not _is_number(args[0]):
                raise Emergency(f'"{name}" directive invalid number {at}')
            if name != "keepalive_requests" and not _is_time(args[0]):
                raise Emergency(f'"{name}" directive invalid value {at}')

    def _keepalive(self, upstream: Upstream, args: Sequence[str], at: str) -> None:
        if "keepalive" in upstream.singles:
            raise Emergency(f'"keepalive" directive is duplicate {at}')
        if not _is_number(args[0]) or (self.version == "1.22" and int(args[0]) == 0):
            raise Emergency(f'invalid value "{args[0]}" in "keepalive" directive {at}')
        if len(args) > 1 and args[1] != "local":
            raise Emergency(f'invalid parameter "{args[1]}" {at}')
        upstream.singles.add("keepalive")

    def _zone(self, upstream: Upstream, args: Sequence[str], at: str) -> None:
        name, size = args[0], 0
        if not name:
            raise Emergency(f'invalid zone name "{name}" {at}')
        if len(args) > 1:
            match = SIZE.match(args[1])
            if match is None:
                raise Emergency(f'invalid zone size "{args[1]}" {at}')
            size = int(match[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[match[2].lower()]
            if size < SMALLEST_ZONE:
                raise Emergency(f'zone "{name}" is too small {at}')
        known = self.loaded.zones.get(name, 0)
        if known and size and known != size:
            raise Emergency(f'the size {size} of shared memory zone "{name}" conflicts with already declared size {known} {at}')
        self.loaded.zones[name] = known or size
        upstream.zone = name

    def _peer(self, upstream: Upstream, args: Sequence[str], at: str) -> Peer:
        name, *parameters = args
        weight, out, backup, resolve, service = 1, "", False, False, ""
        for parameter in parameters:
            key, equals, value = parameter.partition("=")
            is_known = _is_parameter(key + equals, value)
            if parameter == "backup" and upstream.method in NO_BACKUP:
                raise Emergency(f'balancing method does not support parameter "backup" {at}')
            if self.version != "1.22":
                if key + equals == "route=":
                    _check_route(value, at)
                    continue
                if key + equals == "service=" and not value:
                    raise Emergency(f"service is empty {at}")
                if parameter == "resolve" or key + equals == "service=":
                    resolve, service = resolve or parameter == "resolve", value if equals else service
                    continue
                if parameter == "drain":
                    out = "drain"
                    continue
            if not is_known:
                raise Emergency(f'invalid parameter "{parameter}" {at}')
            weight = int(value) if key == "weight" else weight
            out = "down" if parameter == "down" else out
            backup = backup or parameter == "backup"
        if service and not resolve:
            raise Emergency(f'service upstream "{name}" requires "resolve" parameter {at}')
        fault = self._fault(name, resolve)
        if fault:
            raise Emergency(f'{fault} in upstream "{name}" {at}')
        is_name = not (name.startswith(("[", "unix:")) or _is_v4(name.partition(":")[0]))
        has_port = re.search(r":\d+\Z", name) is not None and not name.endswith("]")
        if service and has_port:
            raise Emergency(f'service upstream "{name}" may not have port {at}')
        if service and not is_name:
            raise Emergency(f'service upstream "{name}" requires domain name {at}')
        address = name if has_port or name.startswith("unix:") else f"{name}:80"
        return Peer(address, weight, out, backup, resolve and is_name)

    def _fault(self, name: str, resolve: bool) -> str:
        """'' or what is wrong with an address."""
        if name.lower().startswith("unix:"):
            path = name[5:]
            return "no path in the unix domain socket" if not path else "too long path in the unix domain socket" if len(path) > 107 else ""
        if name.startswith("["):
            return _v6_fault(name)
        if "/" in name or "?" in name:
            return "invalid host"
        host, colon, port = name.partition(":")
        if colon and not (_is_number(port) and 1 <= int(port) <= 65535):
            return "invalid port"
        if not host:
            return "no host"
        return "" if resolve or _is_v4(host) or self.resolves(host) else "host not found"

    def _finish_http(self) -> None:
        """What nginx finds wrong at the end of `http`."""
        for upstream in self.loaded.upstreams.values():
            where = f'upstream "{upstream.name}" in {upstream.where}'
            if any(peer.late for peer in upstream.peers):
                if upstream.zone:
                    raise Emergency(f"no resolver defined to resolve names at run time in {where}")
                raise Emergency(f"resolving names at run time requires {where} to be in shared memory")
            if all(peer.backup for peer in upstream.peers):
                raise Emergency(f"no servers in {where}")

    def finish(self) -> None:
        """What nginx finds wrong only when it has read all."""
        if not self.has_events:
            raise Emergency('no "events" section in configuration')
        for name, size in self.loaded.zones.items():
            if not size:
                raise Emergency(f'zero size shared memory zone "{name}"')


def _check_method(name: str, args: Sequence[str], at: str) -> None:
    wanted = {"hash": ("", "consistent"), "random": ("two", "least_conn")}.get(name, ())
    for arg, want in zip(args, wanted, strict=False):
        if want and arg != want:
            raise Emergency(f'invalid parameter "{arg}" {at}')


def _is_parameter(key: str, value: str) -> bool:
    """Whether both versions take this parameter of a `server`; `key` with its `=`."""
    if key == "weight=":
        return _is_number(value) and int(value) > 0
    if key in ("max_conns=", "max_fails="):
        return _is_number(value)
    if key == "fail_timeout=":
        return _is_time(value) and "ms" not in value
    return key in ("backup", "down")


def _check_route(value: str, at: str) -> None:
    if not value:
        raise Emergency(f"route is empty {at}")
    if len(value) > 32:
        raise Emergency(f"route is longer than 32 {at}")


def _v6_fault(name: str) -> str:
    host, bracket, rest = name[1:].partition("]")
    if not bracket or (rest and not rest.startswith(":")):
        return "invalid host"
    if rest and not (_is_number(rest[1:]) and 1 <= int(rest[1:]) <= 65535):
        return "invalid port"
    if not host:
        return "no host"
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return "invalid IPv6 address"
    return ""


def _is_v4(host: str) -> bool:
    """As nginx reads it: an empty part is 0."""
    parts = host.split(".")
    return len(parts) == 4 and all(not part or (part.isascii() and part.isdigit() and int(part) < 256) for part in parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= MOST


def _is_time(text: str) -> bool:
    """`10`, `10s`, `1h30m`: units from the largest to the smallest."""
    if TIME.match(text) is None:
        return False
    order = ("y", "M", "w", "d", "h", "m", "s", "ms")
    units = [order.index(unit or "s") for _, unit in re.findall(r"(\d+)(y|M|w|d|h|ms|m|s)?", text)]
    return all(first < second for first, second in pairwise(units))


__all__ = ["Emergency", "Loaded", "Peer", "Statement", "Upstream", "load", "statements"]
