"""Generation under intervention, against transformers' own generate and against full recomputation by hand."""

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
import sonde
import torch
from hypothesis import strategies as st
from sonde import cli
from sonde._arrays import visible
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import Base, Change, Choice, PlacedEdit, Reading, Run
from sonde_server.questions import costs
from sonde_server.questions.places import Component
from sonde_server.sharing.driving import complete
from torch import Tensor

from tests.conftest import DEADLINE, EFFORT, Host
from tests.support import oracle, strategies, wire
from tests.support.generating import continued_logits, gumbel
from tests.support.hooks import modules_of
from tests.support.oracle import COMPONENTS, UNIT_FIRST, UNLAYERED, Edit, Site, Sweep, Target
from tests.support.tolerance import FLOAT32, assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
LONGER = [17, 18, 250, 305, 61, 2, 99, 101, 307, 44, 46]
SOURCES = [IDS, OTHER, LONGER]
PROMPT = len(IDS)
NEW = 6
NOTHING = Edit(Site("RESIDUAL_POST", (0,)), oracle.Scale(1.0))


def asked(
    plan: Sequence[Sequence[Edit]] | Sweep, ids: Sequence[int] = IDS, new: int = NEW, **fields: Any
) -> pb.InterveneRequest:
    fields.setdefault("ignore_end_token", True)
    return wire.intervene(ids, plan, [Target(41)], SOURCES, generation=pb.Generation(max_new_tokens=new, **fields))


def said(host: Host, plan: Sequence[Sequence[Edit]] | Sweep, **fields: Any) -> dict[int, list[int]]:
    """Tokens by run; also checks that every run ended, and that each token has its text."""
    answer = host.intervene(asked(plan, **fields))
    for one in answer.said.values():
        assert one.finish_reason
        assert all(one.texts)
    return {run: one.tokens for run, one in answer.said.items()}


def plain(host: Host, ids: Sequence[int], new: int, **settings: Any) -> list[int]:
    """Transformers' own greedy continuation."""
    with torch.no_grad():
        whole = host.oracle.model.generate(torch.tensor([list(ids)]), max_new_tokens=new, do_sample=False, **settings)
    return [int(token) for token in whole[0][len(ids) :]]


def assert_chosen(tokens: Sequence[int], logits: Tensor, noise: Any = 0.0, temperature: float = 1.0) -> None:
    """Each token has the largest score of its row; scores that are equal to rounding may stand for each other."""
    scores = logits.double().numpy() / temperature + noise
    for token, row in zip(tokens, scores, strict=True):
        assert row[token] >= row.max() - 10 * FLOAT32 * max(1.0, np.abs(row).max())


# ------------------------------------------------------------------ without edits


@pytest.mark.parametrize("text", ["The Eiffel Tower is in the city of", "Paris", "When Mary and John"])
def test_an_unchanged_run_is_generate(host: Host, text: str) -> None:
    ids = host.ids(text)
    answer = host.intervene(
        wire.intervene(text, [[NOTHING]], [Target(41)], generation=pb.Generation(max_new_tokens=24))
    )
    expected = plain(host, ids, 24)
    for run in (-1, 0):
        assert answer.said[run].tokens == expected
    ended = expected[-1] == host.tokenizer.eos_token_id
    assert answer.said[0].finish_reason == (
        pb.Generated.FINISH_REASON_END_TOKEN if ended else pb.Generated.FINISH_REASON_LENGTH
    )


