"""docs/configuration.md names every key, with the default that holds."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sidecar.config import Config, load, plugin_class
from sidecar.config.load import ROOT_KEYS
from sidecar.config.models import BalancerOptions
from sidecar.core.policy import Guards, Pace, Rules
from sidecar.net.units import duration_text, share_text

DOCS = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
CODE = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL)))


def keys_of(annotation: Any, seen: set[type]) -> Iterator[str]:
    """Every key of a model and of the models inside it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        seen.add(annotation)
        for name, info in annotation.model_fields.items():
            yield info.alias or name
            yield from keys_of(info.annotation, seen)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, dict, tuple, list, typing.Annotated, frozenset):
        for inside in typing.get_args(annotation):
            yield from keys_of(inside, seen)


def test_every_key_is_documented() -> None:
    hidden = {"options", "static", "json_values", "path"}  # not written in a file: the list itself, the path itself
    keys = {*ROOT_KEYS, *keys_of(Config, {BalancerOptions}), "plugin"} - hidden

    missing = sorted(key for key in keys if not re.search(rf"\b{re.escape(key)}\b", CODE))

    assert missing == []


@pytest.mark.parametrize("name", ["haproxy", "nginx", "memory"])
def test_every_key_of_our_plugins_is_documented(name: str) -> None:
    missing = [key for key in keys_of(plugin_class(name).Options, set()) if not re.search(rf"\b{key}\b", CODE)]

    assert missing == []


def documented(key: str) -> str:
    """The default column of a key's row; a row may document several keys in order."""
    for row in re.findall(r"^\| (.+?) \| (.+?) \|", DOCS, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row[0])
        values = row[1].split("`, `")
        if key in names:
            found: str = values[names.index(key)] if len(values) == len(names) else row[1]
            return found.strip("`")
    raise AssertionError(f"{key} has no row")


def test_documented_defaults_of_the_policy_hold() -> None:
    rules, guards, pace = Rules(), Guards(), Pace()
    simple = {
        "fall": str(rules.fall),
        "fall_fast": str(rules.fall_fast),
        "rise": str(rules.rise),
        "fast_spread": duration_text(rules.fast_spread_s),
        "undo_within": duration_text(rules.undo_s),
        "hands_off": duration_text(rules.hands_off_s),
        "min_healthy": str(guards.min_healthy),
        "panic_below": share_text(guards.panic_below),
        "picture_max_age": duration_text(guards.picture_max_age_s),
        "own_lag": duration_text(guards.blind_lag_s),
        "learn": str(pace.learn_good),
        "first_interval": duration_text(pace.first_interval_s),
        "min_interval": duration_text(pace.min_interval_s),
        "max_interval": duration_text(pace.max_interval_s),
        "pending_gap": duration_text(pace.pending_gap_s),
        "first_timeout": duration_text(pace.first_timeout_s),
        "min_timeout": duration_text(pace.min_timeout_s),
        "max_timeout": duration_text(pace.max_timeout_s),
        "jitter": share_text(pace.jitter),
        "ejected": duration_text(pace.ejected_s),
        "ejected_long": duration_text(pace.ejected_long_s),
        "ejected_long_after": duration_text(pace.ejected_long_after_s),
        "witnesses": str(pace.witnesses_asked),
        "timeout_factor": f"{pace.timeout_factor:g}",
        "baseline_factor": f"{pace.baseline_factor:g}",
    }

    assert {key: documented(key) for key in simple} == simple


@pytest.mark.parametrize("key", ["window", "hold_down", "flapping", "max_ejected", "velocity", "cold_start", "discovery"])
def test_documented_defaults_of_blocks_are_the_blocks_defaults(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    service = "services: {{s: {{balancer: a, probe: {{http: /h}}{}}}}}\n"
    balancers = "balancers: {a: {plugin: memory}}\n"
    path.write_text(balancers + service.format(""))
    plain = load(path)
    path.write_text(balancers + service.format(f", policy: {{{key}: {documented(key)}}}"))

    assert plain.config is not None
    assert load(path).config == plain.config


def test_the_examples_in_the_docs_load(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "a.yaml"
        path.write_text(block)
        assert load(path).problems == ()
