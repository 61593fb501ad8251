"""Chooses the number of replicas from the requests in progress and the runs in the queue."""

from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

QUEUED_RUNS = "queued_runs"
"""The metric that replicas report: accepted runs that are not done yet."""


@dataclass(frozen=True)
class QueuePolicy:
    """An autoscaling policy for Ray Serve.

    A request is served by one replica, however many runs it has. So the queue never asks for more replicas than there
    are requests.
    """

    target_requests: float
    target_queued_runs: float

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The wanted number of replicas. Ray applies the delays and the bounds."""
        if not context.current_num_replicas:
            return context.target_num_replicas, {}
        queued = sum(((context.aggregated_metrics or {}).get(QUEUED_RUNS) or {}).values())
        requests = float(context.total_num_requests)
        return max(requests / self.target_requests, min(queued / self.target_queued_runs, requests)), {}
