"""Sampling from a nucleus, several continuations of a run, texts that end them, and what is read of their tokens.

The oracle is a loop over plain transformers: the whole text anew for every token, numpy's draws, and a nucleus that is
counted token by token.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import sonde
import torch
from hypothesis import given
from hypothesis import strategies as st
from sonde import cli
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine.sampling import nucleus
from sonde_server.questions import costs
from sonde_server.questions.generation import Generation
from sonde_server.questions.texts import GrowingText, Stops
from torch import Tensor

from tests.conftest import DEADLINE, Host
from tests.support import generating, oracle, wire
from tests.support.generating import continued_logits, gumbel
from tests.support.oracle import COMPONENTS, UNIT_FIRST, UNLAYERED, Edit, Site, Target
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
PROMPT = len(IDS)
NEW = 6
NOTHING = Edit(Site("RESIDUAL_POST", (0,)), oracle.Scale(1.0))
HALVED = Edit(Site("MLP_OUT", (1,), from_position=2), oracle.Scale(0.5))
EARLY = Edit(Site("RESIDUAL_POST", (0,), positions=(1,)), oracle.Scale(-2.0))
PLAN = [[NOTHING], [HALVED], [EARLY]]


def asked(
    plan: Sequence[Sequence[Edit]] = PLAN, ids: Sequence[int] = IDS, new: int = NEW, **fields: Any
) -> pb.InterveneRequest:
    fields.setdefault("ignore_end_token", True)
    return wire.intervene(ids, plan, [Target(41)], generation=pb.Generation(max_new_tokens=new, **fields))


def tokens_of(answer: wire.Answer) -> dict[tuple[int, int], list[int]]:
    return {key: said.tokens for key, said in answer.samples.items()}


def edits_of(run: int) -> Sequence[Edit]:
    return PLAN[run] if run >= 0 else ()


def by_hand(host: Host, edits: Sequence[Edit], seed: int, temperature: float, top_p: float) -> list[int]:
    """A continuation, token by token, each from the whole text anew."""
    noise, said = gumbel(seed, NEW, host.oracle.vocabulary), list[int]()
    for step in range(NEW):
        logits = continued_logits(host.oracle, IDS, said, edits)[-1]
        scores = logits.double().numpy() / temperature + noise[step]
        said.append(max(generating.nucleus(logits, temperature, top_p), key=lambda token: scores[token]))
    return said


# ------------------------------------------------------------------ the nucleus


@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.95])
def test_sampling_from_a_nucleus_is_the_loop_by_hand(host: Host, top_p: float) -> None:
    top_p = float(np.float32(top_p))
    answer = host.intervene(asked(temperature=1.5, top_p=top_p, seed=12))
    for run, said in answer.said.items():
        assert said.tokens == by_hand(host, edits_of(run), 12, 1.5, top_p)
    kept = len(generating.nucleus(continued_logits(host.oracle, IDS, [])[-1], 1.5, top_p))
    assert 1 < kept < host.oracle.vocabulary


def test_a_nucleus_leaves_tokens_out(host: Host) -> None:
    """What the draws would take without it is not in it."""
    free = host.intervene(asked(temperature=3.0, seed=4))
    held, whole = (host.intervene(asked(temperature=3.0, seed=4, top_p=top_p)) for top_p in (0.3, 1.0))
    assert tokens_of(free) != tokens_of(held)
    assert tokens_of(whole) == tokens_of(free)


def test_the_smallest_nucleus_is_greedy(host: Host) -> None:
    smallest = float(np.finfo(np.float32).tiny)
    narrow = host.intervene(asked(temperature=2.0, top_p=smallest))
    assert tokens_of(narrow) == tokens_of(host.intervene(asked()))
    # Without a temperature there is nothing to leave out.
    assert tokens_of(host.intervene(asked(top_p=0.5))) == tokens_of(narrow)


@given(st.lists(st.lists(st.integers(1, 5), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 64))
def test_of_equally_probable_tokens_the_first_are_kept(weights: list[list[int]], share: int) -> None:
    # Sums of multiples of a power of two are exact, so that the nucleus is as well.
    rows = [[*row, 64 - sum(row)] for row in weights]
    kept = nucleus(torch.tensor(rows, dtype=torch.float64) / 64, share / 64)
    for row, mask in zip(rows, kept.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda token: (-row[token], token))
        sums = np.cumsum([row[token] for token in order])
        assert {token for token, inside in enumerate(mask) if inside} == set(order[: int((sums < share).sum()) + 1])


def test_a_flat_distribution_is_counted_to_its_end() -> None:
    size = 4096
    flat = torch.full((1, size), 1 / size, dtype=torch.float64)
    for top_p, expected in ((0.5, size // 2), (1 - 1e-9, size), (1 / size, 1)):
        assert nucleus(flat, top_p)[0].nonzero()[:, 0].tolist() == list(range(expected))


# ------------------------------------------------------------------ samples


@pytest.mark.parametrize("seed", [3, 2**32 - 2])
def test_a_sample_is_a_request_with_its_seed(host: Host, seed: int) -> None:
    fields: dict[str, Any] = {"temperature": 2.0, "top_p": 0.9}
    together = tokens_of(host.intervene(asked(samples=4, seed=seed, **fields)))
    assert sorted(together) == [(run, sample) for run in range(-1, len(PLAN)) for sample in range(4)]
    for sample in range(4):
        alone = host.intervene(asked(seed=(seed + sample) % 2**32, **fields))
        assert {run: together[run, sample] for run in alone.said} == {
            run: one.tokens for run, one in alone.said.items()
        }
    assert len({tuple(tokens) for (run, _), tokens in together.items() if run == -1}) == 4


def test_samples_beyond_what_goes_on_together_are_the_same(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(samples=5, temperature=2.0, log_probabilities=True)
    whole = host.intervene(request)
    for most in (2, 5, 11):
        monkeypatch.setattr(costs, "MOST_CONTINUED", most)
        parts = host.intervene(request)
        assert tokens_of(parts) == tokens_of(whole)
        for key, said in whole.samples.items():
            assert_close(parts.samples[key].log_probabilities, said.log_probabilities)


@pytest.mark.parametrize("most", [512, 2])
def test_a_prompt_is_computed_once_for_all_samples(host: Host, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(costs, "MOST_CONTINUED", most)
    ids = [311, 12, 55, 7, 100, 44, 9 + most % 7]
    stream = pb.Site(component=pb.COMPONENT_RESIDUAL_POST)
    fields: dict[str, Any] = {"temperature": 1.0, "log_probabilities": True, "activations": [stream]}
    request = asked(ids=ids, samples=3, **fields)
    request.dry_run = True
    announced = host.intervene(request).context.cost
    single = asked(ids=ids, temperature=1.0)
    single.dry_run = True
    layers, runs = host.oracle.layers, 1 + len(PLAN)
    step = runs * (NEW - 1) * layers
    assert announced.token_layers == host.intervene(single).context.cost.token_layers + 2 * step
    work = host.server.scheduler.engine.work
    before = work.token_layers
    request.dry_run = False
    answer = host.intervene(request)
    assert work.token_layers - before == announced.token_layers
    assert sum(answer.sizes) <= announced.answer_bytes + 1024 * answer.messages


@given(st.integers(1, 2000), st.integers(1, 256), st.integers(1, 1 << 28), st.integers(1, 1 << 28))
def test_what_goes_on_together_fits(runs: int, samples: int, prompt: int, new: int) -> None:
    at_once = Generation(2, 1.0, samples=samples).at_once(runs, prompt, new, "cpu")
    assert 1 <= at_once.runs <= runs
    assert 1 <= at_once.samples <= samples
    assert at_once.runs * at_once.samples <= costs.MOST_CONTINUED
    # Runs go on beside each other only with all their samples.
    assert at_once.runs == 1 or at_once.samples == samples
    if at_once.samples > 1:
        assert at_once.samples * new <= costs.CONTINUED_BYTES["cpu"]
    if at_once.runs > 1:
        assert at_once.runs * (prompt + samples * new) <= costs.CONTINUED_BYTES["cpu"] + at_once.runs * samples


# ------------------------------------------------------------------ texts that end


TEXT = " the city of Zürich, 東京 and a 🙂."


def written(host: Host, prompt: str, text: str, stops: Sequence[str], **fields: Any) -> wire.Said:
    """A continuation whose tokens are put into the logits, position by position."""
    ids = host.ids(prompt)
    tokens = host.ids(prompt + text)[len(ids) :]
    run = []
    for step, token in enumerate(tokens):
        logits = np.zeros(host.oracle.vocabulary, np.float32)
        logits[token] = 100.0
        run.append(Edit(Site("LOGITS", from_position=len(ids) - 1 + step), oracle.Set(logits)))
    return host.intervene(asked([run], ids=ids, new=len(tokens), stop=stops, **fields)).said[0]


def decoded(host: Host, prompt: str, tokens: Sequence[int]) -> str:
    """The text that tokens add to a prompt."""
    ids = host.ids(prompt)
    before, after = (
        host.tokenizer.decode(one, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for one in (ids, [*ids, *tokens])
    )
    return str(after[len(before) :])


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-metaspace"])
@pytest.mark.parametrize(
    "stops",
    [
        [" the"],
        ["y of Z"],
        ["ü"],
        ["rich, 東"],
        ["京"],
        ["🙂"],
        ["."],
        ["nowhere", "and a", "city"],
        ["h, 東京 a", "🙂."],
    ],
)
def test_a_text_ends_with_the_token_that_completes_a_stop(hosts: Any, family: str, stops: list[str]) -> None:
    host = hosts[family]
    prompt = "Paris is"
    tokens = host.ids(prompt + TEXT)[len(host.ids(prompt)) :]
    texts = [decoded(host, prompt, tokens[: n + 1]) for n in range(len(tokens))]
    expected = next(n for n, text in enumerate(texts) if any(stop in text for stop in stops))
    said = written(host, prompt, TEXT, stops)
    assert said.tokens == tokens[: expected + 1]
    assert said.finish_reason == pb.Generated.FINISH_REASON_STOP
    assert said.text == texts[expected]


@pytest.mark.parametrize("stops", [["Paris"], ["is the"], ["of  Z"], ["\ufffd"]])
def test_what_is_not_in_the_continuation_does_not_end_it(host: Host, stops: list[str]) -> None:
    """Nor what is in the prompt, or partly there, nor the sign for a character that is not whole yet."""
    said = written(host, "Paris is", TEXT, stops)
    assert said.text == TEXT
    assert said.finish_reason == pb.Generated.FINISH_REASON_LENGTH


def test_every_sample_ends_at_its_own_stop(host: Host) -> None:
    fields: dict[str, Any] = {"temperature": 2.0, "samples": 6, "seed": 5}
    free = host.intervene(asked(new=12, **fields)).samples
    text = next(said.text for said in free.values() if len(said.text) > 8)
    stop = text[4:6]
    ended = host.intervene(asked(new=12, stop=[stop], **fields)).samples
    found = set()
    for key, said in ended.items():
        assert said.tokens == free[key].tokens[: len(said.tokens)]
        assert (stop in said.text) == (said.finish_reason == pb.Generated.FINISH_REASON_STOP)
        found.add(said.finish_reason)
    assert found == {pb.Generated.FINISH_REASON_STOP, pb.Generated.FINISH_REASON_LENGTH}


def test_an_end_token_says_so_also_beside_a_stop(host: Host) -> None:
    end = host.tokenizer.eos_token_id
    logits = np.zeros(host.oracle.vocabulary, np.float32)
    logits[end] = 1e4
    run = [Edit(Site("LOGITS", from_position=0), oracle.Set(logits))]
    said = host.intervene(asked([run], ignore_end_token=False, stop=["a"])).said[0]
    assert (said.tokens, said.finish_reason) == ([end], pb.Generated.FINISH_REASON_END_TOKEN)


def parts_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Bytes, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.text(max_size=12), st.text(min_size=1, max_size=4), st.text(max_size=6), st.lists(st.integers(0, 99)))
def test_text_and_stops_whatever_the_tokens(before: str, stop: str, after: str, cuts: list[int]) -> None:
    """Tokens are any bytes: the texts join to the whole, and the stop is found with the byte that completes it."""
    pieces = parts_of((before + stop + after).encode(), cuts)

    def decode(tokens: Sequence[int]) -> str:
        return b"".join(pieces[token] for token in tokens).decode(errors="replace")

    growing, stops = GrowingText(decode, []), Stops([stop], decode, [])
    whole = "".join(growing.add(token, last=token == len(pieces) - 1) for token in range(len(pieces)))
    assert whole == before + stop + after
    ends = [token for token in range(len(pieces)) if stops.completed_by(token)]
    complete = [b"".join(pieces[: token + 1]) for token in range(len(pieces))]
    expected = next(n for n, data in enumerate(complete) if stop in data.decode(errors="ignore"))
    assert ends[0] == expected


# ------------------------------------------------------------------ what is read of the tokens


def test_log_probabilities_are_those_of_the_whole_distribution(host: Host) -> None:
    """Whatever the tokens were drawn from."""
    drawn: dict[str, Any] = {"temperature": 2.0, "top_p": 0.7, "samples": 2}
    for fields in ({}, drawn):
        answer = host.intervene(asked(log_probabilities=True, **fields))
        for (run, _), said in answer.samples.items():
            logits = continued_logits(host.oracle, IDS, said.tokens[:-1], edits_of(run))
            expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(said.tokens)[:, None])[:, 0]
            assert_close(said.log_probabilities, expected.numpy())
    assert not host.intervene(asked()).said[0].log_probabilities


def values_of(host: Host, site: Site, said: Sequence[int], edits: Sequence[Edit]) -> Tensor:
    """[layers, tokens, ...] at all tokens but the last, from the whole text."""
    values: dict[tuple[str, int], Tensor] = {}
    continued_logits(host.oracle, IDS, said[:-1], edits, values=values)
    layers = (0,) if site.component in UNLAYERED else site.layers or tuple(range(host.oracle.layers))
    found = torch.stack([values[site.component, layer][PROMPT:] for layer in layers])
    return found[:, :, list(site.units)] if site.units else found


def test_the_unchanged_run_can_be_left_out(host: Host) -> None:
    """The changed runs go on as beside it, at what they cost alone."""
    both = host.intervene(asked(samples=2, temperature=1.0))
    request = asked(samples=2, temperature=1.0, changed_only=True)
    alone = host.intervene(request)
    beside = tokens_of(both)
    assert tokens_of(alone) == {key: tokens for key, tokens in beside.items() if key[0] >= 0}
    assert len(beside) - len(tokens_of(alone)) == 2
    layers = host.oracle.layers
    spared = both.context.cost.token_layers - alone.context.cost.token_layers
    assert spared == 2 * (NEW - 1) * layers
    with sonde.Client(host.server.address) as client:
        said = client.intervene(
            IDS, [sonde.scale(sonde.residual(layer=0), 0.5)], generation=sonde.Generation(2, changed_only=True)
        )
    assert said.clean.continuation is None
    assert len(said[0].continuation.tokens) == 2


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("component", [name for name in COMPONENTS if name not in UNIT_FIRST])
def test_activations_of_generated_tokens_are_those_of_the_whole_text(host: Host, component: str, samples: int) -> None:
    layers = () if component in UNLAYERED else (2, 0)
    sites = [Site(component), Site(component, layers, units=(1, 0))]
    plan = [[NOTHING], [Edit(Site(component, layers, from_position=PROMPT + 1), oracle.Scale(-0.5))], [EARLY]]
    fields: dict[str, Any] = {"temperature": 1.0} if samples > 1 else {}
    request = asked(plan, samples=samples, activations=map(wire.site, sites), **fields)
    for (run, _), said in host.intervene(request).samples.items():
        for number, site in enumerate(sites):
            expected = values_of(host, site, said.tokens, plan[run] if run >= 0 else ())
            assert said.activations(number).shape == expected.shape
            assert_close(said.activations(number), expected.numpy(), f"{component} of run {run}")


@pytest.mark.parametrize(("name", "type_of"), [("BFLOAT16", torch.bfloat16), ("FLOAT16", torch.float16)])
def test_activations_come_in_the_type_that_was_asked_for(gpt2: Host, name: str, type_of: torch.dtype) -> None:
    site = pb.Site(component=pb.COMPONENT_RESIDUAL_POST)
    whole = gpt2.intervene(asked(activations=[site]))
    request = asked(activations=[site])
    request.readout.activations_data_type = pb.DataType.Value(f"DATA_TYPE_{name}")
    answer = gpt2.intervene(request)
    for run, said in answer.said.items():
        assert {tensors[0].data_type for tensors in said.read} == {request.readout.activations_data_type}
        rounded = torch.from_numpy(whole.said[run].activations(0)).to(type_of).float()
        assert np.array_equal(said.activations(0).astype(np.float32), rounded.numpy())
    assert answer.context.cost.answer_bytes < whole.context.cost.answer_bytes


def test_reading_changes_no_token_and_tokens_come_with_what_was_read(host: Host) -> None:
    site = pb.Site(component=pb.COMPONENT_NEURON, layers=[1])
    assert tokens_of(host.intervene(asked(activations=[site]))) == tokens_of(host.intervene(asked()))
    parts = [
        part
        for message in host.stub.Intervene(asked(activations=[site]), timeout=DEADLINE)
        for part in message.generated
        if part.run == 0
    ]
    assert [len(part.tokens) for part in parts] == [1] * NEW
    # The last token is not read.
    assert [tuple(part.activations[0].shape)[:2] for part in parts] == [(1, 1)] * (NEW - 1) + [(1, 0)]
    (said,) = (one for (run, _), one in host.intervene(asked(new=1, activations=[site])).samples.items() if not run)
    assert said.activations(0).shape == (1, 0, host.oracle.shape("NEURON", 1)[-1])


# ------------------------------------------------------------------ refusals


def refused(host: Host, **fields: Any) -> dict[str, str]:
    found = wire.refusal(host.stub.Intervene(asked(**fields), timeout=DEADLINE))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    prefix = "readout.generation."
    return {field.removeprefix(prefix): text for field, text in found.violations.items() if field.startswith(prefix)}


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"top_p": 0.0}, "top_p", "got 0"),
        ({"top_p": 1.5}, "top_p", "got 1.5"),
        ({"top_p": float("nan")}, "top_p", "got nan"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 texts, got 17"),
        ({"stop": ["a", ""]}, "stop[1]", "got 0"),
        ({"stop": ["a" * 1001]}, "stop[0]", "1 to 1000 characters, got 1001"),
        ({"samples": -1}, "samples", "got -1"),
        ({"samples": 257, "temperature": 1.0}, "samples", "1 to 256 continuations, got 257"),
        ({"samples": 2}, "samples", "a temperature above 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(gpt2: Host, fields: dict[str, Any], path: str, said: str) -> None:
    assert said in refused(gpt2, **fields)[path]


def test_the_most_that_can_be_asked_is_answered(gpt2: Host) -> None:
    answer = gpt2.intervene(asked([[NOTHING]], new=2, samples=256, temperature=1.0, stop=["a" * 1000] * 16))
    assert len(answer.samples) == 2 * 256


@pytest.mark.parametrize(
    ("site", "path"),
    [
        ({"component": "RESIDUAL_POST", "positions": [1]}, "positions"),
        ({"component": "RESIDUAL_POST", "from_position": 1}, "from_position"),
        ({"component": "RESIDUAL_POST", "named_positions": [{}]}, "named_positions"),
        ({"component": "RESIDUAL_POST", "named_from_position": {}}, "named_from_position"),
        ({"component": "RESIDUAL_POST", "layers": [99]}, "layers[0]"),
        ({"component": "ATTENTION_PATTERN"}, "component"),
        ({"component": "ATTENTION_SCORES"}, "component"),
    ],
)
def test_what_cannot_be_read_of_generated_tokens_is_refused(gpt2: Host, site: dict[str, Any], path: str) -> None:
    message = pb.Site(**site | {"component": f"COMPONENT_{site['component']}"})
    assert f"activations[0].{path}" in refused(gpt2, activations=[message])


def test_more_numbers_than_a_message_has_are_refused(gpt2: Host) -> None:
    site = pb.Site(component=pb.COMPONENT_LOGITS)
    count = 131_072 // gpt2.oracle.vocabulary
    assert gpt2.intervene(asked(new=2, activations=[site] * count)).samples
    assert (
        f"got {(count + 1) * gpt2.oracle.vocabulary}" in refused(gpt2, activations=[site] * (count + 1))["activations"]
    )


# ------------------------------------------------------------------ the client and the command


SAME = sonde.scale(sonde.residual(layer=0), 1.0)


@pytest.fixture
def client(gpt2: Host) -> Any:
    with sonde.Client(gpt2.server.address) as one:
        yield one


def test_the_client_has_every_sample_with_what_was_asked_of_it(gpt2: Host, client: sonde.Client) -> None:
    sites = [sonde.residual(layer=[2, 0]), sonde.site("final_norm", units=[3, 1])]
    generation = sonde.Generation(NEW, 1.5, 12, True, 0.9, samples=3, log_probabilities=True, activations=sites)
    halved = sonde.scale(sonde.site("mlp_out", layers=1, from_position=2), 0.5)
    result = client.intervene(IDS, [halved], generation=generation)
    raw = gpt2.intervene(
        asked(
            [[HALVED]],
            temperature=1.5,
            seed=12,
            top_p=0.9,
            samples=3,
            log_probabilities=True,
            activations=[wire.site(Site("RESIDUAL_POST", (2, 0))), wire.site(Site("FINAL_NORM", units=(3, 1)))],
        )
    )
    assert result.generated == [result[0].continuation] == [result.continuations[0][0]]
    for run, whole in ((-1, result.clean), (0, result[0])):
        assert whole.continuation == whole.continuations[0]
        assert [said.sample for said in whole.continuations] == [0, 1, 2]
        for said in whole.continuations:
            expected = raw.samples[run, said.sample]
            assert [token.id for token in said.tokens] == expected.tokens
            assert said.text == expected.text
            assert_close(said.log_probabilities, expected.log_probabilities)
            assert_close(said.activations["residual_post"], expected.activations(0))
            assert_close(said.activations["final_norm"], expected.activations(1)[0])
            axes = said.activations.axes("residual_post")
            assert axes["layer"] == (2, 0)
            assert axes["position"] == tuple(range(PROMPT, PROMPT + NEW - 1))
    text = result.to_text()
    assert "unchanged, sample 2" in text
    assert "changed, sample 1" in text


def test_the_client_says_why_a_text_ends(client: sonde.Client) -> None:
    free = client.intervene(IDS, SAME, generation=sonde.Generation(NEW, ignore_end_token=True)).clean.continuation
    assert free is not None
    assert free.finish_reason == "length"
    assert not len(free.log_probabilities)
    assert not len(free.activations)
    middle = next(token.text for token in free.tokens[2:] if token.text.strip() and token.text in free.text)
    generation = sonde.Generation(NEW, ignore_end_token=True, stop=middle)
    said = client.intervene(IDS, SAME, generation=generation).clean.continuation
    assert said is not None
    assert said.finish_reason == "stop"
    assert middle in said.text


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"samples": 1.5}, "samples"),
        ({"top_p": "much"}, "top_p"),
        ({"log_probabilities": 1}, "log_probabilities"),
        ({"activations": "logits"}, "activations"),
    ],
)
def test_the_client_refuses_what_is_none_of_these(client: sonde.Client, fields: dict[str, Any], name: str) -> None:
    with pytest.raises(sonde.InvalidRequest) as caught:
        client.intervene(IDS, SAME, generation=sonde.Generation(2, **fields))
    assert caught.value.violations[0].field == name


def test_a_file_keeps_every_sample(client: sonde.Client, tmp_path: Any) -> None:
    generation = sonde.Generation(
        3, 1.0, samples=2, ignore_end_token=True, log_probabilities=True, activations=sonde.residual()
    )
    result = client.intervene(IDS, [sonde.scale(sonde.head(layer=0, unit=1), 0.0)], generation=generation)
    result.save(tmp_path / "result.npz")
    kept = sonde.load(tmp_path / "result.npz")
    assert kept.continuations == result.continuations
    for a, b in zip(kept[0].continuations, result[0].continuations, strict=True):
        assert np.array_equal(a.log_probabilities, b.log_probabilities)
        assert np.array_equal(a.activations[0], b.activations[0])


def test_the_command_prints_every_sample(
    gpt2: Host, client: sonde.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", gpt2.server.address)
    prompt = "Paris is the capital of"
    options = ["--tokens", "5", "--temperature", "1.5", "--top-p", "0.9", "--seed", "3", "--samples", "2"]
    assert cli.main(["generate", prompt, *options, "--stop", "zz", "--ignore-end-token", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    generation = sonde.Generation(5, 1.5, 3, True, 0.9, "zz", 2)
    texts = [said.text for said in client.intervene(prompt, SAME, generation=generation).clean.continuations]
    assert [found["continuations"][0]["text"], found["further_samples"][0][0]["text"]] == texts
    assert cli.main(["generate", prompt, *options, "--log-probabilities", "--ignore-end-token"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("sample 0:\n")
    assert "\nsample 1:\n" in shown
    assert shown.count("log p") == 2
