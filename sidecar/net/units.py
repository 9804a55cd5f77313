"""Durations, sizes and shares as people write them in the configuration: `250ms`, `64KiB`, `50%`.

Each is a pydantic type over a plain number (seconds, bytes, 0..1) that is dumped back as text. A bare number is refused: its unit
would be a guess.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

SECONDS_PER = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES_PER = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}

_DURATION = r"^(?:0|\d{1,12}(?:\.\d{1,9})?(?:us|ms|s|m|h|d))$"
_SIZE = r"^(?:0|\d{1,12}(?:B|KiB|MiB|GiB|TiB))$"
_SHARE = r"^\d{1,3}(?:\.\d{1,6})?%$"


def parse_duration(text: object) -> float:
    """Seconds, from `250ms`, `1s`, `1.5m`, `1h` or `0`; ValueError says how to write it."""
    written = "0" if text == 0 and not isinstance(text, bool) else text
    if not isinstance(written, str) or not re.fullmatch(_DURATION, written.strip(), re.ASCII):
        raise ValueError(f"{_shown(text)} is not a duration: write a number with its unit, as 250ms, 1s, 5m or 1h")
    number, unit = _split(written.strip())
    return number * SECONDS_PER[unit or "s"]


def duration_text(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as these seconds; never less exact than a nanosecond."""
    if seconds == 0:
        return "0"
    for unit in ("h", "m", "s", "ms"):
        number = seconds / SECONDS_PER[unit]
        if number >= 1 and math.isclose(number, round(number), rel_tol=1e-12):
            return f"{round(number)}{unit}"
    unit = "s" if seconds >= 1 else "ms"
    return f"{seconds / SECONDS_PER[unit]:.9f}".rstrip("0").rstrip(".") + unit


def parse_size(text: object) -> int:
    """Bytes, from `512B`, `64KiB`, `512MiB` or `1GiB`; ValueError says how to write it."""
    written = "0" if text == 0 and not isinstance(text, bool) else text
    if not isinstance(written, str) or not re.fullmatch(_SIZE, written.strip(), re.ASCII):
        raise ValueError(f"{_shown(text)} is not a size: write a whole number with its unit, as 512B, 64KiB or 512MiB")
    number, unit = _split(written.strip())
    return int(number) * BYTES_PER[unit or "B"]


def size_text(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as exactly this many bytes."""
    for unit, factor in reversed(BYTES_PER.items()):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return "0"


def parse_share(text: object) -> float:
    """0..1, from `50%`; ValueError says how to write it."""
    if isinstance(text, str) and re.fullmatch(_SHARE, text.strip(), re.ASCII):
        share = float(text.strip()[:-1]) / 100
        if share <= 1:
            return share
    raise ValueError(f"{_shown(text)} is not a share: write a percentage from 0% to 100%, as 50%")


def share_text(share: float) -> str:
    """`50%` for 0.5."""
    return f"{share * 100:.6f}".rstrip("0").rstrip(".") + "%"


def _split(written: str) -> tuple[float, str]:
    number = written.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return float(number), written[len(number) :]


def _shown(value: object) -> str:
    return repr(value)[:60]


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["250ms", "1s", "5m"]}),
]
"""Seconds, written `250ms`, `1s`, `5m`, `1h`."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(size_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _SIZE, "examples": ["64KiB", "512MiB"]}),
]
"""Bytes, written `64KiB`, `512MiB`."""

Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(share_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _SHARE, "examples": ["50%"]}),
]
"""0..1, written `50%`."""

__all__ = [
    "Duration",
    "Share",
    "Size",
    "duration_text",
    "parse_duration",
    "parse_share",
    "parse_size",
    "share_text",
    "size_text",
]
