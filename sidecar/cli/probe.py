"""`lb-sidecar probe URL`: ask once, as the sidecar would, and show every phase."""

from __future__ import annotations

import argparse
import json
import sys

from sidecar.core.model import Outcome, Result
from sidecar.probes.once import probe_once


async def probe(arguments: argparse.Namespace) -> int:
    """0: a good answer. 1: a bad one, or none. 2: not a URL that can be probed."""
    try:
        outcome = await probe_once(arguments.url, timeout_s=arguments.timeout)
    except ValueError as error:
        print(f"lb-sidecar probe: {error}", file=sys.stderr)
        return 2
    print(json.dumps(_fields(outcome)) if arguments.output == "json" else _text(arguments.url, outcome))
    return 0 if outcome.result is Result.OK else 1


def _fields(outcome: Outcome) -> dict[str, object]:
    phases = outcome.phases
    return {
        "result": outcome.result.value,
        "reason": outcome.reason.value if outcome.reason else None,
        "detail": outcome.detail,
        "advice": outcome.advice,
        "seconds": outcome.seconds,
        "phases": {"dns": phases.dns, "connect": phases.connect, "tls": phases.tls, "first_byte": phases.first_byte},
    }


def _text(url: str, outcome: Outcome) -> str:
    word = outcome.result.value if outcome.reason is None else f"{outcome.result}: {outcome.reason}"
    phases = outcome.phases
    named = (("dns", phases.dns), ("connect", phases.connect), ("tls", phases.tls), ("first byte", phases.first_byte))
    lines = [f"{url}  {word}  in {outcome.seconds * 1000:.1f} ms" + (f"  ({outcome.detail})" if outcome.detail else "")]
    lines += [f"  {name:10} {seconds * 1000:8.2f} ms" for name, seconds in named if seconds is not None]
    return "\n".join([*lines, *([f"  {outcome.advice}"] if outcome.advice else [])])
