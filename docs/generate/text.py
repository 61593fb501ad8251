"""Small pieces of Markdown that the generated pages share."""

import html
import inspect
from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """A text as the content of a cell of a table, on one line, with nothing in it that means something to Markdown."""
    flat = html.escape(" ".join(text.split()), quote=False)
    for character in "\\*_[]":
        flat = flat.replace(character, f"&#{ord(character)};")
    return flat.replace("|", "&#124;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def first_paragraph(of: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(of) or "").partition("\n\n")[0].split())
