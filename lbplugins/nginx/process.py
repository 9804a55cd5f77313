"""The running nginx: its master and workers as /proc shows them, and the three things we do to it: test, reload, prove.

Everything here blocks, for a bounded time; the plugin calls it from a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lbplugins.api import BalancerError
from lbplugins.nginx.files import read_bytes, who

TEST_DEADLINE_S = 20.0
RELOAD_DEADLINE_S = 10.0
PROOF_DEADLINE_S = 5.0
POLL_S = 0.02
MAX_OUTPUT = 1 << 20
MAX_LEAVING = 10
"""So many workers of earlier configurations may still finish their requests; each holds memory, so more of them wait."""

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/nginx/sbin"
_TITLE_PREFIX = re.compile(r" -p ?(/\S*)")
_TITLE_LOG = re.compile(r" -e ?(\S+)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_STAMP = re.compile(r"\A\d{4}/\d\d/\d\d \d\d:\d\d:\d\d |(?<=\] )\d+#\d+: ")
"""When and which process: the same complaint reads alike each time without them."""


class Build(NamedTuple):
    """What is compiled into an nginx program; paths may be relative to the prefix."""

    version: tuple[int, ...]
    prefix: str
    pid_file: str
    error_log: str


class Life(NamedTuple):
    """One process: a pid, and the clock ticks since boot at which it began, so that a pid used again is another life."""

    pid: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Master:
    """A running nginx. `workers`: those that take new requests; `leaving`: how many finish old ones. `cwd` None = not for us to see.

    `replaces`: the pid of an older master that still serves with what it loaded last, since a binary upgrade has not ended; 0 = none.
    """

    life: Life
    uid: int
    title: str
    cwd: str | None
    workers: frozenset[Life]
    leaving: int
    replaces: int = 0

    @property
    def generation(self) -> str:
        return f"{self.life.pid}@{self.life.ticks}"

    @property
    def prefix(self) -> str | None:
        """The prefix it was told on its command line."""
        match = _TITLE_PREFIX.search(self.title)
        return match[1] if match else None

    @property
    def error_log(self) -> str | None:
        match = _TITLE_LOG.search(self.title)
        return match[1] if match else None

    def loaded_at(self) -> float:
        """When the oldest of its workers began, seconds since the epoch: a file older than this is in force. -inf without workers.

        The oldest, because the master replaces a worker that crashed without reading any file.
        """
        if not self.workers:
            return float("-inf")
        # A tick is 10 ms, counted from its beginning: the end of it, or a quick reload would seem to come before the edit it loads.
        ticks = 1 + min(worker.ticks for worker in self.workers)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age


def find_binary(name: str) -> str:
    """The path of the nginx program. BalancerError when there is none."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    if found is None:
        raise BalancerError(f"there is no program {name!r}; name nginx's with `binary: /path/to/nginx`")
    return found


def build_of(binary: str) -> Build:
    """What `BINARY -V` says. BalancerError when it is not nginx."""
    code, text = run([binary, "-V"], TEST_DEADLINE_S, "/")
    version = re.search(r"nginx version: \S+?/(\d+)\.(\d+)\.(\d+)", text)
    if code != 0 or version is None:
        raise BalancerError(f"{binary} is not nginx: `{binary} -V` says {headline(text)!r}")

    def flag(name: str, default: str) -> str:
        match = re.search(rf"--{name}=(\S+)", text)
        return match[1] if match else default

    return Build(
        tuple(int(part) for part in version.groups()),
        flag("prefix", "/usr/local/nginx"),
        flag("pid-path", "logs/nginx.pid"),
        flag("error-log-path", "logs/error.log"),
    )


def find_master(pid_file: Path, binary: str | None) -> Master:
    """The nginx whose pid this file holds. BalancerError when it does not run, or the pid is somebody else's: that one is never touched."""
    pid = _read_pid(pid_file)
    life = _life(pid)
    if life is None:
        raise BalancerError(f"nginx does not run: {pid_file} names process {pid}, which does not exist; start nginx")
    title = _title(pid)
    if not title.startswith("nginx: master") or not _is_nginx(pid, binary):
        raise BalancerError(f"{pid_file} names process {pid}, which is no nginx master ({title[:60]!r}); left alone; correct `pid_file`")
    workers, leaving = _workers(pid)
    return Master(life, os.stat(f"/proc/{pid}").st_uid, title, _link(pid, "cwd"), workers, leaving, _replaced(pid_file, pid, binary))


