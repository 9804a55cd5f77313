"""The flight recorder's files. A segment is a file that stands alone: header, snapshot of the world, policy, then batches.

A file is a magic line, then zlib-compressed blocks, each with its lengths and CRC-32. A block is whole or it is not there: reading stops
at the first that is torn, and everything before it is good. It holds JSON lines and, from format 2 on, the columns of the good answers that
these only count.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import typing
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sidecar.core.model import Decision, Fact, Pictured, Probed, Target
from sidecar.core.policy import Policy
from sidecar.journal.codec import TAG, CodecError, Json, decode, dumps, encode, loads
from sidecar.journal.columns import Columns, Names, rows
from sidecar.journal.pictures import Pictures, Repictured

FORMAT = 2
MAGIC = b"lb-sidecar flight\n"
PREFIX, SUFFIX = "flight-", ".rec"
PER_FOLDER = 16
"""Into how many segments a folder is cut: deleting the oldest loses about a sixteenth of the past."""
MIN_SEGMENT_BYTES = 64 << 10
RETRY_S = 5.0
"""After a failure of the disk, a new segment is tried this much later."""
MAX_PACKED_BYTES = 64 << 20
MAX_PLAIN_BYTES = 256 << 20
"""Nothing we write comes near; a block that claims more is damaged."""
_HEAD = struct.Struct("<4sIII")
_MARK = b"blk1"
_COLUMNS = b"\0"
"""Where the lines of a block end and its columns begin: JSON has none of it."""
_NAMES_IN_A_LINE = 200


@dataclass(frozen=True, slots=True)
class Header:
    """The first record of a segment. `wall` and `monotonic` are the same moment on two clocks, seconds."""

    format: int
    wall: float
    monotonic: float
    config_hash: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Facts taken in together. `digest`: of the whole decision; `decision`, without its asks, only when it did or said something."""

    now: float
    facts: tuple[Fact, ...]
    digest: str = ""
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as it lies in a block: a number among its facts stands for so many of the next rows, a picture may be a difference."""

    now: float
    facts: tuple[Fact | Repictured | int, ...]
    digest: str = ""
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """Targets that rows have by their numbers, `first` and on."""

    first: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """What was not recorded, from the first to the last batch lost (monotonic seconds). A replay across it is not the truth."""

    since: float
    until: float
    batches: int
    facts: int

    def joined(self, other: Gap) -> Gap:
        """Both as one, in whichever order they were noticed."""
        ends = min(self.since, other.since), max(self.until, other.until)
        return Gap(*ends, self.batches + other.batches, self.facts + other.facts)


@dataclass(slots=True)
class Segment:
    """One stretch of the past. `fault`: why it ends early, known once `records` are read; "" = it ends where it should."""

    path: Path
    header: Header
    snapshot: Json
    policy: Policy
    until: float | None = None
    fault: str = ""
    _offset: int = field(default=0, repr=False)

    def wall_of(self, now: float) -> float:
        """Wall time of a monotonic time in this segment, by the anchor in its header."""
        return self.header.wall + now - self.header.monotonic

    def records(self) -> Iterator[Batch | Gap]:
        """What happened from the snapshot on, up to `until` (wall seconds), read as it is asked for."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                names: list[Target] = []
                pictures = Pictures()
                for block in _unpack(file):
                    for record in _records(block, names, pictures):
                        if self.until is not None and self.wall_of(_start(record)) > self.until:
                            return
                        yield record
        except (TornError, CodecError, OSError) as error:
            self.fault = f"{self.path.name}: {error}"


class TornError(Exception):
    """The file ends or goes wrong inside a block; what came before is good."""


def read(directory: Path, since: float | None = None, until: float | None = None, problems: list[str] | None = None) -> Iterator[Segment]:
    """Segments that touch the time from `since` to `until` (wall seconds), oldest first, each from its snapshot on.

    Files that cannot be used, those of a newer version included, are named in `problems` and left out.
    """
    problems = [] if problems is None else problems
    headers = [(path, header) for path in sorted(_paths(directory), key=_number) if (header := _peek(path, problems)) is not None]
    for at, (path, header) in enumerate(headers):
        ends = headers[at + 1][1].wall if at + 1 < len(headers) else None
        if (since is not None and ends is not None and ends <= since) or (until is not None and header.wall > until):
            continue
        try:
            yield _open(path, until)
        except (TornError, CodecError, OSError) as error:
            problems.append(f"{path.name} is left out: {error}")


def line(record: Packed | Gap) -> bytes:
    """One record as it lies in a block; CodecError when a fact is none."""
    if type(record) is Packed and record.decision is None and not record.digest and all(type(each) is int for each in record.facts):
        # nearly all of them: the same, in an eighth of the time
        return b'{"$":"Packed","now":%a,"facts":%a}\n' % (record.now, list(record.facts))
    return dumps(encode(record, Packed | Gap)) + b"\n"


