"""The JSON Schema of the configuration file, for editors and other checkers; `write` makes the shipped copy anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from sidecar.config.models import Config, DefaultsOptions, Options
from sidecar.core.policy import Mode

SHIPPED = Path(__file__).with_name("schema.json")
_ID = "https://json-schema.org/draft/2020-12/schema"


class _Balancer(BaseModel):
    """One load balancer; the plugin's own keys stand beside these (`lb-sidecar plugin list` shows them)."""

    plugin: str = Field(description="Which plugin drives it.", examples=["haproxy", "nginx", "memory"])
    mode: Mode = Field(default=Mode.ACT, description="observe never writes to this balancer.")


class _File(Options):
    defaults: DefaultsOptions = Field(default=DefaultsOptions(), description="What every service has that does not say otherwise.")
    include: str | list[str] = Field(default=[], description="More files, as conf.d/*.yaml; their balancers and services are added.")


def json_schema() -> dict[str, Any]:
    """The schema of a whole file. A plugin's own keys are open: the plugin checks them when the file is loaded."""
    schema = Config.model_json_schema(ref_template="#/$defs/{model}")
    around = _File.model_json_schema(ref_template="#/$defs/{model}")
    balancer = _Balancer.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**around.pop("$defs", {}), **schema.pop("$defs"), "BalancerOptions": balancer}
    definitions.update(balancer.pop("$defs", {}))
    schema["properties"].update(around["properties"])
    # Defaults from other blocks are merged in at loading, so no block can demand a key that a default may give.
    schema["required"] = ["balancers", "services"]
    whole = {"$schema": _ID, "title": "lb-sidecar configuration", **{k: v for k, v in schema.items() if k != "title"}, "$defs": definitions}
    open_to_extensions(whole)
    return whole


def open_to_extensions(schema: Any) -> None:
    """Lets `x-…` keys stand in every closed mapping, as the loader does; names that are too open for an editor's list go."""
    if isinstance(schema, dict):
        if schema.get("additionalProperties") is False:
            schema["patternProperties"] = {"^x-": True}
        for value in schema.values():
            open_to_extensions(value)
    elif isinstance(schema, list):
        for value in schema:
            open_to_extensions(value)


def text() -> str:
    """The schema as it is shipped: sorted, indented, one newline at the end."""
    return json.dumps(json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write() -> None:
    """Brings the shipped copy up to date."""
    SHIPPED.write_text(text(), encoding="utf-8")
