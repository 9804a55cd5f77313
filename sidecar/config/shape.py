"""A configuration back in the shape of its file: plain mappings, lists and scalars that would load to the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel

from lbplugins.values import Address
from sidecar.config.models import Config, ServiceOptions
from sidecar.discovery.options import Instances
from sidecar.probes.options import Kind, ProbeSpec

_HTTP_ONLY = ("method", "expect", "headers", "max_body")


def shape(config: Config) -> dict[str, Any]:
    """Every value, defaults too, except those that are not set; secrets as their references."""
    return {
        "mode": config.mode.value,
        "policy_version": config.policy_version,
        "api": _api(config),
        "state": _dump(config.state),
        "log": _dump(config.log),
        "pace": _dump(config.pace),
        "balancers": {
            name: {"plugin": balancer.plugin, "mode": balancer.mode.value, **_options(balancer.options)}
            for name, balancer in config.balancers.items()
        },
        "services": {name: _service(service) for name, service in config.services.items()},
        "publish": _dump(config.publish),
    }


def _api(config: Config) -> dict[str, Any]:
    """`listen` and `socket` stay when they are null: that is not their default. Sets are sorted: the hash must not depend on luck."""
    dumped: dict[str, Any] = config.api.model_dump(mode="json")
    dumped["hosts"] = sorted(dumped["hosts"])
    for token in dumped["tokens"].values():
        token["may"] = sorted(token["may"])
        if token["services"] is None:
            del token["services"]
        else:
            token["services"] = sorted(token["services"])
    for key in ("tls", "tokens", "hosts"):
        if not dumped[key]:
            del dumped[key]
    return dumped


def _options(options: BaseModel) -> dict[str, Any]:
    """A plugin's own keys. Its model may hold any type: what YAML does not know is shown as the text that it prints."""
    dumped: dict[str, Any] = _simple(options.model_dump(by_alias=True, exclude_none=True))
    return dumped


def _simple(value: Any) -> Any:
    if isinstance(value, Enum):
        return _simple(value.value)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _simple(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_simple(entry) for entry in value), key=str)
    if isinstance(value, list | tuple) and not isinstance(value, Address):
        return [_simple(entry) for entry in value]
    return str(value)


def _dump(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def _service(service: ServiceOptions) -> dict[str, Any]:
    dumped = _dump(service)
    for key in ("pools", "references", "labels"):
        if not dumped.get(key):
            dumped.pop(key, None)
    dumped["probe"] = probe[0] if len(probe := [_probe(spec) for spec in service.probe]) == 1 else probe
    if service.instances is not None:
        dumped["instances"] = _instances(service.instances)
    for reference, written in zip(service.references, dumped.get("references", ()), strict=False):
        if reference.probe is not None:
            written["probe"] = _probe(reference.probe)
    return dumped


def _probe(spec: ProbeSpec) -> dict[str, Any]:
    dumped = _dump(spec)
    if spec.kind not in (Kind.HTTP, Kind.HTTPS):
        dumped = {key: value for key, value in dumped.items() if key not in _HTTP_ONLY}
    return dumped


def _instances(instances: Instances) -> Any:
    if instances.dns is not None:
        return {"dns": _dump(instances.dns)}
    if instances.file is not None:
        return {"file": _dump(instances.file)}
    return [_dump(entry) for entry in instances.static]
