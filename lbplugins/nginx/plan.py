"""What a batch of changes makes of the files of one nginx: new texts, and refusals. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lbplugins.nginx.picture import Pool, can_cut, picture
from lbplugins.nginx.process import MAX_LEAVING, Master
from lbplugins.nginx.servers import Include, IncludeFault, Server, render, set_operator, set_ours
from lbplugins.values import NONE, OURS, Axis, Change, Ref, Refusal, Seen, differences


class Plan:
    """What a batch of changes makes of the files; owns the refusals."""

    def __init__(self, pools: Mapping[str, Pool], master: Master, servers_dir: Path) -> None:
        self.refusals: list[Refusal] = []
        self._pools = pools
        self._servers_dir = servers_dir
        self._seen = {ref: seen for pool in pools.values() for ref, seen in pictured(pool, master).items()}
        self._includes: dict[str, Include] = {name: pool.include for name, pool in pools.items() if pool.include}
        self._accepted: dict[str, list[Change]] = {}
        self._named: set[tuple[Ref, Axis]] = set()

    def add(self, change: Change) -> None:
        reason = self._refusal(change)
        if reason:
            self.refusals.append(Refusal(change, reason))
        else:
            self._accepted.setdefault(change.ref.pool, []).append(change)

    def _refusal(self, change: Change) -> str:
        """'' when the change is in the plan now, or why not."""
        name, ref = change.ref.pool, change.ref
        pool, seen = self._pools.get(name), self._seen.get(ref)
        if pool is None:
            return f"no upstream {name[:128]!r} includes a file of {self._servers_dir}"
        if seen is None:
            return f"{pool.upstream.file} lists no server {ref.server[:128]!r}"
        if seen.writable:
            return seen.writable
        if (ref, change.on) in self._named:
            return f"{ref} is named twice in one batch; the first change stands"
        moved = differences(seen, change.expect)
        if moved:
            return f"{ref} is no longer as expected ({', '.join(moved)})"
        include = self._includes[name]
        try:
            self._includes[name] = _changed(pool, include, include.named(ref.server)[0], change)
        except IncludeFault as fault:
            return f"{ref}: {fault}"
        self._named.add((ref, change.on))
        return ""

    def texts(self) -> dict[str, bytes]:
        """The files that must be written or loaded for what was accepted."""
        wanted: dict[str, bytes] = {}
        for name in list(self._accepted):
            try:
                data = bytes_of(render(self._includes[name]))
            except IncludeFault as fault:
                self.refuse_all([name], f"{self._pools[name].upstream.file}: {fault}")
                continue
            if data != self._pools[name].data or not self._pools[name].is_loaded:
                wanted[name] = data
        return wanted

    def refuse_all(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self.refusals += [Refusal(change, reason) for change in self._accepted.pop(name)]


def in_order(changes: Iterable[Change]) -> list[Change]:
    """Returns before ejections: a pool that trades one server for another never looks empty on the way."""
    return sorted(changes, key=lambda change: change.want.serve is NONE)


def _changed(pool: Pool, include: Include, server: Server, change: Change) -> Include:
    if change.on is not OURS:
        return set_operator(include, server, change.want.serve)
    if change.want.weight_pct < 100 and not can_cut(pool, include):
        raise IncludeFault("weights of this upstream cannot be cut (it hashes, or a weight is too large or oddly written)")
    return set_ours(include, server, change.want, others_serve=any(not out.is_out for out in pool.upstream.outside))


def pictured(pool: Pool, master: Master) -> dict[Ref, Seen]:
    remarks = [f"{master.leaving} old workers are still finishing"] if master.leaving > MAX_LEAVING else []
    if master.replaces:
        remarks.append(
            f"nginx master {master.replaces} still serves as well, with the servers of before its binary upgrade, and hears of no change; "
            f"end it: kill -QUIT {master.replaces}"
        )
    return picture(pool, master.generation, "; ".join(remarks))


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
