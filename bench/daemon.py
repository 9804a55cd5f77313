"""One sidecar as a process of its own, asked over its HTTP API like any reader would."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, Literal

PATIENCE_S = 30.0
"""Longer than any healthy machine needs for anything that is waited for here."""
POLL_S = 0.02


class NeverHappenedError(Exception):
    """What was waited for did not come; the message says what it was."""


def until(true: Callable[[], object], what: str | Callable[[], str], patience_s: float = PATIENCE_S, poll_s: float = POLL_S) -> float:
    """The monotonic moment at which it was true; NeverHappenedError after `patience_s`, with `what` as it is to be said then."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() >= deadline:
            raise NeverHappenedError(f"not within {patience_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(poll_s)
    return time.monotonic()


class _OverSocket(http.client.HTTPConnection):
    """HTTP over the API's unix socket, where our own user needs no token and network namespaces do not matter."""

    def __init__(self, path: Path) -> None:
        super().__init__("sidecar", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


class Daemon:
    """`lb-sidecar run` with this configuration. Its API is a unix socket alone, so that no port can be taken; log lines go to `log`."""

    def __init__(self, folder: Path, config: str, *, name: str = "sidecar", port: int | None = None) -> None:
        """`config`: all but `api` and `state`, which stand in `folder`. `port`: answer on this loopback port too."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.port = folder, name, port
        self.config, self.log = folder / f"{name}.yaml", folder / f"{name}.log"
        self.state = folder / f"{name}.state"
        self.write(config)
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, config: str) -> None:
        """A new configuration, read at the next start or reload."""
        listen = "null" if self.port is None else f"127.0.0.1:{self.port}"
        own = f"api: {{listen: {listen}, socket: {self.folder}/{self.name}.sock}}\nstate: {{dir: {self.state}}}\n"
        self.config.write_text(own + config)

    def start(self, *arguments: str, within: Sequence[str] = ()) -> None:
        """`within`: a command that runs another, such as `ip netns exec NAME`."""
        assert not self.is_running, "one process at a time"
        argv = [*within, sys.executable, "-m", "sidecar", "run", str(self.config), *arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: Signals) -> None:
        assert self._process is not None, "started before"
        self._process.send_signal(number)

    def end(self, number: Signals = SIGTERM) -> int:
        """Its exit code after this signal. Safe when it has ended."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    # ---- asking ----

    def ask(self, path: str, method: Literal["GET", "PUT", "POST", "DELETE"] = "GET", body: object = None) -> tuple[int, Any]:
        """Status and JSON; (0, None) while nobody answers."""
        connection = _OverSocket(self.folder / f"{self.name}.sock")
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, data.decode(errors="replace")

    def instances(self, service: str = "shop") -> dict[int, dict[str, Any]]:
        """What it says of each instance, by port; empty while it cannot say."""
        status, found = self.ask(f"/api/v1/services/{service}")
        return {int(i["instance"].rpartition(":")[2]): i for i in found["instances"].values()} if status == 200 else {}

    def judgements(self, service: str = "shop") -> dict[int, str]:
        return {port: i["judgement"] for port, i in self.instances(service).items()}

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The decision log, oldest first; of one kind if given."""
        status, found = self.ask("/api/v1/decisions?limit=1000")
        events: list[dict[str, Any]] = list(reversed(found["decisions"])) if status == 200 else []
        return [e for e in events if kind in ("", e["kind"])]

    def wait_event(self, kind: str, word: str = "") -> dict[str, Any]:
        """The first event of this kind whose sentence has the word, in the decision log of this state folder."""

        def found() -> list[dict[str, Any]]:
            return [e for e in self.events(kind) if word in e["sentence"]]

        until(found, lambda: f"{self.name}: an event {kind} with {word!r}\n{self.log_text()[-3000:]}")
        return found()[0]

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ---- waiting ----

    def wait_healthy(self, ports: Sequence[int], *, learned: bool = False) -> None:
        """Until these are healthy and in rotation; `learned`: and have given 30 good answers, from when on bounds hold."""
        until(lambda: self._are_healthy(ports, learned), lambda: f"{self.name}: all of {list(ports)} healthy\n{self.log_text()[-2000:]}")

    def _are_healthy(self, ports: Sequence[int], learned: bool) -> bool:
        found = self.instances()
        mine = [found[port] for port in ports if port in found]
        known = all(i["timeout_s"] is not None and i["timeout_s"] < 1.0 for i in mine) if learned else True
        return len(mine) == len(ports) and known and all(i["judgement"] == "healthy" and i["serving"] == "full" for i in mine)
