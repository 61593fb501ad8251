"""Activations: which sites are read, and their values."""

from collections.abc import Iterator

from sonde.v1 import inspection_pb2 as pb

from ..questions.activations import Activation, Activations
from .fields import Reader
from .parts import spans
from .sites import read_sites
from .tensors import encode_floats


def read_activations(message: pb.Activations, path: str, tokens: int | None, reader: Reader) -> Activations:
    """The question."""
    if not message.sites:
        reader.problems.add(f"{path}.sites", "expected at least one site, got none")
    return Activations(read_sites(message.sites, f"{path}.sites", tokens, reader))


def encode_activation(part: Activation) -> Iterator[pb.ActivationSlice]:
    """The values row by row, in slices that fit into a message."""
    flat = part.values.reshape(-1)
    # Without any values there is still one slice, for the shape.
    for start, stop in spans(max(1, len(flat)), flat.itemsize):
        yield pb.ActivationSlice(
            run=part.run,
            site=part.site,
            layer=part.layer,
            shape=part.values.shape,
            offset=start,
            values=encode_floats(flat[start:stop]),
        )
