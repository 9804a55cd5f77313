"""OTLP, read by OpenTelemetry's own definitions: both encodings say the same, and it is what we counted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp import web
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsPartialSuccess as Partly
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, Metric

from sidecar.core.histogram import Histogram
from sidecar.core.samples import Distribution, Quantiles, Sample, distribution
from sidecar.publish import Origin, publishers
from sidecar.publish.exponential import Exact
from sidecar.publish.options import PublishOptions
from sidecar.publish.otlp import items, json_body, judge_json, judge_protobuf, protobuf_body
from sidecar.store.decisions import Decisions
from tests.edges.publish.posted import Posted
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene

RESOURCE = (("service.name", "lb-sidecar"), ("host.name", "lb-1"))
WHERE = (("service", "shop"), ("source", "probe"))


def times(count: int = 5000) -> Histogram:
    made = Histogram()
    chance = random.Random(3)
    for _ in range(count):
        made.add(chance.lognormvariate(-5.0, 1.0))
    made.add(0.0)
    return made


def world() -> tuple[list[Sample], Exact]:
    histogram = times()
    return [
        Sample("lbsidecar_service_sound", "gauge", 3.0, (("service", "a"),), "", "Sound."),
        Sample("lbsidecar_service_sound", "gauge", math.nan, (("service", "é\n"),), "", "Sound."),
        Sample("lbsidecar_cpu_seconds_total", "counter", 1.25, (), "seconds", "Time."),
        Sample("lbsidecar_response_seconds", "histogram", distribution(histogram), WHERE, "seconds", "Times."),
        Sample("lbsidecar_response_seconds", "histogram", Distribution(((0.5, 1), (1.0, 3)), 2.5, 4), (), "seconds", "Times."),
        Sample("lbsidecar_service_latency_seconds", "summary", Quantiles(((0.5, 0.25), (0.99, 1.5)), 2.25, 9), WHERE, "seconds", "Times."),
    ], {("shop", "probe"): histogram}


def request(samples: Iterable[Sample], histograms: Exact, *, as_json: bool) -> ExportMetricsServiceRequest:
    batch = list(items(samples, 1767225600.5, 1767225000.0, histograms, as_json=as_json))
    found = ExportMetricsServiceRequest()
    if as_json:
        Parse(json_body(batch, RESOURCE), found)
    else:
        found.ParseFromString(protobuf_body(batch, RESOURCE))
    return found


def metrics(found: ExportMetricsServiceRequest) -> list[Metric]:
    (resource,) = found.resource_metrics
    assert [(each.key, each.value.string_value) for each in resource.resource.attributes] == list(RESOURCE)
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "lb-sidecar"
    return list(scope.metrics)


def test_both_encodings_say_the_same() -> None:
    samples, histograms = world()

    assert str(request(samples, histograms, as_json=True)) == str(request(samples, histograms, as_json=False))


def test_points_of_one_metric_stand_together_with_its_unit_and_kind() -> None:
    gauge, counter, exponential, explicit, summary = metrics(request(*world(), as_json=False))

    assert [point.as_double for point in gauge.gauge.data_points][:1] == [3.0]
    assert math.isnan(gauge.gauge.data_points[1].as_double)
    assert gauge.gauge.data_points[1].attributes[0].value.string_value == "é\n"
    assert gauge.description == "Sound."
    assert counter.sum.is_monotonic
    assert counter.sum.aggregation_temporality == 2
    assert counter.unit == "s"
    assert counter.sum.data_points[0].start_time_unix_nano == 1767225000_000_000_000
    assert counter.sum.data_points[0].time_unix_nano == 1767225600_500_000_000
    assert exponential.name == explicit.name == "lbsidecar_response_seconds"
    assert list(explicit.histogram.data_points[0].bucket_counts) == [1, 2, 1]
    assert list(explicit.histogram.data_points[0].explicit_bounds) == [0.5, 1.0]
    (point,) = summary.summary.data_points
    assert (point.count, point.sum) == (9, 2.25)
    assert [(each.quantile, each.value) for each in point.quantile_values] == [(0.5, 0.25), (0.99, 1.5)]


def test_an_exponential_histogram_has_every_value_in_its_bucket() -> None:
    histogram = times()
    (point,) = metrics(request(*world(), as_json=False))[2].exponential_histogram.data_points

    assert point.count == histogram.count == 5001
    assert point.zero_count == 1
    assert point.sum == pytest.approx(histogram.total)
    assert (point.min, point.max) == (histogram.min, histogram.max)
    assert sum(point.positive.bucket_counts) == 5000
    for share in (0.5, 0.9, 0.99):
        assert quantile(point, share) == pytest.approx(histogram.quantile(share), rel=2 ** (0.5 / 2**point.scale) - 1 + 1e-9)


def test_a_scene_is_told_whole() -> None:
    scene = Scene(3)
    scene.run(30.0)
    samples = scene.samples()

    found = request(samples, scene.tallies.latency, as_json=False)

    assert {metric.name for metric in metrics(found)} == {each.name for each in samples}
    assert len(list(items(samples, 1.0, 0.0, {}, as_json=False))) == len(samples)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"", 0),
        (ExportMetricsServiceResponse(partial_success=Partly(rejected_data_points=3, error_message="too old")).SerializeToString(), 3),
        (ExportMetricsServiceResponse(partial_success=Partly(rejected_data_points=99)).SerializeToString(), 5),
        (b"<html>this is no collector", 0),
        (b"\xff" * 100, 0),
        (b"\x0a\xff\xff\xff\xff\x7f", 0),
    ],
)
def test_what_a_collector_rejects_is_counted(body: bytes, refused: int) -> None:
    assert judge_protobuf(body, [b""] * 5).refused == refused


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"{}", 0),
        (b'{"partialSuccess": {"rejectedDataPoints": "2", "errorMessage": "x"}}', 2),
        (b'{"partialSuccess": {"rejectedDataPoints": -2}}', 0),
        (b'{"partialSuccess": 5}', 0),
        (b"[]", 0),
        (b"nonsense", 0),
        (b"[" * 100_000, 0),
    ],
)
def test_the_same_in_json(body: bytes, refused: int) -> None:
    assert judge_json(body, [b""] * 5).refused == refused


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_a_collector_gets_every_point_and_what_it_rejects_is_counted(encoding: str) -> None:
    got: list[ExportMetricsServiceRequest] = []

    async def collect(asked: web.Request, body: bytes) -> web.StreamResponse:
        found = ExportMetricsServiceRequest()
        if asked.content_type == "application/json":
            Parse(body, found)
        else:
            assert asked.content_type == "application/x-protobuf"
            found.ParseFromString(body)
        got.append(found)
        if encoding == "json":
            return web.json_response({"partialSuccess": {"rejectedDataPoints": "2"}})
        return web.Response(body=ExportMetricsServiceResponse(partial_success=Partly(rejected_data_points=2)).SerializeToString())

    receiver = await Posted(collect).start()
    samples, histograms = world()
    settings: dict[str, Any] = {"otlp": {"url": f"{receiver.url}/v1/metrics", "interval": "1s", "encoding": encoding}}
    (publisher,) = publishers(PublishOptions.model_validate(settings), Origin(lambda: samples, Decisions(None, 0), lambda: histograms))

    async with running(publisher.run):
        await until(lambda: publisher.count().sent + publisher.count().dropped >= len(samples))
    await receiver.stop()

    assert publisher.count().dropped >= 2
    assert publisher.count().sent + publisher.count().dropped == len(samples) * (publisher.count().dropped // 2)
    assert {m.name for m in got[0].resource_metrics[0].scope_metrics[0].metrics} == {each.name for each in samples}


def quantile(point: ExponentialHistogramDataPoint, share: float) -> float:
    """The middle of the bucket in which it lies."""
    rank = math.ceil(share * point.count) - point.zero_count
    for place, count in enumerate(point.positive.bucket_counts):
        rank -= count
        if rank <= 0:
            index = point.positive.offset + place
            found: float = 2.0 ** ((index + 0.5) / 2**point.scale)
            return found
    raise AssertionError("more than there are")
