"""From what a person writes to the contract's messages. Pure: nothing here waits or sends."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from sonde._ask.edits import Add, Edit, Knockout, Multiply, Noise, Patch, ProjectOut, Replace, Scale
from sonde._ask.indices import index, indices
from sonde._ask.names import AXES, COMPONENTS, METRICS, STACKS
from sonde._ask.plans import Generation, Plan, Sweep
from sonde._ask.prompts import Prompt, PromptLike, Target, TargetLike, TokenLike, as_targets
from sonde._ask.sites import Site, component_names
from sonde._methods.methods import Activations, AttributionPatching, CausalTracing, Method, TokenProbability
from sonde._methods.traces import TraceResult
from sonde._wire.tensors import to_tensor
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

_Message = TypeVar("_Message")


def trace_request(
    prompt: PromptLike,
    method: Method[TraceResult] | None,
    *,
    targets: TargetLike | Sequence[TargetLike] | None,
    position: int | None,
    top_k: int,
    dry_run: bool,
) -> pb.TraceRequest:
    """The request of `Client.trace`."""
    request = pb.TraceRequest(
        prompt=_prompt(prompt),
        targets=[_target(target) for target in as_targets(targets)],
        position=None if position is None else index(position, "position"),
        top_k=index(top_k, "top_k"),
        dry_run=dry_run,
    )
    match method:
        case None:
            pass
        case TokenProbability():
            request.token_probability.gradient_norms = method.gradient_norms
            if method.metric is not None:
                request.token_probability.metric = METRICS[method.metric]
            request.token_probability.SetInParent()
        case CausalTracing():
            request.causal_tracing.CopyFrom(_causal_tracing(method))
        case AttributionPatching():
            request.attribution_patching.CopyFrom(_attribution_patching(method))
        case Activations():
            request.activations.sites.extend(_site(site) for site in method.sites)
        case _:
            raise InvalidRequest.at("method", f"{method!r} was given; it is a method such as sonde.CausalTracing(...)")
    return request


def intervene_request(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike,
    plan: Plan,
    *,
    targets: TargetLike | Sequence[TargetLike] | None,
    sources: Sequence[PromptLike],
    position: int | None,
    top_k: int,
    kl_divergence: bool,
    activations: Sequence[Site],
    generation: Generation | None,
    dry_run: bool,
) -> pb.InterveneRequest:
    """The request of `Client.intervene`."""
    if isinstance(sources, str | Prompt):
        raise InvalidRequest.at("sources", "one prompt was given; a list of prompts would do")
    edits = _Edits(sources)
    request = pb.InterveneRequest(prompt=_prompt(prompt), dry_run=dry_run)
    if isinstance(plan, Sweep):
        request.sweep.CopyFrom(edits.sweep(plan))
    else:
        interventions = [plan] if isinstance(plan, Edit) else list(plan)
        request.list.interventions.extend(map(edits.intervention, interventions))
        request.list.SetInParent()
    request.sources.extend(edits.sources)
    readout = request.readout
    readout.targets.extend(_target(target) for target in as_targets(targets))
    if position is not None:
        readout.position = index(position, "position")
    readout.top_k = index(top_k, "top_k")
    readout.kl_divergence = kl_divergence
    readout.activations.extend(_site(site) for site in activations)
    if generation is not None:
        readout.generation.CopyFrom(_generation(generation))
    return request


# ---------------------------------------------------------------------- parts


def _checked(name: str, make: Callable[[], _Message]) -> _Message:
    """Make a message, turning what protobuf refuses (a type, a range, a broken surrogate) into our error."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest.at(name, str(error)) from None


def _prompt(given: PromptLike) -> pb.Prompt:
    prompt = given if isinstance(given, Prompt) else Prompt(given)
    content = prompt.content
    image = prompt.image or b""
    if isinstance(content, str):
        return _checked("prompt", lambda: pb.Prompt(text=content, image=image))
    return _checked("prompt", lambda: pb.Prompt(token_ids=pb.TokenIds(ids=content), image=image))


def _target(target: Target) -> pb.Target:
    message = pb.Target()
    token, contrast = _token(target.token), None if target.contrast is None else _token(target.contrast)
    if isinstance(token, str):
        message.text = token
    else:
        message.id = token
    if isinstance(contrast, str):
        message.contrast_text = contrast
    elif contrast is not None:
        message.contrast_id = contrast
    return message


def _token(given: TokenLike) -> str | int:
    if not isinstance(given, str):
        return index(given, "targets")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest.at("targets", f"not text: {error}") from None
    return given


