"""Activations: which sites are read, and their values."""

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.activations import Activations
from .fields import Reader
from .sites import read_sites
from .tensors import encode_floats


def read_activations(message: pb.Activations, path: str, tokens: int | None, reader: Reader) -> Activations:
    """The question."""
    if not message.sites:
        reader.problems.add(f"{path}.sites", "expected at least one site, got none")
    return Activations(read_sites(message.sites, f"{path}.sites", tokens, reader))


def encode_slice(activation: answers.Activation, offset: int, values: answers.Floats) -> pb.ActivationSlice:
    """Some values of an activation, from `offset` on, row by row."""
    return pb.ActivationSlice(
        run=activation.run,
        site=activation.site,
        layer=activation.layer,
        shape=activation.values.shape,
        offset=offset,
        values=encode_floats(values),
    )
