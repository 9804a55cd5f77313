"""Real requests from nginx's own log."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lbplugins.api import BalancerError
from lbplugins.nginx import LOG_FORMAT
from lbplugins.nginx.options import TrafficOptions
from lbplugins.nginx.traffic import MAX_WAITING, Feed, samples
from lbplugins.values import Address, TrafficSample
from tests.plugins.nginx.lab import NginxLab, free_port

A, B, C = (Address("127.0.0.1", port) for port in (9001, 9002, 9003))
V6 = Address("::1", 80)


def line(addresses: str, statuses: str, headers: str, status: str = "200", uri: str = "/a|b: c") -> bytes:
    return f"<190>Nov 22 14:26:42 lb: 1795357602.878|{addresses}|{statuses}|0.1|0.0|{headers}|{status}|0.2|GET|{uri}".encode()


@pytest.mark.parametrize(
    ("datagram", "expected"),
    [
        (line("127.0.0.1:9001", "200", "0.012"), [TrafficSample(A, 200, 0.012, 0, "", 5.0)]),
        (line("127.0.0.1:9001", "503", "0.001", "503"), [TrafficSample(A, 503, 0.001, 0, "", 5.0)]),
        (
            line("127.0.0.1:9001, 127.0.0.1:9002, 127.0.0.1:9003", "503, 502, 200", "0.001, -, 0.000"),
            [TrafficSample(A, 503, 0.001, 0, "", 5.0), TrafficSample(B, 0, None, 1, "server", 5.0), TrafficSample(C, 200, 0.0, 2, "", 5.0)],
        ),
        (
            line("127.0.0.1:9001 : [::1]:80", "302 : 200", "0.001 : 0.5"),
            [TrafficSample(A, 302, 0.001, 0, "", 5.0), TrafficSample(V6, 200, 0.5, 1, "", 5.0)],
        ),
        (line("127.0.0.1:9001", "504", "-", "504"), [TrafficSample(A, 0, None, 0, "balancer", 5.0)]),
        (
            line("127.0.0.1:9001, 127.0.0.1:9002", "502, -", "-, -", "499"),
            [TrafficSample(A, 0, None, 0, "server", 5.0), TrafficSample(B, 0, None, 1, "client", 5.0)],
        ),
        (line("127.0.0.1:9001", "200", "0.1", "499"), [TrafficSample(A, 200, 0.1, 0, "client", 5.0)]),
        (line("shop", "502", "-", "502"), []),
        (line("127.0.0.1:9001, shop", "502, 502", "-, -", "502"), [TrafficSample(A, 0, None, 0, "server", 5.0)]),
        (line("unix:/run/x.sock", "200", "0.1"), []),
        (line("-", "-", "-", "404"), []),
        (line("127.0.0.1:9001, 127.0.0.1:9002", "200", "0.1"), []),
        (line("127.0.0.1:99999", "200", "0.1"), []),
        (line(", ".join(["127.0.0.1:9001"] * 101), ", ".join(["200"] * 101), ", ".join(["0.1"] * 101)), []),
        (b"", []),
        (b"<190>Nov 22 14:26:42 lb: hello", []),
        (b"\xff\xfe" * 100, []),
    ],
)
def test_each_attempt_is_charged_to_the_address_that_was_asked(datagram: bytes, expected: list[TrafficSample]) -> None:
    assert samples(datagram, 5.0) == expected


@settings(deadline=None)
@given(st.binary(max_size=200), st.text(st.sampled_from(list("0123456789.:,-| []shop")), max_size=60))
def test_no_datagram_is_an_error(raw: bytes, text: str) -> None:
    samples(raw, 0.0)
    for sample in samples(line(text, text, text), 0.0):
        assert sample.status == 0 or 100 <= sample.status <= 999


@pytest.mark.parametrize("where", ["", "x", "unix:relative", "unix:/" + "x" * 120, "127.0.0.1:0", "127.0.0.1:http"])
def test_only_places_that_can_be_are_taken(where: str) -> None:
    with pytest.raises(ValidationError):
        TrafficOptions(syslog=where)


async def test_a_slow_reader_loses_the_oldest_and_nobody_waits() -> None:
    port = free_port()
    feed = Feed(f"127.0.0.1:{port}")
    first = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0)
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        many = ", ".join(["127.0.0.1:9001"] * 99), ", ".join(["200"] * 99), ", ".join(["0.1"] * 99)
        sender.sendto(line("127.0.0.1:9001", "201", "0.1"), ("127.0.0.1", port))
        assert [sample.status for sample in await first] == [201]
        while sent < 200:
            sender.sendto(line(*many), ("127.0.0.1", port))
            sent += 1
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            while feed.dropped < 99 * sent - MAX_WAITING:
                await asyncio.sleep(0.01)
    taken = 0
    while taken < MAX_WAITING:
        taken += len(await anext(feed))
    assert taken == MAX_WAITING
    feed.close()
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await anext(feed)


async def test_a_place_that_is_taken_is_told() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        with pytest.raises(BalancerError, match=f"127.0.0.1:{port}.*change `traffic`"):
            await anext(Feed(f"127.0.0.1:{port}"))


async def _collect(feed: Feed, into: list[TrafficSample]) -> None:
    async for batch in feed:
        assert isinstance(batch, Sequence)
        into.extend(batch)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["udp", "unix"])
async def test_nginx_tells_every_attempt(lab: NginxLab, kind: str) -> None:
    with tempfile.TemporaryDirectory() as short:
        port = free_port()
        where, server = (f"127.0.0.1:{port}",) * 2 if kind == "udp" else (f"unix:{short}/log", f"unix:{short}/log")
        dead = f"127.0.0.1:{free_port()}"
        Path(short).chmod(0o755)
        lab.write(f"server {dead} max_fails=0;\n" + lab.text())
        log = f"access_log syslog:server={server},tag=lb,nohostname,severity=info lb_sidecar;"
        got: list[TrafficSample] = []
        plugin = lab.plugin(traffic={"syslog": where})
        feed = plugin.traffic()
        assert isinstance(feed, Feed)
        reader = asyncio.create_task(_collect(feed, got))
        await asyncio.sleep(0)
        lab.configure(log=f"{LOG_FORMAT} {log}")
        lab.reload()
        await asyncio.to_thread(lambda: [lab.ask() for _ in range(12)])
        async with asyncio.timeout(30):
            while len({sample.where for sample in got}) < 4 or sum(sample.status == 200 for sample in got) < 12:
                await asyncio.sleep(0.01)

        refused = [sample for sample in got if sample.where == Address.parse(dead)]
        assert refused and all((s.status, s.seconds, s.cut_by) == (0, None, "server") for s in refused)
        retried = [sample for sample in got if sample.retries == 1]
        assert len(retried) == len(refused) and all(sample.status == 200 for sample in retried)
        assert {str(sample.where) for sample in got} == {dead, *lab.names}
        await plugin.aclose()
        async with asyncio.timeout(30):
            await reader
        assert list(Path(short).iterdir()) == []


def test_without_the_option_there_is_no_feed(lab: NginxLab) -> None:
    assert lab.plugin().traffic() is None
