"""Real requests from HAProxy's log."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbplugins.api import BalancerError
from lbplugins.haproxy import HAProxy, HAProxyOptions
from lbplugins.haproxy.options import TrafficOptions
from lbplugins.haproxy.traffic import LOG_FORMAT, MOST_WAITING, Traffic, parse
from lbplugins.values import Ref, TrafficSample

from .lab import VERSIONS, Box, HeldPort, Origin, free_port

HEADERS = {
    "raw": "",
    "short": "<134>",
    "rfc3164": "<134>Nov 24 10:00:00 haproxy[123]: ",
    "rfc3164 with a host": "<134>Nov  4 10:00:00 edge-1 haproxy[123]: ",
    "rfc5424": "<134>1 2026-11-24T10:00:00.123456+00:00 - haproxy 123 - - ",
    "rfc5424 with structured data": '<134>1 2026-11-24T10:00:00.123456+00:00 edge-1 haproxy 123 - [id@1 a="b"] ',
}
HTTPLOG = (
    '127.0.0.1:41206 [22/Nov/2026:14:24:00.3] fe~ {where} 0/0/1/{answer}/5059 {status} 198 - - {end} 1/1/0/0/{retries} 0/0 "GET / HTTP/1.1"'
)
HC1 = "HC1 127.0.0.1 fe {pool} {server} 0 0 1 {answer} 5059 {status} 198 {end} {retries} 0/0 1 GET /hang"


def line(form: str, header: str = "", *, pool: str = "be", server: str = "s1", fields: dict[str, object] | None = None) -> str:
    filled = {"answer": 12, "status": 200, "end": "----", "retries": "0", **(fields or {})}
    return header + form.format(where=f"{pool}/{server}", pool=pool, server=server, **filled)


@pytest.mark.parametrize("form", [HTTPLOG, HC1], ids=["httplog", "HC1"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_each_header_and_format(form: str, header: str) -> None:
    assert parse(line(form, header), 5.0) == TrafficSample(Ref("be", "s1"), 200, 0.012, 0, "", 5.0)


@pytest.mark.parametrize("form", [HTTPLOG, HC1], ids=["httplog", "HC1"])
@pytest.mark.parametrize(
    ("fields", "status", "seconds", "retries", "cut_by"),
    [
        ({"status": 503, "answer": 3}, 503, 0.003, 0, ""),  # its own 503
        ({"status": 502, "answer": -1, "end": "SH--"}, 0, None, 0, "server"),  # reset
        ({"status": 504, "answer": -1, "end": "sH--"}, 0, None, 0, "server"),  # hung
        ({"status": 200, "answer": 5, "end": "cD--"}, 200, 0.005, 0, "client"),
        ({"status": 400, "answer": -1, "end": "CH--"}, 0, None, 0, "client"),
        ({"status": 502, "answer": -1, "end": "PH--"}, 0, None, 0, "balancer"),
        ({"retries": "+1"}, 200, 0.012, 1, ""),
        ({"retries": 3}, 200, 0.012, 3, ""),
        ({"answer": 0}, 200, 0.0, 0, ""),
    ],
)
def test_what_the_server_did(form: str, fields: dict[str, object], status: int, seconds: float | None, retries: int, cut_by: str) -> None:
    assert parse(line(form, fields=fields), 1.0) == TrafficSample(Ref("be", "s1"), status, seconds, retries, cut_by, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "<134>", "Server be/s1 is DOWN, reason: Layer4 connection problem",
        line(HTTPLOG, server="<NOSRV>"), line(HC1, server="<NOSRV>"),
        line(HC1, server="a;b"), line(HTTPLOG)[:60], "x" * 100_000, "127.0.0.1:1 [24/Nov/2026] " + "a/" * 5000,
    ],
)  # fmt: skip
def test_other_lines_are_no_request(text: str) -> None:
    assert parse(text, 0.0) is None


def test_a_path_that_looks_like_a_log_line_changes_nothing() -> None:
    assert parse(line(HC1) + line(HTTPLOG, pool="evil"), 0.0) == parse(line(HC1), 0.0)


@settings(deadline=None)
@given(st.text() | st.text(alphabet="HC1 -/:[]<>0123456789"))
def test_any_line_is_a_request_or_none(text: str) -> None:
    sample = parse(text, 0.0)
    assert sample is None or isinstance(sample.where, Ref)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hap") as name:
        yield Path(name)


@pytest.fixture
async def traffic(folder: Path) -> AsyncIterator[Traffic]:
    traffic = Traffic(TrafficOptions(syslog=f"unix:{folder / 'log.sock'}"))
    await traffic.listen()
    yield traffic
    await traffic.close()
    await traffic.close()


def send(folder: Path, *lines: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(folder / "log.sock"))
        for text in lines:
            sender.send(text.encode())


async def test_batches_end_when_it_is_closed(traffic: Traffic, folder: Path) -> None:
    await asyncio.to_thread(send, folder, line(HC1), "nonsense", line(HTTPLOG))
    got: list[TrafficSample] = []
    async with asyncio.timeout(30):
        async for batch in traffic.batches():
            got += batch
            if len(got) == 2:
                await traffic.close()

    assert [sample.where for sample in got] == [Ref("be", "s1")] * 2 and traffic.strange == 1
    assert not (folder / "log.sock").exists()


async def test_without_a_reader_the_oldest_go(traffic: Traffic) -> None:
    for number in range(MOST_WAITING + 3):
        traffic.datagram_received(line(HC1, fields={"answer": number}).encode(), None)

    first = await anext(traffic.batches())

    assert traffic.dropped == 3 and first[0].seconds == 0.003


async def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(traffic: Traffic, folder: Path) -> None:
    with pytest.raises(BalancerError, match="another sidecar"):
        await Traffic(TrafficOptions(syslog=f"unix:{folder / 'log.sock'}")).listen()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as earlier:
        earlier.bind(str(folder / "left.sock"))
    later = Traffic(TrafficOptions(syslog=f"unix:{folder / 'left.sock'}"))
    await later.listen()
    await later.close()

    (folder / "file").write_text("mine")
    with pytest.raises(BalancerError):
        await Traffic(TrafficOptions(syslog=f"unix:{folder / 'file'}")).listen()
    assert (folder / "file").read_text() == "mine"


# ---- real HAProxy ----


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


async def listening(folder: Path, kind: str) -> tuple[HAProxy, str]:
    """A plugin that hears log lines, and where; its HAProxy is started afterwards, at this socket."""
    while True:
        where = f"unix:{folder / 'log.sock'}" if kind == "unix" else f"127.0.0.1:{free_port()}"
        options = {"socket": str(folder / "none.sock"), "traffic": {"syslog": where}}
        plugin = HAProxy(HAProxyOptions.model_validate(options))
        with pytest.raises(BalancerError) as caught:  # HAProxy does not run yet; the listener does
            await plugin.open()
        if "cannot listen" not in str(caught.value):
            return plugin, where


async def samples(plugin: HAProxy, count: int) -> Sequence[TrafficSample]:
    feed = plugin.traffic()
    assert feed is not None
    got: list[TrafficSample] = []
    async with asyncio.timeout(30):
        async for batch in feed:
            got += batch
            if len(got) >= count:
                break
    return got


@pytest.mark.real
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["udp", "unix"])
@pytest.mark.parametrize("form", ["option httplog", f'log-format "{LOG_FORMAT}"'], ids=["httplog", "HC1"])
async def test_real_requests_arrive(version: str, kind: str, form: str, origin: Origin, folder: Path) -> None:
    plugin, where = await listening(folder, kind)
    target = where.removeprefix("unix:")
    dead = HeldPort()
    logs = "\n".join(f"    log {target} len 2048 format {header} local0" for header in ("raw", "rfc3164", "rfc5424"))
    backends = f"backend e\n    server x 127.0.0.1:{origin.port}\nbackend gone\n    retries 1\n    server x 127.0.0.1:{dead.number}\n"
    box = await asyncio.to_thread(Box, version, backends, defaults=f"{form}\n{logs}")
    try:
        started = asyncio.get_running_loop().time()
        assert box.get("/e") == 200
        good = await samples(plugin, 3)
        assert len(good) == 3 and {(s.where, s.status, s.cut_by, s.retries) for s in good} == {(Ref("e", "x"), 200, "", 0)}
        assert all(s.seconds is not None and s.seconds >= 0 and s.at >= started for s in good)

        client = threading.Thread(target=box.get, args=("/gone",))
        client.start()
        bad = await samples(plugin, 3)
        await asyncio.to_thread(client.join, 30)
        assert {(s.where, s.status, s.seconds, s.retries > 0) for s in bad} == {(Ref("gone", "x"), 0, None, True)}
    finally:
        box.close()
        dead.close()
        await plugin.aclose()
