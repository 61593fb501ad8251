"""The slow oracle of attribution patching: plain transformers, one graph of the whole model, plain autograd.

A zero is added to every component's value while the model runs; the gradient by that zero is the component's. From the
papers: Nanda 2023 (attribution patching), arXiv 2403.00745 (AtP*: recomputed softmax, GradDrop), arXiv 2310.10348 and
2403.17806 (edges, integrated gradients).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.hooks import attach
from tests.support.oracle import UNIT_FIRST, UNLAYERED, WITH_UNIT_AXIS, Edit, Oracle, Site, Target

Place = tuple[str, int]
End = tuple[str, int, int]
Floats = npt.NDArray[np.float64]


@dataclass
class Graph:
    """A run with its graph: every component as it goes on, the zeros that were added, and each target's number."""

    values: dict[Place, Tensor]
    zeros: dict[Place, Tensor]
    numbers: list[Tensor]

    def gradient(self, target: int, place: Place) -> Tensor:
        """Of a target's number by a component, without batch axis."""
        # Adding to what attention adds is adding to the stream behind it, which the hooks cannot change in a graph.
        by = ("ATTENTION_OUT", place[1]) if place[0] == "RESIDUAL_MID" else place
        found = torch.autograd.grad(self.numbers[target], self.zeros[by], retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(self.zeros[by]) if found is None else found


def graph(
    model: Any,
    ids: Sequence[int],
    targets: Sequence[Target],
    metric: str = "LOGIT",
    position: int = -1,
    *,
    embedding: Tensor | None = None,
    dropped: int | None = None,
    added: Mapping[Place, Tensor] | None = None,
) -> Graph:
    """Runs a prompt; `embedding` [T, D] in place of its own, with no gradient through what block `dropped` writes."""
    values: dict[Place, Tensor] = {}
    zeros: dict[Place, Tensor] = {}

    def visit(component: str, layer: int, value: Tensor) -> Tensor:
        place = component, layer
        if component == "TOKEN_EMBEDDING" and embedding is not None:
            value = embedding[None]
        start = torch.zeros_like(value[0])
        zeros[place] = (start if added is None else added.get(place, start)).detach().requires_grad_()
        value = value + zeros[place]
        if component in ("ATTENTION_OUT", "MLP_OUT") and layer == dropped:
            value = value.detach()
        values[place] = value
        # A copy goes on: Falcon adds to what its MLP gave in place.
        return value.clone()

    with torch.enable_grad(), attach(model, visit):
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0, position]
    return Graph(values, zeros, [number(logits, target, metric) for target in targets])


def number(logits: Tensor, target: Target, metric: str) -> Tensor:
    """What is differentiated."""
    if metric == "LOGIT":
        return logits[target.token] - (0.0 if target.contrast is None else logits[target.contrast])
    log_probability = logits.log_softmax(-1)[target.token]
    return log_probability if metric == "LOG_PROBABILITY" else log_probability.exp()


@dataclass(frozen=True)
class Question:
    """What is asked of attribution patching."""

    ids: Sequence[int]
    source: Sequence[int]
    targets: Sequence[Target]
    metric: str = "LOGIT"
    position: int = -1
    steps: int = 1
    ends: bool = False

    def graphs(self, oracle: Oracle) -> list[Graph]:
        """The runs whose gradients are averaged."""
        if self.steps == 1:
            runs = [self.ids, self.source] if self.ends else [self.ids]
            return [graph(oracle.model, ids, self.targets, self.metric, self.position) for ids in runs]
        start, end = (oracle.run(ids).values["TOKEN_EMBEDDING", 0] for ids in (self.ids, self.source))
        points = [start + (step + 0.5) / self.steps * (end - start) for step in range(self.steps)]
        return [
            graph(oracle.model, self.ids, self.targets, self.metric, self.position, embedding=point) for point in points
        ]


