"""The HAProxy plugin's own keys; unknown keys are errors."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lbplugins.values import Address

LONGEST_PATH_BYTES = 107
"""What the kernel takes for the path of a unix socket."""

_DURATION = re.compile(r"\A(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def _socket_path(text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(f"{text!r} is not an absolute path, as in `stats socket /run/haproxy/admin.sock` of HAProxy's configuration")
    if len(text.encode()) > LONGEST_PATH_BYTES:
        raise ValueError(f"{text!r} is longer than the {LONGEST_PATH_BYTES} bytes a unix socket's path may have")
    return text


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _distinct(paths: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(paths)) != len(paths):
        raise ValueError("the same socket is named twice; each process has its own")
    return paths


def _duration(value: object) -> object:
    """`2s`, `500ms`, `1m` as seconds; a number is seconds already."""
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 500ms, 2s or 1m")
    return float(match[1]) * _SECONDS[match[2]]


def _host_port(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _syslog(text: str) -> str:
    if text.startswith("unix:"):
        _socket_path(text.removeprefix("unix:"))
    else:
        Address.parse(text)
    return text


SocketPath = Annotated[str, AfterValidator(_socket_path)]


class TrafficOptions(BaseModel):
    """Where HAProxy's `log` lines arrive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    syslog: Annotated[str, AfterValidator(_syslog)]
    """`HOST:PORT` (udp) or `unix:/path` (datagrams). No default: a port that is open by itself would be a surprise."""


class HAProxyOptions(BaseModel):
    """How to reach one HAProxy, or several processes of one configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    socket: Annotated[tuple[SocketPath, ...], BeforeValidator(_one_or_more), AfterValidator(_distinct), Field(min_length=1, max_length=64)]
    """Path of the `stats socket` (`level admin` to act), or a list of them: one per process."""
    agent: Annotated[Address | None, BeforeValidator(_host_port)] = None
    """HOST:PORT where we answer HAProxy's `agent-check`; unset = we answer none."""
    master: SocketPath | None = None
    """Path of the master socket (`haproxy -S`): lets us name old workers that still serve after a reload."""
    timeout: Annotated[float, BeforeValidator(_duration), Field(gt=0, le=60)] = 2.0
    """Seconds (or `500ms`, `2s`) for one whole question and answer. A healthy HAProxy takes under a millisecond."""
    traffic: TrafficOptions | None = None
    """Real requests, from HAProxy's log; unset = none."""


__all__ = ["HAProxyOptions", "TrafficOptions"]
