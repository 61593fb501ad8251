"""The slow oracle: every run recomputed in full by plain transformers with hooks, one prompt at a time.

It takes plain Python structures, knows nothing of protobuf or of the server, and follows the contract's words and
the papers: arXiv 2202.05262 (causal tracing), nostalgebraist 2020 (logit lens), numpy's RandomState for noise.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sonde.v1 import inspection_pb2 as pb
from torch import Tensor

from tests.support.hooks import attach, modules_of

Array = npt.NDArray[np.float32]

UNLAYERED = frozenset({"TOKEN_EMBEDDING", "FINAL_NORM", "LOGITS"})
UNIT_FIRST = frozenset({"ATTENTION_SCORES", "ATTENTION_PATTERN"})
"""[H, T, T]: heads, then queries. Everywhere else positions come first and units second."""
HEADED = frozenset({"HEAD_OUT", "QUERY", "KEY", "VALUE"}) | UNIT_FIRST
WITH_UNIT_AXIS = HEADED | {"NEURON"}
"""A sweep runs over these units one by one; the units of the others are edited together."""
# In the order of the contract.
COMPONENTS = tuple(name.removeprefix("COMPONENT_") for name in pb.Component.keys()[1:])

REMEMBERED = 64
"""The most unedited runs that an oracle keeps."""


@dataclass(frozen=True)
class Site:
    """A place; an empty tuple is all of its axis."""

    component: str
    layers: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    from_position: int | None = None


@dataclass(frozen=True)
class Scale:
    factor: float


@dataclass(frozen=True, eq=False)
class Set:
    value: Array


@dataclass(frozen=True, eq=False)
class Add:
    value: Array


@dataclass(frozen=True, eq=False)
class Multiply:
    value: Array


@dataclass(frozen=True, eq=False)
class ProjectOut:
    direction: Array


@dataclass(frozen=True)
class Patch:
    sources: tuple[int, ...]
    source_positions: tuple[int, ...] = ()
    source_layer: int | None = None


@dataclass(frozen=True)
class Noise:
    standard_deviation: float
    seed: int | None = None


@dataclass(frozen=True)
class Knockout:
    key_positions: tuple[int, ...] = ()


Operation = Scale | Set | Add | Multiply | ProjectOut | Patch | Noise | Knockout


@dataclass(frozen=True)
class Edit:
    site: Site
    operation: Operation


@dataclass(frozen=True)
class Sweep:
    """One run per layer x unit x position of the edit's site; `together` names axes: LAYER, UNIT, POSITION."""

    edit: Edit
    together: frozenset[str] = frozenset()
    layer_window: int | None = None
    always: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Target:
    token: int
    contrast: int | None = None


@dataclass
class Run:
    """One forward pass."""

    logits: Tensor
    """[T, V]."""
    values: dict[tuple[str, int], Tensor]
    """Every component's value after its edits, without batch axis."""
    norms: list[float] = field(default_factory=list)
    """By edit: how far it moved what it hit."""


@dataclass(frozen=True)
class Prediction:
    log_probabilities: Array
    logits: Array
    top_ids: list[int]
    top_log_probabilities: Array


@dataclass(frozen=True)
class Lens:
    """Readings at depths 0 to L: [depths, targets], kl [depths]."""

    log_probabilities: Array
    logits: Array
    ranks: npt.NDArray[np.int64]
    kl_divergences: Array
    everything: Array
    """[depths, V] log-probabilities."""


