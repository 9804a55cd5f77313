"""The words of an nginx configuration file: tokens with their place, so that a caller can change one and keep the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple


class SyntaxFault(ValueError):
    """The text is not nginx configuration; the message begins with the line."""


class Kind(StrEnum):
    """What a token is."""

    WORD = "word"
    END = ";"
    OPEN = "{"
    CLOSE = "}"
    COMMENT = "#"


class Token(NamedTuple):
    """One token. `value`: a word without its quotes; `start`, `end`: its place in the text; `line`: from 1."""

    kind: Kind
    value: str
    start: int
    end: int
    line: int


_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>\#[^\n]*)
  | (?P<mark>[;{}])
  | "(?P<double>(?:\\.|[^"\\])*)"
  | '(?P<single>(?:\\.|[^'\\])*)'
  | (?P<word>(?:\\.|\$\{|[^\s;{}\#"'\\])(?:\\.|\$\{|[^\s;{\\])*)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\([\"'\\])")
_LUA = re.compile(r"""--\[\[.*?\]\]|--[^\n]*|\[\[.*?\]\]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{}]""", re.DOTALL)


def tokens(text: str) -> Iterator[Token]:
    """All tokens in order, comments included. SyntaxFault at a quote that is never closed. Code of `*_by_lua_block` is left out."""
    at, line, first = 0, 1, ""
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SyntaxFault(f"line {line}: a quote or a backslash has no end")
        token = _token(match, line)
        line += text.count("\n", at, match.end())
        at = match.end()
        if token is None:
            continue
        yield token
        if token.kind is Kind.WORD:
            first = first or token.value
        elif token.kind is Kind.OPEN and first.endswith("_by_lua_block"):
            close = _lua_end(text, at, line)
            line += text.count("\n", at, close)
            at, first = close, ""
        elif token.kind is not Kind.COMMENT:
            first = ""


def _token(match: re.Match[str], line: int) -> Token | None:
    group = match.lastgroup
    if group == "space":
        return None
    value = match[group] if group else ""
    if group in ("double", "single"):
        return Token(Kind.WORD, _ESCAPED.sub(r"\1", value), match.start(), match.end(), line)
    kind = Kind.WORD if group == "word" else Kind.COMMENT if group == "comment" else Kind(value)
    return Token(kind, value, match.start(), match.end(), line)


def _lua_end(text: str, at: int, line: int) -> int:
    """Where the brace stands that closes a Lua block opened just before `at`."""
    depth = 1
    for match in _LUA.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    raise SyntaxFault(f"line {line}: the Lua block that begins here has no end")


class Statement(NamedTuple):
    """A directive as written. `block`: what its braces hold, None if it ends with `;`. `start`, `end`: its place, without the block."""

    words: tuple[Token, ...]
    start: int
    end: int
    block: tuple[Statement, ...] | None

    @property
    def name(self) -> str:
        return self.words[0].value if self.words else ""

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(word.value for word in self.words[1:])

    @property
    def line(self) -> int:
        return self.words[0].line if self.words else 0


def statements(text: str) -> tuple[Statement, ...]:
    """The text as a tree of directives. SyntaxFault says the line."""
    stack: list[tuple[list[Token], int, list[Statement]]] = []
    words: list[Token] = []
    found: list[Statement] = []
    line = 1
    for token in tokens(text):
        line = token.line
        match token.kind:
            case Kind.WORD:
                words.append(token)
            case Kind.END:
                if words:
                    found.append(Statement(tuple(words), words[0].start, token.end, None))
                words = []
            case Kind.OPEN:
                stack.append((words, token.end, found))
                words, found = [], []
            case Kind.CLOSE:
                if not stack or words:
                    raise SyntaxFault(f"line {line}: unexpected }}")
                opener, end, outer = stack.pop()
                if opener:
                    outer.append(Statement(tuple(opener), opener[0].start, end, tuple(found)))
                words, found = [], outer
            case Kind.COMMENT:
                pass
    if stack or words:
        raise SyntaxFault(f"line {words[0].line if words else line}: the file ends in the middle of a directive")
    return tuple(found)
