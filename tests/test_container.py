"""The container image, built as the Dockerfile says and run as the README says it is run."""

import copy
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sonde
import sonde_server
import yaml

from tests.container.engine import CannotRun, Engine, engine
from tests.container.host import CannotBuild
from tests.support.tolerance import assert_close

# Building installs torch, however fast the package index is.
pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]

PROMPT = "The Eiffel Tower is in the city of"
HEALTHY_SECONDS = 120.0
STOP_SECONDS = 240.0
SWEEP = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[0, 1, 2])
"""Thousands of runs, and seconds of work: more than a message waits, far less than calls have to finish."""
MOST_BYTES = 2_000_000_000
"""Of an image with the CPU build of torch."""


@pytest.fixture(scope="module")
def containers() -> Iterator[Engine]:
    try:
        with engine() as found:
            yield found
    except CannotRun as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def image(containers: Engine) -> str:
    try:
        containers.prepare()
    except (CannotBuild, CannotRun) as reason:
        pytest.skip(str(reason))
    return containers.build()


@pytest.fixture(scope="module")
def described(containers: Engine, image: str) -> Any:
    return json.loads(containers.tell("image", "inspect", image))[0]


@dataclass(frozen=True)
class Running:
    """A container on the loopback of this machine."""

    engine: Engine
    id: str
    address: str
    metrics: str

    def python(self, program: str) -> str:
        return self.engine.tell("exec", self.id, "python", "-c", program)

    def healthy(self) -> bool:
        """What the image's own health check says."""
        if self.engine.is_podman:
            # It is run by systemd's timers, where there are any.
            return self.engine.call("healthcheck", "run", self.id).returncode == 0
        return self.engine.tell("inspect", "--format", "{{.State.Health.Status}}", self.id) == "healthy"

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_SECONDS
        while not self.healthy():
            assert time.monotonic() < deadline, self.engine.logs(self.id)
            time.sleep(0.5)


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]
    finally:
        for one in taken:
            one.close()


@pytest.fixture(scope="module")
def running(containers: Engine, image: str) -> Iterator[Running]:
    port, health, metrics = free_ports(3)
    # On the host's network, so that loopback is enough and nothing is published.
    settings = {
        "HOST": "127.0.0.1", "PORT": port, "HEALTH_PORT": health, "METRICS_PORT": metrics, "GRACE": int(STOP_SECONDS)
    }  # fmt: skip
    variables = [part for name, value in settings.items() for part in ("--env", f"SONDE_{name}={value}")]
    started = containers.start("--network", "host", *variables, image)
    try:
        running = Running(containers, started, f"127.0.0.1:{port}", f"127.0.0.1:{metrics}")
        running.wait_until_healthy()
        yield running
    finally:
        containers.call("rm", "--force", started)


