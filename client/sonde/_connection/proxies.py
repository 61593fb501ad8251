"""The proxy that gRPC goes through, which the environment names and no setting of a client does."""

import ipaddress
import os
from typing import Final
from urllib.parse import urlsplit

_NAMED_BY: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTED_BY: Final = ("no_grpc_proxy", "no_proxy")


def proxy_for(host: str) -> str:
    """The proxy on the way to a host and the variable that names it, in words; empty if there is none.

    The rules are gRPC's own (doc/environment_variables.md): of either list the first variable that is set decides.
    """
    name = _first(_NAMED_BY)
    if name is None or _is_excepted(host):
        return ""
    try:
        proxy = urlsplit(os.environ[name])
        port = proxy.port
    except ValueError:
        return ""
    if proxy.scheme != "http" or not proxy.hostname:
        return ""
    # Never the whole value: it may have a password.
    return f"the proxy {proxy.hostname}{'' if port is None else f':{port}'} of the environment variable {name}"


def _first(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in os.environ), None)


def _is_excepted(host: str) -> bool:
    name = _first(_EXCEPTED_BY)
    entries = [] if name is None else [entry.strip().lower() for entry in os.environ[name].split(",")]
    return any(entry and (host.lower().endswith(entry) or _in_subnet(host, entry)) for entry in entries)


def _in_subnet(host: str, subnet: str) -> bool:
    try:
        return "/" in subnet and ipaddress.ip_address(host) in ipaddress.ip_network(subnet, strict=False)
    except ValueError:
        return False
