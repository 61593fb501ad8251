"""The result of interventions: numpy arrays with named axes.

Logarithms are natural. A run is one pass over the prompt: `clean` is the unchanged run; the other runs are those of the
plan, in its order.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.changes import Change, place_words
from sonde._answers.circuits import Examples, area, faithful, share
from sonde._answers.predictions import Continuation, Prediction, Run, TokenPrediction
from sonde._answers.results import Result
from sonde._arrays import (
    Axes,
    Booleans,
    Floats,
    Integers,
    Label,
    data_frame,
    largest,
    long_form,
    shape_of,
    visible,
)
from sonde._ask.names import check_name, unknown_name
from sonde._show import plotting, terminal
from sonde._show.display import heatmap, html_table, note, ranking_html, sortable_table

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LISTED: Final = 50
"""The most rows in a notebook's table of runs."""
_HEADER: Final = ("target", "unchanged", "changed", "effect (nats)")


Measure: TypeAlias = Literal["log_probability", "probability", "logit", "kl_divergence"]


def _of_target(values: Floats, target: int) -> Floats:
    chosen: Floats = values[..., target]
    return chosen


@dataclass(frozen=True, eq=False, repr=False)
class InterventionResult(Result):
    """The effect of each run's edits. Arrays are [run, ...] for a list, [layer, unit, position, ...] for a sweep."""

    axes: Axes
    """The axes of `log_probabilities`, with their labels: run, target; or layer, unit, position, target."""
    log_probabilities: Floats
    """[run, target], or [layer, unit, position, target]"""
    logits: Floats
    """Same axes as `log_probabilities`; a difference of logits if the target has a contrast."""
    kl_divergences: Floats | None
    """[run], or [layer, unit, position]: KL(unchanged || changed) in nats; None unless requested."""
    edit_norms: Floats | None
    """[run, edit], or [layer, unit, position, edit]: the L2 distance by which each edit moved the activations."""
    top_token_ids: Integers
    """[run, k], or [layer, unit, position, k]"""
    top_log_probabilities: Floats
    arrived: Booleans
    """[run], or [layer, unit, position]: False where a partial result is still NaN."""
    _texts: Mapping[int, str]
    _activations: Sequence[Captured]
    _continuations: Sequence[Continuation | None]
    _further_samples: Sequence[Sequence[Continuation]] = ()
    """By run, its continuations after the first."""
    _unit_name: str = "unit"
    """The word for the units of a sweep in figures: head, neuron, or unit if it is not known."""
    draws: Integers | None = field(default=None, kw_only=True)
    """[draw, node, 2]: of causal scrubbing, the example that each node had as its own, and the other; else None."""
    examples: Examples | None = field(default=None, kw_only=True)
    """Of causal scrubbing: what the unchanged run of each example predicts, for the targets of this one; else None."""
    listed: int = field(default=0, kw_only=True)
    """Of circuits: how many edges or nodes were listed."""
    _probabilities: Floats | None = field(default=None, kw_only=True)
    """Of a statistic over cases; elsewhere they follow from the logarithms."""

    @property
    def clean(self) -> Prediction:
        """The unchanged run."""
        return self.prediction

    @property
    def complete(self) -> bool:
        """Whether every run has arrived. Only the partial results of a stream are incomplete."""
        return bool(self.arrived.all())

    @property
    def probabilities(self) -> Floats:
        """The targets' probabilities, with the same axes as `log_probabilities`."""
        return np.exp(self.log_probabilities) if self._probabilities is None else self._probabilities

    @property
    def effect(self) -> Floats:
        """`log_probabilities` minus those of the unchanged run."""
        return self.log_probabilities - self.clean.log_probabilities

    @property
    def generated(self) -> list[Continuation | None]:
        """The first text that each run generated; None where nothing was generated."""
        return list(self._continuations)

    @property
    def continuations(self) -> list[tuple[Continuation, ...]]:
        """All texts that each run generated, one for each of `Generation.samples`."""
        return [run.continuations for run in self]

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each run: the one that the program gave it, or what it edits, such as `head 9.1 × 0`."""
        if not self._is_list:
            return tuple(place_words(self._place(run)) for run in range(len(self)))
        if "run" not in self.axes:
            ((name, entries), *_) = self.axes.items()
            return tuple(f"{entry} kept" if name == "size" else f"draw {entry}" for entry in entries)
        known = () if self.request is None else self.request.run_labels
        return known if len(known) == len(self) else tuple(f"run {run}" for run in range(len(self)))

    @property
    def _is_list(self) -> bool:
        """Whether the runs are along one axis: those of a list, circuits, or draws."""
        return next(iter(self.axes)) in ("run", "size", "draw")

    def faithfulness(self, *, target: int = 0, by: Measure = "logit") -> Floats:
        """How much of the prediction each circuit carries: (M - M none) / (M all - M none), [size].

        M is the measure in each run, M none that of the run which keeps nothing, so the sizes must include 0, and M all
        that of the unchanged run. It is not cut off at 0 and 1.

        Args:
            target: the target's index.
            by: the measure: the logit (a difference where the target has a contrast), the log-probability, the
                probability, or the KL divergence from the unchanged run.

        Raises:
            ValueError: if these are no circuits, if none of them keeps nothing, or if the measure is the same with all
                and with nothing.
        """
        if "size" not in self.axes:
            raise ValueError("expected the answer to sonde.circuits(...), got other runs")
        # Effects are measures less that of the unchanged run.
        effects = self._measure(by, target)
        whole = {
            "logit": max(1.0, abs(float(self.clean.logits[target]))),
            "log_probability": max(1.0, abs(float(self.clean.log_probabilities[target]))),
            "probability": float(self.clean.probabilities[target]),
            "kl_divergence": 1.0,
        }
        return faithful(effects, self.axes["size"], whole[by])

    def circuit_performance_ratio(self, *, target: int = 0, by: Measure = "logit") -> float:
        """CPR of MIB (Mueller et al. 2025): the area under the faithfulness over the share of the edges that is kept.

        The share is that of the edges or nodes that were listed. List all of the model's to compare with others' CPR.

        Raises:
            ValueError: as `faithfulness` does, or if no run keeps all that were listed.
        """
        values = self.faithfulness(target=target, by=by)
        return area(share(self.axes["size"], self.listed), values)

    def circuit_model_distance(self, *, target: int = 0, by: Measure = "logit") -> float:
        """CMD: the area between the faithfulness and 1, over the same shares (MIB, Mueller et al. 2025).

        Raises:
            ValueError: as `circuit_performance_ratio` does.
        """
        away = np.abs(1 - self.faithfulness(target=target, by=by))
        return area(share(self.axes["size"], self.listed), away)

    def __len__(self) -> int:
        return self.arrived.size

    def __getitem__(self, run: int | str | tuple[int, ...]) -> Run:
        """One run, by its number, by its label or, in a sweep, by its indices along layer, unit and position.

        Raises:
            TypeError: for several runs, such as a slice; iterate over the result to get them one by one.
            IndexError: if there is no such run.
            KeyError: if there is no run with this label, or several.
        """
        flat = self._number(run)
        return Run(
            self.targets,
            self._by_run(self.log_probabilities)[flat],
            self._by_run(self.logits)[flat],
            self._ranking(flat),
            self._activations[flat] if self._activations else Captured((), ()),
            self._continuations[flat] if self._continuations else None,
            tuple(self._further_samples[flat]) if self._further_samples else (),
            self._by_run(self.effect)[flat],
            None if self.kl_divergences is None else float(self.kl_divergences.reshape(-1)[flat]),
            np.empty(0, np.float32) if self.edit_norms is None else self._by_run(self.edit_norms)[flat],
            _probabilities=None if self._probabilities is None else self._by_run(self._probabilities)[flat],
        )

    def __iter__(self) -> Iterator[Run]:
        return (self[run] for run in range(len(self)))

    def top(self, count: int | None = None, *, run: int | str | tuple[int, ...] = 0) -> list[TokenPrediction]:
        """The most probable tokens of a changed run; `clean.top(count)` has those of the unchanged run."""
        return self[run].top(count)

    def most_changed(self, count: int = 10, *, target: int = 0, by: Measure = "log_probability") -> list[Change]:
        """The runs with the largest effect on a target, in either direction, the largest first.

        Args:
            count: the number of runs.
            target: the target's index.
            by: what is compared with the unchanged run: the log-probability, the probability, the logit, or the whole
                distribution by KL divergence.

        Raises:
            ValueError: for the KL divergence, if the request did not ask for it.
        """
        effects = self._measure(by, target).reshape(-1)
        probabilities = self._by_run(self.probabilities)[:, target]
        labels = self.labels
        return [
            Change(
                run,
                *self._place(run),
                self.targets[target].text,
                float(effects[run]),
                float(probabilities[run]),
                float(self.clean.probabilities[target]),
                labels[run],
            )
            for (run,) in largest(effects, count)
        ]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `log_probabilities`; `np.asarray(result)` is the latter."""
        return self.axes, self.log_probabilities

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per run and target, with the run's label and the text that it generated, if any (needs pandas)."""
        columns: dict[str, npt.NDArray[np.generic]] = {
            "log_probability": self.log_probabilities,
            "probability": self.probabilities,
            "effect": self.effect,
            "logit": self.logits,
        }
        if self.kl_divergences is not None:
            columns["kl_divergence"] = np.repeat(self.kl_divergences.reshape(-1), len(self.targets))
        table = long_form(self.axes, columns)
        if self._is_list:
            run, *others = table.items()
            table = dict([run, ("label", [name for name in self.labels for _ in self.targets]), *others])
        if self._continuations:
            table["text"] = [None if said is None else said.text for said in self.generated for _ in self.targets]
        return data_frame(table)

    def plot(
        self,
        path: "str | Path | None" = None,
        *,
        target: int = 0,
        by: Measure | None = None,
        error: "InterventionResult | None" = None,
    ) -> "Figure":
        """Draw the effects, and save the figure if a path is given (needs matplotlib).

        A sweep over two axes becomes a heat map, circuits become a curve of their faithfulness. Anything else becomes
        bars, if there are many, only the largest ones.

        Args:
            path: where the figure is saved; None saves nothing.
            target: the target's index.
            by: the measure of the effect; the default is the log-probability, of circuits the logit.
            error: for a mean over cases, the same with standard errors. Where there would be bars, the mean
                log-probability of each run is then drawn with its standard error, beside that of the unchanged run:
                the error of their difference is not known.
        """
        if error is not None and self._grid(self.effect[..., target]) is None:
            return plotting.save(self._points(target, error), path)
        if "size" in self.axes:
            return plotting.save(self._curve(target, by or "logit"), path)
        clean = float(self.clean.probabilities[target])
        if by in (None, "log_probability"):
            title = f"Change of log p({self._word(target)}), in nats; unchanged p = {clean:.3f}"
        elif by == "kl_divergence":
            title = "KL(unchanged || changed), in nats"
        else:
            title = f"Change of the {by} of {self._word(target)}; unchanged p = {clean:.3f}"
        return plotting.save(self.drawn(self._titled(title), self._measure(by or "log_probability", target)), path)

    def _curve(self, target: int, by: Measure) -> "Figure":
        title = self._titled(f"Faithfulness of circuits, by the {by.replace('_', ' ')} of {self._word(target)}")
        sizes = [f"{size:,}" for size in self.axes["size"]]
        return plotting.lines(
            title,
            sizes,
            {"faithfulness": self.faithfulness(target=target, by=by)},
            across=f"kept, of {self.listed:,}",
            down="0: none kept; 1: the whole model",
            zero=True,
        )

    def drawn(self, title: str, values: Floats, *, across: str = "") -> "Figure":
        """Draw one number for each run: as a heat map if exactly two axes vary, otherwise as bars.

        Args:
            title: the title.
            values: [run], or [layer, unit, position].
            across: what the bars are, in words.
        """
        grid = self._grid(values)
        return self._bars(title, values, across) if grid is None else self._heatmap(title, *grid)

    def _grid(self, values: Floats) -> tuple[str, str, Floats] | None:
        """The values if exactly two axes vary: the axis that goes down, the one that goes across, and the values."""
        long_axes = [name for name in list(self.axes)[:-1] if len(self.axes[name]) > 1]
        if len(long_axes) != 2:
            return None
        grid = values.reshape([len(self.axes[name]) for name in long_axes])
        down, across = long_axes
        # Tokens are easier to read as rows. Without positions, layers are the rows.
        return (across, down, grid.T) if across == "position" else (down, across, grid)

    def _heatmap(self, title: str, down: str, across: str, grid: Floats) -> "Figure":
        high = max(float(np.nanmax(np.abs(grid), initial=0.0)), 1e-6)
        panel = plotting.Panel(
            "",
            grid,
            self._axis_labels(down),
            self._axis_labels(across),
            "RdBu",
            self._axis_word(across),
            "" if down == "position" else self._axis_word(down),
        )
        size = (
            min(12.0, max(5.5, 1.5 + 0.2 * grid.shape[1])),
            min(12.0, max(2.6, 1.25 + 0.24 * grid.shape[0])),
        )
        return plotting.panels([panel], -high, high, title=title, size=size)

    def _axis_word(self, axis: str) -> str:
        return self._unit_name if axis == "unit" else axis

    def _axis_labels(self, axis: str) -> list[str]:
        labels = self.axes[axis]
        if axis != "position":
            return [str(label) for label in labels]
        return [self.token_labels([label])[0] if isinstance(label, int) else str(label) for label in labels]

    def _bars(self, title: str, values: Floats, across: str) -> "Figure":
        flat = values.reshape(-1)
        runs = [run for (run,) in largest(flat, plotting.MOST_ROWS)]
        if len(self) <= plotting.MOST_ROWS:
            runs = list(range(len(self)))
        else:
            title = f"{title}\n(the {len(runs)} largest of {len(self):,})"
        return plotting.bars(title, [self._bar_label(run) for run in runs], flat[runs], across=across)

    def _points(self, target: int, error: "InterventionResult") -> "Figure":
        values, errors = (one.log_probabilities[..., target].reshape(-1) for one in (self, error))
        runs = sorted(run for (run,) in largest(self.effect[..., target].reshape(-1), plotting.MOST_ROWS))
        title = self._titled(f"Mean log p({self._word(target)}) of each run, with its standard error")
        if len(runs) < len(self):
            title += f"\n(the {len(runs)} largest changes of {len(self):,})"
        return plotting.points(
            title,
            [self._bar_label(run) for run in runs],
            values[runs],
            errors[runs],
            reference=float(self.clean.log_probabilities[target]),
            across="log p (nats)",
            named="unchanged",
        )

    def _bar_label(self, run: int) -> str:
        """A run by its label, or by the axes that vary; positions also have their token."""
        if self._is_list:
            return self.labels[run]
        indices = np.unravel_index(run, self.arrived.shape)
        parts = []
        for (name, labels), index in zip(list(self.axes.items())[:3], indices, strict=True):
            label = labels[int(index)]
            if len(labels) > 1:
                token = f" {self.token_labels([label])[0].strip()}" if isinstance(label, int) else ""
                parts.append(f"{self._axis_word(name)} {label}{token if name == 'position' else ''}")
        return ", ".join(parts) or place_words(self._place(run))

    def _pieces(self) -> list[str]:
        changes = self.most_changed(min(len(self), _MOST_LISTED)) if self.arrived.any() else []
        shown = f", the {len(changes)} largest changes" if len(changes) < len(self) else ""
        state = "" if self.complete else f", {int(self.arrived.sum()):,} arrived"
        clean = float(self.clean.probabilities[0])
        header = ["place", *_HEADER]
        rows = [[change.place, *change.row()] for change in changes]
        pieces = [
            note(f"{len(self):,} runs{state}; unchanged p({self._word()}) = {clean:.3f}"),
            *self._pictures(),
            sortable_table(f"what each run did{shown}", header, rows),
        ]
        if len(self) == 1 and self.complete:
            pieces += [ranking_html("unchanged", self.clean.top_tokens), ranking_html("changed", self[0].top_tokens)]
        said = [[name, visible(text.text)] for name, text in self._said()[: _MOST_LISTED + 1]]
        return [*pieces, html_table("continuations", ["run", "text"], said)] if said else pieces

    def _pictures(self) -> list[str]:
        """The prompt coloured by effect, and a heat map if exactly two axes vary."""
        pieces = []
        values = self._by_token()
        if np.isfinite(values).any():
            pieces.append(self._strip("the strongest effect at each token, in nats", values))
        grid = self._grid(self.effect[..., 0])
        if grid is not None:
            down, across, effects = grid
            title = f"Change of log p({self._word()}), in nats"
            word = self._axis_word(down)
            rows = [f"{word} {label}" if down != "position" else label for label in self._axis_labels(down)]
            pieces.append(heatmap(title, rows, self._axis_labels(across), effects, across=self._axis_word(across)))
        return pieces

    def _by_token(self) -> Floats:
        """The strongest effect at each token; NaN if no run edits that position alone."""
        values = np.full(len(self.tokens), np.nan, np.float32)
        if "position" not in self.axes:
            return values
        labels = self.axes["position"]
        by_position = np.moveaxis(self.effect[..., 0], list(self.axes).index("position"), 0).reshape(len(labels), -1)
        for label, effects in zip(labels, by_position, strict=True):
            if isinstance(label, int) and np.isfinite(effects).any():
                values[label] = effects[np.nanargmax(np.abs(effects))]
        return values

    def _paragraphs(self, count: int) -> list[str]:
        parts = [self._beside() if len(self) == 1 else self._largest(count)]
        return parts + [f"{name}: {text.text!r}" for name, text in self._said()]

    def _said(self) -> list[tuple[str, Continuation]]:
        """The generated texts, each with the name of its run."""
        names = [*self.labels] if len(self) > 1 or (self.request and self.request.labels) else ["changed"] * len(self)
        said = zip(["unchanged", *names], [self.clean.continuations, *self.continuations], strict=False)
        return [
            (f"{name}, sample {text.sample}" if len(texts) > 1 else name, text)
            for name, texts in said
            for text in texts
        ]

    def _largest(self, count: int) -> str:
        """The largest changes, as a table."""
        by_run = self._is_list
        rows = [
            [*([c.run, c.label] if by_run else [c.layer, c.unit, c.position]), *c.row()]
            for c in self.most_changed(count)
        ]
        header = [*(["run", "label"] if by_run else ["layer", "unit", "position"]), *_HEADER]
        return f"{len(self):,} runs, the {len(rows)} largest changes first\n{terminal.table(header, rows)}"

    def _beside(self) -> str:
        """The predictions of the only run beside those of the unchanged run, as tables."""
        changed, clean = self[0], self.clean
        columns = zip(self.targets, clean.probabilities, changed.probabilities, changed.effect, strict=True)
        rows = [[repr(visible(t.text)), float(before), float(after), float(by)] for t, before, after, by in columns]
        pairs = zip(clean.top_tokens, changed.top_tokens, strict=False)
        ranks = [[repr(visible(a.text)), a.probability, repr(visible(b.text)), b.probability] for a, b in pairs]
        tops = terminal.table(["unchanged top", "p", "changed top", "p"], ranks)
        return f"{terminal.table(_HEADER, rows)}\n\n{tops}"

    def _measure(self, by: Measure, target: int) -> Floats:
        check_name(by, get_args(Measure), "by")
        if by == "log_probability":
            return _of_target(self.effect, target)
        if by == "probability":
            return _of_target(self.probabilities - self.clean.probabilities, target)
        if by == "logit":
            return _of_target(self.logits - self.clean.logits, target)
        if self.kl_divergences is None:
            message = "the answer has no KL divergences; request them with kl_divergence=True"
            raise ValueError(message)
        return self.kl_divergences

    def _labelled_run(self, label: str) -> int:
        found = [run for run, name in enumerate(self.labels) if name == label]
        if len(found) == 1:
            return found[0]
        if found:
            message = f"{len(found)} runs are labelled {label!r}; choose by number: {', '.join(map(str, found))}"
        else:
            message = f"expected the label of a run: {unknown_name(label, tuple(dict.fromkeys(self.labels)))}"
        raise KeyError(message)

    def _number(self, run: int | str | tuple[int, ...]) -> int:
        if isinstance(run, str):
            return self._labelled_run(run)
        try:
            if isinstance(run, tuple):
                return operator.index(np.arange(len(self)).reshape(self.arrived.shape)[run])
            return range(len(self))[operator.index(run)]
        except TypeError:
            message = f"expected the number of one run, or its index along each axis of a sweep, got {run!r}"
            raise TypeError(message) from None
        except IndexError:
            message = f"expected one of {len(self)} runs, of shape {list(self.arrived.shape)}, got {run!r}"
            raise IndexError(message) from None

    def _by_run(self, array: Floats) -> Floats:
        return array.reshape(len(self), -1)

    def _place(self, run: int) -> tuple[Label, Label, Label]:
        if self._is_list:
            return (None, None, None)
        layer, unit, position = np.unravel_index(run, self.arrived.shape)
        return self.axes["layer"][layer], self.axes["unit"][unit], self.axes["position"][position]

    def _ranking(self, run: int) -> tuple[TokenPrediction, ...]:
        if not self.top_token_ids.size:
            return ()
        ids = self.top_token_ids.reshape(len(self), -1)[run]
        values = self.top_log_probabilities.reshape(len(self), -1)[run]
        return tuple(
            TokenPrediction(int(i), self._texts.get(int(i), f"<{i}>"), float(v))
            for i, v in zip(ids, values, strict=True)
        )

    def __repr__(self) -> str:
        axes = " x ".join(f"{name} {size}" for name, size in zip(self.axes, shape_of(self.axes), strict=True))
        state = ", dry run" if self.dry_run else "" if self.complete else ", partial"
        return f"InterventionResult({axes}{state})"

    def __str__(self) -> str:
        if self.dry_run:
            return f"{self!r}\n{self.cost}"
        lines = [repr(self), f"unchanged: {self.clean!r}"]
        return "\n".join(lines + [f"  {change!r}" for change in self.most_changed(5)])
