"""The commands that talk to a running daemon: status, explain, history, drain, maint, ready, freeze, unfreeze, adopt, reload.

`add_parsers` registers them; each is `async (args, out) -> exit code`. 0: fine. 1: it ran and the answer is bad, or nobody answers.
2: wrong use. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import getpass
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from sidecar.cli.daemon import Daemon
    from sidecar.cli.show import Output
    from sidecar.web import models

WATCH_EVERY_S = 1.0
POLL_S = 0.25
EXPLAINED = 30
"""Decisions of a story at most."""
WAIT_MAX_S = 600.0
CANDIDATES = 8
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,63}")

Word = Literal["ready", "draining", "maintenance"]
Command = Callable[[argparse.Namespace, "Output"], Awaitable[int]]


class Meant(NamedTuple):
    """An instance as the user meant it, among those the daemon knows."""

    service: models.Service
    instance: models.Instance

    def __str__(self) -> str:
        return f"{self.service.service}/{self.instance.name}"


# ---- the words of the command line ----


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register these commands. Each sets `func`, the coroutine function, and `run`, which runs it and gives the exit code."""
    command = _add(subparsers, "status", status, "services, instances, holds and balancers as they are now")
    command.add_argument("service", nargs="?", metavar="SERVICE", help="this one alone")
    command.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")

    command = _add(subparsers, "explain", explain, "why an instance is as it is, who did it, and what happens next")
    command.add_argument("instance", metavar="INSTANCE", help=_INSTANCE)
    command.add_argument("--at", metavar="T", help="as it was then: 14:05, 2026-03-01T14:05:00Z, or an age as 2h")
    command.add_argument("--state", type=Path, metavar="DIR", help="without a daemon: from the facts recorded in this state folder")

    command = _add(subparsers, "history", history, "the decision log, newest last")
    command.add_argument("what", nargs="?", metavar="SERVICE[/NAME]", help="of this service or instance alone")
    command.add_argument("--since", metavar="T", help="from then on: a time or an age as 2h")
    command.add_argument("--until", metavar="T", help="before then")
    command.add_argument("--by", metavar="WHO", help="by whom: rule, operator, rule:slow, token:deploy, outside")
    command.add_argument("--state", type=Path, metavar="DIR", help="without a daemon: from the decision log in this state folder")
    command.add_argument("-n", "--limit", type=int, default=50, metavar="N", help="at most so many, 1 to 1000 (default: 50)")

    for name, func, text in (
        ("drain", drain, "let an instance finish what it has and get nothing new"),
        ("maint", maint, "take an instance out at once"),
    ):
        command = _add(subparsers, name, func, text)
        _instances(command)
        _end(command)
        _act(command)
        command.add_argument("--force", action="store_true", help="even if a guard refuses; this act only, and logged")

    command = _add(subparsers, "ready", ready, "end our drain or maint of an instance, or overrule its ejection")
    _instances(command)
    _act(command)

    for name, func, text in (
        ("freeze", freeze, "no ejection and no return, of a service or of all"),
        ("unfreeze", unfreeze, "end a freeze"),
    ):
        command = _add(subparsers, name, func, text)
        command.add_argument("service", nargs="?", metavar="SERVICE", help="this one alone; without it, everything")
        if name == "freeze":
            _end(command)
            command.add_argument("--reason", default="", metavar="TEXT", help="why; shown to everybody who asks")

    command = _add(subparsers, "adopt", adopt, "take over what is out and not ours, or an edited file")
    command.add_argument("pool", metavar="POOL", help="BALANCER/POOL, or the pool's name where it is unambiguous")
    command.add_argument("--diff", action="store_true", help="only show what that would be")

    _add(subparsers, "reload", reload, "read the configuration again; on any error the old one stays")


_INSTANCE = "SERVICE/NAME: the balancer's server name or address:port, or a beginning of it that fits one alone"


def _add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, func: Command, text: str) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    command.add_argument("--api", metavar="URL", help="where the daemon listens; default: $LB_SIDECAR_API, /run/lb-sidecar/api.sock")
    command.add_argument("-o", "--output", choices=("table", "json"), default="table", help="for people or for machines")
    command.add_argument("--json", dest="output", action="store_const", const="json", help="the API's own JSON, as -o json")
    command.set_defaults(func=func, run=_run)
    return command


