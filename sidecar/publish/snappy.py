"""Snappy's block format, which remote write demands: by cramjam where the extra `remote-write` is installed, else without compression,
which every reader takes and only the network pays for.
"""

from __future__ import annotations

from sidecar.publish.protobuf import varint

try:
    from cramjam import snappy as _cramjam
except ImportError:
    _cramjam = None  # type: ignore[assignment]  # a module or nothing

CHUNK = 1 << 16
SHORT = 60
"""A length up to here stands in the tag; readers may demand that it does."""


def compress(content: bytes) -> bytes:
    return bytes(_cramjam.compress_raw(content)) if _cramjam is not None else stored(content)


def stored(content: bytes) -> bytes:
    """The content as literals alone: its length, then chunks, each with its length less one, in the tag itself or in two bytes after it."""
    out = bytearray(varint(len(content)))
    for at in range(0, len(content), CHUNK):
        chunk = content[at : at + CHUNK]
        most = len(chunk) - 1
        out += (bytes((most << 2,)) if most < SHORT else b"\xf4" + most.to_bytes(2, "little")) + chunk
    return bytes(out)


__all__ = ["compress", "stored"]
