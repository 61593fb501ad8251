"""A model that is spread: blocks in memory and on disk, fetched when they are called."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import SettingError, Settings
from sonde_server.errors import UnsupportedModel
from sonde_server.model.loading import load
from sonde_server.serving.server import Server
from torch import nn

from tests.conftest import DEADLINE
from tests.support import wire
from tests.support.models import load_plain, save_model
from tests.support.modules import modules_of
from tests.support.oracle import Edit, Patch, Scale, Site, Sweep, Target
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
TARGETS = [Target(41), Target(200, contrast=12)]


def spread(folder: Path) -> dict[str, str]:
    """Every other block on disk, and the unembedding too where it has a weight of its own."""
    model = load_plain(folder)
    parts = modules_of(model)
    names = {module: name for name, module in model.named_modules()}
    blocks = [names[block] for block in parts.blocks]
    above = blocks[0].rpartition(".")[0] + "."
    own = {
        name: "cpu"
        for name, module in model.named_modules()
        if _has_weights(module) and not name.startswith(above) and module is not parts.unembedding
    }
    where = "cpu" if model.config.tie_word_embeddings else "disk"
    placed = {name: "disk" if number % 2 else "cpu" for number, name in enumerate(blocks)}
    return {**own, **placed, names[parts.unembedding]: where}


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


@dataclass(frozen=True)
class Pair:
    """The same model, whole and spread."""

    whole: InspectionServiceStub
    spread: InspectionServiceStub
    model: Any


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom", "gemma3_text", "gpt_oss", "qwen2_moe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("spread")
    folder = save_model(request.param, directory / "model")
    (directory / "map.json").write_text(json.dumps(spread(folder)), encoding="utf-8")
    with ExitStack() as stack:
        one = stack.enter_context(Server(Settings(model=str(folder), port=0, device="cpu")))
        several = stack.enter_context(Server(Settings(model=str(folder), port=0, device_map=f"{directory}/map.json")))
        channels = [stack.enter_context(grpc.insecure_channel(server.address)) for server in (one, several)]
        yield Pair(*(InspectionServiceStub(channel) for channel in channels), several.model)


def both(pair: Pair, request: pb.TraceRequest | pb.InterveneRequest) -> tuple[wire.Answer, wire.Answer]:
    if isinstance(request, pb.TraceRequest):
        return tuple(wire.join_trace(stub.Trace(request, timeout=DEADLINE)) for stub in (pair.whole, pair.spread))  # type: ignore[return-value]
    return tuple(wire.join_intervene(stub.Intervene(request, timeout=DEADLINE)) for stub in (pair.whole, pair.spread))  # type: ignore[return-value]


def test_it_is_spread_and_says_so(pair: Pair) -> None:
    assert {parameter.device.type for parameter in pair.model.parameters()} == {"cpu", "meta"}
    told = pair.spread.GetModel(pb.GetModelRequest(), timeout=DEADLINE)
    assert told.provenance.device == "cpu, disk"
    whole = pair.whole.GetModel(pb.GetModelRequest(), timeout=DEADLINE)
    assert told.stacks == whole.stacks


@pytest.mark.parametrize("component", ["RESIDUAL_POST", "HEAD_OUT", "KEY", "ATTENTION_SCORES", "MLP_OUT", "LOGITS"])
def test_interventions(pair: Pair, component: str) -> None:
    layers = () if component == "LOGITS" else (1,)
    edit = Edit(Site(component, layers, positions=(2, -1)), Scale(0.5))
    sweep = Sweep(Edit(Site("ATTENTION_OUT"), Patch((0,))))
    for plan in ([[edit]], sweep):
        one, other = both(pair, wire.intervene(IDS, plan, TARGETS, [OTHER], kl_divergence=True, top_k=3))
        for name, values in one.columns.items():
            np.testing.assert_array_equal(other.columns[name], values, name)


def test_traces(pair: Pair) -> None:
    targets = [wire.target(one) for one in TARGETS]
    noise = pb.CausalTracing.Gaussian(samples=2)
    subject = pb.PositionList(positions=[2])
    method = pb.CausalTracing(subject_positions=subject, gaussian=noise, positions=[2, 5])
    one, other = both(pair, pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, causal_tracing=method))
    for component, cells in one.cells.items():
        for place, cell in cells.items():
            assert_close(other.cells[component][place]["probabilities"], cell["probabilities"], f"{component} {place}")
    lens = pb.TokenProbability(gradient_norms=True)
    one, other = both(pair, pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, token_probability=lens))
    for name, values in one.columns.items():
        assert_close(other.columns[name], values, name)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("spread") / "gpt2")


def test_a_model_that_fits_stays_where_it_fits(gpt2: Path) -> None:
    loaded = load(str(gpt2), device_map="auto")
    assert loaded.description.device == ("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            '{"transformer.wte": "cpu", "transformer.h.0": "disk"}',
            r"cannot load .* with --device-map .*transformer\.wpe\.weight",
        ),
        ('["cpu"]', "expected a JSON object of module names and devices"),
        ("{", "expected auto, balanced, sequential or a JSON file"),
        (
            '{"transformer": "cpu", "lm_head": "disk"}',
            "transformer.wte is on cpu and lm_head on disk.* the same device",
        ),
    ],
)
def test_a_map_that_does_not_fit_is_refused(gpt2: Path, tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "map.json").write_text(content, encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=reason):
        load(str(gpt2), device_map=f"{tmp_path}/map.json")


def test_a_map_and_a_device_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="--device-map"):
        Settings(device="cpu", device_map="auto")
