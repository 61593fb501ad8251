"""Requests of cases: a question for each, faults with the case that has them, and what a request may ask for in all."""

from typing import Any

import numpy as np
import pytest
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Limits
from sonde_server.errors import InvalidQuestion, Unsupported
from sonde_server.model.vocabulary import Vocabulary
from sonde_server.questions.activations import Activations
from sonde_server.questions.attribution_patching import AttributionPatching
from sonde_server.questions.cases import Cases, Reduction
from sonde_server.questions.causal_tracing import CausalTracing, Counterfactual
from sonde_server.questions.edits import Add, Knockout, Patch
from sonde_server.questions.interventions import InterveneQuestion
from sonde_server.questions.plans import Sweep, SweepAxes
from sonde_server.questions.prompts import Target
from sonde_server.questions.token_probability import TokenProbability
from sonde_server.questions.traces import TraceQuestion
from sonde_server.wire import decode_intervene, decode_trace

from tests.support import wire
from tests.support.reading import MODEL, VOCABULARY, told

CAT, DOG = "the cat sat on the mat", "and then the big dog ran over the hills to the town"
LAST = pb.NamedPositions(part=pb.SPAN_PART_LAST)
ANIMAL = pb.NamedPositions(span="animal")
STREAM = pb.COMPONENT_RESIDUAL_POST


def spoken(text: str, **spans: str) -> pb.Prompt:
    return pb.Prompt(text=text, spans=[pb.Span(name=name, text=where) for name, where in spans.items()])


def case(text: str = CAT, sources: tuple[pb.Prompt, ...] = (), group: str = "", **spans: str) -> pb.Case:
    return pb.Case(prompt=spoken(text, **spans), sources=sources, group=group)


TWO = [case(animal="cat"), case(DOG, animal="big dog", group="b")]


def trace(cases: list[pb.Case], limits: Limits | None = None, **fields: Any) -> Cases[TraceQuestion]:
    asked = decode_trace(pb.TraceRequest(cases=cases, **fields), MODEL, VOCABULARY, limits or Limits())
    assert isinstance(asked, Cases)
    return asked


def intervene(cases: list[pb.Case], limits: Limits | None = None, **fields: Any) -> Cases[InterveneQuestion]:
    asked = decode_intervene(pb.InterveneRequest(cases=cases, **fields), MODEL, VOCABULARY, limits or Limits())
    assert isinstance(asked, Cases)
    return asked


def listed(*edits: pb.Edit) -> pb.InterventionList:
    return pb.InterventionList(interventions=[pb.Intervention(edits=edits)])


def place(*names: pb.NamedPositions, **fields: Any) -> pb.Site:
    return pb.Site(**{"component": STREAM, "layers": [1], "named_positions": names, **fields})


def refused(request: pb.TraceRequest | pb.InterveneRequest, limits: Limits | None = None) -> dict[str, str]:
    decode: Any = decode_trace if isinstance(request, pb.TraceRequest) else decode_intervene
    with pytest.raises(InvalidQuestion) as caught:
        decode(request, MODEL, VOCABULARY, limits or Limits())
    return told(caught.value)


def positions(question: TraceQuestion | InterveneQuestion, name: str) -> tuple[int, ...]:
    return dict(question.asked.prompt.spans)[name]


# ------------------------------------------------------------------ what they mean


def test_a_case_is_the_question_that_its_prompt_alone_is() -> None:
    asked = trace(TWO, targets=[pb.Target(id=7)], top_k=3, token_probability=pb.TokenProbability(gradient_norms=True))
    assert [question.prompt.text for question in asked.questions] == [CAT, DOG]
    for question, one in zip(asked.questions, TWO, strict=True):
        alone = pb.TraceRequest(
            prompt=one.prompt, targets=[pb.Target(id=7)], top_k=3,
            token_probability=pb.TokenProbability(gradient_norms=True),
        )  # fmt: skip
        assert question == decode_trace(alone, MODEL, VOCABULARY, Limits())
    assert asked.groups == ("", "b")
    assert asked.reduction is None


def test_targets_and_sources_of_a_case_replace_those_of_the_request() -> None:
    own = case(sources=(spoken(DOG),))
    own.targets.add(id=9)
    asked = intervene(
        [case(), own],
        sources=[spoken("the town")],
        readout=pb.Readout(targets=[pb.Target(id=7)]),
        list=listed(pb.Edit(site=place(LAST), patch=pb.Patch(sources=[0]))),
    )
    assert [question.readout.targets for question in asked.questions] == [(Target(7),), (Target(9),)]
    assert [question.sources[0].text for question in asked.questions] == ["the town", DOG]


