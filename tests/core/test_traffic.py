"""Real requests as evidence: who is slow or wrong beside his peers goes, and nobody else, whatever else may be the matter."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest

from lbplugins.values import Address, Ref, TrafficSample
from sidecar.core import traffic
from sidecar.core.conduct import BAD, SLOW, TRIAL_REQUESTS, Conduct, Doubt, Row, begin_anew
from sidecar.core.model import HoldName, Instance, Judgement, Reason, Result, Strength
from sidecar.core.policy import ProbePlan
from tests.core.crowd import Crowd, Service, failing, lognormal, pausing, times
from tests.core.lab import Lab, good, hangs, policy, refused, status_500

WARM = 12.0
ONSET = 5.0
"""The load runs so long before anything happens."""


def busy(n: int = 8, rate: float = 500.0, **more: object) -> tuple[Lab, Crowd]:
    lab = Lab(n)
    lab.run(WARM)
    crowd = Crowd(lab, rate, **more)  # type: ignore[arg-type]
    lab.run(ONSET)
    assert lab.journal == []
    return lab, crowd


@pytest.mark.parametrize("factor", [3.0, 10.0, 20.0])
def test_one_that_is_slow_beside_its_peers_is_out_within_moments(factor: float) -> None:
    lab, crowd = busy()
    onset = lab.now
    crowd.conduct[4] = times(factor, crowd.usual)

    lab.run(2.0)

    assert lab.out() == [4]
    ejected = lab.told("ejected")[0]
    assert ejected.by == "rule:slow" and ejected.evidence[0].strength is Strength.SOFT
    assert ejected.at - onset < 1.2
    assert len(crowd.bad_after(onset)) <= 40


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_one_that_fails_real_requests_behind_a_green_probe_is_out(share: float) -> None:
    lab, crowd = busy()
    onset = lab.now
    crowd.conduct[4] = failing(share, crowd.usual)

    lab.run(3.0)

    assert lab.out() == [4] and lab.told("ejected")[0].by == "rule:traffic_errors"
    assert len(crowd.bad_after(onset)) <= 25


@pytest.mark.parametrize("status", [429, 501, 505, 404])
def test_what_tells_of_the_request_is_no_fault_of_the_instance(status: int) -> None:
    lab, crowd = busy()
    crowd.conduct[4] = failing(0.9, crowd.usual, status)

    lab.run(5.0)

    assert lab.journal == []


def test_a_client_that_leaves_tells_nothing() -> None:
    assert traffic.was_good(TrafficSample(Ref("shop", "s1"), 0, None, cut_by="client")) is None


@pytest.mark.parametrize("sick", [times(5.0, lognormal()), failing(0.3, lognormal())], ids=["slow", "errors"])
def test_what_all_do_is_nobodys_fault(sick: Service) -> None:
    lab, crowd = busy()
    for i in crowd.conduct:
        crowd.conduct[i] = sick

    lab.run(30.0)

    assert lab.journal == []


def test_half_of_the_pool_slow_is_something_they_share() -> None:
    lab, crowd = busy()
    for i in (1, 2, 3, 4):
        crowd.conduct[i] = times(5.0, crowd.usual)

    lab.run(10.0)

    assert lab.journal == []
    assert HoldName.POOL_SHIFT.value in lab.holds()


def test_three_of_eight_are_more_than_soft_evidence_may_take_so_it_is_something_they_share() -> None:
    lab, crowd = busy()
    for i in (1, 2, 3):
        crowd.conduct[i] = times(5.0, crowd.usual)

    lab.run(10.0)

    assert lab.journal == [] and HoldName.POOL_SHIFT.value in lab.holds()


def test_a_few_milliseconds_are_no_slowness_however_many_times_as_long() -> None:
    lab, crowd = busy(usual=lognormal(0.0005))
    crowd.conduct[4] = times(5.0, crowd.usual)

    lab.run(5.0)

    assert lab.journal == []


def test_slower_hardware_and_slow_from_birth_are_usual() -> None:
    lab = Lab(6)
    lab.run(WARM)
    crowd = Crowd(lab, 300.0)
    crowd.conduct[2], crowd.conduct[5] = times(1.3, crowd.usual), times(6.0, crowd.usual)

    lab.run(120.0)

    assert lab.journal == []


@pytest.mark.parametrize(("n", "rate"), [(3, 15.0), (3, 600.0), (8, 500.0)])
def test_pauses_of_the_garbage_collector_are_no_slowness(n: int, rate: float) -> None:
    lab, crowd = busy(n, rate)
    for i in crowd.conduct:
        crowd.conduct[i] = pausing(2.0, 0.2, crowd.usual, phase=i * 0.37)

    lab.run(120.0)

    assert lab.journal == []


def test_ten_percent_of_slow_pages_everywhere_are_usual() -> None:
    lab = Lab(5)
    lab.run(WARM)

    def mixed(now: float, dice: object) -> tuple[float, int]:
        seconds, status = lognormal(sigma=0.6)(now, dice)  # type: ignore[arg-type]
        return (seconds * 30 if dice.random() < 0.1 else seconds), status  # type: ignore[attr-defined]

    Crowd(lab, 250.0, usual=mixed)
    lab.run(200.0)

    assert lab.journal == []


def test_soft_evidence_takes_no_more_than_its_budget_and_one_in_ten_seconds() -> None:
    lab, crowd = busy(9)
    crowd.conduct[1] = times(10.0, crowd.usual)
    lab.run(2.0)
    crowd.conduct[2] = times(10.0, crowd.usual)
    lab.run(2.0)
    assert lab.out() == [1] and HoldName.VELOCITY.value in lab.holds()

    lab.run(8.0)
    assert 2 in lab.out()


def test_of_two_none_is_taken_out_for_slowness() -> None:
    lab, crowd = busy(2, 100.0)
    crowd.conduct[1] = times(10.0, crowd.usual)

    lab.run(5.0)

    assert lab.journal == [] and lab.instance(1).told is Judgement.SUSPECT


def test_it_comes_back_on_trial_and_goes_again_for_longer_at_little_cost() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = failing(0.5, crowd.usual)
    lab.run(8.0)
    assert lab.out() == [4]
    tried = lab.now

    lab.run(60.0)

    returns = [e.at for e in lab.told("returned") if e.at > tried]
    spans = [b - a for a, b in pairwise(returns)]
    assert len(returns) >= 2 and all(later > 1.5 * earlier for earlier, later in pairwise(spans))
    for at in returns:
        assert len([1 for when, _ in crowd.bad_after(at) if when < at + 5.0]) <= 20


def test_one_that_has_recovered_stays_in_after_its_trial() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = times(20.0, crowd.usual)
    lab.run(3.0)
    crowd.conduct[4] = crowd.usual

    lab.run(60.0)

    assert lab.out() == [] and len(lab.told("ejected")) == 1


def test_a_feed_that_others_can_write_to_ejects_nobody_by_itself() -> None:
    lab, _ = busy(forgeable=True)
    forger = Instance("shop", Address("10.0.0.4", 80))
    lies = [(forger, TrafficSample(Ref("shop", "s4"), 500, 0.01, forgeable=True))] * 5

    for _ in range(200):
        lab.run(0.02)
        lab.feed(traffic.tally("edge", lab.now, lies))

    assert lab.journal == []
    assert HoldName.UNCONFIRMED.value in lab.holds()


@pytest.mark.parametrize("sick", [times(20.0, lognormal()), failing(0.3, lognormal())], ids=["slow", "errors"])
def test_what_the_balancer_counts_itself_confirms_such_a_feed(sick: Service) -> None:
    lab, crowd = busy(forgeable=True)
    crowd.conduct[4] = sick

    lab.run(4.0)

    assert lab.out() == [4]


def lie_about(lab: Lab, i: int, status: int, seconds: float, span: float, *, each: int = 5) -> None:
    """Somebody sends lines about one instance over UDP, while whatever else is heard comes as it did."""
    sample = TrafficSample(Ref("shop", f"s{i}"), status, seconds, forgeable=True)
    for _ in range(round(span / 0.02)):
        lab.run(0.02)
        lab.feed(traffic.tally("other", lab.now, [(Instance("shop", Address(f"10.0.0.{i}", 80)), sample)] * each))


def test_forged_lines_are_not_believed_for_honest_ones_that_come_between() -> None:
    lab, _ = busy(rate=100.0)

    lie_about(lab, 4, 500, 0.01, 4.0)

    assert lab.journal == [] and HoldName.UNCONFIRMED.value in lab.holds()


def test_one_lost_probe_confirms_no_forged_lines() -> None:
    lab, _ = busy(rate=100.0)
    calls = iter(range(10_000))
    lab.answer(4, lambda now, timeout: (Result.FAIL, Reason.TIMEOUT, timeout) if next(calls) % 4 == 0 else (Result.OK, None, 0.0005))

    lie_about(lab, 4, 500, 0.01, 4.0)

    assert lab.journal == []


def test_forged_good_answers_keep_nobody_in_that_is_dead() -> None:
    lab, crowd = busy()
    lab.run(0.5)  # the next picture still counts what it answered while it lived
    crowd.conduct[4] = lambda now, dice: (1000.0, 200)
    lab.answer(4, refused())
    lab.nudge(4)

    lie_about(lab, 4, 200, 0.01, 1.5)

    assert lab.out() == [4]


def test_what_the_balancer_counts_itself_contradicts_a_failing_probe_over_udp_too() -> None:
    lab, _ = busy(forgeable=True)
    lab.answer(4, status_500())

    lab.run(5.0)

    assert lab.journal == [] and HoldName.CONTRADICTION.value in lab.holds()


def test_one_late_probe_confirms_nothing() -> None:
    lab, crowd = busy(forgeable=True)
    for i in crowd.conduct:
        lab.set_seen(i, counters=None, in_flight=None)
    calls = iter(range(10_000))
    lab.answer(4, lambda now, timeout: (Result.OK, None, 0.01 if next(calls) % 2 else 0.0005))
    crowd.counts = False
    crowd.conduct[4] = times(20.0, crowd.usual)

    lab.run(4.0)

    assert lab.journal == [] and HoldName.UNCONFIRMED.value in lab.holds()


def test_a_slow_probe_confirms_such_a_feed() -> None:
    lab, crowd = busy(forgeable=True)
    for i in crowd.conduct:
        lab.set_seen(i, counters=None, in_flight=None)
    crowd.counts = False
    crowd.conduct[4] = times(20.0, crowd.usual)
    lab.answer(4, good(0.01))

    lab.run(2.0)

    assert lab.out() == [4]


def test_a_probe_that_fails_while_real_requests_go_well_is_contradicted() -> None:
    lab, _ = busy()
    lab.answer(4, status_500())

    lab.run(5.0)

    assert lab.journal == []
    assert HoldName.CONTRADICTION.value in lab.holds()


def test_it_is_contradicted_only_as_long_as_real_requests_go_well() -> None:
    lab, crowd = busy()
    lab.answer(4, status_500())
    lab.run(1.0)
    assert lab.journal == []

    crowd.conduct[4] = lambda now, dice: (1000.0, 200)
    lab.run(1.0)

    assert lab.out() == [4]


def test_one_that_hangs_is_not_excused_by_what_it_answered_before() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = lambda now, dice: (1000.0, 200)
    lab.answer(4, hangs())

    lab.run(1.0)

    assert lab.out() == [4] and lab.told("ejected")[0].by == "rule:consecutive"


def test_silence_where_requests_were_expected_is_a_question() -> None:
    lab = Lab(8, policy(probes=[ProbePlan("http:/health", 10.0)]))
    lab.run(60.0)
    crowd = Crowd(lab)
    lab.run(5.0)
    asked = lab.now
    crowd.conduct[4] = lambda now, dice: (1000.0, 200)

    lab.run(0.3)

    newest = {t.address.host: s.newest_started for t, s in lab.world.targets.items()}
    assert newest["10.0.0.4"] > asked
    assert sum(at > asked for at in newest.values()) == 1


def test_tally_is_the_same_in_any_order() -> None:
    a, b = (Instance("shop", Address(f"10.0.0.{i}", 80)) for i in (1, 2))
    heard = [(a, TrafficSample(Ref("shop", "s1"), 200, 0.01 * k)) for k in range(1, 50)] + [(b, TrafficSample(Ref("shop", "s2"), 500, 0.2))]

    one, other = traffic.tally("edge", 1.0, heard), traffic.tally("edge", 1.0, heard[::-1])

    assert one == other
    assert [(s.good, s.bad, len(s.seconds)) for s in one.served] == [(49, 0, 32), (0, 1, 0)]


def test_it_is_not_tried_while_its_probe_is_as_slow_as_it_was() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = times(20.0, crowd.usual)
    lab.answer(4, good(0.01))
    lab.run(40.0)
    assert lab.out() == [4] and len(lab.told("ejected")) == 1
    assert HoldName.STILL_SLOW.value in lab.holds()

    crowd.conduct[4] = crowd.usual
    lab.answer(4, good())
    lab.run(3.0)
    assert lab.out() == []


def test_what_our_own_ejection_cuts_off_is_not_held_against_it() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = lambda now, dice: (0.6, 502)
    lab.answer(4, hangs())
    lab.run(1.0)
    assert lab.out() == [4] and lab.told("ejected")[0].by == "rule:consecutive"

    crowd.conduct[4] = crowd.usual
    lab.answer(4, good())
    lab.run(5.0)
    assert lab.out() == [] and len(lab.told("ejected")) == 1


def test_lines_about_one_that_is_out_count_for_nothing() -> None:
    lab, crowd = busy()
    crowd.conduct[4] = lambda now, dice: (1000.0, 200)
    lab.answer(4, hangs())
    lab.run(1.0)
    assert lab.out() == [4]

    lie_about(lab, 4, 502, 0.01, 1.0)

    assert lab.instance(4).conduct.bad.level == 0.0 and lab.world.services["shop"].usual_bad == 0.0


# ---- who is to blame, by the numbers ----


def against(lab: Lab, rule: str) -> list[HoldName]:
    """What speaks for instance 1, whose evidence by this rule is complete, 10 hits of its last 20 requests."""
    state, service = lab.instance(1), lab.world.services["shop"]
    doubt, measure = (state.conduct.slow, SLOW) if rule == "slow" else (state.conduct.bad, BAD)
    doubt.level, doubt.since, doubt.hits, doubt.requests = measure.enough, lab.now - 1.0, 10, 20
    charge = traffic.accusation(state)
    assert charge is not None and charge.rule == rule
    return [hold.name for hold in traffic.against(lab.world, service, state, charge, 2)]


@pytest.mark.parametrize(("bad", "held"), [(0, []), (5, [HoldName.POOL_SHIFT])])
def test_it_must_do_much_worse_than_its_peers_in_the_same_moments(bad: int, held: list[HoldName]) -> None:
    lab, _ = busy()
    for i in range(2, 9):
        lab.instance(i).conduct.rows = [Row(lab.now - 0.5, 20, 0, bad)]

    assert against(lab, "traffic_errors") == held


@pytest.mark.parametrize(("times_as_long", "held"), [(1.0, []), (3.0, [HoldName.POOL_SHIFT])])
def test_where_all_take_longer_than_is_usual_nobody_is_slow(times_as_long: float, held: list[HoldName]) -> None:
    lab, _ = busy()
    for i in range(2, 9):
        lab.instance(i).conduct.drift = log(times_as_long)

    assert against(lab, "slow") == held


def test_what_ends_at_one_moment_is_one_piece_of_evidence() -> None:
    burst, spread = Doubt(), Doubt()
    for k in range(20):
        burst.take(1, 1, 0.0, SLOW, 10.0 + 0.0005 * k)
        spread.take(1, 1, 0.0, SLOW, 10.0 + 0.03 * k)

    assert burst.level < SLOW.enough / 3 and spread.level >= SLOW.enough


def test_half_of_the_evidence_is_enough_on_trial_and_all_of_it_afterwards() -> None:
    conduct = Conduct()
    begin_anew(conduct, on_trial=True)
    assert conduct.enough(BAD) == BAD.enough / 2

    conduct.take((0.01,), TRIAL_REQUESTS, 0, 0, 5.0)
    assert conduct.enough(BAD) == BAD.enough

    begin_anew(conduct, on_trial=False)
    assert conduct.enough(BAD) == BAD.enough


def test_a_sick_hour_does_not_become_usual() -> None:
    conduct = Conduct()
    for k in range(200):
        conduct.take((0.01,), 1, 0, 0, 0.1 * k)
    assert conduct.usual == pytest.approx(log(0.01))

    conduct.slow.level = SLOW.enough
    for k in range(3600):
        conduct.take((0.2,), 1, 1, 0, 20.0 + k)

    assert conduct.usual == pytest.approx(log(0.01))
