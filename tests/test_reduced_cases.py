"""Reduced answers over a socket: the statistics of what each prompt is answered when it is asked about alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, Host
from tests.support import wire
from tests.support.oracle import Edit, Scale, Site, Sweep, Target
from tests.support.tolerance import FLOAT32

# Prompts of unequal length, with subjects of two, one and three tokens.
PROMPTS = [[5, 130, 77, 301, 9], [8, 131, 70, 12, 299, 261, 40], [17, 18, 250, 305, 61, 2]]
SUBJECTS = [[1, 2], [3], [1, 2, 3]]
SOURCES = [[5, 131, 78, 301, 9], [8, 131, 70, 15, 299, 261, 40], [17, 20, 251, 306, 61, 2]]
GROUPS = ["odd", "", "odd"]
TARGETS = [Target(41), Target(200, contrast=12)]
LAST = pb.NamedPositions(span="subject", part=pb.SPAN_PART_LAST)
MIDDLE = pb.NamedPositions(span="subject", part=pb.SPAN_PART_MIDDLE)
WHOLE = pb.NamedPositions()
NAMED = [LAST, MIDDLE, WHOLE]
Array = npt.NDArray[Any]
Statistics = dict[tuple[str, int], list[Any]]


def rows_of(case: int) -> list[list[int]]:
    """The positions of NAMED."""
    return [SUBJECTS[case][-1:], SUBJECTS[case][1:-1], [*range(len(PROMPTS[case]))]]


def prompt(case: int) -> pb.Prompt:
    spans = [pb.Span(name="subject", positions=pb.PositionList(positions=SUBJECTS[case]))]
    return pb.Prompt(token_ids=pb.TokenIds(ids=PROMPTS[case]), spans=spans)


def cases() -> list[pb.Case]:
    return [pb.Case(prompt=prompt(number), sources=[wire.prompt(SOURCES[number])], group=group)
            for number, group in enumerate(GROUPS)]  # fmt: skip


def reduced(host: Host, every: int = 0, largest: int = 0, **fields: Any) -> Statistics:
    """The messages of each group, by the first case of the part: first those of the mean, then of the deviation."""
    request = pb.TraceRequest(
        cases=cases(),
        targets=[wire.target(one) for one in TARGETS],
        reduction=pb.Reduction(every=every, largest=largest),
        **fields,
    )
    return told_apart(host.stub.Trace(request, timeout=DEADLINE))


def told_apart(stream: Iterable[Any]) -> Statistics:
    found: dict[tuple[str, int], dict[int, list[Any]]] = {}
    for message in stream:
        if message.HasField("reduction"):
            part = message.reduction
            assert part.count == GROUPS[part.first_case : part.first_case + part.cases].count(part.group)
            found.setdefault((part.group, part.first_case), {}).setdefault(part.statistic, []).append(message)
    assert all(list(both) == [pb.STATISTIC_MEAN, pb.STATISTIC_DEVIATION] for both in found.values())
    return {key: list(both.values()) for key, both in found.items()}


def alone(host: Host, case: int, **fields: Any) -> wire.Answer:
    targets = [wire.target(one) for one in TARGETS]
    return host.trace(pb.TraceRequest(prompt=prompt(case), targets=targets, **fields))


def assert_statistics(both: Sequence[Any], values: Sequence[Any], what: str = "") -> None:
    """The mean and the deviation of these values; 0 where there are none."""
    mean, deviation = (np.asarray(one) for one in both)
    stacked = np.array(values, np.float64) if len(values) else np.zeros((1, *mean.shape))
    for found, expected in ((mean, stacked.mean(0)), (deviation, stacked.std(0))):
        assert found.shape == expected.shape, what
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32, err_msg=what)


def members(group: str) -> list[int]:
    return [case for case, own in enumerate(GROUPS) if own == group]


def test_the_prediction(host: Host) -> None:
    found = reduced(host)
    assert set(found) == {("odd", 0), ("", 0)}
    for (group, _), both in found.items():
        answers = [alone(host, case).context for case in members(group)]
        for name in ("log_probabilities", "logits"):
            values = [getattr(one.clean, name) for one in answers]
            assert_statistics([getattr(messages[0].context.clean, name) for messages in both], values, name)
        probabilities = [np.exp(one.clean.log_probabilities) for one in answers]
        assert_statistics([messages[0].context.clean.probabilities for messages in both], probabilities)
        assert not any(one.clean.probabilities for one in answers)
        for (message,) in both:
            assert not message.context.tokens
            assert not message.context.spans
            assert message.context.cost.cases == len(answers)
            assert message.context.cost.token_layers == sum(one.cost.token_layers for one in answers)


def test_a_part_is_over_the_next_cases(host: Host) -> None:
    found = reduced(host, every=2)
    assert set(found) == {("odd", 0), ("", 0), ("odd", 2)}
    clean = alone(host, 2).context.clean
    assert_statistics([one[0].context.clean.logits for one in found["odd", 2]], [clean.logits])


def test_activations_and_the_largest_of_them(host: Host) -> None:
    site = pb.Site(component=pb.COMPONENT_NEURON, layers=[1, 2], units=[3, 5, 8], named_positions=NAMED)
    method = pb.Activations(sites=[site], data_type=pb.DATA_TYPE_FLOAT16)
    found = reduced(host, activations=method, largest=2)
    for (group, _), both in found.items():
        means = {part.layer: part for message in both[0] for part in message.activations}
        deviations = {part.layer: part for message in both[1] for part in message.activations}
        lists = {part.layer: part for message in both[0] for part in message.largest}
        assert not any(message.largest for message in both[1])
        for layer in (1, 2):
            rows: list[list[tuple[Array, int, int]]] = [[], [], []]
            for case in members(group):
                hooked = host.oracle.run(PROMPTS[case]).values["NEURON", layer][:, [3, 5, 8]].numpy()
                for row, positions in enumerate(rows_of(case)):
                    rows[row] += [(hooked[position], case, position) for position in positions]
            assert list(means[layer].counts) == list(map(len, rows))
            assert list(means[layer].shape) == [3, 3]
            both_values = [wire.array(one[layer].values).reshape(3, 3) for one in (means, deviations)]
            assert_statistics(
                [one[2] for one in both_values], [value for value, _, _ in rows[2]], f"whole, layer {layer}"
            )
            for row in range(3):
                assert_statistics([one[row] for one in both_values], [value for value, _, _ in rows[row]])
            shape = tuple(lists[layer].shape)
            assert shape == (3, 3, 2)
            names = "values", "cases", "positions"
            values, where, positions = (wire.array(getattr(lists[layer], name)).reshape(shape) for name in names)
            for row in range(3):
                for unit in range(3):
                    best = sorted(((float(v[unit]), c, p) for v, c, p in rows[row]), reverse=True)[:2]
                    best += [(0.0, -1, -1)] * (2 - len(best))
                    np.testing.assert_allclose(values[row, unit], [one[0] for one in best], rtol=FLOAT32, atol=FLOAT32)
                    assert where[row, unit].tolist() == [one[1] for one in best]
                    assert positions[row, unit].tolist() == [one[2] for one in best]


def test_the_lens(host: Host) -> None:
    method = pb.TokenProbability(gradient_norms=True, named_positions=NAMED)
    for (group, _), both in reduced(host, token_probability=method).items():
        read = [[message.layers for message in messages if message.HasField("layers")] for messages in both]
        assert [one.position for one in read[0]] == [one.position for one in read[1]] == [0, 1, 2]
        for row in range(3):
            places = [(case, position) for case in members(group) for position in rows_of(case)[row]]
            assert read[0][row].row_count == read[1][row].row_count == len(places)
            lenses = [host.oracle.lens(PROMPTS[case], TARGETS, position) for case, position in places]
            for name in ("log_probabilities", "logits", "kl_divergences", "ranks"):
                values = [getattr(one, name) for one in lenses]
                assert_statistics([wire.array(getattr(one[row], name)) for one in read], values, name)
            probabilities = [np.exp(one.log_probabilities) for one in lenses]
            assert_statistics([wire.array(one[row].probabilities) for one in read], probabilities, "probabilities")
            norms = [host.oracle.gradient_norms(PROMPTS[case], TARGETS, -1, "PROBABILITY")[:, [position]]
                     for case, position in places]  # fmt: skip
            assert list(read[0][row].positions) == [row]
            assert_statistics([wire.array(one[row].gradient_norms) for one in read], norms, "gradient norms")


def papers_rows(case: int) -> list[list[int]]:
    """First, middle and last of the subject, the next, the further ones, and the last of the prompt."""
    subject, last = SUBJECTS[case], len(PROMPTS[case]) - 1
    after = subject[-1] + 1
    return [subject[:1], subject[1:-1], subject[-1:], [after], [*range(after + 1, last)], [last]]


def test_a_causal_trace_has_the_rows_of_the_paper(host: Host) -> None:
    components = [pb.COMPONENT_MLP_OUT, pb.COMPONENT_TOKEN_EMBEDDING]
    gaussian = pb.CausalTracing.Gaussian(samples=2)
    asked = {"components": components, "window": 2, "layers": [0, 2], "gaussian": gaussian}
    method = pb.CausalTracing(named_subject=pb.NamedPositions(span="subject"), **asked)
    found = reduced(host, causal_tracing=method)
    for (group, _), both in found.items():
        single = {case: alone(host, case, causal_tracing=method) for case in members(group)}
        corruptions = [one.corruption for one in single.values()]
        for name in ("probabilities", "deviations", "logits"):
            parts = [next(m.corruption for m in messages if m.HasField("corruption")) for messages in both]
            values = [getattr(one, name) for one in corruptions]
            assert_statistics([getattr(one, name) for one in parts], values, f"corruption, {name}")
        for component, layers in (("MLP_OUT", [0, 2]), ("TOKEN_EMBEDDING", [-1])):
            grids = [[grid for message in messages for grid in message.grids
                      if wire._name(grid.component) == component] for messages in both]  # fmt: skip
            counts = [count for grid in grids[0] for count in grid.counts]
            assert [row for grid in grids[0] for row in grid.positions] == list(range(6))
            for row in range(6):
                places = [(case, position) for case in single for position in papers_rows(case)[row]]
                assert counts[row] == len(places)
                for name in ("probabilities", "deviations", "logits"):
                    values = [[single[case].cells[component][position, layer][name] for layer in layers]
                              for case, position in places]  # fmt: skip
                    whole = [np.concatenate([wire.array(getattr(grid, name)) for grid in some])[row] for some in grids]
                    assert_statistics(whole, values, f"{component}, row {row}, {name}")


def test_estimates_and_edges(host: Host) -> None:
    asked: dict[str, Any] = {"components": [pb.COMPONENT_HEAD_OUT], "named_positions": NAMED}
    edges = pb.AttributionPatching.Edges
    found = reduced(host, attribution_patching=pb.AttributionPatching(edges=edges(top=5), **asked))
    for (group, _), both in found.items():
        single = {
            case: alone(
                host,
                case,
                attribution_patching=pb.AttributionPatching(source=wire.prompt(SOURCES[case]), edges=edges(), **asked),
            )
            for case in members(group)
        }
        estimates = [[part for message in messages for part in message.attributions] for messages in both]
        for parts in zip(*estimates, strict=True):
            (layer,) = parts[0].layers
            for row in range(3):
                there = [case for case in single if rows_of(case)[row]]
                assert parts[0].counts[row] == len(there)
                values = [single[case].estimates["HEAD_OUT"][layer, row] for case in there]
                assert_statistics([wire.array(one.estimates)[0, row] for one in parts], values)
        means = {
            edge: np.mean([one.edges[edge] for one in single.values()], 0) for edge in single[members(group)[0]].edges
        }
        best = sorted(means, key=lambda edge: -abs(means[edge][0]))[:5]
        parts = [next(message.edges[0] for message in messages if message.edges) for messages in both]
        for part in parts:
            ends = [wire.array(one).tolist() for one in (part.senders, part.receivers)]
            got = [tuple((wire._name(end[0]), *end[1:]) for end in edge) for edge in zip(*ends, strict=True)]
            assert got == best
        for number, edge in enumerate(best):
            values = [one.edges[edge] for one in single.values()]
            assert_statistics([wire.array(part.estimates)[number] for part in parts], values, str(edge))


def test_a_sweep(host: Host) -> None:
    sweep = Sweep(Edit(Site("MLP_OUT", (0, 1, 2), (), (-1,)), Scale(0.0)))
    fields: dict[str, Any] = {"kl_divergence": True, "activations": [wire.site(Site("HEAD_OUT", (3,), (0,), (-1, 0)))]}
    request = wire.intervene(PROMPTS[0], sweep, TARGETS, **fields)
    request.ClearField("prompt")
    request.cases.extend(cases())
    request.reduction.SetInParent()
    found = told_apart(host.stub.Intervene(request, timeout=DEADLINE))
    for (group, _), both in found.items():
        single = [host.intervene(wire.intervene(PROMPTS[case], sweep, TARGETS, **fields)) for case in members(group)]
        readings = [next(message.readings for message in messages if message.HasField("readings")) for messages in both]
        for name in ("log_probabilities", "logits", "kl_divergences", "edit_norms"):
            values = [one.columns[name] for one in single]
            assert_statistics([wire.array(getattr(one, name)) for one in readings], values, name)
        probabilities = [np.exp(one.columns["log_probabilities"]) for one in single]
        assert_statistics([wire.array(one.probabilities) for one in readings], probabilities, "probabilities")
        assert not readings[0].HasField("top_token_ids")
        assert not any("probabilities" in one.columns for one in single)
        parts = [{part.run: part for message in messages for part in message.activations} for messages in both]
        for run in range(-1, 3):
            values = [one.activations[run, 0, 3] for one in single]
            assert_statistics([wire.array(one[run].values).reshape(2, 1, -1) for one in parts], values, f"run {run}")
            assert list(parts[0][run].counts) == [len(single)] * 2
