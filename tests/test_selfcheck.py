"""A model is compared with itself when it is loaded: what is not computed exactly is refused, or not offered."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.engine import Engine, attention
from sonde_server.engine.selfcheck import TOLERANCES, verify
from sonde_server.errors import UnsupportedModel
from sonde_server.model.anatomy import Decoder
from sonde_server.model.families import FAMILIES, family_of
from sonde_server.model.loading import load
from sonde_server.model.projections import separate
from sonde_server.model.rotary import rotate_halves, rotate_pairs
from sonde_server.questions.places import Component
from sonde_server.serving.server import Server
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

from tests.conftest import DEADLINE
from tests.support import wire
from tests.support.architectures import ARCHITECTURES, KINDS, make
from tests.support.models import EVERY, save_model
from tests.support.oracle import Edit, Scale, Site, Target
from tests.support.seeing import SEEING, save_seeing

IDS = [5, 130, 77, 301]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
STRETCHED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "short_mscale": 1.0, "long_mscale": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saved tiny models by name."""
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_model(name, tmp_path_factory.mktemp("selfcheck") / name)
        return made[name]

    return folder


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gemma3", {"sees_itself": False}),
        pytest.param("qwen2_vl", {"turned": False}, marks=pytest.mark.full),
        pytest.param("llava", {"sees_itself": True}, marks=pytest.mark.full),
    ],
)
def test_a_wrong_view_of_images_is_found(tmp_path: Path, name: str, wrong: dict[str, Any]) -> None:
    """Texts are as they should be, so that the made-up image alone shows it."""
    engine = engine_of(save_seeing(name, tmp_path / name))
    verify(engine)
    eye = engine.decoder.eye
    assert eye is not None
    eye.vision = replace(eye.vision, **wrong)
    with pytest.raises(UnsupportedModel, match="cannot be served: Sonde's results differ"):
        verify(engine)


def test_an_image_processor_that_does_not_fit_is_found(tmp_path: Path) -> None:
    folder = save_seeing("llava", tmp_path / "llava")
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}).save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match="cannot see an image that its image processor has prepared"):
        verify(engine_of(folder))


def engine_of(folder: Path, dtype: str = "float32") -> Engine:
    return Engine(load(str(folder), device="cpu", dtype=dtype).decoder)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gpt2", {"scaling": 0.3}),
        ("llama", {"rotate": rotate_pairs}),
        ("llama", {"mlp_norm": "input_layernorm"}),
        ("llama", {"parallel": True}),
        ("mistral", {"windows": None}),
        ("mistral", {"windows": [3, 4, 4]}),
        ("gemma2", {"softcap": None}),
        ("gemma2", {"softcap": 2.1}),
        ("gemma2", {"logits": None}),
        ("gemma3_text", {"kinds": ["full_attention"] * 3}),
        ("glm4", {"attention_post_norm": None}),
        ("glm4", {"rotate": rotate_halves}),
        ("gpt_oss", {"sinks": None}),
        ("cohere2", {"kinds": None}),
        ("smollm3", {"kinds": None}),
        ("exaone4", {"kinds": [None, "", None]}),
        ("hunyuan_v1_dense", {"turned_norms": None}),
        ("olmo3", {"kinds": ["full_attention"] * 3}),
        ("helium", {"rotate": rotate_halves}),
        ("starcoder2", {"windows": None}),
        ("granitemoe", {"logits": None}),
        ("apertus", {"project": separate()}),
        ("apertus", {"mlp_norm": "attention_layernorm"}),
        ("gpt_bigcode", {"enter": None}),
        ("phimoe", {"windows": None}),
        ("granite", {"residual_multiplier": 0.31}),
        ("granite", {"enter": None}),
        ("bloom", {"enter": None}),
        ("bloom", {"key_bias": None}),
        ("cohere", {"logits": None}),
        ("gpt_neox", {"parallel": False}),
        ("gpt_neo", {"scaling": 8**-0.5}),
        ("opt", {"scaling": 0.5}),
    ],
)
def test_a_wrong_entry_is_refused_with_the_numbers(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, wrong: dict[str, Any]
) -> None:
    folder, right = folders(name), FAMILIES[name]
    monkeypatch.setitem(FAMILIES, name, lambda config: replace(right(config), **wrong))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match=rf"{name} model cannot be served.* logits differ by \S+ of their size"):
        verify(engine_of(folder))


