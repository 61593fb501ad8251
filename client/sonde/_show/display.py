"""Pieces of HTML for notebooks: tables, coloured tokens, heat maps and curves, without scripts or matplotlib.

All text is escaped. Pictures are inline SVG with a title and a description for screen readers; each cell shows its
value as a tooltip. `page` combines pieces with the style sheet.
"""

import html
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from sonde._arrays import Floats, visible
from sonde._show.style import STYLE, sorting

MOST_CELLS: Final = (40, 48)
"""The most rows and columns of a heat map. Each cell of a larger one shows the strongest of several entries."""
_CELL: Final = 18
_CHARACTER: Final = 6.7
_LONGEST_LABEL: Final = 22


@runtime_checkable
class Ranked(Protocol):
    """A token with its probability."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The token's text."""

    @property
    @abstractmethod
    def probability(self) -> float:
        """From 0 to 1."""


def page(*pieces: str) -> str:
    """Combine pieces with the style sheet."""
    return f'{STYLE}<div class="sonde">{"".join(pieces)}</div>'


def note(text: str) -> str:
    """A line of text in a muted colour."""
    return f'<p class="note">{html.escape(text)}</p>'


def details(summary: str, text: str) -> str:
    """A line in a muted colour, and a longer text that a click on it unfolds."""
    inside = f"<summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre>"
    return f'<details class="note">{inside}</details>'


# ---------------------------------------------------------------------- tables


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; floats are rounded."""
    listed = [list(row) for row in rows]
    head = "".join(f'<th scope="col"{_kind(listed, i)}>{html.escape(name)}</th>' for i, name in enumerate(header))
    kinds = [_kind(listed, i) for i in range(len(header))]
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in listed)
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f"<table><caption>{html.escape(title)}</caption>{top}<tbody>{body}</tbody></table>"


def sortable_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that is sorted by a click on a column's head: numbers in descending order, texts alphabetically.

    This needs no script: each row stores its rank in each column, and the style sheet orders the rows by it.
    """
    listed = [list(row) for row in rows]
    ranks = [_ranks([row[i] for row in listed]) for i in range(len(header))]
    kinds = [_kind(listed, i) for i in range(len(header))]
    # A separate form keeps the choice independent of other tables on the page.
    head = "".join(
        f'<th role="columnheader" scope="col"{_kind(listed, i)}><label>{html.escape(name)}'
        f'<input type="radio" name="sort" class="k{i}" aria-label="sort by {html.escape(name, quote=True)}">'
        "</label></th>"
        for i, name in enumerate(header)
    )
    body = "".join(
        f'<tr role="row" style="{";".join(f"--k{i}:{ranks[i][number]}" for i in range(len(header)))}">'
        f"{_cells(row, kinds, role=True)}</tr>"
        for number, row in enumerate(listed)
    )
    return (
        f'{sorting(len(header))}<form><table class="sortable" role="table" style="--columns:{len(header)}">'
        f'<caption>{html.escape(title)}</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></form>'
    )


def token_table(header: Sequence[str], rows: Sequence[Sequence[str]], shares: Floats) -> str:
    """A table of tokens, each with a background by its probability; the first column has the names of the rows."""
    head = "".join(
        f'<th scope="col"{" class=t" if i else ""}>{html.escape(name)}</th>' for i, name in enumerate(header)
    )
    body = []
    for row, values in zip(rows, shares, strict=True):
        cells = "".join(
            f'<td class="t cell" style="--s:{100 * share:.0f}" title="{share:.4f}">{html.escape(text)}</td>'
            for text, share in zip(row[1:], values.tolist(), strict=True)
        )
        body.append(f'<tr><th scope="row" class="n">{html.escape(row[0])}</th>{cells}</tr>')
    caption = "<caption>the most probable next token at each position, read after each block</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def ranking_html(title: str, tokens: Iterable[Ranked]) -> str:
    """The most probable tokens as a table with bars."""
    rows = "".join(
        f'<tr><td class="t">{html.escape(repr(visible(token.text)))}</td><td class="n">{token.probability:.4f}</td>'
        f'<td><span class="bar" style="width:{120 * token.probability:.0f}px"></span></td></tr>'
        for token in tokens
    )
    head = '<thead><tr><th scope="col">token</th><th scope="col" class="n">probability</th><th></th></tr></thead>'
    return f"<figure><table><caption>{html.escape(title)}</caption>{head}<tbody>{rows}</tbody></table></figure>"


# ---------------------------------------------------------------------- tokens


