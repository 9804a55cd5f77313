"""The way from a command to the running daemon: where it listens, the token, one request with a deadline, its answer checked.

Every failure is a sentence with its cure: `Unreachable` and `Refused` end a command with 1, `Misused` with 2.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
from pydantic import BaseModel, ValidationError
from yarl import URL

from sidecar.web import models
from sidecar.web.options import DEFAULT_SOCKET, Secret, SecretError, is_loopback

CONNECT_WITHIN_S = 3.0
DEFAULT_URL = "http://127.0.0.1:8642"
ANSWER_WITHIN_S = 15.0
MAX_ANSWER_BYTES = 64 << 20

M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | None]
"""Query parameters; those that are None are left out."""
NOTHING: Query = MappingProxyType({})


class Misused(Exception):
    """The command was given something it cannot use; exit 2."""


class Unreachable(Exception):
    """No daemon answers, or what answers is none; exit 1."""


class Refused(Exception):
    """The daemon said no; exit 1. `answer`: its JSON as it came."""

    def __init__(self, error: models.Error, answer: bytes) -> None:
        super().__init__(f"{error.error}; {error.cure}" if error.cure else error.error)
        self.error, self.answer = error, answer


@dataclass(frozen=True, slots=True)
class Answer:
    """A body as it came, and whether the status was a good one (2xx) or a 409 whose body is no Error."""

    body: bytes
    is_good: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where the daemon is asked: `socket` a path, or `url` a base without its last slash. `origin`: how we came by it."""

    url: str
    socket: str | None
    origin: str

    def __str__(self) -> str:
        return self.socket or self.url


