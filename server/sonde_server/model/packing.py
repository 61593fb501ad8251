"""Products of few rows with weights that lie as the processor multiplies them.

torch hands a product in float32 to MKL, with the weights as the checkpoint has them. Of a few rows most of its time
goes into bringing the weights into the order that the processor reads them in. oneDNN, which comes with torch, keeps
them in that order: it takes a third less time for 16 rows, half and less for 2 to 8, and less for a vocabulary always.
Beyond some hundred rows neither is ahead on every processor.
"""

import contextlib
import logging
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Weights of fewer entries are multiplied faster than oneDNN is called.
SMALLEST = 1 << 16
# Products of more rows go to MKL.
MOST_ROWS = 512
# The rows that oneDNN orders weights for; any other number is multiplied with them as well.
ROWS = 128
# The share of free memory that the second copy of the weights may take.
SHARE = 0.25
# Rows that a packed product is tried on, and how far it may be from the plain one, as a part of its largest entry.
TRIED, TOLERANCE = 5, 1e-4

_log = logging.getLogger(__name__)


class Packed(nn.Module):
    """A linear layer, [..., in] to [..., out], with a second copy of its weights for products of few rows.

    Equal to the plain layer to rounding. Gradients are the plain layer's.
    """

    def __init__(self, plain: nn.Linear | Conv1D) -> None:
        """Raises AttributeError or RuntimeError where torch has no such product."""
        super().__init__()
        self.plain = plain
        weight = plain.weight.t() if isinstance(plain, Conv1D) else plain.weight
        self._width = int(weight.shape[1])
        self._multiply: Any = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - torch has no public name for it
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)  # noqa: SLF001

    @property
    def weight(self) -> Tensor:
        """The plain layer's."""
        return self.plain.weight

    @property
    def bias(self) -> Tensor | None:
        """The plain layer's."""
        return self.plain.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """The product."""
        if torch.is_grad_enabled() or inputs.numel() > MOST_ROWS * self._width:
            product: Tensor = self.plain(inputs)
        else:
            product = self._multiply(inputs, self._packed, self.bias, "none", [], "")
        return product


def pack(model: nn.Module, smallest: int = SMALLEST) -> int:
    """Packs the linear layers of a model in float32 on a CPU, where memory allows for it all; says how many.

    Nothing is packed on a processor that oneDNN is not known to be faster on, and no layer that has a way of its own,
    or whose weights are fetched when they are needed.
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
            "weights are not packed, which makes products of few rows slower: the copy takes %.1f GiB, and of %.1f GiB "
            "free memory it may take %.0f%%", needed / 2**30, free / 2**30, 100 * SHARE,
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
    # Something is done when it is called, as by accelerate, which fetches weights.
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
    """The layer packed, if torch can do that and gives the same product."""
    with contextlib.suppress(AttributeError, RuntimeError):
        packed = Packed(layer)
        width = layer.nx if isinstance(layer, Conv1D) else layer.in_features
        inputs = torch.linspace(-1.0, 1.0, TRIED * width).mul(width).sin().view(TRIED, width)
        expected = layer(inputs)
        if (packed(inputs) - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return packed
    return None
