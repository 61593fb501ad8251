"""Where servers are: what may be given, what gRPC is told, and what stays on this machine."""

import ipaddress
import socket
from typing import Any

import pytest
import sonde
from hypothesis import given
from hypothesis import strategies as st
from sonde._connection.addresses import host_of, is_loopback, resolve, split
from sonde._connection.connection import Connection

PORTS = st.integers(1, 65535)
# One that is an IPv4 address in disguise is that address.
IPS = st.ip_addresses().map(lambda ip: getattr(ip, "ipv4_mapped", None) or ip)
PLACES = st.lists(st.tuples(IPS, PORTS), min_size=2, max_size=5, unique=True)


def written(ip: "ipaddress.IPv4Address | ipaddress.IPv6Address", port: int) -> str:
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"


def option(connection: Connection, name: str) -> Any:
    return dict(connection.options).get(name)


@given(PLACES)
def test_several_numbers_are_one_target(places: Any) -> None:
    addresses = [written(ip, port) for ip, port in places]
    assert split(addresses) == tuple(addresses) == split(",".join(addresses)) == split(" , ".join(addresses))
    target = resolve(split(addresses))
    scheme, _, rest = target.name.partition(":")
    told = [(host_of(one), int(one.rpartition(":")[2])) for one in rest.split(",")]
    if all(ip.version == 4 for ip, _ in places):
        assert scheme == "ipv4"
        assert told == [(str(ip), port) for ip, port in places]
    else:
        # gRPC takes one family; every IPv4 address has its place in IPv6.
        assert scheme == "ipv6"
        found = [(ipaddress.IPv6Address(ip), port) for ip, port in told]
        assert [(six.ipv4_mapped or six, port) for six, port in found] == places
    assert target.spread
    # What gRPC itself calls several is the same.
    assert resolve(split(target.name)).name == target.name


@given(PLACES, st.data())
def test_one_server_is_named_once(places: Any, data: Any) -> None:
    again = data.draw(st.sampled_from(places))
    addresses = [written(ip, port) for ip, port in [*places, again]]
    with pytest.raises(sonde.InvalidSettings, match="more than once"):
        split(addresses)


@given(PLACES)
def test_a_token_travels_unencrypted_only_if_all_of_it_stays_here(places: Any) -> None:
    addresses = [written(ip, port) for ip, port in places]
    beyond = [address for address, (ip, _) in zip(addresses, places, strict=True) if not ip.is_loopback]
    if beyond:
        with pytest.raises(sonde.InvalidSettings, match="unencrypted") as caught:
            Connection.of(addresses, "secret", False, None)
        assert all(address in str(caught.value) for address in beyond)
        assert "secret" not in str(caught.value)
    else:
        assert Connection.of(addresses, "secret", False, None).local


