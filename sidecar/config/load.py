"""From a file to a configuration: everything read, merged and checked, all problems at once, each with its line and its cure."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ValidationError

from lbplugins.api import NoOptions
from sidecar.config.checks import Names, contradictions
from sidecar.config.models import (
    ANY,
    NAME,
    BalancerOptions,
    Config,
    DefaultsOptions,
    LogOptions,
    Options,
    PaceOptions,
    PolicyOptions,
    ServiceOptions,
    StateOptions,
)
from sidecar.config.plugins import PluginError, plugin_class
from sidecar.config.problems import ConfigError, Place, Problem, Severity, problem_at, shown
from sidecar.config.shape import shape
from sidecar.config.translate import problems_of, unknown_key
from sidecar.config.tree import Items, Node, Scalar, Table, at, overlay, place_of, plain, read
from sidecar.core.policy import Mode
from sidecar.probes.options import Kind, ProbeSpec
from sidecar.publish.options import PublishOptions
from sidecar.web.auth import MIN_TOKEN_CHARS, MIN_TOKEN_KINDS
from sidecar.web.options import ApiOptions, Secret, SecretError

DEFAULT_PATH = Path("/etc/lb-sidecar/lb-sidecar.yaml")
VARIABLE = "LB_SIDECAR_CONFIG"
MAX_INCLUDED = 256
MAX_PROBLEMS = 200

ROOT_KEYS = ("mode", "policy_version", "api", "state", "log", "pace", "balancers", "defaults", "services", "publish", "include")
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "api": ApiOptions, "state": StateOptions, "log": LogOptions, "pace": PaceOptions, "publish": PublishOptions,
}  # fmt: skip
_MERGED = ("balancers", "services")
"""Sections to which several files may add entries."""
_FREE = frozenset({"headers", "header", "labels", "json"})
"""Mappings whose keys are the user's own words: `x-…` means something there."""
_SHORT_FORMS = {"window": ("mode",), "hold_down": ("first",), "max_ejected": ("hard", "soft")}
"""What a single value stands for, where a mapping may be written as one."""
_KINDS = ("http", "https", "tcp", "tls", "grpc", "command")


_SCALARS = ("mode", "policy_version")
_PATHS = (("state", "dir"), ("api", "socket"), ("api", "tls", "cert"), ("api", "tls", "key"))
"""Values that are paths of our own; relative ones start at the configuration's folder."""

M = TypeVar("M", bound=BaseModel)


class _Simple(Options):
    """The root's plain values."""

    mode: Mode = Mode.ACT
    policy_version: Literal[1] = 1


@dataclass(frozen=True)
class Loaded:
    """What a file gave. `config` is None when any problem is an error; `origins` says for each value where it comes from."""

    path: Path
    config: Config | None = None
    problems: tuple[Problem, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    hash: str = ""
    tree: Table | None = field(default=None, repr=False)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)

    @property
    def contradictions(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity is Severity.CONTRADICTION)

    @property
    def exit_code(self) -> int:
        """0 fine (advice or not), 1 valid but contradictory, 2 not a configuration."""
        return 2 if self.config is None else 1 if self.contradictions else 0

    def require(self) -> Config:
        """The configuration, or ConfigError with every error."""
        if self.config is None:
            raise ConfigError(self.errors)
        return self.config


def find_config(argument: str | os.PathLike[str] | None = None, env: Mapping[str, str] = os.environ, default: Path = DEFAULT_PATH) -> Path:
    """The configuration to use: the argument, $LB_SIDECAR_CONFIG, the default path. ConfigError if there is none that we may look at."""
    if argument is not None:
        return Path(argument)
    if env.get(VARIABLE):
        return Path(env[VARIABLE])
    message = (
        f"no configuration: give its path, set {VARIABLE}, or write one, as: "
        "lb-sidecar init --haproxy /etc/haproxy/haproxy.cfg > lb-sidecar.yaml"
    )
    try:
        if default.exists():
            return default
    except OSError as error:
        message = (
            f"this user cannot look for it: {error.strerror}; run this as root or as the service's user "
            f"(`sudo -u lb-sidecar lb-sidecar …`), or name another configuration by its path or in {VARIABLE}"
        )
    raise ConfigError([Problem(str(default), 1, 1, "", message)])


