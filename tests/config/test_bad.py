"""One mistake a file: exactly one problem, at its line, with its path and its cure. The expectation is in the file's head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.config import Severity, load

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))


def head(text: str, key: str) -> str:
    found = re.search(rf"^# {key}: ?(.*)$", text, re.MULTILINE)
    assert found is not None, f"the file does not say `# {key}:`"
    return found.group(1)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_one_mistake_is_one_problem_with_its_line_and_its_cure(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    line = next(number for number, written in enumerate(text.splitlines(), 1) if "# HERE" in written)

    loaded = load(path)

    assert len(loaded.problems) == 1, "\n".join(map(str, loaded.problems))
    (problem,) = loaded.problems
    assert (problem.line, problem.path, problem.severity.value) == (line, head(text, "path"), head(text, "severity")), str(problem)
    for words in head(text, "says").split(" | "):
        assert words in problem.message
    assert str(problem).isprintable() and len(problem.message) < 500
    assert (loaded.config is None) == (problem.severity is Severity.ERROR)
    assert loaded.exit_code == {"error": 2, "contradiction": 1, "advice": 0}[problem.severity]


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 45