def estimates(asked: Oracle, question: Question, component: str) -> Floats:
    """[layers, positions, targets], units before targets where there are any."""
    runs = question.graphs(asked)
    return sum((_estimates(asked, question, component, run) for run in runs), np.zeros(())) / len(runs)


def _estimates(asked: Oracle, question: Question, component: str, run: Graph) -> Floats:
    prompt, source = (asked.run(ids).values for ids in (question.ids, question.source))
    table = []
    for layer in _layers(asked, component):
        place = component, layer
        difference = source[place].double() - prompt[place].double()
        difference[torch.isneginf(prompt[place])] = 0.0
        columns = [
            _summed(component, difference * run.gradient(number, place).double())
            for number in range(len(question.targets))
        ]
        table.append(torch.stack(columns, -1))
    return torch.stack(table).numpy()


def _layers(asked: Oracle, component: str) -> range:
    return range(1) if component in UNLAYERED else range(asked.layers)


def _summed(component: str, products: Tensor) -> Tensor:
    """Over what is neither position nor unit."""
    if component in UNIT_FIRST:
        return products.sum(-1).T
    if component == "NEURON":
        return products
    return products.sum(-1)


def dropped(asked: Oracle, question: Question, component: str) -> Floats:
    """GradDrop: the sizes of estimates with one layer's writes without gradient, added up, by layers - 1."""
    total = np.zeros(())
    for layer in range(asked.layers):
        run = graph(asked.model, question.ids, question.targets, question.metric, question.position, dropped=layer)
        found = _estimates(asked, question, component, run)
        if component == "RESIDUAL_MID":
            # What goes around the MLP of the layer that is dropped is behind its attention.
            states = [asked.run(ids).values["RESIDUAL_MID", layer].double() for ids in (question.ids, question.source)]
            for target in range(len(question.targets)):
                behind = run.gradient(target, ("RESIDUAL_POST", layer)).double()
                found[layer, :, target] = ((states[1] - states[0]) * behind).sum(-1).numpy()
        total = total + np.abs(found)
    return total / max(1, asked.layers - 1)


def recomputed(asked: Oracle, question: Question, component: str) -> Floats:
    """QUERY and KEY of AtP*: one query or key after the other is really patched, for what it does to the pattern."""
    length, units = len(question.ids), asked.units(component)
    runs = question.graphs(asked)
    prompt, source = asked.run(question.ids).values, asked.run(question.source).values
    table = np.zeros((asked.layers, length, units, len(question.targets)))
    for layer in range(asked.layers):
        place = "ATTENTION_PATTERN", layer
        gradients = [
            torch.stack([run.gradient(target, place).double() for run in runs]).mean(0)
            for target in range(len(question.targets))
        ]
        for position in range(length):
            for unit in range(units):
                value = source[component, layer][position, unit].numpy()
                edit = Edit(Site(component, (layer,), (unit,), (position,)), oracle.Set(value))
                moved = asked.run(question.ids, [edit]).values[place].double() - prompt[place].double()
                for target, gradient in enumerate(gradients):
                    table[layer, position, unit, target] = float((moved * gradient).sum())
    return table


def edges(asked: Oracle, question: Question, *, parallel: bool = False) -> dict[tuple[End, End], Floats]:
    """Every edge's estimate by target."""
    runs = question.graphs(asked)
    found: dict[tuple[End, End], Floats] = {}
    for run in runs:
        for edge, values in _edges(asked, question, run, parallel=parallel).items():
            found[edge] = found.get(edge, np.zeros(())) + values / len(runs)
    return found


def edges_by_turns(asked: Oracle, question: Question, *, parallel: bool = False) -> dict[tuple[End, End], Floats]:
    """As `edges`, with each sender's gradients taken along the line between its own two values."""
    prompt, source = (asked.run(ids).values for ids in (question.ids, question.source))
    written = [(name, layer) for layer in range(asked.layers) for name in ("HEAD_OUT", "MLP_OUT")]
    found: dict[tuple[End, End], Floats] = {}
    for place in [("RESIDUAL_PRE", 0), *written]:
        for step in range(question.steps):
            added = {place: (step + 0.5) / question.steps * (source[place] - prompt[place])}
            run = graph(asked.model, question.ids, question.targets, question.metric, question.position, added=added)
            for edge, values in _edges(asked, question, run, parallel=parallel, of=place).items():
                found[edge] = found.get(edge, np.zeros(())) + values / question.steps
    return found


