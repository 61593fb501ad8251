"""Plain HTML for notebooks without matplotlib."""

import html
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol


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


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; floats are rounded, and everything is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def ranking_html(title: str, tokens: Iterable[Ranked]) -> str:
    """The most probable tokens as a table."""
    return html_table(title, ["token", "probability"], [[repr(token.text), token.probability] for token in tokens])


def heatmap_html(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A heat map as a table of shaded cells with the number as a tooltip."""
    finite = [v for row in values for v in row if v == v]  # noqa: PLR0124 - NaN is not itself
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *columns])
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(_shade(v, low, high) for v in row)}</tr>"
        for name, row in zip(rows, values, strict=True)
    )
    return f"<table><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shade(value: float, low: float, high: float) -> str:
    strength = 0.0 if value != value or high <= low else (value - low) / (high - low)  # noqa: PLR0124
    return f'<td title="{value:.4g}" style="background:rgba(84,39,143,{strength:.2f})">&nbsp;</td>'


def _cell(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
