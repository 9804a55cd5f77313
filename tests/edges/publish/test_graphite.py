"""Graphite's lines: exact bytes, and names that nothing from outside can bend."""

from __future__ import annotations

import pickle
import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.core.samples import Distribution, Quantiles, Sample
from sidecar.publish.graphite import frames, lines, node, path, tagged
from tests.core.lab import refused
from tests.edges.publish.scene import Scene

LINE = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+ -?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)? [0-9]+\n")


def gauge(name: str, value: float, /, **labels: str) -> Sample:
    return Sample(f"lbsidecar_{name}", "gauge", value, tuple(labels.items()), "", "X.")


def counter(name: str, value: float, /, **labels: str) -> Sample:
    return Sample(f"lbsidecar_{name}_total", "counter", value, tuple(labels.items()), "", "X.")


def summary(name: str, value: Quantiles, /, **labels: str) -> Sample:
    return Sample(f"lbsidecar_{name}_seconds", "summary", value, tuple(labels.items()), "seconds", "X.")


WHO = {"service": "shop", "address": "10.0.0.5:8080"}


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        (
            [summary("instance_latency", Quantiles(((0.5, 0.0125),), 2.5, 40), **WHO, source="probe")],
            [f"lbsidecar.shop.10_0_0_5_8080.latency.probe.{end}" for end in ("count 40.0", "sum 2.5", "p50 0.0125")],
        ),
        (
            [
                summary(
                    "service_latency",
                    Quantiles(tuple((q, 1.5e-05) for q in (0.9, 0.95, 0.99, 0.999)), 1.0, 9),
                    service="shop",
                    source="traffic",
                )
            ],
            [
                f"lbsidecar.shop.all.latency.traffic.{end}"
                for end in ("count 9.0", "sum 1.0", *(f"{p} 1.5e-05" for p in ("p90", "p95", "p99", "p999")))
            ],
        ),
        ([gauge("instance_judgement", 1.0, **WHO, judgement="ejected")], ["lbsidecar.shop.10_0_0_5_8080.judgement.ejected 1.0"]),
        ([gauge("instance_serving_ratio", 0.5, **WHO)], ["lbsidecar.shop.10_0_0_5_8080.serving 0.5"]),
        ([gauge("holds", 2.0, service="shop", name="max_ejected")], ["lbsidecar.shop.all.holds.max_ejected 2.0"]),
        ([gauge("balancer_up", 1.0, balancer="edge")], ["lbsidecar._balancer.edge.up 1.0"]),
        ([gauge("loop_lag_seconds", 0.002)], ["lbsidecar._sidecar.loop_lag 0.002"]),
        (
            [
                counter("probes", 3.0, **WHO, result="fail", reason="timeout"),
                counter("probes", 4.0, **WHO, result="fail", reason="refused"),
            ],
            ["lbsidecar.shop.10_0_0_5_8080.probes.fail 7.0", "lbsidecar.shop.all.probes.fail 7.0"],
        ),
        (
            [counter("ejections", 1.0, **WHO, by="rule:slow", enforced="false")],
            ["lbsidecar.shop.10_0_0_5_8080.would_be_ejections 1.0", "lbsidecar.shop.all.would_be_ejections 1.0"],
        ),
        (
            [
                Sample(
                    "lbsidecar_response_seconds",
                    "histogram",
                    Distribution(((1.0, 2),), 1.5, 3),
                    (("service", "shop"), ("source", "probe")),
                    "seconds",
                    "The summary says the same.",
                )
            ],
            [],
        ),
        ([gauge("loop_lag_seconds", float("nan")), gauge("uptime_seconds", float("inf"))], []),
        ([gauge("nobody_asked_for_this", 1.0)], []),
    ],
)
def test_each_sample_has_its_path(samples: list[Sample], wanted: list[str]) -> None:
    assert [line for line in lines(samples, "lbsidecar", 1767225600.9) if line] == [f"{line} 1767225600\n".encode() for line in wanted]


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.text(), st.text(), st.floats())
def test_hostile_names_stay_one_line_with_as_many_nodes(service: str, address: str, balancer: str, number: float) -> None:
    found = lines(
        [
            gauge("instance_serving_ratio", number, service=service, address=address),
            gauge("balancer_up", number, balancer=balancer),
            counter("probes", number, service=service, address=address, result=balancer),
        ],
        "lbsidecar",
        1.0,
    )

    for line in filter(None, found):
        assert LINE.fullmatch(line)
        assert line.split(b" ")[0].count(b".") in (3, 4)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_a_node_is_safe_and_making_it_safe_twice_changes_nothing(text: str) -> None:
    made = node(text)

    assert 1 <= len(made) <= 128
    assert set(made) <= set(string.ascii_letters + string.digits + "_-")
    assert node(made) == made


def test_a_good_name_stays_as_it_is() -> None:
    assert path("web-1.eu.example", "shop_http") == "web-1_eu_example.shop_http"


def test_a_real_world_is_told_in_sound_lines_without_doubles() -> None:
    scene = Scene(3)
    scene.run(30.0)
    scene.answer(2, refused())
    scene.run(3.0)

    found = [line for line in lines(scene.samples(), "lbsidecar", 1767225600.0) if line]

    assert [line for line in found if not LINE.fullmatch(line)] == []
    paths = [line.split(b" ")[0] for line in found]
    assert len(set(paths)) == len(paths)
    assert b"lbsidecar.shop.10_0_0_2_80.judgement.ejected 1.0 1767225600\n" in found
    assert b"lbsidecar.shop.all.ejections 1.0 1767225600\n" in found
    assert any(path.startswith(b"lbsidecar.shop.10_0_0_1_80.latency.probe.p50") for path in paths)


def test_tags_are_the_labels_and_nothing_in_them_can_end_one() -> None:
    found = list(
        tagged([gauge("instance_serving_ratio", 0.5, service="a;b c~=\u00e9", address="10.0.0.5:80", empty="")], "lb", 1767225600.0)
    )

    assert found == [b"lb.instance_serving_ratio;service=a_b_c_=_;address=10.0.0.5:80 0.5 1767225600\n"]


def test_a_tagged_summary_has_a_series_for_each_quantile() -> None:
    found = list(tagged([summary("service_latency", Quantiles(((0.5, 0.25), (0.999, 1.5)), 9.0, 40), service="shop")], "lb", 1.0))

    assert found == [
        b"lb.service_latency_seconds.count;service=shop 40.0 1\n",
        b"lb.service_latency_seconds.sum;service=shop 9.0 1\n",
        b"lb.service_latency_seconds;service=shop;quantile=0.5 0.25 1\n",
        b"lb.service_latency_seconds;service=shop;quantile=0.999 1.5 1\n",
    ]


def test_frames_say_what_lines_say() -> None:
    scene = Scene(60)
    scene.run(30.0)
    samples = scene.samples()

    points = []
    for frame in filter(None, frames(samples, "lbsidecar", 1767225600.0, has_tags=False)):
        assert int.from_bytes(frame[:4], "big") == len(frame) - 4 < 1 << 20
        points += pickle.loads(frame[4:])

    assert len(points) > 500
    assert [f"{name} {value!r} {when}\n".encode() for name, (when, value) in points] == [
        line for line in lines(samples, "lbsidecar", 1767225600.0) if line
    ]


def test_a_long_row_of_counters_is_taken_in_pieces() -> None:
    """What is summed before anything can be said must not hold the loop."""
    counters = [counter("probes", 1.0, **WHO, result="ok", reason=str(i)) for i in range(1000)]

    assert len(list(lines(counters, "lbsidecar", 1.0))) >= 1000
