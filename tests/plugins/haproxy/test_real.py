"""What the plugin does to real HAProxy 2.6 and 2.8 beyond the conformance kit: traffic, own checks, races, restarts, reloads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lbplugins.api import BalancerError
from lbplugins.haproxy import HAProxy, HAProxyOptions
from lbplugins.values import (
    DRAIN,
    DRAINING,
    FULL,
    KEEP,
    KILL,
    MAINTENANCE,
    NONE,
    OPERATOR,
    OURS,
    READY,
    Axis,
    Change,
    InFlight,
    Ref,
    Refusal,
    Seen,
    Setting,
)  # fmt: skip

from .lab import PATIENCE_S, VERSIONS, Box, Fleet, HeldPort, Origin, Tap, wait_for

pytestmark = pytest.mark.real

POOLS = frozenset("bdes")


@pytest.fixture(scope="module", params=VERSIONS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    fleet = Fleet(request.param)
    yield fleet
    fleet.close()


@pytest.fixture
def clean(fleet: Fleet) -> Fleet:
    for pool in sorted(POOLS):
        fleet.reset(pool)
    return fleet


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.close()


@pytest.fixture
def dead() -> Iterator[HeldPort]:
    """The port of an agent that nobody answers for."""
    held = HeldPort()
    yield held
    held.close()


class Sidecar:
    """A plugin and the notes that the journal would hold."""

    def __init__(self, *sockets: str, **options: object) -> None:
        self.plugin = HAProxy(HAProxyOptions.model_validate({"socket": list(sockets), "timeout": "20s", **options}))
        self.notes: dict[Ref, str] = {}

    async def look(self, ref: Ref) -> Seen:
        return (await self.plugin.observe(frozenset({ref.pool}), dict(self.notes)))[ref]

    async def change(self, ref: Ref, want: Setting, on: Axis = OURS, in_flight: InFlight = KEEP) -> Change:
        seen = await self.look(ref)
        self.notes[ref] = seen.note
        return Change(ref, want, seen, on, in_flight, seen.note, "test")

    async def ask(self, ref: Ref, want: Setting, on: Axis = OURS, in_flight: InFlight = KEEP) -> str:
        """ "" when it was done, else the refusal."""
        refusals = await self.plugin.apply([await self.change(ref, want, on, in_flight)])
        return refusals[0].reason if refusals else ""

    async def make(self, ref: Ref, want: Setting, on: Axis = OURS, in_flight: InFlight = KEEP) -> Seen:
        assert await self.ask(ref, want, on, in_flight) == ""
        return await self.look(ref)


@asynccontextmanager
async def sidecar(*sockets: str, **options: object) -> AsyncIterator[Sidecar]:
    made = Sidecar(*sockets, **options)
    await made.plugin.open()
    try:
        yield made
    finally:
        await made.plugin.aclose()


def stands_still(pid: int) -> bool:
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in Path(f"/proc/{pid}/task").iterdir())


async def eventually(true: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_for, true, what)


OUT, BACK = Setting(NONE), Setting()


# ---- traffic ----


@pytest.mark.parametrize("pool", sorted(POOLS))
async def test_new_requests_go_elsewhere_and_come_back(clean: Fleet, pool: str) -> None:
    box, ref = clean.box, Ref(pool, "x")
    async with sidecar(box.socket) as ours:
        seen = await ours.make(ref, OUT)
        assert seen.serving is False and seen.operator is READY
        before = clean.origins[0].hits
        assert [box.get(f"/{pool}") for _ in range(9)] == [200] * 9
        assert clean.origins[0].hits == before

        await ours.make(ref, BACK)
        await eventually(lambda: box.status(ref).startswith(("UP", "no check")), "x serves again")
        assert [box.get(f"/{pool}") for _ in range(9)] == [200] * 9
        assert clean.origins[0].hits > before


@pytest.mark.parametrize("pool", ["b", "d", "e"])
@pytest.mark.parametrize(("in_flight", "status"), [(KEEP, 200), (KILL, 502)])
async def test_requests_under_way_are_kept_or_cut_as_asked(
    version: str, origin: Origin, dead: HeldPort, pool: str, in_flight: InFlight, status: int
) -> None:
    options = {"b": f"agent-check agent-inter 200ms agent-port {dead.number}", "d": "check inter 200ms fall 20 rise 1", "e": ""}[pool]
    box, ref = (
        Box(version, f"backend {pool}\n    option httpchk GET /check\n    server x 127.0.0.1:{origin.port} {options}"),
        Ref(pool, "x"),
    )
    try:
        if pool == "b":
            await eventually(lambda: box.stat(ref)["agent_status"].endswith("L4CON"), "the agent is found dead")
        got: list[int] = []
        client = threading.Thread(target=lambda: got.append(box.get(f"/slow/{pool}")))
        async with sidecar(box.socket) as ours:
            client.start()
            assert await asyncio.to_thread(origin.waiting.acquire, timeout=30)
            assert (await ours.look(ref)).in_flight == 1

            await ours.make(ref, OUT, in_flight=in_flight)

            if in_flight is KEEP:
                origin.let_go.set()
            await asyncio.to_thread(client.join, 30)
            assert got == [status]
    finally:
        box.close()


# ---- its own check ----


async def test_an_own_check_that_fails_is_not_ours(version: str, origin: Origin) -> None:
    origin.status = 503
    box = Box(version, f"backend d\n    option httpchk GET /check\n    server x 127.0.0.1:{origin.port} check inter 100ms fall 1 rise 1")
    ref = Ref("d", "x")
    try:
        await eventually(lambda: box.status(ref).startswith("DOWN"), "its own check fails")
        async with sidecar(box.socket) as ours:
            seen = await ours.look(ref)
            assert (seen.ours, seen.serving, seen.operator) == (BACK, False, READY)
            assert "own check DOWN (L7STS" in seen.remark

            await ours.make(ref, OUT)
            back = await ours.make(ref, BACK)
            assert (back.ours, back.serving) == (BACK, False), "we take our hands off; HAProxy's own check decides"
            assert box.state(ref)["srv_check_state"] in ("6", "7")

            origin.status = 200
            await eventually(lambda: box.status(ref).startswith("UP"), "its own check brings it back")
            assert (await ours.look(ref)).serving is True
    finally:
        box.close()


async def test_a_check_that_the_operator_switched_off_stays_off(clean: Fleet) -> None:
    box, ref = clean.box, Ref("d", "x")
    box.say(f"disable health {ref}")
    await eventually(lambda: box.state(ref)["srv_check_state"] == "2", "the check under way has ended")
    async with sidecar(box.socket) as ours:
        seen = await ours.look(ref)
        assert seen.ours == BACK and "not by us" in seen.remark and seen.note == "E w=100"
        await ours.make(ref, OUT)
    async with sidecar(box.socket) as later:
        later.notes = ours.notes
        assert (await later.look(ref)).ours == OUT
        await later.make(ref, BACK)
        assert box.state(ref)["srv_check_state"] == "2" and box.status(ref) == "no check"


async def test_a_check_switched_off_after_our_return_is_not_ours(clean: Fleet) -> None:
    box, ref = clean.box, Ref("d", "x")
    async with sidecar(box.socket) as ours:
        await ours.make(ref, OUT)
        await ours.make(ref, BACK)
        await eventually(lambda: box.status(ref).startswith("UP"), "x is up")
        box.say(f"disable health {ref}")
        assert (await ours.look(ref)).ours == BACK


async def test_a_check_that_the_operator_switched_on_and_off_is_his(clean: Fleet) -> None:
    box, ref = clean.box, Ref("d", "x")
    async with sidecar(box.socket) as ours:
        await ours.make(ref, OUT)
        box.say(f"enable health {ref}")
        assert (await ours.look(ref)).ours == BACK
        await eventually(lambda: box.status(ref).startswith("UP"), "x is up")
        box.say(f"disable health {ref}")
        assert (await ours.look(ref)).ours == BACK


@pytest.mark.parametrize("want", [BACK, OUT])
async def test_what_his_maintenance_half_undid_is_neither_in_nor_out(clean: Fleet, want: Setting) -> None:
    box, ref = clean.box, Ref("d", "x")
    async with sidecar(box.socket) as ours:
        await ours.make(ref, OUT)
        box.say(f"set server {ref} state maint")
        held = await ours.look(ref)
        assert held.ours == OUT and "maintenance" in (held.writable or "")
        assert "maintenance" in await ours.ask(ref, BACK)
        box.say(f"set server {ref} state ready")

        half = await ours.look(ref)
        assert (half.ours, half.serving, half.writable) == (Setting(DRAIN), True, None)

        done = await ours.make(ref, want)
        assert done.ours == want
        assert box.state(ref)["srv_check_state"] in ("2" if want == OUT else "67"), "7: a check is under way"


@pytest.mark.parametrize("rise", [1, 2])
@pytest.mark.parametrize("ends_at_look", [1, 2])
async def test_a_good_check_under_way_does_not_undo_our_ejection(version: str, origin: Origin, rise: int, ends_at_look: int) -> None:
    options = f"check inter 100ms fall 20 rise {rise}"
    box = Box(version, f"backend d\n    option httpchk GET /check\n    server x 127.0.0.1:{origin.port} {options}")
    ref, tap = Ref("d", "x"), Tap(str(box.dir / "tap.sock"), box.socket)

    def end_the_check(line: str) -> None:
        written = [line for line in tap.lines if "health down" in line]
        looks = tap.lines[tap.lines.index(written[0]) + 1 :] if written else []
        if len(looks) == ends_at_look and not origin.check_let_go.is_set():
            assert box.state(ref)["srv_check_state"] == "3"
            origin.check_let_go.set()
            wait_for(lambda: box.state(ref)["srv_check_state"] == "2", "the check under way has ended")

    try:
        async with sidecar(tap.path) as ours:
            await eventually(lambda: box.status(ref) == "UP", "its own check passes")
            origin.check_let_go.clear()
            await eventually(
                lambda: box.state(ref)["srv_check_state"] == "7" and origin.checks == origin.checked + 1, "a check is under way"
            )
            tap.before = end_the_check

            await ours.make(ref, OUT)

            assert origin.check_let_go.is_set() and len([line for line in tap.lines if "health down" in line]) == 2
            assert box.status(ref) == "DOWN" and (await ours.look(ref)).ours == OUT
    finally:
        tap.close()
        box.close()


# ---- the operator ----


@pytest.mark.parametrize("pool", ["b", "d", "e"])
async def test_his_drain_survives_out_and_back(clean: Fleet, pool: str) -> None:
    box, ref = clean.box, Ref(pool, "x")
    box.say(f"set server {ref} state drain")
    async with sidecar(box.socket) as ours:
        for want in (OUT, BACK):
            seen = await ours.make(ref, want)
            assert (seen.operator, seen.ours) == (DRAINING, want)
            assert box.state(ref)["srv_admin_state"] == "8"


async def test_pushed_ejection_outlives_his_maintenance(clean: Fleet) -> None:
    box, ref = clean.box, Ref("b", "x")
    async with sidecar(box.socket) as ours:
        await ours.make(ref, OUT)
        box.say(f"set server {ref} state maint")
        seen = await ours.look(ref)
        assert (seen.ours, seen.operator, seen.writable) == (OUT, MAINTENANCE, None)
        box.say(f"set server {ref} state ready")
        seen = await ours.look(ref)
        assert (seen.ours, seen.operator, seen.serving) == (OUT, READY, False)


@pytest.mark.parametrize("pool", ["d", "e"])
async def test_he_says_maintenance_between_our_look_and_our_write(clean: Fleet, pool: str) -> None:
    box, ref = clean.box, Ref(pool, "x")
    tap = Tap(str(box.dir / "race.sock"), box.socket)
    try:
        async with sidecar(tap.path) as ours:
            change = await ours.change(ref, OUT)
            tap.before = lambda line: box.say(f"set server {ref} state maint") if "health down" in line else None

            refusals = await ours.plugin.apply([change])

            assert [refusal.change for refusal in refusals] == [change] and "faster" in refusals[0].reason
            assert box.state(ref)["srv_admin_state"] == "1"
            tap.before = lambda line: None
            box.say(f"set server {ref} state ready")
            assert (await ours.look(ref)).ours == BACK
            assert box.state(ref)["srv_check_state"] in ("67" if pool == "d" else "0")
    finally:
        tap.close()


async def test_a_weight_that_he_sets_between_our_look_and_our_write_is_put_back(clean: Fleet) -> None:
    box, ref = clean.box, Ref("e", "x")
    tap = Tap(str(box.dir / "race.sock"), box.socket)
    try:
        async with sidecar(tap.path) as ours:
            change = await ours.change(ref, Setting(FULL, 50))
            once = iter([True])
            tap.before = lambda line: box.say(f"set server {ref} weight 30") if "weight" in line and next(once, False) else None

            refusals = await ours.plugin.apply([change])

            assert [refusal.change for refusal in refusals] == [change] and "weight 30" in refusals[0].reason
            assert box.weight(ref) == 30
            seen = await ours.look(ref)
            assert (seen.weight, seen.ours) == (30, BACK)
    finally:
        tap.close()


@pytest.mark.parametrize("pool", ["b", "d", "e"])
async def test_a_weight_that_he_lowers_before_our_first_act_is_his_whatever_the_journal_says_that_we_meant(clean: Fleet, pool: str) -> None:
    box, ref = clean.box, Ref(pool, "x")
    async with sidecar(box.socket) as ours:
        change = await ours.change(ref, OUT)  # its note is in the journal from now on
        box.say(f"set server {ref} weight 69")

        assert "weight: 100 -> 69" in (await ours.plugin.apply([change]))[0].reason
        seen = await ours.look(ref)
        assert (seen.weight, seen.ours) == (69, BACK)
        await ours.make(ref, OUT)
        await ours.make(ref, BACK)
        assert box.weight(ref) == 69


async def test_a_check_that_he_switches_off_before_our_first_act_is_his_whatever_the_journal_says_that_we_meant(clean: Fleet) -> None:
    box, ref = clean.box, Ref("d", "x")
    async with sidecar(box.socket) as ours:
        await ours.change(ref, OUT)
        box.say(f"disable health {ref}")
        await eventually(lambda: box.state(ref)["srv_check_state"] == "2", "the check under way has ended")

        seen = await ours.look(ref)
        assert seen.ours == BACK and "not by us" in seen.remark
        await ours.make(ref, OUT)
        await ours.make(ref, BACK)
        assert box.state(ref)["srv_check_state"] == "2"


async def test_ready_is_not_said_over_a_disabled_server_of_the_configuration(version: str, origin: Origin) -> None:
    box = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port} disabled")
    try:
        async with sidecar(box.socket) as ours:
            assert (await ours.look(Ref("e", "x"))).operator is MAINTENANCE
            assert "state ready" in await ours.ask(Ref("e", "x"), BACK, OPERATOR)
            assert box.status(Ref("e", "x")) == "MAINT"
    finally:
        box.close()


# ---- rights, names and size ----


async def test_a_socket_without_the_right_to_write_says_so(clean: Fleet) -> None:
    ref = Ref("e", "x")
    async with sidecar(clean.box.user_socket) as ours:
        seen = await ours.look(ref)
        assert "`level user`" in (seen.writable or "") and seen.grain_pct == 100
        assert "`level user`" in await ours.ask(ref, OUT)
        assert "Permission denied" in await ours.ask(ref, OUT, OPERATOR)
        assert clean.box.status(ref) == "no check"


async def test_another_user_is_told_the_cure(clean: Fleet) -> None:
    program = (
        "import asyncio\nfrom lbplugins.api import BalancerError\nfrom lbplugins.haproxy import wire\n"
        f"try:\n    asyncio.run(wire.ask({clean.box.socket!r}, [wire.SHOW_INFO], 20))\nexcept BalancerError as error:\n    print(error)\n"
    )
    as_root = os.geteuid() == 0
    os.chmod(clean.box.socket, 0o600 if as_root else 0)
    os.chmod(clean.box.dir, 0o755)
    change_user = "import os\nimport asyncio, lbplugins.haproxy.wire\nos.setgid(65534)\nos.setuid(65534)\n" if as_root else ""
    try:
        told = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", change_user + program], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        os.chmod(clean.box.socket, 0o600)

    assert "may not open" in told.stdout and "mode 660 group" in told.stdout


async def test_pools_lists_every_backend_with_servers(clean: Fleet) -> None:
    async with sidecar(clean.box.socket) as ours:
        assert await ours.plugin.pools() == POOLS


async def test_a_pool_named_like_a_number_and_hashed_pools(version: str, origin: Origin) -> None:
    servers = f"    server x 127.0.0.1:{origin.port} weight 100\n    server y 127.0.0.1:{origin.port} weight 100 backup\n"
    box = Box(version, f"backend 2\n{servers}backend 8080x\n    balance source\n{servers}")
    try:
        async with sidecar(box.socket) as ours:
            picture = await ours.plugin.observe(frozenset({"2", "8080x"}), {})
            assert set(picture) == {Ref(pool, name) for pool in ("2", "8080x") for name in "xy"}
            assert picture[Ref("2", "x")].in_flight == 0 and picture[Ref("2", "x")].grain_pct == 1
            assert picture[Ref("8080x", "x")].grain_pct == 100, "a hashed pool refuses weights"
            assert picture[Ref("2", "y")].serving is None and "backup" in picture[Ref("2", "y")].remark
            await ours.make(Ref("2", "x"), OUT)
            assert (await ours.look(Ref("2", "y"))).serving is True
    finally:
        box.close()


async def test_a_pool_whose_name_a_frontend_has_too_is_read_like_any_other(version: str, origin: Origin) -> None:
    agent = "agent-check agent-inter 100ms agent-addr 127.0.0.1 agent-port 1"
    lines = f"""
