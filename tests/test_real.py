"""A real language model, asked over a socket, against plain transformers with hooks: every method, and kind of edit.

The tiny models of the other tests have random weights; here states have the sizes that training gives them, and the
answers mean something.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server
from transformers import AutoModelForCausalLM

from tests.conftest import Host
from tests.support import attribution_oracle as plain
from tests.support import oracle, rome, wire
from tests.support.attribution_oracle import Question
from tests.support.generating import continued_logits, gumbel
from tests.support.oracle import Edit, Oracle, Site, Target
from tests.support.smollm2 import model_file
from tests.support.tolerance import FLOAT32, assert_near

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

FACT = "The Eiffel Tower is in the city of"
CLEAN = "When Mary and John went out, John gave it to"
CORRUPTED = "When Mary and John went out, Mary gave it to"
LOADS = 600.0
"""Seconds that the server may take to load it, on a busy machine."""


@pytest.fixture(scope="module")
def real() -> Iterator[Host]:
    file: Path = model_file()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with (
        Server(Settings(model=str(file), port=0, device="cpu", pack_weights=False)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = InspectionServiceStub(channel)
        stub.GetModel(pb.GetModelRequest(), timeout=LOADS, wait_for_ready=True)
        assert server._loaded is not None
        yield Host("real", server, stub, Oracle(model), server._loaded.vocabulary.tokenizer)


def token(host: Host, text: str) -> int:
    (found,) = host.tokenizer(text, add_special_tokens=False).input_ids
    return int(found)


def ask(host: Host, prompt: str, *targets: str, **fields: Any) -> wire.Answer:
    wanted = [pb.Target(text=text) for text in targets]
    return host.trace(pb.TraceRequest(prompt=pb.Prompt(text=prompt), targets=wanted, **fields))


def test_it_is_what_the_file_says(real: Host) -> None:
    info = real.model_info()
    assert info.provenance.model == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert info.provenance.revision == "sha256:b179c9523d0e6a0f (GGUF Q4_1)"
    stack = info.stacks[0]
    assert (stack.layers, stack.hidden_size, stack.heads, stack.key_value_heads) == (30, 576, 9, 3)
    assert all(one.available for one in stack.components), "the check at load has passed"
    config = real.oracle.model.config
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert (config.vocab_size, config.tie_word_embeddings) == (49152, True)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (FACT, ["The", "ĠE", "iffel", "ĠTower", "Ġis", "Ġin", "Ġthe", "Ġcity", "Ġof"]),
        ("a  1\n\n12", ["a", "ĠĠ", "1", "ĊĊ", "1", "2"]),
        ("<|im_start|>user\nhi<|im_end|>", ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>"]),
    ],
)
def test_a_text_is_cut_as_by_its_own_tokenizer(real: Host, text: str, pieces: list[str]) -> None:
    assert real.tokenizer.convert_ids_to_tokens(real.tokenizer(text).input_ids) == pieces


def test_it_knows_the_fact(real: Host) -> None:
    answer = ask(real, FACT, " Paris", " Rome", top_k=3)
    ids = real.ids(FACT)
    logits = real.oracle.run(ids).logits[-1]
    clean = answer.context.clean
    assert clean.top_tokens[0].text == " Paris"
    expected = real.oracle.predict(logits, [Target(token(real, " Paris")), Target(token(real, " Rome"))])
    assert_near(clean.logits, expected.logits)
    assert_near(clean.log_probabilities, expected.log_probabilities)


def test_the_lens_with_gradients(real: Host) -> None:
    answer = ask(real, FACT, " Paris", token_probability=pb.TokenProbability(gradient_norms=True))
    ids, targets = real.ids(FACT), [Target(token(real, " Paris"))]
    lens = real.oracle.lens(ids, targets, -1)
    assert_near(answer.columns["logits"], lens.logits)
    assert_near(answer.columns["log_probabilities"], lens.log_probabilities)
    assert_near(answer.columns["gradient_norms"], real.oracle.gradient_norms(ids, targets, -1, "PROBABILITY"))


def test_a_causal_trace(real: Host) -> None:
    ids, targets = real.ids(FACT), [Target(token(real, " Paris"))]
    corruption, deviation = rome.gaussian(real.oracle.model, [0, 1, 2, 3], samples=2)
    layers, positions, window = [6, 23], [2, 8], 5
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=2),
        subject_positions=pb.PositionList(positions=[0, 1, 2, 3]),
        window=window,
        layers=layers,
        positions=positions,
    )
    answer = ask(real, FACT, " Paris", causal_tracing=method)
    assert answer.corruption is not None
    assert_near(answer.corruption.noise_deviation, deviation)
    for component in rome.DEFAULT_COMPONENTS:
        expected = rome.grid(
            real.oracle.model, ids, corruption, targets, component, layers, positions, window=window, position=-1
        )
        found = answer.grid(component, "probabilities", layers, positions)
        assert_near(found, expected.probabilities.mean(-1), component)
    assert found.max() > 10 * answer.corruption.probabilities[0], "late attention brings the answer back"


def test_attribution_patching_with_edges(real: Host) -> None:
    ids, source = real.ids(CLEAN), real.ids(CORRUPTED)
    targets = [Target(token(real, " Mary"), token(real, " John"))]
    names = ("RESIDUAL_POST", "HEAD_OUT", "NEURON")
    method = pb.AttributionPatching(
        source=wire.prompt(source),
        components=[wire.component(name) for name in names],
        edges=pb.AttributionPatching.Edges(top=20),
    )
    answer = real.trace(
        pb.TraceRequest(
            prompt=wire.prompt(ids), targets=[wire.target(one) for one in targets], attribution_patching=method
        )
    )
    question = Question(ids, source, targets)
    for name in names:
        assert_near(answer.estimates[name], plain.estimates(real.oracle, question, name), name)
    every = plain.edges(real.oracle, question)
    assert_near([answer.edges[edge] for edge in answer.edges], [every[edge] for edge in answer.edges])
    largest = sorted((abs(float(one[0])) for one in every.values()), reverse=True)[:20]
    assert_near([abs(float(one[0])) for one in answer.edges.values()], largest)


def test_activations(real: Host) -> None:
    wanted = [
        Site("RESIDUAL_POST", (0, 15, 29), positions=(-1,)),
        Site("HEAD_OUT", (23,), (3,)),
        Site("ATTENTION_PATTERN", (23,), (3,)),
        Site("NEURON", (24,), (1005,)),
        Site("QUERY", (7,), positions=(2,)),
    ]
    answer = ask(real, FACT, activations=pb.Activations(sites=[wire.site(site) for site in wanted]))
    ids = real.ids(FACT)
    run = real.oracle.run(ids)
    for number, site in enumerate(wanted):
        for layer in real.oracle.layers_of(site):
            expected = real.oracle.activation(run, site, layer, len(ids))
            assert_near(answer.activations[-1, number, layer], expected, f"{site} {layer}")


def edits(host: Host) -> list[list[Edit]]:
    direction = np.random.RandomState(0).randn(host.oracle.run(host.ids(CLEAN)).values["RESIDUAL_POST", 0].shape[-1])
    return [
        [Edit(Site("NEURON", (24,), (1005,), (-1,)), oracle.Scale(0.0))],
        [Edit(Site("HEAD_OUT", (23,), (3,), (-1,)), oracle.Patch((0,)))],
        [Edit(Site("RESIDUAL_POST", (14,), from_position=2), oracle.Add((10 * direction).astype(np.float32)))],
        [Edit(Site("ATTENTION_SCORES", (23, 29), positions=(-1,)), oracle.Knockout((1,)))],
        [Edit(Site("MLP_OUT", (3,), positions=(4,)), oracle.ProjectOut(direction.astype(np.float32)))],
        [
            Edit(Site("TOKEN_EMBEDDING", positions=(1,)), oracle.Noise(0.5, 3)),
            Edit(Site("ATTENTION_OUT", (20,)), oracle.Multiply(np.array(0.5, np.float32))),
        ],
    ]


def test_edits_of_each_kind(real: Host) -> None:
    ids, source = real.ids(CLEAN), real.ids(CORRUPTED)
    targets = [Target(token(real, " Mary"), token(real, " John"))]
    plan = edits(real)
    answer = real.intervene(wire.intervene(ids, plan, targets, [source]))
    for number, run in enumerate(plan):
        logits = real.oracle.run(ids, run, [source]).logits[-1]
        expected = real.oracle.predict(logits, targets)
        assert_near(answer.columns["logits"][number], expected.logits, str(run))
        assert_near(answer.columns["log_probabilities"][number], expected.log_probabilities, str(run))


def test_generation(real: Host) -> None:
    ids, new = real.ids(FACT), 6
    steered = [edits(real)[2]]
    request = wire.intervene(ids, steered, [], generation=pb.Generation(max_new_tokens=new, ignore_end_token=True))
    answer = real.intervene(request)
    with torch.no_grad():
        whole = real.oracle.model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False, eos_token_id=None)
    assert answer.said[-1].tokens == whole[0, len(ids) :].tolist()
    chosen(real, answer.said[0].tokens, steered[0])


def test_sampling(real: Host) -> None:
    ids, new = real.ids(FACT), 6
    steered = [edits(real)[2]]
    drawing = pb.Generation(max_new_tokens=new, ignore_end_token=True, temperature=0.8, seed=5)
    answer = real.intervene(wire.intervene(ids, steered, [], generation=drawing))
    chosen(real, answer.said[0].tokens, steered[0], gumbel(5, new, real.oracle.vocabulary), 0.8)


def chosen(host: Host, tokens: list[int], run: list[Edit], noise: Any = 0.0, temperature: float = 1.0) -> None:
    """Each token has the largest score of its row, up to rounding."""
    logits = continued_logits(host.oracle, host.ids(FACT), tokens[:-1], run).double().numpy()
    for token_, row in zip(tokens, logits / temperature + noise, strict=True):
        assert row[token_] >= row.max() - 10 * FLOAT32 * max(1.0, np.abs(row).max())


def test_a_chat_is_what_the_template_of_the_checkpoint_writes(real: Host) -> None:
    said = [{"role": "user", "content": "What is the capital of France?"}]
    ids = real.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    chat = pb.Chat(messages=[pb.ChatMessage(**one) for one in said], add_generation_prompt=True)
    context = real.trace(pb.TraceRequest(prompt=pb.Prompt(chat=chat), dry_run=True)).context
    assert [one.id for one in context.tokens] == ids
    spans = {span.name: list(span.positions) for span in context.spans}
    assert real.tokenizer.decode([ids[position] for position in spans["user"]]) == said[0]["content"]


def test_the_mean_over_cases_is_that_of_the_cases(real: Host) -> None:
    prompts = [CLEAN, CORRUPTED, FACT]
    site = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, named_positions=[pb.NamedPositions(part=pb.SPAN_PART_LAST)])
    answers = list(
        real.stub.Trace(
            pb.TraceRequest(
                cases=[pb.Case(prompt=pb.Prompt(text=prompt)) for prompt in prompts],
                activations=pb.Activations(sites=[site]),
                reduction=pb.Reduction(),
            )
        )
    )
    read = [one for answer in answers if answer.reduction.statistic == pb.STATISTIC_MEAN for one in answer.activations]
    states = []
    for prompt in prompts:
        ids = torch.tensor([real.tokenizer(prompt).input_ids])
        with torch.no_grad():
            states.append(real.oracle.model.model(ids, output_hidden_states=True).hidden_states)
    for part in read:
        if part.layer < 29:  # the last of them has been through the final norm
            wanted = torch.stack([one[part.layer + 1][0, -1] for one in states]).double().mean(0)
            assert_near(np.frombuffer(part.values.data, np.float32), wanted.float().numpy())
    assert sorted(part.layer for part in read) == list(range(30))
    assert all(list(part.counts) == [3] for part in read)
