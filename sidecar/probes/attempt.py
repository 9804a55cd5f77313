"""One asking in progress: its clock, its connection, its phases, and the outcome that it ends in."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from lbplugins.values import Address
from sidecar.core.model import Outcome, Phases, Reason, Result, Target
from sidecar.net.dial import DeadlinePassed, LookupFailed, NeverAsked, Resolver, Wire
from sidecar.net.lag import LagMeter
from sidecar.net.tls import client_context
from sidecar.probes.expect import Expectation
from sidecar.probes.options import Kind, ProbeSpec

MAX_DETAIL = 200
MAX_REQUESTS = 16384
LEAST_LAG_S = 0.005
LAG_SHARE = 0.2

now = time.monotonic
"""Monotonic seconds. The clock of the loop, read anew: uvloop's own `time()` is a whole number of milliseconds, often stale."""

_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_FAILURES = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.ECONNABORTED: Reason.RESET,
    errno.EPIPE: Reason.RESET,
    errno.ENOTCONN: Reason.RESET,
    errno.ETIMEDOUT: Reason.TIMEOUT,
    errno.EHOSTUNREACH: Reason.UNREACHABLE,
    errno.EHOSTDOWN: Reason.UNREACHABLE,
}
_VERIFY_EXPIRED = 10
_VERIFY_NAMES = {62, 64}  # host name, IP address


class Failed(Exception):
    """The probe ends here, with this reason. `by_lateness`: the other side may only have lost patience with us."""

    def __init__(self, reason: Reason, detail: str, *, by_lateness: bool = False, result: Result = Result.FAIL) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.by_lateness = by_lateness
        self.result = result


class Verdict(NamedTuple):
    """What one whole answer means. `failed` None = good; `keep_s`: idle seconds after which the server has announced to close."""

    failed: Failed | None
    may_keep: bool
    keep_s: float | None


class Question:
    """A probe spec made ready to be asked many times."""

    __slots__ = ("context", "expectation", "known", "requests", "spec")

    def __init__(self, spec: ProbeSpec) -> None:
        """Reads the TLS files now; ValueError names the one that is no good."""
        self.spec = spec
        self.expectation = Expectation(spec.expect)
        self.requests: dict[Address, bytes] = {}
        """Requests as sent, by address; the HTTP probe fills it, at most `MAX_REQUESTS`."""
        self.known: dict[bytes, Verdict] = {}
        """Whole answers seen lately and what they mean: the same bytes mean the same. `lines` fills it, a few small ones."""
        options = spec.tls_options
        alpn = {Kind.GRPC: ("h2",), Kind.HTTPS: ("http/1.1",)}.get(spec.kind, ())
        try:
            self.context = client_context(options, alpn) if options else None
        except ValueError as error:
            raise ValueError(f"probe {spec.name or spec.key}: {error}") from error

    def server_name(self, address: Address) -> str:
        """The name to ask for in TLS and to find in the certificate; a host's port and brackets are no part of it."""
        options = self.spec.tls_options
        if options is not None and options.server_name:
            return options.server_name
        host = self.spec.host
        if host is None:
            return address.host
        if host.startswith("["):
            return host[1:].partition("]")[0]
        return host.partition(":")[0] if host.count(":") == 1 else host


@dataclass(slots=True)
class Attempt:
    """The state of one probe under way. `kept`: an idle connection to use, taken by the probe; `keep`: the one to keep afterwards."""

    target: Target
    question: Question
    timeout_s: float
    lag: LagMeter
    resolver: Resolver
    kept: Wire | None = None
    keep: Wire | None = None
    keep_s: float | None = None
    """Seconds of idleness after which the other side has announced to close; None = it has not said."""
    started: float = 0.0
    deadline: float = 0.0
    phase: str = "start"
    fresh: bool = True
    advice: str = ""
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None
    wire: Wire | None = None

    def begin(self) -> None:
        """Start the clock."""
        self.started = now()
        self.deadline = self.started + self.timeout_s

    @property
    def address(self) -> Address:
        return self.target.address

    @property
    def spec(self) -> ProbeSpec:
        return self.question.spec

    async def dial(self) -> Wire:
        """A new connection to the target, with TLS where the spec wants it."""
        self.fresh = True
        self.phase = "name lookup"
        asked = now()
        family, address = await self.resolver.resolve(self.address.host, self.address.port, self.deadline)
        found = now()
        if address[0] != self.address.host:
            self.dns_s = found - asked
        self.phase = "connect"
        wire = self.wire = Wire(self.deadline)
        await wire.connect(family, address)
        self.connect_s = now() - found
        if self.question.context is not None:
            await self._secure(wire, self.question.context)
        return wire

    async def _secure(self, wire: Wire, context: ssl.SSLContext) -> None:
        self.phase = "tls"
        begun = now()
        sock = await wire.secure(context, self.question.server_name(self.address))
        self.tls_s = now() - begun
        options = self.spec.tls_options
        assert options is not None
        self.advice = _certificate_advice(sock, options.verify, options.warn_days)
        if self.spec.kind is Kind.GRPC and sock.selected_alpn_protocol() != "h2":
            raise Failed(Reason.BAD_RESPONSE, "the server did not choose h2 in TLS (ALPN), so it cannot speak gRPC")

    def reuse(self) -> Wire | None:
        """The kept connection with the new deadline, if there is one."""
        wire, self.kept = self.kept, None
        if wire is not None:
            self.fresh = False
            self.wire = wire
            wire.until(self.deadline)
        return wire

    def drop(self) -> None:
        """Close whatever connections this attempt holds, except the one to keep."""
        for wire in (self.wire, self.kept):
            if wire is not None and wire is not self.keep:
                wire.close()
        self.wire = self.kept = None

    def outcome(self, result: Result, reason: Reason | None = None, detail: str = "") -> Outcome:
        """The outcome as of now."""
        phases = Phases(self.dns_s, self.connect_s, self.tls_s, self.first_byte_s)
        return Outcome(self.target, result, self.started, now(), reason, one_line(detail), phases, self.fresh, one_line(self.advice))


