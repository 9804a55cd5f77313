"""The arithmetic of a policy against the real core in virtual time: what it promises is what happens."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbplugins.values import Address, Ref, Serve
from sidecar.core.arithmetic import (
    ASSUMED_ANSWER_S,
    LOSS,
    Arithmetic,
    Failure,
    Manner,
    Span,
    arithmetic,
    false_ejections,
    hold_down_s,
    manner,
    most_out,
)
from sidecar.core.model import Instance, Learned, Outcome, Reason, Result, Target
from sidecar.core.policy import Guards, Mode, Pace, ProbePlan, RuleMode, Rules, ServicePolicy
from sidecar.core.streak import Streak, clear, step
from tests.core.lab import Answer, Lab, policy, refused

LIVELY = Rules(repeat_within_s=0.001, flap_per_min=6000.0)
"""Each failure is a first one, so that one lab sees many."""


# ---- a lab with answers that vary, and its arithmetic ----


def sound(rng: random.Random, typical_s: float) -> Answer:
    return lambda now, timeout: (Result.OK, None, typical_s * rng.uniform(0.8, 1.2))


def failing(rng: random.Random, failure: Failure, typical_s: float) -> Answer:
    match failure:
        case Failure.REFUSED:
            return lambda now, timeout: (Result.FAIL, rng.choice((Reason.REFUSED, Reason.RESET)), typical_s * rng.uniform(0.0, 1.0))
        case Failure.TIMEOUT:
            return lambda now, timeout: (Result.FAIL, Reason.TIMEOUT, timeout)
        case _:
            return lambda now, timeout: (Result.FAIL, Reason.STATUS, typical_s * rng.uniform(0.0, 1.0))


def warm_lab(rng: random.Random, n: int, typical_s: float, *, until_s: float = 60.0, **more: Any) -> Lab:
    """Everybody known to be healthy, and by default known for long."""
    lab = Lab(n, policy(**more))
    for i in range(1, n + 1):
        lab.answer(i, sound(rng, typical_s))
    lab.run(until_s)
    return lab


def predicted(lab: Lab) -> Arithmetic:
    """From what the lab's own targets have learned."""
    service = lab.policy.services["shop"]
    rows = []
    for i in range(1, lab.n + 1):
        states = [lab.world.targets[Target(Address(f"10.0.0.{i}", 80), plan.key)] for plan in service.probes]
        rows.append([Learned(s.good, s.median_s, s.slow_s) if s.good else None for s in states])
    return arithmetic(service, lab.policy.pace, rows)


def told_at(lab: Lab, i: int, serve: Serve, since: float) -> float:
    """When a decision first sent this to the balancer."""
    for decision in lab.decisions:
        if decision.at >= since:
            for change in (decision.changes or {}).get("edge", ()):
                if change.ref == Ref("shop", f"s{i}") and change.want.serve is serve:
                    return decision.at
    raise AssertionError(f"s{i} was never told {serve}: {[e.sentence for e in lab.events[-3:]]} {lab.holds()}")


def wait_for(lab: Lab, *, out: list[int], most_s: float) -> None:
    late = lab.now + most_s
    while lab.out() != out:
        assert lab.now < late, f"out: {lab.out()}, not {out}; {lab.holds()}"
        lab.run(0.05)


def calm_s(lab: Lab) -> float:
    """Until every window is full again, if it is ever the quicker rule."""
    service = lab.policy.services["shop"]
    return (
        1.1 * service.rules.window * (service.probes[0].interval_s or 1.0) if service.rules.window_bad * service.rules.window < 10 else 0.0
    )


def fail_once(lab: Lab, rng: random.Random, i: int, failure: Failure, typical_s: float) -> tuple[float, float]:
    """Seconds from the fault to the ejection sent, and from its end to the return sent."""
    lab.run(calm_s(lab) + rng.uniform(1.0, 3.0))
    del lab.decisions[:-1]
    began = lab.now
    lab.answer(i, failing(rng, failure, typical_s))
    if failure is Failure.REFUSED and rng.random() < 0.3:
        lab.nudge(i)  # its kept connection was closed with it
    wait_for(lab, out=[i], most_s=60.0)
    lab.run(rng.uniform(0.0, 5.0))
    ended = lab.now
    lab.answer(i, sound(rng, typical_s))
    wait_for(lab, out=[], most_s=60.0)
    return told_at(lab, i, Serve.NONE, began) - began, told_at(lab, i, Serve.FULL, ended) - ended


