"""A scenario as its file has it: one row of the fault matrix, a timeline, and what must come of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tests.scenarios import words
from tests.scenarios.words import Sentence

ROOT = Path(__file__).parents[2]
ROWS = Path(__file__).parent / "rows"
MATRIX = (*(f"I{n}" for n in range(1, 22)), *(f"L{n}" for n in range(1, 19)), *(f"S{n}" for n in range(1, 19)))
GROUPS = {"I": "Instances", "L": "Balancers", "S": "The sidecar itself"}
Shape = Literal["haproxy-2.6-check", "haproxy-2.8-none", "haproxy-2.8-check", "haproxy-2.8-agent", "nginx-1.22", "nginx-1.31"]


Name = Annotated[str, Field(pattern="^(edge|web)$")]
"""Balancers have these names, so that sentences about them can be told from others."""


class ScenarioError(Exception):
    """A file that is no scenario; the message has its name and everything that is wrong with it."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Service(Strict):
    """`instances` of them, as servers s1 … of the pool of that name on each balancer. `listed`: by discovery. `interval`: of probes."""

    instances: Annotated[int, Field(ge=1, le=50)] = 4
    on: tuple[Name, ...] = ("edge",)
    listed: bool = False
    interval: Annotated[str, Field(pattern=r"^\d+(\.\d+)? (ms|s)$")] | None = None

    @property
    def interval_s(self) -> float | None:
        return None if self.interval is None else words.span(self.interval)


class Layout(Strict):
    """What stands there. `start: warm` = second 0 is when everybody is known well; `cold` = when the sidecar starts."""

    services: dict[str, Service] = {"shop": Service()}
    balancers: dict[Name, Literal["haproxy", "nginx"]] = {"edge": "haproxy"}
    start: Literal["warm", "cold"] = "warm"

    @model_validator(mode="after")
    def _names_meet(self) -> Layout:
        for name, service in self.services.items():
            if strangers := set(service.on) - set(self.balancers):
                raise ValueError(f"services.{name}.on: {', '.join(strangers)} is no balancer of this layout")
        return self


class Step(Strict):
    """Something happens. `at`: seconds."""

    at: float
    deed: Sentence


class Expectation(Strict):
    """Something must come true (`by`), stay true (`from`, `after`) or never be. Seconds; `ends` inf = to the end."""

    form: Literal["by", "from", "after", "never"]
    begins: float
    ends: float
    state: Sentence

    def __str__(self) -> str:
        times = {"by": f"by {self.ends:g} s", "from": f"from {self.begins:g} s to {self.ends:g} s", "after": f"after {self.begins:g} s"}
        return f"{times.get(self.form, 'never')}: {self.state.text}"


def _step(raw: object) -> object:
    when, what = _pair(raw)
    if (found := re.fullmatch(r"at (\d+(?:\.\d+)? \w+)", when)) is None:
        raise ValueError(f"{when!r}: a step begins with a time, as `at 12.0 s`")
    return Step(at=_seconds(found[1]), deed=words.deed(what))


def _expectation(raw: object) -> object:
    when, what = _pair(raw)
    state = words.state(what)
    if when == "never":
        return Expectation(form="never", begins=0.0, ends=float("inf"), state=state)
    if (found := re.fullmatch(r"(by|after) (\d+(?:\.\d+)? \w+)", when)) is not None:
        at, is_after = _seconds(found[2]), found[1] == "after"
        return Expectation(
            form="after" if is_after else "by", begins=at if is_after else 0.0, ends=float("inf") if is_after else at, state=state
        )
    if (found := re.fullmatch(r"from (\d+(?:\.\d+)? \w+) to (\d+(?:\.\d+)? \w+)", when)) is not None:
        return Expectation(form="from", begins=_seconds(found[1]), ends=_seconds(found[2]), state=state)
    raise ValueError(f"{when!r}: an expectation begins with `by 13.0 s`, `from 13.0 s to 20.0 s`, `after 20.0 s` or `never`")


def _pair(raw: object) -> tuple[str, str]:
    if not isinstance(raw, Mapping) or len(raw) != 1 or not all(isinstance(part, str) for part in (*raw, *raw.values())):
        raise ValueError(f"{raw!r}: one time and one sentence, as `- at 12.0 s: shop/s1 refuses connections`")
    ((when, what),) = raw.items()
    return when, what


def _seconds(text: str) -> float:
    try:
        return words.span(text)
    except KeyError:
        raise ValueError(f"{text!r} is no time; units are {', '.join(words.SECONDS)}") from None


class Real(Strict):
    """How it runs on real processes: this timeline on these shapes, and `tests/FILE.py::NAME` that do so already."""

    shapes: tuple[Shape, ...] = ()
    tests: tuple[Annotated[str, Field(pattern=r"^tests/[\w/]+\.py(::\w+)?$")], ...] = ()

    @model_validator(mode="after")
    def _is_something(self) -> Real:
        if not (self.shapes or self.tests):
            raise ValueError("name shapes or tests, or write `REAL: no, because …`")
        return self


def _no(raw: object) -> object:
    """`no, because …` is kept as text; whatever else is read as it stands."""
    if isinstance(raw, str) and not raw.startswith("no, "):
        raise ValueError(f"{raw!r}: say `no, because …`")
    return raw


