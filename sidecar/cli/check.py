"""`lb-sidecar check`: everything that is wrong with a configuration at once; whether this user may do on this machine what it says; and
what its policy amounts to, in seconds and numbers, before anything fails."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sidecar.cli.show import Output, span, text
from sidecar.cli.survey import HAPROXY_LEVERS, TYPICAL, Server, Survey, Surveyed, on_paper, survey
from sidecar.config import schema
from sidecar.config.effective import effective
from sidecar.config.load import DEFAULT_PATH, Loaded, find_config, lacking_here, load
from sidecar.config.problems import ConfigError, Problem, Severity
from sidecar.core.arithmetic import ASSUMED_ANSWER_S, JOIN_S, Arithmetic, Failure, Span
from sidecar.core.policy import Mode

SHOWN_SERVERS = 60
"""Servers of one balancer shown to people; machines get all."""
OWN_CHECK_LAST = (
    "HAProxy's own check brings it back last: up to `rise` x `inter` of its server line after us, 2 x 2 s by HAProxy's defaults; "
    "`inter 200ms` there makes it 0.4 s"
)
"""What `back` in the table of times leaves out."""
BAD, WARN, GOOD = "red", "yellow", "green"
_STYLE: Mapping[Severity, str] = {Severity.ERROR: BAD, Severity.CONTRADICTION: WARN, Severity.ADVICE: "dim"}
_WORST_FIRST = (Severity.ERROR, Severity.CONTRADICTION, Severity.ADVICE)
_COUNTED: Mapping[Severity, tuple[str, str]] = {
    Severity.ERROR: ("error", "errors"),
    Severity.CONTRADICTION: ("contradiction", "contradictions"),
    Severity.ADVICE: ("piece of advice", "pieces of advice"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """The whole answer. `found` None = this machine was not looked at; `numbers`: the arithmetic of each service, if there is a policy."""

    loaded: Loaded
    problems: tuple[Problem, ...]
    found: Survey | None = None
    numbers: tuple[Arithmetic, ...] = ()
    later: Mapping[str, Arithmetic] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 fine; 1 valid, but it contradicts itself, or something is not reachable or not allowed; 2 no configuration."""
        if self.loaded.config is None:
            return 2
        if any(problem.severity is Severity.CONTRADICTION for problem in self.problems):
            return 1
        return 0 if self.found is None or self.found.is_ready else 1


async def check(arguments: argparse.Namespace) -> int:
    """Print it all; the exit code as in `Report`."""
    if arguments.schema:
        sys.stdout.write(schema.text())
        return 0
    out = Output(arguments.output)
    try:
        loaded = load(find_config(arguments.config))
        if arguments.effective:
            return _effective(loaded)
    except OSError as error:
        path = arguments.config or DEFAULT_PATH
        loaded = Loaded(path, problems=(Problem(str(path), 1, 1, "", f"{error.strerror or error}; run this as the service's user"),))
    except ConfigError as error:
        loaded = Loaded(arguments.config or DEFAULT_PATH, problems=error.problems)
    report = await _report(loaded, offline=arguments.offline)
    if out.form == "json":
        out.json(json.dumps(as_data(report)).encode())
    else:
        _show(report, out)
    return report.exit_code


async def _report(loaded: Loaded, *, offline: bool) -> Report:
    if loaded.config is None:
        return Report(loaded, loaded.problems)
    if offline:
        return Report(loaded, loaded.problems, None, *on_paper(loaded.config))
    problems = (*loaded.problems, *lacking_here(loaded))
    found = await survey(loaded.config, loaded.files, os.environ)
    return Report(loaded, problems, found, found.services, found.later)


def _effective(loaded: Loaded) -> int:
    for problem in loaded.problems:
        print(problem, file=sys.stderr)
    if loaded.config is not None:
        sys.stdout.write(effective(loaded))
    return loaded.exit_code


# ---- for people ----


def _show(report: Report, out: Output) -> None:
    for line, style in _problems(report):
        _say(out, line, style)
    if report.found is not None:
        _say(out, "")
        for line, style in _own(report.found):
            _say(out, line, style)
        for balancer in report.found.balancers:
            _say(out, "")
            _show_balancer(balancer, out)
    if report.numbers:
        _say(out, "")
        out.show(_numbers(report.numbers))
        for sentence in _grouped(_sentences(report.numbers, report.later)):
            _say(out, f"  {sentence}")
    _say(out, "")
    _say(out, *_verdict(report))


def _say(out: Output, line: str, style: str = "") -> None:
    """One line, never broken by us: a cure is there to be copied."""
    out.console.print(text(line, style), soft_wrap=True)


def _problems(report: Report) -> Iterator[tuple[str, str]]:
    counts = {severity: sum(p.severity is severity for p in report.problems) for severity in _WORST_FIRST}
    words = [f"{count} {_COUNTED[severity][count != 1]}" for severity, count in counts.items() if count]
    found = ", ".join(words) or "no problem in it"
    if not words and report.exit_code:
        found = f"the file itself is sound, but not ready: {_count(report)} to mend, below"
    yield f"{report.loaded.path}: {found}", ""
    for problem in report.problems:
        yield f"  {problem}", _STYLE[problem.severity]


