"""Named tasks that are restarted when they fail. The only place that catches everything: a bug in one part must not stop the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("sidecar.supervise")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0
GOOD_CONDUCT_S = 60.0


class Supervisor:
    """Owns its tasks. `faults`: the last failure of each part that has failed, in words."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `make()` for ever under this name; an earlier task of the name is ended first."""
        self.stop(name)
        self._tasks[name] = asyncio.get_running_loop().create_task(self._keep(name, make), name=name)

    def stop(self, name: str) -> None:
        """End one task; nothing happens if there is none."""
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    def names(self) -> frozenset[str]:
        return frozenset(self._tasks)

    async def aclose(self) -> None:
        """End all and wait for them."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        wait = FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await make()
                return
            except Exception as error:
                self.faults[name] = f"{type(error).__name__}: {error}"
                log.exception("%s failed; it is started again in %.1f s", name, wait)
            if loop.time() - began > GOOD_CONDUCT_S:
                wait = FIRST_WAIT_S
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_S)
