"""What probing does must not depend on the way it is done: hostile servers and the engine are tested on every loop and every way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from sidecar.probes import lines
from tests.edges.probes import lab

EVERY_LOOP = ("test_engine.py", "test_zoo_http.py")
EVERY_WAY = ("test_own_faults.py", "test_zoo_http.py")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    stock = {"asyncio": asyncio.new_event_loop}
    return {**stock, "uvloop": uvloop.new_event_loop} if item.path.name in EVERY_LOOP else stock


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.path.name in EVERY_WAY and asyncio.iscoroutinefunction(metafunc.function):
        metafunc.parametrize("way", ["task", "engine", "engine from afar"], indirect=True)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = getattr(request, "param", "task")
    monkeypatch.setattr(lab, "asks_by_engine", asked != "task")
    if asked == "engine from afar":  # as over a network, where connecting takes a while
        monkeypatch.setattr(lines, "_is_near", lambda ip: False)
