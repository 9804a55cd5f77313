"""Holds what is seen against what a scenario expects, in either world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.scenarios.scenario import Expectation, Scenario
from tests.scenarios.words import Sentence

SHOWN = 25
"""So many of the last events stand in a verdict."""


class World(Protocol):
    """What the judge may ask of a world. `service/sN` names an instance."""

    def is_true(self, state: Sentence, who: str) -> bool | None:
        """Is this so of this instance (of all there is, if `who` is "")? None = it cannot be told at this moment."""

    def story(self) -> list[str]:
        """What was said so far, oldest first."""


class BrokenExpectation(AssertionError):
    """Something expected did not happen, or something else did."""


@dataclass(slots=True)
class _Open:
    """An expectation that can still be met or broken. `met_at`: when a `by` came true."""

    what: Expectation
    since: float
    deadline: float
    who: tuple[str, ...]
    met_at: float | None = None
    is_seen: bool = False


class Judge:
    """Looks on from second 0 to the end. `tolerance_s` is added to every deadline, and to every moment from which something must hold."""

    def __init__(self, scenario: Scenario, world: World, tolerance_s: float = 0.0) -> None:
        self._world, self._scenario = world, scenario
        self._open = [self._opened(each, tolerance_s) for each in scenario.expect]
        self.measured: dict[str, float] = {}
        """Each `by`, and how many seconds after the step before it that came true."""

    def _opened(self, what: Expectation, tolerance_s: float) -> _Open:
        who = self._scenario.resolve(what.state) or ("",)
        if what.form == "by":
            before = [step.at for step in self._scenario.timeline if step.at < what.ends]
            return _Open(what, max(before, default=0.0), what.ends + tolerance_s, who)
        begins = what.begins + tolerance_s if what.form != "never" and what.begins > 0.0 else what.begins
        return _Open(what, begins, what.ends, who)

    def look(self, now: float) -> None:
        """At everything that is due at this second; BrokenExpectation says what is not as it should be."""
        for each in self._open:
            if each.met_at is not None or not (each.since < now or each.since == 0.0):
                continue
            if each.what.form == "by":
                self._look_for(each, now)
            elif now < each.deadline:
                self._look_after(each, now)

    def _look_for(self, each: _Open, now: float) -> None:
        if now > each.deadline:
            self._broken(each, now, "it did not come true")
        if all(self._world.is_true(each.what.state, who) for who in each.who):
            each.met_at = now
            self.measured[str(each.what)] = now - each.since

    def _look_after(self, each: _Open, now: float) -> None:
        seen = [(who, self._world.is_true(each.what.state, who)) for who in each.who]
        each.is_seen |= all(is_true is not None for _, is_true in seen)
        for who, is_true in seen:
            if is_true is (each.what.form == "never"):
                self._broken(each, now, f"at {now:.2f} s {who or 'it'} was {'so' if is_true else 'not so'}")

    def close(self, now: float) -> None:
        """The scenario is over."""
        self.look(now)
        for each in self._open:
            if each.what.form == "by" and each.met_at is None:
                self._broken(each, now, "it did not come true")
            if each.what.form != "by" and not each.is_seen:
                self._broken(each, now, "it could never be looked at")

    def _broken(self, each: _Open, now: float, why: str) -> None:
        story = "\n".join(self._world.story()[-SHOWN:])
        raise BrokenExpectation(f"{self._scenario.id} at {now:.2f} s: expected {each.what}\n  but {why}. What was said:\n{story}")
