"""The benchmark of circuits, on a tiny model: Sonde over a socket and plain hooks give the same arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.bench.case_rounds import CasePlan, measure_cases
from tests.bench.case_workloads import Pair
from tests.bench.circuit_field import circuit_contenders
from tests.bench.circuit_workloads import (
    CIRCUIT_NAMES,
    CircuitWorkload,
    Curve,
    Edges,
    Paths,
    graph,
    hypothesis,
    scrubbing,
)
from tests.bench.rounds import Numbers
from tests.bench.shapes import SHAPES, prompt, save

VOCABULARY, LAYERS, HEADS = 300, 4, 4


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    with Server(Settings(model=str(directory), port=0, device="cpu", dtype="float32")) as server:
        yield server.address


def made(name: str, number: int) -> CircuitWorkload:
    """A small dataset of token ids; of unequal length, except where examples stand in for each other."""
    lengths = [7] * 5 if name == "W12" else [6, 7, 6, 8, 7]
    prompts = [prompt(VOCABULARY, length, 10 * number + each) for each, length in enumerate(lengths)]
    pairs = tuple(Pair(one, (7, *one[1:]), 17 + each, 40) for each, one in enumerate(prompts))
    match name:
        case "W10":
            return Paths(pairs, tuple(range(LAYERS)), HEADS)
        case "W11":
            edges = graph(LAYERS, HEADS, HEADS)
            order = np.random.RandomState(number).permutation(len(edges.senders))
            sizes = (0, len(order) // 3, len(order) * 4 // 5, len(order))
            return Curve(pairs, Edges(edges.senders[order], edges.receivers[order]), sizes)
        case _:
            examples = [Pair(one.tokens, (), one.target, one.contrast) for one in pairs]
            return scrubbing(examples, hypothesis(LAYERS, HEADS, len(examples)), number)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["tiny-llama"], tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("name", CIRCUIT_NAMES)
def test_sonde_and_published_passes_agree(name: str, model: Path) -> None:
    with circuit_contenders(model, ["plain"], serve(model)) as (sonde, entries):
        plan = CasePlan(name, lambda number: made(name, number), rounds=1, tolerances=lambda _: 1e-4)
        timings = measure_cases(plan, entries, Numbers(), lambda _: None)
        token_layers, readings = sonde.cost(made(name, 1))
    kinds = ["sonde", "script", "hand"]
    assert [timing.entry.kind for timing in timings] == (kinds if name == "W10" else kinds[:2])
    assert all(timing.samples for timing in timings)
    assert token_layers > 0
    assert readings > 0


@pytest.mark.parametrize("name", CIRCUIT_NAMES)
def test_a_share_has_about_as_many_cells_as_asked(name: str) -> None:
    workload = made(name, 1)
    for count in range(1, len(workload)):
        assert 1 <= len(workload.share(count)) <= count


def test_the_hypothesis_has_nine_nodes_four_deep() -> None:
    nodes = hypothesis(8, 8, 24)
    depths: list[int] = []
    for node in nodes:
        depths.append(0 if node.parent is None else depths[node.parent] + 1)
    assert (len(nodes), max(depths)) == (9, 4)
