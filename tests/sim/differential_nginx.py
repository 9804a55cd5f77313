"""The same files for a simulated and a real nginx: equal verdicts of `-t`, and after a reload the same servers that answer."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from lbplugins.nginx.servers import IncludeFault, parse, render, set_operator, set_ours
from lbplugins.values import FULL, NONE, Setting
from tests.plugins.nginx.lab import BINARIES, PATIENCE_S, free_port, until
from tests.sim.differential_haproxy import Failure, shrunk
from tests.sim.nginx import BIND_TRIES_S, SimNginx, judge

POOLS = ("a", "b", "c", "d")
STAMP = re.compile(r"\d+#\d+: ")


class Folder:
    """Files of one nginx on disk and, the same, in memory."""

    def __init__(self, version: str, servers: int = 4) -> None:
        self.version = version
        self.home = Path(tempfile.mkdtemp(prefix="ngxdiff"))
        self.home.chmod(0o755)
        (self.home / "sidecar.d").mkdir(mode=0o755)
        self.files: dict[str, str] = {}
        self.ports = [free_port() for _ in range(servers)]
        self.front = free_port()
        self.config = str(self.home / "nginx.conf")

    def put(self, files: Mapping[str, str]) -> None:
        """Exactly these files, by their path within the folder, and no others."""
        full = {str(self.home / name): text for name, text in files.items()}
        for path in self.files.keys() - full.keys():
            os.unlink(path)
        for path, text in full.items():
            if self.files.get(path) != text:
                # As editors and we ourselves do it: whoever reads meanwhile reads the old or the new.
                fresh = Path(path + ".new")
                fresh.write_bytes(text.encode("utf-8", "surrogateescape"))
                fresh.rename(path)
        self.files.clear()
        self.files.update(full)

    def argv(self, *more: str) -> list[str]:
        return [BINARIES[self.version], "-c", self.config, "-p", f"{self.home}/", *more]

    def test(self) -> tuple[int, str]:
        """Code and first emergency of the real `nginx -t`."""
        done = subprocess.run(
            self.argv("-e", "stderr", "-t", "-q"), stdin=subprocess.DEVNULL, capture_output=True, cwd=self.home, timeout=60
        )
        return done.returncode, emergency(done.stderr.decode("utf-8", "replace"))

    def main(self, upstreams: str, more: str = "") -> str:
        temp = "".join(f"  {kind}_temp_path {self.home}/tmp-{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return (
            f"worker_processes 1;\n{'user root;' if os.geteuid() == 0 else ''}\npid {self.home}/nginx.pid;\n"
            f"error_log {self.home}/error.log notice;\nevents {{ worker_connections 256; }}\n"
            f"http {{\n  access_log off;\n{temp}{upstreams}{more}}}\n"
        )

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


def emergency(text: str) -> str:
    """The first [emerg] line without time and process, '' when there is none."""
    line = next((line for line in text.splitlines() if "[emerg] " in line), "")
    return STAMP.sub("", line.partition("[emerg] ")[2], count=1)


# ---- random files ----

GOOD = ("weight=5", "weight=1", "max_fails=0", "max_fails=3", "fail_timeout=10s", "max_conns=7", "down", "backup", "weight=100000")
BAD = (
    "weight=0", "weight=", "weight=x", "weight=-1", "slow_start=5s", "bogus", "drain", "route=a", "route=", "resolve", "service=http",
    "max_fails=x",
    "fail_timeout=1x", "fail_timeout=", "fail_timeout=1h30m", "fail_timeout=30m1h", "weight=99999999999999999999", "down=1", "Weight=2",
    '"down"',
    "'weight=3'", "down;", "max_conns=0", "fail_timeout=5ms", "fail_timeout=1m5s",
)  # fmt: skip
ADDRESSES = (
    "127.0.0.1:80",
    "127.0.0.1",
    "[::1]:8080",
    "[::1]",
    "unix:/run/x.sock",
    "localhost:81",
    "10.0.0.5:8080",
    '"127.0.0.1:82"',
    "127.0.0.1:80",
)
WRONG = (
    "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:x", "nosuch.invalid:80", "999.1.1.1:80", ":80", "[::1", "[::1]80", "[::g]:80", "unix:",
    "http://x",
    "127.0.0.1:80-82", "[]:80", "a:b:c", "$host", "1.2.3.4/x", "[::1]:0",
)  # fmt: skip
ODD = (
    "server;", "servers 127.0.0.1;", "include sidecar.d/extra.conf;", "include missing.conf;", "include none*.conf;", "keepalive 5;",
    "keepalive 0;",
    "keepalive x;", "keepalive 2 local;", "keepalive_timeout 5s;", "keepalive_timeout 5x;", "keepalive_requests 10;",
    "keepalive_requests x;",
    "keepalive_time 1h;", "ip_hash;", "ip_hash on;", "least_conn;", "hash $remote_addr;", "hash $remote_addr consistent;",
    "hash $uri bogus;", "random;",
    "random two;", "random two least_conn;", "random three;", "zone x 64k;", "zone x 1k;", "zone x 64q;", "zone y;", "zone x 128k;",
    "listen 80;",
    "location / { }", "server { }", "upstream z { server 127.0.0.1; }", "worker_processes 2;", "return 200;", "# only words", "#", "}",
    "{", ";", '"',
    "'", "\\", "server 127.0.0.1:80 {", "server 127.0.0.1:80", "server '127.0.0.1:80'x;", 'server "127.0.0.1:80");', "server ${x};",
    "sticky x;",
    "proxy_pass http://a;", "keepalive_timeout 5s 6s;", "http { }", "server\t127.0.0.1:80\r;", "server 127.0.0.1:80\\ x;", "\u00e4rger;",
)  # fmt: skip
NOISE = ";{}\"'\\#$ \n\t)=x5"


def test_script(random: Random, folder: Folder) -> dict[str, str]:
    """The files of one configuration, mostly right, as an operator, our plugin and a slip of the hand make them."""
    pools = POOLS[: random.choice((1, 1, 2))]
    files = {f"sidecar.d/{pool}.conf": _include(random) for pool in pools}
    files["sidecar.d/extra.conf"] = _include(random, short=True)
    if random.random() < 0.02:
        del files[f"sidecar.d/{pools[0]}.conf"]
    blocks = "".join(_block(random, pool) for pool in pools)
    if random.random() < 0.03:
        blocks += f"  upstream {pools[0]} {{ server 127.0.0.1; }}\n"
    files["nginx.conf"] = folder.main(blocks)
    return files


def _block(random: Random, pool: str) -> str:
    include = f"include sidecar.d/{pool}.conf;"
    lines = [include]
    for line in (f"zone {pool} 64k;", random.choice(("least_conn;", "ip_hash;", "hash $uri;", "random two;")), "keepalive 32;"):
        if random.random() < 0.3:
            lines.insert(random.randint(0, len(lines)), line)
    if random.random() < 0.15:
        lines.insert(random.randint(0, len(lines)), random.choice(ODD))
    if random.random() < 0.1:
        lines.append(f"server {random.choice(ADDRESSES)} {random.choice(GOOD)};")
    return f"  upstream {pool} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _include(random: Random, short: bool = False) -> str:
    dice = random.random()
    lines = [_server(random) for _ in range(random.randint(1, 2 if short else 5))]
    if dice < 0.3:
        lines.insert(random.randint(0, len(lines)), random.choice(ODD))
    text = random.choice(("\n", "\n", "\r\n", " ")).join(lines) + random.choice(("\n", ""))
    if dice > 0.75:
        return marked(random, text)
    if dice > 0.6:
        return _fuzzed(random, text)
    return "" if dice > 0.595 else text


def _server(random: Random) -> str:
    address = random.choice(WRONG) if random.random() < 0.04 else random.choice(ADDRESSES)
    words = [
        random.choice(BAD) if random.random() < 0.06 else random.choice(GOOD[:7] if random.random() < 0.9 else GOOD)
        for _ in range(random.choice((0, 1, 1, 2)))
    ]
    tail = random.choice(("", "", "  # by hand", " #x;{}"))
    return f"server {' '.join([address, *words])};{tail}"


def _fuzzed(random: Random, text: str) -> str:
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(text))
        dice = random.random()
        if dice < 0.4:
            text = text[:at] + text[at + 1 :]
        elif dice < 0.95:
            text = text[:at] + random.choice(NOISE) + text[at:]
        else:
            text = text[:at] + random.choice(("# ", '"', "x", "")) + "y" * random.choice((4000, 4095, 4096, 5000)) + text[at:]
        text = text or ";"
    return text


def marked(random: Random, text: str) -> str:
    """The include as our plugin leaves it after some ejections, cuts and maintenances; as it is where the plugin keeps its hands off."""
    with contextlib.suppress(IncludeFault):
        include = parse(text)
        for server in include.servers:
            dice = random.random()
            with contextlib.suppress(IncludeFault):
                if dice < 0.3:
                    include = set_ours(include, include.named(server.name)[0], Setting(NONE))
                elif dice < 0.5:
                    include = set_ours(include, include.named(server.name)[0], Setting(FULL, random.randint(1, 99)))
                elif dice < 0.6:
                    include = set_operator(include, include.named(server.name)[0], NONE)
        return render(include)
    return text


def run_test(version: str, scripts: int, seed: int, most_failures: int = 10) -> tuple[list[Failure], str]:
    """So many configurations judged by both; the failures, each shrunken, and how many were refused."""
    folder = Folder(version)
    failures: list[Failure] = []
    refused = 0

    def both(files: Mapping[str, str]) -> tuple[tuple[int, str], tuple[int, str]]:
        folder.put(files)
        return folder.test(), judged(folder)

    try:
        for number in range(scripts):
            files = test_script(Random(f"{seed}/test/{number}"), folder)
            real, sim = both(files)
            refused += real[0] != 0
            if real != sim:
                least, how = _least(files, both)
                failures.append(
                    Failure(f"nginx-{version} -t seed {seed} script {number}", least, how or f"only once: real {real}, simulated {sim}")
                )
                if len(failures) >= most_failures:
                    break
        return failures, f", {refused} refused by both alike" if not failures else ""
    finally:
        folder.close()


def resolves(host: str) -> bool:
    """As the C library does without a network: itself, and numbers in old notations, `127.1`."""
    try:
        return host == "localhost" or (not re.search(r"\s", host) and bool(socket.inet_aton(host)))
    except OSError:
        return False


def judged(folder: Folder) -> tuple[int, str]:
    """What the simulated `nginx -t` makes of the files of this folder."""
    code, text = judge(folder.files, folder.config, folder.version, resolves)
    return code, emergency(text)


def _least(files: Mapping[str, str], both: Callable[[Mapping[str, str]], tuple[object, object]]) -> tuple[list[str], str]:
    """The shortest files on which they still differ, line by line."""
    lines = [(name, line) for name, text in files.items() for line in text.splitlines(keepends=True)]

    def still(some: Sequence[tuple[str, str]]) -> str:
        built = dict.fromkeys(files, "")
        for name, line in some:
            built[name] += line
        real, sim = both(built)
        return "" if real == sim else f"real {real}, simulated {sim}"

    left, how = shrunk(lines, still)
    return [f"{name}: {line.rstrip()!r}" for name, line in left], how


# ---- reload ----


class Running(Folder):
    """A real nginx that serves, and a simulated one beside it. Its instances are servers of its own that answer with their port."""

    def __init__(self, version: str, pools: int) -> None:
        super().__init__(version)
        self.pools = [f"p{number}" for number in range(pools)]
        self.put(self.configured({pool: self._plain() for pool in self.pools}, dict.fromkeys(self.pools, "")))
        self.process = subprocess.Popen(
            self.argv("-e", f"{self.home}/error.log", "-g", "daemon off;"),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.home,
        )  # fmt: skip
        until(self.workers, "nginx starts")
        self.sim = SimNginx(self.files, version, config=self.config)
        self.now = 0.0

    def _plain(self) -> str:
        return "".join(f"server 127.0.0.1:{port};\n" for port in self.ports)

    def configured(self, includes: Mapping[str, str], inside: Mapping[str, str], listen: Sequence[int] = ()) -> dict[str, str]:
        upstreams = "".join(f"  upstream {pool} {{ {inside[pool]} include sidecar.d/{pool}.conf; }}\n" for pool in self.pools)
        instances = "".join(f"  server {{ listen 127.0.0.1:{port}; return 200 {port}; }}\n" for port in self.ports)
        locations = "".join(f" location = /{pool} {{ proxy_pass http://{pool}; }}" for pool in self.pools)
        front = "".join(f" listen 127.0.0.1:{port};" for port in (self.front, *listen))
        main = self.main(upstreams, f"{instances}  server {{{front}{locations} }}\n")
        return {"nginx.conf": main, **{f"sidecar.d/{pool}.conf": text for pool, text in includes.items()}}

    def workers(self) -> frozenset[int]:
        """Pids of those that take new requests."""
        assert self.process.poll() is None, "nginx has died"
        found = set()
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if title.startswith(b"nginx: worker process") and b"shutting" not in title:
                    found.add(int(pid))
        return frozenset(found)

    def reload(self) -> str:
        """HUP to both; '' or how they differ in whether it was taken."""
        before, size, workers, told = self.workers(), self._log_size(), self.sim.workers, len(self.sim.error_log)
        self.process.send_signal(signal.SIGHUP)
        self.now += 1
        self.sim.reload(self.now)
        if self.sim.is_binding:
            self.now += BIND_TRIES_S
            self.sim.tick(self.now)
        if self.sim.workers is not workers:
            is_taken = self._comes(lambda: bool(self.workers()) and not self.workers() & before)
            return "" if is_taken else f"it did not reload but said {self._said(size)!r}"
        for line in self.sim.error_log[told:]:
            text = line.partition(": ")[2]
            if not self._comes(lambda text=text: text in self._log(size)):  # type: ignore[misc]
                return f"it did not say {text!r} but {self._said(size)!r}"
        return "" if self.workers() == before else "it reloaded, the simulated one did not"

    def _comes(self, found: Callable[[], bool]) -> bool:
        late = time.monotonic() + PATIENCE_S
        while not found():
            if time.monotonic() > late:
                return False
            time.sleep(0.005)
        return True

    def _log_size(self) -> int:
        return (self.home / "error.log").stat().st_size

    def _log(self, size: int) -> str:
        return (self.home / "error.log").read_bytes()[size:].decode("utf-8", "replace")

    def _said(self, size: int) -> str:
        return emergency(self._log(size)) or "nothing"

    def served(self, pool: str, requests: int) -> Counter[str]:
        """Who answers so many requests to a pool, by address, or the status when nobody does."""
        seen: Counter[str] = Counter()
        client = http.client.HTTPConnection("127.0.0.1", self.front, timeout=PATIENCE_S)
        with contextlib.closing(client):
            for number in range(requests):
                client.request("GET", f"/{pool}?{number}")
                answer = client.getresponse()
                body = answer.read().decode()
                seen[f"127.0.0.1:{body}" if answer.status == 200 else str(answer.status)] += 1
        return seen

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        super().close()


INSIDE = ("", "", "least_conn;", "ip_hash;", "hash $arg_k;", "random;", "zone {pool} 64k;", "zone {pool} 64k; least_conn;", "keepalive 4;")
DIRECT = ("", "least_conn;", "keepalive 4;", "zone")
"""Methods by which requests one after the other go round exactly by weight."""


def run_reload(version: str, scripts: int, seed: int, most_failures: int = 10, pools: int = 8) -> tuple[list[Failure], str]:
    """So many reloads, each with other servers in every upstream; the failures, and how many upstreams were asked."""
    box = Running(version, pools)
    failures: list[Failure] = []
    asked = refused = 0
    blocker, taken = blocked()
    box.sim.taken.add(f"127.0.0.1:{taken}")
    try:
        for number in range(scripts):
            random = Random(f"{seed}/reload/{number}")
            inside = {pool: random.choice(INSIDE).format(pool=pool) for pool in box.pools}
            includes = {pool: _loadable(random, box.ports, inside[pool], version) for pool in box.pools}
            if random.random() < 0.1:
                includes[random.choice(box.pools)] = random.choice(("server bogus!;", "", "server 127.0.0.1 weight=0;", "server 127.0.0.1"))
            box.put(box.configured(includes, inside, [taken] if random.random() < 0.04 else ()))
            name = f"nginx-{version} reload seed {seed} script {number}"
            workers = box.sim.workers
            if how := box.reload():
                failures.append(Failure(name, [f"{pool}: {inside[pool]} {text!r}" for pool, text in includes.items()], how))
            refused += box.sim.workers is workers
            for pool in box.pools:
                asked += 1
                if how := _unequal(box, pool):
                    failures.append(Failure(f"{name} ({pool})", [inside[pool], *includes[pool].splitlines()], how))
            if len(failures) >= most_failures:
                break
        return failures, f", {asked} upstreams asked, {refused} reloads refused"
    finally:
        blocker.close()
        box.close()


def blocked() -> tuple[socket.socket, int]:
    """A port at which somebody else listens."""
    while True:
        blocker = socket.socket()
        with contextlib.suppress(OSError):
            blocker.bind(("127.0.0.1", port := free_port()))
            blocker.listen()
            return blocker, port
        blocker.close()


def _unequal(box: Running, pool: str) -> str:
    """'' or how what a pool serves differs."""
    shares = box.sim.serving(pool)
    found = box.sim.current.loaded.upstreams[pool]
    method, is_whole = found.method, not any(peer.out for peer in found.peers)
    turn = sum(shares.values())
    seen = box.served(pool, turn if 2 <= turn <= 40 else 12)
    wanted = set(shares) or {"502"}
    if method in ("", "least_conn") and 2 <= turn <= 40:
        return "" if seen == Counter(shares) else f"real {dict(seen)}, simulated {shares}"
    # ip_hash tries twenty times for one that is up, then it goes round: with servers out, one client may see several.
    is_one = len(seen) == 1 or method != "ip_hash" or not is_whole
    return "" if set(seen) <= wanted and is_one else f"real {dict(seen)}, simulated one of {sorted(wanted)}"


def _loadable(random: Random, ports: Sequence[int], inside: str, version: str) -> str:
    """Servers that nginx takes in such a block, as an operator and as our plugin write them."""
    lines: list[str] = []
    for port in random.sample(list(ports), random.randint(1, len(ports))):
        words = [random.choice(("", "", "weight=2", "weight=3", "weight=5")), random.choice(("", "", "max_fails=0"))]
        words.append(random.choice(("", "", "", "down", "drain" if version != "1.22" else "down")))
        if lines and not {"ip_hash;", "random;", "hash $arg_k;"} & {inside} and random.random() < 0.2:
            words.append("backup")
        lines.append(" ".join(filter(None, (f"server 127.0.0.1:{port}", *words))) + ";\n")
    text = "".join(lines)
    return marked(random, text) if random.random() < 0.5 else text


__all__ = ["run_reload", "run_test"]
