"""The clocks of this machine, read in one place."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def monotonic() -> float:
    """Seconds that never go back and stand still while the machine sleeps: the clock of all decisions."""
    return time.monotonic()


def boottime() -> float:
    """Seconds since the machine started, sleep included: the clock of leases."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    """Seconds since 1970, for people; it may jump."""
    return time.time()


def boot_id(path: Path = BOOT_ID) -> str:
    """Names this start of the machine. Where it cannot be read, a fresh one: then nothing from before counts as of this boot."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        text = ""
    return text or f"unknown-{uuid.uuid4()}"


__all__ = ["boot_id", "boottime", "monotonic", "wall"]
