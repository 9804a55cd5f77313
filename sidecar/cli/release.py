"""`lb-sidecar release`: give back what we have out when there is no daemon to do it: by timer after a lease has ended, or by hand."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping, Set
from pathlib import Path

from lbplugins.api import BalancerError
from lbplugins.values import FULL, OURS, Address, Change, Ref, Setting
from sidecar.balancers.host import Host
from sidecar.config.compose import pools_of
from sidecar.config.load import find_config, load
from sidecar.config.models import Config
from sidecar.config.plugins import plugin_class
from sidecar.config.problems import ConfigError
from sidecar.core.model import Act, Adopted, Freeze, Intent
from sidecar.journal import intents as journal
from sidecar.journal.force import fold
from sidecar.store import clock, lease, lock, state_dir

WITHIN_S = 20.0


async def release(argument: Path | None, *, everything: bool, expired: bool) -> int:
    """0: all of ours is given back (or nothing was out). 1: some of it is not. 2: wrong use or configuration."""
    if everything == expired:
        return _say("say which: --all gives everything back and freezes, --expired only what no living sidecar answers for", 2)
    try:
        loaded = load(find_config(argument))
        config = loaded.require()
        folder = state_dir.resolve(config.state.dir, os.environ).path
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except state_dir.StateDirError as error:
        return _say(str(error), 1)
    if expired:
        promised = lease.LeaseFile(folder, clock.boot_id()).read()
        if not promised.expired(clock.boottime(), clock.boot_id()):
            return _say(
                f"a sidecar (process {promised.pid}) answers for what is out; its lease runs {promised.until - clock.boottime():.0f} s", 0
            )
    held = lock.acquire(folder / "lock")
    if isinstance(held, lock.Busy) and everything:
        return _say(f"a sidecar runs ({held.by}): ask it, with `lb-sidecar freeze` and `lb-sidecar ready`, or stop it first", 1)
    if isinstance(held, lock.Unusable):
        return _say(held.why, 1)
    try:
        return await _give_back(config, folder, everything=everything, may_journal=isinstance(held, lock.Held))
    except journal.JournalError as error:
        return _say(str(error), 1)
    finally:
        if isinstance(held, lock.Held):
            held.release()


async def _give_back(config: Config, folder: Path, *, everything: bool, may_journal: bool) -> int:
    found = journal.read(folder)
    adopted = fold(found.stored, clock.monotonic(), clock.boottime(), clock.boot_id(), clock.wall())
    out = {ejection.instance for ejection in adopted.ejections}
    failures = 0
    for name in sorted(config.balancers):
        theirs = {(service, pool) for service, options in config.services.items() for b, pool in pools_of(service, options) if b == name}
        ours = {(pool, i.address) for service, pool in theirs for i in out if i.service == service}
        notes = {server.ref: note for server, note in (adopted.notes or {}).items() if server.balancer == name}
        if ours:
            failures += await _give_back_on(config, name, ours, notes)
    unknown = {i.service for i in out} - set(config.services)
    for service in sorted(unknown):
        print(f"service {service} is no longer in the configuration; what we have out of it stays out", file=sys.stderr)
    if may_journal and not failures and not unknown:
        _write_down(folder, adopted, everything=everything)
    if not out:
        print("nothing of ours is out")
    return 1 if failures or unknown else 0


async def _give_back_on(config: Config, name: str, ours: Set[tuple[str, Address]], notes: Mapping[Ref, str]) -> int:
    """How many servers of this balancer could not be given back. `ours`: pool and address of what we have out there."""
    options = config.balancers[name]
    host = Host(name, lambda: plugin_class(options.plugin)(options.options))
    try:
        pictures = await host.observe(frozenset(pool for pool, _ in ours), notes, WITHIN_S)
        changes = [
            Change(ref, Setting(FULL), seen, OURS, note=notes.get(ref, ""), why="released")
            for ref, seen in pictures.items()
            if seen.address is not None and (ref.pool, seen.address) in ours and seen.ours != Setting(FULL)
        ]
        refused = await host.apply(changes, WITHIN_S) if changes else ()
    except BalancerError as error:
        print(f"balancer {name}: {error}", file=sys.stderr)
        return len(ours)
    finally:
        await host.aclose()
    for refusal in refused:
        print(f"{name}/{refusal.change.ref} was not given back: {refusal.reason}", file=sys.stderr)
    kept = {refusal.change.ref for refusal in refused}
    for change in changes:
        if change.ref not in kept:
            print(f"{name}/{change.ref} is given back")
    return len(refused)


def _write_down(folder: Path, adopted: Adopted, *, everything: bool) -> None:
    log = journal.Intents.open(folder, boottime=clock.boottime, boot_id=clock.boot_id(), wall=clock.wall)
    now = clock.monotonic()
    actor = f"operator:{_user()}"
    intents = [Intent(Act.FORGET, now, actor, "released", e.instance, e) for e in adopted.ejections]
    if everything:
        freeze = Freeze("", actor, now, None, "released by hand; `lb-sidecar unfreeze` lets the sidecar act again")
        intents.append(Intent(Act.FREEZE, now, actor, freeze.reason, freeze=freeze))
        print("frozen: nothing goes out until `lb-sidecar unfreeze`")
    log.append(intents)
    log.close()


def _user() -> str:
    """Our user's name, or the number where it has none, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr if code else sys.stdout)
    return code
