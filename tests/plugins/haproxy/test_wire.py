"""What goes on the wire, and what comes back; with real unix sockets."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbplugins.api import BalancerError
from lbplugins.haproxy import wire
from lbplugins.haproxy.wire import Command, Reply, Unsayable, Verb, order, split
from lbplugins.values import Ref

SAFE = re.compile(
    r"\A(set server N (state (ready|drain|maint)|health (up|down)|agent (up|down)|weight \d{1,3})|(enable|disable) health N"
    r"|shutdown sessions server N|get weight N)\Z".replace("N", r"[A-Za-z0-9_.:-]{1,128}/[A-Za-z0-9_.:-]{1,128}")
)
ACK, TEXT, CSV = (Command("x", reply) for reply in (Reply.ACK, Reply.TEXT, Reply.CSV))


class Anything:
    """Holds every server, so that only the check of the names stands between them and the wire."""

    def __contains__(self, ref: object) -> bool:
        return True


def sent(ref: Ref) -> list[str]:
    commands = []
    for verb in Verb:
        try:
            commands.append(order(verb, ref, Anything(), 50 if verb is Verb.SET_WEIGHT else None).text)
        except Unsayable as error:
            assert str(error)
    return commands


@settings(deadline=None)
@given(st.text(max_size=140), st.text(max_size=140))
@example("be", "a;b")
@example("be", "a\n")
@example("be\n", "a")
@example("be", "a\\;b")
@example("be", "x" * 129)
@example("be", "ä")
@example("be", "")
def test_no_name_ever_makes_a_second_command(pool: str, server: str) -> None:
    for text in sent(Ref(pool, server)):
        assert SAFE.match(text)


def test_a_hundred_thousand_random_names_make_no_second_command() -> None:
    chance = random.Random(7)
    alphabet = "aZ09_.:-;\n\r \\/#\"'\0\t\x85\u2028%{}"
    for _ in range(100_000):
        pool, server = ("".join(chance.choices(alphabet, k=chance.randrange(4))) for _ in range(2))
        try:
            text = order(Verb.HEALTH_DOWN, Ref(pool, server), Anything()).text
        except Unsayable:
            continue
        assert SAFE.match(text)


def test_good_names_are_said() -> None:
    assert order(Verb.SET_WEIGHT, Ref("a.b:c", "s-1_X"), Anything(), 7).text == "set server a.b:c/s-1_X weight 7"
    assert len(sent(Ref("be", "s1"))) == len(Verb)


def test_a_server_that_was_not_in_the_last_look_is_not_said() -> None:
    with pytest.raises(Unsayable, match="no server be/s2"):
        order(Verb.HEALTH_UP, Ref("be", "s2"), {Ref("be", "s1")})


@pytest.mark.parametrize(("verb", "weight"), [(Verb.SET_WEIGHT, None), (Verb.SET_WEIGHT, 257), (Verb.SET_WEIGHT, -1), (Verb.HEALTH_UP, 1)])
def test_a_weight_out_of_range_or_out_of_place_is_not_said(verb: Verb, weight: int | None) -> None:
    with pytest.raises(Unsayable):
        order(verb, Ref("be", "s1"), Anything(), weight)


def test_a_pool_that_haproxy_would_read_as_a_number_is_asked_among_all() -> None:
    assert wire.show_stat("8080x").text == wire.show_stat("-1").text == "show stat -1 6 -1"
    assert wire.show_stat("be").text == "show stat be 6 -1"


@pytest.mark.parametrize(
    ("raw", "commands", "answers"),
    [
        ("\n\n\n", [ACK, ACK, ACK], ["", "", ""]),
        ("No such server.\n\n\n50 (initial 100)\n\n", [ACK, ACK, TEXT], ["No such server.", "", "50 (initial 100)"]),
        ("a: 1\nb: 2\n\n\nadmin\n\n", [TEXT, ACK, TEXT], ["a: 1\nb: 2", "", "admin"]),
        ('# pxname,\na,"x\n\ny"\n\n\n', [CSV, ACK], ['# pxname,\na,"x\n\ny"', ""]),
        ("Can't find backend.\n\nNo such proxy.\n\n", [TEXT, CSV], ["Can't find backend.", "No such proxy."]),
    ],
)
def test_joined_answers_are_told_apart(raw: str, commands: list[Command], answers: list[str]) -> None:
    assert split("/s", raw, commands) == answers


@pytest.mark.parametrize("raw", ["", "\n", "\n\nNo such"])
def test_an_answer_that_breaks_off_is_an_unknown_outcome(raw: str) -> None:
    with pytest.raises(BalancerError, match="broke off"):
        split("/s", raw, [ACK, ACK, ACK])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="hap") as name:
        yield Path(name)


@asynccontextmanager
async def answering(path: Path, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def why(path: Path, timeout_s: float = 5.0) -> str:
    with pytest.raises(BalancerError) as caught:
        await wire.ask(str(path), [wire.SHOW_INFO], timeout_s)
    return str(caught.value)


async def test_says_that_there_is_no_socket(folder: Path) -> None:
    assert f"stats socket {folder / 'a.sock'} level admin" in await why(folder / "a.sock")


async def test_says_that_nobody_listens(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "a.sock"))

    assert "HAProxy is stopped" in await why(folder / "a.sock")


async def test_says_who_may_not_open_whose_socket_and_the_cure(folder: Path) -> None:
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)

        told = wire._why_unreachable(str(path), PermissionError(13, "Permission denied"))
        path.chmod(0o660)
        grouped = wire._why_unreachable(str(path), PermissionError(13, "Permission denied"))

    assert f"uid {os.geteuid()}" in told and "mode 600" in told and "`mode 660 group" in told
    assert "add our user to group" in grouped


async def test_a_hung_haproxy_ends_at_the_deadline(folder: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with answering(folder / "a.sock", silent):
        assert "no answer" in await why(folder / "a.sock", 0.2)


async def test_a_drip_ends_at_the_total_deadline(folder: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with answering(folder / "a.sock", drip):
        assert "no answer" in await why(folder / "a.sock", 0.3)


async def test_an_endless_answer_ends_at_the_byte_cap(folder: Path) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with answering(folder / "a.sock", flood):
        assert f"more than {wire.MOST_BYTES} bytes" in await why(folder / "a.sock", 60)


async def test_one_line_carries_no_more_than_it_may() -> None:
    with pytest.raises(ValueError, match="at most 200"):
        await wire.ask("/nowhere", [wire.SHOW_INFO] * 201, 1)
