"""What a simulated and a real HAProxy remember over reloads and restarts: scripts, another configuration or state file, the same tables.

One cycle plays one script per backend, so a reload proves as many scripts as there are backends.
"""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.plugins.haproxy.lab import PATIENCE_S, Box, wait_for
from tests.sim.differential_haproxy import INTER, Failure, backends, comparable, difference, pools, shapes
from tests.sim.differential_scripts import SHAPES, reset, script
from tests.sim.haproxy import SimHaproxy
from tests.sim.haproxy_commands import Worker

MOST_LINES = 5
LOADS = "    load-server-state-from-file global"
ON_HELD = (
    "get weight {ref}",
    "set server {ref} state maint",
    "set server {ref} weight 3",
    "show servers state {pool}",
    "enable health {ref}",
)


class Held:
    """A connection that is kept over a reload, and the same on the simulated side."""

    def __init__(self, path: str, worker: Worker) -> None:
        self.worker = worker
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self._ask("prompt")

    def _ask(self, command: str) -> str:
        self.socket.sendall(command.encode() + b"\n")
        heard = b""
        while not heard.endswith(b"\n> "):
            more = self.socket.recv(65536)
            assert more, f"the old worker hung up at {command!r}"
            heard += more
        return heard.decode().removesuffix("> ")

    def both(self, command: str) -> tuple[str, str]:
        return comparable(self._ask(command)), comparable(self.worker.answer(command.encode() + b"\n", 0.0).decode())

    def close(self) -> None:
        self.socket.close()


class Pair:
    """A real and a simulated HAProxy whose state file and configuration change under them."""

    def __init__(self, version: str) -> None:
        self.version, self.names = version, pools()
        self.dir = Path(tempfile.mkdtemp(prefix="hapstate"))
        self.file = self.dir / "state"
        self.texts = shapes()
        self.box = Box(
            version, self._backends(), extra_global=f"nbthread 1\n    server-state-file {self.file}",
            defaults=f"default-server inter {INTER} agent-inter {INTER}",
        )  # fmt: skip
        self.sim = SimHaproxy(self._config(), version)
        self.state: str | None = None

    def _backends(self) -> str:
        return backends(self.names, self.texts, lambda name: LOADS if name.endswith("1") else "")

    def _config(self) -> str:
        return (self.box.dir / "h.cfg").read_text()

    def play(self, scripts: Mapping[str, Sequence[str]], change: Mapping[str, Sequence[str]], how: str, file: str) -> dict[str, str]:
        """One cycle; '' or the difference, per backend. `how`: reload, broken or restart. `file`: save, stale or none."""
        for pool, lines in scripts.items():
            line = ";".join([reset(pool), *lines])
            self.box.cli(line)
            self.sim.answer(line.encode() + b"\n", 0.0)
        self._keep(file)
        held = Held(self.box.socket, self.sim.connect())
        try:
            self.texts |= change
            self._again(how)
            said = {pool: self._compared(pool) for pool in scripts}
            if how != "restart":
                for pool in scripts:
                    for command in ON_HELD:
                        said[pool] = said[pool] or difference(*held.both(command.format(pool=pool, ref=f"{pool}/s1")), f"held: {command}")
                    said[pool] = said[pool] or self._compared(pool)
            return said
        finally:
            held.close()

    def _keep(self, file: str) -> None:
        if file == "save":
            self.file.write_text(self.box.cli("show servers state"))
            self.state = self.sim.saved_state(0.0)
        elif file == "none":
            self.file.unlink(missing_ok=True)
            self.state = None

    def _again(self, how: str) -> None:
        self.box.backends = self._backends()
        self.box.write_config()
        if how == "restart":
            self.box.restart()
            self.sim.restart(self._config(), 0.0, self.state)
        elif how == "broken":
            path = self.box.dir / "h.cfg"
            path.write_text(path.read_text() + "\nbackend broken\n    server s1 127.0.0.1:1 frobnicate\n")
            self._refuse()
            assert not self.sim.reload(self._config(), 0.0, self.state), "the simulated one took a broken configuration"
        else:
            self.box.reload()
            assert self.sim.reload(self._config(), 0.0, self.state), "the simulated one refused a good configuration"

    def _refuse(self) -> None:
        """A reload by signal that the master must refuse; returns once it says so."""
        assert self.box.process is not None
        pid, before = self.box.pid(), self._failures()
        self.box.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: self._failures() > before, "the master counts a failed reload")
        assert self.box.pid() == pid, "the old worker serves on"

    def _failures(self) -> int:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(self.box.master_socket)
            connection.sendall(b"show proc\n")
            connection.shutdown(socket.SHUT_WR)
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            return int(text.partition("[failed: ")[2].partition("]")[0] or 0)
        return -1

    def _compared(self, pool: str) -> str:
        line = f"show servers state {pool};show stat {pool} 6 -1"
        return difference(comparable(self.box.cli(line)), comparable(self.sim.answer(line.encode() + b"\n", 0.0).decode()), "afterwards")

    def close(self) -> None:
        self.box.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def changed(random: Random, shape: str) -> Sequence[str]:
    """The lines of a backend as a deploy might change them."""
    lines = list(SHAPES[shape])
    at = random.choice([i for i, line in enumerate(lines) if line.startswith("server ")])
    what = random.choice(("weight", "disabled", "port", "same", "same"))
    words = lines[at].split()
    if what == "weight":
        words = [w for i, w in enumerate(words) if w != "weight" and words[i - 1] != "weight"] + ["weight", str(random.choice((0, 1, 50)))]
    elif what == "disabled":
        words = [w for w in words if w != "disabled"] if "disabled" in words else [*words, "disabled"]
    elif what == "port":
        words[2] = "127.0.0.1:21011"
    lines[at] = " ".join(words)
    return lines


def run(version: str, scripts: int, seed: int, most_failures: int = 10) -> list[Failure]:
    """Plays at least so many scripts, one per backend and reload; the failures."""
    pair = Pair(version)
    failures: list[Failure] = []
    try:
        for cycle in range(-(-scripts // len(pair.names))):
            random = Random(f"{seed}/reload/{cycle}")
            lines = {pool: script(random, pool, MOST_LINES) for pool in pair.names}
            change = {pool: changed(random, pool.rstrip("0123456789")) for pool in pair.names if random.random() < 0.5}
            how, file = random.choice(("reload", "reload", "reload", "restart", "broken")), random.choice(("save", "save", "stale", "none"))
            said = pair.play(lines, change, how, file)
            for pool, text in said.items():
                if text:
                    name = f"haproxy-{version} reload seed {seed} cycle {cycle} ({pool}, {how}, state file: {file})"
                    failures.append(Failure(name, [*lines[pool], "configuration: " + " | ".join(pair.texts[pool])], text))
            if failures:
                pair.close()
                pair = Pair(version)
            if len(failures) >= most_failures:
                break
        return failures
    finally:
        pair.close()


__all__ = ["run"]
