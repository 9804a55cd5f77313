"""What people should hear of, when, and how often. Pure: samples and the time go in, notices come out.

Level-triggered: a notice stands for a condition that holds, and ends by itself with it, whoever restarted meanwhile. `key` is service,
instance and cause, so it is equal on all sidecars. What comes together within 30 s for one service is one message; what is page-worthy
waits for nobody; what is over before it was told is not told, the decision log has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from sidecar.core.samples import Sample

GROUP_S = 30.0
DRIFT_S = 30.0
BURST = 6
REFILL_S = 10.0
"""Messages of one receiver: six at once, then one in ten seconds; meanwhile they grow together."""


class Severity(IntEnum):
    """`note`: it was seen to. `warning`: it may get worse. `page`: somebody must look now."""

    NOTE = 0
    WARNING = 1
    PAGE = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a notice is given. `after_s`: how long the condition must have held; `says`: where the decision log has no better word."""

    name: str
    severity: Severity
    after_s: float
    says: str


OUT = Cause("out", Severity.NOTE, 0.0, "{who} is ejected")
NONE_LEFT = Cause("none_left", Severity.PAGE, 2.0, "{who} has no instance in rotation")
FAILING_OPEN = Cause("failing_open", Severity.PAGE, 0.0, "{who} fails open: too few are healthy, doubtful ones get traffic")
FLOOR = Cause("min_healthy", Severity.PAGE, 5.0, "{who} has reached its floor: bad instances stay in rotation")
BUDGET = Cause("max_ejected", Severity.WARNING, 10.0, "{who}: more are bad than may be out")
NO_WITNESS = Cause("no_witness", Severity.WARNING, 10.0, "{who}: all fail alike, nobody is ejected")
DRIFT = Cause("drift", Severity.PAGE, 0.0, "balancer {who} has not shown for 30 s what it was told")
BALANCER = Cause("balancer", Severity.WARNING, 30.0, "balancer {who} does not answer")
BLIND = Cause("blind", Severity.PAGE, 10.0, "lb-sidecar cannot trust its own measurements; nothing is ejected")
JOURNAL = Cause("journal", Severity.PAGE, 10.0, "lb-sidecar cannot write its journal; nothing is ejected")
_HOLDS = {cause.name: cause for cause in (FLOOR, BUDGET, NO_WITNESS)}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that holds now. `who`: address:port, or a balancer's name, or ""."""

    service: str
    who: str
    cause: Cause

    @property
    def key(self) -> str:
        return "/".join(("lb-sidecar", self.service or "-", self.who or "-", self.cause.name))

    @property
    def sentence(self) -> str:
        return self.cause.says.format(who="/".join(filter(None, (self.service, self.who))))


@dataclass(frozen=True, slots=True)
class Notice:
    """One condition, told or over. `since`: seconds since 1970."""

    condition: Condition
    sentence: str
    since: float
    is_over: bool = False
    runbook: str = ""

    @property
    def severity(self) -> Severity:
        return self.condition.cause.severity

    @property
    def undo(self) -> str:
        """One command that takes our act back; "" = there is none to take back."""
        where = f"{self.condition.service}/{self.condition.who}"
        return f"lb-sidecar ready {where}" if self.condition.cause is OUT and not self.is_over else ""


def condition(sample: Sample) -> Condition | None:
    """What a sample shows that somebody should hear of."""
    if not isinstance(sample.value, float):
        return None
    labels = dict(sample.labels)
    service, value = labels.get("service", ""), sample.value
    match sample.name.removeprefix("lbsidecar_"):
        case "instance_judgement" if value and labels["judgement"] == "ejected":
            return Condition(service, labels["address"], OUT)
        case "service_in_rotation" if not value:
            return Condition(service, "", NONE_LEFT)
        case "service_failing_open" if value:
            return Condition(service, "", FAILING_OPEN)
        case "holds" if value and labels["name"] in _HOLDS:
            return Condition(service, "", _HOLDS[labels["name"]])
        case "balancer_drift_age_seconds" if value > DRIFT_S:
            return Condition("", labels["balancer"], DRIFT)
        case "balancer_up" if not value:
            return Condition("", labels["balancer"], BALANCER)
        case "blind" if value:
            return Condition("", "", BLIND)
        case "journal_up" if not value:
            return Condition("", "", JOURNAL)
    return None


class Book:
    """What one receiver has been told and what he is about to be told. Owner: the feed that asks it; changed by `turn` alone."""

    def __init__(self) -> None:
        self._known: dict[str, Notice] = {}
        self._told: set[str] = set()
        self._due_at: dict[str, float] = {}
        self._tokens = float(BURST)
        self._turned_at = 0.0

    def turn(self, now: float, conditions: Iterable[Condition], sentences: Mapping[str, str]) -> list[list[Notice]]:
        """The messages to send now, each of one service; `conditions` are all that hold, `sentences` the best words for their keys."""
        self._tokens = min(BURST, self._tokens + (now - self._turned_at) / REFILL_S) if self._turned_at else self._tokens
        self._turned_at = now
        holding = {each.key: each for each in conditions}
        for key, each in holding.items():
            if key not in self._known or self._known[key].is_over:
                self._known[key] = Notice(each, sentences.get(key, each.sentence), now)
        for key in [key for key in self._known if key not in holding]:
            if key in self._told:
                self._known[key] = replace(self._known[key], is_over=True)
            else:
                del self._known[key]
        return self._messages(now)

    def _messages(self, now: float) -> list[list[Notice]]:
        groups: dict[str, list[Notice]] = {}
        for key, notice in self._known.items():
            if notice.is_over or (key not in self._told and now - notice.since >= notice.condition.cause.after_s):
                groups.setdefault(notice.condition.service, []).append(notice)
        self._due_at = {service: self._due_at.get(service, now + GROUP_S) for service in groups}
        messages = []
        for service, group in groups.items():
            is_urgent = any(notice.severity is Severity.PAGE for notice in group)
            if (is_urgent or now >= self._due_at[service]) and self._tokens >= 1.0:
                self._tokens -= 1.0
                del self._due_at[service]
                self._settle(group)
                messages.append(sorted(group, key=lambda notice: -notice.severity))
        return messages

    def _settle(self, group: Iterable[Notice]) -> None:
        for notice in group:
            key = notice.condition.key
            if notice.is_over:
                self._told.discard(key)
                del self._known[key]
            else:
                self._told.add(key)


__all__ = ["GROUP_S", "Book", "Cause", "Condition", "Notice", "Severity", "condition"]
