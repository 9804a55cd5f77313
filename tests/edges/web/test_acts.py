"""Commands: what is journaled, what the guards refuse and with which arithmetic, what force does."""

from __future__ import annotations

from datetime import timedelta

import pytest
from yarl import URL

from lbplugins.values import Operator
from sidecar.core.model import Verb
from tests.core.lab import hangs
from tests.edges.web.conftest import Serve, Surface, bearer
from tests.edges.web.desk import warm

ADMIN = bearer("ADMIN")


def path(instance: str, owner: str = "ci", query: str = "") -> str:
    return f"/api/v1/services/shop/instances/{instance}/override/{owner}{query}"


async def drain(surface: Surface, instance: str, **body: object) -> tuple[int, dict[str, object]]:
    async with surface.tcp.put(path(instance), json={"state": "draining", **body}, headers=ADMIN) as answer:
        return answer.status, await answer.json()


async def test_a_drain_reaches_the_balancer_and_is_waited_for(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.put(
        path("s1", query="?wait=60s"), json={"state": "draining", "ttl": "15m", "reason": "2.14"}, headers=ADMIN
    ) as answer:
        done = await answer.json()

    assert (answer.status, done["reached"]) == (200, True)
    assert done["done"] == "shop/10.0.0.1:80 put in draining by token:admin for 900 s: 2.14"
    assert surface.desk.lab.seen(1).operator is Operator.DRAINING
    assert surface.desk.lab.instance(1).overrides["ci"].actor == "token:admin"


async def test_a_wait_that_is_too_short_says_so(serve: Serve) -> None:
    surface = await serve()
    surface.desk.lab.reachable = False
    surface.desk.lab.run(1.5)

    async with surface.tcp.put(path("s1", query="?wait=250ms"), json={"state": "draining"}, headers=ADMIN) as answer:
        assert (answer.status, (await answer.json())["reached"]) == (200, False)


async def test_clearing_gives_it_back(serve: Serve) -> None:
    surface = await serve()
    await drain(surface, "s1")
    surface.desk.lab.run(1)

    async with surface.tcp.delete(path("s1", query="?wait=60s"), headers=ADMIN) as answer:
        assert (answer.status, (await answer.json())["reached"]) == (200, True)

    assert surface.desk.lab.seen(1).operator is Operator.READY


async def test_the_last_one_is_refused_with_the_arithmetic_and_force_passes(serve: Serve) -> None:
    surface = await serve(warm(2, seconds=3.0))
    assert (await drain(surface, "s1"))[0] == 200
    surface.desk.lab.run(1)

    status, told = await drain(surface, "s2")
    forced, _ = await drain(surface, "s2", force=True)
    surface.desk.lab.run(1)

    assert (status, told["hold"]) == (409, "min_healthy")
    assert "0 of 1 of shop would be left in rotation, at least 1 must be" in str(told["error"])
    assert "force" in str(told["cure"])
    assert forced == 200 and surface.desk.lab.seen(2).operator is Operator.DRAINING
    async with surface.tcp.get("/api/v1/decisions?by=token") as answer:
        kinds = [d["kind"] for d in (await answer.json())["decisions"]]
    assert kinds == ["operator", "refused", "operator"]


async def test_a_token_may_not_undo_what_another_said_but_the_operator_may(serve: Serve) -> None:
    surface = await serve()
    assert surface.unix is not None
    await drain(surface, "s1", reason="disk swap")

    async with surface.tcp.put(path("s1"), json={"state": "ready"}, headers=bearer("OTHER")) as answer:
        told = await answer.json()
        assert (answer.status, told["hold"]) == (409, "operator")
        assert "said by token:admin: disk swap" in told["error"]
    async with surface.tcp.delete(path("s1"), headers=bearer("OTHER")) as answer:
        assert answer.status == 409
    async with surface.tcp.put(path("s1", owner="mine"), json={"state": "draining"}, headers=bearer("OTHER")) as answer:
        assert answer.status == 200
    async with surface.unix.delete(path("s1")) as answer:
        assert answer.status == 200

    assert list(surface.desk.lab.instance(1).overrides) == ["mine"]


async def test_until_becomes_the_monotonic_end(serve: Serve) -> None:
    surface = await serve()
    until = surface.desk.wall_of(surface.desk.now()) + timedelta(minutes=5)
    began = surface.desk.now()

    status, told = await drain(surface, "s1", until=until.isoformat())

    assert status == 200, told
    assert surface.desk.commands[-1].until == pytest.approx(began + 300, abs=0.01)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "state: Field required"),
        ({"state": "gone"}, "'ready', 'draining' or 'maintenance'"),
        ({"state": "draining", "tll": "5m"}, "tll: Extra inputs are not permitted"),
        ({"state": "draining", "ttl": "soon"}, "not a duration"),
        ({"state": "draining", "ttl": -1}, "greater than 0"),
        ({"state": "draining", "ttl": True}, "duration with its unit"),
        ({"state": "draining", "ttl": "31d"}, "less than or equal"),
        ({"state": "draining", "ttl": "5m", "until": "2026-03-01T09:00:00Z"}, "two ends"),
        ({"state": "draining", "until": "2026-03-01T09:00:00"}, "no offset"),
        ({"state": "draining", "until": "2020-01-01T00:00:00Z"}, "over already"),
        ({"state": "draining", "reason": "one\nforged line"}, "one line of printable text"),
        ({"state": "draining", "reason": "\x1b[31mred"}, "one line of printable text"),
        ({"state": "draining", "reason": "x" * 501}, "at most 500"),
        ([], "the body: Input should be an object"),
    ],
)
async def test_a_wrong_body_is_told_and_does_nothing(serve: Serve, body: object, word: str) -> None:
    surface = await serve()

    async with surface.tcp.put(path("s1"), json=body, headers=ADMIN) as answer:
        told = await answer.json()

    assert answer.status == 400 and word in told["error"], told
    assert surface.desk.commands == []


