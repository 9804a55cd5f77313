"""Every timeline that runs on real processes, on each of its shapes: for `make chaos`, too long for `make test`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.scenarios.real import run
from tests.scenarios.scenario import Scenario, Shape, load_all

CASES = [pytest.param(scenario, shape, id=f"{scenario.id}-{shape}") for scenario in load_all() for shape in scenario.shapes]

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("scenario", "shape"), CASES)
def test_timeline(scenario: Scenario, shape: Shape, record_property: Callable[[str, object], None]) -> None:
    for what, seconds in run(scenario, shape).items():
        record_property(what, seconds)
