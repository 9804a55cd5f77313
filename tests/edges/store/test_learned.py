"""What targets taught us survives a restart, and damage costs only what it hits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins.values import Address
from sidecar.core.model import Learned, Target
from sidecar.store import learned as store
from sidecar.store.learned import LearnedError, load, save

ONE = Target(Address("10.0.0.1", 80), "http:/health")
TWO = Target(Address("::1", 8080), "tcp")
KNOWN = {ONE: Learned(300, 0.0012, 0.0034), TWO: Learned(3, 0.5, 0.75)}
seconds = st.floats(0, 3600, allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.builds(Target, st.builds(Address, st.text(min_size=1, max_size=20), st.integers(1, 65535)), st.text(max_size=20)),
        st.builds(Learned, st.integers(0, 1 << 40), seconds, seconds),
        max_size=8,
    )
)
def test_saved_is_loaded(tmp_path: Path, known: dict[Target, Learned]) -> None:
    save(tmp_path, known)

    loaded = load(tmp_path)

    assert (loaded.targets, loaded.fault) == (known, "")


def test_nothing_saved_is_nothing_and_no_fault(tmp_path: Path) -> None:
    assert load(tmp_path).targets == {}
    assert load(tmp_path).fault == ""


def test_no_more_than_the_limit_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_TARGETS", 1)

    save(tmp_path, KNOWN)

    assert load(tmp_path).targets == {ONE: KNOWN[ONE]}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"targets": 5}', "\xff", '{"format": 2, "targets": []}', "[" * 50_000])
def test_a_file_that_is_not_ours_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "learned.json").write_bytes(content.encode("latin-1"))

    loaded = load(tmp_path)

    assert loaded.targets == {}
    assert "learned.json" in loaded.fault and "learned anew" in loaded.fault


@pytest.mark.parametrize(
    "row",
    [
        [],
        "row",
        ["h", 0, "s", 1, 0.1, 0.1],
        ["h", 65536, "s", 1, 0.1, 0.1],
        ["", 80, "s", 1, 0.1, 0.1],
        ["h", 80, 7, 1, 0.1, 0.1],
        ["h", 80, "s", -1, 0.1, 0.1],
        ["h", 80, "s", 1.5, 0.1, 0.1],
        ["h", 80, "s", 1, -0.1, 0.1],
        ["h", 80, "s", 1, True, 0.1],
        ["h", 80, "s", 1, 1e9, 0.1],
        ["h" * 2000, 80, "s", 1, 0.1, 0.1],
    ],
)
def test_a_row_that_makes_no_sense_costs_only_itself(tmp_path: Path, row: Any) -> None:
    save(tmp_path, KNOWN)
    path = tmp_path / "learned.json"
    content = json.loads(path.read_text())
    content["targets"].insert(1, row)
    path.write_text(json.dumps(content))

    loaded = load(tmp_path)

    assert loaded.targets == KNOWN
    assert "1 of 3 targets" in loaded.fault


def test_fields_of_the_future_are_ignored(tmp_path: Path) -> None:
    save(tmp_path, KNOWN)
    path = tmp_path / "learned.json"
    content = json.loads(path.read_text())
    content["targets"] = [[*row, "new"] for row in content["targets"]]
    path.write_text(json.dumps(content | {"more": 1}))

    assert load(tmp_path).targets == KNOWN


def test_what_cannot_be_saved_is_an_error_that_leaves_the_old(tmp_path: Path) -> None:
    save(tmp_path, KNOWN)

    with pytest.raises(LearnedError, match="could not be saved"):
        save(tmp_path, {ONE: Learned(1, float("nan"), 0.1)})
    with pytest.raises(LearnedError, match="after a restart"):
        save(tmp_path / "absent", KNOWN)

    assert load(tmp_path).targets == KNOWN
    assert [each.name for each in tmp_path.iterdir()] == ["learned.json"]
