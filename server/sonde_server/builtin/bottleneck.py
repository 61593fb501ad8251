"""Makes training pass a fact through the last token of its subject.

A model this small, trained on short sentences, does not need to gather a subject before it reads the relation. Its last
token can attend to every piece of the subject's name in the first block, and look up the answer by the set of pieces.
Large models trained on real text gather the subject at its last token in the early blocks, and later tokens fetch the
answer from there in the late ones (Meng et al. 2022; Geva et al. 2023, "Dissecting Recall of Factual Associations in
Auto-Regressive Language Models"). To show the same in a causal trace of this model, most of the training hides part of
the subject from the tokens after it: the whole subject in the early blocks, all but its last token in the late ones.
Outside training nothing is hidden; the checkpoint is a plain Llama.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


def visibility(length: int, subjects: Sequence[range | None]) -> tuple[Tensor, Tensor]:
    """Two attention masks, bool [rows, 1, length, length], true where a query (third axis) may see a key.

    Both are causal. From the tokens after a row's subject, the first mask hides the subject, and the second hides all
    of it but its last token. A row without a subject is just causal in both.
    """
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    hidden = causal.repeat(len(subjects), 1, 1, 1)
    gathered = hidden.clone()
    for row, subject in enumerate(subjects):
        if subject is not None:
            hidden[row, 0, subject.stop :, subject.start : subject.stop] = False
            gathered[row, 0, subject.stop :, subject.start : subject.stop - 1] = False
    return hidden, gathered


@contextmanager
def routed(model: LlamaForCausalLM, depth: int, subjects: Sequence[range | None], length: int) -> Iterator[None]:
    """Within the context, tokens after a subject see none of it in blocks below `depth`, and its last token above."""
    hidden, gathered = visibility(length, subjects)

    def mask(mask: Tensor) -> Any:
        def replace(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        return replace

    handles = [
        block.register_forward_pre_hook(mask(hidden if layer < depth else gathered), with_kwargs=True)
        for layer, block in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
