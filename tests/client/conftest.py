"""A peer on a real socket that speaks the contract from a script, and answers to put into it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from sonde._wire.tensors import to_tensor
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceServicer, add_InspectionServiceServicer_to_server

Step = Message | Callable[[grpc.ServicerContext], None]


class Peer(InspectionServiceServicer):
    """Answers every call by the steps of its script: a message is sent, a function is called with the context."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.ended = threading.Event()
        self.address = ""

    def _play(self, request: Message, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        self.metadata.append({str(key): value for key, value in context.invocation_metadata()})
        context.add_callback(self.ended.set)
        for step in self.steps:
            if isinstance(step, Message):
                yield step
            else:
                step(context)

    def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:  # noqa: N802 - gRPC's name
        if all(isinstance(step, Message) and not isinstance(step, pb.GetModelResponse) for step in self.steps):
            return model_response()  # The script is about another call, before which a client asks for the model.
        return next(message for message in self._play(request, context) if isinstance(message, pb.GetModelResponse))

    def Trace(self, request: Any, context: Any) -> Iterator[pb.TraceResponse]:  # noqa: N802
        yield from self._play(request, context)

    def Intervene(self, request: Any, context: Any) -> Iterator[pb.InterveneResponse]:  # noqa: N802
        yield from self._play(request, context)

    @staticmethod
    def wait_for_cancel(context: grpc.ServicerContext) -> None:
        """A step that lasts until the caller has gone."""
        gone = threading.Event()
        assert not context.add_callback(gone.set) or gone.wait(30), "the call was not cancelled"


@pytest.fixture
def peer() -> Iterator[Peer]:
    servicer = Peer()
    server = grpc.server(ThreadPoolExecutor(4))
    add_InspectionServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call, unused-ignore]
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.ended.set()
    server.stop(None).wait()


@pytest.fixture
def fail() -> Callable[..., Callable[[grpc.ServicerContext], None]]:
    """Makes a step that ends the call with a status and google.rpc details."""

    def make(code: grpc.StatusCode, message: str = "", *details: Message) -> Callable[[grpc.ServicerContext], None]:
        def step(context: grpc.ServicerContext) -> None:
            packed = []
            for detail in details:
                entry = any_pb2.Any()
                entry.Pack(detail)
                packed.append(entry)
            status = status_pb2.Status(code=code.value[0], message=message, details=packed)
            context.abort_with_status(rpc_status.to_status(status))

        return step

    return make


def tensor(values: npt.ArrayLike, dtype: str = "float32") -> pb.Tensor:
    """A tensor of integers or floats as a server sends it."""
    array = np.asarray(values, dtype)
    if dtype == "int32":
        return pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=array.shape, data=array.astype("<i4").tobytes())
    return to_tensor(array, "test")


PARIS, ROME = pb.Token(id=7, text=" Paris"), pb.Token(id=8, text=" Rome")
WORDS = ("The", " Eiffel", " Tower", " is", " in", " the", " city", " of")


def context(*targets: pb.Token, axes: pb.Axes | None = None, clean: bool = True) -> pb.RunContext:
    """What the first message says about "The Eiffel Tower is in the city of"."""
    named = targets or (PARIS,)
    prediction = pb.Prediction(
        log_probabilities=[float(np.log(0.9 / (i + 1))) for i in range(len(named))],
        logits=[12.0 - i for i in range(len(named))],
        top_tokens=[PARIS, ROME],
        top_log_probabilities=[float(np.log(0.9)), float(np.log(0.05))],
    )
    return pb.RunContext(
        tokens=[pb.Token(id=100 + i, text=text) for i, text in enumerate(WORDS)],
        targets=named,
        position=len(WORDS) - 1,
        clean=prediction if clean else None,
        axes=axes,
        cost=pb.Cost(runs=5, token_layers=40, full_token_layers=160, answer_bytes=1000),
        provenance=pb.Provenance(model="atlas", data_type=pb.DATA_TYPE_FLOAT32, device="cpu", server_version="0.1.0"),
    )


def readings(start: int, log_probabilities: npt.ArrayLike, **others: pb.Tensor) -> pb.Readings:
    """A slice of the runs' columns, logits twice the log-probabilities."""
    values = np.asarray(log_probabilities, np.float32)
    return pb.Readings(
        offset=start,
        count=len(values),
        log_probabilities=tensor(values),
        logits=tensor(2 * values),
        **others,  # type: ignore[arg-type]
    )