@pytest.mark.parametrize("owner", ["%20", "a%0ab", "-x", "x" * 65, "a%2Fb"])
async def test_an_owner_is_a_plain_word(serve: Serve, owner: str) -> None:
    surface = await serve()

    async with surface.tcp.put(URL(surface.base + path("s1", owner), encoded=True), json={"state": "draining"}, headers=ADMIN) as answer:
        assert answer.status == 400
        assert "letters, digits" in (await answer.json())["cure"]


async def test_what_is_not_json_is_not_taken(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.put(path("s1"), data={"state": "draining"}, headers=ADMIN) as answer:
        assert (answer.status, surface.desk.commands) == (415, [])
    async with surface.tcp.put(path("s1"), data=b"{nope", headers={**ADMIN, "Content-Type": "application/json"}) as answer:
        assert answer.status == 400
    deep = b"[" * 30_000
    async with surface.tcp.put(path("s1"), data=deep, headers={**ADMIN, "Content-Type": "application/json"}) as answer:
        assert answer.status == 400


async def test_freeze_is_seen_and_ended(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.put("/api/v1/freeze?service=shop", json={"ttl": "1h", "reason": "sale"}, headers=ADMIN) as answer:
        assert answer.status == 200
    async with surface.tcp.get("/api/v1/services/shop") as answer:
        freeze = (await answer.json())["freeze"]
    async with surface.tcp.delete("/api/v1/freeze", headers=ADMIN) as answer:
        wrong = (answer.status, (await answer.json())["cure"])
    async with surface.tcp.delete("/api/v1/freeze?service=shop", headers=ADMIN) as answer:
        assert answer.status == 200

    assert (freeze["actor"], freeze["reason"], freeze["service"]) == ("token:admin", "sale", "shop")
    assert wrong == (404, "frozen: service=shop")
    assert surface.desk.world.freezes == {}


async def test_release_brings_back_and_freezes(serve: Serve) -> None:
    desk = warm()
    desk.lab.answer(1, hangs())
    desk.lab.run(2)
    surface = await serve(desk)
    assert desk.lab.out() == [1]

    async with surface.tcp.post("/api/v1/release", json={"reason": "handing over"}, headers=ADMIN) as answer:
        assert answer.status == 200
    desk.lab.run(2)

    assert desk.lab.out() == []
    assert [c.verb for c in desk.commands] == [Verb.RELEASE] and "" in desk.world.freezes


async def test_a_refused_reload_keeps_the_old_and_lists_the_problems(serve: Serve) -> None:
    surface = await serve()
    surface.desk.problems = ["lb-sidecar.yaml:3: unknown key `blancer`: did you mean `balancer`?"]

    async with surface.tcp.post("/api/v1/reload", headers=ADMIN) as answer:
        assert (answer.status, (await answer.json())["problems"]) == (409, surface.desk.problems)


async def test_adopt_knows_the_pool_the_difference_and_the_actor(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.get("/api/v1/adopt?pool=edge/shop&diff=1") as answer:
        assert (await answer.json())["text"] == "edge/shop: s1 is out by nobody we know"
    async with surface.tcp.post("/api/v1/adopt?pool=edge/shop", headers=ADMIN) as answer:
        assert answer.status == 200

    assert surface.desk.adopted == [("edge", "shop", True, "anonymous"), ("edge", "shop", False, "token:admin")]
