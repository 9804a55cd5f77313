"""The runs as one picture: a panel a fault, a row a contestant. SVG by hand: it needs no more than this."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bench.faultlab.faults import FAULTS
from bench.faultlab.report import Cells
from bench.faultlab.score import BIN_S, Score

WIDTH, ROW, HEAD, FOOT = 1000, 20, 62, 10
NAME, BAD, BAD_WIDTH, P99, STRIP, STRIP_WIDTH, FALSE = 140, 150, 300, 555, 590, 330, 960
MOST_BAD = 10_000
OURS, PEER, HOT, COLD = "#2b6cb0", "#718096", (197, 48, 48), (237, 242, 247)


def draw(cells: Cells) -> str:
    """Bad requests (medians, from least to most, logarithmic), p99, when they were, false ejections."""
    shown = [(FAULTS[name], cells[name]) for name in FAULTS if name in cells]
    height = sum(HEAD + ROW * len(rows) + FOOT for _, rows in shown)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
    lines = [head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    top = 0
    for fault, rows in shown:
        lines += _panel(f"{fault.name}: {fault.words}", rows, top)
        top += HEAD + ROW * len(rows) + FOOT
    return "\n".join([*lines, "</svg>\n"])


def _panel(title: str, rows: Mapping[str, Sequence[Score]], top: int) -> Iterator[str]:
    yield f'<text x="12" y="{top + 24}" font-weight="bold" font-size="14">{escape(title)}</text>'
    window = len(next(iter(rows.values()))[0].timeline) * BIN_S
    heads = ((BAD, "bad requests (logarithmic)"), (P99 - 45, "p99, ms"), (STRIP, f"when, 0 to {window:g} s"), (FALSE - 40, "false ej."))
    for x, text in heads:
        yield f'<text x="{x}" y="{top + 46}" fill="#4a5568">{text}</text>'
    ordered = sorted(rows.items(), key=lambda row: (statistics.median(s.bad for s in row[1]), row[0]))
    for i, (name, runs) in enumerate(ordered):
        yield from _row(name, runs, top + HEAD - 8 + i * ROW)


def _row(name: str, runs: Sequence[Score], y: int) -> Iterator[str]:
    bad = [s.bad for s in runs]
    middle = statistics.median(bad)
    colour, weight = (OURS, ' font-weight="bold"') if "+us" in name else (PEER, "")
    yield f'<text x="{NAME}" y="{y + 11}" text-anchor="end"{weight}>{escape(name)}</text>'
    low, mid, high = (BAD + _along(value) for value in (min(bad), middle, max(bad)))
    yield f'<rect x="{BAD}" y="{y}" width="{mid - BAD:.1f}" height="14" fill="{colour}"/>'
    yield f'<path d="M{low:.1f} {y + 7}H{high:.1f}" stroke="black" stroke-width="1.5"/>'
    yield f'<text x="{max(high, mid) + 5:.1f}" y="{y + 11}">{middle:g}</text>'
    yield f'<text x="{P99}" y="{y + 11}" text-anchor="end">{statistics.median(s.p99_ms for s in runs):,.0f}</text>'
    yield from _strip([statistics.median(each) for each in zip(*(s.timeline for s in runs), strict=True)], y)
    last = statistics.median(s.last_bad_s for s in runs)
    if middle:
        x = STRIP + STRIP_WIDTH * min(1.0, last / (len(runs[0].timeline) * BIN_S))
        yield f'<path d="M{x:.1f} {y - 1}v16" stroke="black" stroke-width="1.5"><title>last bad {last:.2f} s</title></path>'
    if runs[0].false_ejections is not None:
        yield f'<text x="{FALSE}" y="{y + 11}" text-anchor="middle"{weight}>{sum(s.false_ejections or 0 for s in runs)}</text>'


def _strip(bins: Sequence[float], y: int) -> Iterator[str]:
    """The median of each quarter of a second; the more, the redder. Neighbours of one colour are one rectangle."""
    step = STRIP_WIDTH / len(bins)
    colours = [_heat(value) for value in bins]
    begin = 0
    for i in range(1, len(bins) + 1):
        if i == len(bins) or colours[i] != colours[begin]:
            x, width = STRIP + begin * step, (i - begin) * step
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{colours[begin]}"/>'
            begin = i


def _heat(bad: float) -> str:
    """In eight steps, full red from 32 bad requests a quarter of a second."""
    share = 0.0 if bad <= 0 else min(1.0, 0.25 + 0.15 * math.ceil(math.log2(max(1.0, bad))))
    return "#" + "".join(f"{round(cold + (hot - cold) * share):02x}" for cold, hot in zip(COLD, HOT, strict=True))


def _along(bad: float) -> float:
    return (BAD_WIDTH - 40) * math.log10(1 + bad) / math.log10(1 + MOST_BAD)
