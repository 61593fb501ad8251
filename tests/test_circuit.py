"""The embedded model's heads for indirect objects are found, and are the ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
import torch
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.support.examples import load_example


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("circuit")


@pytest.fixture(scope="module")
def found(example: Any) -> Any:
    torch.set_num_threads(1)
    with Server(Settings(port=0, device="cpu")) as server, sonde.Client(server.address) as client:
        return example.ask(client)


def test_the_largest_estimates_are_the_largest_effects(example: Any, found: Any) -> None:
    by_estimate = np.argsort(-found.estimated, axis=None)[: example.CIRCUIT]
    by_effect = np.argsort(-found.measured, axis=None)[: example.CIRCUIT]
    assert by_estimate[0] == by_effect[0]
    assert set(by_estimate) & set(by_effect)
    assert found.measured[found.heads[0]] > 0.5


def test_the_model_solves_the_sentences(found: Any) -> None:
    assert found.right[0] == 1.0
    assert found.intact > 0


def test_without_these_heads_it_does_not_and_without_others_it_does(found: Any) -> None:
    lost = found.intact - found.ablated
    assert lost > 0.5 * found.intact
    assert found.right[1] < 0.75
    # As many others, drawn ten times.
    assert found.intact - found.controls.mean() < 0.25 * lost
    assert found.right[2] > 0.95


def test_it_is_drawn(example: Any, found: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    example.draw(found, tmp_path / "circuit.png")
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
