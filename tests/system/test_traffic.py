"""What real requests take is heard from the balancer's own log and told by instance, apart from what probes take."""

from __future__ import annotations

from typing import Any
from urllib.request import urlopen

import pytest

from bench.daemon import Daemon, until
from tests.system.lab import free_ports, lab

pytestmark = pytest.mark.real
REQUESTS = 60


def told(sidecar: Daemon, source: str) -> dict[str, Any]:
    _, found = sidecar.ask(f"/api/v1/services/shop/latency?window=1m&source={source}")
    return found if isinstance(found, dict) else {}


@pytest.mark.parametrize("shape", ["haproxy-2.8-none", "nginx-1.31"])
def test_real_requests_are_heard_and_told_by_instance(shape: str) -> None:
    (port,) = free_ports(1)
    with lab(shape, 2, port) as box:
        feed = f", traffic: {{syslog: '127.0.0.1:{port}'}}}}"
        sidecar = box.running(box.config().replace("}", feed, 1))
        assert told(sidecar, "traffic")["service"]["count"] == 0

        for _ in range(REQUESTS):
            with urlopen(f"http://127.0.0.1:{box.listen}/", timeout=10) as answer:
                answer.read()

        until(lambda: told(sidecar, "traffic")["service"]["count"] == REQUESTS, lambda: f"all heard: {told(sidecar, 'traffic')}")
        found = told(sidecar, "traffic")
        assert [i["count"] for i in found["instances"].values()] == [REQUESTS / 2] * 2
        p50 = found["service"]["p50"]
        assert p50["samples"] == REQUESTS and 0 <= p50["value"] < 5, "both balancers log whole milliseconds"
        assert found["service"]["p999"]["value"] is None, "too few for that"