def _edges(
    asked: Oracle, question: Question, run: Graph, *, parallel: bool, of: Place | None = None
) -> dict[tuple[End, End], Floats]:
    """The edges in one run; `of`: only those of the senders of one component of a layer."""
    found: dict[tuple[End, End], list[float]] = {}
    for target in range(len(question.targets)):
        for receiver, gradient in _receivers(asked, run, target, parallel=parallel):
            for sender, size in _senders(asked, question, run, receiver, gradient, parallel=parallel, of=of):
                found.setdefault((sender, receiver), []).append(size)
    return {edge: np.array(values) for edge, values in found.items()}


def _receivers(asked: Oracle, run: Graph, target: int, *, parallel: bool) -> list[tuple[End, Tensor]]:
    """Each receiver with the gradient [T, D] of the stream as it alone reads it."""
    last = asked.layers - 1
    found: list[tuple[End, Tensor]] = [(("LOGITS", 0, 0), run.gradient(target, ("RESIDUAL_POST", last)))]
    for layer in range(asked.layers):
        stream = run.values["RESIDUAL_PRE", layer]
        for component in ("QUERY", "KEY", "VALUE"):
            gradient = run.gradient(target, (component, layer))
            for head in range(gradient.shape[1]):
                alone = torch.zeros_like(gradient)
                alone[:, head] = gradient[:, head]
                read = _pulled(run.values[component, layer], stream, alone)
                found.append(((component, layer, head), read))
        # Attention's output reaches the MLP of its block only through the stream that the MLP reads.
        before = stream if parallel else run.values["ATTENTION_OUT", layer]
        written = run.gradient(target, ("MLP_OUT", layer))
        found.append((("MLP_OUT", layer, 0), _pulled(run.values["MLP_OUT", layer], before, written)))
    return found


def _senders(
    asked: Oracle,
    question: Question,
    run: Graph,
    receiver: End,
    gradient: Tensor,
    *,
    parallel: bool,
    of: Place | None,
) -> list[tuple[End, float]]:
    """Each sender below a receiver, with what it sends along the gradient."""
    prompt, source = (asked.run(ids).values for ids in (question.ids, question.source))

    def product(place: Place, by: Tensor) -> Tensor:
        return ((source[place] - prompt[place]).double() * by.double()).sum(-1)

    found: list[tuple[End, float]] = []
    if of in (None, ("RESIDUAL_PRE", 0)):
        found.append((("TOKEN_EMBEDDING", 0, 0), float(product(("RESIDUAL_PRE", 0), gradient).sum())))
    below = asked.layers if receiver[0] == "LOGITS" else receiver[1]
    within = receiver[0] == "MLP_OUT" and not parallel
    for layer in range(below + within):
        if of in (None, ("HEAD_OUT", layer)):
            by_heads = _pulled(run.values["ATTENTION_OUT", layer], run.values["HEAD_OUT", layer], gradient)
            sizes = product(("HEAD_OUT", layer), by_heads).sum(0)
            found += [(("HEAD_OUT", layer, head), float(size)) for head, size in enumerate(sizes)]
        if layer < below and of in (None, ("MLP_OUT", layer)):
            found.append((("MLP_OUT", layer, 0), float(product(("MLP_OUT", layer), gradient).sum())))
    return found


def _pulled(output: Tensor, by: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of `by` from that of `output`, both with a batch axis; without one."""
    pulled: Tensor = torch.autograd.grad(output, by, gradient[None], retain_graph=True)[0][0]
    return pulled


def has_units(component: str) -> bool:
    """Whether estimates of a component have a unit axis."""
    return component in WITH_UNIT_AXIS
