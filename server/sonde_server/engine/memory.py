"""How much may be computed at once: a batch's bytes, against what the device has free."""

from functools import cached_property
from math import inf

import psutil
import torch

from ..model.anatomy import Decoder
from ..questions import costs
from ..questions.kernels import Kernel, kernels
from ..questions.places import PAIRWISE
from .layout import Row

# Of the memory that is free, how much a batch may take; the rest is for what is estimated too low.
SHARE = 0.5
# On a CPU nothing is gained by batches beyond this many positions, and whoever waits would wait longer.
CPU_TOKENS = 2048


class Memory:
    """Estimates of what rows take while they run, from the model's shape."""

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
        # Logits are held for a few runs at a time. So that a batch of short runs does not take longer than others, a
        # reading counts as the positions that take as long: 4 D^2 weights of attention and 8 D^2 of the MLP a block.
        blocks = 12 * decoder.hidden_size * decoder.layers
        self._reading = self._token * decoder.vocabulary_size / blocks

    def state_bytes(self, tokens: int) -> int:
        """What is kept of a base run of so many tokens."""
        return costs.stream_bytes(tokens, self.decoder, self._item) + self.cache_bytes(tokens)

    def cache_bytes(self, tokens: int) -> int:
        """What the keys and values of so many positions take."""
        return costs.cache_bytes(tokens, self.decoder, self._item)

    def row_bytes(self, row: Row) -> float:
        """What a row takes while it runs."""
        length = len(row.positions)
        touched = {component for component, _ in row.edits} | {capture.component for capture in row.captures}
        eager = self.decoder.attention == Kernel.EAGER or not touched.isdisjoint(PAIRWISE)
        result = length * self._token + (self._reading if row.reading is not None or row.choice is not None else 0)
        if Kernel.EAGER in kernels(length, row.first, eager=eager):
            result += length * row.extent.end * self._pair
        elif row.first:
            result += self.cache_bytes(row.extent.end) / self.decoder.layers
        if row.state is not None:
            result += self.state_bytes(len(row.tokens))
        return result

    @cached_property
    def batch_bytes(self) -> float:
        """What a batch may take. Settled once, for what is computed together decides the last bits."""
        limit = CPU_TOKENS * self._token if self.decoder.device.type == "cpu" else inf
        return max(float(self._token), min(limit, SHARE * self._free()))

    def capacity(self) -> int:
        """What all accepted questions together may hold."""
        device = self.decoder.device
        total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
        return int(SHARE * total)

    def _free(self) -> float:
        device = self.decoder.device
        if device.type != "cuda":
            return float(psutil.virtual_memory().available)
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds but nobody uses is free as well.
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
