"""What the terminal commands print: tables and stories for people, the API's own JSON for machines.

Nothing from outside can paint the terminal: control characters are shown, markup is not read. NO_COLOR is obeyed; no colour where
nobody looks. Times are local on screens.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from io import TextIOBase
from typing import Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sidecar.web import models

PIPED_WIDTH = 200
STYLES: Mapping[str, str] = {
    "healthy": "green", "suspect": "yellow", "ejected": "bold red", "probation": "cyan", "unknown": "dim",
    "pass": "bold green", "warn": "bold yellow", "fail": "bold red",
    "full": "green", "reduced": "yellow", "none": "red",
    "draining": "magenta", "maintenance": "magenta",
    "returned": "green", "held": "yellow", "pool_event": "yellow", "refused": "yellow", "operator": "magenta",
    "drift": "yellow", "balancer": "yellow", "discovery": "yellow", "self": "yellow",
}  # fmt: skip
JUDGEMENTS = frozenset({"healthy", "suspect", "ejected", "probation", "unknown", "returned"})
"""Kinds of decisions after which an instance is what they say."""


class Output:
    """Where answers and complaints go. `form` json prints the API's JSON and nothing else on standard output."""

    def __init__(self, form: Literal["table", "json"] = "table", out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.form = form
        self._out = _forgiving(out or sys.stdout)
        self.console = Console(file=self._out, width=None if _is_terminal(self._out) else PIPED_WIDTH, highlight=False, markup=False)
        self._err = Console(file=_forgiving(err or sys.stderr), width=None, highlight=False, markup=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def json(self, body: bytes) -> None:
        """One JSON document on one line, exactly as it came."""
        self._out.write(body.decode("utf-8", "replace").rstrip("\n") + "\n")
        self._out.flush()

    def show(self, what: RenderableType) -> None:
        """For people. What is piped has no blanks at the end of its lines."""
        if self.is_terminal:
            self.console.print(what)
            return
        with self.console.capture() as captured:
            self.console.print(what)
        self._out.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))

    def say(self, sentence: str, style: str = "") -> None:
        self.console.print(text(sentence, style))

    def complain(self, sentence: str) -> None:
        """One sentence on standard error, with the command's name."""
        self._err.print(Text.assemble("lb-sidecar: ", text(sentence)))


# ---- status ----


def overview(found: models.Services, only: str | None = None) -> RenderableType:
    """The sidecar, each service with its instances, what is held and why, the balancers."""
    parts: list[RenderableType] = [_headline(found.sidecar)]
    services = [each for name, each in found.services.items() if only in (None, name)]
    if not services:
        parts.append(text("no services: the configuration names none, or the token sees none", "dim"))
    for service in services:
        parts += _service(service, found.sidecar.when)
    if balancers := _balancers(services):
        parts.append(balancers)
    return Group(*parts)


def _headline(own: models.Sidecar) -> RenderableType:
    bits = [f"lb-sidecar {own.version}".strip(), f"mode {own.mode}"]
    if own.uptime_s is not None:
        bits.append(f"up {span(own.uptime_s)}")
    if own.loop_lag_s is not None and own.loop_lag_s > 0.01:
        bits.append(f"loop {seconds(own.loop_lag_s)} late")
    bits.append(clock(own.when, own.when))
    line = Text.assemble(text(own.status.value.upper(), STYLES[own.status.value]), "  ", text(" · ".join(bits)))
    notes = [text(f"  note: {note}", "yellow") for note in own.notes]
    return Group(line, *notes)


def _service(service: models.Service, now: datetime) -> list[RenderableType]:
    counts = service.counts
    bits = [f"{counts.in_rotation} of {counts.instances} in rotation", f"{counts.healthy} healthy"]
    if counts.ejected:
        bits.append(f"{counts.ejected} ejected")
    if counts.instances != counts.counted:
        bits.append(f"{counts.instances - counts.counted} by an operator's word")
    for source, latency in service.latency.items():
        bits.append(f"{source} p50 {quantile(latency.p50)}, p99 {quantile(latency.p99)}")
    if service.mode == "observe":
        bits.append("observe: told, never written")
    head = Text.assemble(
        "\n",
        text(service.service, "bold"),
        "  ",
        text(service.status.value.upper(), STYLES[service.status.value]),
        "  ",
        text(" · ".join(bits)),
    )
    parts: list[RenderableType] = [head]
    parts += [text(f"  {why}", STYLES[service.status.value].removeprefix("bold ")) for why in _beside_the_table(service)]
    if service.freeze is not None:
        parts.append(text(f"  {frozen(service.freeze, now)}", "magenta"))
    parts += [text(f"  discovery {source}: {fault}", "yellow") for source, fault in service.discovery_faults.items()]
    parts.append(_instances(service, now) if service.instances else text("  no instances yet", "dim"))
    parts += _holds(service)
    if service.unlisted:
        parts.append(text(f"  untouched, counted as capacity: {', '.join(service.unlisted)}", "dim"))
    return parts