def _own(found: Survey) -> Iterator[tuple[str, str]]:
    own = found.own
    yield f"as {own.user} (uid {own.uid}; groups {', '.join(own.groups)})", ""
    if own.uid == 0:
        yield "  as root everything is allowed; run this as the user of the service to prove its rights", "dim"
    if own.state is not None:
        yield f"  state folder {own.state}, {own.state_note}" + (f"; in use by {own.daemon}" if own.daemon else ""), ""
    yield from ((f"  lacking: {line}", BAD) for line in own.lacking)
    yield from ((f"  advice: {line}", WARN) for line in own.advice)


def _show_balancer(balancer: Surveyed, out: Output) -> None:
    head = f"{balancer.name} ({balancer.plugin}, {balancer.mode}): "
    _say(out, head + (f"not reachable: {balancer.fault}" if balancer.fault else "reachable"), BAD if balancer.fault else GOOD)
    for line in balancer.lacking:
        if balancer.mode is Mode.ACT:
            _say(out, f"  lacking: {line}", BAD)
        else:
            _say(out, f"  lacking before it may act: {line}", WARN)
    for line in balancer.absent:
        _say(out, f"  lacking: {line}", BAD)
    if balancer.servers:
        out.show(_servers(balancer.servers))
    for axis, course in sorted(balancer.courses.items()):
        if axis in HAPROXY_LEVERS:
            _say(out, f"  axis {axis}: {HAPROXY_LEVERS[axis]}", "dim")
        if axis == "D":
            _say(out, f"  axis D, {OWN_CHECK_LAST}", "dim")
        head = f"  axis {axis}, " if axis != "-" else "  "
        _say(out, f"{head}while we hold one out, these check it: {course.checked_by}", "dim")
        _say(out, f"{head}if we die meanwhile, this brings it back: {course.returned_by}", "dim")
    for line in balancer.advice:
        _say(out, f"  advice: {line}", WARN)


