"""Who may ask and command the sidecar over HTTP, as a configuration says it. Secrets are named, never written down."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from lbplugins.values import Address
from sidecar.net.secret import Secret as Secret
from sidecar.net.secret import SecretError as SecretError

DEFAULT_SOCKET = Path("/run/lb-sidecar/api.sock")


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
