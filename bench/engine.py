"""What probing costs: the whole sidecar against every peer's own checker, in one run. `python -m bench.engine`.

All ask the same addresses of 127.0.0.0/8, where one C program answers and counts; cost is the kernel's accounting of the prober's
processes, divided by what was *answered*: nothing depends on anybody's own counters. Probers take turns, round after round; a cell shows
the median of the rounds and least to most. `others`: processors that neither prober nor responder used; when it is far from 0, the machine
was not ours. `fresh`: new connections a probe. Ratios are medians by medians, of this run only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from bench.daemon import NeverHappenedError
from bench.engine_cost import busy_s, cost, pin
from bench.engine_lateness import lateness
from bench.engine_plot import Bar, Panel, draw
from bench.floor import FloorError, Responder, ask_once, compile_all, raise_file_limit
from bench.peers import How, Job, Prober, floor
from bench.peers.checkers import probers
from bench.peers.install import install
from bench.peers.ours import Sidecar, mixed, sidecar
from bench.sketch import hour_bytes
from sidecar.demo import stage

PAGE, PICTURE = Path("performance.md"), Path("pictures") / "probing.svg"
"""In the folder of the docs."""
BEGIN, END = "<!-- bench-engine: written by `python -m bench.engine --doc`; edits are lost -->", "<!-- /bench-engine -->"
OURS = "lb-sidecar"
WARM_WITHIN_S = 20.0
WARM = 0.9
"""Warm = so much of the offered rate is answered; who never gets there is measured as he is."""
MIXING = 25
"""Intervals until our own jitter has spread what started together; an hour later nobody would see the start any more."""
MIXING_MOST_S = 40.0
STEPS = (5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 60_000, 80_000)
"""Probes a second offered when the most is sought."""
SUSTAINED = 0.95
MOST_TARGETS = 1000
SLOW_US = 200
RECORDED_S = 10.0
"""The window of the percentiles that are looked up: nothing of the start is in it then, and enough for a p99."""
FAIL_FROM = 248
"""Three of each 250 addresses; those behind TLS are called by another name and do well."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One window of one prober. `rate`: probes a second, of those `offered`. `core`, `responder`, `others`: processors used.

    The last ones only where the cell asks for them. `hour_mib`: resident, and what an hour's percentiles of each instance add.
    """

    rate: float
    offered: float
    cpu_us: float
    core: float
    resident_mib: float
    fresh: float
    responder: float
    others: float
    late_ms: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    hour_mib: float | None = None

    @property
    def is_sustained(self) -> bool:
        return self.rate >= SUSTAINED * self.offered


@dataclass(frozen=True, slots=True)
class Setting:
    """How this run measures."""

    built: Path
    window_s: float
    mixing_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a cell."""

    name: str
    measure: Callable[[Setting], Sample]


