"""Probes over lines: what is seen at a glance is what a thorough reading says; a batch keeps its members apart."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Ask, Reason, Result, Target
from sidecar.probes.attempt import Failed, Question, Verdict
from sidecar.probes.engine import Engine
from sidecar.probes.http import Answer, glance, judge
from sidecar.probes.lines import MAX_KNOWN, MAX_REQUEST
from tests.edges import zoo
from tests.edges.probes.lab import AMPLE_S, running_engine, spec

HEALTH = spec(http="/health")
SPECS = [
    HEALTH,
    spec(http="/", fresh=True),
    spec(http="/", max_body="2B"),
    spec(http="/", method="HEAD"),
    spec(http="/", method="OPTIONS", expect={"status": "200-599"}),
    spec(http="/", expect={"body": "ok"}),
    spec(http="/", expect={"json": {"a": 1}}),
    spec(http="/", expect={"header": {"server": "x"}}),
    spec(http="/", expect={"identity": {"body": "ok"}}),
    spec(http="/", expect={"identity": {"header": "Server", "equals": "x"}}),
]

NGINX = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n"
)
GO = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nContent-Length: 2\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"X-Request-Id: 8f14e45f\r\n\r\nok"
)
NODE = NGINX.replace(b"keep-alive\r\n", b"keep-alive\r\nKeep-Alive: timeout=5\r\n")
SPRING = b'HTTP/1.1 503 \r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"status":"DOWN"}'
HEADERS = [
    *(
        b"Content-Length: 2",
        b"content-length:2",
        b"CONTENT-LENGTH:  2",
        b"Content-Length: +2",
        b"Content-Length: 2, 2",
        b"Content-Length : 2",
    ),
    *(b"Connection: keep-alive", b"Connection: close", b"Connection: Keep-Alive, x", b"Connection: upgrade", b"Upgrade: h2c"),
    *(
        b"Transfer-Encoding: chunked",
        b"Keep-Alive: timeout=5",
        b"keep-alive: max=9, Timeout = 7",
        b"X: timeout=3",
        b"Trailer: x",
        b"Server: x",
        b"X: \t spaces \t",
        b"X:",
        b": x",
        b"X\x00: y",
    ),
    *(b"X: caf\xc3\xa9", b"X: \x01", b" folded: x", b"X y: z", b"X: a\rb", b"X: a\nb", b"Content-Length-X: 5", b"X-Connection: close"),
]
LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 ",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"http/1.1 200 OK",
    b"HTTP/1.1 204 No",
    b"HTTP/1.1 304 N",
]
LINES += [
    b"HTTP/1.1 205 R",
    b"HTTP/1.1 100 C",
    b"HTTP/1.1 408 T",
    b"HTTP/1.1 503 S",
    b"HTTP/1.1 600 X",
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 200 \xff",
]


def read_thoroughly(data: bytes, question: Question) -> Verdict | None:
    """None = it is not whole, or no answer at all."""
    answer = Answer.to(question.spec)
    try:
        answer.feed(data)
    except Failed:
        return None
    return judge(answer, question) if answer.is_done else None


def meaning(verdict: Verdict | None) -> object:
    if verdict is None:
        return None
    failed = verdict.failed
    return (None if failed is None else (failed.reason, str(failed), failed.by_lateness, failed.result)), verdict.may_keep, verdict.keep_s


@settings(max_examples=600, deadline=None)
@given(
    line=st.sampled_from(LINES),
    headers=st.lists(st.sampled_from(HEADERS), max_size=4),
    has_length=st.booleans(),
    body=st.sampled_from([b"ok", b"{}", b"", b"o", b"okk", b"ok\r\n", b"2\r\nok\r\n0\r\n\r\n"]),
    asked=st.sampled_from(SPECS),
)
def test_glance_never_says_anything_else_than_a_thorough_reading(
    line: bytes, headers: list[bytes], has_length: bool, body: bytes, asked: Any
) -> None:
    data = b"\r\n".join([line, *headers, *([b"Content-Length: 2"] if has_length else []), b"", b""]) + body
    question = Question(asked)

    seen = glance(data, question)

    assert seen is None or meaning(seen) == meaning(read_thoroughly(data, question))


@pytest.mark.parametrize("data", [NGINX, GO, NODE, SPRING, zoo.answer()])
def test_what_servers_usually_answer_is_known_at_a_glance(data: bytes) -> None:
    question = Question(HEALTH)

    assert glance(data, question) is not None
    assert meaning(glance(data, question)) == meaning(read_thoroughly(data, question))


def test_glance_comes_to_an_end_on_a_hostile_text() -> None:
    hostile = b"HTTP/1.1 200 OK\r\n" + b"X: " + b" " * 15000 + b"\r\n" + b"Y: z\r\n" * 200 + b"Content-Length: 2\r\n" + b"\x00"
    question = Question(HEALTH)

    assert [glance(hostile, question) for _ in range(100)] == [None] * 100  # a pattern that looks twice does not live to see this


async def test_changed_answer_is_seen_though_the_last_one_is_remembered() -> None:
    bodies = [b"status UP!", b"status DWN", b"status UP!"]

    def changing(sock: socket.socket) -> None:
        while zoo.read_request(sock):
            sock.sendall(zoo.answer(bodies[len(asked)]))
            asked.append(sock)

    asked: list[socket.socket] = []
    up = spec(http="/", expect={"body": "UP"})
    with zoo.Server(changing) as server:
        async with running_engine(up) as (engine, recorder):
            for n in range(3):
                engine.ask(Ask(Target(server.address, up.key), 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)

            assert [o.reason for o in recorder.outcomes] == [None, Reason.BODY, None]


async def test_little_is_remembered_of_answers_that_always_differ() -> None:
    numbers = count()

    def numbered(sock: socket.socket) -> None:
        while zoo.read_request(sock):
            sock.sendall(zoo.answer(headers=b"X-Request-Id: %d\r\n" % next(numbers)))

    with zoo.Server(numbered) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            for n in range(2 * MAX_KNOWN):
                engine.ask(Ask(Target(server.address, HEALTH.key), 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)

            assert {o.result for o in recorder.outcomes} == {Result.OK}
            assert 0 < len(engine._questions[HEALTH.key].known) <= MAX_KNOWN


async def test_answers_of_one_batch_carry_the_moment_they_were_there_not_that_of_their_turn() -> None:
    other = spec(http="/other")
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH, other) as (engine, recorder):
            both = [Target(server.address, HEALTH.key), Target(server.address, other.key)]
            for target in both:
                engine.ask(Ask(target, 0.0, AMPLE_S))
            await recorder.until_outcomes(2)
            fds = [engine._states[target].idle_fd for target in both]

            for target in both:
                engine.ask(Ask(target, 0.0, AMPLE_S))
            engine._wake()  # sends both requests
            waiting = set(fds)
            while waiting:
                waiting -= set(select.select(list(waiting), [], [], 30)[0])
            await recorder.until_outcomes(4)

            assert recorder.outcomes[2].ended == recorder.outcomes[3].ended


async def test_request_too_long_for_a_line_is_asked_nevertheless() -> None:
    long = spec(http="/health", headers={f"X-{n}": "y" * 1000 for n in range(8)})
    with zoo.Server(zoo.good) as server:
        async with running_engine(long) as (engine, recorder):
            for n in range(2):
                engine.ask(Ask(Target(server.address, long.key), 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)

            assert MAX_REQUEST < 8000
            assert [(o.result, o.fresh) for o in recorder.outcomes] == [(Result.OK, True), (Result.OK, False)]


async def test_tcp_is_good_when_the_port_opens_and_keeps_nothing() -> None:
    port = spec(tcp=True)
    with zoo.Server(zoo.silent) as server, zoo.closed_port() as closed:
        async with running_engine(port) as (engine, recorder):
            for n in range(3):
                engine.ask(Ask(Target(server.address, port.key), 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)
            engine.ask(Ask(Target(closed, port.key), 0.0, AMPLE_S))
            await recorder.until_outcomes(4)

            assert [(o.result, o.fresh, o.phases.connect is not None) for o in recorder.outcomes[:3]] == [(Result.OK, True, True)] * 3
            assert all(o.phases.first_byte is None for o in recorder.outcomes)
            assert recorder.outcomes[3].reason is Reason.REFUSED


def _answers_and_ends(sock: socket.socket) -> None:
    """Without saying that it would: the answer and the FIN arrive together."""
    zoo.read_request(sock)
    sock.sendall(zoo.answer())
    zoo.closing(sock)


async def test_server_that_always_ends_after_one_answer_is_news_once() -> None:
    with zoo.Server(_answers_and_ends) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            target = Target(server.address, HEALTH.key)
            for n in range(5):
                engine.ask(Ask(target, 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)
                async with asyncio.timeout(30):
                    while engine._states[target].idle_fd >= 0:
                        await asyncio.sleep(0.002)

            assert [o.result for o in recorder.outcomes] == [Result.OK] * 5
            assert len(recorder.nudges) == 1


async def _under_way(engine: Engine, number: int) -> None:
    async with asyncio.timeout(30):
        while engine.in_flight != number:
            await asyncio.sleep(0.002)


async def test_place_that_becomes_free_is_taken_at_once() -> None:
    with zoo.Server(zoo.silent) as mute, zoo.Server(zoo.good, host="0.0.0.0") as server:
        async with running_engine(HEALTH, max_in_flight=2) as (engine, recorder):
            engine.ask(Ask(Target(mute.address, HEALTH.key), 0.0, 60.0))
            await _under_way(engine, 1)
            for n in range(20):
                engine.ask(Ask(Target(Address(f"127.0.0.{n + 1}", server.address.port), HEALTH.key), 0.0, AMPLE_S))
            await recorder.until_outcomes(20)

            assert {o.result for o in recorder.outcomes} == {Result.OK}
            assert engine.in_flight == 1


async def test_targets_beyond_the_descriptors_are_asked_without_keeping() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            engine._lines._keep_below = 0
            for n in range(3):
                engine.ask(Ask(Target(server.address, HEALTH.key), 0.0, AMPLE_S))
                await recorder.until_outcomes(n + 1)

            assert [(o.result, o.fresh) for o in recorder.outcomes] == [(Result.OK, True)] * 3
            assert recorder.nudges == []


class _Broken:
    needs_headers = False

    def problem(self, *_: object) -> None:
        raise RuntimeError("a bug")


async def test_bug_while_a_batch_is_read_spoils_one_probe_only() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    other = spec(http="/other")
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH, other) as (engine, recorder):
            engine._questions[other.key].expectation = _Broken()  # type: ignore[assignment]
            for key in (other.key, HEALTH.key):
                engine.ask(Ask(Target(server.address, key), 0.0, AMPLE_S))
            await recorder.until_outcomes(2)

            assert {o.target.spec: o.reason for o in recorder.outcomes} == {HEALTH.key: None, other.key: Reason.CANCELLED}
            assert engine.in_flight == 0 and len(reported) == 1


async def test_own_lateness_of_starts_is_measured() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            loop = asyncio.get_running_loop()
            engine.ask(Ask(Target(server.address, HEALTH.key), loop.time() + 0.01, AMPLE_S))
            time.sleep(0.2)  # our own fault
            await recorder.until_outcomes(1)

            assert (engine.lateness.max or 0) >= 0.18
