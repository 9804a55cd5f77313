"""The write-ahead log: what we mean to do is on disk before any balancer hears of it, and is read back after a crash.

One line per record: format, CRC-32 of the rest, JSON. A line counts only when it is whole, ends in a newline and its CRC agrees; at
the first one that does not, the file ends for us, and what follows it is set aside in `intents.bad-N`. Nothing behind a torn record
was ever acted on, because acting waits for the fsync.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.core.model import Intent
from sidecar.journal.codec import CodecError, codec, dumps, loads
from sidecar.journal.force import InForce, Stored, fold

FORMAT = 1
NAME = "intents"
COMPACT_EVERY = 2000
"""Records appended before the file is rewritten with those still in force."""
MAX_FILE_BYTES = 64 << 20
"""More than this is not our file: some hundred times what `COMPACT_EVERY` lets it grow to."""
BAD_KEPT = 5
"""Files `intents.bad-N` kept, the newest."""


class JournalError(Exception):
    """Intents could not be written or read: nothing may be ejected until it works again. The message says what to do."""


@dataclass(slots=True)
class Replay:
    """What a file of intents says. `good_bytes`: length of the part that can be trusted; `bad`: everything that cannot."""

    stored: list[Stored] = field(default_factory=list)
    good_bytes: int = 0
    bad: bytes = b""
    problems: list[str] = field(default_factory=list)


def read(directory: Path) -> Replay:
    """The intents of a state folder, without changing anything; JournalError if they cannot be read or are from a newer version."""
    path = directory / NAME
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Replay()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        with open(fd, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _parse(content, path)


def line(stored: Stored) -> bytes:
    """One record as it lies on disk, newline included."""
    payload = dumps(_WRITE(stored))
    return b"%d %08x %s\n" % (FORMAT, zlib.crc32(b"%d %s" % (FORMAT, payload)), payload)


class Intents:
    """The open write-ahead log. One writer: the caller holds the state folder's lock. Calls block on the disk; use a thread.

    `replayed`: every trustworthy record found at opening, oldest first. `problems`: what a person should know, oldest first.
    """

    def __init__(self, directory: Path, boottime: Callable[[], float], boot_id: str, wall: Callable[[], float]) -> None:
        self.path = directory / NAME
        self.replayed: list[Stored] = []
        self.problems: list[str] = []
        self._boottime, self._boot_id, self._wall = boottime, boot_id, wall
        self._force = InForce()
        self._fd = -1
        self._size = 0
        self._appended = 0

    @classmethod
    def open(cls, directory: Path, *, boottime: Callable[[], float], boot_id: str, wall: Callable[[], float]) -> Intents:
        """Read what is there, set a bad tail aside, rewrite the file with what is still in force, and be ready to append.

        JournalError: unreadable, not writable, or written by a newer version. A full disk is no error yet: the old file goes on.
        """
        self = cls(directory, boottime, boot_id, wall)
        found = read(directory)
        self.replayed, self.problems = found.stored, found.problems
        for stored in found.stored:
            self._force.take(stored)
        if found.bad:
            self._set_aside(found.bad)
        try:
            self._rewrite(self._force.records())
        except OSError as error:
            self.problems.append(f"{self.path} could not be rewritten ({_words(error)}); it goes on as it is")
            self._go_on(found.good_bytes)
        return self

    def append(self, intents: Sequence[Intent]) -> None:
        """Put these on disk, all with one write and one fsync, before returning.

        JournalError: they are not in the log, and whatever part of them reached the file is cut off again.
        """
        if not intents:
            return
        boottime, wall = self._boottime(), self._wall()
        stored = [Stored(intent, boottime, self._boot_id, wall) for intent in intents]
        data = b"".join(map(line, stored))
        try:
            self._settle()
            _write_all(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):  # the next append tries again, before it writes
                self._settle()
            raise JournalError(
                f"intents could not be written to {self.path}: {_words(error)}; nothing is ejected until they can be: "
                "free space there or repair the disk (returns go on)"
            ) from error
        self._size += len(data)
        for each in stored:
            self._force.take(each)
        self._appended += len(stored)
        if self._appended >= COMPACT_EVERY:
            self._compact_if_possible()

    def compact(self, keep: Sequence[Stored] | None = None) -> None:
        """Replace the file by these records, or by those in force; atomic, on disk before returning. JournalError: the old one stays."""
        if keep is not None:
            self._force = InForce()
            for stored in keep:
                self._force.take(stored)
        try:
            self._rewrite(self._force.records())
        except OSError as error:
            raise JournalError(f"{self.path} could not be rewritten: {_words(error)}; the old file goes on") from error

    def close(self) -> None:
        """Let go of the file. Safe twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _compact_if_possible(self) -> None:
        """The records are safe already, so a failure is only news; the next attempt comes after as many more."""
        self._appended = 0
        try:
            self._rewrite(self._force.records())
        except OSError as error:
            self.problems[9:] = [f"{self.path} could not be rewritten ({_words(error)}); it keeps growing until it can"]

    def _settle(self) -> None:
        """Make the file what we believe it is: cut a torn append off; write it anew if someone removed, replaced or shortened it."""
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino) or ours.st_size < self._size:
            self._rewrite(self._force.records())
        elif ours.st_size > self._size:
            os.ftruncate(self._fd, self._size)

    def _rewrite(self, records: Sequence[Stored]) -> None:
        data = b"".join(map(line, records))
        temporary = self.path.with_name(NAME + ".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            _write_all(fd, data)
            os.fsync(fd)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self.close()
        self._fd, self._size, self._appended = fd, len(data), 0
        _sync_folder(self.path.parent)

    def _go_on(self, good_bytes: int) -> None:
        """Append to the file as it is, its bad tail cut off: that needs no space."""
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            os.ftruncate(self._fd, good_bytes)
            os.fsync(self._fd)
        except OSError as error:
            self.close()
            raise JournalError(
                f"{self.path} cannot be written: {_words(error)}; make its folder writable for this user or set `state.dir` to another"
            ) from error
        self._size = good_bytes

    def _set_aside(self, bad: bytes) -> None:
        """Keep what could not be trusted for a person to read; losing it is only news."""
        numbers = sorted(_bad_numbers(self.path.parent))
        path = self.path.with_name(f"{NAME}.bad-{numbers[-1] + 1 if numbers else 1}")
        try:
            path.write_bytes(bad)
            for old in numbers[: max(0, len(numbers) + 1 - BAD_KEPT)]:
                self.path.with_name(f"{NAME}.bad-{old}").unlink(missing_ok=True)
        except OSError as error:
            self.problems.append(f"{len(bad)} bytes that could not be trusted are lost: {path} cannot be written: {_words(error)}")
        else:
            self.problems.append(f"{len(bad)} bytes of {self.path} that could not be trusted are kept in {path.name}")


def _parse(content: bytes, path: Path) -> Replay:
    """The trustworthy records, up to the first line that is not whole."""
    found = Replay()
    at = 0
    while at < len(content):
        end = content.find(b"\n", at)
        payload = _payload(content[at:end], path) if 0 <= end < MAX_FILE_BYTES else None
        if payload is None:
            found.problems.append(f"{path}: the record at byte {at} is torn or damaged; it and what follows is not believed")
            break
        try:
            found.stored.append(_READ(loads(payload)))
        except CodecError as error:
            # Whole, and yet not a record we know: the others around it are still true.
            found.problems.append(f"{path}: the record at byte {at} makes no sense and is skipped: {error}")
            found.bad += content[at : end + 1]
        at = end + 1
    found.good_bytes = at
    found.bad += content[at:]
    return found


def _payload(text: bytes, path: Path) -> bytes | None:
    """The JSON of one line, or None if the line is damaged; JournalError if a newer version wrote it."""
    version, _, rest = text.partition(b" ")
    crc, _, payload = rest.partition(b" ")
    if crc != b"%08x" % zlib.crc32(version + b" " + payload):
        return None
    if version == b"%d" % FORMAT:
        return payload
    if version.isdigit() and int(version[:9]) > FORMAT:
        raise JournalError(
            f"{path} was written by a newer lb-sidecar (format {version.decode()}, this one knows {FORMAT}): "
            "run that version, or move the file away once nothing of ours is out"
        )
    return None


def _bad_numbers(directory: Path) -> list[int]:
    texts = (each.name.removeprefix(f"{NAME}.bad-") for each in directory.glob(f"{NAME}.bad-*"))
    return [int(text) for text in texts if text.isascii() and text.isdigit()]


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unreadable(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{path} cannot be read: {_words(error)}; it must be a plain file that this user may read")


def _words(error: OSError) -> str:
    return error.strerror or str(error)


_WRITE = codec(Stored).encode or (lambda value: value)
_READ = codec(Stored).decode

__all__ = ["Intents", "JournalError", "Replay", "Stored", "fold", "line", "read"]
