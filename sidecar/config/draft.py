"""A first configuration made from a balancer's own: what was found, as text with comments, in `mode: observe`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from sidecar.config.effective import written
from sidecar.config.models import NAME, PolicyOptions
from sidecar.config.problems import one_line
from sidecar.probes.options import ProbeSpec


class DraftError(Exception):
    """No configuration can be made of that file; the message says what to do."""


@dataclass(frozen=True)
class ServiceDraft:
    """One service to be. `probe` and `policy` in the file's shape; `comments` stand above it, `hints` inside, commented out."""

    name: str
    pool: str
    probe: Mapping[str, Any]
    policy: Mapping[str, Any] = field(default_factory=dict)
    slow_start: str = ""
    comments: Sequence[str] = ()
    hints: Sequence[str] = ()


@dataclass(frozen=True)
class Draft:
    """Everything found: the balancer with its plugin's keys, its services, and what a person must know or do."""

    source: str
    balancer: str
    options: Mapping[str, Any]
    services: Sequence[ServiceDraft]
    option_hints: Sequence[str] = ()
    remarks: Sequence[str] = ()


def render(draft: Draft) -> str:
    """The configuration's text; it loads without an error."""
    lines = [
        f"# Made from {one_line(draft.source, 300)} by `lb-sidecar init`. It only observes: nothing is written to the balancer.",
        "# 1. lb-sidecar check   2. lb-sidecar run   3. after some days: lb-sidecar report --since 7d   4. then `mode: act`",
        "mode: observe",
        "",
        "balancers:",
        f"  {draft.balancer}:",
        *(f"    {key}: {flow(value)}" for key, value in draft.options.items()),
        *(f"    # {one_line(hint, 300)}" for hint in draft.option_hints),
        "",
        "services:",
    ]
    for service in draft.services:
        lines += [f"  # {one_line(comment, 300)}" for comment in service.comments]
        lines += [f"  {written(service.name)}:", f"    balancer: {draft.balancer}"]
        lines += [f"    pool: {written(service.pool)}"] if service.pool != service.name else []
        lines += [f"    probe: {flow(service.probe)}"]
        lines += [f"    policy: {flow(service.policy)}"] if service.policy else []
        lines += [f"    slow_start: {service.slow_start}"] if service.slow_start else []
        lines += [f"    # {one_line(hint, 300)}" for hint in service.hints]
    return "\n".join(lines) + "\n"


def flow(value: Any) -> str:
    """A value as YAML on one line.

    >>> flow({"http": "/a", "expect": {"status": [200, "300-399"]}})
    '{http: /a, expect: {status: [200, 300-399]}}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(key)}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(entry) for entry in value) + "]"
    return written(value)


def service_name(pool: str, taken: Collection[str]) -> str:
    """The pool's name, made fit for a service and unique."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", pool).lstrip("_.-")[:60] or "service"
    if re.fullmatch(NAME, plain) and plain not in taken:
        return plain
    return next(name for number in range(2, 10_000) if (name := f"{plain[:58]}.{number}") not in taken)


def checked_probe(probe: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], list[str]]:
    """The probe if it is one of ours, else a TCP probe and the reason."""
    try:
        ProbeSpec.model_validate(probe)
    except ValidationError as error:
        return {"tcp": True}, [f"{where}: its check could not be translated ({_reason(error)}); a TCP probe stands in: write a better one"]
    return probe, []


def checked_policy(policy: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], list[str]]:
    """The policy if it is valid, else none and the reason."""
    try:
        PolicyOptions.model_validate(policy)
    except ValidationError as error:
        return {}, [f"{where}: its thresholds could not be taken over ({_reason(error)}); ours stand"]
    return policy, []


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return one_line(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 160)
