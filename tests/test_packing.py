"""Layers whose weights lie as the processor multiplies them give what the plain layers give."""

from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import sonde
import torch
from hypothesis import given
from hypothesis import strategies as st
from sonde_server.config import Settings
from sonde_server.engine import Engine
from sonde_server.engine.selfcheck import verify
from sonde_server.in_process.client import LocalClient
from sonde_server.model import packing, packing_gain
from sonde_server.model.anatomy import Decoder
from sonde_server.model.loading import load
from sonde_server.model.packing import Packed, pack
from sonde_server.model.packing_gain import GAIN, LAYERS, MOST_MULTIPLICATIONS, MOST_ROWS, faster_rows, time_products
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from tests.support.architectures import ARCHITECTURES
from tests.support.models import load_plain, save_model
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
NONE_HERE = torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
pytestmark = pytest.mark.skipif(NONE_HERE, reason="weights are packed on processors with AVX2 or AVX512 alone")


def linear(width: int, height: int, *, bias: bool, turned: bool) -> nn.Linear | Conv1D:
    torch.manual_seed(width * height)
    layer: nn.Linear | Conv1D = Conv1D(height, width) if turned else nn.Linear(width, height, bias=bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.requires_grad_(requires_grad=False)


def always(_: Sequence[nn.Module], __: Sequence[nn.Module], ___: int) -> float:
    """Packed products take half the time."""
    return 2.0


def packed(layer: nn.Module) -> Packed:
    holder = nn.Sequential(layer)
    assert pack(holder, smallest=1, measure=always) == 1
    found = holder[0]
    assert isinstance(found, Packed)
    return found


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    shape=st.lists(st.integers(0, 5), max_size=3),
    bias=st.booleans(),
    turned=st.booleans(),
    strided=st.booleans(),
)
def test_products_are_the_plain_layers(
    width: int, height: int, shape: list[int], *, bias: bool, turned: bool, strided: bool
) -> None:
    layer = linear(width, height, bias=bias, turned=turned)
    inputs = torch.randn(*shape, width, 2)[..., 0] if strided else torch.randn(*shape, width)
    with torch.inference_mode():
        found, expected = packed(layer)(inputs), layer(inputs.double().float())
    assert found.shape == expected.shape
    assert_close(found, expected)


@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1])
def test_few_rows_go_to_onednn_and_many_to_the_plain_layer(rows: int) -> None:
    layer = packed(linear(48, 32, bias=True, turned=False))
    plain: list[int] = []
    layer.plain.register_forward_hook(lambda _, inputs, __: plain.append(len(inputs[0])))
    inputs = torch.randn(rows, 48)
    with torch.inference_mode():
        found = layer(inputs)
    assert plain == ([rows] if rows > MOST_ROWS else [])
    assert_close(found, nn.functional.linear(inputs, layer.weight, layer.bias))


def test_what_the_measure_finds_faster_is_packed_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    layers = [linear(48, 32, bias=True, turned=False), linear(48, 64, bias=True, turned=False)]
    model = nn.Sequential(nn.Sequential(layers[0]), nn.Sequential(layers[1]))

    def measure(plain: Sequence[nn.Module], _: Sequence[nn.Module], rows: int) -> float:
        return GAIN if plain[0] is layers[1] and rows in (4, 16, 256) else GAIN - 0.01

    assert pack(model, smallest=1, measure=measure) == 1
    left, taken = (module[0] for module in model if isinstance(module, nn.Sequential))
    assert left is layers[0]
    assert isinstance(taken, Packed)
    assert taken.rows == {*range(2, 32), *range(128, MOST_ROWS + 1)}
    assert "1 of 2 layers" in caplog.text
    assert "48 x 32 for none; 48 x 64 for 2-31, 128-512 rows" in caplog.text
    for rows in (1, 2, 31, 32, 128):
        inputs = torch.randn(rows, 48)
        with torch.inference_mode():
            assert_close(taken(inputs), layers[1](inputs))


def test_layers_are_measured_by_shape_a_few_of_each() -> None:
    asked: list[tuple[int, int, int]] = []

    def measure(plain: Sequence[nn.Module], packed: Sequence[nn.Module], rows: int) -> float:
        assert all(other.plain is one for one, other in zip(plain, packed, strict=True))
        weight = plain[0].weight
        assert isinstance(weight, Tensor)
        asked.append((len(weight), len(plain), rows))
        return 0.0

    layers = [linear(16, height, bias=False, turned=False) for height in (8, 24) for _ in range(LAYERS + 2)]
    assert pack(nn.Sequential(*layers), smallest=1, measure=measure) == 0
    assert asked == [(height, LAYERS, rows) for height in (8, 24) for rows in (1, 4, 16, 64, 256)]


