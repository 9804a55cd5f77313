"""A fault that all share, and its end: whoever recovers first says nothing against those that were not asked since."""

from __future__ import annotations

import pytest

from tests.core.lab import Answer, Lab, good, hangs, refused

WARM = 12.0


@pytest.mark.parametrize("fault", [hangs(), refused()])
@pytest.mark.parametrize("lasting", [0.7, 1.3, 3.0, 3.2, 7.1])
def test_when_a_common_fault_ends_nobody_is_ejected(fault: Answer, lasting: float) -> None:
    lab = Lab()
    lab.run(WARM)
    for i in range(1, 5):
        lab.answer(i, fault)
    lab.run(lasting)

    for i in range(1, 5):
        lab.answer(i, good())
    lab.run(5.0)

    assert lab.told("ejected") == [] and lab.written == []


@pytest.mark.parametrize("fault", [hangs(), refused()])
def test_one_that_stays_dead_when_the_others_recover_is_ejected_once_it_was_asked_again(fault: Answer) -> None:
    lab = Lab()
    lab.run(WARM)
    for i in range(1, 5):
        lab.answer(i, fault)
    lab.run(3.0)
    assert lab.out() == []

    for i in range(2, 5):
        lab.answer(i, good())
    lab.run(2.5)

    assert lab.out() == [1]
