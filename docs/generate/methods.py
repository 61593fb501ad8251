"""The methods of a trace and their results in the reference of Python, from the client's registry."""

from sonde._answers.results import TraceResult
from sonde._methods.registry import METHODS

_METHODS = "<!-- the methods of a trace -->\n"
_RESULTS = "<!-- the results of methods -->\n"
# Only the client creates results, so their constructors are not shown.
_OPTIONS = "    options:\n      merge_init_into_class: false\n"


def listed(markdown: str) -> str:
    """The page with every method and every result in place of the two comments.

    Raises:
        ValueError: if the page does not have both.
    """
    methods = "".join(f"::: sonde.{method.__name__}\n" for method in METHODS)
    classes = [one for kind in METHODS.values() for one in kind.parts if issubclass(one, TraceResult)]
    results = "".join(f"::: sonde.{one.__name__}\n{_OPTIONS}" for one in classes)
    if markdown.count(_METHODS) != 1 or markdown.count(_RESULTS) != 1:
        raise ValueError(f"expected {_METHODS!r} and {_RESULTS!r} once each in the reference of Python")
    return markdown.replace(_METHODS, methods).replace(_RESULTS, results)
