"""What a question takes, from the question and the model's sizes alone: before anything of that size is made.

The bytes are upper bounds of what is held at once beside the model's own weights and the batch under way: the states
that runs restart from, the noise that is drawn, what is captured of sources.
"""

import math
from collections.abc import Iterable, Sequence

from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing, Counterfactual, ExplicitNoise
from .edits import Edit, Noise, Patch
from .interventions import InterveneQuestion
from .places import LAYERLESS, UNIT_SWEPT, ModelDescription, Site, Sized
from .plans import Axis, Intervention, Sweep
from .token_probability import TokenProbability
from .traces import TraceQuestion

FLOAT, DOUBLE = 4, 8
# Positions of a kept run whose logits are kept too.
LOGITS_KEPT = 4
# What is kept of the insides of its blocks, as a share of all else.
INSIDE_KEPT = 1 / 6
# What all senders of edges write, or what their receivers read, at the positions that are looked at together.
EDGE_CHUNK_BYTES = 32 << 20
# Runs whose changed values are held at a time.
HELD_RUNS = 4096
# What one question may keep in keys and values of the runs that it continues, and how many go on beside each other.
CONTINUED_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
MOST_TOGETHER = 512


def count_runs(plan: Sequence[Intervention] | Sweep) -> int:
    """How many changed runs a plan asks for."""
    if not isinstance(plan, Sweep):
        return len(plan)
    axes = ((Axis.LAYER, plan.layers), (Axis.UNIT, plan.units), (Axis.POSITION, plan.positions))
    return math.prod(len(values) for axis, values in axes if values is not None and axis not in plan.together)


def runs_of(question: TraceQuestion | InterveneQuestion, model: ModelDescription) -> int:
    """How many runs a question comes to, those of its prompt and sources included."""
    if isinstance(question, InterveneQuestion):
        return 1 + count_runs(question.plan) + len({source.tokens for source in question.sources})
    if isinstance(question.method, CausalTracing):
        layers = max(1, len(question.method.layers))
        cells = len(question.method.components) * layers * len(question.method.positions)
        return 1 + samples_of(question.method) * (cells + 1)
    if isinstance(question.method, AttributionPatching):
        return question.method.runs(max(1, len(question.targets)), model.layers)
    return 1


def samples_of(method: CausalTracing) -> int:
    """How many corrupted runs a causal trace has for each cell."""
    match method.corruption:
        case ExplicitNoise(values=values):
            return int(values.shape[0])
        case Counterfactual():
            return 1
        case gaussian:
            return gaussian.samples


def working_bytes(question: TraceQuestion | InterveneQuestion, model: ModelDescription) -> int:
    """Bytes that answering a question holds at once, at most."""
    tokens = len(question.prompt.tokens)
    held = state_bytes(tokens, model)
    if isinstance(question, InterveneQuestion):
        held += sum(state_bytes(len(source), model) for source in {source.tokens for source in question.sources})
        generation = question.readout.generation
        if generation is not None:
            each = cache_bytes(tokens + generation.max_new_tokens, model)
            held += each * together(1 + count_runs(question.plan), each, model.device)
        return held + _edited_bytes(question, model)
    method = question.method
    if isinstance(method, CausalTracing):
        samples = samples_of(method)
        held += (samples + isinstance(method.corruption, Counterfactual)) * state_bytes(tokens, model)
        drawn = 0 if isinstance(method.corruption, Counterfactual) else samples * len(method.subject)
        held += 2 * DOUBLE * drawn * model.hidden_size
        for component in method.components:
            shape = model.selected_shape(component, None, len(method.positions), tokens)
            held += FLOAT * model.layers * math.prod(shape)
    elif isinstance(method, AttributionPatching):
        held += _attributed_bytes(question, method, model)
    elif isinstance(method, TokenProbability):
        # The ranks compare every target with the whole vocabulary, at every depth.
        compared = max(1, len(question.targets)) + 3 * FLOAT
        held += (model.layers + 1) * model.vocabulary_size * compared
    return held


