"""A fake balancer with one weight register per server, as HAProxy has, and a good plugin for it.

What it makes hard is what the notes are for: once we cut a weight, the operator's is nowhere but in our note.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

from pydantic import BaseModel

from lbplugins.api import Balancer, BalancerError, NoOptions
from lbplugins.testing import OPERATOR_AFTER, Lab
from lbplugins.values import (
    DRAIN,
    FULL,
    MAINTENANCE,
    NONE,
    OURS,
    READY,
    Address,
    Change,
    Operator,
    Ref,
    Refusal,
    Seen,
    Setting,
    Traits,
    differences,
)  # fmt: skip


@dataclass(frozen=True)
class Register:
    """One server as the fake balancer holds it."""

    weight: int
    up: bool = True
    admin: Operator = READY


class Registers:
    """The fake balancer: it forgets nothing and knows nobody's reasons."""

    def __init__(self) -> None:
        self.servers = {Ref("web", "a"): Register(40), Ref("web", "b"): Register(40), Ref("web", "c"): Register(3)}
        self.writes = 0
        self.is_down = False

    async def read(self) -> dict[Ref, Register]:
        await asyncio.sleep(0)
        if self.is_down:
            raise ConnectionRefusedError("registers are down")
        return dict(self.servers)

    async def write(self, ref: Ref, register: Register) -> None:
        await asyncio.sleep(0)
        if self.is_down:
            raise ConnectionRefusedError("registers are down")
        self.servers[ref] = register
        self.writes += 1


class OneRegister(Balancer):
    """Drives `Registers`. Note: the operator's weight, while we act or are about to."""

    traits = Traits(drain=True)
    weights = True

    def __init__(self, options: BaseModel, registers: Registers | None = None) -> None:
        super().__init__(options)
        self.registers = registers or Registers()
        self.set_by_us: dict[Ref, int] = {}
        self.notes: Mapping[Ref, str] = {}

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        self.notes = dict(notes)
        registers = await self._read()
        return {ref: self._seen(ref, register) for ref, register in registers.items() if ref.pool in pools}

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        return [Refusal(change, reason) for change in changes if (reason := await self._tell(change))]

    async def _read(self) -> dict[Ref, Register]:
        try:
            return await self.registers.read()
        except OSError as error:
            raise BalancerError(str(error)) from error

    def _seen(self, ref: Ref, register: Register) -> Seen:
        theirs = self._theirs(ref, register)
        return Seen(
            ours=Setting(FULL if register.up else NONE, max(1, round(100 * register.weight / theirs))),
            operator=register.admin,
            serving=register.up and register.admin is READY,
            address=Address("127.0.0.1", 8000),
            weight=theirs,
            grain_pct=self._grain(theirs),
            note=str(theirs),
        )

    def _theirs(self, ref: Ref, register: Register) -> int:
        """The operator's weight: the register's own unless we put that there."""
        if ref in self.set_by_us and self.set_by_us[ref] != register.weight:
            return register.weight
        return int(self.notes.get(ref) or register.weight)

    def _grain(self, weight: int) -> int:
        return ceil(100 / weight) if self.weights else 100

    async def _tell(self, change: Change) -> str:
        registers = await self._read()
        register = registers.get(change.ref)
        if register is None:
            return "no such server"
        seen = self._seen(change.ref, register)
        if moved := differences(seen, change.expect):
            return f"changed meanwhile: {moved}"
        after = self._after(change, register, seen)
        if isinstance(after, str):
            return after
        if after != register:
            try:
                await self.registers.write(change.ref, after)
            except OSError as error:
                raise BalancerError(str(error)) from error
        self.set_by_us[change.ref] = after.weight
        return ""

    def _after(self, change: Change, register: Register, seen: Seen) -> Register | str:
        want = change.want
        if change.on is not OURS:
            if want.serve is DRAIN and not self.traits.drain:
                return "no drain here"
            return replace(register, admin=OPERATOR_AFTER[want.serve])
        if want.weight_pct < 100 and not self.weights:
            return "no weights here"
        return replace(register, up=want.serve is FULL, weight=max(1, seen.weight * want.weight_pct // 100))


class Plain(OneRegister):
    """Neither drain nor weights: as good."""

    traits = Traits()
    weights = False


class RegisterLab(Lab):
    def __init__(self, kind: type[OneRegister] = OneRegister, first: str = "a") -> None:
        self.kind = kind
        self.registers = Registers()
        self.refs = sorted(self.registers.servers, key=lambda ref: ref.server != first)
        self.operators = {ref: register.weight for ref, register in self.registers.servers.items()}

    def plugin(self) -> OneRegister:
        return self.kind(NoOptions(), self.registers)

    def truth(self, ref: Ref) -> Setting:
        register = self.registers.servers[ref]
        if not register.up or register.admin is MAINTENANCE:
            return Setting(NONE)
        return Setting(FULL, round(100 * register.weight / self.operators[ref])) if register.admin is READY else Setting(DRAIN)

    def meddle(self, ref: Ref, setting: Setting) -> None:
        self.registers.servers[ref] = replace(self.registers.servers[ref], admin=OPERATOR_AFTER[setting.serve])

    def reweigh(self, ref: Ref, weight: int) -> bool:
        self.operators[ref] = weight
        self.registers.servers[ref] = replace(self.registers.servers[ref], weight=weight)
        return True

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        self.registers.is_down = True
        yield
        self.registers.is_down = False

    def effort(self) -> int:
        return self.registers.writes
