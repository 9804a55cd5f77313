"""Every hostile behaviour of an HTTP server gets its exact reason, in time, and nothing escapes."""

from __future__ import annotations

import gzip
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Reason, Result
from sidecar.probes.attempt import Failed
from sidecar.probes.http import MAX_HEAD, Answer
from tests.edges import zoo
from tests.edges.probes.lab import AMPLE_S, SHORT_S, ask, ask_zoo, spec

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

BAD = Reason.BAD_RESPONSE
OK = b"HTTP/1.1 200 OK\r\n"

WRONG: list[tuple[str, zoo.Behaviour, Reason, str]] = [
    ("garbage", zoo.saying(b"\x16\x03\x01 what is this\r\n\r\n"), BAD, "not a valid HTTP/1.1 answer"),
    ("html without a head, HTTP/0.9", zoo.saying(b"<html>hello</html>"), BAD, "not a valid HTTP/1.1 answer"),
    ("a status line of HTTP/0.9", zoo.saying(b"HTTP/0.9 200 OK\r\n\r\n"), BAD, "HTTP/0.9"),
    ("HTTP/2 in the clear", zoo.saying(b"HTTP/2.0 200 OK\r\n\r\n"), BAD, "HTTP/2.0"),
    ("a status beyond 599", zoo.saying(b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n"), BAD, "999"),
    ("NULs alone", zoo.saying(b"\0" * 64), BAD, "not a valid"),
    ("a NUL in a header", zoo.saying(OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n"), BAD, "header value"),
    ("bare line feeds", zoo.saying(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"), BAD, "CR"),
    ("two lengths", zoo.saying(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"), BAD, "Content-Length"),
    ("length and chunks", zoo.saying(CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"), BAD, "Transfer-Encoding"),
    ("a negative length", zoo.saying(OK + b"Content-Length: -1\r\n\r\n"), BAD, "Content-Length"),
    ("a broken chunk size", zoo.saying(CHUNKED + b"zz\r\nok\r\n"), BAD, "chunk"),
    ("a chunk size that overflows", zoo.saying(CHUNKED + b"f" * 20 + b"\r\n"), BAD, "hunk"),
    ("endless headers", zoo.endless_headers, BAD, "more than 256 header lines"),
    ("257 headers", zoo.saying(OK + b"X: y\r\n" * 257 + b"\r\n"), BAD, "more than 256 header lines"),
    ("endless trailers", zoo.saying(CHUNKED + b"0\r\n" + b"X: y\r\n" * 10_000), BAD, "more than 256 header lines"),
    ("one header line of 1 MB", zoo.saying(OK + b"X: " + b"y" * 1_000_000), BAD, "longer than 64 KiB"),
    ("a spam of 100 Continue", zoo.endless_continue, BAD, "interim"),
    ("an endless chunk extension", zoo.endless_chunk_extension, BAD, "without end"),
    ("a service that speaks first", zoo.spontaneous, BAD, "SSH"),
    ("FIN instead of an answer", zoo.saying(then=zoo.closing), BAD, "closed without an answer"),
    ("FIN before the request", zoo.closing, BAD, "closed without an answer"),
    ("FIN in the head", zoo.saying(OK + b"X", then=zoo.closing), BAD, "within the head"),
    ("FIN before the length is full", zoo.saying(zoo.answer(b"half")[:-2], then=zoo.closing), BAD, "within the body, after 2"),
    ("FIN between chunks", zoo.saying(CHUNKED + b"2\r\nok\r\n", then=zoo.closing), BAD, "within the body"),
    ("RST on the request", zoo.hurried_reset, Reason.RESET, "headers"),
    ("RST after some headers", zoo.saying(OK + b"X-", then=zoo.reset), Reason.RESET, "headers"),
    ("RST in the body", zoo.saying(zoo.answer(b"half")[:-2], then=zoo.reset), Reason.RESET, "body"),
    ("status 500", zoo.saying(zoo.answer(status="500 Oops")), Reason.STATUS, "status 500, wanted 200-399"),
    ("a switch of protocols", zoo.saying(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n\x01\x02"), Reason.STATUS, "101"),
]  # fmt: skip


@pytest.mark.parametrize(("behaviour", "reason", "detail"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
async def test_wrong_answer_has_its_exact_reason(behaviour: zoo.Behaviour, reason: Reason, detail: str) -> None:
    outcome = await ask_zoo(behaviour)

    assert (outcome.result, outcome.reason) == (Result.FAIL, reason), outcome
    assert detail in outcome.detail
    assert len(outcome.detail) <= 200 and outcome.detail.isprintable()


async def test_reset_at_accept_is_a_reset() -> None:
    outcome = await ask_zoo(zoo.reset_at_accept)

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.RESET)


async def test_nothing_listening_is_refused() -> None:
    with zoo.closed_port() as address:
        outcome = await ask(address)

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.REFUSED)
    assert outcome.phases.connect is None


SLOW = [
    ("accepts, never answers", zoo.silent, "head"),
    ("a body by drips", zoo.drip, "body"),
    ("a head by drips", zoo.drip_head, "head"),
    ("a length that is never filled", zoo.saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"), "body"),
    ("the last chunk missing", zoo.saying(CHUNKED + b"2\r\nok\r\n"), "body"),
]


@pytest.mark.parametrize(("behaviour", "phase"), [s[1:] for s in SLOW], ids=[s[0] for s in SLOW])
async def test_slow_answer_ends_at_the_total_deadline(behaviour: zoo.Behaviour, phase: str) -> None:
    outcome = await ask_zoo(behaviour, SHORT_S)

    # On a starved machine it may be our own lateness; it may never be anything else, and never good.
    if outcome.reason is not Reason.OWN_LAG:
        assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.TIMEOUT)
    assert phase in outcome.detail
    assert outcome.seconds >= SHORT_S - 0.001  # uvloop's timers are whole milliseconds


async def test_full_backlog_is_a_timeout_of_the_connection() -> None:
    with zoo.full_backlog() as address:
        outcome = await ask(address, SHORT_S)

    assert outcome.reason in (Reason.TIMEOUT, Reason.OWN_LAG)
    assert "no connection" in outcome.detail


GOOD: list[tuple[str, zoo.Behaviour]] = [
    ("plain", zoo.good),
    ("chunked", zoo.saying(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")),
    ("in single bytes", zoo.saying(*(bytes([b]) for b in zoo.answer()))),
    ("ended by FIN, HTTP/1.0", zoo.saying(b"HTTP/1.0 200 OK\r\n\r\nok", then=zoo.closing)),
    ("a few 100 Continue first", zoo.saying(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + zoo.answer())),
    ("more bytes than the length", zoo.saying(zoo.answer() + b"surplus")),
    ("a second answer that nobody asked for", zoo.saying(zoo.answer() + zoo.answer(status="500 Oops"))),
    ("255 headers and a length", zoo.saying(OK + b"X: y\r\n" * 255 + b"Content-Length: 0\r\n\r\n")),
    ("no content", zoo.saying(b"HTTP/1.1 204 No Content\r\n\r\n")),
    ("RST after the full answer", zoo.saying(zoo.answer(), then=zoo.reset)),
]


@pytest.mark.parametrize("behaviour", [g[1] for g in GOOD], ids=[g[0] for g in GOOD])
async def test_odd_but_complete_answer_is_good(behaviour: zoo.Behaviour) -> None:
    outcome = await ask_zoo(behaviour)

    assert outcome.result is Result.OK, outcome
    assert outcome.reason is None
    assert outcome.phases.connect is not None and outcome.phases.first_byte is not None
    assert outcome.phases.tls is None
    assert 0 < outcome.phases.connect + outcome.phases.first_byte <= outcome.seconds


async def test_endless_body_is_cut_and_good() -> None:
    outcome = await ask_zoo(zoo.endless_body)

    assert outcome.result is Result.OK, outcome


async def test_redirect_is_not_followed() -> None:
    with zoo.Server(zoo.saying(zoo.answer(status="302 Found", headers=b"Location: /again\r\n"))) as server:
        outcome = await ask(server.address)
        strict = await ask(server.address, http="/", expect={"status": 200})

        assert server.accepted == 2

    assert outcome.result is Result.OK
    assert strict.reason is Reason.STATUS and "302" in strict.detail


async def test_compressed_body_is_never_inflated() -> None:
    bomb = gzip.compress(b"all is well " * 2_000_000)
    behaviour = zoo.saying(zoo.answer(bomb, headers=b"Content-Encoding: gzip\r\n"))

    outcome = await ask_zoo(behaviour)
    looked_into = await ask_zoo(behaviour, http="/", expect={"body": "all is well"})

    assert outcome.result is Result.OK
    assert looked_into.reason is Reason.BODY


async def test_head_needs_no_body() -> None:
    behaviour = zoo.saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")

    outcome = await ask_zoo(behaviour, http="/", method="HEAD")

    assert outcome.result is Result.OK


PAGE = zoo.answer(json.dumps({"status": "UP", "db": [{"ok": True, "lag": 3}]}).encode(), headers=b"X-App: shop/1.2\r\n")

EXPECTATIONS: list[tuple[dict[str, object], Reason | None]] = [
    ({"status": "200-299"}, None),
    ({"status": [204, "300-399"]}, Reason.STATUS),
    ({"header": {"x-app": r"^shop/\d+"}}, None),
    ({"header": {"X-App": "^cart/"}}, Reason.HEADER),
    ({"header": {"X-Missing": "."}}, Reason.HEADER),
    ({"body": '"UP"'}, None),
    ({"body": "DOWN"}, Reason.BODY),
    ({"regex": r'"status":\s*"(UP|OK)"'}, None),
    ({"regex": r"^UP$"}, Reason.BODY),
    ({"json": {"status": "UP", "db.0.lag": 3, "db.0.ok": True}}, None),
    ({"json": {"db.0.ok": 1}}, Reason.JSON),
    ({"json": {"db.1.ok": True}}, Reason.JSON),
    ({"json": {"status.deeper": None}}, Reason.JSON),
    ({"identity": {"header": "X-App", "equals": "shop/1.2"}}, None),
    ({"identity": {"header": "X-App", "equals": "shop"}}, Reason.IDENTITY),
    ({"identity": {"body": "UP"}}, None),
    ({"identity": {"body": "a stranger"}}, Reason.IDENTITY),
]


@pytest.mark.parametrize(("expect", "reason"), EXPECTATIONS, ids=[str(e[0]) for e in EXPECTATIONS])
async def test_expectation(expect: dict[str, object], reason: Reason | None) -> None:
    outcome = await ask_zoo(zoo.saying(PAGE), http="/", expect=expect)

    assert outcome.reason is reason, outcome


@pytest.mark.parametrize("body", [b"not json", b"[" * 60000, b"\xff\xfe", b"9" * 5000], ids=["text", "deep", "not utf-8", "long number"])
async def test_bad_json_is_a_value(body: bytes) -> None:
    outcome = await ask_zoo(zoo.saying(zoo.answer(body)), http="/", expect={"json": {"a": 1}})

    assert outcome.reason is Reason.JSON


async def test_json_beyond_the_cap_says_what_to_do() -> None:
    outcome = await ask_zoo(zoo.saying(zoo.answer(b'{"a": "' + b"x" * 3000)), http="/", max_body="1KiB", expect={"json": {"a": 1}})

    assert outcome.reason is Reason.JSON and "max_body" in outcome.detail


async def test_request_is_as_configured() -> None:
    seen: list[bytes] = []

    def record(sock: socket.socket) -> None:
        seen.append(zoo.read_request(sock))
        sock.sendall(zoo.answer())

    with zoo.Server(record) as server:
        await ask(server.address, http="/health?deep=1", host="shop.example", headers={"X-Token": "t1"}, method="OPTIONS", fresh=True)
        await ask(server.address, http="/")

    lines = seen[0].decode().split("\r\n")
    assert lines[0] == "OPTIONS /health?deep=1 HTTP/1.1"
    assert {"Host: shop.example", "X-Token: t1", "Accept-Encoding: identity", "Connection: close"} < set(lines)
    assert f"Host: {server.address}".encode() in seen[1] and b"Connection" not in seen[1]


async def test_ipv6_is_asked() -> None:
    with zoo.Server(zoo.good, host="::1") as server:
        outcome = await ask(server.address)

    assert outcome.result is Result.OK


async def test_name_is_looked_up() -> None:
    with zoo.Server(zoo.good) as server:
        outcome = await ask(Address("localhost", server.address.port))

    # A machine may have localhost as ::1 first; then the refusal proves the lookup just as well.
    assert outcome.phases.dns is not None
    assert outcome.result is Result.OK or outcome.reason is Reason.REFUSED


async def test_unknown_name_is_evidence_of_nothing() -> None:
    outcome = await ask(Address("no-such-host.invalid", 80), SHORT_S)

    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.NAME_LOOKUP)
    assert "no-such-host.invalid" in outcome.detail


FORBIDDEN = ["169.254.169.254", "::ffff:169.254.169.254", "0xa9.254.169.254", "224.0.0.1", "0.0.0.0", "fd00:ec2::254", "a b"]


@pytest.mark.parametrize("host", FORBIDDEN)
async def test_forbidden_address_is_never_dialed(host: str) -> None:
    outcome = await ask(Address(host, 80))

    assert outcome.result is Result.UNKNOWN
    assert outcome.phases.connect is None
    assert "never asked" in outcome.detail or "neither" in outcome.detail


async def test_impossible_port_is_not_wrapped_into_another() -> None:
    with zoo.Server(zoo.good) as server:
        outcome = await ask(Address("127.0.0.1", server.address.port + 65536))

        assert server.accepted == 0
    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.NAME_LOOKUP)


async def test_own_network_is_evidence_of_nothing() -> None:
    outcome = await ask(Address("fe80::1", 80))  # link-local without an interface: our side cannot even try

    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.OWN_NETWORK)


async def test_a_hundred_endless_bodies_at_once_stay_small() -> None:
    import asyncio
    import resource

    with zoo.Server(zoo.endless_body) as server:
        await ask(server.address)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = await asyncio.gather(*(ask(server.address, AMPLE_S * 3) for _ in range(30)))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert all(o.result is Result.OK for o in outcomes)
    assert after - before < 40 * 1024


PIECES = [
    OK,
    b"HTTP/1.1 100 C\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"\0",
    b"X" * 40,
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(PIECES),
        ),
        max_size=12,
    ),
    is_head=st.booleans(),
)
def test_whatever_arrives_is_read_or_failed(data: list[bytes], is_head: bool) -> None:
    answer = Answer(is_head=is_head, max_body=10)
    try:
        for piece in data:
            if not answer.is_done:
                answer.feed(piece)
        if not answer.is_done:
            answer.end()
    except Failed as failed:
        assert failed.reason is Reason.BAD_RESPONSE
    else:
        assert answer.is_done and answer.has_head
        assert len(answer.body) <= 10
    assert sum(len(n) + len(v) for n, v in answer.headers) <= MAX_HEAD


def test_secret_headers_stay_out_of_the_text() -> None:
    asked = spec(http="/", headers={"Authorization": "Bearer canary-7"})

    assert "canary-7" not in repr(asked) and "canary-7" not in asked.key
