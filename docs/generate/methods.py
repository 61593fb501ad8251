"""The methods of a trace in the reference of Python: a line of the page stands for all of them.

The other names are listed by hand, in the order in which they are best read. Those of the methods are not, so that a
new one is there when `sonde` exports it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import sonde
from sonde._methods.method import Method

METHODS: Final = "<!-- generated: every method of a trace -->"
RESULTS: Final = "<!-- generated: the result of every method of a trace -->"


def filled_in(page: str) -> str:
    """The page with the directives of mkdocstrings in place of the two lines.

    Raises:
        RuntimeError: where the page does not have each line once.
    """
    for line, directives in ((METHODS, _methods()), (RESULTS, _results())):
        if page.count(line) != 1:
            raise RuntimeError(
                f"docs/reference/python.md: expected the line {line} once, got it {page.count(line)} times"
            )
        page = page.replace(line, "\n".join(directives))
    return page


def _methods() -> Iterator[str]:
    for name in _exported(Method):
        yield f"::: sonde.{name}"


def _results() -> Iterator[str]:
    for name in _exported(sonde.TraceResult):
        yield f"::: sonde.{name}\n    options:\n      merge_init_into_class: false"


def _exported(base: type) -> Iterable[str]:
    """The names of the exported subclasses, without the base itself."""
    for name in sonde.__all__:
        one = getattr(sonde, name)
        if isinstance(one, type) and issubclass(one, base) and one is not base:
            yield name