def random_policy(rng: random.Random) -> dict[str, Any]:
    """Probes and rules as a person might write them; half of the time the defaults."""
    if rng.random() < 0.5:
        return {"rules": LIVELY}
    interval_s = rng.choice((None, 0.2, 0.5, 1.0, 2.0))
    plans = [ProbePlan(key, interval_s, rng.choice((None, 0.05, 0.15))) for key in ("http:/health", "http:/deep")[: rng.choice((1, 1, 2))]]
    rules = replace(
        LIVELY,
        fall=rng.randint(2, 6),
        fall_fast=rng.randint(1, 4),
        fast_spread_s=rng.choice((0.0, 0.05, 0.15, 0.4)),
        rise=rng.randint(1, 4),
        window=rng.choice((10, 20)),
        window_bad=rng.choice((0.3, 0.5)),
        off=rng.choice((frozenset(), frozenset(), frozenset({"window"}))),
    )
    return {"probes": plans, "rules": rules, "require": rng.choice((None, 1))}


@pytest.mark.parametrize("seed", range(12))
def test_what_happens_lies_within_what_was_said(seed: int) -> None:
    rng = random.Random(seed)
    typical_s = 0.0002 * 100 ** (seed / 11)
    n = rng.randint(2, 10)
    lab = warm_lab(rng, n, typical_s, **random_policy(rng))
    took: dict[Failure, list[float]] = defaultdict(list)
    inside = returned = total = 0
    backs = []

    for turn in range(48):
        failure = list(Failure)[turn % 3]
        said = predicted(lab)
        out_s, back_s = fail_once(lab, rng, rng.randint(1, n), failure, typical_s)
        took[failure].append(out_s)
        backs.append(back_s)
        total += 1
        inside += said.detect[failure].least <= out_s <= said.detect[failure].most
        returned += said.back.least <= back_s <= said.back.most

    assert said.known == n
    assert inside >= 0.95 * total, (typical_s, {f: (said.detect[f], sorted(t)) for f, t in took.items()})
    assert returned >= 0.95 * total, (typical_s, said.back, sorted(backs))
    if len(lab.policy.services["shop"].probes) > 1:
        return  # of two phases the sooner counts: both late is rarer than 16 tries show
    for failure, times in took.items():
        p99 = max(times)  # of 16
        assert said.detect[failure].most <= 1.5 * p99, (typical_s, failure, said.detect[failure], sorted(times))


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("typical_s", [0.0005, 0.02])
def test_the_bound_before_learning_holds_right_after_the_cold_start(failure: Failure, typical_s: float) -> None:
    rng = random.Random(7)
    for _ in range(8):
        lab = warm_lab(rng, 4, typical_s, until_s=1.5, rules=LIVELY)
        said = predicted(lab)

        out_s, _ = fail_once(lab, rng, 2, failure, typical_s)

        assert said.known == 0
        assert said.detect[failure].least <= out_s <= said.detect[failure].most


def test_refused_needs_no_more_than_its_spread_when_the_closing_is_seen() -> None:
    rng = random.Random(1)
    lab = warm_lab(rng, 4, 0.0005)
    lab.run(2.0)
    began = lab.now

    lab.answer(3, refused())
    lab.nudge(3)
    wait_for(lab, out=[3], most_s=5.0)

    took = told_at(lab, 3, Serve.NONE, began) - began
    assert predicted(lab).detect[Failure.REFUSED].least == pytest.approx(0.15)
    assert 0.15 <= took < 0.2


def test_known_targets_have_the_bounds_of_the_design() -> None:
    service = policy().services["shop"]

    said = arithmetic(service, Pace(), [[Learned(100, 0.0005, 0.001)]] * 4)

    assert (said.known, said.instances, said.never) == (4, 4, "")
    assert said.detect[Failure.REFUSED].most < 0.35
    assert said.detect[Failure.TIMEOUT].least == pytest.approx(4 * 0.06 + 3 * 0.02 - 0.001)
    assert said.detect[Failure.TIMEOUT].most < 0.5
    assert said.detect[Failure.WRONG].most < 0.25
    assert said.probes_per_s == pytest.approx(40.0)


def test_a_slow_instance_widens_the_bound_of_its_service_and_of_its_peers() -> None:
    service = policy().services["shop"]
    quick, slow = [Learned(100, 0.0005, 0.001)], [Learned(100, 0.01, 0.05)]

    alone, mixed = arithmetic(service, Pace(), [quick] * 3), arithmetic(service, Pace(), [quick, quick, slow])

    assert mixed.detect[Failure.TIMEOUT].most > alone.detect[Failure.TIMEOUT].most + 0.8
    assert mixed.detect[Failure.TIMEOUT].least < alone.detect[Failure.TIMEOUT].least + 1e-9


def test_settling_and_reloads_come_on_top() -> None:
    service, learned = policy().services["shop"], [[Learned(100, 0.0005, 0.001)]] * 4

    plain = arithmetic(service, Pace(), learned)
    reloads = arithmetic(service, Pace(), learned, costly=True, settle_s=1.0)

    assert plain.in_force == plain.detect == reloads.detect
    for failure in Failure:
        assert reloads.in_force[failure] == reloads.detect[failure] + Span(0.0, 2.0)


