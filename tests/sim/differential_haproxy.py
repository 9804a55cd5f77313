"""The same commands on a simulated and on a real HAProxy: equal answers, equal tables after each line."""

from __future__ import annotations

import csv
import io
import re
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from tests.plugins.haproxy.lab import PATIENCE_S, Box, wait_for
from tests.sim.differential_scripts import SHAPES, reset, script
from tests.sim.haproxy import REFUSED, SimHaproxy

COPIES = 2
"""Backends of each shape. All checks together must stay so few that none comes due while we compare: they are spread over `INTER`."""

INTER = "11h"
MOST_LINES = 12
_COMPARED = (
    "pxname svname scur status weight act bck chkfail chkdown pid iid sid throttle tracked type check_status check_code last_chk last_agt "
    "agent_status agent_code check_desc agent_desc check_rise check_fall check_health agent_rise agent_fall agent_health addr mode algo "
    "req_tot econ eresp wretr hrsp_5xx uweight"
)
COMPARED = frozenset(_COMPARED.split())
OF_BACKEND = frozenset(("pxname", "svname", "status", "weight", "act", "bck", "iid", "type", "mode", "algo"))
_AGE = re.compile(r"^(\d+ \S+ \d+ \S+ \S+ \d+ \d+ \d+ \d+) -?\d+ ", re.MULTILINE)
_HELP = re.compile(r"^(Unknown command[^\n]*\n)(?:  [^\n]*\n)+", re.MULTILINE)


MOST_SHOWN = 600
"""Characters of a line; some scripts have very long ones."""

T = TypeVar("T")


class Failure(NamedTuple):
    """A script on which the two differ, as short as it got, and how."""

    name: str
    lines: Sequence[str]
    how: str

    def __str__(self) -> str:
        return f"{self.name}:\n" + "".join(f"    {line[:MOST_SHOWN]}\n" for line in self.lines) + f"  {self.how[:MOST_SHOWN]}"


def backends(names: Iterable[str], texts: Mapping[str, Sequence[str]], more: Callable[[str], str] = lambda name: "") -> str:
    """Configuration text of these backends, after one whose check is the only one due at the start; `more`: a line before all others."""
    text = ["backend first", "    server s1 127.0.0.1:1 check"]
    for name in names:
        text += [f"backend {name}", *filter(None, [more(name)]), *(f"    {line}" for line in texts[name])]
    return "\n".join(text) + "\n"


def pools(copies: int = COPIES) -> list[str]:
    return [f"{shape}{number}" for number in range(copies) for shape in SHAPES]


def shapes() -> dict[str, Sequence[str]]:
    """The lines of each backend by its name."""
    return {name: SHAPES[name.rstrip("0123456789")] for name in pools()}


class Pair:
    """A real HAProxy and a simulated one of the same configuration; `both` keeps them in step."""

    def __init__(self, version: str, simulated: str = "") -> None:
        """`simulated`: another version for the simulated one, to see that it shows."""
        self.simulated = simulated or version
        self.box = Box(
            version, backends(pools(), shapes()), extra_global="nbthread 1", defaults=f"default-server inter {INTER} agent-inter {INTER}"
        )
        self.sim = self._fresh()

    def _fresh(self) -> SimHaproxy:
        sim = SimHaproxy((self.box.dir / "h.cfg").read_text(), self.simulated)
        sim.tick(0.0, lambda question: REFUSED)
        wait_for(lambda: "L4CON" in self.box.cli("show stat first 4 -1"), "the one check that is due at the start has ended")
        return sim

    def again(self) -> None:
        """Both as after a start."""
        self.box.restart()
        self.sim = self._fresh()

    def both(self, line: str, level: str = "admin") -> tuple[str, str]:
        """What the real and the simulated one answer on a socket of this level, without what only a clock decides."""
        real = said(self.box.socket if level == "admin" else self.box.user_socket, line)
        return comparable(real), comparable(self.sim.answer(line.encode() + b"\n", 0.0, level).decode())

    def close(self) -> None:
        self.box.close()


