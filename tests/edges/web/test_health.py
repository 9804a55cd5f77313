"""The rules of /health, /livez and /readyz, over real worlds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbplugins.values import Address, Operator
from sidecar.core.model import Commanded, Discovered, Instance, SelfChecked, Serving, Verb
from sidecar.core.policy import Guards, Mode
from sidecar.web import health
from sidecar.web.look import Look
from sidecar.web.models import Status
from tests.core.lab import hangs, refused, status_500
from tests.edges.web.desk import DeskLab, LabDesk, policies, service, warm


def look(desk: LabDesk) -> Look:
    return Look(desk.world, desk.policy, desk.now(), desk.wall_of, desk.latencies, desk.holds())


def found(desk: LabDesk) -> health.Finding:
    return health.of_service(look(desk), desk.world.services["shop"])


def nothing(desk: LabDesk) -> None: ...


def one_suspect(desk: LabDesk) -> None:
    desk.lab.answer(1, status_500())
    desk.lab.nudge(1)
    desk.lab.run(0.01)


def one_ejected(desk: LabDesk) -> None:
    desk.lab.answer(1, refused())
    desk.lab.run(3)


def one_drained(desk: LabDesk) -> None:
    desk.lab.set_seen(1, operator=Operator.DRAINING)
    desk.lab.run(2)


def all_in_maintenance(desk: LabDesk) -> None:
    for i in range(1, 5):
        desk.lab.set_seen(i, operator=Operator.MAINTENANCE)
    desk.lab.run(2)


def all_bad(desk: LabDesk) -> None:
    for i in range(1, 5):
        desk.lab.answer(i, hangs())
    desk.lab.run(3)


def frozen(desk: LabDesk) -> None:
    desk.lab.feed(Commanded(Verb.FREEZE, "operator:ann", desk.now(), "shop"))
    desk.lab.run(1)


def balancer_gone(desk: LabDesk) -> None:
    desk.lab.reachable = False
    desk.lab.run(2)


def discovery_lost(desk: LabDesk) -> None:
    desk.lab.feed(Discovered("shop", "dns:shop.example", desk.now(), error="no answer"))


def failing_open(desk: LabDesk) -> None:
    desk.world.services["shop"].failing_open = True


@pytest.mark.parametrize(
    ("what", "status", "word"),
    [
        (nothing, Status.PASS, ""),
        (one_suspect, Status.WARN, "s1 is suspect"),
        (one_ejected, Status.WARN, "s1 is ejected"),
        (one_drained, Status.PASS, ""),
        (all_in_maintenance, Status.FAIL, "none of 4 instances gets traffic"),
        (all_bad, Status.FAIL, "none of the 4 instances in rotation is judged healthy"),
        (frozen, Status.WARN, "frozen by operator:ann"),
        (balancer_gone, Status.WARN, "balancer edge: connection refused"),
        (discovery_lost, Status.WARN, "discovery dns:shop.example"),
        (failing_open, Status.FAIL, "failing open"),
    ],
)
def test_a_service(what: Callable[[LabDesk], None], status: Status, word: str) -> None:
    desk = warm()
    what(desk)

    finding = found(desk)

    assert (finding.status, word in " / ".join(finding.why)) == (status, True), finding
    assert bool(finding.why) is (status is not Status.PASS)


def test_nothing_is_judged_during_cold_start() -> None:
    lab = DeskLab(4)
    for i in range(1, 5):
        lab.answer(i, hangs())
    lab.run(0.3)

    assert found(LabDesk(lab)).status is Status.WARN


def test_an_observed_ejection_warns_and_still_counts_as_in_rotation() -> None:
    desk = warm(policy=policies(service("shop", mode=Mode.OBSERVE)))
    one_ejected(desk)

    finding = found(desk)

    assert (finding.status, finding.in_rotation) == (Status.WARN, 4)
    assert any(line.startswith("s1 is ejected") for line in finding.why)


def test_a_hold_is_named_with_its_arithmetic() -> None:
    desk = warm(2, policy=policies(service("shop", guards=Guards(min_healthy=2))))
    one_ejected(desk)

    assert "held by min_healthy: 1 healthy of 2 would be left in shop, at least 2 must be" in found(desk).why


def test_a_service_without_instances_fails_once_its_patience_is_over() -> None:
    lab = DeskLab(0)
    desk = LabDesk(lab)
    lab.run(1)
    early = found(desk).status

    lab.run(15)

    assert (early, found(desk).status) == (Status.WARN, Status.FAIL)


@pytest.mark.parametrize(
    ("what", "status"),
    [
        (nothing, Status.PASS),
        (one_suspect, Status.WARN),
        (one_ejected, Status.FAIL),
        (one_drained, Status.FAIL),
        (balancer_gone, Status.PASS),
    ],
)
def test_an_instance(what: Callable[[LabDesk], None], status: Status) -> None:
    desk = warm()
    what(desk)

    assert health.of_instance(look(desk), desk.lab.instance(1)).status is status


def test_the_whole_is_as_good_as_its_worst_service() -> None:
    lab = DeskLab(4, policies(service("shop"), service("api")))
    lab.add("api", "a1", "10.1.0.1:80")
    lab.answers[Address("10.1.0.1", 80)] = hangs()
    lab.run(15)

    whole = health.whole(look(LabDesk(lab)))

    assert whole.status is Status.FAIL
    assert [c[0].status for c in whole.checks.values()] == [Status.PASS, Status.FAIL]
    assert health.whole(look(LabDesk(lab)), frozenset({"shop"})).status is Status.PASS


def test_our_own_blindness_warns() -> None:
    desk = warm()
    desk.lab.feed(SelfChecked(desk.now(), network="no route"))

    whole = health.whole(look(desk))

    assert (whole.status, whole.notes) == (Status.WARN, ("blind: no route",))


def test_live_follows_the_decision_loop_alone() -> None:
    desk = warm()
    all_bad(desk)

    assert health.live(look(desk), desk.now() - 4.9).status is Status.PASS
    late = health.live(look(desk), desk.now() - 6.0)
    assert late.status is Status.FAIL and "6.0 s ago, 5 s allowed" in late.missing[0]


def test_ready_waits_for_every_balancer_and_every_cold_start() -> None:
    lab = DeskLab(4)
    lab.reachable = False
    desk = LabDesk(lab)
    lab.run(0.2)
    unseen = health.ready(look(desk))
    lab.reachable = True
    lab.run(1.2)
    lab.run(12)

    assert unseen.status is Status.FAIL
    assert any("balancer edge is not observed yet: connection refused" in m for m in unseen.missing)
    assert any("service shop is in its cold start" in m for m in unseen.missing)
    assert health.ready(look(desk)).status is Status.PASS


def test_no_answer_for_three_intervals_and_a_second_is_stale() -> None:
    desk = warm()
    state = desk.lab.instance(1)
    interval = look(desk).interval_s(state)
    assert interval is not None
    fresh = look(desk)

    later = Look(desk.world, desk.policy, desk.now() + 3 * interval + 1.2, desk.wall_of, desk.latencies)

    assert (fresh.is_stale(state), later.is_stale(state)) == (False, True)
    assert health.of_instance(later, state).status is Status.WARN


def test_a_long_list_of_reasons_is_cut_and_counted() -> None:
    desk = warm(60, seconds=1.0)
    later = Look(desk.world, desk.policy, desk.now() + 60, desk.wall_of, desk.latencies)

    why = health.of_service(later, desk.world.services["shop"]).why

    assert len(why) == health.NOTES + 1
    assert why[-1] == "and 10 more"


def test_an_instance_that_is_in_no_pool_gets_nothing() -> None:
    desk = warm()
    stranger = Instance("shop", Address("10.9.9.9", 80))
    desk.lab.feed(Discovered("shop", "static", desk.now(), (*desk.world.services["shop"].instances, stranger)))

    assert look(desk).serving(desk.world.services["shop"].instances[stranger]) is Serving.NONE
