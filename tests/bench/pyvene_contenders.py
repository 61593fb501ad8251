"""pyvene: an IntervenableModel a block, called once a cell, as its tutorials do.

https://github.com/stanfordnlp/pyvene. Its NoiseIntervention draws noise of a fixed shape and its VanillaIntervention
runs the source again for every cell; both are replaced by interventions of our own, the documented way to add one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pyvene
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.batches import log_probabilities, top
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron


class _Apply(pyvene.ConstantSourceIntervention, pyvene.LocalistRepresentationIntervention):  # type: ignore[misc]
    """Hands what is at the chosen units to a function."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.change: Callable[[Tensor], Tensor] = lambda value: value

    def forward(self, base: Tensor, *_: object, **__: object) -> Tensor:
        return self.change(base)


class Loop:
    """One call of an IntervenableModel a cell."""

    name = "pyvene, loop"
    omitted: Mapping[str, str] = {"W5": "no server: the 16 requests are compared with themselves, one after the other"}

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.hidden_size = model.config.hidden_size
        self.on = cache(self._on)
        self._kept: tuple[tuple[int, ...], Tensor] | None = None

    def _on(self, *places: tuple[str, int, str]) -> Any:
        """The model with an intervention at each (component, block, unit)."""
        representations = [
            {"layer": layer, "component": component, "unit": unit, "max_number_of_units": 1024}
            for component, layer, unit in places
        ]
        config = pyvene.IntervenableConfig(representations, [_Apply] * len(places))
        return pyvene.IntervenableModel(config, self.model)

    def _run(self, model: Any, ids: Tensor, units: list[list[int]], *changes: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits at the last position, [rows, V]."""
        for intervention, change in zip(model.interventions.values(), changes, strict=True):
            intervention.change = change
        where = {"base": [[each] * len(ids) for each in units]}
        _, output = model({"input_ids": ids}, unit_locations=where, use_cache=False)
        logits: Tensor = output.logits[:, -1]
        return logits

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        noise = workload.noise(self.hidden_size)
        ids = torch.tensor([workload.tokens])
        states = self._states(ids, workload.layers)
        batch = ids.repeat(workload.samples, 1)
        answer = np.empty(len(workload))
        for number, (position, layer) in enumerate(workload.cells):
            clean = states[layer][:, position : position + 1]
            model = self.on(("block_input", 0, "pos"), ("block_output", layer, "pos"))
            units = [list(workload.subject), [position]]
            logits = self._run(model, batch, units, noise.add, clean.expand_as)
            answer[number] = log_probabilities(logits, workload.target).exp().mean()
        return answer

    def _states(self, ids: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """What leaves these blocks, [1, T, D]."""
        states: dict[int, Tensor] = {}

        def keep(value: Tensor, layer: int) -> Tensor:
            states[layer] = value.clone()
            return value

        model = self.on(*(("block_output", layer, "pos") for layer in layers))
        everywhere = [list(range(ids.shape[1]))] * len(layers)
        self._run(model, ids, everywhere, *(partial(keep, layer=layer) for layer in layers))
        return states

    @torch.no_grad()
    def neurons(self, workload: Neurons) -> Answer:
        ids, last = torch.tensor([workload.tokens]), len(workload.tokens) - 1
        answer = np.empty(len(workload))
        for number, (layer, unit) in enumerate(workload.neurons):

            def ablate(value: Tensor, unit: int = unit) -> Tensor:
                value[..., unit] = 0.0
                return value

            logits = self._run(self.on(("mlp_activation", layer, "pos")), ids, [[last]], ablate)
            answer[number] = log_probabilities(logits, workload.target)
        return answer

    @torch.no_grad()
    def heads(self, workload: Heads) -> Answer:
        ids = torch.tensor([workload.tokens])
        answer = np.empty(len(workload))
        for number, (layer, head) in enumerate(workload.heads):
            model = self.on(("head_attention_value_output", layer, "h"))
            answer[number] = log_probabilities(self._run(model, ids, [[head]], torch.zeros_like), workload.target)
        return answer

    @torch.no_grad()
    def one_neuron(self, workload: OneNeuron) -> Answer:
        ids = torch.tensor([workload.tokens])
        if workload.again and self._kept is not None and self._kept[0] == workload.tokens:
            before = self._kept[1]
        else:
            before = top(self.model(ids, use_cache=False).logits[:, -1], workload.top)[0]
        self._kept = (workload.tokens, before)

        def scale(value: Tensor) -> Tensor:
            value[..., workload.neuron] *= workload.factor
            return value

        places = [list(workload.positions)]
        logits = self._run(self.on(("mlp_activation", workload.layer, "pos")), ids, places, scale)
        return np.stack([before.numpy(), top(logits, workload.top)[0].numpy()])

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(self.omitted["W5"])
