"""What `check` finds out on this machine: our own rights, each balancer with its servers, and the arithmetic of each service.

Nothing is changed by asking: what is made to see whether it can be is gone at once, no lock is taken that a sidecar could want, no
balancer is told anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import http.client
import os
import pwd
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import Address, Change, Operator, Ref, Refusal, Seen
from sidecar.balancers.host import Host
from sidecar.cli import pools
from sidecar.config import compose
from sidecar.config.models import ANY, Config
from sidecar.config.plugins import plugin_class
from sidecar.config.problems import one_line
from sidecar.core.arithmetic import Arithmetic, arithmetic
from sidecar.core.model import Learned, ServerRef, Target
from sidecar.core.policy import Mode, Policy, ServicePolicy
from sidecar.journal import force, intents
from sidecar.store import clock, learned, lock, state_dir
from sidecar.web.options import DEFAULT_SOCKET

RIGHTS_WITHIN_S = 45.0
"""A test of nginx's configuration may take 20 s."""
LOOK_WITHIN_S = 10.0
ANSWER_WITHIN_S = 2.0
"""For whatever sits on our API's address to say who it is."""
POLLED_WITHIN_S = 2.2
"""HAProxy's agent-check comes every 2 s unless told otherwise: only then it shows that it asks us."""
LISTENING = ("agent", "traffic")
"""Options with which a plugin listens. Where a sidecar runs, it listens there already."""

TYPICAL = Learned(100, 0.001, 0.002)
"""What an ordinary instance on the same network teaches: 1 ms, and 2 ms when it is slow."""


class Course(NamedTuple):
    """What happens to a server that we have out: who checks it meanwhile, and who brings it back if we die."""

    checked_by: str
    returned_by: str


HAPROXY_LEVERS: Mapping[str, str] = {
    "A": "its agent-check asks us, and we answer `down` or `up`",
    "B": "it has an agent-check that nobody answers: `set server … agent down`",
    "C": "somebody else moves it (another agent, or it tracks another server): we only look",
    "D": "HAProxy checks it: its check is switched off and `health down` said; back: the check is on again, and decides",
    "E": "HAProxy does not check it: `set server … health down`",
}
"""What each axis is: the lever by which a server is taken out, beside the operator's `set server … state`."""

_LEASE = "`release --expired` after 120 s or a new start of ours"
_RELOAD = "a reload of HAProxy as well, which we undo within 1 s while we live"

HAPROXY: Mapping[str, Course] = {
    "A": Course(
        "HAProxy's agent-check, which asks us, and we; HAProxy's own check, if it has one, goes on",
        f"{_LEASE}; a reload of HAProxy as well, for nobody answers it then",
    ),
    "B": Course("we alone, for nobody answers its agent-check; HAProxy's own check, if it has one, goes on", f"{_LEASE}; {_RELOAD}"),
    "C": Course("we never have it out", "nobody needs to"),
    "D": Course(
        "we alone; HAProxy's own check is off meanwhile",
        f"{_LEASE}: HAProxy's check goes on again, and decides; {_RELOAD}",
    ),
    "E": Course("we alone; HAProxy does not check it", f"{_LEASE}; {_RELOAD}"),
}
"""By the axis on which we move a server."""
NGINX = Course(
    "we alone; open-source nginx checks nothing by itself",
    f"{_LEASE}; not a reload of nginx, for it is marked `down` in its file",
)
OTHER = Course("we do", _LEASE)


