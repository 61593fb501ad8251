"""Interceptors between gRPC and the servicer."""

from .admission import AdmissionGuard
from .authentication import AuthenticationGuard
from .calls import Call, begin_call, current_call
from .errors import ErrorGuard
from .requests import RequestGuard
from .watching import Observer, WatchGuard

__all__ = [
    "AdmissionGuard",
    "AuthenticationGuard",
    "Call",
    "ErrorGuard",
    "Observer",
    "RequestGuard",
    "WatchGuard",
    "begin_call",
    "current_call",
]
