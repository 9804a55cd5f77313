"""`lb-sidecar plugin list | new | check`: which balancers can be driven, a start for another one, and is it right.

Each command returns its exit code: 0 fine, 1 it ran and the answer is bad, 2 wrong use.
"""

from __future__ import annotations

import asyncio
import json
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module, resources
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lbplugins.api import Balancer, BalancerError
from lbplugins.declared import faults, io_at_construction
from lbplugins.values import Ref, Seen, Serve, Setting, Traits

GROUP = "lbplugins"
FINE, BAD, WRONG_USE = 0, 1, 2
ASK_WITHIN_S = 10.0
OPTIONS_MAX_BYTES = 1 << 20
SHOWN_SERVERS = 100
NAME = re.compile(r"[a-z][a-z0-9_]{0,38}", re.ASCII)

Write = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Option:
    """One key that a plugin takes in the configuration."""

    name: str
    is_required: bool
    about: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """One registered plugin as `list` shows it. `problems` not empty = it cannot be used, and why."""

    name: str
    package: str
    version: str
    api_version: int | None = None
    traits: tuple[str, ...] = ()
    observe_every_s: float | None = None
    options: tuple[Option, ...] = ()
    problems: tuple[str, ...] = ()


class _Unusable(Exception):
    """The command ends here with `code`; the message says why and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def list_plugins(write: Write, *, as_json: bool = False) -> int:
    """Shows every registered plugin; 1 if one of them cannot be used."""
    plugins = [_described(entry) for entry in _registered()]
    if as_json:
        write(json.dumps([asdict(plugin) for plugin in plugins], indent=2))
    else:
        for line in _table(plugins):
            write(line)
    return BAD if not plugins or any(plugin.problems for plugin in plugins) else FINE


def new(name: str, folder: Path | None, write: Write) -> int:
    """Writes the template for a plugin NAME into a new folder, default `./lb-sidecar-NAME`."""
    try:
        _assert_free(name)
        folder = folder or Path(f"lb-sidecar-{name}")
        _write_template(name, folder)
    except _Unusable as error:
        write(str(error))
        return error.code
    write(f"wrote {folder}: {name}_lb.py is the plugin, test_{name}_lb.py its conformance test")
    write(f"next: pip install -e '{folder}[test]', run pytest in {folder}, then lb-sidecar plugin check {name}")
    return FINE


def check(name: str, options_file: Path | None, write: Write, *, pools: Sequence[str] = ()) -> int:
    """Loads the plugin NAME (or `module:Class`), checks what it declares; with options, opens it, observes once and shows it.

    `pools`: what to observe; default all that the plugin lists.
    """
    try:
        plugin = _load(name)
        if problems := faults(plugin):
            raise _Unusable(BAD, "\n".join(f"wrong: {problem}" for problem in problems))
        write(
            f"ok: {name} is {plugin.__module__}:{plugin.__qualname__}, contract version {plugin.api_version}, {_said_traits(plugin.traits)}"
        )
        options = _options(plugin, options_file)
        if options is None:
            write(f"ok as far as can be seen without options: give --options FILE with {_wanted(plugin)} to open it and look")
            return FINE
        if touched := _touched_when_built(plugin, options):
            raise _Unusable(
                BAD, f"wrong: {plugin.__name__}.__init__ must keep the options and do nothing else, but it did {'; '.join(touched)}"
            )
        write("ok: building it touches nothing")
        if options_file is not None:
            asyncio.run(_look(plugin(options), frozenset(pools), write))
    except _Unusable as error:
        write(str(error))
        return error.code
    return FINE


def _registered() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def _described(entry: EntryPoint) -> Plugin:
    package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
    try:
        plugin = _imported(entry.name, entry.value)
    except _Unusable as error:
        return Plugin(entry.name, package, version, problems=(str(error),))
    if problems := faults(plugin):
        return Plugin(entry.name, package, version, problems=tuple(problems))
    options = tuple(
        Option(field.alias or key, field.is_required(), _one_line(field.description or ""))
        for key, field in plugin.Options.model_fields.items()
    )
    traits = plugin.traits
    return Plugin(entry.name, package, version, plugin.api_version, _trait_names(traits), traits.observe_every_s, options)


def _imported(name: str, value: str) -> type[Balancer]:
    """The object that `module:Class` names; whether it is a plugin class is `faults`' question."""
    module, _, attribute = value.partition(":")
    try:
        found: object = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import is its fault and must not be ours
        raise _Unusable(BAD, f"{name} cannot be loaded from {value}: {type(error).__name__}: {_one_line(str(error))}") from error
    return found  # type: ignore[return-value]  # checked by `faults` before use


