"""Plays every scenario (or those named) in all its worlds, prints a line each, and writes docs/faults.md. `make chaos`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import pytest

import sidecar
from tests.scenarios import page, sim
from tests.scenarios.judge import BrokenExpectation
from tests.scenarios.scenario import ROOT, Scenario, load_all

ON_REAL = "tests/scenarios/on_real.py::test_timeline"
WORKERS = "2"


@dataclass
class Tally:
    """What came of one scenario. `cases`: its real runs that have ended; `again`: those well only the second time."""

    scenario: Scenario
    simulated: str = ""
    cases: int = 0
    seconds: float = 0.0
    figures: list[dict[str, float]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    again: int = 0

    def wants(self, test: str) -> bool:
        """Is this test, by its id, one of ours?"""
        name = test.partition("[")[0]
        if name == ON_REAL:
            return test in self.own()
        return any(name == each or name.startswith(f"{each}::") for each in self.scenario.tests)

    def own(self) -> list[str]:
        return [f"{ON_REAL}[{self.scenario.id}-{shape}]" for shape in self.scenario.shapes]

    @property
    def is_bad(self) -> bool:
        return bool(self.broken) or (self.cases < len(self.own()) + len(self.scenario.tests))

    @property
    def real(self) -> str:
        if self.is_bad and not self.broken:
            return "**failed**: not all of it was run"
        if self.broken:
            return f"**failed**: {'; '.join(self.broken)}"
        told = page.figures(self.figures)
        return (
            f"{page.where(self.scenario)}, {self.cases} run{'s' if self.cases > 1 else ''}" + self._second() + (f": {told}" if told else "")
        )

    def _second(self) -> str:
        return f", {self.again} of them well only the second time" if self.again else ""


class Runs:
    """A pytest plugin that takes down how the real runs go."""

    def __init__(self, tallies: Sequence[Tally]) -> None:
        self._tallies = tallies

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            print(f"      {report.outcome} {report.nodeid} {report.duration:.1f} s", flush=True)
            for tally in (t for t in self._tallies if t.wants(report.nodeid)):
                self._take(tally, report)

    def _take(self, tally: Tally, report: pytest.TestReport) -> None:
        is_second = report.nodeid in tally.broken
        if is_second and report.passed:
            tally.broken.remove(report.nodeid)
            tally.again += 1
        tally.cases += report.when == "call" and not is_second
        tally.seconds += report.duration
        measured = {what: float(str(seconds)) for what, seconds in report.user_properties}
        tally.figures += [measured] if measured and report.nodeid in tally.own() else []
        if not report.passed and not is_second:
            tally.broken.append(report.nodeid)
            print(f"\n{tally.scenario.id}: {report.nodeid} {report.outcome}\n{report.longreprtext}", flush=True)


def simulate(tally: Tally) -> None:
    try:
        told = page.figures([sim.run(tally.scenario)])
    except BrokenExpectation as broken:
        tally.broken.append("in simulation")
        tally.simulated = "**failed**"
        print(broken)
    else:
        tally.simulated = told or "as promised"


def main(names: Sequence[str]) -> int:
    began = time.monotonic()
    tallies = [Tally(s) for s in load_all() if not names or s.id in names or s.row in names]
    for tally in (t for t in tallies if t.scenario.runs_sim):
        simulate(tally)
    tests = dict.fromkeys(test for t in tallies for test in (*t.own(), *t.scenario.tests))
    options = ["-n", WORKERS, "--dist", "worksteal", "-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *tests], plugins=[Runs(tallies)])) if tests else 0
    if second := [test for test in dict.fromkeys(test for t in tallies for test in t.broken) if "::" in test]:
        # Alone: a machine on which nothing can be started in time says nothing about us. The page tells of it.
        code = int(pytest.main([*options[4:], "-n", "0", *second], plugins=[Runs(tallies)]))
    for tally in tallies:
        print(_line(tally), flush=True)
    _write(tallies)
    bad = [t.scenario.id for t in tallies if t.is_bad]
    waiting = sum(bool(t.scenario.waits_for) for t in tallies)
    verdict = f"failed: {', '.join(bad)}" if bad else "all as promised"
    print(f"{len(tallies)} scenarios, {waiting} of them waiting, {verdict}; {(time.monotonic() - began) / 60:.1f} min")
    return 1 if bad or code else 0


def _line(tally: Tally) -> str:
    s = tally.scenario
    state = "WAITS" if s.waits_for else "BAD" if tally.is_bad else "ok"
    parts = [f"SIM {tally.simulated}" if tally.simulated else "", f"REAL {tally.real}, {tally.seconds:.0f} s" if tally.cases else ""]
    return f"{s.id:<5} {state:<5} {s.title}. " + "  ".join(filter(None, parts))


def _write(tallies: Sequence[Tally]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    run = f"{date.today()}, {sidecar.__version__}" + (f" ({commit})" if commit else "")
    lines = page.written() | {t.scenario.id: page.row(t.scenario, t.simulated, t.real, run) for t in tallies}
    page.PAGE.write_text(page.page({s.id: lines[s.id] for s in load_all() if s.id in lines}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