def test_names_are_the_places_of_each_prompt() -> None:
    asked = trace(TWO, named_position=LAST, activations=pb.Activations(sites=[place(ANIMAL, LAST)]))
    for question in asked.questions:
        assert question.position == question.tokens - 1
        assert isinstance(question.method, Activations)
        (site,) = question.method.sites
        animal = positions(question, "animal")
        assert site.rows == (animal, (question.tokens - 1,))
        assert site.positions == (*animal, question.tokens - 1)
        assert site.row_sizes(question.tokens) == (len(animal), 1)


def test_an_edit_is_made_once_at_a_place_that_two_names_have() -> None:
    asked = intervene([TWO[0]], list=listed(pb.Edit(site=place(ANIMAL, pb.NamedPositions(), ANIMAL), scale=0.0)))
    (question,) = asked.questions
    (edit,) = question.plan.edits
    animal = positions(question, "animal")
    rest = tuple(one for one in range(question.asked.tokens) if one not in animal)
    assert edit.site.positions == (*animal, *rest)


def test_each_entry_of_a_sweep_is_one_run() -> None:
    sweep = pb.Sweep(edit=pb.Edit(site=place(ANIMAL, LAST, layers=[]), scale=0.0))
    asked = intervene(TWO, sweep=sweep)
    for question in asked.questions:
        plan, last = question.plan, question.asked.tokens - 1
        assert isinstance(plan, Sweep)
        runs = [edits[0].site for edits in plan.runs(MODEL.layers)]
        assert plan.count == len(runs) == 2 * MODEL.layers
        assert plan.axes == SweepAxes(tuple(range(MODEL.layers)), (), (0, 1))
        rows = (positions(question, "animal"), (last,))
        assert [(site.layers, site.positions) for site in runs] == [
            ((layer,), row) for layer in range(MODEL.layers) for row in rows
        ]
    together = pb.Sweep(edit=sweep.edit, together=[pb.AXIS_POSITION])
    for question in intervene(TWO, sweep=together).questions:
        assert question.plan.count == MODEL.layers
        (edit,) = next(iter(question.plan.runs(MODEL.layers)))
        assert edit.site.positions == (*positions(question, "animal"), question.asked.tokens - 1)


def test_values_have_to_fit_every_entry_of_a_sweep() -> None:
    def asked(shape: tuple[int, ...]) -> pb.InterveneRequest:
        edit = pb.Edit(site=place(ANIMAL, LAST), add=wire.tensor(np.ones(shape)))
        return pb.InterveneRequest(prompt=spoken(DOG, animal="big dog"), sweep=pb.Sweep(edit=edit))

    decode_intervene(asked((MODEL.hidden_size,)), MODEL, VOCABULARY, Limits())
    entry = len(VOCABULARY.encode("big dog").tokens)
    assert entry > 1
    assert "broadcasts" in refused(asked((entry, MODEL.hidden_size)))["sweep.edit.add.shape"]


def test_a_patch_finds_the_names_of_its_site_in_each_source() -> None:
    first = pb.NamedPositions(span="animal", part=pb.SPAN_PART_FIRST)
    source = spoken(DOG, animal="big dog")
    cases = [case(animal="cat", sources=(source,)), case(DOG, animal="big dog", sources=(spoken(CAT, animal="cat"),))]
    for given in (pb.Patch(sources=[0]), pb.Patch(sources=[0], named_source_positions=[first, LAST])):
        edit = pb.Edit(site=place(first, LAST), patch=given)
        for asked in (intervene(cases, list=listed(edit)), intervene(cases, sweep=pb.Sweep(edit=edit))):
            for question in asked.questions:
                there = dict(question.sources[0].spans)["animal"][0], len(question.sources[0].tokens) - 1
                taken = [
                    question.source_positions(edits[0].site, edits[0].operation, 0)
                    for edits in question.plan.runs(MODEL.layers)
                    if isinstance(edits[0].operation, Patch)
                ]
                assert tuple(position for row in taken for position in row) == there