def token_strip(
    title: str, tokens: Sequence[str], values: Sequence[float] | None = None, *, read: int | None = None
) -> str:
    """A text whose tokens are coloured by a value: blue above zero, red below. The position `read` is outlined."""
    strength = max((abs(v) for v in values or () if math.isfinite(v)), default=0.0) or 1.0
    spans = []
    for i, token in enumerate(tokens):
        value = values[i] if values is not None else math.nan
        known = math.isfinite(value)
        kinds = [*(["u" if value >= 0 else "d"] if known else []), *(["read"] if i == read else [])]
        said = f"position {i}: {token!r}" + (f", {value:+.4g}" if known else "") + (", read here" if i == read else "")
        share = f' style="--s:{100 * abs(value) / strength:.0f}"' if known else ""
        spans.append(
            f'<span class="{" ".join(kinds)}"{share} title="{html.escape(said, quote=True)}">'
            f"{html.escape(visible(token))}</span>"
        )
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    return f'<figure class="wide">{caption}<div class="strip">{"".join(spans)}</div></figure>'


# ---------------------------------------------------------------------- pictures


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Floats,
    *,
    across: str = "",
    low: float | None = None,
    high: float | None = None,
    hue: str = "one",
) -> str:
    """A heat map of [row, column], from `low` to `high`; without `low`, from zero in two colours, one for each sign."""
    grid, row_names, column_names, pooled = _pooled(values, rows, columns)
    finite = grid[np.isfinite(grid)]
    peak = float(np.abs(finite).max(initial=0.0)) if high is None else high
    base = 0.0 if low is None else low
    span = max(peak - base, 1e-12)
    labels = [_short(name) for name in row_names]
    left = 8 + _CHARACTER * max((len(label) for label in labels), default=0)
    numbers = max(len(_number(base)), len(_number(base + span))) + (low is None)
    width, height = left + _CELL * grid.shape[1] + 28 + _CHARACTER * numbers, _CELL * grid.shape[0] + 42
    parts = [
        f'<text x="{left - 6:.0f}" y="{_CELL * i + 13}" text-anchor="end">{html.escape(label)}</text>'
        for i, label in enumerate(labels)
    ]
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            said = html.escape(f"{row_names[i].strip()}, {across or 'column'} {column_names[j]}: {_number(value)}")
            shade = _shade(float(value), base, span, two_sided=low is None)
            place = f'x="{left + _CELL * j:.0f}" y="{_CELL * i}" width="{_CELL}" height="{_CELL}"'
            parts.append(f"<rect {place} {shade}><title>{said}</title></rect>")
    bottom = _CELL * grid.shape[0]
    size = f'width="{_CELL * grid.shape[1]}" height="{bottom}"'
    parts.append(f'<rect class="frame" x="{left:.0f}" y="0" {size}/>')
    step = _step(column_names)
    parts += [
        f'<text x="{left + _CELL * (j + 0.5):.0f}" y="{bottom + 14}" text-anchor="middle" class="faint">'
        f"{html.escape(column_names[j])}</text>"
        for j in range(0, len(column_names), step)
    ]
    middle = left + _CELL * grid.shape[1] / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{bottom + 31}" text-anchor="middle" class="faint">{html.escape(across)}</text>'
    )
    parts += _scale(left + _CELL * grid.shape[1] + 12, bottom, base, base + span, two_sided=low is None)
    about = f"{title}. {_summary(grid, row_names, column_names, across)}"
    caption = f"<figcaption>{html.escape(title)}</figcaption>" + (note(pooled) if pooled else "")
    return f"<figure>{caption}{_svg(title, about, width, height, parts, hue)}</figure>"


def curve(title: str, labels: Sequence[str], values: Sequence[float], *, across: str, tops: Sequence[str] = ()) -> str:
    """Numbers from 0 to 1 as a line; each point has a tooltip with its value and its entry in `tops`, if any."""
    step, tall, left = 30, 120, 34
    width, height = left + step * max(len(values) - 1, 1) + 40, tall + 48
    points = [(left + step * i, 8 + tall * (1 - (v if math.isfinite(v) else 0.0))) for i, v in enumerate(values)]
    parts = []
    for level in (0.0, 0.5, 1.0):
        y = 8 + tall * (1 - level)
        parts.append(f'<line x1="{left - 6}" x2="{width - 30}" y1="{y:.0f}" y2="{y:.0f}"/>')
        parts.append(f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end" class="faint">{level:g}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    every = _step(labels, wide=step)
    for i, (x, y) in enumerate(points):
        said = f"{across} {labels[i]}: {_number(values[i])}" + (f", top token {tops[i]}" if tops else "")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{html.escape(said)}</title></circle>')
        if i % every == 0:
            parts.append(
                f'<text x="{x}" y="{tall + 26}" text-anchor="middle" class="faint">{html.escape(labels[i])}</text>'
            )
    middle = left + step * (len(values) - 1) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{tall + 42}" text-anchor="middle" class="faint">{html.escape(across)}</text>'
    )
    about = f"{title}, from {_number(values[0])} at {labels[0]} to {_number(values[-1])} at {labels[-1]}."
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{_svg(title, about, width, height, parts)}</figure>"


