"""The fault lab: `python -m bench.faultlab`. Every balancer's own ways and ours, the same faults, the same load, in one sitting.

A run: instances (processes) as usual; a fresh contestant in front of them; open-loop load; after 4 to 5 s the fault; 12 s observed.
Within a round every contestant meets each fault at the same phase and on the same instance. Bad = not a whole 200, or later than 100 ms
after the request was due. Runs in which the generator itself was late, or requests were bad before the fault, are played again, and told.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.daemon import NeverHappenedError
from bench.faultlab import picture
from bench.faultlab.contestants import Contestant, contestants
from bench.faultlab.faults import FAULTS, MAIN, Fault
from bench.faultlab.lane import Lane, Play, Ports, Shape
from bench.faultlab.load import ROOT
from bench.faultlab.report import counted, limits, noise, ranks, table, verdicts
from bench.faultlab.score import Score, Told
from bench.peers.install import install
from sidecar.demo.stage import StageError

NINE = (
    "haproxy",
    "haproxy-tuned",
    "nginx",
    "envoy-tuned",
    "traefik",
    "caddy-tuned",
    "haproxy+us",
    "haproxy+us-retry",
    "nginx+us",
)
QUICK = (("haproxy", "haproxy-tuned", "haproxy+us"), ("crash", "hang", "slow-20x"))
ATTEMPTS = 3
PAGE, PICTURE = "performance.md", "pictures/faults.svg"
BEGIN, END = "<!-- bench-faults: written by `python -m bench.faultlab --doc`; edits are lost -->", "<!-- /bench-faults -->"


@dataclass
class Sitting:
    """What is still to be played, and what came of the rest. One owner of both, for all lanes."""

    due: deque[Play]
    file: Path | None
    about: Mapping[str, object]

    def __post_init__(self) -> None:
        self.scores: list[Score] = []
        self._lock = threading.Lock()
        self._told = 0
        self._is_stopped = False

    def next(self) -> Play | None:
        with self._lock:
            return self.due.popleft() if self.due else None

    def take(self, play: Play, score: Score) -> None:
        with self._lock:
            self.scores.append(score)
            self._say(play, f"{_words(score)}{'; noisy' if score.is_noisy else ''}", again=score.is_noisy)
            if self.file is not None:
                write(self.file, self.about, self.scores)

    def fail(self, play: Play, error: Exception) -> None:
        """It did not come to a score: what was waited for did not happen."""
        with self._lock:
            self._say(play, f"{play.fault.name:14} {play.contestant.name:16} NOT PLAYED: {error}", again=True)

    def _say(self, play: Play, words: str, *, again: bool) -> None:
        if again and play.attempt + 1 < ATTEMPTS and not self._is_stopped:
            self.due.append(replace(play, attempt=play.attempt + 1))
            words += ", again"
        self._told += 1
        print(f"  {self._told:4}, {len(self.due)} to come: {words}", flush=True)

    def stop(self) -> None:
        """No further run; those under way end."""
        with self._lock:
            self.due.clear()
            self._is_stopped = True


def _words(score: Score) -> str:
    out = "" if score.ejections is None else f", out {score.out_s} s, {score.false_ejections} falsely"
    return (
        f"{score.fault:14} {score.contestant:16} bad {score.bad:5} (failed {score.failed}), last {score.last_bad_s:5.2f} s, "
        f"p99 {score.p99_ms:.0f} ms, before {score.before_bad}, late {score.late_p99_ms:.1f} ms{out}"
    )


def plays(who: Sequence[Contestant], what: Sequence[Fault], runs: int, n: int, chance: random.Random) -> deque[Play]:
    """Round by round, contestants of a fault side by side and shuffled, all struck at the same phase."""
    due: deque[Play] = deque()
    for number in range(runs):
        for fault in what:
            phase, first = chance.random(), chance.randrange(n)
            due.extend(Play(c, fault, number, phase, first) for c in chance.sample(who, len(who)))
    return due


def play_all(sitting: Sitting, shape: Shape, lanes: int) -> None:
    ports = Ports()
    threads = [threading.Thread(target=_play, args=(sitting, shape, ports)) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _play(sitting: Sitting, shape: Shape, ports: Ports) -> None:
    with Lane(shape, ports) as lane:
        while (play := sitting.next()) is not None:
            try:
                sitting.take(play, lane.play(play))
            except (NeverHappenedError, StageError) as error:
                sitting.fail(play, error)


def write(file: Path, about: Mapping[str, object], scores: Sequence[Score]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({**about, "scores": [asdict(s) for s in scores]}, indent=0) + "\n")
    fresh.replace(file)


def read(file: Path) -> tuple[Mapping[str, object], Sequence[Score]]:
    """What `write` wrote."""
    about: dict[str, Any] = json.loads(file.read_text())
    scores = []
    for each in about.pop("scores"):
        told = tuple(Told(**event) for event in each.pop("told"))
        scores.append(Score(**{**each, "timeline": tuple(each["timeline"])}, told=told))
    return about, scores


def read_all(files: Sequence[Path]) -> tuple[Mapping[str, object], Sequence[Score]]:
    """Several sittings as one: each keeps its rounds, and all are named."""
    sittings = [read(file) for file in files]
    scores = [replace(s, round=s.round + 1000 * i) for i, (_, found) in enumerate(sittings) for s in found]
    return {"words": "; and: ".join(str(about["words"]) for about, _ in sittings)}, scores


def report(about: Mapping[str, object], scores: Sequence[Score]) -> tuple[str, bool]:
    """All tables, ranks and verdicts, and whether a promise is broken."""
    retries = {c.name: c.retries for c in contestants()}
    cells = counted(scores)
    parts = []
    for name, fault in FAULTS.items():
        if name in cells:
            rows = cells[name]
            where = [f"- {line}" for line in ranks(rows, lambda n: retries.get(n, False))]
            parts.append("\n".join([f"**{name}**: {fault.words}", "", table(rows, lambda n: retries.get(n, False)), "", *where]))
    found = verdicts(cells, list(limits()))
    judged = [f"- {verdict}" for verdict in found]
    parts.append("\n".join(["**promises**", "", *judged, "", f"{noise(scores)}; {about['words']}."]))
    return "\n\n".join(parts), any(verdict.word == "MISSED" for verdict in found)


def document(text: str, drawn: str) -> None:
    """Into the page, between its two marks, and the picture beside it."""
    page = ROOT / "docs" / PAGE
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no place for the tables: a line {BEGIN} and a line {END}")
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
    (ROOT / "docs" / PICTURE).write_text(drawn)


def main() -> int:
    asked = _arguments()
    about, scores = read_all(asked.again) if asked.again else _sit(asked)
    if not scores:
        return 1
    text, is_missed = report(about, scores)
    print(f"\n{text}")
    drawn = picture.draw(counted(scores))
    if asked.svg:
        asked.svg.write_text(drawn)
    if asked.doc:
        document(text, drawn)
    return 1 if is_missed else 0


def _sit(asked: argparse.Namespace) -> tuple[Mapping[str, object], Sequence[Score]]:
    if not asked.quick:
        install(lambda line: print(line, file=sys.stderr, flush=True))
    who, what = _chosen(asked)
    shape = Shape(asked.instances, asked.rate, asked.service_ms, asked.health_ms)
    runs = asked.runs or (1 if asked.quick else 5)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    words = (
        f"{shape.n} instances, {shape.rate:g} requests/s, service median {shape.service_ms:g} ms, {asked.lanes} runs side by side, "
        f"seed {asked.seed}, {when}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors at the start"
    )
    print(f"{len(who)} contestants x {len(what)} faults x {runs} runs; {words}", flush=True)
    due = plays(who, what, runs, shape.n, random.Random(asked.seed))
    sitting = Sitting(due, asked.json, {"words": words, "shape": asdict(shape), "seed": asked.seed})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sitting.stop())
    play_all(sitting, shape, asked.lanes)
    return sitting.about, sitting.scores


def _chosen(asked: argparse.Namespace) -> tuple[list[Contestant], list[Fault]]:
    """By name where `--only` names any of that kind; else by the size of the sitting."""
    known = {c.name: c for c in contestants()}
    names, faults = QUICK if asked.quick else (tuple(known), tuple(FAULTS)) if asked.full else (NINE, MAIN)
    only = asked.only or []
    if strange := [word for word in only if word not in known and word not in FAULTS]:
        raise SystemExit(f"no such contestant or fault: {' '.join(strange)}; contestants: {' '.join(known)}; faults: {' '.join(FAULTS)}")
    names = tuple(w for w in only if w in known) or names
    faults = tuple(w for w in only if w in FAULTS) or faults
    if missing := [name for name in names if name not in known]:
        print(f"not on this machine, left out: {' '.join(missing)}")
    return [known[name] for name in names if name in known], [FAULTS[name] for name in faults]


def _arguments() -> argparse.Namespace:
    shape = Shape()
    parser = argparse.ArgumentParser(
        prog="python -m bench.faultlab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one run of nine cells, about two minutes")
    size.add_argument("--full", action="store_true", help="all contestants, all faults: hours")
    size.add_argument("--again", type=Path, nargs="+", metavar="FILE", help="play nothing, report what these JSON files hold")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants, these faults")
    parser.add_argument("--runs", type=int, help="of each cell (5)")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side, each on instances of its own (2)")
    parser.add_argument("--instances", type=int, default=shape.n, help=f"({shape.n})")
    parser.add_argument("--rate", type=float, default=shape.rate, help=f"requests a second, all together ({shape.rate:g})")
    parser.add_argument("--service-ms", type=float, default=shape.service_ms, help=f"median of the service time ({shape.service_ms:g})")
    parser.add_argument("--health-ms", type=float, default=shape.health_ms, help=f"of /health ({shape.health_ms:g})")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of phases, victims and turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, written as it ends")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the picture")
    parser.add_argument("--doc", action="store_true", help=f"tables into docs/{PAGE}, the picture beside it")
    asked = parser.parse_args()
    if asked.lanes < 1 or asked.instances < 2 or asked.rate <= 0 or (asked.runs is not None and asked.runs < 1):
        parser.error("--lanes and --runs are at least 1, --instances 2, --rate above 0")
    return asked


if __name__ == "__main__":
    sys.exit(main())