def _workers(master: int) -> tuple[frozenset[Life], int]:
    """Those that take new requests, and how many finish old ones."""
    workers, leaving = set(), 0
    for child in _children(master):
        name = _title(child.pid)
        if name.startswith("nginx: worker process is shutting down"):
            leaving += 1
        elif name.startswith("nginx: worker process"):
            workers.add(child)
    return frozenset(workers), leaving


def _replaced(pid_file: Path, master: int, binary: str | None) -> int:
    """The master before this one, while a binary upgrade has both of them serve; else 0."""
    with contextlib.suppress(BalancerError):
        old = _read_pid(pid_file.with_name(f"{pid_file.name}.oldbin"))
        if old != master and _title(old).startswith("nginx: master") and _is_nginx(old, binary) and _workers(old)[0]:
            return old
    return 0


def _read_pid(pid_file: Path) -> int:
    try:
        text = read_bytes(pid_file, 64).strip()
    except BalancerError as error:
        if pid_file.exists():
            raise
        raise BalancerError(f"nginx does not run: its pid file {pid_file} does not exist; start nginx, or correct `pid_file`") from error
    if not text.isdigit() or not 1 < int(text) < 1 << 31:
        raise BalancerError(f"{pid_file} holds no process id; is it nginx's pid file?")
    return int(text)


def _life(pid: int) -> Life | None:
    """This process now; None when there is none, or only what its parent has not yet buried."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in ("Z", "X") else Life(pid, int(fields[19]))


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the name before them may hold spaces and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _title(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()[:4096]
        return raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def _is_nginx(pid: int, binary: str | None) -> bool:
    names = {"nginx"} | ({os.path.basename(os.path.realpath(binary))} if binary else set())
    exe = _link(pid, "exe")
    if exe is not None:
        return os.path.basename(exe.removesuffix(" (deleted)")) in names
    # Another user's process does not show its program; its short name must do, and only for looking.
    fields = Path(f"/proc/{pid}/comm")
    with contextlib.suppress(OSError):
        return fields.read_text().strip() in {name[:15] for name in names}
    return False


def _link(pid: int, name: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return None


def _children(pid: int) -> Iterator[Life]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        candidates = [int(child) for child in listed]
    except OSError:
        candidates = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for candidate in candidates:
        fields = _stat(candidate)
        if fields is not None and fields[0] not in ("Z", "X") and int(fields[1]) == pid:
            yield Life(candidate, int(fields[19]))


def run(argv: Sequence[str], deadline_s: float, cwd: str) -> tuple[int, str]:
    """Exit code and all output of a command. BalancerError when it cannot start, or has not ended in time (then it is killed)."""
    environment = {key: value for key, value in os.environ.items() if key != "NGINX"}  # nginx would take it for sockets to inherit
    # Output goes to memory and not through a pipe: a daemon that the command leaves behind would hold a pipe open.
    with os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "w+b") as output:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=environment, start_new_session=True
            )
        except OSError as error:
            raise BalancerError(f"cannot run `{' '.join(argv)}`: {error.strerror}; correct it in the configuration") from error
        late = time.monotonic() + deadline_s
        while process.poll() is None:
            if time.monotonic() > late or os.fstat(output.fileno()).st_size > MAX_OUTPUT:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise BalancerError(
                    f"`{' '.join(argv)}` did not end within {deadline_s:g} s and {MAX_OUTPUT} bytes of output; it was killed"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        output.seek(0)
        return process.returncode, output.read(MAX_OUTPUT).decode("utf-8", "replace")


def headline(text: str) -> str:
    """The line of nginx's output that says what is wrong: the first of [emerg], else the last.

    Printable, at most 400 characters, without time and process number, so that the same fault gives the same line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if "[emerg]" in line), lines[-1] if lines else "no output")
    return _UNPRINTABLE.sub(" ", _STAMP.sub("", line))[:400]


