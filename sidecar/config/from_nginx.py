"""What an nginx.conf says that matters to us: its upstreams, whether each includes a file of ours already, and who uses it.

Follows `include`; never writes. The edit that is left to a person is spelled out with file, line and text.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.config.draft import Draft, DraftError, ServiceDraft, checked_probe, service_name
from sidecar.config.models import POOL_NAME

MAX_FILE_BYTES = 4 << 20
MAX_FILES = 2000
MAX_DEPTH = 20
DEFAULT_FOLDER = "sidecar.d"

_PASSES = frozenset({"proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass"})
_HTTP_SCHEMES = {"http": "http", "https": "https", "grpc": "grpc", "grpcs": "grpcs"}
_TOKEN = re.compile(
    r"""
    \s+ | \#[^\n]*
    | (?P<mark>[;{}])
    | "(?P<double>(?:[^"\\]|\\.)*)"
    | '(?P<single>(?:[^'\\]|\\.)*)'
    | (?P<word>(?:\$\{[^}\s]*\}|\\.|[^\s;{}])+)
    """,
    re.S | re.X,
)


@dataclass
class Directive:
    """One directive: its words, where it begins and ends, and what stands in its braces (None = it ends with `;`)."""

    words: tuple[str, ...]
    file: Path
    line: int
    last_line: int = 0
    block: list[Directive] | None = None

    @property
    def name(self) -> str:
        return self.words[0] if self.words else ""


@dataclass
class Upstream:
    """One upstream: its own `server` lines, and those that it includes."""

    name: str
    kind: str
    directive: Directive
    servers: list[Directive] = field(default_factory=list)
    included: list[tuple[Directive, Path]] = field(default_factory=list)


@dataclass(frozen=True)
class Use:
    """Somebody passes requests to an upstream: the scheme, and the first plain `server_name` around it."""

    scheme: str
    host: str


def draft_nginx(path: Path) -> Draft:
    """A draft from an nginx.conf; DraftError if it cannot be read or has no upstreams."""
    path = path.absolute()
    reader = _Reader(path)
    tree = reader.file(path, 0)
    uses: dict[str, list[Use]] = {}
    upstreams = list(_upstreams(tree, reader))
    _uses(tree, "", uses)
    if not upstreams:
        raise DraftError(f"{path}: no `upstream` block found; name the nginx.conf that holds or includes them")
    folder = _folder(upstreams, path)
    services: list[ServiceDraft] = []
    remarks = list(reader.remarks)
    for upstream in upstreams:
        if upstream.name in {known.pool for known in services}:
            place = f"{upstream.directive.file}:{upstream.directive.line}"
            remarks.append(f"upstream {upstream.name}: there are several of this name; the one at {place} was left out: rename one")
        elif not re.fullmatch(POOL_NAME, upstream.name):
            remarks.append(f"upstream {upstream.name!r}: a name that cannot be driven; rename it to include it")
        elif upstream.servers and all(server.words[1].startswith("unix:") for server in upstream.servers):
            remarks.append(f"upstream {upstream.name}: left out, for all its servers are unix sockets, which cannot be probed or taken out")
        else:
            service, more = _service(upstream, uses.get(upstream.name, []), {known.name for known in services})
            services.append(service)
            remarks += [*more, *_edit(upstream, folder)]
    if not services:
        raise DraftError(f"{path}: none of its upstreams can be driven: " + "; ".join(remarks))
    remarks.append(
        "changing a server means a reload: it needs root, or `reload: [argv…]` with a command that the sidecar's user may run; "
        "idle client connections are closed by each"
    )
    options: dict[str, Any] = {"plugin": "nginx", "config": str(path), "servers_dir": str(folder)}
    hints = [
        "reload: signal   # HUP to the master; or a command, as [sudo, -n, systemctl, reload, nginx]",
        "traffic: {syslog: 127.0.0.1:8652}   # real requests: add the `log_format` and `access_log` of deploy/nginx/nginx.conf to http",
    ]
    return Draft(str(path), "web", options, services, hints, remarks)


# ---- reading ----


class _Reader:
    """Reads files and what they include. Owns the count of files, those being read now, and the remarks."""

    def __init__(self, root: Path) -> None:
        self.folder = root.absolute().parent
        self.remarks: list[str] = []
        self.files = 0
        self.open: list[Path] = []

    def file(self, path: Path, depth: int) -> list[Directive]:
        """The directives of a file, its includes in their place. DraftError for the first file, a remark for an included one."""
        self.files += 1
        try:
            with path.open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            cure = (
                "name the nginx.conf that Nginx runs with" if isinstance(error, FileNotFoundError) else "run init as a user who may read it"
            )
            message = f"{path}: {getattr(error, 'strerror', None) or error}; {cure}"
            if depth == 0:
                raise DraftError(message) from error
            self.remarks.append(message)
            return []
        if len(raw) > MAX_FILE_BYTES:
            raise DraftError(f"{path}: bigger than {MAX_FILE_BYTES >> 20} MiB: that is no nginx configuration")
        self.open.append(path)
        expanded = list(self._expanded(self._directives(tokens(raw.decode("utf-8", "replace")), path), depth))
        self.open.pop()
        return expanded

    def _directives(self, stream: Iterator[tuple[str, bool, int]], path: Path) -> list[Directive]:
        root = Directive((), path, 1, 1, [])
        stack = [root]
        words: list[str] = []
        first = 1
        for text, is_mark, line in stream:
            first = first if words else line
            if not is_mark:
                words.append(text)
                continue
            block = stack[-1].block
            if text == "}":
                if len(stack) > 1:
                    stack.pop().last_line = line
            elif words and block is not None:
                directive = Directive(tuple(words), path, first, line, [] if text == "{" else None)
                block.append(directive)
                if text == "{":
                    stack.append(directive)
            words = []
        if len(stack) > 1:
            self.remarks.append(f"{path}:{stack[-1].line}: `{stack[-1].name} {{` is never closed; `nginx -t` will say more")
        return root.block or []

    def included(self, directive: Directive) -> list[Path]:
        """The files that an `include` names, in order; from the main file's folder, as Nginx reads them."""
        if len(directive.words) < 2 or "\0" in directive.words[1]:
            return []
        pattern = str(self.folder / directive.words[1])
        return [Path(name) for name in (sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern])]

    def _expanded(self, block: Sequence[Directive], depth: int) -> Iterator[Directive]:
        """A block with the directives of its includes in their place; an upstream's includes stay, they are what we look for."""
        for directive in block:
            if directive.name == "include" and depth < MAX_DEPTH and self.files < MAX_FILES:
                for path in self.included(directive):
                    if path not in self.open:  # a file that includes itself says nothing new
                        yield from self.file(path, depth + 1)
                continue
            if directive.block is not None and directive.name != "upstream":
                directive.block = list(self._expanded(directive.block, depth))
            yield directive


