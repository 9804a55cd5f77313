"""The vocabulary of scenarios: what may happen, and what may be true. One table each; a sentence that fits no row is an error that helps.

A row is a phrase with {slots}; `(s)` allows an s, `is` and `has` stand for `are` and `have` too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
SLOTS = {
    "who": r"all of [a-z]+|[a-z]+/s\d+(?:, [a-z]+/s\d+)*",
    "service": r"[a-z]+",
    "balancer": r"edge|web",
    "span": r"\d+(?:\.\d+)? (?:ms|s|min|h|days)",
    "n": r"\d+",
    "share": r"\d+(?:\.\d+)? %",
    "reason": r"[a-z_]+",
    "word": r"maintenance|drain|ready",
    "judgement": r"unknown|healthy|suspect|ejected|probation",
    "hold": r"[a-z_]+",
    "text": r"'[^']+'",
}


class WordsError(ValueError):
    """A sentence that is none of ours; the message names the nearest that is."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """One row of the vocabulary. `real`: can it be done, or seen, with real processes? `waits`: only rows that wait may say it yet."""

    key: str
    template: str
    meaning: str
    real: bool = False
    waits: bool = False

    def match(self, text: str) -> Mapping[str, str] | None:
        found = re.fullmatch(_pattern(self.template), text)
        return None if found is None else {slot: value for slot, value in found.groupdict().items() if value is not None}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A phrase with its slots filled. `who`: instances as `service/sN`, `all of SERVICE` not yet resolved."""

    text: str
    phrase: Phrase
    slots: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.phrase.key

    @property
    def who(self) -> tuple[str, ...]:
        return tuple(self.slots["who"].split(", ")) if "who" in self.slots else ()

    def seconds(self) -> float:
        return span(self.slots["span"])

    def share(self) -> float:
        return float(self.slots["share"].split()[0]) / 100.0

    def __getitem__(self, slot: str) -> str:
        return self.slots[slot].strip("'")


def span(text: str) -> float:
    """`250 ms`, `1 s`, `5 min` in seconds."""
    number, _, unit = text.partition(" ")
    return float(number) * SECONDS[unit]


DEEDS = (
    Phrase("well", "{who} answer(s) well", "it answers at once, and well", real=True),
    Phrase("refuse", "{who} refuse(s) connections", "its process has died: nothing listens on the port", real=True),
    Phrase("hang", "{who} hang(s)", "it accepts connections and never answers (SIGSTOP)", real=True),
    Phrase("status", "{who} answer(s) 500", "its health path says 500", real=True),
    Phrase("fail", "{who} fail(s) with {reason}", "any other reason of a failed probe: reset, body, identity, tls_expired …"),
    Phrase("mixed", "{who} fail(s) {share} of requests", "so many answers are 500, at random", real=True),
    Phrase("lossy", "{who} lose(s) {share} of probes", "so many probes are never answered, at random", real=True),
    Phrase("slow", "{who} answer(s) in {span}", "good answers that take so long"),
    Phrase("flap", "{who} flap(s) every {span}", "dead and well in turn, each for so long, until told otherwise", real=True),
    Phrase("join", "{who} join(s)", "it stands in the pool from now on"),
    Phrase("leave", "{who} is removed", "it stands in no pool any more"),
    Phrase("move", "{who} move(s) to a new address", "the same server, another address, where somebody answers well", real=True),
    Phrase("word", "operator sets {who} to {word} on {balancer}", "on the balancer itself, past us", real=True),
    Phrase("force", "operator brings {who} back on {balancer}", "against our ejection, on our axis (`health up`)", real=True),
    Phrase("weight", "operator sets the weight of {who} to {n} on {balancer}", "at run time", real=True),
    Phrase("forget", "{balancer} restarts", "what it was told at run time is lost", real=True),
    Phrase("deaf", "{balancer} cannot be asked", "its socket is gone, or it hangs: neither looked at nor told"),
    Phrase("hears", "{balancer} can be asked again", "the end of that"),
    Phrase("check", "{balancer} takes {who} out by its own check", "its own word, neither ours nor an operator's"),
    Phrase("trust", "{balancer} trusts {who} again", "its own check is good again"),
    Phrase("stubborn", "{balancer} says no to every write", "as an Nginx whose configuration somebody broke"),
    Phrase("willing", "{balancer} takes writes again", "the end of that"),
    Phrase("die", "sidecar is killed", "kill -9", real=True),
    Phrase("start", "sidecar starts", "with the state folder it has", real=True),
    Phrase("pause", "sidecar stands still for {span}", "SIGSTOP, or a paused virtual machine", real=True),
    Phrase("late", "sidecar is late for {span}", "its loop gets no processor time: probes end too late to mean anything"),
    Phrase("full", "sidecar has no room on its disk", "nothing can be journaled"),
    Phrase("room", "sidecar has room on its disk again", "the end of that"),
    Phrase("lost", "sidecar has no descriptors", "it cannot ask anybody"),
    Phrase("found", "sidecar has descriptors again", "the end of that"),
    Phrase("standby", "sidecar stands by for {balancer}", "another sidecar writes to it"),
    Phrase("alone", "sidecar has {balancer} for itself again", "the other one is gone"),
    Phrase("sources", "discovery shows {who}", "and nobody else (where instances are listed)"),
    Phrase("blind_source", "discovery fails", "the name server or the file says nothing"),
    Phrase("clock", "the wall clock jumps by {span}", "forward; for monotonic time nothing happens"),
    Phrase("load", "real requests come, {n} a second", "through the balancers, with their log lines coming to us", waits=True),
    Phrase("serve", "{who} fail(s) {share} of real requests", "whatever it says to probes", waits=True),
    Phrase("reboot", "the machine boots again", "another boot: leases of the last one are over"),
)

