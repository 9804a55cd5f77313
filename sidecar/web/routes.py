"""All routes in one table. The router, the checks of rights and `/api/openapi.json` are made from it, so that they cannot differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from sidecar.web import models
from sidecar.web.options import May

Kind = Literal["json", "health", "text", "events", "page"]
READ, READY, FREEZE = frozenset({May.READ}), frozenset({May.READY}), frozenset({May.FREEZE})
RELOAD, ADOPT, RELEASE = frozenset({May.RELOAD}), frozenset({May.ADOPT}), frozenset({May.RELEASE})
OPEN: frozenset[May] = frozenset()
OPENAPI = "/api/openapi.json"


@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter. `values`: the only ones allowed, or () for any that can be read."""

    name: str
    says: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `handler`: the method of `Api`. `scope`: one of these is needed, none = open to all; acts check more."""

    method: str
    path: str
    handler: str
    says: str
    answer: type[BaseModel] | None = None
    scope: frozenset[May] = READ
    query: tuple[Param, ...] = ()
    body: type[BaseModel] | None = None
    kind: Kind = "json"

    @property
    def is_act(self) -> bool:
        return self.method not in ("GET", "HEAD")


_S = "/api/v1/services/{service}"
_I = _S + "/instances/{instance}"
_WAIT = Param("wait", "wait so long for the balancers to show it, as 60s; at most 600s")
_FORCE = Param("force", "pass the guard or owner that refuses; this act only, and logged", ("0", "1", "true", "false"))
_SERVICE = Param("service", "this service alone")
_SOURCE = Param("source", "whose measurement; probe unless given", ("probe", "traffic"))
_RANGE = (Param("since", "RFC 3339, inclusive"), Param("until", "RFC 3339, exclusive; now unless given"))
_POOL = Param("pool", "BALANCER/POOL")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/", "page", "the page", kind="page", scope=OPEN),
    Route("GET", "/static/{name}", "static", "the page's own files", kind="page", scope=OPEN),
    Route("GET", "/livez", "livez", "200 while the decision loop runs; for what restarts things", models.Live, scope=OPEN),
    Route("GET", "/readyz", "readyz", "200 once every balancer is observed and every cold start is over", models.Live, scope=OPEN),
    Route("GET", "/health", "health", "every service; 503 when one fails", models.Health, kind="health"),
    Route("GET", "/health/{service}", "health_service", "one service; 503 when it fails", models.Health, kind="health"),
    Route("GET", "/health/{service}/{instance}", "health_instance", "one instance; 503 when it fails", models.Health, kind="health"),
    Route("GET", "/metrics", "metrics", "Prometheus text format", kind="text"),
    Route("GET", OPENAPI, "openapi", "this description", scope=OPEN),
    Route("GET", "/api/v1/services", "services", "the sidecar and every service with its instances", models.Services),
    Route("GET", _S, "service", "one service with its instances", models.Service),
    Route(
        "GET",
        _S + "/latency",
        "latency",
        "percentiles, of the service and of each instance",
        models.Latencies,
        query=(Param("window", "how far back; 1m unless given", ("10s", "1m", "5m", "1h")), _SOURCE, *_RANGE),
    ),
    Route(
        "GET",
        _S + "/series",
        "series",
        "how response times, failures and states went, step by step; `step` as 30s",
        models.Series,
        query=(*_RANGE, Param("step", "as 30s, at least 10s; 1/120 of the range unless given"), _SOURCE, Param("instance", "address:port")),
    ),
    Route("GET", _I, "instance", "one instance, by address:port, server name or a prefix that fits it alone", models.Instance),
    Route(
        "PUT",
        _I + "/override/{owner}",
        "override",
        "put it in draining or maintenance, or make it ready, in the name of this owner",
        models.Done,
        scope=frozenset({May.DRAIN, May.MAINT, May.READY}),
        query=(_WAIT,),
        body=models.OverrideBody,
    ),
    Route(
        "DELETE",
        _I + "/override/{owner}",
        "clear",
        "end what this owner said",
        models.Done,
        scope=READY,
        query=(_WAIT, _FORCE),
    ),
    Route(
        "GET",
        "/api/v1/decisions",
        "decisions",
        "what happened and why, newest first",
        models.Decisions,
        query=(
            _SERVICE,
            Param("instance", "address:port"),
            Param("since", "RFC 3339, inclusive"),
            Param("until", "RFC 3339, exclusive"),
            Param("by", "who: the whole, or its kind as `rule` or `operator`"),
            Param("limit", "1 to 1000; 100 unless given"),
            Param("cursor", "`next_cursor` of the page before"),
        ),
    ),
    Route("GET", "/api/v1/events", "events", "decisions as server-sent events; Last-Event-ID goes on", kind="events", query=(_SERVICE,)),
    Route("PUT", "/api/v1/freeze", "freeze", "no ejection and no return", models.Done, FREEZE, (_SERVICE,), models.FreezeBody),
    Route("DELETE", "/api/v1/freeze", "unfreeze", "act again", models.Done, scope=FREEZE, query=(_SERVICE,)),
    Route(
        "POST",
        "/api/v1/reload",
        "reload",
        "read the configuration again; 409 = the old one is kept",
        models.Reloaded,
        RELOAD,
    ),
    Route(
        "GET",
        "/api/v1/adopt",
        "adopt_diff",
        "what adopting would accept",
        models.Adopted,
        query=(_POOL, Param("diff", "always so with GET", ("1", "true"))),
    ),
    Route(
        "POST",
        "/api/v1/adopt",
        "adopt",
        "take over what is out and not ours, or an edited file",
        models.Adopted,
        scope=ADOPT,
        query=(_POOL, Param("diff", "only say what that would be", ("0", "1", "true", "false"))),
    ),
    Route(
        "POST",
        "/api/v1/release",
        "release",
        "bring back all that we have out, and freeze",
        models.Done,
        RELEASE,
        (_SERVICE,),
        models.ReasonBody,
    ),
)
__all__ = ["OPENAPI", "ROUTES", "Param", "Route"]
