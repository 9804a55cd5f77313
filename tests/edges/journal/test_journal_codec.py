"""What the journal writes is what it reads, for every word of the core."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbplugins import values
from lbplugins.values import Address, Ref, Seen
from sidecar.core import model, policy, streak, world
from sidecar.core.histogram import Histogram
from sidecar.core.model import Decision, Fact, Instance, Outcome, Phases, Pictured, Probed, Result, Target, Tick
from sidecar.core.policy import Policy
from sidecar.core.world import World
from sidecar.journal.codec import CodecError, Json, codec, decode, dumps, encode, loads


def words_of(module: ModuleType) -> list[Any]:
    """Every dataclass, NamedTuple and enum that a module defines."""
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if each.__module__ == module.__name__ and (dataclasses.is_dataclass(each) or issubclass(each, tuple | StrEnum))
    ]


WORDS = [*words_of(values), *words_of(model), *words_of(policy), *words_of(streak), Fact]
STATE = words_of(world)


def there_and_back(value: Any, type_: Any) -> None:
    written = encode(value, type_)
    text = dumps(written)

    again = decode(loads(text), type_)

    assert again == value or "nan" in repr(value)
    assert dumps(encode(again, type_)) == text


@pytest.mark.parametrize("word", WORDS, ids=str)
def test_every_word_of_the_core_there_and_back(word: Any) -> None:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
    @given(st.from_type(word))
    def check(value: Any) -> None:
        there_and_back(value, word)

    check()


@pytest.mark.parametrize("word", STATE, ids=str)
def test_every_part_of_the_world_can_be_written(word: Any) -> None:
    assert codec(word).encode is not None


def test_a_world_there_and_back() -> None:
    one = World()
    one.absorb(Probed(Outcome(Target(Address("10.0.0.1", 80), "http:/health"), Result.OK, 1.0, 2.0)))
    one.notes[model.ServerRef("edge", Ref("shop", "s1"))] = "weight 7"

    there_and_back(one, World)


class Colour(IntEnum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: str = "r"


@dataclass(slots=True)
class Tree:
    """A class that contains itself."""

    name: str
    below: tuple[Tree, ...] = ()
    by_name: dict[str, Tree] = field(default_factory=dict)


@dataclass
class Odd:
    kind: ClassVar[str] = "odd"
    of: Pair | None = None
    which: Pair | Address | None = None
    seen: set[frozenset[int]] = field(default_factory=set)
    made: int = field(default=0, init=False)


@dataclass(frozen=True)
class Picky:
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"a share is 0 to 1, not {self.share}")


@pytest.mark.parametrize(
    ("value", "type_", "written"),
    [
        (math.inf, float, '"inf"'),
        (-math.inf, float, '"-inf"'),
        (3, float, "3.0"),
        (None, int | None, "null"),
        ("\ud800 \u2028 \U0001f600", str, '"\\ud800 \\u2028 \\ud83d\\ude00"'),
        ((1, "a"), tuple[int, str], '[1,"a"]'),
        ((), tuple[int, ...], "[]"),
        ([1], list[int], "[1]"),
        ([1, 2.5], list[float], "[1.0,2.5]"),
        ([1.0, math.inf, 1e308, 1e308], list[float], '[1.0,"inf",1e+308,1e+308]'),
        ((1e308, 1e308), tuple[float, ...], "[1e+308,1e+308]"),
        ({3, 1, 2}, set[int], "[1,2,3]"),
        (frozenset({"b", "a"}), frozenset[str], '["a","b"]'),
        ({"b": 1, "a": 2}, dict[str, int], '{"b":1,"a":2}'),
        ({2: "b", 1: "a"}, Mapping[int, str], '[[2,"b"],[1,"a"]]'),
        ({Address("h", 1): 1}, dict[Address, int], '[[["h",1],1]]'),
        (Colour.RED, Colour, "1"),
        (Pair(1), Pair, '[1,"r"]'),
        (deque([1, 2], maxlen=3), deque[int], "[3,[1,2]]"),
        ((1, 2), Sequence[int], "[1,2]"),
        ("a", Literal["a", "b"], '"a"'),
        (5, Annotated[int, "five"], "5"),
        (Pair(1), Pair | Address, '{"$":"Pair","v":[1,"r"]}'),
        (Colour.RED, Colour | str, '{"$":"Colour","v":1}'),
        (1.5, int | float, "1.5"),
        (1, int | float, "1"),
        (True, int | bool | None, "true"),
        ("s", str | Pair, '"s"'),
        (Tick(1.0), Tick | Probed, '{"$":"Tick","at":1.0}'),
        (Tree("a", (Tree("b"),), {"c": Tree("c")}), Tree, '{"name":"a","below":[{"name":"b"}],"by_name":{"c":{"name":"c"}}}'),
        ([None, {"any": [1]}], Any, '[null,{"any":[1]}]'),
    ],
)
def test_the_form_of_each_kind(value: Any, type_: Any, written: str) -> None:
    assert dumps(encode(value, type_)).decode() == written
    there_and_back(value, type_)


def test_nan_is_kept() -> None:
    assert math.isnan(decode(loads(dumps(encode(math.nan, float))), float))


def test_a_class_may_write_itself() -> None:
    histogram = Histogram()
    histogram.add(0.25)

    there_and_back({"a": histogram}, dict[str, Histogram])


def test_fields_that_init_does_not_take_are_kept() -> None:
    odd = Odd()
    odd.made = 7

    assert decode(encode(odd, Odd), Odd).made == 7


def test_empty_defaults_are_left_out_and_others_written() -> None:
    probed = Probed(Outcome(Target(Address("h", 1), "s"), Result.OK, 1.0, 2.0, fresh=True))

    assert dumps(encode(probed, Fact)) == (
        b'{"$":"Probed","outcome":{"target":[["h",1],"s"],"result":"ok","started":1.0,"ended":2.0,"phases":{},"fresh":true}}'
    )


def test_an_empty_value_that_is_not_the_default_is_kept() -> None:
    there_and_back(Pictured("edge", 1.0, servers={}), Fact)
    there_and_back(Decision(1.0, changes={}), Decision)


def test_sets_are_written_the_same_however_they_were_filled() -> None:
    names = [f"pool{each}" for each in range(50)]

    assert encode(frozenset(names), frozenset[str]) == encode(frozenset(reversed(names)), frozenset[str]) == sorted(names)


def test_fields_of_the_future_are_ignored_and_missing_ones_take_their_defaults() -> None:
    written: Json = {"first_byte": 0.5, "quantum": {"deep": [1]}}

    assert decode(written, Phases) == Phases(first_byte=0.5)
    assert decode(["h", 1, "more"], Address) == Address("h", 1)
    assert decode(["shop", ["h", 1]], Instance) == Instance("shop", Address("h", 1))


@pytest.mark.parametrize(
    ("json", "type_", "complaint"),
    [
        ({"outcome": {"target": [["h", "1"], "s"]}}, Probed, "outcome.target.address.port: '1' is not a whole number"),
        ([{"$": "Tick", "at": 1}, {"$": "Tick", "at": "x"}], tuple[Fact, ...], "[1].at: 'x' is not a number"),
        ({"$": "Bomb"}, Fact, "value: 'Bomb' is none of Probed"),
        ({"$": ["Tick"]}, Fact, "is none of Probed"),
        ([], Fact, "[] is no "),
        ({"services": {"shop": {}}}, Policy, "services['shop']: a ServicePolicy needs 'name'"),
        ({"services": []}, Policy, "services: [] is not an object"),
        (["h"], Address, "is not the list of a Address"),
        ([1], tuple[int, int], "is not a list of 2"),
        ([1, None], tuple[int, int], "[1]: None is not a whole number"),
        ("x", list[int], "'x' is not a list"),
        (True, int, "True is not a whole number"),
        (1, bool, "1 is not true or false"),
        (1.5, int, "1.5 is not a whole number"),
        (2**80, float, "is not a number"),
        ("nope", Result, "'nope' is no Result"),
        ([], Result, "[] is no Result"),
        ([[1]], dict[int, int], "[0]: [1] is not [key, value]"),
        ([[1, 1], [1, 2]], dict[int, int], "a key stands twice"),
        ([-1, []], deque[int], "is not [limit, items]"),
        ({"share": 2.0}, Picky, "a share is 0 to 1"),
        ({"$": "Pair"}, Pair | Address, "the Pair has no 'v'"),
        ({"buckets": 1}, Histogram, "a histogram's"),
        (None, Tick, "None is not the object of a Tick"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(json: Json, type_: Any, complaint: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode(json, type_)

    assert complaint in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["$", "Probed", "Tick"]),
        lambda below: (
            st.lists(below, max_size=4)
            | st.dictionaries(st.sampled_from(["$", "at", "outcome", "target", "v"]) | st.text(max_size=3), below, max_size=4)
        ),
        max_leaves=12,
    ),
    st.sampled_from([Fact, Decision, Policy, World, Instance, Outcome, Seen]),
)
def test_any_json_is_a_value_or_a_clear_refusal(json: Any, type_: Any) -> None:
    try:
        value = decode(json, type_)
    except CodecError as error:
        assert str(error)
    else:
        there_and_back(value, type_)


@pytest.mark.parametrize("value", [Tick(1.0), Phases(), None, 3, "x"])
def test_a_value_of_another_type_is_not_written(value: object) -> None:
    with pytest.raises(CodecError):
        encode(value, Probed)


@pytest.mark.parametrize("type_", [bytes, complex, typing.Callable[[], int], list[int] | dict[str, int], float | str, Address | list[int]])
def test_a_type_without_a_form_is_refused_when_compiled(type_: Any) -> None:
    with pytest.raises(CodecError, match=r"has no JSON form|cannot be told"):
        codec(type_)


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"{", b"\xff", b"[" * 100_000, b"1 2"])
def test_text_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(CodecError):
        loads(text)


def test_values_that_are_no_json_are_refused() -> None:
    with pytest.raises(CodecError):
        dumps(typing.cast(Json, {"a": object()}))
    with pytest.raises(CodecError):
        dumps(math.nan)