def _instances(command: argparse.ArgumentParser) -> None:
    command.add_argument("instances", nargs="+", metavar="INSTANCE", help=_INSTANCE)


def _end(command: argparse.ArgumentParser) -> None:
    end = command.add_mutually_exclusive_group()
    end.add_argument("--ttl", metavar="DURATION", help="for so long, as 15m or 2h; without an end until it is cleared")
    end.add_argument("--until", metavar="T", help="until then: 14:05 or 2026-03-01T14:05:00Z")


def _act(command: argparse.ArgumentParser) -> None:
    command.add_argument("--reason", default="", metavar="TEXT", help="why; shown to everybody who asks")
    command.add_argument("--wait", metavar="DURATION", help="so long, as 60s, until the balancers show it; else exit 1")
    command.add_argument("--owner", metavar="NAME", help="in whose name; one word per owner, the strictest wins (default: your user name)")


def _run(args: argparse.Namespace) -> int:
    """Run the chosen command to its exit code."""
    from sidecar.cli.show import Output

    func: Command = args.func
    return asyncio.run(_awaited(func(args, Output(args.output))))


async def _awaited(command: Awaitable[int]) -> int:
    return await command


def _answered(func: Command) -> Command:
    """The command with its failures told: a refusal on standard error (as JSON on standard output, if asked), and the exit code."""

    @functools.wraps(func)
    async def told(args: argparse.Namespace, out: Output) -> int:
        from sidecar.cli.daemon import Misused, Refused, Unreachable

        try:
            return await func(args, out)
        except Misused as error:
            out.complain(str(error))
            return 2
        except Refused as error:
            if out.form == "json":
                out.json(error.answer)
            out.complain(str(error))
            return 1
        except Unreachable as error:
            out.complain(str(error))
            return 1

    return told


# ---- looking ----


@_answered
async def status(args: argparse.Namespace, out: Output) -> int:
    """Everything at a glance. Exit 1 when a service that was asked for fails."""
    from sidecar.cli.daemon import Daemon

    async with Daemon.found(args.api) as daemon:
        if not args.watch:
            found, body = await _services(daemon)
            only = _service(found, args.service).service if args.service else None
            if out.form == "json":
                out.json(body)
            else:
                from sidecar.cli.show import overview

                out.show(overview(found, only))
            return 1 if any(s.status.value == "fail" for name, s in found.services.items() if only in (None, name)) else 0
        return await _watch(daemon, args.service, out)


