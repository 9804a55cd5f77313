"""What an instance is accused of, complete enough to act on: by probes (hard) or by how it treats real requests (soft)."""

from __future__ import annotations

from dataclasses import dataclass

from lbplugins.values import InFlight
from sidecar.core.model import Evidence, Strength
from sidecar.core.streak import Streak


@dataclass(frozen=True, slots=True)
class Charge:
    """One accusation. `at`: when the evidence became complete; `check`: the probe's, whose witnesses testify; None = by real requests."""

    rule: str
    strength: Strength
    cause: str
    at: float
    evidence: Evidence
    in_flight: InFlight = InFlight.KEEP
    check: Streak | None = None
