"""The target's probability at each layer (logit lens), optionally with gradient norms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import numpy.typing as npt

from sonde._answers.findings import LensTable
from sonde._answers.predictions import TokenPrediction
from sonde._answers.results import TraceResult
from sonde._arrays import Axes, Floats, Integers, data_frame, long_form, visible
from sonde._ask.given import flag
from sonde._ask.named import PositionsLike
from sonde._ask.named import positions as positions_of
from sonde._ask.names import METRICS, MetricName, check_name
from sonde._methods.method import Assembly, Kind, Method, register, row_names
from sonde._show import plotting, terminal
from sonde._show.display import curve, heatmap, sortable_table
from sonde._wire.context import Context
from sonde._wire.encoding import decode_named, write_positions
from sonde._wire.parts import Grid, missing
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_WHOLE: Final = ("log_probabilities", "logits", "ranks", "kl_divergences")
"""The columns that each answer has."""
_COLUMNS: Final = (*_WHOLE, "top_token_ids", "top_log_probabilities", "probabilities")


@dataclass(frozen=True, eq=False, repr=False)
class TokenProbabilityResult(TraceResult):
    """The target at each layer. Depth 0 is the residual stream before block 0; depth k is after k blocks."""

    depths: tuple[int, ...]
    log_probabilities: Floats
    """[depth, target]: the residual stream, read by the final norm and the unembedding (logit lens)."""
    logits: Floats
    """[depth, target]; a difference of logits if the target has a contrast."""
    ranks: Integers
    """[depth, target]; 0 is the most probable token."""
    kl_divergences: Floats
    """[depth]: KL(final || this depth), in nats."""
    gradient_norms: Floats | None
    """[depth, position, target]: the L2 norm of the metric's gradient; None unless requested."""
    top_token_ids: Integers
    """[depth, k]"""
    top_log_probabilities: Floats
    """[depth, k]"""
    gradient_positions: tuple[int, ...]
    """The positions of the gradient norms."""
    _texts: Mapping[int, str]
    read_at: int = 0
    """The position where the stream is read."""
    _others: tuple["TokenProbabilityResult", ...] = ()
    """The same at the further positions that were requested."""
    _probabilities: Floats | None = field(default=None, kw_only=True)
    """Of a statistic over cases; elsewhere they follow from the logarithms."""

    @property
    def by_position(self) -> Mapping[int, "TokenProbabilityResult"]:
        """The readings at each position that was requested, in that order; this result is the first of them."""
        return {one.read_at: one for one in (self, *self._others)}

    @property
    def axes(self) -> Axes:
        """The axes of `log_probabilities`, with their labels."""
        return {"depth": self.depths, "target": tuple(token.text for token in self.targets)}

    @property
    def probability(self) -> float:
        """The first target's final probability."""
        return float(self.probabilities[-1, 0])

    @property
    def probabilities(self) -> Floats:
        """[depth, target]: the target's probability; of a mean over cases, the mean of the probabilities themselves."""
        return np.exp(self.log_probabilities) if self._probabilities is None else self._probabilities

    def __iter__(self) -> Iterator[tuple[float, Floats | None]]:
        """For each block and the first target: (probability after the block, gradient norms by position).

        The norms are None unless requested.
        """
        for index, depth in enumerate(self.depths):
            if depth > 0:
                norms = None if self.gradient_norms is None else self.gradient_norms[index, :, 0]
                yield float(self.probabilities[index, 0]), norms

    def top_at(self, depth: int, count: int = 5) -> list[TokenPrediction]:
        """The most probable tokens when the residual stream is read at a depth."""
        if depth not in self.depths:
            raise ValueError(f"expected a depth from 0 to {self.depths[-1] if self.depths else 0}, got {depth!r}")
        row = self.depths.index(depth)
        pairs = zip(self.top_token_ids[row, :count], self.top_log_probabilities[row, :count], strict=True)
        return [TokenPrediction(int(i), self._texts.get(int(i), f"<{i}>"), float(v)) for i, v in pairs]

    @property
    def table(self) -> LensTable:
        """The most probable token at each depth and each position that was requested.

        Raises:
            ValueError: if the request asked for no top tokens.
        """
        read = self.by_position
        if not all(one.top_token_ids.shape[1:] > (0,) for one in read.values()):
            message = "the answer has no top tokens; request them with top_k=1"
            raise ValueError(message)
        cells = tuple(tuple(one.top_at(depth, 1)[0] for one in read.values()) for depth in self.depths)
        tokens = tuple(self.tokens[position] for position in read)
        return LensTable(tokens, tuple(read), self.depths, cells, self.provenance, self.request)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `log_probabilities`; if several positions were read, stacked along a first axis `position`."""
        if not self._others:
            return self.axes, self.log_probabilities
        read = self.by_position
        return {"position": tuple(read), **self.axes}, np.stack([one.log_probabilities for one in read.values()])

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per depth and target, of each position if several were read (needs pandas)."""
        axes, _ = self.labelled()
        read = self.by_position.values()
        names = {
            "log_probability": "log_probabilities",
            "probability": "probabilities",
            "logit": "logits",
            "rank": "ranks",
        }
        columns = {name: np.stack([getattr(one, field) for one in read]) for name, field in names.items()}
        return data_frame(long_form(axes, columns))

    def rows(self, target: int = 0) -> list[list[object]]:
        """Depth, probability, rank and top token, as rows of a table."""
        table: list[list[object]] = []
        for index, depth in enumerate(self.depths):
            top = self.top_at(depth, 1) if self.top_token_ids.shape[1:] > (0,) else []
            probability, rank = float(self.probabilities[index, target]), self.ranks[index, target].item()
            table.append([depth, probability, rank, repr(visible(top[0].text)) if top else ""])
        return table

    def plot(
        self,
        path: "str | Path | None" = None,
        *,
        target: int = 0,
        error: "TokenProbabilityResult | None" = None,
    ) -> "Figure":
        """Draw the probability by depth with the top token at each, and the gradient norms if there are any.

        If several positions were read, draw the top token at each depth and position instead (see `table`), or
        without top tokens the target's probability.

        Depth goes up, as the stream does (needs matplotlib).

        Args:
            path: where the figure is saved; None saves nothing.
            target: the target's index.
            error: for a mean over cases, the same with standard errors. The curve then has a band of one standard
                error to either side.
        """
        if self._others:
            return plotting.save(self._by_position_drawn(target), path)
        norms = None if self.gradient_norms is None else self.gradient_norms[..., target]
        word, depth = self._word(target), "after block (0: embeddings)"
        title = self._titled(
            f"How {self._quoted(target)} forms: its probability when the stream is read after each block"
        )
        # Columns of the figure, in inches: the curve, the top tokens beside it, and the gradient norms.
        wide = 5.4 if norms is None else 10.4

        def draw(figure: "Figure") -> None:
            if norms is None:
                line = figure.subplots()
            else:
                line, map_ = figure.subplots(1, 2, width_ratios=[1, 1.25])
                rows = self.token_labels(self.gradient_positions)
                panel = plotting.Panel("gradient norm", norms.T, rows, self.depths, "Blues", depth)
                plotting.draw_panel(figure, map_, panel, 0.0, max(float(np.nanmax(norms, initial=0.0)), 1e-12))
            values = self.probabilities[:, target]
            spread = None
            if error is not None:
                errors = error.probabilities[:, target]
                spread = values - errors, values + errors
            tops = self._top_texts()
            plotting.draw_lens(line, f"p({word})", self.depths, values, spread=spread, down=depth, tops=tops)
            plotting.write_title(figure, title, wide)

        positions = 0 if norms is None else norms.shape[1]
        tall = max(1.5 + 0.19 * min(len(self.depths), plotting.MOST_ROWS), 1.4 + 0.22 * positions, 3.0)
        return plotting.save(plotting.figure(wide, tall, draw), path)

    def _by_position_drawn(self, target: int) -> "Figure":
        """The top token at each depth and position; without top tokens, the target's probability there."""
        if self.top_token_ids.shape[1:] > (0,):
            return self.table.plot()
        values = np.stack([one.probabilities[:, target] for one in self.by_position.values()])
        rows, across = self.token_labels(list(self.by_position)), "after block (0: embeddings)"
        panel = plotting.Panel("", values, rows, self.depths, "Blues", across)
        title = self._titled(f"p({self._word(target)}) at each position, read after each block")
        return plotting.panels([panel], 0.0, max(float(np.nanmax(values, initial=0.0)), 1e-6), title=title)

    def _top_texts(self) -> list[str]:
        """The top token at each depth; an empty list if the request asked for none."""
        return [self.top_at(depth, 1)[0].text for depth in self.depths] if self.top_token_ids.shape[1:] > (0,) else []

    def _pieces(self) -> list[str]:
        if self._others and self._top_texts():
            return [self.table.html()]
        word = self._word()
        labels = [str(depth) for depth in self.depths]
        title = f"p({word}) read after each block"
        tops = [repr(visible(text)) for text in self._top_texts()]
        pieces = [curve(title, labels, self.probabilities[:, 0].tolist(), across="after block", tops=tops)]
        if self.gradient_norms is not None:
            norms = self.gradient_norms[..., 0]
            by_position = np.full(len(self.tokens), np.nan, np.float32)
            by_position[list(self.gradient_positions)] = norms[0]
            rows = self.token_labels(self.gradient_positions)
            pieces.insert(0, self._strip("gradient at the embeddings", by_position))
            pieces.append(heatmap("gradient norm", rows, labels, norms.T, across="after block", low=0.0))
        header = ["depth", f"p({word})", "rank", "top token"]
        return [*pieces, sortable_table("read after each block", header, self.rows())]

    def _paragraphs(self, count: int) -> list[str]:
        if self._others and self._top_texts():
            return [*super()._paragraphs(count), str(self.table)]
        word = visible(self._text())
        rows = [[*row, terminal.bar(float(str(row[1])))] for row in self.rows()]
        table = terminal.table(["after block", f"p({word!r})", "rank", "top token", ""], rows)
        return [*super()._paragraphs(count), table]


