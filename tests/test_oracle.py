"""The oracle itself: with no edit it is plain transformers, and its parts agree with each other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import rome
from tests.support.architectures import ARCHITECTURES
from tests.support.models import load_plain, save_model
from tests.support.oracle import Edit, Knockout, Oracle, Scale, Site, Target

FLOAT32 = 1e-5
IDS = [5, 130, 77, 301, 9, 260, 41]


@pytest.fixture(scope="module", params=["gpt2", "llama", *ARCHITECTURES])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder: Path = save_model(request.param, tmp_path_factory.mktemp(request.param))
    return Oracle(load_plain(folder))


def plain(oracle: Oracle) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = oracle.model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


def test_a_run_without_edits_is_the_plain_model(oracle: Oracle) -> None:
    torch.testing.assert_close(oracle.run(IDS).logits, plain(oracle), rtol=FLOAT32, atol=FLOAT32)


def test_every_component_has_its_shape(oracle: Oracle) -> None:
    for (component, _), value in oracle.run(IDS).values.items():
        assert tuple(value.shape) == oracle.shape(component, len(IDS)), component


def test_the_residual_stream_is_the_sum_of_its_parts(oracle: Oracle) -> None:
    values = oracle.run(IDS).values
    for layer in range(oracle.layers):
        middle = values["RESIDUAL_PRE", layer] + values["ATTENTION_OUT", layer]
        if "RESIDUAL_MID" in oracle.components:
            torch.testing.assert_close(values["RESIDUAL_MID", layer], middle, rtol=FLOAT32, atol=FLOAT32)
        after = middle + values["MLP_OUT", layer]
        torch.testing.assert_close(values["RESIDUAL_POST", layer], after, rtol=FLOAT32, atol=FLOAT32)


def test_an_edit_of_the_middle_reaches_both_branches(oracle: Oracle) -> None:
    if "RESIDUAL_MID" not in oracle.components:
        return  # attention and the MLP run in parallel
    run = oracle.run(IDS, [Edit(Site("RESIDUAL_MID", (1,)), Scale(0.0))])
    expected = run.values["MLP_OUT", 1]
    torch.testing.assert_close(run.values["RESIDUAL_POST", 1], expected, rtol=FLOAT32, atol=FLOAT32)


def test_a_query_without_keys_has_no_head_output(oracle: Oracle) -> None:
    run = oracle.run(IDS, [Edit(Site("ATTENTION_SCORES", (2,), (1,), (3,)), Knockout())])
    assert not run.values["HEAD_OUT", 2][3, 1].any()
    assert run.values["HEAD_OUT", 2][4, 1].any()


def test_rome_restoring_everything_is_the_clean_run(oracle: Oracle) -> None:
    corruption, _ = rome.gaussian(oracle.model, [2, 3], samples=3)
    targets = [Target(oracle.top(plain(oracle)[-1])[0])]
    clean = oracle.predict(plain(oracle)[-1], targets)
    last = [("RESIDUAL_POST", oracle.layers - 1, len(IDS) - 1)]
    restored = rome.cell(oracle.model, IDS, corruption, targets, last).probabilities
    np.testing.assert_allclose(restored, np.exp(clean.log_probabilities[:, None]).repeat(3, 1), atol=FLOAT32)
    corrupted = rome.cell(oracle.model, IDS, corruption, targets).probabilities
    assert np.abs(corrupted - restored).max() > 1e-3


def test_a_remembered_run_is_that_of_the_model_as_it_is(tmp_path: Path) -> None:
    oracle = Oracle(load_plain(save_model("gpt2", tmp_path)))
    first = oracle.run(IDS)
    assert oracle.run(tuple(IDS)) is first
    weight = oracle.parts.unembedding.weight
    with torch.no_grad():
        weight.mul_(2.0)
    doubled = oracle.run(IDS).logits
    assert (doubled - first.logits).abs().max() > 0.1
    with torch.no_grad():
        weight.div_(2.0)
    torch.testing.assert_close(oracle.run(IDS).logits, first.logits)
    handle = oracle.parts.blocks[1].register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]), *args[1:]))
    assert not oracle.run(IDS).values["RESIDUAL_PRE", 1].any()
    handle.remove()
    torch.testing.assert_close(oracle.run(IDS).logits, first.logits)
