"""What is wrong with a configuration, said so that a person can mend it: where, what, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """`error`: not a configuration (exit 2). `contradiction`: valid, but it cannot work as meant (exit 1). `advice`: it will work."""

    ERROR = "error"
    CONTRADICTION = "contradiction"
    ADVICE = "advice"


@dataclass(frozen=True, slots=True)
class Place:
    """A spot in a file; line and column count from 1. `via` names the block a value was taken from, as `defaults.probe`."""

    file: str
    line: int = 1
    column: int = 1
    via: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `path` as `services.shop.probe.interval` ("" = the file), `message` with its cure, on one line."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {path}{self.message}"


class ConfigError(Exception):
    """A configuration cannot be used. `problems` holds every reason; the text is one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def problem_at(place: Place, path: str, message: str, severity: Severity = Severity.ERROR) -> Problem:
    """The problem at a place; path and message on one line and cut, whatever names the file holds."""
    return Problem(place.file, place.line, place.column, one_line(path, 200), one_line(message, 480), severity)


def one_line(text: str, limit: int) -> str:
    """Text from outside as it may stand on a terminal: printable, on one line, cut."""
    printable = "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return printable if len(text) <= limit else f"{printable[:limit]}…"


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """`; did you mean 'probe'?` when a choice is close to the word, else nothing."""
    close = difflib.get_close_matches(str(word)[:60].lower(), [choice for choice in choices if len(choice) <= 60], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(words: Iterable[str], limit: int = 30) -> str:
    """`a, b, c`, cut after `limit` words."""
    ordered = list(words)
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")


def shown(value: object, limit: int = 40) -> str:
    """A value from outside as it may stand in a message: quoted, on one line, cut."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
