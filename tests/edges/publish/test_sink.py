"""A sink against real receivers: good, away, slow, stuck, rude, killed and back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from lbplugins.values import Address
from sidecar.net.tls import TlsOptions
from sidecar.publish.stream import Stream
from tests.edges.publish.receiver import Receiver, bound, running, until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def numbered(count: int, start: int = 0, size: int = 0) -> list[bytes]:
    return [f"{i} ".encode().ljust(size, b"x") + b"\n" for i in range(start, start + count)]


def on_both_loops(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[LoopFactory], None]:
    """A test for each loop that the daemon may run on: their transports write, pause and close each in its own way."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def test(loop_factory: LoopFactory) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(scenario())

    return test


@contextlib.asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[Receiver]:
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()


def whole(sink: Stream) -> int:
    count = sink.count()
    return count.sent + count.dropped + count.waiting


@on_both_loops
async def test_lines_arrive_in_order_and_are_counted() -> None:
    async with listening(Receiver()) as receiver:
        sink = Stream("graphite", receiver.address)
        async with running(sink.run):
            sink.offer(numbered(3000))
            await until(lambda: len(receiver.lines) == 3000)

            assert receiver.lines == numbered(3000)
            assert sink.count().sent == 3000
            assert sink.count().dropped == 0
            assert sink.count().connected
            assert receiver.connections == 1


@on_both_loops
async def test_what_was_offered_before_the_receiver_existed_is_sent_when_it_comes() -> None:
    place = bound()
    sink = Stream("graphite", Address(*place.getsockname()), longest_wait_s=0.2)
    sink.offer(numbered(5))
    async with running(sink.run):
        await asyncio.sleep(0.1)
        assert sink.count() == type(sink.count())(0, 0, 5, False)

        address = Address(*place.getsockname())
        place.close()
        receiver = await Receiver().start(address)
        await until(lambda: len(receiver.lines) == 5)
        await receiver.stop()

    assert receiver.lines == numbered(5)


@on_both_loops
async def test_a_full_queue_drops_its_oldest_and_counts_them() -> None:
    place = bound()
    sink = Stream("graphite", Address(*place.getsockname()), max_waiting=1000)

    sink.offer(numbered(1500))

    assert sink.count().dropped == 500
    assert sink.count().waiting == 1000
    assert sink._waiting[0] == numbered(1, 500)[0]
    place.close()


@on_both_loops
async def test_a_queue_of_few_long_lines_is_bounded_in_bytes_too() -> None:
    sink = Stream("logstash", Address("127.0.0.1", 1))

    sink.offer([b"x" * 1_000_000 + b"\n"] * 100)
    sink.offer([b"x" * 2_000_000 + b"\n"])

    assert sink.count().waiting == 16
    assert sink.count().dropped == 85


@on_both_loops
async def test_a_killed_receiver_that_comes_back_gets_what_came_since() -> None:
    receiver = await Receiver().start()
    sink = Stream("graphite", receiver.address, longest_wait_s=0.2)
    async with running(sink.run):
        sink.offer(numbered(10))
        await until(lambda: len(receiver.lines) == 10)
        await receiver.stop()
        await until(lambda: not sink.count().connected)
        sink.offer(numbered(10, 10))

        again = await Receiver().start(receiver.address)
        await until(lambda: len(again.lines) == 10)
        await again.stop()

    assert again.lines == numbered(10, 10)
    assert sink.count().sent == 20
    assert sink.count().dropped == 0


@on_both_loops
async def test_a_receiver_that_never_reads_costs_lines_and_nothing_else() -> None:
    receiver = await Receiver(read=False, rcvbuf=4096).start()
    sink = Stream("logstash", receiver.address, max_waiting=100, longest_wait_s=0.2)
    produced = 0
    async with running(sink.run):
        async with asyncio.timeout(60):
            while sink.count().dropped == 0 or receiver.connections < 2:
                sink.offer(numbered(50, produced, size=10_000))
                produced += 50
                await asyncio.sleep(0.01)
        under_way = sink._under_way
        assert whole(sink) + under_way == produced
        assert sink.count().waiting <= 100
    await receiver.stop()


