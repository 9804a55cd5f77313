"""Balancer plugins by name: entry points of the group `lbplugins`; only what a configuration names is imported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from pydantic import BaseModel

from lbplugins.api import Balancer
from sidecar.config.problems import did_you_mean, listed, shown

GROUP = "lbplugins"
API_VERSION = 1

# What this distribution registers itself: a checkout that was never installed has no entry points of its own.
_OWN = {"memory": "lbplugins.memory:Memory", "haproxy": "lbplugins.haproxy:HAProxy", "nginx": "lbplugins.nginx:Nginx"}


class PluginError(Exception):
    """A named plugin cannot be used; the message says what to do."""


def installed() -> Mapping[str, EntryPoint]:
    """Every plugin by name, not imported; ours and those of other distributions."""
    found = {name: EntryPoint(name, value, GROUP) for name, value in _OWN.items()}
    found.update({point.name: point for point in entry_points(group=GROUP)})
    return dict(sorted(found.items()))


def plugin_class(name: str) -> type[Balancer]:
    """The plugin's class, imported now; PluginError when there is none or it cannot be used."""
    known = installed()
    if name not in known:
        near = did_you_mean(name, known)
        cure = "" if near else "; install a package that brings it into this environment (`pip install …`; its entry point is in the group"
        cure += "" if near else f" `{GROUP}`), or write one: `lb-sidecar plugin new NAME`"
        raise PluginError(f"no plugin {shown(name)} is installed; there are: {listed(known)}{near}{cure}")
    try:
        loaded = known[name].load()
    except Exception as error:  # whatever a stranger's module raises at import must not take the others down
        raise PluginError(f"the plugin {name!r} cannot be imported: {type(error).__name__}: {str(error)[:200]}") from error
    if not (inspect.isclass(loaded) and issubclass(loaded, Balancer)):
        raise PluginError(f"the plugin {name!r} is no lbplugins.api.Balancer: see `lb-sidecar plugin check {name}`")
    if loaded.api_version != API_VERSION:
        raise PluginError(
            f"the plugin {name!r} speaks contract version {loaded.api_version}, this sidecar {API_VERSION}: update one of them"
        )
    if not (inspect.isclass(loaded.Options) and issubclass(loaded.Options, BaseModel)):
        raise PluginError(f"the plugin {name!r} has no Options model: see `lb-sidecar plugin check {name}`")
    return loaded
