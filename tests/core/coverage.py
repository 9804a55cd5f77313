"""The page that says which judgement has met which fault and which guard in random schedules, and in how many of them."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.core.model import HoldName, Judgement

DONE = ("eject", "return")

_HEAD = """\
# What the random schedules have covered

For each judgement: after which fault (a row) which hold kept something from being done, or what was done (a column), and in how many
schedules. The fault is the last that struck before; many last longer than until the next. Written by `make coverage` from seeds {seeds}:
{schedules:,} schedules, {facts:,} facts, {cells:,} different cells. What a fault is, its method in `tests/core/schedules.py` says; what
a hold is, [operations](operations.md#every-hold).
"""


def page(covered: Mapping[tuple[str, str, str], int], seeds: str, schedules: int, facts: int) -> str:
    """The whole page. `covered`: (judgement, fault, hold or act) -> in how many schedules."""
    parts = [_HEAD.format(seeds=seeds, schedules=schedules, facts=facts, cells=len(covered))]
    for judgement in Judgement:
        mine = {(fault, what): count for (judged, fault, what), count in covered.items() if judged == judgement}
        if mine:
            parts.append(_table(judgement, mine))
    holds = {what for _, _, what in covered}
    missing = [name.value for name in HoldName if name.value not in holds]
    if missing:
        parts.append(f"Never held here: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _table(judgement: str, mine: Mapping[tuple[str, str], int]) -> str:
    faults = sorted({fault for fault, _ in mine})
    order = [*DONE, *(name.value for name in HoldName)]
    columns = [what for what in order if any((fault, what) in mine for fault in faults)]
    rows = [[fault.replace("_", " "), *(f"{mine[fault, what]:,}" if (fault, what) in mine else "" for what in columns)] for fault in faults]
    lines = [["fault", *(what.replace("_", " ") for what in columns)], ["-"] * (len(columns) + 1), *rows]
    return "\n".join([f"## {judgement.capitalize()}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


__all__ = ["page"]
