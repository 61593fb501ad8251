"""Activations that the server replaces compute what they replace."""

import math

import pytest
import torch
from sonde_server.model.kernels import MANY, PART, TanhGELU, fuse_activations
from torch import nn
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation


def by_definition(x: torch.Tensor) -> torch.Tensor:
    """GELU's approximation by a hyperbolic tangent, in double precision."""
    wide = x.double()
    return 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))


@pytest.mark.parametrize("count", [1, 7, MANY - 1, MANY, PART + 5, 3 * PART])
def test_gelu_of_few_and_many_numbers(count: int) -> None:
    x = torch.linspace(-12.0, 12.0, count)
    with torch.inference_mode():
        found = TanhGELU()(x)
    torch.testing.assert_close(found.double(), by_definition(x), rtol=1e-6, atol=1e-6)


def test_gelu_of_what_does_not_lie_in_one_piece() -> None:
    x = torch.linspace(-5.0, 5.0, 2 * MANY).view(2, -1).t()
    kept = x.clone()
    with torch.inference_mode():
        found = TanhGELU()(x)
    assert found.shape == x.shape
    assert torch.equal(x, kept)
    torch.testing.assert_close(found.double(), by_definition(x), rtol=1e-6, atol=1e-6)


def test_gelu_of_numbers_beyond_all_measure() -> None:
    x = torch.tensor([0.0, -1e-30, 60.0, -60.0, 1e20, -1e20, math.inf, math.nan]).repeat(MANY)
    with torch.inference_mode():
        found = TanhGELU()(x)[:8]
    torch.testing.assert_close(
        found, torch.tensor([0.0, -5e-31, 60.0, 0.0, 1e20, 0.0, math.inf, math.nan]), equal_nan=True
    )


def test_gradients_are_those_of_torch() -> None:
    x = torch.linspace(-5.0, 5.0, MANY, requires_grad=True)
    (found,) = torch.autograd.grad(TanhGELU()(x).sum(), x)
    (expected,) = torch.autograd.grad(nn.functional.gelu(x, approximate="tanh").sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "activation", [NewGELUActivation(), FastGELUActivation(), GELUTanh(), nn.GELU(approximate="tanh")]
)
def test_every_way_to_write_it_is_replaced(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(activation))
    x = torch.linspace(-5.0, 5.0, 8).view(2, 4)
    before = model(x)
    fuse_activations(model)
    assert [type(one) for one in model.modules()][-1] is TanhGELU
    torch.testing.assert_close(model(x), before)


def test_another_gelu_is_left() -> None:
    model = nn.Sequential(nn.GELU())
    fuse_activations(model)
    assert type(model[0]) is nn.GELU