def place(api: str | None, env: Mapping[str, str] = os.environ) -> Place:
    """From --api, LB_SIDECAR_API, or the unix socket where packages have it; Misused says how to write it."""
    origin, text = ("--api", api) if api else ("LB_SIDECAR_API", env.get("LB_SIDECAR_API", ""))
    if not text:
        return Place("http://localhost", str(DEFAULT_SOCKET), "default")
    path = text.removeprefix("unix:")
    if path.startswith("/"):
        return Place("http://localhost", path, origin)
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        port_is_sound = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_sound or parts.query or parts.fragment:
        raise Misused(f"{origin} is {text!r}: write it as http://127.0.0.1:8642, https://host:8642 or unix:{DEFAULT_SOCKET}")
    if parts.username or parts.password:
        raise Misused(f"{origin} has a user or password in it: put a token into LB_SIDECAR_TOKEN=file:/path instead")
    return Place(f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/"), None, origin)


def token(where: Place, env: Mapping[str, str] = os.environ) -> str | None:
    """What LB_SIDECAR_TOKEN points to, as env:NAME or file:/path; None = there is none. Misused if it cannot be used."""
    reference = env.get("LB_SIDECAR_TOKEN")
    if not reference:
        return None
    try:
        secret = Secret(reference).read(env)
    except (ValueError, SecretError) as error:
        raise Misused(f"LB_SIDECAR_TOKEN: {error}") from error
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise Misused("LB_SIDECAR_TOKEN: the token has characters that no header can carry; make one with `openssl rand -hex 32`")
    parts = urlsplit(where.url)
    if where.socket is None and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise Misused(f"the token would travel in the clear to {where.url}: use https://, or ask on the machine itself")
    return secret


class Daemon:
    """One conversation with the daemon. `async with` it; requests follow one another."""

    def __init__(self, where: Place, secret: str | None) -> None:
        self.where = where
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def found(cls, api: str | None, env: Mapping[str, str] = os.environ) -> Daemon:
        """By --api or the environment; Misused."""
        where = place(api, env)
        return cls(where, token(where, env))

    async def __aenter__(self) -> Daemon:
        connector = aiohttp.UnixConnector(self.where.socket) if self.where.socket is not None else aiohttp.TCPConnector()
        headers = {"Accept": "application/json", "User-Agent": "lb-sidecar"}
        if self._secret is not None:
            headers["Authorization"] = f"Bearer {self._secret}"
        # trust_env stays off: a proxy from the environment has no business between us and the daemon beside us
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, model: type[M], query: Query = NOTHING) -> tuple[M, bytes]:
        """The answer as a model, and its body as it came. Unreachable, Refused."""
        answer = await self.ask("GET", path, query)
        return read(model, answer.body, self.where), answer.body

    async def ask(self, method: str, path: str, query: Query = NOTHING, *, body: BaseModel | None = None, extra_s: float = 0.0) -> Answer:
        """One request; `extra_s` is added to the deadline for what may take so long. Unreachable, Refused."""
        assert self._session is not None, "use it within `async with`"
        given = {name: value for name, value in query.items() if value is not None}
        data = None if body is None else body.model_dump_json(exclude_none=True).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        limits = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S + extra_s, sock_connect=CONNECT_WITHIN_S)
        try:
            url = URL(self.where.url + path, encoded=True)
            async with self._session.request(
                method, url, params=given, data=data, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                raw = await _limited(response.content)
                return self._judged(response.status, raw)
        except TimeoutError as error:
            within = ANSWER_WITHIN_S + extra_s
            raise Unreachable(f"{self.where} gives no answer within {within:.0f} s: the daemon is stuck or this is not its port") from error
        except aiohttp.ClientError as error:
            raise Unreachable(self._why(error)) from error

    def _judged(self, status: int, raw: bytes) -> Answer:
        if 200 <= status < 300:
            return Answer(raw, True)
        try:
            error = models.Error.model_validate_json(raw)
        except ValidationError:
            if status == 409:
                return Answer(raw, False)
            raise Unreachable(f"{self.where} answered {status} and not as lb-sidecar does: is this its address? ({self._how()})") from None
        if status == 401 and self._secret is None:
            cure = "set LB_SIDECAR_TOKEN=file:/path or env:NAME to a token of api.tokens, or ask over the unix socket as root or its group"
            error = error.model_copy(update={"cure": cure})
        raise Refused(error, raw)

    def _why(self, error: aiohttp.ClientError) -> str:
        """What is wrong and the cure, by what the socket says."""
        if self.where.socket is not None:
            if isinstance(_cause(error), PermissionError):
                return _not_allowed(self.where.socket)
            return f"no daemon answers at {self.where.socket}: {_socket_problem(self.where.socket, error)} ({self._how()})"
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            why = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
            hint = "its certificate must be signed by an authority that this machine trusts (SSL_CERT_FILE)"
            return f"{self.where.url} cannot be trusted: {why}; {hint}"
        cause = _cause(error)
        if isinstance(cause, ConnectionRefusedError):
            return f"no daemon answers at {self.where.url}: nothing listens there. Start it with `lb-sidecar run`; {self._how()}"
        return f"no daemon answers at {self.where.url}: {_words(cause)} ({self._how()})"

    def _how(self) -> str:
        if self.where.origin == "default":
            return f"a daemon without this socket is asked with --api {DEFAULT_URL}, or where its `api` says; also as LB_SIDECAR_API"
        return f"the place comes from {self.where.origin}"


def read(model: type[M], body: bytes, where: Place) -> M:
    """A body as a model; Unreachable if it is none."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        differences = f"{error.error_count()} differences"
        raise Unreachable(
            f"{where} does not answer as this lb-sidecar expects ({differences}): is it another program or version?"
        ) from error


def path(*parts: str) -> str:
    """`/api/v1/` and these parts, each quoted."""
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


async def _limited(content: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        parts.append(chunk)
    return b"".join(parts)


def _cause(error: aiohttp.ClientError) -> BaseException:
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error


def _not_allowed(path: str) -> str:
    """Who may not open what of a socket, and the ways there are; whether a daemon answers cannot be seen from here."""
    shut = next((str(folder) for folder in reversed(Path(path).parents) if not os.access(folder, os.X_OK)), path)
    group = ""
    with contextlib.suppress(OSError, KeyError):
        group = grp.getgrgid(os.stat(shut).st_gid).gr_name
    us = _user(os.geteuid())
    join = f"become a member of its group (`usermod -aG {group} {us}`, then log in again), " if group not in ("", "root") else ""
    what = f"the socket {path}" if shut == path else f"the folder {shut}, in which the socket {Path(path).name} is"
    return (
        f"{us} may not use {what}: permission denied, so it is unknown whether a daemon answers; ask as root (`sudo lb-sidecar …`), "
        f"{join}or over {DEFAULT_URL} with --api and a token (LB_SIDECAR_TOKEN=file:/path)"
    )


def _user(uid: int) -> str:
    """Its name, or the number where it has none, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _socket_problem(path: str, error: aiohttp.ClientError) -> str:
    """Why the unix socket does not answer, and what to do."""
    cause = _cause(error)
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return "there is no such socket. Start the daemon with `lb-sidecar run` or `systemctl start lb-sidecar`"
    except OSError as problem:
        return _words(problem)
    if not is_socket:
        return "this is no socket"
    if isinstance(cause, ConnectionRefusedError):
        return "the socket is left over from a daemon that is gone. Start it with `lb-sidecar run` or `systemctl start lb-sidecar`"
    return _words(cause)


def _words(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


__all__ = ["Answer", "Daemon", "Misused", "Place", "Refused", "Unreachable", "path", "place", "read", "token"]
