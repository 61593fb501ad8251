"""How much fits into a batch: the bytes that rows take, and the memory that the device has free."""

from functools import cached_property
from math import inf

import psutil
import torch

from ..model.anatomy import Decoder
from ..questions import costs
from ..questions.kernels import Kernel, kernels
from ..questions.places import PAIRWISE
from .layout import Row

# How much of the free memory batches may take; the rest covers what is estimated too low.
SHARE = 0.5
# How much of that is kept for small work that passes a large batch, and how much of a batch's time such work may take.
PASSING = 0.2
# The floating-point operations of a batch: seconds on a few cores, less than one on a large GPU. Larger batches would
# hardly be faster, and other callers would wait longer for them.
OPERATIONS = {"cpu": 5e11, "cuda": 2e14}
# Every batch reads all weights: with fewer positions that costs a sweep more than a few percent; with more, a CPU gains
# nothing.
FEWEST_POSITIONS = {"cpu": 1280, "cuda": 4096}
MOST_POSITIONS = {"cpu": 2048.0, "cuda": inf}


class Memory:
    """Estimates the memory that rows take while they run, from the model's sizes."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        size = torch.finfo(decoder.dtype).bits // 8
        attention = (decoder.heads + 2 * decoder.key_value_heads) * decoder.head_size
        # The stream and its norm, attention and its output; the MLP between its two halves, gated as in most families.
        self._token = size * (
            6 * decoder.hidden_size + 2 * attention + 3 * max(decoder.neurons, 4 * decoder.hidden_size)
        )
        self._item = size
        self._pair = decoder.heads * (2 * size + 4)
        # Logits are only held for a few rows at a time. But so that a batch of short rows takes no longer than others,
        # a readout counts as many positions as take the same time: a block has 4 D^2 weights in attention and 8 D^2 in
        # the MLP.
        blocks = 12 * decoder.hidden_size * decoder.layers
        self._readout = self._token * decoder.vocabulary_size / blocks
        # Each weight takes one multiplication and one addition for every position.
        self._operations = 2 * blocks * decoder.hidden_size

    def state_bytes(self, tokens: int) -> int:
        """Bytes that are kept of a base run."""
        return costs.stream_bytes(tokens, self.decoder, self._item) + self.cache_bytes(tokens)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of this many positions."""
        return costs.cache_bytes(tokens, self.decoder, self._item)

    def row_bytes(self, row: Row) -> float:
        """Bytes that a row takes while it runs."""
        length = len(row.positions)
        pairs = any(place.component in PAIRWISE for place in row.places)
        eager = pairs or self.decoder.attention == Kernel.EAGER
        result = length * self._token + (self._readout if row.reading is not None or row.choices else 0)
        if Kernel.EAGER in kernels(length, row.first, eager=eager):
            result += length * row.extent.end * self._pair
        elif row.first:
            result += self.cache_bytes(row.extent.end) / self.decoder.layers
        if row.state is not None:
            result += self.state_bytes(len(row.tokens))
        if row.image is not None and row.prefix is None and self.decoder.eye is not None:
            result += row.image.patches * self.decoder.eye.patch_bytes
        if row.detour is not None:
            result += costs.detour_bytes(row.detour.columns, length, self.decoder, self._item)
        return result

    @property
    def batch_positions(self) -> float:
        """How many positions through all blocks a batch is worth, from the model's size and the kind of device."""
        kind = self.decoder.device.type
        return min(MOST_POSITIONS[kind], max(FEWEST_POSITIONS[kind], OPERATIONS[kind] // self._operations))

    @cached_property
    def _budget(self) -> float:
        """Bytes for batches. Measured once, because which runs share a batch affects the last bits of results."""
        return SHARE * self._free()

    @cached_property
    def batch_bytes(self) -> float:
        """Bytes that a batch may take."""
        return max(float(self._token), min(self.batch_positions * self._token, (1 - PASSING) * self._budget))

    @cached_property
    def passing_bytes(self) -> float:
        """Bytes that small work may take which passes a batch."""
        return PASSING * self._budget

    def may_pass(self, size: float, token_layers: int) -> bool:
        """Whether work of `size` bytes and `token_layers` positions x blocks is small enough to pass a batch."""
        return size <= self.passing_bytes and token_layers <= PASSING * self.batch_positions * self.decoder.layers

    def capacity(self) -> int:
        """Bytes that all accepted questions may hold in total."""
        device = self.decoder.device
        total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
        return int(SHARE * total)

    def _free(self) -> float:
        device = self.decoder.device
        if device.type != "cuda":
            return float(psutil.virtual_memory().available)
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that the allocator holds but does not use is free too.
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
