"""Interceptors: what stands between the wire and the servicer."""

from .errors import ErrorGuard

__all__ = ["ErrorGuard"]
