"""Three nights on a real HAProxy, as `explain` tells them: each in order, with who, why, the arithmetic, and what happens next."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.daemon import Daemon, until
from tests.system.lab import Lab, lab

pytestmark = [pytest.mark.real, pytest.mark.slow]
FACT = re.compile(r"^  \d\d:\d\d:\d\d  (\w+) +(.*)$")


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Lab, Daemon]]:
    with lab("haproxy-2.8-none") as box:
        yield box, box.running()


def explained(daemon: Daemon, name: str) -> str:
    """What a reader sees of shop/NAME."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "explain", f"shop/{name}", "--api", f"unix:{daemon.folder}/{daemon.name}.sock"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def happened(story: str) -> list[tuple[str, str]]:
    """Kind and sentence of each event, in the order in which it is told; what is noted beneath belongs to the sentence."""
    facts: list[tuple[str, str]] = []
    for line in story.partition("What happened\n")[2].partition("Facts now")[0].splitlines():
        if (found := FACT.match(line)) is not None:
            facts.append((found[1], " ".join(found[2].split())))
        elif facts and line.strip():
            facts[-1] = (facts[-1][0], " ".join(f"{facts[-1][1]} {line}".split()))
    return facts


def head(story: str) -> str:
    """What stands before the events, on one line."""
    return " ".join(story.partition("What happened")[0].split())


def in_order(facts: list[tuple[str, str]], *wanted: tuple[str, str]) -> bool:
    """Does each stand there, by its kind and words of its sentence, one after the other?"""
    rest = iter(facts)
    return all(any(kind == one and words in sentence for one, sentence in rest) for kind, words in wanted)


def test_a_crash_is_told_from_the_first_refusal_to_the_return(scene: tuple[Lab, Daemon]) -> None:
    box, daemon = scene
    box.kill(0)
    box.wait_out(0)
    daemon.wait_event("ejected")

    out = explained(daemon, "s1")
    box.instances.start(0)
    box.wait_in(0)
    until(lambda: daemon.judgements().get(box.ports[0]) == "healthy", "healthy again")
    back = explained(daemon, "s1")

    assert "gets no traffic" in head(out) and "(nothing listens on the port)" in head(out)
    assert "1 of 4 out, 2 allowed" in head(out), "the arithmetic"
    assert re.search(r"Next: returns after \d more good answers? in a row", head(out))
    facts = happened(back)
    assert in_order(
        facts,
        ("healthy", "checks answer well"),
        ("suspect", "suspect: "),
        ("ejected", "(rule:consecutive)"),
        ("returned", "2 good answers in a row, 2 needed (rule:rise)"),
        ("healthy", "after probation"),
    ), facts
    ejected = next(sentence for kind, sentence in facts if kind == "ejected")
    assert re.search(r"refused \d+ times in a row within 0\.\d+ s", ejected)
    assert re.search(r"meanwhile 127\.0\.0\.1:\d+.* answered well; 1 of 4 out, 2 allowed", ejected)
    assert "evidence: " in ejected and "x refused, hard" in ejected
    assert "gets all its traffic" in head(back) and "Next: asked again within" in head(back)


def test_an_operators_act_is_told_as_his_and_never_undone(scene: tuple[Lab, Daemon]) -> None:
    box, daemon = scene
    box.haproxy("set server shop/s3 state maint")
    daemon.wait_event("operator", "operator ready -> maintenance")
    box.kill(2)
    until(lambda: daemon.instances().get(box.ports[2], {}).get("holds"), "its death is seen, and held")

    down = explained(daemon, "s3")
    box.instances.start(2)
    until(lambda: daemon.judgements().get(box.ports[2]) == "healthy", "healthy again")
    box.haproxy("set server shop/s3 state ready")
    daemon.wait_event("operator", "operator maintenance -> ready")
    until(lambda: daemon.judgements().get(box.ports[2]) == "healthy", "healthy in its new life")
    over = explained(daemon, "s3")

    assert "an operator has it in maintenance" in head(down) and "gets no traffic" in head(down)
    assert "Held: operator: " in head(down)
    assert "Next: stays in maintenance until its operator makes it ready at the balancer" in head(down)
    assert in_order(
        happened(over),
        ("operator", "edge/shop/s3: operator ready -> maintenance (outside)"),
        ("suspect", "is suspect: re"),  # reset or refused, whichever came first
        ("operator", "edge/shop/s3: operator maintenance -> ready (outside)"),
        ("healthy", "checks answer well"),
    ), happened(over)
    assert not any(kind in ("ejected", "returned") for kind, _ in happened(over)), "it was his, not ours"
    assert "gets all its traffic" in head(over)


def test_a_hold_is_told_with_its_arithmetic_and_what_would_end_it(scene: tuple[Lab, Daemon]) -> None:
    box, daemon = scene
    daemon.wait_healthy(box.ports)
    for i in range(4):
        box.instances.signal(i, signal.SIGUSR1)
    daemon.wait_event("pool_event", "nothing is ejected")

    story = explained(daemon, "s2")

    assert "It is suspect" in head(story) and "gets all its traffic" in head(story)
    assert "status 500, wanted 200-399" in head(story)
    assert "no other instance has given a good answer since its last counted failure" in head(story)
    assert re.search(r"Next: stays in as long as this holds: \w+ \(", head(story))
    assert in_order(
        happened(story),
        ("healthy", "checks answer well"),
        ("suspect", "status 500, wanted 200-399"),
        ("pool_event", "all 4 instances fail and none of the others gives a good answer"),
    ), happened(story)
    told = next(sentence for kind, sentence in happened(story) if kind == "pool_event")
    assert "nothing is ejected (hold:no_witness)" in told and "held by no_witness: no other instance" in told
    assert box.in_rotation() == {0, 1, 2, 3}
