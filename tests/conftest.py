"""One real server per tiny model, on a free port of the loopback, with raw stubs on a real channel."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import Server
from transformers import AutoTokenizer

from tests.support import wire
from tests.support.models import EVERY, load_plain, save_model
from tests.support.oracle import Oracle

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
"""The suite's result is the same every time; `explore` searches further, from a fresh seed."""
EFFORT = 25 if PROFILE == "explore" else 1
"""How many times as many examples are tried."""
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("explore", **_COMMON)
hypothesis.settings.load_profile(PROFILE)
# A shell ignores SIGINT for what it runs in the background, and every process under it would: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What takes longest comes first, so that no process is left alone with it at the end. Whole directories by their name.
LONGEST = (
    "test_container.py",
    "ray",
    "test_replicas.py",
    "test_languages.py",
    "test_pages.py",
    "test_packaging.py",
    "test_site.py",
    "test_intervene.py",
    "test_attribution.py",
    "test_generation.py",
    "test_trace.py",
    "conformance",
    "client",
    "test_server_fuzz.py",
    "test_atlas.py",
    "test_packing.py",
    "test_scheduler.py",
)
# Many small groups, which fill what time the processes have left.
SMALLEST = ("test_oracle.py", "test_selfcheck.py", "test_families.py")

DEADLINE = 60.0
"""Seconds that any one call may take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, smallest last; else as they are found."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    for name in (item.path.name, item.path.parent.name):
        if name in LONGEST:
            return LONGEST.index(name)
    return len(LONGEST) + (item.path.name in SMALLEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares servers is run by one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return Scheduling(config, log)


def group(nodeid: str) -> str:
    """A file, or those of its tests that ask the same model, where that is their first parameter; all of Ray."""
    file, _, test = nodeid.partition("::")
    if file.startswith("tests/ray/"):
        # The files share a cluster.
        return "tests/ray"
    _, _, parameters = test.partition("[")
    models = [name for name in EVERY if parameters.startswith((f"{name}]", f"{name}-"))]
    return f"{file} {max(models, key=len)}" if models else file


@dataclass(frozen=True)
class Host:
    """A running server, a channel to it, and the oracle of the same model."""

    family: str
    server: Server
    stub: InspectionServiceStub
    oracle: Oracle
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        """The token ids of a prompt, special tokens included."""
        return list(self.tokenizer(text).input_ids)

    def intervene(self, request: pb.InterveneRequest) -> wire.Answer:
        return wire.join_intervene(self.stub.Intervene(request, timeout=DEADLINE))

    def trace(self, request: pb.TraceRequest) -> wire.Answer:
        return wire.join_trace(self.stub.Trace(request, timeout=DEADLINE))

    def model_info(self) -> pb.GetModelResponse:
        return self.stub.GetModel(pb.GetModelRequest(), timeout=DEADLINE)


class Hosts:
    """Servers by family, started when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._hosts: dict[str, Host] = {}
        self.stack = ExitStack()

    def __getitem__(self, family: str) -> Host:
        if family not in self._hosts:
            self._hosts[family] = self._start(family)
        return self._hosts[family]

    def _start(self, family: str) -> Host:
        folder = save_model(family, self._directory / family)
        server = self.stack.enter_context(Server(Settings(model=str(folder), port=0, device="cpu", dtype="float32")))
        channel = self.stack.enter_context(grpc.insecure_channel(server.address))
        grpc.channel_ready_future(channel).result(timeout=DEADLINE)
        return Host(
            family,
            server,
            InspectionServiceStub(channel),
            Oracle(load_plain(folder)),
            AutoTokenizer.from_pretrained(folder),
        )


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    torch.set_num_threads(1)
    hosts = Hosts(tmp_path_factory.mktemp("models"))
    with hosts.stack:
        yield hosts


@pytest.fixture(scope="session", params=[pytest.param("gpt2", marks=pytest.mark.full), "llama"])
def host(request: pytest.FixtureRequest, hosts: Hosts) -> Host:
    """Every test that takes it runs for each family: in `make test` for the one with more parts."""
    return hosts[request.param]


@pytest.fixture(scope="session")
def gpt2(hosts: Hosts) -> Host:
    return hosts["gpt2"]


@pytest.fixture(scope="session")
def llama(hosts: Hosts) -> Host:
    return hosts["llama"]
