"""What the memory plugin does beyond the contract: options, and pools filled by discovery."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lbplugins.memory import Box, Memory, MemoryOptions
from lbplugins.values import FULL, MAINTENANCE, NONE, OPERATOR, Address, Change, Ref, Seen, Setting

A, B = Ref("web", "a"), Ref("web", "b")
ONE, TWO = Address("10.0.0.1", 80), Address("10.0.0.2", 80)


async def test_named_pools_are_its_servers() -> None:
    memory = Memory(MemoryOptions(pools={"web": {"a": "10.0.0.1:80", "b": "[::1]:80  50"}}))

    assert await memory.observe(frozenset({"web"}), {}) == {
        A: Seen(address=ONE, serving=True),
        B: Seen(address=Address("::1", 80), weight=50, serving=True),
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("10.0.0.1", "not HOST:PORT"),
        ("10.0.0.1:0", "port from 1 to 65535"),
        ("10.0.0.1:80 0", "weight after the address"),
        ("10.0.0.1:80 x", "weight after the address"),
        ("10.0.0.1:80 ٣", "weight after the address"),
        ("10.0.0.1:80 5 5", "weight after the address"),
        ("", "not HOST:PORT"),
    ],
)
def test_a_server_that_cannot_be_read_is_named(text: str, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        MemoryOptions(pools={"web": {"a": text}})


async def test_discovery_fills_the_pools_when_none_are_named() -> None:
    memory = Memory(MemoryOptions())

    await memory.members({"web": {A: ONE, B: TWO}})

    assert {ref: seen.address for ref, seen in (await memory.observe(frozenset({"web"}), {})).items()} == {A: ONE, B: TWO}
    assert await memory.pools() == {"web"}


async def test_what_discovery_knows_still_keeps_its_state() -> None:
    memory = Memory(MemoryOptions())
    await memory.members({"web": {A: ONE, B: TWO}, "api": {Ref("api", "a"): ONE}})
    for change in (Change(A, Setting(NONE), expect=memory.box.servers[A]), Change(B, Setting(NONE), memory.box.servers[B], OPERATOR)):
        assert not await memory.apply([change])

    await memory.members({"web": {A: ONE, B: TWO}})

    assert memory.box.servers[A].ours.serve is NONE
    assert memory.box.servers[B].operator is MAINTENANCE
    assert Ref("api", "a") in memory.box.servers


async def test_a_new_address_is_a_new_server_and_a_lost_one_is_gone() -> None:
    memory = Memory(MemoryOptions())
    await memory.members({"web": {A: ONE, B: TWO}})
    assert not await memory.apply([Change(A, Setting(NONE), expect=memory.box.servers[A])])

    await memory.members({"web": {A: TWO}})

    assert memory.box.servers == {A: Seen(address=TWO, serving=True)}
    assert memory.box.servers[A].ours.serve is FULL


async def test_named_pools_do_not_listen_to_discovery() -> None:
    memory = Memory(MemoryOptions(pools={"web": {"a": "10.0.0.1:80"}}))

    await memory.members({"web": {B: TWO}})

    assert set(memory.box.servers) == {A}


async def test_two_share_a_box() -> None:
    box = Box({A: Seen(address=ONE, serving=True)})
    one, other = Memory(MemoryOptions(), box), Memory(MemoryOptions(), box)

    assert not await one.apply([Change(A, Setting(NONE), expect=box.servers[A])])

    assert (await other.observe(frozenset({"web"}), {}))[A].ours.serve is NONE
