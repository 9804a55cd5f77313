"""Yesterday's facts under tomorrow's policy: what other numbers would have decided.

Probes, discovery and operators' acts are taken as they were. What a balancer showed is corrected for our own acts: those that were
really done are undone in the picture, those decided here are put in instead. What it cannot know: how traffic would have changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lbplugins.values import Operator, Seen, Serve, Setting
from sidecar.core.model import Adopted, Applied, Configured, Decision, Fact, Journaled, Pictured, ServerRef
from sidecar.core.policy import Policy
from sidecar.core.turn import turn
from sidecar.core.world import World


class Rerun:
    """One stretch of facts decided anew. `policy` None: as recorded, for a proof that the same facts give the same decisions."""

    def __init__(self, world: World, policy: Policy | None = None, now: float = 0.0) -> None:
        self.world = world
        self._policy = policy
        self._own: list[Fact] = []
        if policy is not None:
            turn(world, (Configured(policy, now),), now)

    def step(self, facts: Sequence[Fact], now: float) -> Decision | None:
        """The decision of one recorded batch."""
        taken = facts if self._policy is None else [*self._take_own(), *self._changed(facts)]
        decision, _ = turn(self.world, taken, now)
        if self._policy is not None and decision is not None:
            self._obey(decision)
        return decision

    def _take_own(self) -> list[Fact]:
        own, self._own = self._own, []
        return own

    def _changed(self, facts: Sequence[Fact]) -> Iterator[Fact]:
        for fact in facts:
            match fact:
                case Journaled() | Applied() | Configured() | Adopted():
                    continue
                case Pictured(servers=servers) if servers is not None:
                    yield replace(fact, servers={ref: self._as_ours(ServerRef(fact.balancer, ref), seen) for ref, seen in servers.items()})
                case _:
                    yield fact

    def _as_ours(self, server: ServerRef, seen: Seen) -> Seen:
        """The server as it would look if our decisions here had been obeyed."""
        out = self._is_out(server)
        own_check_down = seen.serving is False and seen.ours.serve is Serve.FULL and seen.operator is Operator.READY
        serving = seen.serving if own_check_down or seen.serving is None else seen.operator is Operator.READY and not out
        return replace(seen, ours=Setting(Serve.NONE if out else Serve.FULL), serving=serving)

    def _is_out(self, server: ServerRef) -> bool:
        return any(
            state.ejection is not None and state.ejection.enforced and not state.ejection.returning
            for service in self.world.services.values()
            for state in service.instances.values()
            if server in state.servers
        )

    def _obey(self, decision: Decision) -> None:
        if decision.intents:
            self._own.append(Journaled(decision.intents, decision.at))
        for name, changes in (decision.changes or {}).items():
            self._own.append(Applied(name, decision.at, changes))
