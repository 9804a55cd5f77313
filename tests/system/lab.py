"""A whole installation in a box: real instances, a real balancer, the sidecar as a process. Asked over its API, judged by the balancer."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import Daemon, until
from bench.watch import Look, haproxy_look, nginx_look
from sidecar.demo import stage

SHAPES = ("haproxy-2.6-check", "haproxy-2.8-none", "haproxy-2.8-check", "haproxy-2.8-agent", "nginx-1.22", "nginx-1.31")
HAPROXY = tuple(shape for shape in SHAPES if shape.startswith("haproxy"))
SERVICE = "  shop: {balancer: edge, probe: {http: /health}}\n"


def free_ports(n: int) -> list[int]:
    """Apart from those of other test processes, which look for theirs at the same moment: from a random place on."""
    found: list[int] = []
    while len(found) < n:
        port = random.randrange(20000, 31000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `show servers state`: what HAProxy knows of a server."""

    address: str
    op: int
    admin: int
    weight: int
    check: int


class Lab:
    """Indexes from 0; server i+1 of pool `shop` stands for instance i. `log`: the port to which the balancer sends a line per request."""

    def __init__(self, shape: str, n: int, log: int | None = None) -> None:
        self.log = log
        kind, version, *axis = shape.split("-")
        self.folder = Path(tempfile.mkdtemp(prefix="lbs-"))
        self.folder.chmod(0o755)
        *self.ports, self.listen = free_ports(n + 1)
        self.instances = stage.Instances(self.ports)
        found = stage.haproxy_binaries() if kind == "haproxy" else stage.nginx_binaries()
        self.binary = next(b for b in found if b.version.startswith(version))
        self.axis: stage.Axis = next((a for a in ("check", "agent") if a in axis), "none")
        self.daemons: list[Daemon] = []
        self.balancer: stage.Balancer | None = None

    def start(self) -> None:
        while not self._starts():
            # another process was faster at one of the ports
            self.instances.stop_all()
            *self.ports, self.listen = free_ports(len(self.ports) + 1)
            self.instances.ports = self.ports

    def _starts(self) -> bool:
        try:
            self.instances.start_all()
            self.start_balancer()
        except stage.StageError as error:
            if "in use" in str(error) or "something else answers" in str(error):
                return False
            raise
        return all(self.instances.is_running(i) for i in range(len(self.ports)))

    def start_balancer(self) -> None:
        if self.binary.kind == "haproxy":
            self.balancer = stage.start_haproxy(self.binary, self.folder, self.ports, axis=self.axis, listen=self.listen, log=self.log)
        else:
            self.balancer = stage.start_nginx(self.binary, self.folder, self.ports, listen=self.listen, log=self.log)

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.end(signal.SIGKILL)
        if self.balancer is not None:
            self.balancer.stop()
        self.instances.stop_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the sidecar ----

    def config(self, more: str = "", service: str = SERVICE) -> str:
        assert self.balancer is not None, "started before"
        return f"{more}balancers:\n  edge: {self.balancer.yaml}\nservices:\n{service}"

    def sidecar(self, config: str | None = None, *, name: str = "sidecar") -> Daemon:
        """A daemon, not yet started."""
        daemon = Daemon(self.folder, config if config is not None else self.config(), name=name)
        self.daemons.append(daemon)
        return daemon

    def running(self, config: str | None = None, *, learned: bool = False) -> Daemon:
        """A daemon that knows everybody to be healthy."""
        daemon = self.sidecar(config)
        daemon.start()
        daemon.wait_healthy(self.ports, learned=learned)
        return daemon

    # ---- the balancer's word ----

    @property
    def include(self) -> Path:
        return self.folder / "sidecar.d" / "shop.conf"

    @property
    def look(self) -> Look:
        if self.binary.kind == "haproxy":
            return haproxy_look(self.folder / "admin.sock", {f"s{i + 1}": port for i, port in enumerate(self.ports)})
        return nginx_look(self.include)

    def in_rotation(self) -> set[int]:
        """Indexes of the instances that may get requests; none while the balancer is silent."""
        found: Mapping[int, bool] = self.look() or {}
        return {i for i, port in enumerate(self.ports) if found.get(port)}

    def haproxy(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.folder / "admin.sock"))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def rows(self) -> dict[int, Row]:
        rows = [line.split() for line in self.haproxy("show servers state shop").splitlines()[2:] if line]
        return {int(r[3][1:]) - 1: Row(f"{r[4]}:{r[18]}", int(r[5]), int(r[6]), int(r[7]), int(r[13])) for r in rows}

    # ---- the course of things ----

    def kill(self, *which: int) -> None:
        """All at once."""
        for i in which:
            self.instances.signal(i, signal.SIGKILL)
        for i in which:
            self.instances.kill(i)

    def wait_out(self, *which: int) -> float:
        return until(lambda: not self.in_rotation() & set(which), lambda: f"out: {which}\n{self._said()}")

    def wait_in(self, *which: int) -> float:
        return until(lambda: self.in_rotation() >= set(which), lambda: f"in: {which}\n{self._said()}")

    def out_and_back(self, i: int) -> None:
        """Die, be taken out, come again, be brought back."""
        self.kill(i)
        self.wait_out(i)
        self.instances.start(i)
        self.wait_in(i)

    def _said(self) -> str:
        return "\n".join(f"{d.name}: {d.log_text()[-3000:]}" for d in self.daemons)


@contextmanager
def lab(shape: str, n: int = 4, log: int | None = None) -> Iterator[Lab]:
    box = Lab(shape, n, log)
    try:
        box.start()
        yield box
    finally:
        box.close()
