"""`lb-sidecar run`: the sidecar in the foreground, until SIGTERM or SIGINT. SIGHUP reads the configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from sidecar.app import App, StartError
from sidecar.config.load import Loaded, find_config, load, unreadable_secrets
from sidecar.config.problems import ConfigError
from sidecar.journal.intents import JournalError
from sidecar.store.state_dir import StateDirError


def run(argument: Path | None, *, observe: bool) -> int:
    """Serve until told to stop. 2 = the configuration, 1 = this machine does not let us."""
    try:
        loaded = load(find_config(argument))
    except ConfigError as error:
        loaded = Loaded(argument or Path("?"), problems=error.problems)
    problems = [*loaded.errors, *(unreadable_secrets(loaded) if loaded.config is not None else [])]
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
    stopping = asyncio.Event()
    app = App(loaded, observe=observe)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await app.start()
    except (StartError, StateDirError, JournalError) as error:
        print(f"lb-sidecar: {error}", file=sys.stderr)
        return 1
    reloads: set[asyncio.Task[list[str]]] = set()

    def reload() -> None:
        task = loop.create_task(app.reload("operator:SIGHUP"))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    notify("READY=1")
    watchdog = loop.create_task(_watchdog(app))
    await stopping.wait()
    notify("STOPPING=1")
    watchdog.cancel()
    await app.stop()
    return 0


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
