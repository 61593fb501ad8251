"""Long answers stay connected: clients may ping, and progress is repeated."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.errors import Stopped
from sonde_server.questions.answers import Answer, Progress
from sonde_server.questions.causal_tracing import Corruption
from sonde_server.serving.heartbeat import with_heartbeat
from sonde_server.serving.server import Server

from tests.conftest import DEADLINE, Host
from tests.support import wire
from tests.support.models import save_model
from tests.support.oracle import Edit, Scale, Site, Sweep

PING_MILLISECONDS = 300
# Without the server's permission this is long enough for the connection to be closed.
SILENT_SECONDS = 8.0
IDS = [3, 1, 4, 1, 5]


@contextmanager
def held(model: torch.nn.Module, until: Callable[[], object]) -> Iterator[None]:
    """The model's last block waits once."""
    waited: list[object] = []

    def wait(*_: object) -> None:
        if not waited:
            waited.append(None)
            until()

    handle = model.transformer.h[-1].mlp.register_forward_pre_hook(wait)  # type: ignore[union-attr,index]
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("in_call", [True, False])
def test_a_client_that_pings_in_silence_is_not_cut_off(tmp_path: Path, in_call: bool) -> None:
    folder = save_model("gpt2", tmp_path / "gpt2")
    options = [
        ("grpc.keepalive_time_ms", PING_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", round(1000 * DEADLINE)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    silence = threading.Event()
    with (
        Server(Settings(model=str(folder), port=0, device="cpu")) as server,
        grpc.insecure_channel(server.address, options=options) as channel,
    ):
        stub = InspectionServiceStub(channel)
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        request = pb.TraceRequest(prompt=wire.prompt(IDS))
        if in_call:
            with held(server.model, lambda: silence.wait(SILENT_SECONDS)):
                (answer,) = stub.Trace(request, timeout=DEADLINE)
        else:
            stub.GetModel(pb.GetModelRequest(), timeout=DEADLINE)
            silence.wait(SILENT_SECONDS)
            (answer,) = stub.Trace(request, timeout=DEADLINE)
        assert len(answer.context.clean.log_probabilities) == 1
        # It never had to connect anew.
        assert states.count(grpc.ChannelConnectivity.READY) <= 1
        assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states


def test_a_long_answer_says_that_it_lives_while_its_first_batch_runs(gpt2: Host) -> None:
    """The batch goes on only once the client has heard of it twice."""
    heard = threading.Event()
    request = wire.intervene(IDS, Sweep(Edit(Site("HEAD_OUT"), Scale(0.0))))
    # Its unchanged run is known, so that the first batch is one of the sweep.
    gpt2.intervene(request)
    with held(gpt2.server.model, lambda: heard.wait(DEADLINE)):
        messages = []
        for message in gpt2.stub.Intervene(request, timeout=DEADLINE):
            messages.append(message)
            if len(messages) == 2:
                assert not any(one.HasField("readings") for one in messages)
                heard.set()
    assert heard.is_set()
    assert [one.HasField("context") for one in messages] == [True] + [False] * (len(messages) - 1)
    progress = [one.progress for one in messages if one.HasField("progress")]
    runs = 4 * 4 * len(IDS)
    assert {one.total for one in progress} == {runs}
    assert (progress[0].done, progress[-1].done) == (0, runs)
    assert all(before.done <= after.done for before, after in pairwise(progress))


def test_a_small_answer_is_still_one_message(gpt2: Host) -> None:
    """However long it takes."""
    ids = [*IDS, 9, 2, 6]
    with held(gpt2.server.model, lambda: threading.Event().wait(SILENT_SECONDS)):
        messages = list(gpt2.stub.Intervene(wire.intervene(ids, [[Edit(Site("MLP_OUT", (1,)), Scale(0.0))]])))
    assert len(messages) == 1


# ------------------------------------------------------------------ by itself


def corruption() -> Corruption:
    values = np.zeros(1, np.float32)
    return Corruption(values, values, values, (0,), 0.0, None)


def test_the_last_progress_is_repeated_until_there_is_more() -> None:
    go_on = threading.Event()
    stopped = threading.Event()

    def answers() -> Iterator[Answer]:
        yield corruption()
        yield Progress(3, 20)
        go_on.wait(DEADLINE)
        yield Progress(20, 20)

    beating = with_heartbeat(answers(), stopped.set, lambda: 9, seconds=0.01)
    assert isinstance(next(beating), Corruption)
    assert [next(beating) for _ in range(4)] == [Progress(3, 20)] * 4
    go_on.set()
    rest = list(beating)
    assert rest[-1] == Progress(20, 20)
    assert set(rest[:-1]) <= {Progress(3, 20)}
    assert not stopped.is_set()


def test_runs_that_are_done_meanwhile_count() -> None:
    """Never fewer than were reported, and never more than there are."""
    go_on = threading.Event()
    done = iter([5, 4, 30])

    def answers() -> Iterator[Answer]:
        yield Progress(3, 20, runs=True)
        go_on.wait(DEADLINE)
        yield Progress(12, 20, runs=True)

    beating = with_heartbeat(answers(), lambda: None, lambda: next(done, 30), seconds=0.01)
    assert [next(beating) for _ in range(4)] == [Progress(count, 20, runs=True) for count in (3, 5, 5, 20)]
    go_on.set()
    assert set(beating) == {Progress(20, 20, runs=True)}


def test_before_there_is_progress_nothing_is_made_up() -> None:
    """The first message has to have the context."""
    slow = threading.Event()

    def answers() -> Iterator[Answer]:
        slow.wait(0.2)
        yield corruption()

    assert [type(one) for one in with_heartbeat(answers(), slow.set, lambda: 9, seconds=0.01)] == [Corruption]


def test_an_error_is_passed_on() -> None:
    def answers() -> Iterator[Answer]:
        yield Progress(0, 20)
        raise Stopped("the deadline passed")

    beating = with_heartbeat(answers(), lambda: None, lambda: 0)
    assert next(beating) == Progress(0, 20)
    with pytest.raises(Stopped, match="the deadline passed"):
        next(beating)


def test_who_stops_reading_stops_the_work() -> None:
    """And goes on only when it has ended."""
    cancelled, ended = threading.Event(), threading.Event()

    def answers() -> Iterator[Answer]:
        try:
            yield Progress(0, 20)
            cancelled.wait(DEADLINE)
            raise Stopped("the caller went away")
        finally:
            ended.set()

    beating = with_heartbeat(answers(), cancelled.set, lambda: 0, seconds=0.01)
    next(beating)
    next(beating)
    beating.close()  # type: ignore[attr-defined]
    assert cancelled.is_set()
    assert ended.is_set()
    assert "sonde-answers" not in [thread.name for thread in threading.enumerate()]
