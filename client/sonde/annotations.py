"""Type aliases that appear in signatures, for annotations in programs that use this package."""

from sonde._arrays import Axes
from sonde._ask.edits import SourceLike
from sonde._ask.indices import Indices
from sonde._ask.names import AxisName, ComponentName, MetricName, StackName
from sonde._ask.plans import Plan
from sonde._ask.prompts import PromptLike, TargetLike, Targets, TokenLike
from sonde._connection.progress import Progress
from sonde._connection.timeouts import Timeout

__all__ = [
    "Axes",
    "AxisName",
    "ComponentName",
    "Indices",
    "MetricName",
    "Plan",
    "Progress",
    "PromptLike",
    "SourceLike",
    "StackName",
    "TargetLike",
    "Targets",
    "Timeout",
    "TokenLike",
]