def test_source_positions_by_number_pair_with_entries() -> None:
    patch = pb.Patch(sources=[0, 1], source_positions=[0, -1])
    edit = pb.Edit(site=place(pb.NamedPositions(part=pb.SPAN_PART_FIRST), LAST), patch=patch)
    asked = intervene([case()], sources=[spoken(DOG), spoken("the town")], sweep=pb.Sweep(edit=edit))
    (question,) = asked.questions
    lengths = [len(source.tokens) for source in question.sources]
    for number, edits in enumerate(question.plan.runs(MODEL.layers)):
        operation = edits[0].operation
        assert isinstance(operation, Patch)
        assert operation.positions == (((0,), (0,)) if number == 0 else ((lengths[0] - 1,), (lengths[1] - 1,)))


def test_keys_and_what_goes_on_have_names_too() -> None:
    scores = pb.Edit(
        site=place(LAST, component=pb.COMPONENT_ATTENTION_SCORES),
        knockout=pb.Knockout(named_key_positions=[ANIMAL, pb.NamedPositions(part=pb.SPAN_PART_FIRST)]),
    )
    on = pb.Edit(site=pb.Site(component=STREAM, layers=[1], named_from_position=LAST), scale=2.0)
    for question in intervene(TWO, list=listed(scores, on)).questions:
        knockout, going = question.plan.edits
        assert knockout.operation == Knockout((*positions(question, "animal"), 0))
        assert going.site.from_position == question.asked.tokens - 1
        assert going.site.positions is None


def test_a_causal_trace_has_the_rows_of_the_papers_figure_where_it_is_reduced() -> None:
    asked = trace(TWO, reduction=pb.Reduction(), causal_tracing=pb.CausalTracing(named_subject=ANIMAL))
    for question in asked.questions:
        method, tokens = question.method, question.tokens
        assert isinstance(method, CausalTracing)
        subject = positions(question, "animal")
        assert method.subject == subject
        first, *middle, last = subject if len(subject) > 1 else (*subject, *subject)
        assert method.rows == (
            (first,), tuple(middle), (last,), (last + 1,), tuple(range(last + 2, tokens - 1)), (tokens - 1,),
        )  # fmt: skip
        assert sorted(method.positions) == list(range(first, tokens))
        assert len(set(method.positions)) == len(method.positions)


def test_without_reduction_named_positions_of_a_trace_come_once() -> None:
    method = pb.CausalTracing(named_subject=ANIMAL, named_positions=[ANIMAL, LAST, ANIMAL])
    for question in trace(TWO, causal_tracing=method).questions:
        assert isinstance(question.method, CausalTracing)
        assert question.method.positions == (*positions(question, "animal"), question.tokens - 1)
        assert question.method.rows is None
    lens = pb.TokenProbability(named_positions=[ANIMAL, pb.NamedPositions()])
    for question in trace(TWO, token_probability=lens).questions:
        assert isinstance(question.method, TokenProbability)
        assert question.method.rows is not None
        assert sorted(question.method.rows) == [(position,) for position in range(question.tokens)]
    for question in trace(TWO, token_probability=lens, reduction=pb.Reduction()).questions:
        assert isinstance(question.method, TokenProbability)
        assert question.method.rows == (positions(question, "animal"), tuple(range(question.tokens)))


def test_a_method_without_a_prompt_of_its_own_takes_the_cases_source() -> None:
    other = spoken("the mat sat on the cat")
    cases = [case(sources=(other,))]
    (question,) = trace(cases, causal_tracing=pb.CausalTracing(counterfactual=pb.Prompt())).questions
    assert isinstance(question.method, CausalTracing)
    assert isinstance(question.method.corruption, Counterfactual)
    assert question.method.corruption.prompt.text == other.text
    patching = pb.AttributionPatching(components=[STREAM], named_positions=[LAST])
    (question,) = trace(cases, attribution_patching=patching).questions
    assert isinstance(question.method, AttributionPatching)
    assert question.method.source.text == other.text
    assert question.method.rows == ((question.tokens - 1,),)


def test_all_cases_share_what_does_not_depend_on_them() -> None:
    vector = pb.Edit(site=place(LAST), add=wire.tensor(np.ones(MODEL.hidden_size)))
    asked = intervene(TWO, sources=[spoken(DOG)], list=listed(vector))
    values = [question.plan.edits[0].operation for question in asked.questions]
    assert all(isinstance(one, Add) for one in values)
    assert len({id(one.values) for one in values if isinstance(one, Add)}) == 1
    assert asked.questions[0].sources[0] is asked.questions[1].sources[0]
    prompts = sum(question.asked.tokens for question in asked.questions)
    assert asked.cost(MODEL).tokens == prompts + len(VOCABULARY.encode(DOG).tokens)


