"""Who is asking, and may he. Bearer tokens, the unix socket's peer, or a reader on loopback; never cookies.

The actor of an act is `token:NAME` or `operator:USER`, from the connection, never from the body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import os
import pwd
import socket
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sidecar.web.options import ApiOptions, May, SecretError, TokenOptions, is_loopback
from sidecar.web.problem import Problem

MIN_TOKEN_CHARS, MIN_TOKEN_KINDS = 22, 8
"""22 characters of base64 carry 128 bits; fewer than 8 different ones are no random text."""
MAX_TOKEN_CHARS = 4096
BAD_TOKENS, BAD_WITHIN_S = 10, 60.0
PEERS_KEPT = 4096
SO_PEERGROUPS = 59
"""Linux: the peer's supplementary groups as the kernel has them, without asking a directory service."""
GROUPS_MAX = 255
EVERYTHING = frozenset(May)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `services`: only these; None = all."""

    actor: str
    may: frozenset[May]
    services: frozenset[str] | None = None

    @property
    def is_local(self) -> bool:
        """A person on the unix socket, whom this machine itself vouches for."""
        return self.actor.startswith("operator:")

    def sees(self, service: str) -> bool:
        return self.services is None or service in self.services

    def require_any(self, scopes: frozenset[May]) -> None:
        """Problem 401 or 403 unless the caller has one of these scopes; none needed = everybody may."""
        if scopes and not scopes & self.may:
            needed = " or ".join(sorted(scopes))
            if self.actor == ANONYMOUS:
                less = "nothing but reading is allowed here" if self.may else "nothing is allowed from another machine"
                raise _unauthorized(f"without a token {less}; this needs `{needed}`")
            raise Problem(403, f"{self.actor} may not {needed}", f"use a token whose `may` has {needed}")

    def require(self, scope: May, service: str | None) -> None:
        """Problem 401 or 403 unless the caller may, on this service; None = on all of them at once."""
        self.require_any(frozenset({scope}))
        if service is None and self.services is not None:
            raise Problem(403, f"{self.actor} may act on its own services only", "name one of them, or use a token without `services`")
        if service is not None and not self.sees(service):
            raise Problem(403, f"{self.actor} has no right to service {service}", "add the service to the token's `services`")


ANONYMOUS = "anonymous"
READER = Caller(ANONYMOUS, frozenset({May.READ}))
NOBODY = Caller(ANONYMOUS, frozenset())


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection. `key` names it for counting; the rest only on a unix socket, whose file has an owner and a group."""

    key: str
    is_loopback: bool = False
    uid: int | None = None
    gids: frozenset[int] = frozenset()
    owner: int | None = None
    group: int | None = None

    @property
    def is_trusted(self) -> bool:
        """Root, the socket's owner, its group, or our own user: the file's rights let them in, and they need no token."""
        return self.uid is not None and (self.uid in (0, os.geteuid(), self.owner) or self.group in self.gids)


@dataclass(frozen=True, slots=True)
class _Token:
    name: str
    digest: bytes
    options: TokenOptions


