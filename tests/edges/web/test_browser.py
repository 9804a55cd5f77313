"""The page in a real browser: what it draws, what it says, and that nothing from outside becomes more than text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lbplugins.values import Operator
from sidecar.core.histogram import Histogram
from sidecar.core.model import Event, Instance, Judgement, Serving
from sidecar.store.history import Row, State
from tests.core.lab import refused
from tests.edges.web.conftest import Serve, Surface
from tests.edges.web.desk import LabDesk, warm

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
HOSTILE = "<img src=x onerror=document.title='owned'>"
OUT = State(Judgement.EJECTED, Operator.READY, Serving.NONE).number
WELL = State(Judgement.HEALTHY, Operator.READY, Serving.FULL).number


class Tab:
    """One page in the browser, spoken to by the DevTools protocol. `told`: what the browser complained of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.told: list[str] = []

    async def begin(self, address: str) -> None:
        for method in ("Runtime.enable", "Log.enable", "Page.enable"):
            await self.do(method)
        await self.do("Page.navigate", url=address)

    async def do(self, method: str, **given: object) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": given})
        async with asyncio.timeout(60):
            while (answer := await self._socket.receive_json()).get("id") != self._number:
                told = answer.get("params", {})
                if answer.get("method") in COMPLAINTS and told.get("entry", {}).get("level") != "verbose":
                    self.told.append(json.dumps(told))
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def value(self, expression: str) -> Any:
        """Of a JavaScript expression; None if it fails."""
        answer = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        try:
            async with asyncio.timeout(60):
                while not await self.value(expression):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            text = await self.value("document.body.innerText")
            raise AssertionError(f"never came true: {expression}\n{self.told}\n{text}") from None

    async def text(self, selector: str) -> str:
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def size(self, width: int, height: int) -> None:
        await self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)


