"""Who may ask and command the sidecar over HTTP, as a configuration says it. Secrets are named, never written down."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from lbplugins.values import Address

MAX_SECRET_BYTES = 4096
MIN_SECRET_CHARS = 8
DEFAULT_SOCKET = Path("/run/lb-sidecar/api.sock")


class SecretError(Exception):
    """A secret cannot be read; the message names where it should be, never what it is."""


class Secret:
    """Where a secret is: `env:NAME` or `file:/path`. Read when needed, never shown; its repr is `***`."""

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        """ValueError for anything but a reference; the text itself is never repeated, it may be the secret."""
        kind, _, where = reference.partition(":")
        if kind not in ("env", "file") or not where or any(c.isspace() or c == "\0" for c in where):
            raise ValueError("a secret must not stand in the configuration: write env:NAME or file:/path, and put the value there")
        if kind == "file" and not where.startswith("/"):
            raise ValueError("the path after file: must be absolute, as file:/etc/lb-sidecar/deploy.token")
        self.reference = reference

    def read(self, env: Mapping[str, str] = os.environ) -> str:
        """The secret's text without the end of line; SecretError says how to mend what is missing."""
        kind, _, where = self.reference.partition(":")
        if kind == "env":
            text = env.get(where)
            if text is None:
                raise SecretError(f"{self.reference}: the environment has no {where}; set it in the unit or compose file")
        else:
            text = _file_text(where, self.reference)
        text = text.strip("\r\n")
        if len(text) < MIN_SECRET_CHARS:
            raise SecretError(f"{self.reference}: shorter than {MIN_SECRET_CHARS} characters; make one with `openssl rand -hex 32`")
        return text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.reference == other.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def parse(value: object) -> Secret:
            if isinstance(value, Secret):
                return value
            # Not `str(value)`: what was written by mistake may be the secret itself.
            return cls(value if isinstance(value, str) else "")

        return core_schema.no_info_plain_validator_function(
            parse, serialization=core_schema.plain_serializer_function_ser_schema(lambda secret: secret.reference)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^(env:\S+|file:/\S+)$", "description": "env:NAME or file:/path", "examples": ["env:TOKEN"]}


def _file_text(where: str, reference: str) -> str:
    try:
        with open(where, "rb") as stream:
            raw = stream.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SecretError(f"{reference}: {error.strerror}; the service's user must be able to read it (mode 0640, its group)") from error
    if len(raw) > MAX_SECRET_BYTES:
        raise SecretError(f"{reference}: bigger than {MAX_SECRET_BYTES} bytes; the file must hold the secret alone")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SecretError(f"{reference}: not UTF-8 text") from error


class May(StrEnum):
    """What a token may do. `read` alone lets nothing be changed."""

    READ = "read"
    DRAIN = "drain"
    MAINT = "maint"
    READY = "ready"
    FREEZE = "freeze"
    ADOPT = "adopt"
    RELEASE = "release"
    RELOAD = "reload"


class TokenOptions(BaseModel):
    """One caller of the API. Its name is the actor in every decision it causes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: Secret = Field(description="Where the bearer token is: env:NAME or file:/path.", examples=["file:/etc/lb-sidecar/deploy.token"])
    may: frozenset[May] = Field(
        default=frozenset({May.READ}), min_length=1, description="What it may do.", examples=[["read", "drain", "ready"]]
    )
    services: frozenset[Annotated[str, StringConstraints(min_length=1, max_length=64)]] | None = Field(
        default=None, description="Only these services; default: all.", examples=[["shop"]]
    )


class TlsOptions(BaseModel):
    """Certificate chain and key of the API, PEM; read again when the files change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert: Path = Field(description="PEM file with the certificate and its chain.")
    key: Path = Field(description="PEM file with the key, readable by the service's user only.")


def _listen(value: Any) -> Address | None:
    if value is None or isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not an address: write HOST:PORT in quotes, as '127.0.0.1:8642', or null for none")
    return Address.parse(value)


ListenAddress = Annotated[
    Address | None,
    BeforeValidator(_listen),
    PlainSerializer(lambda address: None if address is None else str(address), return_type=str | None),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$"}, {"type": "null"}]}),
]


class ApiOptions(BaseModel):
    """The health endpoint, the page and the API. Loopback and a unix socket by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: ListenAddress = Field(
        default=Address("127.0.0.1", 8642),
        description="HOST:PORT, or null for the socket alone. Anything but loopback needs tls and a token.",
        examples=["127.0.0.1:8642"],
    )
    socket: Path | None = Field(
        default=DEFAULT_SOCKET,
        description="Unix socket for the command line; root and the service's group need no token there.",
        examples=[str(DEFAULT_SOCKET)],
    )
    tokens: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], TokenOptions] = Field(
        default={}, description="Callers by name.", max_length=256
    )
    tls: TlsOptions | None = Field(default=None, description="Serve HTTPS.")
    hosts: frozenset[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\[\]-]{1,253}$")]] = Field(
        default=frozenset(), description="Host names the API answers to besides its own address; others get 421 (against DNS rebinding)."
    )

    @model_validator(mode="after")
    def _guarded(self) -> ApiOptions:
        if self.listen is None and self.socket is None:
            raise ValueError("neither `listen` nor `socket`: nobody could ask; keep one")
        if self.listen is None or is_loopback(self.listen.host):
            return self
        lacking = " and ".join(
            [word for word, has in (("`tls: {cert, key}`", self.tls is not None), ("a token under `tokens`", bool(self.tokens))) if not has]
        )
        if lacking:
            raise ValueError(f"{self.listen} is not loopback: add {lacking}, or listen on 127.0.0.1")
        return self


def is_loopback(host: str) -> bool:
    """Is this address this machine alone? A name other than `localhost` is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