class Gate:
    """Tokens by digest, and who has shown bad ones lately."""

    def __init__(self, options: ApiOptions, env: Mapping[str, str] = os.environ) -> None:
        """Reads the secrets; SecretError if one is missing or too weak."""
        self._tokens: tuple[_Token, ...] = ()
        self._hosts: frozenset[str] = frozenset()
        self._any_ip = False
        self._bad: OrderedDict[str, list[float]] = OrderedDict()
        self._users: dict[int, str] = {}
        self.replace(options, env)

    def replace(self, options: ApiOptions, env: Mapping[str, str] = os.environ) -> None:
        """Take these tokens and hosts instead; on SecretError the earlier ones stay."""
        tokens = tuple(_Token(name, _digest(_strong(name, token, env)), token) for name, token in options.tokens.items())
        hosts = {host.lower().strip("[]") for host in options.hosts}
        if options.listen is not None:
            hosts.add(options.listen.host.lower())
            if is_loopback(options.listen.host) or _is_wildcard(options.listen.host):
                hosts |= {"localhost", "127.0.0.1", "::1"}
            self._any_ip = _is_wildcard(options.listen.host)
        self._tokens, self._hosts = tokens, frozenset(hosts)

    async def caller(self, authorization: str | None, peer: Peer, now: float) -> Caller:
        """Who this is. Problem 401 for a bad token, 429 for one after too many of them."""
        if authorization is not None:
            return self._by_token(authorization, peer, now)
        if peer.uid is not None and peer.is_trusted:
            return Caller(f"operator:{await self._user(peer.uid)}", EVERYTHING)
        return READER if peer.is_loopback or peer.uid is not None else NOBODY

    def check_host(self, host: str, peer: Peer) -> None:
        """Against DNS rebinding: a foreign name in Host is a browser that was led here. Problem 421."""
        if peer.uid is not None:
            return
        name = _host_name(host)
        if name in self._hosts or (self._any_ip and _is_ip(name)):
            return
        raise Problem(
            421, f"this server is not {name[:80] or 'a request without Host'!r}", "use its own address, or add the name to api.hosts"
        )

    def check_origin(self, origin: str | None, site: str | None, host: str) -> None:
        """Writes from a page of another origin are refused, whatever they carry. `site`: Sec-Fetch-Site. Problem 403."""
        if (origin is None or _same_origin(origin, host)) and site in (None, "none", "same-origin"):
            return
        raise Problem(403, "a page of another origin may not change anything here", "use the command line or a script")

    # ---- tokens ----

    def _by_token(self, header: str, peer: Peer, now: float) -> Caller:
        """A right token is let in whatever else came from there: bad ones, which any user of this machine may send, shut nobody out."""
        scheme, _, secret = header.partition(" ")
        if scheme.lower() == "bearer" and 0 < len(secret) <= MAX_TOKEN_CHARS:
            shown, found = _digest(secret.strip()), None
            for token in self._tokens:  # all of them, always: how long it takes must not tell how far it came
                if hmac.compare_digest(token.digest, shown):
                    found = token
            if found is not None:
                return Caller(f"token:{found.name}", found.options.may, found.options.services)
        if (wait := self._locked_for(peer.key, now)) > 0:
            why = f"this is no token of ours either, after {BAD_TOKENS} bad ones within a minute from here"
            raise Problem(429, why, f"send the right one, or wait {wait} s", retry_after_s=wait)
        self._remember_bad(peer.key, now)
        raise _unauthorized(
            "this token is not known here" if scheme.lower() == "bearer" else "only `Authorization: Bearer TOKEN` is understood"
        )

    def _locked_for(self, key: str, now: float) -> int:
        bad = [at for at in self._bad.get(key, ()) if now - at < BAD_WITHIN_S]
        return max(1, int(BAD_WITHIN_S - (now - bad[0])) + 1) if len(bad) >= BAD_TOKENS else 0

    def _remember_bad(self, key: str, now: float) -> None:
        bad = [at for at in self._bad.pop(key, []) if now - at < BAD_WITHIN_S]
        self._bad[key] = [*bad, now][-BAD_TOKENS:]
        while len(self._bad) > PEERS_KEPT:
            self._bad.popitem(last=False)

    # ---- the unix socket's peer ----

    async def _user(self, uid: int) -> str:
        """The user's name; its number where none is found in time. Looked up once: a directory service may be slow."""
        if uid not in self._users:
            try:
                self._users[uid] = await asyncio.wait_for(asyncio.to_thread(_user_name, uid), 2.0)
            except TimeoutError:
                return f"uid{uid}"
        return self._users[uid]


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """The other end of a request's connection. Unknown ends are strangers."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return Peer("unknown")
    if sock.family == socket.AF_UNIX:
        _, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        owner, group = _owner_of(sock.getsockname())
        return Peer(f"uid:{uid}", uid=uid, gids=frozenset({gid, *_peer_groups(sock)}), owner=owner, group=group)
    peer = transport.get_extra_info("peername") if transport is not None else None
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    plain = host.removeprefix("::ffff:")
    return Peer(plain or "unknown", is_loopback=is_loopback(plain))


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:  # an older kernel, or more groups than fit: the primary one decides
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _owner_of(path: object) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path) if isinstance(path, str) and path else None
    except OSError:
        return None, None
    return (found.st_uid, found.st_gid) if found is not None else (None, None)


def _user_name(uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
    return name if name.isprintable() and len(name) <= 64 and " " not in name else f"uid{uid}"


def _strong(name: str, token: TokenOptions, env: Mapping[str, str]) -> str:
    secret = token.secret.read(env)
    if len(secret) < MIN_TOKEN_CHARS or len(set(secret)) < MIN_TOKEN_KINDS:
        where = token.secret.reference
        raise SecretError(f"token {name} ({where}): weaker than 128 bits; make one with `openssl rand -hex 32` and put it there")
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(error: str) -> Problem:
    return Problem(
        401, error, "send `Authorization: Bearer TOKEN` with a token from api.tokens, or use the unix socket as root or its group"
    )


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::", "*")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(header: str) -> str:
    """The name in a Host header without its port, lower case and without brackets; "" if it is not one."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and bool(host) and parts.netloc.lower() == host.lower()
    except ValueError:
        return False


__all__ = ["ANONYMOUS", "Caller", "Gate", "Peer", "peer_of"]
