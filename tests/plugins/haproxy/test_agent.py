"""Our answers to HAProxy's agent-check (axis A), and whose agent we keep off (axis C), on real HAProxy 2.6 and 2.8."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from lbplugins.api import BalancerError
from lbplugins.haproxy import HAProxy, HAProxyOptions
from lbplugins.haproxy.agent import Agent
from lbplugins.values import FULL, KILL, MAINTENANCE, NONE, OURS, READY, Address, Change, Ref, Setting

from .lab import VERSIONS, Box, HeldPort, Origin, wait_for

REF = Ref("a", "x")
POOLS = frozenset({"a"})
OUT, BACK = Setting(NONE), Setting()


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


class Asked:
    """A box whose server x asks our agent every 200 ms, and says which it is."""

    def __init__(self, version: str, origin: Origin) -> None:
        self.held = HeldPort()
        self.agent_port = self.held.number
        agent = f"agent-check agent-inter 200ms agent-addr 127.0.0.1 agent-port {self.agent_port}"
        lines = [f'    server {name} 127.0.0.1:{origin.port} weight 100 {agent} agent-send "a/{name}\\n"' for name in "xy"]
        self.box = Box(version, "backend a\n" + "\n".join(lines))

    def plugin(self, socket: str = "") -> HAProxy:
        options = {"socket": socket or self.box.socket, "agent": f"127.0.0.1:{self.agent_port}", "timeout": "20s"}
        return HAProxy(HAProxyOptions.model_validate(options))


@pytest.fixture(params=VERSIONS)
def asked(request: pytest.FixtureRequest, origin: Origin) -> Iterator[Asked]:
    asked = Asked(request.param, origin)
    yield asked
    asked.box.close()
    asked.held.close()


@asynccontextmanager
async def opened(plugin: HAProxy, notes: dict[Ref, str] | None = None) -> AsyncIterator[HAProxy]:
    """Open, and polled by both servers."""
    await plugin.open()
    try:
        async with asyncio.timeout(30):
            while True:
                picture = await plugin.observe(POOLS, notes or {})
                if all(seen.note.startswith("A ") for seen in picture.values()):
                    break
                await asyncio.sleep(0.02)
        yield plugin
    finally:
        await plugin.aclose()


async def ask(plugin: HAProxy, want: Setting, notes: dict[Ref, str]) -> None:
    seen = (await plugin.observe(POOLS, notes))[REF]
    notes[REF] = seen.note
    assert await plugin.apply([Change(REF, want, seen, OURS, KILL, seen.note, "refused; 2 times\nset server")]) == []


async def until(asked: Asked, status: str) -> None:
    await asyncio.to_thread(wait_for, lambda: asked.box.status(REF).startswith(status), f"{REF} becomes {status}")


async def polled_again(asked: Asked, plugin: HAProxy) -> None:
    """Two more polls have been answered."""
    agent = plugin._agent
    assert agent is not None
    for _ in range(2):
        before = agent._polls[REF].at
        async with asyncio.timeout(30):
            while agent._polls[REF].at == before:
                await asyncio.sleep(0.02)


@pytest.mark.real
@pytest.mark.parametrize("socket", ["admin", "user"])
async def test_ejects_and_returns_by_word(asked: Asked, socket: str) -> None:
    notes: dict[Ref, str] = {}
    async with opened(asked.plugin(asked.box.user_socket if socket == "user" else "")) as plugin:
        seen = (await plugin.observe(POOLS, notes))[REF]
        assert seen.writable is None and seen.settle_s > 0.2

        await ask(plugin, OUT, notes)
        await until(asked, "DOWN (agent)")
        seen = (await plugin.observe(POOLS, notes))[REF]
        assert (seen.ours, seen.serving, seen.operator) == (OUT, False, READY)
        await polled_again(asked, plugin)
        assert re.fullmatch(r"via agent : down \(lb-sidecar refused  2 times set server\)", asked.box.stat(REF)["last_agt"])
        assert asked.box.status(Ref("a", "y")) in ("no check", "UP")

        await ask(plugin, BACK, notes)
        await until(asked, "no check")
        await polled_again(asked, plugin)
        assert asked.box.status(REF) == "no check"


@pytest.mark.real
async def test_an_ejection_by_word_outlives_a_reload(asked: Asked) -> None:
    notes: dict[Ref, str] = {}
    async with opened(asked.plugin()) as plugin:
        await ask(plugin, OUT, notes)
        before = (await plugin.observe(POOLS, notes))[REF].generation
        await asyncio.to_thread(asked.box.reload)
        await until(asked, "DOWN (agent)")
        async with asyncio.timeout(30):
            while (seen := (await plugin.observe(POOLS, notes))[REF]).ours != OUT:
                await asyncio.sleep(0.02)
        assert seen.generation != before


@pytest.mark.real
async def test_a_new_sidecar_adopts_the_word_and_can_return(asked: Asked) -> None:
    notes: dict[Ref, str] = {}
    async with opened(asked.plugin()) as earlier:
        await ask(earlier, OUT, notes)
        await until(asked, "DOWN (agent)")
    async with opened(asked.plugin(), notes) as later:
        await later.observe(POOLS, notes)
        await polled_again(asked, later)
        assert asked.box.status(REF) == "DOWN (agent)"
        await ask(later, BACK, notes)
        await until(asked, "no check")


@pytest.mark.real
async def test_without_a_note_or_a_mark_a_server_that_is_down_stays_as_it_is(asked: Asked) -> None:
    await asyncio.to_thread(wait_for, lambda: asked.box.stat(REF)["agent_status"].endswith("L4CON"), "nobody answers yet")
    asked.box.say(f"set server {REF} agent down")
    async with opened(asked.plugin()) as plugin:
        await plugin.observe(POOLS, {})
        await polled_again(asked, plugin)
        assert asked.box.status(REF) == "DOWN (agent)"
        assert (await plugin.observe(POOLS, {}))[REF].ours == OUT


@pytest.mark.real
async def test_the_operators_state_and_weight_survive_our_words(asked: Asked) -> None:
    notes: dict[Ref, str] = {}
    async with opened(asked.plugin()) as plugin:
        asked.box.say(f"set server {REF} state maint")
        asked.box.say(f"set server {REF} weight 30")
        for want in (OUT, BACK):
            await ask(plugin, want, notes)
            seen = (await plugin.observe(POOLS, notes))[REF]
            assert (seen.operator, seen.weight) == (MAINTENANCE, 30)
            assert asked.box.state(REF)["srv_admin_state"] == "1"
        asked.box.say(f"set server {REF} state ready")
        await until(asked, "no check")
        await polled_again(asked, plugin)
        assert asked.box.weight(REF) == 30


@pytest.mark.real
async def test_his_switched_off_agent_is_left_alone(asked: Asked) -> None:
    async with opened(asked.plugin()) as plugin:
        asked.box.say(f"disable agent {REF}")
        seen = (await plugin.observe(POOLS, {}))[REF]
        assert f"enable agent {REF}" in (seen.writable or "")
        refusals = await plugin.apply([Change(REF, OUT, seen)])
        assert len(refusals) == 1 and asked.box.status(REF) == "no check"


@pytest.mark.real
async def test_somebody_elses_agent_is_left_alone(asked: Asked) -> None:
    async def up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"up\n")
        writer.close()

    theirs = await asyncio.start_server(up, "127.0.0.1", asked.agent_port)
    try:
        await asyncio.to_thread(wait_for, lambda: asked.box.stat(REF)["agent_status"].endswith("L7OK"), "their agent answers")
        plugin = HAProxy(HAProxyOptions.model_validate({"socket": asked.box.socket, "timeout": "20s"}))
        seen = (await plugin.observe(POOLS, {}))[REF]
        assert "someone else" in (seen.writable or "") and seen.ours == BACK
        assert len(await plugin.apply([Change(REF, OUT, seen)])) == 1
        assert asked.box.status(REF) == "no check"
    finally:
        theirs.close()
        await theirs.wait_closed()


# ---- the listener alone ----


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    held = HeldPort()
    agent = Agent(Address("127.0.0.1", held.number))
    await agent.listen()
    yield agent
    await agent.close()
    await agent.close()
    held.close()


async def say(agent: Agent, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*agent.address)
    try:
        async with asyncio.timeout(30):
            writer.write(question)
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


async def test_says_up_or_down_and_nothing_else(agent: Agent) -> None:
    agent.say(REF, FULL)
    assert await say(agent, b"a/x\n") == b"up\n"
    agent.say(REF, NONE, "slow, 3.1x\r\nmaint ready #drain; 100% \x00é")
    answer = await say(agent, b"a/x\r\n")
    assert answer == b"down #lb-sidecar slow, 3.1x  maint ready  drain  100%\n"
    agent.say(REF, NONE)
    assert await say(agent, b"a/x\n") == b"down #lb-sidecar\n"


@pytest.mark.parametrize("question", [b"a/y\n", b"\n", b"a/x/y\n", b"a/x;b\n", b"\xff/x\n", b"ready\n"])
async def test_a_server_without_a_word_gets_an_empty_line(agent: Agent, question: bytes) -> None:
    agent.say(REF, FULL)

    assert await say(agent, question) == b"\n"


async def test_who_does_not_ask_or_asks_without_end_gets_nothing(agent: Agent) -> None:
    agent.say(REF, FULL)

    assert await say(agent, b"a" * 100_000) == b""
    assert await say(agent, b"a/x") == b""


async def test_a_taken_port_is_an_error_in_words(agent: Agent) -> None:
    with pytest.raises(BalancerError, match=f"agent {agent.address}: cannot listen"):
        await Agent(agent.address).listen()


async def test_polls_tell_who_asks_and_how_soon_a_word_arrives(agent: Agent) -> None:
    assert REF not in agent.polls().asking

    for _ in range(3):
        await say(agent, b"a/x\n")

    polls = agent.polls()
    assert polls.asking == {REF} and polls.settle_s[REF] > 0.2
