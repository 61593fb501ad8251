"""The way to a server: address, encryption, token, retries and deadlines."""

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
            # UNAVAILABLE alone is safe to repeat: nothing was computed. A full queue is the caller's decision, and
            # gRPC never retries once the first message of an answer has come.
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
    # A server that loads its model or shuts down is passed over. A single one is asked in any case: its own answer says
    # what it is about.
    "healthCheckConfig": {"serviceName": _SERVICE},
}


@dataclass(frozen=True, slots=True)
class TLS:
    """How to encrypt. Certificates and keys are PEM: bytes, or the path of a file."""

    root_certificate: bytes | str | Path | None = None
    """Whom to trust; None: the authorities that come with gRPC."""
    certificate: bytes | str | Path | None = None
    """The client's own certificate, where the server asks for one; with `key`."""
    key: bytes | str | Path | None = None
    server_name: str | None = None
    """The name to expect in the server's certificate, where it is not that of the address."""

    def __post_init__(self) -> None:
        for name in ("root_certificate", "certificate", "key"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, bytes | str | Path):
                raise InvalidSettings(f"tls.{name}: expected PEM as bytes, or the path of a file, got {shown(given)}")
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise InvalidSettings(f"tls.server_name: expected a host's name, got {shown(self.server_name)}")
        if (self.certificate is None) != (self.key is None):
            raise InvalidSettings("tls: a client certificate needs its key, and a key its certificate")

    def __repr__(self) -> str:
        return f"TLS(server_name={self.server_name!r})"


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything a channel is made of. Both clients open theirs from one of these."""

    address: str
    """As messages name it."""
    target: Target
    local: bool
    """Whether all of it stays on this machine."""
    token: str | None = None
    tls: TLS | None = None
    timeout: float | None = None
    proxy: str = ""
    """The proxy on the way, in words; empty if there is none."""

    @classmethod
    def of(
        cls, address: str | Sequence[str], token: str | None, tls: TLS | bool, timeout: float | None
    ) -> "Connection":
        """Check the settings, complete the addresses, and look names up where several are given.

        Raises:
            InvalidSettings: for addresses that cannot be used, an empty token, a timeout that is not positive, and a
                token that would travel unencrypted beyond this machine.
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
                raise InvalidSettings("token: it is empty or has characters that a header cannot carry")
            beyond = [one for one in addresses if not is_loopback(one)]
            if encryption is None and beyond:
                raise InvalidSettings(
                    f"token: it would travel unencrypted to {', '.join(beyond)}; give tls=True, or use a tunnel on "
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
        """What goes with every call: the token, and the trace that the caller's program is in, where it has one."""
        token = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*token, *_trace_context())

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """The channel's options."""
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(_RETRIES | (_SPREAD if self.target.spread else {}))),
            ("grpc.enable_retries", 1),
            # The contract keeps messages near 1 MiB; the default of 4 MiB is left far behind to be sure.
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            # Above the 300 s that a gRPC server allows by default (below, it would hang up), and below the 350 s
            # after which the usual load balancers forget a silent connection.
            ("grpc.keepalive_time_ms", 320_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # A server that restarts is found again within seconds, not after gRPC's two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 3_000),
            ("grpc.primary_user_agent", f"sonde-python/{__version__}"),
        ]
        if self.target.spread:
            # A name is looked up again when one of its servers goes, by default at most twice a minute.
            options.append(("grpc.dns_min_time_between_resolutions_ms", 5_000))
        # gRPC and proxies would take a list for the name of one host.
        if self.local or self.target.authority is not None:
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        elif self.target.authority is not None:
            options.append(("grpc.default_authority", self.target.authority))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The channel's credentials; None where nothing is encrypted.

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
    """W3C trace context of the span under way, if the program uses OpenTelemetry; it is not brought in for this."""
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
        raise InvalidSettings(f"tls.{name}: {source} cannot be read: {error.strerror}") from None
