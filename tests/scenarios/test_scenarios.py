"""Every simulated scenario is as it promises, every row has its file, every file is sound, and the page is of today's files."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.scenarios import page, sim, words
from tests.scenarios.judge import BrokenExpectation
from tests.scenarios.real import TOLERANCE_S, RealWorld
from tests.scenarios.scenario import MATRIX, ROOT, ROWS, Scenario, ScenarioError, load, load_all
from tests.scenarios.sim import SimWorld

ALL = load_all()
NAMES = [scenario.id for scenario in ALL]


def simulated(scenario: Scenario) -> object:
    """A long one, or one of many instances, is left out of the fast loop."""
    instances = sum(service.instances for service in scenario.layout.services.values())
    return pytest.param(scenario, id=scenario.id, marks=[pytest.mark.slow] if scenario.length_s * instances > 400 else [])


@pytest.mark.parametrize("scenario", [simulated(s) for s in ALL if s.runs_sim])
def test_in_simulation_it_comes_as_promised(scenario: Scenario) -> None:
    sim.run(scenario)


def test_the_same_scenario_gives_the_same_figures() -> None:
    scenario = next(s for s in ALL if s.id == "I5")

    assert sim.run(scenario) == sim.run(scenario)


def test_every_row_of_the_matrix_has_its_file() -> None:
    assert {s.row for s in ALL} == set(MATRIX)
    assert len(NAMES) == len(set(NAMES))


def test_every_row_is_played_somewhere_or_says_what_it_waits_for() -> None:
    for scenario in ALL:
        assert scenario.waits_for or scenario.runs_sim or scenario.shapes or scenario.tests, scenario.id
    assert {s.id for s in ALL if s.waits_for} == {"I4", "I5b", "I20", "I21"}


@cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("scenario", [s for s in ALL if s.tests], ids=lambda s: s.id)
def test_the_tests_that_a_row_names_exist(scenario: Scenario) -> None:
    for test in scenario.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), test
        assert not name or name in functions(ROOT / path), test


def test_no_phrase_is_there_that_nobody_says() -> None:
    said = {sentence.phrase for s in ALL for sentence in (*(step.deed for step in s.timeline), *(e.state for e in s.expect))}

    assert [p.template for p in (*words.DEEDS, *words.STATES) if p not in said] == []


def test_what_must_hold_for_a_while_is_looked_at_on_real_processes_too() -> None:
    for scenario in (s for s in ALL if s.shapes):
        short = [e for e in scenario.expect if e.form == "from" and e.ends - e.begins < TOLERANCE_S + 0.5]
        assert [str(e) for e in short] == [], f"{scenario.id}: such a span must be longer than the tolerance"


def test_every_phrase_can_be_done_or_seen_in_the_worlds_that_it_names() -> None:
    for phrases, prefix in ((words.DEEDS, "_"), (words.STATES, "_is_")):
        for phrase in (p for p in phrases if not p.waits):
            assert hasattr(SimWorld, prefix + phrase.key), phrase
            assert hasattr(RealWorld, prefix + phrase.key) is phrase.real, phrase


# ---- what is no scenario ----

SOUND = """
id: I1
title: T
promise: P
worlds: {SIM: true, REAL: "no, because of a test"}
timeline:
  - at 2.0 s: shop/s1 refuses connections
expect:
  - by 2.5 s: shop/s1 is out on edge because 'refused'
"""
WRONG = [
    ("refuses connections", "refuses conections", "timeline.0: 'shop/s1 refuses conections' is nothing that happens here; did you mean"),
    ("at 2.0 s:", "2.0 s:", "a step begins with a time"),
    ("at 2.0 s:", "at 2.0 parsecs:", "units are ms, s, min, h"),
    ("shop/s1 refuses", "shoop/s1 refuses", "shoop is no service of this layout"),
    ("on edge because", "on web because", "web is no balancer of this layout"),
    ("by 2.5 s:", "before 2.5 s:", "an expectation begins with"),
    ("  - by 2.5 s: shop/s1 is out on edge because 'refused'\n", "", "expect"),
    ("expect:", "expects:", "expects: Extra inputs are not permitted"),
    ("id: I1", "id: J1", "id: String should match pattern"),
    ("id: I1", "id: I2", "the name begins with the id, as I2-"),
    ('"no, because of a test"', "maybe", "say `no, because …`"),
    ('"no, because of a test"', "{}", "name shapes or tests"),
    ('"no, because of a test"', "{shapes: [haproxy-3]}", "haproxy-2.6-check"),
    ("shop/s1 refuses connections", "shop/s1 fails 5 % of real requests", "waits_for"),
    ("title: T", "title: [", "while parsing"),
]


@pytest.mark.parametrize(("old", "new", "word"), WRONG, ids=[w[1] or "no expectation" for w in WRONG])
def test_a_mistake_in_a_file_is_one_clear_message(old: str, new: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "I1-test.yaml"
    path.write_text(SOUND)
    load(path)
    path.write_text(SOUND.replace(old, new))

    with pytest.raises(ScenarioError, match=re.escape(word)) as found:
        load(path)

    assert str(found.value).startswith("I1-test.yaml")


BROKEN = [
    ("by 2.1 s: shop/s1 is out on edge", "it did not come true"),
    ("by 2.5 s: shop/s1 is out on edge because 'timeout'", "it did not come true"),
    ("never: shop/s1, shop/s2 are out", "shop/s1 was so"),
    ("never: the log says 'refused'", "it was so"),
    ("after 2.5 s: all of shop are in rotation", "shop/s1 was not so"),
    ("from 0 s to 2.5 s: shop/s1 is judged healthy", "shop/s1 was not so"),
    ("from 3.0 s to 4.0 s: shop/s1 is held by velocity", "shop/s1 was not so"),
    ("after 20.0 s: shop/s1 is out", "it could never be looked at"),
]


@pytest.mark.parametrize(("expected", "why"), BROKEN, ids=[b[0] for b in BROKEN])
def test_what_does_not_come_is_told_with_its_second_and_its_story(expected: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "I1-test.yaml"
    path.write_text(SOUND.replace("by 2.5 s: shop/s1 is out on edge because 'refused'", expected) + "ends: 6 s\n")

    with pytest.raises(BrokenExpectation, match=re.escape(why)) as found:
        sim.run(load(path))

    assert str(found.value).startswith("I1 at ") and f"expected {expected.partition(' ')[0].rstrip(':')}" in str(found.value)
    assert "shop/10.0.0.1:80 is suspect: refused" in str(found.value)


# ---- the pages ----


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.id)
def test_the_page_has_this_row_as_its_file_stands(scenario: Scenario) -> None:
    line = page.written().get(scenario.id, "no line")

    assert line.endswith(f"`{page.digest(scenario)}` |"), f"{line}\nis older than its file: python -m tests.scenarios.chaos {scenario.id}"
    assert f"| {scenario.title} | {scenario.promise} |" in line


def test_the_page_has_no_row_without_a_file() -> None:
    assert list(page.written()) == NAMES
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.written())


def test_the_page_tells_of_no_failure() -> None:
    assert "**failed**" not in page.PAGE.read_text(encoding="utf-8")


def test_the_readme_has_every_phrase() -> None:
    assert page.README.read_text(encoding="utf-8").endswith(page.BEGIN + "\n" + page.phrases()), "python -m tests.scenarios.page"


def test_a_files_name_says_what_it_is_about() -> None:
    for path in ROWS.iterdir():
        assert re.fullmatch(r"[ILS]\d+[a-z]?-[a-z0-9-]+\.yaml", path.name), path.name
