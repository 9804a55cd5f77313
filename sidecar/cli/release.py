"""`lb-sidecar release`: give back what we have out when there is no daemon to do it: by timer after a lease has ended, or by hand."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from lbplugins.api import BalancerError
from lbplugins.values import Address, Ref
from sidecar.balancers.host import Host
from sidecar.balancers.undo import give_back, whereabouts
from sidecar.cli.daemon import Daemon, Place, Refused, Unreachable, path
from sidecar.cli.folder import owner_of
from sidecar.config.compose import pools_of
from sidecar.config.load import find_config, load
from sidecar.config.models import Config
from sidecar.config.plugins import plugin_class
from sidecar.config.problems import ConfigError
from sidecar.core.model import Act, Adopted, Freeze, Instance, Intent
from sidecar.journal import intents as journal
from sidecar.journal.force import Stored, fold
from sidecar.store import clock, lease, lock, state_dir
from sidecar.web import models

WITHIN_S = 20.0
ENDS_SOON_S = 30.0
"""Longer than from one run of the timer, or of the compose companion, to the next."""


async def release(argument: Path | None, *, everything: bool, expired: bool, state: Path | None = None) -> int:
    """0: all of ours is given back (or nothing was out). 1: some of it is not. 2: wrong use or configuration.

    `state`: the dead sidecar's state folder; None = as the configuration says.
    """
    if everything == expired:
        return _say("say which: --all gives everything back and freezes, --expired only what no living sidecar answers for", 2)
    try:
        loaded = load(find_config(argument))
        config = loaded.require()
        if state is None and config.state.dir is None and (owner := _owner_of_the_usual()):
            return _say(
                f"the state folder {state_dir.SYSTEM_DIR} belongs to {owner}, and in it stands what is out: "
                f"run it as that user (`sudo -u {owner} lb-sidecar release …`)",
                1,
            )
        folder = _folder(config, state)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except state_dir.StateDirError as error:
        return _say(str(error), 1)
    promised = await _promised(folder) if expired else lease.Lease(0.0, "")
    now, boot_id = clock.boottime(), clock.boot_id()
    unanswered = promised.unanswered(now, boot_id)
    is_covered = expired and not promised.expired(now, boot_id)
    if is_covered and not unanswered:
        who = f"the lease of the sidecar (process {promised.pid})"
        return _say(f"{who} still covers what is out, for {promised.until - now:.0f} s; `release --all` does not wait for its end", 0)
    held = lock.acquire(folder / "lock")
    if isinstance(held, lock.Busy) and everything:
        return await _ask_daemon(config, held.by)
    if isinstance(held, lock.Unusable):
        return _say(held.why, 1)
    try:
        may_journal = isinstance(held, lock.Held)
        if is_covered:
            return min(1, await _give_back_on_each(config, folder, unanswered, unanswered, may_journal=may_journal))
        return await _give_back(config, folder, unanswered, everything=everything, may_journal=may_journal)
    except journal.JournalError as error:
        return _say(str(error), 1)
    finally:
        if isinstance(held, lock.Held):
            held.release()


def _folder(config: Config, named: Path | None) -> Path:
    """The state folder, of the configuration or the one named, which must be there: one made anew would hold nothing. StateDirError."""
    # a file system that has gone read-only still tells what is out, and giving back needs no more
    if named is None:
        return state_dir.resolve(config.state.dir, os.environ, to_write=False).path
    if not os.path.lexists(named):
        raise state_dir.StateDirError(
            f"there is no folder {named}: --state is the state folder of `lb-sidecar run`, which `lb-sidecar check` shows"
        )
    return state_dir.resolve(named.absolute(), os.environ, to_write=False).path


async def _promised(folder: Path) -> lease.Lease:
    """The lease. The end of one that ends soon is waited for."""
    file, boot_id = lease.LeaseFile(folder, clock.boot_id()), clock.boot_id()
    promised = file.read()
    if not promised.expired(clock.boottime(), boot_id) and promised.until - clock.boottime() < ENDS_SOON_S:
        await asyncio.sleep(promised.until - clock.boottime())
        promised = file.read()
    return promised


async def _ask_daemon(config: Config, who: str) -> int:
    """A living sidecar gives back by itself, and knows it afterwards."""
    if config.api.socket is None:
        return _say(f"a sidecar runs ({who}) and has no `api.socket` to be asked at: stop it, then try again", 1)
    try:
        async with Daemon(Place("http://localhost", str(config.api.socket), "the configuration"), None) as daemon:
            await daemon.ask("POST", path("release"), body=models.ReasonBody(reason="released by hand"))
    except Refused as error:
        return _say(f"a sidecar runs ({who}) and refuses: {error.error.error}; stop it, then try again", 1)
    except Unreachable as error:
        return _say(f"a sidecar runs ({who}) and cannot be asked: {error}; stop it, then try again", 1)
    return _say(f"the sidecar that runs ({who}) gives everything back and is frozen: nothing goes out until `lb-sidecar unfreeze`", 0)


async def _give_back(config: Config, folder: Path, unanswered: Set[str], *, everything: bool, may_journal: bool) -> int:
    found, adopted = _in_force(folder)
    out = {ejection.instance for ejection in adopted.ejections}
    failures = await _give_back_on_each(config, folder, config.balancers.keys(), unanswered, may_journal=may_journal)
    known = {i for name in config.balancers for _, address in _ours(config, name, out, found) for i in out if i.address == address}
    for instance in sorted(out - known):
        print(f"{instance} is out by us, and no balancer of the configuration has it any more: look there", file=sys.stderr)
    if may_journal:
        _write_down(folder, adopted, is_done=not failures and not out - known, everything=everything)
    if not out:
        print("nothing of ours is out")
    return 1 if failures or out - known else 0


def _in_force(folder: Path) -> tuple[Sequence[Stored], Adopted]:
    stored = journal.read(folder).stored
    return stored, fold(stored, clock.monotonic(), clock.boottime(), clock.boot_id(), clock.wall())


async def _give_back_on_each(config: Config, folder: Path, names: Set[str], unanswered: Set[str], *, may_journal: bool) -> int:
    """How many servers of these balancers could not be given back. `unanswered`: where our sidecar, if it lives, only stands by."""
    stored, adopted = _in_force(folder)
    out = {ejection.instance for ejection in adopted.ejections}
    others = {server for ejection in adopted.ejections for server in ejection.others}
    failures = 0
    for name in sorted(names & config.balancers.keys()):
        ours = _ours(config, name, out, stored)
        notes = {server.ref: note for server, note in (adopted.notes or {}).items() if server.balancer == name}
        theirs = {server.ref for server in others if server.balancer == name}
        if ours:
            is_alive = not may_journal and name not in unanswered
            failures += await _give_back_on(config, folder, name, ours, notes, theirs, is_alive=is_alive)
    return failures


def _ours(config: Config, balancer: str, out: Set[Instance], stored: Sequence[Stored]) -> frozenset[tuple[str, Address]]:
    """Pool and address of what we have out on this balancer: by the configuration as it is, and as it was when we took it out."""
    pools = {(name, pool) for name, options in config.services.items() for owner, pool in pools_of(name, options) if owner == balancer}
    now = {(pool, i.address) for service, pool in pools for i in out if i.service == service}
    then = {(server.ref.pool, i.address) for i, server in whereabouts(stored, out) if server.balancer == balancer}
    return frozenset(now | then)


async def _give_back_on(
    config: Config, folder: Path, name: str, ours: Set[tuple[str, Address]], notes: Mapping[Ref, str], theirs: Set[Ref], *, is_alive: bool
) -> int:
    """How many servers of this balancer could not be given back. `ours`: pool and address of what we have out there; `theirs`: those that
    a hand had out before us.

    `is_alive`: our sidecar runs. If it writes, it is only the lease that it could not renew, and what is out is its business. If another
    sidecar writes, what the dead one has out is nobody's for it, and stays so.
    """
    options = config.balancers[name]
    host = Host(name, lambda: plugin_class(options.plugin)(options.options))
    held: lock.Held | lock.Busy | lock.Unusable | None = None
    try:
        beside = await host.writer_lock(WITHIN_S)
        held = lock.acquire(Path(beside) if beside else folder / f"writer-{name}.lock", "lb-sidecar release")
        if isinstance(held, lock.Busy) and is_alive:
            print(f"balancer {name}: {held.by} writes to it and answers for what is out there", file=sys.stderr)
            return len(ours)
        done, refused = await give_back(host, ours, notes, WITHIN_S, theirs)
    except BalancerError as error:
        print(f"balancer {name}: {error}", file=sys.stderr)
        return len(ours)
    finally:
        await host.aclose()
        if isinstance(held, lock.Held):
            held.release()
    for refusal in refused:
        print(f"{name}/{refusal.change.ref} was not given back: {refusal.reason}", file=sys.stderr)
    for ref in done:
        print(f"{name}/{ref} is given back")
    return len(refused)


def _write_down(folder: Path, adopted: Adopted, *, is_done: bool, everything: bool) -> None:
    """What is given back is ours no more. The freeze holds even if some could not be: else a new start would go on."""
    log = journal.Intents.open(folder, boottime=clock.boottime, boot_id=clock.boot_id(), wall=clock.wall)
    now = clock.monotonic()
    actor = f"operator:{_user()}"
    intents = [Intent(Act.FORGET, now, actor, "released", e.instance, e) for e in adopted.ejections if is_done]
    if everything:
        freeze = Freeze("", actor, now, None, "released by hand; `lb-sidecar unfreeze` lets the sidecar act again")
        intents.append(Intent(Act.FREEZE, now, actor, freeze.reason, freeze=freeze))
        print("frozen: nothing goes out until `lb-sidecar unfreeze`")
    log.append(intents)
    log.close()


def _owner_of_the_usual() -> str:
    """Whose the system's state folder is, if not ours: to look into another and find nothing would be the wrong answer."""
    if os.environ.get("STATE_DIRECTORY") or not os.path.isdir(state_dir.SYSTEM_DIR):
        return ""
    if os.stat(state_dir.SYSTEM_DIR).st_uid == os.geteuid():
        return ""
    return owner_of(state_dir.SYSTEM_DIR)


def _user() -> str:
    """Our user's name, or the number where it has none, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _say(sentence: str, code: int) -> int:
    print(f"lb-sidecar release: {sentence}" if code else sentence, file=sys.stderr if code else sys.stdout)
    return code
