"""Causal tracing (Meng et al. 2022, arXiv 2202.05262): which restored states bring the answer back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from sonde._answers.results import TraceResult
from sonde._arrays import (
    Axes,
    Booleans,
    Floats,
    Label,
    common_array,
    data_frame,
    long_form,
    strongest,
    visible,
)
from sonde._ask.given import flag, number
from sonde._ask.images import SPAN, ImageLike, as_image
from sonde._ask.indices import Indices, index, indices
from sonde._ask.named import NamedPositions, PositionsLike, named
from sonde._ask.named import positions as positions_of
from sonde._ask.names import COMPONENTS, WITHOUT_LAYER, ComponentName, check_name
from sonde._ask.prompts import PromptLike
from sonde._ask.sites import component_names
from sonde._methods.method import Assembly, Kind, Method, register, row_names
from sonde._show import plotting, terminal
from sonde._show.display import heatmap, note, sortable_table
from sonde._show.palette import look, words
from sonde._wire.context import Context
from sonde._wire.encoding import checked, encode_named, encode_prompt, write_positions
from sonde._wire.parts import NO_LAYER, Grid, known_component, layer_labels, missing
from sonde._wire.tensors import floats, to_tensor
from sonde.errors import InvalidRequest, ProtocolError
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_WINDOWED: Final = frozenset({"mlp_out", "attention_out"})
"""Components for which `window` layers are restored together."""
_WINDOW: Final = 10
"""The contract's default."""
_COLUMNS: Final = ("probabilities", "deviations", "logits", "sample_probabilities")
TOKEN_CLASSES: Final = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""The rows of figure 2 of Meng et al. 2022, which a reduction has unless it names others."""
_MOST_LISTED: Final = 5
_HEADER: Final = ("component", "layer", "position", "token", "probability", "effect")


@dataclass(frozen=True, slots=True)
class RestoredCell:
    """A restored state, and its effect on a target."""

    component: ComponentName
    layer: Label
    position: int
    token: str
    probability: float
    effect: float
    """The probability minus that in the corrupted runs."""

    def row(self) -> list[object]:
        """The cell as a row of a table."""
        token = repr(visible(self.token))
        return [self.component, self.layer, self.position, token, self.probability, self.effect]


@dataclass(frozen=True, eq=False, repr=False)
class CausalTracingResult(TraceResult):
    """ROME's grid: the target's probability when one clean state is restored in the corrupted runs.

    The keys of the mappings are components, as in `restored["residual_post"]`. The arrays are [position, layer,
    target]; `axes[component]` has the labels. Components without layers have a layer axis of length 1.
    """

    axes: Mapping[ComponentName, Axes]
    corrupted: Floats
    """[target]: the mean probability over samples, with nothing restored."""
    corrupted_deviations: Floats
    """[target]: the standard deviation over samples."""
    corrupted_logits: Floats
    """[target]: the mean over samples."""
    corrupted_positions: tuple[int, ...]
    """The positions that were corrupted."""
    corrupted_samples: Floats | None
    """[target, sample]: the probability in each sample; None unless requested."""
    noise_deviation: float
    """The standard deviation of the noise; 0 if none was drawn."""
    restored: Mapping[ComponentName, Floats]
    """The mean probability over samples."""
    deviations: Mapping[ComponentName, Floats]
    """The standard deviation of the probability over samples."""
    logits: Mapping[ComponentName, Floats]
    """The mean logit over samples; a difference of logits if the target has a contrast."""
    samples: Mapping[ComponentName, Floats]
    """[position, layer, target, sample]: the probability in each sample; empty unless requested."""
    window: int
    """The number of layers restored together for mlp_out and attention_out."""
    arrived: Mapping[ComponentName, Booleans]
    """[position, layer]: False where a partial result is still NaN."""

    @property
    def clean(self) -> Floats:
        """[target]: the probability in the unchanged run."""
        return self.prediction.probabilities

    @property
    def effect(self) -> Mapping[ComponentName, Floats]:
        """The indirect effect: `restored` minus `corrupted`."""
        return {name: values - self.corrupted for name, values in self.restored.items()}

    def strongest(
        self, count: int = 5, *, component: ComponentName | None = None, target: int = 0
    ) -> list[RestoredCell]:
        """The cells with the largest effect on the target, in either direction, the largest first."""
        if component is not None:
            check_name(component, self.effect, "component")
        named = self.effect.items()
        effects: dict[ComponentName, Floats] = {n: e[..., target] for n, e in named if component in {None, n}}
        return [
            self._cell(name, row, column, float(effects[name][row, column]), target)
            for name, (row, column) in strongest(effects, count)
        ]

    def _cell(self, name: ComponentName, row: int, column: int, effect: float, target: int) -> RestoredCell:
        position = int(self.axes[name]["position"][row] or 0)
        probability = float(self.restored[name][row, column, target])
        layer = self.axes[name]["layer"][column]
        return RestoredCell(name, layer, position, self.tokens[position].text, probability, effect)

    def row_labels(self, component: ComponentName) -> list[str]:
        """The rows of a grid: its tokens, with a star after corrupted ones."""
        positions = [int(p or 0) for p in self.axes[component]["position"]]
        stars = ["*" if p in self.corrupted_positions else "" for p in positions]
        return [text + star for text, star in zip(self.token_labels(positions), stars, strict=True)]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The restored probabilities; of several components, stacked along a first axis `component`."""
        return common_array(self.restored, self.axes, "restored")

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component, position, layer and target (needs pandas)."""
        table: dict[str, list[object]] = {}
        for name, restored in self.restored.items():
            columns: dict[str, npt.NDArray[np.generic]] = {
                "probability": restored,
                "deviation": self.deviations[name],
                "effect": self.effect[name],
                "logit": self.logits[name],
            }
            part = long_form(self.axes[name], columns)
            part["component"] = [name] * restored.size
            part["token"] = [self.tokens[p].text for p in part["position"]]
            for column in ("component", "position", "token", "layer", "target", *columns):
                table.setdefault(column, []).extend(part[column])
        return data_frame(table)

    def plot(self, path: "str | Path | None" = None, *, target: int = 0, image: ImageLike | None = None) -> "Figure":
        """Draw the heat maps of Meng et al. 2022, figure 1, and save them if a path is given (needs matplotlib).

        There is one panel per component, with tokens as rows and layers as columns. All panels share one scale, from
        the corrupted probability to the largest restored one. Corrupted tokens have a star.

        The positions of an image are one row, which has the state of the largest effect in each layer. Beneath each
        panel, the effects of all of them lie over the image, each that of its strongest layer. One patch of many
        changes little, so these have a scale of their own.

        Args:
            path: where the figure is saved; None saves nothing.
            target: the target's index.
            image: the prompt's image, to be seen beneath the effects; None leaves it out.
        """
        word = self._word(target)
        low, high = self._scale(target)
        panels = []
        for name in self.restored:
            values, rows = self._folded(name, target)
            shown = look(name)
            panels.append(
                plotting.Panel(
                    shown.title, values, rows, self.axes[name]["layer"], shown.colour_map, self._across(name)
                )
            )
        clean = float(self.clean[target])
        stars = " (* corrupted tokens)" if self.corrupted_positions else ""
        numbers = f"{clean:.3f} clean, {low:.3f} corrupted{stars}"
        title = self._titled(f"Where restoring one clean state brings {self._quoted(target)} back: {numbers}")
        over = [laid for laid in (self._laid(name, target) for name in self.restored) if laid is not None]
        if len(over) < len(panels):
            return plotting.save(plotting.panels(panels, low, high, title=title, legend=f"p({word})"), path)
        beneath = plotting.Beneath(over, self.images[0].edges, as_image(image))
        drawn = plotting.panels_over_image(panels, low, high, beneath, title=title, legend=f"p({word})")
        return plotting.save(drawn, path)

    def _image_rows(self, name: ComponentName) -> list[int]:
        """The rows of a grid that are positions of the image."""
        inside = {position for grid in self.images for position in grid.positions} | {*self.spans.get(SPAN, ())}
        return [row for row, position in enumerate(self.axes[name]["position"]) if position in inside]

    def _folded(self, name: ComponentName, target: int) -> tuple[Floats, list[str]]:
        """A grid [row, layer] with its rows' labels; those of an image are one, of the largest effect in each layer."""
        values, labels, inside = self.restored[name][..., target], self.row_labels(name), self._image_rows(name)
        if not self.images or len(inside) < 2:
            return values, labels
        part = values[inside]
        sizes = np.nan_to_num(np.abs(part - self.corrupted[target]), nan=-1.0)
        one = np.take_along_axis(part, sizes.argmax(0)[None], axis=0)
        star = "*" if any(labels[row].endswith("*") for row in inside) else ""
        first, last = inside[0], inside[-1]
        label = f"{SPAN} (strongest of {len(inside)}){star}"
        kept = [row for row in range(first, last + 1) if row not in inside]
        rows = [*range(first), *kept, *range(last + 1, len(values))]
        at = first + len(kept)
        folded = np.insert(values[rows], at, one, axis=0)
        names = [labels[row] for row in rows]
        return folded, [*names[:at], label, *names[at:]]

    def _laid(self, name: ComponentName, target: int) -> Floats | None:
        """[row, column] over the image: the effect of each position in the layer where it is largest."""
        inside = self._image_rows(name)
        if not self.images or len(inside) < 2:
            return None
        effect = self.effect[name][inside][..., target]
        sizes = np.nan_to_num(np.abs(effect), nan=-1.0)
        best = np.take_along_axis(effect, sizes.argmax(1)[:, None], axis=1)[:, 0]
        positions = [self.axes[name]["position"][row] for row in inside]
        laid: Floats = self.images[0].over_image(best, positions).astype(np.float32)
        return laid

    def heatmap_text(self, *, target: int = 0, colours: terminal.Colours | None = None) -> str:
        """The grids as text: one heat map per component, all on one scale. Corrupted tokens have a star.

        Args:
            target: the target's index.
            colours: the colours that the terminal supports; None finds out for standard output.
        """
        shown = terminal.colours_of() if colours is None else colours
        low, high = self._scale(target)
        parts = [self._levels(target)]
        for name in self.restored:
            values, labels = self._folded(name, target)
            rows = [row.strip() for row in labels]
            ramp = look(name).ramp
            picture = terminal.heatmap(
                values, rows, self._layer_texts(name), low=low, high=high, ramp=ramp, colours=shown
            )
            parts.append(f"\n{name} restored, by layer\n{picture}")
        return "\n".join(parts)

    def _scale(self, target: int) -> tuple[float, float]:
        """The corrupted probability, and the largest restored one."""
        low = float(self.corrupted[target])
        peaks = (float(np.nanmax(grid[..., target], initial=low)) for grid in self.restored.values())
        return low, max(max(peaks, default=low), low + 1e-6)

    def _levels(self, target: int) -> str:
        """The clean and the corrupted probability, in words."""
        clean, corrupted = float(self.clean[target]), float(self.corrupted[target])
        what = "with the tokens marked * corrupted" if self.corrupted_positions else "corrupted"
        return f"p({self._word(target)}): {clean:.3f} clean, {corrupted:.3f} {what}"

    def _across(self, name: ComponentName) -> str:
        """The label of the layer axis."""
        windowed = name in _WINDOWED and self.window > 1
        return f"centre of {self.window} restored layers" if windowed else "restored layer"

    def _layer_texts(self, name: ComponentName) -> list[str]:
        return ["-" if layer is None else str(layer) for layer in self.axes[name]["layer"]]

    def _pieces(self) -> list[str]:
        word = self._word()
        low, high = self._scale(0)
        pieces = [
            note(self._levels(0)),
            self._strip("where restoring one state brings it back", self._by_position()),
        ]
        for name in self.restored:
            values, rows = self._folded(name, 0)
            title, across, hue = f"{words(name)}: p({word})", self._across(name), look(name).hue
            pieces.append(
                heatmap(title, rows, self._layer_texts(name), values, across=across, low=low, high=high, hue=hue)
            )
        return [*pieces, sortable_table("the strongest states", _HEADER, [cell.row() for cell in self.strongest(10)])]

    def _by_position(self) -> Floats:
        """The effect of the strongest state of each position."""
        values = np.full(len(self.tokens), np.nan, np.float32)
        for name, effect in self.effect.items():
            for row, position in enumerate(self.axes[name]["position"]):
                if isinstance(position, int) and np.isfinite(effect[row, :, 0]).any():
                    best = effect[row, np.nanargmax(np.abs(effect[row, :, 0])), 0]
                    if not abs(values[position]) >= abs(best):
                        values[position] = best
        return values

    def _paragraphs(self, count: int) -> list[str]:
        rows = [cell.row() for cell in self.strongest(min(count, _MOST_LISTED))]
        listed = "restorations with the largest effect\n" + terminal.table(_HEADER, rows)
        return [*super()._paragraphs(count), self.heatmap_text(), listed]

    def _announced(self) -> list[str]:
        tokens = ", ".join(f"{self.tokens[p].text!r} ({p})" for p in self.corrupted_positions)
        return [f"corrupts the tokens {tokens}"] if tokens else []

    def _summary(self) -> str:
        grids = (f"{name} {' x '.join(map(str, values.shape[:2]))}" for name, values in self.restored.items())
        return f", corrupted {float(self.corrupted[0]):.4g}, {', '.join(grids)}"


