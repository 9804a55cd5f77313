"""Regular expressions whose cost grows with the text only linearly, whatever a hostile server answers.

Python's own `re` backtracks: `\\d+\\.\\d+` on 64 KiB of digits holds the loop for seconds. So a pattern is run as a finite automaton
built while it reads. Left out, with a clear message: back references, look-around, `\\b`, anchors elsewhere than at the ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from re import _constants as code  # type: ignore[attr-defined]  # the parser of `re` has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_PATTERN = 200
MAX_STATES = 2000
MAX_WORK = 1_000_000
SEARCHED_BYTES = 64 * 1024

_ALL = (1 << 256) - 1
_DIGITS = sum(1 << b for b in b"0123456789")
_SPACES = sum(1 << b for b in b" \t\n\r\f\v")
_WORDS = _DIGITS | sum(1 << b for b in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NEWLINE = 1 << 10


class TooMuchWork(Exception):
    """The text drives this pattern into more states than we are willing to build."""


@dataclass(slots=True)
class _State:
    """One state of the automaton: either it eats one of `eats` (a 256-bit set) and goes on, or it is free to go to any of `free`."""

    eats: int = 0
    then: int = -1
    free: list[int] = field(default_factory=list)
    at_start: bool = False
    at_end: bool = False


class Pattern:
    """A compiled pattern over bytes. Flags `(?i)` and `(?s)` are known; characters beyond ASCII match as their UTF-8 bytes."""

    def __init__(self, text: str) -> None:
        """ValueError says what in the pattern cannot be used."""
        if len(text) > MAX_PATTERN:
            raise ValueError(f"the pattern has {len(text)} characters; {MAX_PATTERN} at most")
        try:
            tree = parser.parse(text.encode())
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{text!r} is not a regular expression: {error}") from error
        self.text = text
        self._ignores_case = bool(tree.state.flags & re.IGNORECASE)
        self._dot = _ALL if tree.state.flags & re.DOTALL else _ALL ^ _NEWLINE
        if tree.state.flags & (re.MULTILINE | re.LOCALE):
            raise ValueError(f"{text!r}: only the flags (?i) and (?s) can be used")
        self._states: list[_State] = []
        self._goal = self._new()
        self._begin = self._chain(list(tree), self._goal)
        self._class_of, self._samples = self._byte_classes()

    def found_in(self, text: bytes) -> bool:
        """Whether the pattern occurs in the first 64 KiB; linear in the text. TooMuchWork beyond a fixed budget."""
        text = text[:SEARCHED_BYTES].translate(self._class_of)
        first = self._closure(frozenset((self._begin,)), start=True, end=not text)
        again = self._closure(frozenset((self._begin,)), start=False, end=False)
        known: dict[frozenset[int], dict[int, frozenset[int]]] = {}
        budget = MAX_WORK
        here, steps = first, known.setdefault(first, {})
        for group in text:
            if self._goal in here:
                return True
            ahead = steps.get(group)
            if ahead is None:
                budget -= 50 + 10 * len(here)
                if budget < 0:
                    raise TooMuchWork(f"{self.text!r} needs too much work on this text; make it simpler")
                ahead = steps[group] = self._closure(self._eaten(here, self._samples[group]), start=False, end=False) | again
            here = ahead
            steps = known.setdefault(here, {})
        return self._goal in self._closure(here, start=not text, end=True)

    def _eaten(self, here: frozenset[int], byte: int) -> frozenset[int]:
        bit = 1 << byte
        states = self._states
        return frozenset(states[n].then for n in here if states[n].eats & bit)

    def _closure(self, seeds: frozenset[int], *, start: bool, end: bool) -> frozenset[int]:
        """All states reached from these without eating, given where in the text we are."""
        reached = set(seeds)
        left = list(seeds)
        while left:
            state = self._states[left.pop()]
            if (state.at_start and not start) or (state.at_end and not end):
                continue
            for n in state.free:
                if n not in reached:
                    reached.add(n)
                    left.append(n)
        return frozenset(reached)

    def _byte_classes(self) -> tuple[bytes, list[int]]:
        """A table from byte to class, and one byte of each class; bytes that no state tells apart share one."""
        sets = {state.eats for state in self._states}
        samples: dict[tuple[int, ...], int] = {}
        table = bytearray(256)
        for byte in range(256):
            signature = tuple(eats >> byte & 1 for eats in sets)
            table[byte] = list(samples).index(signature) if signature in samples else len(samples)
            samples.setdefault(signature, byte)
        return bytes(table), list(samples.values())

    def _new(self, **given: Any) -> int:
        if len(self._states) >= MAX_STATES:
            raise ValueError(f"{self.text!r} is too large once its counted repeats are written out")
        self._states.append(_State(**given))
        return len(self._states) - 1

    def _chain(self, items: list[tuple[Any, Any]], goal: int) -> int:
        """The state from which all items in turn lead to `goal`."""
        for item in reversed(items):
            goal = self._one(item, goal)
        return goal

    def _one(self, item: tuple[Any, Any], goal: int) -> int:
        op, value = item
        if op in (code.LITERAL, code.NOT_LITERAL, code.ANY, code.IN):
            return self._new(eats=self._set(op, value), then=goal)
        if op is code.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise ValueError(f"{self.text!r}: flags inside a group cannot be used; put (?i) first")
            return self._chain(list(inner), goal)
        if op is code.BRANCH:
            return self._new(free=[self._chain(list(branch), goal) for branch in value[1]])
        if op in (code.MAX_REPEAT, code.MIN_REPEAT):
            least, most, inner = value
            return self._repeat(least, most, inner, goal)
        if op is code.AT and value in (code.AT_BEGINNING, code.AT_BEGINNING_STRING):
            return self._new(free=[goal], at_start=True)
        if op is code.AT and value in (code.AT_END, code.AT_END_STRING):
            return self._new(free=[goal], at_end=True)
        raise ValueError(f"{self.text!r}: {str(op).lower()} {str(value).lower()[:40]} cannot be used; write it without")

    def _repeat(self, least: int, most: Any, inner: Any, goal: int) -> int:
        items = list(inner)
        if most is code.MAXREPEAT:
            loop = self._new()
            self._states[loop].free = [self._chain(items, loop), goal]
            goal = loop
        else:
            for _ in range(int(most) - least):
                goal = self._new(free=[self._chain(items, goal), goal])
        for _ in range(least):
            goal = self._chain(items, goal)
        return goal

    def _set(self, op: Any, value: Any) -> int:
        """The bytes that one item eats, as a 256-bit set."""
        if op is code.ANY:
            return self._dot
        if op is code.LITERAL:
            return self._cased(1 << value)
        if op is code.NOT_LITERAL:
            return _ALL ^ self._cased(1 << value)
        eats, negated = 0, False
        for part, inside in value:
            if part is code.NEGATE:
                negated = True
            elif part is code.LITERAL:
                self._check_ascii(inside)
                eats |= 1 << inside
            elif part is code.RANGE:
                self._check_ascii(inside[1])
                eats |= sum(1 << b for b in range(inside[0], inside[1] + 1))
            else:
                eats |= _category(inside)
        eats = self._cased(eats)
        return _ALL ^ eats if negated else eats

    def _check_ascii(self, byte: int) -> None:
        if byte > 127:
            raise ValueError(f"{self.text!r}: only ASCII characters can stand in [...]; write (a|b) for others")

    def _cased(self, eats: int) -> int:
        if self._ignores_case:
            for upper in range(65, 91):
                if eats >> upper & 1 or eats >> (upper + 32) & 1:
                    eats |= 1 << upper | 1 << (upper + 32)
        return eats


def _category(name: Any) -> int:
    sets = {
        code.CATEGORY_DIGIT: _DIGITS,
        code.CATEGORY_SPACE: _SPACES,
        code.CATEGORY_WORD: _WORDS,
        code.CATEGORY_NOT_DIGIT: _ALL ^ _DIGITS,
        code.CATEGORY_NOT_SPACE: _ALL ^ _SPACES,
        code.CATEGORY_NOT_WORD: _ALL ^ _WORDS,
    }
    return sets[name]
