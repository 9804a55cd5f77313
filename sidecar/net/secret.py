"""Secrets by name: a configuration says where one is, never what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

MAX_SECRET_BYTES = 4096
MIN_SECRET_CHARS = 8


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
