"""Giving back what is out by us where no decision does it: by `lb-sidecar release`, or for a service that we no longer have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from lbplugins.values import FULL, OURS, Address, Change, Ref, Refusal, Setting
from sidecar.balancers.host import Host
from sidecar.core.model import Instance, ServerRef
from sidecar.journal.force import Stored, about


async def give_back(
    host: Host, ours: Set[tuple[str, Address]], notes: Mapping[Ref, str], within_s: float, theirs: Set[Ref] = frozenset()
) -> tuple[list[Ref], Sequence[Refusal]]:
    """The servers given back and those refused; BalancerError when it is not known. `ours`: pool and address, touched only if out by us.

    `theirs`: servers that a hand had out before us, and that stay so.
    """
    pictures = await host.observe(frozenset(pool for pool, _ in ours), notes, within_s)
    changes = [
        Change(ref, Setting(FULL), seen, OURS, note=notes.get(ref, ""), why="released")
        for ref, seen in pictures.items()
        if seen.address is not None and (ref.pool, seen.address) in ours and ref not in theirs and seen.ours != Setting(FULL)
    ]
    refused = await host.apply(changes, within_s) if changes else ()
    kept = {refusal.change.ref for refusal in refused}
    return [change.ref for change in changes if change.ref not in kept], refused


def whereabouts(stored: Iterable[Stored], instances: Set[Instance]) -> frozenset[tuple[Instance, ServerRef]]:
    """On which servers our intents have acted for these instances, whatever the configuration says now."""
    intents = [(instance, each.intent) for each in stored if (instance := about(each.intent)) is not None and instance in instances]
    return frozenset((instance, server) for instance, intent in intents for server, _ in intent.notes)
