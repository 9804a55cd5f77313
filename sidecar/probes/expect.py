"""Whether an HTTP answer is the one expected. Pure: values in, the first thing wrong out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sidecar.core.model import Reason
from sidecar.probes.options import ExpectOptions, statuses_text
from sidecar.probes.pattern import Pattern, TooMuchWork

Headers = Sequence[tuple[bytes, bytes]]


class Problem(NamedTuple):
    """What is wrong with an answer."""

    reason: Reason
    detail: str


class Expectation:
    """The options compiled once. The order of judgement: status, identity, headers, body, regex, JSON."""

    def __init__(self, options: ExpectOptions) -> None:
        self._statuses = frozenset(s for low, high in options.status for s in range(low, high + 1))
        self._wanted = statuses_text(options.status)
        self._headers = [(name.lower().encode(), Pattern(text)) for name, text in options.header.items()]
        self._body = options.body.encode() if options.body else b""
        self._regex = Pattern(options.regex) if options.regex else None
        self._json = dict(options.json_values)
        self._identity = options.identity
        self.needs_headers = bool(self._headers) or (options.identity is not None and options.identity.header is not None)

    def problem(self, status: int, headers: Headers, body: bytes, is_cut: bool) -> Problem | None:
        """The first thing wrong, or None. `is_cut`: the body went on beyond what we read."""
        if status not in self._statuses:
            return Problem(Reason.STATUS, f"status {status}, wanted {self._wanted}")
        return (
            self._identity_problem(headers, body)
            or self._header_problem(headers)
            or self._body_problem(body)
            or (self._json_problem(body, is_cut) if self._json else None)
        )

    def _identity_problem(self, headers: Headers, body: bytes) -> Problem | None:
        wanted = self._identity
        if wanted is None:
            return None
        if wanted.header is not None and wanted.equals is not None:
            seen = _values(headers, wanted.header.lower().encode())
            if wanted.equals.encode() in seen:
                return None
            return Problem(Reason.IDENTITY, f"another service answers here: {wanted.header} is {_shown(seen)}, wanted {wanted.equals!r}")
        if wanted.body is not None and wanted.body.encode() not in body:
            return Problem(Reason.IDENTITY, f"another service answers here: its body lacks {wanted.body!r}")
        return None

    def _header_problem(self, headers: Headers) -> Problem | None:
        for name, pattern in self._headers:
            seen = _values(headers, name)
            try:
                if any(pattern.found_in(value) for value in seen):
                    continue
            except TooMuchWork as error:
                return Problem(Reason.HEADER, str(error))
            return Problem(Reason.HEADER, f"header {name.decode()} is {_shown(seen)}, wanted {pattern.text!r}")
        return None

    def _body_problem(self, body: bytes) -> Problem | None:
        if self._body not in body:
            return Problem(Reason.BODY, f"the body ({len(body)} bytes) lacks {self._body.decode()!r}")
        try:
            if self._regex is not None and not self._regex.found_in(body):
                return Problem(Reason.BODY, f"the body ({len(body)} bytes) does not match {self._regex.text!r}")
        except TooMuchWork as error:
            return Problem(Reason.BODY, str(error))
        return None

    def _json_problem(self, body: bytes, is_cut: bool) -> Problem | None:
        if is_cut:
            return Problem(Reason.JSON, f"the JSON goes on beyond the {len(body)} bytes we read; raise max_body or ask for less")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            return Problem(Reason.JSON, f"the body is not JSON: {error}")
        for path, wanted in self._json.items():
            found, value = _at(document, path)
            if not found:
                return Problem(Reason.JSON, f"the JSON has no {path}, wanted {json.dumps(wanted)}")
            if not _same(value, wanted):
                return Problem(Reason.JSON, f"{path} is {json.dumps(value)[:60]}, wanted {json.dumps(wanted)}")
        return None


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for seen, value in headers if seen.lower() == name]


def _shown(values: list[bytes]) -> str:
    return ", ".join(repr(v[:60].decode("latin-1")) for v in values[:3]) or "missing"


def _at(document: Any, path: str) -> tuple[bool, Any]:
    """What stands at `a.b.0.c`; a key that holds dots itself is found whole."""
    if isinstance(document, dict) and path in document:
        return True, document[path]
    step, dot, rest = path.partition(".")
    if isinstance(document, dict) and step in document:
        inner = document[step]
    elif isinstance(document, list) and step.isascii() and step.isdigit() and len(step) < 8 and int(step) < len(document):
        inner = document[int(step)]
    else:
        return False, None
    return _at(inner, rest) if dot else (True, inner)


def _same(value: Any, wanted: Any) -> bool:
    # True == 1 in Python, not in JSON.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted
