"""Which hosts may be asked at all: a checked name or IP, and never a cloud's metadata service, multicast or nothing.

The check is on the IP that is then dialed, after the name lookup, so that no name can point elsewhere in between.
"""

from __future__ import annotations

import ipaddress
import re

MAX_HOST = 253
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")

_NEVER = (
    (ipaddress.ip_network("169.254.0.0/16"), "link-local, where clouds keep their metadata service"),
    (ipaddress.ip_network("fd00:ec2::254/128"), "a cloud's metadata service"),
    (ipaddress.ip_network("fd20:ce::254/128"), "a cloud's metadata service"),
    (ipaddress.ip_network("0.0.0.0/8"), "not an address of a host"),
    (ipaddress.ip_network("::/128"), "not an address of a host"),
    (ipaddress.ip_network("224.0.0.0/4"), "multicast"),
    (ipaddress.ip_network("ff00::/8"), "multicast"),
    (ipaddress.ip_network("240.0.0.0/4"), "reserved"),
)


def host_problem(host: str) -> str | None:
    """Why this text cannot be a host, or None. IPs and DNS names pass; the IP itself is judged by `ip_problem`."""
    try:
        return ip_problem(host)
    except ValueError:
        pass
    if len(host) > MAX_HOST or not _NAME.fullmatch(host):
        return f"{host[:60]!r} is neither an IP address nor a host name"
    return None


def ip_problem(ip: str) -> str | None:
    """Why this IP is never asked, or None. ValueError if it is no IP."""
    plain = _unwrapped(ipaddress.ip_address(ip))
    for network, why in _NEVER:
        if plain.version == network.version and plain in network:
            return f"{ip} is never asked: {why}"
    return None


def _unwrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address inside an IPv6 one that only carries it (mapped, 6to4, NAT64), else the address itself."""
    if ip.version == 4:
        return ip
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip
