"""A picture of one table: a bar a row, its median, whiskers from the least to the most. SVG by hand: it needs no more than this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, ROW, BAR, GAP = 820, 190, 90, 22, 14, 46
OURS, FLOOR, PEER = "#2b6cb0", "#a0aec0", "#718096"


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: `values` of each round, any unit."""

    name: str
    values: Sequence[float]
    middle: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One cell's rows under a title that names the unit."""

    title: str
    bars: Sequence[Bar]


def draw(panels: Sequence[Panel]) -> str:
    """All panels under one another, each on its own scale from 0, shortest bar first."""
    panels = [panel for panel in panels if panel.bars]
    height = sum(GAP + ROW * len(panel.bars) for panel in panels) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">'
    lines = [head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
    top = 0.0
    for panel in panels:
        lines += _panel(panel, top)
        top += GAP + ROW * len(panel.bars)
    return "\n".join([*lines, "</svg>\n"])


def _panel(panel: Panel, top: float) -> Iterator[str]:
    yield f'<text x="12" y="{top + 28:g}" font-weight="bold">{escape(panel.title)}</text>'
    # one that is far off would press all the others flat: it is cut, and its number says where it really is
    bars = sorted(panel.bars, key=lambda bar: bar.middle)
    most = min(max(max(bar.values) for bar in bars), 4 * bars[len(bars) // 2].middle) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    for i, bar in enumerate(bars):
        y = top + GAP - 8 + i * ROW
        low, middle, high = (LEFT + scale * min(v, most) for v in (min(bar.values), bar.middle, max(bar.values)))
        colour = OURS if bar.name.startswith("lb-sidecar") else FLOOR if bar.name.startswith("C floor") else PEER
        yield f'<text x="{LEFT - 8}" y="{y + 11:g}" text-anchor="end">{escape(bar.name)}</text>'
        yield f'<rect x="{LEFT}" y="{y:g}" width="{middle - LEFT:.1f}" height="{BAR}" fill="{colour}"/>'
        yield f'<path d="M{low:.1f} {y + BAR / 2:g}H{high:.1f}" stroke="black" stroke-width="1.5"/>'
        yield f'<text x="{max(high, middle) + 6:.1f}" y="{y + 11:g}">{_short(bar.middle)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
