"""Every route over a real connection, each answer against its own description."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from yarl import URL

from sidecar.core.model import Reason, Result
from sidecar.web.openapi import document
from sidecar.web.routes import ROUTES, Route
from tests.core.lab import refused
from tests.edges.web.conftest import Serve, bearer
from tests.edges.web.desk import DeskLab, LabDesk, policies, service, warm

S, I = "/api/v1/services/shop", "/api/v1/services/shop/instances/s1"  # noqa: E741
CALLS = [
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/health", None),
    ("GET", "/health/shop", None),
    ("GET", "/health/shop/s1", None),
    ("GET", "/metrics", None),
    ("GET", "/", None),
    ("GET", "/static/app.js", None),
    ("GET", "/api/openapi.json", None),
    ("GET", "/api/v1/services", None),
    ("GET", S, None),
    ("GET", S + "/latency?window=10s&source=probe", None),
    ("GET", S + "/series?step=30s", None),
    ("GET", I, None),
    ("GET", "/api/v1/decisions?service=shop&limit=3", None),
    ("PUT", I + "/override/ci?wait=10s", {"state": "draining", "ttl": "15m", "reason": "2.14"}),
    ("DELETE", I + "/override/ci", None),
    ("PUT", "/api/v1/freeze?service=shop", {"ttl": 60}),
    ("DELETE", "/api/v1/freeze?service=shop", None),
    ("POST", "/api/v1/reload", None),
    ("GET", "/api/v1/adopt?pool=edge/shop&diff=1", None),
    ("POST", "/api/v1/adopt?pool=edge/shop", None),
    ("POST", "/api/v1/release", {"reason": "over"}),
]


def serves(route: Route, method: str, path: str) -> bool:
    wanted, given = route.path.split("/"), path.partition("?")[0].split("/")
    fits = len(wanted) == len(given) and all(w.startswith("{") or w == g for w, g in zip(wanted, given, strict=True))
    return fits and route.method == method


def schema_of(described: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    """The described JSON answer of the route that serves this path."""
    route = next(route for route in ROUTES if serves(route, method, path))
    content = described["paths"][route.path][method.lower()]["responses"]["200"]["content"]
    schema: dict[str, Any] = next(iter(content.values()))["schema"]
    return {**schema, "components": described["components"]} if "$ref" in schema else None


async def test_every_route_answers_as_it_is_described(serve: Serve) -> None:
    surface, described = await serve(), document()

    for method, path, body in CALLS:
        async with surface.tcp.request(method, path, json=body, headers=bearer("ADMIN")) as answer:
            text = await answer.text()
        assert answer.status == 200, (method, path, text)
        if (schema := schema_of(described, method, path)) is not None:
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))

    assert [r for r in ROUTES if r.kind != "events" and not any(serves(r, m, p) for m, p, _ in CALLS)] == []


def test_the_description_is_whole() -> None:
    described = document()
    text = json.dumps(described)
    names = set(described["components"]["schemas"])

    refs = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert refs <= names
    for schema in described["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    operations = [op["operationId"] for methods in described["paths"].values() for op in methods.values()]
    assert len(operations) == len(set(operations)) == len(ROUTES)


async def test_a_service_carries_what_the_contract_names(serve: Serve) -> None:
    desk = warm()
    desk.lab.answer(2, refused())
    desk.lab.run(3)
    surface = await serve(desk)

    async with surface.tcp.get(S) as answer:
        shop = await answer.json()
    s2 = shop["instances"]["s2"]

    assert (shop["status"], shop["mode"]) == ("warn", "act")
    assert shop["counts"] == {"instances": 4, "counted": 4, "in_rotation": 3, "healthy": 3, "ejected": 1}
    assert (s2["instance"], s2["judgement"], s2["operator"], s2["serving"]) == ("10.0.0.2:80", "ejected", "ready", "none")
    assert s2["ejection"]["rule"] == "rule:consecutive" and s2["ejection"]["witnesses"]
    assert (
        "refused" in s2["reason"] and "1 of 4 out, 2 allowed" in s2["reason"] and s2["checks"]["http:/health"]["last_reason"] == "refused"
    )
    assert s2["since"].endswith("Z")


async def test_latency_is_the_contracts_shape_and_silent_below_the_needed_samples(serve: Serve) -> None:
    surface = await serve(warm())

    async with surface.tcp.get(S + "/latency", params={"window": "1m", "source": "probe"}) as answer:
        found = await answer.json()

    s1 = found["instances"]["s1"]
    assert set(found) == {"service", "instances"}
    assert {"count", "p50", "p90", "p95", "p99", "p999"} <= set(found["service"])
    assert [s1[q]["needed"] for q in ("p50", "p90", "p95", "p99", "p999")] == [20, 100, 200, 1000, 10_000]
    for each in (found["service"], s1):
        for q in ("p50", "p90", "p95", "p99", "p999"):
            assert (each[q]["value"] is None) is (each["count"] < each[q]["needed"])
            assert each[q]["samples"] == each["count"]
    assert s1["p50"]["value"] == pytest.approx(0.0005, rel=0.011)


async def test_health_fails_with_503_and_its_own_media_type(serve: Serve) -> None:
    desk = warm()
    for i in range(1, 5):
        desk.lab.answer(i, lambda now, timeout: (Result.FAIL, Reason.STATUS, 0.001))
    desk.lab.run(3)
    surface = await serve(desk)

    async with surface.tcp.get("/health/shop") as answer:
        assert (answer.status, answer.content_type) == (503, "application/health+json")
        assert (await answer.json())["status"] == "fail"
    async with surface.tcp.get("/livez") as answer:
        assert answer.status == 200


async def test_livez_fails_when_the_decision_loop_stands(serve: Serve) -> None:
    surface = await serve()
    surface.desk.frozen_loop_s = 6.0

    async with surface.tcp.get("/livez") as answer:
        assert answer.status == 503
        assert "6.0 s ago" in (await answer.json())["missing"][0]


async def test_readyz_says_what_is_missing(serve: Serve) -> None:
    lab = DeskLab(2)
    lab.reachable = False
    lab.run(0.2)
    surface = await serve(LabDesk(lab))

    async with surface.tcp.get("/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["missing"][0] == "balancer edge is not observed yet: connection refused"


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/api/v1/servces", 404, "did you mean /api/v1/services?"),
        ("GET", "/nowhere/at/all", 404, "/api/openapi.json"),
        ("POST", "/api/v1/services", 405, "use GET"),
        ("GET", "/api/v1/services/shpo", 404, "known: shop"),
        ("GET", "/api/v1/services/shop/instances/s9", 404, "s1 (10.0.0.1:80)"),
        ("GET", "/api/v1/services/shop/instances/s", 409, "s1 (10.0.0.1:80)"),
        ("GET", S + "/latency?window=2m", 400, "10s, 1m, 5m, 1h"),
        ("GET", S + "/latency?widnow=1m", 400, "did you mean `window`?"),
        ("GET", S + "/latency?window=1m&window=5m", 400, "give it once"),
        ("GET", "/api/v1/decisions?limit=0", 400, "1 to 1000"),
        ("GET", "/api/v1/decisions?limit=1e9", 400, "1 to 1000"),
        ("GET", "/api/v1/decisions?since=yesterday", 400, "2026-03-01T08:30:00Z"),
        ("GET", "/api/v1/decisions?since=2026-03-01T08:30:00", 400, "2026-03-01T08:30:00Z"),
        ("GET", "/api/v1/decisions?until=0001-01-01T00:00:00%2B14:00", 400, "calendar"),
        ("GET", "/api/v1/decisions?cursor=zzz", 400, "cursor"),
        ("GET", "/static/../options.py", 404, "openapi"),
        ("GET", "/static/%2e%2e%2foptions.py", 404, "open / for the page"),
        ("POST", "/api/v1/adopt?pool=edge/nix", 404, "BALANCER/POOL"),
        ("POST", "/api/v1/adopt", 404, "BALANCER/POOL"),
    ],
)
async def test_a_wrong_question_gets_json_that_says_what_to_do(serve: Serve, method: str, path: str, status: int, word: str) -> None:
    surface = await serve()

    async with surface.tcp.request(method, URL(surface.base + path, encoded=True), headers=bearer("ADMIN")) as answer:
        told = await answer.json()

    assert answer.status == status, told
    assert word in told["cure"] or word in told["error"], told
    assert set(told) >= {"error", "cure", "status"}


async def test_decisions_are_paged_newest_first(serve: Serve) -> None:
    surface = await serve()

    seen: list[int] = []
    cursor = ""
    while True:
        async with surface.tcp.get("/api/v1/decisions?limit=2" + cursor) as answer:
            page = await answer.json()
        seen += [d["id"] for d in page["decisions"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert len(seen) >= 4 and seen == sorted(seen, reverse=True)


async def test_every_answer_is_safe_for_a_browser(serve: Serve) -> None:
    surface = await serve()

    for path in ("/", "/static/style.css", "/api/v1/services", "/nowhere", "/health", "/metrics"):
        async with surface.tcp.get(path) as answer:
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'"), path
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Set-Cookie" not in answer.headers and "aiohttp" not in answer.headers["Server"].lower()


async def test_hostile_names_stay_text_everywhere(serve: Serve) -> None:
    hostile = "<script>alert(1)</script>\"'\r\n\x1b[31m/..%00"
    lab = DeskLab(1, policies(service(hostile)))
    lab.add(hostile, hostile, "10.1.0.1:80", remark=hostile)
    lab.run(3)
    surface = await serve(LabDesk(lab))

    async with surface.tcp.get("/api/v1/services") as answer:
        assert answer.content_type == "application/json"
        raw = await answer.text()
    async with surface.tcp.get("/health") as answer:
        assert hostile + ":in_rotation" in (await answer.json(content_type=None))["checks"]
    async with surface.tcp.get("/api/v1/events", headers={"Last-Event-ID": "0"}) as answer:
        event = (await answer.content.readuntil(b"data: ")) + await answer.content.readline()

    assert "\r" not in raw and "\x1b" not in raw
    assert json.loads(raw)["services"][hostile]["instances"][hostile]["servers"][0]["remark"] == hostile
    assert b"\r" not in event and b"\x1b" not in event


async def test_head_has_the_headers_and_no_body(serve: Serve) -> None:
    surface = await serve()

    async with surface.tcp.head("/livez") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_an_instance_is_found_by_an_address_with_brackets(serve: Serve) -> None:
    lab = DeskLab(1)
    lab.add("shop", "six", "[2001:db8::1]:8080")
    lab.run(2)
    surface = await serve(LabDesk(lab))

    async with surface.tcp.get("/api/v1/services/shop/instances/[2001:db8::1]:8080") as answer:
        assert (await answer.json())["name"] == "six"
