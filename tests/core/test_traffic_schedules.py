"""Random minutes of real traffic: slow, failing, hanging and paused instances, pools and operators, and our own restarts, in any order.

At every beat: no more out than the guards allow, nobody out by soft evidence beyond its budget, no operator's word touched. In the end,
when all is well again for long enough, nobody is out.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from lbplugins.values import Axis, Operator, Serve
from sidecar.core.guard import budget
from sidecar.core.model import Adopted, Strength
from sidecar.core.policy import Guards
from tests.core.crowd import Crowd, failing, lognormal, pausing, times
from tests.core.lab import Lab, good, hangs, refused, status_500

GUARDS = Guards()


class Minutes:
    """One schedule. `hands`: the operator's word on each instance, which must stand as he left it."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.lab = Lab(self.dice.choice((2, 3, 5, 8)))
        self.lab.run(12.0)
        self.crowd = Crowd(self.lab, self.dice.choice((30.0, 100.0, 200.0)), seed, forgeable=self.dice.random() < 0.3)
        self.lab.run(5.0)
        self.hands: dict[int, Operator] = {}
        self.story: list[str] = []

    def play(self, steps: int) -> None:
        acts: tuple[Callable[[int], str], ...] = (
            self.slow, self.wrong, self.hang, self.crash, self.sick_probe, self.pause, self.well, self.well, self.all_slow, self.all_wrong,
            self.drain, self.ready, self.restart,
        )  # fmt: skip
        for _ in range(steps):
            i = self.dice.randint(1, self.lab.n)
            self.story.append(f"{self.lab.now:.2f} {i}: {self.dice.choice(acts)(i)}")
            self.run(self.dice.choice((0.3, 1.0, 4.0)))
        for i in range(1, self.lab.n + 1):
            self.well(i)
            self.ready(i)
        self.run(5.0)
        self.crowd.rate, self.crowd.beat_s = 10.0, 0.5
        self.lab.run(700.0)
        assert self.lab.out() == [], self.told()

    def run(self, seconds: float) -> None:
        end = self.lab.now + seconds
        while self.lab.now < end:
            self.lab.run(0.05)
            self.check()

    def check(self) -> None:
        counted = [i for i in range(1, self.lab.n + 1) if self.lab.seen(i).operator is Operator.READY]
        ours = [i for i in counted if self.lab.seen(i).ours.serve is Serve.NONE]
        soft = [i for i in ours if (e := self.lab.instance(i).ejection) is not None and e.strength is Strength.SOFT and not e.returning]
        n = len(counted)
        assert not n or len(ours) <= max(budget(n, Strength.HARD, GUARDS), self.allowed_before), self.told()
        assert len(soft) <= max(budget(self.lab.n, Strength.SOFT, GUARDS), 1), self.told()
        assert all(self.lab.seen(i).operator is word for i, word in self.hands.items()), self.told()
        assert not any(change.on is Axis.OPERATOR for _, change in self.lab.written), self.told()
        self.allowed_before = len(ours)

    allowed_before = 0
    """Who is out when an operator gives another one back stays out: only a new ejection is ours to answer for."""

    def told(self) -> str:
        events = [f"{e.at:.2f} {e.sentence}" for e in self.lab.events]
        return "\n".join(sorted([*self.story, *events]))

    # ---- what may happen ----

    def slow(self, i: int) -> str:
        self.crowd.conduct[i] = times(self.dice.choice((2.0, 5.0, 20.0)), self.crowd.usual)
        return "slow"

    def wrong(self, i: int) -> str:
        self.crowd.conduct[i] = failing(self.dice.choice((0.05, 0.3, 1.0)), self.crowd.usual)
        return "answers wrongly"

    def hang(self, i: int) -> str:
        self.crowd.conduct[i] = lambda now, dice: (3.0, 504)
        self.lab.answer(i, hangs())
        return "hangs"

    def crash(self, i: int) -> str:
        self.crowd.conduct[i] = lambda now, dice: (0.0003, 503)
        self.lab.answer(i, refused())
        self.lab.nudge(i)
        return "crashes"

    def sick_probe(self, i: int) -> str:
        self.lab.answer(i, status_500())
        return "its probe fails"

    def pause(self, i: int) -> str:
        self.crowd.conduct[i] = pausing(1.0, 0.2, self.crowd.usual)
        return "pauses each second"

    def well(self, i: int) -> str:
        self.crowd.conduct[i] = self.crowd.usual
        self.lab.answer(i, good())
        return "is well"

    def all_slow(self, i: int) -> str:
        self.crowd.conduct = dict.fromkeys(self.crowd.conduct, times(5.0, lognormal()))
        return "all are slow"

    def all_wrong(self, i: int) -> str:
        self.crowd.conduct = dict.fromkeys(self.crowd.conduct, failing(0.4, lognormal()))
        return "all answer wrongly"

    def drain(self, i: int) -> str:
        self.hands[i] = Operator.DRAINING
        self.lab.set_seen(i, operator=Operator.DRAINING)
        return "drained by hand"

    def ready(self, i: int) -> str:
        self.hands[i] = Operator.READY
        self.lab.set_seen(i, operator=Operator.READY)
        self.allowed_before = self.lab.n
        return "made ready by hand"

    def restart(self, i: int) -> str:
        states = [self.lab.instance(k) for k in range(1, self.lab.n + 1)]
        adopted = Adopted(self.lab.now, tuple(s.ejection for s in states if s.ejection is not None))
        self.lab.start(adopted)
        self.lab._at(self.lab.now, self.crowd._beat)
        return "the sidecar restarts"


@pytest.mark.parametrize("seed", range(6))
def test_random_minutes_keep_every_promise(seed: int) -> None:
    Minutes(seed).play(14)
