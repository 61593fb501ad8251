"""Attribution patching over the wire, against plain autograd and against what holds of any model (I14 to I21)."""

import copy
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import Base
from sonde_server.engine.gradients import Descent
from sonde_server.methods.attribution.softmax import key_effects, query_effects
from sonde_server.questions import prompts
from sonde_server.questions.places import Component
from sonde_server.questions.prompts import Metric

from tests.conftest import DEADLINE, EFFORT, Host
from tests.support import attribution_oracle as plain
from tests.support import oracle, wire
from tests.support.attribution_oracle import Question
from tests.support.oracle import COMPONENTS, UNIT_FIRST, UNLAYERED, Edit, Oracle, Site, Target
from tests.support.tolerance import assert_close, assert_near

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
TARGETS = [Target(41, 17), Target(200)]
METRICS = ("LOGIT", "LOG_PROBABILITY", "PROBABILITY")
ALL_EDGES = pb.AttributionPatching.Edges()


def request(
    components: Sequence[str],
    *,
    ids: Sequence[int] = IDS,
    source: Sequence[int] = OTHER,
    targets: Sequence[Target] = TARGETS,
    metric: str | None = None,
    position: int | None = None,
    **fields: Any,
) -> pb.TraceRequest:
    """An attribution patching of a prompt from another."""
    method = pb.AttributionPatching(
        source=wire.prompt(source), components=[wire.component(name) for name in components], **fields
    )
    if metric is not None:
        method.metric = pb.Metric.Value(f"METRIC_{metric}")
    return pb.TraceRequest(
        prompt=wire.prompt(ids),
        targets=[wire.target(one) for one in targets],
        position=position,
        attribution_patching=method,
    )


def available(host: Host) -> list[str]:
    """The components that the hosted model has."""
    found = {one.component for one in host.model_info().stacks[0].components if one.available}
    return [name for name in COMPONENTS if wire.component(name) in found]


def parallel(host: Host) -> bool:
    return "RESIDUAL_MID" not in available(host)


@pytest.mark.parametrize("metric", METRICS)
def test_every_component_is_plain_autograd(host: Host, metric: str) -> None:
    names = available(host)
    answer = host.trace(request(names, metric=metric))
    assert list(answer.estimates) == names
    question = Question(IDS, OTHER, TARGETS, metric)
    for name in names:
        expected = plain.estimates(host.oracle, question, name)
        assert np.abs(expected).max() > 0, name
        assert_near(answer.estimates[name], expected, name)


@pytest.mark.parametrize("dropping", [False, True])
def test_a_component_asked_alone(host: Host, dropping: bool) -> None:
    """How far down the gradients are taken depends on what is asked."""
    for name in ("RESIDUAL_PRE", "RESIDUAL_POST") if dropping else available(host):
        found = host.trace(request([name], drop_layers=dropping)).estimates[name]
        of = plain.dropped if dropping else plain.estimates
        assert_near(found, of(host.oracle, Question(IDS, OTHER, TARGETS), name), name)


@pytest.mark.parametrize("fields", [{}, {"integration_steps": 2}, {"drop_layers": True}], ids=str)
def test_a_component_asked_alone_has_the_estimates_that_it_has_beside_the_others(
    host: Host, fields: dict[str, Any]
) -> None:
    """How far down gradients go depends on what is asked, and the estimates do not."""
    names = available(host)
    every = host.trace(request(names, **fields)).estimates
    for name in names:
        alone = host.trace(request([name], **fields)).estimates[name]
        assert_near(alone, every[name], name)


def test_unspecified_is_the_logit_of_the_top_prediction(host: Host) -> None:
    names = ["RESIDUAL_POST", "HEAD_OUT"]
    answer = host.trace(request(names, targets=[]))
    top = host.oracle.top(host.oracle.run(IDS).logits[-1])[0]
    assert [one.id for one in answer.context.targets] == [top]
    for name in names:
        expected = plain.estimates(host.oracle, Question(IDS, OTHER, [Target(top)]), name)
        assert_near(answer.estimates[name], expected, name)