Results = Mapping[str, Sequence[Sample]]
Told = tuple[str, Results]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a cell must show; `value` of its results, None = cannot be said. `at_least`: more is better."""

    what: str
    value: Callable[[Results], float | None]
    must: float
    goal: float
    at_least: bool = False

    def verdict(self, found: float) -> str:
        return "goal" if self._is_within(found, self.goal) else "must" if self._is_within(found, self.must) else "MISSED"

    def _is_within(self, found: float, limit: float) -> bool:
        return found >= limit if self.at_least else found <= limit


@dataclass(frozen=True, slots=True)
class Cell:
    """One table. `field`: what its picture shows; "" = nothing."""

    name: str
    title: str
    entries: Sequence[Entry]
    aims: Sequence[Aim]
    field: str = "cpu_us"


# ---- one measurement ----


def steady(
    prober: Prober,
    targets: int,
    interval_s: float,
    *,
    delay_us: int = 0,
    pinned: bool = False,
    at_length: bool = False,
    fail_from: int = 256,
) -> Entry:
    """Asked at a fixed rate. `delay_us`: of each answer, and then what ours recorded of it is looked up.

    `at_length`: of ours also how late it was, and its memory after an hour. `fail_from`: the last bytes of addresses that fail.
    """

    def measure(setting: Setting) -> Sample:
        with tempfile.TemporaryDirectory(prefix="lbs-") as folder:
            responder = Responder(setting.built, Path(folder), delay_us=delay_us, fail_from=fail_from)
            try:
                job = Job(responder.asked(targets), interval_s, Path(folder), setting.built)
                return _asked(setting, prober, job, responder, pinned, at_length, recorded=bool(delay_us))
            finally:
                responder.stop()

    return Entry(prober.name, measure)


def _asked(setting: Setting, prober: Prober, job: Job, responder: Responder, pinned: bool, at_length: bool, *, recorded: bool) -> Sample:
    offered = min(len(job.asked) / job.interval_s, prober.most)
    running = prober.start(job)
    try:
        if pinned:
            pin(running.pid, 0)
            pin(responder.pid, min(1, (os.cpu_count() or 1) - 1))
        _warm_up(responder, offered)
        if isinstance(running, Sidecar) and job.interval_s > 0.25:
            time.sleep(min(MIXING * job.interval_s, setting.mixing_s))
        time.sleep(RECORDED_S if recorded else setting.window_s / 4)
        began = time.monotonic()
        sample = _window(running.pid, responder, setting.window_s, offered)
        ended = time.monotonic()
        if not running.is_alive:
            raise FloorError(f"{prober.name} has ended: {_tail(job.folder / 'log')}")
        if recorded and isinstance(running, Sidecar):
            sample = replace(sample, p50_us=_recorded(running, "p50"), p99_us=_recorded(running, "p99"))
    finally:
        running.stop()
    if at_length and isinstance(running, Sidecar):
        hour_mib = sample.resident_mib + len(job.asked) * hour_bytes(1 / job.interval_s) / (1 << 20)
        sample = replace(sample, late_ms=_p(lateness(running.recorder, began, ended), 0.99, 1e3), hour_mib=hour_mib)
    return sample


def _warm_up(responder: Responder, offered: float) -> None:
    deadline, step_s = time.monotonic() + WARM_WITHIN_S, 0.5
    while time.monotonic() < deadline:
        before = responder.counts()
        time.sleep(step_s)
        if responder.counts().since(before).requests >= WARM * offered * step_s:
            return


def _window(pid: int, responder: Responder, seconds: float, offered: float) -> Sample:
    used, answering, busy, counts, began = cost(pid), cost(responder.pid), busy_s(), responder.counts(), time.monotonic()
    time.sleep(seconds)
    found, took = responder.counts().since(counts), time.monotonic() - began
    after = cost(pid)
    cpu_s, answering_s = after.since(used), cost(responder.pid).since(answering)
    probes = max(found.requests, 1)
    return Sample(
        rate=found.requests / took,
        offered=offered,
        cpu_us=cpu_s / probes * 1e6,
        core=cpu_s / took,
        resident_mib=after.resident_bytes / (1 << 20),
        fresh=found.accepted / probes,
        responder=answering_s / took,
        others=max(0.0, (busy_s() - busy - cpu_s - answering_s) / took),
    )


def _recorded(running: Sidecar, quantile: str) -> float | None:
    """us: the middle, over the services, of what the API tells of the last ten seconds; None where nothing means anything yet."""
    asked = [running.daemon.ask(f"/api/v1/services/{name}/latency?window=10s&source=probe") for name in running.services]
    values = [value for status, found in asked if status == 200 and (value := found["service"][quantile]["value"]) is not None]
    return statistics.median(values) * 1e6 if values else None


def one_at_a_time(targets: int) -> Entry:
    """What a careful single prober sees of the same instances, nothing else under way."""

    def measure(setting: Setting) -> Sample:
        with tempfile.TemporaryDirectory(prefix="lbs-") as folder:
            responder = Responder(setting.built, Path(folder), delay_us=SLOW_US)
            try:
                took = ask_once(setting.built, responder.asked(targets), round(setting.window_s * 1000))
            finally:
                responder.stop()
        return Sample(1000.0, 1000.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, p50_us=_p(took, 0.5, 1e6), p99_us=_p(took, 0.99, 1e6))

    return Entry("one at a time", measure)


def most(prober: Prober) -> Entry:
    """The highest of STEPS of which SUSTAINED is answered, on one processor, the responder on another."""

    def measure(setting: Setting) -> Sample:
        best: Sample | None = None
        for offered in STEPS:
            sample = steady(prober, MOST_TARGETS, MOST_TARGETS / offered, pinned=True).measure(setting)
            if best is not None and not sample.is_sustained:
                return best
            best = sample
        assert best is not None, "there are steps"
        return best

    return Entry(prober.name, measure)


def _p(values: Sequence[float], share: float, scale: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * scale if values else None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:].strip() if log.exists() else "it said nothing"


# ---- the cells ----


def middle(samples: Sequence[Sample], field: str) -> float | None:
    """The median of a field; None where no sample has it."""
    found = [value for sample in samples if (value := getattr(sample, field)) is not None]
    return statistics.median(found) if found else None


def ratio(field: str, one: str, other: str) -> Callable[[Results], float | None]:
    """One row's median by the other's."""

    def value(results: Results) -> float | None:
        a, b = middle(results.get(one, ()), field), middle(results.get(other, ()), field)
        return a / b if a is not None and b else None

    return value


def of(field: str, name: str, scale: float = 1.0) -> Callable[[Results], float | None]:
    def value(results: Results) -> float | None:
        found = middle(results.get(name, ()), field)
        return None if found is None else found * scale

    return value


def cells() -> list[Cell]:
    """Every table, with those peers that this machine has."""
    here = {prober.name: prober for prober in (*probers(), *(make(how) for make in (floor, sidecar) for how in ("kept", "fresh")))}
    ours: Mapping[How, str] = {how: f"{OURS} ({how})" for how in ("kept", "fresh")}

    def rows(names: Sequence[str], targets: int, interval_s: float, *, at_length: bool = False) -> list[Entry]:
        return [steady(here[name], targets, interval_s, at_length=at_length) for name in names if name in here]

    def versus(how: How, other: str, must: float, goal: float) -> Aim:
        return Aim(f"CPU per probe vs {other}", ratio("cpu_us", ours[how], other), must, goal)

    kept, fresh = ours["kept"], ours["fresh"]
    all_kept = (kept, "C floor (kept)", "Envoy (kept)", "Caddy", "HAProxy 2.8", "HAProxy 2.6")
    return [
        Cell(
            "kept",
            "1,000 targets, 10 times a second each, connections kept (HAProxy has only fresh ones)",
            rows(all_kept, 1000, 0.1),
            [
                versus("kept", "Envoy (kept)", 0.85, 0.6),
                versus("kept", "HAProxy 2.8", 0.6, 0.4),
                versus("kept", "C floor (kept)", 2.6, 1.8),
            ],
        ),
        Cell(
            "fresh",
            "1,000 targets, 10 times a second each, a new connection for each probe",
            rows((fresh, "C floor (fresh)", "HAProxy 2.8", "HAProxy 2.6", "Envoy (fresh)", "Traefik"), 1000, 0.1),
            [
                versus("fresh", "HAProxy 2.8", 1.35, 1.15),
                versus("fresh", "HAProxy 2.6", 1.35, 1.15),
                versus("fresh", "C floor (fresh)", 1.5, 1.3),
            ],
        ),
        Cell(
            "calm",
            "1,000 targets, once a second each",
            rows((*all_kept, "Envoy (fresh)", "Traefik", "blackbox exporter"), 1000, 1.0, at_length=True),
            [
                versus("kept", "Envoy (kept)", 1.0, 0.75),
                Aim("memory after an hour, 1,000 instances, MiB", of("hour_mib", kept), 90, 60),
            ],
        ),
        Cell(
            "many",
            "10,000 targets, once a second each, connections kept (HAProxy's fresh)",
            rows(all_kept, 10_000, 1.0, at_length=True),
            [
                Aim("share of a core, %", of("core", kept, 100), 40, 25),
                Aim("lateness of a start, p99 ms", of("late_ms", kept), 20, 5),
                Aim("memory after an hour, 10,000 instances, MiB", of("hour_mib", kept), 250, 120),
            ],
        ),
        Cell(
            "most",
            "the most probes a second on one core, connections kept",
            [most(here[kept]), most(here["C floor (kept)"])],
            [Aim("probes a second", of("rate", kept), 20_000, 40_000, at_least=True)],
            field="rate",
        ),
        Cell(
            "latency",
            f"what is recorded of an answer that takes {SLOW_US} us, at 10,000 probes a second",
            [steady(here[kept], 1000, 0.1, delay_us=SLOW_US), one_at_a_time(100)],
            [
                Aim("recorded p50 vs one at a time", ratio("p50_us", kept, "one at a time"), 3, 1.3),
                Aim("recorded p99 vs one at a time", ratio("p99_us", kept, "one at a time"), 3, 1.5),
            ],
            field="p99_us",
        ),
        Cell(
            "spread",
            "5,000 probes a second to 100 targets, and to 10,000",
            [
                Entry("100 targets", steady(here[kept], 100, 0.02).measure),
                Entry("10,000 targets", steady(here[kept], 10_000, 2.0).measure),
            ],
            [Aim("CPU per probe, 10,000 vs 100 targets", ratio("cpu_us", "10,000 targets", "100 targets"), 1.2, 1.0)],
        ),
        Cell(
            "mixed",
            "as kept, but 20 % must answer a certain JSON, 10 % are asked over TLS, 0.9 % fail",
            [steady(mixed(), 1000, 0.1, fail_from=FAIL_FROM), steady(here[kept], 1000, 0.1)],
            [Aim("CPU per probe vs plain ones", ratio("cpu_us", mixed().name, kept), 1.5, 1.5)],
        ),
    ]


# ---- telling ----

COLUMNS: Sequence[tuple[str, str, int]] = (
    ("rate", "probes/s", 0),
    ("offered", "offered", 0),
    ("cpu_us", "us/probe", 1),
    ("core", "core", 3),
    ("resident_mib", "MiB", 0),
    ("fresh", "fresh", 2),
    ("responder", "resp.", 2),
    ("others", "others", 2),
    ("late_ms", "late p99 ms", 2),
    ("p50_us", "p50 us", 0),
    ("p99_us", "p99 us", 0),
    ("hour_mib", "MiB, 1 h", 0),
)


def table(cell: Cell, results: Results) -> str:
    """Markdown: medians, the cost with its least and most, our cost as a share of each row's; in brackets where that one fell behind."""
    shown = [(f, head, digits) for f, head, digits in COLUMNS if any(middle(r, f) is not None for r in results.values())]
    first = next((name for name in results if name.startswith(OURS)), None)
    lines = [
        f"**{cell.name}**: {cell.title}",
        "",
        "| | " + " | ".join(head for _, head, _ in shown) + " | least-most us | ours / its |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for name, samples in results.items():
        values = [middle(samples, field) for field, _, _ in shown]
        texts = ["" if value is None else f"{value:,.{digits}f}" for value, (_, _, digits) in zip(values, shown, strict=True)]
        costs = [sample.cpu_us for sample in samples]
        share = ratio("cpu_us", first, name)(results) if first is not None and first != name else None
        shown_share = "" if share is None else f"{share:.2f}" if keeps_up(results, name) else f"({share:.2f})"
        lines.append(f"| {name} | {' | '.join(texts)} | {min(costs):.1f}-{max(costs):.1f} | {shown_share} |")
    return "\n".join([*lines, "", *judged(cell, results)])


def judged(cell: Cell, results: Results) -> Iterator[str]:
    """A line an aim."""
    for aim in cell.aims:
        found = aim.value(results)
        limits = f"must {'>=' if aim.at_least else '<='} {aim.must:,g}, goal {aim.goal:,g}"
        short = " (of few probes: it did not keep up)" if not keeps_up(results) else ""
        yield f"- {aim.what}: " + (
            f"not measured ({limits})" if found is None else f"**{found:,.3g}** ({limits}): {aim.verdict(found)}{short}"
        )


def keeps_up(results: Results, who: str = OURS) -> bool:
    """Whether they made the probes they were asked to make, in most rounds: a cost at half the rate is another thing's cost."""
    found = [sample.is_sustained for name, samples in results.items() if name.startswith(who) for sample in samples]
    return 2 * sum(found) > len(found)


def panel(cell: Cell, results: Results) -> Panel:
    """Its picture."""
    units = {"cpu_us": "CPU us a probe", "rate": "probes a second", "p99_us": "recorded p99, us"}
    bars = []
    for name, samples in results.items():
        values = [value for sample in samples if (value := getattr(sample, cell.field)) is not None]
        if values:
            bars.append(Bar(name, values, statistics.median(values)))
    return Panel(f"{cell.title}: {units[cell.field]}", bars)


def missed(cell: Cell, results: Results, margin: float) -> list[str]:
    """Aims missed beyond noise: even our best round by the others' worst is over `margin` times what must be.

    Nothing where others kept us from what we were asked to do: the cost of what stands still anyway is then shared by too few probes.
    """
    if not keeps_up(results) and any(sample.others > OTHERS_MOST for samples in results.values() for sample in samples):
        print(f"{cell.name}: this machine was busy with something else: not judged")
        return []
    wrong = []
    for aim in cell.aims:
        best = aim.value({name: [_extreme(rows, min if name.startswith(OURS) else max)] for name, rows in results.items() if rows})
        if best is not None and not aim.at_least and best > aim.must * margin:
            wrong.append(f"{cell.name}: {aim.what}: {best:.2f} at best, {aim.must} x {margin:g} allowed")
    return wrong


def _extreme(samples: Sequence[Sample], pick: Callable[[list[float]], float]) -> Sample:
    """The least, or the most, of each field."""
    values = {each.name: [v for sample in samples if (v := getattr(sample, each.name)) is not None] for each in fields(Sample)}
    return replace(samples[0], **{name: pick(found) for name, found in values.items() if found})


def load_line() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"


# ---- a run ----


def run(cell: Cell, setting: Setting, rounds: int) -> dict[str, list[Sample]]:
    """Everybody once a round, each round beginning with another; who cannot be measured is said, and left out."""
    results: dict[str, list[Sample]] = {entry.name: [] for entry in cell.entries}
    for number in range(rounds):
        start = number % len(cell.entries)
        for entry in (*cell.entries[start:], *cell.entries[:start]):
            try:
                sample = entry.measure(setting)
            except (FloorError, NeverHappenedError, stage.StageError, ProcessLookupError) as error:
                print(f"{cell.name}: {entry.name}: {error}", file=sys.stderr, flush=True)
                continue
            results[entry.name].append(sample)
            print(f"  {cell.name} {number + 1}/{rounds} {entry.name:20} {_short(sample)}", file=sys.stderr, flush=True)
    return {name: samples for name, samples in results.items() if samples}


def _short(sample: Sample) -> str:
    found = [(head, getattr(sample, field), digits) for field, head, digits in COLUMNS]
    return "  ".join(f"{head} {value:,.{digits}f}" for head, value, digits in found if value is not None)


def write(path: Path, when: str, results: Mapping[str, Results]) -> None:
    """Every sample, as JSON; what the file holds of other cells stays."""
    before = json.loads(path.read_text()) if path.exists() else {}
    fresh = {cell: {"when": when, "rows": {n: [asdict(s) for s in r] for n, r in rows.items()}} for cell, rows in results.items()}
    path.write_text(json.dumps({**before, **fresh}, indent=1) + "\n")


def read(path: Path) -> dict[str, Told]:
    """What `write` wrote: by cell, when and how it was measured, and its rows."""
    told = json.loads(path.read_text())
    return {cell: (it["when"], {n: [Sample(**s) for s in rows] for n, rows in it["rows"].items()}) for cell, it in told.items()}


def document(told: Mapping[str, Told], docs: Path) -> None:
    """Tables into the page, between the two marks it must have, and the picture beside it."""
    shown = [(cell, *told[cell.name]) for cell in cells() if cell.name in told]
    page = (docs / PAGE).read_text()
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise FloorError(f"{docs / PAGE} has no place for the tables: a line {BEGIN} and a line {END}")
    tables = "\n\n".join(f"{table(cell, rows)}\n\n{_rounds(rows)}, {when}." for cell, when, rows in shown)
    (docs / PAGE).write_text(f"{head}{BEGIN}\n{tables}\n{END}{tail}")
    (docs / PICTURE).parent.mkdir(exist_ok=True)
    (docs / PICTURE).write_text(draw([panel(cell, rows) for cell, _, rows in shown if cell.field]))


def _rounds(rows: Results) -> str:
    return f"{max(len(samples) for samples in rows.values())} rounds"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each cell (5)")
    parser.add_argument("--window", type=float, default=4.0, metavar="S", help="seconds measured (4)")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells only")
    parser.add_argument("--quick", action="store_true", help="kept and fresh against the C floor and HAProxy; 1 = far beyond what must be")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, as JSON; other cells in it stay")
    parser.add_argument("--tell", type=Path, metavar="FILE", help="measure nothing: the tables of what --json wrote")
    parser.add_argument("--doc", type=Path, metavar="DOCS", help="with --tell: tables and picture into this folder's performance.md, too")
    asked = parser.parse_args()
    if asked.doc is not None and asked.tell is None:
        parser.error("--doc goes with --tell: measure with --json FILE first")
    if asked.tell is not None:
        return tell(read(asked.tell), asked.doc)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    raise_file_limit(12_000)
    if not asked.quick:
        install(lambda line: print(line, file=sys.stderr, flush=True))
    known = quick_cells() if asked.quick else cells()
    chosen = [cell for cell in known if not asked.only or cell.name in asked.only]
    if asked.rounds < 1 or not chosen or len(chosen) < len(set(asked.only or ())):
        parser.error(f"--rounds is at least 1, and the cells are: {' '.join(cell.name for cell in known)}")
    with tempfile.TemporaryDirectory(prefix="lbs-") as folder:
        compile_all(Path(folder))
        if asked.quick:
            return quick(chosen, Setting(Path(folder), 1.5, 0.0), min(asked.rounds, 3))
        return measure_all(chosen, Setting(Path(folder), asked.window, MIXING_MOST_S), asked.rounds, asked.json)


def measure_all(chosen: Sequence[Cell], setting: Setting, rounds: int, file: Path | None) -> int:
    print(f"probing: {rounds} rounds of {setting.window_s:g} s, {load_line()}\n", flush=True)
    for cell in chosen:
        results = run(cell, setting, rounds)
        print(table(cell, results) + "\n", flush=True)
        if file is not None and results:
            write(file, load_line(), {cell.name: results})
    print(f"at the end {load_line()}")
    return 0


def tell(told: Mapping[str, Told], docs: Path | None) -> int:
    for cell in cells():
        if cell.name in told:
            print(table(cell, told[cell.name][1]) + "\n")
    if docs is not None:
        document(told, docs)
    return 0


QUICK_MARGIN, OTHERS_MOST = 2.0, 0.3


def quick_cells() -> list[Cell]:
    """The two that matter most, against those peers that the tests install."""
    names = ("C floor", "HAProxy", OURS)
    found = [cell for cell in cells() if cell.name in ("kept", "fresh")]
    return [Cell(c.name, c.title, [e for e in c.entries if e.name.startswith(names)], c.aims) for c in found]


def quick(chosen: Sequence[Cell], setting: Setting, rounds: int) -> int:
    """0, or 1 where something is so far beyond what must be that noise alone does not explain it."""
    wrong: list[str] = []
    for cell in chosen:
        results = run(cell, setting, rounds)
        print(table(cell, results) + "\n", flush=True)
        wrong += missed(cell, results, QUICK_MARGIN)
    print("\n".join(wrong) if wrong else "within a generous margin")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