@dataclass(frozen=True, slots=True)
class Own:
    """Who we are and what this user may. `state`: the folder, None = there is none to be had. `daemon`: who runs there, "" = nobody.

    `lacking`: what `run` would fail for; `advice`: what it would go without.
    """

    user: str
    uid: int
    groups: tuple[str, ...]
    state: Path | None = None
    state_note: str = ""
    daemon: str = ""
    lacking: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """One server of one of our pools. `axis`: where we move it, "-" = this balancer has but one. `kept_off`: "" or why we cannot now."""

    service: str
    ref: Ref
    address: Address | None
    axis: str
    operator: Operator
    serving: bool | None
    kept_off: str
    remark: str
    settle_s: float


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One balancer. `fault`: "" or why it cannot be reached. `lacking`: missing rights. `absent`: pools it does not have."""

    name: str
    plugin: str
    mode: Mode
    fault: str = ""
    lacking: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()
    courses: Mapping[str, Course] = field(default_factory=dict)
    pools: frozenset[str] = frozenset()

    @property
    def is_ready(self) -> bool:
        """Could a sidecar do here what its mode says? One that observes needs no right to write."""
        return not (self.fault or self.absent or (self.lacking and self.mode is Mode.ACT))


@dataclass(frozen=True, slots=True)
class Survey:
    """All of it; the service `*` is replaced by those it stands for. `later`: of services not known yet, once they are."""

    own: Own
    balancers: tuple[Surveyed, ...]
    services: tuple[Arithmetic, ...]
    later: Mapping[str, Arithmetic]

    @property
    def is_ready(self) -> bool:
        return not self.own.lacking and all(each.is_ready for each in self.balancers)


async def survey(config: Config, files: Sequence[Path], environ: Mapping[str, str]) -> Survey:
    """Look at everything this configuration names, within a bounded time. `files`: those it was read from."""
    own = _own(config, files, environ)
    known, notes = _remembered(own)
    looks = (_balancer(config, name, own, {s.ref: note for s, note in notes.items() if s.balancer == name}) for name in config.balancers)
    found = tuple(await asyncio.gather(*looks))
    for each in found:
        config = compose.expand(config, each.name, each.pools)
    policy = _policy(config)
    # Servers of services that `*` stands for get their names only now.
    owners = {pair: name for name, service in policy.services.items() for pair in service.pools}
    found = tuple(
        replace(each, servers=tuple(replace(s, service=owners.get((each.name, s.ref.pool), "")) for s in each.servers)) for each in found
    )
    numbers = tuple(_numbers(config, policy, name, known, found) for name in policy.services)
    return Survey(own, found, numbers, _later(policy, numbers))


def on_paper(config: Config) -> tuple[tuple[Arithmetic, ...], Mapping[str, Arithmetic]]:
    """The arithmetic from the file alone: nobody known, instances only where it lists them; and what it is once they are."""
    policy = _policy(config)
    numbers = tuple(_numbers(config, policy, name, {}, ()) for name in policy.services)
    return numbers, _later(policy, numbers)


def _policy(config: Config) -> Policy:
    return compose.policy(config, {name: plugin_class(b.plugin).traits for name, b in config.balancers.items()})


# ---- ourselves ----


def _own(config: Config, files: Sequence[Path], environ: Mapping[str, str]) -> Own:
    lacking, advice = [], []
    state, state_note = _state(config.state.dir, environ)
    if state is None:
        lacking.append(state_note)
    daemon = _daemon(state) if state is not None else ""
    lacking += _listen(config, daemon)
    if not daemon:
        lacking += _certificate(config)
        if (why := _api_socket(config.api.socket)) and config.api.socket == DEFAULT_SOCKET:
            advice.append(f"{why}; without it the other commands must be told `--api http://{config.api.listen}`")
        elif why:
            lacking.append(why)
    return Own(_name(os.geteuid()), os.geteuid(), _groups(), state, state_note, daemon, tuple(lacking), tuple(advice))


def _state(configured: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """The state folder and what there is to say of it; None with the reason when `run` could not have one. It is not made."""
    path = _state_folder(configured, environ)
    if path is not None and not os.path.lexists(path):
        above = next(folder for folder in path.parents if os.path.exists(folder))  # `Path.exists` raises where it may not look
        if not os.access(above, os.W_OK | os.X_OK):
            make = f"install -d -m 0750 -o {_name(os.geteuid())} {path}"
            return None, f"the state folder {path} does not exist and {_name(os.geteuid())} may not make it in {above}: `{make}`"
        if why := _unmakeable(above):
            return None, f"the state folder {path} cannot be made: {above} takes no folder ({why}); set `state.dir` to one that can be"
        return path, "is made at the first start"
    try:
        found = state_dir.resolve(configured, environ)
    except (state_dir.StateDirError, OSError) as error:
        return None, str(error)
    if why := _unmakeable(found.path):
        return None, f"nothing can be written to the state folder {found.path} ({why}); set `state.dir` to another, or see to its disk"
    return found.path, f"by {found.origin}" if found.origin.startswith(("state", "$")) else found.origin


def _unmakeable(folder: Path) -> str:
    """Why nothing can be made there, though the rights are; "" = something can. Root may write to /proc, and yet cannot."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".lb-sidecar-trial-", dir=folder))
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


