"""A YAML file as a tree that knows where each value stands. YAML 1.2 booleans: only `true` and `false`.

Built from the parser's events, so that duplicate keys, aliases that multiply, depth and foreign tags are judged here and not
by whatever a loader does with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from sidecar.config.problems import Place, Problem, problem_at, shown

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 200_000
"""Nodes of one file, each alias counted as often as it is used."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_OCTAL = re.compile(r"0o[0-7]{1,18}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_STR_TAGS = frozenset({"!", "tag:yaml.org,2002:str"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value; `text` as it was written, without quotes."""

    value: str | int | float | bool | None
    place: Place
    text: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping, in the file's order; `keys` says where each key stands."""

    entries: Mapping[str, Node]
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)


Node = Scalar | Items | Table


def plain(node: Node) -> Any:
    """The values alone, as dicts, lists and scalars."""
    match node:
        case Scalar(value=value):
            return value
        case Items(items=items):
            return [plain(item) for item in items]
        case Table(entries=entries):
            return {key: plain(entry) for key, entry in entries.items()}


def place_of(root: Node, path: Sequence[object]) -> tuple[Place, tuple[str, ...]]:
    """Where the value at `path` stands (its key, if it has one) and the part of the path that exists in the file.

    Steps that the file does not show (list positions of a single value, a checker's own names) are passed over.
    """
    node: Node = root
    place, walked = root.place, list[str]()
    for step in path:
        if isinstance(node, Table) and str(step) in node.entries:
            name = str(step)
            place = node.keys.get(name, node.entries[name].place)
            node = node.entries[name]
        elif isinstance(node, Items) and isinstance(step, int) and 0 <= step < len(node.items):
            name = str(step)
            node = node.items[step]
            place = node.place
        else:
            continue
        walked.append(name)
    return place, tuple(walked)


def at(root: Node | None, *path: str | int) -> Node | None:
    """The node at a path, None if the file has none there."""
    for step in path:
        if isinstance(root, Table) and isinstance(step, str):
            root = root.entries.get(step)
        elif isinstance(root, Items) and str(step).isdecimal() and int(step) < len(root.items):
            root = root.items[int(step)]
        else:
            return None
    return root


def overlay(under: Node, over: Node, via: str) -> Node:
    """`over` laid over `under`, key by key; what comes from `under` is marked as taken `via` that block."""
    if not isinstance(under, Table) or not isinstance(over, Table):
        return over
    entries = dict(over.entries)
    keys = dict(over.keys)
    for key, node in under.entries.items():
        if key in entries:
            entries[key] = overlay(node, entries[key], f"{via}.{key}")
        else:
            block = via if isinstance(node, Scalar) else f"{via}.{key}"
            entries[key] = taken(node, block)
            keys[key] = _via(under.keys.get(key, node.place), block)
    return Table(entries, over.place, keys)


def taken(node: Node, via: str) -> Node:
    """The same node, marked as taken from another block."""
    match node:
        case Scalar():
            return Scalar(node.value, _via(node.place, via), node.text)
        case Items():
            return Items(tuple(taken(item, via) for item in node.items), _via(node.place, via))
        case Table():
            keys = {key: _via(place, via) for key, place in node.keys.items()}
            return Table({key: taken(entry, via) for key, entry in node.entries.items()}, _via(node.place, via), keys)


def _via(place: Place, via: str) -> Place:
    return Place(place.file, place.line, place.column, via)


def read(path: Path) -> tuple[Node | None, list[Problem]]:
    """The tree of a file; None with a problem when it is missing, unreadable, too big, not UTF-8, or not YAML."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None, [_whole(file, "no such file: give the path of a configuration, or write one with `lb-sidecar init`")]
    except IsADirectoryError:
        return None, [_whole(file, "this is a directory: name the file in it")]
    except PermissionError:
        return None, [_whole(file, "not readable by this user: chmod or chown it so that the service's user may read it")]
    except (OSError, ValueError) as error:
        return None, [_whole(file, f"cannot be read: {getattr(error, 'strerror', None) or error}")]
    if len(raw) > MAX_FILE_BYTES:
        return None, [_whole(file, "bigger than 1 MiB: split it with `include: conf.d/*.yaml`")]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return None, [Problem(file, line, 1, "", f"not UTF-8: byte 0x{raw[error.start]:02x} in this line; save the file as UTF-8")]
    return parse(text, file)


def _whole(file: str, message: str) -> Problem:
    return Problem(file, 1, 1, "", message)


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """The tree of a YAML text and what is wrong with it. No tree = nothing of it can be used."""
    builder = _Builder(file)
    try:
        node = builder.document(iter(YAML(typ="safe", pure=True).parse(text)))
    except _StopError as stop:
        return None, [*builder.problems, stop.problem]
    except MarkedYAMLError as error:
        return None, [_syntax(error, text, file)]
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1 if isinstance(error.position, int) else 1
        return None, [Problem(file, line, 1, "", "a control character in this line: delete it (an editor shows it as ^@ or a box)")]
    except YAMLError as error:
        return None, [_whole(file, f"not YAML: {' '.join(str(error).split())[:200]}")]
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, AssertionError, RecursionError) as error:
        # The YAML parser itself trips over some malformed texts; for the reader it is one more text that is not YAML.
        return None, [_whole(file, f"not YAML: the parser gave up ({type(error).__name__}); check the brackets, quotes and % lines")]
    if node is None and not builder.problems:
        return None, [_whole(file, "the file is empty: write one with `lb-sidecar init`, or start from the examples")]
    return node, builder.problems


def _syntax(error: MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    said = str(error.problem or error.context or "not understood")
    if "\t" in written[:column] and not written[: column - 1].strip():
        return Problem(file, line, column, "", "a tab in the indentation: YAML allows spaces only; replace it by spaces")
    cure = "check this line and the one above: indentation, brackets, quotes"
    if "mapping values are not allowed" in said:
        said, cure = "a `:` where no key can stand", "line it up with its neighbours, or put a value that holds `: ` in quotes"
    elif "cannot start any token" in said:
        said, cure = f"a value cannot begin with {written[column - 1 : column]!r}", "put the value in quotes"
    elif "end of stream" in said or "stream end" in said:
        said, cure = "the file ends inside a bracket or a quote", "close it"
    return Problem(file, line, column, "", f"not YAML: {said}; {cure}")


class _StopError(Exception):
    """The rest of the file is not worth reading; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


class _Builder:
    """Turns one document's events into a tree. Owns the anchors and the count of nodes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0

    def document(self, events: Iterator[Event]) -> Node | None:
        """The first document's tree; None if there is no content."""
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _StopError(
                        problem_at(self._place(event), "", "a second document (`---`): keep one per file; use `include:` for more")
                    )
            elif isinstance(event, NodeEvent):
                root = self._node(event, events, ())
        return None if isinstance(root, Scalar) and root.value is None else root

    def _place(self, event: Event) -> Place:
        mark = event.start_mark
        return Place(self.file, mark.line + 1, mark.column + 1) if mark is not None else Place(self.file)

    def _count(self, more: int, place: Place) -> None:
        self.nodes += more
        if self.nodes > MAX_NODES:
            raise _StopError(problem_at(place, "", f"more than {MAX_NODES} values, aliases counted: repeat fewer `*aliases`"))

    def _node(self, event: Event, events: Iterator[Event], path: tuple[str, ...]) -> Node:
        place = self._place(event)
        if isinstance(event, AliasEvent):
            return self._alias(event, place)
        before = self.nodes
        self._count(1, place)
        if len(path) > MAX_DEPTH:
            raise _StopError(problem_at(place, "", f"nested more than {MAX_DEPTH} deep: no key of ours is"))
        node = self._content(event, events, path, place)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[str(anchor)] = (node, self.nodes - before)
        return node

    def _alias(self, event: AliasEvent, place: Place) -> Node:
        known = self.anchors.get(str(event.anchor))
        if known is None:
            message = f"`*{event.anchor}` refers to no `&{event.anchor}` before it (nor may a block refer to itself)"
            raise _StopError(problem_at(place, "", message))
        node, size = known
        self._count(size, place)
        return node

    def _content(self, event: Event, events: Iterator[Event], path: tuple[str, ...], place: Place) -> Node:
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path, place)
        if isinstance(event, SequenceStartEvent):
            items: list[Node] = []
            for entry in events:
                if isinstance(entry, SequenceEndEvent):
                    break
                items.append(self._node(entry, events, (*path, str(len(items)))))
            return Items(tuple(items), place)
        if isinstance(event, MappingStartEvent):
            return self._table(events, path, place)
        raise _StopError(problem_at(place, ".".join(path), "not understood here"))

    def _scalar(self, event: ScalarEvent, path: tuple[str, ...], place: Place) -> Scalar:
        tag, text = event.ctag, str(event.value)
        if tag is not None and str(tag) not in _STR_TAGS:
            self.problems.append(problem_at(place, ".".join(path), f"the tag {shown(str(tag))} is not supported: write the plain value"))
            return Scalar(text, place, text)
        if _UNUSABLE.search(text):
            message = "a NUL or half a character (an escape as \\0 or \\ud800): nothing that we pass it to could take it; remove it"
            self.problems.append(problem_at(place, ".".join(path), message))
            return Scalar(_UNUSABLE.sub("?", text), place, _UNUSABLE.sub("?", text))
        is_plain = tag is None and event.style in (None, "")
        return Scalar(resolve(text) if is_plain else text, place, text)

    def _table(self, events: Iterator[Event], path: tuple[str, ...], place: Place) -> Table:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        merged: list[Node] = []
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            key_place = self._place(event)
            key_node = self._node(event, events, path)
            name = key_node.text if isinstance(key_node, Scalar) else ""
            value = self._node(next(events), events, (*path, name))
            if not isinstance(key_node, Scalar):
                self.problems.append(problem_at(key_place, ".".join(path), "a key must be a plain word, not a list or mapping"))
            elif name == "<<" and key_node.value == "<<":
                merged.append(value)
            elif name in entries:
                where = ".".join((*path, name))
                message = f"the key {shown(name)} stands twice in one block, here and in line {keys[name].line}: keep one"
                self.problems.append(problem_at(key_place, where, message))
            else:
                entries[name], keys[name] = value, key_place
        for source in merged:
            self._merge(source, entries, keys, path)
        return Table(entries, place, keys)

    def _merge(self, source: Node, entries: dict[str, Node], keys: dict[str, Place], path: tuple[str, ...]) -> None:
        tables = source.items if isinstance(source, Items) else (source,)
        for table in tables:
            if not isinstance(table, Table):
                self.problems.append(problem_at(source.place, ".".join(path), "`<<` merges mappings only: write `<<: *name` of a mapping"))
                continue
            for key, node in table.entries.items():
                if key not in entries:
                    self._count(1, source.place)
                    entries[key], keys[key] = node, table.keys[key]


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar means in YAML 1.2's core schema: `on`, `yes` and `off` are words.

    >>> [resolve(text) for text in ("on", "true", "08", "0o17", "1e3", "~")]
    ['on', True, 8, 15, 1000.0, None]
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
