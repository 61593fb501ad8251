"""Faster products of few rows, with weights that are stored in the order in which the processor reads them.

torch computes a product in float32 with MKL, from the weights as the checkpoint stores them. For few rows, most of the
time goes into reordering the weights for the processor. oneDNN, which comes with torch, keeps them in that order:
it takes a third less time for 16 rows, half the time or less for 2 to 8, and always less for an unembedding. Beyond
several hundred rows neither is faster on every processor.
"""

import contextlib
import logging
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# For weights with fewer entries, calling oneDNN takes longer than the product.
SMALLEST = 1 << 16
# Products of more rows are left to MKL.
MOST_ROWS = 512
# The number of rows that oneDNN orders the weights for. Products with other numbers of rows are correct too.
ROWS = 128
# The share of free memory that the second copy of the weights may use.
SHARE = 0.25
# A packed layer is tried on this many rows. It may differ from the plain one by this part of the largest entry.
TRIED, TOLERANCE = 5, 1e-4

_log = logging.getLogger(__name__)


class Packed(nn.Module):
    """A linear layer, [..., in] to [..., out], with a second copy of its weights for products of few rows.

    Its output equals the plain layer's up to rounding. Gradients are computed by the plain layer.
    """

    def __init__(self, plain: nn.Linear | Conv1D) -> None:
        """Raises AttributeError or RuntimeError if this build of torch has no such product."""
        super().__init__()
        self.plain = plain
        weight = plain.weight.t() if isinstance(plain, Conv1D) else plain.weight
        self._width = int(weight.shape[1])
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - torch has no public name for it
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)  # noqa: SLF001

    @property
    def weight(self) -> Tensor:
        """The weight of the plain layer."""
        return self.plain.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the plain layer."""
        return self.plain.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """The product."""
        if torch.is_grad_enabled() or inputs.numel() > MOST_ROWS * self._width:
            product: Tensor = self.plain(inputs)
        else:
            product = self._multiply(inputs, self._packed, self.bias, "none", [], "")
        return product


def pack(model: nn.Module, smallest: int = SMALLEST) -> int:
    """Packs the linear layers of a float32 model on a CPU, and returns how many were packed.

    Packs all layers or, if they need too much memory, none. Processors for which oneDNN is not known to be faster are
    left alone, and so are layers with a forward pass of their own and layers whose weights are fetched on demand.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") or not torch.backends.mkldnn.is_available():
        return 0
    found: dict[nn.Linear | Conv1D, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear | Conv1D) and _is_plain(layer, smallest):
                found.setdefault(layer, []).append((module, name))
    needed, free = sum(layer.weight.nbytes for layer in found), psutil.virtual_memory().available
    if needed > SHARE * free:
        _log.warning(
            "weights are not packed, so products of few rows are slower: the copy needs %.1f GiB and may use "
            "%.0f%% of the %.1f GiB of free memory", needed / 2**30, 100 * SHARE, free / 2**30,
        )  # fmt: skip
        return 0
    count = 0
    for layer, places in found.items():
        if (packed := _packed(layer)) is not None:
            count += 1
            for module, name in places:
                setattr(module, name, packed)
    return count


def _is_plain(layer: nn.Linear | Conv1D, smallest: int) -> bool:
    weight = layer.weight
    # Hooks do something at each call: accelerate's fetch the weights.
    watched = layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook")  # noqa: SLF001
    return (
        type(layer).forward in (nn.Linear.forward, Conv1D.forward)
        and not watched
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.layout == torch.strided
        and weight.numel() >= smallest
    )


@torch.no_grad()
def _packed(layer: nn.Linear | Conv1D) -> Packed | None:
    """The packed layer, or None if torch cannot pack it or its product is not the same."""
    with contextlib.suppress(AttributeError, RuntimeError):
        packed = Packed(layer)
        width = layer.nx if isinstance(layer, Conv1D) else layer.in_features
        inputs = torch.linspace(-1.0, 1.0, TRIED * width).mul(width).sin().view(TRIED, width)
        expected = layer(inputs)
        if (packed(inputs) - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return packed
    return None
