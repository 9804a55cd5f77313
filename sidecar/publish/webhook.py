"""Notices in the shapes that Slack, Teams and PagerDuty take, or as an ECS document. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from enum import StrEnum

from sidecar.publish.ecs import Json, alert
from sidecar.publish.feed import utc
from sidecar.publish.notices import Notice, Severity
from sidecar.store.decisions import Record, stamp

MAX_TEXT = 1000
"""Characters of one sentence at most."""
MAX_NOTICES = 20
"""Notices of one message at most; the others are counted in its last line."""
_MARKS = {Severity.PAGE: "🔴", Severity.WARNING: "🟠", Severity.NOTE: "🔵"}
_PAGERDUTY = {Severity.PAGE: "critical", Severity.WARNING: "warning", Severity.NOTE: "info"}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~])")


class Shape(StrEnum):
    """Whose language a webhook speaks."""

    SLACK = "slack"
    TEAMS = "teams"
    PAGERDUTY = "pagerduty"
    ECS = "ecs"


def messages(shape: Shape, group: Sequence[Notice], host: str, when: float) -> list[bytes]:
    """The bodies for the notices of one service; the PagerDuty key is put in by `keyed`."""
    match shape:
        case Shape.SLACK:
            found = [slack(group, host)]
        case Shape.TEAMS:
            found = [teams(group, host)]
        case Shape.PAGERDUTY:
            found = [pagerduty(notice, host) for notice in group]
        case Shape.ECS:
            found = [alert(notice, host, utc(when)) for notice in group]
    return [json.dumps(each, ensure_ascii=True, separators=(",", ":")).encode("ascii") for each in found]


def slack(group: Sequence[Notice], host: str) -> Json:
    """An incoming webhook's message; what Slack would read as markup is text."""
    return {"text": "\n".join(_lines(group, host, _slack_text, "<{}|runbook>"))}


def teams(group: Sequence[Notice], host: str) -> Json:
    """A card for a Teams workflow that posts to a channel."""
    blocks = [{"type": "TextBlock", "wrap": True, "text": line} for line in _lines(group, host, _markdown_text, "[runbook]({})")]
    card = {"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4", "body": blocks}
    return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}]}


def pagerduty(notice: Notice, host: str) -> Json:
    """An event of Events API v2, without its routing key."""
    event: Json = {"event_action": "resolve" if notice.is_over else "trigger", "dedup_key": notice.condition.key[:255]}
    if notice.is_over:
        return event
    event["payload"] = {
        "summary": notice.sentence[:1024],
        "source": host,
        "severity": _PAGERDUTY[notice.severity],
        "timestamp": stamp(utc(notice.since)),
        "component": notice.condition.who,
        "group": notice.condition.service,
        "class": notice.condition.cause.name,
        "custom_details": {"undo": notice.undo} if notice.undo else {},
    }
    if notice.runbook:
        event["links"] = [{"href": notice.runbook, "text": "runbook"}]
    return event


def keyed(body: bytes, key: str) -> bytes:
    """A PagerDuty event with the routing key, which is read when it is sent."""
    return json.dumps({"routing_key": key, **json.loads(body)}).encode("ascii")


def graphite_event(record: Record) -> bytes:
    """An annotation for graphite-web's `/events/`."""
    tags = ["lbsidecar", record.kind, *filter(None, (record.service,))]
    data = {name: value for name, value in record.to_json().items() if name in ("by", "instance", "enforced")}
    event = {"what": record.sentence, "tags": [_tag(tag) for tag in tags], "data": json.dumps(data), "when": int(record.when.timestamp())}
    return json.dumps(event).encode("ascii")


def _tag(text: str) -> str:
    """graphite-web parts tags at blanks."""
    return re.sub(r"[^\w.:-]", "_", text)


def _lines(group: Sequence[Notice], host: str, safe: Callable[[str], str], link: str) -> list[str]:
    lines = []
    for notice in group[:MAX_NOTICES]:
        mark = "🟢 over: " if notice.is_over else f"{_MARKS[notice.severity]} "
        undo = f" · undo: {safe(notice.undo)}" if notice.undo else ""
        runbook = f" · {link.format(notice.runbook)}" if notice.runbook else ""
        lines.append(mark + safe(notice.sentence[:MAX_TEXT]) + undo + runbook)
    if len(group) > MAX_NOTICES:
        lines.append(f"and {len(group) - MAX_NOTICES} more")
    return [*lines, safe(f"lb-sidecar on {host}")]


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_text(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


__all__ = ["Shape", "graphite_event", "keyed", "messages", "pagerduty", "slack", "teams"]
