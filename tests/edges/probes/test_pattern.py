"""Patterns agree with Python's `re` and stay linear on hostile text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.probes.pattern import MAX_WORK, Pattern, TooMuchWork

PATTERNS = [
    "abc", "^abc$", "a|b|cd", "(a|ab)(c|bcd)", "a*b", "a+?b", "(ab){2,3}c", "a{0,2}$", "[a-c]x", "[^a-c]x", r"\d+\.\d+", r"\s*\w\W",
    "(?i)AbC", "(?s)a.c", "a.c", "", "x*", "^$", "^(a|b)*$", r"\Aa\Z", "é", "(?:a?){3}b", r'"status":\s*"(UP|OK)"',
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATTERNS), st.text(alphabet='abcdxAB01. \né"', max_size=12))
def test_agrees_with_re(pattern: str, text: str) -> None:
    data = text.encode()
    # Ours has `$` at the very end only; re also takes it before a last newline.
    reference = re.compile(pattern.encode().replace(b"$", rb"\Z"))

    assert Pattern(pattern).found_in(data) == bool(reference.search(data))


PIECE = st.sampled_from(["a", "b", "[ab]", ".", "(a|b)", "(ab|c)", "(a*b)", "(?:b|)"])
WRITTEN = st.lists(st.tuples(PIECE, st.sampled_from(["", "*", "+", "?", "{1,3}", "*?"])), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(WRITTEN, st.text(alphabet="abc\n", max_size=10))
def test_agrees_with_re_on_what_is_made_up(parts: list[tuple[str, str]], text: str) -> None:
    pattern = "".join(piece + count for piece, count in parts)

    assert Pattern(pattern).found_in(text.encode()) == bool(re.search(pattern, text))


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"a*a*a*a*b", r"(a|a)*b", r"(a|aa)+$", r"\w+\d+\w+x", r"(.*a){9}z", r"([a-z]+)*1"])
def test_hostile_text_costs_linear_work(pattern: str) -> None:
    work = _count_steps(Pattern(pattern), b"a" * 65536 + b"!")

    assert work < 2000


def _count_steps(pattern: Pattern, text: bytes) -> int:
    """How many automaton steps had to be worked out rather than looked up."""
    steps = 0
    eaten = pattern._eaten

    def counting(here: frozenset[int], byte: int) -> frozenset[int]:
        nonlocal steps
        steps += 1
        return eaten(here, byte)

    pattern._eaten = counting  # type: ignore[method-assign]
    pattern.found_in(text)
    return steps


def test_state_explosion_is_given_up() -> None:
    import random

    random.seed(1)
    text = bytes(random.choice(b"ab") for _ in range(65536))

    with pytest.raises(TooMuchWork):
        Pattern("(a|b)*a" + "(a|b)" * 18 + "c").found_in(text)
    assert MAX_WORK <= 1_000_000


def test_only_the_first_64_kib_are_searched() -> None:
    assert not Pattern("needle").found_in(b"x" * 65536 + b"needle")
    assert Pattern("needle").found_in(b"x" * 65530 + b"needle")
