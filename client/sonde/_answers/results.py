"""The parts that all results share: the prompt, the unchanged run, the cost and the provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
import numpy.typing as npt

from sonde._answers import files
from sonde._answers.images import ImageGrid
from sonde._answers.predictions import NO_TOKEN, Prediction, Token, TokenPrediction
from sonde._answers.requests import Request, asked_html
from sonde._arrays import Axes, Floats, visible
from sonde._show import plotting, terminal
from sonde._show.display import html_table, note, page, ranking_html, token_strip

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TARGET: Final = ("target", "p", "logit, minus any contrast's")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a request, which is known before it runs."""

    runs: int
    token_layers: int
    """The number of (position, block) pairs that are computed."""
    full_token_layers: int
    """The same number if every run were computed in full."""
    answer_bytes: int
    cases: int = 0
    """The number of cases; 0 if there is a single prompt."""
    tokens: int = 0
    """The number of tokens in all prompts and sources."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the numbers come from."""

    model: str
    revision: str
    dtype: str
    device: str
    attention: str
    """The implementations of attention that these numbers may come from: "sdpa", "eager" or "sdpa+eager"."""
    server_version: str
    image_processor: str = ""
    """What prepared the prompt's image; empty without one."""


class Common(TypedDict):
    """The fields of `Result`, for results that add their own."""

    tokens: tuple[Token, ...]
    targets: tuple[Token, ...]
    position: int
    cost: Cost
    provenance: Provenance
    dry_run: bool
    request: Request | None
    spans: Mapping[str, tuple[int, ...]]
    images: tuple[ImageGrid, ...]
    _clean: Prediction | None


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The base class of all results."""

    tokens: tuple[Token, ...]
    """The prompt."""
    targets: tuple[Token, ...]
    """The tokens that were measured; if the request named none, the unchanged run's own top prediction."""
    position: int
    """The position where the prediction was read."""
    cost: Cost
    provenance: Provenance
    dry_run: bool
    """True if nothing was run: only the tokens, the cost and the resolved request are known."""
    _clean: Prediction | None
    request: Request | None = field(default=None, kw_only=True)
    """What was asked: what was run, read and edited, where and when. None in files of versions that did not keep it."""
    spans: Mapping[str, tuple[int, ...]] = field(default_factory=dict, kw_only=True)
    """The positions of the prompt's spans by their names; in a chat, also of each message, as `"user[0]"`, and with an
    image those of `"image"`."""
    images: tuple[ImageGrid, ...] = field(default=(), kw_only=True)
    """Where the prompt's image lies: grids of positions over it. Empty without an image."""
    _over: str = field(default="", kw_only=True)
    """Of a statistic over cases: what it is, in words."""

    @property
    def asked_at(self) -> str:
        """When the call was made: the time in UTC, as in ISO 8601; empty if it is not known."""
        return "" if self.request is None else self.request.asked_at

    @property
    def prediction(self) -> Prediction:
        """The unchanged run.

        Raises:
            ValueError: after a dry run.
        """
        if self._clean is None:
            message = "a dry run has no prediction, only the cost and the resolved request"
            raise ValueError(message)
        return self._clean

    def over_image(self, values: npt.ArrayLike, positions: Sequence[object] | None = None) -> npt.NDArray[np.generic]:
        """Lay numbers by position over the prompt's image: [row, column, ...], NaN where there is no number.

            effect = trace.effect["residual_post"]  # [position, layer, target]
            trace.over_image(effect[:, 3, 0], trace.axes["residual_post"]["position"])

        Args:
            values: [position, ...]
            positions: which positions these are; None: all of the prompt, in their order.

        Raises:
            ValueError: if the prompt has no image, or there are not as many positions as values.
        """
        if not self.images:
            message = "the prompt has no image to lay numbers over"
            raise ValueError(message)
        return self.images[0].over_image(values, positions)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The result's axes (names in order, each with its labels) and the array that `np.asarray(result)` returns.

        For this class, the targets' log-probabilities in the unchanged run, [target]; the results of methods have
        arrays of their own.

        Raises:
            ValueError: if the result has no single array; the message lists the arrays that it has.
        """
        return {"target": tuple(token.text for token in self.targets)}, self.prediction.log_probabilities

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        array = self.labelled()[1]
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError(f"cannot convert an array of {array.dtype} to {np.dtype(dtype)} without a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def to_dataframe(self) -> "pd.DataFrame":
        """The most probable tokens of the unchanged run, one per row (needs pandas)."""
        return self.prediction.to_dataframe()

    def save(self, path: "str | Path") -> None:
        """Save the whole result as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Arrays are stored under the names of their fields, so other programs can read them too.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        words = {one.name: str(getattr(self.provenance, one.name)) for one in fields(self.provenance)}
        files.write(self, path, words)

    def to_text(self, count: int = 10) -> str:
        """The result as text for a terminal: tables of up to `count` rows, and heat maps; after a dry run, the cost."""
        if self.dry_run:
            return "\n".join([cost_text(self.cost), *self._announced()])
        return "\n\n".join(self._paragraphs(count))

    def _announced(self) -> list[str]:
        """What a dry run tells beside the cost, in sentences."""
        return []

    def _paragraphs(self, count: int) -> list[str]:
        """The paragraphs of `to_text`."""
        shown = self.prediction.top_tokens[:count]
        return [terminal.ranking("prediction", shown)] if shown else []

    def _repr_html_(self) -> str:
        if self.dry_run:
            return page(cost_table(self.cost), *map(note, self._announced()))
        return page(self.html())

    def html(self) -> str:
        """What a notebook shows of it, without the style sheet."""
        over = [note(self._over)] if self._over else []
        return "".join([*over, *self._pieces(), *asked_html(self.request), note(_origin(self.provenance))])

    def _pieces(self) -> list[str]:
        """What a notebook shows, as pieces of HTML (see display.py)."""
        return [self._strip("prompt")]

    def _strip(self, title: str, values: Floats | None = None) -> str:
        """The prompt as HTML, its tokens coloured by `values` if given."""
        by_token = None if values is None else values.tolist()
        return token_strip(title, [token.text for token in self.tokens], by_token, read=self.position)

    def _word(self, target: int = 0) -> str:
        """The text of a target, for titles."""
        return visible(self._text(target)).strip() or "target" if self.targets else "target"

    def _text(self, target: int = 0) -> str:
        """The text of a target whose probability is told: without the contrast, which that does not depend on."""
        token = self.targets[target]
        return token.text.partition(" - ")[0] if token.id == NO_TOKEN else token.text

    def _quoted(self, target: int = 0) -> str:
        """A target within a sentence: its text in quotes, or what the targets of many cases are called."""
        token = self.targets[target]
        if token.id != NO_TOKEN:
            return f"“{self._word(target)}”"
        return "the target" if token.text == "target" else token.text

    def _titled(self, title: str) -> str:
        """A title; of a mean over cases, with how many these are."""
        return f"{title}\n({self._over})" if self._over else title

    def token_labels(self, positions: Sequence[int] | None = None) -> tuple[str, ...]:
        """The prompt's tokens, as axis labels."""
        chosen = range(len(self.tokens)) if positions is None else positions
        return tuple(visible(self.tokens[p].text) if 0 <= p < len(self.tokens) else str(p) for p in chosen)


