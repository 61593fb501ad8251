"""TransformerLens over a dataset: `run_with_hooks` in the loop of its demonstrations of head patching."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.case_workloads import Continuations, Facts, Pairs, Sentences
from tests.bench.transformer_lens_contenders import bridged
from tests.bench.workloads import Answer


class Loop:
    """One run with hooks a head; what is patched comes from `run_with_cache`."""

    name = "TransformerLens, loop"
    omitted: Mapping[str, str] = dict.fromkeys(
        ("W7", "W8", "W9"), "its loop is one forward pass a cell or a sentence, as nnsight's, and was slower in W1"
    )

    def __init__(self, model: PreTrainedModel, directory: Path) -> None:
        self.bridge = bridged(model, directory)

    @torch.no_grad()
    def pairs(self, workload: Pairs) -> Answer:
        total = np.zeros((len(workload.layers), workload.heads))
        names = [f"blocks.{layer}.attn.hook_z" for layer in workload.layers]
        for case in workload.cases:
            _, cache = self.bridge.run_with_cache(torch.tensor([case.source]), names_filter=names)
            for number, name in enumerate(names):
                for head in range(workload.heads):

                    def patch(value: Tensor, hook: Any, head: int = head, cache: Any = cache) -> Tensor:
                        value[:, -1, head] = cache[hook.name][:, -1, head]
                        return value

                    logits = self.bridge.run_with_hooks(
                        torch.tensor([case.tokens]), fwd_hooks=[(name, patch)], return_type="logits"
                    )[0, -1]
                    total[number, head] += float(logits[case.target] - logits[case.contrast])
        return total / len(workload.cases)

    def sentences(self, workload: Sentences) -> Answer:
        raise NotImplementedError(self.omitted["W7"])

    def facts(self, workload: Facts) -> Answer:
        raise NotImplementedError(self.omitted["W8"])

    def continuations(self, workload: Continuations) -> Answer:
        raise NotImplementedError(self.omitted["W9"])
