"""Which replica answers: requests about one prompt go to one replica, which still knows its unchanged run.

Rendezvous hashing (Thaler and Ravishankar 1998): each replica has a weight for each prompt, and the heaviest is asked.
A replica that comes or goes moves only the prompts that it is the heaviest for. Every proxy comes to the same choice,
and none has to keep a table.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SLACK = 4
"""So many requests more than the idlest replica has may be in progress at the one that knows a prompt."""


class PromptRouter(RequestRouter):
    """Prefers the replica of a request's session, which a proxy sets to its prompt; the idlest for all others."""

    def initialize_state(self, **given: Any) -> None:
        """`room`: the requests that a replica takes at once."""
        self._room = int(given.get("room", 1))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one after the other."""
        if pending_request is None or not pending_request.metadata.session_id:
            ranks = [candidate_replicas]
        else:
            ranks = [[one] for one in self._ranked(candidate_replicas, pending_request.metadata.session_id)]
        if pending_request is not None:
            # Otherwise Ray would ask again without a pause.
            pending_request.routing_context.should_backoff = True
        return ranks

    def _ranked(self, replicas: Sequence[RunningReplica], session: str) -> list[RunningReplica]:
        preferred = sorted(replicas, key=lambda one: weight(session, one.replica_id.unique_id), reverse=True)
        # None: it has not been asked for a while.
        loads = {one.replica_id: self.replica_queue_len_cache.get(one.replica_id) or 0 for one in replicas}
        most = min(min(loads.values(), default=0) + SLACK, self._room - 1)
        free = [one for one in preferred if loads[one.replica_id] <= most]
        others = sorted((one for one in preferred if one not in free), key=lambda one: loads[one.replica_id])
        return [*free, *others]


def weight(session: str, replica: str) -> bytes:
    """How much a replica is the one for a session, beside others."""
    return hashlib.sha256(f"{session} {replica}".encode()).digest()
