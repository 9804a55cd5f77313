"""What one probe asks and expects, as written under `probe:`; and the key by which everything else names it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from sidecar.core.policy import ProbePlan
from sidecar.net.addresses import host_problem
from sidecar.net.tls import TlsOptions
from sidecar.net.units import Duration, Size, parse_size
from sidecar.probes.pattern import Pattern

MAX_PATH = 2048
MAX_HEADERS = 32
MAX_BODY = parse_size("1MiB")
MAX_TEXT = 1024

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_OURS = {"host": "write `host:` beside the probe", "connection": "write `fresh: true` for a new connection each time"}
_FIXED = {"accept-encoding", "content-length", "transfer-encoding", "expect", "upgrade", "te", "trailer"}


class Kind(StrEnum):
    """How a target is asked."""

    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"
    TLS = "tls"
    GRPC = "grpc"
    COMMAND = "command"


def parse_statuses(written: object) -> tuple[tuple[int, int], ...]:
    """Ranges of HTTP status codes, sorted and merged, from `200`, `"200-399"`, `"200-299, 304"` or a list of these."""
    if isinstance(written, list | tuple):
        parts: list[object] = [f"{item[0]}-{item[1]}" if isinstance(item, tuple) else item for item in written]
    else:
        parts = list(written.split(",")) if isinstance(written, str) else [written]
    ranges = sorted(_status_range(part) for part in parts)
    if not ranges:
        raise ValueError("name at least one status, as 200 or 200-399")
    merged = [ranges[0]]
    for low, high in ranges[1:]:
        if low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _status_range(part: object) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([1-5]\d\d)\s*(?:-\s*([1-5]\d\d)\s*)?", str(part), re.ASCII)
    if match is None or isinstance(part, bool):
        raise ValueError(f"{part!r} is not a status: write 200, 200-399, or a list of them, from 100 to 599")
    low = int(match[1])
    high = int(match[2] or low)
    if high < low:
        raise ValueError(f"{part!r}: the smaller status comes first, as {high}-{low}")
    return low, high


def statuses_text(ranges: tuple[tuple[int, int], ...]) -> str:
    """`200-399,404`."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _check_pattern(text: str) -> str:
    Pattern(text)
    return text


def _check_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path[:60]!r} is not a path: it starts with /, as /health")
    if len(path) > MAX_PATH or not path.isascii() or not path.isprintable() or any(c in path for c in ' #"<>\\^`{|}'):
        raise ValueError(f"{path[:60]!r} cannot be sent as a path: percent-encode all but plain ASCII, {MAX_PATH} characters at most")
    return path


def _check_host(host: str) -> str:
    name, _, port = host.rpartition(":") if re.search(r"(^[^:]+|\]):\d{1,5}$", host) else (host, "", "")
    if (problem := host_problem(name.removeprefix("[").removesuffix("]"))) or (port and not 1 <= int(port) <= 65535):
        raise ValueError(problem or f"{host[:60]!r}: a port is 1 to 65535")
    return host


def _check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"{len(headers)} headers; {MAX_HEADERS} at most")
    for name, value in headers.items():
        _check_header_name(name)
        if name.lower() in _OURS:
            raise ValueError(f"header {name}: {_OURS[name.lower()]}")
        if name.lower() in _FIXED:
            raise ValueError(f"header {name} is not yours to set: probes are short, plain and without a body")
        if len(value) > MAX_TEXT or not all(c == "\t" or " " <= c <= "~" for c in value) or value != value.strip():
            raise ValueError(f"header {name}: its value must be printable ASCII on one line, {MAX_TEXT} characters at most")
    return headers


def _check_header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not a header name")
    return name


def _check_service(service: str) -> str:
    if service and not re.fullmatch(r"[A-Za-z0-9_.\-/]{1,256}", service):
        raise ValueError(f"{service[:60]!r} is not a gRPC service name, as shop.v1.Cart (empty = the whole server)")
    return service


