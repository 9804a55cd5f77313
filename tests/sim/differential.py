"""Holds the simulated balancers against the real ones: `python -m tests.sim.differential --balancer haproxy-2.8 --scripts 10000`.

The same random scripts, by seed, on both; after each step equal states. A script on which they differ is printed as short as it gets.
For HAProxy, `--reload` plays scripts over reloads and restarts, `--clock` with checks that run; for nginx, scripts are judged by
`nginx -t`, and with `--reload` loaded and asked who serves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from tests.sim import differential_haproxy, differential_haproxy_clock, differential_haproxy_reload, differential_nginx

BALANCERS = ("haproxy-2.6", "haproxy-2.8", "nginx-1.22", "nginx-1.31")
Run = Callable[[str, int, int], "tuple[Sequence[object], str]"]
"""Version, scripts, seed → failures, and a remark."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 = no difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.differential", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--balancer", choices=BALANCERS, required=True)
    parser.add_argument("--scripts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--reload", action="store_true")
    how.add_argument("--clock", action="store_true", help="HAProxy only")
    args = parser.parse_args(argv)
    kind, _, version = args.balancer.partition("-")
    if kind == "nginx" and args.clock:
        parser.error("nginx has no clock")
    began = time.monotonic()
    failures, remark = _run(kind, args.reload, args.clock)(version, args.scripts, args.seed)
    for failure in failures:
        print(failure)
    what = f"{args.balancer}{' --reload' * args.reload}{' --clock' * args.clock}, seed {args.seed}"
    print(f"{what}: {args.scripts} scripts, {len(failures)} different{remark}, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


def _run(kind: str, reload: bool, clock: bool) -> Run:
    if kind == "nginx":
        run = differential_nginx.run_reload if reload else differential_nginx.run_test
        return lambda version, scripts, seed: run(version, scripts, seed)
    if clock:
        return _clock
    run_haproxy = differential_haproxy_reload.run if reload else differential_haproxy.run
    return lambda version, scripts, seed: (run_haproxy(version, scripts, seed), "")


def _clock(version: str, scripts: int, seed: int) -> tuple[Sequence[object], str]:
    failures, raced = differential_haproxy_clock.run(version, scripts, seed)
    return failures, f", {raced} steps explained by a check under way"


if __name__ == "__main__":
    sys.exit(main())