def said(path: str, line: str) -> str:
    """What a fresh connection reads after it has sent this line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(path)
        connection.sendall(line.encode() + b"\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def comparable(text: str) -> str:
    """An answer without ages, durations, help texts and columns that nobody simulates."""
    text = _HELP.sub(r"\1", _AGE.sub(r"\1 - ", text))
    head, mark, table = text.partition("# pxname,")
    return head + "\n".join(_rows(mark + table)) if mark else text


def _rows(table: str) -> Iterator[str]:
    body, _, rest = table[2:].partition("\n\n")
    names, *rows = csv.reader(io.StringIO(body, newline="\n"))
    yield f"{len(names)} columns, {zlib.crc32(','.join(names).encode()):x}"
    for row in rows:
        compared = OF_BACKEND if row[1] == "BACKEND" else COMPARED
        yield ";".join(f"{name}={value}" for name, value in zip(names, row, strict=True) if name in compared)
    yield comparable(rest)


def played(pair: Pair, pool: str, lines: Sequence[str], level: str = "admin") -> str:
    """'' or how the two differ while they play these lines, on a socket of this level, from the common beginning on."""
    if how := difference(*pair.both(f"{reset(pool)};show stat {pool} 6 -1"), "after the reset"):
        return how
    look = f"show servers state {pool}"
    real, sim = pair.both(";".join([*(f"{line};{look}" for line in lines), f"show stat {pool} 6 -1"]), level)
    return difference(real, sim, "in the course of the script")


def difference(real: str, sim: str, when: str) -> str:
    if real == sim:
        return ""
    ours, theirs = sim.splitlines(keepends=True), real.splitlines(keepends=True)
    where = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    ours, theirs = ours[where : where + 3], theirs[where : where + 3]
    if ours and theirs and ours[0].startswith("pxname=") and theirs[0].startswith("pxname="):
        names, said = ours[0].split(";")[:2], [(a, b) for a, b in zip(ours[0].split(";"), theirs[0].split(";"), strict=False) if a != b]
        return f"{when}: `show stat` {' '.join(names)}: " + "; ".join(f"real {b}, simulated {a}" for a, b in said)
    return f"{when}, line {where}:\n  real      {''.join(theirs)!r}\n  simulated {''.join(ours)!r}"


def shrunk(lines: Sequence[T], still: Callable[[Sequence[T]], str], tries: int = 60) -> tuple[list[T], str]:
    """The fewest lines on which the two still differ, and how they do."""
    left, how = list(lines), still(lines)
    for _ in range(tries):
        for at in range(len(left)):
            shorter = left[:at] + left[at + 1 :]
            if found := still(shorter):
                left, how = shorter, found
                break
        else:
            break
    return left, how


def run(version: str, scripts: int, seed: int, most_failures: int = 10, simulated: str = "") -> list[Failure]:
    """Plays so many scripts; the failures, each shrunken. `simulated`: as for `Pair`."""
    pair = Pair(version, simulated)
    names = pools()
    failures: list[Failure] = []

    def still(pool: str, lines: Sequence[str], level: str) -> str:
        if how := played(pair, pool, lines, level):
            pair.again()
        return how

    try:
        for number in range(scripts):
            pool = names[number % len(names)]
            lines = script(Random(f"{seed}/{number}"), pool, MOST_LINES)
            level = "user" if number % 10 == 9 else "admin"
            if first := still(pool, lines, level):
                least, how = shrunk(lines, lambda some, pool=pool, level=level: still(pool, some, level))  # type: ignore[misc]
                name = f"haproxy-{version} seed {seed} script {number} ({pool}, level {level})"
                failures.append(Failure(name, least, how or f"only once: {first}"))
                if len(failures) >= most_failures:
                    break
        return failures
    finally:
        pair.close()


__all__ = ["Failure", "Pair", "backends", "comparable", "difference", "played", "pools", "run", "shrunk"]