def _servers(servers: Iterable[Server]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("service", "server", "address", "axis", "operator", "serving", "writable, remarks"):
        table.add_column(name, overflow="fold")
    listed = list(servers)
    for server in listed[:SHOWN_SERVERS]:
        serving = {True: "yes", False: "no", None: "?"}[server.serving]
        remarks = "; ".join(filter(None, (f"not writable: {server.kept_off}" if server.kept_off else "writable", server.remark)))
        address = str(server.address) if server.address is not None else "none"
        operator = server.operator.value if server.address is not None else "-"  # a slot that stands for nobody is in nobody's maintenance
        cells = (server.service or "-", str(server.ref), address, server.axis, operator, serving, remarks)
        table.add_row(*map(text, cells), style=WARN if server.kept_off else "")
    if len(listed) > SHOWN_SERVERS:
        table.add_row("…", text(f"{len(listed) - SHOWN_SERVERS} more; all of them with --json"))
    return table


def _numbers(numbers: Iterable[Arithmetic]) -> Table:
    title = "Seconds from a fault until the balancer is told of it:"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    spans = [failure.value.replace(" answer", "") for failure in Failure]
    table.add_column("service", overflow="fold", min_width=8)
    for name in ("known", *spans, "back", "false/day", "probes/s", "most out"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in numbers:
        most = each.most_out_now()
        table.add_row(
            text(each.service),
            f"{each.known} of {each.instances}" if each.instances else "?",
            *(_span(each.detect[failure]) for failure in Failure),
            _span(each.back),
            f"{each.false_per_day_of_service:.1g}" if each.instances else "?",
            f"{each.probes_per_s:.3g}" if each.instances else "?",
            f"{most.hard} ({most.soft})" if each.instances else "?",
        )
    return table


def _span(found: Span) -> str:
    return f"{max(0.0, found.least):.2f}–{found.most:.2f}"


def _sentences(numbers: Iterable[Arithmetic], later: Mapping[str, Arithmetic]) -> Iterator[tuple[str, str]]:
    """What the table cannot say, as service and sentence."""
    for each in numbers:
        if each.never:
            yield each.service, f"nobody will be taken out: {each.never}"
        if (known := later.get(each.service)) is not None:
            unknown = (
                f"{each.instances - each.known} of {each.instances} are not known yet"
                if each.instances
                else "none of its instances is to be seen from here, so none is known"
            )
            spans = ", ".join(f"{failure} {_span(known.detect[failure])}" for failure in Failure)
            yield (
                each.service,
                (
                    f"{unknown} (30 good probes by default): these longer bounds hold until then, for answers within "
                    f"{span(ASSUMED_ANSWER_S)}; known and answering within {span(TYPICAL.slow_s)}: {spans}"
                ),
            )
        late = max(each.in_force[failure].most - each.detect[failure].most for failure in Failure)
        if late > 0:
            yield each.service, f"after that, up to {late:.1f} s until the balancer has obeyed"
        if each.costly:
            yield each.service, f"changes within {span(JOIN_S)} of another share its next reload, and wait for it"
        ladder = ", ".join(f"{bound.most:.0f}" for bound in each.after_repeat)
        yield each.service, f"ejected a second, third … time in a row, it is back within {ladder} s, hold-down included"
        yield each.service, f"after a long outage it is back within {each.back_late.most:.1f} s"
        yield each.service, f"`most out` on hard (soft) evidence, by number of instances: {_table_of_out(each)}"
        yield each.service, "`false/day`: ejections by mistake in the whole service, with 1 % of all probes lost, each by itself"


def _table_of_out(each: Arithmetic) -> str:
    return ", ".join(f"{row.n}: {row.hard} ({row.soft})" for row in each.most_out)


def _grouped(sentences: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Each sentence once, with all services that it holds for."""
    services: dict[str, list[str]] = {}
    for service, sentence in sentences:
        services.setdefault(sentence, []).append(service)
    for sentence, names in services.items():
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        yield f"{', '.join(names[:8])}{more}: {sentence}"


def _verdict(report: Report) -> tuple[str, str]:
    code = report.exit_code
    if code == 2:
        return "not a configuration: nothing else was looked at", BAD
    if code == 1:
        return f"valid, but not ready: {_count(report)} to mend", BAD
    return ("fine" if report.found is not None else "fine, as far as the file goes"), GOOD


def _count(report: Report) -> str:
    """How many things stand between this and 0."""
    count = sum(problem.severity is Severity.CONTRADICTION for problem in report.problems)
    if report.found is not None:
        count += len(report.found.own.lacking)
        for each in report.found.balancers:
            count += bool(each.fault) + len(each.absent) + (len(each.lacking) if each.mode is Mode.ACT else 0)
    return "1 thing" if count == 1 else f"{count} things"


# ---- for machines ----


def as_data(report: Report) -> dict[str, object]:
    """The report as JSON has it; times in seconds."""
    found = report.found
    return {
        "config": str(report.loaded.path),
        "hash": report.loaded.hash,
        "exit_code": report.exit_code,
        "problems": [
            {"file": p.file, "line": p.line, "column": p.column, "path": p.path, "severity": p.severity.value, "message": p.message}
            for p in report.problems
        ],
        "own": None if found is None else _own_data(found),
        "balancers": {} if found is None else {each.name: _balancer_data(each) for each in found.balancers},
        "services": {each.service: _service_data(each, report.later.get(each.service)) for each in report.numbers},
    }


def _own_data(found: Survey) -> dict[str, object]:
    own = found.own
    return {
        "user": own.user,
        "uid": own.uid,
        "groups": list(own.groups),
        "state": None if own.state is None else str(own.state),
        "daemon": own.daemon,
        "lacking": list(own.lacking),
        "advice": list(own.advice),
    }


def _balancer_data(balancer: Surveyed) -> dict[str, object]:
    return {
        "plugin": balancer.plugin,
        "mode": balancer.mode.value,
        "reachable": not balancer.fault,
        "fault": balancer.fault,
        "ready": balancer.is_ready,
        "lacking": list(balancer.lacking),
        "absent": list(balancer.absent),
        "advice": list(balancer.advice),
        "servers": [_server_data(balancer, server) for server in balancer.servers],
    }


def _server_data(balancer: Surveyed, server: Server) -> dict[str, object]:
    course = balancer.courses[server.axis]
    return {
        "service": server.service or None,
        "pool": server.ref.pool,
        "server": server.ref.server,
        "address": None if server.address is None else str(server.address),
        "axis": None if server.axis == "-" else server.axis,
        "operator": server.operator.value,
        "serving": server.serving,
        "writable": not server.kept_off,
        "why_not": server.kept_off,
        "remark": server.remark,
        "checked_while_out_by": course.checked_by,
        "returned_if_we_die_by": course.returned_by,
    }


def _service_data(each: Arithmetic, later: Arithmetic | None) -> dict[str, object]:
    return {
        "instances": each.instances,
        "known": each.known,
        "never": each.never,
        "detect": _spans_data(each.detect),
        "detect_once_known": _spans_data((later or each).detect),
        "in_force": _spans_data(each.in_force),
        "back": _span_data(each.back),
        "back_after_long_outage": _span_data(each.back_late),
        "back_after_repeats": [_span_data(span) for span in each.after_repeat],
        "false_ejections_per_day": {"worst_instance": each.false_per_day, "service": each.false_per_day_of_service},
        "probes_per_s": each.probes_per_s,
        "most_out": [row._asdict() for row in each.most_out],
    }


def _spans_data(found: Mapping[Failure, Span]) -> dict[str, dict[str, float]]:
    return {failure.value: _span_data(each) for failure, each in found.items()}


def _span_data(span: Span) -> dict[str, float]:
    return {"least": max(0.0, span.least), "most": span.most}