@dataclass(frozen=True, slots=True)
class TokenProbability(Method[TokenProbabilityResult]):
    """Read the target from the residual stream at each depth (logit lens), optionally with gradient norms.

    Args:
        gradient_norms: also compute the L2 norm of the target's gradient at each depth and position; the default is
            False.
        metric: the quantity that is differentiated; the default is `"probability"`.
        positions: the positions where the stream is read, by number or by name; the default is the one position of the
            call. `"all"` reads all. `result.by_position` has the readings at each, `result.table` the top tokens.
    """

    gradient_norms: bool = False
    metric: MetricName | None = None
    positions: PositionsLike = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", positions_of(self.positions, "positions"))
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")


def _write(method: TokenProbability, request: pb.TraceRequest) -> None:
    message = request.token_probability
    message.gradient_norms = flag(method.gradient_norms, "gradient_norms")
    if method.metric is not None:
        message.metric = METRICS[method.metric]
    write_positions(positions_of(method.positions or None, "positions"), message.positions, message.named_positions)
    message.SetInParent()


def _rows(request: pb.TraceRequest) -> tuple[str, ...]:
    asked = request.token_probability
    here = [str(decode_named(request.named_position))] if request.HasField("named_position") else ["position read"]
    return row_names(asked.positions, asked.named_positions, here)