def _table(plugins: Iterable[Plugin]) -> Iterable[str]:
    plugins = list(plugins)
    if not plugins:
        yield f"no plugins are registered (entry points of group {GROUP}): install lb-sidecar itself with pip, not only its source"
    for plugin in plugins:
        yield f"{plugin.name}  ({plugin.package} {plugin.version})" + (f"  contract {plugin.api_version}" if plugin.api_version else "")
        for problem in plugin.problems:
            yield f"  cannot be used: {problem}"
        if plugin.problems:
            continue
        yield f"  traits: {' '.join(plugin.traits) or 'none'}, observed every {plugin.observe_every_s:g} s"
        yield "  options:" if plugin.options else "  options: none"
        for option in plugin.options:
            yield f"    {option.name}{' (required)' if option.is_required else ''}" + (f": {option.about}" if option.about else "")


def _trait_names(traits: Traits) -> tuple[str, ...]:
    return tuple(name for name in ("drain", "kill", "costly", "membership") if getattr(traits, name))


def _said_traits(traits: Traits) -> str:
    return "traits: " + (" ".join(_trait_names(traits)) or "none")


def _assert_free(name: str) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise _Unusable(
            WRONG_USE, f"{name!r} cannot name a plugin: use 1 to 39 of a-z, 0-9 and _, beginning with a letter, no Python keyword"
        )
    if taken := [entry for entry in _registered() if entry.name == name]:
        package = taken[0].dist.name if taken[0].dist else "another package"
        raise _Unusable(WRONG_USE, f"a plugin {name!r} is registered by {package} already: choose another name")


def _write_template(name: str, folder: Path) -> None:
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise _Unusable(WRONG_USE, f"{folder} exists and is not an empty folder: name a new one")
        folder.mkdir(parents=True, exist_ok=True)
        for source in (resources.files("sidecar.cli") / "plugin_template").iterdir():
            target = folder / source.name.removesuffix(".txt").replace("acme", name)
            text = source.read_text(encoding="utf-8").replace("acme", name).replace("Acme", class_name)
            with target.open("x", encoding="utf-8") as out:
                out.write(text)
    except OSError as error:
        raise _Unusable(
            BAD, f"cannot write the template to {folder}: {error.strerror or error}; name another folder as DIRECTORY"
        ) from error


