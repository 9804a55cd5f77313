"""Where the instances of a service come from, as a configuration says it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, WithJsonSchema, model_validator

from lbplugins.values import Address
from sidecar.net.addresses import host_problem

MAX_STATIC = 10_000
_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$"


def _address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not an address: write HOST:PORT in quotes, as '10.0.0.5:8080'")
    address = Address.parse(value)
    if (problem := host_problem(address.host)) is not None:
        raise ValueError(problem)
    return address


AddressText = Annotated[
    Address,
    BeforeValidator(_address),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$", "examples": ["10.0.0.5:8080", "[::1]:80"]}
    ),
]
"""`HOST:PORT`, an IPv6 address in brackets."""

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
LabelValue = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = dict[LabelName, LabelValue]


class Options(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StaticInstance(Options):
    """One instance, written down. `id` tells lives at one address apart: another id is another instance."""

    address: AddressText = Field(description="HOST:PORT of the instance.", examples=["10.0.0.5:8080"])
    id: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.:-]*$")] = Field(
        default="", description="Optional identity; a new id at the same address starts a new life."
    )
    labels: Labels = Field(default={}, description="Shown with the instance, as {zone: b}.")


class DnsOptions(Options):
    """Instances are what a DNS name answers; asked again when the answer's TTL is over, within 1..60 s."""

    name: str = Field(description="The name to ask.", examples=["shop.example"])
    port: int | None = Field(default=None, ge=1, le=65535, description="Port of every instance; SRV answers bring their own.")
    type: Literal["A", "AAAA", "SRV"] = Field(default="A", description="Record type.")
    nameserver: AddressText | None = Field(default=None, description="Ask this server (IP:PORT) and not those of /etc/resolv.conf.")

    @model_validator(mode="after")
    def _consistent(self) -> DnsOptions:
        if (problem := host_problem(self.name)) is not None:
            raise ValueError(problem)
        if self.type == "SRV" and self.port is not None:
            raise ValueError("an SRV answer brings its own ports: remove `port`, or use type A")
        if self.type != "SRV" and self.port is None:
            raise ValueError(f"{self.type} records have no port: add `port`, as {{name: {self.name}, port: 8080}}")
        if (self.type == "SRV" or self.nameserver is not None) and importlib.util.find_spec("dns") is None:
            raise ValueError("SRV records and `nameserver` need dnspython: pip install 'lb-sidecar[dns]'")
        return self


class FileOptions(Options):
    """Instances are in a file, in Prometheus' file_sd form (JSON or YAML); looked at every second."""

    path: Path = Field(description="The file; relative to the configuration's folder.")


class Instances(Options):
    """Exactly one origin of instances: a list, `{dns: ...}` or `{file: ...}`."""

    static: tuple[StaticInstance, ...] = Field(default=(), max_length=MAX_STATIC)
    dns: DnsOptions | None = None
    file: FileOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _shapes(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"static": [{"address": item} if isinstance(item, str | Address) else item for item in value]}
        if not isinstance(value, dict):
            raise ValueError("give a list of addresses, {dns: NAME:PORT} or {file: PATH}")
        if strangers := [str(key)[:40] for key in value if key not in ("dns", "file")]:
            raise ValueError(f"unknown origin {strangers[0]!r}: give a list of addresses, {{dns: NAME:PORT}} or {{file: PATH}}")
        shaped = dict(value)
        if isinstance(shaped.get("dns"), str):
            shaped["dns"] = dns_words(shaped["dns"])
        if isinstance(shaped.get("file"), str):
            shaped["file"] = {"path": shaped["file"]}
        return shaped

    @model_validator(mode="after")
    def _exactly_one(self) -> Instances:
        if self.dns is not None and self.file is not None:
            raise ValueError("both `dns` and `file`: keep one origin")
        if self.dns is None and self.file is None and not self.static:
            raise ValueError("no instances: list at least one address, or remove the key to take them from the balancer")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        schema = handler.resolve_ref_schema(handler(core))
        properties = schema["properties"]
        static = {key: value for key, value in properties["static"].items() if key not in ("default", "title")}
        static["items"] = {"anyOf": [{"type": "string", "pattern": _ADDRESS}, static["items"]]}
        dns = {"anyOf": [{"type": "string"}, properties["dns"]["anyOf"][0]]}
        file = {"anyOf": [{"type": "string"}, properties["file"]["anyOf"][0]]}
        return {
            "description": "A list of addresses, or {dns: NAME:PORT}, or {file: PATH}.",
            "anyOf": [
                static,
                {"type": "object", "properties": {"dns": dns}, "required": ["dns"], "additionalProperties": False},
                {"type": "object", "properties": {"file": file}, "required": ["file"], "additionalProperties": False},
            ],
        }


def dns_words(text: str) -> dict[str, Any]:
    """`shop.example:8080` is an A record with a port; `_http._tcp.shop.example` is an SRV record."""
    name, colon, port = text.rpartition(":")
    if not colon:
        return {"name": text, "type": "SRV"} if text.startswith("_") else {"name": text}
    return {"name": name, "port": int(port)} if port.isascii() and port.isdigit() and len(port) < 7 else {"name": text}
