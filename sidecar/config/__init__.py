"""The configuration: read from YAML with the line of every value, checked whole, composed into what the other parts take.

`find_config` and `load` give a `Loaded`; `effective` shows it; `policy`, `probe_specs`, `sources` and `expand` hand it on.
"""

from sidecar.config.compose import expand, observing, policy, pools_of, probe_specs, sources
from sidecar.config.effective import effective
from sidecar.config.load import Loaded, find_config, load, unreadable_secrets, unusable_here
from sidecar.config.models import Config
from sidecar.config.plugins import PluginError, installed, plugin_class
from sidecar.config.problems import ConfigError, Problem, Severity
from sidecar.config.schema import json_schema

__all__ = [
    "Config", "ConfigError", "Loaded", "PluginError", "Problem", "Severity", "effective", "expand", "find_config", "installed",
    "json_schema", "load", "observing", "plugin_class", "policy", "pools_of", "probe_specs", "sources", "unreadable_secrets",
    "unusable_here",
]  # fmt: skip