def test_nobody_known_assumes_an_answer_time_and_counts_as_unknown() -> None:
    service = policy().services["shop"]

    nobody, unknown = arithmetic(service, Pace(), []), arithmetic(service, Pace(), [[None]] * 3)

    assert nobody.detect == unknown.detect
    assert (nobody.instances, unknown.known) == (0, 0)
    assert manner(service.probes[0], Pace(), Learned(29, 0.0005, 0.001)) == Manner(0.25, 1.0, ASSUMED_ANSWER_S, is_known=False)
    assert unknown.detect[Failure.TIMEOUT].least > 3.9


# ---- after repeats ----


def test_each_repeat_stays_out_as_long_as_was_said() -> None:
    rng = random.Random(3)
    lab = warm_lab(rng, 4, 0.0005)
    said = predicted(lab)

    back = []
    for _ in range(4):
        lab.run(2.0)
        lab.answer(2, refused())
        wait_for(lab, out=[2], most_s=10.0)
        ended = lab.now
        lab.answer(2, sound(rng, 0.0005))
        wait_for(lab, out=[], most_s=60.0)
        back.append(told_at(lab, 2, Serve.FULL, ended) - ended)

    bounds = [said.back, *said.after_repeat[:3]]
    assert all(bound.least <= took <= bound.most for took, bound in zip(back, bounds, strict=True)), (back, bounds)
    assert [hold_down_s(k, Rules()) for k in (0, 1, 2, 3, 7, 50)] == [0.0, 5.0, 10.0, 20.0, 300.0, 300.0]
    assert back[3] > 19.0


def test_after_a_long_outage_the_return_takes_no_longer_than_was_said() -> None:
    rng = random.Random(5)
    for outage_s in (120.0, 121.3, 123.1):
        lab = Lab(3, replace(policy(), pace=Pace(ejected_long_after_s=20.0)))
        lab.run(12.0)
        lab.answer(1, refused())
        lab.run(outage_s)
        said, ended = predicted(lab), lab.now
        lab.answer(1, sound(rng, 0.0005))

        wait_for(lab, out=[], most_s=10.0)

        assert said.back_late.least <= told_at(lab, 1, Serve.FULL, ended) - ended <= said.back_late.most


# ---- by mistake ----


def simulated_false_per_day(rules: Rules, interval_s: float, loss: float, probes: int, seed: int) -> float:
    """With the core's own streak: each probe is lost by chance, and an ejection begins anew."""
    rng, streak = random.Random(seed), Streak()
    target, at, ejections, calm = Target(Address("10.0.0.1", 80), "http:/"), 0.0, 0, 0
    for _ in range(probes):
        is_bad = rng.random() < loss
        result, reason = (Result.FAIL, Reason.TIMEOUT) if is_bad else (Result.OK, None)
        calm += not streak.pending
        step(streak, Outcome(target, result, at, at, reason), rules)
        at += 0.02 if streak.pending else interval_s
        if streak.failed:
            ejections += 1
            clear(streak, at)
    return ejections / (calm * interval_s) * 86400.0


@pytest.mark.parametrize(
    ("rules", "loss"),
    [
        (Rules(fall=2, off=frozenset({"window"})), 0.03),
        (Rules(fall=3, off=frozenset({"window"})), 0.1),
        (Rules(fall=4), 0.15),
        (Rules(fall=10, window=20, window_bad=0.25), 0.05),
        (Rules(fall=4, window=10, window_bad=0.5), 0.1),
    ],
)
def test_false_ejections_are_as_many_as_in_a_simulation(rules: Rules, loss: float) -> None:
    service, row = ServicePolicy("shop", probes=(ProbePlan("http:/"),), rules=rules), [Manner(0.5, 0.06, 0.001, is_known=True)]

    said = false_ejections(service, row, loss)
    seen = simulated_false_per_day(rules, 0.5, loss, 250_000, seed=11)

    assert said / 1.5 <= seen <= said * 1.5


def test_one_percent_loss_costs_nothing_with_the_defaults() -> None:
    said = arithmetic(policy().services["shop"], Pace(), [[Learned(100, 0.0005, 0.001)]] * 20)

    assert said.false_per_day == pytest.approx(864_000 * LOSS**4, rel=0.01)
    assert said.false_per_day_of_service == pytest.approx(20 * said.false_per_day)


