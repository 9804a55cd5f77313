"""Many runs in one table a fault, held against the thresholds. Pure."""

from __future__ import annotations

import statistics
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.faultlab.score import Score

THRESHOLDS = Path(__file__).with_name("thresholds.toml")
QUANTITIES = ("bad", "failed", "last_bad_s", "slow_pct", "returns", "false_ejections")
SUMMED = ("returns", "false_ejections")
"""Of these one is too many, whatever the median says."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One promise. `above`: the contestant whose median of the same fault is taken off first."""

    contestant: str
    fault: str
    quantity: str
    must: float
    goal: float
    above: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`value` None = not measured."""

    limit: Limit
    value: float | None

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "goal" if self.value <= self.limit.goal else "must" if self.value <= self.limit.must else "MISSED"

    def __str__(self) -> str:
        limit = self.limit
        value = "-" if self.value is None else f"{self.value:.3g}"
        than = f" above {limit.above}'s" if limit.above else ""
        bounds = f"must <= {limit.must:g}" + (f", goal {limit.goal:g}" if limit.goal != limit.must else "")
        return f"{limit.contestant}, {limit.fault}: {limit.quantity}{than} **{value}** ({bounds}): {self.word}"


Cells = Mapping[str, Mapping[str, Sequence[Score]]]
"""By fault, then by contestant: the runs that count."""


def counted(scores: Sequence[Score]) -> Cells:
    """Of the attempts at one run, the first that was not noisy, or else the last: each run counts once."""
    attempts: dict[tuple[str, str, int], list[Score]] = defaultdict(list)
    for each in scores:
        attempts[each.fault, each.contestant, each.round].append(each)
    cells: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for (fault, contestant, _), tries in sorted(attempts.items()):
        cells[fault][contestant].append(next((s for s in tries if not s.is_noisy), tries[-1]))
    return cells


def limits(file: Path = THRESHOLDS) -> Iterator[Limit]:
    for entry in tomllib.loads(file.read_text())["limit"]:
        for quantity in QUANTITIES:
            if quantity in entry:
                bound = entry[quantity]
                goal = bound.get("goal", bound["must"])
                above = entry.get("above", "") if quantity not in SUMMED else ""
                yield Limit(entry["contestant"], entry["fault"], quantity, bound["must"], goal, above)


def verdicts(cells: Cells, promised: Sequence[Limit]) -> list[Verdict]:
    """Only of faults that were played."""
    return [Verdict(limit, _value(cells[limit.fault], limit)) for limit in promised if limit.fault in cells]


def _value(rows: Mapping[str, Sequence[Score]], limit: Limit) -> float | None:
    runs, native = rows.get(limit.contestant, ()), rows.get(limit.above, ())
    if not runs or (limit.above and not native):
        return None
    values = [float(getattr(s, limit.quantity) or 0) for s in runs]
    if limit.quantity in SUMMED:
        return sum(values)
    return statistics.median(values) - (statistics.median(float(getattr(s, limit.quantity)) for s in native) if native else 0.0)


HEAD = (
    "| contestant | retries | runs | bad | least-most | failed | p99 ms | last bad s | share at end % | others out | our out s | "
    "false ejections | returns | bad after |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(rows: Mapping[str, Sequence[Score]], retries: Callable[[str], bool]) -> str:
    """One fault: a line a contestant, fewest bad requests first; medians, but counts of others out and false ejections are sums."""
    ordered = sorted(rows.items(), key=lambda row: (_median(row[1], "bad"), row[0]))
    return "\n".join([HEAD, *(_line(name, runs, retries(name)) for name, runs in ordered)])


def _line(name: str, runs: Sequence[Score], retries: bool) -> str:
    bad = [s.bad for s in runs]
    noisy = sum(s.is_noisy for s in runs)
    outs = [s.out_s for s in runs if s.out_s is not None]
    is_ours = runs[0].ejections is not None
    ours = (
        f"{statistics.median(outs):.2f}" if outs else "never" if is_ours else "",
        str(sum(s.false_ejections or 0 for s in runs)) if is_ours else "",
        str(sum(s.returns or 0 for s in runs)) if is_ours else "",
        f"{_median(runs, 'bad_after_return'):g}" if is_ours else "",
    )
    cells = (
        name,
        "yes" if retries else "no",
        f"{len(runs)}" + (f", {noisy} noisy" if noisy else ""),
        f"{statistics.median(bad):g}",
        f"{min(bad)}-{max(bad)}",
        f"{_median(runs, 'failed'):g}",
        f"{_median(runs, 'p99_ms'):,.0f}",
        f"{_median(runs, 'last_bad_s'):.2f}",
        f"{_median(runs, 'share_end_pct'):.1f}",
        str(sum(s.others_out for s in runs)),
        *ours,
    )
    return f"| {' | '.join(cells)} |"


def ranks(rows: Mapping[str, Sequence[Score]], retries: Callable[[str], bool]) -> Iterator[str]:
    """Where each of ours stands among those with the same retry setting; within noise = the ranges of bad requests overlap."""
    for name, runs in rows.items():
        if "+us" not in name:
            continue
        field = {n: r for n, r in rows.items() if retries(n) == retries(name) and "+us" not in n}
        if not field:
            continue
        best = min(field, key=lambda n: _median(field[n], "bad"))
        mine, least = _median(runs, "bad"), _median(field[best], "bad")
        place = 1 + sum(_median(r, "bad") < mine for r in field.values())
        overlaps = min(s.bad for s in runs) <= max(s.bad for s in field[best])
        word = "first" if mine <= least else "within noise of the first" if overlaps else f"number {place}"
        yield f"{name}: {word} of {len(field) + 1} {'with' if retries(name) else 'without'} retries (best peer: {best}, {least:g})"


def noise(scores: Sequence[Score]) -> str:
    """How restless the machine was, and what was played again for it."""
    late = [s.late_p99_ms for s in scores]
    cells = counted(scores)
    counting = [s for rows in cells.values() for runs in rows.values() for s in runs]
    restless = sum(s.is_noisy for s in counting)
    aside = sum(s.false_ejections or 0 for s in scores) - sum(s.false_ejections or 0 for s in counting)
    return (
        f"{len(counting)} runs count; {len(scores) - len(counting)} noisy ones were played again (false ejections in those: {aside}), "
        f"{restless} that count are noisy still; the generator's own lateness, p99 of a run: median {statistics.median(late):.1f} ms, "
        f"worst {max(late):.0f} ms"
    )


def _median(runs: Sequence[Score], quantity: str) -> float:
    return float(statistics.median(getattr(s, quantity) for s in runs))
