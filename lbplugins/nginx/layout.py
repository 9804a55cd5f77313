"""What an nginx configuration says about itself: its upstreams and which of our files each includes, its pid file and its error log."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbplugins.api import BalancerError
from lbplugins.nginx.files import read_bytes
from lbplugins.nginx.servers import HASHING, address_of
from lbplugins.nginx.syntax import Statement, SyntaxFault, statements
from lbplugins.values import Address

MAX_FILES = 5_000
MAX_DEPTH = 20
MAX_FILE_BYTES = 16 << 20
POOL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Outside:
    """A server that stands in the operator's own configuration, not in our file: seen, never written. `where`: file and line."""

    name: str
    address: Address | None
    weight: int
    is_out: bool
    where: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """One upstream. `file`: that of ours which it includes, or, `is_moved` False, would include once its servers are moved there."""

    name: str
    file: Path
    hashes: bool
    outside: tuple[Outside, ...]
    where: str
    shared_with: str = ""
    is_moved: bool = True

    @property
    def to_do(self) -> str:
        """What makes it ours to drive, where its servers stand in the operator's own configuration."""
        return f"move the `server` lines of `upstream {self.name}` ({self.where}) to {self.file}; put in their place: include {self.file};"


@dataclass(frozen=True, slots=True)
class Layout:
    """`upstreams`: those that include a file of ours; `unmoved`: the others, which can only be looked at.

    `pid_file`, `error_logs`: as written, possibly relative to nginx's prefix. `signature`: changes when any file read did.
    """

    upstreams: dict[str, Upstream]
    unmoved: dict[str, Upstream]
    pid_file: str | None
    error_logs: tuple[str, ...]
    signature: tuple[tuple[str, int, int, int], ...]


def scan(config: Path, servers_dir: Path) -> Layout:
    """The configuration and all it includes, but for the files in `servers_dir`. BalancerError: what cannot be read or driven."""
    reader = _Reader(config, servers_dir)
    reader.read(config, 0)
    found: dict[str, Upstream] = {}
    for upstream in reader.upstreams:
        other = next((u.name for u in reader.upstreams if u is not upstream and u.file == upstream.file), "")
        found[upstream.name] = Upstream(upstream.name, upstream.file, upstream.hashes, upstream.outside, upstream.where, shared_with=other)
    unmoved = {upstream.name: upstream for upstream in reversed(reader.unmoved) if upstream.name not in found}
    if not found and not unmoved:
        raise BalancerError(f"{config} has no upstream with servers: is it the whole configuration of nginx (`config`)?")
    return Layout(found, unmoved, reader.pid_file, tuple(reader.error_logs), tuple(_signature(path) for path in reader.read_paths))


def is_current(layout: Layout) -> bool:
    """Nothing that this layout was read from has changed since."""
    return all(_signature(seen[0]) == seen for seen in layout.signature)


def _signature(path: str) -> tuple[str, int, int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (path, 0, 0, 0)
    return (path, stat.st_ino, stat.st_mtime_ns, stat.st_size if not os.path.isdir(path) else 0)


class _Reader:
    """One walk through a configuration; owns what it found on the way."""

    def __init__(self, config: Path, servers_dir: Path) -> None:
        self.home = config.parent
        self.servers_dir = servers_dir
        self.upstreams: list[Upstream] = []
        self.unmoved: list[Upstream] = []
        self.pid_file: str | None = None
        self.error_logs: list[str] = []
        self.read_paths: list[str] = []

    def read(self, path: Path, depth: int) -> None:
        for statement in self._file(path, depth):
            self._main(statement, path, depth)

    def _file(self, path: Path, depth: int) -> tuple[Statement, ...]:
        if depth > MAX_DEPTH or len(self.read_paths) > MAX_FILES:
            raise BalancerError(f"{path}: includes nest deeper than {MAX_DEPTH} or are more than {MAX_FILES}; does a file include itself?")
        self.read_paths.append(str(path))
        try:
            return statements(read_bytes(path, MAX_FILE_BYTES).decode("utf-8", "surrogateescape"))
        except SyntaxFault as fault:
            raise BalancerError(f"{path}: {fault}; `nginx -t` tells more") from fault

    def _main(self, statement: Statement, path: Path, depth: int) -> None:
        """A directive outside of any block that matters; `http`, `stream` and what they include are walked likewise."""
        if statement.name == "include" and statement.block is None:
            for included in self._matches(statement):
                self.read(included, depth + 1)
        elif statement.name in ("http", "stream") and statement.block is not None:
            for inner in statement.block:
                if inner.name not in ("error_log", "pid"):
                    self._main(inner, path, depth)
        elif statement.name == "upstream" and statement.block is not None and statement.args:
            self._upstream(statement, path, depth)
        elif statement.name == "pid" and statement.args:
            self.pid_file = statement.args[0]
        elif statement.name == "error_log" and statement.args:
            self.error_logs.append(statement.args[0])

    def _upstream(self, statement: Statement, path: Path, depth: int) -> None:
        name, hashes = statement.args[0], False
        ours: list[Path] = []
        outside: list[Outside] = []
        for inner, where in self._inside(statement.block or (), path, depth, ours):
            hashes = hashes or inner.name in HASHING
            if inner.name == "server" and inner.args:
                outside.append(_outside(inner, where))
        where = f"{path} line {statement.line}"
        if not ours:
            if outside and POOL_NAME.match(name):
                file = self.servers_dir / f"{name}.conf"
                self.unmoved.append(Upstream(name, file, hashes, tuple(outside), where, is_moved=False))
            return
        if len(ours) > 1:
            raise BalancerError(f"{where}: upstream {name} includes {len(ours)} files of {self.servers_dir}; make it one")
        if not POOL_NAME.match(name):
            raise BalancerError(f"{where}: an upstream named {name!r} cannot be driven; use letters, digits, `_`, `.` and `-`")
        if any(upstream.name == name for upstream in self.upstreams):
            raise BalancerError(f"{where}: upstream {name} stands twice in this configuration; give one another name")
        self.upstreams.append(Upstream(name, ours[0], hashes, tuple(outside), where))

    def _inside(self, block: tuple[Statement, ...], path: Path, depth: int, ours: list[Path]) -> Iterator[tuple[Statement, str]]:
        """All directives of an upstream with their places, its own includes resolved; files of ours go to `ours` and are not opened."""
        for inner in block:
            if inner.name != "include":
                yield inner, f"{path} line {inner.line}"
                continue
            for included in self._matches(inner):
                if included.parent == self.servers_dir:
                    ours.append(included)
                else:
                    yield from self._inside(self._file(included, depth + 1), included, depth + 1, ours)

    def _matches(self, include: Statement) -> list[Path]:
        pattern = os.path.normpath(self.home / (include.args[0] if include.args else ""))
        if not glob.has_magic(pattern):
            return [Path(pattern)]
        # A file that comes or goes changes its directory.
        self.read_paths.append(os.path.dirname(pattern))
        return [Path(found) for found in sorted(glob.glob(pattern))]


def _outside(statement: Statement, where: str) -> Outside:
    name, flags = statement.args[0], statement.args[1:]
    weight = next((flag.removeprefix("weight=") for flag in flags if flag.startswith("weight=")), "1")
    return Outside(name, address_of(name), int(weight) if weight.isdecimal() else 1, bool({"down", "drain"} & set(flags)), where)
