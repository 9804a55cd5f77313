"""When the balancer says no to a change: looked at again, tried again, and told only if that was not enough."""

from __future__ import annotations

from collections.abc import Sequence

from lbplugins.values import Change, Serve, Setting
from sidecar.core.model import Applied
from tests.core.lab import Lab, good, refused

WARM = 12.0


class Stubborn(Lab):
    """A balancer that says no to everything."""

    def _apply(self, changes: Sequence[Change]) -> None:
        self.feed(Applied("edge", self.now, (), tuple((change, "permission denied") for change in changes)))
        self._look()


class Broken(Lab):
    """A balancer that can be looked at, but told nothing."""

    def _apply(self, changes: Sequence[Change]) -> None:
        self.tries = getattr(self, "tries", 0) + 1
        self.feed(Applied("edge", self.now, tuple(changes), error="its configuration is broken"))
        self._look()


def test_a_balancer_that_cannot_be_told_is_tried_again_and_told_of_once() -> None:
    lab = Broken()
    lab.run(WARM)
    lab.answer(1, refused())
    lab.nudge(1)

    lab.run(10.0)

    assert lab.tries > 3
    assert [e.sentence for e in lab.told("balancer")] == ["balancer edge could not be told: its configuration is broken"]


def test_a_server_that_moved_between_look_and_write_is_written_again_and_no_news() -> None:
    lab = Lab()
    lab.run(WARM)
    lab.answer(1, refused())
    lab.nudge(1)
    lab.run(0.5)
    assert lab.out() == [1]

    lab.answer(1, good())
    lab.set_seen(1, ours=Setting(Serve.DRAIN), serving=True)  # as HAProxy does when a check under way comes home
    lab.run(1.5)

    assert lab.seen(1).ours.serve is Serve.FULL and lab.told("returned")
    assert lab.told("refused") == []


def test_a_balancer_that_goes_on_refusing_is_told_once_with_its_reason() -> None:
    lab = Stubborn()
    lab.run(WARM)
    lab.answer(1, refused())
    lab.nudge(1)

    lab.run(10.0)

    assert [e.sentence for e in lab.told("refused")] == ["edge/shop/s1 refused: permission denied"]
