"""The image of a prompt: its bytes, its place among the tokens, and its grid in the answer."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..questions.images import SPAN, Image, arrangement_of
from ..questions.prompts import Prompt
from .fields import Reader

if TYPE_CHECKING:
    from ..model.eyes import Seen


def read_image(message: pb.Prompt, path: str, most: int, reader: Reader) -> "Seen | None":
    """The image; None where there is none, or where it is faulty. `most`: tokens of a prompt."""
    if not message.image:
        return None
    field, eye, limits = f"{path}.image", reader.vocabulary.eye, reader.limits
    if eye is None:
        reader.problems.add(field, "expected no image, because the hosted model reads none, got one")
        return None

    def read() -> "Seen | None":
        try:
            return eye.read(
                message.image,
                most_bytes=limits.max_image_bytes,
                most_pixels=limits.max_image_pixels,
                most_positions=most,
            )
        except ValueError as error:
            reader.problems.add(field, str(error))
            return None

    # Many cases may ask about one image.
    return reader.once(("image", hashlib.sha256(message.image).digest()), read)


def placed(texts: Sequence[str], path: str, reader: Reader, *, seen: bool) -> bool:
    """Whether texts have a place for an image once, or none where there is no image."""
    count, placeholder = sum(map(reader.vocabulary.placeholders, texts)), reader.vocabulary.placeholder
    if seen and count != 1:
        reader.problems.add(path, f"expected {placeholder!r} once, where the image goes, got it {count} times")
    elif not seen and count:
        reader.problems.add(
            path, f"expected an image, because the text has a place for one ({placeholder!r}), got none"
        )
    return count == seen


def with_image(prompt: Prompt, seen: "Seen", path: str, reader: Reader) -> Prompt | None:
    """The prompt with its image, and with the span of that name."""
    eye, problems = reader.vocabulary.eye, reader.problems
    assert eye is not None
    token, wanted = eye.vision.token, seen.spread.positions
    found = [position for position, one in enumerate(prompt.tokens) if one == token]
    if len(found) != wanted:
        problems.add(path, f"expected the image's token, {token}, at {wanted} positions, got {len(found)}")
        return None
    if eye.vision.together and found != list(range(found[0], found[0] + wanted)):
        problems.add(path, f"expected the image's {wanted} positions one after another, got others between them")
        return None
    image = eye.placed(seen, found)
    spans = [(name, positions) for name, positions in prompt.spans if name != SPAN]
    return replace(prompt, image=image, spans=(*spans, (SPAN, tuple(found))))


def alike(source: Prompt, prompt: Prompt, path: str, reader: Reader) -> bool:
    """Whether a source's image lies as the prompt's does, so that positions of one are positions of the other."""
    own, others = arrangement_of(prompt.image), arrangement_of(source.image)
    places = (None if one is None else (one.positions, one.turned, one.sight) for one in (own, others))
    if len(set(places)) == 1:
        return True
    shown = " and ".join("no image" if one is None else _shown(one) for one in (prompt.image, source.image))
    reader.problems.add(path, f"expected an image that lies as that of the prompt does, got {shown}")
    return False


def _shown(image: Image) -> str:
    positions = image.arrangement.positions
    grids = ", ".join(f"{grid.rows} x {grid.columns}" for grid in image.arrangement.grids)
    return f"{grids} positions from {positions[0]} on"


def encode_grids(image: Image | None) -> list[pb.ImageGrid]:
    """Where an image lies."""
    return [
        pb.ImageGrid(
            stack=pb.STACK_DECODER,
            rows=grid.rows,
            columns=grid.columns,
            positions=grid.positions,
            left=grid.left,
            top=grid.top,
            right=grid.right,
            bottom=grid.bottom,
        )
        for grid in (() if image is None else image.arrangement.grids)
    ]
