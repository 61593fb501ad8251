"""What a deployment is told, and what it makes of it, before any Ray runs."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import yaml
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import SettingError

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install '.[ray]'", allow_module_level=True)

with warnings.catch_warnings():
    # Ray warns of itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve.config import AutoscalingContext
    from ray.serve.schema import ServeDeploySchema
    from sonde_server.ray import RaySettings, build
    from sonde_server.ray.proxying import prompt_of
    from sonde_server.ray.routing import weight
    from sonde_server.ray.scaling import QUEUED_RUNS, QueuePolicy

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def read(*flags: str, **environment: str) -> RaySettings:
    return RaySettings.from_environment_and_flags(flags, environment)


def test_it_has_every_setting_of_a_server_and_its_own() -> None:
    settings = read("--replicas", "3", "--max-runs=7", "--insecure", SONDE_MAX_REPLICAS="5", SONDE_MODEL="gpt2")
    assert (settings.replicas, settings.max_replicas, settings.model, settings.limits.max_runs) == (3, 5, "gpt2", 7)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--tokens"),
        (["--insecure", "--tls-cert", "a", "--tls-key", "b"], "--tls-cert"),
        (["--insecure", "--health-port", "1"], "--health-port"),
        (["--insecure", "--replicas", "3", "--max-replicas", "2"], "--max-replicas: expected at least --replicas"),
        (["--insecure", "--replicas", "0"], "--replicas: expected at least 1, got 0"),
        (["--insecure", "--device-map", "auto", "--device", "cpu"], "--device"),
    ],
)
def test_what_cannot_be_is_refused(flags: list[str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read(*flags)


def test_a_configuration_file_says_the_same() -> None:
    assert build({"model": "atlas", "replicas": 2, "insecure": True, "reflection": False})
    with pytest.raises(SettingError, match="--replicas"):
        build({"replicas": 0, "insecure": True})


def test_the_example_is_a_configuration_of_ray_serve() -> None:
    written = yaml.safe_load((ROOT / "examples" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(written)
    assert schema.grpc_options.grpc_servicer_functions == ["sonde_server.ray.add_to_server"]
    (one,) = schema.applications
    assert one.import_path == "sonde_server.ray:build"
    assert build(one.args)


def test_the_prompt_alone_decides_where_a_request_goes() -> None:
    prompt = pb.Prompt(text="The Eiffel Tower is in the city of")
    traced = pb.TraceRequest(prompt=prompt, top_k=3).SerializeToString()
    changed = pb.InterveneRequest(prompt=prompt).SerializeToString()
    other = pb.TraceRequest(prompt=pb.Prompt(text="The Colosseum is in the city of")).SerializeToString()
    assert prompt_of("Trace", traced) == prompt_of("Intervene", changed) != prompt_of("Trace", other)
    assert prompt_of("GetModel", b"") == prompt_of("Trace", b"\xff") == ""


def test_a_replica_that_goes_moves_only_its_own_prompts() -> None:
    replicas = [f"replica-{number}" for number in range(8)]
    prompts = [f"prompt-{number}" for number in range(400)]

    def chosen(among: list[str]) -> dict[str, str]:
        return {prompt: max(among, key=lambda one: weight(prompt, one)) for prompt in prompts}

    before, after = chosen(replicas), chosen(replicas[1:])
    assert all(after[prompt] == replica for prompt, replica in before.items() if replica != replicas[0])
    shares = [list(before.values()).count(replica) for replica in replicas]
    assert min(shares) > 25
    assert max(shares) < 80


@pytest.mark.parametrize(
    ("requests", "queued", "wanted"),
    [
        (16, [0, 0], 2),  # as many as asked for
        (40, [0, 0], 5),  # more requests
        (8, [30_000, 10_000], 8),  # their runs would keep eight busy
        (3, [200_000, 0], 3),  # but three requests are work for three
        (1, [100, 0], 0.125),  # next to nothing; Ray keeps to the fewest
    ],
)
def test_the_number_of_replicas_follows_the_work(requests: float, queued: list[int], wanted: float) -> None:
    policy = QueuePolicy(target_requests=8, target_queued_runs=5_000)
    context = AutoscalingContext(
        deployment_id=None, deployment_name="Replica", app_name="sonde", current_num_replicas=2, target_num_replicas=2,
        running_replicas=[], total_num_requests=requests, total_queued_requests=0.0,
        aggregated_metrics={QUEUED_RUNS: dict(enumerate(queued))}, raw_metrics=None, capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=9, policy_state={}, last_scale_up_time=None, last_scale_down_time=None,
        current_time=None, config=None,
    )  # fmt: skip
    assert policy(context)[0] == wanted