async def _watch(daemon: Daemon, wanted: str | None, out: Output) -> int:
    """Until Ctrl-C; a daemon that goes away is waited for, once it has answered at all."""
    from rich.live import Live

    from sidecar.cli.daemon import Refused, Unreachable
    from sidecar.cli.show import overview, text

    found, body = await _services(daemon)
    only = _service(found, wanted).service if wanted else None
    if out.form == "json" or not out.is_terminal:
        while True:
            if out.form == "json":
                out.json(body)
            else:
                out.show(overview(found, only))
            await asyncio.sleep(WATCH_EVERY_S)
            found, body = await _services(daemon)
    with Live(overview(found, only), console=out.console, screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                found, _ = await _services(daemon)
                live.update(overview(found, only), refresh=True)
            except (Unreachable, Refused) as error:
                live.update(text(str(error), "bold red"), refresh=True)


@_answered
async def explain(args: argparse.Namespace, out: Output) -> int:
    """One instance: how it is, or was at `--at`, and the decisions that led there."""
    from sidecar.cli.daemon import Daemon
    from sidecar.cli.show import story
    from sidecar.web import models

    if args.state is not None:
        from sidecar.cli import offline

        then = moment(args.at, "--at", datetime.now(UTC), ahead=False) if args.at else None
        return offline.explain(args.state, args.instance, None if then is None else _end_of_its_grain(then), out)
    async with Daemon.found(args.api) as daemon:
        found, _ = await _services(daemon)
        meant = find(found, args.instance)
        at = moment(args.at, "--at", found.sidecar.when, ahead=False) if args.at else None
        address = meant.instance.instance
        until = None if at is None else _rfc3339(_end_of_its_grain(at))
        query = {"service": meant.service.service, "instance": address, "until": until, "limit": str(EXPLAINED)}
        own, body = await daemon.get("/api/v1/decisions", models.Decisions, query)
        if out.form == "json":
            if at is None:
                instance = (await daemon.ask("GET", _path(meant))).body
                body = b'{"instance":' + instance + b',"decisions":' + body + b"}"
            out.json(body)
            return 0
        whole = await daemon.get("/api/v1/decisions", models.Decisions, {**query, "instance": None, "limit": "300"})
        out.show(story(meant.instance, _about(address, own.decisions, whole[0].decisions), found.sidecar.when, at))
    return 0


def _end_of_its_grain(at: datetime) -> datetime:
    """`until` is exclusive, and what happened in that very second (or millisecond) belongs to the story."""
    return at + (timedelta(milliseconds=1) if at.microsecond else timedelta(seconds=1))


def _about(address: str, own: Sequence[models.Decision], whole: Sequence[models.Decision]) -> list[models.Decision]:
    """The instance's own decisions and those about its whole service in the same time, oldest first."""
    since = own[-1].when if own else datetime.max.replace(tzinfo=UTC)
    shared = [d for d in whole if d.when >= since and (not d.instance or any(h.instance == address for h in d.holds))]
    every = {d.id: d for d in (*own, *shared)}
    return [every[number] for number in sorted(every)][-EXPLAINED:]


@_answered
async def history(args: argparse.Namespace, out: Output) -> int:
    """The decision log: the newest that match, shown oldest first."""
    from sidecar.cli.daemon import Daemon, Misused
    from sidecar.cli.show import history as table
    from sidecar.web import models

    if not 1 <= args.limit <= 1000:
        raise Misused(f"--limit is {args.limit}: give a whole number from 1 to 1000")
    now = datetime.now(UTC)
    query: dict[str, str | None] = {"by": args.by, "limit": str(args.limit)}
    for name in ("since", "until"):
        if (given := getattr(args, name)) is not None:
            query[name] = _rfc3339(moment(given, f"--{name}", now, ahead=False))
    if args.state is not None:
        from sidecar.cli import offline

        times = {name: datetime.fromisoformat(text) for name in ("since", "until") if (text := query.get(name)) is not None}
        asked = offline.Asked(args.what, times.get("since"), times.get("until"), args.by, args.limit)
        return offline.history(args.state, asked, out)
    async with Daemon.found(args.api) as daemon:
        if args.what:
            found, _ = await _services(daemon)
            if "/" in args.what:
                meant = find(found, args.what)
                query |= {"service": meant.service.service, "instance": meant.instance.instance}
            else:
                query["service"] = _service(found, args.what).service
        answer, body = await daemon.get("/api/v1/decisions", models.Decisions, query)
    if out.form == "json":
        out.json(body)
    elif answer.decisions:
        out.show(table(list(reversed(answer.decisions)), now))
        if answer.next_cursor is not None:
            out.say(f"older ones are left out: use --until {_rfc3339(answer.decisions[-1].when)} or a higher --limit", "dim")
    else:
        out.say("nothing is on record that matches", "dim")
    return 0


# ---- acting ----


@_answered
async def drain(args: argparse.Namespace, out: Output) -> int:
    """Put instances in draining."""
    return await _override(args, out, "draining")


@_answered
async def maint(args: argparse.Namespace, out: Output) -> int:
    """Put instances in maintenance."""
    return await _override(args, out, "maintenance")


@_answered
async def ready(args: argparse.Namespace, out: Output) -> int:
    """End our own word about instances; what others have said stays, and is shown."""
    return await _override(args, out, "ready")


async def _override(args: argparse.Namespace, out: Output, word: Word) -> int:
    """Every name is understood before the first act. Several go one after the other: each guard must see the act before it."""
    from lbplugins.values import Operator
    from sidecar.cli.daemon import Daemon, Misused, Refused, path, read
    from sidecar.web import models

    owner = args.owner or _user()
    if not _OWNER.fullmatch(owner):
        raise Misused(f"{owner!r} is no owner: use 1 to 64 letters, digits or _ . @ : -, as --owner deploy-42")
    wait_s = None if args.wait is None else duration(args.wait, "--wait", most_s=WAIT_MAX_S)
    ttl, until = _end_of(args) if word != "ready" else (None, None)
    body = models.OverrideBody(state=Operator(word), ttl=ttl, until=until, reason=_reason(args.reason), force=getattr(args, "force", False))
    failed = False
    async with Daemon.found(args.api) as daemon:
        found, _ = await _services(daemon)
        meant = list({str(each): each for each in (find(found, text) for text in args.instances)}.values())
        done: list[tuple[Meant, models.Done]] = []
        for each in meant:
            where = _path(each) + "/override/" + path(owner).removeprefix("/api/v1/")
            is_written = each.service.mode == "act"
            query = {"wait": f"{wait_s:g}s"} if wait_s is not None and len(meant) == 1 and is_written else {}
            try:
                answer = await daemon.ask("PUT", where, query, body=body, extra_s=wait_s or 0.0)
            except Refused as error:
                failed = True
                if out.form == "json":
                    out.json(error.answer)
                out.complain(f"{each}: {error}" + ("" if body.force or error.error.hold is None else "; --force does it nevertheless"))
                continue
            done.append((each, read(models.Done, answer.body, daemon.where)))
        if wait_s is not None and len(meant) > 1 and all(each.service.mode == "act" for each in meant):
            done = await _all_reached(daemon, done, word, wait_s)
        for each, result in done:
            failed |= result.reached is False or (wait_s is not None and each.service.mode == "observe")
            await _tell_done(daemon, out, each, result, word, wait_s)
    return 1 if failed else 0


async def _tell_done(daemon: Daemon, out: Output, each: Meant, result: models.Done, word: Word, wait_s: float | None) -> None:
    """The daemon's sentence; whether the balancers have followed; and what still keeps a `ready` from being all there is to say."""
    from sidecar.cli.show import overridden
    from sidecar.web import models

    if out.form == "json":
        out.json(result.model_dump_json().encode())
        return
    out.say(f"{each}: {result.done}")
    if each.service.mode == "observe":
        out.say("  mode is observe: that is on record, and nothing is written to the balancer", "yellow")
    if result.reached is True:
        out.say("  and every balancer shows it", "green")
    elif result.reached is False:
        out.complain(f"{each}: not every balancer showed it within {wait_s:g} s; see `lb-sidecar explain {each}`")
    if word == "ready":
        left, _ = await daemon.get(_path(each), models.Instance)
        for override in left.overrides:
            cure = f"`lb-sidecar ready {each} --owner {override.owner}` ends that too"
            out.say(f"  but it stays {overridden(override, datetime.now(UTC))}; {cure}", "yellow")
        if left.operator.value != "ready" and not left.overrides:
            cure = "if that is not our own word, end it where it was said"
            out.say(f"  the balancer still shows it in {left.operator.value}; {cure}", "yellow")


async def _all_reached(daemon: Daemon, done: list[tuple[Meant, models.Done]], word: Word, wait_s: float) -> list[tuple[Meant, models.Done]]:
    """Look until the balancers show it of all, or the time is over."""
    from sidecar.web import models

    loop = asyncio.get_running_loop()
    end = loop.time() + wait_s
    waiting = {str(each): each for each, _ in done}
    while waiting:
        for name, each in list(waiting.items()):
            shown, _ = await daemon.get(_path(each), models.Instance)
            if _shows(shown, word):
                del waiting[name]
        if loop.time() >= end:
            break
        if waiting:
            await asyncio.sleep(min(POLL_S, max(0.0, end - loop.time())))
    return [(each, result.model_copy(update={"reached": str(each) not in waiting})) for each, result in done]


def _shows(instance: models.Instance, word: Word) -> bool:
    """Do all balancers show it so? Out means: no new requests, and those under way are done."""
    if word == "ready":
        return instance.operator.value == "ready" and all(server.operator.value == "ready" for server in instance.servers)
    return instance.serving.value == "none" and not any(server.in_flight for server in instance.servers)


@_answered
async def freeze(args: argparse.Namespace, out: Output) -> int:
    """No ejection and no return, of one service or of all."""
    from sidecar.web import models

    ttl, until = _end_of(args)
    return await _freeze(args, out, "PUT", models.FreezeBody(ttl=ttl, until=until, reason=_reason(args.reason)))


@_answered
async def unfreeze(args: argparse.Namespace, out: Output) -> int:
    """End a freeze."""
    return await _freeze(args, out, "DELETE", None)


async def _freeze(args: argparse.Namespace, out: Output, method: str, body: models.FreezeBody | None) -> int:
    from sidecar.cli.daemon import Daemon, read
    from sidecar.web import models

    async with Daemon.found(args.api) as daemon:
        name = _service((await _services(daemon))[0], args.service).service if args.service else None
        answer = await daemon.ask(method, "/api/v1/freeze", {"service": name}, body=body)
        done = read(models.Done, answer.body, daemon.where)
    if out.form == "json":
        out.json(answer.body)
    else:
        out.say(done.done)
    return 0


@_answered
async def adopt(args: argparse.Namespace, out: Output) -> int:
    """Take over a pool's orphans or its edited file; with `--diff` only say what that would be."""
    from sidecar.cli.daemon import Daemon, read
    from sidecar.web import models

    async with Daemon.found(args.api) as daemon:
        pool = _pool((await _services(daemon))[0], args.pool)
        preview = await daemon.ask("GET", "/api/v1/adopt", {"pool": pool, "diff": "1"})
        answer = preview if args.diff else await daemon.ask("POST", "/api/v1/adopt", {"pool": pool})
        would, found = (read(models.Adopted, each.body, daemon.where) for each in (preview, answer))
    if out.form == "json":
        out.json(answer.body)
    else:
        for line in found.text.splitlines() or [f"{found.pool}: nothing to adopt"]:
            if not args.diff and line.startswith("nothing to adopt") and not would.text.startswith("nothing to adopt"):
                line = f"{found.pool} is taken over as it stands in the file"
            out.say(line)
    return 0


@_answered
async def reload(args: argparse.Namespace, out: Output) -> int:
    """Make the daemon read its configuration again."""
    from sidecar.cli.daemon import Daemon, read
    from sidecar.web import models

    async with Daemon.found(args.api) as daemon:
        answer = await daemon.ask("POST", "/api/v1/reload")
        found = read(models.Reloaded, answer.body, daemon.where)
    if out.form == "json":
        out.json(answer.body)
    for problem in found.problems:
        out.complain(problem)
    if found.problems:
        out.complain("the old configuration stays in force; mend the file, `lb-sidecar check` shows every problem")
        return 1
    if out.form == "table":
        out.say("the new configuration is in force")
    return 0


# ---- understanding names and times ----


async def _services(daemon: Daemon) -> tuple[models.Services, bytes]:
    from sidecar.web import models

    return await daemon.get("/api/v1/services", models.Services)


def find(found: models.Services, text: str) -> Meant:
    """The instance meant by SERVICE/NAME; Misused with the candidates when it is none or several."""
    from sidecar.cli.daemon import Misused
    from sidecar.web.look import begins

    name, slash, rest = text.partition("/")
    if not slash or not rest:
        near = [f"{s.service}/{i.name}" for s in found.services.values() for i in s.instances.values() if text in _names(i)]
        hint = f": did you mean {_listed(near)}?" if near else ", as shop/web1 or shop/10.0.0.5:8080"
        raise Misused(f"{text!r} is not SERVICE/NAME{hint}")
    service = _service(found, name)
    instances = list(service.instances.values())
    exact = [i for i in instances if rest in _names(i)]
    fitting = exact or [i for i in instances if any(begins(each, rest) for each in _names(i))]
    if len(fitting) == 1:
        return Meant(service, fitting[0])
    called = [f"{service.service}/{i.name}" + ("" if i.name == i.instance else f" ({i.instance})") for i in fitting or instances]
    if fitting:
        raise Misused(f"{text!r} could be {_listed(called)}: write more of it")
    raise Misused(f"{service.service} has no instance {rest!r}" + (f"; it has {_listed(called)}" if called else ": it has none at all"))


def _names(instance: models.Instance) -> set[str]:
    servers = {form for s in instance.servers for form in (s.server, f"{s.pool}/{s.server}", f"{s.balancer}/{s.pool}/{s.server}")}
    return {instance.instance, instance.name, *servers}


def _service(found: models.Services, text: str) -> models.Service:
    from sidecar.cli.daemon import Misused

    if text in found.services:
        return found.services[text]
    fitting = [name for name in found.services if text and name.startswith(text)]
    if len(fitting) == 1:
        return found.services[fitting[0]]
    if fitting:
        raise Misused(f"service {text!r} could be {_listed(fitting)}: write more of it")
    known = f"known are {_listed(list(found.services))}" if found.services else "the daemon has none, or your token sees none"
    raise Misused(f"there is no service {text!r}; {known}")


def _pool(found: models.Services, text: str) -> str:
    from sidecar.cli.daemon import Misused

    pools = sorted({pool for service in found.services.values() for pool in service.pools})
    if text in pools:
        return text
    fitting = [p for p in pools if p.partition("/")[2] == text] or [p for p in pools if text and p.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Misused(f"pool {text!r} could be {_listed(fitting)}: write BALANCER/POOL")
    raise Misused(f"there is no pool {text!r}" + (f"; known are {_listed(pools)}" if pools else ": no service has one"))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - CANDIDATES} more" if len(names) > CANDIDATES else ""
    return ", ".join(names[:CANDIDATES]) + more


def _path(meant: Meant) -> str:
    from sidecar.cli.daemon import path

    return path("services", meant.service.service, "instances", meant.instance.instance)


def _end_of(args: argparse.Namespace) -> tuple[float | None, datetime | None]:
    """--ttl as seconds, --until as a moment; at most one of them is given."""
    from sidecar.web.models import TTL_MAX_S

    ttl = None if args.ttl is None else duration(args.ttl, "--ttl", most_s=TTL_MAX_S)
    return ttl, None if args.until is None else moment(args.until, "--until", datetime.now(UTC), ahead=True)


def duration(text: str, option: str, *, most_s: float) -> float:
    """Seconds from `15m`; Misused if it is none, not above 0, or longer than `most_s`."""
    from sidecar.cli.daemon import Misused
    from sidecar.net.units import duration_text, parse_duration

    try:
        length_s = parse_duration(text)
    except ValueError as error:
        raise Misused(f"{option}: {error}") from error
    if not 0 < length_s <= most_s:
        raise Misused(f"{option} is {text}: give more than 0 and at most {duration_text(most_s)}")
    return length_s


def moment(text: str, option: str, now: datetime, *, ahead: bool) -> datetime:
    """A UTC moment: RFC 3339, a local date and time, `14:05` (the last one, or the next if `ahead`), or an age as `2h`. Misused."""
    from sidecar.cli.daemon import Misused
    from sidecar.net.units import parse_duration

    local = now.astimezone()
    if (clock := re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?", text, re.ASCII)) is not None:
        hour, minute, second = (int(part or 0) for part in clock.groups())
        if hour < 24 and minute < 60 and second < 60:
            today = local.replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
            if ahead and today.astimezone() <= now:
                today += timedelta(days=1)
            elif not ahead and today.astimezone() > now:
                today -= timedelta(days=1)
            return today.astimezone(UTC)
    if not ahead:
        try:
            return now.astimezone(UTC) - timedelta(seconds=parse_duration(text))
        except (ValueError, OverflowError):
            pass
    try:
        # without an offset it is local time, as on every screen of ours
        when = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        forms = "14:05 or 2026-03-01T14:05:00Z" + ("" if ahead else ", or an age as 2h")
        raise Misused(f"{option} is {text!r}: write it as {forms}") from None
    if ahead and when <= now:
        raise Misused(f"{option} is {text}, and that is over; give a moment ahead, or --ttl")
    return when


def _reason(text: str) -> str:
    from sidecar.cli.daemon import Misused

    if len(text.strip()) > 500:
        raise Misused("--reason has more than 500 characters: say it shorter")
    return text


def _user() -> str:
    """The owner when none is named: who runs the command, also behind sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return f"uid-{os.getuid()}"


def _rfc3339(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


__all__ = [
    "add_parsers", "adopt", "drain", "explain", "find", "freeze", "history", "maint", "moment", "ready", "reload", "status", "unfreeze",
]  # fmt: skip