@pytest.fixture
def answers() -> Any:
    """The builders above, for tests that cannot import a conftest."""

    class Answers:
        pass

    made = Answers()
    for name, value in {
        "tensor": tensor,
        "context": context,
        "readings": readings,
        "PARIS": PARIS,
        "ROME": ROME,
        "WORDS": WORDS,
        "causal": causal_messages,
        "lens": lens_message,
        "model": model_response,
    }.items():
        setattr(made, name, value)
    return made


def grid_values(component: int, layers: int) -> npt.NDArray[np.float64]:
    """A grid [position, layer] with ROME's two sites: the last subject token early, the last token late."""
    rows, columns = np.mgrid[0 : len(WORDS), 0:layers] / np.array([[[1.0]], [[max(layers - 1, 1)]]])
    early = np.exp(-((rows - 2) ** 2) / 0.3 - (columns - 0.3) ** 2 / 0.06)
    late = np.exp(-((rows - 7) ** 2) / 0.3 - (columns - 1) ** 2 / 0.08)
    weights = {
        pb.COMPONENT_RESIDUAL_POST: (0.8, 0.85),
        pb.COMPONENT_MLP_OUT: (0.7, 0.1),
        pb.COMPONENT_ATTENTION_OUT: (0.1, 0.6),
    }
    first, second = weights.get(pb.Component.ValueType(component), (0.3, 0.3))
    return np.asarray(0.03 + first * early + second * late, np.float64)


def causal_messages(layers: int = 12) -> list[pb.TraceResponse]:
    """A causal trace in one message per component and half of the layers."""
    corruption = pb.Corruption(
        probabilities=[0.03], deviations=[0.01], positions=[0, 1, 2], noise_deviation=0.4, logits=[1.0]
    )
    messages = [pb.TraceResponse(context=context(), corruption=corruption, progress=pb.Progress(done=0, total=6))]
    components = (pb.COMPONENT_RESIDUAL_POST, pb.COMPONENT_MLP_OUT, pb.COMPONENT_ATTENTION_OUT)
    for component in components:
        values = grid_values(component, layers)[..., np.newaxis]
        for part in (range(layers // 2, layers), range(layers // 2)):
            grid = pb.RestorationGrid(
                component=component,
                positions=range(len(WORDS)),
                layers=part,
                probabilities=tensor(values[:, part]),
                deviations=tensor(values[:, part] / 10),
                logits=tensor(values[:, part] * 10),
            )
            progress = pb.Progress(done=len(messages), total=6)
            messages.append(pb.TraceResponse(grids=[grid], progress=progress))
    return messages


def lens_message(layers: int = 4, *, gradients: bool = True) -> pb.TraceResponse:
    """A token's probability through the layers."""
    depths, positions = layers + 1, len(WORDS)
    probabilities = np.linspace(0.05, 0.9, depths)[:, np.newaxis]
    norms = np.arange(depths * positions, dtype=np.float32).reshape(depths, positions, 1)
    return pb.TraceResponse(
        context=context(),
        layers=pb.LayerReadings(
            depths=range(depths),
            log_probabilities=tensor(np.log(probabilities)),
            logits=tensor(probabilities),
            ranks=tensor(np.arange(depths)[::-1, np.newaxis], "int32"),
            kl_divergences=tensor(np.linspace(1, 0, depths)),
            top_token_ids=tensor([[7, 8]] * depths, "int32"),
            top_log_probabilities=tensor(np.log([[0.5, 0.25]] * depths)),
            gradient_norms=tensor(norms) if gradients else None,
            positions=range(positions) if gradients else None,
            token_texts={7: " Paris", 8: " Rome"},
        ),
    )


def model_response() -> pb.GetModelResponse:
    """A model of two layers, without RESIDUAL_MID."""
    components = [
        pb.ComponentSupport(component=c, available=c != pb.COMPONENT_RESIDUAL_MID, reason="" if c != 3 else "parallel")
        for c in pb.Component.values()
        if c
    ]
    stack = pb.StackDescription(
        stack=pb.STACK_DECODER,
        layers=2,
        hidden_size=16,
        heads=4,
        key_value_heads=2,
        head_size=4,
        neurons=32,
        components=components,
    )
    return pb.GetModelResponse(
        provenance=pb.Provenance(model="atlas", data_type=pb.DATA_TYPE_BFLOAT16, device="cuda"),
        architecture="llama",
        stacks=[stack],
        vocabulary_size=50,
        max_positions=128,
        parameters=12345,
        limits=pb.Limits(max_runs=100),
    )
