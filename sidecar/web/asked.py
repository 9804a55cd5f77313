"""One request, read strictly: path, query and body are checked before anything uses them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from sidecar.net.units import parse_duration
from sidecar.web.auth import Caller
from sidecar.web.problem import Problem

BODY_MAX = 64 << 10
WAIT_MAX_S = 600.0
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,63}")
PROBLEMS_TOLD = 5

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and who asks."""

    request: web.Request
    caller: Caller

    def path(self, name: str) -> str:
        return self.request.match_info[name]

    def query(self, name: str) -> str | None:
        """One query parameter; Problem 400 if it is given twice."""
        given = self.request.query.getall(name, [])
        if len(given) > 1:
            raise Problem(400, f"`{name}` is given {len(given)} times", "give it once")
        return given[0] if given else None

    def read(self, name: str, how: Callable[[str], T], default: T) -> T:
        """A query parameter through `how`, whose ValueError becomes Problem 400."""
        text = self.query(name)
        if text is None:
            return default
        try:
            return how(text)
        except ValueError as error:
            raise Problem(400, f"`{name}`: {error}", f"give another value, or leave `{name}` out") from error

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.query(name)
        if value is not None and value not in known:
            raise Problem(400, f"`{name}` is {value[:40]!r}", f"use one of {', '.join(known)}", candidates=known)
        return value or default

    def flag(self, name: str) -> bool:
        return self.choice(name, ("0", "1", "true", "false"), "0") in ("1", "true")

    def wait_s(self) -> float | None:
        """`?wait=60s`; None = not waited for."""
        wait = self.read("wait", parse_duration, -1.0)
        if wait > WAIT_MAX_S:
            raise Problem(400, f"`wait` is longer than {WAIT_MAX_S:.0f} s", "wait less, then ask again")
        return None if wait < 0 else wait

    def owner(self) -> str:
        owner = self.path("owner")
        if not OWNER.fullmatch(owner):
            raise Problem(400, f"{owner[:80]!r} is no owner", "use 1 to 64 letters, digits or _ . @ : -, as `deploy-42`")
        return owner

    def only(self, known: tuple[str, ...]) -> None:
        """Problem 400 for a query parameter that is not known: a misspelt one must not be passed over."""
        for name in self.request.query:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                cure = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}" if known else "there are none here"
                raise Problem(400, f"unknown query parameter {name[:40]!r}", cure)

    async def body(self, model: type[B]) -> B:
        """The JSON body as this model; an empty one counts as `{}`. Problem 400, 413 or 415 says what is wrong with it."""
        request = self.request
        if request.content_length is not None and request.content_length > BODY_MAX:
            raise Problem(413, f"the body has {request.content_length} bytes, {BODY_MAX} are allowed", "send less")
        raw = await request.read()
        if raw and request.content_type != "application/json":
            raise Problem(415, f"the body is {request.content_type}", "send JSON with `Content-Type: application/json`")
        try:
            return model.model_validate_json(raw or b"{}")
        except ValidationError as error:
            raise Problem(400, _told(error), f"send {_shape(model)}") from error


def moment(text: str) -> datetime:
    """An RFC 3339 moment with its offset, as UTC; ValueError says how to write it."""
    try:
        when = datetime.fromisoformat(text.replace(" ", "+"))  # a `+` in a query that was not quoted arrives as a blank
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ValueError(f"{text[:40]!r} is no moment: write it as 2026-03-01T08:30:00Z")
    try:
        return when.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text[:40]!r} lies outside the calendar") from error


def count(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers within bounds."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise ValueError(f"{text[:20]!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def _told(error: ValidationError) -> str:
    problems = []
    for each in error.errors(include_url=False, include_input=False)[:PROBLEMS_TOLD]:
        where = ".".join(str(part)[:40] for part in each["loc"]) or "the body"
        problems.append(f"{where}: {each['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)


def _shape(model: type[BaseModel]) -> str:
    names = ", ".join(f"{name}{'' if field.is_required() else '?'}" for name, field in model.model_fields.items())
    return f"JSON {{{names}}}"


__all__ = ["BODY_MAX", "WAIT_MAX_S", "Asked", "count", "moment"]
