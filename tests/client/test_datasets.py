"""Datasets on a real connection: requests of the right size, breaks in the middle, and exact statistics."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import sonde
from sonde._asking import asking
from sonde._connection.progress import Steps, in_words
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceServicer, add_InspectionServiceServicer_to_server

Answer = Callable[[Any, grpc.ServicerContext], Iterator[Any]]
EDIT = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)
READ = sonde.Activations(sonde.residual(position="last"))


class Server(InspectionServiceServicer):
    """Answers each request by a function of it."""

    def __init__(self, answer: Answer, model: pb.GetModelResponse) -> None:
        self.answer, self.model = answer, model
        self.requests: list[Any] = []
        self._lock = threading.Lock()

    def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:  # noqa: ARG002, N802 - gRPC's
        return self.model

    def Trace(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        with self._lock:
            self.requests.append(request)
        yield from self.answer(request, context)

    def Intervene(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self.Trace(request, context)


@contextmanager
def serving(answer: Answer, model: pb.GetModelResponse) -> Iterator[tuple[str, Server]]:
    servicer = Server(answer, model)
    server = grpc.server(ThreadPoolExecutor(4))
    add_InspectionServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, unused-ignore]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address, servicer
    server.stop(None).wait()


def words_of(case: pb.Case) -> list[pb.Token]:
    return [pb.Token(id=len(word), text=f" {word}") for word in case.prompt.text.split()]


def number_of(case: pb.Case) -> int:
    """The number that a prompt of these tests ends with."""
    return int(case.prompt.text.rpartition(" ")[2])


def state(number: int) -> npt.NDArray[np.float32]:
    """[layer, 1, unit]: the activations of a case."""
    return np.random.RandomState(number).randn(2, 1, 3).astype(np.float32)


def one_by_one(answers: Any, break_at: int | None = None) -> Answer:
    """Answers every case by its activations; once, the server is lost in the middle of case `break_at`."""
    broken: list[bool] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        total = len(request.cases)
        for index, case in enumerate(request.cases):
            begun = pb.TraceResponse(case_index=index, progress=pb.Progress(done=index, total=total, cases=total))
            begun.context.CopyFrom(answers.context())
            del begun.context.tokens[:]
            begun.context.tokens.extend(words_of(case))
            yield begun
            # Progress may come alone, and says nothing of a case then.
            yield pb.TraceResponse(progress=pb.Progress(done=index, total=total, cases_done=index, cases=total))
            for layer, values in enumerate(state(number_of(case))):
                if number_of(case) == break_at and layer == 1 and not broken:
                    broken.append(True)
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the server is gone")
                piece = pb.ActivationSlice(
                    run=-1, layer=layer, shape=values.shape, values=answers.tensor(values.ravel())
                )
                yield pb.TraceResponse(case_index=index, activations=[piece])

    return answer


def cases(count: int, group: str = "") -> list[sonde.Case]:
    return [sonde.Case(f"The case number {i}", group=group or f"{i % 2}") for i in range(count)]


def test_all_cases_go_in_one_request_and_come_back_in_order(answers: Any) -> None:
    with serving(one_by_one(answers), answers.model()) as (address, server), sonde.Client(address) as client:
        result = client.trace(cases(5), method=READ)
    assert len(server.requests) == 1
    assert len(result) == 5
    assert result.complete
    assert result.activations[0].shape == (5, 2, 3)
    assert list(result.activations.axes(0)) == ["case", "layer", "unit"]
    assert np.array_equal(result.activations[0], [state(i)[:, 0] for i in range(5)])
    assert np.array_equal(result[3].activations[0], state(3))
    assert np.array_equal(np.asarray(result), result.activations["residual_post"])
    assert [one.tokens[-1].text for one in result[1:3]] == [" 1", " 2"]
    assert result[1:3].groups == ("1", "0")


@pytest.mark.parametrize("limit", ["max_cases", "max_total_tokens", "bytes"])
def test_a_dataset_is_split_only_where_the_server_takes_no_more(answers: Any, limit: str) -> None:
    model = answers.model()
    asked = cases(5)
    if limit == "bytes":
        asked = [sonde.Case(f"{'a' * 1_500_000} {i}") for i in range(5)]
    elif limit == "max_cases":
        model.limits.max_cases = 2
    else:
        model.limits.max_total_tokens = 60
    with serving(one_by_one(answers), model) as (address, server), sonde.Client(address) as client:
        result = client.trace(asked, method=READ)
    assert [len(request.cases) for request in server.requests] == [2, 2, 1]
    assert np.array_equal(result.activations[0], [state(i)[:, 0] for i in range(5)])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lost_server_is_asked_again_for_the_cases_that_are_lacking(answers: Any, asynchronous: bool) -> None:
    async def ask(address: str) -> Any:
        async with sonde.AsyncClient(address) as client:
            return await client.trace(cases(6), method=READ)

    with serving(one_by_one(answers, break_at=4), answers.model()) as (address, server):
        if asynchronous:
            result = asyncio.run(ask(address))
        else:
            with sonde.Client(address) as client:
                result = client.trace(cases(6), method=READ)
    assert [[number_of(case) for case in request.cases] for request in server.requests] == [[*range(6)], [4, 5]]
    assert np.array_equal(result.activations[0], [state(i)[:, 0] for i in range(6)])


def test_a_server_that_answers_nothing_more_is_given_up(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSES", (0.01, 0.01))

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield pb.TraceResponse(progress=pb.Progress(total=len(request.cases)))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is gone")

    with serving(answer, answers.model()) as (address, server), sonde.Client(address) as client:
        with pytest.raises(sonde.NotServing):
            client.trace(cases(3))
        assert len(server.requests) == 3


def test_an_answer_that_lacks_a_case_is_refused(answers: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        del request.cases[2:]
        yield from one_by_one(answers)(request, context)

    with (
        serving(answer, answers.model()) as (address, _),
        sonde.Client(address) as client,
        pytest.raises(sonde.ProtocolError, match="only 2 of 3 cases"),
    ):
        client.trace(cases(3), method=READ)


def test_a_stream_yields_the_cases_as_they_finish(answers: Any) -> None:
    with serving(one_by_one(answers), answers.model()) as (address, _), sonde.Client(address) as client:
        seen = [(len(known), known.complete) for known in client.stream_trace(cases(3), method=READ)]
    assert seen == [(1, False), (2, False), (3, True)]


def test_progress_counts_steps_for_a_function_and_cases_in_words(answers: Any) -> None:
    seen: list[tuple[int, int]] = []
    with serving(one_by_one(answers, break_at=2), answers.model()) as (address, _), sonde.Client(address) as client:
        client.trace(cases(4), method=READ, progress=lambda *steps: seen.append(steps))
    assert {total for _, total in seen} == {4}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] >= 3
    assert in_words(Steps(12_000, 33_000, 37, 100), 100.0) == "37 of 100 cases, 12,000 of 33,000 steps, 3 min left"
    assert in_words(Steps(0, 10), 5.0) == "0 of 10"
    assert in_words(Steps(5, 10), 5.0) == "5 of 10, 5 s left"


def test_a_dry_run_has_the_cost_of_all_cases(answers: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        begun = answers.context(clean=False)
        begun.cost.cases, begun.cost.tokens = len(request.cases), 7 * len(request.cases)
        yield pb.TraceResponse(context=begun)

    model = answers.model()
    model.limits.max_cases = 2
    with serving(answer, model) as (address, _), sonde.Client(address) as client:
        for result in (client.trace(cases(5), dry_run=True), client.trace(cases(5), reduce="mean", dry_run=True)):
            assert result.dry_run
            assert (result.cost.cases, result.cost.tokens, result.cost.runs) == (5, 35, 15)
            assert result.to_text().startswith("5 cases of 35 tokens in all, 15 runs")


# ---------------------------------------------------------------------- reductions


def reduced_context(answers: Any, *targets: pb.Token, **fields: Any) -> pb.RunContext:
    """As answers.context, of a reduction: with a mean probability of 0.5, whatever the logarithms."""
    made: pb.RunContext = answers.context(*targets, **fields)
    for name in ("tokens", "position"):
        made.ClearField(name)
    for name in ("top_tokens", "top_log_probabilities"):
        made.clean.ClearField(name)
    made.clean.probabilities.extend([0.5] * len(made.targets))
    return made


def reducing(answers: Any, break_at: int | None = None, largest: bool = False) -> Answer:
    """Reduces the activations of the cases by group; once, the server is lost before the part of case `break_at`."""
    broken: list[bool] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        total, every = len(request.cases), request.reduction.every or len(request.cases)
        for first in range(0, total, every):
            part = list(request.cases[first : first + every])
            if break_at in [number_of(case) for case in part] and not broken:
                broken.append(True)
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server is gone")
            for group in dict.fromkeys(case.group for case in part):
                numbers = [number_of(case) for case in part if case.group == group]
                where = [first + i for i, case in enumerate(part) if case.group == group]
                values = np.array([state(number) for number in numbers], np.float64)
                for statistic, array in ((pb.STATISTIC_MEAN, values.mean(0)), (pb.STATISTIC_DEVIATION, values.std(0))):
                    about = pb.ReductionPart(
                        group=group, statistic=statistic, first_case=first, cases=len(part), count=len(numbers)
                    )
                    begun = reduced_context(answers)
                    yield pb.TraceResponse(reduction=about, context=begun)
                    for layer, piece in enumerate(array):
                        sent = pb.TraceResponse(reduction=about)
                        sent.activations.add(
                            run=-1,
                            layer=layer,
                            shape=piece.shape,
                            values=answers.tensor(piece.ravel()),
                            counts=[len(numbers)],
                        )
                        if largest and statistic == pb.STATISTIC_MEAN:
                            order = np.argsort(-values[:, layer], axis=0)[: request.reduction.largest]
                            best = np.moveaxis(np.take_along_axis(values[:, layer], order, 0), 0, -1)
                            sent.largest.add(
                                run=-1,
                                layer=layer,
                                shape=best.shape,
                                values=answers.tensor(best.ravel()),
                                cases=answers.tensor(np.array(where)[np.moveaxis(order, 0, -1)].ravel(), "int32"),
                                positions=answers.tensor(np.full(best.size, 3), "int32"),
                            )
                        yield sent

    return answer


@pytest.mark.parametrize("break_at", [None, 0, 9, 20])
def test_parts_of_a_reduction_join_exactly_also_after_a_break(answers: Any, break_at: int | None) -> None:
    groups = [0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    asked = [sonde.Case(f"The case number {i}", group=f"{group}") for i, group in enumerate(groups)]
    with serving(reducing(answers, break_at), answers.model()) as (address, server), sonde.Client(address) as client:
        result = client.trace(asked, method=READ, reduce="mean")
    assert server.requests[0].reduction.every == 3
    assert len(server.requests) == 1 + (break_at is not None)
    assert (result.cases, list(result.groups)) == (21, ["0", "1"])
    for name, one in result.groups.items():
        values = np.array([state(i) for i, group in enumerate(groups) if f"{group}" == name], np.float64)
        assert one.cases == len(values)
        assert np.allclose(one.mean.activations[0], values.mean(0), atol=1e-6)
        assert np.allclose(one.deviation.activations[0], values.std(0), atol=1e-6)
        assert np.array_equal(one.counts.activations[0], np.full((2, 1, 3), len(values)))
        expected = values.std(0, ddof=1) / np.sqrt(len(values))
        assert np.allclose(one.standard_error.activations[0], expected, atol=1e-6)
        assert one.mean.activations.axes(0)["position"] == ("last",)
    with pytest.raises(ValueError, match="expected one group of cases, got '0', '1'"):
        _ = result.mean


def test_the_largest_of_all_parts_come_with_their_cases(answers: Any) -> None:
    model = answers.model()
    model.limits.max_cases = 13
    with serving(reducing(answers, 9, largest=True), model) as (address, _), sonde.Client(address) as client:
        result = client.trace(cases(21, "all"), method=READ, reduce="mean", largest=4)
    values = np.array([state(i) for i in range(21)])
    assert result.largest is not None
    for layer in (0, 1):
        ranked = result.largest.of(layer=layer)
        order = np.argsort(-values[:, layer, 0], axis=0)[:4]
        assert np.array_equal(ranked.cases[0], order.T)
        assert np.array_equal(ranked.values[0], np.take_along_axis(values[:, layer, 0], order, 0).T)
    best = result.largest.examples(layer=1, unit=2)[0]
    assert best.text == f"The case number {best.case}"
    assert best.case == values[:, 1, 0, 2].argmax()
    with pytest.raises(IndexError, match="counted among those that were read"):
        result.largest.examples(layer=1, unit=values.shape[-1])
    with pytest.raises(ValueError, match="there are: run -1, site 0, layer 0, run -1, site 0, layer 1"):
        result.largest.examples(layer=2, unit=0)


def test_a_reduction_is_saved_and_tabulated(answers: Any, tmp_path: Any) -> None:
    with serving(reducing(answers), answers.model()) as (address, _), sonde.Client(address) as client:
        result = client.trace(cases(8, "all"), method=READ, reduce="mean")
    result.save(tmp_path / "mean.npz")
    back = sonde.load(tmp_path / "mean.npz")
    assert repr(back) == repr(result)
    assert np.array_equal(back.deviation.activations[0], result.deviation.activations[0])
    assert list(back.groups) == ["all"]
    table = result.to_dataframe()
    assert list(table.columns[:1]) == ["group"]
    assert table["count"].tolist() == [8] * 6
    assert np.allclose(table["value_deviation"], result.deviation.activations[0].ravel())
    assert "mean over 8 prompts of group all" in result._repr_html_()


def test_a_dataset_is_saved_and_tabulated(answers: Any, tmp_path: Any) -> None:
    with serving(one_by_one(answers), answers.model()) as (address, _), sonde.Client(address) as client:
        result = client.trace(cases(4), method=READ)
    result.save(tmp_path / "cases.npz")
    back = sonde.load(tmp_path / "cases.npz")
    assert repr(back) == repr(result) == "CasesResult(4 cases of ActivationsResult, 2 groups)"
    assert np.array_equal(back.activations[0], result.activations[0])
    table = result.to_dataframe()
    assert list(table.columns[:2]) == ["case", "group"]
    assert table["case"].tolist() == np.repeat(range(4), 6).tolist()
    assert "case number 3" in result.to_text()
    assert "case number 3" in result._repr_html_()


def test_different_shapes_are_not_stacked(answers: Any) -> None:
    asked = [sonde.Case("one 0"), sonde.Case("and one more 1")]
    with serving(one_by_one(answers), answers.model()) as (address, _), sonde.Client(address) as client:
        result = client.trace(asked, method=sonde.Activations(sonde.residual()))
    assert [len(one.tokens) for one in result] == [2, 4]
    assert result.tokens == [one.tokens for one in result]
    with pytest.raises(AttributeError, match="call it case by case"):
        _ = result.top
    with pytest.raises(AttributeError):
        _ = result.nothing_of_this_name


def rows_of_figure_2(answers: Any, counts: list[int]) -> Answer:
    """A causal trace of two parts, each with a mean, a deviation and the counts of the six rows."""

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        half = len(request.cases) // 2
        for part in (0, 1):
            for statistic in (pb.STATISTIC_MEAN, pb.STATISTIC_DEVIATION):
                about = pb.ReductionPart(statistic=statistic, first_case=half * part, cases=half, count=half)
                begun = reduced_context(answers)
                corruption = pb.Corruption(probabilities=[0.1], deviations=[0.0], logits=[1.0], noise_deviation=0.4)
                yield pb.TraceResponse(reduction=about, context=begun, corruption=corruption)
                for component in (pb.COMPONENT_RESIDUAL_POST, pb.COMPONENT_MLP_OUT, pb.COMPONENT_ATTENTION_OUT):
                    values = np.full((6, 2, 1), 0.2 + 0.4 * part) * np.reshape(counts, (-1, 1, 1)).astype(bool)
                    if statistic == pb.STATISTIC_DEVIATION:
                        values = np.zeros((6, 2, 1))
                    columns = {n: answers.tensor(values) for n in ("probabilities", "deviations", "logits")}
                    grid = pb.RestorationGrid(
                        component=component, positions=range(6), layers=range(2), counts=counts, **columns
                    )
                    yield pb.TraceResponse(reduction=about, grids=[grid])

    return answer


def test_the_mean_of_causal_traces_has_the_rows_of_figure_2(answers: Any, tmp_path: Any) -> None:
    counts = [2, 0, 2, 2, 7, 2]
    method = sonde.CausalTracing(subject=sonde.span("subject"))
    with serving(rows_of_figure_2(answers, counts), answers.model()) as (address, _), sonde.Client(address) as client:
        asked = [f"The case {i}" for i in range(4)]
        result = client.trace(asked, method=method, reduce="mean")
        shared = client.trace(asked, targets=[" Paris"], method=method, reduce="mean")
    mean = result.mean
    # Each case has a target of its own unless the call names it for all of them.
    assert [target.text for target in mean.targets] == ["target"]
    assert [target.text for target in shared.mean.targets] == [" Paris"]
    assert "*" not in mean.heatmap_text()
    assert result.request is not None
    assert result.request.describe().startswith("trace of 4 cases: causal tracing, ")
    assert "  reduction: mean" in result.request.describe().splitlines()
    labels = list(mean.row_labels("mlp_out"))
    assert labels == [
        "first subject token",
        "middle subject tokens",
        "last subject token",
        "first subsequent token",
        "further tokens",
        "last token",
    ]
    restored = mean.restored["mlp_out"][:, 0, 0]
    assert np.array_equal(np.isnan(restored), np.array(counts) == 0)
    assert np.allclose(restored[[0, 2, 3, 4, 5]], 0.4)
    # Two parts of equal size, at 0.2 and at 0.6.
    assert np.allclose(result.deviation.restored["mlp_out"][[0, 2, 3, 4, 5], 0, 0], 0.2)
    assert result.counts.restored["mlp_out"][:, 0, 0].tolist() == [2 * count for count in counts]
    assert {cell.token for cell in mean.strongest(100)} == {*labels} - {"middle subject tokens"}
    table = result.to_dataframe()
    assert table.query("token == 'further tokens'")["count"].unique().tolist() == [14]
    assert "first subject token" in result.to_text()
    assert "first subject token" in result._repr_html_()
    result.plot(tmp_path / "figure.png")
    result.save(tmp_path / "mean.npz")
    assert np.array_equal(sonde.load(tmp_path / "mean.npz").mean.restored["mlp_out"], mean.restored["mlp_out"], True)


def test_the_mean_of_interventions_has_the_axes_of_the_sweep(answers: Any, tmp_path: Any) -> None:
    values = -np.random.RandomState(0).rand(4, 6) * 5

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        axes = pb.Axes(layers=[0, 1, 2], positions=[0, 1])
        for statistic, array, of_probability in (
            (pb.STATISTIC_MEAN, values.mean(0), np.exp(values).mean(0)),
            (pb.STATISTIC_DEVIATION, values.std(0), np.exp(values).std(0)),
        ):
            about = pb.ReductionPart(statistic=statistic, cases=4, count=4)
            readings = answers.readings(0, array[:, None], probabilities=answers.tensor(of_probability[:, None]))
            yield pb.InterveneResponse(reduction=about, context=reduced_context(answers, axes=axes), readings=readings)

    plan = sonde.sweep(sonde.patch(sonde.residual(), 0), positions=["subject.last", "end"])
    asked = [sonde.Case(f"The case {i}", sources=[f"Another case {i}"]) for i in range(4)]
    with serving(answer, answers.model()) as (address, server), sonde.Client(address) as client:
        result = client.intervene(asked, plan, reduce="mean")
    assert [case.sources[0].text for case in server.requests[0].cases] == [f"Another case {i}" for i in range(4)]
    assert result.mean.axes["position"] == ("subject.last", "last")
    assert np.allclose(result.mean.log_probabilities.ravel(), values.mean(0), atol=1e-6)
    assert np.allclose(result.standard_error.logits.ravel(), 2 * values.std(0, ddof=1) / 2, atol=1e-6)
    table = result.to_dataframe()
    assert np.allclose(table["probability"], np.exp(values).mean(0), atol=1e-6)
    assert np.allclose(table["probability_deviation"], np.exp(values).std(0), atol=1e-6)
    assert np.allclose(result.mean[3].probabilities, np.exp(values[:, 3]).mean(), atol=1e-6)
    assert np.allclose(table["effect"], values.mean(0) - np.log(0.9), atol=1e-6)
    assert result.mean.clean.probabilities.tolist() == [0.5]
    assert np.allclose(table["logit_deviation"], 2 * values.std(0), atol=1e-6)
    result.plot(tmp_path / "figure.png")
    assert "subject.last" in result._repr_html_()


PARIS, ROME, OSLO = sonde.Target(" Paris"), sonde.Target(" Rome"), sonde.Target(" Oslo")


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ([[PARIS], [PARIS], [PARIS]], (" Paris",)),
        ([[PARIS], [ROME], [PARIS]], ("target",)),
        ([[PARIS], [ROME], [sonde.Target(" Oslo", contrast=" Rome")]], ("target - contrast",)),
        ([[PARIS, ROME], [OSLO, ROME], [PARIS, ROME]], ("target 0", " Rome")),
        (
            [[PARIS, ROME], [OSLO, PARIS], [PARIS, sonde.Target(5, contrast=6)]],
            ("target 0", "target 1 - contrast 1"),
        ),
        ([None, None, None], ("target",)),
    ],
)
def test_a_target_that_differs_from_case_to_case_has_a_name_for_all(answers: Any, targets: Any, names: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        given = [pb.Token(id=7 + i, text=target.text) for i, target in enumerate(request.cases[0].targets)]
        for group, count in (("", 3), ("alone", 1)):
            for statistic, number in ((pb.STATISTIC_MEAN, -1.0), (pb.STATISTIC_DEVIATION, 0.25)):
                about = pb.ReductionPart(group=group, statistic=statistic, cases=4, count=count)
                numbers = np.full((2, len(names)), number)
                readings = answers.readings(0, numbers, probabilities=answers.tensor(np.full(numbers.shape, 0.4)))
                begun = reduced_context(answers, *given)
                yield pb.InterveneResponse(reduction=about, context=begun, readings=readings)

    asked = [sonde.Case("a prompt", targets=target) for target in targets]
    asked.append(sonde.Case("a prompt", targets=targets[0], group="alone"))
    with serving(answer, answers.model()) as (address, _), sonde.Client(address) as client:
        result = client.intervene(asked, [EDIT, EDIT], reduce="mean")
    mean = result.groups[""].mean
    assert tuple(token.text for token in mean.targets) == names
    assert mean.axes["target"] == names
    assert sorted(set(result.groups[""].to_dataframe()["target"])) == sorted(names)
    word = names[0].partition(" - ")[0].strip()
    title = result.groups[""].plot().get_suptitle()
    assert f"log p({word})" in title
    assert "(mean over 3 prompts)" in title
    # A group of one case has its target.
    assert result.groups["alone"].mean.targets[0].text == " Paris"
    assert "mean over 1 prompt of group alone" in result.groups["alone"].mean.html()
    assert names[0] in result.to_text()


def test_statistics_of_logarithms_alone_are_refused(answers: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        for statistic in (pb.STATISTIC_MEAN, pb.STATISTIC_DEVIATION):
            about = pb.ReductionPart(statistic=statistic, cases=4, count=4)
            yield pb.TraceResponse(reduction=about, context=answers.context())

    with (
        serving(answer, answers.model()) as (address, _),
        sonde.Client(address) as client,
        pytest.raises(sonde.ProtocolError, match="without those of the probabilities"),
    ):
        client.trace(cases(4), reduce="mean")


def test_tokens_come_of_one_prompt_or_of_many(answers: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        assert request.dry_run
        begun = answers.context(clean=False)
        begun.spans.add(name="subject", positions=[1, 2])
        yield pb.TraceResponse(context=begun)

    with serving(answer, answers.model()) as (address, server), sonde.Client(address) as client:
        one = client.tokenize(sonde.Prompt("The Eiffel Tower is in the city of", spans={"subject": "Eiffel Tower"}))
        many = client.tokenize(["a", "b"])
    assert "".join(one.texts) == "The Eiffel Tower is in the city of"
    assert one.ids == tuple(range(100, 108))
    assert one.spans == {"subject": (1, 2)}
    assert "Eiffel Tower" in one._repr_html_()
    assert [request.prompt.text for request in server.requests[1:]] == ["a", "b"]
    assert [len(tokens) for tokens in many] == [8, 8]


def test_bfloat16_takes_two_bytes_until_it_is_asked_for(answers: Any, tmp_path: Any) -> None:
    bits = np.arange(0x3F00, 0x3F06, dtype=np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ARG001
        assert request.activations.data_type == pb.DATA_TYPE_BFLOAT16
        for index in range(len(request.cases)):
            sent = pb.TraceResponse(case_index=index, context=answers.context())
            for offset in (0, 3):
                piece = bits[offset : offset + 3]
                values = pb.Tensor(data_type=pb.DATA_TYPE_BFLOAT16, shape=[3], data=piece.astype("<u2").tobytes())
                sent.activations.add(run=-1, layer=1, shape=[1, 6], offset=offset, values=values)
            yield sent

    read = sonde.Activations(sonde.residual(layer=1, position="last"))
    with serving(answer, answers.model()) as (address, _), sonde.Client(address) as client:
        result = client.trace(["a", "b"], method=read, data_type="bfloat16")
    assert result[0].activations.as_sent(0).nbytes == 12
    assert result.activations[0].dtype == np.float32
    assert np.array_equal(result.activations[0], [[exact], [exact]])
    result.save(tmp_path / "cases.npz")
    back = sonde.load(tmp_path / "cases.npz")
    assert back[0].activations.as_sent(0).nbytes == 12
    assert np.array_equal(back.activations[0], result.activations[0])
