"""Instances from DNS: A, AAAA or SRV, asked again when the answer's TTL is over.

NXDOMAIN, an answer without records and silence are errors, never "there are none": a resolver's bad minute must not empty a
service. With dnspython the TTL is known; without it the system's resolver is asked every 10 s, for A and AAAA only.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import socket
from typing import Any

from lbplugins.values import Address
from sidecar.core.model import Instance
from sidecar.discovery.options import DnsOptions
from sidecar.discovery.source import MAX_INSTANCES, Reading, SourceError
from sidecar.net.addresses import ip_problem

MIN_AGAIN_S, MAX_AGAIN_S = 1.0, 60.0
SYSTEM_AGAIN_S = 10.0
"""The system's resolver tells no TTL."""
LIFETIME_S = 4.0
"""All retries of one question; below the runner's deadline, so that the error can say what was asked."""


def dns_source(service: str, options: DnsOptions) -> Dns | SystemDns:
    """The source for a name: dnspython's if it is installed, else the system's resolver."""
    return Dns(service, options) if importlib.util.find_spec("dns") is not None else SystemDns(service, options)


class Dns:
    """A name asked with dnspython. No state: the resolver's configuration is read anew each time, so edits to it count."""

    def __init__(self, service: str, options: DnsOptions) -> None:
        self.service = service
        self.name = f"dns:{options.name}"
        self._options = options

    async def read(self) -> Reading:
        """All addresses of all records; SourceError when any question failed."""
        if self._options.type == "SRV":
            return await self._srv()
        addresses, ttl = await self._addresses(self._options.name, self._options.type)
        # `port` is set for A and AAAA: the options' own check.
        instances = tuple(Instance(self.service, Address(host, self._options.port or 0)) for host in addresses)
        return Reading(instances, again_s=clamp(ttl))

    async def _srv(self) -> Reading:
        answer = await self._ask(self._options.name, "SRV")
        ttl = float(answer.rrset.ttl)
        labels: dict[Instance, dict[str, str]] = {}
        for record in sorted(answer, key=lambda record: (record.priority, -record.weight, str(record.target), record.port)):
            target = record.target.to_text(omit_final_dot=True)
            if target in (".", "") or record.port == 0:
                raise SourceError(f"{self._options.name} SRV: the answer says that the service is not offered here")
            hosts, host_ttl = await self._addresses(target, "A", "AAAA")
            ttl = min(ttl, host_ttl)
            words = {"srv_target": target[:128], "srv_priority": str(record.priority), "srv_weight": str(record.weight)}
            for host in hosts:
                labels.setdefault(Instance(self.service, Address(host, record.port)), words)
            if len(labels) > MAX_INSTANCES:
                raise SourceError(f"{self._options.name} SRV: more than {MAX_INSTANCES} instances: not believed")
        return Reading(tuple(labels), labels, clamp(ttl))

    async def _addresses(self, name: str, *types: str) -> tuple[list[str], float]:
        """Addresses of the first record type that has any, sorted; seconds they are good for."""
        failure: SourceError | None = None
        for kind in types:
            try:
                answer = await self._ask(name, kind)
            except SourceError as error:
                failure = failure or error
                continue
            return sorted(usable(record.address, name) for record in answer), float(answer.rrset.ttl)
        raise failure or SourceError(f"{name}: nothing asked")

    async def _ask(self, name: str, kind: str) -> Any:
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        try:
            resolver = self._resolver()
            return await resolver.resolve(name, kind, lifetime=LIFETIME_S, search=self._options.nameserver is None)
        except dns.resolver.NXDOMAIN as error:
            raise SourceError(f"{name} {kind}: no such name (NXDOMAIN)") from error
        except dns.resolver.NoAnswer as error:
            raise SourceError(f"{name} {kind}: the name has no {kind} records") from error
        except dns.exception.Timeout as error:
            raise SourceError(f"{name} {kind}: the name servers did not answer within {LIFETIME_S:g} s") from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise SourceError(f"{name} {kind}: {' '.join(str(error).split())[:150]}") from error

    def _resolver(self) -> Any:
        import dns.asyncresolver

        if self._options.nameserver is None:
            return dns.asyncresolver.Resolver()
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [self._options.nameserver.host]
        resolver.port = self._options.nameserver.port
        return resolver


class SystemDns:
    """A name asked through the system's resolver: A and AAAA, no TTL."""

    def __init__(self, service: str, options: DnsOptions) -> None:
        self.service = service
        self.name = f"dns:{options.name}"
        self._options = options

    async def read(self) -> Reading:
        """All addresses of the name; SourceError when it does not resolve."""
        family = socket.AF_INET6 if self._options.type == "AAAA" else socket.AF_INET
        loop = asyncio.get_running_loop()
        port = self._options.port or 0
        try:
            found = await loop.getaddrinfo(self._options.name, port, family=family, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SourceError(f"{self._options.name} {self._options.type}: {error.strerror or error}") from error
        hosts = sorted({usable(str(entry[4][0]), self._options.name) for entry in found})
        return Reading(tuple(Instance(self.service, Address(host, port)) for host in hosts), again_s=SYSTEM_AGAIN_S)


def usable(text: str, name: str) -> str:
    """The address in its one spelling; SourceError for one that is never asked (multicast, a cloud's metadata service)."""
    address = str(ipaddress.ip_address(text.partition("%")[0]))
    if (problem := ip_problem(address)) is not None:
        raise SourceError(f"{name}: {problem}")
    return address


def clamp(ttl_s: float) -> float:
    """When to ask again: the TTL, within 1..60 s."""
    return min(MAX_AGAIN_S, max(MIN_AGAIN_S, ttl_s))
