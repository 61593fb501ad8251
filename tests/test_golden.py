"""The golden vectors are what this tree asks and answers, and the client sees the same numbers.

They hold the programs of other languages in tests/languages. After a change that is meant to move them:
`python -m tests.golden.regenerate`.
"""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import sonde
import torch
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.golden import cases, vectors
from tests.golden.cases import Case

RECORDED = vectors.RECORDED


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    torch.set_num_threads(1)
    with Server(Settings(port=0, device="cpu", dtype="float32")) as server:
        yield server.address


@pytest.fixture
def stub(address: str) -> Iterator[InspectionServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield InspectionServiceStub(channel)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_a_case_is_as_recorded(case: Case, stub: InspectionServiceStub) -> None:
    vectors.assert_request(case.name, case.request.SerializeToString())
    vectors.assert_values(case.name, case.ask(stub))


def test_the_refusal_is_as_recorded(stub: InspectionServiceStub) -> None:
    vectors.assert_request("refused", cases.refused().SerializeToString())
    assert cases.refusal(stub).items() <= RECORDED["refused"].items()


def same(values: object, case: str, name: str) -> None:
    expected = RECORDED[case]["values"][name]
    np.testing.assert_allclose(
        np.ravel(np.asarray(values)), expected, rtol=vectors.TOLERANCE, atol=vectors.TOLERANCE, err_msg=name
    )


def test_the_client_traces_the_same_numbers(address: str) -> None:
    method = sonde.CausalTracing(subject=cases.SUBJECT, window=3, samples=4, seed=cases.LARGEST_SEED)
    with sonde.Client(address) as client:
        traced = client.trace(cases.PROMPT, targets=[" Paris"], method=method)
    same(traced.corrupted, "causal_trace", "corrupted")
    for name in ("residual_post", "mlp_out", "attention_out"):
        same(traced.restored[name], "causal_trace", name)


def test_the_client_sweeps_the_same_numbers(address: str) -> None:
    plan = sonde.sweep(sonde.scale(sonde.head(), 0.0), together="position")
    with sonde.Client(address) as client:
        swept = client.intervene(
            cases.PROMPT, plan, targets=[sonde.Target(" Paris", contrast=" Rome")], top_k=3, kl_divergence=True
        )
    for name in ("log_probabilities", "logits", "kl_divergences", "edit_norms"):
        same(getattr(swept, name), "sweep", name)


def test_a_number_that_moved_or_is_missing_is_seen() -> None:
    values = RECORDED["sweep"]["values"]
    vectors.assert_values("sweep", values)
    moved = [values["logits"][0] * (1 + 1e-4), *values["logits"][1:]]
    for wrong in (values | {"logits": moved}, values | {"logits": moved[1:]}, {"logits": values["logits"]}):
        with pytest.raises(AssertionError):
            vectors.assert_values("sweep", wrong)