def test_it_runs_as_nobody_and_can_get_no_more(running: Running) -> None:
    program = "import os; print(os.getuid(), os.getgid()); print(open('/proc/1/status').read())"
    identity, *status = running.python(program).splitlines()
    assert identity == "10001 10001"
    state = dict(line.split(":", 1) for line in status)
    assert set(state["Uid"].split()) == set(state["Gid"].split()) == {"10001"}
    assert {int(state[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert int(state["NoNewPrivs"]) == 1


@pytest.mark.parametrize("path", ["/opt/sonde/written", "/etc/written", "/written", "/var/tmp/written"])  # noqa: S108
def test_its_root_cannot_be_written_to(running: Running, path: str) -> None:
    written = running.engine.inside(running.id, "touch", path)
    assert written.returncode != 0
    assert "Read-only file system" in written.stderr


def test_it_answers_as_a_model_in_this_process_does(running: Running) -> None:
    method = sonde.CausalTracing(subject="The Eiffel Tower")
    with sonde.Client(running.address) as there, sonde_server.local("atlas", device="cpu") as here:
        asked = [client.trace(PROMPT, targets=[" Paris"], method=method) for client in (there, here)]
        scaled = sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)
        changed = [client.intervene(PROMPT, [scaled], targets=[" Paris", " Rome"]) for client in (there, here)]
        assert there.model.layers == here.model.layers
    assert asked[0].restored.keys() == asked[1].restored.keys()
    for component, values in asked[0].restored.items():
        assert_close(values, asked[1].restored[component], component)
    assert_close(changed[0].log_probabilities, changed[1].log_probabilities)
    # The right answer, and not only the same.
    assert asked[0].clean[0] > 0.5


def test_it_tells_prometheus_what_was_asked(running: Running) -> None:
    with sonde.Client(running.address) as client:
        client.trace(PROMPT)
    with urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=20) as answer:
        told = answer.read().decode()
    asked = re.search(r'^sonde_requests_total\{caller="",code="OK",method="Trace"\} (\S+)$', told, re.MULTILINE)
    assert asked is not None, told
    assert float(asked[1]) >= 1
    assert f'version="{sonde.__version__}"' in told


def test_it_stops_when_it_is_told_to_and_finishes_what_is_in_progress(running: Running) -> None:
    begun = threading.Event()
    seen: list[float] = []

    def progress(done: int, total: int) -> None:
        seen.append(done / total)
        begun.set()

    results: list[Any] = []
    with sonde.Client(running.address) as client:

        def ask() -> None:
            results.append(client.intervene(PROMPT, SWEEP, targets=[" Paris"], progress=progress))

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(STOP_SECONDS)
        # PID 1 gets it, as from `docker stop`; which would kill what has not ended in time.
        running.engine.tell("kill", "--signal", "TERM", running.id)
        at_stop = seen[-1]
        asking.join(STOP_SECONDS)
    assert at_stop < 1
    (result,) = results
    assert result.arrived.all()
    assert running.engine.exit_code(running.id) == 0
    assert "calls in progress have" in running.engine.logs(running.id)


def test_it_listens_to_everybody_only_when_it_is_told_to(containers: Engine, image: str) -> None:
    started = containers.start("--network", "none", image)
    try:
        assert containers.exit_code(started) == 2
        assert "--insecure" in containers.logs(started)
    finally:
        containers.call("rm", "--force", started)


def test_it_needs_no_network_and_its_own_command_asks_it(containers: Engine, image: str) -> None:
    started = containers.start("--network", "none", image, "--insecure")
    try:
        Running(containers, started, "", "").wait_until_healthy()
        command = ("sonde", "trace", PROMPT, "--target", " Paris", "--json")
        answer = json.loads(containers.tell("exec", started, *command))
    finally:
        containers.call("rm", "--force", started)
    assert answer["targets"][0]["text"] == " Paris"


def test_it_holds_what_it_runs_with_and_no_tools(containers: Engine, image: str) -> None:
    program = (
        "import json, pathlib, shutil, sys, importlib.metadata as metadata, importlib.util as util, torch; "
        "print(json.dumps({"
        "'tools': [name for name in ('gcc', 'g++', 'make', 'git', 'curl') if shutil.which(name)], "
        "'modules': [name for name in ('pip', 'hatchling', 'pytest', 'mypy') if util.find_spec(name)], "
        "'left': [path for path in ('/src', '/wheel', '/root/.cache', '/tmp/constraints.txt') "
        "if pathlib.Path(path).exists() and any(pathlib.Path(path).iterdir())], "
        "'version': metadata.version('sonde'), 'cuda': torch.version.cuda}))"
    )
    # Root, who sees everything.
    found = json.loads(
        containers.tell(
            "run", "--rm", "--user", "0", "--network", "none", "--entrypoint", "python", image, "-c", program
        )
    )
    size = int(containers.tell("image", "inspect", "--format", "{{.Size}}", image))
    print(f"{size / 1e9:.2f} GB")
    assert found["tools"] == found["modules"] == found["left"] == []
    assert found["version"] == sonde.__version__
    if found["cuda"] is None:
        assert size < MOST_BYTES


def test_it_says_what_it_is(described: Any) -> None:
    configuration = described["Config"]
    assert configuration["User"] == "10001:10001"
    assert configuration["Entrypoint"] == ["sonde-server"]
    assert set(configuration["ExposedPorts"]) == {"50051/tcp"}
    assert configuration["Labels"]["org.opencontainers.image.title"] == "Sonde"
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    # docker and podman keep it in different places.
    check = configuration.get("Healthcheck") or described["Healthcheck"]
    assert check["Test"] == ["CMD", "python", "-m", "sonde_server.healthcheck"]


def pod_for_this_machine(image: str, settings: dict[str, str]) -> Any:
    """The pod of the example's Deployment, less what only a cluster has: GPUs, its files, its networks, its probes."""
    manifests = Path(__file__).parents[1] / "examples" / "kubernetes" / "sonde.yaml"
    documents = yaml.safe_load_all(manifests.read_text(encoding="utf-8"))
    (deployment,) = [one for one in documents if one["kind"] == "Deployment"]
    specification = copy.deepcopy(deployment["spec"]["template"]["spec"])
    (container,) = specification["containers"]
    for what in ("ports", "lifecycle", "startupProbe", "readinessProbe", "livenessProbe"):
        del container[what]
    del specification["tolerations"]
    del container["resources"]["limits"]["nvidia.com/gpu"]
    for mounted in (container["volumeMounts"], specification["volumes"]):
        mounted[:] = [one for one in mounted if one["name"] == "tmp"]
    of_files = {"SONDE_MODEL", "SONDE_TLS_CERT", "SONDE_TLS_KEY", "SONDE_TOKENS"}
    given = {one["name"]: one["value"] for one in container["env"] if one["name"] not in of_files} | settings
    container["env"] = [{"name": name, "value": value} for name, value in given.items()]
    container |= {"image": image, "imagePullPolicy": "Never"}
    metadata = {"name": "sonde", "labels": deployment["spec"]["template"]["metadata"]["labels"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": specification | {"hostNetwork": True},
    }


def test_the_pod_of_the_manifests_runs_with_the_rights_it_has_there(
    containers: Engine, image: str, tmp_path: Path
) -> None:
    if not containers.is_podman:
        pytest.skip("docker plays no pods; podman does")
    port, health, metrics = map(str, free_ports(3))
    ports = {"SONDE_PORT": port, "SONDE_HEALTH_PORT": health, "SONDE_METRICS_PORT": metrics}
    pod = pod_for_this_machine(image, ports | {"SONDE_HOST": "127.0.0.1", "SONDE_DEVICE": "cpu"})
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(pod), encoding="utf-8")
    containers.tell("kube", "play", str(file))
    try:
        with sonde.Client(f"127.0.0.1:{port}") as client:
            client.wait_until_serving(HEALTHY_SECONDS)
            assert client.trace(PROMPT, targets=[" Paris"]).prediction.probabilities[0] > 0.5
        assert containers.tell("exec", "sonde-sonde", "id", "-u") == "10001"
        written = containers.inside("sonde-sonde", "touch", "/opt/sonde/written")
        assert "Read-only file system" in written.stderr
    finally:
        containers.tell("kube", "down", str(file))
