"""The tables of docs/metrics.md, made from samples of a world in which everything happens: `python -m tests.edges.publish.catalogue`."""

from __future__ import annotations

from pathlib import Path

from sidecar.core.samples import Quantiles, Sample
from sidecar.publish.graphite import points
from tests.core.lab import good, hangs, refused
from tests.edges.publish.scene import Scene

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
PLACES = {
    "service": "SERVICE", "address": "INSTANCE", "balancer": "BALANCER", "source": "SOURCE", "judgement": "JUDGEMENT", "name": "NAME",
    "result": "RESULT", "sink": "SINK",
}  # fmt: skip
"""What stands in a path for a label."""


def everything() -> list[Sample]:
    """Samples of every metric there is."""
    scene = Scene(5)
    scene.run(30.0)
    scene.tallies.count_traffic("shop", True, 0.01)
    scene.set_seen(1, in_flight=3)
    scene.answer(2, refused())
    scene.run(3.0)
    scene.answer(2, good())
    scene.run(10.0)
    for i in (2, 3, 4, 5):
        scene.answer(i, hangs())
    scene.run(10.0)
    return scene.samples(rss_bytes=1, cpu_s=1.0)


def tables() -> dict[str, str]:
    """By the name of its place in the page."""
    found: dict[str, Sample] = {}
    labels: dict[str, dict[str, None]] = {}
    for sample in everything():
        found.setdefault(sample.name, sample)
        labels.setdefault(sample.name, {}).update(dict.fromkeys(name for name, _ in sample.labels))
    return {"metrics": _metrics(found, labels), "paths": _paths(found)}


def _metrics(found: dict[str, Sample], labels: dict[str, dict[str, None]]) -> str:
    rows = ["| name | kind | labels | what it says |", "|---|---|---|---|"]
    for name, sample in sorted(found.items()):
        rows.append(f"| `{name}` | {sample.kind} | {', '.join(labels[name])} | {sample.help.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _paths(found: dict[str, Sample]) -> str:
    rows = ["| path | from |", "|---|---|"]
    for name, sample in sorted(found.items()):
        placed = tuple((key, PLACES.get(key, value)) for key, value in sample.labels)
        value = Quantiles(((0.5, 1.0),), 1.0, 1) if sample.kind == "summary" else sample.value
        rows += [f"| `lbsidecar.{point.path}` | `{name}` |" for point in points([sample._replace(labels=placed, value=value)]) if point]
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: made by tests/edges/publish/catalogue.py -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        assert mark, f"{DOCS.name} lacks its place for {name}"
        text = before + begin + table + end + after
    return text


if __name__ == "__main__":
    DOCS.write_text(page(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
