"""The main thread of the core, in virtual time: who goes out, who comes back, who stays and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lbplugins.values import Address, Axis, Operator, Ref, Seen, Serve, Setting
from sidecar.core.model import (
    Act,
    Adopted,
    Commanded,
    Configured,
    Discovered,
    Ejection,
    Instance,
    Judgement,
    Resumed,
    SelfChecked,
    ServerRef,
    Strength,
    Verb,
)
from sidecar.core.policy import Mode, Rules
from tests.core.lab import Lab, good, hangs, own_lag, policy, refused, status_500

WARM = 12.0
"""Long enough for 30 good probes of everybody."""


def warm(n: int = 4, **more: object) -> Lab:
    lab = Lab(n, **more)  # type: ignore[arg-type]
    lab.run(WARM)
    return lab


def test_all_good_means_nothing_is_written() -> None:
    lab = warm()

    assert {lab.instance(i).told for i in range(1, 5)} == {Judgement.HEALTHY}
    assert lab.written == [] and lab.journal == []


def test_cadence_follows_the_slow_baseline() -> None:
    lab = warm()
    before = {t: s.count for t, s in lab.world.targets.items()}

    lab.run(10.0)

    for target, state in lab.world.targets.items():
        assert 90 <= state.count - before[target] <= 110  # 100 x 0.5 ms, but never under 100 ms


def test_refused_is_out_after_two_that_lie_150_ms_apart() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.nudge(1)

    lab.run(0.14)
    assert lab.out() == []

    lab.run(0.06)
    assert lab.out() == [1]
    assert lab.instance(1).told is Judgement.EJECTED
    sentence = lab.told("ejected")[0].sentence
    assert "times in a row" in sentence and "1 of 4 out, 2 allowed" in sentence


def test_hang_is_out_after_four_learned_timeouts() -> None:
    lab = warm()
    lab.answer(2, hangs())

    lab.run(0.1 + 4 * 0.06 + 3 * 0.02 + 0.05)

    assert lab.out() == [2]


def test_intent_is_journaled_before_the_write() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.disk_full = True

    lab.run(3.0)

    assert lab.out() == [] and lab.written == []
    assert "journal" in lab.holds()
    assert [e.kind for e in lab.told("self")] == ["self"]


def test_first_hard_ejection_comes_back_with_the_second_good_answer() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    assert lab.out() == [1]

    lab.answer(1, good())
    lab.run(0.4)

    assert lab.out() == []
    returned = lab.told("returned")[0]
    assert "2 good answers in a row" in returned.sentence
    lab.run(5.0)
    assert lab.instance(1).told is Judgement.HEALTHY and lab.instance(1).ejection is None


def test_one_good_answer_is_not_enough_to_return() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    turns = {"n": 0}

    def one_in_two(now: float, timeout: float):  # type: ignore[no-untyped-def]
        turns["n"] += 1
        return good()(now, timeout) if turns["n"] % 2 else refused()(now, timeout)

    lab.answer(1, one_in_two)
    lab.run(30.0)

    assert lab.out() == [1]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_all_fail_together_ejects_none_and_tells_once(n: int) -> None:
    lab = warm(n)
    for i in range(1, n + 1):
        lab.answer(i, status_500())

    lab.run(60.0)

    assert lab.out() == [] and lab.told("ejected") == []
    assert len(lab.told("pool_event")) == 1 and lab.told("held") == []


@pytest.mark.parametrize("n,dead,out", [(2, 1, 1), (3, 1, 1), (3, 2, 1), (4, 3, 2), (8, 6, 4), (5, 3, 2)])
def test_at_most_half_are_ever_out(n: int, dead: int, out: int) -> None:
    lab = warm(n)
    for i in range(1, dead + 1):
        lab.answer(i, refused())

    lab.run(30.0)

    assert len(lab.out()) == out
    if dead > out:
        assert "max_ejected" in lab.holds()


def test_balancer_downs_use_up_the_budget() -> None:
    lab = warm(4)
    lab.set_seen(3, serving=False, remark="own check DOWN")
    lab.set_seen(4, serving=False, remark="own check DOWN")
    lab.run(2.0)
    lab.answer(1, refused())

    lab.run(10.0)

    assert lab.out() == []
    assert "max_ejected" in lab.holds()


def test_operators_maintenance_is_neither_counted_nor_touched() -> None:
    lab = warm(4)
    lab.set_seen(4, operator=Operator.MAINTENANCE)
    lab.run(2.0)
    lab.answer(4, refused())
    lab.answer(1, refused())
    lab.run(10.0)

    assert lab.out() == [1]
    assert lab.seen(4).operator is Operator.MAINTENANCE and lab.seen(4).ours.serve is Serve.FULL

    lab.set_seen(4, operator=Operator.READY)
    lab.answer(4, good())
    lab.run(5.0)
    assert lab.out() == [1]


def test_restarted_balancer_is_told_again_within_the_next_look() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    for i in range(1, 5):
        lab.set_seen(i, ours=Setting(), generation="g2")

    lab.run(1.2)

    assert lab.out() == [1]
    assert any("forgot" in e.sentence for e in lab.told("drift"))
    assert lab.told("operator") == []


def test_ready_by_hand_against_our_ejection_means_hands_off() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    lab.set_seen(1, ours=Setting())

    lab.run(800.0)
    assert lab.out() == []
    assert "edge/shop/s1 was made ready by hand against our ejection (outside)" in lab.hold_why("hands_off")

    lab.run(200.0)
    assert lab.out() == [1]


def test_repeats_within_ten_minutes_double_the_hold_down() -> None:
    lab = warm()
    outs = []
    for _ in range(4):
        lab.answer(1, refused())
        lab.run(3.0)
        lab.answer(1, good())
        lab.run(120.0)
    for event in lab.told("returned"):
        outs.append(float(event.sentence.split(" after ")[1].split(" s")[0]))

    assert outs[0] < 4.0 and 4.9 < outs[1] < 6.0 and 9.9 < outs[2] < 11.0 and 19.9 < outs[3] < 21.0


def test_flapping_slows_returns_but_never_an_ejection() -> None:
    lab = warm(4, policy=policy(rules=Rules(hold_down_s=0.0)))
    changes = []
    for _ in range(200):
        lab.answer(1, refused())
        lab.run(1.0)
        assert lab.out() == [1]
        lab.answer(1, good())
        lab.run(2.0)
    changes = [at for at, change in lab.written if change.on is Axis.OURS]
    start = changes[0]

    assert len([c for c in changes if c - start <= 30]) <= 9
    later = [c for c in changes if c - start > 90]
    span = later[-1] - later[0]
    assert len(later) <= 2.2 * span / 60 + 2


def test_witnesses_that_fail_right_after_undo_the_ejection() -> None:
    lab = warm(2)
    lab.answer(1, refused())
    lab.run(0.6)
    assert lab.out() == [1]
    lab.answer(2, refused())

    lab.run(1.0)

    assert lab.out() == []
    assert any("every witness" in e.sentence for e in lab.told("returned"))


def test_when_nothing_else_is_left_even_the_dead_come_back() -> None:
    lab = warm(4)
    lab.answer(1, refused())
    lab.answer(2, refused())
    lab.run(20.0)
    assert lab.out() == [1, 2]
    lab.answer(3, refused())
    lab.answer(4, refused())

    lab.run(20.0)

    assert lab.out() == []
    assert any("failing open" in e.sentence for e in lab.told("returned"))
    lab.answer(3, good())
    lab.answer(4, good())
    lab.run(20.0)
    assert lab.out() == [1, 2]


def test_own_lag_is_evidence_of_nothing() -> None:
    lab = warm()
    for i in range(1, 5):
        lab.answer(i, own_lag())

    lab.run(60.0)

    assert lab.out() == [] and not lab.told("suspect")


def test_blind_holds_ejections() -> None:
    lab = warm()
    lab.answer(1, refused())
    for _ in range(100):
        lab.feed(SelfChecked(lab.now, lag_s=0.6))
        lab.run(0.1)

    assert lab.out() == []
    assert "blind" in lab.holds()
    lab.run(2.0)
    assert lab.out() == [1]


def test_evidence_from_before_a_pause_is_void() -> None:
    lab = warm()
    lab.answer(1, hangs())
    lab.run(0.3)
    lab.feed(Resumed(lab.now, 30.0))
    lab.answer(1, good())

    lab.run(5.0)

    assert lab.told("ejected") == []


def test_cold_start_waits_for_everyone_but_not_for_ever() -> None:
    lab = Lab(4)
    lab.answer(1, refused())
    lab.answer(4, own_lag())
    lab.run(9.0)
    assert lab.out() == [] and "cold_start" in lab.holds()

    lab.run(2.0)
    assert lab.out() == [1]


def test_cold_start_is_over_when_everyone_has_answered_three_times() -> None:
    lab = Lab(4)
    lab.answer(1, refused())
    lab.run(3.0)

    assert lab.out() == [1]


def test_observe_decides_and_writes_nothing() -> None:
    lab = warm(4, policy=policy(Mode.OBSERVE))
    lab.answer(1, refused())
    lab.run(5.0)
    lab.answer(1, good())
    lab.run(5.0)

    assert lab.written == []
    assert [e.enforced for e in lab.told("ejected")] == [False]
    assert "would be ejected" in lab.told("ejected")[0].sentence
    assert len(lab.told("returned")) == 1 and lab.instance(1).told is Judgement.HEALTHY


def test_restart_adopts_what_is_still_out() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    ejection = lab.instance(1).ejection
    assert ejection is not None

    lab.start(Adopted(lab.now, (ejection,)))
    lab.run(5.0)
    assert lab.out() == [1] and lab.told("adopted")

    lab.answer(1, good())
    lab.run(5.0)
    assert lab.out() == []


def test_restart_lets_lapse_what_the_balancer_no_longer_shows() -> None:
    lab = warm()
    gone = Ejection(Instance("shop", Address("10.0.0.1", 80)), lab.now - 60, "rule:consecutive", "2 refused", Strength.HARD)

    lab.start(Adopted(lab.now, (gone,)))
    lab.run(10.0)

    assert lab.written == [] and lab.instance(1).ejection is None


def test_crash_between_journaled_return_and_write_leaves_no_orphan() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    ejection = lab.instance(1).ejection
    assert ejection is not None
    lab.answer(1, good())

    lab.start(Adopted(lab.now, (replace(ejection, returning=True),)))
    lab.run(5.0)

    assert lab.out() == []


def test_unexplained_down_is_not_touched_until_adopted() -> None:
    lab = warm()
    lab.set_seen(1, ours=Setting(Serve.NONE))
    lab.run(10.0)
    assert lab.out() == [1] and lab.written == []

    lab.feed(Commanded(Verb.ADOPT, "operator:root", lab.now, "shop"))
    lab.run(5.0)

    assert lab.out() == []


def test_drain_by_our_command_is_ours_to_undo() -> None:
    lab = warm()
    instance = Instance("shop", Address("10.0.0.1", 80))
    lab.feed(Commanded(Verb.OVERRIDE, "token:deploy", lab.now, "shop", instance, "deploy", Operator.DRAINING, lab.now + 60))
    lab.run(2.0)
    assert lab.seen(1).operator is Operator.DRAINING

    lab.run(60.0)

    assert lab.seen(1).operator is Operator.READY
    assert not [e for e in lab.events if e.by == "outside"]


def test_foreign_maintenance_is_never_cleared_by_our_commands() -> None:
    lab = warm()
    lab.set_seen(1, operator=Operator.MAINTENANCE)
    lab.run(2.0)
    instance = Instance("shop", Address("10.0.0.1", 80))
    lab.feed(Commanded(Verb.OVERRIDE, "token:deploy", lab.now, "shop", instance, "deploy", Operator.DRAINING))
    lab.run(5.0)
    lab.feed(Commanded(Verb.CLEAR, "token:deploy", lab.now, "shop", instance, "deploy"))
    lab.run(5.0)

    assert lab.seen(1).operator is Operator.MAINTENANCE and lab.written == []


def test_draining_the_last_one_is_refused_with_the_arithmetic() -> None:
    lab = warm(2)
    lab.set_seen(2, operator=Operator.MAINTENANCE)
    lab.run(2.0)
    instance = Instance("shop", Address("10.0.0.1", 80))
    lab.feed(Commanded(Verb.OVERRIDE, "token:deploy", lab.now, "shop", instance, "deploy", Operator.DRAINING))
    lab.run(2.0)

    assert lab.seen(1).operator is Operator.READY
    assert "0 of 1" in lab.told("refused")[0].sentence


def test_frozen_neither_ejects_nor_returns() -> None:
    lab = warm()
    lab.answer(1, refused())
    lab.run(5.0)
    lab.feed(Commanded(Verb.FREEZE, "operator:root", lab.now, "shop"))
    lab.answer(1, good())
    lab.answer(2, refused())
    lab.run(20.0)
    assert lab.out() == [1]

    lab.feed(Commanded(Verb.UNFREEZE, "operator:root", lab.now, "shop"))
    lab.run(5.0)
    assert lab.out() == [2]


def test_rolling_restart_costs_nothing() -> None:
    lab = warm(8)
    for i in range(1, 9):
        lab.answer(i, refused())
        lab.nudge(i)
        lab.run(3.0)
        assert lab.out() == [i]
        lab.answer(i, good())
        lab.run(2.0)
        assert lab.out() == []


def test_shrunken_static_discovery_keeps_the_last_good_list() -> None:
    lab = Lab(4, policy=policy(from_balancer=False))
    all_four = tuple(Instance("shop", Address(f"10.0.0.{i}", 80)) for i in range(1, 5))
    lab.feed(Discovered("shop", "file:a", lab.now, all_four))
    lab.run(WARM)
    lab.feed(Discovered("shop", "file:a", lab.now, all_four[:1]))
    lab.answer(1, refused())
    lab.run(5.0)

    assert len(lab.world.services["shop"].instances) == 4
    assert lab.out() == [] and "stale_discovery" in lab.holds()


def test_same_facts_same_decisions() -> None:
    def story() -> list[str]:
        lab = warm(8)
        lab.answer(1, refused())
        lab.answer(2, hangs())
        lab.run(5.0)
        lab.answer(1, good())
        lab.run(5.0)
        return [f"{e.at:.6f} {e.sentence}" for e in lab.events]

    assert story() == story()


def test_instance_removed_while_out_is_struck_from_the_journal() -> None:
    lab = warm(4)
    lab.answer(1, refused())
    lab.run(5.0)
    assert lab.out() == [1]
    del lab.servers[Ref("shop", "s1")]

    lab.run(3.0)

    assert lab.journal[-1].act is Act.FORGET
    assert len(lab.world.services["shop"].instances) == 3


def test_observed_ejection_becomes_real_when_the_mode_does() -> None:
    lab = warm(4, policy=policy(Mode.OBSERVE))
    lab.answer(1, refused())
    lab.run(5.0)
    assert lab.out() == []

    lab.feed(Configured(policy(), lab.now))
    lab.run(2.0)

    assert lab.out() == [1]
    assert [e.enforced for e in lab.told("ejected")] == [False, True]


def test_failing_open_is_shown_and_ends() -> None:
    lab = warm(4)
    for i in (1, 2):
        lab.answer(i, refused())
    lab.run(20.0)
    for i in (3, 4):
        lab.answer(i, refused())
    lab.run(20.0)
    assert lab.world.services["shop"].failing_open

    for i in (1, 2, 3, 4):
        lab.answer(i, good())
    lab.run(5.0)

    assert not lab.world.services["shop"].failing_open
    assert len(lab.told("panic_over")) == 1


def test_new_life_after_maintenance_undoes_what_is_half_undone() -> None:
    """HAProxy's own check stays off after his maint and ready: DRAIN on our axis, which only we can undo."""
    lab = warm(4)
    lab.answer(1, refused())
    lab.run(5.0)
    lab.set_seen(1, operator=Operator.MAINTENANCE)
    lab.run(2.0)
    lab.set_seen(1, operator=Operator.READY, ours=Setting(Serve.DRAIN), serving=True)
    lab.answer(1, good())

    lab.run(2.0)

    assert lab.seen(1).ours.serve is Serve.FULL
    assert lab.instance(1).ejection is None


