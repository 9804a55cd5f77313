"""Names, lookups, serving and the sentence of what comes next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lbplugins.values import Address, Operator, Setting
from sidecar.core.model import Commanded, Instance, Serving, Verb
from sidecar.core.policy import BalancerPolicy, Guards, Mode
from sidecar.web.look import Look, Unresolved, find, names
from sidecar.web.outlook import next_of, span
from tests.core.lab import good, refused, status_500
from tests.edges.web.desk import DeskLab, LabDesk, policies, service, warm


def look(desk: LabDesk) -> Look:
    return Look(desk.world, desk.policy, desk.now(), desk.wall_of, desk.latencies, desk.holds())


def twelve() -> LabDesk:
    return warm(12)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3", "10.0.0.3:80"),
        ("10.0.0.3:80", "10.0.0.3:80"),
        ("shop/s3", "10.0.0.3:80"),
        ("edge/shop/s3", "10.0.0.3:80"),
        ("10.0.0.3", "10.0.0.3:80"),
        ("s12", "10.0.0.12:80"),
        ("s1", "10.0.0.1:80"),
        ("10.0.0.1", "10.0.0.1:80"),
    ],
)
def test_an_instance_answers_to_its_names_and_to_a_prefix_of_its_own(text: str, address: str) -> None:
    state = find(twelve().world.services["shop"], text)

    assert str(state.instance.address) == address


@pytest.mark.parametrize("gone", ["s1", "10.0.0.1", "10.0.0.1:80", "shop/s1"])
def test_who_has_gone_is_not_mistaken_for_one_whose_number_begins_alike(gone: str) -> None:
    service = twelve().world.services["shop"]
    service.instances = {i: state for i, state in service.instances.items() if str(i.address) == "10.0.0.12:80"}

    with pytest.raises(Unresolved):
        find(service, gone)


@pytest.mark.parametrize(
    ("text", "is_ambiguous"), [("s", True), ("10.0.0", True), ("t1", False), ("", False), ("s13", False), ("10.0.0.12:8", False)]
)
def test_what_fits_none_or_several_names_what_could_be_meant(text: str, is_ambiguous: bool) -> None:
    with pytest.raises(Unresolved) as caught:
        find(twelve().world.services["shop"], text)

    assert caught.value.is_ambiguous is is_ambiguous
    assert "s1 (10.0.0.1:80)" in caught.value.candidates


def test_a_name_that_two_pools_give_to_different_addresses_names_neither() -> None:
    lab = DeskLab(2, policies(service("shop", pools=(("edge", "shop"), ("edge", "shop_ws")))))
    lab.add("shop_ws", "s1", "10.0.0.2:80")
    lab.add("shop_ws", "s2", "10.7.0.1:80")
    lab.answers[Address("10.7.0.1", 80)] = good()
    lab.run(3)
    shop = lab.world.services["shop"]

    called = names(shop)

    assert set(called.values()) == {"s1", "10.0.0.2:80", "10.7.0.1:80"}
    with pytest.raises(Unresolved):
        find(shop, "s2")
    assert find(shop, "shop_ws/s2").instance.address == Address("10.7.0.1", 80)


@pytest.mark.parametrize(
    ("seen", "serving"),
    [
        ({}, Serving.FULL),
        ({"operator": Operator.DRAINING}, Serving.NONE),
        ({"serving": False}, Serving.NONE),
        ({"ours": Setting(weight_pct=40)}, Serving.REDUCED),
    ],
)
def test_serving_is_what_the_balancer_shows(seen: dict[str, object], serving: Serving) -> None:
    desk = warm()
    desk.lab.set_seen(1, **seen)
    desk.lab.feed()
    desk.lab._look()

    assert look(desk).serving(desk.lab.instance(1)) is serving


def test_serving_in_one_of_two_pools_is_reduced() -> None:
    lab = DeskLab(2, policies(service("shop", pools=(("edge", "shop"), ("edge", "shop_ws")))))
    lab.add("shop_ws", "w1", "10.0.0.1:80", serving=False, operator=Operator.MAINTENANCE)
    lab.run(3)

    assert look(LabDesk(lab)).serving(lab.instance(1)) is Serving.REDUCED


# ---- what happens next ----


def healthy(desk: LabDesk) -> None: ...


def out(desk: LabDesk) -> None:
    desk.lab.answer(1, refused())
    desk.lab.run(3)


def failing_once(desk: LabDesk) -> None:
    desk.lab.answer(1, status_500())
    desk.lab.nudge(1)
    desk.lab.run(0.01)


def on_probation(desk: LabDesk) -> None:
    out(desk)
    desk.lab.answer(1, good())
    for _ in range(400):
        desk.lab.run(0.01)
        if look(desk).judgement(desk.lab.instance(1)) == "probation" and desk.lab.instance(1).ejection is None:
            return


def on_the_way_back(desk: LabDesk) -> None:
    out(desk)
    desk.lab.reachable = False
    desk.lab.answer(1, good())
    desk.lab.run(3)


def drained_here(desk: LabDesk) -> None:
    instance = Instance("shop", Address("10.0.0.1", 80))
    desk.lab.feed(Commanded(Verb.OVERRIDE, "token:ci", desk.now(), "shop", instance, "ci", Operator.DRAINING, until=desk.now() + 600))
    desk.lab.run(1)


def drained_there(desk: LabDesk) -> None:
    desk.lab.set_seen(1, operator=Operator.MAINTENANCE)
    desk.lab.run(2)


def out_and_frozen(desk: LabDesk) -> None:
    out(desk)
    desk.lab.feed(Commanded(Verb.FREEZE, "operator:ann", desk.now()))
    desk.lab.run(0.1)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (healthy, "asked again within 100 ms"),
        (out, "returns after 2 more good answers in a row"),
        (failing_once, "3 more failures in a row complete the evidence (fewer if refused); a good answer clears it"),
        (on_probation, "healthy after 2 more good answers in a row"),
        (on_the_way_back, "its return waits until every balancer shows it"),
        (drained_here, "stays in draining for 10 min more, by token:ci"),
        (drained_there, "stays in maintenance until its operator makes it ready at the balancer"),
        (out_and_frozen, "nothing: frozen by operator:ann until it is unfrozen"),
    ],
)
def test_what_happens_next(what: Callable[[LabDesk], None], sentence: str) -> None:
    desk = warm()
    what(desk)

    assert next_of(look(desk), desk.lab.instance(1)) == sentence


def test_our_drain_where_the_balancer_knows_none_ends_when_we_said() -> None:
    desk = warm(policy=replace(policies(service("shop")), balancers={"edge": BalancerPolicy("edge", drain=False)}))
    drained_here(desk)
    desk.lab.set_seen(1, operator=Operator.MAINTENANCE)
    desk.lab.run(1)

    assert next_of(look(desk), desk.lab.instance(1)) == "stays in maintenance for 10 min more, by token:ci"


def test_a_held_ejection_says_what_holds_it() -> None:
    desk = warm(2, policy=policies(service("shop", guards=Guards(min_healthy=2))))
    out(desk)

    assert next_of(look(desk), desk.lab.instance(1)) == (
        "stays in as long as this holds: min_healthy (1 healthy of 2 would be left in shop, at least 2 must be)"
    )


def test_observe_mode_says_that_nothing_is_written() -> None:
    desk = warm(policy=policies(service("shop", mode=Mode.OBSERVE)))

    assert next_of(look(desk), desk.lab.instance(1)).endswith("observe mode: nothing is ever written")


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 ms"), (0.25, "250 ms"), (12, "12 s"), (600, "10 min"), (10800, "3.0 h")])
def test_spans_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text
