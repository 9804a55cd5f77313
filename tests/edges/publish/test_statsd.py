"""StatsD datagrams: exact bytes, counters as what came since, and what a receiver's rules demand."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.samples import Distribution, Sample
from sidecar.publish import Origin, publishers
from sidecar.publish.datagram import Datagrams
from sidecar.publish.options import PublishOptions
from sidecar.publish.statsd import MAX_BYTES, Statsd
from sidecar.store.decisions import Decisions
from tests.edges.publish.programs import free_port
from tests.edges.publish.receiver import running, until
from tests.edges.publish.scene import Scene

LINE = re.compile(rb"[A-Za-z0-9_.-]+:-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?\|[gc](\|#[a-z_]+:[!-+\--{}]+(,[a-z_]+:[!-+\--{}]+)*)?")
WHO = (("service", "shop"), ("address", "10.0.0.5:8080"))


def sample(name: str, value: float, kind: str = "gauge", labels: tuple[tuple[str, str], ...] = WHO) -> Sample:
    return Sample(f"lbsidecar_{name}", kind, value, labels, "", "X.")  # type: ignore[arg-type]


def lines(encoder: Statsd, samples: list[Sample]) -> list[str]:
    return b"\n".join(each for each in encoder.datagrams(samples, 0.0) if each).decode().split("\n")


def test_gauges_are_told_as_they_are_and_counters_as_what_came_since() -> None:
    encoder = Statsd("lbsidecar", has_tags=False)
    probes = (*WHO, ("result", "fail"), ("reason", "timeout"))

    first = lines(encoder, [sample("instance_serving_ratio", 0.5), sample("probes_total", 3.0, "counter", probes)])
    second = lines(encoder, [sample("instance_serving_ratio", 1.0), sample("probes_total", 5.0, "counter", probes)])
    third = lines(encoder, [sample("instance_serving_ratio", 1.0), sample("probes_total", 5.0, "counter", probes)])

    assert first == ["lbsidecar.shop.10_0_0_5_8080.serving:0.5|g"]
    assert second == [
        "lbsidecar.shop.10_0_0_5_8080.serving:1.0|g",
        "lbsidecar.shop.10_0_0_5_8080.probes.fail:2.0|c",
        "lbsidecar.shop.all.probes.fail:2.0|c",
    ]
    assert third == ["lbsidecar.shop.10_0_0_5_8080.serving:1.0|g"]


def test_tags_carry_the_labels() -> None:
    encoder = Statsd("lb", has_tags=True)
    times = Sample(
        "lbsidecar_response_seconds", "histogram", Distribution(((1.0, 2),), 1.5, 3), (("service", "a|b,c#d~e f"),), "seconds", "X."
    )
    more = times._replace(value=Distribution(((1.0, 2),), 2.0, 4))

    lines(encoder, [times])
    found = lines(encoder, [more, sample("instance_serving_ratio", 0.5), sample("uptime_seconds", -1.0, labels=())])

    assert found == [
        "lb.response_seconds.count:1.0|c|#service:a_b_c_d_e_f",
        "lb.response_seconds.sum:0.5|c|#service:a_b_c_d_e_f",
        "lb.instance_serving_ratio:0.5|g|#service:shop,address:10.0.0.5:8080",
        "lb.uptime_seconds:0.0|g",
    ]


@pytest.mark.parametrize("has_tags", [False, True])
def test_a_scene_comes_in_datagrams_that_an_ethernet_frame_carries(has_tags: bool) -> None:
    scene = Scene(3)
    scene.run(30.0)

    found = [each for each in Statsd("lbsidecar", has_tags=has_tags).datagrams(scene.samples(), 0.0) if each]

    assert len(found) > 1
    assert max(map(len, found)) <= MAX_BYTES
    assert [line for each in found for line in each.split(b"\n") if not LINE.fullmatch(line)] == []


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.floats(), st.booleans())
def test_no_name_and_no_number_can_break_a_line(text: str, number: float, has_tags: bool) -> None:
    found = lines(
        Statsd("lbsidecar", has_tags=has_tags), [sample("instance_serving_ratio", number, labels=(("service", text), ("address", text)))]
    )

    assert len(found) == 1
    assert not found[0] or LINE.fullmatch(found[0].encode())


async def test_a_real_socket_gets_them() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", free_port()))
        receiver.settimeout(10)
        scene = Scene(2)
        scene.run(30.0)
        options = PublishOptions.model_validate({"statsd": {"address": f"127.0.0.1:{receiver.getsockname()[1]}", "interval": "1s"}})
        (publisher,) = publishers(options, Origin(scene.samples, Decisions(None, 0)))
        async with running(publisher.run):
            got = await asyncio.to_thread(receiver.recv, 65536)
            await until(lambda: publisher.count().sent >= 2)

    assert LINE.fullmatch(got.split(b"\n")[0])
    assert publisher.count().dropped == 0


async def test_nobody_there_costs_datagrams_and_every_one_is_counted() -> None:
    sink = Datagrams("statsd", Address("127.0.0.1", free_port()), max_waiting=100, longest_wait_s=0.1)
    offered = 0
    async with running(sink.run):
        for _ in range(50):
            sink.offer([b"x"] * 10)
            offered += 10
            await asyncio.sleep(0.01)
        await until(lambda: sink.count().waiting == 0 or sink.count().dropped > 5)

        assert sink.count().sent + sink.count().dropped + sink.count().waiting + sink._under_way == offered
        assert sink.count().dropped >= 1


async def test_an_item_that_no_datagram_holds_is_dropped() -> None:
    sink = Datagrams("logstash", Address("127.0.0.1", 1))

    sink.offer([b"x" * 65_508, b"x" * 65_507])

    assert sink.count().dropped == 1
    assert sink.count().waiting == 1