@dataclass(frozen=True, eq=False, repr=False)
class TraceResult(Result):
    """The result of a trace without a method: the prediction alone. Base class of the methods' results."""

    def top(self, count: int | None = None) -> list[TokenPrediction]:
        """The most probable tokens; None gives 5, or all if the answer has fewer."""
        return self.prediction.top(count)

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the most probable tokens as bars, and save the figure if a path is given (needs matplotlib)."""
        known = self.prediction
        pairs: list[tuple[Token, float]] = [(token, token.probability) for token in known.top_tokens]
        pairs = pairs[: plotting.MOST_ROWS] or list(zip(known.targets, known.probabilities.tolist(), strict=True))
        values = np.array([probability for _, probability in pairs], np.float32)
        labels = [repr(visible(token.text)) for token, _ in pairs]
        read = self.token_labels([self.position])[0].strip() if 0 <= self.position < len(self.tokens) else ""
        title = self._titled(f"What comes next, after “{read}”" if read else "What comes next")
        return plotting.save(plotting.bars(title, labels, values, across="probability"), path)

    def _pieces(self) -> list[str]:
        measured = html_table("targets", _TARGET, self._target_rows())
        return [self._strip("prompt"), ranking_html("what comes next", self.prediction.top_tokens), measured]

    def _paragraphs(self, count: int) -> list[str]:
        return [*super()._paragraphs(count), terminal.table(_TARGET, self._target_rows())]

    def _target_rows(self) -> list[list[object]]:
        known = self.prediction
        columns = zip(self.targets, known.probabilities, known.logits, strict=True)
        return [[repr(visible(token.text)), float(p), float(logit)] for token, p, logit in columns]

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._clean is None:
            return f"{name}(dry run: {self.cost.runs} runs)"
        return f"{name}({self._clean!r}{self._summary()})"

    def _summary(self) -> str:
        return ""


def cost_text(cost: Cost) -> str:
    """The cost in words."""
    saved = f", of {cost.full_token_layers:,} in full" if cost.full_token_layers else ""
    cases = f"{cost.cases:,} cases of {cost.tokens:,} tokens in all, " if cost.cases else ""
    work = f"{cost.runs:,} runs, {cost.token_layers:,} token-layers{saved}"
    return f"{cases}{work}; an answer of {cost.answer_bytes:,} bytes"


def cost_table(cost: Cost) -> str:
    """The cost as an HTML table."""
    numbers = (
        *((("cases", cost.cases), ("tokens", cost.tokens)) if cost.cases else ()),
        ("runs", cost.runs),
        ("token layers", cost.token_layers),
        ("in full", cost.full_token_layers),
        ("bytes of the answer", cost.answer_bytes),
    )
    return html_table("dry run: cost", ["", ""], [[name, f"{number:,}"] for name, number in numbers])


def _origin(made: Provenance) -> str:
    revision = f" at {made.revision.removeprefix('sha256:')[:12]}" if made.revision else ""
    return f"{made.model}{revision}, {made.dtype} on {made.device}, Sonde {made.server_version}"