@pytest.mark.parametrize("beyond", ["gpu2.example.org:1", "10.0.0.1:1", "[2001:db8::1]:1"])
def test_a_token_stays_here_if_one_of_several_is_elsewhere(beyond: str) -> None:
    for addresses in (["localhost:1", beyond], f"localhost:1,{beyond}"):
        with pytest.raises(sonde.InvalidSettings, match="unencrypted"):
            sonde.Client(addresses, token="secret")  # noqa: S106 - not a secret


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ([], "got none"),
        ("", "address: expected an address such as localhost:50051, got an empty string"),
        ([""], "got an empty string"),
        ("a:1,", "got an empty string (number 2 of 2)"),
        (["a:1", " ", "b:1"], "got an empty string (number 2 of 3)"),
        (["a", "a:50051"], "a:50051 is given more than once"),
        (["a:1", "dns:///b:1"], "got dns:///b:1; pass it alone"),
        (["unix:/tmp/socket", "a:1"], "for each of several addresses"),
        (["a:1", "xds:///b"], "for each of several addresses"),
        (["::1", "::2"], "write an IPv6 address as"),
        (["a:1", "b:port"], "expected host:port, got 'b:port'"),
        (["a:1", "b:0"], "expected host:port, got 'b:0'"),
        (["a:1", "b:65536"], "expected host:port, got 'b:65536'"),
        (["a:1", "b c:1"], "expected host:port, got 'b c:1'"),
        ("::1", "write an IPv6 address as [2001:db8::1]:50051"),
        ("localhost:port", "expected host:port, got 'localhost:port'"),
        ("localhost:65536", "expected host:port, got 'localhost:65536'"),
        (":50051", "expected host:port, got ':50051'; for example, localhost:50051"),
        ("http://gpu1:50051", "expected host:port, got 'http://gpu1:50051'; use 'gpu1:50051', without scheme or path"),
        ("grpc://gpu1:50051", "got 'grpc://gpu1:50051'; use 'gpu1:50051', without"),
        ("https://gpu1:50051/", "use 'gpu1:50051' with tls=True (--tls), without"),
        ("grpcs://gpu1", "use 'gpu1' with tls=True (--tls), without"),
        ("HTTPS://gpu1:50051/v1?a=b", "use 'gpu1:50051' with tls=True (--tls), without"),
        ("http://[::1]:50051", "use '[::1]:50051', without"),
        ("http://", "expected host:port, got 'http://'; for example, localhost:50051"),
        ("http://me:secret@gpu1:50051", "got 'http://...@gpu1:50051'; use 'gpu1:50051', without"),
        ("gpu1:50051/", "expected host:port, got 'gpu1:50051/'; use 'gpu1:50051', without"),
        ("gpu1/v1", "expected host:port, got 'gpu1/v1'; use 'gpu1', without"),
        ("//gpu1:50051", "expected host:port, got '//gpu1:50051'"),
        ("dns:///gpu1:50051/", "expected host:port, got 'dns:///gpu1:50051/'"),
        ("ipv4://127.0.0.1:1", "expected host:port, got 'ipv4://127.0.0.1:1'"),
        (["gpu1:1", "http://gpu2:1"], "got 'http://gpu2:1'; use 'gpu2:1', without"),
        ("http://gpu1:1,http://gpu2:1", "got 'http://gpu1:1'; use 'gpu1:1', without"),
        (["localhost:1", "127.0.0.1:1"], "localhost:1 and 127.0.0.1:1 are the same server"),
        (["10.0.0.1:1", "[::ffff:10.0.0.1]:1"], "are the same server"),
        (["127.0.0.1:1", "a" * 64 + ":1"], "cannot be looked up"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(given_: Any, words: str) -> None:
    for client in (sonde.Client, sonde.AsyncClient):
        with pytest.raises(sonde.InvalidSettings, match=r"^address: ") as caught:
            client(given_)
        assert words in str(caught.value)


def test_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(sonde.InvalidSettings, match="gpu1 cannot be looked up: Name or service not known"):
        sonde.Client(["gpu1:1", "gpu2:1"])
    # A single name is gRPC's to look up, when it is needed.
    sonde.Client("gpu1:1").close()


def test_a_name_among_several_is_all_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"gpu1": ["10.0.0.1", "2001:db8::1"], "gpu2": ["10.0.0.2"]}

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        return [(None, None, 6, "", (ip, port)) for ip in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    target = resolve(split("gpu1,gpu2:7"))
    assert target.name == "ipv6:[::ffff:10.0.0.1]:50051,[2001:db8::1]:50051,[::ffff:10.0.0.2]:7"


@pytest.mark.parametrize(
    ("address", "spread"),
    [
        ("localhost:1", False),
        (["localhost:1"], False),
        ("ipv4:127.0.0.1:1", False),
        ("xds:///sonde", False),
        ("unix:/tmp/a,b", False),
        ("dns:///sonde:1", True),
        ("dns:sonde:1", True),
        ("dns:/sonde:1", True),
        ("dns://10.0.0.53/sonde:1", True),
        ("127.0.0.1:1,127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:1,[::1]:2", True),
    ],
)
def test_calls_take_turns_where_there_may_be_several(address: Any, spread: bool) -> None:
    connection = Connection.of(address, None, False, None)
    assert connection.target.spread is spread
    assert ("round_robin" in option(connection, "grpc.service_config")) is spread
    assert ("healthCheckConfig" in option(connection, "grpc.service_config")) is spread
    assert '"retryableStatusCodes": ["UNAVAILABLE"]' in option(connection, "grpc.service_config")


def test_requests_to_several_name_one_host_and_pass_no_proxy() -> None:
    several = Connection.of("10.0.0.1:1,10.0.0.1:2", None, False, None)
    assert option(several, "grpc.default_authority") == "10.0.0.1:1"
    assert option(several, "grpc.enable_http_proxy") == 0
    one = Connection.of("10.0.0.1:1", None, False, None)
    assert option(one, "grpc.default_authority") is None
    assert option(one, "grpc.enable_http_proxy") is None


def test_certificates_of_several_hosts_need_one_name() -> None:
    addresses = ["10.0.0.1:1", "10.0.0.2:1"]
    for tls in (True, sonde.TLS()):
        with pytest.raises(sonde.InvalidSettings, match=r"10\.0\.0\.1, 10\.0\.0\.2; pass tls=sonde\.TLS\(server_name="):
            sonde.Client(addresses, tls=tls)
    named = Connection.of(addresses, None, sonde.TLS(server_name="sonde.test"), None)
    assert option(named, "grpc.ssl_target_name_override") == "sonde.test"
    assert option(named, "grpc.default_authority") is None
    sonde.Client(["10.0.0.1:1", "10.0.0.1:2"], tls=True).close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:50051", True),
        ("localhost", True),
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("unix:/tmp/socket", True),
        ("localhost.example.org:1", False),
        ("10.0.0.1:50051", False),
        ("ipv4:127.0.0.1:1,8.8.8.8:1", False),
        ("[2001:db8::1]:50051", False),
    ],
)
def test_what_stays_on_this_machine(address: str, expected: bool) -> None:
    assert all(map(is_loopback, split(address))) is expected
