"""What holds of every transformer whatever its weights, asked over the wire: no expected value is needed.

The numbers I1 to I30 are those of the design's list of identities. Two that concern what is left behind (I29) and
copies (I30) look at the loaded module of the server in this process.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, Host
from tests.support import oracle, wire
from tests.support.hooks import modules_of
from tests.support.oracle import COMPONENTS, UNLAYERED, Edit, Site, Sweep, Target
from tests.support.rome import DEFAULT_COMPONENTS
from tests.support.tolerance import FLOAT32, assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
LONGER = [17, 18, 250, 305, 61, 2, 99, 101, 307, 44, 46]
TARGETS = [Target(41), Target(200)]
LAST = len(IDS) - 1


def measured(
    host: Host, plan: Sequence[Sequence[Edit]] | Sweep, ids: Sequence[int] = IDS, **fields: Any
) -> npt.NDArray[np.float32]:
    """[runs, targets] log-probabilities."""
    request = wire.intervene(ids, plan, TARGETS, [IDS, OTHER], **fields)
    return host.intervene(request).columns["log_probabilities"]


def clean(host: Host, ids: Sequence[int] = IDS, position: int | None = None) -> npt.NDArray[np.float32]:
    """By target: log-probabilities of the unchanged run."""
    request = pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(one) for one in TARGETS], position=position)
    return np.array(host.trace(request).context.clean.log_probabilities, np.float32)


def read(host: Host, *wanted: Site, ids: Sequence[int] = IDS) -> dict[tuple[str, int], npt.NDArray[Any]]:
    """Activations of the unchanged run by component and layer."""
    sites = pb.Activations(sites=[wire.site(one) for one in wanted])
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(ids), activations=sites))
    return {(wanted[site].component, layer): value for (_, site, layer), value in answer.activations.items()}


def logits_of(host: Host, run: Sequence[Edit], ids: Sequence[int] = IDS) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """[T, V] logits of the unchanged run and of the changed one."""
    site = pb.Site(component=pb.COMPONENT_LOGITS)
    answer = host.intervene(wire.intervene(ids, [run], TARGETS, [IDS, OTHER], activations=[site]))
    return answer.activations[-1, 0, 0], answer.activations[0, 0, 0]


def every_layer(host: Host, component: str) -> tuple[int, ...]:
    return () if component in UNLAYERED else tuple(range(host.oracle.layers))


def trace(host: Host, **fields: Any) -> wire.Answer:
    fields.setdefault("subject_positions", pb.PositionList(positions=[2, 3]))
    method = pb.CausalTracing(**fields)
    targets = [wire.target(one) for one in TARGETS]
    return host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, causal_tracing=method))


def test_i1_the_hooked_path_without_an_edit_is_the_plain_model(host: Host) -> None:
    with torch.no_grad():
        plain = host.server.model(torch.tensor([IDS]), use_cache=False).logits[0]
    values = read(host, Site("LOGITS"))
    np.testing.assert_array_equal(values["LOGITS", 0], plain.numpy())
    assert_close(clean(host), plain[-1].log_softmax(-1)[[one.token for one in TARGETS]].numpy())


@pytest.mark.parametrize("component", COMPONENTS)
def test_i2_edits_that_change_nothing(host: Host, component: str) -> None:
    site = Site(component, every_layer(host, component))
    plan = [[Edit(site, oracle.Scale(1.0))], [Edit(site, oracle.Patch((0,)))]]
    plan += [[Edit(site, oracle.Add(np.zeros(1, np.float32)))], [Edit(site, oracle.Multiply(np.ones(1, np.float32)))]]
    answer = host.intervene(wire.intervene(IDS, plan, TARGETS, [IDS], kl_divergence=True))
    assert_close(answer.columns["log_probabilities"], np.tile(clean(host), (len(plan), 1)))
    assert_close(answer.columns["kl_divergences"], np.zeros(len(plan)))
    # A distance is as exact as the values it lies between are large.
    values = [host.oracle.run(IDS).values[component, layer].numpy() for layer in site.layers or (0,)]
    size = np.linalg.norm([np.linalg.norm(value[np.isfinite(value)]) for value in values])
    np.testing.assert_array_less(answer.columns["edit_norms"], FLOAT32 * size)


def test_i3_restoring_a_whole_layer_is_the_clean_run(host: Host) -> None:
    plan = [[Edit(Site("RESIDUAL_POST", (layer,)), oracle.Patch((1,)))] for layer in range(host.oracle.layers)]
    assert_close(measured(host, plan), np.tile(clean(host, OTHER), (host.oracle.layers, 1)))


def test_i4_restoring_the_last_layer_at_the_last_position(host: Host) -> None:
    edit = Edit(Site("RESIDUAL_POST", (host.oracle.layers - 1,), positions=(-1,)), oracle.Patch((1,)))
    before, after = logits_of(host, [edit])
    assert_close(after[-1], read(host, Site("LOGITS"), ids=OTHER)["LOGITS", 0][-1])
    assert_close(after[:-1], before[:-1])


@pytest.mark.parametrize("component", [component for component in COMPONENTS if component != "LOGITS"])
def test_i5_what_happens_later_does_not_reach_earlier_positions(host: Host, component: str) -> None:
    edit = Edit(Site(component, every_layer(host, component), positions=(4,)), oracle.Scale(-0.5))
    before, after = logits_of(host, [edit])
    assert_close(after[:4], before[:4])
    assert np.abs(after[4:] - before[4:]).max() > 1e-3


def test_i6_the_embeddings_of_another_prompt_are_that_prompt(host: Host) -> None:
    assert_close(measured(host, [[Edit(Site("TOKEN_EMBEDDING"), oracle.Patch((1,)))]])[0], clean(host, OTHER))


def test_i6_restoring_the_corrupted_embedding_is_the_clean_run(host: Host) -> None:
    answer = trace(
        host, subject_positions=pb.PositionList(positions=[3]), components=[pb.COMPONENT_TOKEN_EMBEDDING], positions=[3]
    )
    assert_close(answer.grid("TOKEN_EMBEDDING", "probabilities", [-1], [3])[0, 0], np.exp(clean(host)))


def test_i7_noise_of_no_deviation_changes_no_cell(host: Host) -> None:
    answer = trace(host, gaussian=pb.CausalTracing.Gaussian(standard_deviation=0.0, samples=2))
    assert answer.corruption is not None
    assert_close(answer.corruption.probabilities, np.exp(clean(host)))
    for component in DEFAULT_COMPONENTS:
        for cell in answer.cells[component].values():
            assert_close(cell["probabilities"], np.exp(clean(host)))
            assert_close(cell["deviations"], np.zeros(2))


def test_i7_a_restoration_before_the_subject_is_the_corrupted_run(host: Host) -> None:
    answer = trace(host, positions=[0, 1], gaussian=pb.CausalTracing.Gaussian(samples=3))
    assert answer.corruption is not None
    for component in DEFAULT_COMPONENTS:
        for cell in answer.cells[component].values():
            assert_close(cell["probabilities"], answer.corruption.probabilities)


def test_i7_noise_depends_on_the_seed_alone(host: Host) -> None:
    layers, positions = range(host.oracle.layers), range(len(IDS))
    seeds = (4, 4, 5)
    first, again, other = (trace(host, gaussian=pb.CausalTracing.Gaussian(seed=seed, samples=3)) for seed in seeds)
    part = trace(host, gaussian=pb.CausalTracing.Gaussian(seed=4, samples=3), layers=[2], positions=[3, 5])
    for component in DEFAULT_COMPONENTS:
        whole = first.grid(component, "probabilities", layers, positions)
        np.testing.assert_array_equal(whole, again.grid(component, "probabilities", layers, positions))
        assert np.abs(whole - other.grid(component, "probabilities", layers, positions)).max() > 1e-4
        assert_close(part.grid(component, "probabilities", [2], [3, 5]), whole[[3, 5]][:, [2]])


@pytest.mark.parametrize("component", ["MLP_OUT", "ATTENTION_OUT"])
def test_i8_windows_of_one_layer_and_of_all(host: Host, component: str) -> None:
    """With a counterfactual for corruption, a cell is a patch from the clean prompt into the other one."""
    fields = {
        "counterfactual": wire.prompt(OTHER),
        "components": [wire.component(component)],
        "subject_positions": None,
    }
    layers, positions = range(host.oracle.layers), range(len(IDS))
    one = trace(host, window=1, **fields).grid(component, "probabilities", layers, positions)
    every = trace(host, window=2 * host.oracle.layers, **fields).grid(component, "probabilities", layers, positions)
    single = Sweep(Edit(Site(component), oracle.Patch((0,))))
    together = Sweep(Edit(Site(component), oracle.Patch((0,))), frozenset({"LAYER"}))
    shape = (host.oracle.layers, len(IDS), len(TARGETS))
    assert_close(one, np.exp(measured(host, single, OTHER)).reshape(shape).swapaxes(0, 1))
    all_layers = np.exp(measured(host, together, OTHER))[:, None].repeat(host.oracle.layers, 1)
    assert_close(every, all_layers)


def test_i9_the_residual_stream_is_a_sum(host: Host) -> None:
    names = ("RESIDUAL_PRE", "ATTENTION_OUT", "RESIDUAL_MID", "MLP_OUT", "RESIDUAL_POST")
    values = read(host, *(Site(name) for name in names))
    for layer in range(host.oracle.layers):
        before, attention, middle, mlp, after = (values[name, layer] for name in names)
        assert_close(middle, before + attention)
        assert_close(after, before + attention + mlp)
        if layer + 1 < host.oracle.layers:
            np.testing.assert_array_equal(values["RESIDUAL_PRE", layer + 1], after)


def test_i10_heads_and_bias_add_up_to_what_attention_adds(host: Host) -> None:
    values = read(host, Site("HEAD_OUT"), Site("ATTENTION_OUT"))
    for layer, projection in enumerate(modules_of(host.oracle.model).attention_projection):
        weight = projection.weight.detach().numpy()
        # GPT-2's Conv1D keeps its weight the other way round.
        weight = weight if host.family == "gpt2" else weight.T
        by_head = weight.reshape(host.oracle.heads, -1, host.oracle.hidden_size)
        contributions = np.einsum("thd,hdm->thm", values["HEAD_OUT", layer], by_head)
        bias = 0.0 if projection.bias is None else projection.bias.detach().numpy()
        assert_close(values["ATTENTION_OUT", layer], contributions.sum(1) + bias)


def test_i11_patterns_are_distributions_and_mix_the_values(host: Host) -> None:
    names = ("QUERY", "KEY", "VALUE", "ATTENTION_SCORES", "ATTENTION_PATTERN", "HEAD_OUT")
    values = read(host, *(Site(name) for name in names))
    group = host.oracle.heads // host.oracle.key_value_heads
    future = np.triu(np.ones((len(IDS), len(IDS)), bool), 1)
    for layer in range(host.oracle.layers):
        query, key, value, scores, pattern, mixed = (values[name, layer] for name in names)
        assert_close(pattern.sum(-1), np.ones(pattern.shape[:2]))
        assert not pattern[:, future].any()
        assert np.isneginf(scores[:, future]).all()
        assert np.isfinite(scores[:, ~future]).all()
        assert_close(mixed, np.einsum("hqk,khd->qhd", pattern, value.repeat(group, 1)))
        products = np.einsum("qhd,khd->hqk", query, key.repeat(group, 1)) / np.sqrt(host.oracle.head_size)
        assert_close(scores[:, ~future], products[:, ~future])
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        assert_close(pattern, exponents / exponents.sum(-1, keepdims=True))


def test_i11_a_pattern_put_back_changes_nothing(host: Host) -> None:
    pattern = read(host, Site("ATTENTION_PATTERN", (2,)))["ATTENTION_PATTERN", 2]
    put_back = Edit(Site("ATTENTION_PATTERN", (2,)), oracle.Set(pattern))
    assert_close(measured(host, [[put_back]])[0], clean(host))


def test_i12_the_parts_of_the_stream_add_up_to_the_logits(host: Host) -> None:
    values = read(host, Site("RESIDUAL_PRE", (0,)), Site("ATTENTION_OUT"), Site("MLP_OUT"), Site("LOGITS"))
    parts = [values["RESIDUAL_PRE", 0]]
    for layer in range(host.oracle.layers):
        parts += [values["ATTENTION_OUT", layer], values["MLP_OUT", layer]]
    stacked = np.stack(parts).astype(np.float64)
    modules = modules_of(host.oracle.model)
    norm: Any = modules.final_norm
    weight = norm.weight.detach().numpy().astype(np.float64)
    unembedding = modules.unembedding.weight.detach().numpy().astype(np.float64)
    bias = np.zeros(len(unembedding))
    if host.family == "gpt2":
        stacked -= stacked.mean(-1, keepdims=True)
        bias = unembedding @ norm.bias.detach().numpy()
        epsilon = norm.eps
    else:
        epsilon = norm.variance_epsilon
    scale = np.sqrt((stacked.sum(0) ** 2).mean(-1, keepdims=True) + epsilon)
    attributed = (stacked / scale * weight) @ unembedding.T
    assert_close(attributed.sum(0) + bias, values["LOGITS", 0])


def test_i13_the_lens_at_the_last_depth_is_the_model(host: Host) -> None:
    targets = [wire.target(one) for one in TARGETS]
    request = pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, token_probability=pb.TokenProbability())
    columns = host.trace(request).columns
    assert len(columns["log_probabilities"]) == host.oracle.layers + 1
    assert_close(columns["log_probabilities"][-1], clean(host))
    assert_close(columns["kl_divergences"][-1], 0.0)
    # At any depth it is the patchscope that carries that depth's state to the last block's output.
    states = read(host, Site("RESIDUAL_POST"))
    last = host.oracle.layers - 1
    for layer in range(last):
        state = states["RESIDUAL_POST", layer][-1]
        carried = Edit(Site("RESIDUAL_POST", (last,), positions=(-1,)), oracle.Set(state))
        assert_close(measured(host, [[carried]])[0], columns["log_probabilities"][layer + 1])


def test_i17_no_gradient_after_the_position_that_is_read(host: Host) -> None:
    request = pb.TraceRequest(
        prompt=wire.prompt(IDS),
        targets=[wire.target(one) for one in TARGETS],
        position=4,
        token_probability=pb.TokenProbability(gradient_norms=True, metric=pb.METRIC_LOGIT),
    )
    norms = host.trace(request).columns["gradient_norms"]
    assert norms.shape == (host.oracle.layers + 1, len(IDS), len(TARGETS))
    assert not norms[:, 5:].any()
    assert (norms[:-1, :5] > 0).all()
    assert (norms[-1, 4] > 0).all()
    assert not norms[-1, :4].any()


def test_i24_a_run_of_a_sweep_is_that_run_alone(host: Host) -> None:
    units = tuple(range(0, 40, 2))
    sweep = Sweep(Edit(Site("NEURON", (1, 2), units, (1, -1)), oracle.Scale(0.0)))
    together = measured(host, sweep)
    for index in (0, 7, 41, 79):
        alone = measured(host, [host.oracle.expand(sweep, len(IDS))[index]])
        assert_close(together[index], alone[0])


def test_i25_company_of_other_lengths_changes_nothing(host: Host) -> None:
    prompts = [IDS, LONGER, IDS[:3], OTHER, LONGER[:9], IDS[:1]]
    requests = [
        wire.intervene(ids, Sweep(Edit(Site("MLP_OUT"), oracle.Scale(0.0))), TARGETS, kl_divergence=True)
        for ids in prompts
    ]
    alone = [host.intervene(request).columns for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        company = [answer.columns for answer in pool.map(host.intervene, requests)]
    for first, second in zip(alone, company, strict=True):
        for name, values in first.items():
            assert_close(second[name], values, name)


def hooks(model: torch.nn.Module) -> int:
    """How many hooks hang on a model, of any kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@contextmanager