# ---------------------------------------------------------------------- details


def _svg(title: str, about: str, width: float, height: float, parts: Sequence[str], hue: str = "one") -> str:
    return (
        f'<svg role="img" xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" style="--hue:var(--{hue})">'
        f"<title>{html.escape(title)}</title><desc>{html.escape(about)}</desc>{''.join(parts)}</svg>"
    )


def _shade(value: float, base: float, span: float, *, two_sided: bool) -> str:
    if not math.isfinite(value):
        return 'class="none"'
    share = 100 * min(abs(value - base) / span, 1.0) if two_sided or value > base else 0.0
    side = f'class="{"u" if value >= 0 else "d"}" ' if two_sided else ""
    return f'{side}style="--s:{share:.0f}"'


def _scale(x: float, tall: float, low: float, high: float, *, two_sided: bool) -> list[str]:
    """The legend of the colours: a bar with numbers at its ends."""
    steps = 12
    levels = (
        [1 - 2 * i / (steps - 1) for i in range(steps)] if two_sided else [1 - i / (steps - 1) for i in range(steps)]
    )
    each = max(tall - 8, 24) / steps
    bar = [
        f'<rect x="{x:.0f}" y="{4 + each * i:.1f}" width="9" height="{each + 0.4:.1f}" '
        f"{_shade(level, 0.0, 1.0, two_sided=two_sided)}/>"
        for i, level in enumerate(levels)
    ]
    bottom = -high if two_sided else low
    return [
        *bar,
        f'<text x="{x + 14:.0f}" y="12" class="faint">{_number(high)}</text>',
        f'<text x="{x + 14:.0f}" y="{4 + each * steps:.0f}" class="faint">{_number(bottom)}</text>',
    ]


def _pooled(values: Floats, rows: Sequence[str], columns: Sequence[str]) -> tuple[Floats, list[str], list[str], str]:
    """Reduce a grid to at most MOST_CELLS by keeping the strongest of neighbouring entries, and say so in words."""
    down, over = (max(1, math.ceil(size / most)) for size, most in zip(values.shape, MOST_CELLS, strict=True))
    if down == over == 1:
        return values, list(rows), list(columns), ""
    filled = np.full((-(-values.shape[0] // down) * down, -(-values.shape[1] // over) * over), np.nan, np.float32)
    filled[: values.shape[0], : values.shape[1]] = values
    blocks = filled.reshape(filled.shape[0] // down, down, -1, over).swapaxes(1, 2)
    flat = blocks.reshape(*blocks.shape[:2], -1)
    chosen = np.nan_to_num(np.abs(flat), nan=-1.0).argmax(-1)[..., np.newaxis]
    pooled: Floats = np.take_along_axis(flat, chosen, -1)[..., 0]
    said = f"each cell is the strongest of {down} x {over}"
    return pooled, list(rows)[::down], list(columns)[::over], said


def _summary(grid: Floats, rows: Sequence[str], columns: Sequence[str], across: str) -> str:
    if not np.isfinite(grid).any():
        return "Nothing has arrived yet."
    row, column = np.unravel_index(np.nanargmax(np.abs(grid)), grid.shape)
    return (
        f"{grid.shape[0]} rows by {grid.shape[1]} columns, from {_number(np.nanmin(grid))} to "
        f"{_number(np.nanmax(grid))}; the strongest is at {rows[int(row)].strip()}, {across} {columns[int(column)]}."
    )


def _step(labels: Sequence[str], wide: int = _CELL) -> int:
    """How many columns to advance from one label to the next, so that labels do not touch."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, math.ceil((_CHARACTER * longest + 4) / wide))


def _short(text: str) -> str:
    shown = text.strip() or "␣"
    return shown if len(shown) <= _LONGEST_LABEL else shown[: _LONGEST_LABEL - 1] + "…"


def _number(value: float | np.floating[Any]) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not arrived yet"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(rows: Sequence[Sequence[object]], column: int) -> str:
    return ' class="n"' if rows and all(_is_number(row[column]) or row[column] is None for row in rows) else ""


def _cells(row: Sequence[object], kinds: Sequence[str], *, role: bool = False) -> str:
    said = ' role="cell"' if role else ""
    return "".join(f"<td{said}{kind}>{_cell(value)}</td>" for kind, value in zip(kinds, row, strict=True))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _ranks(values: Sequence[object]) -> list[int]:
    if all(_is_number(value) or value is None for value in values):
        sizes = [float(v) if isinstance(v, int | float) and v == v else -math.inf for v in values]  # noqa: PLR0124
        order = sorted(range(len(values)), key=lambda i: -sizes[i])
    else:
        order = sorted(range(len(values)), key=lambda i: str(values[i]).lower())
    ranks = [0] * len(values)
    for rank, i in enumerate(order):
        ranks[i] = rank
    return ranks
