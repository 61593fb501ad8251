"""The ends of edges that are single heads: what each writes to the stream, and what it reads there, to first order.

What heads write is taken through the derivative of the output projection and of the norm that may follow it; what they
read, through the derivative of the norm and the projection before them. Each head takes no more work than its own part
of the weights, where these can be had.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engine import State
from ...engine.layout import turns_of
from ...model.anatomy import Decoder


def written(decoder: Decoder, layer: int, mixed: Tensor, moves: Tensor) -> Tensor:
    """What a change [n, H, d] of one head's mix adds to the stream, for each head alone: [H, n, D].

    `mixed` [n, H, d] are the mixes in the run that is differentiated. They matter only to a norm.
    """
    count = decoder.heads
    if not decoder.post_normed:
        return decoder.written_by_heads(layer, moves.transpose(0, 1), range(count))
    with torch.enable_grad():
        repeated = mixed.repeat(count, 1, 1).requires_grad_()
        output = decoder.attention_output(layer, repeated)
        # The backward pass is linear in what it is given, and its own backward pass is the derivative forwards.
        given = torch.zeros_like(output).requires_grad_()
        (backward,) = torch.autograd.grad(output, repeated, given, create_graph=True)
        alone = torch.zeros_like(repeated).unflatten(0, (count, -1))
        each = torch.arange(count)
        alone[each, :, each] = moves.transpose(0, 1)
        (derived,) = torch.autograd.grad(backward, given, alone.flatten(0, 1))
    each_written: Tensor = derived.unflatten(0, (count, -1))
    return each_written


def read(
    decoder: Decoder, layer: int, stream: Tensor, gradients: Sequence[Tensor], positions: range, state: State
) -> Tensor:
    """Gradients [M, R, n, D] of the stream [n, D] as each of R heads alone reads it: queries, then keys, then values.

    `gradients`: those of queries [M, n, H, d], keys and values [M, n, K, d]. The stream is at `positions` of the
    run `state`.
    """
    ends = [decoder.heads, decoder.heads + decoder.key_value_heads, decoder.heads + 2 * decoder.key_value_heads]
    streams = range(ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2])
    where = turns_of([(state.image, positions)], stream.device)
    lengths = torch.full((len(positions),), len(state.tokens), device=stream.device)
    with torch.enable_grad():
        reads = stream.repeat(ends[2], 1, 1).requires_grad_()
        rotation = decoder.rotation(stream, where, lengths.to)
        projected = decoder.project_reads(layer, reads, streams, rotation)
        found: list[Tensor] = []
        for own in zip(*gradients, strict=True):
            found += torch.autograd.grad(projected, reads, own, retain_graph=True)
    return torch.stack(found)