def _instances(service: models.Service, now: datetime) -> Table:
    source: Literal["probe", "traffic"] = "traffic" if any("traffic" in i.latency for i in service.instances.values()) else "probe"
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=True, header_style="dim")
    for title in ("INSTANCE", "ADDRESS", "JUDGEMENT", "OPERATOR", "GETS"):
        table.add_column(title, no_wrap=True)
    table.add_column(f"P50 {source}", justify="right", no_wrap=True)
    table.add_column("P99", justify="right", no_wrap=True)
    table.add_column("SINCE", justify="right", no_wrap=True)
    table.add_column("WHY", overflow="fold", ratio=1)
    for each in service.instances.values():
        latency = each.latency.get(source)
        table.add_row(
            text(each.name),
            text(each.instance if each.instance != each.name else "", "dim"),
            text(each.judgement.value + (" (stale)" if each.stale else ""), STYLES.get(each.judgement.value, "")),
            text("" if each.operator.value == "ready" else each.operator.value, STYLES.get(each.operator.value, "")),
            text(each.serving.value, STYLES.get(each.serving.value, "")),
            quantile(latency.p50) if latency else "",
            quantile(latency.p99) if latency else "",
            ago(each.since, now),
            text(_why(each, now)),
        )
    return table


def _why(each: models.Instance, now: datetime) -> str:
    """The reason without the instance's name, which stands beside it; nothing where all is well."""
    if each.judgement.value == "healthy" and each.operator.value == "ready" and each.serving.value == "full" and not each.stale:
        return ""
    if each.overrides:
        word = max(each.overrides, key=lambda o: ("ready", "draining", "maintenance").index(o.state.value))
        until = f", until {clock(word.until, now)}" if word.until else ""
        return f"by {word.actor}" + (f": {word.reason}" if word.reason else "") + until
    told = _told_briefly(each.reason, f"{each.service}/{each.instance}", each.judgement.value)
    remarks = _remarks_of_those_out(each)
    if each.judgement.value == "healthy" and remarks:
        return remarks
    return "; ".join(part for part in (told, remarks) if part)


def _remarks_of_those_out(each: models.Instance) -> str:
    """What the balancers say about servers that get nothing although neither we nor an operator want it so: an own check, a backup."""
    out = [s for s in each.servers if s.serving is False and s.ours == "full" and s.operator.value == "ready" and s.remark]
    return "; ".join(dict.fromkeys(f"{s.balancer}: {s.remark}" for s in out))


def _told_briefly(sentence: str, who: str, judgement: str) -> str:
    """Without what the table's other columns say already."""
    rest = sentence.removeprefix(who).strip()
    return rest.removeprefix("is ").removeprefix(f"{judgement}: ") if sentence.startswith(who) else sentence


def _beside_the_table(service: models.Service) -> list[str]:
    """The reasons for the status that neither the table nor the list of holds shows."""
    shown = {f"{each.name} is {each.judgement.value}" for each in service.instances.values()}
    told = ("held by ", "frozen by ") if service.freeze is not None else ("held by ",)
    return [why for why in service.why if why not in shown and not why.startswith(told)]


def _holds(service: models.Service) -> list[RenderableType]:
    """Each named hold once, with whom it holds and its arithmetic."""
    called = {each.instance: each.name for each in service.instances.values()}
    by_words: dict[tuple[str, str], list[str]] = {}
    for hold in service.holds:
        by_words.setdefault((hold.name, hold.why), []).append(called.get(hold.instance, hold.instance) or "all")
    lines: list[RenderableType] = []
    for (name, why), who in by_words.items():
        who.sort()
        whom = ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")
        lines.append(Text.assemble("  held: ", text(whom, "bold"), " by ", text(name, "yellow"), text(f": {why}")))
    return lines


def _balancers(services: Iterable[models.Service]) -> RenderableType | None:
    """Every pool with what the balancer itself shows."""
    rows: dict[str, list[int]] = {}
    faults: dict[str, str] = {}
    shut: dict[str, str] = {}
    for service in services:
        faults.update(service.balancer_faults)
        for pool in service.pools:
            rows.setdefault(pool, [0, 0, 0])
        for each in service.instances.values():
            for server in each.servers:
                pool = f"{server.balancer}/{server.pool}"
                row = rows.setdefault(pool, [0, 0, 0])
                if server.writable:
                    shut.setdefault(pool, server.writable)
                row[0] += 1
                row[1] += server.serving is not False and server.ours == "full" and server.operator.value == "ready"
                row[2] += server.in_flight or 0
    if not rows:
        return None
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=True, header_style="dim")
    for title in ("BALANCER/POOL", "IN ROTATION", "UNDER WAY", "STATE"):
        table.add_column(title, no_wrap=title != "STATE")
    for pool, (servers, rotating, busy) in sorted(rows.items()):
        state = text("answers", "green")
        if fault := faults.get(pool.partition("/")[0], ""):
            state = text(fault, "red")
        elif why := shut.get(pool, ""):
            state = text(f"answers, but takes no change from us: {why}", "yellow")
        table.add_row(text(pool), f"{rotating} of {servers}", str(busy), state)
    return Group(Text(), table)


