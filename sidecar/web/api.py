"""The answers: one method per route of the table. Reads make a Look and a view; acts become commands for the desk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypedDict, TypeVar, cast

from aiohttp import web
from pydantic import BaseModel

from lbplugins.values import Operator
from sidecar.core.known import InstanceState, ServiceState
from sidecar.core.model import Commanded, Hold, HoldName, Verb
from sidecar.core.window import Source, Summary, WindowName
from sidecar.net.units import parse_duration
from sidecar.store.decisions import Page
from sidecar.store.history import SPANS, Answer, Point
from sidecar.web import health, models, views
from sidecar.web.asked import Asked, count, moment
from sidecar.web.desk import Desk
from sidecar.web.look import Look, Unresolved, find, names
from sidecar.web.openapi import document
from sidecar.web.options import May
from sidecar.web.page import Page as Files
from sidecar.web.problem import Problem
from sidecar.web.stream import Stream, last_id

T = TypeVar("T")

STEPS, MOST_STEPS = 120, 2000
"""Of a series: as many as it has unless a step is given, and at most."""
BREATH = 8
"""Instances viewed between two chances for the loop to do something else: a big answer must not delay a decision."""
_NEEDS = {Operator.READY: May.READY, Operator.DRAINING: May.DRAIN, Operator.MAINTENANCE: May.MAINT}


class _Wanted(TypedDict):
    """Which decisions are asked for."""

    service: str | None
    instance: str | None
    since: datetime | None
    until: datetime | None
    by: str | None
    cursor: str | None
    limit: int


class Api:
    """The handlers. Owns nothing but its stream."""

    def __init__(self, desk: Desk, stream: Stream) -> None:
        self.desk = desk
        self.stream = stream
        self._page = Files()
        self._reading = asyncio.Semaphore(1)
        self._openapi = json.dumps(document(), separators=(",", ":")).encode()

    # ---- the sidecar's own ----

    async def page(self, asked: Asked) -> web.Response:
        return self._page.file("index.html")

    async def static(self, asked: Asked) -> web.Response:
        return self._page.file(asked.path("name"))

    async def openapi(self, asked: Asked) -> web.Response:
        return web.Response(body=self._openapi, content_type="application/json")

    async def livez(self, asked: Asked) -> web.Response:
        return _own(health.live(self._look(), self.desk.self_health()["decided_at"]))

    async def readyz(self, asked: Asked) -> web.Response:
        return _own(health.ready(self._look()))

    async def metrics(self, asked: Asked) -> web.Response:
        asked.caller.require(May.READ, None)
        body, content_type = await self.desk.metrics(asked.request.headers.get("Accept"))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # ---- health ----

    async def health(self, asked: Asked) -> web.Response:
        return _health(health.whole(self._look(), asked.caller.services))

    async def health_service(self, asked: Asked) -> web.Response:
        return _health(health.service_health(self._look(), self._service(asked)))

    async def health_instance(self, asked: Asked) -> web.Response:
        return _health(health.instance_health(self._look(), self._instance(asked)))

    # ---- reading ----

    async def services(self, asked: Asked) -> BaseModel:
        look = self._look()
        found = {}
        for service in list(look.services()):
            # a reload may have ended it while we paused
            if asked.caller.sees(service.name) and service.name in self.desk.world.services:
                found[service.name] = await self._viewed(look, service)
        statuses = [each.status for each in found.values()]
        if health.of_ourselves(look):
            statuses.append(models.Status.WARN)
        return models.Services(sidecar=views.sidecar(look, self.desk.self_health(), health.worst(statuses)), services=found)

    async def service(self, asked: Asked) -> BaseModel:
        return await self._viewed(self._look(), self._service(asked))

    async def instance(self, asked: Asked) -> BaseModel:
        state = self._instance(asked)
        return views.instance(self._look(), state, names(self._service(asked))[state.instance])

    async def latency(self, asked: Asked) -> BaseModel:
        window = asked.choice("window", ("10s", "1m", "5m", "1h"), "1m")
        source = asked.choice("source", ("probe", "traffic"), "probe")
        # `choice` lets only these literals pass
        look, service = self._look(), self._service(asked)
        if asked.query("since") or asked.query("until"):
            if asked.query("window"):
                raise Problem(400, "`window` and a range are two ways to say how far back", "give `window`, or `since` and `until`")
            return await self._latency_of(service, cast(Source, source), *self._range(asked))
        own = views.latency(look.latencies.service(service.name, cast(Source, source), cast(WindowName, window), look.now))
        instances = {}
        async for i, name in _slowly(names(service).items()):
            instances[name] = views.latency(look.latencies.instance(i, cast(Source, source), cast(WindowName, window), look.now))
        return models.Latencies(service=own, instances=instances)

    async def series(self, asked: Asked) -> BaseModel:
        service = self._service(asked)
        source = cast(Source, asked.choice("source", ("probe", "traffic"), "probe"))
        since, until = self._range(asked)
        usual = float(max(SPANS[0], -(-(until - since) // STEPS // SPANS[0]) * SPANS[0]))
        step = int(asked.read("step", parse_duration, usual))
        if (until - since) // max(step, 1) > MOST_STEPS:
            raise Problem(400, f"that are more than {MOST_STEPS} steps", "give a longer `step` or a shorter range")
        found = await self._kept(service.name, source, since, until, step, asked.query("instance"))
        points = {name: views.column(each) async for name, each in _slowly_named(found.points)}
        whole = points.pop("", models.Column())
        bounds = {"since": _when(since), "until": _when(until)}
        return models.Series(source=source, **bounds, step_s=found.step_s, service=whole, instances=points)

    async def _latency_of(self, service: ServiceState, source: Source, since: int, until: int) -> models.Latencies:
        """Of any range; instances by their names, those that are gone by their addresses."""
        found = await self._kept(service.name, source, since, until, until - since, None)
        called = {str(instance.address): name for instance, name in names(service).items()}
        told = {}
        for address, (point, *_) in found.points.items():
            told[called.get(address, address)] = views.latency(Summary(point.times.count, point.failures, point.times))
        return models.Latencies(service=told.pop("", models.Latency()), instances=told)

    async def _kept(self, service: str, source: Source, since: int, until: int, step: int, instance: str | None) -> Answer:
        """One reader at a time: each takes a processor for as long as it has much to sum up."""
        async with self._reading:
            return await asyncio.to_thread(self.desk.history.read, service, source, since, until, step, instance)

    def _range(self, asked: Asked) -> tuple[int, int]:
        """Seconds since 1970; the last hour unless given."""
        now = self.desk.wall_of(self.desk.now())
        until = asked.read("until", moment, now)
        since = asked.read("since", moment, until - timedelta(hours=1))
        if since >= until:
            raise Problem(400, "`since` is not before `until`", "give an earlier `since`")
        return int(since.timestamp()), -int(-until.timestamp() // 1)

    async def decisions(self, asked: Asked) -> BaseModel:
        service = asked.query("service")
        if asked.caller.services is not None:
            if service is None:
                raise Problem(403, "this token sees its own services only", "add `service=` with one of them")
            asked.caller.require(May.READ, service)
        limit = asked.read("limit", count(1, 1000), 100)
        wanted = partial(
            _Wanted,
            service=service,
            instance=asked.query("instance"),
            since=asked.read("since", moment, None),
            until=asked.read("until", moment, None),
            by=asked.query("by"),
            cursor=asked.query("cursor"),
        )
        try:
            page = self.desk.decisions.query(**wanted(limit=limit))
        except ValueError as error:
            raise Problem(400, str(error), "start again without `cursor`") from error
        if page.next_cursor is None and (left := limit - len(page.records)):
            async with self._reading:
                older = await asyncio.to_thread(partial(self.desk.decisions.recall, **wanted(limit=left)))
            page = Page([*page.records, *older.records], older.next_cursor)
        return views.decisions(page)

    async def events(self, asked: Asked) -> web.StreamResponse:
        service = asked.query("service")
        if service is not None:
            asked.caller.require(May.READ, service)
        return await self.stream.serve(asked.request, asked.caller, service, last_id(asked.request.headers.get("Last-Event-ID")))

    # ---- acts ----

    async def override(self, asked: Asked) -> BaseModel:
        body = await asked.body(models.OverrideBody)
        service = self._service(asked)
        asked.caller.require(_NEEDS[body.state], service.name)
        state = self._instance(asked)
        owner, wait = asked.owner(), asked.wait_s()
        self._check_owner(asked, state, owner, force=body.force)
        command = Commanded(
            Verb.OVERRIDE,
            asked.caller.actor,
            self.desk.now(),
            service.name,
            state.instance,
            owner,
            body.state,
            self._end(body.ttl, body),
            body.reason,
            body.force,
        )
        return await self._obeyed(command, wait)

    async def clear(self, asked: Asked) -> BaseModel:
        service, state = self._service(asked), self._instance(asked)
        asked.caller.require(May.READY, service.name)
        owner, wait, force = asked.owner(), asked.wait_s(), asked.flag("force")
        if owner not in state.overrides:
            have = tuple(state.overrides)
            cure = "nothing is left to do" if not have else f"owners here: {', '.join(have)}"
            raise Problem(404, f"{state.instance} has no override by owner {owner}", cure, candidates=have)
        self._check_owner(asked, state, owner, force=force)
        actor, now = asked.caller.actor, self.desk.now()
        return await self._obeyed(Commanded(Verb.CLEAR, actor, now, service.name, state.instance, owner, force=force), wait)

    async def freeze(self, asked: Asked) -> BaseModel:
        body = await asked.body(models.FreezeBody)
        name = self._one_or_all(asked, May.FREEZE)
        end = self._end(body.ttl, body)
        return await self._obeyed(Commanded(Verb.FREEZE, asked.caller.actor, self.desk.now(), name, until=end, reason=body.reason), None)

    async def unfreeze(self, asked: Asked) -> BaseModel:
        name = self._one_or_all(asked, May.FREEZE)
        if name not in self.desk.world.freezes:
            frozen = tuple(f"service={each}" if each else "everything (without `service`)" for each in self.desk.world.freezes)
            cure = f"frozen: {', '.join(frozen)}" if frozen else "nothing is left to do"
            raise Problem(404, f"{name or 'everything'} is not frozen as such", cure)
        return await self._obeyed(Commanded(Verb.UNFREEZE, asked.caller.actor, self.desk.now(), name), None)

    async def release(self, asked: Asked) -> BaseModel:
        body = await asked.body(models.ReasonBody)
        name = self._one_or_all(asked, May.RELEASE)
        return await self._obeyed(Commanded(Verb.RELEASE, asked.caller.actor, self.desk.now(), name, reason=body.reason), None)

    async def reload(self, asked: Asked) -> BaseModel | web.Response:
        asked.caller.require(May.RELOAD, None)
        answer = models.Reloaded(problems=tuple(await asyncio.shield(self.desk.reload(asked.caller.actor))))
        return answer if not answer.problems else web.Response(status=409, body=dumped(answer), content_type="application/json")

    async def adopt_diff(self, asked: Asked) -> BaseModel:
        return await self._adopted(asked, May.READ, diff=True)

    async def adopt(self, asked: Asked) -> BaseModel:
        return await self._adopted(asked, May.ADOPT, diff=asked.flag("diff"))

    # ---- what they share ----

    def _look(self) -> Look:
        desk = self.desk
        return Look(desk.world, desk.policy, desk.now(), desk.wall_of, desk.latencies, desk.holds())

    def _service(self, asked: Asked) -> ServiceState:
        """The service of the path. One that the caller may not see is answered like any other that he may not see: 403."""
        name = asked.path("service")
        asked.caller.require(May.READ, name)
        return self._known(name)

    def _known(self, name: str) -> ServiceState:
        known = tuple(n for n in self.desk.policy.services if n in self.desk.world.services)
        if name not in known:
            cure = f"known: {', '.join(known[:20])}" if known else "the configuration names none yet"
            raise Problem(404, f"{name[:80]!r} is no service here", cure, candidates=known[:20])
        return self.desk.world.services[name]

    def _instance(self, asked: Asked) -> InstanceState:
        try:
            return find(self._service(asked), asked.path("instance"))
        except Unresolved as error:
            status = 409 if error.is_ambiguous else 404
            cure = f"use one of: {', '.join(error.candidates)}" if error.candidates else "the service has no instance yet"
            raise Problem(status, str(error), cure, candidates=error.candidates) from error

    async def _viewed(self, look: Look, service: ServiceState) -> models.Service:
        called, instances = names(service), {}
        whole = views.service(look, service)
        async for state in _slowly(service.instances.values()):
            instances[called[state.instance]] = views.instance(look, state, called[state.instance])
        return whole.model_copy(update={"instances": instances})

    def _one_or_all(self, asked: Asked, scope: May) -> str:
        name = asked.query("service")
        asked.caller.require(scope, name)
        return "" if name is None else self._known(name).name

    def _check_owner(self, asked: Asked, state: InstanceState, owner: str, *, force: bool) -> None:
        """A token may not undo what somebody else said in this owner's name; a person on the socket may."""
        existing = state.overrides.get(owner)
        if existing is None or force or asked.caller.is_local or existing.actor == asked.caller.actor:
            return
        why = f"owner {owner} has it in {existing.state}, said by {existing.actor}" + (f": {existing.reason}" if existing.reason else "")
        raise Problem(409, why, f"use an owner of your own, ask {existing.actor}, or send force", hold=HoldName.OPERATOR)

    def _end(self, ttl: float | None, body: models.OverrideBody | models.FreezeBody) -> float | None:
        """When it ends, monotonic; Problem 400 if that is over or farther than any act may last."""
        now = self.desk.now()
        if ttl is not None:
            return now + ttl
        if body.until is None:
            return None
        left = (body.until - self.desk.wall_of(now)).total_seconds()
        if not 0 < left <= models.TTL_MAX_S:
            raise Problem(400, "`until` is over already or more than 30 days away", "give a moment ahead, or `ttl`")
        return now + left

    async def _obeyed(self, command: Commanded, wait: float | None) -> models.Done:
        # an act under way is finished even if the client has gone: half of it would be nobody's
        answer = await asyncio.shield(self.desk.command(command))
        if isinstance(answer, Hold):
            raise Problem(
                409, f"refused by {answer.name}: {answer.why}", "wait until the others are back, or send force: true", hold=answer.name
            )
        if wait is None or command.instance is None:
            return models.Done(done=answer, actor=command.actor)
        state = command.state if command.verb is Verb.OVERRIDE else Operator.READY
        return models.Done(done=answer, actor=command.actor, reached=await self.desk.wait_for(command.instance, state, wait))

    async def _adopted(self, asked: Asked, scope: May, *, diff: bool) -> models.Adopted:
        balancer, _, pool = (asked.query("pool") or "").partition("/")
        pools = {pair: name for name, s in self.desk.policy.services.items() for pair in s.pools}
        if (balancer, pool) not in pools:
            known = tuple(f"{b}/{p}" for b, p in pools)
            raise Problem(404, f"{asked.query('pool') or ''!r} is no pool here", "give pool=BALANCER/POOL", candidates=known[:20])
        asked.caller.require(scope, pools[balancer, pool])
        try:
            text = await asyncio.shield(self.desk.adopt(balancer, pool, diff, asked.caller.actor))
        except ValueError as error:
            raise Problem(409, str(error), "see `GET /api/v1/adopt?pool=…&diff=1`") from error
        return models.Adopted(pool=f"{balancer}/{pool}", text=text)


def dumped(model: BaseModel) -> bytes:
    return model.model_dump_json().encode()


async def _slowly(things: Iterable[T]) -> AsyncIterator[T]:
    """The things as they are now, with a breath for the loop after every few."""
    for place, thing in enumerate(list(things), 1):
        yield thing
        if place % BREATH == 0:
            await asyncio.sleep(0)


async def _slowly_named(points: Mapping[str, Sequence[Point]]) -> AsyncIterator[tuple[str, Sequence[Point]]]:
    for name, each in points.items():
        yield name, each
        await asyncio.sleep(0)


def _when(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _own(answer: models.Live) -> web.Response:
    status = 200 if answer.status is models.Status.PASS else 503
    return web.Response(status=status, body=dumped(answer), content_type="application/json")


def _health(answer: models.Health) -> web.Response:
    status = 503 if answer.status is models.Status.FAIL else 200
    return web.Response(status=status, body=answer.model_dump_json(exclude_none=True).encode(), content_type="application/health+json")


__all__ = ["Api", "dumped"]