def together(runs: int, each: int, device: str) -> int:
    """How many runs are continued beside each other, when one takes `each` bytes; at least one is."""
    budget = CONTINUED_BYTES["cuda" if device.startswith("cuda") else "cpu"]
    return max(1, min(runs, MOST_TOGETHER, budget // max(1, each)))


def cache_bytes(tokens: int, model: ModelDescription) -> int:
    """Bytes of the keys and values of so many positions at every block."""
    item = FLOAT if model.data_type == "float32" else 2
    return tokens * 2 * model.layers * model.key_value_heads * model.head_size * item


def attribution_bytes(method: AttributionPatching, tokens: int, targets: int, model: Sized) -> int:
    """Bytes of the answer to attribution patching."""
    numbers = 2 * method.verify_top * targets
    for component in method.components:
        units = model.units(component) if component in UNIT_SWEPT else 1
        numbers += (1 if component in LAYERLESS else model.layers) * tokens * units * targets
    if method.edges is not None:
        numbers += min(method.edges or model.edges(), model.edges()) * (6 + targets)
    return FLOAT * numbers


def _attributed_bytes(question: TraceQuestion, method: AttributionPatching, model: ModelDescription) -> int:
    """The source's run and that of a step, the answer, gradients on their way, and what several steps share."""
    tokens, targets, length = len(question.prompt.tokens), max(1, len(question.targets)), question.position + 1
    integrated = method.integration_steps > 1
    passes = targets * (model.layers if method.drop_layers else 1)
    held = 2 * passes * length * model.hidden_size
    for component in method.inside:
        values = math.prod(model.selected_shape(component, None, length, length))
        # One block's values of both runs and their gradients; with several steps, every block's values.
        held += values * (2 + passes + (2 * model.layers if integrated else 0))
    if method.edges is not None:
        written = model.heads * model.head_size + model.hidden_size
        read = (model.heads + 2 * model.key_value_heads) * model.head_size + model.hidden_size
        held += model.layers * length * (2 * written + targets * read)
    total = (1 + integrated) * state_bytes(tokens, model) + FLOAT * held
    sums = 0 if method.edges is None else 2 * EDGE_CHUNK_BYTES + DOUBLE * targets * model.edges()
    return total + sums + attribution_bytes(method, tokens, targets, model)


def state_bytes(tokens: int, model: ModelDescription) -> int:
    """Bytes of what is kept of an unchanged run: its stream, keys and values at every block."""
    item = FLOAT if model.data_type == "float32" else 2
    width = (model.layers + 2) * model.hidden_size + 2 * model.layers * model.key_value_heads * model.head_size
    # The logits of a few positions that were read are kept beside it, and what runs went on from inside a block.
    logits = FLOAT * model.vocabulary_size * min(tokens, LOGITS_KEPT)
    return math.ceil((1 + INSIDE_KEPT) * (tokens * width * item + logits))


def _edited_bytes(question: InterveneQuestion, model: ModelDescription) -> int:
    """Noise and patched values of the runs that are placed together, and the sources' values that they come from."""
    plan, tokens = question.plan, len(question.prompt.tokens)
    if isinstance(plan, Sweep):
        copies = min(count_runs(plan), HELD_RUNS)
        one = _changed_bytes(plan.edit, _one_of(plan), tokens, model)
        always = sum(_changed_bytes(edit, edit.site, tokens, model) for edit in plan.always)
        return copies * (one + always) + _captured_bytes((plan.edit, *plan.always), question, model, every=True)
    changed = [
        sum(_changed_bytes(edit, edit.site, tokens, model) for edit in intervention.edits) for intervention in plan
    ]
    largest = sum(sorted(changed, reverse=True)[:HELD_RUNS])
    edits = [edit for intervention in plan for edit in intervention.edits]
    return largest + _captured_bytes(edits, question, model, every=False)


def _one_of(plan: Sweep) -> Site:
    """The site of one run of a sweep."""
    site = plan.edit.site
    layers = plan.layers if Axis.LAYER in plan.together else plan.layers[: plan.layer_window]
    units = plan.units if Axis.UNIT in plan.together or plan.units is None else plan.units[:1]
    positions = plan.positions if Axis.POSITION in plan.together or plan.positions is None else plan.positions[:1]
    return Site(site.component, layers, units, positions, site.from_position)


def _changed_bytes(edit: Edit, site: Site, tokens: int, model: ModelDescription) -> int:
    if not isinstance(edit.operation, Noise | Patch):
        return 0
    shape = model.selected_shape(site.component, site.units, len(site.positions_within(tokens)), tokens)
    return max(1, len(site.layers)) * DOUBLE * math.prod(shape)


def _captured_bytes(edits: Iterable[Edit], question: InterveneQuestion, model: ModelDescription, *, every: bool) -> int:
    """What patches take from the sources: whole, once for each source, component and layer (of a sweep: every one)."""
    layers = range(model.layers)
    places = {
        (source, edit.site.component, layer)
        for edit in edits
        if isinstance(edit.operation, Patch)
        for source in edit.operation.sources
        for layer in (layers if every else edit.site.layers)
    }
    total = 0
    for source, component, _ in places:
        length = len(question.sources[source].tokens)
        total += FLOAT * math.prod(model.selected_shape(component, None, length, length))
    return total
