"""Values to JSON and back, exactly, by their type hints: what the journal and the flight recorder write.

A dataclass becomes an object, a NamedTuple or tuple a list, an enum its value, a set a sorted list, a mapping an object when its
keys are strings and a list of pairs otherwise. In a union the dataclasses, NamedTuples and enums are tagged `"$": "ClassName"`. A
number that JSON does not have is the string `inf`, `-inf` or `nan`. A class with `to_json` and `from_json` speaks for itself.

Reading is strict about shape and easy about age: unknown fields are ignored and missing ones take their defaults, so that format
N reads N-1. A field is left out only when its default is None or empty and so is its value; changing such a default to
something else is a new format.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence, Set
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, overload

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]
T = TypeVar("T")

TAG = "$"
"""Names the class of a union's member."""
WRAPPED = "v"
"""Holds the value of a tagged member that is not an object itself."""


class CodecError(ValueError):
    """A value or JSON does not fit its type. `path` leads to the place, as `facts[3].outcome.target`."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def __str__(self) -> str:
        return f"{self.path.lstrip('.') or 'value'}: {self.problem}"

    def within(self, step: str) -> CodecError:
        """The same error, seen from one level further out."""
        self.path = step + self.path
        return self


class Codec(NamedTuple):
    """Both directions of one type. `encode` None = the value is its own JSON."""

    encode: Encode | None
    decode: Decode


def encode(value: object, type_: Any) -> Json:
    """`value`, which is a `type_`, as JSON; CodecError when it is not one."""
    try:
        return typing.cast(Json, encoder(type_)(value))  # the closures work on Any: their types are known only at run time
    except CodecError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"{_short(value)} cannot be written as {_name(type_)}: {error}") from error


@overload
def decode(value: Json, type_: type[T]) -> T: ...
@overload
def decode(value: Json, type_: Any) -> Any: ...
def decode(value: Json, type_: Any) -> Any:
    """The `type_` that `value` was made from; CodecError, with the path to the place, when it does not fit."""
    return codec(type_).decode(value)


def dumps(value: Json) -> bytes:
    """One line of compact ASCII, the same bytes for the same value; CodecError when it is not JSON."""
    try:
        return _DUMPS(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"not JSON: {error}") from error


def loads(text: bytes | str) -> Json:
    """JSON read back; CodecError for anything else, `NaN` and `Infinity` as bare words included."""
    try:
        return typing.cast(Json, _LOADS(text if isinstance(text, str) else text.decode("ascii")))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON: {error}") from error


def encoder(type_: Any) -> Encode:
    """The function `encode` calls, for a loop that knows its values; it may raise what a wrong value makes it raise."""
    return codec(type_).encode or _same


@functools.cache
def codec(type_: Any) -> Codec:
    """Both directions of `type_`, compiled once; CodecError for a type that cannot be written."""
    return _Compiler().compile(type_)


def _refuse_word(word: str) -> Json:
    raise ValueError(f"{word} is not JSON")


def _same(value: Any) -> Any:
    return value


_DUMPS = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode
_LOADS = json.JSONDecoder(parse_constant=_refuse_word).decode


class _Compiler:
    """Builds codecs; `_open` holds the classes under construction, so that a class may contain itself."""

    def __init__(self) -> None:
        self._done: dict[tuple[Any, str], Codec] = {}
        self._open: set[tuple[Any, str]] = set()

    def compile(self, type_: Any, tag: str = "") -> Codec:
        key = (type_, tag)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return Codec(lambda value: (self._done[key].encode or _same)(value), lambda value: self._done[key].decode(value))
        self._open.add(key)
        self._done[key] = made = self._make(type_, tag)
        self._open.discard(key)
        return made

    def _make(self, type_: Any, tag: str) -> Codec:
        origin, arguments = typing.get_origin(type_), typing.get_args(type_)
        if type_ in _PLAIN:
            return _PLAIN[type_]
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, _name(type_))
        if origin is typing.Annotated:
            return self.compile(arguments[0])
        if origin is typing.Literal:
            return _choice({each: each for each in arguments}, _name(type_), None)
        if supertype := getattr(type_, "__supertype__", None):
            return self.compile(supertype)
        if isinstance(type_, type) and origin is None:
            return self._class(type_, tag)
        if origin is tuple:
            return self._tuple(arguments)
        if origin in _MAPPINGS:
            return self._mapping(*arguments)
        if origin in _LISTS:
            return self._list(arguments[0], _LISTS[origin], is_set=origin in _SETS)
        if origin is deque:
            return self._deque(arguments[0])
        raise CodecError(f"the type {_name(type_)} has no JSON form")

    def _class(self, cls: type, tag: str) -> Codec:
        if dataclasses.is_dataclass(cls):
            return self._dataclass(cls, tag)
        if hasattr(cls, "to_json") and hasattr(cls, "from_json"):
            return Codec(cls.to_json, _guarded(cls.from_json))
        if issubclass(cls, tuple) and hasattr(cls, "_fields"):
            return self._named_tuple(cls)
        if issubclass(cls, Enum):
            # A StrEnum is a str: the JSON encoder writes its value without our help.
            return _choice({each.value: each for each in cls}, cls.__name__, None if issubclass(cls, str) else attrgetter("value"))
        raise CodecError(f"the type {_name(cls)} has no JSON form")

    def _dataclass(self, cls: type, tag: str) -> Codec:
        hints = typing.get_type_hints(cls, include_extras=True)
        # A type checker cannot know that `cls` is a dataclass: `_class` looked.
        fields = dataclasses.fields(typing.cast(Any, cls))
        codecs = [self.compile(hints[field.name]) for field in fields]
        return Codec(_object_encoder(cls, fields, codecs, tag), _object_decoder(cls, fields, codecs))

    def _named_tuple(self, cls: type) -> Codec:
        hints = typing.get_type_hints(cls, include_extras=True)
        names: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]  # `_class` looked: a NamedTuple
        codecs = [self.compile(hints[name]) for name in names]
        required = len(names) - len(cls._field_defaults)  # type: ignore[attr-defined]
        decoders = [each.decode for each in codecs]

        def decode_named(value: Any) -> Any:
            if type(value) is not list or len(value) < required:
                raise CodecError(f"{_short(value)} is not the list of a {cls.__name__}")
            return cls(*_each(decoders, value, names))

        return Codec(_row_encoder([each.encode for each in codecs]), decode_named)

    def _tuple(self, arguments: tuple[Any, ...]) -> Codec:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return self._list(arguments[0], tuple, is_set=False)
        codecs = [self.compile(each) for each in arguments]
        decoders = [each.decode for each in codecs]

        def decode_tuple(value: Any) -> Any:
            if type(value) is not list or len(value) != len(decoders):
                raise CodecError(f"{_short(value)} is not a list of {len(decoders)}")
            return tuple(_each(decoders, value, None))

        return Codec(_row_encoder([each.encode for each in codecs]), decode_tuple)

    def _list(self, item: Any, build: Callable[[Iterable[Any]], Any], *, is_set: bool) -> Codec:
        write, read = self.compile(item)
        if item is float and not is_set:
            return Codec(_encode_floats, lambda value: build(_items(read, value)))

        def encode_list(values: Collection[Any]) -> list[Any]:
            return list(values) if write is None else [write(each) for each in values]

        def encode_set(values: Collection[Any]) -> list[Any]:
            return sorted(encode_list(values), key=_DUMPS)

        return Codec(encode_set if is_set else encode_list, lambda value: build(_items(read, value)))

    def _deque(self, item: Any) -> Codec:
        """[longest allowed or null, items]: a deque that forgot its limit would grow without end."""
        made = self.compile(item)
        write, read = made.encode or _same, made.decode

        def decode_deque(value: Any) -> Any:
            if type(value) is not list or len(value) != 2 or not (value[0] is None or (type(value[0]) is int and value[0] >= 0)):
                raise CodecError(f"{_short(value)} is not [limit, items]")
            return deque(_items(read, value[1]), maxlen=value[0])

        return Codec(lambda value: [value.maxlen, [write(each) for each in value]], decode_deque)

    def _mapping(self, key: Any, item: Any) -> Codec:
        write_key, read_key = self.compile(key)
        write, read = self.compile(item)
        if isinstance(key, type) and issubclass(key, str):
            return Codec(_object_of(write), lambda value: _from_object(value, read_key, read))

        def decode_pairs(value: Any) -> Any:
            pairs = _items(_pair_of(read_key, read), value)
            if len(found := dict(pairs)) != len(pairs):
                raise CodecError("a key stands twice")
            return found

        key_of, item_of = write_key or _same, write or _same
        return Codec(lambda value: [[key_of(k), item_of(v)] for k, v in value.items()], decode_pairs)

    def _union(self, arguments: tuple[Any, ...], name: str) -> Codec:
        members = [each for each in arguments if each is not types.NoneType]
        if len(members) == 1:
            write, read = self.compile(members[0])
            if write is None:
                return Codec(None, lambda value: None if value is None else read(value))
            return Codec(lambda value: None if value is None else write(value), lambda value: None if value is None else read(value))
        return self._tagged_union(members, name, has_none=len(members) < len(arguments))

    def _tagged_union(self, members: list[Any], name: str, *, has_none: bool) -> Codec:
        writers: dict[type, Encode] = {types.NoneType: _same} if has_none else {}
        readers: dict[str, Decode] = {}
        plain: dict[type, Decode] = {types.NoneType: _same} if has_none else {}
        for member in members:
            if member in (bool, int, float, str):
                found = self.compile(member)
                writers[member], plain[member] = found.encode or _same, found.decode
            elif isinstance(member, type) and typing.get_origin(member) is None and member.__name__ not in readers:
                writers[member], readers[member.__name__] = self._tagged(member)
            else:
                raise CodecError(f"{_name(member)} cannot be told from the others in {name}")
        if float in plain and str in plain:
            raise CodecError(f"a string cannot be told from inf and nan in {name}")
        if float in plain:
            plain[str] = plain[float]

        def encode_union(value: Any) -> Any:
            return writers[type(value)](value)

        def decode_union(value: Any) -> Any:
            if type(value) is dict:
                tag = value.get(TAG)
                read = readers.get(tag) if type(tag) is str else None
                if read is None:
                    raise CodecError(f"{_short(tag)} is none of {', '.join(readers) or 'no class'}")
                return read(value)
            if (read := plain.get(type(value))) is None:
                raise CodecError(f"{_short(value)} is no {name}")
            return read(value)

        return Codec(encode_union, decode_union)

    def _tagged(self, member: type) -> tuple[Encode, Decode]:
        name = member.__name__
        if dataclasses.is_dataclass(member):
            made = self.compile(member, name)
            return made.encode or _same, made.decode
        write, read = self.compile(member)
        inside = write or _same

        def unwrap(value: dict[str, Any]) -> Any:
            if WRAPPED not in value:
                raise CodecError(f"the {name} has no {WRAPPED!r}")
            return read(value[WRAPPED])

        return (lambda value: {TAG: name, WRAPPED: inside(value)}), unwrap


def _object_encoder(cls: type, fields: Sequence[dataclasses.Field[Any]], codecs: Sequence[Codec], tag: str) -> Encode:
    plan = [(field.name, each.encode, *_omitted(field)) for field, each in zip(fields, codecs, strict=True)]
    take = _getter([field.name for field in fields])
    wanted = cls

    def encode_object(value: Any) -> dict[str, Any]:
        if type(value) is not wanted:
            raise CodecError(f"{_short(value)} is no {wanted.__name__}")
        out: dict[str, Any] = {TAG: tag} if tag else {}
        for (name, write, may_omit, default), item in zip(plan, take(value), strict=True):
            if may_omit and not item and item == default:
                continue
            out[name] = item if write is None else write(item)
        return out

    return encode_object


def _object_decoder(cls: type, fields: Sequence[dataclasses.Field[Any]], codecs: Sequence[Codec]) -> Decode:
    plan = [(field.name, each.decode, field.init) for field, each in zip(fields, codecs, strict=True)]
    has_late = any(not field.init for field in fields)
    required = frozenset(field.name for field in fields if field.init and not _has_default(field))

    def decode_object(value: Any) -> Any:
        if type(value) is not dict:
            raise CodecError(f"{_short(value)} is not the object of a {cls.__name__}")
        given: dict[str, Any] = {}
        late: dict[str, Any] = {}
        for name, read, is_init in plan:
            if name not in value:
                if name in required:
                    raise CodecError(f"a {cls.__name__} needs {name!r}")
                continue
            try:
                (given if is_init else late)[name] = read(value[name])
            except CodecError as error:
                raise error.within(f".{name}") from None
        made = _build(cls, given)
        if has_late:
            for name, item in late.items():
                object.__setattr__(made, name, item)
        return made

    return decode_object


def _build(cls: type, given: dict[str, Any]) -> Any:
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise CodecError(f"no {cls.__name__}: {error}") from error


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _omitted(field: dataclasses.Field[Any]) -> tuple[bool, Any]:
    """Whether a field may be left out, and the value at which it is: only None and empty strings or collections."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        if field.default_factory not in (dict, list, set, frozenset, tuple):
            return False, None
        default = field.default_factory()
    may_omit = default is None or (isinstance(default, str | tuple | frozenset | list | dict | set) and not default)
    return may_omit, default if may_omit else None


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """All attributes in one call into C."""
    if not names:
        return lambda value: ()
    take = attrgetter(*names)
    if len(names) == 1:
        return lambda value: (take(value),)
    return take


