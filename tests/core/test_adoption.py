"""What an earlier life left in the journal is adopted only where the balancer still shows it, and ends otherwise."""

from __future__ import annotations

from dataclasses import replace

from lbplugins.values import NONE, Setting
from sidecar.core.model import Act, Adopted, Decision, Ejection, Instance, Intent, SelfChecked
from sidecar.core.policy import Policy
from tests.core.lab import Lab, good, policy, refused


def _crashed(lab: Lab, i: int, *, returning: bool) -> Adopted:
    """The sidecar dies with an ejection of instance i in its journal."""
    ejection = Ejection(lab.instance(i).instance, lab.now - 1, "rule:consecutive", "refused twice", returning=returning)
    return Adopted(lab.now, (ejection,))


def _restarted_healthy(*, returning: bool) -> Lab:
    """Restarted with an ejection in the journal that is nowhere on the balancer."""
    lab = Lab()
    lab.run(20)
    lab.start(_crashed(lab, 1, returning=returning))
    lab.run(20)
    return lab


def test_a_return_that_had_been_done_is_struck_from_the_journal() -> None:
    lab = _restarted_healthy(returning=True)

    assert [(i.act, i.instance) for i in lab.journal if i.instance == lab.instance(1).instance] == [(Act.FORGET, lab.instance(1).instance)]
    assert lab.world.adopted == {} and lab.instance(1).ejection is None


def test_an_ejection_that_never_reached_the_balancer_is_struck_from_the_journal() -> None:
    lab = _restarted_healthy(returning=False)

    assert Act.FORGET in [i.act for i in lab.journal]
    assert lab.world.adopted == {} and lab.instance(1).ejection is None
    assert lab.written == [] and lab.told("ejected") == []


def test_what_dies_after_such_a_restart_stays_out() -> None:
    lab = _restarted_healthy(returning=True)

    lab.answer(1, refused())
    lab.run(30)

    assert lab.out() == [1]
    assert [change.want for _, change in lab.written] == [Setting(NONE)], "out once, and never put back while dead"
    assert len(lab.told("ejected")) == 1 and lab.told("adopted") == []


def test_what_is_still_out_on_one_balancer_of_two_is_adopted() -> None:
    lab = Lab()
    lab.run(20)
    crashed = _crashed(lab, 1, returning=False)
    lab.set_seen(1, ours=Setting(NONE))
    lab.answer(1, refused())
    lab.policy = _with_another_pool()

    lab.start(crashed)
    lab.run(5)
    assert lab.out() == [1] and lab.instance(1).ejection is not None

    lab.answer(1, good())
    lab.run(30)
    assert lab.out() == [] and lab.instance(1).ejection is None


def _with_another_pool() -> Policy:
    """The service stands in a second pool that has no such servers."""
    usual = policy()
    shop = replace(usual.services["shop"], pools=(("edge", "shop"), ("edge", "other")))
    return replace(usual, services={"shop": shop})


def test_an_address_that_is_gone_from_the_pool_changes_nothing() -> None:
    lab = Lab()
    lab.run(20)
    stranger = Instance("shop", lab.instance(1).instance.address._replace(host="10.0.9.9"))
    lab.start(Adopted(lab.now, (Ejection(stranger, lab.now, "rule:consecutive", "refused"),)))
    lab.run(20)

    assert lab.written == [] and lab.told("ejected") == []


def test_who_is_out_by_nobody_we_know_is_told_once_and_shown_however_well_he_answers() -> None:
    lab = Lab()
    lab.set_seen(1, ours=Setting(NONE))
    lab.run(60)

    assert lab.holds() == {"operator"}
    assert [e.sentence for e in lab.told("held")] == [
        "shop: held by operator for 10.0.0.1:80: edge/shop/s1 is out by a hand we do not know; `adopt` makes it ours"
    ]

    lab.set_seen(1, ours=Setting())
    lab.run(10)
    assert lab.holds() == set()


def test_what_the_writer_has_out_while_we_stand_by_is_no_orphan_of_ours() -> None:
    lab = Lab()
    lab.run(20)
    lab.feed(SelfChecked(lab.now, standby={"edge": "another sidecar writes to it"}))
    lab.set_seen(1, ours=Setting(NONE))
    lab.run(20)

    assert lab.told("held") == [] and lab.holds() == set()


def test_the_end_of_what_observe_mode_told_leaves_an_earlier_ejection_in_force() -> None:
    lab = Lab()
    lab.run(20)
    earlier = _crashed(lab, 1, returning=True)
    lab.world.absorb(earlier)
    told = replace(earlier.ejections[0], enforced=False)

    lab.world.settle(Decision(lab.now, (Intent(Act.FORGET, lab.now, "sidecar", "observed only", told.instance, told),)))

    assert list(lab.world.adopted) == [told.instance]
