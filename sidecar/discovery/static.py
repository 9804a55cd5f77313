"""Instances written in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.core.model import Instance
from sidecar.discovery.options import StaticInstance
from sidecar.discovery.source import Reading


@dataclass(frozen=True, slots=True)
class Static:
    """Always the same answer."""

    service: str
    entries: Sequence[StaticInstance]
    name: str = "static"

    async def read(self) -> Reading:
        """The configured instances, in the order written."""
        labels = {Instance(self.service, entry.address, entry.id): dict(entry.labels) for entry in self.entries}
        return Reading(tuple(labels), {instance: words for instance, words in labels.items() if words})
