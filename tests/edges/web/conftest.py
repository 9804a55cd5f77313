"""A whole web surface on free loopback ports and a unix socket, over a desk on the real core."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from lbplugins.values import Address
from sidecar.store.history import History
from sidecar.web.connections import Limits
from sidecar.web.options import ApiOptions
from sidecar.web.server import Web, WebError
from tests.edges.web.desk import LabDesk, warm

TOKENS = {
    "ADMIN": "Qk3vX9aL2mZ8tR5wY7uJ1eN4",
    "READ": "b7Hd2Kq9Xw4Lr8Tz1Vn6Ym3P",
    "DEPLOY": "Zp5Gc8Nf1Jh4Ks7Dq2Wv9Bx6",
    "OTHER": "M3ta8Ru5Yo2Ei7Wq4Lz9Cx1V",
}
SECRETS = {f"TOKEN_{name}": secret for name, secret in TOKENS.items()}
TOKEN_OPTIONS = {
    "admin": {
        "secret": "env:TOKEN_ADMIN",
        "may": ["read", "drain", "maint", "ready", "freeze", "adopt", "release", "reload"],
    },
    "read": {"secret": "env:TOKEN_READ"},
    "deploy": {"secret": "env:TOKEN_DEPLOY", "may": ["read", "drain", "ready", "freeze"], "services": ["shop"]},
    "other": {"secret": "env:TOKEN_OTHER", "may": ["read", "drain", "maint", "ready", "freeze"]},
}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


class Surface:
    """One open Web and a client for each way in. `tcp` and `unix` are sessions; paths are enough as URLs."""

    def __init__(self, web: Web, desk: LabDesk) -> None:
        self.web, self.desk = web, desk
        assert web.port is not None
        self.port = web.port
        self.base = f"{'https' if web.options.tls else 'http'}://127.0.0.1:{self.port}"
        self.tcp = aiohttp.ClientSession(self.base)
        path = web.options.socket
        self.unix = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path))) if path else None

    async def close(self) -> None:
        await self.tcp.close()
        if self.unix is not None:
            await self.unix.close()
        await self.web.close()


Serve = Callable[..., Awaitable[Surface]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Opens surfaces and closes them again: `await serve(desk, limits=…, options…)`."""
    opened: list[Surface] = []
    kept: list[History] = []

    async def start(desk: LabDesk | None = None, limits: Limits | None = None, **options: object) -> Surface:
        desk = desk or warm(seconds=2.0)
        desk.kept = desk.kept or History(tmp_path, 64 << 20)
        kept.append(desk.kept)
        given = {"socket": str(tmp_path / f"api{len(opened)}.sock"), "tokens": TOKEN_OPTIONS, **options}
        for _ in range(50):
            listen = Address("127.0.0.1", random.randrange(20000, 32000))
            web = Web(ApiOptions.model_validate({"listen": listen, **given}), desk, env=SECRETS, limits=limits or Limits())
            try:
                assert await web.open() == []
            except WebError:
                await web.close()
                continue
            opened.append(Surface(web, desk))
            return opened[-1]
        raise AssertionError("no free port in fifty tries")

    yield start
    for surface in opened:
        await surface.close()
    for history in kept:
        history.close()