class Browser:
    """Debian's Chromium without a window."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        assert program, "chromium is not installed: run make system-packages"
        argv = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
        argv += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen([program, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not port.exists() or not port.read_text():
            assert time.monotonic() < deadline and self._process.poll() is None, "chromium does not start"
            time.sleep(0.05)
        self._base = f"http://127.0.0.1:{port.read_text().split()[0]}"

    @contextlib.asynccontextmanager
    async def tab(self, address: str) -> AsyncIterator[Tab]:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self._base}/json/new") as answer:
                found = await answer.json()
            async with session.ws_connect(found["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                await tab.begin(address)
                yield tab
            await (await session.get(f"{self._base}/json/close/{found['id']}")).read()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.stop()


def remember(desk: LabDesk, minutes: int = 10) -> None:
    """Minutes until now in the history: `s2` was out in the middle; and what the decision log said then."""
    now = int(desk.wall_of(desk.now()).timestamp())
    for at in range(now - 60 * minutes, now, 30):
        rows = []
        for i in range(1, 5):
            times, is_out = Histogram(), i == 2 and now - 300 <= at < now - 120
            for k in range(0 if is_out else 40):
                times.add(0.001 * i * (1 + k / 20))
            rows.append(Row("shop", f"10.0.0.{i}:80", "probe", 30 * is_out, OUT if is_out else WELL, times))
        desk.history.append(at, rows)
        while desk.history._waiting.qsize() > 10:
            time.sleep(0.01)
    deadline = time.monotonic() + 30
    while not desk.history.read("shop", "probe", now - 40, now, 10).points:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    two = next(i for i in desk.world.services["shop"].instances if i.address.host == "10.0.0.2")
    say(desk, "ejected", now - 300, two, "shop/10.0.0.2:80 ejected: refused 4 times")
    say(desk, "returned", now - 120, two, "shop/10.0.0.2:80 returned after 180 s out")


def say(desk: LabDesk, kind: str, when: float, instance: Instance, sentence: str) -> None:
    event = Event(kind, desk.now(), "rule:consecutive", sentence, instance.service, instance)
    desk.lab.log.append([event], lambda _: datetime.fromtimestamp(when, UTC))


async def opened(serve: Serve) -> Surface:
    surface = await serve(warm(), tokens={})
    await asyncio.to_thread(remember, surface.desk)
    return surface


DRAWN = "document.querySelectorAll('.over svg polygon.spread').length"


async def chart(tab: Tab, name: str) -> dict[str, int]:
    """How often each class occurs in the chart of one instance."""
    classes = await tab.value(
        f"[...[...document.querySelectorAll('.over')].find(o => o.querySelector('.name').textContent === {json.dumps(name)})"
        ".querySelectorAll('svg *')].flatMap(e => [...e.classList])"
    )
    return Counter(classes)


async def test_each_instance_has_its_band_its_states_and_the_marks_of_what_was_decided(serve: Serve, browser: Browser) -> None:
    surface = await opened(serve)

    async with browser.tab(f"{surface.base}/") as tab:
        await tab.until(f"{DRAWN} >= 4")
        for name in ("s1", "s3", "s4"):
            found = await chart(tab, name)
            assert found["spread"] == found["median"] == 1
            assert found["healthy"] >= 10
            assert found["mark"] == found["ejected"] == found["failed"] == 0
        two = await chart(tab, "s2")
        assert (two["spread"], two["out"], two["back"]) == (2, 1, 1)
        assert two["ejected"] == two["unserved"] == two["failed"] > 3
        room = await tab.text("#room")
        assert room.startswith("Guards: 0 of 4 get no traffic now")
        assert room.endswith("at most 2 may by hard evidence, 1 by soft; 4 are sound, at least 1 must stay so.")
        assert tab.told == []


async def test_a_chart_is_read_by_the_keyboard(serve: Serve, browser: Browser) -> None:
    surface = await opened(serve)

    async with browser.tab(f"{surface.base}/") as tab:
        await tab.until(f"{DRAWN} >= 4")
        await tab.value("document.querySelector('.over svg').focus()")
        for key in ("End", "ArrowLeft", "ArrowLeft"):
            await tab.do("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
        read = await tab.text("#reading")

    assert re.search(r"s1 · .* · p50 \S+ ms, p99 n/a, \S+ ms to \S+ ms · 40 good, 0 failed · healthy, serving full", read), read


async def test_an_instance_has_a_page_of_its_own_on_a_phone_too(serve: Serve, browser: Browser) -> None:
    surface = await opened(serve)

    async with browser.tab(f"{surface.base}/#shop/10.0.0.2:80") as tab:
        await tab.size(390, 900)
        await tab.until(f"{DRAWN} >= 1 && document.querySelectorAll('#log li').length")
        assert await tab.value("document.querySelectorAll('.over').length") == 1
        assert await tab.text("#instances-count") == "(1 of 4)"
        assert "good in a row" in await tab.text("#instances .more")
        log = await tab.text("#log")
        assert "shop/10.0.0.2:80 returned after 180 s out" in log
        assert await tab.value("document.documentElement.scrollWidth <= innerWidth"), "it fits"
        assert tab.told == []


async def test_a_fault_shows_while_the_page_is_open(serve: Serve, browser: Browser) -> None:
    surface = await serve(warm(), tokens={})

    async with browser.tab(f"{surface.base}/") as tab:
        await tab.until("document.querySelector('#link').dataset.state === 'live'")
        surface.desk.lab.answer(3, refused())
        surface.desk.lab.run(3.0)
        await tab.until("document.querySelector('#why').innerText.includes('s3 is ejected')")
        await tab.until("document.querySelector('#room').innerText.startsWith('Guards: 1 of 4 gets no traffic now')")
        assert re.search(r"10\.0\.0\.3:80 ejected: refused \d+ times in a row", await tab.text("#log"))
        assert tab.told == []


async def test_the_log_is_filtered_by_kind_and_words(serve: Serve, browser: Browser) -> None:
    surface = await opened(serve)
    shown = "[...document.querySelectorAll('#log .what')].map(e => e.innerText)"

    async with browser.tab(f"{surface.base}/") as tab:
        await tab.until("document.querySelectorAll('#kind option').length > 2")
        await tab.value("(k => { k.value = 'returned'; k.dispatchEvent(new Event('change')); })(document.querySelector('#kind'))")
        by_kind = await tab.value(shown)
        await tab.value("(k => { k.value = ''; k.dispatchEvent(new Event('change')); })(document.querySelector('#kind'))")
        await tab.value("(f => { f.value = 'REFUSED 10.0.0.2'; f.dispatchEvent(new Event('input')); })(document.querySelector('#find'))")
        by_words = await tab.value(shown)

    assert by_kind == ["shop/10.0.0.2:80 returned after 180 s out"]
    assert by_words == ["shop/10.0.0.2:80 ejected: refused 4 times"]


async def test_hostile_names_and_sentences_stay_text(serve: Serve, browser: Browser) -> None:
    surface = await opened(serve)
    one = next(iter(surface.desk.world.services["shop"].instances))
    now = int(surface.desk.wall_of(surface.desk.now()).timestamp())
    say(surface.desk, "ejected", now, one, HOSTILE)
    surface.desk.history.append(now - 60, [Row("shop", HOSTILE, "probe", 0, WELL, Histogram())])

    async with browser.tab(f"{surface.base}/") as tab:
        await tab.until(f"{DRAWN} >= 4 && document.querySelectorAll('#log li').length && document.querySelectorAll('.over').length === 5")
        names = await tab.value("[...document.querySelectorAll('.over .name')].map(e => e.textContent)")
        assert HOSTILE in names
        assert HOSTILE in await tab.text("#log")
        assert await tab.value("document.querySelectorAll('img').length") == 1, "our own icon"
        assert await tab.value("document.title") == "lb-sidecar"
        assert tab.told == []
