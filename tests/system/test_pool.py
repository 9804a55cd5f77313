"""Many instances at once: a rolling restart costs nothing, a common failure ejects nobody."""

from __future__ import annotations

import time

import pytest

from bench.daemon import until
from tests.system.lab import SHAPES, lab

pytestmark = pytest.mark.real

SPACING_S = 2.5
"""Between two restarts; the guards give back one ejection each 2 s."""
BACK_S = 6.0
"""3 s are promised; twice that here, where other tests run beside us."""


@pytest.mark.parametrize("shape", ["haproxy-2.8-none", "haproxy-2.8-agent", "nginx-1.31"])
def test_a_rolling_restart_takes_each_out_once_and_brings_it_back(shape: str) -> None:
    with lab(shape, 5) as box:
        sidecar = box.running()

        for i in range(5):
            started = time.monotonic()
            box.kill(i)
            box.wait_out(i)
            assert box.in_rotation() == set(range(5)) - {i}
            box.instances.start(i)
            listening = time.monotonic()
            assert box.wait_in(i) - listening < BACK_S
            until(lambda since=started: time.monotonic() >= since + SPACING_S, "the next restart is due")  # type: ignore[misc]

        sidecar.wait_healthy(box.ports)
        ejected = [e["instance"] for e in sidecar.events("ejected")]
        assert sorted(ejected) == sorted(f"127.0.0.1:{port}" for port in box.ports)
        assert all(e["by"] == "rule:rise" for e in sidecar.events("returned"))
        assert not [e for e in sidecar.events("held") if "max_ejected" in e["by"] or "velocity" in e["by"]]


@pytest.mark.parametrize("shape", SHAPES)
def test_when_all_fail_together_nobody_is_ejected_and_one_event_says_so(shape: str) -> None:
    with lab(shape) as box:
        sidecar = box.running()

        box.kill(0, 1, 2, 3)

        sidecar.wait_event("pool_event")
        until(lambda: set(sidecar.judgements().values()) == {"suspect"}, "all are suspect")
        answers = sidecar.instances()[box.ports[0]]["checks"]
        more = next(iter(answers.values()))["answers"] + 10
        until(lambda: next(iter(sidecar.instances()[box.ports[0]]["checks"].values()))["answers"] >= more, "it was asked ten times more")
        assert [e["sentence"] for e in sidecar.events("ejected")] == []
        assert len(sidecar.events("pool_event")) == 1

        box.instances.start_all()
        sidecar.wait_healthy(box.ports)
