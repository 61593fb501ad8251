"""What questions cost: the terms that they share. Each question adds them up in its own file.

Everything is counted from the question and the model's sizes, before anything of that size is made. Held bytes are
upper bounds of what a question holds at one time, beside the model's weights and the batch that runs: the states that
its runs restart from, the noise that is drawn, the values that are captured of sources.
"""

import math
from dataclasses import dataclass

from .places import Sized

# Bytes of a number in an answer, and of one that is drawn or summed up.
FLOAT, DOUBLE = 4, 8
# The engine keeps no more than this of a run, and a question counts it: the logits of this many positions,
LOGITS_KEPT = 4
# and intermediate values of its blocks, as a share of everything else that is kept.
MIDWAY_KEPT = 1 / 6
# Edges are computed for a few positions at a time: their senders take this many bytes, and so do their receivers.
EDGE_CHUNK_BYTES = 32 << 20
# Up to this many runs are laid out at a time, with their changed values.
HELD_RUNS = 4096
# The most keys and values that one question keeps of the runs that it continues at a time, and the most such runs.
CONTINUED_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
MOST_CONTINUED = 512


@dataclass(frozen=True, slots=True)
class Cost:
    """What a question costs.

    runs: with changes, those that are asked for: the unchanged runs of the prompt, of sources and of a counterfactual,
    which questions share, are not counted. Without changes, every pass through the model, forwards or backwards.
    token_layers: positions x blocks that are computed, over all passes. full_token_layers: if every pass were computed
    in full. answer_bytes: the size of the answer. tokens: those of all prompts and sources. cases: how many there are,
    0 where the request has a single prompt.
    """

    runs: int
    token_layers: int
    full_token_layers: int
    answer_bytes: int
    tokens: int = 0
    cases: int = 0


def item_bytes(data_type: str) -> int:
    """Bytes of one number of the model's own type, such as "bfloat16"."""
    return int(data_type.lstrip("bfloat")) // 8


def cache_bytes(tokens: int, model: Sized, item: int) -> int:
    """Bytes of the keys and values of `tokens` positions at every block, `item` bytes a number."""
    return tokens * 2 * model.layers * model.key_value_heads * model.head_size * item


def stream_bytes(tokens: int, model: Sized, item: int) -> int:
    """Bytes of the residual stream of `tokens` positions before each block and after the last."""
    return tokens * (model.layers + 1) * model.hidden_size * item


def detour_bytes(columns: int, tokens: int, model: Sized, item: int) -> int:
    """Bytes of a run's columns, and of what the receivers of a block read and make of it, if each sees other ones."""
    heads = model.heads + 2 * model.key_value_heads
    read = heads * (model.hidden_size + heads * model.head_size)
    return tokens * item * (2 * columns * model.hidden_size + read)


def state_bytes(tokens: int, model: Sized) -> int:
    """Bytes of what is kept of an unchanged run of `tokens` positions, at most."""
    item = item_bytes(model.data_type)
    embedding = tokens * model.hidden_size * item
    logits = FLOAT * model.vocabulary_size * min(tokens, LOGITS_KEPT)
    kept = embedding + stream_bytes(tokens, model, item) + cache_bytes(tokens, model, item) + logits
    return math.ceil((1 + MIDWAY_KEPT) * kept)


def continued_at_once(runs: int, each: int, device: str) -> int:
    """How many of `runs` are continued at a time, when one keeps `each` bytes of keys and values; at least one is."""
    budget = CONTINUED_BYTES["cuda" if device.startswith("cuda") else "cpu"]
    return max(1, min(runs, MOST_CONTINUED, budget // max(1, each)))