def _row_encoder(encoders: list[Encode | None]) -> Encode:
    """A tuple of fixed length; written for speed, since every fact names a target."""
    if not any(encoders):
        return list
    if len(encoders) == 2:
        first, second = (each or _same for each in encoders)
        if encoders[1] is None:
            return lambda value: [first(value[0]), value[1]]
        return lambda value: [first(value[0]), second(value[1])]
    return lambda value: [item if write is None else write(item) for write, item in zip(encoders, value, strict=True)]


def _each(decoders: Sequence[Decode], value: list[Any], names: Sequence[str] | None) -> list[Any]:
    out = []
    for at, (read, item) in enumerate(zip(decoders, value, strict=False)):
        try:
            out.append(read(item))
        except CodecError as error:
            raise error.within(f".{names[at]}" if names else f"[{at}]") from None
    return out


def _items(read: Decode, value: Any) -> list[Any]:
    if type(value) is not list:
        raise CodecError(f"{_short(value)} is not a list")
    try:
        return [read(each) for each in value]
    except CodecError:
        for at, each in enumerate(value):  # only now is the place worth its cost
            try:
                read(each)
            except CodecError as error:
                raise error.within(f"[{at}]") from None
        raise


def _pair_of(read_key: Decode, read: Decode) -> Decode:
    def decode_pair(value: Any) -> Any:
        if type(value) is not list or len(value) != 2:
            raise CodecError(f"{_short(value)} is not [key, value]")
        return read_key(value[0]), read(value[1])

    return decode_pair


