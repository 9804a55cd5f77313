"""Pictures of the page in five situations, on a desk and on a phone: `python -m tests.edges.web.pictures FOLDER`. Some stand in docs/."""

from __future__ import annotations

import asyncio
import base64
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lbplugins.values import Address, Operator
from sidecar.core.histogram import Histogram
from sidecar.core.model import Commanded, Event, Judgement, Serving, Verb
from sidecar.store.history import History, Row, State
from sidecar.web.options import ApiOptions
from sidecar.web.server import Web, WebError
from tests.core.lab import hangs, refused, status_500
from tests.edges.web.desk import LabDesk, warm
from tests.edges.web.test_browser import DRAWN, Browser

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
MINUTES = 15


def well(desk: LabDesk) -> None:
    """Nothing is wrong."""


def out(desk: LabDesk) -> None:
    desk.lab.answer(2, refused())
    desk.lab.run(20.0)


def all_alike(desk: LabDesk) -> None:
    for i in range(1, 5):
        desk.lab.answer(i, status_500())
    desk.lab.run(30.0)


def maintained(desk: LabDesk) -> None:
    one = next(i for i in desk.world.services["shop"].instances if i.address.host == "10.0.0.3")
    desk.lab.feed(
        Commanded(Verb.OVERRIDE, "operator:ann", desk.now(), "shop", one, "ann", Operator.MAINTENANCE, desk.now() + 1800, "new disk")
    )
    desk.lab.run(5.0)


def hanging(desk: LabDesk) -> None:
    desk.lab.answer(4, hangs())
    desk.lab.run(20.0)
    desk.lab.feed(Commanded(Verb.FREEZE, "operator:ann", desk.now(), "shop", until=desk.now() + 3600, reason="database move"))
    desk.lab.run(2.0)


SITUATIONS: Mapping[str, Callable[[LabDesk], None]] = {
    "well": well, "out": out, "all-alike": all_alike, "maintenance": maintained, "frozen": hanging,
}  # fmt: skip


def remember(desk: LabDesk) -> None:
    """A quarter of an hour before, with one ejection in it, and how each stands now at its end."""
    now, chance = int(desk.wall_of(desk.now()).timestamp()), random.Random(4)
    for at in range(now - 60 * MINUTES, now, 10):
        desk.history.append(at, [_row(desk, i, at, now, chance) for i in range(1, 5)])
        while desk.history._waiting.qsize() > 10:
            time.sleep(0.01)
    two = next(i for i in desk.world.services["shop"].instances if i.address.host == "10.0.0.4")
    for kind, ago, sentence in (
        ("ejected", 600, "ejected: timeout 4 times in a row within 0.9 s"),
        ("returned", 480, "returned after 120 s out"),
    ):
        event = Event(kind, desk.now() - ago, "rule:consecutive", f"{two} {sentence}", "shop", two)
        desk.lab.log.append([event], lambda _, ago=ago: datetime.fromtimestamp(now, UTC) - timedelta(seconds=ago))  # type: ignore[misc]
    time.sleep(0.5)


def _row(desk: LabDesk, i: int, at: int, now: int, chance: random.Random) -> Row:
    was_out = i == 4 and now - 600 <= at < now - 480
    state = State(Judgement.EJECTED, Operator.READY, Serving.NONE) if was_out else State(Judgement.HEALTHY, Operator.READY, Serving.FULL)
    times = Histogram()
    drift = 1 + 0.3 * math.sin(at / 90 + i) + (3 if i == 4 and now - 660 <= at < now - 600 else 0)
    for _ in range(0 if was_out else 120):
        times.add(0.0012 * i**0.3 * drift * chance.lognormvariate(0, 0.35))
    return Row("shop", f"10.0.0.{i}:80", "probe", 60 if was_out else 0, state.number, times)


async def take(folder: Path, browser: Browser, name: str, scratch: Path) -> None:
    desk = warm()
    desk.kept = History(scratch / name, 64 << 20)
    (scratch / name).mkdir()
    await asyncio.to_thread(remember, desk)
    SITUATIONS[name](desk)
    web = await _served(desk)
    try:
        for size, (width, height) in SIZES.items():
            async with browser.tab(f"http://127.0.0.1:{web.port}/") as tab:
                await tab.size(width, height)
                await tab.do(
                    "Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-color-scheme", "value": "dark" if size == "phone" else "light"}],
                )
                await tab.until(f"{DRAWN} >= 4 && document.querySelectorAll('#log li').length")
                whole = await tab.value("document.documentElement.scrollHeight")
                await tab.size(width, min(whole, 1500 if size == "phone" else 1250))
                shot = await tab.do("Page.captureScreenshot", format="webp", quality=82)
                (folder / f"page-{name}-{size}.webp").write_bytes(base64.b64decode(shot["data"]))
    finally:
        await web.close()
        desk.kept.close()


async def _served(desk: LabDesk) -> Web:
    while True:
        web = Web(ApiOptions.model_validate({"listen": Address("127.0.0.1", random.randrange(20000, 32000)), "socket": None}), desk)
        try:
            await web.open()
        except WebError:
            await web.close()
        else:
            return web


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lbs-") as scratch:
        browser = Browser(Path(scratch) / "browser")
        try:
            for name in SITUATIONS:
                await take(folder, browser, name, Path(scratch))
        finally:
            browser.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
