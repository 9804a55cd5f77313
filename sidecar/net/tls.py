"""TLS for everything that we dial: verified unless told otherwise, 1.2 at least."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidecar.net.addresses import host_problem


class TlsOptions(BaseModel):
    """How to trust the other side, and how to prove who we are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verify: bool = Field(default=True, description="Check the certificate and its name. Off = anyone may answer; shown as advice.")
    ca: Path | None = Field(default=None, description="PEM file of the authorities to trust instead of the system's.")
    cert: Path | None = Field(default=None, description="PEM file of our own certificate, for servers that ask for one.")
    key: Path | None = Field(default=None, description="PEM file of its key; not needed when the certificate's file holds it.")
    server_name: str | None = Field(default=None, description="Name to ask for (SNI) and to find in the certificate.")
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="The oldest TLS version accepted.")

    @field_validator("server_name")
    @classmethod
    def _check_server_name(cls, name: str | None) -> str | None:
        if name is not None and (problem := host_problem(name)):
            raise ValueError(problem)
        return name

    @model_validator(mode="after")
    def _check_pairs(self) -> TlsOptions:
        if self.key is not None and self.cert is None:
            raise ValueError("key without cert: give the certificate's file too")
        return self


def client_context(options: TlsOptions, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A fresh context that reads its files now, so that renewed ones count. ValueError names the file that is no good."""
    try:
        context = ssl.create_default_context(cafile=str(options.ca) if options.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca {options.ca}: cannot be read as PEM certificates ({_why(error)})") from error
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if options.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    if options.cert is not None:
        try:
            context.load_cert_chain(str(options.cert), str(options.key) if options.key else None)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"cert {options.cert}: cannot be used with its key ({_why(error)})") from error
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _why(error: OSError) -> str:
    return error.strerror or str(error)
