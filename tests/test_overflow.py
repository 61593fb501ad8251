"""No number that is not finite is answered as if it were a result: the question fails and is told why."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.engine import Engine
from sonde_server.engine.selfcheck import verify
from sonde_server.errors import UnsupportedModel
from sonde_server.model.loading import load
from sonde_server.serving.server import Server
from sonde_server.sharing.driving import complete

from tests.conftest import DEADLINE, Host
from tests.support import oracle, wire
from tests.support.models import save_model
from tests.support.oracle import Edit, Scale, Site, Sweep, Target
from tests.support.tolerance import assert_close

LOUD, BLOCK, UNIT = 77, 2, 5
FINE = [5, 130, 7, 301]
OVERFLOWING = [5, LOUD, 7, 301]
TARGETS = [Target(41), Target(200)]
Ask = Callable[[pb.TraceRequest | pb.InterveneRequest], Any]


def plant(folder: Path, token: int) -> Path:
    """Makes the stream of one token exceed float16 behind block BLOCK: 65504 before it, and 2000 added by its MLP."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    model = load(str(folder), device="cpu").decoder.model
    with torch.no_grad():
        model.get_input_embeddings().weight[token, UNIT] = 65504.0
        seen: list[torch.Tensor] = []
        down = model.get_submodule(f"model.layers.{BLOCK}.mlp.down_proj")
        hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(input_ids=torch.tensor([[token]]))
        hook.remove()
    neurons = seen[0].flatten()
    weights["model.embed_tokens.weight"][token, UNIT] = 65504.0
    weights[f"model.layers.{BLOCK}.mlp.down_proj.weight"][UNIT] = 2000 * neurons / neurons.square().sum()
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return plant(save_model("llama", tmp_path_factory.mktemp("overflow")), LOUD)


@pytest.fixture(scope="module")
def stubs(folder: Path) -> Iterator[dict[str, InspectionServiceStub]]:
    """The same model in two data types."""
    with ExitStack() as stack:
        found = {}
        for dtype in ("float16", "float32"):
            server = stack.enter_context(Server(Settings(model=str(folder), port=0, device="cpu", dtype=dtype)))
            found[dtype] = InspectionServiceStub(stack.enter_context(grpc.insecure_channel(server.address)))
        yield found


def call(stub: InspectionServiceStub, request: pb.TraceRequest | pb.InterveneRequest) -> Any:
    if isinstance(request, pb.TraceRequest):
        return stub.Trace(request, timeout=DEADLINE)
    return stub.Intervene(request, timeout=DEADLINE)


def trace(ids: list[int] = OVERFLOWING, position: int | None = None, **method: Any) -> pb.TraceRequest:
    targets = [wire.target(one) for one in TARGETS]
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=targets, position=position, **method)


def scaled(factor: float, name: str = "MLP_OUT", layer: int = 1) -> list[Edit]:
    return [Edit(Site(name, (layer,), (), (-1,)), Scale(factor))]


PATCHED = [[Edit(Site("MLP_OUT", (3,), (), (1, 3)), oracle.Patch((0,)))]]
METHOD = pb.AttributionPatching(source=wire.prompt(OVERFLOWING), components=[pb.COMPONENT_RESIDUAL_POST])
COUNTERFACTUAL = pb.CausalTracing(counterfactual=wire.prompt(OVERFLOWING))

