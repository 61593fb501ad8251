"""The manifests and the compose file fit Kubernetes's schema, the server's settings, and each other."""

import copy
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sonde._connection.connection import Connection
from sonde_server.config import PREFIX, Settings
from sonde_server.serving.server import Server

EXAMPLES = Path(__file__).parents[1] / "examples"
MANIFESTS: dict[str, Any] = {
    one["kind"]: one for one in yaml.safe_load_all((EXAMPLES / "kubernetes" / "sonde.yaml").read_text(encoding="utf-8"))
}
COMPOSE: Any = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))
OLDEST = "1.30"
"""The first version that has preStop.sleep without a gate."""
NEWEST = kubernetes_validate.latest_version()


def pod() -> Any:
    return MANIFESTS["Deployment"]["spec"]["template"]


def container() -> Any:
    return pod()["spec"]["containers"][0]


def settings(environment: dict[str, str]) -> Settings:
    """What the server makes of these variables, of which it must know every one."""
    known = {PREFIX + name.upper() for name in Settings.__dataclass_fields__}
    assert set(environment) <= known
    return Settings.from_environment_and_flags([], environment)


def deployed() -> Settings:
    # The image sets the host.
    return settings({one["name"]: one["value"] for one in container()["env"]} | {"SONDE_HOST": "0.0.0.0"})  # noqa: S104


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"])
def test_a_manifest_fits_the_schema(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_the_schema_sees_a_wrong_probe() -> None:
    wrong = copy.deepcopy(MANIFESTS["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["grpc"] = {"ports": 50052}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_the_ports_are_the_servers() -> None:
    server = deployed()
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert ports == {"grpc": server.port, "health": server.health_port, "metrics": server.metrics_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["grpc"]["port"] == server.health_port
    assert pod()["metadata"]["annotations"]["prometheus.io/port"] == str(server.metrics_port)
    (port,) = MANIFESTS["Service"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (server.port, "grpc")


def test_calls_in_progress_may_end_before_the_pod_is_killed() -> None:
    pause = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + deployed().grace < pod()["spec"]["terminationGracePeriodSeconds"]


def test_every_file_that_the_server_reads_is_mounted() -> None:
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    assert set(mounts) == {one["name"] for one in pod()["spec"]["volumes"]}
    server = deployed()
    for path in (server.model, server.tls_cert, server.tls_key, server.tokens):
        assert path is not None
        assert any(path.startswith(mount + "/") for mount in mounts.values()), path


def test_the_parts_name_the_same_pods() -> None:
    labels = pod()["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["Deployment"]["metadata"]["name"])


def test_clients_find_every_replica_by_the_services_name() -> None:
    spec = MANIFESTS["Service"]["spec"]
    # Without an address of its own the name is those of the pods, and of those alone that serve.
    assert spec["clusterIP"] == "None"
    assert not spec.get("publishNotReadyAddresses")
    age = deployed().max_connection_age
    assert age is not None
    assert age <= 300
    (target,) = re.findall(r"sonde\.Client\(\"([^\"]+)\"", (EXAMPLES / "kubernetes" / "README.md").read_text("utf-8"))
    (port,) = spec["ports"]
    assert target == f"dns:///{MANIFESTS['Service']['metadata']['name']}:{port['port']}"
    assert Connection.of(target, None, True, None).target.spread


def test_the_pod_has_no_privileges_and_a_gpu() -> None:
    security = container()["securityContext"]
    assert pod()["spec"]["securityContext"]["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_replicas_follow_a_metric_that_the_server_has() -> None:
    (metric,) = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name, target = metric["pods"]["metric"]["name"], int(metric["pods"]["target"]["averageValue"])
    assert target < deployed().max_queued_runs
    with (
        Server(Settings(port=0, device="cpu", metrics_port=0)) as server,
        urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=20) as answer,
    ):
        assert re.search(rf"^{name} 0\.0$", answer.read().decode(), re.MULTILINE)


def test_the_composed_server_starts_and_is_scraped() -> None:
    service = COMPOSE["services"]["sonde"]
    server = settings(service["environment"] | {"SONDE_HOST": "0.0.0.0"})  # noqa: S104
    scraped = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": [f"sonde:{server.metrics_port}"]}]
    assert int(service["stop_grace_period"].removesuffix("s")) > server.grace
    assert (EXAMPLES / service["build"] / "Dockerfile").is_file()


def test_composed_services_are_published_to_this_machine_alone() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_dashboard_finds_its_data() -> None:
    grafana = COMPOSE["services"]["grafana"]
    provided = {one["source"] for service in COMPOSE["services"].values() for one in service.get("configs", ())}
    assert provided == set(COMPOSE["configs"])
    host, inside, _ = grafana["volumes"][0].split(":")
    assert inside == grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    (folder,) = yaml.safe_load(COMPOSE["configs"]["grafana-dashboards"]["content"])["providers"]
    assert Path(inside).parent == Path(folder["options"]["path"])
    dashboard = json.loads((EXAMPLES / host).read_text(encoding="utf-8"))
    (source,) = yaml.safe_load(COMPOSE["configs"]["grafana-datasources"]["content"])["datasources"]
    wanted = next(one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
    assert wanted["query"] == source["type"]
