"""A real DNS server on loopback whose answers a test writes down."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from typing import Any

from dnslib import AAAA, QTYPE, RCODE, RR, SRV, A  # type: ignore[import-untyped, unused-ignore]
from dnslib.dns import DNSError  # type: ignore[import-untyped, unused-ignore]
from dnslib.server import BaseResolver, DNSLogger, DNSServer  # type: ignore[import-untyped, unused-ignore]

from lbplugins.values import Address


@dataclass
class Zone:
    """(name, type) -> records as text (`10.0.0.1`; for SRV `priority weight port target`); `asked` is every question so far."""

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    ttl: int = 60
    rcode: int = RCODE.NXDOMAIN
    silent: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    def names(self) -> set[str]:
        return {name for name, _ in self.records}


class _Answers(BaseResolver):  # type: ignore[misc]
    def __init__(self, zone: Zone) -> None:
        self.zone = zone

    def resolve(self, request: Any, handler: Any) -> Any:
        name, kind = str(request.q.qname).rstrip("."), QTYPE[request.q.qtype]
        self.zone.asked.append((name, kind))
        if self.zone.silent:
            raise DNSError("no answer, on purpose")
        reply = request.reply()
        for text in self.zone.records.get((name, kind), []):
            reply.add_answer(RR(request.q.qname, request.q.qtype, ttl=self.zone.ttl, rdata=_record(kind, text)))
        if name not in self.zone.names():
            reply.header.rcode = self.zone.rcode
        return reply


def _record(kind: str, text: str) -> Any:
    if kind == "SRV":
        priority, weight, port, target = text.split()
        return SRV(int(priority), int(weight), int(port), target)
    return A(text) if kind == "A" else AAAA(text)


class NameServer:
    """Serves the zone on UDP and TCP of one free port; `close` ends both threads."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        quiet = DNSLogger("", prefix=False)
        for port in random.sample(range(20000, 32000), 200):
            if not _is_free(port):
                continue
            resolver = _Answers(zone)
            self._servers = [DNSServer(resolver, "127.0.0.1", port, logger=quiet, tcp=tcp) for tcp in (False, True)]
            break
        else:
            raise RuntimeError("no free port between 20000 and 32000")
        self.address = Address("127.0.0.1", port)
        for server in self._servers:
            server.start_thread()

    def close(self) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()
            server.thread.join(10)


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