@settings(max_examples=6 * EFFORT)
@given(data=st.data())
def test_any_prompts_steps_and_position(host: Host, data: st.DataObject) -> None:
    token = st.integers(0, host.oracle.vocabulary - 1)
    length = data.draw(st.integers(1, 9))
    ids = data.draw(st.lists(token, min_size=length, max_size=length))
    source = [data.draw(token) if data.draw(st.booleans()) else one for one in ids]
    metric = data.draw(st.sampled_from(METRICS))
    position = data.draw(st.integers(-length, length - 1))
    steps = data.draw(st.integers(0, 3))
    names = data.draw(st.lists(st.sampled_from(available(host)), min_size=1, max_size=4, unique=True))
    asked = request(names, ids=ids, source=source, metric=metric, position=position, integration_steps=steps)
    answer = host.trace(asked)
    question = Question(ids, source, TARGETS, metric, position, max(1, steps))
    for name in names:
        assert_near(answer.estimates[name], plain.estimates(host.oracle, question, name), name)


def kept(host: Host, ids: Sequence[int]) -> Descent:
    """The way down through the server's own kept run of a prompt."""
    host.trace(pb.TraceRequest(prompt=wire.prompt(ids)))
    engine = host.server.scheduler.engine
    state = engine.cache.find(Base(tuple(ids)))
    assert state is not None
    return Descent(engine.decoder, engine.work, state, len(ids))


def double(host: Host) -> Oracle:
    """The oracle in float64."""
    wide = copy.copy(host.oracle)
    wide.model = copy.deepcopy(host.oracle.model).double()
    return wide


@pytest.mark.parametrize("metric", METRICS)
def test_i14_estimates_are_finite_differences(host: Host, metric: str) -> None:
    names = [name for name in available(host) if name not in UNIT_FIRST and name != "RESIDUAL_MID"]
    answer = host.trace(request(names, metric=metric))
    wide, step = double(host), 1e-2
    prompt, source = (host.oracle.run(ids).values for ids in (IDS, OTHER))
    for name in names:
        layer = 0 if name in UNLAYERED else 1
        direction = (source[name, layer] - prompt[name, layer]).double()
        slope = np.zeros(len(TARGETS))
        # The five-point rule: some families' norms compute in float32, so that the step cannot be very small.
        for times, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            added = {(name, layer): times * step * direction}
            numbers = plain.graph(wide.model, IDS, TARGETS, metric, added=added).numbers
            slope += weight * np.array([float(one.detach()) for one in numbers]) / (12 * step)
        whole = answer.estimates[name][layer].reshape(-1, len(TARGETS)).astype(np.float64).sum(0)
        np.testing.assert_allclose(whole, slope, rtol=1e-3, atol=1e-3, err_msg=name)


def test_i15_exact_at_the_final_norm_and_not_below_it(host: Host) -> None:
    names = ["FINAL_NORM", "LOGITS", "RESIDUAL_POST"]
    answer = host.trace(request(names, verify_top=0))
    last = host.oracle.layers - 1
    prompt, source = (host.oracle.run(ids) for ids in (IDS, OTHER))
    exact = [
        oracle.target_logit(source.logits[-1], one) - oracle.target_logit(prompt.logits[-1], one) for one in TARGETS
    ]
    softcapped = getattr(host.oracle.model.config, "final_logit_softcapping", None) is not None
    for name in ["LOGITS"] if softcapped else ["FINAL_NORM", "LOGITS"]:
        assert_near(answer.estimates[name][0, -1], exact, name)
        assert not answer.estimates[name][0, :-1].any()
    assert np.abs(answer.estimates["RESIDUAL_POST"][last, -1] - exact).max() > 1e-3


def test_i16_both_directions_agree_where_the_metric_is_linear(host: Host) -> None:
    forth = host.trace(request(["LOGITS"])).estimates["LOGITS"]
    back = host.trace(request(["LOGITS"], ids=OTHER, source=IDS)).estimates["LOGITS"]
    assert_near(forth, -back)


