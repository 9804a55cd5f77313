"""What an upstream's servers get, from two truths: the file on disk, and the file that nginx is proven to run. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from lbplugins.nginx.layout import Outside, Upstream
from lbplugins.nginx.servers import Include, Server
from lbplugins.values import FULL, Operator, Ref, Seen, Setting

SETTLE_S = 1.0
"""From a proven reload on, old workers finish what they have; the last new request to a server went out 0.12 s after it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One upstream as found. `include` None = the file is unreadable now (`fault` says how). `running`: what nginx runs, None = unknown.

    `is_loaded`: nginx runs this very file. `data`: the file's bytes. `denied`: '' or why nothing of this nginx can be written.
    """

    upstream: Upstream
    data: bytes
    include: Include | None
    running: Include | None
    is_loaded: bool
    fault: str = ""
    denied: str = ""


def picture(pool: Pool, generation: str, remark: str = "") -> dict[Ref, Seen]:
    """Every server of one upstream: those of the file, those that only nginx still runs, and the operator's own outside our file."""
    seen = outside(pool.upstream, generation)
    current = pool.include.servers if pool.include else ()
    running = {server.name: server for server in pool.running.servers} if pool.running else {}
    held, lines = _held(pool), Counter(server.name for server in current)
    grain_pct = 1 if pool.include and can_cut(pool, pool.include) else 100
    for server in current:
        ref = Ref(pool.upstream.name, server.name)
        if ref not in seen:
            writable = held or _unwritable(pool, server, lines[server.name])
            seen[ref] = replace(
                _seen(pool, server, running.get(server.name), generation, remark),
                grain_pct=grain_pct,
                writable=writable or None,
            )
    for name, server in running.items():
        ref = Ref(pool.upstream.name, name)
        if ref not in seen:
            seen[ref] = replace(
                _seen(replace(pool, is_loaded=True), server, server, generation, remark),
                grain_pct=100,
                writable=pool.fault or f"{pool.upstream.file} no longer lists it, yet nginx still runs it until its next reload",
            )
    return seen


def outside(upstream: Upstream, generation: str, remark: str = "") -> dict[Ref, Seen]:
    """The operator's own servers outside our file: all there are of an upstream that is not moved."""
    return {
        Ref(upstream.name, out.name): Seen(
            operator=Operator.MAINTENANCE if out.is_out else Operator.READY,
            serving=not out.is_out,
            address=out.address,
            weight=out.weight,
            grain_pct=100,
            writable=_to_do(upstream, out),
            settle_s=SETTLE_S,
            generation=generation,
            remark=remark,
        )
        for out in upstream.outside
    }


def _to_do(upstream: Upstream, out: Outside) -> str:
    if out.address is None:
        return f"{out.name} has no address and port by which to judge it: never asked, never written"
    return f"{out.name} stands in {out.where}; move its line to {upstream.file}" if upstream.is_moved else upstream.to_do


def _seen(pool: Pool, server: Server, running: Server | None, generation: str, remark: str) -> Seen:
    remarks = [remark] if remark else []
    if not pool.is_loaded:
        remarks.append("the file is newer than what nginx runs")
    if server.backup:
        remarks.append("backup: gets traffic only when the others do not")
    return Seen(
        ours=server.ours if pool.is_loaded else _halfway(server.ours, running.ours if running else Setting()),
        operator=_operator(pool, server, running),
        serving=_serving(pool, server, running),
        address=server.address,
        weight=server.nominal,
        settle_s=SETTLE_S,
        generation=generation,
        remark="; ".join(remarks),
    )


def can_cut(pool: Pool, include: Include) -> bool:
    return include.can_cut() and not pool.upstream.hashes


def _halfway(on_disk: Setting, running: Setting) -> Setting:
    """Our axis while nginx does not run the file: never what the file alone says, or nobody would finish the job.

    FULL at 100 would mean that nothing of ours is left to undo, so an act that waits on disk shows as 99 %.
    """
    if on_disk == running or running != Setting():
        return running
    return Setting(FULL, 99)


def _operator(pool: Pool, server: Server, running: Server | None) -> Operator:
    """The operator's word counts from the moment it is in the file; our mark for him, once nginx runs it."""
    if pool.is_loaded or server.down or server.drain:
        return server.operator
    return running.operator if running else Operator.READY


def _serving(pool: Pool, server: Server, running: Server | None) -> bool | None:
    if pool.is_loaded:
        return not server.is_out
    if pool.running is None:
        return None
    return running is not None and not running.is_out


def _held(pool: Pool) -> str:
    """'' or why nothing in this file would be written now, and what to do about it."""
    file, name, include = pool.upstream.file, pool.upstream.name, pool.include
    if pool.denied:
        return pool.denied
    if pool.fault or include is None:
        return pool.fault or f"{file} cannot be read"
    if include.edited:
        return f"{file} was edited by hand; review with `lb-sidecar adopt {name} --diff`"
    if pool.upstream.shared_with:
        return f"{file} is included by upstream {pool.upstream.shared_with} too; give each upstream a file of its own"
    return f"{file} {include.fault}" if include.fault else ""


def _unwritable(pool: Pool, server: Server, lines: int) -> str:
    """'' or why this one server would not be written now."""
    if lines > 1:
        return f"{pool.upstream.file} lists {server.name} {lines} times; leave one line"
    return f"{pool.upstream.file} {server.locked}" if server.locked else ""
