"""What targets have taught us, kept over restarts, so that a new start knows each one's pace and patience at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lbplugins.values import Address
from sidecar.core.model import Learned, Target
from sidecar.store import atomic

NAME = "learned.json"
FORMAT = 1
MOST_TARGETS = 50_000
_MOST_BYTES = 16 << 20
_MOST_TEXT = 1024
_MOST_S = 3600.0
_MOST_GOOD = 1 << 53


class LearnedError(Exception):
    """It could not be saved; nothing but the next start's first half minute depends on it."""


@dataclass(slots=True)
class Loaded:
    """What was saved. `fault`: why it is less than that, in words; "" = it is all."""

    targets: dict[Target, Learned] = field(default_factory=dict)
    fault: str = ""


def save(directory: Path, learned: Mapping[Target, Learned]) -> None:
    """Replace what was saved, at most MOST_TARGETS of it; LearnedError leaves the old in place. Blocks on the disk."""
    rows = [[*target.address, target.spec, each.good, each.median_s, each.slow_s] for target, each in islice(learned.items(), MOST_TARGETS)]
    path = directory / NAME
    try:
        atomic.replace(path, json.dumps({"format": FORMAT, "targets": rows}, separators=(",", ":"), allow_nan=False).encode())
    except (OSError, ValueError) as error:
        raise LearnedError(f"{path} could not be saved: {error}; after a restart, targets are learned anew") from error


def load(directory: Path) -> Loaded:
    """What was saved last; damaged rows and files are left out and named, never an error."""
    path = directory / NAME
    try:
        content = json.loads(atomic.read(path, _MOST_BYTES))
    except FileNotFoundError:
        return Loaded()
    except (OSError, ValueError, RecursionError) as error:
        return Loaded(fault=f"{path} is unreadable ({error}); targets are learned anew")
    rows = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        return Loaded(fault=f"{path} is not ours; targets are learned anew")
    if content.get("format") != FORMAT:
        return Loaded(fault=f"{path} has format {content.get('format')!r} and this version knows {FORMAT}; targets are learned anew")
    loaded = Loaded(dict(found for row in rows[:MOST_TARGETS] if (found := _entry(row)) is not None))
    if len(loaded.targets) < len(rows):
        loaded.fault = f"{path}: {len(rows) - len(loaded.targets)} of {len(rows)} targets make no sense and are learned anew"
    return loaded


def _entry(row: object) -> tuple[Target, Learned] | None:
    if not isinstance(row, list) or len(row) < 6:
        return None
    host, port, spec, good, median_s, slow_s = row[:6]
    if not (type(host) is str and type(spec) is str and 0 < len(host) <= _MOST_TEXT and len(spec) <= _MOST_TEXT):
        return None
    if not (type(port) is int and 1 <= port <= 65535 and type(good) is int and 0 <= good <= _MOST_GOOD):
        return None
    if not (_is_duration(median_s) and _is_duration(slow_s)):
        return None
    return Target(Address(host, port), spec), Learned(good, float(median_s), float(slow_s))


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and 0 <= value <= _MOST_S


__all__ = ["MOST_TARGETS", "LearnedError", "Loaded", "load", "save"]
