"""Prompts with an image over the wire, against transformers with its own image processor and against identities.

Everything that is asked of texts is asked of prompts with an image: the image's positions are positions like any other.
"""

import dataclasses
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server
from transformers import AutoTokenizer

from tests.conftest import DEADLINE, Host
from tests.support import attribution_oracle as plain
from tests.support import oracle, wire
from tests.support.generating import continued_logits
from tests.support.oracle import UNLAYERED, Edit, Site, Sweep, Target
from tests.support.seeing import SEEING, SeeingOracle, Shown, encoded, picture, save_seeing
from tests.support.tolerance import assert_close, assert_near

FAST = "llava"
TARGETS = [Target(41), Target(200, contrast=12)]
WIRED = [wire.target(one) for one in TARGETS]
LAYER = 1
TEXT = ("The tower ", " is in the city of")
LAYERED = [name for name in oracle.COMPONENTS if name not in UNLAYERED]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A server of a model that sees images, and prompts with images: two whose texts and pictures differ."""

    name: str
    host: Host
    prompt: Shown
    other: Shown
    image: list[int]

    @property
    def last(self) -> int:
        return len(self.prompt) - 1

    @property
    def oracle(self) -> SeeingOracle:
        assert isinstance(self.host.oracle, SeeingOracle)
        return self.host.oracle

    @property
    def placeholder(self) -> str:
        return SEEING[self.name].placeholder

    def text(self, before: str = TEXT[0], after: str = TEXT[1]) -> str:
        return f"{before}{self.placeholder}{after}"

    def eye(self) -> Any:
        scheduler: Any = self.host.server._scheduler
        return scheduler.engine.decoder.eye


@pytest.fixture(scope="module", params=[FAST, *(pytest.param(n, marks=pytest.mark.full) for n in SEEING if n != FAST)])
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        folder = save_seeing(request.param, Path(directory) / request.param)
        settings = Settings(model=str(folder), port=0, device="cpu", dtype="float32")
        with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=DEADLINE)
            judge = SeeingOracle(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            host = Host(request.param, server, InspectionServiceStub(channel), judge, tokenizer)
            token = judge.model.config.image_token_id
            pictures = picture(1), picture(2)
            asked = pb.Prompt(text=SEEING[request.param].placeholder.join(TEXT), image=encoded(pictures[0]))
            ids = [one.id for one in host.trace(pb.TraceRequest(prompt=asked, dry_run=True)).context.tokens]
            first = ids.index(token)
            others = [one if position in (2, len(ids) - 2) else two for position, (one, two) in enumerate(zip(
                [(7 * one + 3) % 300 for one in ids], ids, strict=True))]  # fmt: skip
            prompt, other = Shown(ids, pictures[0]), Shown(others, pictures[1])
            judge.show(prompt, other)
            assert first > 2
            yield Seen(request.param, host, prompt, other, prompt.where(token))


def activations(seen: Seen, prompt: Sequence[int], *sites: Site) -> dict[tuple[int, int, int], npt.NDArray[Any]]:
    method = pb.Activations(sites=[wire.site(site) for site in sites])
    return seen.host.trace(pb.TraceRequest(prompt=wire.prompt(prompt), activations=method)).activations


def predictions(seen: Seen, plan: Sequence[Sequence[Edit]]) -> list[oracle.Prediction]:
    runs = [seen.oracle.run(seen.prompt, run, [seen.other]) for run in plan]
    return [seen.oracle.predict(run.logits[-1], TARGETS) for run in runs]


def changed(seen: Seen, plan: Sequence[Sequence[Edit]] | Sweep, **readout: Any) -> wire.Answer:
    return seen.host.intervene(wire.intervene(seen.prompt, plan, TARGETS, [seen.other], **readout))


# ------------------------------------------------------------------ what is computed


def test_the_logits_are_those_of_transformers(seen: Seen) -> None:
    for prompt in (seen.prompt, seen.other, seen.prompt[: seen.image[0]], [7]):
        with torch.no_grad():
            expected = seen.oracle.model(torch.tensor([list(prompt)]), use_cache=False).logits[0]
        assert_close(activations(seen, prompt, Site("LOGITS"))[-1, 0, 0], expected.numpy())


def test_every_activation(seen: Seen) -> None:
    sites = [Site(component) for component in seen.oracle.components]
    expected = seen.oracle.run(seen.prompt).values
    for (_, number, layer), values in activations(seen, seen.prompt, *sites).items():
        component = sites[number].component
        assert_close(values, expected[component, layer].numpy(), f"{component} {layer}")


def test_every_component_edited_before_within_and_behind_the_image(seen: Seen) -> None:
    """Recomputing from the first position that a change can reach is recomputing all of them."""
    places = [(1,), (seen.image[0],), (seen.image[4],), (seen.image[-1], seen.last), (seen.image[2], seen.image[5])]
    plan = []
    for component in seen.oracle.components:
        layers, units = () if component in UNLAYERED else (LAYER,), (1,)
        for positions in places:
            site = Site(component, layers, units, positions)
            operations: list[oracle.Operation] = [oracle.Scale(-0.5), oracle.Patch((0,))]
            operations += [oracle.Knockout(tuple(seen.image[1:3]))] if component == "ATTENTION_SCORES" else []
            plan += [[Edit(site, operation)] for operation in operations]
    answer, expected = changed(seen, plan), predictions(seen, plan)
    assert_close(answer.columns["log_probabilities"], [one.log_probabilities for one in expected])
    assert_close(answer.columns["logits"], [one.logits for one in expected])
    norms = [seen.oracle.run(seen.prompt, run, [seen.other]).norms for run in plan]
    assert_close(answer.columns["edit_norms"], norms)


def test_reading_inside_the_image(seen: Seen) -> None:
    """A position of the image may see later ones."""
    read = seen.image[3]
    places = [(seen.image[1],), (read,), (seen.image[-1],), (seen.last,)]
    plan = [[Edit(Site("RESIDUAL_PRE", (LAYER,), (), positions), oracle.Scale(-0.5))] for positions in places]
    answer = changed(seen, plan, position=read, activations=[wire.site(Site("MLP_OUT", (2,), (), (read,)))])
    runs = [seen.oracle.run(seen.prompt, run) for run in plan]
    expected = [seen.oracle.predict(run.logits[read], TARGETS).log_probabilities for run in runs]
    assert_close(answer.columns["log_probabilities"], expected)
    for number, run in enumerate(runs):
        assert_close(answer.activations[number, 0, 2], run.values["MLP_OUT", 2][[read]].numpy())
    clean = seen.oracle.predict(seen.oracle.run(seen.prompt).logits[read], TARGETS).log_probabilities
    sees_itself = seen.host.model_info().image.sees_itself
    assert (np.abs(expected[2] - clean).max() > 1e-4) == sees_itself
    assert np.abs(expected[3] - clean).max() < 1e-6


@pytest.mark.parametrize("component", ["HEAD_OUT", "KEY", "MLP_OUT", "NEURON"])
def test_a_sweep(seen: Seen, component: str) -> None:
    positions, units = (seen.image[2], seen.last), (0, 1)
    sweep = Sweep(Edit(Site(component, (0, 2), units, positions), oracle.Patch((0,))), layer_window=2)
    runs = seen.oracle.expand(sweep, len(seen.prompt))
    assert_close(
        changed(seen, sweep).columns["log_probabilities"], [one.log_probabilities for one in predictions(seen, runs)]
    )


def test_the_text_goes_on_as_recomputed_in_full(seen: Seen) -> None:
    plan = [
        [Edit(Site("RESIDUAL_POST", (LAYER,), positions=(seen.image[3],)), oracle.Scale(-2.0))],
        [Edit(Site("VALUE", (LAYER,), from_position=seen.last), oracle.Scale(-0.5))],
        [Edit(Site("ATTENTION_PATTERN", (0,), from_position=seen.image[0]), oracle.Scale(0.5))],
    ]
    answer = changed(seen, plan, generation=pb.Generation(max_new_tokens=6, ignore_end_token=True))
    for run, edits in enumerate([*plan, []]):
        said = answer.said[run if edits else -1].tokens
        logits = continued_logits(seen.oracle, seen.prompt, said[:-1], edits).double().numpy()
        for token, row in zip(said, logits, strict=True):
            assert row[token] >= row.max() - 1e-4 * max(1.0, np.abs(row).max())


def test_a_generated_placeholder_stands_for_itself(seen: Seen) -> None:
    """The image is not put in again."""
    token = seen.oracle.model.config.image_token_id
    one = np.full(seen.oracle.vocabulary, -50, np.float32)
    one[token] = 50
    edits = [Edit(Site("LOGITS", positions=(seen.last,)), oracle.Set(one))]
    answer = changed(seen, [edits], generation=pb.Generation(max_new_tokens=3, ignore_end_token=True))
    said = answer.said[0].tokens
    assert said[0] == token
    embedding = seen.oracle.parts.embedding(torch.tensor([[token]])).detach()
    if seen.name == "llava":  # in the others, transformers takes the token for another image's
        given = seen.oracle.run(seen.prompt).values["TOKEN_EMBEDDING", 0][None]
        model: Any = seen.oracle.model
        with torch.no_grad():
            logits = model(inputs_embeds=torch.cat([given, embedding], 1), use_cache=False).logits[0, -1]
        assert said[1] == int(logits.argmax())


# ------------------------------------------------------------------ identities


def test_the_embedding_of_another_image_is_the_run_of_that_image(seen: Seen) -> None:
    other = Shown(seen.prompt, seen.other.picture)
    plan = [[Edit(Site("TOKEN_EMBEDDING", positions=tuple(seen.image)), oracle.Patch((0,)))]]
    answer = seen.host.intervene(wire.intervene(seen.prompt, plan, TARGETS, [other]))
    alone = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(other), targets=WIRED)).context.clean
    assert_close(answer.columns["log_probabilities"][0], np.array(alone.log_probabilities, np.float32))
    assert np.abs(np.array(alone.log_probabilities) - np.array(answer.context.clean.log_probabilities)).max() > 1e-3


def test_what_changes_nothing_moves_nothing(seen: Seen) -> None:
    same = Shown(seen.prompt, seen.prompt.picture)
    image = tuple(seen.image)
    plan = [
        [Edit(Site("TOKEN_EMBEDDING", positions=image), oracle.Patch((0,)))],
        [Edit(Site("RESIDUAL_POST", (LAYER,), positions=image), oracle.Scale(1.0))],
        [Edit(Site("TOKEN_EMBEDDING", positions=image), oracle.Noise(0.0))],
    ]
    answer = seen.host.intervene(wire.intervene(seen.prompt, plan, TARGETS, [same], kl_divergence=True))
    assert_close(answer.columns["edit_norms"], np.zeros((3, 1)))
    assert_close(answer.columns["kl_divergences"], np.zeros(3))


def test_blind_when_all_edges_to_the_image_are_cut(seen: Seen) -> None:
    after = tuple(position for position in range(seen.image[0], len(seen.prompt)) if position not in seen.image)
    layers = tuple(range(seen.oracle.layers))
    site = pb.Site(component=pb.COMPONENT_ATTENTION_SCORES, layers=layers, positions=after)
    cut = pb.Edit(site=site, knockout=pb.Knockout(named_key_positions=[pb.NamedPositions(span="image")]))
    found = []
    for shown in (seen.prompt.picture, seen.other.picture):
        listed = pb.InterventionList(interventions=[pb.Intervention(edits=[cut])])
        prompt = wire.prompt(Shown(seen.prompt, shown))
        request = pb.InterveneRequest(prompt=prompt, list=listed, readout=pb.Readout(targets=WIRED))
        found.append(seen.host.intervene(request).columns["logits"])
    assert_close(found[0], found[1])


def test_no_edit_of_the_image_moves_an_earlier_position(seen: Seen) -> None:
    sees_itself = seen.host.model_info().image.sees_itself
    edit = [Edit(Site("TOKEN_EMBEDDING", positions=(seen.image[-1],)), oracle.Scale(-1.0))]
    answer = changed(seen, [edit], activations=[wire.site(Site("RESIDUAL_POST", (2,)))])
    moved = np.abs(answer.activations[0, 0, 2] - answer.activations[-1, 0, 2]).max(axis=1)
    assert moved[: seen.image[0]].max() < 1e-5
    assert (moved[seen.image[0] : seen.image[-1]].max() > 1e-3) == sees_itself
    assert moved[seen.image[-1] :].min() > 1e-5


def test_the_lens_at_the_positions_of_the_image(seen: Seen) -> None:
    chosen = [seen.image[0], seen.image[-1], seen.last]
    for position in chosen:
        method = pb.TokenProbability(positions=[position])
        answer = seen.host.trace(
            pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, token_probability=method)
        )
        expected = seen.oracle.lens(seen.prompt, TARGETS, position)
        assert_close(answer.columns["log_probabilities"], expected.log_probabilities)
        assert_close(answer.columns["kl_divergences"], expected.kl_divergences)
        whole = seen.oracle.run(seen.prompt).logits[position]
        assert_close(answer.columns["logits"][-1], seen.oracle.predict(whole, TARGETS).logits)


def test_all_paths_from_the_image_are_the_plain_edit(seen: Seen) -> None:
    """Along all heads and MLPs to the logits, or to all that reads the stream."""
    edit = Edit(Site("TOKEN_EMBEDDING", positions=(seen.image[2], seen.image[-1])), oracle.Patch((0,)))
    through, direct = wire.edit(edit), wire.edit(edit)
    through.path.receivers.append(wire.site(Site("LOGITS")))
    through.path.through.extend(wire.site(Site(name)) for name in ("HEAD_OUT", "MLP_OUT"))
    readers = ("QUERY", "KEY", "VALUE", "MLP_OUT", "LOGITS")
    direct.path.receivers.extend(wire.site(Site(name)) for name in readers)
    listed = pb.InterventionList(
        interventions=[pb.Intervention(edits=[one]) for one in (through, direct, wire.edit(edit))]
    )
    prompts = [wire.prompt(one) for one in (seen.prompt, seen.other)]
    request = pb.InterveneRequest(
        prompt=prompts[0], sources=[prompts[1]], list=listed, readout=pb.Readout(targets=WIRED)
    )
    logits = seen.host.intervene(request).columns["logits"]
    assert_close(logits[0], logits[2])
    assert_close(logits[1], logits[2])
    assert_close(logits[2], predictions(seen, [[edit]])[0].logits)


# ------------------------------------------------------------------ methods


def test_a_causal_trace_of_the_image(seen: Seen) -> None:
    noise = np.random.RandomState(3).randn(2, len(seen.image), seen.oracle.hidden_size).astype(np.float32)
    components, layers = ("RESIDUAL_POST", "MLP_OUT", "TOKEN_EMBEDDING"), [0, 2]
    positions = [1, seen.image[0], seen.image[3], seen.last]
    method = pb.CausalTracing(
        named_subject=pb.NamedPositions(span="image"),
        noise=wire.tensor(noise),
        components=[wire.component(name) for name in components],
        layers=layers,
        positions=positions,
        window=1,
    )
    request = pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, causal_tracing=method)
    answer = seen.host.trace(request)
    clean = seen.oracle.run(seen.prompt).values
    corrupt = [Edit(Site("TOKEN_EMBEDDING", positions=tuple(seen.image)), oracle.Add(sample)) for sample in noise]
    assert answer.corruption is not None
    assert list(answer.corruption.positions) == seen.image

    def probability(*edits: Edit) -> npt.NDArray[Any]:
        runs = [seen.oracle.run(seen.prompt, [one, *edits]).logits[-1] for one in corrupt]
        return np.mean([np.exp(seen.oracle.predict(run, TARGETS).log_probabilities) for run in runs], axis=0)

    assert_close(np.array(answer.corruption.probabilities), probability())
    for component in components:
        for layer in [-1] if component in UNLAYERED else layers:
            for position in positions:
                value = clean[component, max(layer, 0)][[position]].numpy()
                site = Site(component, () if layer < 0 else (layer,), (), (position,))
                expected = probability(Edit(site, oracle.Set(value)))
                assert_close(answer.cells[component][position, layer]["probabilities"], expected, f"{component} {site}")


def test_a_counterfactual_image(seen: Seen) -> None:
    other = Shown(seen.prompt, seen.other.picture)
    method = pb.CausalTracing(counterfactual=wire.prompt(other), layers=[1], positions=[seen.last], window=1)
    answer = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, causal_tracing=method))
    assert answer.corruption is not None
    assert list(answer.corruption.positions) == seen.image
    alone = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(other), targets=WIRED)).context.clean
    assert_close(np.array(answer.corruption.probabilities), np.exp(np.array(alone.log_probabilities)))


def test_attributions(seen: Seen) -> None:
    names = ["TOKEN_EMBEDDING", "RESIDUAL_POST", "HEAD_OUT", "KEY", "ATTENTION_PATTERN", "NEURON"]
    method = pb.AttributionPatching(
        source=wire.prompt(seen.other), components=[wire.component(name) for name in names], integration_steps=2
    )
    request = pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, attribution_patching=method)
    found = seen.host.trace(request).estimates
    question = plain.Question(seen.prompt, seen.other, TARGETS, steps=2)
    for name in names:
        assert_near(found[name], plain.estimates(seen.oracle, question, name), name)


def test_attributed_edges(seen: Seen) -> None:
    method = pb.AttributionPatching(source=wire.prompt(seen.other), edges=pb.AttributionPatching.Edges())
    request = pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, attribution_patching=method)
    found = seen.host.trace(request).edges
    expected = plain.edges(seen.oracle, plain.Question(seen.prompt, seen.other, TARGETS), parallel=False)
    assert set(found) == set(expected)
    assert_near(np.array([found[edge] for edge in expected]), np.array(list(expected.values())))


def test_circuit_discovery(seen: Seen) -> None:
    """Without any of its edges, what is left of a prompt is the run of the source."""
    method = pb.CircuitDiscovery(source=wire.prompt(seen.other), threshold=1e9)
    request = pb.TraceRequest(prompt=wire.prompt(seen.prompt), targets=WIRED, circuit_discovery=method)
    parts = [part for message in seen.host.stub.Trace(request, timeout=DEADLINE) for part in message.discovered]
    final = parts[-1]
    own = seen.oracle.run(seen.prompt).logits[-1]
    assert abs(final.loss - seen.oracle.kl_divergence(own, seen.oracle.run(seen.other).logits[-1])) < 1e-4


# ------------------------------------------------------------------ what is told


def test_what_the_answer_says_of_the_image(seen: Seen) -> None:
    context = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(seen.prompt))).context
    assert {grid.stack for grid in context.images} == {pb.STACK_DECODER}
    assert [list(span.positions) for span in context.spans if span.name == "image"] == [seen.image]
    lying = sorted(position for grid in context.images for position in grid.positions)
    # The class token, and the ends of rows, have no place in the image.
    elsewhere = {"llava-full": 1, "llava_next": context.images[0].rows}.get(seen.name, 0)
    assert len(set(lying)) == len(lying) == len(seen.image) - elsewhere
    assert set(lying) <= set(seen.image)
    processor = type(seen.oracle.processor).__name__
    assert context.provenance.image_processor.startswith(f"{processor}, Pillow ")
    told = seen.host.model_info()
    assert told.image.token_id == seen.oracle.model.config.image_token_id
    assert told.image.placeholder == seen.placeholder
    assert told.image.min_positions <= len(seen.image) <= told.image.max_positions
    assert told.limits.max_image_bytes == 8 << 20
    assert told.limits.max_image_pixels == 1 << 24
    text = seen.host.trace(pb.TraceRequest(prompt=pb.Prompt(text="The tower"))).context
    assert not text.images
    assert not text.provenance.image_processor


def test_the_grid_lies_over_the_part_that_is_seen(seen: Seen) -> None:
    """Whatever lies outside of the grid is not seen; what lies under one of its cells moves what the tower makes."""
    context = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(seen.prompt), dry_run=True)).context
    grid, size = context.images[0], seen.prompt.picture.size
    left, right = grid.left * size[0], grid.right * size[0]
    dark = seen.prompt.picture.copy()
    for x in (*range(int(left) - 1), *range(int(right) + 2, size[0])):
        for y in range(size[1]):
            dark.putpixel((x, y), (0, 0, 0))
    embeddings = [
        activations(seen, Shown(seen.prompt, one), Site("TOKEN_EMBEDDING"))[-1, 0, 0]
        for one in (seen.prompt.picture, dark)
    ]
    assert_close(embeddings[0], embeddings[1])


def test_text_and_ids_are_the_same_prompt(seen: Seen) -> None:
    texts = seen.host.trace(pb.TraceRequest(prompt=pb.Prompt(text=seen.text(), image=seen.prompt.image), top_k=3))
    ids = seen.host.trace(pb.TraceRequest(prompt=wire.prompt(seen.prompt), top_k=3))
    assert [one.id for one in texts.context.tokens] == list(seen.prompt)
    assert texts.context.clean == ids.context.clean


def test_the_same_tokens_with_another_image_are_another_prompt(seen: Seen) -> None:
    """In either order, and with the text's run kept."""
    other = Shown(seen.prompt, seen.other.picture)
    found = {}
    for name, prompt in (("own", seen.prompt), ("other", other), ("own again", seen.prompt), ("other again", other)):
        found[name] = list(
            seen.host.trace(pb.TraceRequest(prompt=wire.prompt(prompt), targets=WIRED)).context.clean.log_probabilities
        )
    assert found["own"] == found["own again"]
    assert found["other"] == found["other again"]
    assert np.abs(np.array(found["own"]) - np.array(found["other"])).max() > 1e-3


