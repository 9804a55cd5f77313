"""docs/faults.md, and the table of phrases in this folder's README: made from the files and from what was measured.

`python -m tests.scenarios.page` writes the phrases; the page is written by `make chaos`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.scenarios import words
from tests.scenarios.scenario import GROUPS, ROOT, ROWS, Real, Scenario

PAGE = ROOT / "docs" / "faults.md"
README = Path(__file__).parent / "README.md"
BEGIN = "<!-- phrases -->\n"
HEAD = """# Faults, and what becomes of them

Every way to fail that we know of, what we promise then, and what was measured. Written by `make chaos`, which plays each row and takes its
figures; `make test` plays the simulated ones each time and refuses a page that is older than its files. Each row is a file in
`tests/scenarios/rows/`, readable without knowing the code; its README says how to add one.

*Simulated*: the real core in virtual time between simulated instances, balancers, disk and hands, with the default policy. *Real*: real
instances, HAProxy or Nginx, and the sidecar as a daemon; the row's own timeline on several shapes of balancer, or tests that do the same.
Seconds are counted from the step before; those of real runs are from a machine that does other things meanwhile.
"""


def digest(scenario: Scenario) -> str:
    """Changes whenever the file does."""
    (path,) = ROWS.glob(f"{scenario.id}-*.yaml")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def row(scenario: Scenario, simulated: str, real: str, last_run: str) -> str:
    """One line of the table; `simulated`, `real`: what came out, where it runs."""
    worlds = scenario.worlds
    if scenario.waits_for:
        simulated = real = f"waits for {scenario.waits_for}"
        last_run = "–"
    if isinstance(worlds.SIM, str):
        simulated = _reason(worlds.SIM)
    if isinstance(worlds.REAL, str):
        real = _reason(worlds.REAL)
    cells = (scenario.id, scenario.title, scenario.promise, simulated, real, f"{last_run} `{digest(scenario)}`")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _reason(text: str) -> str:
    return f"– ({text.removeprefix('no, because ')})"


def figures(runs: Iterable[Mapping[str, float]]) -> str:
    """`s1 is out because 'refused' 0.17–0.31 s`: each expectation with its seconds over all these runs."""
    spread: dict[str, list[float]] = {}
    for run in runs:
        for what, seconds in run.items():
            spread.setdefault(what, []).append(seconds)
    return "; ".join(f"{_short(what)} {_seconds(min(found), max(found))}" for what, found in spread.items())


def _short(what: str) -> str:
    return re.sub(r" on (edge|web)\b|\bshop/", "", what.partition(": ")[2])


def _seconds(low: float, high: float) -> str:
    texts = [f"{s:.2f}" if s < 10 else f"{s:.0f}" for s in (low, high)]
    return f"{texts[0]} s" if texts[0] == texts[1] else f"{texts[0]}–{texts[1]} s"


def where(scenario: Scenario) -> str:
    """`3 shapes and 2 tests`: what a real run consists of."""
    real = scenario.worlds.REAL
    if not isinstance(real, Real):
        return ""
    counts = ((len(real.shapes), "shape"), (len(real.tests), "test"))
    return " and ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n)


def page(lines: Mapping[str, str]) -> str:
    """The whole page. `lines`: by id, in the order of the matrix."""
    parts = [HEAD]
    for letter, title in GROUPS.items():
        parts.append(f"\n## {title}\n\n| row | fault | promise | simulated | real | last run |\n|-|-|-|-|-|-|\n")
        parts += [f"{line}\n" for name, line in lines.items() if name.startswith(letter)]
    return "".join(parts)


def written() -> dict[str, str]:
    """The lines of the page as it stands, by id."""
    if not PAGE.exists():
        return {}
    return {found[1]: found[0] for found in re.finditer(r"^\| ([ILS]\d+[a-z]?) \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)}


def phrases() -> str:
    """The vocabulary as tables."""
    tables = []
    for title, rows in (("What happens", words.DEEDS), ("What is true", words.STATES)):
        lines = [f"| `{p.template}` | {p.meaning} | {'not yet' if p.waits else 'both' if p.real else 'SIM'} |" for p in rows]
        tables.append("\n".join([f"### {title}\n", "| phrase | meaning | worlds |", "|-|-|-|", *lines]))
    return "\n\n".join(tables) + "\n"


if __name__ == "__main__":
    README.write_text(README.read_text(encoding="utf-8").partition(BEGIN)[0] + BEGIN + "\n" + phrases(), encoding="utf-8")