def test_the_cost_is_that_of_all_cases() -> None:
    asked = trace(TWO, causal_tracing=pb.CausalTracing(named_subject=ANIMAL))
    costs = [question.cost(MODEL) for question in asked.questions]
    total = asked.cost(MODEL)
    assert (total.cases, total.tokens) == (2, sum(question.tokens for question in asked.questions))
    for name in ("runs", "token_layers", "full_token_layers", "answer_bytes"):
        assert getattr(total, name) == sum(getattr(cost, name) for cost in costs)


@pytest.mark.parametrize("count", [2, 40])
def test_the_size_of_statistics_does_not_grow_with_the_cases(count: int) -> None:
    method = pb.Activations(sites=[place(ANIMAL)])
    cases = [case(animal="cat", group="ab"[number % 2]) for number in range(count)]
    asked = trace(cases, reduction=pb.Reduction(), activations=method)
    one = trace(cases[:1], reduction=pb.Reduction(), activations=method)
    assert asked.answer_bytes(MODEL) == 2 * one.answer_bytes(MODEL)


# ------------------------------------------------------------------ faults


def test_a_fault_of_a_case_is_told_with_its_number() -> None:
    cases = [*TWO, pb.Case(), case("x", wrong="nowhere"), pb.Case(prompt=pb.Prompt(text=CAT), targets=[pb.Target()])]
    found = refused(pb.TraceRequest(cases=cases, activations=pb.Activations(sites=[pb.Site(component=STREAM)])))
    assert set(found) == {"cases[2].prompt", "cases[3].prompt.spans[0].text", "cases[4].targets[0]"}


def test_a_name_that_a_case_lacks_is_told_with_the_field_that_wants_it() -> None:
    cases = [*TWO, case(cat="cat", mat="mat")]
    asked = pb.InterveneRequest(cases=cases, list=listed(pb.Edit(site=place(ANIMAL), scale=0.0)))
    field = "list.interventions[0].edits[0].site.named_positions[0]"
    text = f"expected a span 'animal', which {field} names, got 'cat', 'mat'"
    assert refused(asked) == {"cases[2].prompt.spans": text}


def test_a_name_that_a_source_lacks_is_told_there() -> None:
    edit = pb.Edit(site=place(ANIMAL), patch=pb.Patch(sources=[0]))
    own = [case(animal="cat", sources=(spoken(DOG),))]
    assert set(refused(pb.InterveneRequest(cases=own, list=listed(edit)))) == {"cases[0].sources[0].spans"}
    shared = pb.InterveneRequest(cases=TWO, sources=[spoken(DOG)], list=listed(edit))
    assert set(refused(shared)) == {"sources[0].spans"}


def test_a_field_that_is_wrong_for_every_case_is_told_once() -> None:
    sites = [pb.Site(component=STREAM, layers=[9], positions=[99])]
    found = refused(pb.TraceRequest(cases=TWO, top_k=-1, activations=pb.Activations(sites=sites)))
    assert set(found) == {"top_k", "activations.sites[0].layers[0]", "activations.sites[0].positions[0]"}


def test_a_field_that_is_wrong_for_some_cases_is_told_with_them() -> None:
    tokens = len(VOCABULARY.encode(CAT).tokens)
    found = refused(pb.TraceRequest(cases=[*TWO, TWO[0]], position=tokens))
    assert set(found) == {"cases[0]", "cases[2]"}
    assert found["cases[0]"].startswith(f"position: expected a position from -{tokens}")


def test_cases_that_are_all_wrong_take_no_longer_than_a_few() -> None:
    """Not measured in time: what is counted is how many texts are read."""

    class Counting(Vocabulary):
        read = 0

        def encode(self, text: str, image: Any = None) -> Any:
            Counting.read += 1
            return super().encode(text, image)

    vocabulary = Counting(VOCABULARY.tokenizer, VOCABULARY.size)
    asked = pb.TraceRequest(cases=[case(f"{CAT} {number}") for number in range(1000)], top_k=-1)
    with pytest.raises(InvalidQuestion) as caught:
        decode_trace(asked, MODEL, vocabulary, Limits())
    assert set(told(caught.value)) == {"top_k"}
    assert Counting.read <= 16


