"""The consecutive and the windowed rule of one check: runs of like outcomes, and the share of bad ones among the last few."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.core.model import Outcome, Reason, Result
from sidecar.core.policy import Rules

FAST = frozenset({Reason.REFUSED, Reason.RESET})
"""Reasons that need fewer repeats: somebody answered, and said no."""
_FAIL, _UNKNOWN = Result.FAIL, Result.UNKNOWN


@dataclass(slots=True)
class Streak:
    """One check of one instance. Owner: its InstanceState; changed by `step` and `clear` only.

    `since`: what was asked before belongs to another life. `verdict_at`: when the failure that made the evidence complete ended; None
    while it is not complete. `last_bad_asked_at`: when the newest failure was asked.
    `window`: (ended, bad) of the last `Rules.window` answers, oldest first.
    """

    since: float = float("-inf")
    good_run: int = 0
    bad_run: int = 0
    fast_run: int = 0
    first_bad_at: float = 0.0
    first_fast_at: float = 0.0
    last_bad_at: float = 0.0
    last_bad_asked_at: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    answers: int = 0
    verdict_at: float | None = None
    rule: str = ""
    window: list[tuple[float, bool]] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """A failure is on record that neither a good answer nor a complete verdict has settled."""
        return self.bad_run > 0 and self.verdict_at is None

    @property
    def failed(self) -> bool:
        """The evidence against the instance is complete by this check."""
        return self.verdict_at is not None


def step(streak: Streak, outcome: Outcome, rules: Rules) -> None:
    """Take one outcome in. Unknown ones, and those asked in another life, are evidence of nothing; the opposite result resets a run."""
    if outcome.result is _UNKNOWN or outcome.started < streak.since:
        return
    bad = outcome.result is _FAIL
    streak.answers += 1
    streak.window.append((outcome.ended, bad))
    if len(streak.window) > rules.window:
        del streak.window[: -rules.window]
    if not bad:
        streak.good_run += 1
        streak.bad_run = streak.fast_run = 0
        if streak.verdict_at is None:
            return
        if streak.rule == "consecutive" or risen(streak, rules) or not _window_bad(streak, outcome.ended, rules):
            streak.verdict_at, streak.rule = None, ""
        return
    _count_bad(streak, outcome)
    if streak.rule != "consecutive" and (rule := _complete(streak, outcome.ended, rules)) not in ("", streak.rule):
        streak.rule, streak.verdict_at = rule, outcome.ended


def clear(streak: Streak, now: float) -> None:
    """Forget all evidence, also that which is still being asked for: a new life, or a time we did not see."""
    streak.since = now
    streak.good_run = streak.bad_run = streak.fast_run = streak.answers = 0
    streak.verdict_at, streak.rule, streak.reason, streak.detail = None, "", None, ""
    streak.window.clear()


def risen(streak: Streak, rules: Rules) -> bool:
    """Enough good answers in a row to come back."""
    return streak.good_run >= rules.rise


def _count_bad(streak: Streak, outcome: Outcome) -> None:
    streak.good_run = 0
    streak.bad_run += 1
    if streak.bad_run == 1:
        streak.first_bad_at = outcome.ended
    if outcome.reason in FAST:
        streak.fast_run += 1
        if streak.fast_run == 1:
            streak.first_fast_at = outcome.ended
    else:
        streak.fast_run = 0
    streak.last_bad_at, streak.last_bad_asked_at = outcome.ended, outcome.started
    streak.reason, streak.detail = outcome.reason, outcome.detail


def _complete(streak: Streak, at: float, rules: Rules) -> str:
    if "consecutive" in rules.off:
        return "window" if _window_bad(streak, at, rules) else ""
    if streak.bad_run >= rules.fall:
        return "consecutive" if not _only_fast_and_close(streak, at, rules) else ""
    if streak.fast_run >= rules.fall_fast and at - streak.first_fast_at >= rules.fast_spread_s:
        return "consecutive"
    return "window" if _window_bad(streak, at, rules) else ""


def _only_fast_and_close(streak: Streak, at: float, rules: Rules) -> bool:
    """A burst of refusals within milliseconds is one moment of a restart, however many we asked."""
    return streak.fast_run == streak.bad_run and at - streak.first_fast_at < rules.fast_spread_s


def _window_bad(streak: Streak, at: float, rules: Rules) -> bool:
    if "window" in rules.off:
        return False
    recent = [bad for when, bad in streak.window if at - when <= rules.window_s]
    return len(recent) >= rules.window and sum(recent) >= rules.window_bad * len(recent)
