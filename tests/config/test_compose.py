"""What the core gets of a configuration: every number, the stricter mode, the pools that nobody named."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest

from lbplugins.values import Address, Traits
from sidecar.config import Config, expand, load, observing, policy, pools_of, probe_specs, sources
from sidecar.config.compose import guards, pace, rules
from sidecar.config.models import PaceOptions, PolicyOptions
from sidecar.core.model import PoolRef
from sidecar.core.policy import Guards, Mode, Pace, ProbePlan, RuleMode, Rules

EVERY_KEY = Path(__file__).parent / "good" / "every_key.yaml"


def config_of(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "lb-sidecar.yaml"
    path.write_text(text)
    loaded = load(path)
    assert not loaded.errors, loaded.problems
    return loaded.require()


def test_an_empty_configuration_has_the_policys_own_defaults() -> None:
    assert rules(PolicyOptions()) == Rules()
    assert guards(PolicyOptions()) == Guards()
    assert pace(PaceOptions()) == Pace()


def test_every_number_of_the_policy_can_be_configured() -> None:
    composed = policy(load(EVERY_KEY).require(), {})
    shop = composed.services["shop"]

    for written, default in ((shop.rules, Rules()), (shop.guards, Guards()), (composed.pace, Pace())):
        same = [field.name for field in fields(default) if getattr(written, field.name) == getattr(default, field.name)]
        assert same == [], f"not reachable from the file: {same}"


def test_a_service_reaches_the_core_whole() -> None:
    shop = policy(load(EVERY_KEY).require(), {}).services["shop"]

    assert shop.probes[0][1:] == (1.0, 1.0, None) and len(shop.probes) == 2
    assert shop.require == 1 and shop.pools == (("edge", "shop"), ("web", "shop"))
    assert shop.references == ((Address("10.0.0.1", 53), "tcp"), (Address("10.0.0.2", 80), shop.probes[0].key))
    assert shop.rule_modes == {"consecutive": RuleMode.ACT, "slow": RuleMode.OBSERVE, "traffic_errors": RuleMode.OFF}
    assert (shop.slow_start_s, shop.labels, shop.runbook, shop.from_balancer) == (60.0, {"team": "web"}, "http://wiki/shop", False)


def test_traits_version_and_hash_reach_the_core() -> None:
    composed = policy(load(EVERY_KEY).require(), {"edge": Traits(drain=True, kill=True, costly=True, observe_every_s=3.0)}, "abc")

    edge = composed.balancers["edge"]
    assert (edge.plugin, edge.drain, edge.kill, edge.costly, edge.observe_every_s) == ("memory", True, True, True, 3.0)
    assert (composed.version, composed.config_hash) == (1, "abc")


@pytest.mark.parametrize(("whole", "balancer", "service"), list(product(("act", "observe"), repeat=3)))
def test_the_stricter_mode_wins(tmp_path: Path, whole: str, balancer: str, service: str) -> None:
    text = f"mode: {whole}\nbalancers: {{a: {{plugin: memory, mode: {balancer}}}, b: {{plugin: memory}}}}\n"
    text += f"services:\n  one: {{balancer: a, mode: {service}}}\n  both: {{pools: [a/both, b/both], mode: {service}}}\n"

    composed = policy(config_of(tmp_path, text), {})

    assert composed.balancers["a"].mode == ("observe" if "observe" in (whole, balancer) else "act")
    assert composed.services["one"].mode == ("observe" if "observe" in (whole, balancer, service) else "act")
    # `b` may be written, so the service acts there; `a` is held back by its own mode.
    assert composed.services["both"].mode == ("observe" if "observe" in (whole, service) else "act")


def test_observing_is_the_same_configuration_without_hands() -> None:
    config = load(EVERY_KEY).require()

    composed = policy(observing(config), {})

    modes = {service.mode for service in composed.services.values()} | {balancer.mode for balancer in composed.balancers.values()}
    assert modes == {Mode.OBSERVE}
    assert composed.services["shop"].rules == policy(config, {}).services["shop"].rules


@pytest.mark.parametrize(
    ("word", "mode", "off"), [("act", None, set()), ("observe", RuleMode.OBSERVE, set()), ("off", RuleMode.OFF, {"window"})]
)
def test_the_windowed_rule_can_be_switched(tmp_path: Path, word: str, mode: RuleMode | None, off: set[str]) -> None:
    text = f"balancers: {{a: {{plugin: memory}}}}\nservices: {{s: {{balancer: a, policy: {{window: {word}}}}}}}\n"

    service = policy(config_of(tmp_path, text), {}).services["s"]

    assert (service.rule_modes.get("window"), service.rules.off) == (mode, off)


def test_one_share_is_both_budgets_and_require_any_is_one(tmp_path: Path) -> None:
    text = "balancers: {a: {plugin: memory}}\n"
    text += "services: {s: {balancer: a, probe: [{http: /a}, {tcp: true}], require: any, policy: {max_ejected: 25%}}}\n"

    service = policy(config_of(tmp_path, text), {}).services["s"]

    assert (service.guards.max_ejected_hard, service.guards.max_ejected_soft, service.require) == (0.25, 0.25, 1)
    assert service.from_balancer


def test_a_pool_has_the_services_name_unless_said(tmp_path: Path) -> None:
    text = "balancers: {a: {plugin: memory}}\nservices:\n  s: {balancer: a}\n  t: {balancer: a, pool: x}\n  u: {pools: [a/y, a/z]}\n"

    services = config_of(tmp_path, text).services

    assert [pools_of(name, service) for name, service in services.items()] == [
        (PoolRef("a", "s"),),
        (PoolRef("a", "x"),),
        (PoolRef("a", "y"), PoolRef("a", "z")),
    ]


# ---- the service '*' ----

ANY = """
balancers: {a: {plugin: memory}, b: {plugin: memory}}
defaults: {probe: {http: /health}}
services:
  shop: {pools: [a/shop_http]}
  cart: {balancer: b}
  '*': {balancer: a, policy: {fall: 6}}
