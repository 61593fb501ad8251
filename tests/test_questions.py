"""The ready-made questions, asked of a real server, against the oracle and the papers' formulas by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sonde
import torch
from sonde import questions
from sonde._ask.sites import site

from tests.conftest import Host
from tests.support import oracle
from tests.support.generating import continued_logits
from tests.support.oracle import Edit, Site, window_layers
from tests.support.tolerance import FLOAT32, assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
SHORT = [17, 18, 250]
RIGHT, WRONG = 41, 200
LAST = len(IDS) - 1


@pytest.fixture
def client(host: Host) -> Iterator[sonde.Client]:
    with sonde.Client(host.server.address) as client:
        yield client


def difference(logits: torch.Tensor) -> float:
    return float(logits[RIGHT] - logits[WRONG])


def value(host: Host, ids: list[int], component: str, layer: int) -> npt.NDArray[np.float32]:
    return host.oracle.run(ids).values[component, layer].numpy()


# ------------------------------------------------------------------ directions


def test_a_steering_vector_is_the_mean_difference(host: Host, client: sonde.Client) -> None:
    pairs = [(IDS, OTHER), (SHORT, IDS)]
    found = questions.steering_vector(client, pairs, layers=[2, 0])
    for row, layer in enumerate((2, 0)):
        first, second = (
            value(host, positive, "RESIDUAL_POST", layer)[-1] - value(host, negative, "RESIDUAL_POST", layer)[-1]
            for positive, negative in pairs
        )
        assert_close(found[row], (first + second) / 2)
    assert questions.steering_vector(client, pairs).shape == (host.oracle.layers, host.oracle.hidden_size)


def test_steering_goes_on_in_what_is_generated(host: Host, client: sonde.Client) -> None:
    vector = questions.steering_vector(client, [(IDS, OTHER)], layers=[1])[0]
    generation = sonde.Generation(5, ignore_end_token=True)
    edit = questions.steer(vector, layer=1, coefficient=2.0, from_position=3)
    said = client.intervene(IDS, edit, generation=generation).generated[0]
    assert said is not None
    ids = [token.id for token in said.tokens]
    by_hand = Edit(Site("RESIDUAL_POST", (1,), from_position=3), oracle.Add(2 * vector))
    assert ids == continued_logits(host.oracle, IDS, ids[:-1], [by_hand]).argmax(-1).tolist()


def test_each_strength_of_a_direction_is_a_run_of_its_own(host: Host, client: sonde.Client, tmp_path: Path) -> None:
    vector = questions.steering_vector(client, [(IDS, OTHER)], layers=[1])[0]
    found = questions.steering_strengths(client, IDS, vector, layer=1, strengths=[2.0, -1.0], targets=[RIGHT, WRONG])
    for strength, effects in zip((2.0, -1.0), found.effects, strict=True):
        by_hand = Edit(Site("RESIDUAL_POST", (1,), from_position=0), oracle.Add(strength * vector))
        logits = [host.oracle.run(IDS, edits).logits[LAST].log_softmax(-1) for edits in ([by_hand], [])]
        assert_close(effects, [float(logits[0][token] - logits[1][token]) for token in (RIGHT, WRONG)])
    assert found.result.labels == ("strength 2", "strength -1")
    at = [
        questions.steering_strengths(client, IDS, vector, layer=1, strengths=[2.0], from_position=place).effects
        for place in ("end", len(IDS) - 1)
    ]
    assert np.array_equal(*at)
    found.save(tmp_path / "strengths.npz")
    assert sonde.load(tmp_path / "strengths.npz").effects.tolist() == found.effects.tolist()


def test_ablating_a_direction_leaves_nothing_of_it(host: Host, client: sonde.Client) -> None:
    direction = np.random.RandomState(4).randn(host.oracle.hidden_size).astype(np.float32)
    edits = questions.directional_ablation(direction, client.model.layers)
    result = client.intervene(IDS, [edits], activations=[sonde.residual(), sonde.residual(at="mid")])
    for number in range(2):
        stream = result[0].activations[number]
        assert np.abs(stream @ direction).max() < FLOAT32 * 10 * np.abs(stream).max() * np.abs(direction).sum()
    assert np.abs(result.clean.activations[0] @ direction).max() > 1e-2


def test_no_pairs_are_an_error_at_once(client: sonde.Client) -> None:
    with pytest.raises(sonde.InvalidRequest, match="pairs"):
        questions.steering_vector(client, [])


# ------------------------------------------------------------------ patching and knockout


def test_patching_scores_every_place(host: Host, client: sonde.Client) -> None:
    found = questions.activation_patching(client, IDS, OTHER, RIGHT, WRONG, component="mlp_out", layers=[0, 2])
    clean, corrupted = (difference(host.oracle.run(ids).logits[-1]) for ids in (IDS, OTHER))
    assert_close([found.clean, found.corrupted], [clean, corrupted])
    assert list(found.axes) == ["layer", "unit", "position"]
    assert found.scores.shape == (2, 1, len(IDS))
    for row, layer in enumerate((0, 2)):
        for position in range(len(IDS)):
            edit = Edit(Site("MLP_OUT", (layer,), positions=(position,)), oracle.Patch((0,)))
            patched = difference(host.oracle.run(OTHER, [edit], [IDS]).logits[-1])
            assert found.scores[row, 0, position] == pytest.approx(
                (patched - corrupted) / (clean - corrupted), abs=1e-4
            )


def test_patching_the_whole_last_state_is_the_clean_run(host: Host, client: sonde.Client) -> None:
    last = host.oracle.layers - 1
    found = questions.activation_patching(client, IDS, OTHER, RIGHT, WRONG, layers=[last])
    assert_close(found.scores[0, 0], [*[0.0] * LAST, 1.0])


def test_patching_between_prompts_that_answer_alike_is_refused(client: sonde.Client) -> None:
    with pytest.raises(ValueError, match="logit difference"):
        questions.activation_patching(client, IDS, IDS, RIGHT, WRONG, layers=[0])


def test_patching_over_pairs_is_the_mean_of_the_pairs(host: Host, client: sonde.Client, tmp_path: Path) -> None:
    pairs = [(IDS, OTHER), (OTHER, SHORT)]
    cases = [sonde.Case(bad, sources=[sonde.Prompt(good)], targets=[(RIGHT, WRONG)]) for good, bad in pairs]
    found = questions.average_activation_patching(client, cases, component="head_out", positions="end", layers=[0, 2])
    clean, corrupted = (
        np.mean([difference(host.oracle.run(pair[side]).logits[-1]) for pair in pairs]) for side in (0, 1)
    )
    assert_close([found.clean, found.corrupted], [clean, corrupted])
    assert found.axes["position"] == ("last",)
    for row, layer in enumerate((0, 2)):
        for head in range(host.oracle.heads):
            patched = []
            for good, bad in pairs:
                edit = Edit(Site("HEAD_OUT", (layer,), (head,), (len(bad) - 1,)), oracle.Patch((0,), (len(good) - 1,)))
                patched.append(difference(host.oracle.run(bad, [edit], [good]).logits[-1]))
            score = (np.mean(patched) - corrupted) / (clean - corrupted)
            assert found.scores[row, head, 0] == pytest.approx(score, abs=1e-4)
            error = np.std(patched, ddof=1) / np.sqrt(2) / abs(clean - corrupted)
            assert found.standard_errors[row, head, 0] == pytest.approx(error, abs=1e-4)
    found.save(tmp_path / "patching.npz")
    assert repr(sonde.load(tmp_path / "patching.npz")) == repr(found)
    assert len(found.to_dataframe()) == found.scores.size


def test_knockout_is_the_papers_relative_change(host: Host, client: sonde.Client) -> None:
    found = questions.attention_knockout(client, IDS, [1, 2], target=RIGHT, window=3)
    before = host.oracle.run(IDS).logits[-1].double().softmax(-1)[RIGHT]
    for layer in range(host.oracle.layers):
        around = tuple(window_layers(layer, 3, host.oracle.layers))
        edit = Edit(Site("ATTENTION_SCORES", around, positions=(-1,)), oracle.Knockout((1, 2)))
        after = host.oracle.run(IDS, [edit]).logits[-1].double().softmax(-1)[RIGHT]
        assert found.changes[layer] == pytest.approx(float(100 * (after - before) / before), abs=1e-2)
    assert found.layers == tuple(range(host.oracle.layers))


# ------------------------------------------------------------------ means


@pytest.mark.parametrize(
    ("component", "place"), [("HEAD_OUT", "head_out"), ("NEURON", "neuron"), ("MLP_OUT", "mlp_out")]
)
def test_the_mean_is_over_every_token(host: Host, client: sonde.Client, component: str, place: str) -> None:
    prompts = [IDS, SHORT]
    found = questions.mean_activation(client, prompts, site(place, layers=[1]))  # type: ignore[arg-type]
    whole = np.concatenate([value(host, ids, component, 1) for ids in prompts])
    assert_close(found[0], whole.mean(0))


def test_mean_ablation_puts_the_mean_in_place(host: Host, client: sonde.Client) -> None:
    prompts = [OTHER, SHORT]
    place = sonde.head(layer=[0, 2], unit=[1, 3], position=[2, -1])
    means = {
        layer: np.concatenate([value(host, ids, "HEAD_OUT", layer) for ids in prompts]).mean(0) for layer in (0, 2)
    }

    def by_hand(pairs: list[tuple[int, int]]) -> float:
        edits = [
            Edit(Site("HEAD_OUT", (layer,), (unit,), (2, LAST)), oracle.Set(means[layer][[unit]]))
            for layer, unit in pairs
        ]
        return float(host.oracle.run(IDS, edits).logits[-1].log_softmax(-1)[RIGHT])

    every = [(layer, unit) for layer in (0, 2) for unit in (1, 3)]
    together = questions.mean_ablation(client, IDS, prompts, place, targets=RIGHT)
    assert_close(together.log_probabilities, [[by_hand(every)]])
    apart = questions.mean_ablation(client, IDS, prompts, place, separately=True, targets=RIGHT)
    assert_close(apart.log_probabilities, [[by_hand([pair])] for pair in every])


def test_patterns_have_no_mean_over_prompts(client: sonde.Client) -> None:
    with pytest.raises(sonde.InvalidRequest, match="attention_pattern"):
        questions.mean_activation(client, [IDS], site("attention_pattern", layers=[0]))


# ------------------------------------------------------------------ reading the stream


def shares_by_hand(host: Host, position: int, *, heads: bool) -> tuple[dict[str, float], float]:
    """Each part through the frozen final norm and the unembedding, from the weights."""
    run, parts = host.oracle.run(IDS), host.oracle.parts
    norm = parts.final_norm
    stream = run.values["RESIDUAL_POST", host.oracle.layers - 1][position].double()
    centred = isinstance(norm, torch.nn.LayerNorm)
    epsilon = norm.eps if centred else norm.variance_epsilon
    middle = stream - stream.mean() if centred else stream
    scale = (middle.square().mean() + epsilon).sqrt()
    direction = (parts.unembedding.weight[RIGHT] - parts.unembedding.weight[WRONG]).double()

    def share(part: torch.Tensor) -> float:
        part = part.double()
        part = part - part.mean() if centred else part
        return float((norm.weight.double() * part / scale) @ direction)

    found = {"embedding": share(run.values["RESIDUAL_PRE", 0][position])}
    for layer in range(host.oracle.layers):
        projection = parts.attention_projection[layer]
        weight = projection.weight if isinstance(projection, torch.nn.Linear) else projection.weight.T
        mixed = run.values["HEAD_OUT", layer][position]
        if heads:
            size = host.oracle.head_size
            for number in range(host.oracle.heads):
                part = weight[:, number * size : (number + 1) * size] @ mixed[number]
                found[f"head {layer}:{number}"] = share(part)
            rest = torch.zeros_like(stream) if projection.bias is None else projection.bias
            found[f"attention {layer}"] = share(rest)
        else:
            found[f"attention {layer}"] = share(run.values["ATTENTION_OUT", layer][position])
        found[f"mlp {layer}"] = share(run.values["MLP_OUT", layer][position])
    return found, float(norm.bias.double() @ direction) if centred else 0.0


@pytest.mark.parametrize(("position", "heads"), [(-1, False), (3, True)])
def test_direct_logit_attribution_adds_up_to_the_logit(
    host: Host, client: sonde.Client, position: int, heads: bool
) -> None:
    with torch.no_grad():
        expected, bias = shares_by_hand(host, position, heads=heads)
        whole = difference(host.oracle.run(IDS).logits[position])
    found = questions.direct_logit_attribution(client, IDS, (RIGHT, WRONG), position=position, heads=heads)
    assert list(found.names) == list(expected)
    np.testing.assert_allclose(found.contributions, list(expected.values()), atol=2e-4)
    assert found.bias == pytest.approx(bias, abs=2e-4)
    assert found.logit == pytest.approx(whole, abs=1e-4)
    assert found.contributions.sum() + found.bias == pytest.approx(found.logit, abs=1e-3)


def test_the_lens_at_every_position(host: Host, client: sonde.Client) -> None:
    table = questions.logit_lens(client, IDS, positions=[0, 3, -1])
    assert table.positions == (0, 3, LAST)
    for column, position in enumerate(table.positions):
        everything = host.oracle.lens(IDS, [], position).everything
        for row in range(host.oracle.layers + 1):
            cell = table.cells[row][column]
            assert cell.log_probability == pytest.approx(float(everything[row].max()), abs=1e-4)
            assert everything[row, cell.id] == pytest.approx(float(everything[row].max()), abs=1e-4)
    assert len(str(table).splitlines()) == host.oracle.layers + 2
    assert questions.logit_lens(client, IDS).positions == tuple(range(len(IDS)))


def test_patchscopes_say_what_the_oracle_says(host: Host, client: sonde.Client) -> None:
    result = questions.patchscopes(
        client, OTHER, position=2, layers=[0, 3], prompt=IDS, target_layer=1, target_position=4, max_new_tokens=5
    )
    for run, layer in enumerate((0, 3)):
        said = result.generated[run]
        assert said is not None
        ids = [token.id for token in said.tokens]
        edit = Edit(Site("RESIDUAL_POST", (1,), positions=(4,)), oracle.Patch((0,), (2,), layer))
        logits = continued_logits(host.oracle, IDS, ids[:-1], [edit], [OTHER])
        assert ids == logits.argmax(-1).tolist()


def test_a_patchscope_into_its_own_place_changes_nothing(host: Host, client: sonde.Client) -> None:
    result = questions.patchscopes(client, IDS, position=-2, prompt=IDS, target_position=-2, max_new_tokens=5)
    assert result.clean.continuation is not None
    assert [said.text for said in result.generated if said] == [result.clean.continuation.text] * host.oracle.layers


# ------------------------------------------------------------------ averages


def about(ids: list[int], subject: list[int], target: int) -> sonde.Case:
    return sonde.Case(ids, targets=target, spans={"subject": subject})


def test_the_average_is_that_of_the_traces(host: Host, client: sonde.Client) -> None:
    method = sonde.CausalTracing(samples=2, window=2, components=["residual_post", "mlp_out"])
    prompts = [(IDS, [1, 2, 3]), (OTHER, [2]), (SHORT, [0, 1])]
    cases = [about(ids, subject, client.trace(ids).top(1)[0].id) for ids, subject in prompts]
    wrong = about(IDS, [0], (client.trace(IDS).top(1)[0].id + 1) % host.oracle.vocabulary)
    seen: list[tuple[int, int]] = []
    found = questions.average_causal_trace(
        client, [*cases, wrong], method=method, progress=lambda done, total: seen.append((done, total))
    )
    assert found.used.tolist() == [True, True, True, False]
    assert seen[-1][0] == seen[-1][1] > 0
    assert repr(found).startswith("AverageTrace(3 of 4 cases")
    assert found.counts.tolist() == [3, 1, 3, 3, 3, 3]
    grids = []
    for case, (_, subject) in zip(cases, prompts, strict=True):
        traced = sonde.CausalTracing(subject=subject, samples=2, window=2, components=["residual_post", "mlp_out"])
        grids.append(client.trace(case.prompt, targets=case.targets, method=traced))
    for name in ("residual_post", "mlp_out"):
        restored = [grid.restored[name][:, :, 0] for grid in grids]
        low = np.mean([grid.corrupted[0] for grid in grids])
        rows = {
            0: [restored[0][1], restored[1][2], restored[2][0]],
            1: [restored[0][2]],
            2: [restored[0][3], restored[1][2], restored[2][1]],
            4: [restored[0][5], restored[1][4], restored[1][5]],
            5: [restored[0][-1], restored[1][-1], restored[2][-1]],
        }
        for kind, some in rows.items():
            assert_close(found.effects[name][kind], np.mean(some, axis=0) - low)
            assert_close(found.deviations[name][kind], np.std(some, axis=0))
            assert found.result.counts.restored[name][kind, 0, 0] == len(some)
    assert found.clean == pytest.approx(float(np.mean([grid.clean[0] for grid in grids])))
    assert found.corrupted == pytest.approx(float(np.mean([grid.corrupted[0] for grid in grids])))


def test_nothing_predicted_is_nothing_to_trace(host: Host, client: sonde.Client) -> None:
    wrong = (client.trace(IDS).top(1)[0].id + 1) % host.oracle.vocabulary
    with pytest.raises(ValueError, match="none of the 1 targets"):
        questions.average_causal_trace(client, [about(IDS, [1], wrong)])
    with pytest.raises(sonde.InvalidRequest, match="subject"):
        questions.average_causal_trace(client, [sonde.Case(IDS, targets=wrong)])


def test_the_average_is_drawn(client: sonde.Client, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "average.png"
    case = about(IDS, [1, 2], client.trace(IDS).top(1)[0].id)
    method = sonde.CausalTracing(samples=1)
    found = questions.average_causal_trace(client, [case], method=method)
    assert questions.average_causal_trace_cost(client, [case], method=method).cases == 1
    found.save(tmp_path / "average.npz")
    assert repr(sonde.load(tmp_path / "average.npz")) == repr(found)
    figure = found.plot(picture)
    panels = [axes.get_title(loc="left") for axes in figure.axes]
    assert {"residual stream after the block", "MLP output", "attention output"} <= set(panels)
    assert picture.read_bytes().startswith(b"\x89PNG")
