"""Attention over packed rows that share prefixes: the engine's half of model.attention.

A row's queries see the keys of its prefix, which are its base's, and its own. A segment without a prefix is plain
causal attention, done by SDPA. One with a prefix multiplies all its rows' queries with the one copy of the
prefix's keys, so that nothing is repeated per row; the softmax then runs over both parts. Rows whose scores or
patterns are edited or read go through the same explicit form.
"""

import torch
from torch import Tensor

from ..domain import PAIRWISE, Component
from ..model.attention import AttentionSettings, plain_attention
from .changes import changed, edits_at, receive, visit
from .layout import Layout, Segment


class SharedPrefixAttention:
    """Attends for one layout; also the place where queries, keys, values and heads are edited and read."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.explicit = {
            layer
            for row in layout.rows
            for component, layer in [*row.edits, *((capture.component, capture.layer) for capture in row.captures)]
            if component in PAIRWISE
        }
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings) -> Tensor:
        """Each head's mix of values [N, H, d]."""
        query = visit(query, self.layout, Component.QUERY, layer)
        key = visit(key, self.layout, Component.KEY, layer)
        value = visit(value, self.layout, Component.VALUE, layer)
        if any(row.keep for row in self.layout.rows):
            self.kept[layer] = (key, value)
        parts = []
        for segment in self.layout.segments:
            cut = slice(segment.offset, segment.stop)
            parts.append(self._attend(layer, segment, query[cut], key[cut], value[cut], settings))
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return visit(mixed, self.layout, Component.HEAD_OUT, layer)

    def _attend(
        self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings
    ) -> Tensor:
        windowed = settings.sliding_window is not None and segment.length > settings.sliding_window
        if segment.first == 0 and layer not in self.explicit and settings.softcap is None and not windowed:
            rows = len(segment.prefixes) * segment.rows
            q, k, v = (
                tensor.reshape(rows, segment.length, *tensor.shape[1:]).transpose(1, 2)
                for tensor in (query, key, value)
            )
            return plain_attention(q, k, v, settings).transpose(1, 2).flatten(0, 1)
        return self._explicit(layer, segment, query, key, value, settings)

    def _explicit(
        self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings
    ) -> Tensor:
        """B bases x R rows x n positions, P positions before them; K key heads of G query heads each."""
        bases, rows, length, first = len(segment.prefixes), segment.rows, segment.length, segment.first
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[2]
        group = heads // kv_heads
        q = query.reshape(bases, rows, length, kv_heads, group, size).permute(0, 3, 1, 4, 2, 5)  # [B, K, R, G, n, d]
        k = key.reshape(bases, rows, length, kv_heads, size).permute(0, 3, 1, 2, 4).unsqueeze(3)  # [B, K, R, 1, n, d]
        v = value.reshape(bases, rows, length, kv_heads, size).permute(0, 3, 1, 2, 4).unsqueeze(3)
        scores = q @ k.transpose(-1, -2)  # [B, K, R, G, n, n]
        if first:
            shared = (bases, kv_heads, rows * group * length)
            prefix_keys = _prefix([state.keys[layer] for state in segment.prefixes if state], first)  # [B, K, P, d]
            before = (q.reshape(*shared, size) @ prefix_keys.transpose(-1, -2)).view(*q.shape[:-1], first)
            scores = torch.cat([before, scores], dim=-1)
        scores = scores * settings.scaling
        if settings.softcap is not None:
            scores = torch.tanh(scores / settings.softcap) * settings.softcap
        scores = scores.masked_fill(_hidden(first, length, settings, scores.device), -torch.inf)
        if layer in self.explicit:
            pattern = self._edited_pattern(layer, segment, scores)
        else:
            pattern = torch.softmax(scores, dim=-1, dtype=torch.float32)
        pattern = pattern.to(value.dtype)
        mixed = pattern[..., first:] @ v
        if first:
            prefix_values = _prefix([state.values[layer] for state in segment.prefixes if state], first)
            past = pattern[..., :first].reshape(*shared, first) @ prefix_values
            mixed = mixed + past.view(mixed.shape)
        return mixed.permute(0, 2, 4, 1, 3, 5).reshape(query.shape)

    def _edited_pattern(self, layer: int, segment: Segment, scores: Tensor) -> Tensor:
        """Softmax of `scores` [B, K, R, G, n, T] with the rows' edits of both made, and captures taken."""
        bases, kv_heads, rows, group, length, keys = scores.shape
        order = (0, 2, 1, 3, 4, 5)
        flat = scores.permute(*order).reshape(bases * rows, kv_heads * group, length, keys)
        hidden = torch.isneginf(flat)
        flat = _visit_pairs(flat, segment, Component.ATTENTION_SCORES, layer, hidden)
        pattern = pattern_of(flat)
        pattern = _visit_pairs(pattern, segment, Component.ATTENTION_PATTERN, layer, None)
        return pattern.view(bases, rows, kv_heads, group, length, keys).permute(*order)


