"""The page of `/metrics`: bytes, escapes, and which form a scraper gets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Operator, Ref
from sidecar.core.samples import Bundle, Distribution, Own, Sample, condensed, samples
from sidecar.publish.prometheus import EVERY, Format, Writer, chosen, render
from tests.core.lab import good, refused
from tests.edges.publish.scene import Scene

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2_NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
TIMES = Distribution(((0.5, 1), (1.0, 3)), 2.5, 4)
SAMPLES = [
    Sample("lbsidecar_up", "gauge", 1.0, (("service", 'a"b\\c\nd'), ("address", "10.0.0.5:80")), "", 'He said "x\\y"\nand left.'),
    Sample("lbsidecar_up", "gauge", float("nan"), (), "", 'He said "x\\y"\nand left.'),
    Sample("lbsidecar_cpu_seconds_total", "counter", 1.25, (), "seconds", "Time."),
    Sample(
        "lbsidecar_response_seconds", "histogram", Distribution(((0.5, 1), (1.0, 3)), 2.5, 4), (("service", "shop"),), "seconds", "Times."
    ),
]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, Format.TEXT),
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Format.TEXT),
        (PROMETHEUS_3, Format.OPENMETRICS),
        (PROMETHEUS_2_NATIVE, Format.PROTOBUF),
        (PROMETHEUS_2_NATIVE.replace("delimited", "text"), Format.OPENMETRICS),
        ("application/vnd.google.protobuf", Format.TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.2,*/*", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.9", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=nonsense", Format.TEXT),
        ("application/json", Format.TEXT),
        (";;;,,,=q;" * 10_000, Format.TEXT),
    ],
)
def test_the_scraper_gets_the_form_it_prefers(accept: str | None, wanted: Format) -> None:
    assert chosen(accept) is wanted


def test_text_is_exactly_so() -> None:
    assert render(SAMPLES).decode() == (
        '# HELP lbsidecar_up He said "x\\\\y"\\nand left.\n'
        "# TYPE lbsidecar_up gauge\n"
        'lbsidecar_up{service="a\\"b\\\\c\\nd",address="10.0.0.5:80"} 1\n'
        "lbsidecar_up NaN\n"
        "# HELP lbsidecar_cpu_seconds_total Time.\n"
        "# TYPE lbsidecar_cpu_seconds_total counter\n"
        "lbsidecar_cpu_seconds_total 1.25\n"
        "# HELP lbsidecar_response_seconds Times.\n"
        "# TYPE lbsidecar_response_seconds histogram\n"
        'lbsidecar_response_seconds_bucket{service="shop",le="0.5"} 1\n'
        'lbsidecar_response_seconds_bucket{service="shop",le="1.0"} 3\n'
        'lbsidecar_response_seconds_bucket{service="shop",le="+Inf"} 4\n'
        'lbsidecar_response_seconds_sum{service="shop"} 2.5\n'
        'lbsidecar_response_seconds_count{service="shop"} 4\n'
    )


def test_openmetrics_names_families_units_and_its_end() -> None:
    page = render(SAMPLES, Format.OPENMETRICS).decode()

    assert '# HELP lbsidecar_up He said \\"x\\\\y\\"\\nand left.\n' in page
    assert "# TYPE lbsidecar_cpu_seconds counter\n# UNIT lbsidecar_cpu_seconds seconds\nlbsidecar_cpu_seconds_total 1.25\n" in page
    assert page.endswith("# EOF\n")
    assert page.count("# EOF") == 1


LINE = re.compile(r'[a-z_]+(\{[a-z_]+="(?:[^"\\\n]|\\[\\n"])*"(?:,[a-z_]+="(?:[^"\\\n]|\\[\\n"])*")*\})? (-?[0-9.e+-]+|NaN|[+-]Inf)')


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.floats())
def test_no_label_and_no_number_can_break_a_line(text: str, number: float) -> None:
    page = render([Sample("lbsidecar_x", "gauge", number, (("service", text), ("address", text)), "", text)])

    lines = page.decode("utf-8").split("\n")
    assert len(lines) == 4
    assert LINE.fullmatch(lines[2])


def test_a_long_label_is_cut() -> None:
    assert len(render([Sample("lbsidecar_x", "gauge", 1.0, (("service", "é" * 100_000),), "", "X.")])) < 1000


@pytest.mark.parametrize("form", [Format.TEXT, Format.OPENMETRICS])
def test_a_real_world_renders_in_every_form(form: Format) -> None:
    scene = Scene(3)
    scene.run(30.0)
    scene.answer(1, refused())
    scene.run(3.0)

    lines = render(scene.samples(rss_bytes=1, cpu_s=1.0), form).decode().splitlines()

    bare = [line for line in lines if not line.startswith("#")]
    assert len(bare) > 50
    assert [line for line in bare if not LINE.fullmatch(line)] == []
    assert any(line.startswith('lbsidecar_response_seconds_bucket{service="shop",source="probe",le="0.001"') for line in bare) is False
    assert 'lbsidecar_instance_judgement{service="shop",address="10.0.0.1:80",judgement="ejected"} 1' in bare


def told(scene: Scene) -> Iterator[Sample | Bundle]:
    return condensed(scene.world, scene.world.policy, scene.latencies, scene.now, Own(scene.tallies))


def whole(scene: Scene, form: Format) -> bytes:
    return render(samples(scene.world, scene.world.policy, scene.latencies, scene.now, Own(scene.tallies)), form, scene.tallies.latency)


@pytest.mark.parametrize("form", list(Format))
async def test_in_pieces_the_page_is_the_same_and_the_loop_turns_meanwhile(form: Format) -> None:
    scene = Scene(100)
    scene.run(12.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    page = await Writer().page(told(scene), form, scene.tallies.latency)
    counting.cancel()

    assert page == whole(scene, form)
    assert turns >= 100 // EVERY


@pytest.mark.parametrize("form", list(Format))
async def test_page_after_page_says_what_is_true_then(form: Format) -> None:
    scene, writer = Scene(6), Writer()

    async def is_right() -> bool:
        return await writer.page(told(scene), form, scene.tallies.latency) == whole(scene, form)

    scene.run(12.0)
    assert await is_right()
    scene.run(15.0)  # medians appear
    assert await is_right()
    scene.answer(2, refused())
    scene.run(3.0)
    assert await is_right()
    scene.set_seen(3, operator=Operator.MAINTENANCE, in_flight=7)
    del scene.servers[Ref("shop", "s4")]
    scene.run(3.0)
    assert await is_right()
    scene.answer(2, good())
    scene.set_seen(3, operator=Operator.READY, in_flight=0)
    scene.run(10.0)
    assert await is_right()
    scene.now += 120.0  # nothing is left in the window
    assert await is_right()
    assert b"s4" not in await writer.page(told(scene), form)
