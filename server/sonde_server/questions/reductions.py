"""What cases are asked so that their answers can be reduced, and how large the statistics are."""

from dataclasses import replace
from typing import TypeVar

from .activations import Activations, Encoding, numbers_of_rows
from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing
from .costs import DOUBLE, FLOAT
from .interventions import InterveneQuestion
from .places import LAYERLESS, Site, Sized
from .token_probability import TokenProbability
from .traces import TraceQuestion

_Question = TypeVar("_Question", TraceQuestion, InterveneQuestion)
# Parts of cases wait until they have this many bytes, because many are summed up faster together. While that is done,
# at most this many times as much is held: they are also copied, in the order of their rows and in double precision.
WAITING_BYTES = 8 << 20
WHILE_SUMMED = 8
# A statistic has a mean and a sum of squared deviations. One of the largest values has its case and its position.
SUMS = 2
ABOUT_LARGEST = 3


def reducible(question: _Question) -> _Question:
    """A case as it is asked for a reduction: with all its edges, in full precision, and without top tokens."""
    if isinstance(question, InterveneQuestion):
        return replace(question, readout=replace(question.readout, top_k=0, encoding=Encoding.FLOAT32))
    method = question.method
    if isinstance(method, Activations):
        method = replace(method, encoding=Encoding.FLOAT32)
    elif isinstance(method, AttributionPatching) and method.edges is not None:
        method = replace(method, edges=0)
    return replace(question, top_k=0, method=method)


def reduced_bytes(question: TraceQuestion | InterveneQuestion, model: Sized, largest: int) -> int:
    """The size of both statistics of cases like this one, and of the `largest` activations of each row."""
    activations = _activations(question, model)
    numbers = SUMS * (_numbers(question, model) + activations) + ABOUT_LARGEST * largest * activations
    if isinstance(question, TraceQuestion) and isinstance(method := question.method, AttributionPatching):
        numbers += SUMS * _edges(method, method.edges or 0, question, model)
    return FLOAT * numbers


def summed_bytes(question: TraceQuestion | InterveneQuestion, model: Sized, largest: int) -> int:
    """Bytes that are held of one group of cases like this one, whatever their number."""
    activations = _activations(question, model)
    numbers = SUMS * (_numbers(question, model) + activations) + ABOUT_LARGEST * largest * activations
    if isinstance(question, TraceQuestion) and isinstance(method := question.method, AttributionPatching):
        numbers += SUMS * _edges(method, 0, question, model)
    return DOUBLE * numbers


def _numbers(question: TraceQuestion | InterveneQuestion, model: Sized) -> int:
    """How many numbers of a case have a statistic, beside those of activations and edges."""
    asked, columns = question.asked, question.asked.columns
    if isinstance(question, InterveneQuestion):
        readings = 3 * columns + question.readout.kl_divergence + question.plan.edits_per_run
        return 3 * columns + question.plan.count * readings
    match question.method:
        case TokenProbability() as method:
            depth = 4 * columns + 1 + method.gradient_norms * columns
            found = len(method.read_at(asked)) * (model.layers + 1) * depth
        case CausalTracing() as method:
            cells = sum(1 if one in LAYERLESS else len(method.layers) for one in method.components)
            found = 3 * columns * (1 + len(method.reduced_rows) * cells)
        case AttributionPatching() as method:
            rows = 1 if method.rows is None else len(method.rows)
            found = sum(
                (1 if one in LAYERLESS else model.layers) * rows * method.places_per_layer(one, model) * columns
                for one in method.components
            )
        case _:
            found = 0
    return 3 * columns + found


def _edges(method: AttributionPatching, top: int, question: TraceQuestion, model: Sized) -> int:
    """The numbers of the `top` edges with their ends; 0: of all edges."""
    if method.edges is None:
        return 0
    return min(top or model.edges(), model.edges()) * (6 + question.columns)


def _activations(question: TraceQuestion | InterveneQuestion, model: Sized) -> int:
    """How many activations have a statistic, over all runs."""
    sites: tuple[Site, ...] = ()
    runs = 1
    if isinstance(question, InterveneQuestion):
        sites, runs = question.readout.activations, 1 + question.plan.count
    elif isinstance(question.method, Activations):
        sites = question.method.sites
    tokens = question.asked.tokens
    return runs * sum(numbers_of_rows(site, len(site.row_sizes(tokens)), model) for site in sites)
