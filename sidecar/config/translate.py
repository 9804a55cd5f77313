"""pydantic's findings in the words of the file: where it stands, what is wrong, what to do."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sidecar.config.problems import Problem, did_you_mean, listed, problem_at, shown
from sidecar.config.tree import Node, Scalar, Table, at, place_of
from sidecar.net.units import duration_text, share_text, size_text

_ELSEWHERE = {
    "interval": "probe", "timeout": "probe", "expect": "probe", "http": "probe", "https": "probe", "tcp": "probe", "tls": "probe",
    "grpc": "probe", "command": "probe", "port": "probe", "headers": "probe", "host": "probe", "method": "probe",
    "fall": "policy", "rise": "policy", "max_ejected": "policy", "min_healthy": "policy", "panic_below": "policy", "slow": "policy",
    "hold_down": "policy", "window": "policy", "hands_off": "policy",
}  # fmt: skip
"""Keys that people put one level too high, and the block they belong in."""

_WANTED = {
    "int": "a whole number, as 4",
    "float": "a number, as 2.5",
    "bool": "true or false (on, off, yes and no are plain words in YAML 1.2)",
    "string": 'text; put it in quotes, as "12"',
    "list": "a list, as [a, b]",
    "tuple": "a list, as [a, b]",
    "set": "a list, as [a, b]",
    "frozen_set": "a list, as [a, b]",
    "dict": "a mapping, as {key: value}",
    "model": "a mapping, as {key: value}",
    "path": "a path, as /run/haproxy/admin.sock",
    "is_instance_of": "a mapping, as {key: value}",
}

_EMPTY = {"probe": "what to ask, as `probe: {http: /health}`", "policy": "`policy: {fall: 4}`", "instances": "`instances: [10.0.0.5:8080]`"}
"""What is meant where a key stands without a value."""


def problems_of(error: ValidationError, root: Node, path: Sequence[str], model: type[BaseModel]) -> list[Problem]:
    """Each finding as a Problem; `root` is the whole tree, `path` where the validated value stands in it, `model` what it should be.

    A value that may be of several kinds fails once for each of them; only the finding that goes deepest is the reader's mistake.
    """
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, root, path, model)
        found.setdefault(problem.path, problem)
    branches = [problem.path for problem in found.values()]
    return [
        problem
        for problem in found.values()
        if not ("is not one of" in problem.message and any(other.startswith(f"{problem.path}.") for other in branches))
    ]


def _problem(detail: ErrorDetails, root: Node, path: Sequence[str], model: type[BaseModel]) -> Problem:
    loc = [step for step in detail["loc"] if step != "[key]"]
    place, walked = place_of(root, [*path, *loc])
    kind = detail["type"]
    last = str(loc[-1]) if loc else ""
    if kind == "missing":
        return problem_at(place, ".".join((*walked, last)), _missing(last, model, loc))
    if kind == "extra_forbidden":
        return problem_at(place, ".".join(walked), _unknown(last, model, loc))
    return problem_at(place, ".".join(walked), _wrong(detail, at(root, *walked)))


def _missing(name: str, model: type[BaseModel], loc: Sequence[int | str]) -> str:
    parent = model_at(model, loc[:-1])
    info = parent.model_fields.get(name) if parent is not None else None
    example = f": {shown_example(info.examples[0])}" if info is not None and info.examples else ""
    return f"the key `{name}` is missing; add `{name}{example}`"


def shown_example(example: object) -> str:
    """An example value as YAML would show it on one line."""
    return str(example).replace("'", "") if isinstance(example, list | dict) else str(example)


def _unknown(name: str, model: type[BaseModel], loc: Sequence[int | str]) -> str:
    parent = model_at(model, loc[:-1])
    known = sorted(info.alias or key for key, info in parent.model_fields.items()) if parent is not None else []
    return unknown_key(name, known)


def unknown_key(name: str, known: Iterable[str]) -> str:
    """What to say of a key that does not exist here."""
    keys = list(known)
    block = _ELSEWHERE.get(name)
    if block in keys:
        return f"unknown key {shown(name)} here; it belongs under `{block}:`"
    return f"unknown key {shown(name)}{did_you_mean(name, keys)} (known here: {listed(keys) or 'none'})"


def _wrong(detail: ErrorDetails, node: Node | None) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context.get("error", detail["msg"])).removeprefix("Value error, ")
    written = node.text if isinstance(node, Scalar) else None
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", ""))
        choices = re.findall(r"'([^']*)'", expected) or [expected.lower()]
        return f"{shown(detail['input'])} is not one of: {listed(choices)}{did_you_mean(detail['input'], choices)}"
    if bound := _bound(kind, context, written):
        return f"{shown(detail['input']) if written is None else written[:40]} must be {bound}"
    if kind in ("string_pattern_mismatch", "string_too_short", "string_too_long"):
        return _text(kind, context, detail["input"])
    wanted = _WANTED.get(re.sub(r"_(type|parsing|from_float|attributes_type)+$", "", kind))
    if wanted is not None:
        empty = node is None or (isinstance(node, Scalar) and node.value is None)
        if empty and detail["loc"] and (example := _EMPTY.get(str(detail["loc"][-1]))) is not None:
            return f"nothing stands here; write {example}, or leave the key out"
        return f"{'nothing stands here; it' if empty else f'{_input(detail, node)}'} must be {wanted}"
    return f"{detail['msg']}; see docs/configuration.md"


def _input(detail: ErrorDetails, node: Node | None) -> str:
    if isinstance(node, Table):
        return "a mapping"
    return "a list" if isinstance(detail["input"], list | tuple) else shown(detail["input"])


def _text(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "string_too_long":
        return f"too long: at most {context.get('max_length')} characters"
    if kind == "string_too_short":
        return "empty: write a value"
    pattern = str(context.get("pattern"))
    if pattern.startswith("^https?"):
        return f"{shown(value)} is not a link: it must begin with https:// or http://"
    allowed = re.search(r"\[([^\]]+)\][+*{][^\[]*$", pattern)
    letters = allowed.group(1).replace("A-Za-z0-9", "letters, digits, ").replace("A-Za-z", "letters, ") if allowed else pattern
    if letters.startswith("^"):
        return f"{shown(value)} holds a control character: remove it"
    return f"{shown(value)} is not a name here: only {letters} are allowed, and no more than the limit in docs/configuration.md"


_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _bound(kind: str, context: Mapping[str, Any], written: str | None) -> str:
    """`at least 1s`, in the unit that was written; "" when it is not about a bound."""
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {_limit(context[key], written or '')}"
    if kind == "too_long":
        return f"a list or mapping of at most {context.get('max_length')} entries"
    if kind == "too_short":
        return "a list or mapping of at least one entry"
    if kind == "finite_number":
        return "a finite number"
    return ""


def _limit(limit: float, written: str) -> str:
    if written.endswith("%"):
        return share_text(float(limit))
    if written.endswith("B"):
        return size_text(int(limit))
    return duration_text(float(limit)) if re.search(r"[a-z]$", written) else f"{limit:g}"


def model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that describes the value at `loc`, None if that is no model."""
    annotation: Any = model
    for step in loc:
        candidates = list(_models(annotation)) if not isinstance(step, int) else []
        field = next((info for found in candidates for key, info in found.model_fields.items() if step in (key, info.alias)), None)
        branch = next((found for found in candidates if re.search(rf"\b{found.__name__}\b", str(step))), None)
        annotation = field.annotation if field is not None else branch or _inside(annotation)
        if annotation is None:
            return None
    return next(iter(_models(annotation)), None)


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that an annotation may stand for, through Optional, Union and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            yield from _models(choice)
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _models(typing.get_args(annotation)[0])


def _inside(annotation: Any) -> Any:
    """What a list or mapping holds; the annotation itself where a step names nothing of ours."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _inside(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return next((_inside(choice) for choice in arguments if typing.get_origin(choice) is not None), None)
    if origin in (dict, Mapping):
        return arguments[1]
    if origin in (tuple, list, frozenset, set, Sequence):
        return arguments[0]
    return annotation
