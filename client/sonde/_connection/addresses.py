"""Addresses of servers: one, several, or a name that stands for several."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sonde._ask.given import shown
from sonde.errors import InvalidSettings

DEFAULT_PORT: Final = 50051
DEFAULT_ADDRESS: Final = f"localhost:{DEFAULT_PORT}"

_IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
# Targets that are more than host:port to gRPC: dns:///name:port, unix:/path, ipv4:..., xds:///... The bare host "dns"
# is not one of them.
_SCHEME: Final = re.compile(
    r"dns:(//[^/]*)?/[^/]+$|dns:[^/:,]+:\d+$|unix:|unix-abstract:|vsock:|ipv[46]:(?!//)|(xds|google-c2p):/"
)
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://([^/@]*@)?(?P<place>[^/?#]*)")
_NUMERIC: Final = re.compile(r"ipv[46]:(?!//)")
_MEMBER: Final = re.compile(r"(?P<host>[^:/\[\]\s]+|\[[^\[\]\s]+\])(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a gRPC channel."""

    name: str
    """The target, as gRPC writes it."""
    spread: bool
    """Whether calls take turns among several servers."""
    authority: str | None
    """The name of the server in requests and certificates; None if gRPC takes it from the target."""


def split(given: str | Sequence[str]) -> tuple[str, ...]:
    """Split addresses, and add the default port where there is none.

    Raises:
        InvalidSettings: if there is no address, one is empty or given twice, or one cannot be combined with others.
    """
    parts = _parts(given)
    if not parts:
        raise InvalidSettings("address: expected an address such as localhost:50051, got none")
    if "" in parts:
        which = f" (number {parts.index('') + 1} of {len(parts)})" if len(parts) > 1 else ""
        raise InvalidSettings(f"address: expected an address such as {DEFAULT_ADDRESS}, got an empty string{which}")
    if len(parts) == 1:
        return (parts[0] if _SCHEME.match(parts[0]) else _host_and_port(parts[0]),)
    addresses = tuple(map(_member, parts))
    for address in addresses:
        if addresses.count(address) > 1:
            raise InvalidSettings(f"address: {address} is given more than once; name each server once")
    return addresses


def resolve(addresses: Sequence[str], *, certified: bool = False) -> Target:
    """Return the target of a channel to these addresses. If there are several, host names are looked up now.

    Args:
        addresses: the addresses that `split` returned.
        certified: whether the server's certificate must match the name in the address.

    Raises:
        InvalidSettings: if a name cannot be looked up, two names belong to one server, or several names would have to
            match certificates.
    """
    if len(addresses) == 1:
        return Target(addresses[0], spread=addresses[0].startswith("dns:"), authority=None)
    hosts = list(dict.fromkeys(map(host_of, addresses)))
    if certified and len(hosts) > 1:
        raise InvalidSettings(
            f"tls: the certificates of all servers must match one name, but there are {', '.join(hosts)}; pass "
            "tls=sonde.TLS(server_name=...) with a name that all certificates have, or one address dns:///NAME:PORT "
            "whose name stands for all servers"
        )
    return Target(_numeric(addresses), spread=True, authority=addresses[0])


def is_loopback(address: str) -> bool:
    """Whether calls to this gRPC target stay on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = host_of(address)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """Return the host of a target, without port and brackets."""
    # Targets are host:port, dns:///host:port, ipv4:host:port or ipv6:[host]:port. A target with a DNS server of its own
    # (dns://server/host) is left unchanged: that server's localhost need not be this machine.
    rest = re.sub(r"^(dns:(///)?|ipv4:|ipv6:)", "", address)
    bracketed = re.match(r"^\[(.*)\](:\d+)?$", rest)
    if bracketed:
        return bracketed.group(1)
    return rest.rsplit(":", 1)[0] if rest.count(":") == 1 else rest


def _parts(given: str | Sequence[str]) -> list[str]:
    if not isinstance(given, str):
        several: object = given
        if not isinstance(several, Sequence) or not all(isinstance(part, str) for part in several):
            raise InvalidSettings(f"address: expected host:port, or a list of these, got {shown(given)}")
        return [part.strip() for part in given]
    numeric = _NUMERIC.match(given)
    if numeric and "," in given:
        given = given[numeric.end() :]
    # The path of a socket may contain commas.
    return [given] if _SCHEME.match(given) else [part.strip() for part in given.split(",")]


def _member(part: str) -> str:
    """Return one of several addresses, with its port."""
    if _SCHEME.match(part):
        raise InvalidSettings(
            f"address: expected host:port for each of several addresses, got {part}; pass it alone, or, for a name "
            "that stands for several servers, pass that name alone, as dns:///NAME:PORT"
        )
    return _host_and_port(part)


def _host_and_port(part: str) -> str:
    found = _MEMBER.fullmatch(part)
    if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 1 << 16):
        raise InvalidSettings(f"address: expected host:port, got {_shown(part)}{_advice(part)}")
    return f"{found['host']}:{int(found['port'] or DEFAULT_PORT)}"


def _shown(part: str) -> str:
    """What was given, without the name and password that a URL may have."""
    return repr(re.sub(r"://[^/@]*@", "://...@", part))


def _advice(part: str) -> str:
    """What to write instead, where that is plain."""
    url = _URL.match(part)
    place = url["place"] if url else part.partition("/")[0]
    if _MEMBER.fullmatch(place) and place != part:
        encrypted = url is not None and url["scheme"].lower() in {"https", "grpcs"}
        return f"; use {place!r}{' with tls=True (--tls)' if encrypted else ''}, without scheme or path"
    if part.count(":") > 1 and "/" not in part:
        return "; write an IPv6 address as [2001:db8::1]:50051"
    return f"; for example, {DEFAULT_ADDRESS}"


def _numeric(addresses: Sequence[str]) -> str:
    """Return the target of several addresses. gRPC accepts only IP addresses here, so names are looked up once."""
    owners: dict[tuple[_IP, int], str] = {}
    for address in addresses:
        for place in _look_up(address):
            other = owners.setdefault(place, address)
            if other != address:
                raise InvalidSettings(f"address: {other} and {address} are the same server; name it once")
    if all(ip.version == 4 for ip, _ in owners):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in owners)
    # All addresses of a target must have the same family. IPv6 can express every IPv4 address.
    six = (f"[::ffff:{ip}]" if ip.version == 4 else f"[{ip}]".replace("%", "%25") for ip, _ in owners)
    return "ipv6:" + ",".join(f"{ip}:{port}" for ip, (_, port) in zip(six, owners, strict=True))


def _look_up(address: str) -> list[tuple[_IP, int]]:
    host, port = host_of(address), int(address.rpartition(":")[2])
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidSettings(f"address: {host} cannot be looked up: {reason}") from None
    ips = (ipaddress.ip_address(place[0]) for *_, place in found)
    return [(getattr(ip, "ipv4_mapped", None) or ip, port) for ip in dict.fromkeys(ips)]