def _load(name: str) -> type[Balancer]:
    if ":" in name:
        return _imported(name, name)
    entries = {entry.name: entry for entry in _registered()}
    if name not in entries:
        near = get_close_matches(name, entries, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"registered are: {', '.join(entries) or 'none'}."
        raise _Unusable(WRONG_USE, f"no plugin {name!r}: {hint} A class that is not installed is named as module:Class")
    return _imported(name, entries[name].value)


def _options(plugin: type[Balancer], file: Path | None) -> BaseModel | None:
    """The plugin's options, validated; None = it needs some and no file was named."""
    given = _read_options(file) if file is not None else {}
    try:
        return plugin.Options.model_validate(given)
    except ValidationError as error:
        if file is None:
            return None
        problems = [f"{file}: {'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']}" for problem in error.errors()]
        raise _Unusable(WRONG_USE, "\n".join(problems) + f"\n{plugin.__name__} takes {_wanted(plugin)}") from error


def _read_options(file: Path) -> Mapping[str, object]:
    """The mapping in a YAML or JSON file. `plugin` in it is left out, so that a block of the configuration can be given as it is."""
    try:
        with file.open("rb") as source:
            text = source.read(OPTIONS_MAX_BYTES + 1)
        if len(text) > OPTIONS_MAX_BYTES:
            raise _Unusable(WRONG_USE, f"{file} is larger than {OPTIONS_MAX_BYTES} bytes: it should hold the options of one balancer")
        options = YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        raise _Unusable(WRONG_USE, f"cannot read the options from {file}: {error.strerror or error}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise _Unusable(WRONG_USE, f"{file} is neither YAML nor JSON: {_one_line(str(error))}") from error
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise _Unusable(WRONG_USE, f"{file} must hold a mapping of the plugin's options, such as `socket: /run/haproxy/admin.sock`")
    return {key: value for key, value in options.items() if key != "plugin"}


def _wanted(plugin: type[Balancer]) -> str:
    keys = [f"{field.alias or key}{' (required)' if field.is_required() else ''}" for key, field in plugin.Options.model_fields.items()]
    return ", ".join(keys) or "no options"


def _touched_when_built(plugin: type[Balancer], options: BaseModel) -> list[str]:
    try:
        return io_at_construction(plugin, options)
    except Exception as error:  # a stranger's constructor may raise anything; it is the answer to the question
        raise _Unusable(BAD, f"wrong: {plugin.__name__}(options) raised {type(error).__name__}: {_one_line(str(error))}") from error


async def _look(plugin: Balancer, pools: frozenset[str], write: Write) -> None:
    """Opens, observes once, shows, closes."""
    try:
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                await plugin.open()
                asked = pools or await plugin.pools()
                picture = await plugin.observe(asked, {})
        finally:
            async with asyncio.timeout(ASK_WITHIN_S):
                await plugin.aclose()
    except BalancerError as error:
        raise _Unusable(BAD, f"the balancer cannot be asked: {_one_line(str(error))}") from error
    except TimeoutError as error:
        raise _Unusable(BAD, f"the balancer did not answer within {ASK_WITHIN_S:g} s") from error
    except Exception as error:  # anything but BalancerError breaks the contract; that is what we are asked to find
        problem = f"{type(error).__name__}: {_one_line(str(error))}"
        raise _Unusable(BAD, f"wrong: a plugin raises BalancerError and nothing else, but it raised {problem}") from error
    if not asked:
        write("it lists no pools: name one with --pool to look at its servers")
        return
    if missing := asked - {ref.pool for ref in picture}:
        write(f"no servers in pool {', '.join(sorted(map(_one_line, missing)))}: is that its name in the balancer?")
    for ref, seen in sorted(picture.items())[:SHOWN_SERVERS]:
        write(_one_line(_said(ref, seen)))
    if len(picture) > SHOWN_SERVERS:
        write(f"… and {len(picture) - SHOWN_SERVERS} more servers")
    if missing:
        raise _Unusable(BAD, f"sees {_counted(len(picture), 'server')} in {len(asked) - len(missing)} of {_counted(len(asked), 'pool')}")
    write(f"ok: sees {_counted(len(picture), 'server')} in {_counted(len(asked), 'pool')}")


def _said(ref: Ref, seen: Seen) -> str:
    serving = {True: "serving", False: "not serving", None: "serving unknown"}[seen.serving]
    words = [
        f"{ref} at {seen.address or '?'}: {serving}, operator {seen.operator}, weight {seen.weight}",
        f"steps of {seen.grain_pct} %" if seen.grain_pct < 100 else "no weights",
    ]
    if seen.ours != Setting():
        words.append(f"ours {'out' if seen.ours.serve is not Serve.FULL else f'{seen.ours.weight_pct} %'}")
    words += [f"cannot be written: {seen.writable}"] if seen.writable is not None else []
    words += [seen.remark] if seen.remark else []
    return ", ".join(words)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _one_line(text: str) -> str:
    """Text from outside, safe on a terminal and at most 500 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


__all__ = ["Option", "Plugin", "check", "list_plugins", "new"]