def test_given_back_when_it_leaves_our_hands() -> None:
    lab = warm(4)
    lab.answer(1, refused())
    lab.run(5.0)

    lab.feed(Commanded(Verb.GIVE_BACK, "sidecar", lab.now, "shop", reason="leaving"))
    lab.run(0.1)

    assert lab.out() == [] and lab.told("returned")[0].by == "sidecar"
    assert lab.hold_why("hands_off").startswith("leaving (sidecar); hands off for ")


def test_static_instance_adopted_at_start_follows_its_own_source() -> None:
    lab = Lab(4, policy=policy(from_balancer=False))
    all_four = tuple(Instance("shop", Address(f"10.0.0.{i}", 80)) for i in range(1, 5))
    lab.set_seen(1, ours=Setting(Serve.NONE))
    lab.start(Adopted(lab.now, (Ejection(all_four[0], lab.now - 9, "rule:consecutive", "2 refused"),)))
    lab.run(1.0)
    lab.feed(Discovered("shop", "static", lab.now, all_four))
    lab.run(5.0)
    assert lab.out() == []

    lab.feed(Discovered("shop", "static", lab.now, all_four[1:]))
    lab.run(1.0)
    assert len(lab.world.services["shop"].instances) == 3


def test_an_ejection_that_the_disk_did_not_take_is_not_told_as_one() -> None:
    lab = Lab()
    lab.run(WARM)
    lab.disk_full = True
    lab.answer(1, refused())
    lab.run(2.0)

    assert lab.journal == [] and lab.out() == []
    assert lab.told("ejected") == []


