"""`check --effective`: every value that holds, defaults too, each with where it comes from. The text is itself a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sidecar.config.load import Loaded
from sidecar.config.shape import shape
from sidecar.config.tree import resolve

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./%@-]*")
_SECRET_WORDS = ("authorization", "cookie", "token", "secret", "password", "api-key", "apikey")
_COLUMN = 48


def effective(loaded: Loaded) -> str:
    """YAML text, one value a line with its origin as a comment; ConfigError if the configuration has errors.

    Header values that look like credentials are shown as `***`.
    """
    lines = [f"# configuration {loaded.hash} from {', '.join(map(str, loaded.files))}"]
    lines += _lines(shape(loaded.require()), loaded, (), 0)
    return "\n".join(lines) + "\n"


def _lines(value: Any, loaded: Loaded, path: tuple[str, ...], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for step, entry in value.items() if isinstance(value, dict) else enumerate(value):
        head = f"{pad}{written(step)}:" if isinstance(value, dict) else f"{pad}-"
        here = (*path, str(step))
        if isinstance(entry, dict | list) and entry:
            inner = _lines(entry, loaded, here, depth + 1)
            # A list's entry begins on the line of its dash.
            yield head if isinstance(value, dict) else f"{head} {next(inner).lstrip()}"
            yield from inner
        else:
            text = f"{head} {written('***' if _is_secret(here) else entry)}"
            yield f"{text:<{_COLUMN}} # {loaded.origins.get('.'.join(here), 'default')}"


def _is_secret(path: tuple[str, ...]) -> bool:
    """A header whose name says that its value is nobody's business."""
    return len(path) > 1 and path[-2] == "headers" and any(word in path[-1].lower() for word in _SECRET_WORDS)


def written(value: Any) -> str:
    """One scalar as YAML, quoted where it would be read as something else."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) is not None and isinstance(resolve(value), str)
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
