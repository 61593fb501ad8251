"""Type aliases that appear in signatures, for annotations in programs that use this package."""

from sonde._arrays import Axes
from sonde._ask.cases import CasesLike
from sonde._ask.edits import SourceLike
from sonde._ask.images import ImageLike
from sonde._ask.indices import Indices
from sonde._ask.named import PositionLike, PositionsLike
from sonde._ask.names import (
    AxisName,
    ComponentName,
    DataTypeName,
    IntegrationName,
    MetricName,
    PoolingName,
    ReduceName,
    SpanPart,
    StackName,
)
from sonde._ask.plans import Plan
from sonde._ask.prompts import PromptLike, TargetLike, Targets, TokenLike
from sonde._ask.spans import SpanLike, Spans
from sonde._connection.progress import Progress
from sonde._connection.timeouts import Timeout

__all__ = [
    "Axes",
    "AxisName",
    "CasesLike",
    "ComponentName",
    "DataTypeName",
    "ImageLike",
    "Indices",
    "IntegrationName",
    "MetricName",
    "Plan",
    "PoolingName",
    "PositionLike",
    "PositionsLike",
    "Progress",
    "PromptLike",
    "ReduceName",
    "SourceLike",
    "SpanLike",
    "SpanPart",
    "Spans",
    "StackName",
    "TargetLike",
    "Targets",
    "Timeout",
    "TokenLike",
]
