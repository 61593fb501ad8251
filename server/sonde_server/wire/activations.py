"""Activations: which sites are read, how they are joined and encoded, and their values."""

from collections.abc import Iterator, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.activations import Activation, Activations, Encoding, LargestActivations, Pooling
from ..questions.places import PAIRWISE, Site
from ..questions.prompts import Prompt
from .fields import Reader
from .parts import spans
from .sites import read_sites
from .tensors import encode_floats, encode_integers, type_name


def read_activations(message: pb.Activations, path: str, prompt: Prompt | None, reader: Reader) -> Activations:
    """The question."""
    if not message.sites:
        reader.problems.add(f"{path}.sites", "expected at least one site, got none")
    sites = read_sites(message.sites, f"{path}.sites", prompt, reader)
    encoding = read_encoding(message.data_type, f"{path}.data_type", reader)
    return Activations(sites, encoding, read_pooling(message.pooling, sites, f"{path}.pooling", reader))


def read_encoding(number: int, path: str, reader: Reader) -> Encoding:
    """How activations are encoded."""
    if number and number not in list(Encoding):
        reader.problems.add(path, f"expected FLOAT32, BFLOAT16 or FLOAT16, got {type_name(number)}")
        return Encoding.FLOAT32
    return Encoding(number or Encoding.FLOAT32)


def read_pooling(number: int, sites: Sequence[Site], path: str, reader: Reader) -> Pooling:
    """How the positions of these sites are joined."""
    if number not in list(Pooling):
        reader.problems.add(path, f"expected MEAN or MAX, got pooling {number} (leave it unset for every position)")
        return Pooling.NONE
    if number:
        _refuse_pairwise(sites, path, "pooled", reader)
    return Pooling(number)


def check_reducible(sites: Sequence[Site], path: str, reader: Reader) -> None:
    """Notes sites that have no statistics over cases."""
    _refuse_pairwise(sites, path, "reduced", reader)


def _refuse_pairwise(sites: Sequence[Site], path: str, done: str, reader: Reader) -> None:
    for component in sorted({site.component for site in sites} & PAIRWISE):
        reader.problems.add(
            path,
            f"expected components that can be {done}, got {component.name}, which has an entry for every key",
        )


def encode_activation(part: Activation) -> Iterator[pb.ActivationSlice]:
    """The values row by row, in slices that fit into a message."""
    flat = part.values.reshape(-1)
    # Without any values there is still one slice, for the shape.
    for start, stop in spans(max(1, len(flat)), part.encoding.bytes):
        yield pb.ActivationSlice(
            run=part.run,
            site=part.site,
            layer=part.layer,
            shape=part.values.shape,
            offset=start,
            values=encode_floats(flat[start:stop], part.encoding),
            counts=part.counts,
        )


def encode_largest(part: LargestActivations) -> Iterator[pb.LargestActivations]:
    """The values row by row, with their cases and positions, in slices that fit into a message."""
    values, cases, positions = part.values.reshape(-1), part.cases.reshape(-1), part.positions.reshape(-1)
    for start, stop in spans(max(1, len(values)), values.itemsize + cases.itemsize + positions.itemsize):
        yield pb.LargestActivations(
            run=part.run,
            site=part.site,
            layer=part.layer,
            shape=part.values.shape,
            offset=start,
            values=encode_floats(values[start:stop]),
            cases=encode_integers(cases[start:stop]),
            positions=encode_integers(positions[start:stop]),
        )