def test_what_the_model_lacks_is_told_once() -> None:
    chat = pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")]))
    with pytest.raises(Unsupported, match=r"^cases\[1\]\.prompt\.chat: "):
        trace([TWO[0], pb.Case(prompt=chat), pb.Case(prompt=chat)])


BOTH = pb.NamedPositions()
PATCH = pb.Patch(sources=[0], source_positions=[0], named_source_positions=[LAST])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.TraceRequest(prompt=spoken(CAT), cases=TWO), "prompt"),
        (pb.InterveneRequest(prompt=spoken(CAT), cases=TWO, list=listed(pb.Edit(site=place(LAST), scale=0))), "prompt"),
        (pb.TraceRequest(prompt=spoken(CAT), reduction=pb.Reduction()), "reduction"),
        (pb.TraceRequest(prompt=spoken(CAT), position=1, named_position=LAST), "named_position"),
        (pb.TraceRequest(prompt=spoken(CAT), named_position=BOTH), "named_position"),
        (
            pb.TraceRequest(
                prompt=spoken(CAT), activations=pb.Activations(sites=[place(LAST, positions=[0], layers=[])])
            ),
            "activations.sites[0].named_positions",
        ),
        (
            pb.InterveneRequest(
                prompt=spoken(CAT), list=listed(pb.Edit(site=place(LAST, named_from_position=LAST), scale=0))
            ),
            "list.interventions[0].edits[0].site.named_from_position",
        ),
        (
            pb.InterveneRequest(
                prompt=spoken(CAT), list=listed(pb.Edit(site=place(pb.NamedPositions(part=pb.SPAN_PART_NEXT)), scale=0))
            ),
            "list.interventions[0].edits[0].site.named_positions[0]",
        ),
        (
            pb.InterveneRequest(
                prompt=spoken(CAT), sources=[spoken(DOG)], list=listed(pb.Edit(site=place(LAST), patch=PATCH))
            ),
            "list.interventions[0].edits[0].patch.named_source_positions",
        ),
        (
            pb.InterveneRequest(
                prompt=spoken(CAT),
                sources=[spoken(DOG)],
                list=listed(pb.Edit(site=place(BOTH), patch=pb.Patch(sources=[0]))),
            ),
            "list.interventions[0].edits[0].site.named_positions",
        ),
        (
            pb.TraceRequest(
                prompt=spoken(CAT),
                token_probability=pb.TokenProbability(positions=[0], named_positions=[LAST]),
            ),
            "token_probability.named_positions",
        ),
        (
            pb.TraceRequest(
                prompt=spoken(CAT),
                causal_tracing=pb.CausalTracing(named_subject=LAST, positions=[0], named_positions=[LAST]),
            ),
            "causal_tracing.named_positions",
        ),
        (
            pb.TraceRequest(
                prompt=spoken(CAT),
                causal_tracing=pb.CausalTracing(named_subject=pb.NamedPositions(part=pb.SPAN_PART_NEXT)),
            ),
            "causal_tracing.named_subject[0]",
        ),
        (pb.TraceRequest(cases=TWO, causal_tracing=pb.CausalTracing(counterfactual=pb.Prompt())), "cases[0].sources"),
        (
            pb.TraceRequest(cases=TWO, attribution_patching=pb.AttributionPatching(components=[STREAM])),
            "cases[0].sources",
        ),
        (
            pb.TraceRequest(
                cases=[case(sources=(spoken(DOG),))],
                causal_tracing=pb.CausalTracing(counterfactual=pb.Prompt()),
            ),
            "cases[0].sources[0]",
        ),
    ],
)  # fmt: skip
def test_what_excludes_each_other_or_lacks_something_is_refused(
    request_: pb.TraceRequest | pb.InterveneRequest, field: str
) -> None:
    assert field in refused(request_)


# ------------------------------------------------------------------ reductions


def test_a_reduction_is_read() -> None:
    asked = trace(TWO, reduction=pb.Reduction(every=5, largest=9), activations=pb.Activations(sites=[place(ANIMAL)]))
    assert asked.reduction == Reduction(5, 9)
    assert asked.groups == ("", "b")