def test_i17_nothing_after_the_position_that_is_read(host: Host) -> None:
    names = available(host)
    answer = host.trace(request(names, position=3))
    for name in names:
        array = answer.estimates[name]
        assert not array[:, 4:].any(), name
        assert array[:, 3].any(), name


@pytest.mark.parametrize("steps", [1, 3])
def test_edges_are_plain_autograd(host: Host, steps: int) -> None:
    answer = host.trace(request([], edges=ALL_EDGES, integration_steps=steps, metric="LOG_PROBABILITY"))
    question = Question(IDS, OTHER, TARGETS, "LOG_PROBABILITY", steps=steps)
    expected = plain.edges(host.oracle, question, parallel=parallel(host))
    assert set(answer.edges) == set(expected)
    order = list(answer.edges)
    actual = np.array([answer.edges[edge] for edge in order])
    assert_near(actual, np.array([expected[edge] for edge in order]))
    sizes = np.abs(actual[:, 0])
    assert (sizes[:-1] >= sizes[1:]).all(), "the largest come first"


def test_the_top_edges_are_the_largest(host: Host) -> None:
    every = host.trace(request([], edges=ALL_EDGES)).edges
    some = host.trace(request([], edges=pb.AttributionPatching.Edges(top=7))).edges
    assert list(some) == list(every)[:7]
    for edge, values in some.items():
        np.testing.assert_array_equal(values, every[edge])


@pytest.mark.parametrize("steps", [1, 4])
def test_i18_the_edges_of_a_sender_add_up_to_its_own_estimate(host: Host, steps: int) -> None:
    names = ["RESIDUAL_PRE", "HEAD_OUT", "MLP_OUT"]
    answer = host.trace(request(names, edges=ALL_EDGES, integration_steps=steps))
    sums: dict[plain.End, npt.NDArray[Any]] = {}
    for (sender, _), values in answer.edges.items():
        sums[sender] = sums.get(sender, np.zeros(len(TARGETS))) + values
    assert len(sums) == 1 + host.oracle.layers * (host.oracle.heads + 1)
    for (component, layer, head), total in sums.items():
        if component == "HEAD_OUT":
            node = answer.estimates[component][layer, :, head]
        else:
            node = answer.estimates["RESIDUAL_PRE" if component == "TOKEN_EMBEDDING" else component][layer]
        assert_near(total, node.sum(0), f"{component} {layer} {head}")


def test_i19_integrated_edges_out_of_the_embedding_are_the_whole_difference(host: Host) -> None:
    metric = "LOG_PROBABILITY"
    ends = [
        np.array([float(plain.number(host.oracle.run(ids).logits[-1], one, metric)) for one in TARGETS])
        for ids in (IDS, OTHER)
    ]
    gaps = []
    for steps in (1, 32, 96):
        answer = host.trace(request(["TOKEN_EMBEDDING"], edges=ALL_EDGES, integration_steps=steps, metric=metric))
        sums = [values for (sender, _), values in answer.edges.items() if sender[0] == "TOKEN_EMBEDDING"]
        assert_near(np.sum(sums, 0), answer.estimates["TOKEN_EMBEDDING"].sum((0, 1)))
        gaps.append(np.abs(np.sum(sums, 0) - (ends[1] - ends[0])).max())
    assert gaps[0] > 0.1, "otherwise nothing is shown"
    # The midpoint rule's error falls with the square of the steps, until float32 ends it.
    assert gaps[2] < max(gaps[1] / 6, 1e-4)


def test_i20_dropped_layers_are_plain_autograd(host: Host) -> None:
    names = available(host)
    answer = host.trace(request(names, drop_layers=True))
    question = Question(IDS, OTHER, TARGETS)
    for name in names:
        assert_near(answer.estimates[name], plain.dropped(host.oracle, question, name), name)


