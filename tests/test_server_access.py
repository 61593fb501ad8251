"""Who is let in: TLS, client certificates and tokens, over real connections with real certificates."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sonde
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import SettingError, Settings
from sonde_server.serving.certificates import CertificateError
from sonde_server.serving.server import SERVICE, Server
from sonde_server.serving.tokens import TokenFileError, Tokens, make_token

from tests.support import wire
from tests.support.models import save_model
from tests.support.process import COMMAND, ServerProcess, environment, server_of, server_process
from tests.support.replicas import served


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("access") / "gpt2")


class Papers:
    """An authority with certificates for the server and for a client, as files."""

    def __init__(self, folder: Path, authority: trustme.CA | None = None, *names: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.authority = authority or trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.server = self._issue("server", self.authority.issue_cert(*(names or ("localhost", "127.0.0.1"))))
        self.client = self._issue("client", self.authority.issue_cert("alice.test", common_name="alice"))

    def _issue(self, name: str, certificate: trustme.LeafCert) -> tuple[str, str]:
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        return str(chain), str(key)

    def settings(self, model: Path, **others: Any) -> Settings:
        certificate, key = self.server
        return Settings(model=str(model), port=0, device="cpu", tls_cert=certificate, tls_key=key, **others)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str, str]:
    """A file of two tokens, and the tokens."""
    made = [make_token(name) for name in ("alice", "bob")]
    path = tmp_path / "tokens.txt"
    path.write_text("# who may\n\n" + "\n".join(line for _, line in made) + "\n")
    return path, made[0][0], made[1][0]


def one_way_in(address: str, **metadata: str) -> list[grpc.StatusCode]:
    """How GetModel, Trace, Intervene and reflection end, called without TLS and with this metadata."""
    sent = tuple(metadata.items())
    codes = []
    with grpc.insecure_channel(address) as channel:
        stub = InspectionServiceStub(channel)
        trace = pb.TraceRequest(prompt=wire.prompt([5, 6, 7]))
        edit = pb.Edit(site=pb.Site(component=pb.COMPONENT_MLP_OUT, layers=[0]), scale=0.5)
        plan = pb.InterventionList(interventions=[pb.Intervention(edits=[edit])])
        calls = (
            lambda: stub.GetModel(pb.GetModelRequest(), timeout=20, metadata=sent),
            lambda: list(stub.Trace(trace, timeout=20, metadata=sent)),
            lambda: list(
                stub.Intervene(pb.InterveneRequest(prompt=trace.prompt, list=plan), timeout=20, metadata=sent)
            ),
        )
        for call in calls:
            try:
                call()
            except grpc.RpcError as error:
                codes.append(error.code())
            else:
                codes.append(grpc.StatusCode.OK)
    return codes


# ------------------------------------------------------------------ tokens


def test_nobody_comes_in_without_a_token_and_everybody_sees_health(model: Path, tokens: tuple[Path, str, str]) -> None:
    path, alice, _ = tokens
    with Server(Settings(model=str(model), port=0, device="cpu", tokens=str(path))) as server:
        refused = [grpc.StatusCode.UNAUTHENTICATED] * 3
        assert one_way_in(server.address) == refused
        assert one_way_in(server.address, authorization="Bearer " + alice[:-1]) == refused
        assert one_way_in(server.address, authorization="Basic " + alice) == refused
        assert (
            one_way_in(server.address, authorization="Bearer " + hashlib.sha256(alice.encode()).hexdigest()) == refused
        )
        assert one_way_in(server.address, authorization="Bearer " + alice) == [grpc.StatusCode.OK] * 3
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20).status == 1
            with pytest.raises(grpc.RpcError) as caught:
                ProtoReflectionDescriptorDatabase(channel).get_services()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_request_without_a_token_is_refused_before_it_is_read(model: Path, tokens: tuple[Path, str, str]) -> None:
    settings = Settings(model=str(model), port=0, device="cpu", tokens=str(tokens[0]))
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Trace")

        over = threading.Event()

        def nothing() -> Iterator[bytes]:
            # A request that never comes: whoever waits for it waits for the deadline.
            over.wait(60)
            yield from ()

        with pytest.raises(grpc.RpcError) as caught:
            next(call(nothing(), timeout=20))
        over.set()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_read_again(tokens: tuple[Path, str, str]) -> None:
    path, alice, bob = tokens
    known = Tokens(path)
    assert [known.name_of(token) for token in (alice, bob, "", "ü")] == ["alice", "bob", None, None]
    carol, line = make_token("carol")
    path.write_text(line)
    assert known.name_of(carol) is None
    known.reload()
    assert [known.name_of(token) for token in (alice, carol)] == [None, "carol"]
    path.write_text("carol " + carol)
    with pytest.raises(TokenFileError, match="line 1") as caught:
        known.reload()
    assert carol not in str(caught.value)
    assert known.name_of(carol) == "carol"


@pytest.mark.parametrize(
    "content", ["", "# nobody\n", "alice\n", "alice abc\n", "a b c\n", "-x " + "0" * 64, "x " + "g" * 64]
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(TokenFileError, match="tokens"):
        Tokens(tmp_path / "tokens")


def test_the_client_sends_its_token(model: Path, tokens: tuple[Path, str, str]) -> None:
    settings = Settings(model=str(model), port=0, device="cpu", tokens=str(tokens[0]))
    with Server(settings) as server:
        with sonde.Client(server.address, token=tokens[1]) as client:
            assert len(client.trace([5, 6, 7]).tokens) == 3
        with (
            sonde.Client(server.address, token=tokens[1][::-1]) as client,
            pytest.raises(sonde.Unauthenticated) as caught,
        ):
            client.trace([5, 6, 7])
        assert caught.value.reason == "UNAUTHENTICATED"
        assert caught.value.request_id


# ------------------------------------------------------------------ certificates


def test_the_client_speaks_tls(model: Path, papers: Papers, tokens: tuple[Path, str, str]) -> None:
    with Server(papers.settings(model, tokens=str(tokens[0]))) as server:
        port = server.address.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1"):
            with sonde.Client(f"{host}:{port}", token=tokens[1], tls=sonde.TLS(papers.ca)) as client:
                assert client.model.layers == 4
        for tls in (True, False):
            with sonde.Client(server.address, token=tokens[1], tls=tls) as client, pytest.raises(sonde.NotServing):
                client.trace([5, 6, 7], timeout=20)


def test_each_of_several_servers_proves_its_name(model: Path, papers: Papers, tmp_path: Path) -> None:
    others = Papers(tmp_path / "others", papers.authority, "other.test")
    with (
        Server(papers.settings(model)) as one,
        Server(papers.settings(model)) as two,
        Server(others.settings(model, metrics_port=0)) as impostor,
    ):
        ports = [server.address.rpartition(":")[2] for server in (one, two, impostor)]

        def ask(name: str | None, *addresses: str) -> None:
            with sonde.Client(addresses, tls=sonde.TLS(papers.ca, server_name=name), timeout=20) as client:
                for _ in range(20):
                    client.trace([5, 6, 7])

        for host in ("localhost", "127.0.0.1"):
            ask(None, f"{host}:{ports[0]}", f"{host}:{ports[1]}")
            # Of two, only the one that is who it should be is asked.
            ask(None, f"{host}:{ports[0]}", f"{host}:{ports[2]}")
        assert served(impostor) == 0
        ask("localhost", f"localhost:{ports[0]}", f"127.0.0.1:{ports[1]}")
        with pytest.raises(sonde.NotServing):
            ask("other.test", f"localhost:{ports[0]}", f"127.0.0.1:{ports[1]}")
        ask("other.test", f"localhost:{ports[0]}", f"127.0.0.1:{ports[2]}")
        assert served(impostor) == 20


def test_only_certificates_of_the_authority_come_in(model: Path, papers: Papers, tmp_path: Path, caplog: Any) -> None:
    strangers = Papers(tmp_path / "strangers")
    caplog.set_level("INFO")
    with Server(papers.settings(model, tls_client_ca=str(papers.ca))) as server:
        certificate, key = papers.client
        with sonde.Client(server.address, tls=sonde.TLS(papers.ca, certificate, key)) as client:
            assert len(client.trace([5, 6, 7]).tokens) == 3
        assert re.search(r"Trace OK by alice in", caplog.text)
        theirs = sonde.TLS(papers.ca, *strangers.client)
        for tls in (theirs, sonde.TLS(papers.ca)):
            with sonde.Client(server.address, tls=tls) as client, pytest.raises(sonde.NotServing):
                client.trace([5, 6, 7], timeout=20)


def test_a_certificate_is_renewed_without_a_restart(model: Path, tmp_path: Path) -> None:
    old, new = Papers(tmp_path / "old"), Papers(tmp_path / "new")
    with Server(old.settings(model)) as server:

        def reached(ca: Path) -> bool:
            with sonde.Client(server.address, tls=sonde.TLS(ca)) as client:
                try:
                    return client.model.layers == 4
                except sonde.NotServing:
                    return False

        assert (reached(old.ca), reached(new.ca)) == (True, False)
        Path(old.server[0]).write_text("renewed by halves")
        server.reload()
        assert reached(old.ca)
        for mine, theirs in zip(old.server, new.server, strict=True):
            Path(mine).write_bytes(Path(theirs).read_bytes())
        server.reload()
        assert (reached(old.ca), reached(new.ca)) == (False, True)


def test_papers_that_do_not_fit_are_refused(model: Path, papers: Papers, tmp_path: Path) -> None:
    certificate, key = papers.server
    for pair in ((certificate, papers.client[1]), (key, key), (certificate, certificate), (str(tmp_path / "x"), key)):
        with pytest.raises(CertificateError, match="--tls-"):
            Server(Settings(model=str(model), port=0, tls_cert=pair[0], tls_key=pair[1]))


# ------------------------------------------------------------------ what may listen where


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.test"])  # noqa: S104
def test_nothing_is_open_to_other_machines_by_accident(host: str) -> None:
    with pytest.raises(SettingError, match="--insecure"):
        Settings(host=host)
    with pytest.raises(SettingError, match="--insecure"):
        Settings(host=host, tls_cert="c", tls_key="k")
    for others in ({"insecure": True}, {"tokens": "t"}, {"tls_cert": "c", "tls_key": "k", "tls_client_ca": "a"}):
        assert Settings(host=host, **others).host == host  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_may_always(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("given", [{"tls_cert": "c"}, {"tls_key": "k"}, {"tls_client_ca": "a"}])
def test_halves_of_tls_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="--tls-"):
        Settings(**given)  # type: ignore[arg-type]


def test_health_for_probes_needs_neither_tls_nor_token(model: Path, papers: Papers, tokens: Any) -> None:
    with Server(papers.settings(model, tokens=str(tokens[0]), tls_client_ca=str(papers.ca), health_port=0)) as server:
        port = server.health_address.rpartition(":")[2]
        ran = subprocess.run(
            [sys.executable, "-m", "sonde_server.healthcheck"],
            env=environment() | {"SONDE_HEALTH_PORT": port},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (0, f"127.0.0.1:{port} SERVING\n")
        with grpc.insecure_channel(server.health_address) as channel, pytest.raises(grpc.RpcError) as caught:
            InspectionServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ------------------------------------------------------------------ the command


def lines_until(process: ServerProcess, word: str) -> list[dict[str, Any]]:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(json.loads(line))
        if word in seen[-1]["message"]:
            return seen
    raise AssertionError(f"it ended without {word!r}: {seen}")


@pytest.mark.system
def test_the_command_reads_its_tokens_again_on_sighup(model: Path, tokens: tuple[Path, str, str]) -> None:
    path, alice, bob = tokens
    with server_of(model, 0, "--tokens", str(path), "--log-format", "json") as process:
        address = lines_until(process, "listening on")[-1]["message"].split()[-1]
        lines_until(process, "serving")
        assert one_way_in(address, authorization=f"Bearer {alice}") == [grpc.StatusCode.OK] * 3
        seen = lines_until(process, "Intervene")
        assert [(line["caller"], line["method"], line["code"]) for line in seen] == [
            ("alice", name, "OK") for name in ("Trace", "Intervene")
        ]
        path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("alice")))
        process.send_signal(signal.SIGHUP)
        seen += lines_until(process, "reloaded the tokens")
        assert one_way_in(address, authorization=f"Bearer {alice}") == [grpc.StatusCode.UNAUTHENTICATED] * 3
        assert one_way_in(address, authorization=f"Bearer {bob}") == [grpc.StatusCode.OK] * 3
        path.write_text("broken")
        process.send_signal(signal.SIGHUP)
        seen += lines_until(process, "kept the previous tokens")
        assert one_way_in(address, authorization=f"Bearer {bob}") == [grpc.StatusCode.OK] * 3
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        told = json.dumps(seen) + process.stderr.read()
        assert alice not in told
        assert bob not in told


@pytest.mark.system
def test_the_command_makes_tokens() -> None:
    command = [sys.executable, *COMMAND, "token", "alice"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    name, digest = ran.stdout.split()
    assert name == "alice"
    assert hashlib.sha256(ran.stderr.strip().encode()).hexdigest() == digest


@pytest.mark.system
def test_what_keeps_it_out_is_said_in_one_line(tmp_path: Path, papers: Papers) -> None:
    for flags, code, said in (
        (("--host", "0.0.0.0"), 2, "--insecure"),  # noqa: S104
        (("--tokens", str(tmp_path / "none")), 1, "cannot read"),
        (("--tls-cert", papers.server[0], "--tls-key", papers.client[1]), 1, "do not belong together"),
        (("token", "no name"), 2, "expected a name of"),
    ):
        with server_process(*flags) as process:
            assert process.wait(60) == code
            assert process.stderr is not None
            assert re.fullmatch(rf"sonde-server: .*{re.escape(said)}.*\n", process.stderr.read())
