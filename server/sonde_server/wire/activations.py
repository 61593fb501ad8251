"""Activations: which sites are read, and their values."""

import math

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.activations import Activations
from ..questions.costs import FLOAT
from ..questions.places import Site
from .fields import Reader
from .sites import read_sites
from .tensors import encode_floats


def read_activations(message: pb.Activations, path: str, tokens: int | None, reader: Reader) -> Activations:
    """The question of a reading of activations."""
    path = f"{path}.sites"
    if not message.sites:
        reader.problems.add(path, "no site was given; give at least one")
    sites = read_sites(message.sites, path, tokens, reader)
    reader.answer(sum(site_bytes(site, tokens or 0, reader) for site in sites), path)
    return Activations(sites)


def site_bytes(site: Site, tokens: int, reader: Reader) -> int:
    """Bytes of the values of a site."""
    positions = len(site.positions_within(tokens))
    shape = reader.model.selected_shape(site.component, site.units, positions, tokens)
    return len(site.layers) * math.prod(shape) * FLOAT


def encode_slice(
    activation: answers.Activation, offset: int, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
) -> pb.ActivationSlice:
    """Some values of an activation, from `offset` on, counted row by row."""
    return pb.ActivationSlice(
        run=activation.run,
        site=activation.site,
        layer=activation.layer,
        shape=activation.values.shape,
        offset=offset,
        values=encode_floats(values),
    )
