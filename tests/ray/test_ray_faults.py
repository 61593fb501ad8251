"""Behind Ray's proxies work that nobody waits for stops, a prompt finds its cache, and a dead replica is replaced."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import sonde

from tests.ray.conftest import CALLERS, MOST, SECONDS, Cluster, wait_for
from tests.support.models import save_model

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
IDS, LONG_IDS = list(range(5, 45)), list(range(5, 95))
LONG = sonde.sweep(sonde.scale(sonde.neuron(), 0.0))
"""16,000 runs of the short prompt and 36,000 of the long one: what does not end by itself in time."""
SLACK = 4
"""So many requests more than the idlest has may be in progress at the replica of a prompt: that of the router."""
NEURON = [sonde.scale(sonde.neuron(layer=3, unit=0), 0.0)]


def values(client: sonde.Client, prompt: list[int]) -> np.ndarray:
    return client.intervene(prompt, sonde.sweep(sonde.scale(sonde.head(), 0.0)), targets=[41]).log_probabilities


def test_a_timeout_stops_the_work(client: sonde.Client, cluster: Cluster) -> None:
    with pytest.raises(sonde.DeadlineExceeded):
        client.intervene(LONG_IDS, LONG, timeout=1.0)
    assert cluster.idle()


def test_leaving_a_stream_stops_the_work(client: sonde.Client, cluster: Cluster) -> None:
    with closing(client.stream_intervene(LONG_IDS, LONG)) as stream:
        assert not next(stream).complete
        assert any(numbers["sonde_waiting_runs"] for numbers in cluster.metrics().values())
    assert cluster.idle()


def test_a_replica_looks_at_the_deadline_itself(client: sonde.Client, cluster: Cluster) -> None:
    """Ray passes no deadline on, the proxy does: the log of the replica has its status, not that of a cancel."""
    with pytest.raises(sonde.DeadlineExceeded):
        client.intervene(LONG_IDS, LONG, timeout=1.0)
    assert wait_for(lambda: "Intervene DEADLINE_EXCEEDED by alice" in cluster.log.read_text("utf-8"))


def in_progress(cluster: Cluster) -> list[float]:
    """Requests at each replica, the idlest first."""
    return sorted(numbers.get("sonde_requests_in_progress", 0.0) for numbers in cluster.metrics().values())


@contextmanager
def held(cluster: Cluster, *callers: str) -> Iterator[None]:
    """Has each of them ask as much as it may at once of one prompt, one request after the other."""
    clients = [cluster.client(caller) for caller in callers]

    def ask(client: sonde.Client) -> None:
        with suppress(sonde.Cancelled):
            client.intervene(LONG_IDS, LONG)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients for _ in range(MOST)]
    try:
        for number, thread in enumerate(threads, 1):
            thread.start()
            assert wait_for(lambda number=number: sum(in_progress(cluster)) == number)
        yield
    finally:
        for client in clients:
            client.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join(SECONDS)


def test_a_caller_with_enough_requests_is_told_to_come_back(client: sonde.Client, cluster: Cluster) -> None:
    assert cluster.idle()
    with held(cluster, "alice"):
        assert in_progress(cluster) == [0, MOST]
        with pytest.raises(sonde.Busy) as caught:
            client.trace(LONG_IDS)  # the same prompt, so the same replica
    assert caught.value.reason == "TOO_MANY_REQUESTS"
    assert caught.value.retry_after
    assert caught.value.metadata["allowed"] == str(MOST)
    assert cluster.idle()


def test_a_prompt_is_asked_where_it_is_known(client: sonde.Client, cluster: Cluster) -> None:
    before = cluster.metrics()
    prompts = [[5, 130, first, 41, 9] for first in range(60, 72)]
    for _ in range(3):
        for prompt in prompts:
            client.intervene(prompt, NEURON)
    after = cluster.metrics()

    def gained(name: str) -> list[float]:
        return [after[port].get(name, 0.0) - before[port].get(name, 0.0) for port in after]

    assert sum(gained("sonde_requests_total")) == 3 * len(prompts)
    # Each prompt was new to one replica, once.
    assert sum(gained("sonde_cache_misses_total")) == len(prompts)
    # And the prompts are not all one replica's: the chance of that is 1 in 2,048.
    assert all(gained("sonde_requests_total"))


def test_a_prompt_is_asked_elsewhere_where_its_replica_is_busy(cluster: Cluster) -> None:
    assert cluster.idle()
    with held(cluster, *CALLERS):
        assert in_progress(cluster) == [2 * MOST - SLACK - 1, SLACK + 1]
    assert cluster.idle()


def busy(cluster: Cluster) -> psutil.Process:
    """The replica that is computing, or soon will be."""
    (port,) = wait_for(lambda: [port for port, one in cluster.metrics().items() if one["sonde_waiting_runs"]])
    listing = ["ip", "netns", "exec", cluster.namespace, "ss", "-Hltnp", f"sport = :{port}"]
    found = re.search(r"pid=(\d+)", subprocess.run(listing, capture_output=True, text=True, check=True).stdout)
    assert found
    return psutil.Process(int(found[1]))


def test_a_killed_replica_is_an_error_to_retry_and_is_replaced(client: sonde.Client, cluster: Cluster) -> None:
    assert cluster.idle()
    prompts = [[5, 130, first, 41, 9] for first in range(80, 86)]
    known = [values(client, prompt) for prompt in prompts]
    parts = client.stream_intervene(LONG_IDS, LONG)
    next(parts)
    victim = busy(cluster)
    victim.send_signal(signal.SIGKILL)
    with pytest.raises(sonde.NotServing) as caught:
        list(parts)
    assert caught.value.retryable
    assert caught.value.reason == "NOT_SERVING"
    assert str(caught.value) == "the replica failed and is being replaced; retry"
    # The other one answers for it at once, and everybody finds the new one.
    for prompt, value in zip(prompts, known, strict=True):
        assert np.allclose(values(client, prompt), value, rtol=0, atol=1e-5)
    assert cluster.whole()
    assert victim.pid not in {one.pid for one in cluster.replicas()}
    for prompt, value in zip(prompts, known, strict=True):
        assert np.allclose(values(client, prompt), value, rtol=0, atol=1e-5)


def test_a_kill_before_the_first_message_is_not_even_seen(client: sonde.Client, cluster: Cluster) -> None:
    """UNAVAILABLE is what the client tries again by itself."""
    assert cluster.idle()
    results: list[sonde.TraceResult] = []
    # Seconds of work, and then a single message.
    method = sonde.AttributionPatching(LONG_IDS[::-1], components="neuron", integration_steps=256, edges=1)
    thread = threading.Thread(target=lambda: results.append(client.trace(LONG_IDS, targets=[41], method=method)))
    thread.start()
    busy(cluster).send_signal(signal.SIGKILL)
    assert not results
    thread.join(SECONDS)
    assert len(results) == 1
    assert cluster.whole()


LOST = """
import asyncio, sys, threading
import torch
from sonde_server.in_process.channel import Channel
from sonde_server.ray.replica import Replica
from sonde_server.ray.settings import RaySettings
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

replica = Replica(RaySettings(model=sys.argv[1], device="cpu", insecure=True, cache_bytes=0))
asyncio.run(replica.check_health())
print("healthy", flush=True)

def poisoned(*_):
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")

for module in replica._server.model.modules():
    module.register_forward_pre_hook(poisoned)
stub = InspectionServiceStub(Channel(replica._server.endpoint))
try:
    list(stub.Trace(pb.TraceRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[5, 9])))))
except Exception as error:
    print(error.code().name, flush=True)
while True:
    try:
        asyncio.run(replica.check_health())
    except RuntimeError as error:
        print(error, flush=True)
        break
threading.Event().wait()
"""


def test_a_replica_whose_device_is_lost_says_so_and_ends(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    ran = subprocess.run(
        [sys.executable, "-c", LOST, str(save_model("llama", tmp_path / "llama"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(ROOT / "server")])},
        capture_output=True, text=True, timeout=2 * SECONDS, check=False,
    )  # fmt: skip
    assert ran.stdout.split("\n")[:3] == ["healthy", "INTERNAL", "the model no longer runs"], ran.stderr
    assert ran.returncode == 1
