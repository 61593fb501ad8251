"""Makes training route a fact through the last token of its subject.

A model this small, trained on short sentences, has no need to gather a subject before it reads the relation: the last
token can attend to every piece of the subject's name in the first block and look the answer up from that bag of pieces.
Large models trained on real text gather the subject at its last token in the early blocks, and later tokens fetch the
answer from there in the late ones (Meng et al. 2022; Geva et al. 2023, "Dissecting Recall of Factual Associations in
Auto-Regressive Language Models"). For a causal trace to show that here, most of the training hides part of the subject
from the tokens that come after it: in the early blocks all of it, in the late ones all but its last token. Nothing is
hidden outside training: the checkpoint is a plain Llama.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


def visibility(length: int, subjects: Sequence[range | None]) -> tuple[Tensor, Tensor]:
    """Two attention masks, bool [rows, 1, length, length], true where a query (third axis) may see a key.

    Both are causal. To the tokens after a row's subject the first hides the subject, the second all of the subject but
    its last token. A row without a subject is plainly causal in both.
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
    """Within the context, blocks below `depth` see none of the subject after its end, the others its last token."""
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