frontend twice
    bind unix@twice.sock
    default_backend twice
backend twice
    server asked 127.0.0.1:{origin.port} weight 100 {agent}
    server tracks 127.0.0.1:{origin.port} weight 100 track other/leader
    server spare 127.0.0.1:{origin.port} weight 100 backup
backend other
    server leader 127.0.0.1:{origin.port} check
"""
    box, asked = Box(version, lines), Ref("twice", "asked")
    try:
        async with sidecar(box.socket) as ours:
            async with asyncio.timeout(PATIENCE_S):
                while (await ours.look(asked)).writable is not None:  # its agent-check has not run yet
                    await asyncio.sleep(0.05)
            picture = await ours.plugin.observe(frozenset({"twice"}), {})
            assert picture[asked].in_flight == 0 and picture[asked].grain_pct == 1
            assert "follows other/leader" in (picture[Ref("twice", "tracks")].writable or "")
            assert picture[Ref("twice", "spare")].serving is None
            await ours.make(asked, OUT)
    finally:
        box.close()


async def test_a_random_pool_is_cut_though_haproxy_does_not_name_its_algorithm(version: str, origin: Origin) -> None:
    box, ref = Box(version, f"backend r\n    balance random\n    server x 127.0.0.1:{origin.port} weight 100"), Ref("r", "x")
    try:
        async with sidecar(box.socket) as ours:
            assert (await ours.look(ref)).grain_pct == 1

            await ours.make(ref, Setting(FULL, 40))

            assert box.weight(ref) == 40
    finally:
        box.close()


async def test_hundreds_of_servers_in_one_apply(version: str, origin: Origin) -> None:
    box = Box(version, "backend e\n" + "\n".join(f"    server s{n} 127.0.0.1:{origin.port} weight 100" for n in range(450)))
    tap = Tap(str(box.dir / "tap.sock"), box.socket)
    try:
        async with sidecar(tap.path) as ours:
            for want, status in ((OUT, "DOWN"), (Setting(FULL, 50), "no check"), (BACK, "no check")):
                picture = await ours.plugin.observe(frozenset({"e"}), {})
                changes = [Change(ref, want, seen, note=seen.note) for ref, seen in picture.items()]
                assert await ours.plugin.apply(changes) == []
                after = await ours.plugin.observe(frozenset({"e"}), {})
                assert len(after) == 450 and {seen.ours for seen in after.values()} == {want}
                assert box.status(Ref("e", "s449")) == status
            assert max(line.count(";") + 1 for line in tap.lines) <= 200
    finally:
        tap.close()
        box.close()


# ---- restarts and reloads ----


@pytest.mark.parametrize("how", ["restart", "reload"])
async def test_a_new_generation_is_seen_refused_and_healed(version: str, origin: Origin, how: str) -> None:
    box, ref = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port} weight 100"), Ref("e", "x")
    try:
        async with sidecar(box.socket, master=box.master_socket) as ours:
            before = await ours.make(ref, OUT)
            late = await ours.change(ref, BACK)
            await asyncio.to_thread(getattr(box, how))

            assert "generation" in (await ours.plugin.apply([late]))[0].reason
            seen = (await ours.plugin.observe(frozenset({"e"}), ours.notes))[ref]
            assert seen.generation != before.generation and seen.ours == BACK and seen.serving
            assert (await ours.make(ref, OUT)).serving is False
            assert box.status(ref) == "DOWN"
    finally:
        box.close()


async def test_a_generation_is_told_once(version: str, origin: Origin) -> None:
    box, ref = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port}"), Ref("e", "x")
    try:
        async with sidecar(box.socket) as ours:
            assert (await ours.look(ref)).remark == ""
            first = box.pid()
            await asyncio.to_thread(box.reload)
            assert (await ours.look(ref)).remark == f"HAProxy was reloaded or restarted: pid {first} -> {box.pid()}"
            assert (await ours.look(ref)).remark == ""
    finally:
        box.close()


async def test_a_reload_between_our_look_and_our_write_is_never_a_silent_success(version: str, origin: Origin) -> None:
    box, ref = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port}"), Ref("e", "x")
    tap = Tap(str(box.dir / "race.sock"), box.socket)
    try:
        async with sidecar(tap.path) as ours:
            change = await ours.change(ref, OUT)
            tap.before = lambda line: box.reload() if "health down" in line else None

            refusals: list[Refusal] = list(await ours.plugin.apply([change]))

            assert [refusal.change for refusal in refusals] == [change] and "generation" in refusals[0].reason
    finally:
        tap.close()
        box.close()


async def test_an_old_worker_that_still_serves_is_named(version: str, origin: Origin) -> None:
    box, ref = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port}"), Ref("e", "x")
    old = box.pid()
    try:
        client = threading.Thread(target=box.get, args=("/slow/e",))
        client.start()
        assert await asyncio.to_thread(origin.waiting.acquire, timeout=30)
        await asyncio.to_thread(box.reload)
        async with sidecar(box.socket, master=box.master_socket) as ours:
            assert "old worker" not in (await ours.look(ref)).remark
            assert f"old worker pid {old} still serves" in (await ours.make(ref, OUT)).remark
            origin.let_go.set()
            await asyncio.to_thread(client.join, 30)
    finally:
        origin.let_go.set()
        box.close()


async def test_a_pushed_ejection_kept_by_a_state_file_can_be_returned(version: str, origin: Origin, dead: HeldPort) -> None:
    agent = f"agent-check agent-inter 200ms agent-addr 127.0.0.1 agent-port {dead.number}"
    box = Box(version, f"backend b\n    server x 127.0.0.1:{origin.port} weight 100 {agent}", defaults="load-server-state-from-file global")
    ref = Ref("b", "x")
    try:
        box.extra_global = f"server-state-file {box.dir / 'state'}"
        box.write_config()
        await asyncio.to_thread(box.reload)
        await eventually(lambda: box.stat(ref)["agent_status"].endswith("L4CON"), "the agent is found dead")
        async with sidecar(box.socket) as ours:
            await ours.make(ref, OUT)
            (box.dir / "state").write_text(box.cli("show servers state"))
            await asyncio.to_thread(box.reload)
            assert box.status(ref).startswith("DOWN")
            await eventually(lambda: box.stat(ref)["agent_status"].endswith("L4CON"), "the agent is found dead again")
            assert (await ours.look(ref)).ours == OUT
            await ours.make(ref, BACK)
            assert box.status(ref) == "no check"
    finally:
        box.close()


# ---- unreachable ----


async def test_a_stopped_haproxy_is_an_error_in_words(version: str, origin: Origin) -> None:
    box, ref = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port}"), Ref("e", "x")
    try:
        async with sidecar(box.socket) as ours:
            change = await ours.change(ref, OUT)
            box.stop()
            for work in (ours.plugin.observe(frozenset({"e"}), {}), ours.plugin.apply([change]), ours.plugin.pools(), ours.plugin.open()):
                with pytest.raises(BalancerError, match=str(box.socket)):
                    await work
            box.start()
            assert (await ours.look(ref)).serving
    finally:
        box.close()


async def test_a_paused_haproxy_ends_at_the_deadline(version: str, origin: Origin) -> None:
    box = Box(version, f"backend e\n    server x 127.0.0.1:{origin.port}")
    worker = box.pid()
    try:
        async with sidecar(box.socket, timeout="300ms") as ours:
            os.kill(worker, signal.SIGSTOP)
            await eventually(lambda: stands_still(worker), "every thread of the worker stands")
            with pytest.raises(BalancerError, match="no answer"):
                await ours.plugin.observe(frozenset({"e"}), {})
    finally:
        os.kill(worker, signal.SIGCONT)
        box.close()


# ---- several processes of one configuration ----


async def test_each_process_is_looked_at_told_and_fails_on_its_own(version: str, origin: Origin) -> None:
    backends = f"backend e\n    server x 127.0.0.1:{origin.port} weight 100\n    server y 127.0.0.1:{origin.port} weight 100"
    one, two, ref = Box(version, backends), Box(version, backends), Ref("e", "x")
    try:
        async with sidecar(one.socket, two.socket) as ours:
            assert ours.plugin.lock_path() == one.socket + ".lb-sidecar.lock"
            await ours.make(ref, Setting(FULL, 50))
            assert (one.weight(ref), two.weight(ref)) == (50, 50)
            await ours.make(ref, OUT)
            assert (one.status(ref), two.status(ref)) == ("DOWN", "DOWN")

            await asyncio.to_thread(two.restart)
            half = await ours.look(ref)
            assert half.ours not in (OUT, BACK), "half out is neither"
            assert half.serving is False
            await ours.make(ref, OUT)
            assert two.status(ref) == "DOWN"

            two.say(f"set server {ref} state maint")
            assert (await ours.look(ref)).operator is MAINTENANCE
            two.say(f"set server {ref} state ready")

            two.stop()
            lost = await ours.look(ref)
            assert "not reached" in lost.remark and two.socket in lost.remark
            assert (await ours.make(ref, BACK)).ours == BACK and one.status(ref) == "no check"

            two.start()
            assert (await ours.look(ref)).generation != lost.generation
            one.stop()
            two.stop()
            with pytest.raises(BalancerError):
                await ours.look(ref)
    finally:
        one.close()
        two.close()


async def test_a_stale_expect_and_a_hostile_name_write_nothing(clean: Fleet) -> None:
    tap = Tap(str(clean.box.dir / "race.sock"), clean.box.socket)
    try:
        async with sidecar(tap.path) as ours:
            change = await ours.change(Ref("e", "x"), OUT)
            bad = [
                replace(change, ref=Ref("e", "x;set server e/y state maint")),
                replace(change, ref=Ref("e", "x\nset server e/y state maint")),
                replace(change, expect=replace(change.expect, weight=7)),
            ]

            assert [refusal.change for refusal in await ours.plugin.apply(bad)] == bad
            assert tap.writes() == []
    finally:
        tap.close()
