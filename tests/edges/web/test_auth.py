"""Who may what: tokens, the unix socket's peer, loopback readers, strangers; Host and Origin."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from lbplugins.values import Address
from sidecar.web.auth import BAD_TOKENS, Gate, Peer
from sidecar.web.options import ApiOptions, SecretError
from sidecar.web.problem import Problem
from tests.edges.web.conftest import SECRETS, TOKEN_OPTIONS, TOKENS, Serve, bearer

OVERRIDE = "/api/v1/services/shop/instances/s1/override/ci"
DRAIN, MAINT, READY = {"state": "draining"}, {"state": "maintenance"}, {"state": "ready"}
BAD = {"Authorization": "Bearer wrong-wrong-wrong-wrong-wrong"}

MATRIX = [
    # way in, headers, method, path, body, status
    ("tcp", {}, "GET", "/api/v1/services", None, 200),
    ("tcp", {}, "GET", "/metrics", None, 200),
    ("tcp", {}, "PUT", OVERRIDE, DRAIN, 401),
    ("tcp", {}, "DELETE", OVERRIDE, None, 401),
    ("tcp", {}, "PUT", "/api/v1/freeze", {}, 401),
    ("tcp", {}, "DELETE", "/api/v1/freeze", None, 401),
    ("tcp", {}, "POST", "/api/v1/reload", None, 401),
    ("tcp", {}, "POST", "/api/v1/adopt?pool=edge/shop", None, 401),
    ("tcp", {}, "POST", "/api/v1/release", {}, 401),
    ("tcp", BAD, "GET", "/api/v1/services", None, 401),
    ("tcp", BAD, "PUT", OVERRIDE, DRAIN, 401),
    ("tcp", {"Authorization": "Basic YTpi"}, "PUT", OVERRIDE, DRAIN, 401),
    ("tcp", bearer("READ"), "GET", "/api/v1/services", None, 200),
    ("tcp", bearer("READ"), "PUT", OVERRIDE, DRAIN, 403),
    ("tcp", bearer("READ"), "PUT", "/api/v1/freeze", {}, 403),
    ("tcp", bearer("READ"), "POST", "/api/v1/reload", None, 403),
    ("tcp", bearer("READ"), "POST", "/api/v1/adopt?pool=edge/shop", None, 403),
    ("tcp", bearer("READ"), "POST", "/api/v1/release", {}, 403),
    ("tcp", bearer("DEPLOY"), "PUT", OVERRIDE, DRAIN, 200),
    ("tcp", bearer("DEPLOY"), "PUT", OVERRIDE, READY, 200),
    ("tcp", bearer("DEPLOY"), "PUT", OVERRIDE, MAINT, 403),
    ("tcp", bearer("DEPLOY"), "PUT", "/api/v1/freeze?service=shop", {}, 200),
    ("tcp", bearer("DEPLOY"), "PUT", "/api/v1/freeze", {}, 403),
    ("tcp", bearer("DEPLOY"), "GET", "/metrics", None, 403),
    ("tcp", bearer("DEPLOY"), "GET", "/api/v1/decisions", None, 403),
    ("tcp", bearer("DEPLOY"), "GET", "/api/v1/decisions?service=shop", None, 200),
    ("tcp", bearer("DEPLOY"), "GET", "/api/v1/services/api", None, 403),
    ("tcp", bearer("DEPLOY"), "POST", "/api/v1/reload", None, 403),
    ("tcp", bearer("ADMIN"), "POST", "/api/v1/reload", None, 200),
    ("tcp", bearer("ADMIN"), "PUT", OVERRIDE, MAINT, 200),
    ("tcp", bearer("ADMIN"), "POST", "/api/v1/release", {}, 200),
    ("tcp", bearer("ADMIN"), "POST", "/api/v1/adopt?pool=edge/shop", None, 200),
    ("unix", {}, "PUT", OVERRIDE, MAINT, 200),
    ("unix", {}, "POST", "/api/v1/release", {}, 200),
    ("unix", bearer("READ"), "PUT", OVERRIDE, DRAIN, 403),
    ("unix", BAD, "GET", "/api/v1/services", None, 401),
]


@pytest.mark.parametrize(("way", "headers", "method", "path", "body", "status"), MATRIX)
async def test_rights(serve: Serve, way: str, headers: dict[str, str], method: str, path: str, body: object, status: int) -> None:
    surface = await serve()
    session = getattr(surface, way)

    async with session.request(method, path, json=body, headers=headers) as answer:
        told = await answer.json(content_type=None) if answer.content_type == "application/json" else {}

    assert answer.status == status, told
    if status >= 400:
        assert told["status"] == status and told["error"] and told["cure"]
        assert surface.desk.commands == []
    assert ("WWW-Authenticate" in answer.headers) is (status == 401)


async def test_the_actor_is_the_token_or_the_sockets_user_never_the_body(serve: Serve) -> None:
    surface = await serve()
    assert surface.unix is not None

    async with surface.tcp.put(OVERRIDE, json=DRAIN, headers=bearer("ADMIN")) as answer:
        by_token = (await answer.json())["actor"]
    async with surface.unix.put("/api/v1/services/shop/instances/s2/override/me", json=DRAIN) as answer:
        by_uid = (await answer.json())["actor"]
    async with surface.tcp.put(OVERRIDE, json={**DRAIN, "actor": "operator:root"}, headers=bearer("ADMIN")) as answer:
        assert answer.status == 400

    assert by_token == "token:admin"
    assert by_uid == f"operator:{pwd.getpwuid(os.geteuid()).pw_name}"
    assert [c.actor for c in surface.desk.commands] == [by_token, by_uid]


ASK = """
import json, os, socket, sys
os.setgroups(json.loads(sys.argv[2]))
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"PUT /api/v1/freeze HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
print(s.makefile().readline().split()[1])
"""


@pytest.mark.parametrize(("groups", "status"), [([], "401"), ([54321], "200")])
async def test_another_user_on_the_socket_needs_its_group(serve: Serve, tmp_path: Path, groups: list[int], status: str) -> None:
    if os.geteuid() != 0:  # only root can become somebody else: elsewhere the rule itself is asked
        peer = Peer("uid:65534", uid=65534, gids=frozenset({65534, *groups}), owner=os.geteuid(), group=54321)
        assert peer.is_trusted is (status == "200")
        return
    surface = await serve()
    path = surface.web.options.socket
    assert path is not None
    os.chown(path, 0, 54321)
    os.chmod(path, 0o666)
    for folder in path.parents:
        if folder.is_relative_to(Path("/")) and not os.stat(folder).st_mode & 0o001:
            os.chmod(folder, os.stat(folder).st_mode | 0o011)

    command = [sys.executable, "-I", "-c", ASK, str(path), str(groups)]
    asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)

    assert asked.stdout.strip() == status, asked.stderr


# ---- the gate itself ----


def gate(**options: object) -> Gate:
    return Gate(ApiOptions.model_validate({"listen": Address("127.0.0.1", 8642), "tokens": TOKEN_OPTIONS, **options}), SECRETS)


LOCAL, STRANGER = Peer("127.0.0.1", is_loopback=True), Peer("192.0.2.7")


async def test_another_machine_without_a_token_may_not_even_read() -> None:
    caller = await gate().caller(None, STRANGER, 0.0)

    assert caller.may == frozenset()


@pytest.mark.parametrize(
    ("peer", "is_trusted"),
    [
        (Peer("u", uid=0, gids=frozenset({0}), owner=990, group=990), True),
        (Peer("u", uid=990, gids=frozenset({1}), owner=990, group=989), True),
        (Peer("u", uid=1000, gids=frozenset({1000, 989}), owner=990, group=989), True),
        (Peer("u", uid=1000, gids=frozenset({1000}), owner=990, group=989), False),
        (Peer("u", uid=1000, gids=frozenset(), owner=None, group=None), False),
        (LOCAL, False),
    ],
)
def test_whom_the_socket_vouches_for(peer: Peer, is_trusted: bool) -> None:
    assert peer.is_trusted is is_trusted


async def test_after_ten_bad_tokens_a_peers_bad_ones_are_turned_away_for_a_minute_and_no_right_one_ever() -> None:
    door = gate()
    for at in range(BAD_TOKENS):
        with pytest.raises(Problem) as caught:
            await door.caller("Bearer nonsense", LOCAL, float(at))
        assert caught.value.status == 401

    good = f"Bearer {TOKENS['READ']}"
    with pytest.raises(Problem) as caught:
        await door.caller("Bearer nonsense", LOCAL, 10.0)
    with pytest.raises(Problem) as elsewhere:
        await door.caller("Bearer nonsense", Peer("192.0.2.8"), 10.0)
    with pytest.raises(Problem) as later:
        await door.caller("Bearer nonsense", LOCAL, 61.0)

    assert caught.value.status == 429 and caught.value.retry_after_s == 51
    assert (elsewhere.value.status, later.value.status) == (401, 401)
    assert (await door.caller(good, LOCAL, 10.0)).actor == "token:read"


async def test_429_says_when_to_come_back(serve: Serve) -> None:
    surface = await serve()

    statuses = []
    for _ in range(BAD_TOKENS + 1):
        async with surface.tcp.get("/api/v1/services", headers=BAD) as answer:
            statuses.append(answer.status)

    assert statuses == [401] * BAD_TOKENS + [429]
    assert 0 < int(answer.headers["Retry-After"]) <= 61


async def test_who_is_remembered_for_bad_tokens_is_bounded() -> None:
    door = gate()
    for number in range(5000):
        with pytest.raises(Problem):
            await door.caller("Bearer nonsense", Peer(f"peer{number}"), 0.0)

    assert len(door._bad) == 4096


@pytest.mark.parametrize("secret", ["short-but-8", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"])
def test_a_weak_secret_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(SecretError) as caught:
        Gate(ApiOptions.model_validate({"tokens": {"ci": {"secret": "env:CI"}}}), {"CI": secret})

    assert "weaker than 128 bits" in str(caught.value) and "openssl rand" in str(caught.value)
    assert secret not in str(caught.value)


async def test_new_tokens_are_taken_over_and_bad_ones_leave_the_old() -> None:
    door = gate()
    new = ApiOptions.model_validate({"tokens": {"ci": {"secret": "env:CI"}}})

    with pytest.raises(SecretError):
        door.replace(new, {"CI": "too-weak"})
    before = await door.caller(f"Bearer {TOKENS['READ']}", LOCAL, 0.0)
    door.replace(new, {"CI": TOKENS["OTHER"]})
    after = await door.caller(f"Bearer {TOKENS['OTHER']}", LOCAL, 0.0)

    assert (before.actor, after.actor) == ("token:read", "token:ci")
    with pytest.raises(Problem):
        await door.caller(f"Bearer {TOKENS['READ']}", LOCAL, 0.0)


# ---- Host and Origin ----


@pytest.mark.parametrize(
    ("listen", "hosts", "host", "passes"),
    [
        ("127.0.0.1", [], "127.0.0.1:8642", True),
        ("127.0.0.1", [], "localhost", True),
        ("127.0.0.1", [], "LOCALHOST:1", True),
        ("127.0.0.1", [], "[::1]:8642", True),
        ("127.0.0.1", [], "attacker.example", False),
        ("127.0.0.1", [], "127.0.0.1.attacker.example:8642", False),
        ("127.0.0.1", [], "attacker.example@127.0.0.1.example", False),
        ("127.0.0.1", [], "10.0.0.9", False),
        ("127.0.0.1", [], "", False),
        ("127.0.0.1", [], "[::1", False),
        ("127.0.0.1", ["lb.example"], "lb.example:443", True),
        ("127.0.0.1", ["lb.example"], "lb.example.", True),
        ("127.0.0.1", ["lb.example"], "sub.lb.example", False),
    ],
)
def test_only_known_hosts_are_answered(listen: str, hosts: list[str], host: str, passes: bool) -> None:
    door = gate(listen=Address(listen, 8642), hosts=hosts)

    if passes:
        door.check_host(host, LOCAL)
    else:
        with pytest.raises(Problem) as caught:
            door.check_host(host, LOCAL)
        assert caught.value.status == 421


@pytest.mark.parametrize(("host", "passes"), [("192.0.2.1:8642", True), ("[2001:db8::1]:8642", True), ("attacker.example", False)])
def test_listening_everywhere_answers_to_any_ip_but_to_no_foreign_name(host: str, passes: bool) -> None:
    door = gate(listen=Address("0.0.0.0", 8642), tls={"cert": "/x", "key": "/x"})

    if passes:
        door.check_host(host, STRANGER)
    else:
        with pytest.raises(Problem):
            door.check_host(host, STRANGER)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "own"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "attacker.example"}, 421),
    ],
)
async def test_a_write_from_another_origin_is_refused_even_with_a_token(serve: Serve, headers: dict[str, str], status: int) -> None:
    surface = await serve()
    sent = {name: surface.base if value == "own" else value for name, value in headers.items()}

    async with surface.tcp.put("/api/v1/freeze", json={}, headers={**bearer("ADMIN"), **sent}) as answer:
        assert answer.status == status

    assert len(surface.desk.commands) == (status == 200)


async def test_reading_with_a_foreign_host_is_refused(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.get("/api/v1/services", headers={"Host": "rebound.example"}) as answer:
        assert answer.status == 421
        assert "api.hosts" in (await answer.json())["cure"]
