"""Files that a balancer reads: looked at safely, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbplugins.api import BalancerError


@dataclass(frozen=True, slots=True)
class Content:
    """A file as read: its bytes, and when it last changed, by its bytes or its name; seconds since the epoch."""

    data: bytes
    changed_at: float


def who() -> str:
    """The user we run as, for messages."""
    try:
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"uid {os.geteuid()}"


def read_bytes(path: Path, limit: int) -> bytes:
    """All of a regular file. BalancerError when it cannot be read or is larger than `limit` bytes."""
    return read(path, limit).data


def read(path: Path, limit: int, *, follow: bool = True) -> Content:
    """All of a regular file and its age; with `follow` off a symbolic link is refused. BalancerError says what to do."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise BalancerError(_why(error, path, "read")) from error
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):  # asked before `open`, which would keep the descriptor of a directory
            raise BalancerError(f"{path} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BalancerError(_why(error, path, "read")) from error
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise BalancerError(f"{path} is larger than {limit} bytes")
    return Content(data, max(seen.st_mtime, seen.st_ctime))


def _why(error: OSError, path: Path, verb: str) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"{path} does not exist"
        case errno.ELOOP:
            return f"{path} is a symbolic link; put a regular file there"
        case errno.EACCES | errno.EPERM:
            return f"{path}: {who()} may not {verb} it; give it that right, or run as a user that has it"
        case errno.ENOSPC | errno.EDQUOT:
            return f"{path}: the disk is full, so it was left as it is; free some space"
        case _:
            return f"{path}: cannot {verb} it: {error.strerror or error}"


def check_directory(path: Path) -> None:
    """BalancerError unless this is a directory in which nobody but root and we can plant a file."""
    try:
        seen = os.lstat(path)
    except OSError as error:
        hint = f"; create it: install -d -m 0755 {path}" if error.errno == errno.ENOENT else ""
        raise BalancerError(_why(error, path, "look at") + hint) from error
    if stat.S_ISLNK(seen.st_mode):
        raise BalancerError(f"{path} is a symbolic link; name the real directory in servers_dir")
    if not stat.S_ISDIR(seen.st_mode):
        raise BalancerError(f"{path} is not a directory")
    if seen.st_mode & 0o022:
        raise BalancerError(f"{path} can be written by group or others, who could redirect traffic: chmod go-w {path}")
    if seen.st_uid not in (0, os.geteuid()):
        raise BalancerError(f"{path} belongs to uid {seen.st_uid}, who could redirect traffic; make it root's or that of {who()}")


def unwritable(directory: Path) -> str | None:
    """None, or why we cannot replace files there, and the cure."""
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return None
    return f"{who()} may not write to {directory}; make it that user's (chown), or run as root"


class Replacement:
    """New bytes in the place of files, which can be taken back until `keep`. The old file waits beside the new as a second name."""

    def __init__(self) -> None:
        self._done: list[tuple[Path, Path, bytes]] = []

    def put(self, path: Path, data: bytes, expect: bytes) -> None:
        """Replace one file at once, if it still holds `expect`: new inode, same mode and owner. BalancerError = this file is as it was."""
        waiting = path.with_name(f".{path.name}.lb-sidecar-old")
        with _told(path):
            old = os.lstat(path)
            if not stat.S_ISREG(old.st_mode):
                raise BalancerError(f"{path} is not a regular file; it is not replaced")
            fresh = _write_beside(path, data, old)
            try:
                _unlink(waiting)
                # A second name and no copy: going back must not need space on a full disk.
                os.link(path, waiting)
                if waiting.read_bytes() != expect:
                    raise BalancerError(f"{path} was changed by somebody else at this moment; it is left as it is")
                os.rename(fresh, path)
            except (OSError, BalancerError):
                _unlink(fresh)
                _unlink(waiting)
                raise
            self._done.append((path, waiting, data))
            _sync(path.parent)

    def undo(self) -> None:
        """All old files back, but where a hand has written since. BalancerError names the first that stayed; the others went back."""
        failed: BalancerError | None = None
        while self._done:
            path, waiting, data = self._done.pop()
            try:
                with _told(path):
                    if path.read_bytes() != data:
                        _unlink(waiting)
                        raise BalancerError(f"{path} was edited by hand while nginx was told; it is left as edited, not as nginx runs it")
                    os.rename(waiting, path)
                    _sync(path.parent)
            except BalancerError as error:
                failed = failed or error
        if failed:
            raise failed

    def keep(self) -> None:
        """The new files stay."""
        for _, waiting, _ in self._done:
            _unlink(waiting)
        self._done.clear()


def save(path: Path, data: bytes, mode: int = 0o640) -> None:
    """A file of our own, written whole or not at all. BalancerError = it is as it was."""
    with _told(path):
        fresh = _write_beside(path, data, None, mode)
        try:
            os.rename(fresh, path)
        except OSError:
            _unlink(fresh)
            raise


def remove(path: Path) -> None:
    """This file of ours is gone, if it was there. BalancerError says why not."""
    with _told(path):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BalancerError(_why(error, path, "replace")) from error


def _write_beside(path: Path, data: bytes, like: os.stat_result | None, mode: int = 0o640) -> Path:
    """A new file in the same directory, on disk, with the mode and owner of the old one."""
    fresh = path.with_name(f".{path.name}.lb-sidecar-new")
    _unlink(fresh)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                _own(file.fileno(), path, like)
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode) if like else mode)
            os.fsync(file.fileno())
    except BaseException:
        _unlink(fresh)
        raise
    return fresh


def _own(descriptor: int, path: Path, like: os.stat_result) -> None:
    seen = os.fstat(descriptor)
    if (seen.st_uid, seen.st_gid) == (like.st_uid, like.st_gid):
        return
    try:
        os.fchown(descriptor, like.st_uid, like.st_gid)
    except PermissionError as error:
        raise BalancerError(
            f"{path} belongs to uid {like.st_uid}, gid {like.st_gid}, which {who()} cannot keep; chown it to {who().split()[-1]}"
        ) from error


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