def _site(site: Site) -> pb.Site:
    if not isinstance(site, Site):
        raise InvalidRequest.at("site", f"{site!r} was given; a place such as sonde.neuron(layer=3) would do")
    return pb.Site(
        component=COMPONENTS[site.component],
        layers=site.layers,
        units=site.units,
        positions=site.positions,
        from_position=site.from_position,
        stack=STACKS[site.stack] if site.stack is not None else pb.STACK_UNSPECIFIED,
    )


def _generation(generation: Generation) -> pb.Generation:
    return _checked(
        "generation",
        lambda: pb.Generation(
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            seed=generation.seed,
            ignore_end_token=generation.ignore_end_token,
        ),
    )


class _Edits:
    """Encodes edits, and collects the prompts that their patches name beside the call's own sources."""

    def __init__(self, sources: Iterable[PromptLike]) -> None:
        self.sources = [_prompt(source) for source in sources]

    def sweep(self, sweep: Sweep) -> pb.Sweep:
        return pb.Sweep(
            edit=self.edit(sweep.edit),
            together=[AXES[axis] for axis in sweep.together],
            layer_window=sweep.layer_window,
            always=[self.edit(edit) for edit in sweep.always],
        )

    def intervention(self, edits: Edit | Sequence[Edit]) -> pb.Intervention:
        together = [edits] if isinstance(edits, Edit) else edits
        return pb.Intervention(edits=[self.edit(edit) for edit in together])

    def edit(self, edit: Edit) -> pb.Edit:
        if not isinstance(edit, Edit):
            raise InvalidRequest.at("edit", f"{edit!r} was given; an edit such as sonde.scale(site, 0.0) would do")
        message = pb.Edit(site=_site(edit.site))
        match edit.operation:
            case Scale(factor):
                _checked("scale", lambda: setattr(message, "scale", factor))
            case Replace(value):
                message.set.CopyFrom(to_tensor(value, "replace"))
            case Add(value):
                message.add.CopyFrom(to_tensor(value, "add"))
            case Multiply(value):
                message.multiply.CopyFrom(to_tensor(value, "multiply"))
            case Patch() as patch:
                message.patch.CopyFrom(self._patch(patch))
            case Noise(deviation, seed):
                _checked("noise", lambda: message.noise.CopyFrom(pb.Noise(standard_deviation=deviation, seed=seed)))
            case ProjectOut(direction):
                message.project_out.CopyFrom(to_tensor(direction, "project_out"))
            case Knockout(key_positions):
                message.knockout.CopyFrom(pb.Knockout(key_positions=key_positions))
        return message

    def _patch(self, patch: Patch) -> pb.Patch:
        return pb.Patch(
            sources=[entry if isinstance(entry, int) else self._source(entry) for entry in patch.sources],
            source_positions=patch.source_positions,
            source_layer=patch.source_layer,
        )

    def _source(self, prompt: str | Prompt) -> int:
        message = _prompt(prompt)
        if message not in self.sources:
            self.sources.append(message)
        return self.sources.index(message)


def _causal_tracing(method: CausalTracing) -> pb.CausalTracing:
    message = pb.CausalTracing(
        replace=method.replace,
        components=[COMPONENTS[name] for name in component_names(method.components)],
        window=None if method.window is None else index(method.window, "window"),
        layers=indices(method.layers or None, "layers"),
        positions=indices(method.positions or None, "positions"),
        per_sample=method.per_sample,
    )
    if isinstance(method.subject, str):
        _checked("subject", lambda: setattr(message, "subject_text", method.subject))
    elif method.subject is not None:
        message.subject_positions.positions.extend(indices(method.subject, "subject"))
    if method.noise is not None:
        message.noise.CopyFrom(to_tensor(method.noise, "noise"))
    elif method.counterfactual is not None:
        message.counterfactual.CopyFrom(_prompt(method.counterfactual))
    else:
        gaussian = _checked("noise", lambda: pb.CausalTracing.Gaussian(samples=method.samples, seed=method.seed))
        for name in ("deviations", "standard_deviation"):
            value = getattr(method, name)
            if value is not None:
                _checked(name, partial(setattr, gaussian, name, value))
        message.gaussian.CopyFrom(gaussian)
    return message


def _attribution_patching(method: AttributionPatching) -> pb.AttributionPatching:
    message = pb.AttributionPatching(
        source=_prompt(method.source),
        components=[COMPONENTS[name] for name in component_names(method.components)],
        integration_steps=0
        if method.integration_steps is None
        else index(method.integration_steps, "integration_steps"),
        verify_top=index(method.verify_top, "verify_top"),
        recompute_softmax=method.recompute_softmax,
        drop_layers=method.drop_layers,
    )
    if method.edges is not None:
        message.edges.top = 0 if method.edges == "all" else index(method.edges, "edges")
        message.edges.SetInParent()
    if method.metric is not None:
        message.metric = METRICS[method.metric]
    return message
