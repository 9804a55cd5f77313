"""Discovery: which instances a service has, by list, file or DNS. Delivers `Discovered` facts and judges nothing."""

from __future__ import annotations

from sidecar.discovery.dns import dns_source
from sidecar.discovery.file import File
from sidecar.discovery.options import Instances
from sidecar.discovery.source import Reading, Source, SourceError, ask, run
from sidecar.discovery.static import Static


def build_sources(service: str, instances: Instances | None) -> list[Source]:
    """The sources of one service; none when its instances come from the balancers."""
    if instances is None:
        return []
    if instances.dns is not None:
        return [dns_source(service, instances.dns)]
    if instances.file is not None:
        return [File(service, instances.file.path)]
    return [Static(service, instances.static)]


__all__ = ["Instances", "Reading", "Source", "SourceError", "ask", "build_sources", "run"]