def test_what_takes_too_long_to_time_is_left_plain() -> None:
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(torch.empty(1).expand(MOST_MULTIPLICATIONS // 16, 1), requires_grad=False)
    assert faster_rows([layer], [layer], always) == set(range(1, 32))


class Lasting(nn.Module):
    """A layer whose products take these times by a clock of ours, the last one again and again."""

    width = 3

    def __init__(self, clock: list[float], *seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def forward(self, inputs: Tensor) -> None:
        assert inputs.shape[1] == self.width
        self.clock[0] += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


def test_the_measure_says_how_many_times_as_long_plain_layers_take() -> None:
    clock = [0.0]
    plain, packed = Lasting(clock, 4e-3), Lasting(clock, 1e-3)
    assert time_products([plain], [packed], 2, lambda: clock[0], lambda: 0) == pytest.approx(4.0)


def test_one_slow_product_is_no_gain_and_no_loss() -> None:
    clock = [0.0]
    plain, packed = Lasting(clock, 1e-3, 50e-3, 1e-3), Lasting(clock, 9e-3, 1e-3)
    assert time_products([plain], [packed], 2, lambda: clock[0], lambda: 0) == pytest.approx(1.0)


def test_products_during_which_the_processor_was_taken_away_do_not_count() -> None:
    clock = [0.0]
    plain, packed = Lasting(clock, 9e-3, 9e-3, 9e-3, 9e-3, 2e-3), Lasting(clock, 1e-3)
    assert time_products([plain], [packed], 2, lambda: clock[0], lambda: min(plain.calls, 4)) == pytest.approx(2.0)


def test_what_is_always_disturbed_counts_as_no_gain() -> None:
    clock = [0.0]
    plain, packed = Lasting(clock, 9e-3), Lasting(clock, 1e-3)
    assert time_products([plain], [packed], 2, lambda: clock[0], lambda: plain.calls) == 0.0


def test_gradients_are_the_plain_layers() -> None:
    layer = linear(24, 40, bias=True, turned=True)
    inputs = torch.randn(3, 24, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(inputs).square().sum(), inputs)
    (found,) = torch.autograd.grad(packed(layer)(inputs).square().sum(), inputs)
    assert torch.equal(found, expected)


class Router(nn.Linear):
    """A linear layer that gives more than its product, as some routers of experts are."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the base class has it
        return super().forward(input).softmax(-1)


def test_what_has_a_way_of_its_own_is_left() -> None:
    watched, wide, small = nn.Linear(16, 16), nn.Linear(16, 16).double(), nn.Linear(4, 4)
    watched.register_forward_hook(lambda _, __, output: output)
    layers = [watched, wide, small, Router(16, 16), nn.Linear(16, 16).bfloat16(), nn.Embedding(16, 16)]
    model = nn.Sequential(*layers)
    assert pack(model, smallest=32, measure=always) == 0
    assert list(model) == layers


def test_a_layer_that_is_used_twice_is_packed_once() -> None:
    layer = nn.Linear(16, 16)
    model = nn.Sequential(layer, nn.Sequential(layer))
    assert pack(model, smallest=1, measure=always) == 1
    first, second = (module for module in model.modules() if isinstance(module, nn.Sequential))
    assert first[0] is second[0]


def test_nothing_is_packed_that_memory_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = namedtuple("memory", "available")  # noqa: PYI024 - as psutil has it
    layer = nn.Linear(64, 64)
    free = round(layer.weight.nbytes / packing.SHARE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(free - 1))
    assert pack(nn.Sequential(layer), smallest=1, measure=always) == 0
    assert "weights are not packed" in caplog.text
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(free))
    assert pack(nn.Sequential(layer), smallest=1, measure=always) == 1


def test_nothing_is_packed_where_torch_has_no_such_product(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        """torch.ops.mkldnn of another version."""

    monkeypatch.setattr(torch.ops, "mkldnn", Nothing(), raising=False)
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer)
    assert pack(model, smallest=1, measure=always) == 0
    assert model[0] is layer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_itself_when_it_is_packed(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    plain, model = load_plain(folder), load_plain(folder)
    assert pack(model, smallest=1, measure=always) > 0
    decoder = Decoder(model)
    before = dict(decoder.unavailable)
    verify(Engine(decoder))
    assert decoder.unavailable == before
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        assert_close(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)


CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=420, n_positions=64, n_embd=256, n_layer=3, n_head=4, initializer_range=0.1),
    "llama": LlamaConfig(
        vocab_size=420,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.1,
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_packed_server_answers_as_one_that_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the gain, so that there is something to compare.
    monkeypatch.setattr(packing_gain, "GAIN", 0.0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGURATIONS[name], dtype=torch.float32).save_pretrained(tmp_path)
    assert any(isinstance(module, Packed) for module in load(str(tmp_path), device="cpu").decoder.model.modules())
    assert not any(
        isinstance(module, Packed)
        for module in load(str(tmp_path), device="cpu", pack_weights=False).decoder.model.modules()
    )
    heads = sonde.sweep(sonde.scale(sonde.head(), 0.0), together="position")
    neurons = sonde.sweep(sonde.scale(sonde.neuron(), 3.0), layers=[1], positions=[-1])
    method = sonde.AttributionPatching(source=IDS[::-1], components=["head_out", "neuron"])
    answers = []
    for packs in (True, False):
        with LocalClient(str(tmp_path), device="cpu", pack_weights=packs) as client:
            swept = [client.intervene(IDS, plan, targets=[7]).log_probabilities for plan in (heads, neurons)]
            estimated = client.trace(IDS, targets=[7], method=method)
            answers.append([*swept, *estimated.estimates.values()])
    for first, second in zip(*answers, strict=True):
        assert_close(first, second)


def test_it_is_a_setting() -> None:
    assert Settings().pack_weights
    assert not Settings.from_environment_and_flags(["--no-pack-weights"], {}).pack_weights
    assert not Settings.from_environment_and_flags([], {"SONDE_PACK_WEIGHTS": "false"}).pack_weights