def window_layers(layer: int, window: int, layers: int) -> range:
    """The layers restored together around one, ROME's rule: max(0, l - w/2) to min(L, l + (w+1)/2) - 1."""
    return range(max(0, layer - window // 2), min(layers, layer - (-window // 2)))


class Oracle:
    """A loaded Hugging Face model (eager attention, float32, CPU) and what can be asked of it."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.parts = modules_of(model)
        self._unedited: tuple[tuple[int, ...], dict[tuple[int, ...], Run]] | None = None
        config = model.config.get_text_config()
        self.layers = len(self.parts.blocks)
        self.hidden_size: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.key_value_heads: int = self.parts.key_value_heads or (
            getattr(config, "num_key_value_heads", None) or self.heads
        )
        self.head_size: int = getattr(config, "head_dim", None) or self.hidden_size // self.heads
        values = self.run([0]).values
        self.components = tuple(name for name in COMPONENTS if (name, 0) in values)
        self.neurons: int = values["NEURON", 0].shape[-1] if "NEURON" in self.components else 0
        self.vocabulary: int = config.vocab_size

    # ------------------------------------------------------------------ runs

    def shape(self, component: str, length: int) -> tuple[int, ...]:
        """The shape of one prompt's activation."""
        if component in UNIT_FIRST:
            return (self.heads, length, length)
        if component in ("KEY", "VALUE"):
            return (length, self.key_value_heads, self.head_size)
        if component in HEADED:
            return (length, self.heads, self.head_size)
        width = {"NEURON": self.neurons, "LOGITS": self.vocabulary}.get(component, self.hidden_size)
        return (length, width)

    def units(self, component: str) -> int:
        """How many units a component has."""
        return self.shape(component, 1)[0 if component in UNIT_FIRST else 1]

    def positions(self, site: Site, length: int) -> list[int]:
        """The positions a site names, counted from the start."""
        if site.from_position is not None:
            return list(range(site.from_position, length))  # none where it lies beyond the prompt
        return [position % length for position in site.positions] or list(range(length))

    def selection(self, site: Site, length: int) -> tuple[Any, ...]:
        """The index that picks what a site names from one layer's activation."""
        first = self.positions(site, length)
        second = list(site.units) or list(range(self.units(site.component)))
        if site.component in UNIT_FIRST:
            first, second = second, first
        return tuple(
            torch.meshgrid(torch.tensor(first, dtype=torch.long), torch.tensor(second, dtype=torch.long), indexing="ij")
        )

    def run(self, ids: Sequence[int], edits: Sequence[Edit] = (), sources: Sequence[Sequence[int]] = ()) -> Run:
        """Runs a prompt with edits; `sources` are the prompts that patches take their values from.

        A run without edits is remembered while the model stays as it is. Callers leave its tensors unchanged.
        """
        if edits:
            return self._run(ids, edits, sources)
        state = self._state()
        if self._unedited is None or self._unedited[0] != state:
            self._unedited = state, {}
        runs, prompt = self._unedited[1], tuple(ids)
        if prompt not in runs:
            if len(runs) >= REMEMBERED:
                del runs[next(iter(runs))]
            runs[prompt] = self._run(prompt)
        return runs[prompt]

    def _state(self) -> tuple[int, ...]:
        """Another one for another model, for one whose weights were written to, and for one with hooks of a test."""
        hooks = [key for one in self.model.modules() for key in (*one._forward_hooks, *one._forward_pre_hooks)]
        return (id(self.model), *hooks, *(parameter._version for parameter in self.model.parameters()))

    @torch.no_grad()
    def _run(self, ids: Sequence[int], edits: Sequence[Edit] = (), sources: Sequence[Sequence[int]] = ()) -> Run:
        source_runs = {
            index: self.run(sources[index])
            for edit in edits
            if isinstance(edit.operation, Patch)
            for index in edit.operation.sources
        }
        values: dict[tuple[str, int], Tensor] = {}
        squares = [0.0] * len(edits)

        def visit(component: str, layer: int, value: Tensor) -> Tensor:
            current = value[0]
            for index, edit in enumerate(edits):
                if edit.site.component == component and (component in UNLAYERED or layer in edit.site.layers):
                    current, square = self._edited(edit, layer, current, source_runs)
                    squares[index] += square
            # A copy is kept: some models write to what goes on.
            values[component, layer] = current.clone()
            return current[None]

        with attach(self.model, visit):
            self.model(torch.tensor([list(ids)]), use_cache=False)
        logits = values["LOGITS", 0]
        return Run(logits, values, [float(np.sqrt(square)) for square in squares])

    def _edited(self, edit: Edit, layer: int, value: Tensor, source_runs: dict[int, Run]) -> tuple[Tensor, float]:
        """One layer's activation after one edit, and the square of the distance it moved."""
        length = _length(edit.site, value)
        where = self.selection(edit.site, length)
        before = value[where]
        changed = value.clone()
        if isinstance(edit.operation, Knockout):
            rows = torch.zeros(value.shape, dtype=torch.bool)
            keys = [key % length for key in edit.operation.key_positions] or list(range(length))
            inner = rows[where]
            inner[..., keys] = True
            rows[where] = inner
            changed[rows] = -torch.inf
            moved = self._pattern(changed, layer) - self._pattern(value, layer)
            return changed, float(moved.double().square().sum())
        masked = torch.isneginf(before)
        finite = before.masked_fill(masked, 0.0)
        after = self._operated(edit, layer, finite, source_runs)
        moved = (after - finite).masked_fill(masked, 0.0)
        changed[where] = after.masked_fill(masked, -torch.inf)
        return changed, float(moved.double().square().sum())

    def _pattern(self, scores: Tensor, layer: int) -> Tensor:
        """The weights of scores [H, T, T]; sinks, where a family has them, take a share."""
        sinks = getattr(self.parts.attention[layer], "sinks", None)
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
        pattern = torch.nan_to_num(scores.softmax(-1))
        return pattern if sinks is None else pattern[..., :-1]

    def _operated(self, edit: Edit, layer: int, before: Tensor, source_runs: dict[int, Run]) -> Tensor:  # noqa: PLR0911 - one per operation
        match edit.operation:
            case Scale(factor):
                return before * factor
            case Set(value):
                return torch.from_numpy(value).expand(before.shape).clone()
            case Add(value):
                return before + torch.from_numpy(value)
            case Multiply(value):
                return before * torch.from_numpy(value)
            case ProjectOut(direction):
                along = torch.from_numpy(direction).double()
                along = along / along.norm(dim=-1, keepdim=True)
                wide = before.double()
                projected: Tensor = wide - (wide * along).sum(-1, keepdim=True) * along
                return projected.float()
            case Noise(standard_deviation, seed):
                draw = np.random.RandomState(1 if seed is None else seed).randn(*before.shape)
                return before + torch.from_numpy((standard_deviation * draw).astype(np.float32))
            case Patch(sources, source_positions, source_layer):
                # Unless paired with others, those of the site; a negative one counts from the source's own end.
                named = replace(edit.site, positions=source_positions or edit.site.positions)
                taken = []
                for source in sources:
                    taken_at = layer if source_layer is None else source_layer
                    other = source_runs[source].values[edit.site.component, taken_at]
                    taken.append(other[self.selection(named, _length(edit.site, other))].double())
                return torch.stack(taken).mean(0).float()
        raise TypeError(edit.operation)

    # ------------------------------------------------------------------ sweeps

    def axes(self, sweep: Sweep, length: int) -> tuple[list[int], list[int], list[int]]:
        """Layers, units and positions that a sweep comes to; an axis that it has none of is empty."""
        site = sweep.edit.site
        layers = [] if site.component in UNLAYERED else list(site.layers) or list(range(self.layers))
        units = list(site.units)
        if not units and site.component in WITH_UNIT_AXIS:
            units = list(range(self.units(site.component)))
        return layers, units, self.positions(site, length)

    def expand(self, sweep: Sweep, length: int) -> list[list[Edit]]:
        """The runs of a sweep as lists of edits, the last axis fastest."""
        layers, units, positions = self.axes(sweep, length)
        site, operation = sweep.edit.site, sweep.edit.operation
        together = sweep.together | ({"POSITION"} if site.from_position is not None else set())
        pairs: tuple[int, ...] = ()
        if isinstance(operation, Patch):
            pairs = operation.source_positions or site.positions
        runs = []
        for some_layers, some_units, some in itertools.product(
            _split(layers, "LAYER" in together),
            _split(units, "UNIT" in together),
            _split(list(range(len(positions))), "POSITION" in together),
        ):
            reach = {
                other
                for layer in some_layers
                for other in window_layers(layer, 1 if sweep.layer_window is None else sweep.layer_window, self.layers)
            }
            chosen = replace(site, layers=tuple(sorted(reach)), units=tuple(some_units))
            if site.from_position is None:
                chosen = replace(chosen, positions=tuple(positions[index] for index in some))
            run_operation = operation
            if isinstance(operation, Patch) and pairs:
                run_operation = replace(operation, source_positions=tuple(pairs[index] for index in some))
            runs.append([*sweep.always, Edit(chosen, run_operation)])
        return runs

    # ------------------------------------------------------------------ readouts

    def top(self, logits: Tensor, count: int = 1) -> list[int]:
        """Token ids by descending logit."""
        return torch.topk(logits, count).indices.tolist()

    def predict(self, logits: Tensor, targets: Sequence[Target], top_k: int = 0) -> Prediction:
        """What is read of one position's logits [V]."""
        log_probabilities = logits.double().log_softmax(-1)
        top_ids = self.top(logits, top_k) if top_k else []
        return Prediction(
            np.array([float(log_probabilities[target.token]) for target in targets], dtype=np.float32),
            np.array([target_logit(logits, target) for target in targets], dtype=np.float32),
            top_ids,
            log_probabilities[top_ids].float().numpy(),
        )

    def kl_divergence(self, unchanged: Tensor, changed: Tensor) -> float:
        """KL(unchanged || changed) of two positions' logits, in nats."""
        first, second = unchanged.double().log_softmax(-1), changed.double().log_softmax(-1)
        return float((first.exp() * (first - second)).sum())

    def activation(self, run: Run, site: Site, layer: int, length: int) -> Array:
        """What a readout's site selects in a run."""
        return run.values[site.component, layer][self.selection(site, length)].numpy()

    def layers_of(self, site: Site) -> list[int]:
        """The layers that a readout's site names; 0 for a component without layers."""
        return [0] if site.component in UNLAYERED else list(site.layers) or list(range(self.layers))

    # ------------------------------------------------------------------ lens and gradients

    @torch.no_grad()
    def lens(self, ids: Sequence[int], targets: Sequence[Target], position: int = -1) -> Lens:
        """Each depth's residual stream through the final norm and the unembedding."""
        run = self.run(ids)
        residuals = [run.values["RESIDUAL_PRE", 0]]
        residuals += [run.values["RESIDUAL_POST", layer] for layer in range(self.layers)]
        normed = [self.parts.final_norm(h[None])[0, position] for h in residuals]
        logits = torch.stack([self.parts.finish(self.parts.unembedding(one)) for one in normed])
        everything = logits.double().log_softmax(-1)
        ids_of = [target.token for target in targets]
        final = everything[-1]
        return Lens(
            everything[:, ids_of].float().numpy(),
            np.array([[target_logit(row, target) for target in targets] for row in logits], dtype=np.float32),
            np.array([[int((row > row[token]).sum()) for token in ids_of] for row in logits]),
            (final.exp() * (final - everything)).sum(-1).float().numpy(),
            everything.float().numpy(),
        )

    def gradient_norms(
        self, ids: Sequence[int], targets: Sequence[Target], position: int = -1, metric: str = "PROBABILITY"
    ) -> Array:
        """[depths, positions, targets]: L2 norm of a target's number's gradient by the residual stream."""
        residuals: list[Tensor] = []

        def visit(component: str, layer: int, value: Tensor) -> Tensor:
            if (component, layer) == ("RESIDUAL_PRE", 0) or component == "RESIDUAL_POST":
                # A leaf of its own would cut the graph: the very tensor that goes on is differentiated by.
                residuals.append(value)
            return value

        with torch.enable_grad(), attach(self.model, visit):
            logits = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0, position]
            columns = []
            for target in targets:
                number = {
                    "LOGIT": logits[target.token] - (0.0 if target.contrast is None else logits[target.contrast]),
                    "LOG_PROBABILITY": logits.log_softmax(-1)[target.token],
                    "PROBABILITY": logits.softmax(-1)[target.token],
                }[metric]
                gradients = torch.autograd.grad(number, residuals, retain_graph=True)
                columns.append(torch.stack([gradient[0].norm(dim=-1) for gradient in gradients]))
        return torch.stack(columns, dim=-1).detach().numpy()


def target_logit(logits: Tensor, target: Target) -> float:
    """The logit, or its difference to the contrast's."""
    contrast = 0.0 if target.contrast is None else float(logits[target.contrast])
    return float(logits[target.token]) - contrast


def _length(site: Site, value: Tensor) -> int:
    return value.shape[1 if site.component in UNIT_FIRST else 0]


def _split(values: list[int], together: bool) -> Iterable[list[int]]:
    """One group of all, or one group each; an axis there is none of is one empty group."""
    return [values] if together or not values else [[value] for value in values]
