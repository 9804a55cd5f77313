"""Protocol buffers on the wire, as far as we write them: every function gives one field, its number first."""

from __future__ import annotations

import struct
from collections.abc import Iterable

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_DOUBLE = struct.Struct("<d")
_FIXED = struct.Struct("<Q")


def varint(number: int) -> bytes:
    """A whole number, seven bits a byte; negative ones as their 64 bits."""
    number &= _MASK
    if number < 0x80:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def whole(field: int, number: int) -> bytes:
    """int32, int64, uint32, uint64, bool or enum."""
    return varint(field << 3) + varint(number)


def signed(field: int, number: int) -> bytes:
    """sint32 or sint64."""
    return varint(field << 3) + varint(_zigzag(number))


def double(field: int, number: float) -> bytes:
    return varint(field << 3 | 1) + _DOUBLE.pack(number)


def fixed64(field: int, number: int) -> bytes:
    return varint(field << 3 | 1) + _FIXED.pack(number)


def message(field: int, content: bytes) -> bytes:
    """A message, bytes, or a packed row."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    return message(field, content.encode("utf-8", "replace"))


def packed(field: int, numbers: Iterable[int]) -> bytes:
    """A row of uint64."""
    return message(field, b"".join(map(varint, numbers)))


def packed_signed(field: int, numbers: Iterable[int]) -> bytes:
    """A row of sint64."""
    return message(field, b"".join(varint(_zigzag(number)) for number in numbers))


def _zigzag(number: int) -> int:
    return number << 1 ^ number >> 63


_ONE_BYTE = [bytes((n,)) for n in range(0x80)]

__all__ = ["double", "fixed64", "message", "packed", "packed_signed", "signed", "text", "varint", "whole"]
