"""What is published about a world, and what is counted on the way."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from lbplugins.values import Address, Operator, Ref, Setting
from sidecar.core.histogram import Histogram
from sidecar.core.model import Commanded, Decision, Discovered, Event, Instance, Judgement, Serving, Verb
from sidecar.core.policy import Mode
from sidecar.core.samples import MAX_ROWS, Distribution, Own, Tallies, distribution, each_sample, grouped, serving, whose
from tests.core.lab import good, hangs, policy, refused
from tests.edges.publish.scene import Scene, quantiles, value, values

ALLOWED = {
    "service", "pool", "balancer", "server", "address", "source", "judgement", "name", "kind", "by", "sink",
    "result", "reason", "enforced", "version", "hash",
}  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    scene = Scene(4)
    scene.run(15.0)
    return scene


def test_names_labels_and_units_keep_the_contract(scene: Scene) -> None:
    scene.answer(1, hangs())
    scene.run(3.0)

    for sample in scene.samples(rss_bytes=50_000_000, cpu_s=1.5):
        assert re.fullmatch(r"lbsidecar_[a-z][a-z_]*[a-z]", sample.name)
        assert {name for name, _ in sample.labels} <= ALLOWED
        assert sample.name.endswith("_total") is (sample.kind == "counter")
        assert sample.help.endswith(".") or "," in sample.help or ":" in sample.help
        if sample.unit:
            assert sample.name.removesuffix("_total").endswith(f"_{sample.unit}")


def test_rows_of_one_name_stand_together_and_none_is_twice(scene: Scene) -> None:
    found = scene.samples()

    names = [each.name for each in found]
    rows = [(each.name, each.labels) for each in found]
    assert len(set(rows)) == len(rows)
    assert [name for place, name in enumerate(names) if name not in names[:place]] == list(
        dict.fromkeys(name for place, name in enumerate(names) if place == 0 or names[place - 1] != name)
    )


def test_a_calm_service_is_healthy_and_full_everywhere(scene: Scene) -> None:
    found = scene.samples()

    assert value(found, "service_instances", service="shop") == 4
    assert value(found, "service_in_rotation", service="shop") == 4
    assert values(found, "instance_judgement", judgement="healthy") == [1.0] * 4
    assert values(found, "instance_judgement", judgement="ejected") == [0.0] * 4
    assert values(found, "instance_serving_ratio") == [1.0] * 4
    assert value(found, "balancer_up", balancer="edge") == 1
    assert value(found, "balancer_drift_age_seconds", balancer="edge") == 0
    assert values(found, "holds") == []


def test_an_ejection_shows_in_gauges_and_is_counted_once(scene: Scene) -> None:
    scene.answer(2, refused())
    scene.run(3.0)

    found = scene.samples()

    who = {"service": "shop", "address": "10.0.0.2:80"}
    assert value(found, "instance_judgement", **who, judgement="ejected") == 1
    assert value(found, "instance_serving_ratio", **who) == 0
    assert value(found, "server_in_rotation", **who, pool="shop", server="s2", balancer="edge") == 0
    assert value(found, "ejections_total", **who, by="rule:consecutive", enforced="true") == 1
    assert value(found, "service_in_rotation", service="shop") == 3
    assert value(found, "probes_total", **who, result="fail", reason="refused") >= 2
    assert value(found, "changes_total", balancer="edge", result="applied") == 1

    scene.answer(2, good())
    scene.run(10.0)
    assert value(scene.samples(), "returns_total", **who, by="rule:rise", enforced="true") == 1


def test_what_observe_would_have_done_is_counted_apart() -> None:
    scene = Scene(4, policy(Mode.OBSERVE))
    scene.run(15.0)
    scene.answer(1, refused())
    scene.run(3.0)

    found = scene.samples()

    assert value(found, "ejections_total", enforced="false") == 1
    assert values(found, "ejections_total", enforced="true") == []
    assert value(found, "service_acting", service="shop") == 0


def test_holds_are_counted_by_name(scene: Scene) -> None:
    for i in range(1, 5):
        scene.answer(i, refused())
    scene.run(3.0)

    assert value(scene.samples(), "holds", service="shop", name="no_witness") == 4


def test_latencies_are_told_only_where_enough_answered(scene: Scene) -> None:
    scene.run(40.0)

    found = scene.samples()

    one = quantiles(found, "instance_latency_seconds", address="10.0.0.1:80", source="probe")
    assert dict(one.values)[0.5] == pytest.approx(0.0005, rel=0.0055)
    assert 0.999 not in dict(one.values)
    assert values(found, "instance_latency_seconds", source="traffic") == []
    whole = quantiles(found, "service_latency_seconds", service="shop")
    assert dict(whole.values)[0.5] == pytest.approx(0.0005, rel=0.0055)
    assert whole.count == sum(quantiles(found, "instance_latency_seconds", address=f"10.0.0.{i}:80").count for i in range(1, 5))
    assert whole.total == pytest.approx(0.0005 * whole.count)


def test_a_summary_goes_on_counting_while_its_window_is_empty(scene: Scene) -> None:
    before = quantiles(scene.samples(), "service_latency_seconds")
    scene.now += 120.0

    after = quantiles(scene.samples(), "service_latency_seconds")

    assert before.values
    assert after == replace(before, values=())


def test_a_lost_balancer_ages_and_its_errors_are_counted(scene: Scene) -> None:
    scene.reachable = False
    scene.run(5.0)

    found = scene.samples()

    assert value(found, "balancer_up", balancer="edge") == 0
    assert value(found, "balancer_picture_age_seconds", balancer="edge") >= 4.0
    assert value(found, "balancer_errors_total", balancer="edge") >= 4


def test_a_balancer_that_does_not_take_our_word_drifts(scene: Scene) -> None:
    scene.apply_takes = 1e9
    scene.answer(1, refused())
    scene.run(3.0)

    assert value(scene.samples(), "balancer_drift_age_seconds", balancer="edge") > 0.5


def test_the_last_answer_ages_while_nobody_answers(scene: Scene) -> None:
    before = value(scene.samples(), "instance_last_probe_age_seconds", address="10.0.0.3:80")
    scene.now += 30.0

    assert before < 2.0
    assert value(scene.samples(), "instance_last_probe_age_seconds", address="10.0.0.3:80") == pytest.approx(before + 30.0)


def test_serving_is_what_the_balancer_really_gives(scene: Scene) -> None:
    scene.set_seen(1, operator=Operator.MAINTENANCE)
    scene.set_seen(2, ours=Setting(weight_pct=40))
    scene.run(2.0)

    assert serving(scene.world, scene.instance(1)) is Serving.NONE
    assert serving(scene.world, scene.instance(2)) is Serving.REDUCED
    assert serving(scene.world, scene.instance(3)) is Serving.FULL
    assert value(scene.samples(), "instance_operator", address="10.0.0.1:80") == 2


def test_an_instance_without_a_balancer_serves_by_the_operators_word_alone() -> None:
    scene = Scene(1, replace(policy(pools=(), from_balancer=False), balancers={}))
    instance = Instance("shop", Address("10.0.0.1", 80))
    scene.feed(Discovered("shop", "static", scene.now, (instance,)))

    assert serving(scene.world, scene.instance(1)) is Serving.FULL
    scene.feed(Commanded(Verb.OVERRIDE, "operator:ann", scene.now, "shop", instance, "ann", Operator.MAINTENANCE, force=True))
    scene.run(1.0)
    assert serving(scene.world, scene.instance(1)) is Serving.NONE


def test_an_instance_that_no_pool_has_gets_nothing() -> None:
    scene = Scene(2, policy(from_balancer=False))
    scene.run(2.0)
    stranger = Instance("shop", Address("10.9.9.9", 80))
    scene.answers[stranger.address] = good()
    scene.feed(Discovered("shop", "static", scene.now, (stranger, Instance("shop", Address("10.0.0.1", 80)))))
    scene.run(2.0)

    found = scene.samples()

    assert value(found, "instance_serving_ratio", address="10.9.9.9:80") == 0
    assert value(found, "instance_serving_ratio", address="10.0.0.1:80") == 1


def test_own_numbers_and_sinks_are_there(scene: Scene) -> None:
    found = scene.samples(rss_bytes=1024, cpu_s=2.0, decisions_dropped=3, recorder_dropped=4)

    assert value(found, "resident_memory_bytes") == 1024
    assert value(found, "cpu_seconds_total") == 2.0
    assert value(found, "sink_dropped_total", sink="graphite") == 2
    assert value(found, "sink_sent_total", sink="graphite") == 5
    assert value(found, "sink_unconfirmed_total", sink="graphite") == 4
    assert value(found, "sink_up", sink="graphite") == 1
    assert value(found, "decision_log_dropped_total") == 3
    assert value(found, "recorder_dropped_total") == 4
    assert value(found, "build_info", version="1.2.3") == 1
    assert value(found, "policy_version") == 1


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ("rule:slow", "rule:slow"),
        ("hold:panic", "hold:panic"),
        ("operator:ann", "operator"),
        ("token:deploy", "token"),
        ("balancer:own-check", "balancer:own-check"),
        ("outside", "outside"),
    ],
)
def test_who_is_told_without_names_of_people(by: str, wanted: str) -> None:
    assert whose(by) == wanted


def test_a_million_different_rows_stay_bounded() -> None:
    tallies = Tallies()
    for i in range(3):
        events = tuple(Event(f"kind{i}-{k}", 0.0, "outside", "x") for k in range(MAX_ROWS))
        tallies.count_decision(Decision(0.0, events=events))

    assert len(tallies.decisions) == MAX_ROWS
    assert tallies.rows_dropped == 2 * MAX_ROWS


def test_traffic_is_counted_and_only_good_answers_are_timed() -> None:
    tallies = Tallies()
    tallies.count_traffic("shop", True, 0.1)
    tallies.count_traffic("shop", True, None)
    tallies.count_traffic("shop", False, 9.0)
    tallies.count_traffic("shop", True, math.nan)

    assert tallies.traffic == {("shop", "ok"): 3, ("shop", "fail"): 1}
    assert tallies.latency["shop", "traffic"].count == 1


def test_a_distribution_counts_every_value_up_to_each_bound() -> None:
    histogram = Histogram()
    values = [0.0, 1e-5, 0.0001, 0.0009, 0.003, 0.003, 0.4, 3.0, 15.9, 16.1, 900.0]
    for seconds in values:
        histogram.add(seconds)

    found = distribution(histogram)

    assert isinstance(found, Distribution)
    assert found.count == len(values)
    assert found.buckets == tuple((2.0**e, sum(v < 2.0**e for v in values)) for e in range(-13, 5))
    assert found.total == pytest.approx(sum(values), rel=0.006)


def test_samples_taken_one_by_one_survive_what_happens_meanwhile() -> None:
    scene = Scene(6)
    scene.run(12.0)
    own = Own(scene.tallies)
    lazily = each_sample(scene.world, scene.world.policy, scene.latencies, scene.now, own)
    taken = [next(lazily) for _ in range(60)]

    for i in (4, 5, 6):
        del scene.servers[Ref("shop", f"s{i}")]
    scene.run(3.0)
    taken += lazily

    rows = [(each.name, each.labels) for each in taken]
    assert len(set(rows)) == len(rows)
    assert len(scene.world.services["shop"].instances) == 3
    assert grouped(taken)[0].name == "lbsidecar_build_info"


def test_every_judgement_has_a_row_for_every_instance(scene: Scene) -> None:
    found = scene.samples()

    assert len(values(found, "instance_judgement")) == 4 * len(Judgement)