# Each reads what the loud token has overflown, by itself or through attention.
QUESTIONS: dict[str, tuple[pb.TraceRequest | pb.InterveneRequest, str]] = {
    "a prediction": (trace(), "the prompt"),
    "a lens": (trace(token_probability=pb.TokenProbability()), "the prompt"),
    "activations": (
        trace(position=0, activations=pb.Activations(sites=[wire.site(Site("RESIDUAL_POST", (BLOCK,)))])), "the prompt",
    ),
    "keys that are kept": (
        trace(position=0, activations=pb.Activations(sites=[wire.site(Site("KEY", (BLOCK + 1,)))])), "the prompt",
    ),
    "estimates": (trace(FINE, attribution_patching=METHOD), "the source"),
    "a trace": (trace(FINE, causal_tracing=COUNTERFACTUAL), "the counterfactual"),
    "interventions": (wire.intervene(OVERFLOWING, [scaled(0.5)], TARGETS), "the prompt"),
    "a patch": (wire.intervene(FINE, PATCHED, TARGETS, [OVERFLOWING]), "sources[0]"),
    "a text": (
        wire.intervene(OVERFLOWING, [scaled(0.5)], TARGETS, position=0, generation=pb.Generation(max_new_tokens=3)),
        "the prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_model_that_overflows_says_where(stubs: dict[str, InspectionServiceStub], name: str) -> None:
    request, whose = QUESTIONS[name]
    refused = wire.refusal(call(stubs["float16"], request))
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reasons == ["NOT_FINITE"]
    assert f"the unchanged run of {whose} is not finite in float16 from block {BLOCK} on" in refused.message
    assert "--dtype bfloat16 or float32" in refused.message
    assert list(call(stubs["float32"], request)), "a wider type holds it"


def test_other_prompts_are_answered(stubs: dict[str, InspectionServiceStub]) -> None:
    (half,), (single,) = (list(call(stubs[dtype], trace(FINE))) for dtype in ("float16", "float32"))
    np.testing.assert_allclose(half.context.clean.logits, single.context.clean.logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_edit_that_overflows_is_the_edits_fault(stubs: dict[str, InspectionServiceStub], dtype: str) -> None:
    plan = [scaled(0.5), scaled(1e30), scaled(2.0)]
    refused = wire.refusal(call(stubs[dtype], wire.intervene(FINE, plan, TARGETS)))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    (reason,) = refused.violations.items()
    assert reason[0] == "list.interventions[1]"
    assert f"exceed the range of {dtype}" in reason[1]
    sweep = Sweep(Edit(Site("MLP_OUT", (), (), (-1,)), Scale(1e30)))
    refused = wire.refusal(call(stubs[dtype], wire.intervene(FINE, sweep, TARGETS)))
    assert list(refused.violations) == ["sweep.edit"]
    assert "in run 0 " in refused.violations["sweep.edit"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_ends_where_the_numbers_do(stubs: dict[str, InspectionServiceStub], temperature: float) -> None:
    """An edit that acts only while the text is continued: what came until then has come."""
    edit = Edit(Site("MLP_OUT", (1,), (), from_position=len(FINE) + 1), Scale(1e30))
    generation = pb.Generation(max_new_tokens=4, temperature=temperature, ignore_end_token=True)
    stream = call(stubs["float16"], wire.intervene(FINE, [[edit]], TARGETS, generation=generation))
    came: list[pb.InterveneResponse] = []
    with pytest.raises(grpc.RpcError) as caught:
        came.extend(stream)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "list.interventions[0]" in str(caught.value.details())


def test_masked_scores_are_no_overflow(stubs: dict[str, InspectionServiceStub]) -> None:
    scores = pb.Activations(sites=[wire.site(Site("ATTENTION_SCORES", (1,)))])
    answer = wire.join_trace(call(stubs["float16"], trace(FINE, activations=scores)))
    (values,) = answer.activations.values()
    assert np.array_equal(np.isneginf(values), np.broadcast_to(np.triu(np.ones((4, 4), bool), 1), values.shape))


def test_noise_that_overflows_is_at_fault(stubs: dict[str, InspectionServiceStub]) -> None:
    loud = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=2, standard_deviation=1e38),
        subject_positions=pb.PositionList(positions=[1]),
    )
    refused = wire.refusal(call(stubs["float16"], trace(FINE, causal_tracing=loud)))
    (text,) = refused.violations.values()
    assert list(refused.violations) == ["causal_tracing.gaussian"]
    assert "the corrupted runs would not be finite: the noise exceeds the range of float16" in text


def test_a_run_that_overflows_takes_nobody_with_it(gpt2: Host) -> None:
    """Sweeps of two callers share batches; one of them ends at its run that overflows, the other is as alone."""
    ids = [5, 130, 77, 301, 9, 260, 41]
    others = wire.intervene(ids, Sweep(Edit(Site("NEURON", (1, 2)), Scale(0.0))), TARGETS)
    plan = [scaled(1.0 + number) for number in range(200)]
    plan[150] = scaled(1e30)
    broken = wire.intervene(ids, plan, TARGETS)
    alone = gpt2.intervene(others)
    count = alone.context.cost.runs
    scheduler = gpt2.server.scheduler
    released = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        with scheduler.session(caller="test", cancelled=threading.Event()) as session:
            # Both wait for the model while it is held.
            held = pool.submit(complete, session.call(released.wait), session)
            beside = pool.submit(gpt2.intervene, others)
            refused = pool.submit(wire.refusal, gpt2.stub.Intervene(broken, timeout=DEADLINE))
            deadline = time.monotonic() + DEADLINE
            while scheduler.queued_runs < len(plan) + count:
                assert time.monotonic() < deadline, "one of them was not accepted"
                time.sleep(0.005)
            released.set()
            held.result(DEADLINE)
        assert list(refused.result(DEADLINE).violations) == ["list.interventions[150]"]
        together = beside.result(DEADLINE)
    for name, column in alone.columns.items():
        assert_close(together.columns[name], column, name)


def test_a_first_token_that_overflows_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    """The token that begins texts is in every prompt, and no random token stands for it."""
    folder = save_model("llama", tmp_path / "model")
    begin = json.loads((folder / "config.json").read_text(encoding="utf-8"))["bos_token_id"]
    plant(folder, begin)
    reason = rf"in float16 its activations are infinite.* from block {BLOCK} on.*--dtype bfloat16 or float32"
    with pytest.raises(UnsupportedModel, match=reason):
        verify(Engine(load(str(folder), device="cpu", dtype="float16").decoder))
    verify(Engine(load(str(folder), device="cpu", dtype="float32").decoder))
