"""Edge attribution patching: what one component writes, times the gradient where another reads.

Syed, Rager, Conmy, "Attribution Patching Outperforms Automated Circuit Discovery" (2023, arXiv 2310.10348); over
several steps Hanna, Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024, arXiv 2403.17806). For a sender u and a
receiver v above it: sum over positions of (u in the source - u in the prompt) . d metric / d (v's own input), where
v's input is the residual stream as v alone reads it, before its norm. Senders: what enters the first block, each
head's part of what attention writes, each MLP. Receivers: each query, key and value head, each MLP, the logits.
The gradients of all that read the stream add up, so the edges of a sender add up to its own estimate.

What heads write and read is linearised (heads.py) block by block, for a few positions at a time, so that memory does
not grow with the square of the heads. Before the first position where the two prompts differ, no sender differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...engine import State
from ...engine.gradients import Differentiated
from ...questions.attribution_patching import EdgeAttributions
from ...questions.costs import EDGE_CHUNK_BYTES
from ...questions.places import Component
from ...sharing.session import Session
from .heads import read

READERS = (Component.QUERY, Component.KEY, Component.VALUE)


@dataclass(frozen=True, slots=True, eq=False)
class _Received:
    """A backward pass's gradients of a block's receivers: of each head [M, n, heads, d], and of the MLP's input."""

    readers: tuple[Tensor, ...]
    mlp_input: Tensor


class Edges:
    """The sums of all edges: for each receiver's group, [senders below, receivers, targets].

    Positions count from `first`, the first where the prompts differ, to before `length`.
    """

    def __init__(self, session: Session, first: int, length: int, targets: int) -> None:
        self.decoder = decoder = session.decoder
        self._positions = range(first, length)
        self.attention = decoder.heads + 2 * decoder.key_value_heads
        widest = max(1 + decoder.layers * (decoder.heads + 1), self.attention * targets)
        self._chunk = max(1, EDGE_CHUNK_BYTES // (4 * widest * decoder.hidden_size))
        self._received: dict[int, _Received] = {}
        self._top = torch.empty(0)
        below = [1 + layer * (decoder.heads + 1) for layer in range(decoder.layers + 1)]
        self._into_attention = [np.zeros((count, self.attention, targets)) for count in below[:-1]]
        within = 0 if decoder.parallel else decoder.heads
        self._into_mlp = [np.zeros((count + within, 1, targets)) for count in below[:-1]]
        self._into_logits = np.zeros((below[-1], 1, targets))

    @property
    def cuts(self) -> Iterator[slice]:
        """The positions, a few at a time."""
        for first in self._positions[:: self._chunk]:
            yield slice(first, min(first + self._chunk, self._positions.stop))

    # ------------------------------------------------------------ one backward pass

    def top(self, below: Tensor) -> None:
        """Begins a backward pass, with the gradients [M, n, D] of the stream that the logits read."""
        self._top = below
        self._received.clear()

    def take(self, layer: int, done: Differentiated) -> None:
        """Keeps the gradients of a block's receivers, once the backward pass has passed it."""
        assert done.mlp_input is not None
        self._received[layer] = _Received(tuple(done.gradients[name] for name in READERS), done.mlp_input)

    def take_mlp(self, layer: int, gradients: Tensor) -> None:
        """Keeps those [M, n, D] of what its MLP reads alone, in the block of the senders themselves."""
        self._received[layer] = _Received((), gradients)

    def add(self, state: State, written: Tensor, number: int, cut: slice) -> None:
        """Adds products at the positions of `cut`, once the backward pass through the run `state` has ended.

        `written` [S, c, D]: what senders write, the first of which has this number. Receivers that do not see all of
        them see the first ones.
        """
        with torch.inference_mode(mode=False):
            for layer, received in self._received.items():
                if received.readers:
                    stream = state.residual[layer][cut].clone()
                    gradients = [one[:, cut] for one in received.readers]
                    positions = range(cut.start, cut.stop)
                    found = read(self.decoder, layer, stream, gradients, positions, state)
                    _add(self._into_attention[layer], written, number, found)
                _add(self._into_mlp[layer], written, number, received.mlp_input[:, None, cut])
            _add(self._into_logits, written, number, self._top[:, None, cut])

    # ------------------------------------------------------------ the answer

    def answer(self, top: int, passes: int) -> EdgeAttributions:
        """The `top` edges of the largest mean over the passes, by the first target; 0: all of them."""
        senders, receivers, estimates = self._table()
        estimates /= passes
        order = np.argsort(-np.abs(estimates[:, 0]), kind="stable")[: top or None]
        return EdgeAttributions(0, senders[order], receivers[order], estimates[order].astype(np.float32))

    def _table(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
        decoder = self.decoder
        written = [(Component.TOKEN_EMBEDDING, 0, 0)]
        for layer in range(decoder.layers):
            written += [(Component.HEAD_OUT, layer, head) for head in range(decoder.heads)]
            written.append((Component.MLP_OUT, layer, 0))
        parts: list[tuple[list[tuple[Component, int, int]], NDArray[np.float64]]] = []
        for layer in range(decoder.layers):
            reading = [(name, layer, head) for name in READERS for head in range(decoder.units(name))]
            parts += [(reading, self._into_attention[layer]), ([(Component.MLP_OUT, layer, 0)], self._into_mlp[layer])]
        parts.append(([(Component.LOGITS, 0, 0)], self._into_logits))
        known = np.array(written, np.int32)
        senders = [np.repeat(known[: len(sums)], len(reading), axis=0) for reading, sums in parts]
        receivers = [np.tile(np.array(reading, np.int32), (len(sums), 1)) for reading, sums in parts]
        flat = [sums.reshape(-1, sums.shape[-1]) for _, sums in parts]
        return np.concatenate(senders), np.concatenate(receivers), np.concatenate(flat)


def _add(into: NDArray[np.float64], written: Tensor, number: int, gradients: Tensor) -> None:
    """Adds the products of senders [S, c, D] from `number` on and of receivers [M, R, c, D]."""
    rows = into[number:]
    products = torch.einsum("scd,mrcd->srm", written[: len(rows)], gradients.to(written.device).float())
    rows[: len(products)] += products.double().cpu().numpy()
