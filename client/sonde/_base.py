"""What both clients share of their connection: the settings, the model, and the errors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import grpc

from sonde import errors
from sonde._answers.model import Limits, Model
from sonde._asking.asking import Request
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import TLS, Connection
from sonde._connection.replicas import Agreement
from sonde._connection.timeouts import Patience
from sonde._wire.model import description
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

ChannelT = TypeVar("ChannelT")
ModelT = TypeVar("ModelT")


class BaseClient(ABC, Generic[ChannelT, ModelT]):
    """A connection to a server. `ModelT` is the model, or an awaitable of it."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TLS | bool = False,
        timeout: float | None = None,
    ) -> None:
        """Open a connection.

        Args:
            address: host and port, or any gRPC target; the default port is 50051. Several hosts and ports can be given
                as a sequence or separated by commas. Their names are looked up at once, which blocks until the name
                server answers. `dns:///NAME:PORT` stands for all addresses of a name, and follows their changes.
            token: sent with each call. Without `tls` it is sent only to this machine.
            tls: True to use TLS and the certificate authorities that come with gRPC, or a `TLS` with certificates.
            timeout: the default timeout of each call, in seconds; None sets no limit beyond the server's own.

        Raises:
            InvalidSettings: if the arguments contradict each other, or one of several addresses cannot be looked up.
        """
        connection = Connection.of(address, token, tls, timeout)
        self._attach(connection, self._open(connection))

    @abstractmethod
    def _open(self, connection: Connection) -> ChannelT:
        """Open a channel."""

    def _attach(self, connection: Connection, channel: ChannelT) -> None:
        """Use this channel. Subclasses with another kind of channel call this instead of `__init__`."""
        self._connection = connection
        self._channel = channel
        self._stub = InspectionServiceStub(cast("grpc.Channel", channel))
        self._known_model: Model | None = None
        self._agreement = Agreement(connection.address, spread=connection.target.spread)
        self._closed = False

    @property
    def model(self) -> ModelT:
        """The hosted model: its layers, heads, components and limits. It is requested only once."""
        return self._get_model()

    def wait_until_serving(self, timeout: float | None = 60.0) -> ModelT:
        """Wait until a server has started and loaded its model. With several servers, returns when one is ready.

        Args:
            timeout: how long to wait, in seconds; None waits forever.

        Raises:
            NotServing: if no server is ready in time.
            InvalidSettings: if the timeout is not greater than 0.
        """
        return self._wait(Patience(timeout))

    @abstractmethod
    def _get_model(self) -> ModelT:
        """Return the model; request it only once."""

    @abstractmethod
    def _wait(self, patience: Patience) -> ModelT:
        """Return the model as soon as a server describes it."""

    def _take_model(self, response: pb.GetModelResponse) -> Model:
        model = description(response)
        self._agreement.check(model)
        self._known_model = model
        return model

    def _fitted(self, request: Request) -> Request:
        """The request, for no more of the most probable tokens than a model that is known has."""
        readout = request if isinstance(request, pb.TraceRequest) else request.readout
        if self._known_model is not None and 0 < self._known_model.vocabulary_size < readout.top_k:
            readout.top_k = self._known_model.vocabulary_size
        return request

    @property
    def _limits(self) -> Limits | None:
        return None if self._known_model is None else self._known_model.limits

    def _error(self, error: grpc.RpcError) -> errors.SondeError:
        return errors.from_call(cast("errors.FailedCall", error), self._connection.address, self._connection.proxy)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(f"the client of {self._connection.address} is closed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.address!r}{', closed' if self._closed else ''})"
