"""A small piece of the differential runs; the long ones are commands, and their figures stand in docs/proof.md."""

from __future__ import annotations

import pytest

from tests.sim import differential_haproxy, differential_haproxy_clock, differential_haproxy_reload, differential_nginx
from tests.sim.haproxy import SimHaproxy

HAPROXY = ("2.6", "2.8")
NGINX = ("1.22", "1.31")
SEED = 20_261_124

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("version", HAPROXY)
def test_haproxy_answers_and_shows_what_the_simulated_one_does(version: str) -> None:
    assert not differential_haproxy.run(version, scripts=150, seed=SEED)


@pytest.mark.parametrize("version", HAPROXY)
def test_haproxy_remembers_and_forgets_over_a_reload_what_the_simulated_one_does(version: str) -> None:
    assert not differential_haproxy_reload.run(version, scripts=48, seed=SEED)


@pytest.mark.parametrize("version", HAPROXY)
def test_haproxy_settles_at_what_the_simulated_one_does_while_checks_run(version: str) -> None:
    failures, _ = differential_haproxy_clock.run(version, scripts=6, seed=SEED, copies=2, steps=2)

    assert not failures


@pytest.mark.parametrize("version", NGINX)
def test_nginx_accepts_and_refuses_what_the_simulated_one_does(version: str) -> None:
    failures, _ = differential_nginx.run_test(version, scripts=60, seed=SEED)

    assert not failures


@pytest.mark.parametrize("version", NGINX)
def test_nginx_serves_after_a_reload_whom_the_simulated_one_serves(version: str) -> None:
    failures, _ = differential_nginx.run_reload(version, scripts=6, seed=SEED, pools=4)

    assert not failures


def test_a_difference_is_found_and_told_in_few_lines() -> None:
    wrong = differential_haproxy.run("2.8", scripts=200, seed=SEED, most_failures=1, simulated="2.6")

    assert len(wrong) == 1
    assert len(wrong[0].lines) <= 2
    assert "real" in wrong[0].how and "simulated" in wrong[0].how


def test_the_two_simulated_versions_differ_where_the_real_ones_do() -> None:
    config = "backend b\n  server s1 127.0.0.1:1\n"
    line = b"set server b/s1 state maint;del server b/zz;set server b/s1 weight x\n"

    said = {version: SimHaproxy(config, version).answer(line, 0.0) for version in HAPROXY}

    assert said["2.6"] == b"\nNo such server.\nEmpty weight string empty or preceded by garbage\n"
    assert said["2.8"] == b"\nNo such server.\n\nEmpty weight string empty or preceded by garbage\n\n"