@dataclass(frozen=True, slots=True, eq=False)
class CausalTracing(Method[CausalTracingResult]):
    """Corrupt the subject, then restore one clean state at a time (Meng et al. 2022, arXiv 2202.05262).

    The corruption is Gaussian noise on the subject's token embeddings, the given `noise`, or a counterfactual prompt.

    Args:
        subject: the part that is corrupted: a piece of the prompt's text, positions, or a span of the prompt by name,
            as `sonde.span("subject")`. Plain text that is the name of a span of the prompt (or of the first case)
            means the span; of a prompt with an image, "image" does. Leave it out with a counterfactual.
        samples: the number of noise samples; the default is 10.
        seed: the seed of the noise; the default is 1, as in ROME.
        deviations: the noise, in standard deviations of all entries of the embedding matrix; the default is 3.
        standard_deviation: the noise as an absolute standard deviation, instead of `deviations`.
        noise: [samples, corrupted positions, D]: the noise itself, to repeat an experiment exactly.
        counterfactual: a prompt with the same number of tokens; the positions where the two differ are corrupted. True
            means each case's own source.
        replace: replace the embedding with the noise instead of adding it; the default is False.
        components: the components to restore; the default is residual_post, mlp_out and attention_out.
        window: how many layers are restored together for mlp_out and attention_out; the default is 10: l - 5 to l + 4.
        layers: the layers to restore; the default, None, means all.
        positions: the positions to restore, by number or by name; the default, None, means all. Where cases are
            reduced, each entry is a row; by default these are the six of figure 2 of the paper.
        per_sample: also report the probability in each sample; the default is False.

    Raises:
        InvalidRequest: if more than one corruption is given, or an argument is not of its kind.
    """

    subject: str | NamedPositions | Sequence[SupportsIndex] | None = None
    samples: int | None = None
    seed: int | None = None
    deviations: float | None = None
    standard_deviation: float | None = None
    noise: npt.ArrayLike | None = None
    counterfactual: PromptLike | Literal[True] | None = None
    replace: bool = False
    components: ComponentName | Iterable[ComponentName] | None = None
    window: int | None = None
    layers: Indices = None
    positions: PositionsLike = None
    per_sample: bool = False

    def __post_init__(self) -> None:
        gaussian = (self.samples, self.seed, self.deviations, self.standard_deviation)
        if self.deviations is not None and self.standard_deviation is not None:
            raise InvalidRequest.at("standard_deviation", "pass either `deviations` or `standard_deviation`, not both")
        if (self.noise is not None) + (self.counterfactual is not None) + any(g is not None for g in gaussian) > 1:
            raise InvalidRequest.at(
                "noise",
                "expected one corruption, got several: pass either Gaussian noise (samples, seed, deviations, "
                "standard_deviation), or `noise`, or `counterfactual`",
            )
        object.__setattr__(self, "components", component_names(self.components))
        object.__setattr__(self, "layers", indices(self.layers, "layers"))
        object.__setattr__(self, "positions", positions_of(self.positions, "positions"))
        if self.subject is not None and not isinstance(self.subject, str | NamedPositions):
            object.__setattr__(self, "subject", indices(self.subject, "subject"))


