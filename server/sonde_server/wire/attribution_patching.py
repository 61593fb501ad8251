"""Attribution patching: what is patched from where, which places and edges are estimated, and how."""

from collections.abc import Iterator, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.attribution_patching import (
    RECOMPUTED,
    AttributionPatching,
    Attributions,
    EdgeAttributions,
    Integration,
    VerifiedEffect,
)
from ..questions.places import EDGE_ENDS, PAIRWISE, Component
from ..questions.prompts import Metric, Prompt
from .fields import MOST_NUMBERS, Reader
from .names import read_rows
from .parts import row_bytes, rows, spans
from .prompts import read_alike, read_metric
from .sites import encode_site, read_components
from .tensors import encode_floats, encode_integers


def read_attribution_patching(
    message: pb.AttributionPatching,
    path: str,
    prompt: Prompt | None,
    sources: Sequence[pb.Prompt] | None,
    targets: int,
    reader: Reader,
) -> AttributionPatching | None:
    """The question; None where its source is faulty. `sources`: those of a case, maybe the source."""
    source = read_alike(message.source, f"{path}.source", prompt, sources, reader)
    components = _read_components(message, path, reader)
    steps = _count(message.integration_steps, f"{path}.integration_steps", reader)
    metric = read_metric(message.metric, Metric.LOGIT, f"{path}.metric", reader)
    verify_top = _count(message.verify_top, f"{path}.verify_top", reader)
    edges = _read_edges(message, f"{path}.edges", reader)
    _check_corrections(message, components, path, reader)
    integration = _read_integration(message, path, reader)
    rows = None
    if message.named_positions:
        rows = read_rows(message.named_positions, prompt, f"{path}.named_positions", reader)
    if source is None:
        return None
    question = AttributionPatching(
        source,
        components,
        max(1, steps),
        metric,
        verify_top,
        message.recompute_softmax,
        message.drop_layers,
        edges,
        rows,
        integration,
    )
    _check_numbers(question, f"{path}.components", targets, reader)
    return question


def _read_components(message: pb.AttributionPatching, path: str, reader: Reader) -> tuple[Component, ...]:
    field = f"{path}.components"
    if not message.components and not message.HasField("edges"):
        reader.problems.add(field, "expected at least one component, or edges, got neither")
    if not message.components and message.verify_top > 0:
        reader.problems.add(f"{path}.verify_top", "expected components, whose places are verified, got edges alone")
    return read_components(message.components, field, reader)


def _count(value: int, path: str, reader: Reader) -> int:
    if value < 0:
        reader.problems.add(path, f"expected 0 or more, got {value}")
        return 0
    return value


def _read_edges(message: pb.AttributionPatching, path: str, reader: Reader) -> int | None:
    if not message.HasField("edges"):
        return None
    for component in sorted(EDGE_ENDS):
        if reason := reader.model.unavailable.get(component):
            reader.problems.refuse(path, f"{component.name}: {reason}")
    return _count(message.edges.top, f"{path}.top", reader)


def _read_integration(message: pb.AttributionPatching, path: str, reader: Reader) -> Integration:
    problems, field, steps = reader.problems, f"{path}.integration", f"{path}.integration_steps"
    try:
        integration = Integration(message.integration)
    except ValueError:
        problems.add(field, f"expected ACTIVATIONS, ENDS or none, got integration {message.integration}")
        return Integration.EMBEDDINGS
    if integration is Integration.ACTIVATIONS:
        if not message.HasField("edges") or message.components:
            got = "components" if message.components else "neither"
            got = "both" if message.components and message.HasField("edges") else got
            problems.add(field, f"expected edges and no components with ACTIVATIONS, got {got}")
        if message.integration_steps in (0, 1):
            problems.add(steps, f"expected at least 2 with ACTIVATIONS, got {message.integration_steps}")
    elif integration is Integration.ENDS and message.integration_steps > 0:
        problems.add(steps, f"expected none with ENDS, got {message.integration_steps}")
    if integration is not Integration.EMBEDDINGS and message.drop_layers:
        problems.add(f"{path}.drop_layers", "expected one of drop_layers and integration, got both")
    return integration


def _check_corrections(
    message: pb.AttributionPatching, components: tuple[Component, ...], path: str, reader: Reader
) -> None:
    problems = reader.problems
    if message.recompute_softmax:
        field = f"{path}.recompute_softmax"
        if not set(RECOMPUTED) & set(components):
            problems.add(field, "expected QUERY or KEY in components, because only these are recomputed, got neither")
        for component in sorted(PAIRWISE):
            if reason := reader.model.unavailable.get(component):
                problems.refuse(field, f"{component.name}: {reason}")
    if message.drop_layers and message.integration_steps > 1:
        problems.add(f"{path}.drop_layers", "expected one of drop_layers and integration_steps, got both")
    if message.drop_layers and message.HasField("edges"):
        problems.add(f"{path}.drop_layers", "expected one of drop_layers and edges, got both")


def _check_numbers(question: AttributionPatching, path: str, targets: int, reader: Reader) -> None:
    for component in question.components:
        units = question.places_per_layer(component, reader.model)
        if units * targets > MOST_NUMBERS:
            reader.problems.add(
                path, f"expected at most {MOST_NUMBERS} units of {component.name} x targets, got {units} x {targets}"
            )


def encode_attributions(part: Attributions) -> Iterator[pb.Attributions]:
    """Layer by layer, as many positions at a time as fit into a message."""
    for layer, estimates in enumerate(part.estimates):
        positions = len(estimates)
        for start, stop in spans(positions, estimates.nbytes // max(1, positions)):
            yield pb.Attributions(
                component=pb.Component.ValueType(part.component),
                layers=part.layers[layer : layer + 1],
                positions=part.positions[start:stop],
                estimates=encode_floats(estimates[None, start:stop]),
                counts=part.counts[start:stop],
            )


def encode_edges(part: EdgeAttributions) -> Iterator[pb.EdgeAttributions]:
    """As many edges at a time as fit into a message."""
    count = len(part.estimates)
    for start, stop in spans(count, row_bytes(part, count)):
        some = rows(part, start, stop)
        yield pb.EdgeAttributions(
            offset=part.offset + start,
            senders=encode_integers(some.senders),
            receivers=encode_integers(some.receivers),
            estimates=encode_floats(some.estimates),
        )


def encode_verified(effect: VerifiedEffect) -> pb.VerifiedEffect:
    """An estimate beside what was measured."""
    site = encode_site(effect.site)
    return pb.VerifiedEffect(site=site, estimated=effect.estimated.tolist(), measured=effect.measured.tolist())
