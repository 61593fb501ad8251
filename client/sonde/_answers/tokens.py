"""The tokens of a prompt, as the hosted model reads them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

from sonde._answers.images import ImageGrid
from sonde._answers.predictions import Token
from sonde._answers.results import Provenance
from sonde._arrays import visible
from sonde._show.display import html_table, page, token_strip


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(Sequence[Token]):
    """The tokens of a prompt, special ones included: entry p is position p."""

    tokens: tuple[Token, ...]
    spans: Mapping[str, tuple[int, ...]]
    """The positions of the prompt's spans by their names; in a chat, also of each message, as `"user[0]"`."""
    provenance: Provenance
    images: tuple[ImageGrid, ...] = ()
    """Where the prompt's image lies: grids of positions over it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids, as the vocabulary numbers them."""
        return tuple(token.id for token in self.tokens)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, which joined are the prompt."""
        return tuple(token.text for token in self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Token: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Token, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Token | tuple[Token, ...]":
        """The token at a position; a slice has several."""
        return self.tokens[index]

    def __iter__(self) -> Iterator[Token]:
        return iter(self.tokens)

    def _places(self) -> list[list[object]]:
        return [
            [name, ", ".join(map(str, where)), visible("".join(self.tokens[p].text for p in where))]
            for name, where in self.spans.items()
        ]

    def __repr__(self) -> str:
        return f"Tokens({len(self)}: {' '.join(repr(visible(text)) for text in self.texts)})"

    def _repr_html_(self) -> str:
        pieces = [token_strip("tokens", self.texts)]
        if self.spans:
            pieces.append(html_table("spans", ["name", "positions", "text"], self._places()))
        return page(*pieces)


@dataclass(frozen=True, eq=False)
class TokensOfCases(Sequence[Tokens]):
    """The tokens of each case of a dataset."""

    cases: tuple[Tokens, ...]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tokens, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Tokens | tuple[Tokens, ...]:
        """The tokens of one case; a slice has those of several."""
        return self.cases[index]

    def __iter__(self) -> Iterator[Tokens]:
        return iter(self.cases)
