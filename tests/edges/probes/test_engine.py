"""The engine asks when told, once at a time, keeps and watches connections, and delivers in batches."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from itertools import pairwise
from typing import Any

import psutil
import pytest

from lbplugins.values import Address
from sidecar.core.model import Ask, Probed, Reason, Result, Target
from sidecar.probes.engine import FRESH_EVERY, Engine
from tests.edges import zoo
from tests.edges.probes.lab import AMPLE_S, SHORT_S, Recorder, running_engine, spec

HEALTH = spec(http="/health")
FAR_S = 1000.0


def target_of(server: zoo.Server) -> Target:
    return Target(server.address, HEALTH.key)


def ask_now(target: Target, timeout_s: float = AMPLE_S, *, fresh: bool = False, in_s: float = 0.0) -> Ask:
    return Ask(target, asyncio.get_running_loop().time() + in_s, timeout_s, fresh)


async def ask_in_turn(engine: Engine, recorder: Recorder, target: Target, times: int, *, fresh: bool = False) -> None:
    for _ in range(times):
        engine.ask(ask_now(target, fresh=fresh))
        await recorder.until_outcomes(len(recorder.outcomes) + 1)


async def test_kept_connection_serves_probe_after_probe() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 5)

            assert [o.result for o in recorder.outcomes] == [Result.OK] * 5
            assert [o.fresh for o in recorder.outcomes] == [True, False, False, False, False]
            assert [o.phases.connect is None for o in recorder.outcomes] == [False, True, True, True, True]
            assert recorder.nudges == []
        assert server.accepted == 1


@pytest.mark.parametrize(("after_s", "expected"), [(0.0, 2), (1000.0, 1)])
async def test_every_twentieth_probe_goes_fresh_but_not_soon_again(monkeypatch: pytest.MonkeyPatch, after_s: float, expected: int) -> None:
    monkeypatch.setattr("sidecar.probes.engine.FRESH_AFTER_S", after_s)
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 3 * FRESH_EVERY - 1)

            first, *fresh = [n for n, o in enumerate(recorder.outcomes) if o.fresh]
            assert first == 0 and len(fresh) == expected
            assert all(later - earlier == FRESH_EVERY for earlier, later in pairwise(fresh))
            assert recorder.nudges == []


async def test_targets_that_began_together_do_not_go_fresh_together() -> None:
    with contextlib.ExitStack() as stack:
        targets = [target_of(stack.enter_context(zoo.Server(zoo.good))) for _ in range(8)]
        async with running_engine(HEALTH) as (engine, recorder):
            for _ in range(2 * FRESH_EVERY):
                engine.ask_all([ask_now(target) for target in targets])
                await recorder.until_outcomes(len(recorder.outcomes) + len(targets))

            rounds = [n // len(targets) for n, o in enumerate(recorder.outcomes) if o.fresh]
            later = [n for n in rounds if n > 0]
            assert len(later) >= len(targets) and len(set(later)) > 2


async def test_fresh_ask_opens_a_new_connection() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 3, fresh=True)

            assert all(o.fresh for o in recorder.outcomes)
            assert recorder.nudges == []
        assert server.accepted == 3


async def test_fresh_spec_keeps_nothing() -> None:
    always = spec(http="/health", fresh=True)
    with zoo.Server(zoo.good) as server:
        async with running_engine(always) as (engine, recorder):
            await ask_in_turn(engine, recorder, Target(server.address, always.key), 2)

            assert all(o.fresh for o in recorder.outcomes)


async def test_never_two_in_flight() -> None:
    behaviour = zoo.Kept()
    with zoo.Server(behaviour) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            for n in range(200):
                engine.ask(ask_now(target_of(server), fresh=n % 3 == 0))
                if n % 5 == 0:
                    await asyncio.sleep(0.001)
                assert engine.in_flight <= 1
            await recorder.until(lambda r: bool(r.outcomes) and engine.in_flight == 0)

            assert behaviour.most_at_once == 1
            ends = [(o.started, o.ended) for o in recorder.outcomes]
            assert all(before[1] <= after[0] for before, after in pairwise(ends))


async def test_later_ask_replaces_the_earlier() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            engine.ask(ask_now(target_of(server), in_s=FAR_S))
            engine.ask(ask_now(target_of(server)))
            await recorder.until_outcomes(1)

            engine.ask(ask_now(target_of(server)))
            engine.ask(ask_now(target_of(server), in_s=FAR_S))
            await ask_in_turn(engine, recorder, Target(server.address, "no such spec"), 1)
            await asyncio.sleep(0.1)

            assert [o.reason for o in recorder.outcomes] == [None, Reason.CANCELLED]


async def test_ask_in_flight_waits_for_the_end() -> None:
    with zoo.Server(zoo.silent) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            engine.ask(ask_now(target_of(server), SHORT_S))
            await asyncio.sleep(0.05)
            engine.ask(ask_now(target_of(server), SHORT_S, in_s=FAR_S))
            engine.ask(ask_now(target_of(server), SHORT_S))
            await recorder.until_outcomes(2)

            first, second = recorder.outcomes
            assert first.ended <= second.started
            await asyncio.sleep(0.05)
            assert engine.in_flight == 0


async def test_many_replaced_asks_leave_a_small_wheel() -> None:
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, _):
            for n in range(5000):
                engine.ask(ask_now(target_of(server), in_s=FAR_S + n))

            assert len(engine._wheel) < 200


@pytest.mark.parametrize(("how", "word"), [(zoo.fin, "closed"), (zoo.reset, "reset")])
async def test_end_of_an_idle_connection_is_told_in_the_next_turn(how: zoo.Behaviour, word: str) -> None:
    behaviour = zoo.Kept()
    with zoo.Server(behaviour) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            target = target_of(server)
            await ask_in_turn(engine, recorder, target, 2)
            kept = engine._states[target].idle_fd
            assert kept >= 0

            behaviour.end_idle(how)
            assert select.select([kept], [], [], 30)[0]  # the news is in our kernel; now it is the engine's turn
            for _ in range(3):
                await asyncio.sleep(0)

            assert [(n.target, word in n.why) for n in recorder.nudges] == [(target, True)]
            await ask_in_turn(engine, recorder, target, 1)
            assert recorder.outcomes[-1].fresh and recorder.outcomes[-1].result is Result.OK


@pytest.mark.parametrize("headers", [b"Connection: close\r\n", b"Keep-Alive: timeout=0\r\n"])
async def test_announced_end_is_no_news(headers: bytes) -> None:
    behaviour = zoo.Kept(headers)
    with zoo.Server(behaviour) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 1)
            behaviour.end_idle(zoo.fin)
            await _closed_at_our_side(engine, target_of(server))
            await ask_in_turn(engine, recorder, target_of(server), 1)

            assert recorder.nudges == []
            assert [o.result for o in recorder.outcomes] == [Result.OK] * 2


async def _closed_at_our_side(engine: Engine, target: Target) -> None:
    async with asyncio.timeout(30):
        while engine._states[target].idle_fd >= 0:
            await asyncio.sleep(0.005)


async def test_idle_timeout_answer_is_no_news_but_other_talk_is() -> None:
    for said, news in ((b"HTTP/1.1 408 Request Timeout\r\n\r\n", 0), (b"hello?", 1)):
        behaviour = zoo.Kept()
        with zoo.Server(behaviour) as server:
            async with running_engine(HEALTH) as (engine, recorder):
                await ask_in_turn(engine, recorder, target_of(server), 1)
                behaviour.end_idle(lambda sock, said=said: sock.sendall(said))  # type: ignore[misc]
                await _closed_at_our_side(engine, target_of(server))
                await ask_in_turn(engine, recorder, target_of(server), 1)

                assert len(recorder.nudges) == news


class _EndsOnSecondRequest:
    """Answers the first request of each connection and ends it on the second."""

    def __init__(self, how: zoo.Behaviour) -> None:
        self.how = how

    def __call__(self, sock: socket.socket) -> None:
        zoo.read_request(sock)
        sock.sendall(zoo.answer())
        zoo.read_request(sock)
        self.how(sock)


@pytest.mark.parametrize("how", [zoo.closing, zoo.reset])
async def test_stale_kept_connection_is_replaced_within_the_probe(how: zoo.Behaviour) -> None:
    with zoo.Server(_EndsOnSecondRequest(how)) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 3)

            assert [(o.result, o.fresh) for o in recorder.outcomes] == [(Result.OK, True)] * 3
            assert recorder.nudges == []


async def test_forgotten_target_is_heard_of_no_more() -> None:
    behaviour = zoo.Kept()
    with zoo.Server(behaviour) as server, zoo.Server(zoo.silent) as mute:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 1)
            engine.ask(ask_now(target_of(mute)))
            await asyncio.sleep(0.05)
            assert engine.targets() == {target_of(server), target_of(mute)}

            engine._kept_ended(engine._states[target_of(server)], "closed", b"")  # news that is about to be delivered
            engine.forget(target_of(mute))
            engine.forget(target_of(server))
            engine.forget(target_of(server))
            for _ in range(5):
                await asyncio.sleep(0)

            assert engine.targets() == frozenset() and engine.in_flight == 0
            assert len(recorder.outcomes) == 1 and recorder.nudges == []
            assert select.select([behaviour.open[0]], [], [], 30)[0]  # our side of the kept one is closed


async def test_vanished_spec_takes_its_targets_along() -> None:
    other = spec(http="/other")
    behaviour = zoo.Kept()
    with zoo.Server(behaviour) as server:
        async with running_engine(HEALTH, other) as (engine, recorder):
            stays = Target(server.address, other.key)
            await ask_in_turn(engine, recorder, target_of(server), 1)
            await ask_in_turn(engine, recorder, stays, 1)

            engine.specs({other.key: other})
            await ask_in_turn(engine, recorder, stays, 1)

            assert engine.targets() == {stays}
            assert recorder.outcomes[-1].fresh is False  # its kept connection lives on
            assert recorder.nudges == []
            await ask_in_turn(engine, recorder, target_of(server), 1)
            assert (recorder.outcomes[-1].result, recorder.outcomes[-1].reason) == (Result.UNKNOWN, Reason.CANCELLED)


async def test_bad_spec_changes_nothing() -> None:
    command = spec(command=["/bin/true"])
    no_file = spec(https="/", tls={"ca": "/no/such.pem"})
    with zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 1)

            with pytest.raises(ValueError, match="command probes are off"):
                engine.specs({command.key: command})
            with pytest.raises(ValueError, match=r"ca /no/such\.pem"):
                engine.specs({no_file.key: no_file})
            await ask_in_turn(engine, recorder, target_of(server), 1)

            assert recorder.outcomes[-1].fresh is False


async def test_command_runs_where_it_is_allowed() -> None:
    command = spec(command=["/bin/true"])
    async with running_engine(command, allow_commands=True) as (engine, recorder):
        await ask_in_turn(engine, recorder, Target(Address("127.0.0.1", 1), command.key), 1)

        assert recorder.outcomes[0].result is Result.OK


async def test_outcomes_of_one_turn_come_in_one_batch() -> None:
    with contextlib.ExitStack() as held:
        targets = [Target(held.enter_context(zoo.closed_port()), HEALTH.key) for _ in range(10)]
        async with running_engine(HEALTH) as (engine, recorder):
            at = asyncio.get_running_loop().time()
            for target in targets:
                engine.ask(Ask(target, at, AMPLE_S))
            await recorder.until_outcomes(10)

            assert [len(b) for b in recorder.batches] == [10]
            assert {f.outcome.reason for f in recorder.batches[0] if isinstance(f, Probed)} == {Reason.REFUSED}


async def test_budget_spreads_the_starts() -> None:
    rate = 50.0
    with contextlib.ExitStack() as held:
        targets = [Target(held.enter_context(zoo.closed_port()), HEALTH.key) for _ in range(25)]
        async with running_engine(HEALTH, budget_per_s=rate) as (engine, recorder):
            for target in targets:
                engine.ask(ask_now(target))
            await recorder.until_outcomes(25)

            starts = sorted(o.started for o in recorder.outcomes)
            assert starts[-1] - starts[0] >= (25 - rate / 10) / rate - 0.02


async def test_no_more_in_flight_than_allowed() -> None:
    seen: list[int] = []
    with contextlib.ExitStack() as held:
        servers = [held.enter_context(zoo.Server(zoo.silent)) for _ in range(8)]
        async with running_engine(HEALTH, max_in_flight=3) as (engine, recorder):
            for server in servers:
                engine.ask(ask_now(target_of(server), 0.1))
            while len(recorder.outcomes) < 8:
                seen.append(engine.in_flight)
                await asyncio.sleep(0.005)

            assert max(seen) == 3


async def test_bug_of_ours_is_no_evidence_and_does_not_stop_the_asking() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with running_engine(HEALTH) as (engine, recorder):
        for n in range(2):
            engine.ask(Ask(Target(Address("127.0.0.1", 1), HEALTH.key), 0.0, None))  # type: ignore[arg-type]
            await recorder.until_outcomes(n + 1)

        assert [(o.result, o.reason) for o in recorder.outcomes] == [(Result.UNKNOWN, Reason.CANCELLED)] * 2
        assert "our own error" in recorder.outcomes[0].detail
        assert len(reported) == 2


async def test_closing_cancels_and_delivers_nothing_more() -> None:
    with zoo.Server(zoo.silent) as mute, zoo.Server(zoo.good) as server:
        async with running_engine(HEALTH) as (engine, recorder):
            await ask_in_turn(engine, recorder, target_of(server), 1)
            engine.ask(ask_now(target_of(mute)))
            await asyncio.sleep(0.05)

            await engine.aclose()
            await engine.aclose()
            engine.ask(ask_now(target_of(server)))
            await asyncio.sleep(0.05)

            assert engine.in_flight == 0 and engine.targets() == frozenset()
            assert len(recorder.outcomes) == 1


async def test_no_descriptor_stays_behind() -> None:
    with zoo.Server(zoo.good) as server, zoo.Server(zoo.silent) as mute, zoo.Server(zoo.hurried_reset) as rude:
        async with running_engine(HEALTH, spec(tcp=True), spec(https="/")) as (engine, recorder):
            for key in engine._questions:
                for one in (server, mute, rude):
                    engine.ask(ask_now(Target(one.address, key), 0.1))
            await recorder.until_outcomes(9)
            engine.ask(ask_now(target_of(mute)))
            await asyncio.sleep(0.02)

        theirs = {one.address.port for one in (server, mute, rude)}
        assert [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr[1] in theirs] == []
