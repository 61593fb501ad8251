"""The target's probability at each layer (logit lens), optionally with gradient norms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from sonde._answers.predictions import TokenPrediction
from sonde._answers.results import TraceResult
from sonde._arrays import Axes, Floats, Integers, data_frame, long_form, visible
from sonde._ask.given import flag
from sonde._ask.names import METRICS, MetricName, check_name
from sonde._methods.method import Assembly, Kind, Method, register
from sonde._show import plotting, terminal
from sonde._show.display import curve, heatmap, sortable_table
from sonde._wire.context import Context
from sonde._wire.parts import Grid, missing
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_WHOLE: Final = ("log_probabilities", "logits", "ranks", "kl_divergences")
"""The columns that each answer has."""
_COLUMNS: Final = (*_WHOLE, "top_token_ids", "top_log_probabilities")


@dataclass(frozen=True, eq=False, repr=False)
class TokenProbabilityResult(TraceResult):
    """The target at each layer. Depth 0 is the residual stream before block 0; depth k is after k blocks."""

    drawn_with_errors: ClassVar[bool] = True
    """Whether `plot` takes the standard errors of a mean."""

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

    @property
    def axes(self) -> Axes:
        """The axes of `log_probabilities`, with their labels."""
        return {"depth": self.depths, "target": tuple(token.text for token in self.targets)}

    @property
    def probability(self) -> float:
        """The first target's final probability."""
        return float(self.prediction.probabilities[0])

    @property
    def probabilities(self) -> Floats:
        """[depth, target]: the exponentials of `log_probabilities`."""
        return np.exp(self.log_probabilities)

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

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `log_probabilities`; `np.asarray(result)` is the latter."""
        return self.axes, self.log_probabilities

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per depth and target (needs pandas)."""
        columns: dict[str, npt.NDArray[np.generic]] = {
            "log_probability": self.log_probabilities,
            "probability": self.probabilities,
            "logit": self.logits,
            "rank": self.ranks,
        }
        return data_frame(long_form(self.axes, columns))

    def rows(self, target: int = 0) -> list[list[object]]:
        """Depth, probability, rank and top token, as rows of a table."""
        table: list[list[object]] = []
        for index, depth in enumerate(self.depths):
            top = self.top_at(depth, 1) if self.top_token_ids.shape[1:] > (0,) else []
            probability, rank = float(self.probabilities[index, target]), int(self.ranks[index, target])
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

        Depth goes up, as the stream does (needs matplotlib).

        Args:
            path: where the figure is saved; None saves nothing.
            target: the target's index.
            error: for a mean over cases, the same with standard errors. The curve is then the probability of the mean
                log-probability, with a band of one standard error of it.
        """
        norms = None if self.gradient_norms is None else self.gradient_norms[..., target]
        word, depth = self._word(target), "after block (0: embeddings)"
        title = f"How “{word}” forms: its probability when the stream is read after each block"
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
                means, errors = self.log_probabilities[:, target], error.log_probabilities[:, target]
                spread = np.exp(means - errors), np.exp(means + errors)
            tops = self._top_texts()
            plotting.draw_lens(line, f"p({word})", self.depths, values, spread=spread, down=depth, tops=tops)
            plotting.write_title(figure, title, wide)

        positions = 0 if norms is None else norms.shape[1]
        tall = max(1.5 + 0.19 * min(len(self.depths), plotting.MOST_ROWS), 1.4 + 0.22 * positions, 3.0)
        return plotting.save(plotting.figure(wide, tall, draw), path)

    def _top_texts(self) -> list[str]:
        """The top token at each depth; an empty list if the request asked for none."""
        return [self.top_at(depth, 1)[0].text for depth in self.depths] if self.top_token_ids.shape[1:] > (0,) else []

    def _pieces(self) -> list[str]:
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
        word = visible(self.targets[0].text)
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
    """

    gradient_norms: bool = False
    metric: MetricName | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")


def _write(method: TokenProbability, request: pb.TraceRequest) -> None:
    message = request.token_probability
    message.gradient_norms = flag(method.gradient_norms, "gradient_norms")
    if method.metric is not None:
        message.metric = METRICS[method.metric]
    message.SetInParent()


class _Assembly(Assembly[TokenProbabilityResult]):
    def __init__(self, method: TokenProbability, _: pb.TraceRequest) -> None:
        self._method = method
        self._grids: dict[str, Grid] = {}
        self._texts: dict[int, str] = {}

    def take(self, context: Context, message: pb.TraceResponse) -> None:  # noqa: ARG002 - needs no more than its shapes
        if not message.HasField("layers"):
            return
        layers, depths = message.layers, list(message.layers.depths)
        for name in _COLUMNS:
            if layers.HasField(name):
                self._grids.setdefault(name, Grid(name, [None])).add([depths], getattr(layers, name))
        if layers.HasField("gradient_norms"):
            grid = self._grids.setdefault("gradient_norms", Grid("gradient_norms", [None, None]))
            grid.add([depths, list(layers.positions)], layers.gradient_norms)
        self._texts.update(layers.token_texts)

    @property
    def ready(self) -> bool:
        return bool(self._grids)

    def check(self, context: Context) -> None:  # noqa: ARG002 - the depths are numbered by themselves
        wanted = {*_WHOLE, *(["gradient_norms"] if self._method.gradient_norms else [])}
        lacking = sorted(wanted - self._grids.keys())
        if lacking:
            raise missing(f"no {' or '.join(lacking)} arrived")
        joined = [grid.join() for grid in self._grids.values()]
        (first, *others) = {labels[0] for labels, _, _ in joined}
        if others or not all(arrived.all() for _, _, arrived in joined) or first != tuple(range(len(first))):
            raise missing("some depths did not arrive")

    def build(self, context: Context) -> TokenProbabilityResult:
        targets = len(context.targets)
        gradient = self._grids.get("gradient_norms")
        (_, positions), norms, _ = gradient.join() if gradient else (((), ()), None, None)
        return TokenProbabilityResult(
            **context.common(),
            depths=self._grids["log_probabilities"].join()[0][0] if "log_probabilities" in self._grids else (),
            log_probabilities=self._floats("log_probabilities", (0, targets)),
            logits=self._floats("logits", (0, targets)),
            ranks=self._integers("ranks", (0, targets)),
            kl_divergences=self._floats("kl_divergences", (0,)),
            gradient_norms=None if norms is None else norms.astype(np.float32, copy=False),
            top_token_ids=self._integers("top_token_ids", (0, 0)),
            top_log_probabilities=self._floats("top_log_probabilities", (0, 0)),
            gradient_positions=positions,
            _texts=context.texts() | self._texts,
        )

    def _floats(self, name: str, empty: tuple[int, ...]) -> Floats:
        grid = self._grids.get(name)
        return np.empty(empty, np.float32) if grid is None else grid.join()[1].astype(np.float32, copy=False)

    def _integers(self, name: str, empty: tuple[int, ...]) -> Integers:
        grid = self._grids.get(name)
        return np.empty(empty, np.int64) if grid is None else grid.join()[1].astype(np.int64)


register(TokenProbability, Kind(_write, _Assembly, (TokenProbabilityResult,)))
