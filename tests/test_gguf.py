"""GGUF files: what they hold is hosted exactly, and what transformers' reader would get wrong is refused."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sonde_server.errors import UnsupportedModel
from sonde_server.model.loading import load
from sonde_server.model.vocabulary import Vocabulary as Loaded

from tests.support.gguf_files import TEMPLATE, TinyLlama, Vocabulary

TEXT = "The Eiffel Tower is in the city of"


@pytest.fixture
def tiny() -> TinyLlama:
    return TinyLlama()


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_its_weights_are_those_that_its_blocks_stand_for(tied: bool, tmp_path: Path) -> None:
    tiny = TinyLlama(tied=tied)
    if tied:
        assert "output.weight" not in tiny.tensors
    loaded = load(str(tiny.write(tmp_path / "tiny.gguf")), device="cpu", pack_weights=False)
    for name, expected in tiny.model.state_dict().items():
        found = loaded.decoder.model.state_dict()[name]
        assert torch.equal(found, expected), name
    ids = [5, 130, 77, 301, 9]
    assert torch.allclose(logits(loaded.decoder.model, ids), logits(tiny.model, ids), rtol=0, atol=1e-5)


def test_it_is_described(tiny: TinyLlama, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "Tiny-Q8_0.gguf")
    described = load(str(file), device="cpu").description
    assert described.name == "Tiny-Q8_0.gguf"
    assert described.revision.startswith("sha256:")
    assert described.revision.endswith(" (GGUF Q8_0)")
    assert (described.architecture, described.layers, described.data_type) == ("llama", 3, "float32")
    tiny.tensors["output_norm.weight"] = tiny.tensors["output_norm.weight"] * 2
    other = load(str(tiny.write(tmp_path / "other.gguf")), device="cpu").description
    assert other.revision != described.revision


def test_its_weights_are_rounded_if_asked(tiny: TinyLlama, tmp_path: Path) -> None:
    loaded = load(str(tiny.write(tmp_path / "tiny.gguf")), device="cpu", dtype="bfloat16")
    assert loaded.description.data_type == "bfloat16"
    for name, expected in tiny.model.state_dict().items():
        assert torch.equal(loaded.decoder.model.state_dict()[name], expected.bfloat16()), name


def test_nothing_beside_it_is_read(tiny: TinyLlama, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}), "utf-8")
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<else>", "add_bos_token": False}), "utf-8"
    )
    (tmp_path / "chat_template.jinja").write_text("another", "utf-8")
    tokenizer = load(str(tiny.write(tmp_path / "tiny.gguf")), device="cpu").vocabulary.tokenizer
    assert tokenizer is not None
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|endoftext|>", TEMPLATE)
    assert tokenizer(TEXT).input_ids[0] == tokenizer.bos_token_id
    assert capfd.readouterr().err == "", "no bars of progress in the log"


# What a file says, and what the reader would have made of it.
SAID = {
    "rope.scaling.type": ("yarn", r"rope\.scaling\.type is 'yarn', which it takes for 'none'"),
    "rope.scaling.factor": (4.0, r"rope\.scaling\.factor is 4\.0, which it does not know"),
    "attention.sliding_window": (4, r"attention\.sliding_window is 4, which it takes for 0"),
    "attention.key_length": (32, r"attention\.key_length is 32, which it takes for 16"),
    "attention.value_length": (8, r"attention\.value_length is 8, which it takes for 16"),
    "expert_count": (4, r"expert_count is 4, which it does not know"),
    "attention.scale": (0.3, r"attention\.scale is 0\.3"),
    "logit_scale": (0.5, r"logit_scale is 0\.5"),
}


@pytest.mark.parametrize("key", SAID)
def test_what_the_reader_does_not_take_over_is_refused(key: str, tiny: TinyLlama, tmp_path: Path) -> None:
    tiny.settings[key], reason = SAID[key]
    with pytest.raises(UnsupportedModel, match=rf"would not be computed exactly, .*{reason}"):
        load(str(tiny.write(tmp_path / "tiny.gguf")), device="cpu")


def unknown_tensor(tiny: TinyLlama) -> None:
    tiny.tensors["rope_freqs.weight"] = np.ones(8, np.float32)


def bias(tiny: TinyLlama) -> None:
    tiny.tensors["blk.1.attn_q.bias"] = np.ones(64, np.float32)


def another_block(tiny: TinyLlama) -> None:
    tiny.tensors["blk.3.attn_norm.weight"] = np.ones(64, np.float32)


def missing(tiny: TinyLlama) -> None:
    del tiny.tensors["blk.1.ffn_up.weight"]


def other_shape(tiny: TinyLlama) -> None:
    tiny.tensors["blk.1.ffn_up.weight"] = tiny.tensors["blk.1.ffn_up.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unknown_tensor, r"no place for tensors that it holds: rope_freqs\.weight"),
        (bias, r"no place for tensors that it holds: blk\.1\.attn_q\.bias"),
        (another_block, r"no place for tensors that it holds: blk\.3\.attn_norm\.weight"),
        (missing, r"not a complete LlamaForCausalLM: model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (other_shape, r"up_proj\.weight has shape \(95, 64\) instead of \(96, 64\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[TinyLlama], None], reason: str, tiny: TinyLlama, tmp_path: Path
) -> None:
    change(tiny)
    with pytest.raises(UnsupportedModel, match=reason):
        load(str(tiny.write(tmp_path / "tiny.gguf")), device="cpu")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = TinyLlama(architecture="mamba").write(tmp_path / "tiny.gguf")
    with pytest.raises(UnsupportedModel, match=r"of one of the architectures gemma2, .*, got 'mamba'"):
        load(str(file), device="cpu")


def test_a_piece_of_several_is_refused(tiny: TinyLlama, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "tiny-00002-of-00003.gguf", split__no=1, split__count=3)
    with pytest.raises(UnsupportedModel, match="is piece 2 of 3, and only whole GGUF files are hosted; to join them"):
        load(str(file), device="cpu")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
def test_the_beginning_of_a_file_is_refused(share: float, tiny: TinyLlama, tmp_path: Path) -> None:
    file = tiny.write(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnsupportedModel, match=r"is not a whole GGUF file .*; if it came in pieces, join them"):
        load(str(file), device="cpu")


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        UnsupportedModel, match=r"expected a GGUF file, got .*, which does not begin as such a file does"
    ):
        load(str(file), device="cpu")
    with pytest.raises(UnsupportedModel, match=r"nowhere\.gguf' is not a file that can be read"):
        load(str(tmp_path / "nowhere.gguf"), device="cpu")


def test_a_revision_is_refused(tiny: TinyLlama, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"--revision: expected none, because .*tiny\.gguf' is a file"):
        load(str(tiny.write(tmp_path / "tiny.gguf")), revision="main", device="cpu")


def test_the_extra_is_named_where_it_is_missing(
    tiny: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny.write(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'sonde\[gguf\]'"):
        load(str(file), device="cpu")


def byte_pairs() -> Vocabulary:
    """All bytes, and pairs of which a rule may keep the halves apart: spaces, lines, digits, a quote and an s."""
    alphabet = TinyLlama().vocabulary.tokens[2:258]
    merges = ["Ġ Ġ", "Ċ Ċ", "Ġ 1", "1 2", "12 3", "123 4", "' s", "' S", "a '", "Ã ©", "e Ì", "eÌ ģ"]
    assert {"Ġ", "Ċ", "Ì", "ģ"} <= set(alphabet)
    return Vocabulary(
        [*alphabet, *(merge.replace(" ", "") for merge in merges), "xyz", "<s>"], merges, frozenset({"<s>"})
    )


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("gpt-2", "a  1", ["a", "Ġ", "Ġ1"]),
        ("smollm", "a  1", ["a", "ĠĠ", "1"]),
        ("llama-bpe", "a  1", ["a", "Ġ", "Ġ", "1"]),
        ("qwen2", "a  1", ["a", "Ġ", "Ġ", "1"]),
        ("gpt-2", "a\n\n1234", ["a", "Ċ", "Ċ", "1234"]),
        ("smollm", "a\n\n1234", ["a", "ĊĊ", "1", "2", "3", "4"]),
        ("llama-bpe", "a\n\n1234", ["a", "ĊĊ", "123", "4"]),
        ("qwen2", "a\n\n1234", ["a", "ĊĊ", "1", "2", "3", "4"]),
        ("gpt-2", "A'S", ["A", "'", "S"]),
        ("llama-bpe", "A'S", ["A", "'S"]),
        ("qwen2", "e\u0301", ["Ã©"]),
        ("llama-bpe", "e\u0301", ["e", "Ì", "ģ"]),
        ("gpt-2", "xyz", ["x", "y", "z"]),
        ("llama-bpe", "xyz", ["xyz"]),
    ],
)
def test_texts_are_cut_by_the_rule_that_the_file_names(rule: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    file = TinyLlama(byte_pairs(), rule=rule).write(tmp_path / "tiny.gguf")
    tokenizer = load(str(file), device="cpu").vocabulary.tokenizer
    assert tokenizer is not None
    found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)
    assert "".join(found) == "".join(pieces)
    assert found == pieces


def test_an_unknown_rule_leaves_token_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = TinyLlama(rule="of-next-year").write(tmp_path / "tiny.gguf")
    with caplog.at_level(logging.WARNING):
        vocabulary: Loaded = load(str(file), device="cpu").vocabulary
    assert vocabulary.tokenizer is None
    assert "cut by one of the rules gpt-2, smollm, " in caplog.text
    assert "of kind gpt2 cut by the rule of-next-year" in caplog.text
