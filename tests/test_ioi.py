"""The study of indirect objects in SmolLM2 finds what its guide says: movers, their feeders, circuits, hypotheses."""

from collections.abc import Iterator
from typing import Any

import pytest
import sonde
import torch
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.support.examples import load_example
from tests.support.smollm2 import model_file

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("ioi")


@pytest.fixture(scope="module")
def found(example: Any) -> Iterator[Any]:
    file = model_file()
    torch.set_num_threads(1)
    settings = Settings(model=str(file), port=0, device="cpu", pack_weights=False)
    with Server(settings) as server, sonde.Client(server.address) as client:
        yield example.ask(client)


def test_the_model_solves_the_sentences(found: Any) -> None:
    assert found.difference == pytest.approx(5.65, abs=0.05)


def test_late_heads_write_the_answer_and_look_at_the_names(example: Any, found: Any) -> None:
    effects = {(int(layer), int(head)): effect for layer, head, effect in found.movers.strongest(8)}
    layer = example.LATE
    assert min(effects, key=lambda head: effects[head]) == example.AGAINST
    for head in example.MOVERS:
        answer, giver = found.attention[layer, head]
        assert effects[layer, head] < -0.3
        assert answer > 3 * giver
    answer, giver = found.attention[example.AGAINST]
    assert giver > 0.5 > answer
    assert effects[24, 4] > 0.5
    assert found.attention[24, 4][0] > 0.5, "a negative name mover"


def test_two_heads_feed_their_queries(example: Any, found: Any) -> None:
    strongest = [(int(layer), int(head)) for layer, head, _ in found.feeders.strongest(2)]
    assert set(strongest) == set(example.FEEDERS)
    effects = [effect for *_, effect in found.feeders.strongest(3)]
    assert max(effects[:2]) < -2 * abs(effects[2])


def test_circuits_carry_the_answer(example: Any, found: Any) -> None:
    faithfulness = dict(zip(example.SIZES, found.curve.faithfulness, strict=True))
    assert faithfulness[0] == pytest.approx(0, abs=1e-3)
    assert faithfulness[300] > 0.4
    assert faithfulness[10000] > 0.9
    assert len(found.pruned.edges) < 150
    assert found.pruned.faithfulness[-1] > 0.6


def test_one_hypothesis_holds_and_its_rivals_fail(found: Any) -> None:
    first, *others = found.hypotheses.values()
    assert first.interval[0] > 0.9
    assert all(one.interval[1] < 0.75 for one in others)
