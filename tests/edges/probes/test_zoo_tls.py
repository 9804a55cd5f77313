"""TLS and gRPC: every bad certificate and every odd answer by its exact reason."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from lbplugins.values import Address
from sidecar.core.model import Reason, Result
from sidecar.probes.once import probe_once
from tests.edges import zoo
from tests.edges.probes.lab import SHORT_S, ask, ask_zoo, authority, ca_file, server_context, spec


async def test_trusted_certificate_is_good(tmp_path: Path) -> None:
    ca = ca_file(tmp_path)

    https = await ask_zoo(zoo.good, tls=server_context("shop.example"), https="/", host="shop.example", tls_={"ca": ca})
    by_ip = await ask_zoo(zoo.good, tls=server_context("127.0.0.1"), https="/", tls_={"ca": ca})
    alone = await ask_zoo(zoo.good, tls=server_context("shop.example"), host="shop.example", tls_={"ca": ca})

    for outcome in (https, by_ip, alone):
        assert outcome.result is Result.OK, outcome
        assert outcome.phases.tls is not None and outcome.advice == ""
    assert https.phases.first_byte is not None and alone.phases.first_byte is None


async def test_expired_certificate(tmp_path: Path) -> None:
    outcome = await ask_zoo(
        zoo.good, tls=server_context("shop.example", days=-1), https="/", host="shop.example", tls_={"ca": ca_file(tmp_path)}
    )

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.TLS_EXPIRED)


async def test_certificate_of_another_name(tmp_path: Path) -> None:
    ca = ca_file(tmp_path)

    name = await ask_zoo(zoo.good, tls=server_context("other.example"), https="/", host="shop.example", tls_={"ca": ca})
    ip = await ask_zoo(zoo.good, tls=server_context("shop.example"), https="/", tls_={"ca": ca})

    for outcome in (name, ip):
        assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.TLS_NAME), outcome
        assert "server_name" in outcome.detail


async def test_untrusted_authority() -> None:
    outcome = await ask_zoo(zoo.good, tls=server_context("shop.example", ca=trustme.CA()), https="/", host="shop.example")

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.TLS)
    assert "tls.ca" in outcome.detail


async def test_unverified_certificate_is_told() -> None:
    context = server_context("other.example", days=-1, ca=trustme.CA())

    outcome = await ask_zoo(zoo.good, tls=context, https="/", tls_={"verify": False})

    assert outcome.result is Result.OK
    assert "not verified" in outcome.advice


async def test_certificate_that_soon_expires_is_good_with_advice(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"https": "/", "host": "shop.example"}
    ca = ca_file(tmp_path)

    warned = await ask_zoo(zoo.good, tls=server_context("shop.example", days=13.5), tls_={"ca": ca}, **keys)
    told_not_to = await ask_zoo(zoo.good, tls=server_context("shop.example", days=13.5), tls_={"ca": ca, "warn_days": 7}, **keys)

    assert warned.result is Result.OK and "expires in 13.5 days" in warned.advice
    assert told_not_to.result is Result.OK and told_not_to.advice == ""


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    context = server_context("shop.example")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    keys: dict[str, Any] = {"https": "/", "host": "shop.example"}
    ca = ca_file(tmp_path)

    fine = await ask_zoo(zoo.good, tls=context, tls_={"ca": ca}, **keys)
    too_old = await ask_zoo(zoo.good, tls=context, tls_={"ca": ca, "min_version": "1.3"}, **keys)

    assert fine.result is Result.OK
    assert too_old.reason is Reason.TLS


async def test_client_certificate(tmp_path: Path) -> None:
    context = server_context("shop.example")
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    own = authority().issue_cert("sidecar.example")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    ca = ca_file(tmp_path)
    keys: dict[str, Any] = {"https": "/", "host": "shop.example"}

    shown = await ask_zoo(zoo.good, tls=context, tls_={"ca": ca, "cert": str(tmp_path / "own.pem")}, **keys)
    missing = await ask_zoo(zoo.good, tls=context, tls_={"ca": ca}, **keys)

    assert shown.result is Result.OK
    assert missing.result is Result.FAIL and missing.reason in (Reason.TLS, Reason.RESET)


async def test_plain_http_on_a_tls_port() -> None:
    outcome = await ask_zoo(zoo.saying(zoo.answer()), SHORT_S, https="/")

    # The zoo waits for a complete request head, which a ClientHello never is.
    assert outcome.reason in (Reason.TIMEOUT, Reason.OWN_LAG)

    outcome = await ask_zoo(_answers_anything, https="/")

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.TLS)


def _answers_anything(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(zoo.answer(status="400 Bad Request"))
    zoo.wait_for_end(sock)


@pytest.mark.parametrize(
    ("behaviour", "reason"), [(zoo.hurried_reset, Reason.RESET), (zoo.closing, Reason.TLS), (zoo.spontaneous, Reason.TLS)]
)
async def test_broken_handshake(behaviour: zoo.Behaviour, reason: Reason) -> None:
    outcome = await ask_zoo(behaviour, https="/")

    assert (outcome.result, outcome.reason) == (Result.FAIL, reason), outcome
    assert "tls" in outcome.detail


@pytest.mark.parametrize(("said", "phase"), [(b"", "headers"), (zoo.answer(b"half")[:-2], "body")])
async def test_reset_under_tls_is_a_reset(said: bytes, phase: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"https": "/", "host": "shop.example", "tls_": {"ca": ca_file(tmp_path)}}

    outcome = await ask_zoo(_saying_then_reset(said), tls=server_context("shop.example"), **keys)

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.RESET), outcome
    assert phase in outcome.detail


def _saying_then_reset(said: bytes) -> zoo.Behaviour:
    def behave(sock: socket.socket) -> None:
        zoo.read_request(sock)
        sock.sendall(said)
        time.sleep(0.1)  # not for timing: a reset at once would take what was said with it
        zoo.reset(sock)

    return behave


async def test_silent_handshake_times_out() -> None:
    outcome = await ask_zoo(zoo.silent, SHORT_S, tls_=True)

    assert outcome.reason in (Reason.TIMEOUT, Reason.OWN_LAG) and "TLS not agreed" in outcome.detail


async def test_tcp_needs_only_the_connection() -> None:
    outcome = await ask_zoo(zoo.silent, tcp=True)
    with zoo.closed_port() as address:
        refused = await ask(address, tcp=True)

    assert outcome.result is Result.OK
    assert refused.reason is Reason.REFUSED


async def test_missing_ca_file_says_which() -> None:
    with pytest.raises(ValueError, match=r"probe https:/#\w+: ca /no/such\.pem: cannot be read"):
        await probe_once(spec(https="/", tls={"ca": "/no/such.pem"}), Address("127.0.0.1", 1))


# ---- gRPC ----


GRPC: list[tuple[str, zoo.Behaviour, str, Reason | None, str]] = [
    ("whole server", zoo.Grpc({"": 1}), "", None, ""),
    ("one service", zoo.Grpc({"shop.v1.Cart": 1}), "shop.v1.Cart", None, ""),
    ("not serving", zoo.Grpc({"": 2}), "", Reason.STATUS, "NOT_SERVING"),
    ("unknown to itself", zoo.Grpc({"": 0}), "", Reason.STATUS, "UNKNOWN"),
    ("no such service", zoo.Grpc({"": 1}), "cart", Reason.STATUS, "does not know this service name (unknown service)"),
    ("an HTTP/1 server", zoo.saying(zoo.answer(status="400 Bad Request")), "", Reason.BAD_RESPONSE, "not a valid HTTP/2 answer"),
    ("FIN", zoo.closing, "", Reason.BAD_RESPONSE, "closed without a complete answer"),
    ("RST", zoo.hurried_reset, "", Reason.RESET, "headers"),
    ("NULs", zoo.saying(b"\0" * 100), "", Reason.BAD_RESPONSE, "HTTP/2"),
    (
        "endless pings",
        zoo.saying(b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\6\0\0\0\0\0abcdefgh" * 8000),
        "",
        Reason.BAD_RESPONSE,
        "more than 100 HTTP/2 frames",
    ),
    ("goodbye", zoo.saying(b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\x0b"), "", Reason.BAD_RESPONSE, "gave the call up"),
]


@pytest.mark.parametrize(("behaviour", "service", "reason", "detail"), [g[1:] for g in GRPC], ids=[g[0] for g in GRPC])
async def test_grpc(behaviour: zoo.Behaviour, service: str, reason: Reason | None, detail: str) -> None:
    outcome = await ask_zoo(behaviour, grpc=service)

    assert outcome.reason is reason, outcome
    assert detail in outcome.detail


async def test_grpc_request_is_as_the_standard_has_it() -> None:
    server = zoo.Grpc({"": 1})

    outcome = await ask_zoo(server, grpc="")

    assert outcome.phases.first_byte is not None
    seen = server.seen[0]
    assert (seen[":method"], seen[":path"], seen["te"]) == ("POST", "/grpc.health.v1.Health/Check", "trailers")


async def test_grpc_in_tls_needs_h2(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"grpc": "", "host": "shop.example", "tls_": {"ca": ca_file(tmp_path)}}

    good = await ask_zoo(zoo.Grpc({"": 1}), tls=server_context("shop.example", alpn=["h2"]), **keys)
    without = await ask_zoo(zoo.Grpc({"": 1}), tls=server_context("shop.example"), **keys)

    assert good.result is Result.OK and good.phases.tls is not None
    assert without.reason is Reason.BAD_RESPONSE and "ALPN" in without.detail


async def test_silent_grpc_times_out() -> None:
    outcome = await ask_zoo(zoo.silent, SHORT_S, grpc="")

    assert outcome.reason in (Reason.TIMEOUT, Reason.OWN_LAG)