def _state_folder(configured: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The folder that `run` would make, if it has to make one; None = leave it to the one that resolves."""
    if configured is not None:
        return configured if configured.is_absolute() else None
    if named := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(named) if named.startswith("/") else None
    system = state_dir.SYSTEM_DIR
    if not os.path.lexists(system) and os.access(system.parent, os.W_OK | os.X_OK):
        return system
    with contextlib.suppress(OSError):
        if os.stat(system, follow_symlinks=False).st_uid == os.geteuid():
            return system
    for text, rest in ((environ.get("XDG_STATE_HOME", ""), state_dir.NAME), (environ.get("HOME", ""), f".local/state/{state_dir.NAME}")):
        if text.startswith("/"):
            return Path(text) / rest
    return None


def _daemon(state: Path) -> str:
    """Who has this state folder in use; "" = nobody."""
    path = state / "lock"
    if not os.path.exists(path):
        return ""
    held = lock.acquire(path, "lb-sidecar check")
    if isinstance(held, lock.Held):
        held.release()
    return held.by if isinstance(held, lock.Busy) else ""


def _listen(config: Config, daemon: str) -> list[str]:
    """Why the API could not listen. What our own daemon holds is its own; whoever else is there is told, even while it runs."""
    listen = config.api.listen
    if listen is None:
        return []
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        socket.create_server((listen.host, listen.port), family=family).close()
    except OSError as error:
        return _not_listening_at(listen, error, daemon, is_tls=config.api.tls is not None)
    return []


def _not_listening_at(listen: Address, error: OSError, daemon: str, *, is_tls: bool) -> list[str]:
    cure = "choose another address, or null for the unix socket alone"
    if error.errno != errno.EADDRINUSE:
        return [f"api.listen {listen}: {os.strerror(error.errno) if error.errno else error}; {cure}"]
    if not _is_a_sidecar(listen, is_tls=is_tls):
        late = f", and not by {daemon}, which could not listen there again" if daemon else ""
        return [f"api.listen {listen} is taken by another process{late} (`ss -tlnp 'sport = :{listen.port}'` shows it as root); {cure}"]
    return [] if daemon else [f"api.listen {listen} is taken by an lb-sidecar that runs with another state folder: stop it, or {cure}"]


def _is_a_sidecar(listen: Address, *, is_tls: bool) -> bool:
    """Does what answers there call itself one?"""
    if is_tls:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # nothing is believed but its name
        asked: http.client.HTTPConnection = http.client.HTTPSConnection(listen.host, listen.port, timeout=ANSWER_WITHIN_S, context=trusting)
    else:
        asked = http.client.HTTPConnection(listen.host, listen.port, timeout=ANSWER_WITHIN_S)
    try:
        asked.request("GET", "/livez")
        return asked.getresponse().getheader("Server", "") == "lb-sidecar"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def _certificate(config: Config) -> list[str]:
    """Why the API could not read its certificate."""
    lines, tls = [], config.api.tls
    for key, path in (("cert", tls.cert), ("key", tls.key)) if tls is not None else ():
        if not os.access(path, os.R_OK):
            reason = f"{_name(os.geteuid())} may not read it" if os.path.lexists(path) else "there is no such file, or none that it may see"
            lines.append(f"api.tls.{key} {path}: {reason}; `chown {_name(os.geteuid())} {path}` and mode 0600")
    return lines


def _api_socket(path: Path | None) -> str:
    """Why the api socket could not be made; "" = it could."""
    if path is None:
        return ""
    folder, us = path.parent, _name(os.geteuid())
    if not os.path.isdir(folder):
        make = f"`install -d -o {us} {folder}`, or `RuntimeDirectory=` in the unit"
        return f"no api socket: its folder {folder} does not exist, or is shut to {us}: {make}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no api socket: {us} may not write to {folder}: `chown {us} {folder}`, or `RuntimeDirectory=` in the unit"
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        return f"no api socket: {path} is no socket: remove it, or name another in `api.socket`"
    return ""


def _remembered(own: Own) -> tuple[Mapping[Target, Learned], Mapping[ServerRef, str]]:
    """What an earlier life has learned and noted; nothing where there is none, or it may not be read."""
    if own.state is None or not os.path.isdir(own.state):
        return {}, {}
    known = learned.load(own.state).targets
    try:
        stored = intents.read(own.state).stored
    except intents.JournalError:
        return known, {}
    adopted = force.fold(stored, clock.monotonic(), clock.boottime(), clock.boot_id(), clock.wall())
    return known, dict(adopted.notes or {})


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups() -> tuple[str, ...]:
    names = []
    for gid in dict.fromkeys((os.getegid(), *os.getgroups())):
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            names.append(str(gid))
    return tuple(names)


# ---- balancers ----


class _Unopened(Balancer):
    """A plugin before `open`: asked for its rights where it may well be that it cannot be opened."""

    def __init__(self, plugin: Balancer) -> None:
        super().__init__(plugin.options)
        self._plugin = plugin

    async def rights(self) -> Sequence[str]:
        return await self._plugin.rights()

    async def observe(self, pools: frozenset[str], notes: Mapping[Ref, str]) -> Mapping[Ref, Seen]:
        raise BalancerError("asked for its rights only")

    async def apply(self, changes: Sequence[Change]) -> Sequence[Refusal]:
        raise BalancerError("asked for its rights only")


async def _balancer(config: Config, name: str, own: Own, notes: Mapping[Ref, str]) -> Surveyed:
    options, make = config.balancers[name], plugin_class(config.balancers[name].plugin)
    quiet = _not_listening(options.options) if own.daemon else options.options
    surveyed = Surveyed(name, options.plugin, pools.mode_of(config, name))
    lacking = await _rights(name, partial(make, quiet))
    host = Host(name, partial(make, quiet))
    try:
        found = await _look(host, config, name, notes, waits=getattr(quiet, "agent", None) is not None)
        beside = await _lock(host)
    except BalancerError as error:
        return replace(surveyed, fault=str(error), lacking=tuple(line for line in lacking if line not in str(error)))
    finally:
        await host.aclose()
    seen, there = found
    absent = tuple(pools.absent(config, name, seen, there))
    lacking += [line for line in pools.kept_off(config, name, seen) if not lacking]
    servers = tuple(_server(options.plugin, ref, each) for ref, each in sorted(seen.items()))
    advice = [*beside, *_grain(seen)]
    if own.daemon and quiet is not options.options:
        advice.append("a sidecar runs and listens for it, so a server that its agent-check moves is shown as somebody else's here")
    courses = {s.axis: _course(options.plugin, s.axis) for s in servers}
    return replace(surveyed, lacking=tuple(lacking), absent=absent, advice=tuple(advice), servers=servers, courses=courses, pools=there)


def _not_listening(options: BaseModel) -> BaseModel:
    """The same options without those by which the plugin listens; the very same if it has none."""
    off = {key: None for key in LISTENING if getattr(options, key, None) is not None}
    return options.model_copy(update=off) if off else options


async def _rights(name: str, make: partial[Balancer]) -> list[str]:
    host = Host(name, lambda: _Unopened(make()))
    try:
        lines = await host.do(lambda plugin: plugin.rights(), RIGHTS_WITHIN_S)
        if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
            return [f"its rights are unknown: the plugin answered {lines!r:.80}"]
        return [one_line(line, 600) for line in lines]
    except BalancerError as error:
        return [f"its rights are unknown: {error}"]
    finally:
        await host.aclose()


async def _look(
    host: Host, config: Config, name: str, notes: Mapping[Ref, str], *, waits: bool
) -> tuple[Mapping[Ref, Seen], frozenset[str]]:
    """The picture of our pools there, and all pools it can list. `waits`: once it has had time to ask us."""
    listed = await host.pools(LOOK_WITHIN_S)
    wanted = pools.wanted(config, name)
    if (template := config.services.get(ANY)) is not None and name in compose.any_balancers(template):
        wanted |= listed
    seen = await host.observe(wanted, notes, LOOK_WITHIN_S)
    if waits:
        await asyncio.sleep(POLLED_WITHIN_S)
        seen = await host.observe(wanted, notes, LOOK_WITHIN_S)
    return seen, listed


async def _lock(host: Host) -> list[str]:
    """Whether the one-writer lock can stand where every writer sees it."""

    async def ask(plugin: Balancer) -> str | None:
        return plugin.lock_path()

    return _no_lock(await host.do(ask, LOOK_WITHIN_S))


def _no_lock(path: str | None) -> list[str]:
    if path is None or os.path.exists(path) or os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        return []
    return [
        f"the one-writer lock {path} cannot be made, so a second sidecar on another machine or in a container would not be noticed: "
        f"`install -m 0644 /dev/null {path}` as root"
    ]


def _grain(seen: Mapping[Ref, Seen]) -> list[str]:
    """One advice for each pool whose weights are too coarse to be cut."""
    lines = []
    for pool in sorted({ref.pool for ref in seen}):
        servers = [each for ref, each in seen.items() if ref.pool == pool and each.writable is None]
        coarse = [each for each in servers if each.grain_pct > 20 and each.address is not None]
        if not coarse:
            continue
        if all(each.weight <= 4 for each in coarse):
            steps = f"weight {coarse[0].weight} leaves no steps between all and nothing"
            lines.append(
                f"pool {pool}: {steps}, so weight cuts and ramps are skipped; if it knows weights, write `weight 100` on each server"
            )
        else:
            lines.append(f"pool {pool}: its algorithm takes no weights while it runs, so weight cuts and ramps are skipped")
    return lines


def _server(plugin: str, ref: Ref, seen: Seen) -> Server:
    axis = seen.note[:1] if plugin == "haproxy" and seen.note[:1] in HAPROXY else "-"
    kept_off = one_line(seen.writable or "", 300)
    return Server("", ref, seen.address, axis, seen.operator, seen.serving, kept_off, one_line(seen.remark, 300), seen.settle_s)


def _course(plugin: str, axis: str) -> Course:
    return HAPROXY.get(axis, NGINX if plugin == "nginx" else OTHER)


# ---- services ----


def _numbers(config: Config, policy: Policy, name: str, known: Mapping[Target, Learned], found: Sequence[Surveyed]) -> Arithmetic:
    service = policy.services[name]
    mine = [s for each in found for s in each.servers if (each.name, s.ref.pool) in service.pools]
    rows = [[known.get(_target(address, service, i)) for i in range(len(service.probes))] for address in _addresses(config, name, mine)]
    costly = any(policy.balancers[balancer].costly for balancer, _ in service.pools)
    return arithmetic(service, policy.pace, rows, costly=costly, settle_s=max((s.settle_s for s in mine), default=0.0))


def _later(policy: Policy, numbers: Iterable[Arithmetic]) -> Mapping[str, Arithmetic]:
    """The same for services of which not all are known, as if all answered as `TYPICAL`."""
    found = {}
    for each in numbers:
        if each.known < max(1, each.instances):
            service = policy.services[each.service]
            found[each.service] = arithmetic(service, policy.pace, [[TYPICAL] * len(service.probes)] * max(2, each.instances))
    return found


def _addresses(config: Config, name: str, servers: Sequence[Server]) -> list[Address]:
    """The instances that count: listed, or as the balancers have them, without those in an operator's drain or maintenance."""
    instances = config.services[name].instances
    away = {s.address for s in servers if s.operator is not Operator.READY} - {s.address for s in servers if s.operator is Operator.READY}
    named = [entry.address for entry in instances.static] if instances is not None and instances.static else [s.address for s in servers]
    return [address for address in dict.fromkeys(named) if address is not None and address not in away]


def _target(address: Address, service: ServicePolicy, i: int) -> Target:
    plan = service.probes[i]
    return Target(address if plan.port is None else address._replace(port=plan.port), plan.key)


__all__ = ["Course", "Own", "Server", "Survey", "Surveyed", "on_paper", "survey"]