# ---- explain ----


def story(instance: models.Instance, decisions: Sequence[models.Decision], now: datetime, at: datetime | None = None) -> RenderableType:
    """One instance told in sentences: how it is, what led there, what happens next, and the smallest facts. `decisions`: oldest first."""
    who = Text.assemble(text(f"{instance.service}/{instance.name}", "bold"))
    if instance.name != instance.instance:
        who.append_text(text(f"  {instance.instance}", "dim"))
    parts: list[RenderableType] = [who]
    if at is None:
        parts += _as_it_is(instance, now)
    else:
        parts.append(_as_it_was(decisions, at, now))
    parts.append(Text("\nWhat happened", "bold"))
    parts += _timeline(decisions, now) or [text("  nothing is on record: it has been as it is since the decision log begins", "dim")]
    if at is None:
        parts.append(Text("\nFacts now", "bold"))
        parts += _facts(instance, now)
    return Group(*parts)


def _as_it_is(instance: models.Instance, now: datetime) -> list[RenderableType]:
    gets = {"full": "gets all its traffic", "reduced": "gets less traffic than it could", "none": "gets no traffic"}[instance.serving.value]
    is_only_told = instance.ejection is not None and not instance.ejection.enforced
    state = Text.assemble(
        "  It would be " if is_only_told else "  It is ",
        text(instance.judgement.value, STYLES.get(instance.judgement.value, "")),
        f" for {ago(instance.since, now)}, {gets}",
    )
    if instance.operator.value != "ready":
        state.append_text(text(f"; an operator has it in {instance.operator.value}", STYLES[instance.operator.value]))
    if instance.stale:
        state.append_text(text("; what we know is old, it has not answered for a while", "yellow"))
    lines: list[RenderableType] = [state]
    if instance.reason:
        lines.append(_labelled("Why", instance.reason))
    if instance.serving.value != "full" and (remarks := _remarks_of_those_out(instance)):
        lines.append(_labelled("Out by", remarks))
    for override in instance.overrides:
        lines.append(_labelled("Said", overridden(override, now)))
    for hold in instance.holds:
        lines.append(_labelled("Held", f"{hold.name}: {hold.why}"))
    lines.append(_labelled("Next", instance.next))
    return lines


def _as_it_was(decisions: Sequence[models.Decision], at: datetime, now: datetime) -> RenderableType:
    judged = [
        d for d in decisions if d.kind in ("healthy", "suspect", "ejected", "probation", "unknown", "returned") and d.instance is not None
    ]
    when = clock(at, now)
    if not judged:
        return text(f"  At {when} nothing is known of it: the log has no earlier word", "dim")
    last = judged[-1]
    verb = "would have been " if last.kind in ("ejected", "returned") and not last.enforced else ""
    return Text.assemble(f"  At {when} it was {verb}", text(last.kind, STYLES.get(last.kind, "")), f", since {clock(last.when, now)}")


def _timeline(decisions: Sequence[models.Decision], now: datetime) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in decisions:
        table.add_row(text(f"  {clock(each.when, now)}", "dim"), text(each.kind, STYLES.get(each.kind, "")), _told(each))
    return [table] if decisions else []


def _told(decision: models.Decision) -> Text:
    """The sentence, who, and beneath it the evidence and holds."""
    told = Text.assemble(text(decision.sentence), text(f"  ({decision.by})", "dim"))
    for evidence in decision.evidence:
        detail = f": {evidence.detail}" if evidence.detail else ""
        told.append_text(noted(f"evidence: {evidence.count} x {evidence.kind}, {evidence.strength}{detail}"))
    for name, why in dict.fromkeys((hold.name, hold.why) for hold in decision.holds):
        if why not in decision.sentence:
            told.append_text(noted(f"held by {name}: {why}"))
    return told