SCORES = pb.Site(component=pb.COMPONENT_ATTENTION_PATTERN)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"reduction": pb.Reduction(every=-1)}, "reduction.every"),
        ({"reduction": pb.Reduction(largest=-1)}, "reduction.largest"),
        ({"reduction": pb.Reduction(largest=1001)}, "reduction.largest"),
        ({"reduction": pb.Reduction(largest=3)}, "reduction.largest"),
        ({"top_k": 3}, "top_k"),
        ({"causal_tracing": pb.CausalTracing(named_subject=ANIMAL, per_sample=True)}, "causal_tracing.per_sample"),
        ({"activations": pb.Activations(sites=[SCORES])}, "activations.sites"),
        (
            {"attribution_patching": pb.AttributionPatching(source=spoken(CAT), components=[STREAM], verify_top=2)},
            "attribution_patching.verify_top",
        ),
    ],
)
def test_what_has_no_statistics_is_refused_in_a_trace(fields: dict[str, Any], field: str) -> None:
    assert field in refused(pb.TraceRequest(**{"cases": [TWO[0]] * 2, "reduction": pb.Reduction(), **fields}))


@pytest.mark.parametrize(
    ("readout", "reduction", "field"),
    [
        ({"top_k": 1}, {}, "readout.top_k"),
        ({"generation": pb.Generation(max_new_tokens=2)}, {}, "readout.generation"),
        ({"activations": [SCORES]}, {}, "readout.activations"),
        ({}, {"largest": 3}, "reduction.largest"),
    ],
)
def test_what_has_no_statistics_is_refused_of_changed_runs(
    readout: dict[str, Any], reduction: dict[str, Any], field: str
) -> None:
    asked = pb.InterveneRequest(
        cases=TWO,
        reduction=pb.Reduction(**reduction),
        readout=pb.Readout(**readout),
        list=listed(pb.Edit(site=place(LAST), scale=0.0)),
    )
    assert field in refused(asked)


def test_the_first_case_that_is_unlike_the_others_is_named() -> None:
    more = case()
    more.targets.extend([pb.Target(id=1), pb.Target(id=2)])
    found = refused(pb.TraceRequest(cases=[case(), more, more], reduction=pb.Reduction()))
    assert set(found) == {"cases[1].targets"}
    assert found["cases[1].targets"].startswith("expected 1 targets in every case of a reduction")
    every = pb.Sweep(edit=pb.Edit(site=pb.Site(component=STREAM), scale=0.0))
    found = refused(pb.InterveneRequest(cases=[TWO[0], TWO[0], TWO[1]], reduction=pb.Reduction(), sweep=every))
    assert set(found) == {"cases[2]"}
    assert "runs in every case" in found["cases[2]"]


# ------------------------------------------------------------------ limits


def test_a_request_has_so_many_cases_and_tokens_at_most() -> None:
    tokens = len(VOCABULARY.encode(CAT).tokens)
    several = [case()] * 5
    trace(several, Limits(max_cases=5, max_total_tokens=5 * tokens))
    assert "at most 4 cases, got 5" in refused(pb.TraceRequest(cases=several), Limits(max_cases=4))["cases"]
    found = refused(pb.TraceRequest(cases=several), Limits(max_total_tokens=5 * tokens - 1))
    assert f"at least {5 * tokens} tokens in all; the limit is {5 * tokens - 1}" in found["cases"]
    single = pb.InterveneRequest(
        prompt=spoken(CAT), sources=[spoken(CAT)], list=listed(pb.Edit(site=place(LAST), scale=0.0))
    )
    assert "sources" in refused(single, Limits(max_total_tokens=2 * tokens - 1))


def test_the_limit_of_runs_is_for_each_case_and_that_of_bytes_for_all() -> None:
    sweep = pb.Sweep(edit=pb.Edit(site=place(LAST, layers=[]), scale=0.0))
    runs = MODEL.layers
    intervene(TWO, Limits(max_runs=runs), sweep=sweep)
    assert "sweep" in refused(pb.InterveneRequest(cases=TWO, sweep=sweep), Limits(max_runs=runs - 1))
    size = intervene(TWO, sweep=sweep).answer_bytes(MODEL)
    intervene(TWO, Limits(max_answer_bytes=size), sweep=sweep)
    assert "readout" in refused(pb.InterveneRequest(cases=TWO, sweep=sweep), Limits(max_answer_bytes=size - 1))
