"""What may change between a decision and its deed, and what a crash, a slow disk or a slow balancer must not turn into an outage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from lbplugins.values import Axis, Change, Operator, Ref, Serve, Setting
from sidecar.core.model import Act, Applied, Commanded, Discovered, Instance, Verb
from sidecar.core.policy import RuleMode, Rules
from tests.core.lab import Lab, good, policy, refused, status_500
from tests.core.site import Layout, Server, Site, address, policy_for

WARM = 12.0
REF = Ref("shop", "s1")
ONE = {("shop", "edge", "shop"): (1, 2, 3, 4)}
TWO = {("shop", "edge", "shop"): (1, 2, 3, 4), ("shop", "web", "shop"): (1, 2, 3, 4)}


def warm(layout: Layout | None = None) -> Site:
    layout = layout or Layout(ONE)
    site = Site(layout, policy_for(layout), Random(1))
    site.run(WARM)
    return site


def shop(i: int) -> Instance:
    return Instance("shop", address(i))


def server(site: Site, i: int, balancer: str = "edge"):  # type: ignore[no-untyped-def]
    return site.sides[balancer].servers[Ref("shop", f"s{i}")]


def out(site: Site, balancer: str = "edge") -> list[int]:
    return [i for i in range(1, 5) if server(site, i, balancer).ours.serve is Serve.NONE]


def die(site: Site, i: int, seconds: float = 3.0) -> None:
    site.behave(address(i), "refused")
    site.run(seconds)


def command(site: Site, verb: Verb, i: int | None = None, state: Operator = Operator.READY, ttl: float | None = None) -> None:
    until = None if ttl is None else site.now + ttl
    instance = None if i is None else shop(i)
    site.feed(Commanded(verb, "operator:root", site.now, "shop", instance, "root", state, until))


# ---- while it is being written down ----


def test_a_pause_while_the_ejection_is_on_its_way_to_disk_voids_it() -> None:
    site = warm()
    site.fsync_s = 1.0
    site.behave(address(1), "refused")
    while not site.about:
        site.run(0.05)

    site.behave(address(1), "good")
    site.pause(30.0)
    site.run(5.0)

    assert out(site) == [] and not site.force.ejections
    assert any("not taken out after all" in e.sentence for e in site.told("returned"))


def test_a_freeze_while_the_ejection_is_on_its_way_to_disk_withdraws_it() -> None:
    site = warm()
    site.fsync_s = 0.5
    writes: list[Change] = []
    site.wrote = lambda side, change: writes.append(change)  # type: ignore[method-assign]
    command(site, Verb.FREEZE)
    site.behave(address(1), "refused")
    while not site.about:
        site.run(0.05)
    site.run(5.0)
    site.behave(address(1), "good")
    site.run(2.0)

    command(site, Verb.UNFREEZE)
    site.run(5.0)

    assert writes == [] and not site.force.ejections


def test_the_end_of_a_freeze_is_written_once_however_slow_the_disk() -> None:
    site = warm()
    site.fsync_s = 2.0
    command(site, Verb.FREEZE, ttl=3.0)

    site.run(15.0)

    assert [i.act for i in site.journal] == [Act.FREEZE, Act.UNFREEZE]


def test_what_took_effect_on_a_full_disk_is_written_when_there_is_room() -> None:
    site = warm()
    die(site, 1)
    site.disk_full = True
    site.check_self()
    site.behave(address(1), "good")
    site.run(5.0)
    assert out(site) == [] and site.force.ejections

    site.disk_full = False
    site.check_self()
    site.run(2.0)

    assert not site.force.ejections


# ---- while the balancer is slow, away, or forgets ----


def test_an_ejection_that_still_waits_for_its_reload_is_called_back() -> None:
    """Else it is forgotten, the reload comes, and the server is out with nobody to bring it back."""
    site = warm()
    site.sides["edge"].join_s = 5.0
    die(site, 2)  # so that the next change waits for its turn
    site.behave(address(1), "refused")
    while Act.EJECT not in [i.act for i in site.journal if i.instance == shop(1)]:
        site.run(0.01)
    site.behave(address(1), "good")

    site.run(10.0)

    assert out(site) == [2] and list(site.force.ejections) == [shop(2)]


def test_what_a_balancer_forgot_is_taken_out_again_only_as_far_as_the_guards_allow_now() -> None:
    site = warm()
    site.behave(address(1), "refused")
    die(site, 2)
    assert out(site) == [1, 2]

    site.sides["edge"].forget_all(operators_too=True)
    server(site, 3).down = True
    site.run(5.0)

    assert len(out(site)) <= 1 and sum(s.serving for s in site.sides["edge"].servers.values()) >= 2


def test_a_change_that_never_reached_a_server_now_gone_holds_nobody_else_back() -> None:
    site = warm()
    site.sides["edge"].standby = "another writes"  # so that the driver drops what it is told
    die(site, 1)
    del site.sides["edge"].servers[Ref("shop", "s1")]
    site.run(3.0)
    site.behave(address(1), "good")
    site.sides["edge"].standby = ""
    site.sides["edge"].servers[Ref("shop", "s1")] = Server(address(1))
    site.run(3.0)

    site.behave(address(2), "refused")
    die(site, 3, 10.0)

    assert out(site) == [2, 3]


def test_nothing_is_ejected_while_its_balancer_is_lost() -> None:
    site = warm()
    site.sides["edge"].reachable = False
    site.run(2.0)

    die(site, 1, 5.0)
    assert site.told("ejected") == [] and "balancer_lost" in site.holds()

    site.sides["edge"].reachable = True
    site.run(3.0)
    assert out(site) == [1]


def test_nothing_is_ejected_on_a_picture_that_is_old() -> None:
    site = warm()
    site.sides["edge"].look_s = 60.0
    site.run(7.0)

    die(site, 1, 5.0)

    assert site.told("ejected") == [] and "balancer_lost" in site.holds()


def test_after_a_restart_nothing_is_forgotten_before_every_balancer_was_looked_at() -> None:
    site = warm(Layout(TWO))
    die(site, 1)
    site.sides["web"].reachable = False
    site.crash()
    site.behave(address(1), "good")
    site.revive()
    site.run(20.0)
    assert out(site) == [] and out(site, "web") == [1] and list(site.force.ejections) == [shop(1)]

    site.sides["web"].reachable = True
    site.run(5.0)

    assert out(site, "web") == [] and not site.force.ejections


def test_ready_by_hand_counts_on_every_balancer_after_a_restart() -> None:
    site = warm(Layout(TWO))
    die(site, 1)
    site.crash()
    site.revive()
    site.run(3.0)

    web = server(site, 1, "web")
    web.ours, web.ours_by = Setting(), ""
    site.run(5.0)

    assert out(site) == [] and out(site, "web") == []
    assert shop(1) in site.force.hands_off


# ---- identities, and acts of others ----


def test_a_slot_that_gets_another_address_is_another_instance_and_comes_back() -> None:
    site = warm()
    die(site, 1)
    assert out(site) == [1]
    site.behave(address(99), "good")

    server(site, 1).address = address(99)
    site.run(5.0)

    assert out(site) == [] and not site.force.ejections


def test_a_forgetful_balancer_with_a_new_address_is_not_told_of_the_old_one() -> None:
    site = warm()
    die(site, 1)
    site.behave(address(99), "good")
    writes: list[Change] = []
    site.wrote = lambda side, change: writes.append(change)  # type: ignore[method-assign]

    site.sides["edge"].forget_all(operators_too=False)
    server(site, 1).address = address(99)
    site.run(5.0)

    assert writes == [] and not site.force.ejections


def test_what_others_have_out_stays_theirs_also_when_it_fails() -> None:
    site = warm()
    server(site, 1).ours = Setting(Serve.NONE)
    site.run(2.0)
    die(site, 1, 10.0)
    site.behave(address(1), "good")

    site.run(10.0)

    assert out(site) == [1] and site.told("ejected") == []


def test_instances_in_no_pool_take_nobodys_place() -> None:
    site = warm(Layout({("shop", "edge", "shop"): (1, 2, 3, 4)}, {"shop": tuple(range(1, 13))}))
    for i in (1, 2, 3):
        site.behave(address(i), "refused")

    site.run(20.0)

    assert len(out(site)) == 2


# ---- our words on the operator's axis ----


@pytest.mark.parametrize("cleared", [False, True])
def test_a_drain_that_ended_while_we_were_dead_is_undone(cleared: bool) -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING, ttl=None if cleared else 5.0)
    site.run(2.0)
    assert server(site, 1).operator is Operator.DRAINING
    if cleared:
        site.sides["edge"].reachable = False
        command(site, Verb.CLEAR, 1)
        site.run(0.5)

    site.crash()
    site.now += 10.0
    site.sides["edge"].reachable = True
    site.revive()
    site.run(5.0)

    assert server(site, 1).operator is Operator.READY and not site.force.overrides


def test_a_drain_survives_a_restart_and_can_be_cleared_after_it() -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    site.crash()
    site.revive()
    site.run(5.0)
    assert server(site, 1).operator is Operator.DRAINING

    command(site, Verb.CLEAR, 1)
    site.run(5.0)

    assert server(site, 1).operator is Operator.READY


def test_a_word_that_failed_is_said_again() -> None:
    site = warm()
    site.sides["edge"].reachable = False
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(3.0)

    site.sides["edge"].reachable = True
    site.run(5.0)

    assert server(site, 1).operator is Operator.DRAINING


class Stubborn(Lab):
    """A balancer that says no to everything."""

    tries = 0

    def _apply(self, changes: Sequence[Change]) -> None:
        self.tries += 1
        self.feed(Applied("edge", self.now, (), tuple((change, "permission denied") for change in changes)))
        self._look()


def test_a_balancer_that_refuses_a_word_is_asked_with_growing_patience_and_told_of_once() -> None:
    lab = Stubborn()
    lab.run(WARM)
    lab.feed(Commanded(Verb.OVERRIDE, "operator:root", lab.now, "shop", shop(1), "root", Operator.DRAINING))

    lab.run(60.0)

    assert 3 <= lab.tries <= 12
    assert [e.sentence for e in lab.told("refused")] == ["edge/shop/s1 refused: permission denied"]


# ---- evidence ----


def test_a_window_that_was_bad_is_no_ground_once_it_has_risen() -> None:
    lab = Lab(4)
    lab.run(WARM)
    lab.feed(Commanded(Verb.OVERRIDE, "operator:root", lab.now, "shop", shop(1), "root", Operator.MAINTENANCE))
    lab.run(1.0)
    lab.answer(1, _every_fourth())
    lab.run(5.0)

    lab.answer(1, good())
    lab.run(0.5)
    lab.feed(Commanded(Verb.CLEAR, "operator:root", lab.now, "shop", shop(1), "root"))
    lab.run(5.0)

    assert lab.told("ejected") == []


def test_a_rule_that_only_observes_does_not_shield_from_one_that_acts() -> None:
    lab = Lab(4, policy=policy(rule_modes={"window": RuleMode.OBSERVE}, rules=Rules(window_bad=0.3)))
    lab.run(WARM)
    lab.answer(1, _every_other())
    lab.run(5.0)
    assert [e.enforced for e in lab.told("ejected")] == [False] and lab.out() == []

    lab.answer(1, status_500())
    lab.run(3.0)

    assert lab.out() == [1]


def test_a_rule_that_is_off_is_not_asked() -> None:
    in_a_row_off = Lab(4, policy=policy(rules=Rules(off=frozenset({"consecutive"}))))
    both_off = Lab(4, policy=policy(rules=Rules(off=frozenset({"consecutive", "window"}))))
    for lab in (in_a_row_off, both_off):
        lab.run(WARM)
        lab.answer(1, status_500())
        lab.run(30.0)

    assert [e.by for e in in_a_row_off.told("ejected")] == ["rule:window"]
    assert both_off.told("ejected") == [] and both_off.out() == []


def test_a_lost_witness_brings_nobody_back_in_a_freeze() -> None:
    lab = Lab(2)
    lab.run(WARM)
    lab.answer(1, refused())
    lab.run(0.6)
    assert lab.out() == [1]
    lab.answer(2, refused())
    lab.feed(Commanded(Verb.FREEZE, "operator:root", lab.now, "shop"))

    lab.run(5.0)

    assert lab.out() == [1]


def _every_fourth() -> Callable[..., object]:
    turns = {"n": 0}

    def answer(now: float, timeout: float) -> object:
        turns["n"] += 1
        return status_500()(now, timeout) if turns["n"] % 4 else good()(now, timeout)

    return answer


def _every_other() -> Callable[..., object]:
    turns = {"n": 0}

    def answer(now: float, timeout: float) -> object:
        turns["n"] += 1
        return good()(now, timeout) if turns["n"] % 2 else status_500()(now, timeout)

    return answer


def test_a_word_like_ours_that_an_operator_said_first_stays_his() -> None:
    lab = Lab(4)
    lab.run(WARM)
    lab.apply_takes = 2.0
    lab.feed(Commanded(Verb.OVERRIDE, "operator:root", lab.now, "shop", shop(1), "root", Operator.MAINTENANCE))
    lab.run(0.2)
    lab.set_seen(1, operator=Operator.MAINTENANCE)  # by hand, while ours is on its way and will be refused
    lab.run(1.2)

    lab.feed(Commanded(Verb.CLEAR, "operator:root", lab.now, "shop", shop(1), "root"))
    lab.run(10.0)

    assert lab.seen(1).operator is Operator.MAINTENANCE


def test_a_word_of_ours_that_was_refused_after_the_next_was_sent_makes_no_operators_word_ours() -> None:
    lab = Lab(4)
    lab.run(WARM)
    lab.apply_takes = 2.0
    for owner, state in (("deploy", Operator.DRAINING), ("root", Operator.MAINTENANCE)):
        lab.feed(Commanded(Verb.OVERRIDE, f"operator:{owner}", lab.now, "shop", shop(1), owner, state))
        lab.run(0.01)
    lab.set_seen(1, operator=Operator.DRAINING)  # by hand, before either has arrived: both will be refused

    lab.run(10.0)

    assert lab.seen(1).operator is Operator.DRAINING


def test_the_refusal_of_an_earlier_change_does_not_settle_the_later_one() -> None:
    lab = Lab(4)
    lab.run(WARM)
    lab.answer(1, refused())
    lab.run(2.0)
    earlier = next(change for _, change in lab.written if change.ref == REF)
    lab.set_seen(1, ours=Setting())  # the balancer forgot it, and is told again
    lab.apply_takes = 30.0
    lab.set_seen(1, generation="g2")
    lab.run(2.0)
    sent = lab.world.balancers["edge"].sent[REF]
    assert sent.serve is Serve.NONE and not sent.is_settled

    lab.feed(Applied("edge", lab.now, (), ((earlier, "it has moved"),)))

    assert not sent.is_settled


def test_an_ejection_is_not_let_go_of_while_an_order_to_go_from_before_may_still_arrive() -> None:
    site = warm()
    site.sides["edge"].apply_s = 4.0
    die(site, 1, 1.0)
    site.behave(address(1), "good")
    site.run(1.0)
    assert site.told("returned")
    site.fsync_s = 0.6
    command(site, Verb.FREEZE)
    site.behave(address(1), "refused")

    while not out(site):  # the order from before arrives
        site.run(0.05)

    assert shop(1) in site.force.ejections


class Silent(Lab):
    """A balancer whose answers the test gives."""

    def _apply(self, changes: Sequence[Change]) -> None:
        self.told_to = [*getattr(self, "told_to", []), *changes]


def test_a_word_taken_after_an_earlier_one_was_refused_is_ours_and_undone() -> None:
    lab = Silent(4)
    lab.run(WARM)
    lab.feed(Commanded(Verb.OVERRIDE, "operator:root", lab.now, "shop", shop(1), "root", Operator.MAINTENANCE))
    lab.run(5.0)
    first, second = lab.told_to[0], lab.told_to[-1]
    assert first is not second, "it was told again, since nothing was heard"

    lab.feed(Applied("edge", lab.now, (), ((first, "it has moved"),)))
    lab.set_seen(1, operator=Operator.MAINTENANCE)
    lab.feed(Applied("edge", lab.now, (second,)))
    lab.run(2.0)
    lab.feed(Commanded(Verb.CLEAR, "operator:root", lab.now, "shop", shop(1), "root"))
    lab.run(1.0)

    assert lab.told_to[-1].on is Axis.OPERATOR and lab.told_to[-1].want.serve is Serve.FULL


def test_what_was_seen_given_back_is_no_more_ours_when_its_slot_moves_and_a_hand_takes_it_out() -> None:
    site = warm(Layout(TWO))
    die(site, 1)
    site.sides["edge"].reachable = False  # so that the journal must keep the ejection until it has been looked at
    site.behave(address(1), "good")
    site.run(5.0)
    assert out(site, "web") == [] and site.force.ejections
    site.sides["web"].reachable = False
    site.run(2.0)

    site.behave(address(99), "good")
    moved = server(site, 1, "web")
    moved.address, moved.ours, moved.ours_by = address(99), Setting(Serve.NONE), "hand"
    site.sides["web"].reachable = True
    site.run(5.0)

    assert out(site, "web") == [1] and moved.ours_by == "hand"


def test_a_word_that_never_arrived_stands_in_nobodys_way_for_ever() -> None:
    lab = Silent(3)
    lab.run(WARM)
    lab.feed(Commanded(Verb.OVERRIDE, "operator:root", lab.now, "shop", shop(1), "root", Operator.DRAINING))
    lab.run(0.1)
    lab.set_seen(1, operator=Operator.DRAINING)
    lab.feed(Applied("edge", lab.now, (lab.told_to[-1],)))
    lab.run(2.0)
    lab.feed(Commanded(Verb.CLEAR, "operator:root", lab.now, "shop", shop(1), "root"))
    lab.run(0.1)
    lab.feed(Applied("edge", lab.now, (lab.told_to[-1],), error="no answer"))
    lab.set_seen(1, operator=Operator.MAINTENANCE)  # by hand, meanwhile
    lab.run(40.0)

    lab.answer(2, refused())
    lab.run(3.0)

    assert (lab.told_to[-1].ref, lab.told_to[-1].want.serve) == (Ref("shop", "s2"), Serve.NONE)
    assert not lab.instance(1).ended, "and the journal need not keep the word"


# ---- what must outlast our death ----


def taken_out_on_web_by_hand_then_by_us_on_edge() -> Site:
    site = warm(Layout(TWO))
    web = server(site, 1, "web")
    web.ours, web.ours_by = Setting(Serve.NONE), "hand"
    site.run(2.0)
    die(site, 1)
    assert (out(site), out(site, "web")) == ([1], [1])
    return site


def restart(site: Site) -> None:
    site.crash()
    site.revive()
    site.run(3.0)


def test_what_a_hand_had_out_before_us_is_still_his_after_our_restart() -> None:
    site = taken_out_on_web_by_hand_then_by_us_on_edge()
    restart(site)

    site.behave(address(1), "good")
    site.run(5.0)

    assert (out(site), out(site, "web")) == ([], [1])
    assert not site.force.ejections


def test_what_a_hand_had_out_and_the_balancer_forgot_is_out_by_us_and_returned_even_after_our_restart() -> None:
    site = taken_out_on_web_by_hand_then_by_us_on_edge()
    site.sides["web"].forget_all(operators_too=False)
    site.run(3.0)
    assert out(site, "web") == [1] and server(site, 1, "web").ours_by == "us"
    restart(site)

    site.behave(address(1), "good")
    site.run(5.0)

    assert (out(site), out(site, "web")) == ([], [])


def test_an_ejection_of_which_only_anothers_act_is_left_after_our_restart_has_lapsed() -> None:
    site = taken_out_on_web_by_hand_then_by_us_on_edge()
    site.crash()
    edge = server(site, 1)
    edge.ours, edge.ours_by = Setting(), ""
    site.behave(address(1), "good")
    site.revive()
    site.run(3.0)

    assert out(site, "web") == [1] and not site.force.ejections


def test_a_word_that_was_replaced_while_we_died_is_still_known_as_ours() -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    site.sides["edge"].apply_s = 5.0
    command(site, Verb.OVERRIDE, 1, Operator.MAINTENANCE)
    site.run(0.5)
    site.crash()
    site.sides["edge"].apply_s = 0.002
    assert server(site, 1).operator is Operator.DRAINING

    site.revive()
    site.run(3.0)
    assert server(site, 1).operator is Operator.MAINTENANCE
    command(site, Verb.CLEAR, 1)
    site.run(3.0)

    assert server(site, 1).operator is Operator.READY


def test_a_word_that_was_replaced_and_is_gone_is_anybodys_again() -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    command(site, Verb.OVERRIDE, 1, Operator.MAINTENANCE)
    site.run(3.0)
    mine = server(site, 1)
    mine.operator, mine.operator_by = Operator.DRAINING, "hand"
    site.run(2.0)

    restart(site)

    assert mine.operator is Operator.DRAINING, "an operator has said it himself since"


@pytest.mark.parametrize("known", [False, True])
def test_a_drain_that_cannot_be_written_down_is_refused(known: bool) -> None:
    site = warm()
    site.disk_full = True
    if known:
        site.check_self()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(3.0)

    assert server(site, 1).operator is Operator.READY
    assert "could not be written down" in site.told("refused")[-1].sentence


def test_a_drain_that_cannot_be_written_down_is_done_all_the_same_when_forced_and_written_down_later() -> None:
    site = warm()
    site.disk_full = True
    site.check_self()
    forced = Commanded(Verb.OVERRIDE, "operator:root", site.now, "shop", shop(1), "root", Operator.DRAINING, force=True)
    site.feed(forced)
    site.run(3.0)
    assert server(site, 1).operator is Operator.DRAINING

    site.disk_full = False
    site.check_self()
    site.run(1.0)

    assert (shop(1), "root") in site.force.overrides


def test_what_is_undone_needs_no_disk() -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    site.disk_full = True
    site.check_self()

    command(site, Verb.CLEAR, 1)
    site.run(3.0)

    assert server(site, 1).operator is Operator.READY


def test_an_operators_word_is_not_taken_for_one_of_ours_that_was_never_sent() -> None:
    site = warm()
    site.sides["edge"].standby = "another writes"  # so that the driver drops what it is told
    command(site, Verb.OVERRIDE, 1, Operator.MAINTENANCE)
    site.run(0.3)
    mine = server(site, 1)
    mine.operator, mine.operator_by = Operator.MAINTENANCE, "hand"
    site.sides["edge"].standby = ""
    command(site, Verb.CLEAR, 1)
    site.run(40.0)
    assert not site.force.overrides

    restart(site)

    assert mine.operator is Operator.MAINTENANCE


def test_a_source_that_fails_for_another_reason_is_told_again() -> None:
    site = warm(Layout(ONE, {"shop": (1, 2, 3, 4)}))
    for error in ("no such file", "no such file", "permission denied", "permission denied"):
        site.feed(Discovered("shop", "static", site.now, error=error))
        site.run(40.0)

    assert [e.sentence for e in site.told("discovery")] == ["shop: static no such file", "shop: static permission denied"]


def test_a_drain_outlasts_a_slot_that_comes_and_goes() -> None:
    site = warm()
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    del site.sides["edge"].servers[REF]
    site.run(2.0)
    site.sides["edge"].servers[REF] = Server(address(1))
    site.run(3.0)
    assert server(site, 1).operator is Operator.DRAINING

    command(site, Verb.CLEAR, 1)
    site.run(3.0)

    assert server(site, 1).operator is Operator.READY and not site.force.overrides


def test_a_drain_outlasts_a_slot_that_goes_where_the_other_balancer_was_not_looked_at_since_our_restart() -> None:
    site = warm(Layout(TWO))
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(2.0)
    site.sides["web"].reachable = False
    restart(site)
    del site.sides["edge"].servers[REF]
    site.run(2.0)
    site.sides["web"].reachable = True
    site.run(2.0)

    command(site, Verb.CLEAR, 1)
    site.run(3.0)

    assert server(site, 1, "web").operator is Operator.READY


def test_where_nobody_serves_the_old_picture_of_a_lost_balancer_keeps_nobody_out() -> None:
    site = warm(Layout(TWO))
    site.behave(address(1), "refused")
    die(site, 2)
    assert (out(site), out(site, "web")) == ([1, 2], [1, 2])
    site.sides["web"].reachable = False
    site.run(2.0)

    for i in (3, 4):
        server(site, i).down = True
    site.run(3.0)

    assert out(site) == [] and site.told("returned")[-1].by == "rule:panic"


def test_a_word_said_again_after_another_came_between_is_ours_though_its_second_saying_is_refused() -> None:
    site = warm()
    edge = site.sides["edge"]
    edge.look_s = edge.apply_s = 0.8
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING)
    site.run(0.001)
    command(site, Verb.OVERRIDE, 1, Operator.MAINTENANCE)
    while server(site, 1).operator is Operator.READY:
        site.run(0.05)
    command(site, Verb.OVERRIDE, 1, Operator.DRAINING, ttl=1.0)

    site.run(15.0)

    assert server(site, 1).operator is Operator.READY and not site.force.overrides
