"""Where Sonde's time goes, workload by workload: operators of the model's thread, grouped by what they are for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench.contender import ask
from tests.bench.disturbance import timed
from tests.bench.sonde_in_process import InProcess
from tests.bench.workloads import OneNeuron, Workload

PRODUCTS = (
    "aten::addmm",
    "aten::mm",
    "aten::linear",
    "aten::addmv",
    "aten::mv",
    "aten::baddbmm",
    "mkldnn::_linear_pointwise",
)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("aten::bmm", "aten::_softmax", "scaled_dot_product", "masked_fill"),
    "softmax of the vocabulary": ("aten::_log_softmax", "aten::logsumexp", "aten::topk", "aten::exp"),
    "norms": ("norm", "aten::rsqrt", "aten::mean"),
    "activation and other elementwise": (
        "aten::mul",
        "aten::tanh",
        "aten::gelu",
        "aten::silu",
        "aten::pow",
        "aten::add",
    ),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::index_put_", "aten::clone", "aten::index_select"),
}
UNEMBEDDING, BLOCKS, REST = "unembedding", "products of the blocks", "other operators"
OUTSIDE = "Python"


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds by what they were spent on."""

    workload: str
    seconds: float
    spent: Mapping[str, float]

    def line(self) -> str:
        """In words, the largest first."""
        total = max(self.seconds, sum(self.spent.values()))
        parts = [f"{name} {seconds / total:.0%}" for name, seconds in self.spent.items() if seconds >= 0.01 * total]
        return f"{self.workload}: " + ", ".join(parts)


def profiled(name: str, sonde: InProcess, workload: Workload, vocabulary: int) -> Profile:
    """Answers `workload` under torch's profiler."""
    if isinstance(workload, OneNeuron) and workload.again:
        ask(sonde, replace(workload, again=False, neuron=workload.neuron + 1))
    recorder: Any = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    # The profiler sees the thread that starts it.
    sonde.on_model_thread(recorder.__enter__)
    try:
        _, sample = timed(lambda: ask(sonde, workload))
    finally:
        sonde.on_model_thread(lambda: recorder.__exit__(None, None, None))
    spent: dict[str, float] = {}
    for event in recorder.key_averages(group_by_input_shape=True):
        if event.self_cpu_time_total:
            group = _group(event, vocabulary)
            spent[group] = spent.get(group, 0.0) + event.self_cpu_time_total / 1e6
    spent[OUTSIDE] = max(0.0, sample.seconds - sum(spent.values()))
    largest_first = sorted(spent.items(), key=lambda pair: -pair[1])
    return Profile(name, sample.seconds, dict(largest_first))


def _group(event: Any, vocabulary: int) -> str:
    if event.key in PRODUCTS:
        large = any(vocabulary in shape for shape in event.input_shapes if isinstance(shape, list | torch.Size))
        return UNEMBEDDING if large else BLOCKS
    return next((group for group, keys in GROUPS.items() if any(key in event.key for key in keys)), REST)