def load(path: Path) -> Loaded:
    """Reads, merges and checks the file and what it includes. Never raises for what a file holds."""
    reader = _Reader(path)
    config = reader.config()
    problems = tuple(reader.sorted_problems())
    if config is None or reader.tree is None or any(problem.severity is Severity.ERROR for problem in problems):
        return Loaded(path, None, problems, files=tuple(reader.files), tree=reader.tree)
    shaped = shape(config)
    digest = hashlib.sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()[:16]
    origins = dict(_origins(shaped, reader.tree, ()))
    secrets = {f"api.tokens.{name}.secret": token.secret for name, token in config.api.tokens.items()}
    secrets |= {f"publish.{where}": secret for where, secret in config.publish.secrets()}
    return Loaded(path, config, problems, origins, secrets, tuple(reader.files), digest, reader.tree)


def unreadable_secrets(loaded: Loaded, env: Mapping[str, str] = os.environ) -> list[Problem]:
    """The secrets that this user, in this environment, cannot read, and tokens that are too weak; for `check` and before `run`."""
    problems = []
    for path, secret in loaded.secrets.items():
        try:
            text = secret.read(env)
            if path.startswith("api.tokens.") and (len(text) < MIN_TOKEN_CHARS or len(set(text)) < MIN_TOKEN_KINDS):
                raise SecretError(f"{secret.reference}: weaker than 128 bits; make one with `openssl rand -hex 32` and put it there")
        except SecretError as error:
            place = place_of(loaded.tree, path.split("."))[0] if loaded.tree is not None else Place(str(loaded.path))
            problems.append(problem_at(place, path, str(error), Severity.CONTRADICTION))
    return problems


def lacking_here(loaded: Loaded, env: Mapping[str, str] = os.environ) -> list[Problem]:
    """What this user lacks on this machine for a valid configuration; nothing of an invalid one."""
    return [*unreadable_secrets(loaded, env), *_distrusted_programs(loaded)] if loaded.config is not None else []


def unusable_here(loaded: Loaded, env: Mapping[str, str] = os.environ) -> list[Problem]:
    """Of that, what keeps it from being run: not the secret of a sink, which is only tried again."""
    return [problem for problem in lacking_here(loaded, env) if not problem.path.startswith("publish.")]


def _distrusted_programs(loaded: Loaded) -> list[Problem]:
    """Probes that run programs are believed only from files that root owns and nobody else can write."""
    loose = " ".join(str(file) for file in loaded.files if not _is_roots(file))
    if not loose:
        return []
    return [
        problem_at(
            place_of(loaded.tree, ("services", name, "probe"))[0] if loaded.tree is not None else Place(str(loaded.path)),
            f"services.{name}.probe",
            f"it runs a program, so the configuration must be root's alone: `chown root {loose}`, `chmod go-w {loose}`",
            Severity.CONTRADICTION,
        )
        for name, service in loaded.require().services.items()
        if any(
            spec.kind is Kind.COMMAND for spec in (*service.probe, *(each.probe for each in service.references if each.probe is not None))
        )
    ]


def _is_roots(file: Path) -> bool:
    try:
        about = file.stat()
    except OSError:
        return False
    return about.st_uid == 0 and not about.st_mode & 0o022


