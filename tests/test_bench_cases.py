"""The benchmark of datasets, on a tiny model: Sonde over a socket and plain transformers give the same arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.bench import datasets
from tests.bench.case_field import case_contenders
from tests.bench.case_rounds import CasePlan, measure_cases
from tests.bench.case_workloads import CASE_NAMES, CaseWorkload, Continuations, Fact, Facts, Pair, Pairs, Sentences
from tests.bench.rounds import Numbers
from tests.bench.shapes import SHAPES, prompt, save

VOCABULARY, LAYERS, HEADS, HIDDEN = 300, 4, 4, 48


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    with Server(Settings(model=str(directory), port=0, device="cpu", dtype="float32")) as server:
        yield server.address


def made(name: str, number: int) -> CaseWorkload:
    """A small dataset of token ids, of unequal length."""
    prompts = [prompt(VOCABULARY, 6 + each % 3, 10 * number + each) for each in range(5)]
    layers = tuple(range(LAYERS))
    match name:
        case "W6":
            pairs = [Pair(one, (7, *one[1:]), 17 + each, 40) for each, one in enumerate(prompts)]
            return Pairs(tuple(pairs), layers, HEADS)
        case "W7":
            return Sentences(tuple(prompts), LAYERS)
        case "W8":
            # A subject in the middle, at the beginning, of one token, and right before the last one.
            subjects = [(1, 2, 3), (0, 1), (2,), (3, 4), (0, 1, 2, 3)]
            facts = [Fact(one, where, 17) for one, where in zip(prompts, subjects, strict=True)]
            return Facts(tuple(facts), layers, LAYERS, standard_deviation=0.6, samples=3, window=3)
        case _:
            vector = np.random.RandomState(number).randn(HIDDEN).astype(np.float32).tolist()
            return Continuations(tuple(prompts), 1, tuple(vector), new_tokens=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["tiny-llama"], tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("name", CASE_NAMES)
def test_sonde_and_plain_transformers_agree_on_every_dataset(name: str, model: Path) -> None:
    tolerance = 2.0**-8 if name == "W7" else 1e-4
    with case_contenders(model, ["plain"], serve(model)) as (sonde, entries):
        plan = CasePlan(name, lambda number: made(name, number), rounds=1, tolerances=lambda _: tolerance)
        timings = measure_cases(plan, entries, Numbers(), lambda _: None)
        token_layers, readings = sonde.cost(made(name, 1))
    assert [timing.entry.kind for timing in timings] == ["sonde", "hand"]
    assert all(timing.samples for timing in timings)
    assert token_layers > 0
    assert readings > 0


@pytest.mark.parametrize("name", CASE_NAMES)
def test_a_share_has_about_as_many_cells_as_asked(name: str) -> None:
    workload = made(name, 1)
    assert workload.share(len(workload)) == workload
    for count in range(1, len(workload)):
        assert 1 <= len(workload.share(count)) <= count


def test_datasets_are_drawn_anew_for_each_number() -> None:
    for draw in (datasets.pairs, datasets.facts, datasets.sentences):
        first, again, other = list(draw(20, 1)), list(draw(20, 1)), list(draw(20, 2))
        assert first == again != other
    assert len({one.landmark for one in datasets.facts(50, 3)}) == 50
    for one in datasets.pairs(50, 3):
        assert one.subject in one.prompt.split(".")[-1].split(",")[-1]
        assert one.prompt.count(one.subject) == one.source.count(one.indirect_object) == 2
    assert len({len(text) for text in datasets.sentences(200, 3)}) > 20
