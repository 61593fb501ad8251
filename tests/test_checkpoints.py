"""Checkpoints that are not whole, and devices that are not there, are refused; whole ones load in all their forms."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sonde_server.errors import UnsupportedModel
from sonde_server.model.loading import load
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.models import load_plain, save_model

IDS = torch.tensor([[5, 130, 77, 301, 9]])
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model("llama", tmp_path / "llama")


def weights(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def rewrite(model: Path, changed: dict[str, Tensor]) -> None:
    save_file(changed, model / "model.safetensors", {"format": "pt"})


def logits(model: Path) -> Tensor:
    with torch.no_grad():
        answer: Tensor = load(str(model), device="cpu").decoder.model(IDS, use_cache=False).logits
    return answer


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"^--device {device} cannot be used: .*; there is cpu"):
        load("atlas", device=device)


@pytest.mark.parametrize("name", ["lm_head.weight", UP, "model.norm.weight"])
def test_a_missing_weight_is_refused_and_never_drawn(model: Path, name: str) -> None:
    rewrite(model, {key: value for key, value in weights(model).items() if key != name})
    with pytest.raises(UnsupportedModel, match=rf"not a whole LlamaForCausalLM: {name} is missing$"):
        load(str(model), device="cpu")


def test_many_missing_weights_are_counted(model: Path) -> None:
    rewrite(model, {key: value for key, value in weights(model).items() if "mlp" not in key})
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.down_proj\.weight is missing; .*; and 10 more$"):
        load(str(model), device="cpu")


def test_a_weight_of_another_shape_is_refused_with_both(model: Path) -> None:
    rewrite(model, {key: value[:-1].clone() if key == UP else value for key, value in weights(model).items()})
    with pytest.raises(UnsupportedModel, match=rf"{UP} has shape \(79, 48\) instead of \(80, 48\)"):
        load(str(model), device="cpu")


def test_half_a_file_is_refused(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UnsupportedModel, match=r"cannot load .*llama'"):
        load(str(model), device="cpu")


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", "five"), ("hidden_size", 50)])
def test_a_faulty_configuration_is_refused(model: Path, field: str, value: object) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | {field: value}), "utf-8")
    with pytest.raises(UnsupportedModel, match=rf"configuration of .*llama' is faulty: .*{value}"):
        load(str(model), device="cpu")


def test_a_quantised_one_without_its_library_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedModel, match=r"cannot load .*optimum"):
        load(str(model), device="cpu")


def test_one_in_several_files_is_the_same(model: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    load_plain(model).save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(logits(sharded), logits(model))


def test_one_of_several_files_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    load_plain(model).save_pretrained(sharded, max_shard_size="100KB")
    sorted(sharded.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UnsupportedModel, match="cannot load"):
        load(str(sharded), device="cpu")


def test_the_decoder_alone_is_enough_where_the_unembedding_is_the_embedding(tmp_path: Path) -> None:
    whole = save_model("gpt2", tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(whole).transformer.save_pretrained(tmp_path / "decoder")
    assert torch.equal(logits(tmp_path / "decoder"), logits(whole))


def test_weights_that_belong_to_something_else_are_left(model: Path) -> None:
    before = logits(model)
    rewrite(model, weights(model) | {"score.weight": torch.ones(2, 48)})
    assert torch.equal(logits(model), before)
