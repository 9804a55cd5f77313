"""What the HAProxy plugin says it may not do, against real sockets of every kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbplugins.haproxy import HAProxy, HAProxyOptions
from tests.plugins.haproxy.lab import VERSIONS, Box, free_port
from tests.plugins.stranger import needs_root, rights_of_nobody

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=VERSIONS)
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    box = Box(request.param, "backend b\n    server x 127.0.0.1:9 weight 100\n")
    box.dir.chmod(0o755)
    yield box
    box.close()


async def rights(*sockets: str, **options: object) -> list[str]:
    return list(await HAProxy(HAProxyOptions.model_validate({"socket": sockets, "timeout": "20s", **options})).rights())


async def test_an_admin_socket_is_all_that_is_needed_and_asking_changes_nothing(box: Box) -> None:
    before = box.cli("show servers state b")

    assert await rights(box.socket, master=box.master_socket) == []
    assert box.cli("show servers state b") == before


async def test_a_lesser_level_is_named_with_the_line_that_mends_it(box: Box) -> None:
    (line,) = await rights(box.user_socket)

    assert "`level user`" in line
    assert f"`stats socket {box.user_socket} mode 660 group haproxy level admin`" in line


async def test_a_lesser_level_is_enough_where_the_agent_check_asks_us(box: Box) -> None:
    assert await rights(box.user_socket, agent=f"127.0.0.1:{free_port()}") == []


async def test_each_of_several_sockets_speaks_for_itself(box: Box) -> None:
    missing = str(box.dir / "none.sock")

    (line,) = await rights(box.socket, missing)

    assert missing in line and "level admin" in line
    assert len(await rights(box.user_socket, missing)) == 2


async def test_an_agent_port_that_is_taken_is_told_and_one_that_is_free_stays_free(box: Box) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (line,) = await rights(box.socket, agent=f"127.0.0.1:{taken.getsockname()[1]}")
    assert "cannot listen there" in line

    port = free_port()
    assert await rights(box.socket, agent=f"127.0.0.1:{port}", traffic={"syslog": f"127.0.0.1:{port}"}) == []
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


async def test_an_open_plugin_does_not_find_its_own_listeners_in_the_way(box: Box) -> None:
    port = free_port()
    options = {"socket": box.socket, "agent": f"127.0.0.1:{port}", "traffic": {"syslog": f"127.0.0.1:{port}"}, "timeout": "20s"}
    plugin = HAProxy(HAProxyOptions.model_validate(options))
    await plugin.open()
    try:
        assert await plugin.rights() == []
    finally:
        await plugin.aclose()


async def test_a_log_address_that_is_taken_is_told(box: Box) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        (line,) = await rights(box.socket, traffic={"syslog": f"127.0.0.1:{taken.getsockname()[1]}"})

    assert line.startswith("traffic: cannot listen")


async def test_a_master_socket_that_is_not_there_is_told(box: Box) -> None:
    (line,) = await rights(box.socket, master=str(box.dir / "no-master.sock"))

    assert line.startswith("master: no socket at")


@needs_root
async def test_nobody_is_told_the_group_to_join(box: Box) -> None:
    os.chmod(box.socket, 0o600)

    (line,) = await rights_of_nobody("lbplugins.haproxy", "HAProxy", {"socket": box.socket})

    assert "nobody may not open" in line and "mode 600" in line
    assert f"`stats socket {box.socket} mode 660 group haproxy level admin`" in line
    assert "`usermod -aG haproxy nobody`" in line


@needs_root
async def test_with_a_group_on_the_socket_joining_it_is_enough(box: Box) -> None:
    os.chown(box.socket, 0, 33)
    os.chmod(box.socket, 0o660)
    try:
        (line,) = await rights_of_nobody("lbplugins.haproxy", "HAProxy", {"socket": box.socket})
    finally:
        os.chmod(box.socket, 0o600)
        os.chown(box.socket, 0, 0)

    assert "`usermod -aG www-data nobody`" in line and "stats socket" not in line


@needs_root
async def test_a_folder_that_is_shut_is_named(box: Box) -> None:
    box.dir.chmod(0o700)
    try:
        (line,) = await rights_of_nobody("lbplugins.haproxy", "HAProxy", {"socket": box.socket})
    finally:
        box.dir.chmod(0o755)

    assert f"`chmod o+x {box.dir}`" in line


@needs_root
async def test_nobody_with_an_open_admin_socket_lacks_nothing(box: Box) -> None:
    os.chmod(box.socket, 0o666)
    try:
        assert await rights_of_nobody("lbplugins.haproxy", "HAProxy", {"socket": box.socket}) == []
    finally:
        os.chmod(box.socket, 0o600)


async def test_a_stopped_haproxy_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)

    (line,) = await rights(path)

    assert "nobody listens" in line and "start it" in line
