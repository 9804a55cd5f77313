"""A real Prometheus scrapes every form of our page and takes our remote writes: what it then says is what we said."""

from __future__ import annotations

import math
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sidecar.core.histogram import Histogram
from sidecar.core.samples import Sample, grouped
from sidecar.publish import Origin, publishers
from sidecar.publish.exponential import Exact
from sidecar.publish.options import PublishOptions
from sidecar.publish.prometheus import Format, chosen, render
from sidecar.store.decisions import Decisions
from tests.core.lab import refused
from tests.edges.publish.programs import Prometheus, free_port, needed, wait_for
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene, numbers

pytestmark = pytest.mark.real

SHARES = (0.5, 0.9, 0.99, 0.999)


class World:
    """A scene with 20,000 response times between 0.2 ms and some seconds, as samples and as the histogram behind them."""

    def __init__(self) -> None:
        self.scene = Scene(3)
        self.scene.run(30.0)
        self.scene.answer(1, refused())
        self.scene.run(3.0)
        self.histogram = Histogram()
        chance = random.Random(7)
        for _ in range(20_000):
            self.scene.tallies.count_traffic("shop", True, seconds := chance.lognormvariate(-4.0, 1.2))
            self.histogram.add(seconds)
        self.samples: list[Sample] = grouped(self.scene.samples(rss_bytes=12_345_678, cpu_s=1.5))

    @property
    def histograms(self) -> Exact:
        return self.scene.tallies.latency


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def prometheus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the page as the scraper prefers it, as text and as OpenMetrics."""
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Accept", ""))
            form = {"/text": Format.TEXT, "/openmetrics": Format.OPENMETRICS}.get(self.path) or chosen(asked[-1])
            body = render(world.samples, form, world.histograms)
            self.send_response(200)
            self.send_header("Content-Type", form.value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = server.server_address[1]
    jobs = {"native": (port, "/metrics"), "text": (port, "/text"), "openmetrics": (port, "/openmetrics")}
    found = Prometheus(tmp_path_factory.mktemp("prometheus"), jobs)
    with found.run():
        yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("share", SHARES)
def test_its_native_quantiles_are_ours(prometheus: Prometheus, world: World, share: float) -> None:
    expression = f'histogram_quantile({share}, lbsidecar_response_seconds{{job="native",source="traffic"}})'

    wait_for(lambda: prometheus.value(expression) is not None)

    assert prometheus.value(expression) == pytest.approx(world.histogram.quantile(share), rel=0.015)


@pytest.mark.parametrize("job", ["text", "openmetrics"])
@pytest.mark.parametrize("share", SHARES)
def test_its_classic_quantiles_are_ours_within_a_bucket(prometheus: Prometheus, world: World, job: str, share: float) -> None:
    expression = f'histogram_quantile({share}, lbsidecar_response_seconds_bucket{{job="{job}",source="traffic"}})'

    wait_for(lambda: prometheus.value(expression) is not None)

    found = prometheus.value(expression)
    assert found is not None
    octave = math.floor(math.log2(world.histogram.quantile(share)))
    assert 2.0**octave <= found <= 2.0 ** (octave + 1)


def test_a_native_histogram_has_all_values_and_their_sum(prometheus: Prometheus, world: World) -> None:
    series = '{__name__="lbsidecar_response_seconds",job="native",source="traffic"}'
    wait_for(lambda: prometheus.value(f"histogram_count({series})") is not None)

    assert prometheus.value(f"histogram_count({series})") == 20_000
    assert prometheus.value(f"histogram_sum({series})") == pytest.approx(world.histogram.total)
    within = world.histogram.quantile(0.5)
    assert prometheus.value(f"histogram_fraction(0, {within}, {series})") == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("job", ["native", "text", "openmetrics"])
def test_every_number_is_read_back(prometheus: Prometheus, world: World, job: str) -> None:
    wait_for(lambda: prometheus.value(f'up{{job="{job}"}}') == 1.0)
    wanted = numbers(world.samples)

    answer = prometheus.query(f'{{__name__=~"lbsidecar_.*",__name__!~".*response_seconds.*",job="{job}"}}')

    ours = {"service", "address", "source", "balancer", "pool", "server", "quantile", "judgement", "result", "reason", "kind", "by"}
    ours |= {"name", "enforced", "sink", "version", "hash"}
    found = {
        (each["metric"]["__name__"], frozenset((k, v) for k, v in each["metric"].items() if k in ours)): float(each["value"][1])
        for each in answer
    }
    assert found == {(name, frozenset((k, v) for k, v in labels if v)): value for (name, labels), value in wanted.items()}
    assert len(found) > 60


def test_promtool_has_nothing_to_complain_of(world: World) -> None:
    checked = subprocess.run(
        [needed("promtool"), "check", "metrics"], input=render(world.samples), capture_output=True, timeout=60, check=False
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_remote_writes_are_read_back_native_histograms_too(prometheus: Prometheus, world: World) -> None:
    settings = {"url": f"{prometheus.url}/api/v1/write", "interval": "1s", "labels": {"job": "written"}, "native_histograms": True}
    options = PublishOptions.model_validate({"remote_write": settings})
    (publisher,) = publishers(options, Origin(lambda: world.samples, Decisions(None, 0), lambda: world.histograms))

    async with running(publisher.run):
        await until(lambda: publisher.count().sent >= len(world.samples))
        assert publisher.count().dropped == 0

    judged = prometheus.value('lbsidecar_instance_judgement{job="written",address="10.0.0.1:80",judgement="ejected"}')
    native = prometheus.value('histogram_quantile(0.99, lbsidecar_response_seconds{job="written",source="traffic"})')
    classic = prometheus.value('lbsidecar_response_seconds_bucket{job="written",source="traffic",le="+Inf"}')
    assert judged == 1.0
    assert native == pytest.approx(world.histogram.quantile(0.99), rel=0.015)
    assert classic == 20_000


async def test_remote_writes_survive_a_restart_of_the_receiver_without_a_loss(world: World, tmp_path: Path) -> None:
    receiver = Prometheus(tmp_path, {})
    options = PublishOptions.model_validate({"remote_write": {"url": f"{receiver.url}/api/v1/write", "interval": "1s"}})
    moments: list[int] = []

    def samples() -> list[Sample]:
        moments.append(int(time.time()))
        return [Sample("lbsidecar_moment", "gauge", float(len(moments)), (), "", "How often we were asked.")]

    (publisher,) = publishers(options, Origin(samples, Decisions(None, 0)))
    async with running(publisher.run):
        with receiver.run():
            await until(lambda: publisher.count().sent >= 1)
        await until(lambda: not publisher.count().connected and publisher.count().waiting >= 2)
        with receiver.run():
            await until(lambda: publisher.count().waiting == 0)
            sent = publisher.count().sent
            found = receiver.query("lbsidecar_moment[5m]")

    assert publisher.count().dropped == 0
    values = [float(value) for _, value in found[0]["values"]]
    assert values[:sent] == [float(i + 1) for i in range(len(values))][:sent]
    assert len(values) >= sent