Probe = Callable[[Attempt], Awaitable[None]]
"""Asks; returns when the answer is good, else raises `Failed` or what the network raised."""


async def conclude(attempt: Attempt, ask: Probe) -> Outcome:
    """The outcome of one asking: everything the other side or the network can do becomes a value. Only cancellation passes."""
    attempt.begin()
    try:
        await ask(attempt)
        return attempt.outcome(Result.OK)
    except DeadlinePassed:
        failed = timed_out(attempt.phase, attempt.timeout_s)
    except (LookupFailed, NeverAsked) as error:
        failed = Failed(Reason.NAME_LOOKUP, str(error), result=Result.UNKNOWN)
    except Failed as error:
        failed = error
    except ssl.SSLError as error:
        failed = _tls_failure(attempt, error)
    except OSError as error:
        failed = network_failure(attempt.phase, error)
    finally:
        attempt.drop()
    failed = unless_late(failed, attempt.lag, attempt.started, attempt.timeout_s)
    return attempt.outcome(failed.result, failed.reason, failed.detail)


def one_line(text: str) -> str:
    """Text from outside as one printable line of at most 200 characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: MAX_DETAIL + 1])
    return shown if len(shown) <= MAX_DETAIL else shown[: MAX_DETAIL - 3] + "..."


def unless_late(failed: Failed, lag: LagMeter, started: float, timeout_s: float) -> Failed:
    """The failure, or an unknown outcome in its place when our own lateness since `started` may have caused it."""
    if not failed.by_lateness:
        return failed
    end = now()
    late_s = max(lag.overlapping(started, end), end - (started + timeout_s))
    if late_s <= max(LEAST_LAG_S, timeout_s * LAG_SHARE):
        return failed
    return Failed(Reason.OWN_LAG, f"our own loop was {late_s:.3f} s late: {failed.detail}", result=Result.UNKNOWN)


def timed_out(phase: str, timeout_s: float) -> Failed:
    """The failure of a probe whose deadline came in this phase."""
    waited = {"connect": "no connection", "tls": "TLS not agreed", "headers": "no complete answer head", "body": "the body did not end"}
    return Failed(Reason.TIMEOUT, f"{waited.get(phase, phase)} within {timeout_s:.3f} s", by_lateness=True)


def _tls_failure(attempt: Attempt, error: ssl.SSLError) -> Failed:
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        if error.verify_code == _VERIFY_EXPIRED:
            return Failed(Reason.TLS_EXPIRED, "the certificate has expired")
        if error.verify_code in _VERIFY_NAMES:
            return Failed(Reason.TLS_NAME, f"{said}; set host or tls.server_name to the certificate's name")
        return Failed(Reason.TLS, f"the certificate is not trusted: {said}; set tls.ca if it is your own authority")
    is_closed = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    said = "closed by the server" if is_closed else (error.reason or str(error)).replace("_", " ").lower()
    return Failed(Reason.TLS, f"TLS failed ({attempt.phase}): {said}", by_lateness=is_closed)


def network_failure(phase: str, error: OSError) -> Failed:
    """What the kernel said in this phase, as a reason: about the instance, or unknown when it is about us."""
    number = error.errno or 0
    said = f"{errno.errorcode.get(number, 'error')} during {phase}"
    if number in _NO_DESCRIPTORS:
        return Failed(Reason.NO_DESCRIPTORS, f"{said}: {error.strerror}; raise LimitNOFILE", result=Result.UNKNOWN)
    reason = _FAILURES.get(number)
    if reason is Reason.REFUSED:
        return Failed(reason, "nothing listens on the port")
    if reason is Reason.RESET:
        return Failed(reason, f"reset by the server: {phase}", by_lateness=phase != "connect")
    if reason is not None:
        return Failed(reason, said, by_lateness=reason is Reason.TIMEOUT)
    # What is left is about our side: no route, no source address, our own firewall.
    return Failed(Reason.OWN_NETWORK, said, result=Result.UNKNOWN)


def _certificate_advice(sock: ssl.SSLSocket, is_verified: bool, warn_days: int) -> str:
    """What a person should know of the certificate, "" = nothing. Python tells its dates only once it is verified."""
    if not is_verified:
        return "the certificate is not verified (tls.verify: false): anyone could answer here"
    ends = (sock.getpeercert() or {}).get("notAfter")
    if not isinstance(ends, str):
        return ""
    left_days = (ssl.cert_time_to_seconds(ends) - time.time()) / 86400
    return f"the certificate expires in {left_days:.1f} days, on {ends}" if left_days < warn_days else ""
