"""The shipped JSON Schema is the models' own, takes every good file and refuses what is plainly wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sidecar.config import json_schema
from sidecar.config.schema import SHIPPED, text
from sidecar.config.tree import plain, read

GOOD = sorted([*(Path(__file__).parent / "good").glob("*.yaml"), *(Path(__file__).parents[2] / "examples").glob("*.yaml")])


def values(path: Path) -> Any:
    node, problems = read(path)
    assert node is not None and not problems
    return plain(node)


def test_the_shipped_schema_is_up_to_date() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == text(), "run: python -c 'from sidecar.config.schema import write; write()'"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_files_and_examples_match_it(path: Path) -> None:
    errors = list(Draft202012Validator(json.loads(SHIPPED.read_text(encoding="utf-8"))).iter_errors(values(path)))

    assert errors == []


@pytest.mark.parametrize(
    "name",
    [
        "root_unknown_key", "mode_misspelt", "log_level", "services_is_list", "plugin_missing", "plugin_not_text", "service_unknown_key",
        "probe_port_too_big", "probe_interval_without_unit", "probe_method", "policy_unknown_key", "policy_fall_zero", "policy_window_word",
        "policy_share_without_percent", "label_value_number", "secret_inline", "token_may", "instance_without_port", "instances_word",
        "pool_without_balancer", "dns_type", "runbook_not_a_link", "graphite_address", "state_size_without_unit",
    ],
)  # fmt: skip
def test_an_editor_sees_the_plain_mistakes(name: str) -> None:
    path = Path(__file__).parent / "bad" / f"{name}.yaml"

    assert not Draft202012Validator(json_schema()).is_valid(values(path))
