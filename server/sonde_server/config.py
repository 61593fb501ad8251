"""The settings of a server, read from flags and from SONDE_... variables."""

import argparse
import dataclasses
import ipaddress
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

PREFIX = "SONDE_"
DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_FORMATS = ("human", "json")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request; 0 means no limit."""

    max_prompt_tokens: int = 0
    max_runs: int = 0
    max_answer_bytes: int = 0
    max_working_bytes: int = 0
    max_cases: int = 0
    max_total_tokens: int = 0
    max_image_bytes: int = 0
    max_image_pixels: int = 0


class SettingError(ValueError):
    """A setting has an invalid value; the message says which one and what was expected."""


def setting(default: Any, help: str, **metadata: Any) -> Any:  # noqa: A002 - argparse's own word
    """A field of settings: its default, its help text, and its bounds (least, most) or choices."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings. Each field is a flag (--max-runs) and a variable (SONDE_MAX_RUNS); flags take precedence."""

    COMMAND: ClassVar[str] = "sonde-server"
    DESCRIPTION: ClassVar[str] = "Host a transformer and serve Trace and Intervene requests over gRPC."
    EPILOG: ClassVar[str] = (
        "Every setting is also an environment variable; flags take precedence. `sonde-server token NAME` makes a "
        "bearer token, and `sonde-server ray` serves replicas on Ray."
    )

    model: str = setting(
        "atlas", "the embedded model 'atlas', a local directory, a GGUF file, or a Hugging Face hub id"
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 means all interfaces")
    port: int = setting(50051, "port to listen on; 0 means any free port", least=0, most=65535)
    device: str = setting("auto", "torch device, such as cpu, cuda or cuda:1; auto uses a GPU if there is one")
    device_map: str | None = setting(
        None,
        "spread a model that is too large for one device: auto, balanced, sequential, or a JSON file that maps module "
        "names to devices, including disk; requires --device auto",
    )
    dtype: str = setting(
        "auto",
        "data type of the weights; auto uses the checkpoint's type on a GPU, and float32 elsewhere",
        choices=DTYPES,
    )
    pack_weights: bool = setting(
        True,
        "on a CPU in float32, keep a second copy of those weights that another layout makes faster for small requests, "
        "as measured at the start, if it fits into a quarter of the free memory",
    )
    # Requests carry tensors: noise to replay, directions, values to set.
    max_request_bytes: int = setting(64 << 20, "maximum size of one request, in bytes", least=1 << 10, most=1 << 30)
    max_prompt_tokens: int = setting(
        8192, "maximum length of a prompt, in tokens; 0 means the model's own limit", least=0
    )
    max_runs: int = setting(
        200_000, "maximum number of runs of one request, or of one of its cases; 0 means no limit", least=0
    )
    max_cases: int = setting(10_000, "maximum number of cases of one request; 0 means no limit", least=0)
    max_total_tokens: int = setting(
        1_000_000,
        "maximum number of tokens of all prompts and sources of one request together; 0 means no limit",
        least=0,
    )
    max_image_bytes: int = setting(
        8 << 20, "maximum size of the image of a prompt, in bytes of its file; 0 means no limit", least=0
    )
    max_image_pixels: int = setting(
        1 << 24, "maximum size of the image of a prompt, in pixels; 0 means no limit", least=0
    )
    max_answer_bytes: int = setting(256 << 20, "maximum size of one answer, in bytes; 0 means no limit", least=0)
    max_working_bytes: int = setting(
        8 << 30, "maximum memory that one request may hold beside the weights, in bytes; 0 means no limit", least=0
    )
    max_requests: int = setting(32, "maximum number of concurrent requests of one caller; 0 means no limit", least=0)
    max_runs_per_second: float = setting(
        0.0, "maximum average number of runs per second of one caller; 0 means no limit", least=0
    )
    max_seconds: float = setting(
        3600.0, "maximum duration of a request in seconds, even if its deadline is later", least=0.1
    )
    max_queued_runs: int = setting(1_000_000, "maximum number of runs in the queue, of all callers together", least=1)
    max_queued_bytes: int | None = setting(
        None,
        "maximum memory that all requests in progress may hold together, in bytes; none means half of the device's "
        "memory",
        kind=int,
        least=1,
    )
    cache_bytes: int = setting(1 << 30, "size of the cache of unchanged runs, in bytes", least=0)
    workers: int = setting(
        64, "number of threads that serve calls; each call occupies one while it lasts", least=2, most=4096
    )
    max_connection_age: float | None = setting(
        None,
        "seconds after which a client is told to reconnect, so that it finds new replicas; its calls in progress are "
        "not interrupted; none means never",
        kind=float,
        least=1,
        most=1e6,
    )
    grace: float = setting(30.0, "seconds that calls in progress get to finish after SIGTERM", least=0)
    reflection: bool = setting(True, "enable server reflection, which grpcurl and other tools use")
    tls_cert: str | None = setting(None, "PEM file of the server's certificate and chain; enables TLS")
    tls_key: str | None = setting(None, "PEM file of the private key of --tls-cert")
    tls_client_ca: str | None = setting(
        None, "PEM file of the authorities of client certificates; clients must then present one"
    )
    tokens: str | None = setting(None, "file of accepted bearer tokens; each line is made by `sonde-server token NAME`")
    insecure: bool = setting(False, "accept connections from other machines without authentication")
    log_format: str = setting("human", "format of the log", choices=LOG_FORMATS)
    metrics_port: int | None = setting(
        None, "port for Prometheus metrics, without TLS or token", kind=int, least=0, most=65535
    )
    telemetry: bool = setting(False, "send OpenTelemetry spans, configured by the OTEL_... variables")
    health_port: int | None = setting(
        None, "port for health checks only, without TLS or token", kind=int, least=0, most=65535
    )

    def __post_init__(self) -> None:
        """Raises SettingError for an invalid value."""
        for one in dataclasses.fields(self):
            value, metadata = getattr(self, one.name), one.metadata
            if value is None:
                continue
            least, most, choices = metadata.get("least"), metadata.get("most"), metadata.get("choices")
            if choices is not None and value not in choices:
                raise SettingError(f"{_flag(one.name)}: expected one of {', '.join(choices)}, got {value!r}")
            # The second comparison is also false for a NaN.
            if least is not None and not value >= least:
                raise SettingError(f"{_flag(one.name)}: expected at least {least}, got {value}")
            if most is not None and value > most:
                raise SettingError(f"{_flag(one.name)}: expected at most {most}, got {value}")
        self._check_access()

    def _check_access(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingError("--tls-cert and --tls-key: expected both, got only one")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise SettingError("--tls-client-ca: requires --tls-cert and --tls-key")
        known = self.tokens is not None or self.tls_client_ca is not None
        if not known and not self.insecure and not is_loopback(self.host):
            raise SettingError(
                f"--host: {self.host} can be reached from other machines, and anybody could use the model; "
                "set --tokens or --tls-client-ca, or --insecure to allow that"
            )
        if self.device_map is not None and self.device != "auto":
            raise SettingError(
                f"--device: cannot be combined with --device-map, got {self.device!r}; leave out one of them"
            )

    @property
    def limits(self) -> Limits:
        """The limits of one request."""
        return Limits(
            self.max_prompt_tokens,
            self.max_runs,
            self.max_answer_bytes,
            self.max_working_bytes,
            self.max_cases,
            self.max_total_tokens,
            self.max_image_bytes,
            self.max_image_pixels,
        )

    @classmethod
    def from_environment_and_flags(cls, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Self:
        """Read the flags, then the variables, then the defaults. Raises SettingError; --help and invalid flags exit."""
        given = vars(_parser(cls).parse_args(arguments))
        values: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            if given[one.name] is not None:
                values[one.name] = given[one.name]
            elif text := environment.get(PREFIX + one.name.upper(), "").strip():
                values[one.name] = _parse(text, one)
        return cls(**values)


def is_loopback(host: str) -> bool:
    """Whether a server at this address can only be reached from its own machine."""
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
        raise SettingError(f"{PREFIX}{one.name.upper()}: expected true or false, got {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise SettingError(f"{PREFIX}{one.name.upper()}: expected a number, got {text!r}") from None


class _Help(argparse.HelpFormatter):
    """Help that breaks no line inside a command in backticks, nor at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        kept = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
        lines = textwrap.wrap(kept, width, break_on_hyphens=False)
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


def _parser(settings: type[Settings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=settings.COMMAND, description=settings.DESCRIPTION, epilog=settings.EPILOG, formatter_class=_Help
    )
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
