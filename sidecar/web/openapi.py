"""`/api/openapi.json`: OpenAPI 3.1, made from the table of routes and the models."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sidecar.web import models
from sidecar.web.routes import ROUTES, Param, Route

_TYPES = {
    "json": "application/json",
    "health": "application/health+json",
    "text": "text/plain",
    "events": "text/event-stream",
    "page": "text/html",
}


def document() -> dict[str, Any]:
    """The whole description. Answers are described as they are sent, bodies as they are read."""
    answers: set[type[BaseModel]] = {route.answer for route in ROUTES if route.answer is not None} | {models.Error, models.Decision}
    bodies: set[type[BaseModel]] = {route.body for route in ROUTES if route.body is not None}
    described: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    described += [(model, "serialization") for model in sorted(answers, key=_name)]
    described += [(model, "validation") for model in sorted(bodies, key=_name)]
    _, found = models_json_schema(described, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lb-sidecar",
            "version": "1",
            "description": "Health, percentiles, decisions with their reasons, commands.",
        },
        "paths": paths,
        "components": {
            "schemas": found["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "a token of api.tokens"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.says,
        "parameters": [*(_path(name) for name in re.findall(r"{(\w+)}", route.path)), *(_query(p) for p in route.query)],
        "responses": {"200": _answer(route), "default": _error()},
        "security": [{"token": []}] if route.scope else [],
    }
    if route.scope:
        operation["x-needs"] = sorted(route.scope)
    if route.kind == "health" or route.answer is models.Live:
        operation["responses"]["503"] = _answer(route)
    if route.answer is models.Reloaded:
        operation["responses"]["409"] = _answer(route)
    if route.body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": _ref(route.body)}}}
    return operation


def _answer(route: Route) -> dict[str, Any]:
    schema: dict[str, Any] = _ref(route.answer) if route.answer is not None else {"type": "object" if route.kind == "json" else "string"}
    return {"description": route.says, "content": {_TYPES[route.kind]: {"schema": schema}}}


def _error() -> dict[str, Any]:
    return {"description": "what is wrong and what to do", "content": {"application/json": {"schema": _ref(models.Error)}}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(param: Param) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "enum": list(param.values)} if param.values else {"type": "string"}
    return {"name": param.name, "in": "query", "description": param.says, "schema": schema}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _name(model: type[BaseModel]) -> str:
    return model.__name__


__all__ = ["document"]
