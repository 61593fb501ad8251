"""The server's certificate and the authorities of its clients, which can be reloaded."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc


class CertificateError(ValueError):
    """A certificate, key or authority file is invalid; the message says which and why."""


@dataclass(frozen=True, slots=True)
class _Material:
    certificate: bytes
    key: bytes
    client_authorities: bytes | None


class Certificates:
    """The server's certificate and key, and the authorities whose client certificates it accepts."""

    def __init__(self, certificate: str, key: str, client_authorities: str | None) -> None:
        """Raises CertificateError."""
        self._paths = (Path(certificate), Path(key), None if client_authorities is None else Path(client_authorities))
        self._renewed: Any = None
        self._material = self._read()

    def reload(self) -> None:
        """Read the files again, for new connections. Raises CertificateError, and then keeps the previous files."""
        material = self._read()
        if material != self._material:
            self._material = material
            self._renewed = _configuration(material)

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port. Each new connection uses the current files."""
        first = _configuration(self._material)
        demanded = self._material.client_authorities is not None
        return grpc.dynamic_ssl_server_credentials(first, self._current, require_client_authentication=demanded)

    def _current(self) -> Any:
        """The new configuration, if there is one since the last connection, or None."""
        renewed, self._renewed = self._renewed, None
        return renewed

    def _read(self) -> _Material:
        certificate, key, authorities = self._paths
        shown = _pem(certificate, b"CERTIFICATE", "--tls-cert")
        secret = _pem(key, b"PRIVATE KEY", "--tls-key")
        _check_pair(certificate, key)
        taken = None if authorities is None else _pem(authorities, b"CERTIFICATE", "--tls-client-ca")
        return _Material(shown, secret, taken)


def _configuration(material: _Material) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_authorities
    )


def _pem(path: Path, kind: bytes, flag: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{flag}: cannot read {path}: {error.strerror}") from error
    if kind + b"-----" not in content:
        raise CertificateError(f"{flag}: expected a {kind.decode().lower()} in PEM format, found none in {path}")
    return content


def _check_pair(certificate: Path, key: Path) -> None:
    """Raises CertificateError for a key of another certificate; gRPC would only say that it cannot listen."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(
            f"--tls-cert and --tls-key: {certificate} and {key} do not belong together: {error}"
        ) from error