"""


def test_unnamed_pools_become_observed_services(tmp_path: Path) -> None:
    config = config_of(tmp_path, ANY)

    grown = expand(config, "a", {"shop_http", "mail", "we:ird@pool", "cart"})

    assert list(grown.services) == ["shop", "cart", "*", "a.cart", "mail", "we_ird_pool"]
    mail = policy(grown, {}).services["mail"]
    assert (mail.mode, mail.pools, mail.rules.fall) == (Mode.OBSERVE, (("a", "mail"),), 6)
    assert mail.probes == (ProbePlan("http:/health"),)
    assert "*" not in policy(grown, {}).services


def test_expanding_is_only_for_its_balancer_and_twice_is_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, ANY)

    assert expand(config, "b", {"other"}) == config
    grown = expand(config, "a", {"mail"})
    assert expand(grown, "a", {"mail"}) == grown
    assert set(expand(grown, "a", {"mail", "news"}).services) - set(grown.services) == {"news"}


def test_every_pool_of_several_balancers(tmp_path: Path) -> None:
    text = "balancers: {a: {plugin: memory}, b: {plugin: memory}}\nservices: {'*': {pools: [a/*, b/*]}}\n"

    grown = expand(expand(config_of(tmp_path, text), "a", {"x"}), "b", {"x"})

    assert [name for name in grown.services if name != "*"] == ["x", "b.x"]


# ---- probes and sources ----


def test_probe_specs_are_by_key_and_hold_those_of_references() -> None:
    config = load(EVERY_KEY).require()

    specs = probe_specs(config)

    assert all(key == spec.key for key, spec in specs.items())
    asked = {plan.key for plan in policy(config, {}).services["shop"].probes} | {"tcp"}
    assert set(specs) == asked


def test_sources_are_built_for_services_with_instances(tmp_path: Path) -> None:
    text = (
        "balancers: {a: {plugin: memory}}\nservices:\n  s: {balancer: a}\n  t: {balancer: a, instances: ['10.0.0.1:80', '10.0.0.2:80']}\n"
        "  u: {balancer: a, instances: {dns: 'u.example:80'}}\n  v: {balancer: a, instances: {file: v.json}}\n"
    )

    built = sources(config_of(tmp_path, text))

    assert [(source.service, source.name) for source in built] == [
        ("t", "static"),
        ("u", "dns:u.example"),
        ("v", f"file:{tmp_path / 'v.json'}"),
    ]
