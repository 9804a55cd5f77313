"""One writer at a time: a lock on a file that every would-be writer sees. The kernel drops it when its holder dies, however it dies.

Containers that share the volume share the lock. The content says who holds it, for people; only the lock itself counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_MOST_BYTES = 4096
_TRIES = 10
"""How often the file may be replaced under our hands before we call it unusable."""


class Held:
    """The lock is ours until `release`, or until this process ends."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def still_held(self) -> bool:
        """False when someone removed or replaced the file: another writer may then hold the new one."""
        return self._fd >= 0 and _is_at(self._fd, self.path)

    def release(self) -> None:
        """Let others have it. Safe twice. The file stays: removing it would let two hold it at once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Busy:
    """Another writer holds it. `by`: who, in words."""

    path: Path
    by: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """There is no lock to be had here. `why`: the reason and what to do."""

    path: Path
    why: str


def acquire(path: Path, who: str = "lb-sidecar") -> Held | Busy | Unusable:
    """Try once to take the lock; never waits."""
    try:
        for _ in range(_TRIES):
            fd = _open(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                by = _holder(fd)
                os.close(fd)
                return Busy(path, by)
            except BaseException:
                os.close(fd)
                raise
            if _is_at(fd, path):
                _sign(fd, who)
                return Held(path, fd)
            os.close(fd)  # someone replaced the file between opening and locking
    except OSError as error:
        return Unusable(path, _advice(path, error))
    return Unusable(path, f"{path} is replaced all the time; only sidecars may touch it")


def _open(path: Path) -> int:
    """The file, made if it lacks; one that we may only read can be locked all the same."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | flags)


def _is_at(fd: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    ours = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def _sign(fd: int, who: str) -> None:
    """Say who holds it; a file we may only read says nothing, and a full disk is no reason to go without a lock."""
    since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    content = json.dumps({"who": who, "pid": os.getpid(), "host": socket.gethostname(), "since": since})
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, content.encode() + b"\n", 0)


def _holder(fd: int) -> str:
    try:
        found = json.loads(os.pread(fd, _MOST_BYTES, 0))
        who, pid, host, since = (found[name] for name in ("who", "pid", "host", "since"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process that has not signed"
    if host == socket.gethostname() and type(pid) is int and not Path(f"/proc/{pid}").exists():
        return f"another process (the signature is of process {pid}, which has ended)"
    words = f"{who}, process {pid} on {host} since {since}"
    return "".join(each if each.isprintable() else "?" for each in words)[:300]


def _advice(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            cure = (
                f"make {path.parent} writable for this user, or create the file once, `install -m 0644 /dev/null {path}`: "
                "reading it is enough"
            )
        case errno.ENOENT | errno.ENOTDIR:
            cure = f"create the folder {path.parent}"
        case errno.ELOOP | errno.EISDIR | errno.ENXIO:
            cure = "it must be a plain file: remove what is there"
        case errno.ENOLCK | errno.EOPNOTSUPP:
            cure = "this file system has no locks: put the folder on a local one"
        case _:
            cure = "repair the file system"
    return f"no one-writer lock at {path}: {reason}; {cure}. Until then nothing keeps a second sidecar from writing too"


__all__ = ["Busy", "Held", "Unusable", "acquire"]
