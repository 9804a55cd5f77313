"""TCP probes: the port accepts a connection. Nothing is sent."""

from __future__ import annotations

from sidecar.probes.attempt import Attempt


async def ask_tcp(attempt: Attempt) -> None:
    """Connect, and close again."""
    await attempt.dial()