STATES = (
    Phrase("out", "{who} is out on {balancer} because {text}", "no traffic there, and our ejection says so in its sentence", real=True),
    Phrase("out", "{who} is out on {balancer}", "it gets no new traffic there, whoever took it out", real=True),
    Phrase("out", "{who} is out", "on every balancer", real=True),
    Phrase("in", "{who} is in rotation on {balancer}", "it gets new traffic there", real=True),
    Phrase("in", "{who} is in rotation", "on every balancer", real=True),
    Phrase("judged", "{who} is judged {judgement}", "what we hold it to be", real=True),
    Phrase("held", "{who} is held by {hold}", "a named reason not to act, now", real=True),
    Phrase("has_word", "{who} is in {word} on {balancer}", "the operator's axis as the balancer has it", real=True),
    Phrase("has_weight", "{who} has weight {n} on {balancer}", "the balancer's weight", real=True),
    Phrase("any_out", "anybody of {service} is out", "on any balancer", real=True),
    Phrase("more_out", "more than {n} of {service} is out", "on any one balancer", real=True),
    Phrase("any_ejected", "anybody of {service} is ejected", "we have decided so at least once since the beginning", real=True),
    Phrase("moves", "{who} has moved more than {n} times within {span}", "out or in, on any balancer", real=True),
    Phrase("told", "{balancer} is told anything", "we have written to it since the beginning"),
    Phrase("storm", "{balancer} is told more than {n} times within {span}", "writes of ours (for Nginx: reloads)"),
    Phrase("says", "the log says {text} more than {n} times", "so many events have that text", real=True),
    Phrase("says", "the log says {text}", "an event of the decision log has that text", real=True),
)


def deed(text: str) -> Sentence:
    return _read(text, DEEDS, "happens")


def state(text: str) -> Sentence:
    return _read(text, STATES, "is true")


def _read(text: str, phrases: tuple[Phrase, ...], what: str) -> Sentence:
    for phrase in phrases:
        if (slots := phrase.match(text)) is not None:
            return Sentence(text, phrase, slots)
    nearest = difflib.get_close_matches(text, [p.template for p in phrases], 1, 0.0)[0]
    raise WordsError(f"{text!r} is nothing that {what} here; did you mean '{nearest}'? All phrases are in tests/scenarios/README.md")


def _pattern(template: str) -> str:
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace(r"\ ", " ")
    pattern = pattern.replace(r"\(s\)", "s?").replace(" is ", " (?:is|are) ").replace(" has ", " (?:has|have) ")
    return re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{SLOTS[slot[1]]})", pattern)
