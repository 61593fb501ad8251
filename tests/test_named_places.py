"""Named positions give the numbers of the positions that they name, in every part of the contract that takes names."""

from typing import Any

import numpy as np
import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import Host
from tests.support import wire
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
LONGER = [17, 18, 250, 305, 61, 2, 99, 101, 307]
SAME_LENGTH = [8, 131, 70, 12, 299, 261, 40]
SPANS = {"subject": [1, 2], "gap": [0, 3, 5]}
TARGET = [pb.Target(id=41)]
STREAM = pb.COMPONENT_RESIDUAL_POST


def spanned(ids: list[int], **spans: list[int]) -> pb.Prompt:
    prompt = wire.prompt(ids)
    for name, positions in (spans or SPANS).items():
        prompt.spans.add(name=name, positions=pb.PositionList(positions=positions))
    return prompt


def named(span: str = "", part: str = "UNSPECIFIED") -> pb.NamedPositions:
    return pb.NamedPositions(span=span, part=pb.SpanPart.Value(f"SPAN_PART_{part}"))


def trace(host: Host, **fields: Any) -> wire.Answer:
    return host.trace(pb.TraceRequest(**{"prompt": spanned(IDS), "targets": TARGET, **fields}))


def intervene(host: Host, **fields: Any) -> wire.Answer:
    readout = fields.pop("readout", pb.Readout(targets=TARGET))
    return host.intervene(pb.InterveneRequest(**{"prompt": spanned(IDS), "readout": readout, **fields}))


def listed(*edits: pb.Edit) -> pb.InterventionList:
    return pb.InterventionList(interventions=[pb.Intervention(edits=edits)])


def site(**fields: Any) -> pb.Site:
    return pb.Site(**{"component": STREAM, "layers": [1], **fields})


def test_the_context_has_the_spans(gpt2: Host) -> None:
    found = {span.name: list(span.positions) for span in trace(gpt2).context.spans}
    assert found == SPANS
    assert trace(gpt2).context.cost.tokens == len(IDS)


def test_the_position_that_is_read(host: Host) -> None:
    there = trace(host, named_position=named("subject", "LAST")).context
    assert there.position == 2
    assert there.clean == trace(host, position=2).context.clean
    readout = pb.Readout(targets=TARGET, named_position=named("gap", "LAST"))
    edit = listed(pb.Edit(site=site(positions=[1]), scale=0.5))
    by_name, by_number = (
        intervene(host, list=edit, readout=one) for one in (readout, pb.Readout(targets=TARGET, position=5))
    )
    np.testing.assert_array_equal(by_name.columns["logits"], by_number.columns["logits"])


def test_activations_come_in_the_order_of_the_names(host: Host) -> None:
    names = [named("gap", "MIDDLE"), named("subject"), named("subject", "LAST"), named("", "LAST")]
    components = [STREAM, pb.COMPONENT_HEAD_OUT, pb.COMPONENT_ATTENTION_PATTERN, pb.COMPONENT_LOGITS]
    sites = [
        site(component=one, layers=[] if one == pb.COMPONENT_LOGITS else [1], named_positions=names)
        for one in components
    ]
    found = trace(host, activations=pb.Activations(sites=sites)).activations
    for one in sites:
        one.ClearField("named_positions")
    whole = trace(host, activations=pb.Activations(sites=sites)).activations
    order = [3, 1, 2, 2, 6]
    for (run, number, layer), values in whole.items():
        axis = 1 if components[number] == pb.COMPONENT_ATTENTION_PATTERN else 0
        assert_close(found[run, number, layer], values.take(order, axis))


def test_edits_are_those_at_the_positions(host: Host) -> None:
    noise = pb.Noise(standard_deviation=0.5)
    scores = site(component=pb.COMPONENT_ATTENTION_SCORES, named_positions=[named("", "LAST")])
    pairs: list[tuple[pb.Site, pb.Site, dict[str, Any]]] = [
        (site(named_positions=[named("subject"), named("gap")]), site(positions=[1, 2, 0, 3, 5]), {"noise": noise}),
        (site(named_from_position=named("gap", "LAST")), site(from_position=5), {"scale": 0.3}),
        (
            scores, site(component=pb.COMPONENT_ATTENTION_SCORES, positions=[6]),
            {"knockout": pb.Knockout(named_key_positions=[named("subject"), named("", "FIRST")])},
        ),
    ]  # fmt: skip
    for by_name, by_number, operation in pairs:
        numeric = operation
        if "knockout" in operation:
            numeric = {"knockout": pb.Knockout(key_positions=[1, 2, 0])}
        first = intervene(host, list=listed(pb.Edit(site=by_name, **operation)))
        second = intervene(host, list=listed(pb.Edit(site=by_number, **numeric)))
        for column in ("logits", "edit_norms"):
            np.testing.assert_array_equal(first.columns[column], second.columns[column])


def test_a_patch_takes_the_positions_of_that_name_in_each_source(host: Host) -> None:
    """The sources are longer than the prompt, and have their spans elsewhere."""
    sources = [spanned(LONGER, subject=[4, 7]), spanned(LONGER[::-1], subject=[0, 1])]
    place = site(named_positions=[named("subject"), named("", "LAST")])
    both = listed(pb.Edit(site=place, patch=pb.Patch(sources=[0, 1])))
    found = intervene(host, sources=sources, list=both, readout=pb.Readout(targets=TARGET, activations=[site()]))
    taken = []
    for source, positions in ((LONGER, [4, 7, 8]), (LONGER[::-1], [0, 1, 8])):
        request = pb.TraceRequest(prompt=wire.prompt(source), activations=pb.Activations(sites=[site()]))
        taken.append(host.trace(request).activations[-1, 0, 1][positions])
    assert_close(found.activations[0, 0, 1][[1, 2, 6]], np.mean(taken, axis=0))
    assert_close(found.activations[0, 0, 1][[0, 3, 4, 5]], found.activations[-1, 0, 1][[0, 3, 4, 5]])