def test_probes_that_must_all_fail_make_false_ejections_rarer_and_those_of_which_one_is_enough_add_up() -> None:
    row = [Manner(1.0, 0.1, 0.001, is_known=True)] * 3
    plans = tuple(ProbePlan(f"http:/{k}") for k in range(3))
    rules = Rules(fall=2, off=frozenset({"window"}))
    one = false_ejections(ServicePolicy("shop", probes=plans[:1], rules=rules), row[:1], LOSS)

    every = false_ejections(ServicePolicy("shop", probes=plans, rules=rules), row, LOSS)
    two = false_ejections(ServicePolicy("shop", probes=plans, rules=rules, require=2), row, LOSS)
    any_of_them = false_ejections(ServicePolicy("shop", probes=plans, rules=rules, require=1), row, LOSS)

    assert every == pytest.approx(3 * one)
    assert two == pytest.approx(3 * one * 2 * one / 86400)
    assert any_of_them == pytest.approx(3 * one * (one / 86400) ** 2)


@given(st.integers(1, 8), st.floats(0.001, 0.2))
def test_more_patience_never_means_more_false_ejections(fall: int, loss: float) -> None:
    row = [Manner(0.5, 0.1, 0.001, is_known=True)]

    def rate(patience: int) -> float:
        return false_ejections(ServicePolicy("shop", probes=(ProbePlan("a"),), rules=Rules(fall=patience)), row, loss)

    assert rate(fall + 1) <= rate(fall)
    assert rate(30) == pytest.approx(2 * 86400 * (loss**30 + comb(19, 9) * loss**10 * (1 - loss) ** 10), rel=1e-6)


# ---- the most that can be out ----


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("guards", [Guards(), Guards(max_ejected_hard=0.34, min_healthy=2), Guards(max_ejected_hard=1.0, min_healthy=3)])
def test_with_all_but_one_dead_exactly_so_many_are_out(n: int, guards: Guards) -> None:
    service = replace(policy().services["shop"], guards=guards)
    lab = Lab(n, replace(policy(), services={"shop": service}))
    lab.run(15.0)

    # One after the other, each with sound witnesses to speak against it.
    for i in range(1, n):
        lab.answer(i, refused())
        lab.run(6.0)

    assert len(lab.out()) == most_out(service, n).hard, lab.holds()


def test_the_table_of_the_defaults() -> None:
    service = policy().services["shop"]

    table = [tuple(most_out(service, n)) for n in (1, 2, 3, 4, 5, 6, 9, 10, 20)]

    assert table == [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 2, 1), (5, 2, 1), (6, 3, 2), (9, 4, 3), (10, 5, 3), (20, 10, 6)]


@given(
    st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 20), st.floats(0, 0.99)
)  # fmt: skip
def test_never_fewer_are_left_than_the_guards_say(n: int, hard: float, soft: float, min_healthy: int, panic: float) -> None:
    guards = Guards(max_ejected_hard=hard, max_ejected_soft=soft, min_healthy=min_healthy, panic_below=panic)

    row = most_out(ServicePolicy("shop", guards=guards), n)

    assert 0 <= row.soft <= n
    assert 0 <= row.hard <= n
    if row.hard:
        assert n - row.hard >= min_healthy
    if row.soft:
        assert n - row.soft >= min_healthy
        assert n - row.soft >= panic * n - 1e-6


# ---- when nothing will be done ----


@pytest.mark.parametrize(
    ("service", "n", "why"),
    [
        (ServicePolicy("shop", pools=(("edge", "shop"),)), 4, ""),
        (ServicePolicy("shop"), 4, "no balancer"),
        (ServicePolicy("shop", mode=Mode.OBSERVE, pools=(("edge", "shop"),)), 4, "observe"),
        (ServicePolicy("shop", pools=(("edge", "shop"),), rule_modes={"consecutive": RuleMode.OBSERVE}), 4, "windowed"),
        (ServicePolicy("shop", pools=(("edge", "shop"),)), 1, "one instance"),
        (ServicePolicy("shop", pools=(("edge", "shop"),), guards=Guards(min_healthy=4)), 4, "min_healthy"),
        (ServicePolicy("shop", pools=(("edge", "shop"),), guards=Guards(max_ejected_hard=0.0)), 4, "max_ejected"),
    ],
)
def test_it_says_when_nobody_will_be_taken_out(service: ServicePolicy, n: int, why: str) -> None:
    plans = replace(service, probes=(ProbePlan("http:/"),))

    said = arithmetic(plans, Pace(), [[None]] * n).never

    assert (why in said) if why else said == ""


def test_a_single_instance_is_indeed_never_taken_out() -> None:
    lab = Lab(1)
    lab.run(12.0)

    lab.answer(1, refused())
    lab.run(10.0)

    assert lab.out() == []
    assert predicted(lab).never
    assert lab.world.services["shop"].instances[Instance("shop", Address("10.0.0.1", 80))].ejection is None