def test_it_stops_at_the_end_token_unless_told_not_to(host: Host) -> None:
    end = host.tokenizer.eos_token_id
    ending = np.zeros(host.oracle.vocabulary, np.float32)
    ending[end] = 1e4
    # From the second generated token on nothing but the end token is said; the other run says none.
    plan = [
        [Edit(Site("LOGITS", from_position=PROMPT), oracle.Add(ending))],
        [Edit(Site("LOGITS", from_position=0), oracle.Add(-ending))],
    ]
    answer = host.intervene(asked(plan, ignore_end_token=False))
    assert answer.said[0].tokens[1:] == [end]
    assert answer.said[0].finish_reason == pb.Generated.FINISH_REASON_END_TOKEN
    assert len(answer.said[1].tokens) == NEW
    assert answer.said[1].finish_reason == pb.Generated.FINISH_REASON_LENGTH
    through = host.intervene(asked(plan)).said[0]
    assert through.tokens[1:] == [end] * (NEW - 1)
    assert through.finish_reason == pb.Generated.FINISH_REASON_LENGTH


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-metaspace"])
def test_a_character_comes_with_the_last_of_its_tokens(hosts: Any, family: str) -> None:
    host = hosts[family]
    prompt, text = "Paris is", " the city of Zürich, 東京 and a 🙂."
    ids = host.ids(prompt)
    tokens = host.ids(prompt + text)[len(ids) :]
    # What is to be said is put into the logits, position by position.
    run = []
    for step, token in enumerate(tokens):
        logits = np.zeros(host.oracle.vocabulary, np.float32)
        logits[token] = 100.0
        run.append(Edit(Site("LOGITS", from_position=len(ids) - 1 + step), oracle.Set(logits)))
    parts = []
    for message in host.stub.Intervene(asked([run], ids=ids, new=len(tokens)), timeout=DEADLINE):
        parts += [part for part in message.generated if part.run == 0]
    assert [token.id for part in parts for token in part.tokens] == tokens
    assert "".join(part.text for part in parts) == text
    assert any(not part.text for part in parts)
    assert not any("\ufffd" in part.text for part in parts)


def test_the_texts_join_to_the_whole_text(host: Host) -> None:
    prompt = "Paris is Café"
    # What a model of random weights says is broken characters and odd spaces: just what has to join.
    request = wire.intervene(
        prompt, [[NOTHING]], [Target(41)], generation=pb.Generation(max_new_tokens=40, temperature=3.0, seed=5)
    )
    one = host.intervene(request).said[0]
    tokenizer = host.tokenizer
    ids = host.ids(prompt)
    whole, before = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in ([*ids, *one.tokens], ids)
    )
    assert before + one.text == whole


# ------------------------------------------------------------------ with edits


def edits_of(component: str, host: Host) -> list[Edit]:
    """Every operation at a component, at positions of the prompt and from positions on."""
    layers = () if component in UNLAYERED else (1, 2)
    shape = host.oracle.shape(component, PROMPT)
    draws = np.random.RandomState(COMPONENTS.index(component))
    width = (1,) if component in UNIT_FIRST else shape[-1:]
    value = draws.randn(*width).astype(np.float32)
    everywhere = [oracle.Scale(0.5), oracle.Set(value), oracle.Add(value), oracle.Multiply(value)]
    if component not in UNIT_FIRST:
        everywhere.append(oracle.ProjectOut(value))
    if component == "ATTENTION_SCORES":
        everywhere += [oracle.Knockout((1, -1)), oracle.Knockout()]
    found = [
        Edit(Site(component, layers, from_position=first), one) for one in everywhere for first in (0, 3, PROMPT + 2)
    ]
    somewhere = [*everywhere, oracle.Noise(0.5, 3), oracle.Patch((1,))]
    found += [
        Edit(Site(component, layers, positions=positions), one) for one in somewhere for positions in ((), (2, -1))
    ]
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_operation_goes_on_as_recomputed_in_full(host: Host, component: str) -> None:
    plan = [[edit] for edit in edits_of(component, host)]
    tokens = said(host, plan)
    for run, edits in enumerate(plan):
        logits = continued_logits(host.oracle, IDS, tokens[run][:-1], edits, SOURCES)
        assert_chosen(tokens[run], logits)


@hypothesis.settings(max_examples=8 * EFFORT)
@hypothesis.given(data=st.data())
def test_any_edits_at_any_positions(host: Host, data: st.DataObject) -> None:
    bounds = strategies.Bounds(host.oracle, PROMPT, [0, 1], [2])
    drawn = data.draw(strategies.plans(bounds))
    plan = [[one for one in run if goes_on(one)] or [NOTHING] for run in drawn]
    tokens = said(host, plan, new=4)
    for run, edits in enumerate(plan):
        assert_chosen(tokens[run], continued_logits(host.oracle, IDS, tokens[run][:-1], edits, SOURCES))