class Writer:
    """Writes segments one after another and deletes the oldest. Belongs to one thread; `fault` and `wants_segment` are read by another.

    Never raises: what could not be written is joined to the gap that stands before the next block. `dropped`: batches lost so.
    `begins`: calls of `begin` done.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.fault = ""
        self.dropped = 0
        self.begins = 0
        self._directory, self._max_bytes = directory, max_bytes
        self._segment_bytes = max(MIN_SEGMENT_BYTES, max_bytes // PER_FOLDER)
        self._fd = -1
        self._size = 0
        self._used = 0
        self._path = directory
        self._older: dict[Path, int] = {}
        self._gap: Gap | None = None
        self._names, self._named = Names(), 0
        self._retry_at = float("inf")

    @property
    def wants_segment(self) -> bool:
        """This one is long enough, or the disk may be worth another try."""
        return self._used >= self._segment_bytes or time.monotonic() >= self._retry_at

    def begin(self, snapshot: Json, policy: Policy, now: float, wall: float, names: Names) -> None:
        """Close the segment and start the next, in whose rows targets have these numbers."""
        self.close()
        self._names, self._named = names, 0
        self._start(snapshot, policy, now, wall)
        self.begins += 1

    def write(self, lines: bytes, columns: Columns, gap: Gap, batches: int) -> None:
        """Add these lines and the rows they count as one block.

        If that fails, or the segment is twice as long as it should be, `gap` is lost; `batches` of it were not lost already.
        """
        if self._fd < 0 or self._used >= 2 * self._segment_bytes:
            self._lose(gap, batches)
            return
        named = len(self._names.order)
        try:
            block = _pack(_names_of(self._names.order, self._named, named) + lines + _COLUMNS + columns.to_bytes())
            if self._gap is not None:
                block = _pack(line(self._gap)) + block
            self._put(block)
        except (OSError, CodecError) as error:
            self._fail(error)
            self._lose(gap, batches)
            return
        self._gap, self._named = None, named
        self._used += len(block)
        self._delete_oldest()

    def close(self) -> None:
        """Let go of the file. Safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._older[self._path] = self._size
        self._fd, self._size, self._used = -1, 0, 0

    def _start(self, snapshot: Json, policy: Policy, now: float, wall: float) -> None:
        try:
            self._create()
            header = Header(FORMAT, wall, now, policy.config_hash)
            content = [dumps(encode(header, Header)), _dumped(snapshot), dumps(encode(policy, Policy))]
            self._put(MAGIC + b"".join(map(_pack, content)))
        except (OSError, CodecError) as error:
            self._fail(error)
            return
        self.fault, self._retry_at, self._used = "", float("inf"), 0
        self._delete_oldest()

    def _create(self) -> None:
        self._directory.mkdir(mode=0o750, exist_ok=True)
        self._older = {path: path.stat().st_size for path in _paths(self._directory)}
        last = max((_number(path) for path in self._older), default=0)
        self._path = self._directory / f"{PREFIX}{last + 1:09d}{SUFFIX}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)

    def _fail(self, error: OSError | CodecError) -> None:
        """Cut off what was half written, and rest."""
        words = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        self.fault = f"nothing is recorded: {self._path}: {words}; free space there or repair the disk; decisions go on"
        self._retry_at = time.monotonic() + RETRY_S
        is_empty = self._size == 0
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                self._path.unlink() if is_empty else os.ftruncate(self._fd, self._size)
        self.close()
        if is_empty:
            self._older.pop(self._path, None)

    def _lose(self, gap: Gap, batches: int) -> None:
        self.dropped += batches
        self._gap = gap if self._gap is None else self._gap.joined(gap)

    def _delete_oldest(self) -> None:
        while self._older and self._size + sum(self._older.values()) > self._max_bytes:
            oldest = min(self._older, key=_number)
            del self._older[oldest]
            with contextlib.suppress(OSError):  # gone already, or it stays: the next segment counts it again
                oldest.unlink()


def _names_of(order: Sequence[Target], first: int, end: int) -> bytes:
    """These targets' names, in lines short enough not to keep the interpreter from the thread that decides."""
    lines = (Named(at, tuple(order[at : min(at + _NAMES_IN_A_LINE, end)])) for at in range(first, end, _NAMES_IN_A_LINE))
    # as the codec would, which goes through the tuples one by one; the cast: to JSON a tuple is a list
    return b"".join(dumps({TAG: "Named", "first": each.first, "targets": typing.cast(Json, each.targets)}) + b"\n" for each in lines)


