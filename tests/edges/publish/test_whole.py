"""A whole sidecar whose every receiver is away or takes everything and never answers: it decides as if there were none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon, until
from tests.edges.publish.programs import Prometheus, free_port, wait_for
from tests.edges.publish.receiver import bound
from tests.system.lab import Lab, lab

pytestmark = pytest.mark.real
SINKS = (
    "graphite", "graphite-events", "logstash", "elasticsearch", "otlp", "remote_write", "statsd", "webhooks.chat", "webhooks.pager",
)  # fmt: skip
SENTINEL = "0123456789abcdef"


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and everything that comes, and never says a word."""
    listening = bound()
    listening.listen(64)
    taken: list[socket.socket] = []

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(listening.accept()[0])

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for each in taken:
            each.close()


def publish(address: str) -> str:
    """Every sink there is, all at one address."""
    url = f"http://{address}"
    return f"""publish:
  graphite: {{address: "{address}", interval: 1s, events: "{url}/events/"}}
  logstash: {{address: "{address}", interval: 1s}}
  elasticsearch: {{url: "{url}", interval: 1s}}
  otlp: {{url: "{url}/v1/metrics", interval: 1s}}
  remote_write: {{url: "{url}/write", interval: 1s}}
  statsd: {{address: "{address}", interval: 1s}}
  webhooks:
    chat: {{shape: slack, url: "{url}/chat"}}
    pager: {{shape: pagerduty, url: "{url}/pager", key: "env:PUBLISH_TEST_KEY"}}
"""


@pytest.fixture(scope="module")
def balanced() -> Iterator[Lab]:
    with lab("haproxy-2.6-check", 3) as found:
        yield found


@pytest.mark.parametrize("kind", ["nobody", "black hole"])
def test_it_ejects_returns_and_ends_as_ever(balanced: Lab, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PUBLISH_TEST_KEY", SENTINEL)
    with contextlib.ExitStack() as stack:
        port = free_port() if kind == "nobody" else stack.enter_context(black_hole())
        daemon = balanced.running(balanced.config(publish(f"127.0.0.1:{port}")))
        until(lambda: "cannot be sent to" in daemon.log_text() or kind == "black hole", "an outage is told")

        earlier = len(daemon.events())

        balanced.out_and_back(1)

        kinds = [event["kind"] for event in daemon.events()[earlier:] if event["kind"] in ("ejected", "returned")]
        _, page = daemon.ask("/metrics")
        assert daemon.end(signal.SIGTERM) == 0

    assert kinds == ["ejected", "returned"]
    for name in SINKS:
        assert f'lbsidecar_sink_sent_total{{sink="{name}"}}' in page
    assert SENTINEL not in daemon.log_text()
    assert "Traceback" not in daemon.log_text()


def test_a_real_prometheus_says_of_a_real_sidecar_what_its_api_says(balanced: Lab, tmp_path: Path) -> None:
    daemon = Daemon(balanced.folder, balanced.config(), name="scraped", port=free_port())
    balanced.daemons.append(daemon)
    daemon.start()
    daemon.wait_healthy(balanced.ports)
    prometheus = Prometheus(tmp_path, {"lb-sidecar": (daemon.port or 0, "/metrics")})
    expression = 'histogram_quantile(0.5, lbsidecar_response_seconds{service="shop",source="probe"})'

    def agree() -> bool:
        """Both move on between two questions: it is enough that they meet."""
        theirs = prometheus.value(expression)
        _, ours = daemon.ask("/api/v1/services/shop/latency?window=1m&source=probe")
        return theirs is not None and ours["service"]["p50"]["value"] == pytest.approx(theirs, rel=0.015)

    with prometheus.run():
        wait_for(agree)
        judged = prometheus.query('lbsidecar_instance_judgement{service="shop",judgement="healthy"} == 1')

    assert {each["metric"]["address"] for each in judged} == {f"127.0.0.1:{port}" for port in balanced.ports}
    assert daemon.end(signal.SIGTERM) == 0