def goes_on(edit: Edit) -> bool:
    """Whether it is the same for however many keys."""
    values = getattr(edit.operation, "value", None)
    return not (
        edit.site.component in UNIT_FIRST
        and edit.site.from_position is not None
        and values is not None
        and values.ndim
        and values.shape[-1] != 1
    )


def test_steering_is_generate_with_a_cache_and_a_hook(host: Host) -> None:
    """The usual way by hand: a hook on a block, positions counted across the cached steps."""
    direction = np.random.RandomState(2).randn(host.oracle.hidden_size).astype(np.float32)
    seen = 0

    def steer(_: Any, __: Any, result: Any) -> Any:
        nonlocal seen
        hidden = result[0] if isinstance(result, tuple) else result
        for column in range(hidden.shape[1]):
            if seen + column >= 4:
                hidden[:, column] += torch.from_numpy(direction)
        seen += hidden.shape[1]
        return result

    handle = modules_of(host.oracle.model).blocks[1].register_forward_hook(steer)
    try:
        expected = plain(host, IDS, 12, eos_token_id=-1, pad_token_id=0)
    finally:
        handle.remove()
    edit = Edit(Site("RESIDUAL_POST", (1,), from_position=4), oracle.Add(direction))
    assert said(host, [[edit]], new=12)[0] == expected
    assert expected != plain(host, IDS, 12, eos_token_id=-1, pad_token_id=0)


def test_a_sweep_goes_on_as_its_runs_do_alone(host: Host) -> None:
    sweep = Sweep(Edit(Site("HEAD_OUT", (0, 2), positions=(2, 5)), oracle.Scale(-2.0)), always=(NOTHING,))
    runs = host.oracle.expand(sweep, PROMPT)
    tokens = said(host, sweep)
    assert sorted(tokens) == list(range(-1, len(runs)))
    for number, run in enumerate(runs):
        assert said(host, [run])[0] == tokens[number]


def test_readings_are_those_of_the_prompt(host: Host) -> None:
    plan = [[Edit(Site("MLP_OUT", (1,), from_position=2), oracle.Scale(0.0))], [NOTHING]]
    site = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[1], positions=[-1])
    fields: dict[str, Any] = {"kl_divergence": True, "top_k": 3, "position": 4, "activations": [site]}
    bare = host.intervene(wire.intervene(IDS, plan, [Target(41)], **fields))
    fields["generation"] = pb.Generation(max_new_tokens=NEW)
    going_on = host.intervene(wire.intervene(IDS, plan, [Target(41)], **fields))
    for name, column in bare.columns.items():
        assert_close(going_on.columns[name], column, name)
    for key, value in bare.activations.items():
        assert_close(going_on.activations[key], value)


# ------------------------------------------------------------------ identities


def test_i26_the_cache_changes_no_logit(host: Host) -> None:
    """Logits of every step, from the engine itself, beside those of full recomputation."""
    engine = host.server.scheduler.engine
    everything = tuple(Target(token) for token in range(host.oracle.vocabulary))
    flipped = [PlacedEdit(Component.KEY, layer, (1, 4), None, Change("multiply", -1.0)) for layer in (0, 3)]
    neurons = PlacedEdit(Component.NEURON, 1, tuple(range(2, PROMPT)), (3, 5), Change("set", torch.tensor(2.0)))
    blind = PlacedEdit(Component.ATTENTION_SCORES, 2, (), None, Change("knockout", keys=(0, 3)))
    with session_of(host) as session:
        (clean,) = complete(session.states([Base(tuple(IDS))]), session)
        run = Run(clean, [*flipped, neurons], Reading(PROMPT - 1, everything), choices=(Choice(PROMPT - 1),))
        row = engine.run_row(run)
        (slot,) = engine.continued_rows([row], PROMPT + NEW)
        found, tokens = [], []
        for position in range(PROMPT, PROMPT + NEW):
            (result,) = complete(session.compute([row]).take(1), session)
            (taken,) = result.taken
            assert taken is not None
            assert result.logits is not None
            found.append(result.logits)
            tokens.append(taken.token)
            going_on = [replace(edit, positions=(position,)) for edit in (neurons, blind)]
            row = engine.step_row(clean, slot, taken.token, going_on, Choice(position))
            row.reading = Reading(position, everything)
    edits = [
        Edit(Site("KEY", (0, 3), positions=(1, 4)), oracle.Scale(-1.0)),
        Edit(Site("NEURON", (1,), units=(3, 5), from_position=2), oracle.Set(np.array(2.0, np.float32))),
        Edit(Site("ATTENTION_SCORES", (2,), from_position=PROMPT), oracle.Knockout((0, 3))),
    ]
    assert_close(torch.stack(found).numpy(), continued_logits(host.oracle, IDS, tokens[:-1], edits).numpy())


