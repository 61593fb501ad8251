"""The settings of a connection: address, encryption, token, retries and deadlines."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from sonde._ask.given import shown
from sonde._connection.addresses import Target, host_of, is_loopback, resolve, split
from sonde._connection.proxies import proxy_for
from sonde._connection.timeouts import Default, Timeout, check_timeout
from sonde._version import __version__
from sonde.errors import InvalidSettings

_SERVICE: Final = "sonde.v1.InspectionService"
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            # Only UNAVAILABLE is safe to repeat, because nothing was computed. Whether to wait for a full queue is the
            # caller's decision. gRPC never retries after the first message of an answer.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_WITHOUT_PROXY: Final = ("unix:", "unix-abstract:", "vsock:")
"""How the targets begin that gRPC never asks a proxy for."""
_SPREAD: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # Skips servers that are loading their model or shutting down. A single server is always asked, because its answer
    # says why it does not serve.
    "healthCheckConfig": {"serviceName": _SERVICE},
}


@dataclass(frozen=True, slots=True)
class TLS:
    """Encryption settings. Certificates and keys are PEM, as bytes or as the path of a file."""

    root_certificate: bytes | str | Path | None = None
    """The trusted authority; None trusts the authorities that come with gRPC."""
    certificate: bytes | str | Path | None = None
    """The client's own certificate, if the server requires one; needs `key`."""
    key: bytes | str | Path | None = None
    server_name: str | None = None
    """The name in the server's certificate, if it differs from the address."""

    def __post_init__(self) -> None:
        for name in ("root_certificate", "certificate", "key"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, bytes | str | Path):
                raise InvalidSettings(f"tls.{name}: expected PEM as bytes, or the path of a file, got {shown(given)}")
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise InvalidSettings(f"tls.server_name: expected a host's name, got {shown(self.server_name)}")
        if (self.certificate is None) != (self.key is None):
            raise InvalidSettings("tls: pass both `certificate` and `key`, or neither")

    def __repr__(self) -> str:
        return f"TLS(server_name={self.server_name!r})"


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that a channel needs. Both clients open their channels from this."""

    address: str
    """The address, as error messages show it."""
    target: Target
    local: bool
    """Whether all traffic stays on this machine."""
    token: str | None = None
    tls: TLS | None = None
    timeout: float | None = None
    proxy: str = ""
    """The proxy on the way, in words; empty if there is none."""

    @classmethod
    def of(
        cls, address: str | Sequence[str], token: str | None, tls: TLS | bool, timeout: float | None
    ) -> "Connection":
        """Check the settings, complete the addresses and, if there are several, look up their names.

        Raises:
            InvalidSettings: if an address cannot be used, the token is empty, the timeout is not positive, or the token
                would leave this machine unencrypted.
        """
        addresses = split(address)
        seconds = check_timeout(timeout)
        if not isinstance(tls, TLS | bool | None):
            raise InvalidSettings(f"tls: expected True, False or sonde.TLS(...), got {shown(tls)}")
        encryption = tls if isinstance(tls, TLS) else TLS() if tls else None
        if token is not None:
            if not isinstance(token, str):
                raise InvalidSettings(f"token: expected text, got a value of type {type(token).__name__}")
            if not token or not token.isascii() or not token.isprintable():
                raise InvalidSettings("token: expected printable ASCII characters, got others, or an empty token")
            beyond = [one for one in addresses if not is_loopback(one)]
            if encryption is None and beyond:
                raise InvalidSettings(
                    f"token: it would be sent unencrypted to {', '.join(beyond)}; pass tls=True, or use a tunnel on "
                    "localhost"
                )
        target = resolve(addresses, certified=encryption is not None and encryption.server_name is None)
        local = all(map(is_loopback, addresses))
        proxied = not local and target.authority is None and not target.name.startswith(_WITHOUT_PROXY)
        proxy = proxy_for(host_of(target.name)) if proxied else ""
        return cls(", ".join(addresses), target, local, token, encryption, seconds, proxy)

    def seconds(self, timeout: Timeout) -> float | None:
        """The timeout of one call."""
        if isinstance(timeout, Default):
            return self.timeout
        return check_timeout(timeout)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call: the token, and the caller's OpenTelemetry trace context if there is one."""
        token = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*token, *_trace_context())

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """The channel's options."""
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(_RETRIES | (_SPREAD if self.target.spread else {}))),
            ("grpc.enable_retries", 1),
            # The contract keeps messages near 1 MiB; this is well above that, and above the default of 4 MiB.
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            # gRPC servers close connections that ping more often than every 300 s by default; common load balancers
            # drop connections that are silent for 350 s.
            ("grpc.keepalive_time_ms", 320_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Reconnect to a restarted server within seconds, instead of gRPC's two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 3_000),
            ("grpc.primary_user_agent", f"sonde-python/{__version__}"),
        ]
        if self.target.spread:
            # Names are looked up again when a server disappears, but by default at most twice a minute.
            options.append(("grpc.dns_min_time_between_resolutions_ms", 5_000))
        # gRPC would pass a list of addresses to an HTTP proxy as if it were one host name.
        if self.local or self.target.authority is not None:
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        elif self.target.authority is not None:
            options.append(("grpc.default_authority", self.target.authority))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The channel's credentials; None without encryption.

        Raises:
            InvalidSettings: if a certificate or key cannot be read.
        """
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.tls.root_certificate, "root_certificate"),
            private_key=_pem(self.tls.key, "key"),
            certificate_chain=_pem(self.tls.certificate, "certificate"),
        )

    def __repr__(self) -> str:
        token = "" if self.token is None else ", token=..."
        return f"Connection({self.address!r}{token}, tls={self.tls is not None}, timeout={self.timeout})"


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The W3C trace context of the current span, if the program has already imported OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def _pem(source: bytes | str | Path | None, name: str) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidSettings(f"tls.{name}: cannot read {source}: {error.strerror}") from None