def _check_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv or not argv[0].startswith("/"):
        raise ValueError("command is a list whose first item is the program's full path, as [/usr/lib/checks/disk, {host}]")
    for argument in argv:
        if "\0" in argument or len(argument) > MAX_TEXT:
            raise ValueError(f"command: argument {argument[:60]!r} holds a NUL or more than {MAX_TEXT} characters")
        if argument not in ("{host}", "{port}") and ("{host}" in argument or "{port}" in argument):
            raise ValueError(f"command: {argument[:60]!r}: {{host}} and {{port}} stand alone, as an argument of their own")
    return argv


Statuses = Annotated[
    tuple[tuple[int, int], ...],
    BeforeValidator(parse_statuses),
    PlainSerializer(statuses_text, return_type=str),
    WithJsonSchema({"anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": ["string", "integer"]}}]}),
]
PatternText = Annotated[str, Field(min_length=1), AfterValidator(_check_pattern)]
HeaderName = Annotated[str, AfterValidator(_check_header_name)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Path = Annotated[str, AfterValidator(_check_path)]
Scalar = str | bool | int | float | None


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class IdentityOptions(_Options):
    """What proves that the right service answered: a header's exact value, or a text in the body."""

    header: HeaderName | None = Field(default=None, description="Response header to look at, together with `equals`.")
    equals: str | None = Field(default=None, max_length=MAX_TEXT, description="The exact value of that header.")
    body: Text | None = Field(default=None, description="Text that must occur in the body.")

    @model_validator(mode="after")
    def _check_one(self) -> IdentityOptions:
        if (self.header is None) != (self.equals is None):
            raise ValueError("identity: header and equals go together")
        if (self.header is None) == (self.body is None):
            raise ValueError("identity: give either {header, equals} or {body}")
        return self


class ExpectOptions(_Options):
    """What makes an HTTP answer good. All of it must hold."""

    status: Statuses = Field(default=((200, 399),), description="Good status codes. Redirects are not followed.")
    header: Mapping[HeaderName, PatternText] = Field(default_factory=dict, description="Header name: pattern to find in its value.")
    body: Text | None = Field(default=None, description="Text that must occur in the body.")
    regex: PatternText | None = Field(default=None, description="Pattern to find in the first 64 KiB of the body, in linear time.")
    json_values: Mapping[str, Scalar] = Field(default_factory=dict, alias="json", description="Dotted path in the JSON body: value.")
    identity: IdentityOptions | None = Field(default=None, description="Proof that it is this service and not a stranger on its port.")

    @property
    def needs_body(self) -> bool:
        identity_body = self.identity is not None and self.identity.body is not None
        return bool(self.body or self.regex or self.json_values or identity_body)


class ProbeTls(TlsOptions):
    """TLS options of a probe."""

    warn_days: int = Field(default=14, ge=0, le=3650, description="Advise when the certificate expires within so many days.")


class ProbeSpec(_Options):
    """One way of asking: exactly one of http, https, tcp, tls, grpc, command, and what to expect."""

    http: Path | None = Field(default=None, description="Path to ask over plain HTTP/1.1.")
    https: Path | None = Field(default=None, description="Path to ask over HTTP/1.1 in TLS.")
    tcp: Literal[True] | None = Field(default=None, description="Good when the port accepts a connection.")
    tls: Literal[True] | ProbeTls | None = Field(default=None, description="Alone: good when TLS works. Beside https or grpc: its options.")
    grpc: Annotated[str, AfterValidator(_check_service)] | None = Field(default=None, description="Service to ask for, grpc.health.v1.")
    command: Annotated[tuple[str, ...], AfterValidator(_check_argv)] | None = Field(
        default=None, description="Program and arguments, no shell; exit 0 is good. {host} and {port} are filled in."
    )
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="A label for people.")
    port: int | None = Field(default=None, ge=1, le=65535, strict=True, description="Port to ask instead of the instance's.")
    host: Annotated[str, AfterValidator(_check_host)] | None = Field(
        default=None, description="Host header, and the name for TLS unless server_name is given. Default: the address."
    )
    headers: Annotated[Mapping[str, str], AfterValidator(_check_headers)] = Field(
        default_factory=dict, repr=False, description="Headers to send; kept out of logs."
    )
    method: Literal["GET", "HEAD", "OPTIONS"] = Field(default="GET", description="Safe methods only.")
    interval: Annotated[Duration, Field(ge=0.01, le=86400)] | None = Field(default=None, description="Fixed cadence; default: adaptive.")
    timeout: Annotated[Duration, Field(ge=0.001, le=600)] | None = Field(default=None, description="Fixed total; default: adaptive.")
    fresh: bool = Field(default=False, description="A new connection for every probe, instead of mostly a kept one.")
    expect: ExpectOptions = Field(default_factory=ExpectOptions, description="What makes an HTTP answer good.")
    max_body: Annotated[Size, Field(ge=0, le=MAX_BODY)] = Field(
        default=64 * 1024, description="Bytes of the body read; then the connection closes."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_one_kind(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        kinds = [k.value for k in Kind if given.get(k.value) is not None and k is not Kind.TLS]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} together: one probe asks one way; write a list of probes for more")
        if not kinds and given.get("tls") is None:
            raise ValueError(
                "what should be asked? Give one of http: /path, https: /path, tcp: true, tls: true, grpc: NAME, command: [...]"
            )
        return given

    @model_validator(mode="after")
    def _check_together(self) -> ProbeSpec:
        kind = self.kind
        if self.tls is not None and kind in (Kind.HTTP, Kind.TCP, Kind.COMMAND):
            raise ValueError(f"tls has no meaning beside {kind}" + ("; write https: instead of http:" if kind is Kind.HTTP else ""))
        if self.tls is True and kind is Kind.HTTPS:
            raise ValueError("https is TLS already; leave out tls: true, or give its options")
        for name in ("method", "expect", "headers", "max_body"):
            if name in self.model_fields_set and kind not in (Kind.HTTP, Kind.HTTPS):
                raise ValueError(f"{name} has a meaning only for http and https, not for {kind}")
        if self.host is not None and kind in (Kind.TCP, Kind.COMMAND):
            raise ValueError(f"host has no meaning for {kind}")
        if self.method == "HEAD" and self.expect.needs_body:
            raise ValueError("HEAD has no body; expect nothing of it, or ask with GET")
        if self.max_body == 0 and self.expect.needs_body:
            raise ValueError("max_body 0 reads no body, so nothing can be expected of it")
        if kind is Kind.GRPC and importlib.util.find_spec("h2") is None:
            raise ValueError("grpc probes need the package h2: pip install 'lb-sidecar[grpc]'")
        return self

    @cached_property
    def kind(self) -> Kind:
        """How it asks."""
        for kind in (Kind.HTTP, Kind.HTTPS, Kind.TCP, Kind.GRPC, Kind.COMMAND):
            if getattr(self, kind.value) is not None:
                return kind
        return Kind.TLS

    @property
    def path(self) -> str:
        """The path to ask; "" unless http or https."""
        return self.http or self.https or ""

    @cached_property
    def tls_options(self) -> ProbeTls | None:
        """The TLS options to use; None = no TLS."""
        if isinstance(self.tls, ProbeTls):
            return self.tls
        return ProbeTls() if self.tls or self.kind is Kind.HTTPS else None

    @cached_property
    def key(self) -> str:
        """The one text for this meaning: `http:/health`, and `#` with a hash when there is more to it than that.

        `name` and `interval` are no part: who asks the same, however often, shares the answers. A `timeout` is one: it can be the answer.
        """
        kind, apart = self.kind, {"name", "interval", "http", "https", "tcp", "tls", "grpc"}
        rest = self.model_dump(mode="json", by_alias=True, exclude=apart, exclude_defaults=True)
        if self.tls_options is not None:
            rest["tls"] = self.tls_options.model_dump(mode="json", exclude_defaults=True)
            if not rest["tls"] and kind is not Kind.GRPC:
                del rest["tls"]
        head = self._head
        if len(head) > 80:
            rest["head"] = head
            head = head[:77] + "..."
        if not rest:
            return head
        canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        return f"{head}#{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"

    @property
    def _head(self) -> str:
        said = {Kind.GRPC: self.grpc or "", Kind.COMMAND: self.command[0].rpartition("/")[2] if self.command else ""}
        text = said.get(self.kind, self.path)
        return f"{self.kind}:{text}" if text else str(self.kind)

    def plan(self) -> ProbePlan:
        """What the core must know of it."""
        return ProbePlan(self.key, self.interval, self.timeout, self.port)
