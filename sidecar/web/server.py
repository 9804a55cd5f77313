"""The listeners: TCP and a unix socket, one aiohttp application behind both, with limits and deadlines at the door."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel

from sidecar.web.api import Api, dumped
from sidecar.web.asked import BODY_MAX, WAIT_MAX_S, Asked
from sidecar.web.auth import Gate, peer_of
from sidecar.web.certificate import Certificate
from sidecar.web.connections import DEFAULTS, Crowd, Limits, guarded
from sidecar.web.desk import Desk
from sidecar.web.options import ApiOptions
from sidecar.web.problem import Problem
from sidecar.web.routes import ROUTES, Route
from sidecar.web.stream import Stream

HEADERS_MAX = 16 << 10
KEEPALIVE_S, LINGER_S, HANDSHAKE_S, SHUTDOWN_S = 30.0, 1.0, 5.0, 2.0
BACKLOG = 512
UNIX_CONNECTIONS = 64
"""The socket has places of its own: whatever happens on TCP, the command line gets through."""
SAFE = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "lb-sidecar",
}
log = logging.getLogger("sidecar.web")
wire = logging.getLogger("sidecar.web.wire")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebError(Exception):
    """The API cannot be served where it should be. The message says what to do."""


class Web:
    """The HTTP surface of one running sidecar. `open` once, `close` once."""

    def __init__(self, options: ApiOptions, desk: Desk, *, env: Mapping[str, str] = os.environ, limits: Limits = DEFAULTS) -> None:
        """No I/O but reading the tokens' secrets; SecretError if one is missing or weak."""
        self.options = options
        self.gate = Gate(options, env)
        self.stream = Stream(desk.decisions)
        self.port: int | None = None
        self._api = Api(desk, self.stream)
        self.limits = limits
        self._tcp = Crowd(limits)
        self._unix = Crowd(replace(limits, connections=UNIX_CONNECTIONS))
        self._servers: list[asyncio.Server] = []
        self._socket_file: tuple[Path, int] | None = None
        self._certificate: Certificate | None = None
        self._runner: web.AppRunner | None = None

    async def open(self) -> list[str]:
        """Listen. Returns warnings (no unix socket, and why). WebError if the TCP address or the certificate cannot be used."""
        wire.addFilter(_is_no_strangers_fault)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=wire,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
            handler_cancellation=True,
        )
        await self._runner.setup()
        if self.options.listen is not None:
            await self._listen_tcp()
        warnings = []
        if self.options.socket is not None and (problem := await self._listen_unix(self.options.socket)):
            warnings.append(f"no api socket: {problem}; running without it")
        return warnings

    async def close(self) -> None:
        """Stop listening, end streams, let requests under way end for SHUTDOWN_S. Safe twice."""
        for server in self._servers:
            server.close()
        if self._certificate is not None:
            self._certificate.close()
        self._servers.clear()
        self.stream.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for crowd in (self._tcp, self._unix):
            crowd.close()
        if self._socket_file is not None:
            path, inode = self._socket_file
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            self._socket_file = None

    def renew(self, options: ApiOptions, env: Mapping[str, str] = os.environ) -> list[str]:
        """Take the tokens and host names of a new configuration; SecretError leaves the old. Returns what only a restart can change."""
        self.gate.replace(options, env)
        kept = [name for name in ("listen", "socket", "tls") if getattr(options, name) != getattr(self.options, name)]
        return [f"api.{name} is changed; it takes effect at the next start" for name in kept]

    # ---- listening ----

    async def _listen_tcp(self) -> None:
        listen = self.options.listen
        assert listen is not None, "called only with an address"
        tls = None
        if self.options.tls is not None:
            self._certificate = Certificate(self.options.tls)
            try:
                tls = self._certificate.open()
            except OSError as error:
                raise WebError(f"api.tls: {error}; both PEM files must be readable by this user and belong together") from error
        try:
            server = await asyncio.get_running_loop().create_server(
                guarded(self._protocol(), self._tcp),
                listen.host,
                listen.port,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_S if tls else None,
                backlog=BACKLOG,
            )
        except OSError as error:
            why = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror or error}"
            raise WebError(f"api.listen {listen} {why}; choose another address, or null for the unix socket alone") from error
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def _listen_unix(self, path: Path) -> str:
        """Bind and listen with mode 0660 from the first moment on; "" or why not."""
        if problem := _clear(path):
            return problem
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.bind(os.fspath(path))  # nobody gets in before `listen`
            os.chmod(path, 0o660)
            inode = os.stat(path).st_ino
            server = await asyncio.get_running_loop().create_unix_server(guarded(self._protocol(), self._unix), sock=sock, backlog=BACKLOG)
        except OSError as error:
            sock.close()
            return f"{path}: {error.strerror or error}; its folder must exist and be writable by this user"
        self._servers.append(server)
        self._socket_file = (path, inode)
        return ""

    def _protocol(self) -> Callable[[], web.RequestHandler]:
        assert self._runner is not None and self._runner.server is not None, "set up before listening"
        return self._runner.server

    # ---- one request ----

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._around], client_max_size=BODY_MAX, logger=log)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._answer_of(route))
            if route.method == "GET" and route.kind != "events":
                app.router.add_route("HEAD", route.path, self._answer_of(route))
        app.on_response_prepare.append(_make_safe)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        """Deadline and errors of every request. The answer is written in here, so that its time counts too."""
        self._tcp.busy(request.transport)
        self._unix.busy(request.transport)
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._allowed_s(request)):
                response = await self._answered(request, handler)
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if response is not None and response.prepared and request.transport is not None:
                request.transport.abort()  # half an answer is sent: only the end of the connection can say so
            else:
                why = f"not done within {self.limits.request_s:g} s"
                response = _refusal(Problem(408, why, "send the whole request at once, or try again"))
                response.force_close()
        except ConnectionError:
            pass  # the client has gone, or was dropped: nobody is there to be told
        finally:
            self._tcp.free(request.transport)
            self._unix.free(request.transport)
        return response if response is not None else web.Response(status=500)

    def _allowed_s(self, request: web.Request) -> float | None:
        """Seconds for the whole request; None for the stream, which has deadlines of its own."""
        if request.path == "/api/v1/events":
            return None
        return self.limits.request_s + (WAIT_MAX_S if "wait" in request.query else 0.0)

    async def _answered(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        try:
            if sum(len(name) + len(value) for name, value in request.raw_headers) > HEADERS_MAX:
                raise Problem(431, f"the headers are longer than {HEADERS_MAX >> 10} KiB", "send fewer or shorter ones")
            self.gate.check_host(request.headers.get("Host", ""), peer_of(request.transport))
            return await answer(request)
        except Problem as problem:
            return _refusal(problem)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(Problem(413, f"the body has more than {BODY_MAX} bytes", "send less"))
        except web.RequestPayloadError as error:
            return _refusal(Problem(400, f"the body cannot be read: {' '.join(str(error).split())[:200]}", "send plain JSON, whole"))
        except web.HTTPException as error:
            return _refusal(_unrouted(request, error))
        except (asyncio.CancelledError, TimeoutError, ConnectionError):
            raise
        except Exception:  # one request's failure is not the sidecar's
            log.exception("%s %s failed", request.method, request.rel_url.raw_path[:200])
            return _refusal(Problem(500, "this request failed inside the sidecar", "look at the sidecar's log; the sidecar itself goes on"))

    def _answer_of(self, route: Route) -> Answer:
        handler: Callable[[Asked], Awaitable[web.StreamResponse | BaseModel]] = getattr(self._api, route.handler)
        known = tuple(param.name for param in route.query)

        async def answer(request: web.Request) -> web.StreamResponse:
            if route.is_act:
                headers = request.headers
                self.gate.check_origin(headers.get("Origin"), headers.get("Sec-Fetch-Site"), headers.get("Host", ""))
            caller = await self.gate.caller(request.headers.get("Authorization"), peer_of(request.transport), time.monotonic())
            caller.require_any(route.scope)
            asked = Asked(request, caller)
            asked.only(known)
            found = await handler(asked)
            if isinstance(found, BaseModel):
                return web.Response(body=dumped(found), content_type="application/json")
            return found

        return answer


def _refusal(problem: Problem) -> web.Response:
    headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="lb-sidecar"'
    body = problem.told.model_dump_json(exclude_none=True).encode()
    return web.Response(status=problem.status, body=body, content_type="application/json", headers=headers)


def _unrouted(request: web.Request, error: web.HTTPException) -> Problem:
    path = request.path[:120]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods - {"HEAD"}))
        return Problem(405, f"{request.method[:20]} is not possible on {path}", f"use {allowed}")
    if error.status == 404:
        near = difflib.get_close_matches(path, [route.path for route in ROUTES], 1, 0.5)
        cure = f"did you mean {near[0]}? All routes are in /api/openapi.json" if near else "all routes are in /api/openapi.json"
        return Problem(404, f"nothing is at {path!r}", cure)
    return Problem(error.status, error.reason, "send the request in another way; all routes are in /api/openapi.json")


def _is_no_strangers_fault(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered 400 by aiohttp; in our log it would let anybody who reaches the port write a page per request."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


async def _make_safe(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SAFE)


def _clear(path: Path) -> str:
    """Remove a socket that nobody serves any more; "" when the way is free, else why not."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISSOCK(found.st_mode):
        return f"{path} is no socket and is left alone; remove it or name another path"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            pass
        except OSError as error:  # not ours to judge: no right, or a full backlog, which somebody serves
            return f"{path}: {error.strerror}"
        else:
            return f"{path} is served by a running process"
    try:
        path.unlink()
    except OSError as error:
        return f"{path} is stale and cannot be removed: {error.strerror}"
    return ""


__all__ = ["Web", "WebError"]
