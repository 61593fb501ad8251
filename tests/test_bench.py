"""The benchmark's own code, on tiny models and without the peers that need an environment of their own."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.bench.agreement import Disagreement, check
from tests.bench.contender import Entry
from tests.bench.disturbance import Sample
from tests.bench.elsewhere import Elsewhere
from tests.bench.field import taking_part
from tests.bench.gpu import main as gpu
from tests.bench.minimum import rates
from tests.bench.plain import PrefixCache
from tests.bench.report import Outcome, Setting, markdown, omissions, write_json
from tests.bench.rounds import Numbers, Plan, Timing, measure
from tests.bench.shapes import SHAPES, load, save
from tests.bench.targets import fastest
from tests.bench.workloads import NAMES, Answer, Neurons, Sizes, make


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    """A server in this process: one of its own would import torch for seconds."""
    with Server(Settings(model=str(directory), port=0, device="cpu", dtype="float32")) as server:
        yield server.address


@pytest.mark.parametrize("name", ["tiny-gpt2", pytest.param("tiny-llama", marks=pytest.mark.full)])
def test_sonde_and_plain_transformers_agree_on_every_workload(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    directory = save(shape, tmp_path / "model")
    plain = load(directory)
    sizes = Sizes.of(plain)
    outcomes = []
    with taking_part(directory, ["plain", "rome"], serve) as entries:
        sonde = entries[1].contender
        assert isinstance(sonde, Elsewhere)
        numbers = Numbers()
        for workload in NAMES:
            plan = Plan(
                lambda number, workload=workload: make(workload, shape, sizes, 12, number),  # type: ignore[misc]
                rounds=1,
                tolerance=1e-4,
                numbers=numbers,
                disturbed=1.0,
            )
            timings = measure(plan, entries, workload, lambda _: None)
            assert all(timing.samples for timing in timings)
            token_layers, readings = sonde.cost(plan.make(numbers()))
            assert token_layers > 0
            outcomes.append(Outcome(name, 12, workload, tuple(timings), token_layers, readings, 1.0))
    settings = [Setting(name, shape.title, 12, rates(plain, 12, tokens=64))]
    text = markdown(settings, outcomes)
    assert text.count("| W1 |") == 2 + 1 + 4  # ratios to the script and the hand-made one, the minimum, four times
    assert any("ROME's script" in line and "W2" in line for line in omissions(outcomes))
    write_json(tmp_path / "results.json", settings, outcomes)
    assert len(json.loads((tmp_path / "results.json").read_text())["outcomes"]) == len(NAMES)


def test_a_contender_that_answers_something_else_is_found_out(tmp_path: Path) -> None:
    shape = SHAPES["tiny-llama"]
    model = load(save(shape, tmp_path / "model"))
    sizes, wrong = Sizes.of(model), PrefixCache(model)
    honest = wrong.neurons

    def swapped(workload: Neurons) -> Answer:
        answer = honest(workload)
        answer[[0, 1]] = answer[[1, 0]]
        return answer

    wrong.name, wrong.neurons = "wrong", swapped  # type: ignore[method-assign]
    entries = [Entry(PrefixCache(model), "sonde"), Entry(wrong, "hand")]
    plan = Plan(lambda number: make("W2", shape, sizes, 8, number), 1, 1e-4, Numbers())
    with pytest.raises(Disagreement, match="wrong: differs by"):
        measure(plan, entries, "W2", lambda _: None)


@pytest.mark.parametrize(
    ("reference", "answer", "message"),
    [
        ([0.0, 1.0], [0.0, 1.01], "differs by 0.01 of the answer's spread 1"),
        ([0.0, 1.0], [0.0, np.inf], "differs by inf"),
        ([0.0, 1.0], [np.nan, np.nan], "no value in common"),
        ([1.0, 1.0], [1.0, 1.0], "show nothing"),
        ([0.0, 1.0], [0.0, 1.0, 2.0], "shape"),
    ],
)
def test_answers_disagree(reference: Sequence[float], answer: Sequence[float], message: str) -> None:
    with pytest.raises(Disagreement, match=message):
        check(np.array(reference), np.array(answer), 1e-3)


def test_cells_left_out_are_not_compared() -> None:
    assert check(np.array([0.0, 1.0, 2.0]), np.array([np.nan, 1.001, 2.0]), 1e-3) == pytest.approx(5e-4)


def test_the_fastest_of_a_group_is_the_one_with_the_least_median() -> None:
    def timing(kind: str, *, loop: bool, seconds: Sequence[float]) -> Timing:
        entry = SimpleNamespace(kind=kind, loop=loop)
        return Timing(entry, [Sample(one, 0.0) for one in seconds])  # type: ignore[arg-type]

    slow = timing("library", loop=True, seconds=[3.0, 3.0, 9.0])
    quick = timing("library", loop=False, seconds=[1.0, 2.0, 50.0])
    hand = timing("hand", loop=False, seconds=[1.5])
    timings = [slow, quick, hand]
    assert fastest("library", timings) is quick
    assert fastest("loop", timings) is slow
    assert fastest("peer", timings) is hand
    assert fastest("serial", timings) is None


def test_without_a_gpu_the_gpu_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu([]) == 0
    assert "no GPU" in capsys.readouterr().out