def test_i20_a_layer_that_is_dropped_counts_nothing_in_its_own_pass(host: Host) -> None:
    """The last block's nodes have the plain estimate in every other pass, so the mean is that estimate's size."""
    names = ["ATTENTION_OUT", "MLP_OUT", "HEAD_OUT", "NEURON"]
    names = [name for name in names if name in available(host)]
    once = host.trace(request(names)).estimates
    averaged = host.trace(request(names, drop_layers=True)).estimates
    for name in names:
        assert_near(averaged[name][-1], np.abs(once[name][-1]), name)


@pytest.mark.parametrize("steps", [1, 2])
def test_recomputed_softmax_is_each_query_and_key_really_patched(host: Host, steps: int) -> None:
    answer = host.trace(request(["QUERY", "KEY", "VALUE"], recompute_softmax=True, integration_steps=steps))
    question = Question(IDS, OTHER, TARGETS, steps=steps)
    for name in ("QUERY", "KEY"):
        assert_near(answer.estimates[name], plain.recomputed(host.oracle, question, name), name)
    assert_near(answer.estimates["VALUE"], plain.estimates(host.oracle, question, "VALUE"))


def test_i21_without_saturation_the_recomputed_softmax_is_the_plain_estimate(host: Host) -> None:
    """Of ever smaller changes of all queries, or all keys, the estimate by the pattern becomes that by the gradient."""
    descent = kept(host, IDS)
    above = descent.top([prompts.Target(one.token, one.contrast) for one in TARGETS], Metric.LOGIT).below
    wanted = frozenset({Component.QUERY, Component.KEY, Component.ATTENTION_PATTERN})
    done = descent.block(host.oracle.layers - 1, above, wanted)
    layer, pattern = host.oracle.layers - 1, done.gradients[Component.ATTENTION_PATTERN][:, 0]
    query, key = done.values[Component.QUERY], done.values[Component.KEY]
    for component, value, effects in (
        (Component.QUERY, query, query_effects),
        (Component.KEY, key, key_effects),
    ):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
        first = (done.gradients[component] * direction).sum(-1)
        gaps = []
        for size in (0.1, 0.01):
            moved = effects(descent, layer, query, key, value + size * direction, pattern) / size
            gaps.append(float((moved - first).abs().max() / first.abs().max()))
        assert gaps[1] < 0.2 * gaps[0], (component, gaps)


@pytest.mark.parametrize("metric", METRICS)
def test_the_largest_are_really_patched(host: Host, metric: str) -> None:
    names = [name for name in available(host) if name != "LOGITS"]
    answer = host.trace(request(names, metric=metric, verify_top=25))
    sizes = np.sort(np.concatenate([np.abs(array[..., 0]).ravel() for array in answer.estimates.values()]))[::-1]
    assert len(answer.verified) == 25
    np.testing.assert_array_equal([abs(one.estimated[0]) for one in answer.verified], sizes[:25])
    before = host.oracle.run(IDS)
    for effect in answer.verified:
        name = pb.Component.Name(effect.site.component).removeprefix("COMPONENT_")
        layers, units, (position,) = tuple(effect.site.layers), tuple(effect.site.units), tuple(effect.site.positions)
        assert bool(units) == plain.has_units(name)
        assert bool(layers) == (name not in UNLAYERED)
        np.testing.assert_array_equal(effect.estimated, answer.estimates[name][(*(layers or (0,)), position, *units)])
        edit = Edit(Site(name, layers, units, (position,)), oracle.Patch((0,)))
        after = host.oracle.run(IDS, [edit], [OTHER])
        moved = [
            float(plain.number(after.logits[-1], one, metric) - plain.number(before.logits[-1], one, metric))
            for one in TARGETS
        ]
        assert_close(np.array(effect.measured), np.array(moved, np.float32), name)


def test_a_prompt_patched_from_itself_changes_nothing(host: Host) -> None:
    names = available(host)
    for fields in ({}, {"integration_steps": 2}, {"drop_layers": True}, {"recompute_softmax": True}):
        answer = host.trace(request(names, source=IDS, edges=None if "drop_layers" in fields else ALL_EDGES, **fields))
        for name in names:
            assert not answer.estimates[name].any(), name
        assert not any(values.any() for values in answer.edges.values())


