"""What we delayed, lost or could not ask is never evidence against an instance."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
import time

import uvloop

from sidecar.core.model import Ask, Outcome, Reason, Result, Target
from sidecar.net.dial import Wire
from sidecar.net.lag import LagMeter
from tests.edges import zoo
from tests.edges.probes.lab import AMPLE_S, ask, running_engine, spec

HEALTH = spec(http="/health")
STALL_S = 0.5


async def _stalled(*asking: asyncio.Task[Outcome]) -> list[Outcome]:
    """The outcomes of probes with a timeout of 0.2 s, while the loop is held for longer than that."""
    await asyncio.sleep(0.05)
    time.sleep(STALL_S)
    return list(await asyncio.gather(*asking))


async def test_stall_makes_a_silent_server_unknown_not_late() -> None:
    with zoo.Server(zoo.silent) as server:
        (outcome,) = await _stalled(asyncio.create_task(ask(server.address, 0.2)))

    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.OWN_LAG)
    assert "our own loop" in outcome.detail


def _answers_after_a_while(sock: socket.socket) -> None:
    zoo.read_request(sock)
    time.sleep(0.1)
    sock.sendall(zoo.answer())
    zoo.wait_for_end(sock)


async def test_answer_that_came_during_the_stall_counts() -> None:
    with zoo.Server(_answers_after_a_while) as server:
        (outcome,) = await _stalled(asyncio.create_task(ask(server.address, 0.2)))

    assert outcome.result is Result.OK, outcome


def _loses_patience(sock: socket.socket) -> None:
    """Gives up like a server whose client is too slow: the body is never finished."""
    zoo.read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    time.sleep(0.2)
    zoo.reset(sock)


async def test_reset_while_we_were_late_is_unknown() -> None:
    with zoo.Server(_loses_patience) as server:
        (outcome,) = await _stalled(asyncio.create_task(ask(server.address, 0.45)))

    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.OWN_LAG)


async def test_bad_status_counts_however_late_we_were() -> None:
    def busy(sock: socket.socket) -> None:
        zoo.read_request(sock)
        time.sleep(0.1)
        sock.sendall(zoo.answer(status="503 Busy"))

    with zoo.Server(busy) as server:
        (outcome,) = await _stalled(asyncio.create_task(ask(server.address, 0.2)))

    assert (outcome.result, outcome.reason) == (Result.FAIL, Reason.STATUS)


async def test_hundred_stalled_probes_of_healthy_servers_give_no_failure() -> None:
    with zoo.Server(_answers_after_a_while) as server:
        outcomes = await _stalled(*(asyncio.create_task(ask(server.address, 0.2)) for _ in range(100)))

    assert {o.result for o in outcomes} <= {Result.OK, Result.UNKNOWN}
    assert {o.reason for o in outcomes} <= {None, Reason.OWN_LAG}


async def test_engine_survives_its_own_stall() -> None:
    with zoo.Server(zoo.silent) as mute, zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            at = asyncio.get_running_loop().time()
            engine.ask(Ask(Target(mute.address, HEALTH.key), at, 0.2))
            engine.ask(Ask(Target(server.address, HEALTH.key), at, 0.2))
            await asyncio.sleep(0.05)
            time.sleep(STALL_S)
            await recorder.until_outcomes(2)

            by_address = {o.target.address: o for o in recorder.outcomes}
            assert by_address[mute.address].reason is Reason.OWN_LAG
            assert by_address[server.address].result in (Result.OK, Result.UNKNOWN)


async def test_lag_meter_sees_a_stall_where_it_was() -> None:
    lag = LagMeter()
    lag.start()
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(0.03)
    lag.worst_since_last()
    stalled_at = loop.time()
    time.sleep(0.2)
    during = lag.overlapping(before, loop.time())
    await asyncio.sleep(0.03)
    after = loop.time()

    assert during >= 0.18
    assert lag.overlapping(before, after) >= 0.18
    assert lag.overlapping(stalled_at, stalled_at + 0.05) <= 0.05
    assert lag.overlapping(after + 1, after + 2) == 0
    assert lag.worst_since_last() >= 0.18
    lag.stop()
    lag.stop()


def test_lag_meter_is_bounded_and_errs_towards_unknown() -> None:
    lag = LagMeter()
    for n in range(10_000):
        lag._due = float(n)
        lag._keep(n + 0.5, 0.5)

    assert len(lag._late) == 4096
    assert lag.overlapping(10.0, 10.1) == 0.5  # forgotten one by one, remembered as the worst of them
    assert lag.overlapping(9_000.6, 9_000.7) == 0.0


CROWD = """
import asyncio, resource, socket, sys
from tests.edges import zoo
from tests.edges.probes.lab import Recorder, running_engine, spec
from sidecar.core.model import Ask, Reason, Result, Target
from lbplugins.values import Address

async def main(port):
    health = spec(http="/health")
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    async with running_engine(health) as (engine, recorder):
        at = asyncio.get_running_loop().time()
        for n in range(60):
            engine.ask(Ask(Target(Address(f"127.0.0.{n + 1}", port), health.key), at, 1.0))
        await asyncio.sleep(0.2)
        with socket.socket():  # the reserve is there for the balancers
            pass
        await recorder.until_outcomes(60)
        print(sorted({str(o.reason) for o in recorder.outcomes if o.result is Result.UNKNOWN}))
        print(sum(o.reason is Reason.NO_DESCRIPTORS for o in recorder.outcomes))

asyncio.run(main(int(sys.argv[1])))
"""


def test_lack_of_descriptors_is_evidence_of_nothing() -> None:
    with zoo.Server(zoo.silent, host="0.0.0.0") as server:
        done = subprocess.run([sys.executable, "-c", CROWD, str(server.address.port)], capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    unknown, number = done.stdout.splitlines()
    assert "no_descriptors" in unknown
    assert 20 <= int(number) < 60


def test_uvloop_keeps_all_of_it() -> None:
    async def everything() -> None:
        with zoo.Server(zoo.good) as server, zoo.Server(zoo.silent) as mute, zoo.Server(_answers_after_a_while) as slow:
            assert (await ask(server.address)).result is Result.OK
            assert (await ask(mute.address, 0.2)).reason in (Reason.TIMEOUT, Reason.OWN_LAG)
            # uvloop runs timers before it looks at sockets: only the drain saves this answer.
            assert (await _stalled(asyncio.create_task(ask(slow.address, 0.2))))[0].result is Result.OK
        behaviour = zoo.Kept()
        with zoo.Server(behaviour) as server:
            async with running_engine(HEALTH) as (engine, recorder):
                target = Target(server.address, HEALTH.key)
                for n in range(3):
                    engine.ask(Ask(target, asyncio.get_running_loop().time(), AMPLE_S))
                    await recorder.until_outcomes(n + 1)
                behaviour.end_idle(zoo.fin)
                await recorder.until(lambda r: bool(r.nudges))
                assert [o.fresh for o in recorder.outcomes] == [True, False, False]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everything())


async def test_bytes_that_nobody_wants_do_not_spin_the_loop() -> None:
    with zoo.Server(zoo.endless_body) as server:
        wire = Wire(time.monotonic() + AMPLE_S)
        await wire.connect(socket.AF_INET, tuple(server.address))
        await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.receive(just_sent=True)
        assert select.select([wire._fd], [], [], 30)[0]
        for _ in range(5):
            await asyncio.sleep(0)

        assert not wire._reading
        assert await wire.receive()
        wire.close()
        wire.close()
