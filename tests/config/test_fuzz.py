"""Whatever a file holds, loading gives problems and never raises; what has no error can be composed and shown."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.config import effective, expand, load, policy, probe_specs, sources
from sidecar.config.load import Loaded
from sidecar.config.tree import parse, plain

ROOT = Path(__file__).parents[2]
SEEDS = [
    path.read_text(encoding="utf-8") for path in sorted([*(ROOT / "examples").glob("*.yaml"), *(Path(__file__).parent / "good").glob("*")])
]
SNIPPETS = [
    "\t", ":", "- ", "{", "}", "[", "]", "'", '"', "\n", "#", "*a", "&a", "<<: ", "!!set ", "? ", "---\n", "...", "|\n", ">\n",
    "%YAML 1.1\n", "\0", "\ufeff", "é", "null", "~", "true", "1e999", ".inf", "-0", "0x1F", "9" * 30,
    "services:", "probe:", "'*'", "x-a:", "policy:",
    "include: .",
    "env:A", "0s", "100%", "1d", "\x85", "\u2028", "\ud7ff", '"\\ud800"', '"\\0"', "{{", "@", "`", "=", "2001-01-01",
]  # fmt: skip

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def loaded_from(text: str) -> Loaded:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lb-sidecar.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        loaded = load(path)
        _check(loaded)
        return loaded


def _check(loaded: Loaded) -> None:
    assert loaded.config is not None or loaded.errors
    for problem in loaded.problems:
        assert str(problem).isprintable() and problem.line >= 1 and problem.column >= 1 and problem.message
    if loaded.config is not None:
        grown = loaded.config
        for name in loaded.config.balancers:
            grown = expand(grown, name, {"some", "pool"})
        assert policy(grown, {}).services.keys() == grown.services.keys() - {"*"}
        assert probe_specs(grown) is not None and sources(grown) is not None
        assert effective(loaded)


@quick
@given(st.data())
def test_mutated_text_never_raises(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 0, 1, 3, 20]))
        text = text[:start] + data.draw(st.sampled_from(SNIPPETS)) + text[start + length :]

    loaded_from(text)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["1s", "50%", "64KiB", "act", "a/b"]),
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
)


def _swap(tree: Any, path: list[Any], value: Any) -> Any:
    if not path:
        return value
    if isinstance(tree, dict):
        return {key: _swap(entry, path[1:], value) if key == path[0] else entry for key, entry in tree.items()}
    return [_swap(entry, path[1:], value) if index == path[0] else entry for index, entry in enumerate(tree)]


@quick
@given(st.data())
def test_any_value_in_any_place_never_raises(data: st.DataObject) -> None:
    node, _ = parse(data.draw(st.sampled_from(SEEDS)), "seed")
    assert node is not None
    tree = plain(node)
    path: list[Any] = []
    inside = tree
    while isinstance(inside, dict | list) and inside and data.draw(st.integers(0, 5)) > 0:
        step = data.draw(st.sampled_from(list(inside) if isinstance(inside, dict) else range(len(inside))))
        path.append(step)
        inside = inside[step]

    loaded_from(json.dumps(_swap(tree, path, data.draw(trees))))


@quick
@given(st.text(max_size=200))
def test_any_text_never_raises(text: str) -> None:
    if "\ud800" <= max(text, default="") <= "\udfff":
        text = text.encode("utf-8", "replace").decode("utf-8")
    loaded_from(text)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_never_raise(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(raw)
        _check(load(path))


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 60_000, "&a " * 1000, "? " * 5000])
def test_deep_and_odd_texts_are_one_problem(text: str) -> None:
    loaded = loaded_from(text)

    assert loaded.config is None and len(loaded.problems) == 1