def _object_of(write: Encode | None) -> Encode:
    if write is None:
        return dict
    return lambda value: {key: write(item) for key, item in value.items()}


def _from_object(value: Any, read_key: Decode, read: Decode) -> dict[Any, Any]:
    if type(value) is not dict:
        raise CodecError(f"{_short(value)} is not an object")
    out = {}
    for key, item in value.items():
        try:
            out[read_key(key)] = read(item)
        except CodecError as error:
            raise error.within(f"[{key!r}]") from None
    return out


def _choice(values: Mapping[Any, Any], name: str, write: Encode | None) -> Codec:
    def decode_choice(value: Any) -> Any:
        try:
            return values[value]
        except (KeyError, TypeError):
            raise CodecError(f"{_short(value)} is no {name}") from None

    return Codec(write, decode_choice)


def _guarded(from_json: Decode) -> Decode:
    """A class's own reader, its complaints turned into ours."""

    def decode_own(value: Any) -> Any:
        try:
            return from_json(value)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise CodecError(str(error)) from error

    return decode_own


def _exactly(wanted: type, words: str) -> Decode:
    def decode_plain(value: Any) -> Any:
        if type(value) is not wanted:
            raise CodecError(f"{_short(value)} is not {words}")
        return value

    return decode_plain


def _encode_float(value: float) -> Json:
    if -math.inf < value < math.inf:
        return float(value)
    return "nan" if value != value else "inf" if value > 0 else "-inf"


