"""Publishing: the same samples and decisions to whoever wants them. A dead or slow receiver costs its own items only."""

from __future__ import annotations

from sidecar.publish.feed import Origin, Publisher
from sidecar.publish.sinks import publishers

__all__ = ["Origin", "Publisher", "publishers"]