def argv_of_test(binary: str, build: Build, config: Path, prefix: str | None) -> list[str]:
    """The command that tests a configuration without touching the running nginx."""
    argv = [binary, "-t", "-q", "-c", str(config)]
    if prefix:
        argv += ["-p", prefix if prefix.endswith("/") else f"{prefix}/"]
    # Without it `-t` would complain of, or create, the error log that is compiled in. Known since 1.19.5.
    return [*argv, "-e", "stderr"] if build.version >= (1, 19, 5) else argv


def hang_up(master: Master, binary: str | None) -> None:
    """HUP to this very master: it reads its configuration again. BalancerError when it is gone, or not ours to signal."""
    pid = master.life.pid
    try:
        # The descriptor pins the process, so that the checks after it hold for the one that gets the signal.
        with _pinned(pid) as pin:
            if _life(pid) != master.life or not _title(pid).startswith("nginx: master") or not _is_nginx(pid, binary):
                raise BalancerError(f"nginx master {pid} is gone; nothing was signalled")
            if _link(pid, "exe") is None:
                raise PermissionError
            if pin is None:
                os.kill(pid, signal.SIGHUP)
            else:
                signal.pidfd_send_signal(pin, signal.SIGHUP)
    except ProcessLookupError as error:
        raise BalancerError(f"nginx master {pid} is gone; nothing was signalled") from error
    except PermissionError as error:
        raise BalancerError(f"nginx master {pid}: {may_not_signal(master) or who() + ' may not signal it'}") from error


@contextlib.contextmanager
def _pinned(pid: int) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:  # a kernel before 5.3
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def may_not_signal(master: Master) -> str | None:
    """None, or why we cannot reload this master by signal, and the cure."""
    if os.geteuid() in (0, master.uid):
        return None
    try:
        owner = pwd.getpwuid(master.uid).pw_name
    except KeyError:
        owner = f"uid {master.uid}"
    return f"{who()} may not signal nginx, which runs as {owner}; run as that user, or give `reload` a command that may"


class ErrorLogs:
    """What nginx writes to its error logs from now on. Logs that are no files, or not for us to read, are left out."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._from: list[tuple[Path, int, int]] = []
        for path in paths:
            with contextlib.suppress(OSError):
                seen = os.stat(path)
                if stat.S_ISREG(seen.st_mode):
                    self._from.append((path, seen.st_ino, seen.st_size))

    def emergency(self, pid: int) -> str | None:
        """The last [emerg] line that this process has written since; None = none."""
        last = None
        for path, inode, size in self._from:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                seen = os.fstat(file.fileno())
                file.seek(size if seen.st_ino == inode and seen.st_size >= size else 0)
                for line in file.read(MAX_OUTPUT).decode("utf-8", "replace").splitlines():
                    if f"[emerg] {pid}#" in line:
                        last = headline(line)
        return last


class NotLoaded(Exception):
    """The reload did not take. `refused`: nginx said so itself, and runs its old configuration."""

    def __init__(self, why: str, refused: bool) -> None:
        super().__init__(why)
        self.refused = refused


def prove(
    before: Master, told_at: float, pid_file: Path, binary: str | None, logs: ErrorLogs, deadline_s: float = PROOF_DEADLINE_S
) -> Master:
    """The nginx in which every worker that takes requests is new since `before`. NotLoaded when there is none by the deadline.

    A reply of `nginx -s reload` proves nothing: when a port is taken, it succeeds and the old configuration stays. Nor does another
    master, unless it began after `told_at` (seconds since boot): one of a binary upgrade has read the files before they were ours.
    """
    late = time.monotonic() + deadline_s
    told_at_ticks = int(told_at * os.sysconf("SC_CLK_TCK"))
    said: str | None = None
    while True:
        with contextlib.suppress(BalancerError):  # between two masters, a pid file may be missing
            now = find_master(pid_file, binary)
            is_told = now.life == before.life or now.life.ticks > told_at_ticks
            if is_told and now.workers and not now.workers & before.workers:
                return now
        said = logs.emergency(before.life.pid) or said
        # A port that is taken is tried again for 2.5 s; any other emergency is nginx's last word.
        if said and ("still could not bind" in said or " bind() to " not in said):
            raise NotLoaded(said, refused=True)
        if time.monotonic() > late:
            raise NotLoaded(said or f"no new worker within {deadline_s:g} s", refused=said is not None)
        time.sleep(POLL_S)