def _encode_floats(values: Collection[float]) -> list[Any]:
    """Many at a time: a world holds a hundred of them per target, and this is what a snapshot would spend its time on."""
    floats = list(map(float, values))
    return floats if math.isfinite(sum(floats)) else [_encode_float(each) for each in floats]


_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _decode_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int and -(2**63) < value < 2**63:
        return float(value)
    if type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    raise CodecError(f"{_short(value)} is not a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _name(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) and not typing.get_args(type_) else str(type_)


_PLAIN: Mapping[Any, Codec] = types.MappingProxyType(
    {
        types.NoneType: Codec(None, _exactly(types.NoneType, "null")),
        None: Codec(None, _exactly(types.NoneType, "null")),
        bool: Codec(None, _exactly(bool, "true or false")),
        int: Codec(None, _exactly(int, "a whole number")),
        str: Codec(None, _exactly(str, "a string")),
        float: Codec(_encode_float, _decode_float),
        Any: Codec(None, _same),
        object: Codec(None, _same),
    }
)
_MAPPINGS = frozenset({dict, Mapping, MutableMapping})
_SETS = frozenset({set, frozenset, Set, MutableSet})
_LISTS: Mapping[Any, Callable[[Iterable[Any]], Any]] = types.MappingProxyType(
    {list: list, MutableSequence: list, Sequence: tuple, set: set, MutableSet: set, frozenset: frozenset, Set: frozenset}
)

__all__ = ["Codec", "CodecError", "Json", "codec", "decode", "dumps", "encode", "encoder", "loads"]
