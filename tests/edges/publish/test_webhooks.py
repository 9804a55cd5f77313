"""Notices in the shapes of those who take them, and the whole way from a fault to a webhook."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from aiohttp import web

from sidecar.core.samples import Sample
from sidecar.publish import Origin, publishers
from sidecar.publish import alarm as looking
from sidecar.publish.ecs import alert
from sidecar.publish.notices import BLIND, DRIFT, FAILING_OPEN, OUT, Condition, Notice
from sidecar.publish.options import PublishOptions
from sidecar.publish.webhook import Shape, keyed, messages, pagerduty, slack, teams
from sidecar.store.decisions import Decisions
from tests.core.lab import good, refused
from tests.edges.publish.posted import Posted
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene

WHEN = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
SINCE = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
EJECTED = Notice(
    Condition("shop", "10.0.0.5:8080", OUT), "shop/10.0.0.5:8080 ejected: refused 4 times", SINCE, runbook="https://wiki.example/shop"
)
OPEN = Notice(Condition("shop", "", FAILING_OPEN), "shop fails open", SINCE)
OVER = Notice(OPEN.condition, OPEN.sentence, SINCE, is_over=True)


def test_slack_gets_one_text() -> None:
    assert slack([OPEN, EJECTED, OVER], "lb-1") == {
        "text": "🔴 shop fails open\n"
        "🔵 shop/10.0.0.5:8080 ejected: refused 4 times · undo: lb-sidecar ready shop/10.0.0.5:8080 · <https://wiki.example/shop|runbook>\n"
        "🟢 over: shop fails open\n"
        "lb-sidecar on lb-1"
    }


def test_teams_gets_a_card() -> None:
    card = teams([OPEN], "lb-1")["attachments"][0]

    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in card["content"]["body"]] == ["🔴 shop fails open", "lb-sidecar on lb-1"]


def test_markup_in_a_sentence_stays_text() -> None:
    hostile = Notice(OPEN.condition, "<!channel> *all* [x](http://evil) & `y`", SINCE)

    assert slack([hostile], "lb-1")["text"].startswith("🔴 &lt;!channel&gt; *all* [x](http://evil) &amp; `y`")
    assert teams([hostile], "lb-1")["attachments"][0]["content"]["body"][0]["text"] == (
        r"🔴 \<!channel\> \*all\* \[x\](http://evil) & \`y\`"
    )


def test_pagerduty_gets_an_event_that_its_end_resolves() -> None:
    assert pagerduty(EJECTED, "lb-1") == {
        "event_action": "trigger",
        "dedup_key": "lb-sidecar/shop/10.0.0.5:8080/out",
        "payload": {
            "summary": "shop/10.0.0.5:8080 ejected: refused 4 times",
            "source": "lb-1",
            "severity": "info",
            "timestamp": "2026-03-01T12:00:00.000Z",
            "component": "10.0.0.5:8080",
            "group": "shop",
            "class": "out",
            "custom_details": {"undo": "lb-sidecar ready shop/10.0.0.5:8080"},
        },
        "links": [{"href": "https://wiki.example/shop", "text": "runbook"}],
    }
    assert pagerduty(OVER, "lb-1") == {"event_action": "resolve", "dedup_key": pagerduty(OPEN, "lb-1")["dedup_key"]}
    assert json.loads(keyed(messages(Shape.PAGERDUTY, [OVER], "lb-1", SINCE)[0], "the-key"))["routing_key"] == "the-key"


def test_ecs_gets_an_alert() -> None:
    document = alert(EJECTED, "lb-1", WHEN)

    assert document["event"] == {
        "kind": "alert",
        "dataset": "lbsidecar.notice",
        "id": "lb-sidecar/shop/10.0.0.5:8080/out",
        "action": "out",
        "category": ["network"],
        "type": ["start"],
        "start": "2026-03-01T12:00:00.000Z",
        "reference": "https://wiki.example/shop",
    }
    assert document["server"]["port"] == 8080
    assert document["lbsidecar"]["undo"] == "lb-sidecar ready shop/10.0.0.5:8080"
    assert alert(Notice(Condition("", "edge", DRIFT), "x", SINCE), "lb-1", WHEN)["lbsidecar"]["balancer"] == "edge"
    assert "server" not in alert(Notice(Condition("", "", BLIND), "x", SINCE), "lb-1", WHEN)


def test_a_message_has_an_end() -> None:
    many = [Notice(Condition("shop", f"10.0.0.{i}:80", OUT), "x" * 5000, SINCE) for i in range(100)]

    text = slack(many, "lb-1")["text"]

    assert len(text) < 25_000
    assert "and 80 more" in text


async def test_a_fault_is_told_to_those_whom_it_concerns_and_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LOOK_S", 0.05)  # how often is looked is a number, no behaviour of ours is replaced
    monkeypatch.setattr(looking, "FRESH_S", 0.0)
    monkeypatch.setenv("PAGER_KEY", "0123456789abcdef")
    receiver = await Posted(accepted).start()
    decisions = Decisions(None, 0)
    scene = Scene(3)
    scene.run(30.0)
    clock = [SINCE]
    webhooks = {
        "pager": {"shape": "pagerduty", "url": receiver.url + "/pager", "key": "env:PAGER_KEY", "at_least": "note"},
        "chat": {"shape": "slack", "url": receiver.url + "/chat", "labels": {"team": "web"}},
        "others": {"shape": "slack", "url": receiver.url + "/others", "services": ["cart"]},
        "asleep": {"shape": "slack", "url": receiver.url + "/asleep", "at_least": "page"},
    }
    looked = 0

    def samples() -> list[Sample]:
        nonlocal looked
        looked += 1
        return scene.samples()

    async def all_look() -> None:
        wanted = looked + 4 * len(webhooks)
        await until(lambda: looked >= wanted)

    origin = Origin(
        samples,
        decisions,
        labels=lambda: {"shop": {"team": "web"}},
        runbooks=lambda: {"shop": "https://wiki.example/shop"},
        wall=lambda: clock[0],
        host="lb-1",
    )
    pager, chat, others, asleep = publishers(PublishOptions.model_validate({"webhooks": webhooks}), origin)

    async with running(pager.run), running(chat.run), running(others.run), running(asleep.run):
        scene.answer(2, refused())
        scene.run(3.0)
        decisions.append([event for each in scene.decisions for event in each.events], lambda _: WHEN)
        await all_look()
        clock[0] += 31.0
        await until(lambda: pager.count().sent == 1 and chat.count().sent == 1)
        scene.answer(2, good())
        scene.run(60.0)
        await all_look()
        clock[0] += 31.0
        await until(lambda: pager.count().sent == 2 and chat.count().sent == 2)
    await receiver.stop()

    bodies = [json.loads(body) for body in receiver.bodies]
    events = [body for body in bodies if "event_action" in body]
    texts = [body["text"] for body in bodies if "text" in body]
    assert [(each["event_action"], each["dedup_key"]) for each in events] == [
        ("trigger", "lb-sidecar/shop/10.0.0.2:80/out"),
        ("resolve", "lb-sidecar/shop/10.0.0.2:80/out"),
    ]
    assert {each["routing_key"] for each in events} == {"0123456789abcdef"}
    assert "ejected" in events[0]["payload"]["summary"]
    assert events[0]["links"][0]["href"] == "https://wiki.example/shop"
    assert len(texts) == 2
    assert "over" in texts[1]
    assert others.count().sent == asleep.count().sent == 0


async def accepted(request: web.Request, body: bytes) -> web.StreamResponse:
    return web.Response(status=202, text="{}")
