"""What a plugin author is given works as it is written: the template, the page, the example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sidecar.cli.plugin import new

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "plugin_template"
PAGE = ROOT / "docs" / "writing-a-plugin.md"
RULES_AT_LEAST = 36


def run_pytest(folder: Path, *arguments: str) -> str:
    """Runs the tests in a folder as its author would, and gives what pytest said; fails if they did."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the kit needs nothing but pytest
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def passed(said: str) -> int:
    found = re.search(r"(\d+) passed", said)
    assert found, said
    return int(found[1])


def blocks(file_name: str) -> str:
    """All blocks of the page that belong to this file, in their order, as one text."""
    return "\n".join(re.findall(rf"^```\w+ {re.escape(file_name)}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def test_the_example_is_what_plugin_new_writes(tmp_path: Path) -> None:
    assert new("acme", tmp_path / "acme", lambda line: None) == 0

    written = {file.name: file.read_text() for file in (tmp_path / "acme").iterdir()}
    assert written == {file.name: file.read_text() for file in EXAMPLE.iterdir() if file.is_file()}


def test_the_example_conforms() -> None:
    assert passed(run_pytest(EXAMPLE)) >= RULES_AT_LEAST


def test_a_new_plugin_of_any_name_conforms(tmp_path: Path) -> None:
    assert new("my_box2", tmp_path / "box", lambda line: None) == 0

    assert passed(run_pytest(tmp_path / "box")) >= RULES_AT_LEAST
    assert "class MyBox2(Balancer)" in (tmp_path / "box" / "my_box2_lb.py").read_text()


def test_the_page_leads_to_a_conforming_plugin(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "lines_lb.py", "test_lines_lb.py"):
        (tmp_path / name).write_text(blocks(name))

    assert passed(run_pytest(tmp_path)) >= RULES_AT_LEAST - 2  # it has no weights to be edited


def test_the_page_catches_a_mistake(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "lines_lb.py", "test_lines_lb.py"):
        (tmp_path / name).write_text(blocks(name).replace("servers[change.ref] = replace(now, ours=change.want)", "pass"))

    with pytest.raises(AssertionError, match="asked for none on our axis, observe shows full"):
        run_pytest(tmp_path, "-k", "test_ejects_and_returns")


def test_the_page_and_the_example_register_what_they_name() -> None:
    page = tomllib.loads(blocks("pyproject.toml"))
    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())

    assert page["project"]["entry-points"]["lbplugins"] == {"lines": "lines_lb:Lines"}
    assert "class Lines(Balancer)" in blocks("lines_lb.py")
    assert example["project"]["entry-points"]["lbplugins"] == {"acme": "acme_lb:Acme"}
    assert "class Acme(Balancer)" in (EXAMPLE / "acme_lb.py").read_text()