def _write(method: CausalTracing, request: pb.TraceRequest) -> None:
    message = request.causal_tracing
    message.replace = flag(method.replace, "replace")
    message.components.extend(COMPONENTS[name] for name in component_names(method.components))
    message.layers.extend(indices(method.layers or None, "layers"))
    write_positions(positions_of(method.positions or None, "positions"), message.positions, message.named_positions)
    message.per_sample = flag(method.per_sample, "per_sample")
    if method.window is not None:
        message.window = index(method.window, "window")
    subject = _span_of(method.subject, request) if isinstance(method.subject, str) else method.subject
    if isinstance(subject, NamedPositions):
        message.named_subject.CopyFrom(encode_named(subject))
    elif isinstance(method.subject, str):
        checked("subject", lambda: setattr(message, "subject_text", method.subject))
    elif subject is not None:
        message.subject_positions.positions.extend(indices(subject, "subject"))
    if method.noise is not None:
        message.noise.CopyFrom(to_tensor(method.noise, "noise"))
    elif method.counterfactual is True:
        message.counterfactual.SetInParent()
    elif method.counterfactual is not None:
        message.counterfactual.CopyFrom(encode_prompt(method.counterfactual))
    else:
        message.gaussian.CopyFrom(_gaussian(method))


def _span_of(subject: str, request: pb.TraceRequest) -> NamedPositions | None:
    """What a plain text means if it is the name of a span of the prompt, or of the first case."""
    prompt = request.cases[0].prompt if request.cases else request.prompt
    meant = named(subject) if subject else None
    names = {span.name for span in prompt.spans} | {message.role for message in prompt.chat.messages}
    names |= {SPAN} if prompt.image else set()
    return meant if meant is not None and meant.span.partition("[")[0] in names else None