def _records(block: bytes, names: list[Target], pictures: Pictures) -> Iterator[Batch | Gap]:
    """What one block tells; `names` and `pictures` take up what it gives. TornError when lines and columns do not fit."""
    lines, _, columns = block.partition(_COLUMNS)
    try:
        answers = None
        for text in lines.splitlines():
            record: Batch | Packed | Named | Gap = decode(loads(text), Batch | Packed | Named | Gap)
            match record:
                case Named():
                    if record.first != len(names):
                        raise TornError(f"target {record.first} is named after {len(names)} others")
                    names.extend(record.targets)
                case Packed():
                    if answers is None:
                        answers = rows(columns, names)
                    facts = tuple(_unpacked(record.facts, answers, pictures))
                    yield Batch(record.now, facts, record.digest, record.decision)
                case _:
                    yield record
        if answers is not None and next(answers, None) is not None:
            raise TornError("more rows than its lines count")
    except CodecError:
        raise
    except ValueError as error:
        raise TornError(f"they do not fit together: {error}") from error


def _unpacked(facts: Sequence[Fact | Repictured | int], answers: Iterator[Probed], pictures: Pictures) -> Iterator[Fact]:
    for fact in facts:
        match fact:
            case int():
                for _ in range(fact):
                    if (answer := next(answers, None)) is None:
                        raise TornError("fewer rows than its lines count")
                    yield answer
            case Pictured() | Repictured():
                yield pictures.unpacked(fact)
            case _:
                yield fact


def _open(path: Path, until: float | None) -> Segment:
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        blocks = _unpack(file)
        try:
            header = decode(loads(next(blocks)), Header)
            snapshot = loads(next(blocks))
            policy = decode(loads(next(blocks)), Policy)
        except StopIteration:
            raise TornError("it ends before its first record") from None
        return Segment(path, header, snapshot, policy, until, _offset=file.tell())


def _peek(path: Path, problems: list[str]) -> Header | None:
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise TornError("it is no flight record")
            header = decode(loads(next(_unpack(file), b"")), Header)
    except (TornError, CodecError, OSError) as error:
        problems.append(f"{path.name} is left out: {error}")
        return None
    if header.format > FORMAT:
        problems.append(f"{path.name} is left out: a newer lb-sidecar wrote it (format {header.format}, this one knows {FORMAT})")
        return None
    return header


def _pack(plain: bytes) -> bytes:
    """One block. Compressing lets other threads run."""
    packed = zlib.compress(plain, 1)
    return _HEAD.pack(_MARK, len(packed), len(plain), zlib.crc32(packed)) + packed


def _unpack(file: BinaryIO) -> Iterator[bytes]:
    """The blocks from here to the end, one at a time; TornError where it goes wrong."""
    while head := file.read(_HEAD.size):
        at = file.tell() - len(head)
        if len(head) < _HEAD.size:
            raise TornError(f"the block at byte {at} is cut off")
        mark, packed_bytes, plain_bytes, crc = _HEAD.unpack(head)
        if mark != _MARK or packed_bytes > MAX_PACKED_BYTES or plain_bytes > MAX_PLAIN_BYTES:
            raise TornError(f"there is no block at byte {at}")
        packed = file.read(packed_bytes)
        if len(packed) < packed_bytes:
            raise TornError(f"the block at byte {at} is cut off")
        yield _plain(packed, plain_bytes, crc, at)


def _plain(packed: bytes, plain_bytes: int, crc: int, at: int) -> bytes:
    if zlib.crc32(packed) != crc:
        raise TornError(f"the block at byte {at} is damaged")
    try:
        plain = zlib.decompressobj().decompress(packed, plain_bytes + 1)
    except zlib.error as error:
        raise TornError(f"the block at byte {at} is damaged: {error}") from error
    if len(plain) != plain_bytes:
        raise TornError(f"the block at byte {at} is not as long as it says")
    return plain


def _dumped(value: Json, depth: int = 4) -> bytes:
    """JSON in small pieces: one long call would keep the interpreter from the thread that decides."""
    if depth and isinstance(value, dict):
        return b"{%s}" % b",".join(b"%s:%s" % (dumps(key), _dumped(each, depth - 1)) for key, each in value.items())
    if depth and isinstance(value, list):
        return b"[%s]" % b",".join(_dumped(each, depth - 1) for each in value)
    return dumps(value)


def _paths(directory: Path) -> list[Path]:
    return [path for path in directory.glob(f"{PREFIX}*{SUFFIX}") if _number(path) >= 0]


def _number(path: Path) -> int:
    text = path.name[len(PREFIX) : -len(SUFFIX)]
    return int(text) if text.isascii() and text.isdigit() else -1


def _start(record: Batch | Gap) -> float:
    return record.since if isinstance(record, Gap) else record.now


__all__ = ["Batch", "Gap", "Header", "Segment", "TornError", "Writer", "line", "read"]
