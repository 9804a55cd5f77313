"""Users before the lab's balancer: requests at a steady rate, round robin over who is in rotation, logged when they end.

`conduct[i]` says how instance i answers: (when it was asked, dice) -> (seconds, status).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from lbplugins.values import Address, Counters, Operator, Ref, Serve, TrafficSample
from sidecar.core import traffic
from sidecar.core.model import Instance
from tests.core.lab import Lab

Service = Callable[[float, Random], tuple[float, int]]


def lognormal(median_s: float = 0.01, sigma: float = 0.3) -> Service:
    return lambda now, dice: (median_s * math.exp(sigma * dice.gauss(0.0, 1.0)), 200)


def times(factor: float, service: Service) -> Service:
    def slower(now: float, dice: Random) -> tuple[float, int]:
        seconds, status = service(now, dice)
        return factor * seconds, status

    return slower


def failing(share: float, service: Service, status: int = 500) -> Service:
    def answer(now: float, dice: Random) -> tuple[float, int]:
        seconds, good = service(now, dice)
        return seconds, status if dice.random() < share else good

    return answer


def pausing(every_s: float, pause_s: float, service: Service, phase: float = 0.0) -> Service:
    """Stops the world now and then: all that would have ended within the pause ends after it."""

    def answer(now: float, dice: Random) -> tuple[float, int]:
        seconds, status = service(now, dice)
        end = now + seconds
        begun = math.floor((end - phase) / every_s) * every_s + phase
        return (begun + pause_s - now if end < begun + pause_s else seconds), status

    return answer


@dataclass
class Crowd:
    """`bad_after(t)`: requests asked after t that were not answered 200 within 0.1 s."""

    lab: Lab
    rate: float = 500.0
    seed: int = 1
    forgeable: bool = False
    usual: Service = field(default_factory=lognormal)
    beat_s: float = 0.02
    counts: bool = True

    def __post_init__(self) -> None:
        self.dice = Random(self.seed)
        self.conduct: dict[int, Service] = dict.fromkeys(range(1, self.lab.n + 1), self.usual)
        self.asked: list[tuple[float, int, float, int]] = []
        self._under_way: list[tuple[float, int, int, float, int]] = []
        self._turn, self._next_at = 0, self.lab.now
        self._ended: dict[int, list[int]] = {i: [0, 0] for i in self.conduct}
        self.lab._at(self.lab.now, self._beat)

    def bad_after(self, at: float) -> list[tuple[float, int]]:
        return [(when, i) for when, i, seconds, status in self.asked if when >= at and (status != 200 or seconds > 0.1)]

    def _rotation(self) -> list[int]:
        servers = [(i, self.lab.seen(i)) for i in self.conduct]
        return [i for i, s in servers if s.ours.serve is Serve.FULL and s.operator is Operator.READY and s.serving is not False]

    def _beat(self) -> None:
        now, rotation = self.lab.now, self._rotation()
        while self._next_at <= now:
            if rotation:
                self._turn += 1
                i = rotation[self._turn % len(rotation)]
                seconds, status = self.conduct[i](self._next_at, self.dice)
                self.asked.append((self._next_at, i, seconds, status))
                heapq.heappush(self._under_way, (self._next_at + seconds, self._turn, i, seconds, status))
            self._next_at += 1.0 / self.rate
        heard = []
        while self._under_way and self._under_way[0][0] <= now:
            _, _, i, seconds, status = heapq.heappop(self._under_way)
            self._ended[i][0] += 1
            self._ended[i][1] += status >= 500
            instance = Instance("shop", Address(f"10.0.0.{i}", 80))
            heard.append((instance, TrafficSample(Ref("shop", f"s{i}"), status, seconds, at=now, forgeable=self.forgeable)))
        for i, (requests, failed) in self._ended.items() if self.counts else ():
            in_flight = sum(1 for row in self._under_way if row[2] == i)
            self.lab.set_seen(i, in_flight=in_flight, counters=Counters(requests, 0, 0, 0, failed))
        if heard:
            self.lab.feed(traffic.tally("edge", now, heard))
        self.lab._at(now + self.beat_s, self._beat)