def _rows(request: pb.TraceRequest) -> tuple[str, ...]:
    asked = request.causal_tracing
    return row_names(asked.positions, asked.named_positions, TOKEN_CLASSES)


def _gaussian(method: CausalTracing) -> pb.CausalTracing.Gaussian:
    gaussian = pb.CausalTracing.Gaussian(
        samples=None if method.samples is None else index(method.samples, "samples"),
        seed=None if method.seed is None else index(method.seed, "seed", 64),
    )
    for name in ("deviations", "standard_deviation"):
        value = getattr(method, name)
        if value is not None:
            setattr(gaussian, name, number(value, name))
    return gaussian


class _Assembly(Assembly[CausalTracingResult]):
    def __init__(self, _: CausalTracing, request: pb.TraceRequest) -> None:
        self._asked = request.causal_tracing
        self._corruption: pb.Corruption | None = None
        self._grids: dict[ComponentName, dict[str, Grid]] = {}

    def take(self, context: Context, message: pb.TraceResponse) -> None:
        if message.HasField("corruption"):
            self._corruption = message.corruption
        for part in message.grids:
            name = known_component(part.component)
            if name not in self._grids:
                self._grids[name] = self._new_grids(context, name)
            labels = [list(part.positions), list(part.layers) or [NO_LAYER]]
            for column in _COLUMNS:
                if part.HasField(column):
                    self._grids[name][column].add(labels, getattr(part, column))

    def _new_grids(self, context: Context, name: ComponentName) -> dict[str, Grid]:
        layers = None if name in WITHOUT_LAYER else tuple(self._asked.layers) or None
        orders = [None if context.rows else context.positions(self._asked.positions), layers]
        return {column: Grid(f"{name} {column}", orders) for column in _COLUMNS}

    @property
    def ready(self) -> bool:
        return self._corruption is not None and bool(self._grids)

    def check(self, context: Context) -> None:
        if self._corruption is None:
            raise missing("the corrupted runs did not arrive")
        wanted = {known_component(component) for component in self._asked.components}
        lacking = sorted(wanted - self._grids.keys()) if wanted else [] if self._grids else ["any component"]
        if lacking:
            raise missing(f"no grid of {', '.join(lacking)} arrived")
        columns = _COLUMNS if self._asked.per_sample else _COLUMNS[:-1]
        for name, grids in self._grids.items():
            for column in columns:
                if not grids[column]:
                    raise missing(f"no {column} of {name} arrived")
                self._check_cells(context, name, grids[column])

    def _check_cells(self, context: Context, name: ComponentName, grid: Grid) -> None:
        (positions, layers), _, arrived = grid.join()
        asked = () if context.rows else self._asked.positions
        named_here = self._asked.named_positions and not context.rows
        expected = positions if named_here else context.positions(asked) or tuple(range(len(context.tokens)))
        gaps = layers != (NO_LAYER,) and not self._asked.layers and layers != tuple(range(len(layers)))
        few = layers != (NO_LAYER,) and len(layers) < len(set(self._asked.layers))
        if positions != expected or gaps or few or not arrived.all():
            raise missing(f"only {int(arrived.sum())} cells of {name} arrived")

    def build(self, context: Context) -> CausalTracingResult:
        corruption = self._corruption or pb.Corruption()
        columns: dict[str, dict[ComponentName, Floats]] = {column: {} for column in _COLUMNS}
        axes: dict[ComponentName, Axes] = {}
        arrived: dict[ComponentName, Booleans] = {}
        texts = tuple(target.text for target in context.targets)
        for name, grids in self._grids.items():
            for column in filter(grids.get, _COLUMNS):
                (positions, layers), values, came = grids[column].join()
                if values.shape[2:3] != (len(texts),):
                    raise ProtocolError(f"the answer has a grid of {name} that does not match its {len(texts)} targets")
                columns[column][name] = values.astype(np.float32, copy=False)
                arrived[name] = came
                axes[name] = {"position": positions, "layer": layer_labels(layers), "target": texts}
        samples = floats(corruption.sample_probabilities) if corruption.HasField("sample_probabilities") else None
        return CausalTracingResult(
            **context.common(),
            axes=axes,
            corrupted=np.array(corruption.probabilities, np.float32),
            corrupted_deviations=np.array(corruption.deviations, np.float32),
            corrupted_logits=np.array(corruption.logits, np.float32),
            corrupted_positions=tuple(corruption.positions),
            corrupted_samples=samples,
            noise_deviation=corruption.noise_deviation,
            restored=columns["probabilities"],
            deviations=columns["deviations"],
            logits=columns["logits"],
            samples=columns["sample_probabilities"],
            window=self._asked.window if self._asked.HasField("window") else _WINDOW,
            arrived=arrived,
        )


register(CausalTracing, Kind(_write, _Assembly, (CausalTracingResult,), _rows))
