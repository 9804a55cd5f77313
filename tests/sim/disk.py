"""A disk that loses what was not fsynced, and the part of `os` that our journal, lease and locks use on it.

Two truths per file (what a reader sees now, and what is on the platter) and per name in a folder. `fsync` of a file carries its bytes
over, `fsync` of a folder its names. A power cut keeps the platter and, of the rest, whatever luck decides: bytes appended may be there in
part, a rename may have happened or not. A killed process loses nothing that it wrote, and every lock that it held.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace

from tests.sim.loop import CURRENT, Process

FIRST_FD = 1_000_000
"""Far from real descriptors: one that strays into the real `os` does no harm."""


@dataclass(eq=False, slots=True)
class File:
    """One inode. `synced`: what survives a power cut for certain; `version` grows with every change of that."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    version: int = 0
    locked_by: int = 0
    """The descriptor that holds its lock; 0 = none."""


@dataclass(eq=False, slots=True)
class Open:
    file: File
    process: Process | None
    folder: str = ""
    at: int = 0
    appends: bool = False


class Disk:
    """All files of one machine. `full`: nothing grows; `broken`: no fsync succeeds; `slow_s`: what one transaction takes."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names: dict[str, File] = {}
        self.synced_names: dict[str, File] = {}
        self.full = self.broken = False
        self.slow_s = 0.001
        self.on_sync: Callable[[str], None] = lambda path: None
        self.syncs = 0
        self._open: dict[int, Open] = {}
        self._next_fd, self._next_file = FIRST_FD, 1
        self._folders: dict[str, File] = {}

    def certain(self, path: str) -> tuple[object, bytes]:
        """What a power cut at this moment would leave at least: a mark that changes with it, and the bytes."""
        file = self.synced_names.get(path)
        return (None, b"") if file is None else ((file.number, file.version), file.synced)

    def remove(self, path: str) -> None:
        """Somebody deletes the file; who has it open goes on with it."""
        self.names.pop(path, None)
        self.synced_names.pop(path, None)

    def holder(self, path: str) -> Process | None:
        """Who has the lock on the file at this path."""
        file = self.names.get(path)
        held = self._open.get(file.locked_by) if file is not None and file.locked_by else None
        return held.process if held is not None else None

    def died(self, process: Process) -> None:
        for fd in [fd for fd, each in self._open.items() if each.process is process]:
            self._close(fd)

    def power_cut(self) -> None:
        """Every process must be dead already."""
        for path in sorted(self.names.keys() | self.synced_names.keys()):
            if self.names.get(path) is not self.synced_names.get(path) and self.rng.random() < 0.5:
                self._carry(path)
        self.names = dict(self.synced_names)
        for file in self.names.values():
            was, now = file.synced, bytes(file.data)
            if now.startswith(was):
                now = now[: self.rng.randint(len(was), len(now))]
            file.data = bytearray(now if self.rng.random() < 0.5 else was)
            file.synced = bytes(file.data)
            file.version += 1

    def _carry(self, path: str) -> None:
        if (file := self.names.get(path)) is None:
            self.synced_names.pop(path, None)
        else:
            self.synced_names[path] = file

    def _close(self, fd: int) -> None:
        held = self._open.pop(fd)
        if held.file.locked_by == fd:
            held.file.locked_by = 0

    # ---- what `os` and `fcntl` do ----

    def os(self) -> SimpleNamespace:
        """To stand where a module says `os`."""
        constants = {name: getattr(os, name) for name in dir(os) if name.startswith("O_")}
        mine = ("open", "close", "read", "write", "pread", "pwrite", "fsync", "ftruncate", "fstat", "stat", "rename", "unlink", "getpid")
        return SimpleNamespace(**constants, path=os.path, **{name: getattr(self, name) for name in mine})

    def fcntl(self) -> SimpleNamespace:
        return SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=self.flock)

    def getpid(self) -> int:
        process = CURRENT.get()
        return process.pid if process is not None else 1

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        self._point("open")
        name, file = str(path), self.names.get(str(path))
        if flags & os.O_DIRECTORY:
            return self._opened(Open(self._folders.setdefault(name, File(0)), CURRENT.get(), name))
        if file is None and not flags & os.O_CREAT:
            raise _error(errno.ENOENT, name)
        if file is not None and flags & os.O_EXCL:
            raise _error(errno.EEXIST, name)
        if file is None:
            if self.full:
                raise _error(errno.ENOSPC, name)
            self._next_file += 1
            file = self.names[name] = File(self._next_file)
        if flags & os.O_TRUNC:
            file.data.clear()
        return self._opened(Open(file, CURRENT.get(), appends=bool(flags & os.O_APPEND)))

    def _opened(self, held: Open) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = held
        return self._next_fd

    def _held(self, fd: int) -> Open:
        if fd not in self._open:
            raise _error(errno.EBADF, str(fd))
        return self._open[fd]

    def close(self, fd: int) -> None:
        self._point("")
        self._held(fd)
        self._close(fd)

    def read(self, fd: int, most: int) -> bytes:
        held = self._held(fd)
        data = bytes(held.file.data[held.at : held.at + most])
        held.at += len(data)
        return data

    def pread(self, fd: int, most: int, at: int) -> bytes:
        return bytes(self._held(fd).file.data[at : at + most])

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Where the disk is full, half of it still fits: the next call says so."""
        self._point("before a write")
        held = self._held(fd)
        some = bytes(data)
        if self.full:
            if len(some) < 8:
                raise _error(errno.ENOSPC, "")
            some = some[: len(some) // 2]
        if held.appends:
            held.at = len(held.file.data)
        held.file.data[held.at : held.at + len(some)] = some
        held.at += len(some)
        self._point("after a write")
        return len(some)

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        held = self._held(fd)
        if self.full:
            raise _error(errno.ENOSPC, "")
        held.file.data[at : at + len(data)] = data
        return len(data)

    def fsync(self, fd: int) -> None:
        self._point("before an fsync")
        held = self._held(fd)
        if self.broken:
            raise _error(errno.EIO, "")
        self.syncs += 1
        if held.folder:
            for path in sorted(self.names.keys() | self.synced_names.keys()):
                if posixpath.dirname(path) == held.folder:
                    self._carry(path)
            self.on_sync(held.folder)
        else:
            held.file.synced = bytes(held.file.data)
            held.file.version += 1
            self.on_sync(next((path for path, file in self.names.items() if file is held.file), ""))
        self._point("after an fsync")

    def ftruncate(self, fd: int, size: int) -> None:
        self._point("before a truncation")
        del self._held(fd).file.data[size:]

    def fstat(self, fd: int) -> SimpleNamespace:
        return _status(self._held(fd).file)

    def stat(self, path: str | Path, *, follow_symlinks: bool = True) -> SimpleNamespace:
        if (file := self.names.get(str(path))) is None:
            raise _error(errno.ENOENT, str(path))
        return _status(file)

    def rename(self, old: str | Path, new: str | Path) -> None:
        self._point("before a rename")
        if str(old) not in self.names:
            raise _error(errno.ENOENT, str(old))
        self.names[str(new)] = self.names.pop(str(old))
        self._point("after a rename")

    def unlink(self, path: str | Path) -> None:
        self._point("")
        if self.names.pop(str(path), None) is None:
            raise _error(errno.ENOENT, str(path))

    def flock(self, fd: int, how: int) -> None:
        held = self._held(fd)
        if held.file.locked_by not in (0, fd):
            raise BlockingIOError(errno.EAGAIN, "locked")
        held.file.locked_by = fd

    def opened(self, fd: int, mode: str) -> Opened:
        """To stand where a module says `open` of a descriptor."""
        return Opened(self, fd)

    def _point(self, where: str) -> None:
        """Where a process may die; a dead one does nothing any more."""
        process = CURRENT.get()
        if process is not None and (where or not process.is_alive):
            process.point(where)


class Opened:
    """A file object on a descriptor, as far as we use one."""

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk, self._fd = disk, fd

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.close(self._fd)

    def read(self, most: int) -> bytes:
        return self._disk.read(self._fd, most)

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[self._disk.write(self._fd, left) :]
        return len(data)

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return self._fd


def _status(file: File) -> SimpleNamespace:
    return SimpleNamespace(st_dev=1, st_ino=file.number, st_size=len(file.data))


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


__all__ = ["Disk"]
