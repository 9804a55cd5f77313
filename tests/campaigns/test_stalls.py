"""One scene of the campaign `stalls`; others are in `tests/system/test_hostile_*`."""

from __future__ import annotations

import pytest

from tests.campaigns.stalls import held_lock


@pytest.mark.real
def test_an_interpreter_that_stands_still_ejects_nobody_who_is_well() -> None:
    shown = held_lock(1.6, learned=False)

    assert (shown.ejected, shown.faults, shown.wronged) == ([], [], 0)
    assert shown.looks and shown.out_s is not None