def _facts(instance: models.Instance, now: datetime) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for spec, check in instance.checks.items():
        last = f", last failure {check.last_reason}" + (f" ({check.detail})" if check.detail else "") if check.last_reason else ""
        run = f"{check.good_run} good in a row" if check.good_run else f"{check.bad_run} bad in a row"
        lines.append(_labelled(f"check {spec}", f"{run} of {check.answers} answers{last}{', evidence complete' if check.failed else ''}"))
    asked = [f"last answer {span(instance.last_probe_age_s)} ago"] if instance.last_probe_age_s is not None else ["no answer yet"]
    asked += [f"asked every {span(instance.interval_s)}"] if instance.interval_s is not None else []
    asked += [f"given {seconds(instance.timeout_s)}"] if instance.timeout_s is not None else []
    lines.append(_labelled("probe", ", ".join(asked)))
    for source, latency in instance.latency.items():
        found = ", ".join(f"{name} {quantile(getattr(latency, name))}" for name in ("p50", "p90", "p99"))
        lines.append(_labelled(f"{source} 1 min", f"{found}; {latency.count} good, {latency.failures} failed"))
    for server in instance.servers:
        shown = {True: "in rotation", False: "out", None: "unknown"}[server.serving]
        busy = f", {server.in_flight} requests under way" if server.in_flight is not None else ""
        word = f"operator {server.operator.value}, weight {server.weight} at {server.weight_pct} %"
        bits = f"balancer says {shown}, ours {server.ours}, {word}{busy}"
        bits += f"; not writable: {server.writable}" if server.writable else ""
        bits += f"; {server.remark}" if server.remark else ""
        lines.append(_labelled(f"{server.balancer}/{server.pool}/{server.server}", bits))
    if instance.ejection is not None:
        ejection = instance.ejection
        again = f", repeat {ejection.repeat}" if ejection.repeat else ""
        witness = f"; testified by {', '.join(ejection.witnesses)}" if ejection.witnesses else ""
        lines.append(_labelled("ejection", f"{ejection.rule} at {clock(ejection.since, now)}{again}: {ejection.cause}{witness}"))
    return lines


def _labelled(label: str, sentence: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(text(f"{label}:", "dim"), text(sentence))
    return Padding(grid, (0, 0, 0, 2))


# ---- history and small answers ----


def history(decisions: Sequence[models.Decision], now: datetime) -> RenderableType:
    """Decisions, newest last, as a log is read."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for title in ("WHEN", "KIND", "BY"):
        table.add_column(title, no_wrap=True)
    table.add_column("WHAT", overflow="fold", ratio=1)
    for each in decisions:
        kind = each.kind + ("" if each.enforced else " (observe)")
        table.add_row(text(clock(each.when, now)), text(kind, STYLES.get(each.kind, "")), text(each.by, "dim"), text(each.sentence))
    return table


def overridden(override: models.Override, now: datetime) -> str:
    """`draining by operator:ann as owner ann, until 14:00: deploy`."""
    until = f", until {clock(override.until, now)}" if override.until is not None else ", until cleared"
    reason = f": {override.reason}" if override.reason else ""
    return f"{override.state.value} by {override.actor} as owner {override.owner}{until}{reason}"


def frozen(freeze: models.Freeze, now: datetime) -> str:
    until = f" until {clock(freeze.until, now)}" if freeze.until is not None else " until it is unfrozen"
    return f"frozen{until} by {freeze.actor}" + (f": {freeze.reason}" if freeze.reason else "")


# ---- words and numbers ----


def text(words: str, style: str = "") -> Text:
    """Words as they are, control characters and line breaks made visible."""
    return Text("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in words), style=style)


def noted(words: str) -> Text:
    """A line of its own beneath a sentence."""
    return Text.assemble(("\n· ", "dim"), text(words, "dim"))


def clock(when: datetime, now: datetime) -> str:
    """Local time; with the date where it is not today's."""
    local, today = when.astimezone(), now.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M:%S}"


def ago(when: datetime, now: datetime) -> str:
    return span(max(0.0, (now - when) / timedelta(seconds=1)))


def span(length_s: float) -> str:
    """About so long: `250 ms`, `12 s`, `5 min`, `3 h`, `4 d`."""
    if length_s < 1:
        return f"{length_s * 1000:.0f} ms"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if length_s < limit:
            return f"{length_s / unit_s:.0f} {unit}"
    return f"{length_s / 86400:.0f} d"


def seconds(value: float) -> str:
    """A response time with three digits: `1.25 ms`, `340 ms`, `2.5 s`."""
    return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def quantile(found: models.Quantile) -> str:
    return seconds(found.value) if found.value is not None else "n/a"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _forgiving(stream: TextIO) -> TextIO:
    """A terminal that lacks a letter gets a `?` for it, not our death."""
    if isinstance(stream, TextIOBase) and hasattr(stream, "reconfigure"):
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors="replace")
    return stream


__all__ = ["Output", "ago", "clock", "frozen", "history", "overridden", "overview", "quantile", "seconds", "span", "story", "text"]
