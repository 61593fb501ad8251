"""The settings of a server: one table, read from flags and from SONDE_... variables."""

import argparse
import dataclasses
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

PREFIX = "SONDE_"
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_FORMATS = ("human", "json")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; 0 is no limit."""

    max_prompt_tokens: int = 0
    max_runs: int = 0
    max_answer_bytes: int = 0
    max_working_bytes: int = 0


class SettingError(ValueError):
    """A setting has a value that cannot be used; the message says which and what would do."""


def setting(default: Any, help: str, **metadata: Any) -> Any:  # noqa: A002 - argparse's own word
    """A field of settings: its default, what it is for, and its bounds (least, most) or choices."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is run. Each field is a flag (--max-runs) and a variable (SONDE_MAX_RUNS); flags win."""

    COMMAND: ClassVar[str] = "sonde-server"
    DESCRIPTION: ClassVar[str] = "Hosts a transformer and answers Trace and Intervene over gRPC."
    EPILOG: ClassVar[str] = (
        "Every setting is also an environment variable; a flag goes before it. `sonde-server token NAME` makes a "
        "bearer token, and `sonde-server ray` serves replicas on Ray."
    )

    model: str = setting("atlas", "the embedded model 'atlas', a local directory, or a Hugging Face hub id")
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 is every interface of this machine")
    port: int = setting(50051, "port to listen on; 0 takes a free one", least=0, most=65535)
    device: str = setting("auto", "torch device, such as cpu, cuda or cuda:1; auto takes a GPU where there is one")
    device_map: str | None = setting(
        None,
        "spread a model that one device does not hold: auto, balanced, sequential, or a JSON file of module names "
        "and their devices, disk among them; goes with --device auto",
    )
    dtype: str = setting(
        "auto", "data type of the weights; auto is the checkpoint's on a GPU, float32 elsewhere", choices=DTYPES
    )
    pack_weights: bool = setting(
        True,
        "on a CPU in float32, keep the weights a second time in the order that they are multiplied in, if a quarter of "
        "the free memory holds them: small questions are answered faster",
    )
    # Requests carry tensors: noise to replay, directions, values to set.
    max_request_bytes: int = setting(64 << 20, "most bytes of one request", least=1 << 10, most=1 << 30)
    max_prompt_tokens: int = setting(8192, "most tokens of a prompt; 0 leaves it to the model", least=0)
    max_runs: int = setting(200_000, "most runs of one request; 0 is no limit", least=0)
    max_answer_bytes: int = setting(256 << 20, "most bytes of one answer; 0 is no limit", least=0)
    max_working_bytes: int = setting(
        8 << 30, "most bytes that one request may hold beside the weights; 0 is no limit", least=0
    )
    max_requests: int = setting(32, "most requests that one caller may have in progress; 0 is no limit", least=0)
    max_runs_per_second: float = setting(
        0.0, "most runs a second that one caller may ask for in the long run; 0 is no limit", least=0
    )
    max_seconds: float = setting(3600.0, "most seconds that a request may take, whatever its deadline", least=0.1)
    max_queued_runs: int = setting(
        1_000_000, "most runs that may be asked for and not done yet, of all callers", least=1
    )
    max_queued_bytes: int | None = setting(
        None,
        "most bytes that requests in progress may hold together; none: half of the device's memory",
        kind=int,
        least=1,
    )
    cache_bytes: int = setting(1 << 30, "bytes kept of recent prompts' unchanged runs", least=0)
    workers: int = setting(64, "threads that serve calls; each call holds one while it lasts", least=2, most=4096)
    max_connection_age: float | None = setting(
        None,
        "seconds after which a client is told to connect anew, and finds replicas that were added; its calls in "
        "progress go on; none: never",
        kind=float,
        least=1,
        most=1e6,
    )
    grace: float = setting(30.0, "seconds that calls in progress have to finish after SIGTERM", least=0)
    reflection: bool = setting(True, "answer server reflection, which grpcurl and others ask")
    tls_cert: str | None = setting(None, "PEM file of the server's certificate and chain: calls are then encrypted")
    tls_key: str | None = setting(None, "PEM file of its key")
    tls_client_ca: str | None = setting(
        None, "PEM file of the authorities whose client certificates are let in; then nobody comes in without one"
    )
    tokens: str | None = setting(
        None, "file of bearer tokens, one 'NAME SHA256' a line as `sonde-server token NAME` makes it"
    )
    insecure: bool = setting(False, "listen beyond this machine although nobody has to say who they are")
    log_format: str = setting("human", "how log lines are written", choices=LOG_FORMATS)
    metrics_port: int | None = setting(
        None, "a port that answers Prometheus, without TLS or token", kind=int, least=0, most=65535
    )
    telemetry: bool = setting(False, "send spans by OpenTelemetry, as the OTEL_... variables say")
    health_port: int | None = setting(
        None, "a port that answers health alone, without TLS or token, for probes", kind=int, least=0, most=65535
    )

    def __post_init__(self) -> None:
        """Raises SettingError for a value out of bounds."""
        for one in dataclasses.fields(self):
            value, metadata = getattr(self, one.name), one.metadata
            if value is None:
                continue
            least, most, choices = metadata.get("least"), metadata.get("most"), metadata.get("choices")
            if choices is not None and value not in choices:
                raise SettingError(f"{_flag(one.name)}: {value!r} is not one of {', '.join(choices)}")
            # The second comparison is also false for a NaN.
            if least is not None and not value >= least:
                raise SettingError(f"{_flag(one.name)}: {value} is too small; give {least} or more")
            if most is not None and value > most:
                raise SettingError(f"{_flag(one.name)}: {value} is too large; give {most} or less")
        self._check_access()

    def _check_access(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingError("--tls-cert and --tls-key: one was given; give both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise SettingError("--tls-client-ca: it needs --tls-cert and --tls-key")
        known = self.tokens is not None or self.tls_client_ca is not None
        if not known and not self.insecure and not is_loopback(self.host):
            raise SettingError(
                f"--host: {self.host} can be reached from other machines, and anybody could use the model; "
                "give --tokens or --tls-client-ca, or --insecure to let everybody in"
            )

        if self.device_map is not None and self.device != "auto":
            raise SettingError(
                f"--device: {self.device!r} says where all of the model lies; leave it out or --device-map"
            )

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(self.max_prompt_tokens, self.max_runs, self.max_answer_bytes, self.max_working_bytes)

    @classmethod
    def from_environment_and_flags(cls, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the flags, then the variables, then the defaults. Raises SettingError; --help and bad flags exit."""
        given = vars(_parser(cls).parse_args(arguments))
        values: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            if given[one.name] is not None:
                values[one.name] = given[one.name]
            elif text := environment.get(PREFIX + one.name.upper(), "").strip():
                values[one.name] = _parse(text, one)
        return cls(**values)


def is_loopback(host: str) -> bool:
    """Whether what listens at this host can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(one: "dataclasses.Field[Any]") -> type:
    given: type | None = one.metadata.get("kind")
    return given or (str if one.default is None else type(one.default))


def _parse(text: str, one: "dataclasses.Field[Any]") -> Any:
    kind = _kind(one)
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise SettingError(f"{PREFIX}{one.name.upper()}: {text!r} is neither true nor false")
    try:
        return kind(text)
    except ValueError:
        raise SettingError(f"{PREFIX}{one.name.upper()}: {text!r} is not a number") from None


def _parser(settings: type[Settings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=settings.COMMAND, description=settings.DESCRIPTION, epilog=settings.EPILOG)
    for one in dataclasses.fields(settings):
        kind = _kind(one)
        default = "none" if one.default is None else one.default
        text = f"{one.metadata['help']} (default: {default}; {PREFIX}{one.name.upper()})".replace("%", "%%")
        if kind is bool:
            parser.add_argument(_flag(one.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            metavar = kind.__name__.upper() if kind is not str else "TEXT"
            choices = one.metadata.get("choices")
            shown = None if choices else metavar
            parser.add_argument(_flag(one.name), type=kind, choices=choices, metavar=shown, default=None, help=text)
    return parser