def tokens(text: str) -> Iterator[tuple[str, bool, int]]:
    """Words and marks (`;`, braces) with their line; comments and blanks are left out.

    >>> [token for token, _, _ in tokens('server "10.0.0.1:80" weight=2; # x')]
    ['server', '10.0.0.1:80', 'weight=2', ';']
    """
    line = position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:  # a quote that is never closed
            return
        here = line + 1
        line += found.group().count("\n")
        position = found.end()
        if found["mark"]:
            yield found["mark"], True, here
        elif (word := next((found[name] for name in ("double", "single", "word") if found[name] is not None), None)) is not None:
            yield word, False, here


def _upstreams(tree: Sequence[Directive], reader: _Reader, kind: str = "http") -> Iterator[Upstream]:
    """Every upstream of `http` and `stream`, and of a file that is itself a part of one."""
    for directive in tree:
        if directive.name == "upstream" and len(directive.words) > 1 and directive.block is not None:
            yield _upstream(directive, kind, reader)
        elif directive.name in ("http", "stream") and directive.block is not None:
            yield from _upstreams(directive.block, reader, directive.name)


def _upstream(directive: Directive, kind: str, reader: _Reader) -> Upstream:
    upstream = Upstream(directive.words[1], kind, directive)
    for inner in directive.block or []:
        if inner.name == "server" and len(inner.words) > 1:
            upstream.servers.append(inner)
        elif inner.name == "include":
            upstream.included += [(inner, path) for path in reader.included(inner)]
    return upstream


def _uses(tree: Sequence[Directive], host: str, uses: dict[str, list[Use]]) -> None:
    """Collects who passes to which upstream, with the server name around it."""
    names = [word for directive in tree if directive.name == "server_name" for word in directive.words[1:]]
    host = next((name for name in names if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name)), host)
    for directive in tree:
        if directive.name in _PASSES and len(directive.words) > 1:
            found = re.match(r"(?:(\w+)://)?([^/$:]+)", directive.words[1])
            if found is not None:
                scheme = found.group(1) or {"grpc_pass": "grpc", "proxy_pass": "tcp"}.get(directive.name, "tcp")
                uses.setdefault(found.group(2), []).append(Use(scheme if directive.name in ("proxy_pass", "grpc_pass") else "tcp", host))
        _uses(directive.block or [], host, uses)


