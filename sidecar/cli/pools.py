"""What is wrong with the pools that services name: not there, nobody in them to ask, or nobody whom we could take out. With the cure.

For `check`, which looks once, and for `run`, which goes on looking and says each in the log once it has stood for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from lbplugins.api import Balancer, BalancerError
from lbplugins.values import Operator, Ref, Seen
from sidecar.config import compose
from sidecar.config.models import ANY, Config, ServiceOptions
from sidecar.config.plugins import plugin_class
from sidecar.config.problems import did_you_mean, listed
from sidecar.core.policy import Mode

if TYPE_CHECKING:
    from sidecar.app import App

LOOK_EVERY_S = 2.0
STANDS_S = 5.0
"""What a start or a reload of the balancer makes look so for a moment is nobody's mistake."""
PATIENCE_S = 5.0

log = logging.getLogger("sidecar.pools")


def wanted(config: Config, name: str) -> frozenset[str]:
    """The pools of this balancer that services name."""
    refs = [ref for service, options in config.services.items() if service != ANY for ref in compose.pools_of(service, options)]
    return frozenset(ref.pool for ref in refs if ref.balancer == name)


def mode_of(config: Config, name: str) -> Mode:
    """act, if any service may act on this balancer."""
    acts = any(options.mode is Mode.ACT for key, options in config.services.items() if _stands_on(key, options, name))
    return compose.stricter(config.mode, config.balancers[name].mode, Mode.ACT if acts else Mode.OBSERVE)


def _stands_on(key: str, options: ServiceOptions, name: str) -> bool:
    return any(ref.balancer == name for ref in compose.pools_of(key, options))


def is_filled(config: Config, name: str) -> bool:
    """Does the balancer's plugin take the members of its pools from us?"""
    return _takes_members(config.balancers[name].plugin)


@cache
def _takes_members(plugin: str) -> bool:
    """Asked each second and the same for ever, while looking plugins up reads every package's files."""
    return plugin_class(plugin).members is not Balancer.members


def due(config: Config, name: str) -> frozenset[str]:
    """Of the wanted ones, those that must be there before us: discovery fills the others where the plugin lets it."""
    if not is_filled(config, name):
        return wanted(config, name)
    listing = {service: options for service, options in config.services.items() if options.instances is not None}
    refs = {ref for key, options in listing.items() for ref in compose.pools_of(key, options)}
    return wanted(config, name) - {ref.pool for ref in refs if ref.balancer == name}


def absent(config: Config, name: str, seen: Mapping[Ref, Seen], pools: frozenset[str]) -> Iterator[str]:
    """One line for each pool that is not there or has nobody to be asked. `pools`: all that the balancer can list."""
    mine = _by_pool(seen)
    for pool in sorted(due(config, name) - mine.keys()):
        yield _absent(config, name, pool, pools)
    for pool in sorted(wanted(config, name) & mine.keys()):
        yield from _nowhere(name, pool, mine[pool])


def kept_off(config: Config, name: str, seen: Mapping[Ref, Seen]) -> Iterator[str]:
    """One line for each pool of which no server takes a change from us, though an operator has some of them ready.

    Where nothing acts on this balancer, of all its pools: so it would be. Else only of those that may be acted on.
    """
    mine = _by_pool(seen)
    for pool in sorted((acting(config, name) or wanted(config, name)) & mine.keys()):
        yield from _kept_off(name, pool, mine[pool])


def acting(config: Config, name: str) -> frozenset[str]:
    """The pools that may be acted on."""
    if mode_of(config, name) is Mode.OBSERVE:
        return frozenset()
    observing = {ref for key, each in config.services.items() if each.mode is Mode.OBSERVE for ref in compose.pools_of(key, each)}
    return wanted(config, name) - {ref.pool for ref in observing if ref.balancer == name}


def _by_pool(seen: Mapping[Ref, Seen]) -> dict[str, list[tuple[Ref, Seen]]]:
    pools: dict[str, list[tuple[Ref, Seen]]] = {}
    for ref, each in seen.items():
        pools.setdefault(ref.pool, []).append((ref, each))
    return pools


def _absent(config: Config, name: str, pool: str, pools: frozenset[str]) -> str:
    there = f"it has: {listed(sorted(pools), 8)}" if pools else "it lists none with servers"
    cure = "correct `pool` of the service" + (", or give it `instances`, which then make the pool" if is_filled(config, name) else "")
    near = did_you_mean(pool, pools)
    return f"{name} has no pool {pool!r} with servers{f'{near} {there[0].upper() + there[1:]}' if near else f'; {there}'}: {cure}"


def _nowhere(name: str, pool: str, servers: Sequence[tuple[Ref, Seen]]) -> Iterator[str]:
    if servers and all(each.address is None for _, each in servers):
        names = listed((ref.server for ref, _ in servers), 8)
        yield (
            f"{name}: no server of pool {pool!r} ({names}) has an address and port now, so none can be asked or taken out: "
            "give it some as IP:PORT (unix sockets are left alone), see to its DNS, or leave the pool out"
        )


def _kept_off(name: str, pool: str, servers: Sequence[tuple[Ref, Seen]]) -> Iterator[str]:
    mine = [each for _, each in servers if each.operator is Operator.READY and each.address is not None]
    if mine and all(each.writable is not None for each in mine):
        reasons = list(dict.fromkeys(each.writable or "" for each in mine))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        yield f"{name}: no server of pool {pool!r} can be taken out: {reasons[0]}{more}"


async def watch(app: App) -> None:
    """Say each in the log, once for as long as it stands. Never ends."""
    since: dict[str, float] = {}
    told: set[str] = set()
    while True:
        lines = [line for name in app.config.balancers for line in await _found(app, name)]
        since = {line: since.get(line, time.monotonic()) for line in lines}
        told &= since.keys()
        for line in [line for line, at in since.items() if line not in told and time.monotonic() - at >= STANDS_S]:
            log.warning("%s", line)
            told.add(line)
        await asyncio.sleep(LOOK_EVERY_S)


async def _found(app: App, name: str) -> list[str]:
    """What there is to say of a balancer now; nothing while it is not seen. Pool by pool, so that no decision waits for it."""
    balancer, driver, config = app.reconciler.world.balancers.get(name), app.drivers.get(name), app.config
    if balancer is None or driver is None or balancer.error or balancer.seen_at == float("-inf"):
        return []
    lines: list[str] = []
    if missing := due(config, name) - balancer.refs.keys():
        try:
            pools = await driver.host.pools(PATIENCE_S)
        except BalancerError:
            return []
        lines += [_absent(config, name, pool, pools) for pool in sorted(missing)]
    acts = acting(config, name)
    for pool in sorted(wanted(config, name)):
        servers = list(balancer.of_pool(pool))
        lines += [*_nowhere(name, pool, servers), *(_kept_off(name, pool, servers) if pool in acts else ())]
        await asyncio.sleep(0)
    return lines


__all__ = ["absent", "kept_off", "mode_of", "wanted", "watch"]