def untouched(host: Host) -> Iterator[None]:
    """The server's model has as many hooks after the block as before, and computes the same bits."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = host.server.model(torch.tensor([IDS]), use_cache=False).logits
        return logits

    implementation = host.server.model.config._attn_implementation
    counted, before = hooks(host.server.model), forward()
    yield
    # A backward pass has the model to itself: when it is answered, nothing of an earlier request is still running.
    method = pb.TokenProbability(gradient_norms=True)
    host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), token_probability=method))
    assert hooks(host.server.model) == counted
    assert host.server.model.config._attn_implementation == implementation
    assert torch.equal(forward(), before)


def large() -> pb.InterveneRequest:
    """A sweep of some thousand runs."""
    return wire.intervene(LONGER, Sweep(Edit(Site("NEURON"), oracle.Scale(0.0))), TARGETS, top_k=5)


def test_i29_nothing_is_left_after_success(host: Host) -> None:
    with untouched(host):
        for component in COMPONENTS:
            site = Site(component, every_layer(host, component), positions=(-1,))
            measured(host, [[Edit(site, oracle.Scale(0.5))]])
        trace(host, gaussian=pb.CausalTracing.Gaussian(samples=2))
        read(host, *(Site(component) for component in COMPONENTS))
        method = pb.TokenProbability(gradient_norms=True)
        host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), token_probability=method))
    assert all(parameter.grad is None for parameter in host.server.model.parameters())


def test_i29_nothing_is_left_after_an_error(host: Host) -> None:
    with untouched(host):
        bad = wire.intervene(IDS, [[Edit(Site("MLP_OUT", (99,)), oracle.Scale(0.5))]], TARGETS)
        assert wire.refusal(host.stub.Intervene(bad, timeout=DEADLINE)).code == grpc.StatusCode.INVALID_ARGUMENT


def test_i29_nothing_is_left_after_cancellation(host: Host) -> None:
    with untouched(host):
        call = host.stub.Intervene(large(), timeout=DEADLINE)
        next(iter(call))
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED


def test_i29_nothing_is_left_after_the_deadline(host: Host) -> None:
    with untouched(host):
        refused = wire.refusal(host.stub.Intervene(large(), timeout=0.05))
        assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_i30_what_is_captured_is_a_copy(host: Host) -> None:
    """Every component read in one run, beside edits of every component, is what it was when it was computed."""
    sites = [Site(component) for component in COMPONENTS]
    run = [Edit(Site(name, every_layer(host, name), positions=(2,)), oracle.Scale(0.5)) for name in COMPONENTS]
    answer = host.intervene(wire.intervene(IDS, [run], TARGETS, activations=[wire.site(site) for site in sites]))
    for index, edited in ((-1, host.oracle.run(IDS)), (0, host.oracle.run(IDS, run))):
        for number, site in enumerate(sites):
            for layer in host.oracle.layers_of(site):
                expected = edited.values[site.component, layer].numpy()
                assert_close(answer.activations[index, number, layer], expected, f"{index} {site.component} {layer}")
