"""Chooses replicas: all requests about a prompt go to the same one, which has its unchanged run in the cache.

Rendezvous hashing (Thaler and Ravishankar 1998): each replica has a weight for each prompt, and the one with the
largest weight is chosen. A replica that is added or removed moves only the prompts for which its weight is the
largest. All proxies make the same choice without sharing a table.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SLACK = 4
"""How many more requests than the least busy replica the preferred one may have in progress."""


class PromptRouter(RequestRouter):
    """Prefers the replica of a request's session, which the proxy sets to its prompt; else the least busy one."""

    def initialize_state(self, **given: Any) -> None:
        """`room`: the number of concurrent requests that a replica serves."""
        self._room = int(given.get("room", 1))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, in order."""
        if pending_request is None or not pending_request.metadata.session_id:
            ranks = [candidate_replicas]
        else:
            ranks = [[one] for one in self._ranked(candidate_replicas, pending_request.metadata.session_id)]
        if pending_request is not None:
            # Otherwise Ray would retry without a pause.
            pending_request.routing_context.should_backoff = True
        return ranks

    def _ranked(self, replicas: Sequence[RunningReplica], session: str) -> list[RunningReplica]:
        preferred = sorted(replicas, key=lambda one: weight(session, one.replica_id.unique_id), reverse=True)
        # None: its load has not been measured for a while.
        loads = {one.replica_id: self.replica_queue_len_cache.get(one.replica_id) or 0 for one in replicas}
        most = min(min(loads.values(), default=0) + SLACK, self._room - 1)
        free = [one for one in preferred if loads[one.replica_id] <= most]
        others = sorted((one for one in preferred if one not in free), key=lambda one: loads[one.replica_id])
        return [*free, *others]


def weight(session: str, replica: str) -> bytes:
    """The weight of a replica for a session."""
    return hashlib.sha256(f"{session} {replica}".encode()).digest()