def test_a_server_does_not_start_with_a_wrong_entry(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right = folders("llama"), FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama", lambda config: replace(right(config), scaling=0.3))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match="cannot be served"):
        Server(Settings(model=str(folder), port=0, device="cpu")).start()


class Bent(nn.Module):
    """An output projection that is not linear."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        straight: Tensor = self.inner(states)
        return straight + 0.1 * straight**2


def test_heads_that_do_not_add_up_are_withdrawn(folders: Callable[[str], Path]) -> None:
    model: Any = load(str(folders("llama")), device="cpu").decoder.model
    model.model.layers[1].self_attn.o_proj = Bent(model.model.layers[1].self_attn.o_proj)
    decoder = Decoder(model)
    verify(Engine(decoder))
    assert list(decoder.unavailable) == [Component.HEAD_OUT]
    assert "in layer 1" in decoder.unavailable[Component.HEAD_OUT]


@pytest.mark.parametrize("wrong", ["mlp.gate_proj", "mlp.act_fn", "input_layernorm"])
def test_neurons_that_are_elsewhere_are_withdrawn(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    folder, right = folders("llama"), FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama", lambda config: replace(right(config), down_projection=wrong))  # type: ignore[arg-type]
    engine = engine_of(folder)
    verify(engine)
    assert list(engine.decoder.unavailable) == [Component.NEURON]


def test_patterns_that_do_not_make_the_heads_are_withdrawn_and_refused(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention.pattern_of

    def wrong(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
        return right(scores * 1.05, sinks)

    monkeypatch.setattr(attention, "pattern_of", wrong)
    settings = Settings(model=str(folders("llama")), port=0, device="cpu")
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        stub = InspectionServiceStub(channel)
        told = stub.GetModel(pb.GetModelRequest(), timeout=DEADLINE).stacks[0].components
        reasons = {pb.Component.Name(one.component): one.reason for one in told if not one.available}
        assert set(reasons) == {"COMPONENT_ATTENTION_SCORES", "COMPONENT_ATTENTION_PATTERN"}
        assert (
            "pattern times values differs from the output of the heads: by 0.0"
            in reasons["COMPONENT_ATTENTION_PATTERN"]
        )
        edit = Edit(Site("ATTENTION_PATTERN", (1,)), Scale(0.5))
        refused = wire.refusal(stub.Intervene(wire.intervene(IDS, [[edit]], [Target(1)]), timeout=DEADLINE))
        assert refused.code == grpc.StatusCode.UNIMPLEMENTED
        assert reasons["COMPONENT_ATTENTION_PATTERN"] in refused.message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", EVERY)
def test_half_precision_agrees_with_the_plain_model_of_the_same_type(
    folders: Callable[[str], Path], name: str, dtype: str
) -> None:
    """Within TOLERANCES: logits by 5 % and blocks by 2 % of their size in bfloat16, 1 % and 0.5 % in float16."""
    engine = engine_of(folders(name), dtype)
    assert engine.decoder.dtype is getattr(torch, dtype)
    assert TOLERANCES[engine.decoder.dtype] == ((5e-2, 2e-2) if dtype == "bfloat16" else (1e-2, 5e-3))
    before = dict(engine.decoder.unavailable)
    verify(engine)
    assert engine.decoder.unavailable == before


def test_weights_that_overflow_are_refused(folders: Callable[[str], Path]) -> None:
    decoder = load(str(folders("llama")), device="cpu", dtype="float16").decoder
    decoder.embedding.weight.data[:] = torch.inf
    with pytest.raises(UnsupportedModel, match=r"in float16 its activations are infinite.* from block 0 on"):
        verify(Engine(decoder))


def test_weights_that_are_no_numbers_are_refused_with_their_place(folders: Callable[[str], Path]) -> None:
    for path, where in (("model.layers.2.mlp.up_proj", "from block 2 on"), ("lm_head", "at the unembedding")):
        decoder = load(str(folders("llama")), device="cpu").decoder
        decoder.model.get_submodule(path).weight.data[3, 5] = torch.nan
        with pytest.raises(UnsupportedModel, match=rf"in float32 its activations are .* NaN {where}"):
            verify(Engine(decoder))


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("BertConfig", {}, "one of the types apertus, arcee, bloom, .*starcoder2, got 'bert'"),
        (
            "OPTConfig",
            {"do_layer_norm_before": False, "ffn_dim": 40, "word_embed_proj_dim": 32},
            "do_layer_norm_before is false",
        ),
        ("OPTConfig", {"word_embed_proj_dim": 16}, "narrower than the residual stream"),
        ("BloomConfig", {"apply_residual_connection_post_layernorm": True}, "carries the normed stream on"),
        ("GPT2Config", {"add_cross_attention": True}, "add_cross_attention"),
        ("GPTBigCodeConfig", {"add_cross_attention": True}, "add_cross_attention"),
        ("GemmaConfig", {"use_bidirectional_attention": True}, "bidirectional"),
        ("FalconConfig", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("LlamaConfig", {"rope_parameters": DYNAMIC}, "dynamic"),
        ("HunYuanDenseV1Config", {"rope_parameters": DYNAMIC, "head_dim": 12}, "dynamic"),
        ("Qwen2Config", {"layer_types": KINDS}, "no sliding_window"),
        ("PhimoeConfig", {"rope_parameters": STRETCHED}, "another method than longrope"),
    ],
)
def test_what_would_not_be_exact_is_refused_by_name(name: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        family_of(make(name, **fields)(100))


def test_every_family_has_a_tiny_model() -> None:
    kinds = {entry.config(400).model_type for entry in EVERY.values()}
    seeing = {entry.config(400, dict.fromkeys(entry.tokens, 9)).model_type for entry in SEEING.values()}
    assert kinds | seeing == set(FAMILIES)
    assert len(ARCHITECTURES) >= len(set(FAMILIES) - seeing) - 2