class _Assembly(Assembly[TokenProbabilityResult]):
    def __init__(self, method: TokenProbability, _: pb.TraceRequest) -> None:
        self._method = method
        self._by_position: dict[int, dict[str, Grid]] = {}
        self._texts: dict[int, str] = {}

    def take(self, context: Context, message: pb.TraceResponse) -> None:  # noqa: ARG002 - needs no more than its shapes
        if not message.HasField("layers"):
            return
        layers, depths = message.layers, list(message.layers.depths)
        grids = self._by_position.setdefault(layers.position, {})
        for name in _COLUMNS:
            if layers.HasField(name):
                grids.setdefault(name, Grid(name, [None])).add([depths], getattr(layers, name))
        if layers.HasField("gradient_norms"):
            grid = grids.setdefault("gradient_norms", Grid("gradient_norms", [None, None]))
            grid.add([depths, list(layers.positions)], layers.gradient_norms)
        self._texts.update(layers.token_texts)

    @property
    def ready(self) -> bool:
        return bool(self._by_position)

    def check(self, context: Context) -> None:
        asked = positions_of(self._method.positions or None, "positions")
        numbers = context.positions(entry for entry in asked if isinstance(entry, int)) or ()
        expected = len(context.rows) or len(numbers) or 1
        if len(self._by_position) < expected:
            raise missing(f"the depths at only {len(self._by_position)} of {expected} positions arrived")
        wanted = {*_WHOLE, *(["gradient_norms"] if self._method.gradient_norms else [])}
        for grids in self._by_position.values():
            lacking = sorted(wanted - grids.keys())
            if lacking:
                raise missing(f"no {' or '.join(lacking)} arrived")
            joined = [grid.join() for grid in grids.values()]
            (first, *others) = {labels[0] for labels, _, _ in joined}
            if others or not all(arrived.all() for _, _, arrived in joined) or first != tuple(range(len(first))):
                raise missing("some depths did not arrive")

    def build(self, context: Context) -> TokenProbabilityResult:
        first, *others = [self._at(context, position) for position in self._by_position] or [self._at(context, None)]
        return replace(first, _others=tuple(others))

    def _at(self, context: Context, position: int | None) -> TokenProbabilityResult:
        """The readings at one position; None: nothing has arrived."""
        grids: dict[str, Grid] = {} if position is None else self._by_position[position]
        targets = len(context.targets)
        gradient = grids.get("gradient_norms")
        (_, positions), norms, _ = gradient.join() if gradient else (((), ()), None, None)
        return TokenProbabilityResult(
            **context.common(),
            depths=grids["log_probabilities"].join()[0][0] if "log_probabilities" in grids else (),
            log_probabilities=_floats(grids, "log_probabilities", (0, targets)),
            logits=_floats(grids, "logits", (0, targets)),
            ranks=_integers(grids, "ranks", (0, targets)),
            kl_divergences=_floats(grids, "kl_divergences", (0,)),
            gradient_norms=None if norms is None else norms.astype(np.float32, copy=False),
            top_token_ids=_integers(grids, "top_token_ids", (0, 0)),
            top_log_probabilities=_floats(grids, "top_log_probabilities", (0, 0)),
            gradient_positions=positions,
            _texts=context.texts() | self._texts,
            read_at=position or 0,
            _probabilities=_floats(grids, "probabilities", (0, targets)) if "probabilities" in grids else None,
        )


def _floats(grids: Mapping[str, Grid], name: str, empty: tuple[int, ...]) -> Floats:
    grid = grids.get(name)
    return np.empty(empty, np.float32) if grid is None else grid.join()[1].astype(np.float32, copy=False)


def _integers(grids: Mapping[str, Grid], name: str, empty: tuple[int, ...]) -> Integers:
    """Integers; a statistic of them over cases is a float, and stays one."""
    grid = grids.get(name)
    if grid is None:
        return np.empty(empty, np.int64)
    found = grid.join()[1]
    return cast("Integers", found if found.dtype.kind == "f" else found.astype(np.int64))


register(TokenProbability, Kind(_write, _Assembly, (TokenProbabilityResult,), _rows))