@on_both_loops
async def test_a_receiver_that_hangs_up_again_and_again_is_not_stormed() -> None:
    rude = await Receiver(hang_up_after=0).start()
    sink = Stream("graphite", rude.address)
    produced = 0
    async with running(sink.run):
        for _ in range(60):
            sink.offer(numbered(5, produced))
            produced += 5
            await asyncio.sleep(0.02)

        assert 1 <= rude.connections <= 15
        assert whole(sink) + sink._under_way == produced
    await rude.stop()


@on_both_loops
async def test_whatever_a_receiver_says_is_thrown_away() -> None:
    receiver = await Receiver(garbage=b"\x00\xff<html>" * 100_000).start()
    sink = Stream("graphite", receiver.address)
    async with running(sink.run):
        sink.offer(numbered(10))
        await until(lambda: len(receiver.lines) == 10)
    await receiver.stop()

    assert sink.count().sent == 10


@on_both_loops
async def test_what_waits_is_sent_before_the_end() -> None:
    async with listening(Receiver()) as receiver:
        sink = Stream("logstash", receiver.address)
        async with running(sink.run) as task:
            await until(lambda: sink.count().connected)
            sink.offer(numbered(2000))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        await until(lambda: len(receiver.lines) == 2000)

        assert sink.count().sent == 2000
        assert not sink.count().connected


@on_both_loops
async def test_the_end_does_not_wait_for_a_receiver_that_never_reads() -> None:
    receiver = await Receiver(read=False, rcvbuf=4096).start()
    sink = Stream("logstash", receiver.address)
    async with running(sink.run) as task:
        await until(lambda: sink.count().connected)
        sink.offer(numbered(5000, size=1000))
        await asyncio.sleep(0.05)
        task.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(task, return_exceptions=True)
    await receiver.stop()

    assert whole(sink) == 5000
    assert sink.count().sent < 5000


@on_both_loops
async def test_the_end_while_nothing_can_be_reached_comes_at_once() -> None:
    place = bound()
    sink = Stream("graphite", Address(*place.getsockname()))
    sink.offer(numbered(3))
    async with running(sink.run) as task:
        await asyncio.sleep(0.1)
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)
    place.close()

    assert sink.count().waiting == 3


@on_both_loops
async def test_a_port_that_connects_to_itself_is_no_receiver() -> None:
    """Within the range of outgoing ports, a loop of connecting to a dead one meets itself sooner or later."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low = int(file.read().split()[0])
    sink = Stream("graphite", Address("127.0.0.1", low + 1), longest_wait_s=0.05)
    sink.offer(numbered(1))
    async with running(sink.run):
        await asyncio.sleep(1.0)

    assert sink.count().sent == 0


async def test_a_name_that_does_not_exist_is_only_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    sink = Stream("graphite", Address("no-such-host.invalid", 2003))
    with caplog.at_level(logging.WARNING, "sidecar.publish"):
        async with running(sink.run):
            await until(lambda: bool(caplog.records))

    assert "check publish.graphite" in caplog.text
    assert "no-such-host.invalid" in caplog.text


async def test_an_outage_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    place = bound()
    address = Address(*place.getsockname())
    sink = Stream("graphite", address, longest_wait_s=0.1)
    with caplog.at_level(logging.WARNING, "sidecar.publish"):
        async with running(sink.run):
            await asyncio.sleep(0.5)
            place.close()
            receiver = await Receiver().start(address)
            await until(lambda: sink.count().connected)
            await receiver.stop()

    assert caplog.records[0].message.startswith("graphite at 127.0.0.1")
    assert len([r for r in caplog.records if "cannot be sent to" in r.message]) == 1
    assert len([r for r in caplog.records if "takes lines again" in r.message]) == 1


@on_both_loops
async def test_lines_go_over_tls_to_whom_we_trust_and_to_nobody_else() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    receiver = await Receiver(tls=context).start()
    with authority.cert_pem.tempfile() as ca:
        trusting = Stream("logstash", receiver.address, TlsOptions(ca=Path(ca)))
        doubting = Stream("logstash", receiver.address, TlsOptions(), longest_wait_s=0.2)
        async with running(trusting.run), running(doubting.run):
            trusting.offer(numbered(3000))
            doubting.offer(numbered(3, 9000))
            await until(lambda: len(receiver.lines) == 3000 and doubting._is_away)
            trusting.offer(numbered(10, 3000))
        await until(lambda: len(receiver.lines) == 3010)
    await receiver.stop()

    assert receiver.lines == numbered(3010)
    assert trusting.count().sent == 3010
    assert doubting.count().sent == 0
