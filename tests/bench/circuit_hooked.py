"""What those who are asked about circuits with plain hooks share: a model, its parts, and passes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.plain import entered, hooked
from tests.support.hooks import modules_of


class Hooked:
    """A model that is built like Llama, and its parts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.modules = model, modules_of(model)
        config = model.config
        self.heads, self.key_value_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_size = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        attention: list[Any] = self.modules.attention
        self.projections = [[one.q_proj, one.k_proj, one.v_proj] for one in attention]
        self.norms: list[Any] = [block.input_layernorm for block in self.modules.blocks]

    def final(self, **inputs: Any) -> Tensor:
        """The final norm at the last position, [rows, D]."""
        output: Tensor = self.model.base_model(**inputs).last_hidden_state
        return output[:, -1].contiguous()

    def mixes(self, cases: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
        """What heads attend to, and what MLPs write, by block, of prompts of one length."""
        mixes: list[Tensor] = []
        mlps: list[Tensor] = []
        with entered(self.modules.attention_projection, keep(mixes)), hooked(self.modules.mlp_out, keep(mlps)):
            self.final(input_ids=torch.tensor(cases), use_cache=False)
        return mixes, mlps

    def head(self, number: int) -> slice:
        """A head's part of what all attend to."""
        return slice(number * self.head_size, (number + 1) * self.head_size)


def keep(values: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    """A hook that keeps what it sees."""

    def kept(_: int, value: Tensor) -> Tensor:
        values.append(value)
        return value

    return kept
