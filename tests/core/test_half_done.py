"""Killed between the write and the proof: nginx then shows an act of ours that waits on disk as 99 %. It is ours to finish, or to undo."""

from __future__ import annotations

import pytest

from lbplugins.values import Address, Serve, Setting
from sidecar.core.model import Adopted, Ejection, Instance
from tests.core.lab import Answer, Lab, good, refused

WARM = 12.0
WAITING = Setting(Serve.FULL, 99)


@pytest.mark.parametrize(("answer", "out"), [(good(), []), (refused(), [1])])
def test_what_waits_on_disk_is_adopted_after_our_restart(answer: Answer, out: list[int]) -> None:
    lab = Lab()
    lab.run(WARM)
    mine = Instance("shop", Address("10.0.0.1", 80))
    lab.answer(1, answer)
    lab.set_seen(1, ours=WAITING)

    lab.start(Adopted(lab.now, (Ejection(mine, lab.now - 1, "rule:consecutive", "2 refused"),)))
    lab.run(0.5)
    assert lab.told("adopted")
    lab.run(8.0)

    assert lab.out() == out
    assert (lab.seen(1).ours == Setting()) is not bool(out)
