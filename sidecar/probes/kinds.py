"""The table from kind to probe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sidecar.probes.attempt import Probe
from sidecar.probes.command import ask_command
from sidecar.probes.grpc import ask_grpc
from sidecar.probes.http import ask_http
from sidecar.probes.options import Kind
from sidecar.probes.tcp import ask_tcp
from sidecar.probes.tls import ask_tls

PROBES: Mapping[Kind, Probe] = MappingProxyType(
    {
        Kind.HTTP: ask_http,
        Kind.HTTPS: ask_http,
        Kind.TCP: ask_tcp,
        Kind.TLS: ask_tls,
        Kind.GRPC: ask_grpc,
        Kind.COMMAND: ask_command,
    }
)
