"""`plugin list | new | check`, run on packages as pip leaves them: a folder with entry points on the path."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.cli.plugin import check, list_plugins, new

GOOD = '''
import os, socket
from pydantic import BaseModel, ConfigDict, Field
from lbplugins.api import Balancer, BalancerError
from lbplugins.memory import Memory, MemoryOptions
from lbplugins.values import Traits

class Options(MemoryOptions):
    path: str = Field(description="where it lives")

class Good(Memory):
    Options = Options
    traits = Traits(drain=True, costly=True, observe_every_s=2.5)

class NotYet(Balancer):
    """Forgot apply, and more."""
    api_version = 7
    traits = None
    Options = BaseModel
    def aclose(self): pass
    async def observe(self, pools, notes): return {}

class Touches(Memory):
    def __init__(self, options):
        super().__init__(options)
        self.held = os.listdir("/")

class Needs(Memory):
    def __init__(self, options, more): super().__init__(options)

class Away(Memory):
    async def open(self): raise BalancerError("nobody listens at /run/x.sock\\n\\x1b[31m: start it")

class Leaks(Memory):
    async def observe(self, pools, notes): raise KeyError("web")

class ManyPools(Memory):
    async def pools(self): return frozenset()
'''
PACKAGE = "kit_probe_pkg"


class Said(list[str]):
    """What a command wrote."""

    @property
    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that holds one package with plugins, as pip installs it."""
    (tmp_path / f"{PACKAGE}.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    register(tmp_path, good=f"{PACKAGE}:Good")
    yield tmp_path
    sys.modules.pop(PACKAGE, None)


def register(site: Path, **plugins: str) -> None:
    info = site / f"{PACKAGE}-1.2.3.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text("[lbplugins]\n" + "".join(f"{name} = {value}\n" for name, value in plugins.items()))


def options(site: Path, text: str) -> Path:
    file = site / "options.yaml"
    file.write_text(text)
    return file


class TestList:
    def test_shows_version_contract_traits_and_options(self, site: Path, said: Said) -> None:
        list_plugins(said.append)

        assert f"good  ({PACKAGE} 1.2.3)  contract 1" in said
        assert "  traits: drain costly, observed every 2.5 s" in said
        assert "    path (required): where it lives" in said

    def test_says_why_one_cannot_be_used_and_shows_the_others(self, site: Path, said: Said) -> None:
        register(site, good=f"{PACKAGE}:Good", gone="no_such_module_at_all:X", absent=f"{PACKAGE}:Absent", raw=f"{PACKAGE}:NotYet")

        code = list_plugins(said.append)

        assert code == 1
        assert "cannot be loaded from no_such_module_at_all:X: ModuleNotFoundError" in said.text
        assert f"cannot be loaded from {PACKAGE}:Absent: AttributeError" in said.text
        assert "cannot be used: NotYet.apply is not implemented: write it" in said.text
        assert f"good  ({PACKAGE} 1.2.3)  contract 1" in said

    def test_a_module_that_exits_at_import_is_only_unusable(self, site: Path, said: Said) -> None:
        (site / "kit_probe_exits.py").write_text("raise SystemExit(3)")
        register(site, exits="kit_probe_exits:X")

        assert list_plugins(said.append) == 1
        assert "exits cannot be loaded from kit_probe_exits:X: SystemExit: 3" in said.text

    def test_gives_json(self, site: Path, said: Said) -> None:
        list_plugins(said.append, as_json=True)

        good = next(plugin for plugin in json.loads(said.text) if plugin["name"] == "good")
        assert good["version"] == "1.2.3"
        assert good["api_version"] == 1
        assert good["traits"] == ["drain", "costly"]
        assert {"name": "path", "is_required": True, "about": "where it lives"} in good["options"]
        assert good["problems"] == []


class TestNew:
    def test_writes_a_package_and_says_what_is_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
        monkeypatch.chdir(tmp_path)

        assert new("mine", None, said.append) == 0

        assert {file.name for file in (tmp_path / "lb-sidecar-mine").iterdir()} == {
            "mine_lb.py",
            "test_mine_lb.py",
            "pyproject.toml",
            "README.md",
        }
        assert "lb-sidecar plugin check mine" in said.text

    @pytest.mark.parametrize("name", ["", "Acme", "a-b", "../a", "class", "1a", "a\n", "é", "a" * 40, "a/b"])
    def test_refuses_a_name_that_cannot_be_one(self, name: str, tmp_path: Path, said: Said) -> None:
        assert new(name, tmp_path / "new", said.append) == 2

        assert "cannot name a plugin" in said.text
        assert not (tmp_path / "new").exists()

    def test_refuses_a_name_that_is_taken(self, site: Path, said: Said) -> None:
        assert new("good", site / "new", said.append) == 2
        assert f"registered by {PACKAGE} already" in said.text

    def test_never_writes_into_what_is_there(self, tmp_path: Path, said: Said) -> None:
        (tmp_path / "kept").write_text("mine")

        assert new("mine", tmp_path, said.append) == 2
        assert new("mine", tmp_path / "kept", said.append) == 2

        assert [file.name for file in tmp_path.iterdir()] == ["kept"]
        assert "name a new one" in said.text

    def test_says_when_it_cannot_write(self, tmp_path: Path, said: Said) -> None:
        (tmp_path / "file").write_text("")

        assert new("mine", tmp_path / "file" / "below", said.append) == 1
        assert "cannot write the template" in said.text


class TestCheck:
    def test_opens_looks_and_shows(self, site: Path, said: Said) -> None:
        file = options(site, 'plugin: good\npath: x\npools: {web: {a: "10.0.0.5:80 100", b: "[::1]:80"}}\n')

        assert check("good", file, said.append) == 0

        assert "web/a at 10.0.0.5:80: serving, operator ready, weight 100, steps of 1 %" in said
        assert "web/b at [::1]:80: serving, operator ready, weight 1, steps of 1 %" in said
        assert said[-1] == "ok: sees 2 servers in 1 pool"

    def test_without_options_says_what_is_wanted(self, site: Path, said: Said) -> None:
        assert check("good", None, said.append) == 0
        assert "give --options FILE with pools, path (required)" in said.text

    def test_takes_a_class_that_is_not_registered(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:Good", None, said.append) == 0

    def test_an_unknown_name_gets_a_hint(self, site: Path, said: Said) -> None:
        assert check("godo", None, said.append) == 2
        assert "no plugin 'godo': did you mean 'good'?" in said.text

    def test_names_everything_wrong_with_a_class(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:NotYet", None, said.append) == 1

        for wrong in (
            "apply is not implemented",
            "api_version is 7",
            "traits is NoneType",
            "aclose is not a coroutine",
            "Options is not a pydantic model",
        ):
            assert wrong in said.text

    @pytest.mark.parametrize(("value", "wrong"), [("Path", "is not a class derived from"), ("GOOD", "AttributeError")])
    def test_what_is_no_plugin_is_said(self, value: str, wrong: str, said: Said) -> None:
        assert check(f"pathlib:{value}", None, said.append) == 1
        assert wrong in said.text

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("path: x\npahts: y\n", "pahts: Extra inputs are not permitted"),
            ("pools: {web: {a: nowhere}}\npath: x\n", "'nowhere' is not HOST:PORT"),
            ("{}", "path: Field required"),
            ("- a\n", "must hold a mapping"),
            ("a: [\n", "is neither YAML nor JSON"),
            ("1: 2\n", "must hold a mapping"),
            ("", "must hold a mapping"),
        ],
    )
    def test_bad_options_are_wrong_use(self, text: str, wrong: str, site: Path, said: Said) -> None:
        assert check("good", options(site, text), said.append) == 2
        assert wrong in said.text

    def test_an_options_file_that_is_not_there_or_too_large(self, site: Path, said: Said) -> None:
        assert check("good", site / "nowhere", said.append) == 2
        assert check("good", options(site, "x: " + "y" * (1 << 20)), said.append) == 2
        assert "cannot read the options" in said.text
        assert "is larger than" in said.text

    def test_io_at_construction_is_wrong(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:Touches", None, said.append) == 1
        assert "os.listdir" in said.text

    def test_a_constructor_that_wants_more_is_wrong(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:Needs", None, said.append) == 1
        assert "raised TypeError" in said.text

    def test_a_balancer_that_cannot_be_asked_is_a_bad_answer(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:Away", options(site, "{}"), said.append) == 1
        assert "the balancer cannot be asked: nobody listens at /run/x.sock" in said.text
        assert "\x1b" not in said.text

    def test_any_other_exception_is_wrong(self, site: Path, said: Said) -> None:
        assert check(f"{PACKAGE}:Leaks", options(site, "{}"), said.append) == 1
        assert "BalancerError and nothing else, but it raised KeyError" in said.text

    def test_a_pool_that_is_not_there_is_a_bad_answer(self, site: Path, said: Said) -> None:
        file = options(site, 'pools: {web: {a: "10.0.0.5:80"}}\n')

        assert check(f"{PACKAGE}:ManyPools", file, said.append) == 0
        assert check(f"{PACKAGE}:ManyPools", file, said.append, pools=["web"]) == 0
        assert check(f"{PACKAGE}:ManyPools", file, said.append, pools=["web", "wbe"]) == 1
        assert "name one with --pool" in said.text
        assert "no servers in pool wbe" in said.text