def test_one_token_is_enough(host: Host) -> None:
    names = available(host)
    answer = host.trace(request(names, ids=IDS[1:2], source=OTHER[1:2], recompute_softmax=True, edges=ALL_EDGES))
    for name in ("QUERY", "KEY"):
        assert not answer.estimates[name].any(), "a token that sees itself alone has nothing to attend to instead"
    assert all(np.isfinite(array).all() for array in answer.estimates.values())


def test_the_progress_comes_to_its_end(host: Host) -> None:
    answer = host.trace(request(["MLP_OUT"], integration_steps=5))
    assert answer.progress is not None
    assert answer.progress.done == answer.progress.total == 5 * (host.oracle.layers + 1)


class Held:
    """The bytes of tensors that graphs hold, and the most that they ever held at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self._known: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> "_Kept":
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        # Several saved views of one storage, such as a weight's, are one.
        if self._known.setdefault(key, 0) == 0:
            self.now += size
            self.most = max(self.most, self.now)
        self._known[key] += 1
        weakref.finalize(kept, self._release, key, size)
        return kept

    def _release(self, key: int, size: int) -> None:
        self._known[key] -= 1
        if not self._known[key]:
            self.now -= size


class _Kept:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def held_on_the_way_down(host: Host, length: int) -> tuple[list[int], int]:
    """By block, the most bytes that its graph held; and what was held after it."""
    ids = [(7 * number + 3) % host.oracle.vocabulary for number in range(length)]
    descent = kept(host, ids)
    gradient = descent.top([prompts.Target(5)], Metric.LOGIT).below
    most = []
    held = Held()
    wanted = frozenset({Component.HEAD_OUT, Component.MLP_OUT, Component.QUERY})
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda one: one.tensor):
        for layer in range(host.oracle.layers - 1, -1, -1):
            held.most = held.now
            gradient = descent.block(layer, gradient, wanted).below
            gc.collect()
            most.append(held.most)
    return most, held.now


def test_only_one_block_has_a_graph(host: Host) -> None:
    most, left = held_on_the_way_down(host, 32)
    assert left == 0, "a graph outlived its block"
    assert min(most) > 0
    assert max(most) <= 1.05 * min(most), "every block holds as much as the first, whatever is above it"


def test_an_answer_of_many_messages_joins(host: Host) -> None:
    ids, source = ([(step * number + 3) % host.oracle.vocabulary for number in range(48)] for step in (7, 5))
    targets = [Target(number) for number in range(40)]
    answer = host.trace(request(["NEURON"], ids=ids, source=source, targets=targets))
    assert answer.messages > 2
    assert max(answer.sizes) <= 1 << 20
    expected = plain.estimates(host.oracle, Question(ids, source, targets[:1]), "NEURON")
    assert_near(answer.estimates["NEURON"][..., :1], expected)


def test_others_are_served_between_the_steps(host: Host) -> None:
    """A long question is many turns: what comes after it on another connection is answered before it ends."""
    work = host.server.scheduler.engine.work
    before = work.token_layers
    long = request(["RESIDUAL_POST"], integration_steps=2000)
    call = host.stub.Trace(long, timeout=DEADLINE)
    next(iter(call))
    host.trace(pb.TraceRequest(prompt=wire.prompt([3, 4])))
    assert call.is_active()
    call.cancel()
    with pytest.raises(grpc.RpcError):
        list(call)
    scheduler = host.server.scheduler
    for _ in range(1000):
        if not scheduler.queued_runs:
            break
        host.trace(pb.TraceRequest(prompt=wire.prompt([3, 4])))
    assert not scheduler.queued_runs, "a question that nobody waits for goes on"
    assert work.token_layers - before < 2000 * host.oracle.layers * len(IDS), "most of it was never done"