def session_of(host: Host) -> Any:
    return host.server.scheduler.session(caller="test", cancelled=threading.Event())


def test_i26_the_tokens_are_those_of_prompts_that_grow(host: Host) -> None:
    """Without a cache there is only Intervene: its own top token, asked for again with each longer prompt."""
    edits = [
        Edit(Site("RESIDUAL_POST", (1,), positions=(2,)), oracle.Scale(-2.0)),
        Edit(Site("HEAD_OUT", (2,), units=(0, 3), from_position=3), oracle.Scale(0.0)),
    ]
    whole = list(IDS)
    for _ in range(NEW):
        answer = host.intervene(wire.intervene(whole, [edits], [Target(41)], top_k=1))
        whole.append(int(answer.columns["top_token_ids"][0, 0]))
    assert said(host, [edits])[0] == whole[PROMPT:]


def test_i28_ablating_a_direction_at_every_writer(host: Host) -> None:
    """It leaves nothing of the direction in the stream, and twice is once; the text is that of orthogonal weights."""
    draws = np.random.RandomState(11)
    direction = draws.randn(host.oracle.hidden_size).astype(np.float32)
    every = tuple(range(host.oracle.layers))
    writers = [Site("RESIDUAL_PRE", (0,), from_position=0)]
    writers += [Site(name, every, from_position=0) for name in ("ATTENTION_OUT", "MLP_OUT")]
    once = [Edit(site, oracle.ProjectOut(direction)) for site in writers]
    stream = pb.Site(component=pb.COMPONENT_RESIDUAL_POST)
    request = asked([once, [*once, *once]])
    request.readout.activations.append(stream)
    answer = host.intervene(request)
    assert answer.said[0].tokens == answer.said[1].tokens
    for layer in every:
        values = answer.activations[0, 0, layer]
        assert np.abs(values @ direction).max() < FLOAT32 * np.linalg.norm(values, axis=-1).max() * 10
    with orthogonalised(host, direction):
        logits = continued_logits(host.oracle, IDS, answer.said[0].tokens[:-1])
    assert_chosen(answer.said[0].tokens, logits)
    assert_close(answer.columns["logits"][0], [float(logits[0, 41])])


@contextmanager
def orthogonalised(host: Host, direction: npt.NDArray[np.float32]) -> Iterator[None]:
    """The oracle's model with everything that is written to the stream free of a direction."""
    unit = torch.from_numpy(direction / np.linalg.norm(direction)).double()
    model = host.oracle.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = host.oracle.parts

    def free(values: Tensor) -> Tensor:
        wide = values.double()
        return (wide - (wide @ unit)[..., None] * unit).float()

    with torch.no_grad():
        # The stream's entrance is embeddings and positions together; the unembedding may share the first's weights.
        entrance = parts.blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: ((free(args[0]), *args[1:]), kwargs), with_kwargs=True
        )
        for projection in (*parts.attention_projection, *parts.mlp_projection):
            transposed = isinstance(projection, torch.nn.Linear)
            weight = projection.weight.T if transposed else projection.weight
            projection.weight.copy_(free(weight).T if transposed else free(weight))
            if projection.bias is not None:
                projection.bias.copy_(free(projection.bias))
    try:
        yield
    finally:
        entrance.remove()
        model.load_state_dict(before)