def test_an_ejection_stands_when_its_witness_dies_but_others_testify() -> None:
    lab = Lab(12)
    lab.run(12.0)
    lab.answer(1, refused())
    lab.run(1.0)
    ejection = lab.instance(1).ejection
    assert ejection is not None
    for witness in ejection.witnesses:
        i = int(witness.address.host.rsplit(".", 1)[1])
        lab.answer(i, refused())
        lab.nudge(i)

    lab.run(1.9)

    assert 1 in lab.out() and lab.told("returned") == []


def test_each_of_two_ejected_in_one_turn_counts_the_other() -> None:
    lab = warm()
    lab.feed(Commanded(Verb.FREEZE, "operator:ann", lab.now))
    for i in (1, 2):
        lab.answer(i, refused())
    lab.run(1.0)
    lab.feed(Commanded(Verb.UNFREEZE, "operator:ann", lab.now))
    lab.run(0.5)

    assert [e.sentence.split("; ")[2] for e in lab.told("ejected")] == ["1 of 4 out, 2 allowed", "2 of 4 out, 2 allowed"]


def test_a_dead_primary_goes_when_an_idle_reserve_stands_by() -> None:
    lab = Lab(2)
    lab.set_seen(2, serving=None)  # a backup: nothing reaches it while the other serves
    lab.run(WARM)

    lab.answer(1, refused())
    lab.run(2.0)

    assert lab.out() == [1]


def test_a_server_without_an_address_is_capacity_unless_an_operator_has_it_out() -> None:
    lab = Lab(2)
    lab.servers[Ref("shop", "u1")] = Seen(serving=True)
    lab.servers[Ref("shop", "t1")] = Seen(serving=False, operator=Operator.MAINTENANCE)

    lab.run(WARM)
    assert lab.world.services["shop"].unlisted == (ServerRef("edge", Ref("shop", "u1")),)

    lab.answer(1, refused())
    lab.answer(2, good())
    lab.run(2.0)
    assert lab.out() == [1]
