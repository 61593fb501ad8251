"""Checkpoints that are not whole, and devices that are not there, are refused; whole ones load in all their forms."""

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sonde_server.errors import UnsupportedModel
from sonde_server.model.families import FAMILIES
from sonde_server.model.families.attributes import unaccounted
from sonde_server.model.loading import load
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

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
    with pytest.raises(
        UnsupportedModel, match=rf"^--device: expected one of cpu.*, got {device}, which cannot be used: "
    ):
        load("atlas", device=device)


@pytest.mark.parametrize("name", ["lm_head.weight", UP, "model.norm.weight"])
def test_a_missing_weight_is_refused_and_never_drawn(model: Path, name: str) -> None:
    rewrite(model, {key: value for key, value in weights(model).items() if key != name})
    with pytest.raises(UnsupportedModel, match=rf"not a complete LlamaForCausalLM: {name} is missing$"):
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


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_attribute_of_a_configuration_is_accounted_for(family: str) -> None:
    """Set to anything at all: this version of transformers has no attribute that its family does not know."""
    config = CONFIG_MAPPING[family]()
    assert not list(unaccounted(config, {field.name: object() for field in fields(config)}))


@dataclass
class Tomorrow(CONFIG_MAPPING["llama"]):  # type: ignore[misc]
    """A Llama with an attribute that no version of transformers has, and with one that Granite has."""

    attention_temperature: float = 1.0
    embedding_multiplier: float = 1.0


@pytest.mark.parametrize("name", ["attention_temperature", "embedding_multiplier"])
def test_an_attribute_of_a_later_version_is_refused_unless_it_is_at_its_default(name: str) -> None:
    assert list(unaccounted(Tomorrow(), {"rms_norm_eps": 1e-3, name: 2.0})) == [name]
    assert not list(unaccounted(Tomorrow(), {"rms_norm_eps": 1e-3, name: 1.0}))
    assert not list(unaccounted(Tomorrow(), {"rms_norm_eps": 1e-3}))


def test_a_checkpoint_with_such_an_attribute_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(model, attention_temperature=2.0)
    load(str(model), device="cpu")  # transformers does not have it either
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {"llama": Tomorrow})
    with pytest.raises(UnsupportedModel, match="sets attention_temperature in its configuration"):
        load(str(model), device="cpu")


LINEAR = {"type": "linear", "factor": 2.0}


def configure(model: Path, **fields: object) -> None:
    """Changes fields of a checkpoint's configuration."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | fields), "utf-8")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_hidden_layers": "five"}, r"configuration of .*llama' is faulty: .*five"),
        ({"num_hidden_layers": 0}, "no layers"),
        ({"hidden_size": 50}, r"configuration of .*llama' is faulty: .*50"),
        ({"num_attention_heads": 0}, r"configuration of .*llama' is faulty"),
        ({"model_type": None}, "model type `None`"),
        ({"hidden_act": "nonsense"}, "cannot load .*nonsense"),
        ({"dtype": "auto"}, "expected float32, bfloat16 or float16 as dtype, got 'auto'"),
        ({"torch_dtype": "torch.bfloat16"}, r"expected float32, .* as torch_dtype, got 'torch\.bfloat16'"),
        (
            {"rope_parameters": {"type": "su", "factor": 2.0}},
            "expected a rope_type of default, dynamic, linear, .*, got 'su'",
        ),
        ({"rope_parameters": {"type": "llama3", "factor": 2.0}}, "faulty.*low_freq_factor"),
        ({"rope_parameters": {"factor": 2.0}}, "expected a rope_type beside the factor"),
        ({"rope_parameters": {"type": "linear", "factor": "two"}}, "cannot load"),
        ({"quantization_config": {"bits": 4}}, "expected a quant_method in the quantization_config"),
        ({"quantization_config": "gptq"}, "expected a quant_method in the quantization_config"),
        ({"quantization_config": {"quant_method": "nonsense"}}, "expected a quant_method of .*, got 'nonsense'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot load .*optimum"),
        ({"quantization_config": {"load_in_8bit": True}}, "cannot load .*bitsandbytes"),
    ],
)
def test_a_faulty_configuration_is_refused(model: Path, fields: dict[str, object], reason: str) -> None:
    configure(model, **fields)
    with pytest.raises(UnsupportedModel, match=reason):
        load(str(model), device="cpu")


def test_an_older_form_of_scaled_rotary_positions_is_the_same(model: Path, tmp_path: Path) -> None:
    older = shutil.copytree(model, tmp_path / "older")
    configure(model, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    config = json.loads((older / "config.json").read_text("utf-8"))
    del config["rope_parameters"]
    config |= {"rope_scaling": LINEAR, "rope_theta": 1e4}
    (older / "config.json").write_text(json.dumps(config), "utf-8")
    assert torch.equal(logits(older), logits(model))


@pytest.mark.parametrize(
    ("file", "text"),
    [("generation_config.json", "[1]"), ("generation_config.json", '{"eos_token_id": "</s>"}')],
)
def test_a_faulty_generation_configuration_is_refused(model: Path, file: str, text: str) -> None:
    (model / file).write_text(text, "utf-8")
    with pytest.raises(UnsupportedModel, match=r"cannot load|eos_token_id"):
        load(str(model), device="cpu")


@pytest.mark.parametrize("left", ["the whole model", "its configuration", "nothing"])
def test_an_adapter_is_refused_whatever_lies_beside_it(model: Path, left: str) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (model / "adapter_config.json").write_text(json.dumps(adapter), "utf-8")
    if left != "the whole model":
        (model / "model.safetensors").unlink()
    if left == "nothing":
        (model / "config.json").unlink()
    with pytest.raises(
        UnsupportedModel, match=r"holds an adapter for 'some/base' \(adapter_config\.json\).*to merge it"
    ):
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
