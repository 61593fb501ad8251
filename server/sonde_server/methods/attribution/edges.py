"""Edge attribution patching: what one component writes, times the gradient where another reads.

Syed, Rager, Conmy, "Attribution Patching Outperforms Automated Circuit Discovery" (2023, arXiv 2310.10348); over
several steps Hanna, Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024, arXiv 2403.17806). For a sender u and a
receiver v above it: sum over positions of (u in the source - u in the prompt) . d metric / d (v's own input), where
v's input is the residual stream as v alone reads it, before its norm. Senders: what enters the first block, each
head's part of what attention writes, each MLP. Receivers: each query, key and value head, each MLP, the logits.
The gradients of all that read the stream add up, so the edges of a sender add up to its own estimate.

What heads write is taken through the derivative of the output projection and of what follows it, in the run that is
differentiated; what queries, keys and values read, through the derivative of their norm and projection. Both are
computed block by block for a few positions at a time, so that memory does not grow with the square of the heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...engine.gradients import Descent, Differentiated, Values
from ...questions.attribution_patching import EdgeAttributions
from ...questions.costs import EDGE_CHUNK_BYTES
from ...questions.places import Component
from ...sharing.session import Session

READERS = (Component.QUERY, Component.KEY, Component.VALUE)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """What a backward pass keeps of a block: values and differences of senders, gradients of receivers [M, n, ...]."""

    mixed: Tensor
    heads: Tensor
    mlp: Tensor
    readers: tuple[Tensor, ...]
    mlp_input: Tensor


class Edges:
    """The sums of all edges: for each receiver's group, [senders below, receivers, targets]."""

    def __init__(self, session: Session, length: int, targets: int) -> None:
        self.decoder = decoder = session.decoder
        self.length = length
        self.attention = decoder.heads + 2 * decoder.key_value_heads
        widest = max(1 + decoder.layers * (decoder.heads + 1), self.attention * targets)
        self.chunk = max(1, EDGE_CHUNK_BYTES // (4 * widest * decoder.hidden_size))
        self._blocks: dict[int, _Block] = {}
        self._top = torch.empty(0)
        below = [1 + layer * (decoder.heads + 1) for layer in range(decoder.layers + 1)]
        self._into_attention = [np.zeros((count, self.attention, targets)) for count in below[:-1]]
        within = 0 if decoder.parallel else decoder.heads
        self._into_mlp = [np.zeros((count + within, 1, targets)) for count in below[:-1]]
        self._into_logits = np.zeros((below[-1], 1, targets))

    # ------------------------------------------------------------ one backward pass

    def top(self, below: Tensor) -> None:
        """Begins a backward pass, with the gradients [M, n, D] of the stream that the logits read."""
        self._top = below

    def take(self, layer: int, done: Differentiated, prompt: Values, source: Values) -> None:
        """Keeps what edges need of a block, once the backward pass has passed it."""
        assert done.mlp_input is not None
        heads, mlp = (source[name] - prompt[name] for name in (Component.HEAD_OUT, Component.MLP_OUT))
        readers = tuple(done.gradients[name] for name in READERS)
        self._blocks[layer] = _Block(done.values[Component.HEAD_OUT], heads, mlp, readers, done.mlp_input)

    def add(self, descent: Descent, base: Descent, source: Descent, first: int) -> None:
        """Adds the products at `chunk` positions from `first` on, once the backward pass has ended."""
        cut = slice(first, min(first + self.chunk, self.length))
        with torch.inference_mode(mode=False):
            entering = source.state.residual[0][cut] - base.state.residual[0][cut]
            senders = [entering[None]]
            for layer, block in sorted(self._blocks.items()):
                senders += [self._written(layer, block, cut), block.mlp[None, cut]]
            # Blocks may be on different devices.
            written = torch.cat([sender.to(entering.device).float() for sender in senders])
            for layer, block in self._blocks.items():
                stream = descent.state.residual[layer][cut].clone()
                into = self._into_attention[layer]
                _add(into, written, self._read(layer, stream, block, first, len(descent.state.tokens)))
                into = self._into_mlp[layer]
                _add(into, written, block.mlp_input[:, None, cut])
            _add(self._into_logits, written, self._top[:, None, cut])

    def _written(self, layer: int, block: _Block, cut: slice) -> Tensor:
        """What a difference in one head's mix adds to the stream, to first order, for each head: [H, c, D]."""
        with torch.enable_grad():
            mixed = block.mixed[cut].clone().requires_grad_()
            output = self.decoder.attention_output(layer, mixed)
            # The backward pass is linear in what it is given, and its own backward pass is the derivative forwards.
            given = torch.zeros_like(output).requires_grad_()
            (backward,) = torch.autograd.grad(output, mixed, given, create_graph=True)
            written: list[Tensor] = []
            for head in range(self.decoder.heads):
                alone = torch.zeros_like(mixed)
                alone[:, head] = block.heads[cut, head]
                written += torch.autograd.grad(backward, given, alone, retain_graph=True)
        return torch.stack(written)

    def _read(self, layer: int, stream: Tensor, block: _Block, first: int, tokens: int) -> Tensor:
        """Gradients [M, R, c, D] of the stream of a prompt of `tokens` tokens, as each head alone reads it."""
        positions = torch.arange(first, first + len(stream), device=stream.device).repeat(self.attention)
        with torch.enable_grad():
            repeated = stream.repeat(self.attention, 1).requires_grad_()
            lengths = torch.full_like(positions, tokens)
            rotation = self.decoder.rotation(repeated, positions, lengths.to)
            projected = self.decoder.project(layer, repeated, rotation)
            found = []
            for target in range(len(self._top)):
                alone, offset = [], 0
                for gradients in block.readers:
                    own = gradients[target, first : first + len(stream)]  # [c, K, d]
                    count = own.shape[1]
                    masked = own.new_zeros(self.attention, *own.shape)
                    masked[torch.arange(offset, offset + count), :, torch.arange(count)] = own.transpose(0, 1)
                    alone.append(masked.flatten(0, 1))
                    offset += count
                found.append(torch.autograd.grad(projected, repeated, alone, retain_graph=True)[0])
        return torch.stack(found).view(len(found), self.attention, *stream.shape)

    # ------------------------------------------------------------ the answer

    def answer(self, top: int, steps: int) -> EdgeAttributions:
        """The `top` edges of the largest mean over the steps, by the first target; 0: all of them."""
        senders, receivers, estimates = self._table()
        estimates /= steps
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


def _add(into: NDArray[np.float64], written: Tensor, read: Tensor) -> None:
    """Adds the products of the first senders [S, c, D] and of receivers [M, R, c, D]."""
    products = torch.einsum("scd,mrcd->srm", written[: len(into)], read.to(written.device).float())
    into += products.double().cpu().numpy()
