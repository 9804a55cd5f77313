"""TLS probes: the port accepts a connection, and TLS is agreed with a certificate that is trusted, in date and of the right name."""

from __future__ import annotations

from sidecar.probes.attempt import Attempt


async def ask_tls(attempt: Attempt) -> None:
    """Shake hands, and close again: `dial` does it all for a spec with TLS."""
    await attempt.dial()
