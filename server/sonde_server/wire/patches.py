"""Where in the sources a patch takes its values."""

from collections.abc import Iterator, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.places import PAIRWISE, Site
from ..questions.prompts import Prompt
from .fields import Reader
from .names import read_rows

# Sources, each with its index in the request.
Sources = Sequence[tuple[int, Prompt]]
Rows = tuple[tuple[int, ...], ...]


def read_source_positions(
    message: pb.Patch, place: pb.Site, path: str, reader: Reader, site: Site, tokens: int, sources: Sources
) -> Rows | None:
    """By source, the positions that pair with those of the site; None where they are the same as in the prompt.

    A negative position counts from the end of the sequence that it is used in, so the prompt's last position is paired
    with each source's last one. A name means what it means in each source.
    """
    field, names = f"{path}.source_positions", f"{path}.named_source_positions"
    if message.source_positions and message.named_source_positions:
        reader.problems.add(names, "expected one of source_positions and named_source_positions, got both")
    wanted = len(site.positions_within(tokens))
    if message.named_source_positions:
        return _named(message.named_source_positions, names, reader, site, wanted, sources)
    if given := len(message.source_positions):
        if given != wanted:
            reader.problems.add(field, f"expected {wanted} positions, one for each position of the site, got {given}")
            return None
        for i, description in _missing(message.source_positions, sources):
            reader.problems.add(f"{field}[{i}]", description)
        return _counted(message.source_positions, sources)
    if site.rows is not None:
        # The path of the site, beside that of the operation.
        return _named(
            place.named_positions, f"{path.rpartition('.')[0]}.site.named_positions", reader, site, wanted, sources
        )
    other = next((index for index, source in sources if len(source.tokens) != tokens), None)
    if other is None or site.component in PAIRWISE:
        return None
    if not place.positions:
        length = next(len(source.tokens) for index, source in sources if index == other)
        reader.problems.add(
            field,
            f"the prompt has {tokens} tokens and source {other} has {length}: name the positions in the site, or give "
            "source_positions",
        )
    for _, description in _missing(place.positions, sources):
        reader.problems.add(f"{path}.sources", description)
    return _counted(place.positions, sources)


def _named(
    names: Sequence[pb.NamedPositions], path: str, reader: Reader, site: Site, wanted: int, sources: Sources
) -> Rows | None:
    """By source, the positions that these names mean there."""
    found: list[tuple[int, ...]] = []
    for index, source in sources:
        rows = read_rows(names, source, path, reader, f"{reader.sources}[{index}]", filled=True)
        if rows is None:
            continue
        positions = tuple(position for row in rows for position in row)
        if len(positions) != wanted:
            reader.problems.add(
                path,
                f"expected {wanted} positions in source {index}, one for each position of the site, got "
                f"{len(positions)}. Name a part of a span, such as LAST",
            )
        elif site.rows is not None and len(rows) == len(site.rows) and [*map(len, rows)] != [*map(len, site.rows)]:
            reader.problems.add(
                path,
                f"expected entries of {[*map(len, site.rows)]} positions in source {index}, as in the prompt, got "
                f"{[*map(len, rows)]}",
            )
        found.append(positions)
    return tuple(found) if len(found) == len(sources) else None


def _counted(positions: Sequence[int], sources: Sources) -> Rows:
    """Positions by source, counted from 0."""
    by_length: dict[int, tuple[int, ...]] = {}
    for _, source in sources:
        tokens = len(source.tokens)
        if tokens not in by_length:
            by_length[tokens] = tuple(position % tokens for position in positions)
    return tuple(by_length[len(source.tokens)] for _, source in sources)


def _missing(positions: Sequence[int], sources: Sources) -> Iterator[tuple[int, str]]:
    """The entries that are not in every source, each with a description."""
    shortest, length = min(((index, len(source.tokens)) for index, source in sources), key=lambda one: one[1])
    for i, position in enumerate(positions):
        if not -length <= position < length:
            allowed = f"{-length} to {length - 1}, because source {shortest} has {length} tokens"
            yield i, f"expected positions from {allowed}, got {position}"