def pattern_of(scores: Tensor) -> Tensor:
    """Softmax in float32; a query that is left with no key looks nowhere."""
    nowhere = torch.isneginf(scores).all(dim=-1, keepdim=True)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).masked_fill(nowhere, 0.0)


def _prefix(states: list[Tensor], first: int) -> Tensor:
    """[B, K, P, d] of keys or values [T, K, d]; one base is a view, several are stacked."""
    cut = [state[:first].transpose(0, 1) for state in states]
    return cut[0].unsqueeze(0) if len(cut) == 1 else torch.stack(cut)


def _hidden(first: int, length: int, settings: AttentionSettings, device: torch.device) -> Tensor:
    """Which of the first + length keys each of the queries must not see, [n, P + n]."""
    queries = torch.arange(first, first + length, device=device)[:, None]
    keys = torch.arange(first + length, device=device)[None, :]
    hidden = keys > queries
    if settings.sliding_window is not None:
        hidden = hidden | (keys <= queries - settings.sliding_window)
    return hidden


def _visit_pairs(pairs: Tensor, segment: Segment, component: Component, layer: int, hidden: Tensor | None) -> Tensor:
    """Edits and captures of scores or patterns [rows, H, n, T]; what is `hidden` stays so."""
    number = {id(row): index for index, row in enumerate(segment.members)}
    for row, edits in edits_at(segment.members, component, layer):
        for edit in edits:
            where = _pair_index(pairs, segment, number[id(row)], edit.units, edit.positions)
            old = pairs[where]  # [U, P, T]
            if edit.change.kind == "knockout":
                keys = range(old.shape[-1]) if edit.change.keys is None else edit.change.keys
                new = old.index_fill(-1, torch.tensor(list(keys), device=old.device), -torch.inf)
                moved = pattern_of(new) - pattern_of(old)
            else:
                masked = torch.isneginf(old) if edit.change.kind != "set" or hidden is None else hidden[where]
                seen = old.masked_fill(torch.isneginf(old), 0.0)
                new = changed(seen.unsqueeze(0), [edit.change])[0]
                # What is masked takes no part: a multiple of -infinity would be a number, or none.
                moved = (new - seen).masked_fill(masked, 0.0)
                new = new.masked_fill(masked, -torch.inf)
            receive([(row, edit)], moved.float().square().sum().reshape(1))
            pairs = pairs.index_put(where, new)
    for row in segment.members:
        for index, capture in enumerate(row.captures):
            if capture.component == component and capture.layer == layer:
                row.captured[index] = pairs[
                    _pair_index(pairs, segment, number[id(row)], capture.units, capture.positions)
                ]
    return pairs


def _pair_index(
    pairs: Tensor, segment: Segment, row: int, units: tuple[int, ...] | None, positions: tuple[int, ...]
) -> tuple[Tensor, ...]:
    heads = torch.arange(pairs.shape[1]) if units is None else torch.tensor(units)
    queries = torch.tensor(positions) - segment.first
    return tuple(index.to(pairs.device) for index in (torch.tensor(row), heads[:, None], queries[None, :]))