# ---- one upstream ----


def _folder(upstreams: Sequence[Upstream], path: Path) -> Path:
    """The folder of files of ours that upstreams include already, else `sidecar.d` beside the main file."""
    for upstream in upstreams:
        for _, included in upstream.included:
            if included.name == f"{upstream.name}.conf" and not upstream.servers:
                return included.parent
    return path.parent / DEFAULT_FOLDER


def _service(upstream: Upstream, uses: Sequence[Use], taken: set[str]) -> tuple[ServiceDraft, list[str]]:
    where = f"upstream {upstream.name}"
    schemes = {use.scheme for use in uses}
    hosts = {use.host for use in uses if use.host}
    probe: dict[str, Any]
    hints: list[str] = []
    remarks: list[str] = []
    if upstream.kind == "stream" or (schemes and not schemes & set(_HTTP_SCHEMES)):
        probe = {"tcp": True}
        remarks.append(f"{where}: not spoken to by HTTP, so only a TCP probe was written: think of `command:` or `tls:`")
    elif schemes and schemes <= {"grpc", "grpcs"}:
        probe = {"grpc": "", **({"tls": True} if "grpcs" in schemes else {})}
    else:
        probe = {"https" if "https" in schemes else "http": "/", **({"host": hosts.pop()} if len(hosts) == 1 else {})}
        hints.append("Nginx names no health path: choose one that fails when the instance cannot serve, as /health")
        remarks.append(f"{where}: the probe asks for `/`, a guess: name the path that tells health")
    if {"https", "tls"} & set(probe):
        hints.append(
            "Nginx does not verify upstream certificates unless told; the probe does: add `tls: {verify: false}` or `tls: {ca: FILE}`"
        )
    probe_ok, more = checked_probe(probe, where)
    place = f"{upstream.directive.file.name}:{upstream.directive.line}"
    names = ", ".join(server.words[1] for server in upstream.servers[:6]) or "its servers come from an included file"
    draft = ServiceDraft(service_name(upstream.name, taken), upstream.name, probe_ok, comments=[f"{where}, {place}: {names}"], hints=hints)
    return draft, [*remarks, *more, *_cautions(upstream)]


def _cautions(upstream: Upstream) -> list[str]:
    where = f"upstream {upstream.name}"
    told = []
    for server in upstream.servers:
        if server.words[1].startswith("unix:"):
            told.append(f"{where}: {server.words[1][:60]} is a unix socket, which cannot be probed or taken out; leave it outside the file")
    for directive in upstream.directive.block or []:
        if directive.name in ("sticky", "ip_hash"):
            told.append(f"{where}: `{directive.name}` ties users to a server; taking it out moves them")
    return told


def _edit(upstream: Upstream, folder: Path) -> list[str]:
    """What a person has to change so that we may drive the upstream; nothing if it includes our file already."""
    where = f"upstream {upstream.name}"
    target = folder / f"{upstream.name}.conf"
    wanted = [path for _, path in upstream.included if path == target]
    movable = [server for server in upstream.servers if not server.words[1].startswith("unix:")]
    lines = [f"{' '.join(map(_quoted, server.words))};" for server in movable]
    if wanted and not lines:
        return [] if target.exists() else [f"{where}: {target} is included but missing: create it with one `server ADDRESS;` line each"]
    others = [path for _, path in upstream.included if path != target]
    if not lines and others:
        return [f"{where}: its servers stand in {others[0]}: move them to {target} and include that instead"]
    if not lines:
        return [f"{where}: no servers that can be moved; it stays as it is"]
    first, last = movable[0], movable[-1]
    span = f"line {first.line}" if first.line == last.last_line else f"lines {first.line} to {last.last_line}"
    return [
        f"{where}: 1. write {target} (mode 644, owned by the sidecar's user), one server a line: "
        f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > {shlex.quote(str(target))}  "
        f"2. in {first.file}, replace its server {span} by: include {target};  3. nginx -t && nginx -s reload"
    ]


def _quoted(word: str) -> str:
    return f'"{word}"' if re.search(r"[\s;{}\"']", word) else word
