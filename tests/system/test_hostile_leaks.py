"""What is started is ended: no thread, descriptor or task stays behind, however often it starts, reloads and stops in one process."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from sidecar.app import App
from sidecar.config.load import load
from tests.system.lab import Lab, lab

pytestmark = pytest.mark.real

PATIENCE_S = 30.0


def descriptors() -> set[str]:
    """What is open, but for the process' own event machinery, which asyncio keeps per loop."""
    found = set()
    for each in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{each}: {os.readlink(f'/proc/self/fd/{each}')}")
        except FileNotFoundError:
            continue  # the listing itself
    return found


def written(box: Lab, *, timeout: str) -> Path:
    assert box.balancer is not None
    path = box.folder / "in-process.yaml"
    balancer = box.balancer.yaml.replace("}", f", timeout: {timeout}}}")
    own = f"api: {{listen: null, socket: {box.folder}/in-process.sock}}\nstate: {{dir: {box.folder}/in-process.state}}\n"
    path.write_text(f"{own}balancers:\n  edge: {balancer}\nservices:\n  shop: {{balancer: edge, probe: {{http: /health}}}}\n")
    return path


async def life(box: Lab) -> None:
    """Start, be healthy, reload twice with another balancer option, so that its driver is replaced, and stop."""
    app = App(load(written(box, timeout="1s")))
    await app.start()
    try:
        for timeout in ("2s", "1s"):
            written(box, timeout=timeout)
            assert await app.reload("operator:test") == []
        async with asyncio.timeout(PATIENCE_S):
            while not _is_well(app, len(box.ports)):
                await asyncio.sleep(0.02)
    finally:
        await app.stop()


def _is_well(app: App, n: int) -> bool:
    states = [state for service in app.reconciler.world.services.values() for state in service.instances.values()]
    return sum(state.told == "healthy" for state in states) == n and all(driver.is_writer for driver in app.drivers.values())


async def test_nothing_stays_behind() -> None:
    with lab("haproxy-2.8-none", 2) as box:
        await life(box)  # what is made once per process, such as the loop's executor, is there from now on
        gc.collect()
        before, threads = descriptors(), {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}

        for _ in range(3):
            await life(box)

        gc.collect()
        assert descriptors() - before == set()
        assert {t for t in threading.enumerate() if not t.name.startswith("asyncio_")} - threads == set()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
