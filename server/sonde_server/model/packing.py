"""Faster products of few rows, with weights that are stored in the order in which the processor reads them.

torch computes a product in float32 with MKL, from the weights as the checkpoint stores them. For few rows, most of the
time can go into reordering the weights for the processor. oneDNN, which comes with torch, keeps them in that order. On
an AMD Zen 3 it takes a third less time for 16 rows, and half the time or less for 2 to 8. On an Intel processor with
AVX-512 it gains little for most shapes and loses for some. So it is measured, for each shape and number of rows.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import psutil
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .packing_gain import MOST_ROWS, Measure, faster_rows, sample, time_products

# For weights with fewer entries, calling oneDNN takes longer than the product.
SMALLEST = 1 << 16
# The number of rows that oneDNN orders the weights for. Products with other numbers of rows are correct too.
ROWS = 128
# The share of free memory that the copy of the weights may use.
SHARE = 0.25
# A packed layer is tried on this many rows. It may differ from the plain one by this part of the largest entry.
TRIED, TOLERANCE = 5, 1e-4

# The packed product at every number of rows.
EVERY = frozenset(range(1, MOST_ROWS + 1))

Plain: TypeAlias = nn.Linear | Conv1D

_log = logging.getLogger(__name__)


class Packed(nn.Module):
    """A linear layer, [..., in] to [..., out], with a second copy of its weights for products of few rows.

    Its output equals the plain layer's up to rounding. Gradients, and products of a number of rows that is not in
    `rows`, are computed by the plain layer.
    """

    def __init__(self, plain: Plain, rows: frozenset[int]) -> None:
        """Raises AttributeError or RuntimeError if this build of torch has no such product."""
        super().__init__()
        self.plain = plain
        self.rows = rows
        weight = plain.weight.t() if isinstance(plain, Conv1D) else plain.weight
        self.width = int(weight.shape[1])
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
        if torch.is_grad_enabled() or inputs.numel() // self.width not in self.rows:
            product: Tensor = self.plain(inputs)
        else:
            product = self._multiply(inputs, self._packed, self.bias, "none", [], "")
        return product


def pack(model: nn.Module, smallest: int = SMALLEST, measure: Measure = time_products) -> int:
    """Packs those linear layers of a float32 model on a CPU that get faster by it, and returns how many these are.

    `measure` times some layers of each shape. Packs all layers that get faster or, if they need too much memory, none.
    Processors for which oneDNN was never tried are left alone, and so are layers with a forward pass of their own and
    layers whose weights are fetched on demand.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") or not torch.backends.mkldnn.is_available():
        return 0
    found: dict[Plain, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear | Conv1D) and _is_plain(layer, smallest):
                found.setdefault(layer, []).append((module, name))
    gains = _gains(list(found), measure)
    chosen = [layer for layer in found if gains[_shape(layer)]]
    if not found or not _fits(chosen):
        return 0
    count = 0
    for layer in chosen:
        if (packed := _packed(layer, gains[_shape(layer)])) is not None:
            count += 1
            for module, name in found[layer]:
                setattr(module, name, packed)
    _log.info("packed the weights of %d of %d layers, by what is faster here: %s", count, len(found), _told(gains))
    return count


def _fits(layers: Sequence[Plain]) -> bool:
    """Whether memory holds the copies of these."""
    needed, free = sum(layer.weight.nbytes for layer in layers), psutil.virtual_memory().available
    if needed <= SHARE * free:
        return True
    _log.warning(
        "weights are not packed, so products of few rows are slower: the copy needs %.1f GiB and may use %.0f%% of "
        "the %.1f GiB of free memory", needed / 2**30, 100 * SHARE, free / 2**30,
    )  # fmt: skip
    return False


def _shape(layer: Plain) -> tuple[int, ...]:
    """What the speed of a layer depends on: inputs, outputs, in which order they are stored, and whether it adds."""
    turned = isinstance(layer, Conv1D)
    height, width = layer.weight.shape[::-1] if turned else layer.weight.shape
    return int(width), int(height), turned, layer.bias is not None


def _gains(layers: Sequence[Plain], measure: Measure) -> dict[tuple[int, ...], frozenset[int]]:
    """For how many rows each shape gets faster. The copies that this takes are gone when it returns."""
    shapes: dict[tuple[int, ...], list[Plain]] = {}
    for layer in layers:
        shapes.setdefault(_shape(layer), []).append(layer)
    gains: dict[tuple[int, ...], frozenset[int]] = {}
    for shape, alike in shapes.items():
        some = sample(alike)
        gains[shape] = frozenset()
        if _fits(some):
            packed = [each for layer in some if (each := _packed(layer)) is not None]
            if len(packed) == len(some):
                gains[shape] = faster_rows(some, packed, measure)
    return gains


def _told(gains: Mapping[tuple[int, ...], frozenset[int]]) -> str:
    """For the log, such as "768 x 2304 for 2-45 rows, 768 x 768 for none"."""
    shapes = []
    for (width, height, *_), rows in gains.items():
        ends = sorted(row for row in rows if {row - 1, row + 1} - rows)
        parts = [f"{low}-{high}" for low, high in zip(ends[::2], ends[1::2], strict=False)]
        shapes.append(f"{width} x {height} for {', '.join(parts) + ' rows' if parts else 'none'}")
    return "; ".join(shapes)


def _is_plain(layer: Plain, smallest: int) -> bool:
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
def _packed(layer: Plain, rows: frozenset[int] = EVERY) -> Packed | None:
    """The packed layer, or None if torch cannot pack it or its product is not the same."""
    with contextlib.suppress(AttributeError, RuntimeError):
        packed = Packed(layer, EVERY)
        width = layer.nx if isinstance(layer, Conv1D) else layer.in_features
        inputs = torch.linspace(-1.0, 1.0, TRIED * width).mul(width).sin().view(TRIED, width)
        expected = layer(inputs)
        if (packed(inputs) - expected).abs().max() <= TOLERANCE * expected.abs().max():
            packed.rows = rows
            return packed
    return None
