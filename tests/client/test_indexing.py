"""What people write to look into a result: numbers of every library, and names; what is not there is told of."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
from sonde.v1 import inspection_pb2 as pb

EDIT = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)


@pytest.fixture
def changed(peer: Any, answers: Any) -> sonde.InterventionResult:
    """Three runs, with log-probabilities 0, -1 and -2."""
    readings = answers.readings(0, [[0.0], [-1.0], [-2.0]])
    peer.steps = [pb.InterveneResponse(context=answers.context(), readings=readings)]
    with sonde.Client(peer.address) as client:
        return client.intervene("a", [EDIT] * 3)


@pytest.fixture
def traced(peer: Any, answers: Any) -> sonde.CausalTracingResult:
    peer.steps = answers.causal()
    with sonde.Client(peer.address) as client:
        return client.trace("a", method=sonde.CausalTracing("a"))


@pytest.mark.parametrize("run", [1, -2, np.int64(1), np.uint8(1), np.array(1), (1,), (np.int64(1),)], ids=repr)
def test_a_run_is_found_by_any_integer(changed: sonde.InterventionResult, run: Any) -> None:
    assert changed[run].log_probabilities.tolist() == [-1.0]


@pytest.mark.parametrize("run", [slice(2), 1.0, None, (slice(2),), np.array([0, 1])], ids=repr)
def test_what_is_not_one_run_is_told_of(changed: sonde.InterventionResult, run: Any) -> None:
    with pytest.raises(TypeError, match=r"expected the number of one run, .* got"):
        changed[run]


@pytest.mark.parametrize("run", [3, -4, (3,), (0, 0)], ids=repr)
def test_a_run_that_is_not_there_is_told_of(changed: sonde.InterventionResult, run: Any) -> None:
    with pytest.raises(IndexError, match=re.escape(f"expected one of 3 runs, of shape [3], got {run!r}")):
        changed[run]


def test_a_measure_that_nobody_knows_is_told_of(changed: sonde.InterventionResult) -> None:
    with pytest.raises(sonde.InvalidRequest, match="by: expected one of log_probability, probability, logit"):
        changed.most_changed(by="size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no KL divergences"):
        changed.most_changed(by="kl_divergence")


def test_a_count_is_not_negative(changed: sonde.InterventionResult) -> None:
    assert changed.clean.top(np.int64(1))[0].text == " Paris"  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(ValueError, match="expected a count of 0 or more, got -1"):
        changed.clean.top(-1)


def test_a_component_that_was_not_asked_for_is_told_of(traced: sonde.CausalTracingResult) -> None:
    assert traced.strongest(1, component="mlp_out")[0].component == "mlp_out"
    with pytest.raises(sonde.InvalidRequest, match=r"component: expected one of residual_post, .*, got 'key'"):
        traced.strongest(component="key")


def test_a_depth_that_is_not_there_is_told_of(peer: Any, answers: Any) -> None:
    peer.steps = [answers.lens(4)]
    with sonde.Client(peer.address) as client:
        result = client.trace("a", method=sonde.TokenProbability())
    assert result.top_at(np.int64(4), 1)[0].text == " Paris"  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(ValueError, match="expected a depth from 0 to 4, got 5"):
        result.top_at(5)


def test_activations_are_found_by_any_integer(peer: Any, answers: Any) -> None:
    values = answers.tensor([1.0, 2.0])
    part = pb.ActivationSlice(run=-1, site=0, layer=0, shape=[1, 2], values=values)
    peer.steps = [pb.TraceResponse(context=answers.context(), activations=[part])]
    with sonde.Client(peer.address) as client:
        result = client.trace("a", method=sonde.Activations(sonde.residual(layer=0, position=-1)))
    for key in (0, np.int64(0), np.array(0), "residual_post"):
        assert result.activations[key].tolist() == [[[1.0, 2.0]]]  # type: ignore[index, unused-ignore]
    for wrong in (1, -1, np.int64(7)):
        with pytest.raises(KeyError, match="expected the index of one of 1 sites"):
            result.activations[wrong]  # type: ignore[index, unused-ignore]


@pytest.mark.parametrize("content", [b"junk", b"", b"PK\x03\x04junk", b"\x93NUMPY"])
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        sonde.load(path)
    assert "pickle" not in str(caught.value)


def test_an_array_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        sonde.load(path)


@pytest.mark.parametrize(
    ("given", "alike"),
    [
        ("mlp", "mlp_out"),
        ("residual", "residual_pre or residual_mid or residual_post"),
        ("resid_post", "residual_post"),
        ("Neuron", "neuron"),
    ],
)
def test_a_component_that_nobody_knows_is_told_which_one_it_resembles(given: Any, alike: str) -> None:
    with pytest.raises(
        sonde.InvalidRequest, match=f"expected one of .*, got '{given}'; did you mean {re.escape(alike)}\\?$"
    ):
        sonde.site(given)


@pytest.mark.parametrize("given", ["brain", "", 3, None])
def test_a_component_that_resembles_none_gets_no_suggestion(given: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match=f"expected one of .*, got {given!r}$"):
        sonde.site(given)
