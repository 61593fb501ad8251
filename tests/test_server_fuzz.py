"""Requests that nobody would write: no crash, no hang, no INTERNAL. `make soak` sends a hundred times as many."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.conftest import EFFORT
from tests.soak import fuzzing
from tests.support import wire
from tests.support.models import save_model
from tests.support.seeing import encoded, picture, save_seeing

# What mutated requests may take, so that those which are valid do not take long.
BOUNDS = {"max_runs": 300, "max_answer_bytes": 8 << 20, "max_working_bytes": 128 << 20}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def channel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder: Path = save_model(request.param, tmp_path_factory.mktemp("fuzz") / request.param)
    options = Settings(model=str(folder), port=0, device="cpu", dtype="float32", **BOUNDS)  # type: ignore[arg-type]
    with Server(options) as server, grpc.insecure_channel(server.address) as channel:
        yield channel


def right_answers(channel: grpc.Channel) -> Callable[[], bool]:
    """Whether a valid request is answered as it was at the beginning, to the bit."""
    request = fuzzing.seeds()[5].SerializeToString()
    call = channel.unary_stream("/sonde.v1.InspectionService/Intervene")

    def ask() -> list[bytes]:
        return list(call(request, timeout=fuzzing.SECONDS))

    first = ask()
    return lambda: ask() == first


def endless(fuzzer: fuzzing.Fuzzer) -> Iterator[tuple[str, bytes]]:
    while True:
        yield fuzzer.request()


def test_mutated_requests(channel: grpc.Channel) -> None:
    some = islice(endless(fuzzing.Fuzzer(1)), 700 * EFFORT)
    outcome = fuzzing.assault(channel, some, right_answers(channel), every=350)
    assert outcome.faults == []
    # Mutations that all fail at once, or never, would find nothing.
    assert outcome.codes["OK"] > 30
    assert outcome.codes["INVALID_ARGUMENT"] > 200


@settings(max_examples=50 * EFFORT)
@given(st.sampled_from(["Trace", "Intervene"]).flatmap(
    lambda method: st.tuples(st.just(method), fuzzing.messages(
        pb.TraceRequest if method == "Trace" else pb.InterveneRequest)))
)  # fmt: skip
def test_any_message(channel: grpc.Channel, drawn: tuple[str, pb.TraceRequest]) -> None:
    method, message = drawn
    code = fuzzing.send(channel, method, message.SerializeToString())
    assert code is grpc.StatusCode.OK or code in fuzzing.REFUSALS


@settings(max_examples=25 * EFFORT)
@given(st.sampled_from(["Trace", "Intervene"]), st.binary(max_size=200))
def test_any_bytes(channel: grpc.Channel, method: str, data: bytes) -> None:
    code = fuzzing.send(channel, method, data)
    assert code is grpc.StatusCode.OK or code in fuzzing.REFUSALS


def test_the_seeds_are_valid(channel: grpc.Channel) -> None:
    for seed in fuzzing.seeds():
        method = "Trace" if isinstance(seed, pb.TraceRequest) else "Intervene"
        assert fuzzing.send(channel, method, seed.SerializeToString()) is grpc.StatusCode.OK, wire


def test_mutated_requests_about_images(tmp_path: Path) -> None:
    """Files are damaged as well, and what is damaged may be valid by chance."""
    folder = save_seeing("llava", tmp_path / "llava")
    options = Settings(model=str(folder), port=0, device="cpu", dtype="float32", **BOUNDS)  # type: ignore[arg-type]
    with Server(options) as server, grpc.insecure_channel(server.address) as channel:
        eye: Any = server._scheduler.engine.decoder.eye  # type: ignore[union-attr]
        ids = [5, 130, 77, *[eye.vision.token] * 16, 9, 260]
        valid = fuzzing.seeds_with_images(ids, encoded(picture(1)))
        for seed in valid:
            method = "Trace" if isinstance(seed, pb.TraceRequest) else "Intervene"
            assert fuzzing.send(channel, method, seed.SerializeToString()) is grpc.StatusCode.OK
        first = list(channel.unary_stream("/sonde.v1.InspectionService/Trace")(valid[0].SerializeToString()))

        def healthy() -> bool:
            again = channel.unary_stream("/sonde.v1.InspectionService/Trace")(valid[0].SerializeToString())
            return list(again) == first

        outcome = fuzzing.assault(channel, islice(endless(fuzzing.Fuzzer(1, valid)), 300 * EFFORT), healthy, every=150)
    assert outcome.faults == []
    assert outcome.codes["OK"] > 20
    assert outcome.codes["INVALID_ARGUMENT"] > 80


def test_an_empty_call_is_refused(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/sonde.v1.InspectionService/Trace")(iter(()), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
