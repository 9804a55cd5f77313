"""Command probes run a program without a shell and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from lbplugins.values import Address
from sidecar.core.model import Outcome, Reason, Result
from sidecar.probes.once import probe_once
from tests.edges.probes.lab import AMPLE_S, spec

HERE = Address("127.0.0.1", 8080)


async def run(*argv: str, address: Address = HERE, timeout_s: float = AMPLE_S) -> Outcome:
    return await probe_once(spec(command=list(argv)), address, timeout_s=timeout_s, allow_commands=True)


async def test_exit_code_decides() -> None:
    good = await run("/bin/true")
    bad = await run("/bin/sh", "-c", "echo disk is full; exit 3")

    assert good.result is Result.OK
    assert (bad.result, bad.reason) == (Result.FAIL, Reason.COMMAND)
    assert "exit code 3: disk is full" in bad.detail


async def test_address_is_filled_in_as_whole_arguments(tmp_path: Path) -> None:
    outcome = await run(
        "/bin/sh", "-c", 'test "$1" = ::1 -a "$2" = 8080 -a "$#" = 2', "check", "{host}", "{port}", address=Address("::1", 8080)
    )

    assert outcome.result is Result.OK


async def test_nothing_is_a_shell(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    await run("/bin/echo", f"$(touch {trap})", f"; touch {trap}", f"\ntouch {trap}", f"`touch {trap}`")
    hostile = await run("/bin/echo", "{host}", address=Address(f"-x;touch {trap}", 80))

    assert not trap.exists()
    assert (hostile.result, hostile.reason) == (Result.UNKNOWN, Reason.NAME_LOOKUP)


async def test_environment_is_empty_but_for_the_path() -> None:
    os.environ["LB_SIDECAR_CANARY"] = "secret"

    outcome = await run("/bin/sh", "-c", "/usr/bin/env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | tr '\\n' ' '; exit 1")

    said = outcome.detail.split("exit code 1: ")[1]
    assert said.split() == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    del os.environ["LB_SIDECAR_CANARY"]


async def test_whole_group_is_killed_at_the_deadline(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    outcome = await run("/bin/sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait", timeout_s=1.0)

    assert outcome.reason in (Reason.TIMEOUT, Reason.OWN_LAG)
    await _all_gone([int(p) for p in pids.read_text().split()])


async def test_child_left_behind_is_killed_and_does_not_hold_us(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    outcome = await run("/bin/sh", "-c", f"sleep 300 & echo $! > {pids}")

    assert outcome.result is Result.OK
    assert outcome.seconds < AMPLE_S
    await _all_gone([int(pids.read_text())])


async def test_cancelled_probe_kills_the_program(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(run("/bin/sh", "-c", f"echo $$ > {pids}; sleep 300"))
    while not (pids.exists() and pids.read_text().strip()):
        await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await _all_gone([int(pids.read_text())])


async def _all_gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            await asyncio.sleep(0.01)


async def test_flood_of_output_is_capped() -> None:
    outcome = await run("/bin/sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' 'x'; exit 4")

    assert (outcome.reason, len(outcome.detail)) == (Reason.COMMAND, 200)


async def test_missing_program_is_our_fault() -> None:
    outcome = await run("/no/such/program")

    assert (outcome.result, outcome.reason) == (Result.UNKNOWN, Reason.COMMAND)
    assert "check the path" in outcome.detail


async def test_no_zombies_stay() -> None:
    await asyncio.gather(*(run("/bin/true") for _ in range(30)))

    mine = psutil.Process()
    assert [c for c in mine.children() if c.status() == psutil.STATUS_ZOMBIE] == []


async def test_off_unless_allowed() -> None:
    with pytest.raises(ValueError, match="not allowed"):
        await probe_once(spec(command=["/bin/true"]), HERE)
