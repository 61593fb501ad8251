"""Requests to questions. Every fault is collected, each under the path of its field."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions.activations import Activations
from ..questions.costs import count_runs, working_bytes
from ..questions.edits import Edit
from ..questions.interventions import InterveneQuestion, Readout
from ..questions.places import LAYERLESS, ModelDescription, Site
from ..questions.plans import Axis, Intervention, Sweep
from ..questions.prompts import Metric, Prompt
from ..questions.token_probability import TokenProbability
from ..questions.traces import Method, TraceQuestion
from .attribution_patching import read_attribution_patching
from .causal_tracing import read_causal_tracing
from .edits import Scene, read_edit
from .fields import MOST_EDITS, MOST_LISTED, MOST_SITES, MOST_VALUES_TOGETHER, Reader
from .generating import read_generation
from .inputs import Role, read_metric, read_prompt, read_site, read_targets

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

FLOAT = 4


def decode_trace(
    request: pb.TraceRequest, description: ModelDescription, vocabulary: "Vocabulary", limits: Limits
) -> TraceQuestion:
    """The question of a Trace.

    Raises InvalidQuestion with every violation, and Unsupported where the model or this server lacks what is asked.
    """
    reader = Reader(description, vocabulary, limits)
    prompt = read_prompt(request.prompt, "prompt", reader)
    tokens = None if prompt is None else len(prompt.tokens)
    targets = read_targets(request.targets, "targets", reader)
    given = request.position if request.HasField("position") else -1
    position = reader.position(given, tokens, "position")
    top_k = reader.top_k(request.top_k, "top_k")
    method = _read_method(request, prompt, max(1, len(request.targets)), reader)
    reader.problems.settle()
    assert prompt is not None
    assert position is not None
    question = TraceQuestion(prompt, targets, position, top_k, method, request.dry_run)
    _check_memory(question, str(request.WhichOneof("method") or "prompt"), reader)
    return question


def decode_intervene(
    request: pb.InterveneRequest, description: ModelDescription, vocabulary: "Vocabulary", limits: Limits
) -> InterveneQuestion:
    """The question of an Intervene. Raises as `decode_trace` does."""
    reader = Reader(description, vocabulary, limits)
    prompt = read_prompt(request.prompt, "prompt", reader)
    tokens = None if prompt is None else len(prompt.tokens)
    sources = _read_sources(request.sources, reader)
    readout = _read_readout(request.readout, tokens, reader)
    plan = _read_plan(request, reader, Scene(tokens, sources, generating=request.readout.HasField("generation")))
    runs = count_runs(plan)
    if isinstance(plan, Sweep):
        reader.runs(runs, "sweep")
    reader.answer((runs + 1) * _bytes_per_run(request, readout, plan, tokens or 0, reader), "readout")
    reader.problems.settle()
    assert prompt is not None
    assert readout is not None
    resolved = tuple(source for source in sources if source is not None)
    question = InterveneQuestion(prompt, resolved, plan, readout, request.dry_run)
    _check_memory(question, "sources" if resolved else str(request.WhichOneof("plan")), reader)
    return question


def _check_memory(question: TraceQuestion | InterveneQuestion, path: str, reader: Reader) -> None:
    reader.memory(working_bytes(question, reader.model), path)
    reader.problems.settle()


def _read_sources(messages: Sequence[pb.Prompt], reader: Reader) -> list[Prompt | None]:
    # Each is a run of its own.
    if not reader.runs(len(messages), "sources"):
        return []
    return [read_prompt(source, f"sources[{i}]", reader) for i, source in enumerate(messages)]


def _read_method(request: pb.TraceRequest, prompt: Prompt | None, targets: int, reader: Reader) -> Method | None:
    tokens = None if prompt is None else len(prompt.tokens)
    match request.WhichOneof("method"):
        case "token_probability":
            message = request.token_probability
            if message.gradient_norms and targets * (tokens or 0) > MOST_VALUES_TOGETHER:
                reader.problems.add(
                    "token_probability.gradient_norms",
                    f"{tokens} positions x {targets} targets are more than {MOST_VALUES_TOGETHER}; give fewer targets",
                )
            metric = read_metric(message.metric, Metric.PROBABILITY, "token_probability.metric", reader)
            return TokenProbability(message.gradient_norms, metric)
        case "causal_tracing":
            return read_causal_tracing(request.causal_tracing, "causal_tracing", prompt, targets, reader)
        case "attribution_patching":
            asked = request.attribution_patching
            return read_attribution_patching(asked, "attribution_patching", prompt, targets, reader)
        case "activations":
            path = "activations.sites"
            if not request.activations.sites:
                reader.problems.add(path, "no site was given; give at least one")
            sites = _read_sites(request.activations.sites, path, tokens, reader)
            reader.answer(sum(_site_bytes(site, tokens or 0, reader) for site in sites), path)
            return Activations(sites)
        case _:
            return None


def _read_sites(messages: Sequence[pb.Site], path: str, tokens: int | None, reader: Reader) -> tuple[Site, ...]:
    if not reader.listed(len(messages), MOST_SITES, path, "sites"):
        return ()
    sites = [read_site(site, f"{path}[{i}]", reader, tokens, Role.READ) for i, site in enumerate(messages)]
    return tuple(site for site in sites if site is not None)


def _read_readout(message: pb.Readout, tokens: int | None, reader: Reader) -> Readout | None:
    targets = read_targets(message.targets, "readout.targets", reader)
    given = message.position if message.HasField("position") else -1
    position = reader.position(given, tokens, "readout.position")
    top_k = reader.top_k(message.top_k, "readout.top_k")
    sites = _read_sites(message.activations, "readout.activations", tokens, reader)
    generation = None
    if message.HasField("generation"):
        generation = read_generation(message.generation, "readout.generation", tokens, reader)
    if position is None:
        return None
    return Readout(targets, position, top_k, message.kl_divergence, sites, generation)


def _read_plan(request: pb.InterveneRequest, reader: Reader, scene: Scene) -> tuple[Intervention, ...] | Sweep:
    match request.WhichOneof("plan"):
        case "list":
            interventions = request.list.interventions
            if not interventions:
                reader.problems.add("list.interventions", "no intervention was given; give at least one")
            path = "list.interventions"
            if not reader.runs(len(interventions), "list"):
                return ()
            edits = sum(len(intervention.edits) for intervention in interventions)
            if not reader.listed(edits, MOST_EDITS, path, "edits"):
                return ()
            return tuple(_read_intervention(one, f"{path}[{i}]", reader, scene) for i, one in enumerate(interventions))
        case "sweep":
            return _read_sweep(request.sweep, "sweep", reader, scene) or ()
        case _:
            reader.problems.add("plan", "no plan was given; give a list or a sweep")
            return ()


def _read_intervention(message: pb.Intervention, path: str, reader: Reader, scene: Scene) -> Intervention:
    if not message.edits:
        reader.problems.add(f"{path}.edits", "no edit was given; give at least one")
    return Intervention(_read_edits(message.edits, f"{path}.edits", reader, scene))


def _read_edits(messages: Sequence[pb.Edit], path: str, reader: Reader, scene: Scene) -> tuple[Edit, ...]:
    edits = [read_edit(edit, f"{path}[{i}]", reader, scene) for i, edit in enumerate(messages)]
    return tuple(edit for edit in edits if edit is not None)


def _read_sweep(message: pb.Sweep, path: str, reader: Reader, scene: Scene) -> Sweep | None:
    together = _read_together(message.together, f"{path}.together", reader)
    window = 1
    if message.HasField("layer_window"):
        window = reader.at_least_one(message.layer_window, f"{path}.layer_window")
    always = _read_edits(message.always, f"{path}.always", reader, scene)
    if not message.HasField("edit"):
        reader.problems.add(f"{path}.edit", "the edit is missing; say what to do at each place")
        return None
    swept = replace(scene, role=Role.SWEEP, together=together)
    edit = read_edit(message.edit, f"{path}.edit", reader, swept)
    if edit is None:
        return None
    site = edit.site
    if message.HasField("layer_window") and site.component in LAYERLESS:
        reader.problems.add(f"{path}.layer_window", f"{site.component.name} takes no layer; leave it unset")
    return Sweep(edit, site.layers, site.units, site.positions, together, window, always)


def _read_together(values: Sequence[int], path: str, reader: Reader) -> frozenset[Axis]:
    axes: list[int | None] = []
    if not reader.listed(len(values), MOST_LISTED, path, "axes"):
        return frozenset()
    for i, value in enumerate(values):
        known = value in tuple(Axis)
        if not known:
            reader.problems.add(f"{path}[{i}]", f"axis {value} is not known; there are LAYER, UNIT and POSITION")
        axes.append(value if known else None)
    return frozenset(Axis(axis) for axis in reader.distinct(axes, path, "axis"))


def _bytes_per_run(
    request: pb.InterveneRequest,
    readout: Readout | None,
    plan: Sequence[Intervention] | Sweep,
    tokens: int,
    reader: Reader,
) -> int:
    if readout is None:
        return 0
    if isinstance(plan, Sweep):
        edits = len(plan.always) + 1
    else:
        edits = max((len(intervention.edits) for intervention in plan), default=0)
    targets = max(1, len(request.readout.targets))
    numbers = 2 * targets + 2 * readout.top_k + int(readout.kl_divergence) + edits
    generated = 0 if readout.generation is None else readout.generation.answer_bytes
    return numbers * FLOAT + generated + sum(_site_bytes(site, tokens, reader) for site in readout.activations)


def _site_bytes(site: Site, tokens: int, reader: Reader) -> int:
    positions = len(site.positions_within(tokens))
    shape = reader.model.selected_shape(site.component, site.units, positions, tokens)
    return len(site.layers) * math.prod(shape) * FLOAT
