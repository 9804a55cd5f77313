"""One probe of one address, outside any schedule: what `lb-sidecar probe URL` does."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import ValidationError

from lbplugins.values import Address
from sidecar.core.model import Outcome, Target
from sidecar.net.addresses import host_problem
from sidecar.net.dial import Resolver
from sidecar.net.lag import LagMeter
from sidecar.probes.attempt import Attempt, Question, conclude
from sidecar.probes.kinds import PROBES
from sidecar.probes.options import Kind, ProbeSpec

DEFAULT_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"http": 80, "https": 443, "tls": 443}


def parse_url(url: str) -> tuple[ProbeSpec, Address]:
    """What to ask and where, from http://, https://, tcp://, tls:// or grpc://HOST:PORT[/...]; ValueError says what is wrong."""
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{url[:80]!r} is not a URL: {error}") from error
    kind = parts.scheme
    if kind not in ("http", "https", "tcp", "tls", "grpc"):
        raise ValueError(f"{url[:80]!r} is not a URL to probe: it starts with http://, https://, tcp://, tls:// or grpc://")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("a URL to probe has no user, password or #fragment")
    if problem := host_problem(host):
        raise ValueError(f"{url[:80]!r}: {problem}")
    port = port or _DEFAULT_PORTS.get(kind)
    if port is None:
        raise ValueError(f"{url[:80]!r} needs a port, as {kind}://{host}:9000")
    return _spec(kind, parts.path, parts.query), Address(host, port)


def _spec(kind: str, path: str, query: str) -> ProbeSpec:
    asked: object = True
    if kind in ("http", "https"):
        asked = (path or "/") + (f"?{query}" if query else "")
    elif kind == "grpc":
        asked = path.removeprefix("/")
    elif path not in ("", "/") or query:
        raise ValueError(f"{kind}:// has no path; there is nothing to ask for but the port")
    try:
        return ProbeSpec.model_validate({kind: asked})
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


async def probe_once(
    asked: str | ProbeSpec, address: Address | None = None, *, timeout_s: float | None = None, allow_commands: bool = False
) -> Outcome:
    """The outcome of asking a URL, or a spec at an address, once on a new connection. ValueError for what cannot be asked.

    `timeout_s`: total seconds; default the spec's own, else 5.
    """
    spec, where = parse_url(asked) if isinstance(asked, str) else (asked, address)
    if where is None:
        raise ValueError(f"probe {spec.key}: at which address? Give HOST:PORT")
    if spec.kind is Kind.COMMAND and not allow_commands:
        raise ValueError(f"probe {spec.key} runs a program, which is not allowed here")
    target = Target(where if spec.port is None else Address(where.host, spec.port), spec.key)
    lag = LagMeter()
    attempt = Attempt(target, Question(spec), timeout_s or spec.timeout or DEFAULT_TIMEOUT_S, lag, Resolver())
    lag.start()
    try:
        return await conclude(attempt, PROBES[spec.kind])
    finally:
        if attempt.keep is not None:
            attempt.keep.close()
        lag.stop()
