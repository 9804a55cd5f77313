"""Some thousand names of the campaign `names`; and its grammar, which must know what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.campaigns.names import agent, are_marks, beyond, haproxy, is_answer, is_line, nginx

PLAIN = b"server 10.0.0.5:80 weight=3;\n  server [::1]:80; # his\n"
SUM = b"# lb-sidecar sum=" + b"0a" * 32 + b" written by lb-sidecar; after an edit by hand run: lb-sidecar adopt\n"


@pytest.mark.parametrize("kind", [haproxy, agent, nginx])
def test_nothing_beyond_the_grammar_is_said(kind: Callable[[int, int], tuple[Counter[str], list[str]]]) -> None:
    tally, faults = kind(11, 2000)

    assert faults == []
    assert tally["said"] > 200 and tally["refused"] > 200


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        (b"set server b/s state maint;set server b/s weight 256\n", 2),
        (b"show servers state b;show stat b 6 -1;get weight b/s\n", 3),
    ],
)
def test_what_haproxy_may_hear(line: bytes, commands: int) -> None:
    assert is_line(line, commands)


@pytest.mark.parametrize(
    "line",
    [
        b"set server b/s state maint",
        b"set server b/s state maint\n\n",
        b"set server b/s state maint;show info\n",
        b"set server b/s;x state maint\n",
        b"set server b/s weight 257\n",
        b"set server b/s weight 50%\n",
        b"set server b/" + b"x" * 129 + b" health up\n",
        b"set server b/\xc3\xa9 health up\n",
        b"show stat 2 6 -1\n",
        b"shutdown sessions server b\n",
        b"set ssl cert x\n",
    ],
)
def test_what_haproxy_may_not_hear(line: bytes) -> None:
    assert not is_line(line, 1)


def test_what_the_agent_may_say() -> None:
    assert all(map(is_answer, (b"\n", b"up\n", b"down #lb-sidecar\n", b"down #lb-sidecar refused 2 times\n")))
    assert not any(
        map(is_answer, (b"ready\n", b"maint\n", b"up ready\n", b"up 50%\n", b"down lb-sidecar\n", b"down #lb-sidecar a\nready\n"))
    )


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace(b"3;", b"3 down;").replace(b"3 down;", b"3 down;  # lb-sidecar ejected", 1),
        PLAIN.replace(b"3;", b"150;  # lb-sidecar nominal=3 cut=50").replace(
            b"80; # his", b"80 weight=100; # his  # lb-sidecar nominal=default"
        ),
    ],
)
def test_what_may_be_added_to_an_include(body: bytes) -> None:
    assert beyond(PLAIN, SUM + body) == ""
    assert beyond(PLAIN, body) != "", "without the header"


@pytest.mark.parametrize(
    "body",
    [
        PLAIN + b"server 6.6.6.6:80;\n",
        PLAIN.replace(b"3;", b"3 backup;"),
        PLAIN.replace(b"3;", b"3x;"),
        PLAIN.replace(b"10.0.0.5", b"10.0.0.6"),
        PLAIN.replace(b"; # his", b";"),
        PLAIN.replace(b"3;", b"3;  # lb-sidecar ejected; server 6.6.6.6"),
        PLAIN.replace(b"server [", b"down server ["),
        PLAIN[:-1],
    ],
)
def test_what_may_not_be_added_to_an_include(body: bytes) -> None:
    assert beyond(PLAIN, SUM + body) != ""


def test_marks_come_once_and_in_order() -> None:
    assert all(map(are_marks, (b"ejected", b"ejected maintenance held nominal=default cut=5", b"nominal=100")))
    assert not any(
        map(are_marks, (b"", b"held ejected", b"ejected ejected", b"nominal=x", b"cut=default", b"ejected=1", b"cut", b"reboot"))
    )
