"""What a balancer shows, as what has changed since it was last looked at: a picture of a thousand servers is mostly the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lbplugins.values import Ref, Seen
from sidecar.core.model import Pictured


@dataclass(frozen=True, slots=True)
class Repictured:
    """The servers of this balancer's last picture, in their order, with these instead; all else is in `rest`."""

    rest: Pictured
    changed: Mapping[Ref, Seen]


class Pictures:
    """The last picture of each balancer that the reader will know as well."""

    def __init__(self) -> None:
        self._last: dict[str, Mapping[Ref, Seen]] = {}

    def forget(self) -> None:
        """Something may have been lost: the next of each is written whole."""
        self._last.clear()

    def packed(self, fact: Pictured) -> Pictured | Repictured:
        """Short, where it shows the same servers in the same order."""
        servers = fact.servers
        if servers is None:
            return fact
        last, self._last[fact.balancer] = self._last.get(fact.balancer), servers
        if last is None or list(last) != list(servers):
            return fact
        changed = {ref: seen for (ref, seen), was in zip(servers.items(), last.values(), strict=True) if seen is not was and seen != was}
        return Repictured(replace(fact, servers=None), changed)

    def unpacked(self, fact: Pictured | Repictured) -> Pictured:
        """The whole of it. ValueError: it refers to a picture that is not there."""
        if isinstance(fact, Repictured):
            last = self._last.get(fact.rest.balancer)
            if last is None or fact.changed.keys() - last.keys():
                raise ValueError(f"{fact.rest.balancer} is shown by its difference to nothing")
            fact = replace(fact.rest, servers={**last, **fact.changed})
        if fact.servers is not None:
            self._last[fact.balancer] = fact.servers
        return fact
