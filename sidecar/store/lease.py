"""The lease on what we hold out: as long as it is renewed, a living sidecar answers for its ejections; then anyone may give them back.

Times are CLOCK_BOOTTIME seconds, which go on while the machine sleeps, and mean nothing on another boot.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.store import atomic

NAME = "lease"
LEASE_S = 120.0
"""How long what we hold out stays out after our last sign of life."""
RENEW_S = 30.0
"""How often to renew: three attempts may fail before it ends."""
_MOST_BYTES = 4096


class LeaseError(Exception):
    """The lease could not be renewed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Until when, on which boot, and by whom. `fault`: why the file says nothing; such a lease has expired.

    `standing_by`: balancers to which another sidecar writes, each with the end of this promise there: who may not write cannot answer.
    """

    until: float
    boot_id: str
    pid: int = 0
    fault: str = ""
    standing_by: Mapping[str, float] = field(default_factory=dict)

    def expired(self, now: float, boot_id: str) -> bool:
        """Is nobody answering any more? `now` in boottime seconds, read before or after the lease.

        One that ends far later than is ever promised comes from a clock that has been set back since: nobody will renew it.
        """
        return bool(self.fault) or self.boot_id != boot_id or not now < self.until <= now + 2 * LEASE_S

    def unanswered(self, now: float, boot_id: str) -> frozenset[str]:
        """Balancers on which nobody answers any more for what is out, though whoever has promised it lives."""
        return frozenset(name for name, until in self.standing_by.items() if self.boot_id == boot_id and not now < until)


class LeaseFile:
    """The file `lease` in a state folder. Written by the one sidecar that holds the folder's lock; read by anyone."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self.path = directory / NAME
        self._boot_id = boot_id

    def renew(self, until: float, standing_by: Mapping[str, float] | None = None) -> None:
        """Promise to answer until then (boottime, at most LEASE_S from now). LeaseError: the old promise stays."""
        promise = {"format": 1, "until": until, "boot_id": self._boot_id, "pid": os.getpid(), "standing_by": dict(standing_by or {})}
        content = json.dumps(promise)
        try:
            # Not synced: after a power cut it is another boot, and the lease is void anyway.
            atomic.replace(self.path, content.encode(), sync=False)
        except OSError as error:
            raise LeaseError(
                f"the lease {self.path} cannot be renewed: {error.strerror or error}; if it is not renewed in time, "
                "`release --expired` gives back what is out: free space there or repair the disk"
            ) from error

    def end(self) -> None:
        """Promise nothing more: what is out may be given back at once. LeaseError as in `renew`."""
        self.renew(0.0)

    def read(self) -> Lease:
        """What is promised; a file that is missing or damaged promises nothing."""
        try:
            found = json.loads(atomic.read(self.path, _MOST_BYTES))
            return _lease(found)
        except FileNotFoundError:
            return Lease(0.0, "", fault="there is no lease")
        except (OSError, ValueError, RecursionError) as error:
            return Lease(0.0, "", fault=f"the lease {self.path} is unreadable: {error}")


def _lease(found: object) -> Lease:
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    until, boot_id, pid = found.get("until"), found.get("boot_id"), found.get("pid", 0)
    if not isinstance(until, int | float) or not math.isfinite(until) or not isinstance(boot_id, str) or type(pid) is not int:
        raise ValueError("`until` must be a number, `boot_id` a string and `pid` a whole number")
    standing_by = found.get("standing_by", {})
    if not isinstance(standing_by, dict) or not all(isinstance(end, int | float) and math.isfinite(end) for end in standing_by.values()):
        raise ValueError("`standing_by` must name a number for each balancer")
    return Lease(float(until), boot_id, pid, standing_by=standing_by)


__all__ = ["LEASE_S", "RENEW_S", "Lease", "LeaseError", "LeaseFile"]