def test_i22_a_query_that_sees_itself_alone_forgets_the_prompt(host: Host) -> None:
    """Every key but its own knocked out at every layer: the second token depends on the first alone."""
    every = tuple(range(host.oracle.layers))
    blind = Edit(Site("ATTENTION_SCORES", every, from_position=PROMPT), oracle.Knockout(tuple(range(PROMPT))))
    token = np.full(host.oracle.vocabulary, -1e4, np.float32)
    token[77] = 1e4
    same = Edit(Site("LOGITS", positions=(-1,)), oracle.Set(token))
    first, second = (said(host, [[blind, same]], ids=ids, new=2)[0] for ids in (IDS, OTHER))
    assert first == second
    assert first[0] == 77


# ------------------------------------------------------------------ sampling


def test_sampling_is_gumbel_max_over_the_draws_of_the_contract(host: Host) -> None:
    plan = [[Edit(Site("MLP_OUT", (1,), from_position=0), oracle.Scale(0.5))], [NOTHING]]
    tokens = said(host, plan, temperature=1.5, seed=12)
    noise = gumbel(12, NEW, host.oracle.vocabulary)
    for run, edits in enumerate(plan):
        logits = continued_logits(host.oracle, IDS, tokens[run][:-1], edits)
        assert_chosen(tokens[run], logits, noise, float(np.float32(1.5)))
    # Every run draws the same, so what changes nothing says the same.
    assert tokens[1] == tokens[-1]
    assert said(host, plan, temperature=1.5, seed=12) == tokens
    assert said(host, plan, temperature=1.5, seed=13) != tokens


def test_the_coldest_temperature_is_greedy(host: Host) -> None:
    smallest = float(np.finfo(np.float32).tiny)
    assert said(host, [[NOTHING]], temperature=smallest) == said(host, [[NOTHING]])


def test_an_unset_seed_is_1(host: Host) -> None:
    assert said(host, [[NOTHING]], temperature=2.0) == said(host, [[NOTHING]], temperature=2.0, seed=1)


# ------------------------------------------------------------------ streaming, cost, cancelling


def test_tokens_come_one_by_one_in_their_order(host: Host) -> None:
    plan = [[NOTHING], [Edit(Site("MLP_OUT", (0,)), oracle.Scale(0.0))]]
    offsets: list[set[int]] = []
    for message in host.stub.Intervene(asked(plan), timeout=DEADLINE):
        if message.generated:
            assert sorted(part.run for part in message.generated) == [-1, 0, 1]
            assert all(len(part.tokens) == 1 for part in message.generated)
            offsets.append({part.offset for part in message.generated})
    assert offsets == [{step} for step in range(NEW)]


