"""The loop that everything hangs on: what only counts and tells can fail without costing a decision."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest

from lbplugins.values import Address
from sidecar.core.model import Ask, Configured, Decision, Discovered, Fact, Instance, Intent
from sidecar.core.policy import Policy, ProbePlan, ServicePolicy
from sidecar.core.window import Latencies
from sidecar.reconcile import Reconciler


class Paper:
    """A journal that forgets."""

    def append(self, intents: Sequence[Intent]) -> None: ...
    def compact(self) -> None: ...


class Asked:
    """A prober that only notes what it was asked."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []

    def ask_all(self, asks: Iterable[Ask]) -> None:
        self.asks += asks


@pytest.mark.parametrize("broken", ["facts", "decisions"])
async def test_a_counter_that_fails_costs_no_later_turn(broken: str) -> None:
    loop = asyncio.get_running_loop()
    errors: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    def count(facts: Sequence[Fact]) -> None:
        if broken == "facts":
            raise ZeroDivisionError

    def tell(decision: Decision) -> None:
        if broken == "decisions":
            raise ZeroDivisionError

    prober = Asked()
    reconciler = Reconciler(prober=prober, journal=Paper(), recorder=None, latencies=Latencies(), on_decision=tell, on_facts=count)
    policy = Policy({"shop": ServicePolicy("shop", probes=(ProbePlan("tcp"),), from_balancer=False)})
    at = loop.time()
    try:
        reconciler.deliver((Configured(policy, at), Discovered("shop", "static", at, (Instance("shop", Address("127.0.0.1", 1)),))))
        async with asyncio.timeout(20):
            while reconciler.turns < 3:
                await asyncio.sleep(0.01)
    finally:
        reconciler.close()
        reconciler.finish()

    assert prober.asks and errors


class Blunt(Paper):
    """A journal that fails with what nobody expected, a few times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def compact(self) -> None:
        if self.times:
            self.times -= 1
            raise ZeroDivisionError("blunt")


async def test_a_journal_that_fails_oddly_is_tried_again() -> None:
    reconciler = Reconciler(
        prober=Asked(), journal=Blunt(2), recorder=None, latencies=Latencies(), on_decision=lambda _: None, on_facts=lambda _: None
    )
    faults = []
    try:
        async with asyncio.timeout(20):
            for _ in range(3):
                reconciler.journal_fault = "not yet"
                reconciler.try_journal()
                while reconciler.journal_fault == "not yet":
                    await asyncio.sleep(0.01)
                faults.append(reconciler.journal_fault)
    finally:
        reconciler.close()
        reconciler.finish()

    assert faults == ["ZeroDivisionError: blunt", "ZeroDivisionError: blunt", ""]
