"""Acme, a balancer that reads its servers from a JSON file. Replace what is Acme's by what is your balancer's."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator

from lbplugins import values as lb
from lbplugins.api import Balancer, BalancerError


class Server(BaseModel):
    """One server in Acme's file: `state` is the operator's axis, `sidecar` and `percent` are ours."""

    model_config = ConfigDict(extra="allow")  # keys that are not ours stay as they are
    address: str
    weight: int = Field(default=1, ge=1)
    state: lb.Operator = lb.READY
    sidecar: lb.Serve = lb.FULL
    percent: int = Field(default=100, ge=1, le=100)

    @field_validator("address")
    @classmethod
    def _is_address(cls, text: str) -> str:
        return str(lb.Address.parse(text))


class Document(RootModel[dict[str, dict[str, Server]]]):
    """Acme's whole file: pool -> server name -> server."""


class AcmeOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    file: Path = Field(description="the file that Acme reads its servers from")


class Acme(Balancer):
    Options = AcmeOptions
    traits = lb.Traits(drain=True)

    def __init__(self, options: BaseModel) -> None:
        super().__init__(options)
        self.file = AcmeOptions.model_validate(options).file

    async def pools(self) -> frozenset[str]:
        return frozenset(self._read().root)

    async def observe(self, pools: frozenset[str], notes: Mapping[lb.Ref, str]) -> Mapping[lb.Ref, lb.Seen]:
        document = self._read().root
        return {lb.Ref(pool, name): seen(server) for pool in pools & document.keys() for name, server in document[pool].items()}

    async def apply(self, changes: Sequence[lb.Change]) -> Sequence[lb.Refusal]:
        document = self._read()
        before = document.model_copy(deep=True)
        refusals = [lb.Refusal(change, reason) for change in changes if (reason := alter(document, change))]
        if document != before:
            self._write(document)
        return refusals

    def _read(self) -> Document:
        try:
            return Document.model_validate_json(self.file.read_bytes())
        except (OSError, ValueError) as error:
            raise BalancerError(f"cannot read the servers from {self.file}: {error}") from error

    def _write(self, document: Document) -> None:
        """Replaces the file whole, with the rights it had: Acme never reads half of it."""
        new = self.file.with_name(self.file.name + ".new")
        try:
            with new.open("w", encoding="utf-8") as out:
                out.write(document.model_dump_json(indent=2))
                out.flush()
                os.fsync(out.fileno())
            shutil.copymode(self.file, new)
            new.replace(self.file)
        except OSError as error:
            raise BalancerError(f"cannot replace {self.file}: {error}") from error


def seen(server: Server) -> lb.Seen:
    ours = lb.Setting(server.sidecar, server.percent)
    is_serving = server.sidecar is lb.FULL and server.state is lb.READY
    return lb.Seen(ours=ours, operator=server.state, serving=is_serving, address=lb.Address.parse(server.address), weight=server.weight)


def alter(document: Document, change: lb.Change) -> str:
    """Makes one server in the document so; why not, or "" when it is done."""
    server = document.root.get(change.ref.pool, {}).get(change.ref.server)
    if server is None:
        return f"Acme has no server {str(change.ref)!r:.100}"
    if moved := lb.differences(seen(server), change.expect):
        return "changed meanwhile: " + ", ".join(moved)
    if change.on is lb.OURS:
        server.sidecar, server.percent = change.want.serve, change.want.weight_pct
    else:
        server.state = {lb.FULL: lb.READY, lb.DRAIN: lb.DRAINING, lb.NONE: lb.MAINTENANCE}[change.want.serve]
    return ""