@pytest.mark.parametrize("together", [False, True])
def test_a_sweep_edits_the_positions_of_an_entry_together(host: Host, together: bool) -> None:
    rows = [[1, 2], [3], [6], [2, 5]]
    spans = {f"row{number}": positions for number, positions in enumerate(rows)}
    place = site(layers=[], named_positions=[named(name) for name in spans])
    source = spanned(LONGER, **{name: [one + 1 for one in positions] for name, positions in spans.items()})
    sweep = pb.Sweep(
        edit=pb.Edit(site=place, patch=pb.Patch(sources=[0])),
        together=[pb.AXIS_POSITION] if together else [],
        layer_window=2,
    )
    found = intervene(host, prompt=spanned(IDS, **spans), sources=[source], sweep=sweep)
    layers = range(host.oracle.layers)
    runs = [[1, 2, 3, 6, 5]] if together else rows
    edits = []
    for layer in layers:
        window = [one for one in (layer - 1, layer) if one >= 0]
        for positions in runs:
            patch = pb.Patch(sources=[0], source_positions=[one + 1 for one in positions])
            edits.append(pb.Intervention(edits=[pb.Edit(site=site(layers=window, positions=positions), patch=patch)]))
    expected = intervene(
        host, prompt=wire.prompt(IDS), sources=[wire.prompt(LONGER)], list=pb.InterventionList(interventions=edits)
    )
    assert list(found.context.axes.positions) == ([] if together else [0, 1, 2, 3])
    for column in ("logits", "log_probabilities", "edit_norms"):
        assert_close(found.columns[column], expected.columns[column])
    assert found.context.cost.token_layers == expected.context.cost.token_layers


def test_the_lens_is_read_at_every_named_position(gpt2: Host) -> None:
    names = [named("subject"), named("gap")]
    request = {"prompt": spanned(IDS), "targets": TARGET}
    messages = list(
        gpt2.stub.Trace(pb.TraceRequest(**request, token_probability=pb.TokenProbability(named_positions=names)))  # type: ignore[arg-type]
    )
    found = [message.layers for message in messages if message.HasField("layers")]
    assert [one.position for one in found] == [1, 2, 0, 3, 5]
    for one in found:
        alone = trace(gpt2, token_probability=pb.TokenProbability(), position=one.position)
        np.testing.assert_array_equal(wire.array(one.logits), alone.columns["logits"])


def test_a_causal_trace_by_name(host: Host) -> None:
    gaussian = pb.CausalTracing.Gaussian(samples=2)
    by_name = trace(
        host,
        causal_tracing=pb.CausalTracing(
            gaussian=gaussian, named_subject=named("subject"), named_positions=[named("gap"), named("subject")]
        ),
    )
    by_number = trace(
        host,
        causal_tracing=pb.CausalTracing(
            gaussian=gaussian, subject_positions=pb.PositionList(positions=[1, 2]), positions=[0, 3, 5, 1, 2]
        ),
    )
    assert by_name.cells.keys() == by_number.cells.keys()
    for component, cells in by_name.cells.items():
        assert list(cells) == list(by_number.cells[component])
        for place, values in cells.items():
            for name, value in values.items():
                np.testing.assert_array_equal(value, by_number.cells[component][place][name])


@pytest.mark.parametrize("options", [{}, {"drop_layers": True}, {"integration_steps": 2}], ids=str)
def test_the_estimate_of_an_entry_is_the_sum_of_its_positions(host: Host, options: dict[str, Any]) -> None:
    rows: dict[str, list[int]] = {"a": [1, 2], "b": [0, 3, 5], "c": [6]}
    asked = {
        "source": wire.prompt(SAME_LENGTH),
        "components": [STREAM, pb.COMPONENT_HEAD_OUT, pb.COMPONENT_ATTENTION_PATTERN, pb.COMPONENT_LOGITS],
        **options,
    }
    names = [*(named(name) for name in rows), named("c", "NEXT")]
    found = trace(
        host,
        prompt=spanned(IDS, **rows),
        attribution_patching=pb.AttributionPatching(**asked, named_positions=names, verify_top=30),
    )
    every = trace(host, attribution_patching=pb.AttributionPatching(**asked))
    for component, estimates in found.estimates.items():
        summed = np.stack([every.estimates[component][:, row].sum(1) for row in (*rows.values(), [])], axis=1)
        assert_close(estimates, summed)
    # What is verified is the whole entry; one without positions is no place.
    verified = {tuple(one.site.positions) for one in found.verified}
    assert verified <= {tuple(row) for row in rows.values()}
    first = found.verified[0]
    patched = intervene(
        host, sources=[wire.prompt(SAME_LENGTH)], list=listed(pb.Edit(site=first.site, patch=pb.Patch(sources=[0])))
    )
    moved = patched.columns["logits"][0, 0] - np.float32(every.context.clean.logits[0])
    assert_close(np.array([first.measured[0]]), np.array([moved]))
