"""Every malformed request is refused with the path of the field, what was given and what would do.

A case is a request made by changing a valid one, the field that must be named, and words that its description must
hold: the value given, and where there is one, the bound. A path may be named in more depth than the case asks for.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, Host, Hosts
from tests.support import oracle, wire
from tests.support.oracle import Edit, Site, Target

IDS = [5, 130, 77, 301, 9, 260, 41]
SHORT = [17, 18, 250]
TARGETS = [Target(41)]
NOWHERE = 99
"""No layer, unit or position of these prompts and models, but for neurons."""

Request = pb.InterveneRequest | pb.TraceRequest


@dataclass(frozen=True)
class Case:
    """A refusal to expect."""

    name: str
    request: Request | Callable[[Host], Request]
    field: str | tuple[str, ...]
    """The path, or several that would all be right."""
    words: tuple[str, ...] = ()


def scaled(site: pb.Site) -> pb.Edit:
    return pb.Edit(site=site, scale=0.5)


def mlp(**fields: Any) -> pb.Site:
    """A valid site, with some fields otherwise."""
    return pb.Site(**{"component": pb.COMPONENT_MLP_OUT, "layers": [1], **fields})


def listed(*edits: pb.Edit, sources: tuple[list[int], ...] = (), **readout: Any) -> pb.InterveneRequest:
    """A list of one intervention."""
    return pb.InterveneRequest(
        prompt=wire.prompt(IDS),
        sources=[wire.prompt(source) for source in sources],
        list=pb.InterventionList(interventions=[pb.Intervention(edits=edits)]),
        readout=pb.Readout(**{"targets": [pb.Target(id=41)], **readout}),
    )


def swept(sweep: pb.Sweep, sources: tuple[list[int], ...] = ()) -> pb.InterveneRequest:
    """A sweep."""
    return pb.InterveneRequest(
        prompt=wire.prompt(IDS), sources=[wire.prompt(source) for source in sources], sweep=sweep
    )


def traced(prompt: pb.Prompt | None = None, **fields: Any) -> pb.TraceRequest:
    """A trace; without further fields the prediction alone."""
    return pb.TraceRequest(prompt=wire.prompt(IDS) if prompt is None else prompt, **fields)


def tracing(**fields: Any) -> pb.TraceRequest:
    """A causal trace of a subject by positions, with some fields otherwise."""
    subject = {"subject_positions": pb.PositionList(positions=[2])}
    if "subject_text" in fields or "subject_positions" in fields or "counterfactual" in fields:
        subject = {}
    prompt = fields.pop("prompt", None)
    return traced(prompt, causal_tracing=pb.CausalTracing(**{**subject, **fields}))


def gaussian(**fields: Any) -> pb.TraceRequest:
    return tracing(gaussian=pb.CausalTracing.Gaussian(**fields))


def shaped(shape: list[int], values: int, kind: int = pb.DATA_TYPE_FLOAT32) -> pb.Tensor:
    """A tensor that holds so many float32 values whatever its shape says."""
    return pb.Tensor(data_type=kind, shape=shape, data=np.ones(values, "<f4").tobytes())  # type: ignore[arg-type]


E = "list.interventions[0].edits[0]"

INF, NAN = float("inf"), float("nan")
SITES = [
    Case("no component", listed(scaled(mlp(component=0))), f"{E}.site.component"),
    Case("unknown component", listed(scaled(mlp(component=77))), f"{E}.site.component", ("77",)),
    Case("no site", listed(pb.Edit(scale=0.5)), f"{E}.site"),
    Case("layer beyond", listed(scaled(mlp(layers=[NOWHERE]))), f"{E}.site.layers[0]", ("99",)),
    Case("second layer beyond", listed(scaled(mlp(layers=[0, NOWHERE]))), f"{E}.site.layers[1]", ("99",)),
    Case("layer before the first", listed(scaled(mlp(layers=[-NOWHERE]))), f"{E}.site.layers[0]", ("-99",)),
    Case(
        "a layer named from both ends",
        lambda host: listed(scaled(mlp(layers=[1, 1 - host.oracle.layers]))),
        f"{E}.site.layers[1]",
        ("1",),
    ),
    Case("no layer", listed(scaled(mlp(layers=[]))), f"{E}.site.layers"),
    Case(
        "layer of a component without",
        listed(scaled(pb.Site(component=pb.COMPONENT_LOGITS, layers=[0]))),
        f"{E}.site.layers",
    ),
    Case("hidden unit beyond", listed(scaled(mlp(units=[48]))), f"{E}.site.units[0]", ("48",)),
    Case("negative unit", listed(scaled(mlp(units=[3, -1]))), f"{E}.site.units[1]", ("-1",)),
    Case(
        "head beyond",
        listed(scaled(mlp(component=pb.COMPONENT_HEAD_OUT, units=[4]))),
        f"{E}.site.units[0]",
        ("4",),
    ),
    Case(
        "key head beyond",
        lambda host: listed(scaled(mlp(component=pb.COMPONENT_KEY, units=[host.oracle.key_value_heads]))),
        f"{E}.site.units[0]",
    ),
    Case(
        "neuron beyond",
        lambda host: listed(scaled(mlp(component=pb.COMPONENT_NEURON, units=[host.oracle.neurons]))),
        f"{E}.site.units[0]",
    ),
    Case("position beyond", listed(scaled(mlp(positions=[0, 7]))), f"{E}.site.positions[1]", ("7",)),
    Case("position before", listed(scaled(mlp(positions=[-8]))), f"{E}.site.positions[0]", ("-8", "7")),
    Case(
        "positions and from_position",
        listed(scaled(mlp(positions=[1], from_position=2))),
        (f"{E}.site.from_position", f"{E}.site.positions"),
    ),
    Case("negative from_position", listed(scaled(mlp(from_position=-1))), f"{E}.site.from_position", ("-1",)),
    Case("unknown stack", listed(scaled(mlp(stack=9))), f"{E}.site.stack", ("9",)),
]
OPERATIONS = [
    Case("no operation", listed(pb.Edit(site=mlp())), E),
    Case("no edits", listed(), "list.interventions[0].edits"),
    Case("scale NaN", listed(pb.Edit(site=mlp(), scale=NAN)), f"{E}.scale"),
    Case("scale infinite", listed(pb.Edit(site=mlp(), scale=INF)), f"{E}.scale"),
    Case("bytes short of the shape", listed(pb.Edit(site=mlp(), set=shaped([48], 47))), f"{E}.set", ("192", "188")),
    Case("bytes beyond the shape", listed(pb.Edit(site=mlp(), add=shaped([3], 4))), f"{E}.add", ("12", "16")),
    Case("negative shape", listed(pb.Edit(site=mlp(), add=shaped([-3], 3))), f"{E}.add", ("-3",)),
    Case("no data type", listed(pb.Edit(site=mlp(), add=shaped([3], 3, 0))), f"{E}.add.data_type"),
    Case("unknown data type", listed(pb.Edit(site=mlp(), add=shaped([3], 3, 42))), f"{E}.add.data_type", ("42",)),
    Case("does not broadcast", listed(pb.Edit(site=mlp(), set=shaped([47], 47))), f"{E}.set", ("47", "48")),
    Case("too many axes", listed(pb.Edit(site=mlp(), multiply=shaped([1, 7, 48], 336))), f"{E}.multiply", ("48",)),
    Case(
        "does not fit the positions",
        listed(pb.Edit(site=mlp(positions=[1, 2, 3]), set=shaped([2, 48], 96))),
        f"{E}.set",
        ("2", "3"),
    ),
    Case("NaN in a value", listed(pb.Edit(site=mlp(), set=wire.tensor([NAN] * 48))), f"{E}.set"),
    Case("infinity in a value", listed(pb.Edit(site=mlp(), add=wire.tensor([INF] + [0.0] * 47))), f"{E}.add"),
    Case("infinity in a factor", listed(pb.Edit(site=mlp(), multiply=wire.tensor([-INF]))), f"{E}.multiply"),
    Case("no direction", listed(pb.Edit(site=mlp(), project_out=wire.tensor([0.0] * 48))), f"{E}.project_out"),
    Case("direction NaN", listed(pb.Edit(site=mlp(), project_out=wire.tensor([NAN] * 48))), f"{E}.project_out"),
    Case("direction of another length", listed(pb.Edit(site=mlp(), project_out=shaped([47], 47))), f"{E}.project_out"),
    Case("negative deviation", listed(pb.Edit(site=mlp(), noise=pb.Noise(standard_deviation=-1))), f"{E}.noise"),
    Case("deviation NaN", listed(pb.Edit(site=mlp(), noise=pb.Noise(standard_deviation=NAN))), f"{E}.noise"),
    Case(
        "negative seed",
        listed(pb.Edit(site=mlp(), noise=pb.Noise(standard_deviation=1, seed=-1))),
        f"{E}.noise.seed",
        ("-1",),
    ),
    Case(
        "seed of 33 bits",
        listed(pb.Edit(site=mlp(), noise=pb.Noise(standard_deviation=1, seed=2**32))),
        f"{E}.noise.seed",
        (str(2**32),),
    ),
    Case(
        "noise from a position on",
        listed(pb.Edit(site=mlp(from_position=2), noise=pb.Noise(standard_deviation=1))),
        (f"{E}.noise", f"{E}.site.from_position"),
    ),
    Case(
        "patch from a position on",
        listed(pb.Edit(site=mlp(from_position=2), patch=pb.Patch(sources=[0])), sources=(IDS,)),
        (f"{E}.patch", f"{E}.site.from_position"),
    ),
    Case(
        "value by position from a position on",
        listed(pb.Edit(site=mlp(from_position=2), set=shaped([5, 48], 240))),
        (f"{E}.set", f"{E}.site.from_position"),
    ),
    Case(
        "knockout of something else than scores",
        listed(pb.Edit(site=mlp(component=pb.COMPONENT_ATTENTION_PATTERN), knockout=pb.Knockout(key_positions=[1]))),
        (f"{E}.knockout", f"{E}.site.component"),
    ),
    Case(
        "knockout of a key beyond",
        listed(
            pb.Edit(site=mlp(component=pb.COMPONENT_ATTENTION_SCORES), knockout=pb.Knockout(key_positions=[0, NOWHERE]))
        ),
        f"{E}.knockout.key_positions[1]",
        ("99",),
    ),
]
PATCHES = [
    Case(
        "patch without sources",
        listed(pb.Edit(site=mlp(), patch=pb.Patch()), sources=(IDS,)),
        f"{E}.patch.sources",
    ),
    Case(
        "patch from a source not given",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0]))),
        f"{E}.patch.sources[0]",
        ("0",),
    ),
    Case(
        "source beyond",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0, 3])), sources=(IDS, IDS)),
        f"{E}.patch.sources[1]",
        ("3",),
    ),
    Case(
        "negative source",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[-1])), sources=(IDS,)),
        f"{E}.patch.sources[0]",
        ("-1",),
    ),
    Case(
        "source too short for all positions",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0])), sources=(SHORT,)),
        (f"{E}.patch", f"{E}.site.positions"),
        ("3",),
    ),
    Case(
        "source longer than the prompt and no positions",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[1, 0])), sources=([*IDS, 5, 6], IDS)),
        f"{E}.patch.source_positions",
        ("the prompt has 7 tokens and source 0 has 9: name the positions in the site",),
    ),
    Case(
        "a position before the start of a source",
        listed(pb.Edit(site=mlp(positions=[-4]), patch=pb.Patch(sources=[0])), sources=(SHORT,)),
        (f"{E}.patch", f"{E}.site.positions"),
        ("-4", "3"),
    ),
    Case(
        "source too short for a position",
        listed(pb.Edit(site=mlp(positions=[4]), patch=pb.Patch(sources=[0])), sources=(SHORT,)),
        (f"{E}.patch", f"{E}.site.positions"),
        ("4", "3"),
    ),
    Case(
        "source too short for its position",
        listed(pb.Edit(site=mlp(positions=[1]), patch=pb.Patch(sources=[0], source_positions=[3])), sources=(SHORT,)),
        f"{E}.patch.source_positions[0]",
        ("3",),
    ),
    Case(
        "a source layer that is not there",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0], source_layer=NOWHERE)), sources=(IDS,)),
        f"{E}.patch.source_layer",
        ("99",),
    ),
    Case(
        "a source layer for a component without layers",
        listed(
            pb.Edit(site=pb.Site(component=pb.COMPONENT_LOGITS), patch=pb.Patch(sources=[0], source_layer=0)),
            sources=(IDS,),
        ),
        f"{E}.patch.source_layer",
        ("LOGITS",),
    ),
    Case(
        "scores of a source of another length",
        listed(
            pb.Edit(site=mlp(component=pb.COMPONENT_ATTENTION_SCORES, positions=[-1]), patch=pb.Patch(sources=[0])),
            sources=(SHORT,),
        ),
        f"{E}.patch.sources[0]",
        ("7", "3"),
    ),
    Case(
        "unpaired source positions",
        listed(pb.Edit(site=mlp(positions=[1, 2]), patch=pb.Patch(sources=[0], source_positions=[3])), sources=(IDS,)),
        f"{E}.patch.source_positions",
        ("1", "2"),
    ),
    Case(
        "empty source",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0])), sources=([],)),
        "sources[0]",
    ),
    Case(
        "token of a source beyond the vocabulary",
        listed(pb.Edit(site=mlp(), patch=pb.Patch(sources=[0])), sources=([5, 100000],)),
        "sources[0].token_ids.ids[1]",
        ("100000",),
    ),
]
S = "sweep.edit"
SWEEPS = [
    Case("sweep without edit", swept(pb.Sweep()), S),
    Case(
        "sweep of a layer beyond", swept(pb.Sweep(edit=scaled(mlp(layers=[NOWHERE])))), f"{S}.site.layers[0]", ("99",)
    ),
    Case("sweep of no component", swept(pb.Sweep(edit=scaled(mlp(component=0)))), f"{S}.site.component"),
    Case("unspecified axis", swept(pb.Sweep(edit=scaled(mlp()), together=[pb.AXIS_UNSPECIFIED])), "sweep.together[0]"),
    Case(
        "unknown axis",
        swept(
            pb.Sweep(edit=scaled(mlp()), together=[pb.AXIS_LAYER, 8])  # type: ignore[list-item]
        ),
        "sweep.together[1]",
        ("8",),
    ),
    Case(
        "window of none",
        swept(pb.Sweep(edit=scaled(mlp()), layer_window=0)),
        "sweep.layer_window",
        ("got 0 (leave it unset",),
    ),
    Case("negative window", swept(pb.Sweep(edit=scaled(mlp()), layer_window=-2)), "sweep.layer_window", ("-2",)),
    Case(
        "always names no layer",
        swept(pb.Sweep(edit=scaled(mlp()), always=[scaled(mlp()), scaled(mlp(layers=[]))])),
        "sweep.always[1].site.layers",
    ),
    Case(
        "value of all positions where a run has one",
        swept(pb.Sweep(edit=pb.Edit(site=mlp(), set=shaped([7, 48], 336)))),
        f"{S}.set",
        ("7",),
    ),
    Case(
        "sweep patches from a short source",
        swept(pb.Sweep(edit=pb.Edit(site=mlp(), patch=pb.Patch(sources=[0]))), sources=(SHORT,)),
        (f"{S}.patch", f"{S}.site.positions"),
        ("3",),
    ),
    Case(
        "sweep's unpaired source positions",
        swept(pb.Sweep(edit=pb.Edit(site=mlp(), patch=pb.Patch(sources=[0], source_positions=[1]))), sources=(IDS,)),
        f"{S}.patch.source_positions",
        ("1", "7"),
    ),
]
READOUTS = [
    Case("no plan", pb.InterveneRequest(prompt=wire.prompt(IDS)), ("list", "sweep", "plan")),
    Case("empty list", pb.InterveneRequest(prompt=wire.prompt(IDS), list=pb.InterventionList()), "list.interventions"),
    Case("negative top_k", listed(scaled(mlp()), top_k=-1), "readout.top_k", ("-1",)),
    Case("read beyond", listed(scaled(mlp()), position=7), "readout.position", ("7",)),
    Case("read before", listed(scaled(mlp()), position=-8), "readout.position", ("-8",)),
    Case("no target token", listed(scaled(mlp()), targets=[pb.Target()]), "readout.targets[0]"),
    Case(
        "target id beyond",
        listed(scaled(mlp()), targets=[pb.Target(id=1), pb.Target(id=100000)]),
        "readout.targets[1].id",
        ("100000",),
    ),
    Case("negative target id", listed(scaled(mlp()), targets=[pb.Target(id=-5)]), "readout.targets[0].id", ("-5",)),
    Case(
        "contrast id beyond",
        listed(scaled(mlp()), targets=[pb.Target(id=1, contrast_id=100000)]),
        "readout.targets[0].contrast_id",
        ("100000",),
    ),
    Case(
        "target of several tokens",
        listed(scaled(mlp()), targets=[pb.Target(text=" Paris Rome")]),
        "readout.targets[0].text",
        ("Paris", "Rome"),
    ),
    Case(
        "contrast of several tokens",
        listed(scaled(mlp()), targets=[pb.Target(id=1, contrast_text=" Paris Rome")]),
        "readout.targets[0].contrast_text",
        ("Paris", "Rome"),
    ),
    Case("target of no tokens", listed(scaled(mlp()), targets=[pb.Target(text="")]), "readout.targets[0].text"),
    Case(
        "activation of no component",
        listed(scaled(mlp()), activations=[mlp(), mlp(component=0)]),
        "readout.activations[1].component",
    ),
    Case(
        "activation of a layer beyond",
        listed(scaled(mlp()), activations=[mlp(layers=[NOWHERE])]),
        "readout.activations[0].layers[0]",
        ("99",),
    ),
    Case(
        "activation from a position on",
        listed(scaled(mlp()), activations=[mlp(from_position=2)]),
        "readout.activations[0].from_position",
    ),
]
PROMPTS = [
    Case("no prompt", pb.TraceRequest(), "prompt"),
    Case("prompt without input", traced(pb.Prompt()), "prompt"),
    Case("no tokens", traced(pb.Prompt(token_ids=pb.TokenIds())), "prompt.token_ids"),
    Case("token beyond the vocabulary", traced(wire.prompt([5, 100000])), "prompt.token_ids.ids[1]", ("100000",)),
    Case("negative token", traced(wire.prompt([-1, 5])), "prompt.token_ids.ids[0]", ("-1",)),
    Case("too many tokens", traced(wire.prompt([5] * 97)), "prompt", ("97",)),
    Case("an image", traced(pb.Prompt(text="a", image=b"\x89PNG")), "prompt.image"),
]
TRACES = [
    Case("negative top_k", traced(top_k=-3), "top_k", ("-3",)),
    Case("read beyond", traced(position=7), "position", ("7",)),
    Case("target of several tokens", traced(targets=[pb.Target(text=" Paris Rome")]), "targets[0].text", ("Paris",)),
    Case("target id beyond", traced(targets=[pb.Target(id=100000)]), "targets[0].id", ("100000",)),
    Case(
        "unknown metric",
        traced(token_probability=pb.TokenProbability(gradient_norms=True, metric=9)),  # type: ignore[arg-type]
        "token_probability.metric",
        ("9",),
    ),
    Case("activations of no site", traced(activations=pb.Activations()), "activations.sites"),
    Case(
        "activation of a layer beyond",
        traced(activations=pb.Activations(sites=[mlp(), mlp(layers=[NOWHERE])])),
        "activations.sites[1].layers[0]",
        ("99",),
    ),
    Case(
        "activation of a unit beyond",
        traced(activations=pb.Activations(sites=[mlp(units=[48])])),
        "activations.sites[0].units[0]",
        ("48",),
    ),
]
C = "causal_tracing"
TRACINGS = [
    Case(
        "no subject", traced(causal_tracing=pb.CausalTracing()), (f"{C}.subject", C), ("expected a subject", "got none")
    ),
    Case(
        "no subject positions",
        tracing(subject_positions=pb.PositionList()),
        f"{C}.subject_positions",
    ),
    Case(
        "subject position beyond",
        tracing(subject_positions=pb.PositionList(positions=[1, 7])),
        f"{C}.subject_positions.positions[1]",
        ("7",),
    ),
    Case(
        "subject not in the prompt",
        tracing(prompt=wire.prompt("The Colosseum is in the city of"), subject_text="Eiffel"),
        f"{C}.subject_text",
        ("Eiffel",),
    ),
    Case("empty subject", tracing(prompt=wire.prompt("The Colosseum"), subject_text=""), f"{C}.subject_text"),
    Case("no samples", gaussian(samples=0), f"{C}.gaussian.samples", ("0",)),
    Case("negative samples", gaussian(samples=-3), f"{C}.gaussian.samples", ("-3",)),
    Case("negative seed", gaussian(seed=-1), f"{C}.gaussian.seed", ("-1",)),
    Case("seed of 33 bits", gaussian(seed=2**32), f"{C}.gaussian.seed", (str(2**32),)),
    Case("negative deviations", gaussian(deviations=-3.0), f"{C}.gaussian.deviations", ("-3",)),
    Case("deviations NaN", gaussian(deviations=NAN), f"{C}.gaussian.deviations"),
    Case("infinite deviation", gaussian(standard_deviation=INF), f"{C}.gaussian.standard_deviation"),
    Case("no window", tracing(window=0), f"{C}.window", ("0",)),
    Case("negative window", tracing(window=-10), f"{C}.window", ("-10",)),
    Case("layer beyond", tracing(layers=[0, NOWHERE]), f"{C}.layers[1]", ("99",)),
    Case("position beyond", tracing(positions=[NOWHERE]), f"{C}.positions[0]", ("99",)),
    Case("no component", tracing(components=[pb.COMPONENT_MLP_OUT, 0]), f"{C}.components[1]"),
    Case("unknown component", tracing(components=[55]), f"{C}.components[0]", ("55",)),
    Case("noise of two axes", tracing(noise=shaped([1, 48], 48)), f"{C}.noise", ("48",)),
    Case("noise for other positions", tracing(noise=shaped([2, 3, 48], 288)), f"{C}.noise", ("3", "1")),
    Case("noise of another width", tracing(noise=shaped([2, 1, 47], 94)), f"{C}.noise", ("47", "48")),
    Case("noise of no samples", tracing(noise=shaped([0, 1, 48], 0)), f"{C}.noise"),
    Case("noise NaN", tracing(noise=wire.tensor(np.full((1, 1, 48), np.nan))), f"{C}.noise"),
    Case("noise short of its shape", tracing(noise=shaped([1, 1, 48], 47)), f"{C}.noise", ("188", "192")),
    Case(
        "counterfactual of another length",
        tracing(counterfactual=wire.prompt(SHORT)),
        f"{C}.counterfactual",
        ("3", "7"),
    ),
    Case("counterfactual that is the prompt", tracing(counterfactual=wire.prompt(IDS)), f"{C}.counterfactual"),
    Case(
        "counterfactual with a subject",
        tracing(counterfactual=wire.prompt([6, *IDS[1:]]), subject_positions=pb.PositionList(positions=[0])),
        (f"{C}.subject", f"{C}.counterfactual"),
    ),
]


def call(host: Host, request: Request) -> Any:
    if isinstance(request, pb.TraceRequest):
        return host.stub.Trace(request, timeout=DEADLINE)
    return host.stub.Intervene(request, timeout=DEADLINE)


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(host: Host, case: Case) -> None:
    request = case.request(host) if callable(case.request) else case.request
    refused = wire.refusal(call(host, request))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT, (refused.code, refused.message)
    assert refused.reasons, "no ErrorInfo"
    assert all(refused.reasons)
    wanted = (case.field,) if isinstance(case.field, str) else case.field
    found = {field: text for field, text in refused.violations.items() if field.startswith(wanted)}
    assert found, f"{wanted} expected, named were {refused.violations}"
    description = " ".join([*found, *found.values()])
    for word in case.words:
        assert word in description, f"{word!r} is not in {description!r}"
    assert all(len(text.split()) > 2 for text in found.values()), "a description says what would do"
    assert refused.message


@named(SITES)
def test_sites(host: Host, case: Case) -> None:
    check(host, case)


@named(OPERATIONS)
def test_operations(host: Host, case: Case) -> None:
    check(host, case)


@named(PATCHES)
def test_patches(host: Host, case: Case) -> None:
    check(host, case)


@named(SWEEPS)
def test_sweeps(host: Host, case: Case) -> None:
    check(host, case)


@named(READOUTS)
def test_readouts(host: Host, case: Case) -> None:
    check(host, case)


@named(PROMPTS)
def test_prompts(host: Host, case: Case) -> None:
    check(host, case)


@named(TRACES)
def test_traces(host: Host, case: Case) -> None:
    check(host, case)


@named(TRACINGS)
def test_tracings(host: Host, case: Case) -> None:
    check(host, case)


def test_a_text_of_no_tokens(gpt2: Host) -> None:
    check(gpt2, Case("empty", traced(pb.Prompt(text="")), "prompt"))


def test_a_text_of_too_many_tokens(host: Host) -> None:
    length = host.model_info().max_positions + 1
    text = " Paris" * length
    given = len(host.ids(text))
    check(host, Case("long", traced(pb.Prompt(text=text)), "prompt", (str(given), str(length - 1))))


def test_a_long_prompt_up_to_the_limit_is_answered(host: Host) -> None:
    most = host.model_info().max_positions
    answer = host.trace(traced(wire.prompt([5] * most)))
    assert len(answer.context.tokens) == most


def test_the_path_counts_interventions_and_edits(host: Host) -> None:
    good = Edit(Site("MLP_OUT", (1,)), oracle.Scale(0.5))
    plan = [[good], [good], [good], [good, Edit(Site("NEURON", (0, NOWHERE)), oracle.Scale(0.5))]]
    request = wire.intervene(IDS, plan, TARGETS)
    check(host, Case("deep", request, "list.interventions[3].edits[1].site.layers[1]", ("99",)))


def test_several_violations_are_told_together(host: Host) -> None:
    request = listed(scaled(mlp(layers=[NOWHERE])), scaled(mlp(units=[NOWHERE])), top_k=-1)
    violations = wire.refusal(call(host, request)).violations
    assert {f"{E}.site.layers[0]", "list.interventions[0].edits[1].site.units[0]", "readout.top_k"} <= set(violations)


def test_a_dry_run_is_checked_as_well(host: Host) -> None:
    request = listed(scaled(mlp(layers=[NOWHERE])))
    request.dry_run = True
    check(host, Case("dry", request, f"{E}.site.layers[0]", ("99",)))


@pytest.mark.parametrize("stack", [pb.STACK_TEXT_ENCODER, pb.STACK_VISION_ENCODER])
def test_a_stack_that_the_model_does_not_have(host: Host, stack: int) -> None:
    refused = wire.refusal(call(host, listed(scaled(mlp(stack=stack)))))
    assert refused.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    assert refused.reasons


def attributed(**fields: Any) -> pb.TraceRequest:
    """An attribution patching of MLPs, with some fields otherwise."""
    given = {"source": wire.prompt(IDS), "components": [pb.COMPONENT_MLP_OUT], **fields}
    return traced(attribution_patching=pb.AttributionPatching(**given))


A = "attribution_patching"
EDGES = pb.AttributionPatching.Edges()
ATTRIBUTIONS = [
    Case("no source", attributed(source=None), f"{A}.source"),
    Case("source of another length", attributed(source=wire.prompt(SHORT)), f"{A}.source", ("3", "7")),
    Case(
        "token of the source beyond", attributed(source=wire.prompt([1] * 6 + [10**6])), f"{A}.source.token_ids.ids[6]"
    ),
    Case("no component", attributed(components=[]), f"{A}.components", ("edges",)),
    Case("unspecified component", attributed(components=[0]), f"{A}.components[0]"),
    Case("unknown component", attributed(components=[6, 77]), f"{A}.components[1]", ("77",)),
    Case("component twice", attributed(components=[6, 5, 6]), f"{A}.components[2]", ("twice",)),
    Case("negative steps", attributed(integration_steps=-1), f"{A}.integration_steps", ("-1",)),
    Case("too many steps", attributed(integration_steps=2**30), A, ("runs",)),
    Case("unknown metric", attributed(metric=9), f"{A}.metric", ("9",)),
    Case("negative verification", attributed(verify_top=-2), f"{A}.verify_top", ("-2",)),
    Case("edges verified", attributed(components=[], edges=EDGES, verify_top=2), f"{A}.verify_top"),
    Case("negative edges", attributed(edges=pb.AttributionPatching.Edges(top=-1)), f"{A}.edges.top", ("-1",)),
    Case("softmax of neither", attributed(recompute_softmax=True), f"{A}.recompute_softmax", ("QUERY", "KEY")),
    Case("dropped and integrated", attributed(drop_layers=True, integration_steps=2), f"{A}.drop_layers"),
    Case("unknown integration", attributed(integration=7), f"{A}.integration", ("7", "ENDS")),
    Case(
        "activations without edges", attributed(integration=1, integration_steps=2, components=[]), f"{A}.integration"
    ),
    Case(
        "activations of components",
        attributed(integration=1, integration_steps=2, edges=EDGES),
        f"{A}.integration",
        ("both",),
    ),
    Case(
        "activations in one step",
        attributed(integration=1, integration_steps=1, components=[], edges=EDGES),
        f"{A}.integration_steps",
        ("2", "1"),
    ),
    Case("steps between ends", attributed(integration=2, integration_steps=3), f"{A}.integration_steps", ("3",)),
    Case("dropped at both ends", attributed(integration=2, drop_layers=True), f"{A}.drop_layers"),
    Case("dropped edges", attributed(drop_layers=True, edges=EDGES), f"{A}.drop_layers"),
    Case(
        "more at a position than a message holds",
        traced(
            targets=[pb.Target(id=41)] * 4000,
            attribution_patching=pb.AttributionPatching(source=wire.prompt(IDS), components=[pb.COMPONENT_LOGITS, 13]),
        ),
        f"{A}.components",
        ("4000",),
    ),
]


@pytest.mark.parametrize("case", ATTRIBUTIONS, ids=lambda case: case.name)
def test_attributions(host: Host, case: Case) -> None:
    check(host, case)


def cases(*prompts: list[int] | None, **fields: Any) -> pb.TraceRequest:
    """A trace of several prompts, of which None is missing."""
    several = [pb.Case() if prompt is None else pb.Case(prompt=wire.prompt(prompt)) for prompt in prompts]
    return pb.TraceRequest(cases=several, **fields)


END = pb.NamedPositions(part=pb.SPAN_PART_LAST)
DATASETS = [
    Case("case without prompt", cases(IDS, None), "cases[1].prompt", ("text",)),
    Case("token of a case beyond", cases(IDS, IDS, [1, 10**6]), "cases[2].prompt.token_ids.ids[1]", ("1000000",)),
    Case("prompt beside cases", traced(cases=cases(IDS).cases), "prompt", ("cases",)),
    Case("reduction of nothing", traced(reduction=pb.Reduction()), "reduction", ("cases",)),
    Case("a field that is wrong for all", cases(IDS, SHORT, top_k=-1), "top_k", ("-1",)),
    Case("a field that is wrong for one", cases(IDS, SHORT, position=5), "cases[1]", ("position", "5", "3 tokens")),
    Case(
        "a name that a case lacks",
        cases(IDS, SHORT, named_position=pb.NamedPositions(span="subject")),
        "cases[0].prompt.spans",
        ("'subject'", "named_position"),
    ),
    Case("both kinds of positions", traced(position=1, named_position=END), "named_position", ("both",)),
    Case(
        "no source where one is meant",
        cases(IDS, causal_tracing=pb.CausalTracing(counterfactual=pb.Prompt())),
        "cases[0].sources",
        ("one source", "got 0"),
    ),
]


@pytest.mark.parametrize("case", DATASETS, ids=lambda case: case.name)
def test_datasets(host: Host, case: Case) -> None:
    check(host, case)


def test_the_server_serves_on_after_every_refusal(host: Host) -> None:
    valid = listed(scaled(mlp()))
    before = host.intervene(copy.deepcopy(valid)).columns["log_probabilities"]
    for case in (*SITES, *OPERATIONS, *TRACINGS, *ATTRIBUTIONS, *DATASETS):
        wire.refusal(call(host, case.request(host) if callable(case.request) else case.request))
    np.testing.assert_array_equal(host.intervene(valid).columns["log_probabilities"], before)


def test_the_metaspace_tokenizer_names_the_tokens_of_a_target(hosts: Hosts) -> None:
    request = traced(targets=[pb.Target(text=" Paris Rome")])
    check(hosts["llama-metaspace"], Case("tokens", request, "targets[0].text", ("Paris", "Rome")))
