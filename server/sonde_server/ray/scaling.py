"""How many replicas: as many as the requests in progress and the runs in line ask for."""

from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED_RUNS = "queued_runs"
"""What replicas report: the runs that they have accepted and not done."""


@dataclass(frozen=True)
class QueuePolicy:
    """A policy of Ray Serve's autoscaling.

    A request is one replica's work, however many runs it has. So there are never more replicas for the runs in line
    than there are requests that they belong to.
    """

    target_requests: float
    target_queued_runs: float

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """How many replicas should run. Ray applies the delays and the bounds."""
        if not context.current_num_replicas:
            return context.target_num_replicas, {}
        queued = sum(((context.aggregated_metrics or {}).get(QUEUED_RUNS) or {}).values())
        requests = float(context.total_num_requests)
        return max(requests / self.target_requests, min(queued / self.target_queued_runs, requests)), {}
