"""Imports go one way (docs/architecture.md), and the core touches nothing but values."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lower rooms first; a room imports only from earlier rows, never from a sibling in its own row.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"core"}),
    frozenset({"net", "journal", "store"}),
    frozenset({"discovery", "probes", "balancers", "publish", "web"}),
    frozenset({"config"}),
    frozenset({"supervise", "eventlog", "reconcile"}),
    frozenset({"desk"}),
    frozenset({"app", "demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# Each edge owns its options model, which any row above the edges' own may read to check a file; and the roots anybody may read.
FREE = frozenset({"", "__init__"})
IMPURE = frozenset(
    {
        "asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
        "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "urllib",
    }
)  # fmt: skip
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval"})


def _modules(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _row(room: str) -> int:
    for number, row in enumerate(ROWS):
        if room in row:
            return number
    raise AssertionError(f"sidecar/{room} is in no row of tests/test_architecture.py: decide where it belongs")


@pytest.mark.parametrize("path", _modules("sidecar"), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "sidecar").parts[0].removesuffix(".py")
    if room in FREE:
        return
    for line, module in _imports(path):
        if not module.startswith("sidecar."):
            continue
        other = _room(module)
        if other in (room, *FREE) or (ROOT / "sidecar" / f"{other}.py").exists() is (ROOT / "sidecar" / other).is_dir():
            continue  # our own room, the package itself, or a name rather than a module
        assert _row(other) < _row(room), f"{path.relative_to(ROOT)}:{line}: sidecar.{room} must not import {module}"


@pytest.mark.parametrize("path", _modules("lbplugins"), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_never_import_the_sidecar(path: Path) -> None:
    for line, module in _imports(path):
        assert module.split(".")[0] != "sidecar", f"{path.relative_to(ROOT)}:{line}: lbplugins must not import {module}"


@pytest.mark.parametrize("path", _modules("sidecar/core"), ids=lambda p: p.name)
def test_the_core_is_pure(path: Path) -> None:
    for line, module in _imports(path):
        first = module.split(".")[0]
        assert first not in IMPURE, f"{path.name}:{line}: the core must not import {module}"
        assert not module.startswith("lbplugins") or module.startswith("lbplugins.values"), f"{path.name}:{line}: {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path.name}:{node.lineno}: an await in the core is a bug"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"{path.name}:{node.lineno}: {node.func.id}() in the core"


def test_the_rule_would_catch_a_wrong_arrow() -> None:
    assert _row("core") < _row("net") < _row("web") < _row("config") < _row("reconcile") < _row("app") < _row("cli")
    with pytest.raises(AssertionError, match="in no row"):
        _row("utils")
