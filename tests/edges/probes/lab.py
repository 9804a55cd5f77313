"""What the probe tests share: one probe of a zoo server, certificates, an engine that records."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import trustme

from lbplugins.values import Address
from sidecar.core.model import Ask, Fact, Nudged, Outcome, Probed, Target
from sidecar.net.lag import LagMeter
from sidecar.probes.engine import Engine
from sidecar.probes.once import probe_once
from sidecar.probes.options import ProbeSpec
from tests.edges import zoo

AMPLE_S = 10.0
"""A timeout that no healthy answer needs, on however busy a machine."""
SHORT_S = 0.4
"""A timeout that is meant to pass."""
asks_by_engine = False
"""How `ask` asks: as `lb-sidecar probe` does, or as the daemon does; `conftest` sets it."""


def spec(**keys: Any) -> ProbeSpec:
    return ProbeSpec.model_validate(keys)


async def ask(address: Address, timeout_s: float = AMPLE_S, **keys: Any) -> Outcome:
    """Probe the address; `tls_` stands for the spec's own key `tls`, since `tls` is the server's here."""
    if "tls_" in keys:
        keys["tls"] = keys.pop("tls_")
    asked = spec(**(keys or {"http": "/health"}))
    if not asks_by_engine:
        return await probe_once(asked, address, timeout_s=timeout_s)
    async with running_engine(asked) as (engine, recorder):
        engine.ask(Ask(Target(address, asked.key), asyncio.get_running_loop().time(), timeout_s))
        return (await recorder.until_outcomes(1))[0]


async def ask_zoo(behaviour: zoo.Behaviour, timeout_s: float = AMPLE_S, *, tls: ssl.SSLContext | None = None, **keys: Any) -> Outcome:
    with zoo.Server(behaviour, tls=tls) as server:
        return await ask(server.address, timeout_s, **keys)


@lru_cache(maxsize=1)
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str, days: float = 90, ca: trustme.CA | None = None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A server's context with a certificate for these names that ends in so many days (negative = it has)."""
    wall_now = datetime.datetime.now(datetime.UTC)
    ends = wall_now + datetime.timedelta(days=days)
    begins = min(wall_now, ends) - datetime.timedelta(days=30)
    certificate = (ca or authority()).issue_cert(*names, not_before=begins, not_after=ends)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def ca_file(folder: Path) -> str:
    path = folder / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


class Recorder:
    """Keeps what the engine delivers; waits for it by condition, not by time."""

    def __init__(self) -> None:
        self.batches: list[tuple[Fact, ...]] = []
        self._news = asyncio.Event()

    def __call__(self, facts: Sequence[Fact]) -> None:
        self.batches.append(tuple(facts))
        self._news.set()

    @property
    def outcomes(self) -> list[Outcome]:
        return [fact.outcome for batch in self.batches for fact in batch if isinstance(fact, Probed)]

    @property
    def nudges(self) -> list[Nudged]:
        return [fact for batch in self.batches for fact in batch if isinstance(fact, Nudged)]

    async def until(self, holds: Callable[[Recorder], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds(self):
                self._news.clear()
                await self._news.wait()

    async def until_outcomes(self, number: int) -> list[Outcome]:
        await self.until(lambda r: len(r.outcomes) >= number)
        return self.outcomes


@contextlib.asynccontextmanager
async def running_engine(*specs: ProbeSpec, **options: Any) -> AsyncIterator[tuple[Engine, Recorder]]:
    lag = LagMeter()
    lag.start()
    recorder = Recorder()
    engine = Engine(deliver=recorder, lag=lag, **options)
    engine.specs({s.key: s for s in specs})
    try:
        yield engine, recorder
    finally:
        await engine.aclose()
        lag.stop()
