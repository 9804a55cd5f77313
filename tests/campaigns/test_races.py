"""Some races of the campaign `races`, on every lever but the agent's, in every moment but chance's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lbplugins.values import Ref
from tests.campaigns.races import BACK, OUT, Moment, Tally, ring
from tests.plugins.haproxy.lab import Fleet

pytestmark = pytest.mark.real
MOMENTS = (Moment.LOOK, Moment.WRITE, Moment.PROOF)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet("2.8")
    yield fleet
    fleet.close()


@pytest.mark.parametrize("pool", ["b", "d", "e"])
async def test_his_word_outlasts_ours_whenever_he_speaks(fleet: Fleet, pool: str) -> None:
    tally = Tally()
    async with ring(fleet, 1, tally) as one:
        for moment in MOMENTS:
            for word, want in (("maint", OUT), ("drain", BACK)):
                await one.race(Ref(pool, "x"), word, moment, want)

    assert tally.faults == []
    assert sum(tally.races.values()) == 6


async def test_his_weight_is_his_whenever_he_speaks(fleet: Fleet) -> None:
    tally = Tally()
    async with ring(fleet, 1, tally) as one:
        for moment in MOMENTS:
            await one.weigh(Ref("e", "x"), moment)

    assert tally.faults == []
    assert len(tally.restored_s) == 1