def test_runs_beyond_what_goes_on_together_are_the_same(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(Edit(Site("HEAD_OUT", (0, 2)), oracle.Scale(0.0)), frozenset({"POSITION"}))
    whole = said(host, sweep, temperature=1.0)
    monkeypatch.setattr(costs, "MOST_CONTINUED", 3)
    assert said(host, sweep, temperature=1.0) == whole


def test_what_is_announced_is_what_is_done(host: Host) -> None:
    plan = [
        [Edit(Site("HEAD_OUT", (2,), positions=(4,)), oracle.Scale(0.0))],
        [Edit(Site("LOGITS", from_position=0), oracle.Scale(2.0))],
        [Edit(Site("RESIDUAL_PRE", (0,), from_position=PROMPT + 1), oracle.Scale(2.0))],
    ]
    ids = [311, 12, 55, 7, 100, 44, 9]
    request = asked(plan, ids=ids)
    del request.sources[:]
    request.dry_run = True
    announced = host.intervene(request).context.cost
    layers = host.oracle.layers
    # The first run computes from block 2 and position 4 on, of the last block only the last position.
    prefill = PROMPT * layers + (layers - 3) * (PROMPT - 4) + 1
    assert announced.token_layers == prefill + 4 * (NEW - 1) * layers
    steps = sum(PROMPT + step for step in range(NEW))
    assert announced.full_token_layers == 4 * steps * layers
    work = host.server.scheduler.engine.work
    before = work.token_layers
    request.dry_run = False
    answer = host.intervene(request)
    assert answer.context.cost == announced
    assert work.token_layers - before == announced.token_layers
    assert sum(answer.sizes) <= announced.answer_bytes + 1024 * answer.messages


def test_cancelling_stops_the_work(host: Host) -> None:
    work = host.server.scheduler.engine.work
    call = host.stub.Intervene(asked([[NOTHING]], new=50), timeout=DEADLINE)
    before = work.token_layers
    for message in call:
        if message.generated and message.generated[0].offset == 2:
            break
    call.cancel()
    # Another question is answered after what was queued before it.
    while host.server.scheduler.queued_runs:
        host.trace(pb.TraceRequest(prompt=wire.prompt(IDS)))
    stopped = work.token_layers
    host.trace(pb.TraceRequest(prompt=wire.prompt(IDS)))
    assert work.token_layers == stopped
    assert stopped - before < 2 * 50 * host.oracle.layers


def test_callers_generate_beside_each_other(host: Host) -> None:
    plans = [[[Edit(Site("HEAD_OUT", (layer,), from_position=2), oracle.Scale(0.0))]] for layer in range(3)]
    alone = [said(host, plan, new=12) for plan in plans]
    with ThreadPoolExecutor(len(plans)) as pool:
        beside = list(pool.map(lambda plan: said(host, plan, new=12), plans))
    assert beside == alone


# ------------------------------------------------------------------ refusals


def refused(host: Host, request: pb.InterveneRequest) -> dict[str, str]:
    found = wire.refusal(host.stub.Intervene(request, timeout=DEADLINE))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    return found.violations


def test_what_cannot_go_on_is_refused_by_name(host: Host) -> None:
    positions = host.model_info().max_positions
    most = positions - PROMPT + 1
    for wanted in (0, most + 1):
        problems = refused(host, asked([[NOTHING]], new=wanted))
        assert f"1 to {most}" in problems["readout.generation.max_new_tokens"]
    assert len(said(host, [[NOTHING]], new=most)[0]) == most
    for temperature in (-1.0, float("inf"), float("nan")):
        assert "readout.generation.temperature" in refused(host, asked([[NOTHING]], temperature=temperature))
    for seed in (-1, 2**32):
        assert "readout.generation.seed" in refused(host, asked([[NOTHING]], seed=seed))


def test_values_by_key_cannot_go_on(host: Host) -> None:
    site = Site("ATTENTION_SCORES", (0,), from_position=3)
    by_key = Edit(site, oracle.Add(np.zeros(PROMPT, np.float32)))
    problems = refused(host, asked([[by_key]]))
    assert "list.interventions[0].edits[0].add.shape" in problems
    direction = Edit(site, oracle.ProjectOut(np.ones(PROMPT, np.float32)))
    assert "list.interventions[0].edits[0].project_out" in refused(host, asked([[direction]]))
    # Without generation there is nothing to go on to.
    assert host.intervene(wire.intervene(IDS, [[by_key]], [Target(41)]))


# ------------------------------------------------------------------ the command


def test_the_command_prints_tokens_as_they_come(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", host.server.address)
    writes: list[str] = []
    monkeypatch.setattr("sys.stdout.write", writes.append)
    prompt = "Paris is the capital of"
    assert cli.main(["generate", prompt, "--tokens", "8", "--ignore-end-token", "--mlp", "1", "--scale", "0.5"]) == 0
    edit = sonde.scale(sonde.site("mlp_out", layers=[1], from_position=0), 0.5)
    with sonde.Client(host.server.address) as client:
        result = client.intervene(prompt, edit, generation=sonde.Generation(8, ignore_end_token=True))
    said, clean = result.generated[0], result.clean.continuation
    assert said is not None
    assert clean is not None
    whole = "".join(c if c == "\n" else visible(c) for c in f"{said.text}\n\nunchanged:\n{clean.text}\n")
    assert "".join(writes) == whole
    # Each with the step that it came with: text that comes all at once was not streamed.
    assert len([text for text in writes if text]) > 4


def test_the_command_without_an_edit_is_generate(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", host.server.address)
    prompt = "Paris is the capital of"
    assert cli.main(["generate", prompt, "--tokens", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = [token["id"] for token in found["continuations"][0]["tokens"]]
    assert tokens == plain(host, host.ids(prompt), 6)
    assert cli.main(["generate", prompt, "--tokens", "6", "--dry-run"]) == 0
    assert "token-layers" in capsys.readouterr().out
