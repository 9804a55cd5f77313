"""`lb-sidecar run`: the sidecar in the foreground, until SIGTERM or SIGINT. SIGHUP reads the configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from sidecar.app import App, StartError
from sidecar.cli import pools
from sidecar.config.load import Loaded, find_config, load, unusable_here
from sidecar.config.problems import ConfigError
from sidecar.journal.intents import JournalError
from sidecar.net.dial import raise_descriptor_limit
from sidecar.store.state_dir import StateDirError
from sidecar.web.options import SecretError

SETTLED_S = 15.0
"""What is there so long after the start is there to stay: a search for garbage in it would hold up a large sidecar for half a second."""
END_WITHIN_S = 4.5
"""From SIGTERM to the end, whatever hangs."""


def run(argument: Path | None, *, observe: bool) -> int:
    """Serve until told to stop. 2 = the configuration, 1 = this machine does not let us."""
    try:
        loaded = load(find_config(argument))
    except ConfigError as error:
        loaded = Loaded(argument or Path("?"), problems=error.problems)
    problems = [*loaded.errors, *unusable_here(loaded)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems or loaded.config is None:
        return 2
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.run(_serve(loaded, observe=observe))
    return asyncio.run(_serve(loaded, observe=observe))


async def _serve(loaded: Loaded, *, observe: bool) -> int:
    loop = asyncio.get_running_loop()
    raise_descriptor_limit()
    orders = _Orders(App(loaded, observe=observe))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, orders.stop)
    loop.add_signal_handler(signal.SIGHUP, orders.reload)
    orders.app.on_lost = orders.stop
    try:
        if not await orders.start():
            return 0
    except (StartError, StateDirError, JournalError) as error:
        print(f"lb-sidecar: {error}", file=sys.stderr)
        return 1
    except SecretError as error:  # it was well a moment ago, when the configuration was checked
        print(f"lb-sidecar: {error}", file=sys.stderr)
        return 2
    notify("READY=1")
    loop.call_later(SETTLED_S, gc.freeze)
    beside = [loop.create_task(_watchdog(orders.app)), loop.create_task(pools.watch(orders.app))]
    await orders.stopping.wait()
    notify("STOPPING=1")
    for task in beside:
        task.cancel()
    await orders.app.stop()
    return 1 if orders.app.is_lost else 0


class _Orders:
    """What signals tell a sidecar to do, whenever they come."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.stopping = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[list[str]]] = set()
        self._is_stale = False

    async def start(self) -> bool:
        """False = told to stop while it waited for another's state folder."""
        self._starting = asyncio.get_running_loop().create_task(self.app.start())
        try:
            await self._starting
        except asyncio.CancelledError:
            return False
        self._starting = None
        if self._is_stale:
            self.reload()
        return True

    def stop(self) -> None:
        self.stopping.set()
        _end_at_latest(END_WITHIN_S)
        if self._starting is not None and not self.app.has_state:
            self._starting.cancel()

    def reload(self) -> None:
        if self._starting is not None:
            self._is_stale = True
            return
        task = asyncio.get_running_loop().create_task(self.app.reload("operator:SIGHUP"))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def _end_at_latest(within_s: float) -> None:
    """Whatever hangs (a plugin's thread, a disk, the reader of our log): who was told to stop is gone then. Intents are written ahead."""
    timer = threading.Timer(within_s, os._exit, (0,))
    timer.daemon = True
    timer.start()


async def _watchdog(app: App) -> None:
    """Tell systemd that we live, but only while decisions are really made."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    while interval:
        if app.is_alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)


def notify(word: str) -> None:
    """sd_notify: one datagram to the socket that systemd names; nothing where there is none."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect("\0" + where[1:] if where.startswith("@") else where)
        sock.send(word.encode())
