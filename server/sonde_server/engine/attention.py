"""Attention over packed rows that share prefixes.

A row's queries attend to the keys of its prefix, which are its base's, and to its own. Without a prefix that is plain
causal attention, computed by SDPA. A row with a short prefix can use SDPA too: it gets a copy of the prefix's keys in
front of its own. Otherwise the queries of all rows are multiplied with one copy of the prefix's keys, and the softmax
runs over both parts. Rows whose scores or patterns are edited or read are always computed that way.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.attention import AttentionSettings
from ..questions.images import CAUSAL, Sight
from ..questions.kernels import Kernel, kernels
from ..questions.places import PAIRWISE, Component
from .layout import Segment
from .visits import Visits, add_distances, changed


class MaskOf(NamedTuple):
    """What a mask depends on: where a segment's own keys begin, how many there are, its queries, window and sight."""

    first: int
    length: int
    queries: tuple[int, ...]
    window: int | None
    sight: Sight
    device: torch.device


Masks = dict[MaskOf, Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """What attention needs to know of its block. Blocks of one batch may share their `masks`."""

    layer: int
    settings: AttentionSettings
    visits: Visits
    masks: Masks = field(default_factory=dict)


def attend(block: Block, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each head's mix of values for queries [rows x queries, H, d]; own keys and values are [rows, length, K, d]."""
    if not segment.queries:
        return query
    eager = block.settings.explicit or _pairs_are_visited(block, segment)
    possible = kernels(len(segment.queries), segment.first, eager=eager)
    if Kernel.SDPA not in possible or (Kernel.EAGER in possible and len(segment.members) > 1):
        return _explicit(block, segment, query, key, value)
    if segment.first:
        states = [state for state in segment.prefixes if state]
        key = _with_prefix([state.keys[block.layer] for state in states], segment, key)
        value = _with_prefix([state.values[block.layer] for state in states], segment, value)
    q = query.reshape(len(segment.members), len(segment.queries), *query.shape[1:]).transpose(1, 2)
    return _fused(block, segment, q, key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2).flatten(0, 1)


def _fused(block: Block, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal SDPA over [rows, H, n, d] and [rows, K, T, d]."""
    mask = _mask(block, segment, query)
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=block.settings.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _mask(block: Block, segment: Segment, query: Tensor) -> Tensor | None:
    """The mask for SDPA: [n, T] of visible keys, or [H, n, T] that is added. None: causal, and nothing else."""
    hidden, keys = _hidden(block, segment, query.device), segment.first + segment.length
    if block.settings.key_bias is not None:
        added = block.settings.key_bias(keys, query)[:, None, :]
        return added if hidden is None else added.masked_fill(hidden, -torch.inf)
    window = block.settings.sliding_window
    causal = segment.sight == CAUSAL
    everything = causal and len(segment.queries) == keys and (window is None or keys <= window)
    return None if hidden is None or everything else ~hidden


def _with_prefix(states: list[Tensor], segment: Segment, own: Tensor) -> Tensor:
    """Keys or values [rows, P + m, K, d]: those of each row's base [T, K, d], then its own [rows, m, K, d]."""
    shape = (len(states), segment.rows)
    prefix = torch.stack([state[: segment.first] for state in states]).unsqueeze(1)
    return torch.cat([prefix.expand(*shape, *prefix.shape[2:]), own.unflatten(0, shape)], dim=2).flatten(0, 1)


def _pairs_are_visited(block: Block, segment: Segment) -> bool:
    """Whether a row's scores or patterns are edited or read."""
    members, visits = frozenset(segment.members), block.visits
    places = [(component, block.layer) for component in PAIRWISE if (component, block.layer) in visits]
    return any(
        place in visits.watched or visits.edits(place, members) or visits.captures(place, members) for place in places
    )


def _explicit(block: Block, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with its scores written out.

    B bases with R rows each, n queries a row, P keys of the prefix and m own ones; K key heads of G query heads each.
    """
    settings = block.settings
    bases, rows, length, first = len(segment.prefixes), segment.rows, segment.length, segment.first
    heads, kv_heads, size = query.shape[1], key.shape[2], query.shape[2]
    group, queries = heads // kv_heads, len(segment.queries)
    q = query if settings.scaling == 1.0 else query * settings.scaling
    q = q.reshape(bases, rows, queries, kv_heads, group, size).permute(0, 3, 1, 4, 2, 5)  # [B, K, R, G, n, d]
    k = key.reshape(bases, rows, length, kv_heads, size).permute(0, 3, 1, 2, 4).unsqueeze(3)  # [B, K, R, 1, m, d]
    v = value.reshape(bases, rows, length, kv_heads, size).permute(0, 3, 1, 2, 4).unsqueeze(3)
    scores = q @ k.transpose(-1, -2)  # [B, K, R, G, n, m]
    if first:
        shared = (bases, kv_heads, rows * group * queries)
        prefix_keys = _prefix([state.keys[block.layer] for state in segment.prefixes if state], first)  # [B, K, P, d]
        before = (q.reshape(*shared, size) @ prefix_keys.transpose(-1, -2)).view(*q.shape[:-1], first)
        scores = torch.cat([before, scores], dim=-1)
    if settings.softcap is not None:
        scores = torch.tanh(scores / settings.softcap) * settings.softcap
    if settings.key_bias is not None:
        added = settings.key_bias(first + length, scores)
        scores = scores + added.view(1, kv_heads, 1, group, 1, first + length)
    if (hidden := _hidden(block, segment, scores.device)) is not None:
        # In place, because nothing else refers to them, and with long prompts no tensor is larger.
        partly = slice(first if settings.sliding_window is None else 0, None)
        scores[..., partly].masked_fill_(hidden[:, partly], -torch.inf)
    if _pairs_are_visited(block, segment):
        pattern = _edited_pattern(block, segment, scores)
    else:
        sinks = None if settings.sinks is None else settings.sinks.view(1, kv_heads, 1, group, 1, 1)
        pattern = softmax(scores, sinks)
    pattern = pattern.to(value.dtype)
    mixed = pattern[..., first:] @ v
    if first:
        prefix_values = _prefix([state.values[block.layer] for state in segment.prefixes if state], first)
        past = pattern[..., :first].reshape(*shared, first) @ prefix_values
        mixed = mixed + past.view(mixed.shape)
    return mixed.permute(0, 2, 4, 1, 3, 5).reshape(query.shape)


def _edited_pattern(block: Block, segment: Segment, scores: Tensor) -> Tensor:
    """Softmax of `scores` [B, K, R, G, n, T], with the rows' edits and captures of scores and patterns."""
    bases, kv_heads, rows, group, length, keys = scores.shape
    order = (0, 2, 1, 3, 4, 5)
    flat = scores.permute(*order).reshape(bases * rows, kv_heads * group, length, keys)
    hidden = torch.isneginf(flat)
    flat = _visit_pairs(block, segment, flat, Component.ATTENTION_SCORES, hidden)
    sinks = block.settings.sinks
    pattern = pattern_of(flat, None if sinks is None else sinks.view(1, -1, 1, 1))
    pattern = _visit_pairs(block, segment, pattern, Component.ATTENTION_PATTERN, None)
    return pattern.view(bases, rows, kv_heads, group, length, keys).permute(*order)


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax in float32. `sinks` are scores [..., 1] that take a share of the weight but have no value."""
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    shares = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    return torch.softmax(shares, dim=-1, dtype=torch.float32)[..., :-1]


def pattern_of(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Softmax in float32; a query whose keys are all masked has weight 0 everywhere."""
    nowhere = torch.isneginf(scores).all(dim=-1, keepdim=True)
    return softmax(scores, sinks).masked_fill(nowhere, 0.0)


def _prefix(states: list[Tensor], first: int) -> Tensor:
    """Keys or values [B, K, P, d] of bases' [T, K, d]: a view of one base, a copy of several."""
    cut = [state[:first].transpose(0, 1) for state in states]
    return cut[0].unsqueeze(0) if len(cut) == 1 else torch.stack(cut)


def _hidden(block: Block, segment: Segment, device: torch.device) -> Tensor | None:
    """The keys that each query must not attend to, [n, P + m]. None: all of them are visible."""
    window, end = block.settings.sliding_window, segment.first + segment.length
    window = None if window is None or window >= end else window
    if window is None and segment.queries == (end - 1,):
        return None
    mask = MaskOf(segment.first, segment.length, segment.queries, window, segment.sight, device)
    if mask not in block.masks:
        queries = torch.tensor(segment.queries, device=device)[:, None]
        seen = torch.tensor([segment.sight.horizon(query) for query in segment.queries], device=device)[:, None]
        keys = torch.arange(end, device=device)[None, :]
        hidden = keys > seen
        block.masks[mask] = hidden if window is None else hidden | (keys <= queries - window)
    return block.masks[mask]


def _visit_pairs(block: Block, segment: Segment, pairs: Tensor, component: Component, hidden: Tensor | None) -> Tensor:
    """Makes edits and captures of scores or patterns [rows, H, n, T]. Entries that are `hidden` stay hidden."""
    place = component, block.layer
    number = {row: index for index, row in enumerate(segment.members)}
    for row, edits in block.visits.edits(place, number):
        for edit in edits:
            where = _pair_index(pairs, segment, number[row], edit.units, edit.positions)
            old = pairs[where]  # [U, P, T]
            if edit.change.kind == "knockout":
                keys = range(old.shape[-1]) if edit.change.keys is None else edit.change.keys
                new = old.index_fill(-1, torch.tensor(list(keys), device=old.device), -torch.inf)
                sinks = block.settings.sinks
                if sinks is not None:
                    sinks = sinks[where[1]].unsqueeze(-1)  # [U, 1, 1]
                moved = pattern_of(new, sinks) - pattern_of(old, sinks)
            else:
                masked = torch.isneginf(old) if edit.change.kind != "set" or hidden is None else hidden[where]
                seen = old.masked_fill(torch.isneginf(old), 0.0)
                new = changed(seen.unsqueeze(0), [edit.change])[0]
                # Masked entries stay as they are: a multiple of -infinity could be +infinity or NaN.
                moved = (new - seen).masked_fill(masked, 0.0)
                new = new.masked_fill(masked, -torch.inf)
            add_distances([(row, edit)], moved.float().square().sum().reshape(1))
            pairs = pairs.index_put(where, new)
    for row, index, capture in block.visits.captures(place, number):
        where = _pair_index(pairs, segment, number[row], capture.units, capture.positions)
        row.captured[index] = pairs[where]
    if place in block.visits.watched:
        block.visits.seen[place] = pairs
    return pairs


def _pair_index(
    pairs: Tensor, segment: Segment, row: int, units: tuple[int, ...] | None, positions: tuple[int, ...]
) -> tuple[Tensor, ...]:
    heads = torch.arange(pairs.shape[1]) if units is None else torch.tensor(units)
    queries = torch.tensor([segment.queries.index(position) for position in positions])
    return tuple(index.to(pairs.device) for index in (torch.tensor(row), heads[:, None], queries[None, :]))
