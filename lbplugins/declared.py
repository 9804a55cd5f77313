"""What a plugin class declares, checked: the part of the contract that needs no balancer."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import isfinite

from pydantic import BaseModel

from lbplugins.api import Balancer
from lbplugins.values import Traits

API_VERSIONS = frozenset({1})
"""The versions of the contract that this lb-sidecar speaks."""

COROUTINES = ("open", "pools", "members", "observe", "apply", "aclose")
PLAIN = ("lock_path", "places", "traffic")


class _Watch(threading.local):
    """What this thread touches outside the process; None = nobody asks. Its one writer is `_watched`."""

    touched: list[str] | None = None


_watch = _Watch()


def faults(plugin: object) -> list[str]:
    """Everything wrong with a plugin class as declared, one sentence each with what to do; empty = fine."""
    if not isinstance(plugin, type) or not issubclass(plugin, Balancer):
        return [f"{plugin!r} is not a class derived from lbplugins.api.Balancer: name the class in the entry point, as module:Class"]
    found = [f"{plugin.__name__}.{name} is not implemented: write it" for name in sorted(plugin.__abstractmethods__)]
    return found + _version_faults(plugin) + _traits_faults(plugin) + _method_faults(plugin) + _options_faults(plugin)


def io_at_construction(plugin: type[Balancer], options: BaseModel) -> list[str]:
    """Files, sockets, processes and threads that `plugin(options)` touched in this thread; there must be none. Builds one object."""
    with _watched() as touched:
        plugin(options)
    return touched


def _version_faults(plugin: type[Balancer]) -> list[str]:
    version: object = plugin.api_version
    if type(version) is int and version in API_VERSIONS:
        return []
    spoken = ", ".join(map(str, sorted(API_VERSIONS)))
    return [f"{plugin.__name__}.api_version is {version!r}; this lb-sidecar speaks {spoken}: set it, or install a plugin made for it"]


def _traits_faults(plugin: type[Balancer]) -> list[str]:
    traits: object = plugin.traits
    if not isinstance(traits, Traits):
        return [f"{plugin.__name__}.traits is {type(traits).__name__}, not lbplugins.values.Traits: write `traits = Traits(...)`"]
    every = traits.observe_every_s
    if not isfinite(every) or every <= 0:
        return [f"{plugin.__name__}.traits.observe_every_s is {every}: give seconds above 0"]
    return []


def _method_faults(plugin: type[Balancer]) -> list[str]:
    found = [
        f"{plugin.__name__}.{name} is not a coroutine: write `async def {name}`"
        for name in COROUTINES
        if not inspect.iscoroutinefunction(getattr(plugin, name))
    ]
    return found + [
        f"{plugin.__name__}.{name} must not be a coroutine: write `def {name}`"
        for name in PLAIN
        if inspect.iscoroutinefunction(getattr(plugin, name))
    ]


def _options_faults(plugin: type[Balancer]) -> list[str]:
    options: object = plugin.Options
    if not isinstance(options, type) or not issubclass(options, BaseModel) or options is BaseModel:
        return [f"{plugin.__name__}.Options is not a pydantic model: derive a class of your own from pydantic.BaseModel"]
    if options.model_config.get("extra") != "forbid":
        return [
            f'{plugin.__name__}.Options lets unknown keys pass: give it model_config = ConfigDict(extra="forbid"), so that slips are told'
        ]
    return []


@contextmanager
def _watched() -> Iterator[list[str]]:
    _hook_once()
    touched: list[str] = []
    _watch.touched = touched
    try:
        yield touched
    finally:
        _watch.touched = None


@cache
def _hook_once() -> None:
    """An audit hook cannot be taken away again; it idles while nobody watches."""
    sys.addaudithook(_note_touch)


def _note_touch(event: str, args: tuple[object, ...]) -> None:
    if _watch.touched is None or not event.startswith(("open", "socket.", "subprocess.", "os.", "_thread.start")):
        return
    if event == "open" and str(args[0]).endswith((".py", ".pyc", ".so")):
        return  # an import, not the balancer
    _watch.touched.append(f"{event}{tuple(map(str, args))}"[:200])


__all__ = ["API_VERSIONS", "faults", "io_at_construction"]
