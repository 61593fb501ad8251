"""Identifies the caller by bearer token or client certificate, or by host if neither is required."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ...errors import Unauthenticated
from ..tokens import Tokens
from .calls import current_call, peer_host
from .pipeline import Guard

_SCHEME = "bearer "


class AuthenticationGuard(Guard):
    """Sets the caller of each call. If there are tokens, refuses calls without a valid one."""

    def __init__(self, tokens: Tokens | None) -> None:
        super().__init__()
        self._tokens = tokens

    @contextmanager
    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> Iterator[None]:
        """Raises Unauthenticated."""
        call = current_call()
        assert call is not None
        name = certificate_name(context)
        if self._tokens is not None:
            name = _name_of(call.metadata.get("authorization"), self._tokens)
        call.caller = peer_host(context) if name is None else name
        call.authenticated = name is not None
        yield


def certificate_name(context: grpc.ServicerContext) -> str | None:
    """The common name in the client's certificate, or another name if it has none; None without a certificate."""
    found: Any = context.auth_context()  # the stubs have numbers where there are lists of bytes
    for key in ("x509_common_name", "x509_subject_alternative_name", "x509_subject"):
        for value in found.get(key, ()):
            if value:
                return str(value, "utf-8", "replace")
    return None


def _name_of(authorization: str | None, tokens: Tokens) -> str:
    if authorization is None:
        raise Unauthenticated("expected a token in the metadata, as 'authorization: Bearer TOKEN', got none")
    if not authorization.lower().startswith(_SCHEME):
        raise Unauthenticated("expected the metadata 'authorization' to be 'Bearer TOKEN', got another scheme")
    name = tokens.name_of(authorization[len(_SCHEME) :].strip())
    if name is None:
        raise Unauthenticated("the token is not valid; it may have been revoked")
    return name
