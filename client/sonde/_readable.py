"""Signatures as `help()` shows them: types by the names that people know, one parameter a line where there are many."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, ForwardRef, Literal, Self, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt

from sonde import annotations

_LONGEST: Final = 88
"""A signature that is longer than this has each parameter on a line of its own."""
_STARS: Final = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
_UNIONS: Final = (Union, types.UnionType)
_NAMES: Final[dict[Any, str]] = {
    **{getattr(annotations, name): name for name in reversed(annotations.__all__)},
    npt.ArrayLike: "ArrayLike",
}
"""The aliases of `sonde.annotations`, by what they stand for."""
_BY_SIZE: Final = sorted(
    ((frozenset(get_args(alias)), name) for alias, name in _NAMES.items() if get_origin(alias) in _UNIONS),
    key=lambda entry: -len(entry[0]),
)
"""The members of each alias of several types, and its name; the largest first."""


class ReadableSignature(inspect.Signature):
    """A signature whose text can be read. It is otherwise an ordinary one."""

    @classmethod
    def of(cls, known: inspect.Signature) -> Self:
        """The same signature."""
        return cls(list(known.parameters.values()), return_annotation=known.return_annotation)

    def __str__(self) -> str:
        parts = list(self._parts())
        returned = self.return_annotation
        ending = "" if returned is self.empty else f" -> {words(returned)}"
        line = f"({', '.join(parts)}){ending}"
        if len(line) <= _LONGEST:
            return line
        inside = "".join(f"    {part},\n" for part in parts)
        if len(ending) > _LONGEST:
            ending = " -> (\n    " + ending.removeprefix(" -> ").replace(" | ", "\n    | ") + "\n)"
        return f"(\n{inside}){ending}"

    def format(self, **_: Any) -> str:
        """The text, for versions of Python whose `help()` asks for a width."""
        return str(self)

    def _parts(self) -> Iterator[str]:
        """The parameters, with the signs that say how they are passed."""
        starred = False
        for parameter in self.parameters.values():
            star = _STARS.get(parameter.kind.name, "")
            if parameter.kind is parameter.KEYWORD_ONLY and not starred:
                yield "*"
            starred = starred or parameter.kind in {parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY}
            noted = parameter.annotation is not parameter.empty
            said = f"{star}{parameter.name}" + (f": {words(parameter.annotation)}" if noted else "")
            equals = " = " if noted else "="
            yield said if parameter.default is parameter.empty else f"{said}{equals}{parameter.default!r}"


def words(annotation: Any) -> str:  # noqa: PLR0911 - one per kind
    """A type as it is written in a program."""
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, str | ForwardRef):
        return annotation if isinstance(annotation, str) else annotation.__forward_arg__
    if isinstance(annotation, list):
        return f"[{', '.join(map(words, annotation))}]"
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return " | ".join(_members(inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is np.ndarray:
        return f"NDArray[{', '.join(map(words, get_args(inner[-1])))}]"
    if origin is not None:
        return f"{words(origin)}[{', '.join(map(words, inner))}]"
    return "..." if annotation is Ellipsis else getattr(annotation, "__name__", str(annotation))


def _members(inner: Iterable[Any]) -> Iterator[str]:
    """The members of a union; those that together are an alias, by its name."""
    left = list(inner)
    for alias, name in _BY_SIZE:
        if alias <= set(left):
            yield name
            left = [one for one in left if one not in alias]
    yield from map(words, left)


def make_readable(exported: Iterable[Any]) -> None:
    """Give functions, and the initializers and methods of classes, signatures that `help()` can show."""
    for one in exported:
        if isinstance(one, type):
            for kind in one.__mro__:
                if kind.__module__.startswith("sonde.") and not issubclass(kind, BaseException):
                    _each(function for function in vars(kind).values() if isinstance(function, types.FunctionType))
        elif isinstance(one, types.FunctionType):
            _each([one])


def _each(functions: Iterable[Callable[..., Any]]) -> None:
    for function in functions:
        if function.__name__.startswith("_") and function.__name__ != "__init__":
            continue
        known = inspect.signature(function)
        if not isinstance(known, ReadableSignature):
            typing.cast("Any", function).__signature__ = ReadableSignature.of(known)
