"""Notices for people: looks every few seconds at what holds, and posts what somebody should hear of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from sidecar.publish.breath import breathing
from sidecar.publish.feed import Origin
from sidecar.publish.notices import Book, Condition, Notice, Severity, condition
from sidecar.publish.options import WebhookOptions
from sidecar.publish.sink import Sink
from sidecar.publish.webhook import messages
from sidecar.store.decisions import Record

LOOK_S = 5.0
FRESH_S = 4.0
REMEMBERED = 1000
"""Entries of the decision log in which we look for the best words."""


class Outlook:
    """What holds now, with the best words for it. One for all webhooks: they look at the same moment's picture."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._conditions: dict[str, Condition] = {}
        self._sentences: dict[str, str] = {}

    async def look(self) -> tuple[Mapping[str, Condition], Mapping[str, str]]:
        """Conditions and sentences by their keys."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now - self._looked_at >= FRESH_S:
                found = [condition(sample) async for sample in breathing(self._origin.samples())]
                self._conditions = {each.key: each for each in found if each is not None}
                self._sentences = self._words() if self._conditions else {}
                self._looked_at = now
        return self._conditions, self._sentences

    def _words(self) -> dict[str, str]:
        """What the decision log says of each condition, the newest."""
        newest: dict[tuple[str, str, str], str] = {}
        for record in reversed(self._origin.decisions.query(limit=REMEMBERED).records):
            newest[_about(record)] = record.sentence
        found = ((key, newest.get((each.service, each.who, each.cause.name))) for key, each in self._conditions.items())
        return {key: sentence for key, sentence in found if sentence}


class Alarm:
    """The feed of one webhook."""

    def __init__(self, sink: Sink, options: WebhookOptions, origin: Origin, outlook: Outlook) -> None:
        self._sink = sink
        self._options = options
        self._origin = origin
        self._outlook = outlook
        self._book = Book()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            conditions, sentences = await self._outlook.look()
            now = self._origin.wall()
            labels, runbooks = self._origin.labels(), self._origin.runbooks()
            mine = [each for each in conditions.values() if self._concerns_us(each, labels)]
            for group in self._book.turn(now, mine, sentences):
                self._sink.offer(messages(self._options.shape, [_with_runbook(each, runbooks) for each in group], self._origin.host, now))

    def _concerns_us(self, each: Condition, labels: Mapping[str, Mapping[str, str]]) -> bool:
        if each.cause.severity < Severity[self._options.at_least.upper()]:
            return False
        if not each.service:
            return True
        if self._options.services is not None and each.service not in self._options.services:
            return False
        return self._options.labels.items() <= labels.get(each.service, {}).items()


def _with_runbook(notice: Notice, runbooks: Mapping[str, str]) -> Notice:
    return replace(notice, runbook=runbooks.get(notice.condition.service, ""))


def _about(record: Record) -> tuple[str, str, str]:
    """The condition that an entry speaks of: service, whom, cause."""
    if record.kind == "ejected":
        return record.service, record.instance, "out"
    if record.by.startswith("hold:"):
        return record.service, "", record.by.removeprefix("hold:")
    if record.kind == "self":
        return "", "", "blind" if record.sentence.startswith("blind") else "journal"
    return record.service, record.instance, record.kind


__all__ = ["Alarm", "Outlook"]