def test_one_image_in_two_encodings_is_one_image(seen: Seen) -> None:
    shown = picture(11)
    small, large = (encoded(shown, compress_level=level) for level in (9, 0))
    palette = encoded(shown.quantize(256).convert("RGB").convert("P"))
    answers = []
    before = seen.eye().passes
    for data in (small, large):
        prompt = pb.Prompt(text=seen.text(after=" and"), image=data)
        answers.append(seen.host.trace(pb.TraceRequest(prompt=prompt, top_k=5)).context.clean)
    assert small != large
    assert answers[0] == answers[1]
    assert seen.eye().passes == before + 1
    seen.host.trace(pb.TraceRequest(prompt=pb.Prompt(text=seen.text(), image=palette)))


def test_an_image_that_is_asked_about_again_is_not_seen_again(seen: Seen) -> None:
    data = encoded(picture(12))
    before = seen.eye().passes
    for after in (" is in Rome", " is in Paris", " is"):
        seen.host.trace(pb.TraceRequest(prompt=pb.Prompt(text=seen.text(after=after), image=data), targets=WIRED))
    assert seen.eye().passes == before + 1


def test_images_are_prepared_on_the_threads_of_calls(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's thread is there for the model."""
    eye, threads = seen.eye(), []
    prepare, tower = eye.inputs, eye.embedding

    def preparing(image: Any) -> Any:
        threads.append(("prepared", threading.get_ident()))
        return prepare(image)

    def seeing(*given: Any) -> Any:
        threads.append(("seen", threading.get_ident()))
        return tower(*given)

    monkeypatch.setattr(eye, "inputs", preparing)
    monkeypatch.setattr(eye, "embedding", seeing)
    prompt = pb.Prompt(text=seen.text(), image=encoded(picture(41)))
    list(seen.host.stub.Trace(pb.TraceRequest(cases=[pb.Case(prompt=prompt)] * 3, targets=WIRED), timeout=DEADLINE))
    assert [what for what, _ in threads] == ["prepared", "seen"]
    assert threads[0][1] != threads[1][1]


def test_the_cost_is_what_is_computed(seen: Seen) -> None:
    scheduler: Any = seen.host.server._scheduler
    ids = [*seen.prompt[:-1], 33]
    fresh = Shown(ids, picture(21))
    plan = [
        [Edit(Site("RESIDUAL_PRE", (LAYER,), (), positions), oracle.Scale(-0.5))]
        for positions in ((seen.image[2],), (seen.image[-1],), (seen.last,))
    ]
    before = scheduler.engine.work.token_layers
    cost = seen.host.intervene(wire.intervene(fresh, plan, TARGETS)).context.cost
    assert scheduler.engine.work.token_layers - before == cost.token_layers
    tracing = pb.CausalTracing(
        named_subject=pb.NamedPositions(span="image"), gaussian=pb.CausalTracing.Gaussian(samples=2),
        components=[pb.COMPONENT_RESIDUAL_POST], positions=[seen.image[0], seen.image[3], seen.last],
    )  # fmt: skip
    fresh = Shown([*seen.prompt[:-1], 34], picture(22))
    before = scheduler.engine.work.token_layers
    request = pb.TraceRequest(prompt=wire.prompt(fresh), targets=WIRED, causal_tracing=tracing)
    cost = seen.host.trace(request).context.cost
    assert scheduler.engine.work.token_layers - before == cost.token_layers


def test_many_images_in_one_request(seen: Seen) -> None:
    """Cases answer as prompts alone do, and their places go by the name of the image."""
    pictures = [picture(number, *size) for number, size in ((31, (40, 28)), (32, (28, 40)), (33, (64, 24)))]
    prompts = [pb.Prompt(text=seen.text(), image=encoded(one)) for one in pictures]
    tracing = pb.CausalTracing(
        named_subject=pb.NamedPositions(span="image"), gaussian=pb.CausalTracing.Gaussian(samples=1),
        components=[pb.COMPONENT_RESIDUAL_POST],
        named_positions=[pb.NamedPositions(span="image", part=pb.SPAN_PART_LAST)],
    )  # fmt: skip
    alone = [
        seen.host.trace(pb.TraceRequest(prompt=prompt, targets=WIRED, causal_tracing=tracing)) for prompt in prompts
    ]
    request = pb.TraceRequest(
        cases=[pb.Case(prompt=prompt) for prompt in prompts],
        targets=WIRED,
        causal_tracing=tracing,
        reduction=pb.Reduction(),
    )
    grids, statistic = [], pb.STATISTIC_UNSPECIFIED
    for message in seen.host.stub.Trace(request, timeout=DEADLINE):
        statistic = message.reduction.statistic or statistic
        grids += [wire.array(grid.probabilities) for grid in message.grids if statistic == pb.STATISTIC_MEAN]
    own = []
    for answer in alone:
        (image,) = (list(span.positions) for span in answer.context.spans if span.name == "image")
        layers = range(seen.oracle.layers)
        own.append(answer.grid("RESIDUAL_POST", "probabilities", layers, [image[-1]]))
    assert_close(np.concatenate(grids)[:1], np.mean(own, axis=0))


# ------------------------------------------------------------------ what is refused


def refused(seen: Seen, prompt: pb.Prompt) -> dict[str, str]:
    found = wire.refusal(seen.host.stub.Trace(pb.TraceRequest(prompt=prompt), timeout=DEADLINE))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    seen.host.trace(pb.TraceRequest(prompt=pb.Prompt(text="The tower")))
    return found.violations


def test_an_image_needs_its_place_and_a_place_its_image(seen: Seen) -> None:
    image, placeholder = seen.prompt.image, seen.placeholder
    assert "got it 0 times" in refused(seen, pb.Prompt(text="The tower", image=image))["prompt.text"]
    assert repr(placeholder) in refused(seen, pb.Prompt(text="The tower", image=image))["prompt.text"]
    assert "got it 2 times" in refused(seen, pb.Prompt(text=seen.text() + placeholder, image=image))["prompt.text"]
    assert "expected an image" in refused(seen, pb.Prompt(text=seen.text()))["prompt.text"]
    few = [one for position, one in enumerate(seen.prompt) if position != seen.image[0]]
    told = refused(seen, pb.Prompt(token_ids=pb.TokenIds(ids=few), image=image))
    ((_, text),) = told.items()
    assert f"at {len(seen.image)} positions, got {len(seen.image) - 1}" in text


def test_a_span_of_that_name_is_taken(seen: Seen) -> None:
    span = pb.Span(name="image", positions=pb.PositionList(positions=[0]))
    told = refused(seen, pb.Prompt(text=seen.text(), image=seen.prompt.image, spans=[span]))
    assert "not that of the image" in told["prompt.spans[0].name"]


def test_gradients_inside_an_image_that_sees_itself_are_refused(seen: Seen) -> None:
    method = pb.TokenProbability(gradient_norms=True)
    request = pb.TraceRequest(
        prompt=wire.prompt(seen.prompt), position=seen.image[2], token_probability=method, targets=WIRED
    )
    if seen.host.model_info().image.sees_itself:
        found = wire.refusal(seen.host.stub.Trace(request, timeout=DEADLINE))
        assert "outside of the image" in found.violations["position"]
    else:
        columns = seen.host.trace(request).columns
        expected = seen.oracle.gradient_norms(seen.prompt, TARGETS, seen.image[2])
        assert_close(columns["gradient_norms"], expected)
    request.position = seen.image[-1]
    columns = seen.host.trace(request).columns
    assert_close(columns["gradient_norms"], seen.oracle.gradient_norms(seen.prompt, TARGETS, seen.image[-1]))


def test_a_source_whose_image_lies_elsewhere_is_refused(seen: Seen) -> None:
    moved = Shown([seen.prompt[-1], *seen.prompt[:-1]], seen.other.picture)
    method = pb.CausalTracing(counterfactual=wire.prompt(moved))
    request = pb.TraceRequest(prompt=wire.prompt(seen.prompt), causal_tracing=method)
    found = wire.refusal(seen.host.stub.Trace(request, timeout=DEADLINE))
    assert "lies as that of the prompt does" in found.violations["causal_tracing.counterfactual"]
