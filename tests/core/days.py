"""Days of healthy pools in virtual time: whatever is ordinary happens, and nobody may be ejected.

    python -m tests.core.days --n 5 --days 1

Lognormal answers, hardware that differs by 30 %, pauses of the garbage collector up to 200 ms, a load that follows the hours, a release
that makes everybody slower for a while, and probes of which some are lost.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from random import Random

from sidecar.core.model import Reason, Result
from tests.core.crowd import Crowd, Service, lognormal
from tests.core.lab import Answer, Lab

DAY_S = 86_400.0


def instance(dice: Random, sigma: float) -> Service:
    """Its hardware, its pauses (each a few tens of seconds, 20 to 200 ms), a release a day that costs half as much again for an hour."""
    median = 0.01 * math.exp(dice.gauss(0.0, 0.3))
    answer = lognormal(median, sigma)
    phase, every, salt = dice.uniform(0.0, 60.0), dice.uniform(15.0, 60.0), dice.getrandbits(32)

    def serve(now: float, throw: Random) -> tuple[float, int]:
        seconds, status = answer(now, throw)
        if now % DAY_S > 0.9 * DAY_S:
            seconds *= 1.5
        end = now + seconds
        begun = math.floor((end - phase) / every) * every + phase
        pause = Random(int(begun * 1000) ^ salt).uniform(0.02, 0.2)
        return (begun + pause - now if begun <= end < begun + pause else seconds), status if throw.random() > 0.0005 else 500

    return serve


def lossy(loss: float, dice: Random) -> Answer:
    def answer(now: float, timeout: float) -> tuple[Result, Reason | None, float]:
        if dice.random() < loss:
            return Result.FAIL, Reason.TIMEOUT, timeout
        return Result.OK, None, min(timeout * 0.9, 0.0005 * math.exp(dice.gauss(0.0, 0.4)))

    return answer


def play(n: int, days: float, rate: float, sigma: float, loss: float, seed: int, beat_s: float) -> Counter[str]:
    """How often each rule ejected somebody."""
    dice = Random(seed)
    lab = Lab(n)
    for i in range(1, n + 1):
        lab.answer(i, lossy(loss, dice))
    lab.run(30.0)
    crowd = Crowd(lab, rate * n, seed, beat_s=beat_s)
    for i in range(1, n + 1):
        crowd.conduct[i] = instance(dice, sigma)
    end, ejected = lab.now + days * DAY_S, Counter[str]()
    while lab.now < end:
        lab.run(60.0)
        crowd.rate = rate * n * (1.0 + 0.8 * math.sin(2.0 * math.pi * lab.now / DAY_S))
        ejected.update(e.by for e in lab.events if e.kind == "ejected")
        for e in [e for e in lab.events if e.kind == "ejected"]:
            print(f"{lab.now:.0f} {e.sentence}", flush=True)
        lab.events.clear()
        lab.decisions.clear()
        crowd.asked.clear()
    return ejected


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.core.days", description="Healthy days in virtual time.")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--days", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second and instance, on the average of a day")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--loss", type=float, default=0.001, help="share of probes lost")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--beat", type=float, default=0.1, help="seconds between two batches of the log")
    args = parser.parse_args()
    started = time.monotonic()
    ejected = play(args.n, args.days, args.rate, args.sigma, args.loss, args.seed, args.beat)
    print(f"n={args.n}, {args.days:g} days, {dict(ejected) or 'nobody'} ejected, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
