"""What the pages promise holds: links lead somewhere, examples load, commands exist, nothing is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sidecar.cli import build_parser
from sidecar.config.load import load
from sidecar.core.model import HoldName
from tests.deploy.pages import MARKER, PAGES, ROOT, Block, anchors, blocks, commands, links

OURS = [page for page in PAGES if page.parent.name != "changelog.d"]
OPERATIONS = ROOT / "docs" / "operations.md"
CONFIGURATIONS = [block for page in PAGES for block in blocks(page) if block.text.startswith(MARKER)]
FRAGMENT = re.compile(r"[a-z0-9-]+\.(added|changed|fixed|removed|security)\.md")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), f"{link} of {name_of(page)} leads nowhere"
        assert not fragment or fragment in anchors(target), f"{link} of {name_of(page)} names no heading"


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda b: name_of(b.page))
def test_every_whole_configuration_loads_without_a_problem(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "lb-sidecar.yaml"
    path.write_text(block.text)

    assert load(path).problems == ()


def test_there_are_configurations_to_load_in_the_pages_that_teach() -> None:
    assert {block.page.name for block in CONFIGURATIONS} >= {"README.md", "operations.md", "migration.md"}


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_every_command_in_a_page_is_one_that_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        try:
            build_parser().parse_args(words if len(words) > 1 else [*words, "--help"])  # a bare name in prose is a name only
        except SystemExit as end:
            assert end.code == 0, f"lb-sidecar {' '.join(words)} in {name_of(page)}: {capsys.readouterr().err}"


def test_the_pages_do_show_commands() -> None:
    shown = {words[0] for page in OURS for words in commands(page) if words}

    assert shown >= {"init", "check", "run", "status", "explain", "history", "drain", "ready", "freeze", "unfreeze", "release", "report"}


def rows(page: Path) -> str:
    """First columns of all tables."""
    return "\n".join(re.findall(r"^\| ([^|]+) \|", page.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("hold", list(HoldName))
def test_every_hold_has_its_row_with_what_to_do(hold: HoldName) -> None:
    table = OPERATIONS.read_text(encoding="utf-8").partition("## Every hold")[2].partition("\n## ")[0]
    found = re.findall(rf"^\| `{hold}` \| (.+) \| (.+) \|$", table, re.MULTILINE)

    assert len(found) == 1, f"{hold} needs one row in the table of holds of docs/operations.md"
    assert all(len(column) > 8 for column in found[0])


def metric_names() -> set[str]:
    """All names that core/samples.py publishes, read from its calls; a call that is written in a new way fails here."""
    tree = ast.parse((ROOT / "sidecar" / "core" / "samples.py").read_text(encoding="utf-8"))
    found: set[str] = set()
    loops = {name: loop for loop in ast.walk(tree) if isinstance(loop, ast.For) for name in _targets(loop)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        assert isinstance(call.func, ast.Name)
        if call.func.id == "Sample":
            if isinstance(call.args[0], ast.Constant):
                found.add(str(call.args[0].value).removeprefix("lbsidecar_"))
        elif call.func.id in ("_gauge", "_counter"):
            suffix = "_total" if call.func.id == "_counter" else ""
            found |= {name + suffix for name in _names(call.args[0], loops)}
        elif call.func.id == "_summary":
            found |= {f"{name}_latency_seconds" for name in _names(call.args[0], loops)}
    return found


def _targets(loop: ast.For) -> list[str]:
    return [node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)]


def _names(argument: ast.expr, loops: dict[str, ast.For]) -> set[str]:
    match argument:
        case ast.Constant(value=str(name)):
            return {name}
        case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(rest))]):
            return {f"{of}{rest}" for of in ("service", "instance")}
        case ast.Name(id=name) if isinstance(loops[name].iter, ast.Tuple):
            several = loops[name].iter
            assert isinstance(several, ast.Tuple)
            return {str(row.elts[0].value) for row in several.elts if isinstance(row, ast.Tuple) and isinstance(row.elts[0], ast.Constant)}
    raise AssertionError(f"core/samples.py:{argument.lineno}: this test cannot read the metric's name; teach it")


def test_every_metric_is_in_the_operators_table() -> None:
    known = set(re.findall(r"`([a-z_]+)`", rows(OPERATIONS)))

    names = metric_names()
    assert len(names) > 40, "the reader of core/samples.py finds too few"
    assert names - known == set()


def test_the_operators_table_names_no_metric_that_is_gone() -> None:
    table = OPERATIONS.read_text(encoding="utf-8").partition("## Every metric")[2].partition("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`([a-z_]+)`", row)}

    assert told - metric_names() == set()


def test_every_decision_page_has_its_parts_and_its_link() -> None:
    linked = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for number, page in enumerate(sorted((ROOT / "docs" / "decisions").glob("*.md")), 1):
        text = page.read_text(encoding="utf-8")

        assert page.name.startswith(f"{number:04}-"), f"{page.name}: the numbers have a gap or a double"
        assert re.match(rf"# {number}\. ", text)
        assert f"decisions/{page.name}" in linked, f"docs/architecture.md does not name {page.name}"
        for part in ("Question", "Decision", "Why", "Price", "What would change our mind"):
            assert f"**{part}.**" in text, f"{page.name} lacks {part}"


def test_changelog_fragments_are_named_by_their_rule() -> None:
    for path in (ROOT / "changelog.d").iterdir():
        assert path.name == "README.md" or FRAGMENT.fullmatch(path.name), f"{path.name}: see changelog.d/README.md"
        assert path.read_text(encoding="utf-8").strip()


def test_the_targets_that_the_readme_names_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        first or second
        for first, second in re.findall(
            r"^make ([a-z-]+)|`make ([a-z-]+)`", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text(), re.M
        )
    }

    assert named
    assert named <= targets
