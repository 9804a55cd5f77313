"""At the door: half requests, big ones, slow ones, too many of them; the unix socket's file; TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import aiohttp.web
import pytest
import trustme
import uvloop

from sidecar.web.certificate import Certificate
from sidecar.web.connections import Crowd, Guarded, Limits
from sidecar.web.options import ApiOptions, TlsOptions
from sidecar.web.server import Web, WebError
from tests.edges.web.conftest import SECRETS, Serve, Surface, bearer
from tests.edges.web.desk import warm

PATIENCE_S = 60.0
HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


async def raw(surface: Surface, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All until the server closes."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Half: ", b"\r\n"])
async def test_half_a_request_is_closed_after_its_deadline(serve: Serve, sent: bytes) -> None:
    surface = await serve(limits=Limits(headers_s=0.2))
    reader, writer = await raw(surface, sent)

    assert await rest(reader) == b""
    writer.close()


async def test_dripping_header_bytes_buys_no_time(serve: Serve) -> None:
    surface = await serve(limits=Limits(headers_s=0.3))
    reader, writer = await raw(surface, HEAD)

    async def drip() -> None:
        while not reader.at_eof():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.02)

    async with asyncio.timeout(PATIENCE_S):
        dripping = asyncio.create_task(drip())
        assert await rest(reader) == b""
        dripping.cancel()
    writer.close()


async def test_the_second_request_of_a_connection_has_the_same_deadline(serve: Serve) -> None:
    surface = await serve(limits=Limits(headers_s=0.2))
    reader, writer = await raw(surface, HEAD + b"\r\n")
    async with asyncio.timeout(PATIENCE_S):
        assert b"200 OK" in await reader.readuntil(b"\r\n")
        await reader.readuntil(b"}")
    writer.write(HEAD)

    assert await rest(reader) == b""
    writer.close()


async def test_a_body_that_does_not_come_is_answered_408_and_closed(serve: Serve) -> None:
    surface = await serve(limits=Limits(request_s=0.3))
    head = (
        f"PUT /api/v1/freeze HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nAuthorization: {bearer('ADMIN')['Authorization']}\r\n\r\n"
    )
    reader, writer = await raw(surface, head.encode() + b"{")

    answer = await rest(reader)

    assert answer.startswith(b"HTTP/1.1 408") and b"not done within 0.3 s" in answer
    writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_64_kib_is_refused(serve: Serve, chunked: bool) -> None:
    surface = await serve()
    body = b'{"reason": "' + b"x" * (64 << 10) + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 8192):
            yield body[at : at + 8192]

    headers = {**bearer("ADMIN"), "Content-Type": "application/json"}
    async with surface.tcp.put("/api/v1/freeze", data=chunks() if chunked else body, headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["cure"] == "send less"
    assert surface.desk.commands == []


CHUNKED = b"PUT /api/v1/freeze HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (64 << 10, b"a" * (64 << 10))


async def test_a_body_that_arrives_at_once_with_its_head_is_answered_by_what_the_head_says(serve: Serve) -> None:
    surface = await serve()
    reader, writer = await raw(surface, CHUNKED + CHUNK + CHUNK + b"0\r\n\r\n")

    async with asyncio.timeout(PATIENCE_S):
        assert b" 401 " in await reader.readline()
    writer.close()


def gzipped(extra: str = "") -> bytes:
    head = f"PUT /api/v1/freeze HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n{extra}"
    return head.encode() + b"Content-Length: 24\r\n\r\n" + b"\x1f\x8b\x08\x00" + b"\x00" * 20


ADMIN = f"Authorization: {bearer('ADMIN')['Authorization']}\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n", 400),
        (b"BREW /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (CHUNKED + b"zz\r\n", 400),
        (gzipped(), 401),
        (gzipped(ADMIN), 400),
    ],
)
async def test_what_is_no_http_is_told_to_its_sender_and_fills_no_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    surface = await serve()
    reader, writer = await raw(surface, sent)

    async with asyncio.timeout(PATIENCE_S):
        assert b" %d " % status in await reader.readline()
    writer.write_eof()
    await rest(reader)
    writer.close()
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


@pytest.mark.parametrize(
    ("headers", "status"), [({"X-Long": "x" * 9000}, 400), ({f"X-{n}": "y" * 4000 for n in range(5)}, 431), ({"X": "y" * 7000}, 200)]
)
async def test_headers_over_16_kib_are_refused(serve: Serve, headers: dict[str, str], status: int) -> None:
    surface = await serve()

    async with surface.tcp.get("/livez", headers=headers) as answer:
        assert answer.status == status


async def test_half_open_connections_starve_nobody(serve: Serve) -> None:
    surface = await serve(limits=Limits(connections=8))
    half = [await raw(surface, HEAD) for _ in range(40)]

    for _ in range(20):
        async with aiohttp.ClientSession(surface.base) as session, session.get("/livez") as answer:
            assert answer.status == 200

    for _, writer in half:
        writer.close()


async def test_when_all_are_busy_the_next_is_told_so(serve: Serve) -> None:
    surface = await serve(limits=Limits(connections=2))
    streams = [await surface.tcp.get("/api/v1/events") for _ in range(2)]

    async with aiohttp.ClientSession(surface.base) as session, session.get("/livez") as answer:
        assert answer.status == 503
        assert (await answer.json())["error"] == "too many connections"
    assert surface.unix is not None
    async with surface.unix.get("/livez") as answer:
        assert answer.status == 200

    for stream in streams:
        stream.close()


async def test_a_reader_that_stalls_in_an_answer_is_dropped(serve: Serve) -> None:
    surface = await serve(warm(80, seconds=1.0), limits=Limits(stalled_s=0.3, request_s=30))
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(lazy, ("127.0.0.1", surface.port))
    await loop.sock_sendall(lazy, b"GET /api/v1/services HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)

    async with asyncio.timeout(PATIENCE_S):
        while not surface.web._tcp.by_transport:
            await asyncio.sleep(0.01)
        while surface.web._tcp.by_transport:
            await asyncio.sleep(0.01)

    lazy.close()


class Wire(asyncio.Transport):
    """A connection from an address that no socket of this machine can have."""

    def __init__(self, ip: str, protocol: Guarded) -> None:
        super().__init__({"peername": (ip, 40000)})
        self.written, self.is_open, self._protocol = b"", True, protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


async def test_the_limit_per_ip_holds_for_strangers_only() -> None:
    crowd = Crowd(Limits(per_ip=2))
    server = aiohttp.web.Server(lambda request: None, access_log=None)  # type: ignore[arg-type, return-value]

    def come(ip: str, *, busy: bool = False) -> Wire:
        protocol = Guarded(server(), crowd)
        wire = Wire(ip, protocol)
        protocol.connection_made(wire)
        if busy:
            crowd.busy(wire)
        return wire

    busy = [come("192.0.2.1", busy=True) for _ in range(3)]
    waiting = [come("::ffff:192.0.2.2") for _ in range(3)]
    local = [come(ip, busy=True) for ip in ("127.0.0.1", "127.0.0.2", "::1") * 2]

    assert [w.is_open for w in busy] == [True, True, False]
    assert b"503 Service Unavailable" in busy[2].written
    assert [w.is_open for w in waiting] == [False, True, True]
    assert all(w.is_open for w in local)

    crowd.close()
    await asyncio.sleep(0)
    assert crowd.by_transport == {} and crowd.by_ip == {}


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez HTTP/1.1\nHost: localhost\n\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET  /livez\r\n\r\n",
        b"POST /api/v1/release HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"\x00" * 5000,
    ],
)
async def test_what_is_no_http_harms_nobody(serve: Serve, junk: bytes) -> None:
    surface = await serve(limits=Limits(headers_s=0.3))
    reader, writer = await raw(surface, junk)
    await rest(reader)
    writer.close()

    async with surface.tcp.get("/livez") as answer:
        assert answer.status == 200
    assert surface.desk.commands == []


# ---- the unix socket's file ----


def options(path: Path) -> ApiOptions:
    return ApiOptions.model_validate({"listen": None, "socket": str(path)})


async def test_the_socket_is_for_its_owner_and_group_and_goes_with_us(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    web = Web(options(path), warm(seconds=1.0), env=SECRETS)

    assert await web.open() == []
    mode = stat.S_IMODE(os.stat(path).st_mode)
    await web.close()
    await web.close()

    assert mode == 0o660
    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    web = Web(options(path), warm(seconds=1.0), env=SECRETS)

    assert await web.open() == []
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session, session.get("http://x/livez") as answer:
        assert answer.status == 200
    await web.close()


async def test_a_live_socket_is_left_alone_and_we_go_on_without(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first, second = (Web(options(path), warm(seconds=1.0), env=SECRETS) for _ in range(2))
    assert await first.open() == []

    warnings = await second.open()
    await second.close()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session, session.get("http://x/livez") as answer:
        assert answer.status == 200
    await first.close()

    assert warnings == [f"no api socket: {path} is served by a running process; running without it"]


@pytest.mark.parametrize(("kind", "word"), [("file", "is no socket and is left alone"), ("folderless", "must exist"), ("long", "too long")])
async def test_where_no_socket_can_be_we_go_on_without(tmp_path: Path, kind: str, word: str) -> None:
    path = {"file": tmp_path / "file", "folderless": tmp_path / "none" / "api.sock", "long": tmp_path / ("x" * 120)}[kind]
    if kind == "file":
        path.write_text("precious")
    web = Web(options(path), warm(seconds=1.0), env=SECRETS)

    warnings = await web.open()
    await web.close()

    assert len(warnings) == 1 and word in warnings[0]
    assert kind != "file" or path.read_text() == "precious"


async def test_a_taken_address_is_told_with_a_cure(serve: Serve) -> None:
    surface = await serve()
    web = Web(surface.web.options.model_copy(update={"socket": None}), surface.desk, env=SECRETS)

    with pytest.raises(WebError) as caught:
        await web.open()
    await web.close()

    assert "is taken by another process; choose another address" in str(caught.value)


async def test_what_a_reload_cannot_change_is_told(serve: Serve) -> None:
    surface = await serve()
    changed = ApiOptions.model_validate({"listen": None, "socket": str(surface.web.options.socket), "tokens": {}})

    assert surface.web.renew(changed, {}) == ["api.listen is changed; it takes effect at the next start"]
    async with surface.tcp.put("/api/v1/freeze", json={}, headers=bearer("ADMIN")) as answer:
        assert answer.status == 421  # no TCP name is ours any more


# ---- TLS ----


def written(folder: Path, authority: trustme.CA) -> TlsOptions:
    pair = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    key.write_bytes(pair.private_key_pem.bytes())
    return TlsOptions(cert=cert, key=key)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_https_with_a_token(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    surface = await serve(tls=written(tmp_path, authority).model_dump())

    async with surface.tcp.get("/api/v1/services", headers=bearer("READ"), ssl=trusting(authority)) as answer:
        assert answer.status == 200
    async with surface.tcp.get("/api/v1/services", headers={"Origin": surface.base}, ssl=trusting(authority)) as answer:
        assert answer.status == 200


async def test_a_renewed_certificate_is_taken_without_a_restart_and_a_broken_one_is_not(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    certificate = Certificate(written(tmp_path, old), check_s=0.02)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=certificate.open())
    port = server.sockets[0].getsockname()[1]

    async def greets(authority: trustme.CA) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority), server_hostname="127.0.0.1")
        except ssl.SSLError:
            return False
        writer.close()
        return True

    (tmp_path / "cert.pem").write_text("broken")
    await asyncio.sleep(0.1)
    assert await greets(old)
    written(tmp_path, new)
    async with asyncio.timeout(PATIENCE_S):
        while not await greets(new):
            await asyncio.sleep(0.02)

    certificate.close()
    server.close()
    await server.wait_closed()


async def test_a_missing_certificate_is_told(tmp_path: Path) -> None:
    given = {"listen": "127.0.0.1:31999", "socket": None, "tls": {"cert": str(tmp_path / "no.pem"), "key": str(tmp_path / "no.key")}}
    web = Web(ApiOptions.model_validate(given), warm(seconds=1.0), env=SECRETS)

    with pytest.raises(WebError, match="both PEM files must be readable"):
        await web.open()
    await web.close()


def test_all_of_it_runs_on_uvloop_as_well(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def asked() -> tuple[int, bytes, list[str]]:
        web = Web(options(path), warm(seconds=1.0), env=SECRETS)
        warnings = await web.open()
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            async with session.put("http://x/api/v1/freeze", json={}) as answer:
                status = answer.status
            async with session.get("http://x/api/v1/events") as answer:
                line = await answer.content.readline()
                await web.close()
        return status, line, warnings

    assert uvloop.run(asyncio.wait_for(asked(), PATIENCE_S)) == (200, b"retry: 3000\n", [])
