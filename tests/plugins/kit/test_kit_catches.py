"""Each broken plugin is caught by the kit's test for its fault, and each test of the kit catches one."""

from __future__ import annotations

import pytest

from lbplugins.memory import Memory
from lbplugins.testing import BalancerConformance, rules
from tests.plugins.kit.broken_plugins import CAUGHT_BY, lab_of
from tests.plugins.kit.memory_lab import MemoryLab
from tests.plugins.kit.register_lab import OneRegister, RegisterLab

Caught = (AssertionError, pytest.fail.Exception)
"""How the kit speaks; any other exception means that it fell over the fault instead of naming it."""


@pytest.mark.parametrize(("broken", "rule"), CAUGHT_BY.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_plugin_is_caught_by_the_named_test(broken: type[Memory] | type[OneRegister], rule: str) -> None:
    lab = lab_of(broken)

    with pytest.raises(Caught) as caught:
        getattr(BalancerConformance(), rule)(lab)

    assert len(str(caught.value)) > 30, "the message says what the contract demands"


def test_every_test_of_the_kit_catches_a_broken_plugin() -> None:
    assert set(rules()) == set(CAUGHT_BY.values())


@pytest.mark.parametrize("rule", rules())
def test_the_plugins_that_the_broken_ones_are_made_from_pass(rule: str) -> None:
    for good in (MemoryLab(), RegisterLab()):
        getattr(BalancerConformance(), rule)(good)
