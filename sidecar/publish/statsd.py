"""Samples as StatsD datagrams: gauges as they are, counters as what came since the last time. Plain paths, or names with DogStatsD's tags.

What a datagram that gets lost had counted is lost; StatsD knows no other way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from sidecar.core.samples import Distribution, Quantiles, Sample
from sidecar.publish.graphite import points

MAX_BYTES = 1432
"""Of one datagram: what an Ethernet frame carries whole."""
MAX_TAG = 128
_NOT_IN_TAGS = re.compile(r"[^!-{}]|[,#]")
"""Tags are printable ASCII without `,`, `|`, `#` and `~`."""


class Statsd:
    """The encoder of one receiver. Owns what each counter was the last time; the first time tells none of them."""

    def __init__(self, prefix: str, *, has_tags: bool) -> None:
        self._prefix = prefix
        self._has_tags = has_tags
        self._last: dict[tuple[str, str], float] = {}

    def datagrams(self, samples: Iterable[Sample], when: float) -> Iterator[bytes]:
        """Full datagrams, lines parted by newlines; nothing where one is not full yet."""
        packet = b""
        for line in self._lines(samples):
            if not line:
                yield b""
            elif packet and len(packet) + 1 + len(line) > MAX_BYTES:
                yield packet
                packet = line
            else:
                packet = packet + b"\n" + line if packet else line
                yield b""
        if packet:
            yield packet

    def _lines(self, samples: Iterable[Sample]) -> Iterator[bytes]:
        for name, tags, value, grows in self._tagged(samples) if self._has_tags else self._plain(samples):
            if not name or not math.isfinite(value):
                yield b""
                continue
            if not grows:
                yield f"{name}:{max(value, 0.0)!r}|g{tags}".encode("ascii")  # a sign would make it a change, not a value
                continue
            last = self._last.get((name, tags))
            self._last[name, tags] = value
            if last is not None and value > last:
                yield f"{name}:{value - last!r}|c{tags}".encode("ascii")

    def _plain(self, samples: Iterable[Sample]) -> Iterator[tuple[str, str, float, bool]]:
        for point in points(samples):
            yield (f"{self._prefix}.{point.path}", "", point.value, point.grows) if point is not None else ("", "", 0.0, False)

    def _tagged(self, samples: Iterable[Sample]) -> Iterator[tuple[str, str, float, bool]]:
        for sample in samples:
            name = f"{self._prefix}.{sample.name.removeprefix('lbsidecar_')}"
            pairs = ",".join(f"{key}:{_NOT_IN_TAGS.sub('_', value[:MAX_TAG])}" for key, value in sample.labels if value)
            tags = f"|#{pairs}" if pairs else ""
            if isinstance(sample.value, Distribution | Quantiles):
                yield f"{name}.count", tags, float(sample.value.count), True
                yield f"{name}.sum", tags, sample.value.total, True
                if isinstance(sample.value, Quantiles):
                    yield from ((name, f"{tags},quantile:{share}", seconds, False) for share, seconds in sample.value.values)
            else:
                yield name, tags, sample.value, sample.kind == "counter"


__all__ = ["Statsd"]