def _origins(shaped: Any, tree: Table, path: tuple[str | int, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(shaped, dict | list) and shaped:
        for step, value in shaped.items() if isinstance(shaped, dict) else enumerate(shaped):
            yield from _origins(value, tree, (*path, step))
        return
    yield ".".join(map(str, path)), origin_of(tree, path)


def origin_of(tree: Table, path: tuple[str | int, ...]) -> str:
    """`default`, or where the value stands: `FILE:LINE`, with the block it was taken via, as `defaults.probe`."""
    place, walked = place_of(tree, path)
    node = at(tree, *walked)
    # A table without the key leaves it to the default; a scalar or list in its place is the short form of it.
    rest = tuple(map(str, path))[len(walked) :]
    if not walked or (rest and isinstance(node, Table)):
        return "default"
    if rest and rest[0] not in _SHORT_FORMS.get(walked[-1], ("address",) if walked[-1].isdecimal() else rest):
        return "default"
    return f"{place.via}, {place}" if place.via else str(place)


class _Reader:
    """One loading. Owns the list of problems and the merged tree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.files: list[Path] = []
        self.tree: Table | None = None
        self.faulty: dict[str, ServiceOptions] = {}

    def sorted_problems(self) -> list[Problem]:
        """Each mistake once, in the order of the files; a default's mistake is told where it stands, not for every service."""
        unique: dict[tuple[object, ...], Problem] = {}
        for problem in self.problems:
            unique.setdefault((problem.file, problem.line, problem.column, problem.message), problem)
        order = {str(file): number for number, file in enumerate(self.files)}
        ranked = sorted(unique.values(), key=lambda problem: (order.get(problem.file, 0), problem.line, problem.column))
        if len(ranked) <= MAX_PROBLEMS:
            return ranked
        ranked.sort(key=lambda problem: problem.severity is not Severity.ERROR)
        more = Problem(str(self.path), 1, 1, "", f"{len(ranked) - MAX_PROBLEMS} more problems: mend these first", ranked[0].severity)
        return [*ranked[:MAX_PROBLEMS], more]

    def config(self) -> Config | None:
        """The configuration of all valid parts; whether it may be used depends on the problems."""
        main = self._file(self.path)
        if main is None:
            return None
        root = _without_extensions(self._with_included(main), ())
        if not isinstance(root, Table):
            return None
        self.tree = root = self._absolute(root)
        for key in root.entries:
            if key not in ROOT_KEYS:
                self._tell((key,), _misplaced(key) or unknown_key(key, ROOT_KEYS))
        parts: dict[str, Any] = {"balancers": self._balancers(), "services": self._services()}
        scalars = Table({key: root.entries[key] for key in _SCALARS if key in root.entries}, root.place, root.keys)
        if (simple := self._model(scalars, (), _Simple)) is not None:
            parts.update(simple.model_dump())
        for name, model in _SECTIONS.items():
            if name in root.entries and (part := self._model(root.entries[name], (name,), model)) is not None:
                parts[name] = part
        config = self._model(parts, (), Config)
        if config is not None:
            names = Names(frozenset(self._names("balancers")), frozenset(self._names("services")))
            self.problems += contradictions(config, self.tree, names, self.faulty)
        return config

    def _tell(self, path: Sequence[str | int], message: str) -> None:
        if self.tree is not None:
            place, walked = place_of(self.tree, path)
            self.problems.append(problem_at(place, ".".join(walked), message))

    def _model(self, value: Node | Mapping[str, Any], path: tuple[str, ...], model: type[M]) -> M | None:
        """The value as this model, or None with every finding told."""
        try:
            return model.model_validate(value if isinstance(value, dict) else plain(cast(Node, value)))
        except ValidationError as error:
            if self.tree is not None:
                self.problems += problems_of(error, self.tree, path, model)
        return None

    def _names(self, section: str) -> list[str]:
        table = at(self.tree, section)
        return list(table.entries) if isinstance(table, Table) else []

    def _tables(self, section: str, example: str) -> Iterator[tuple[str, Table]]:
        """The well-formed entries of a section, by name."""
        if self.tree is None:
            return
        node = self.tree.entries.get(section)
        if node is None or (isinstance(node, Scalar) and node.value is None) or (isinstance(node, Table) and not node.entries):
            path = (section,) if node is not None else ()
            place, _ = place_of(self.tree, path)
            self.problems.append(problem_at(place, section, f"no {section}: add at least one, as `{section}: {{{example}}}`"))
            return
        if not isinstance(node, Table):
            self._tell((section,), f"must be a mapping of names, as {{{example}}}")
            return
        for name, entry in node.entries.items():
            if not re.fullmatch(NAME, name) and not (section == "services" and name == ANY):
                message = f"{shown(name)} is not a name: letters, digits, `_.-`, a letter or digit first, at most 64"
                self._tell((section, name), message)
            elif not isinstance(entry, Table):
                self._tell((section, name), f"must be a mapping of keys, as {{{example}}}")
            else:
                yield name, entry

    # ---- files ----

    def _file(self, path: Path) -> Table | None:
        self.files.append(path)
        node, problems = read(path)
        self.problems += problems
        if node is not None and not isinstance(node, Table):
            self.problems.append(problem_at(node.place, "", "a configuration is a mapping of keys, as `services: {…}`; see the examples"))
        return node if isinstance(node, Table) else None

    def _with_included(self, main: Table) -> Table:
        """The main file with those that it includes: `balancers` and `services` add up, every other key stands once in all."""
        entries, keys = dict(main.entries), dict(main.keys)
        for path in self._included(main.entries.get("include")):
            table = self._file(path)
            for key, node in table.entries.items() if table is not None else ():
                place = table.keys[key] if table is not None else node.place
                known = entries.get(key)
                if key == "include":
                    self.problems.append(problem_at(place, key, "an included file cannot include others: name them all in the first"))
                elif key.startswith("x-") or known is None:
                    entries[key], keys[key] = node, place
                elif key in _MERGED and isinstance(node, Table) and isinstance(known, Table):
                    entries[key] = self._together(key, known, node)
                else:
                    self.problems.append(problem_at(place, key, f"`{key}` stands in {keys[key]} already: keep one"))
        return Table(entries, main.place, keys)

    def _together(self, section: str, one: Table, other: Table) -> Table:
        entries, keys = dict(one.entries), dict(one.keys)
        for name, node in other.entries.items():
            if name in entries and not name.startswith("x-"):
                message = f"{shown(name)} is defined in {keys[name]} already: keep one"
                self.problems.append(problem_at(other.keys[name], f"{section}.{name}", message))
            else:
                entries[name], keys[name] = node, other.keys[name]
        return Table(entries, one.place, keys)

    def _included(self, node: Node | None) -> list[Path]:
        """The files that `include` names, sorted within each pattern; a plain name must exist, a pattern may match nothing."""
        if node is None:
            return []
        paths: list[Path] = []
        for item in node.items if isinstance(node, Items) else (node,):
            if not isinstance(item, Scalar) or not isinstance(item.value, str) or not item.value or "\0" in item.value:
                message = "must be a path or a list of paths, as conf.d/*.yaml"
                self.problems.append(problem_at(item.place, "include", message))
                continue
            pattern = str(self.path.parent / item.value)
            found = sorted(glob.glob(pattern)) if glob.has_magic(item.value) else [pattern]
            if found == [pattern] and not os.path.lexists(pattern):
                message = f"no such file: {shown(pattern, 200)}; correct the path, or write a pattern (`*`), which may match nothing"
                self.problems.append(problem_at(item.place, "include", message))
                continue
            paths += [Path(name) for name in found if Path(name) not in (*paths, self.path)]
        if len(paths) > MAX_INCLUDED:
            self.problems.append(
                problem_at(node.place, "include", f"{len(paths)} files, more than {MAX_INCLUDED}: put several services in one")
            )
        return paths[:MAX_INCLUDED]

    def _absolute(self, root: Table) -> Table:
        """The same tree with the paths of `_PATHS` made absolute, from the configuration's own folder."""
        folder = Path(os.path.abspath(self.path.parent))
        services = root.entries.get("services")
        names = list(services.entries) if isinstance(services, Table) else []
        for path in (*_PATHS, *((("services", name, "instances", "file", *more)) for name in names for more in ((), ("path",)))):
            node = at(root, *path)
            if isinstance(node, Scalar) and isinstance(node.value, str) and node.value and "\0" not in node.value:
                root = cast(Table, _replaced(root, path, Scalar(str(folder / node.value), node.place, node.text)))
        return root

    # ---- balancers ----

    def _balancers(self) -> dict[str, BalancerOptions]:
        found = {
            name: self._balancer(name, table)
            for name, table in self._tables("balancers", "edge: {plugin: haproxy, socket: /run/haproxy/admin.sock}")
        }
        return {name: options for name, options in found.items() if options is not None}

    def _balancer(self, name: str, table: Table) -> BalancerOptions | None:
        path = ("balancers", name)
        written = plain(table)
        own = {key: value for key, value in written.items() if key not in ("plugin", "mode")}
        plugin = written.get("plugin")
        head = {key: written[key] for key in ("plugin", "mode") if key in written}
        options: BaseModel | None = None
        if isinstance(plugin, str):
            try:
                options = self._model(own, path, plugin_class(plugin).Options)
            except PluginError as error:
                self._tell((*path, "plugin"), str(error))
                return None
        # A stand-in for options that are wrong or unknown, so that `plugin` and `mode` are still checked.
        whole = self._model({**head, "options": options or NoOptions()}, path, BalancerOptions)
        return whole if options is not None else None

    # ---- services ----

    def _services(self) -> dict[str, ServiceOptions]:
        self._defaults()
        found = {
            name: self._service(name, table) for name, table in self._tables("services", "shop: {balancer: edge, probe: {http: /health}}")
        }
        return {name: options for name, options in found.items() if options is not None}

    def _defaults(self) -> None:
        """Checks `defaults` and lays it under every service of the tree."""
        defaults = at(self.tree, "defaults")
        if defaults is None or self.tree is None:
            return
        self._model(defaults, ("defaults",), DefaultsOptions)
        services = self.tree.entries.get("services")
        if not isinstance(defaults, Table) or not isinstance(services, Table):
            return
        known = Table(
            {key: node for key, node in defaults.entries.items() if key in DefaultsOptions.model_fields}, defaults.place, defaults.keys
        )
        laid = {name: _with_defaults(known, entry) if isinstance(entry, Table) else entry for name, entry in services.entries.items()}
        self.tree = cast(Table, _replaced(self.tree, ("services",), Table(laid, services.place, services.keys)))

    def _service(self, name: str, table: Table) -> ServiceOptions | None:
        if name == ANY and "mode" not in table.entries:
            observe = Scalar(
                Mode.OBSERVE.value, Place(table.place.file, table.place.line, table.place.column, "'*' only observes"), "observe"
            )
            table = Table({**table.entries, "mode": observe}, table.place, table.keys)
            if self.tree is not None:
                self.tree = cast(Table, _replaced(self.tree, ("services", name), table))
        options = self._model(table, ("services", name), ServiceOptions)
        if options is None:
            self._keep_faulty(name, table)
        return options

    def _keep_faulty(self, name: str, table: Table) -> None:
        """Remembers where a faulty service stands, if that much of it is right, so that its pools are checked all the same."""
        try:
            self.faulty[name] = ServiceOptions.model_validate(plain(_only(table, ("balancer", "pool", "pools"))))
        except ValidationError:
            return  # told already, with the rest of the service


def _misplaced(key: str) -> str:
    """Where a key that stands at the root belongs; "" = nowhere."""
    if key in DefaultsOptions.model_fields:
        return f"{shown(key)} does not stand at the top: write it under a service, or under `defaults:` for all of them"
    if key in ServiceOptions.model_fields:
        return f"{shown(key)} does not stand at the top: it belongs under a service, as `services: {{shop: {{{key}: …}}}}`"
    for name, model in (("policy", PolicyOptions), ("probe", ProbeSpec)):
        if key in model.model_fields:
            return f"{shown(key)} does not stand at the top: it belongs under `{name}:` of a service, or of `defaults:` for all of them"
    found = [name for name, model in _SECTIONS.items() if key in model.model_fields]
    return f"{shown(key)} does not stand at the top: it belongs under `{found[0]}:`" if found else ""


def _with_defaults(defaults: Table, service: Table) -> Table:
    """The service with what it does not say itself. Its own probe of another kind takes only interval and timeout from the default."""
    laid = overlay(defaults, service, "defaults")
    default, own = defaults.entries.get("probe"), service.entries.get("probe")
    if default is None or own is None or not isinstance(laid, Table):
        return cast(Table, laid)
    probe = own
    if isinstance(default, Table) and isinstance(own, Table):
        kind = _kind(own)
        shared = default if kind in (None, _kind(default)) else _only(default, ("interval", "timeout"))
        probe = cast(Table, overlay(shared, own, "defaults.probe"))
    return Table({**laid.entries, "probe": probe}, laid.place, laid.keys)


def _kind(probe: Table) -> str | None:
    return next((kind for kind in _KINDS if kind in probe.entries), None)


def _only(table: Table, keys: Sequence[str]) -> Table:
    return Table({key: node for key, node in table.entries.items() if key in keys}, table.place, table.keys)


def _without_extensions(node: Node, path: tuple[str, ...]) -> Node:
    """The tree without `x-…` keys; those inside headers, labels and a plugin's own mappings are the user's words and stay."""
    if (path and path[-1] in _FREE) or (len(path) > 2 and path[0] == "balancers"):
        return node
    if isinstance(node, Items):
        return Items(tuple(_without_extensions(item, path) for item in node.items), node.place)
    if isinstance(node, Table):
        kept = {key: _without_extensions(entry, (*path, key)) for key, entry in node.entries.items() if not key.startswith("x-")}
        return Table(kept, node.place, node.keys)
    return node


def _replaced(node: Node, path: Sequence[str], value: Node) -> Node:
    """The same tree with another value at a path of mappings."""
    if not path or not isinstance(node, Table):
        return value
    return Table({**node.entries, path[0]: _replaced(node.entries[path[0]], path[1:], value)}, node.place, node.keys)