class Worlds(Strict):
    """Where it runs. Text = not there, and why."""

    SIM: Annotated[bool | str, BeforeValidator(_no)]
    REAL: Annotated[Real | str, BeforeValidator(_no)]


class Scenario(Strict):
    """One row of the matrix, or one side of it (I5b). `promise`: what we owe, in one or two sentences."""

    id: Annotated[str, Field(pattern=r"^[ILS]\d{1,2}[a-z]?$")]
    title: str
    promise: str
    waits_for: str = ""
    worlds: Worlds
    layout: Layout = Layout()
    timeline: tuple[Annotated[Step, BeforeValidator(_step)], ...] = ()
    expect: tuple[Annotated[Expectation, BeforeValidator(_expectation)], ...] = ()
    ends: Annotated[str, Field(pattern=r"^\d+(\.\d+)? (s|min|h)$")] | None = None

    @property
    def row(self) -> str:
        return self.id.rstrip("abcdefgh")

    @property
    def runs_sim(self) -> bool:
        return self.worlds.SIM is True and not self.waits_for

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.worlds.REAL.shapes if isinstance(self.worlds.REAL, Real) and not self.waits_for else ()

    @property
    def tests(self) -> tuple[str, ...]:
        return self.worlds.REAL.tests if isinstance(self.worlds.REAL, Real) and not self.waits_for else ()

    @property
    def length_s(self) -> float:
        """To its end: `ends`, else three seconds after the last time that is named."""
        if self.ends is not None:
            return words.span(self.ends)
        times = [step.at for step in self.timeline]
        times += [t for e in self.expect for t in (e.begins, e.ends) if t != float("inf")]
        return max(times, default=0.0) + 3.0

    def everybody(self, service: str) -> tuple[str, ...]:
        return tuple(f"{service}/s{i}" for i in range(1, self.layout.services[service].instances + 1))

    def resolve(self, sentence: Sentence) -> tuple[str, ...]:
        """Whom a sentence speaks of."""
        return tuple(one for name in sentence.who for one in (self.everybody(name[7:]) if name.startswith("all of ") else (name,)))

    @model_validator(mode="after")
    def _holds_together(self) -> Scenario:
        has_timeline = self.worlds.SIM is True or bool(self.shapes)
        if has_timeline and not self.expect:
            raise ValueError("it expects nothing: such a scenario cannot fail")
        if not has_timeline and (self.timeline or self.expect) and not self.waits_for:
            raise ValueError("a timeline that runs in no world: name SIM or shapes, or leave the timeline out")
        if list(self.timeline) != sorted(self.timeline, key=lambda step: step.at):
            raise ValueError("timeline: the steps are not in their order")
        for sentence in [*(s.deed for s in self.timeline), *(e.state for e in self.expect)]:
            self._names_exist(sentence)
            if sentence.phrase.waits and not self.waits_for:
                raise ValueError(f"{sentence.text!r} cannot be done yet; say what the row waits for with `waits_for`")
            if self.shapes and not sentence.phrase.real:
                raise ValueError(f"{sentence.text!r} can only be simulated, but the file names shapes")
        if self.shapes and (list(self.layout.services) != ["shop"] or list(self.layout.balancers) != ["edge"]):
            raise ValueError("shapes: with real processes there is one service `shop` on one balancer `edge`")
        if self.shapes and any(service.listed or service.interval for service in self.layout.services.values()):
            raise ValueError("shapes: with real processes a service is neither listed nor has it an interval")
        return self

    def _names_exist(self, sentence: Sentence) -> None:
        services = [name.removeprefix("all of ").partition("/")[0] for name in sentence.who]
        services += [sentence["service"]] if "service" in sentence.slots else []
        if strangers := [name for name in services if name not in self.layout.services]:
            raise ValueError(f"{sentence.text!r}: {strangers[0]} is no service of this layout")
        if "balancer" in sentence.slots and sentence["balancer"] not in self.layout.balancers:
            raise ValueError(f"{sentence.text!r}: {sentence['balancer']} is no balancer of this layout")


def load(path: Path) -> Scenario:
    """ScenarioError says everything that is wrong with the file, one line each."""
    try:
        raw: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ScenarioError(f"{path.name}: {error}") from error
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise ScenarioError("\n".join(_problems(path, error))) from error
    if not path.stem.startswith(f"{scenario.id}-"):
        raise ScenarioError(f"{path.name}: the name begins with the id, as {scenario.id}-{path.stem.partition('-')[2]}.yaml")
    return scenario


def _problems(path: Path, error: ValidationError) -> Iterator[str]:
    for each in error.errors():
        place = ".".join(str(part) for part in each["loc"] if not str(part).startswith("function-"))
        yield f"{path.name}: {place + ': ' if place else ''}{each['msg'].removeprefix('Value error, ')}"


def load_all() -> tuple[Scenario, ...]:
    """All, in the order of the matrix."""
    found = [load(path) for path in ROWS.glob("*.yaml")]
    return tuple(sorted(found, key=lambda s: (MATRIX.index(s.row), s.id)))
